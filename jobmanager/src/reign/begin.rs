//! The storing of a submission, and the import of what its job begins from. Until the job's record is stored nothing of it
//! exists for the cluster, and what is left of a submission that was refused is deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobRecord, JobState};
use tidemill_protocol::{CheckpointId, JobId, ModuleHash, TaskId};

use crate::error_chain;
use crate::handle::{SubmitError, SubmitOptions};
use crate::perform::Hands;
use crate::roles::Process;
use crate::submission::{self, CheckedSubmission};

/// A submission of which everything but the record is stored.
pub(super) struct Stored {
    pub(super) record: JobRecord,
    pub(super) checked: CheckedSubmission,
    /// What the job begins from.
    pub(super) pointers: CheckpointPointers,
}

/// Checks a submission, stores its module and its graph, imports what it begins from, and makes the record that names
/// them.
pub(super) async fn check_and_store(
    process: &Process,
    hands: &Hands,
    wasm: Bytes,
    mut options: SubmitOptions,
    submitted_at_ms: u64,
) -> Result<Stored, SubmitError> {
    let from = options.from.clone();
    if let Some(from) = &from {
        as_it_was(hands, from, &mut options).await;
    }
    let parameters = options.parameters.clone();
    let id = options.id.unwrap_or_else(|| JobId(rand::random()));
    let (engine, config) = (process.engine.clone(), Arc::clone(&process.config));
    let checked =
        tokio::task::spawn_blocking(move || submission::check(&engine, &config, &wasm, options));
    let checked = match checked.await {
        Ok(checked) => checked?,
        Err(panic) => {
            let reason = format!("the check of the submission failed: {panic}");
            return Err(SubmitError::Module { reason });
        }
    };
    let failed = |error: &dyn std::error::Error| SubmitError::Storage {
        reason: error_chain(error),
    };
    let module = hands.store.put_module(checked.module.clone()).await;
    let module = module.map_err(|error| failed(&error))?;
    hands.swept.cancelled().await;
    let marked = hands.store.mark_unrecorded(id, hands.leading.epoch());
    marked.await.map_err(|error| failed(&error))?;
    let graph = hands.store.put_graph(id, checked.encoded_graph()).await;
    let graph = graph.map_err(|error| failed(&error))?;
    let pointers = match &from {
        Some(from) => import(hands, from, id, module, &checked).await?,
        None => CheckpointPointers::default(),
    };
    let record = JobRecord {
        id,
        name: checked.name.clone(),
        module,
        graph,
        graph_hash: tidemill_abi::graph_hash(&checked.graph),
        parameters,
        options: checked.options.clone(),
        submitted_at_ms,
        state: JobState::Active,
        restarts: 0,
        began_from: from,
        ended_at_ms: None,
    };
    Ok(Stored {
        record,
        checked,
        pointers,
    })
}

/// A job that begins from a savepoint has as many tasks as the job that it was taken of, unless its submitter says
/// otherwise.
async fn as_it_was(hands: &Hands, from: &str, options: &mut SubmitOptions) {
    // What is no savepoint says so when it is imported.
    if let Ok(summary) = hands.store.read_savepoint(from).await {
        let savepoint = summary.savepoint;
        options.parallelism.get_or_insert(savepoint.parallelism);
        let max_parallelism = &mut options.max_parallelism;
        max_parallelism.get_or_insert(savepoint.max_parallelism);
    }
}

/// Makes the job's first checkpoint of what it begins from, when that fits it.
async fn import(
    hands: &Hands,
    from: &str,
    job: JobId,
    module: ModuleHash,
    checked: &CheckedSubmission,
) -> Result<CheckpointPointers, SubmitError> {
    let refused = |reason: String| SubmitError::From {
        path: from.to_owned(),
        reason,
    };
    check_pointer(hands, from).await.map_err(refused)?;
    let metadata = hands.store.checkpoint_at(from).await;
    let metadata = metadata.map_err(|error| refused(error_chain(&error)))?;
    fits(&metadata, module, checked).map_err(refused)?;
    let checkpoint = CheckpointId::new(hands.leading.epoch(), 0);
    let imported = hands.store.import_savepoint(from, job, checkpoint).await;
    let (object, _) = imported.map_err(|error| refused(error_chain(&error)))?;
    let pointer = CheckpointPointer {
        checkpoint,
        metadata: object,
    };
    Ok(CheckpointPointers {
        completed: vec![pointer],
    })
}

/// A savepoint ends with its own hash; that of a checkpoint is in its pointer alone, which also says that it was ever
/// complete. Where the registry knows nothing of the job, as when it was another cluster's, the manifests' hashes have to do.
async fn check_pointer(hands: &Hands, from: &str) -> Result<(), String> {
    let named = hands.store.checkpoint_named(from);
    let Some((job, checkpoint)) = named.map_err(|error| error_chain(&error))? else {
        return Ok(());
    };
    let pointers = hands.registry.pointers(job).await;
    let pointers = pointers.map_err(|error| {
        let reason = error_chain(&error);
        format!("its pointer in the registry, which has its hash, cannot be read: {reason}")
    })?;
    let completed = pointers.completed;
    if let Some(pointer) = completed.iter().find(|one| one.checkpoint == checkpoint) {
        let metadata = hands.store.read_metadata(&pointer.metadata).await;
        return metadata.map(drop).map_err(|error| error_chain(&error));
    }
    let records = hands.registry.jobs().await;
    let records = records.map_err(|error| error_chain(&error))?;
    let mut records = records.iter().flatten();
    if completed.is_empty() && !records.any(|record| record.id == job) {
        return Ok(());
    }
    let kept: Vec<String> = completed
        .iter()
        .map(|one| one.checkpoint.to_string())
        .collect();
    let kept = match kept.is_empty() {
        true => "none of its checkpoints is kept".to_owned(),
        false => format!("it keeps {}", kept.join(", ")),
    };
    Err(format!(
        "checkpoint {checkpoint} of job {job} was never completed, or is not kept any more: {kept}"
    ))
}

/// Whether a checkpoint is one of this job's: of its module, its graph and its tasks.
fn fits(
    metadata: &CheckpointMetadata,
    module: ModuleHash,
    checked: &CheckedSubmission,
) -> Result<(), String> {
    if metadata.module != module {
        let theirs = metadata.module;
        return Err(format!(
            "it was taken of module {theirs}, and this is module {module}: a job begins only from what the same module left"
        ));
    }
    let (ours, theirs) = (
        tidemill_abi::graph_hash(&checked.graph),
        metadata.job_graph_hash,
    );
    if ours != theirs {
        return Err(format!(
            "it was taken of a job whose graph has the hash {theirs:016x}, and this job's has {ours:016x}: submit it with the same parameters"
        ));
    }
    let tasks: BTreeSet<TaskId> = checked.execution.tasks().collect();
    let images: BTreeSet<TaskId> = metadata.tasks.iter().map(|part| part.task).collect();
    if tasks != images {
        let (has, holds) = (tasks.len(), images.len());
        return Err(format!(
            "it holds {holds} tasks, and this job has {has}: submit it with the parallelism that it was taken with"
        ));
    }
    Ok(())
}
