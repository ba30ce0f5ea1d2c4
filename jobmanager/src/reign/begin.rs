//! The storing of a submission, and the import of what its job begins from. Until the job's record is stored nothing of it
//! exists for the cluster, and what is left of a submission that was refused is deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobRecord, JobState};
use tidemill_protocol::{CheckpointId, JobId, ModuleHash, TaskId};

use crate::error_chain;
use crate::fit;
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
    let shape = match &from {
        Some(from) => shape_of(hands, from).await,
        None => None,
    };
    if let Some(shape) = &shape {
        options.parallelism.get_or_insert(shape.parallelism);
        let max_parallelism = &mut options.max_parallelism;
        max_parallelism.get_or_insert(shape.max_parallelism);
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
        Some(from) => {
            same_key_groups(from, shape.as_ref(), &checked)?;
            import(hands, from, id, module, &checked).await?
        }
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

/// How many tasks and key groups the job had that was left behind.
struct Shape {
    parallelism: u32,
    max_parallelism: u32,
}

/// A job that begins from a savepoint has as many tasks as the job that it was taken of, unless its submitter says
/// otherwise. A kept checkpoint does not tell; the job's record does, where there is one.
async fn shape_of(hands: &Hands, from: &str) -> Option<Shape> {
    // What is neither says so when it is imported.
    if let Ok(summary) = hands.store.read_savepoint(from).await {
        return Some(Shape {
            parallelism: summary.savepoint.parallelism,
            max_parallelism: summary.savepoint.max_parallelism,
        });
    }
    let (job, _) = hands.store.checkpoint_named(from).ok()??;
    let records = hands.registry.jobs().await.ok()?;
    let record = records.into_iter().flatten().find(|one| one.id == job)?;
    Some(Shape {
        parallelism: record.options.parallelism,
        max_parallelism: record.options.max_parallelism,
    })
}

/// A key's state is where its key group was.
fn same_key_groups(
    from: &str,
    shape: Option<&Shape>,
    checked: &CheckedSubmission,
) -> Result<(), SubmitError> {
    let ours = checked.execution.max_parallelism;
    match shape.map(|shape| shape.max_parallelism) {
        Some(theirs) if theirs != ours => Err(SubmitError::From {
            path: from.to_owned(),
            reason: format!(
                "it was taken with {theirs} key groups, and this job has {ours}: submit it with `--max-parallelism {theirs}`, or without"
            ),
        }),
        _ => Ok(()),
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
    fits_graph(hands, from, &metadata, checked)
        .await
        .map_err(refused)?;
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

/// Only a checkpoint's pointer says that it was ever complete. Where the registry knows nothing of the job, as when it was
/// another cluster's, the hash that the metadata ends with has to do.
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

/// Whether a checkpoint is one of this job's module and tasks.
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

/// Whether a checkpoint was taken of a job with this one's graph, but for where sinks write to.
async fn fits_graph(
    hands: &Hands,
    from: &str,
    metadata: &CheckpointMetadata,
    checked: &CheckedSubmission,
) -> Result<(), String> {
    let theirs = metadata.job_graph_hash;
    if theirs == tidemill_abi::graph_hash(&checked.graph) {
        return Ok(());
    }
    let differs = |how: &str| {
        format!(
            "it was taken of a job with another graph ({how}): submit it with the parameters of that job; only where sinks write to may be another place"
        )
    };
    let unknown = |why: String| differs(&format!("what differs is not known: {why}"));
    let stored = hands.store.graph_at(from).await;
    let stored = stored.map_err(|error| unknown(error_chain(&error)))?;
    let graph = submission::decoded_graph(&stored).map_err(unknown)?;
    if tidemill_abi::graph_hash(&graph) != theirs {
        return Err(unknown("the stored graph is not its own".to_owned()));
    }
    match fit::differences(&graph, &checked.graph) {
        differences if differences.is_empty() => Ok(()),
        differences => Err(differs(&differences.join("; "))),
    }
}
