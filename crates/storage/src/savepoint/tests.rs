//! Savepoints whose writing, import or deletion is cut off after each single step.

use std::collections::BTreeMap;
use std::time::SystemTime;

use object_store::memory::InMemory;
use tidemill_protocol::manifest::{CheckpointMetadata, TaskImageRef};
use tidemill_protocol::record::{JobOptions, JobRecord, JobState, RestartStrategy};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, Image, JobId, TaskId};

use super::*;
use crate::mortal::Mortal;
use crate::{CaptureId, ImageChain};

const JOB: JobId = JobId([7; 16]);
const NEW_JOB: JobId = JobId([8; 16]);
const FIRST: CheckpointId = CheckpointId::new(Epoch(2), 0);
const PLACE: &str = "savepoints/a";

struct Job {
    objects: InMemory,
    record: JobRecord,
    metadata: CheckpointMetadata,
}

impl Job {
    async fn with_a_checkpoint() -> Self {
        let life = Mortal::new(&InMemory::new(), usize::MAX);
        let store = life.store();
        let module = store.put_module(&b"\0asm module"[..]).await.unwrap();
        let graph = store.put_graph(JOB, "graph").await.unwrap();
        let attempt = AttemptId::new(Epoch(1), 1);
        let checkpoint = CheckpointId::new(Epoch(1), 4);
        let mut tasks = Vec::new();
        for subtask in 0..3 {
            let task = TaskId::new(0, subtask);
            let image = Image {
                memory: vec![subtask as u8 + 1; 65_536],
                ..Image::default()
            };
            let id = CaptureId {
                job: JOB,
                task,
                attempt,
                checkpoint,
            };
            let capture = std::sync::Arc::new(image.into());
            let mut chain = ImageChain::new();
            let written = store.write_capture(id, &capture, &mut chain).await;
            tasks.push(TaskImageRef {
                task,
                attempt,
                manifest: written.unwrap().manifest,
                finished: false,
            });
        }
        let metadata = CheckpointMetadata {
            job: JOB,
            checkpoint,
            module,
            job_graph_hash: 1,
            tasks,
        };
        let record = JobRecord {
            id: JOB,
            name: "totals".into(),
            module,
            graph,
            graph_hash: 1,
            parameters: BTreeMap::new(),
            options: JobOptions {
                parallelism: 3,
                max_parallelism: 128,
                checkpoint_interval_ms: 1000,
                checkpoint_timeout_ms: 1000,
                tolerable_failed_checkpoints: 0,
                retained_checkpoints: 1,
                aligned_checkpoint_timeout_ms: 0,
                retain_on_cancel: false,
                standby: false,
                restart: RestartStrategy::None,
            },
            submitted_at_ms: 0,
            state: JobState::Active,
            restarts: 0,
            began_from: None,
            ended_at_ms: None,
        };
        Self {
            objects: life.into_objects(),
            record,
            metadata,
        }
    }

    async fn write(&self, store: &Store) -> Result<SavepointSummary, SavepointError> {
        let of = SavepointOf {
            record: &self.record,
            metadata: &self.metadata,
            created_at_ms: 5,
        };
        store.write_savepoint(PLACE, of, |_, _| {}).await
    }
}

async fn is_whole(store: &Store) {
    let verified = store.verify_savepoint(PLACE).await.unwrap();
    assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
}

/// Runs this with one change more each time, until it ends without dying.
async fn at_each_step<T>(
    objects: &InMemory,
    run: impl AsyncFn(&Store) -> Result<T, SavepointError>,
    died: impl AsyncFn(usize, &Mortal),
) -> usize {
    for step in 0.. {
        let life = Mortal::new(objects, step);
        if run(&life.store()).await.is_ok() {
            return step;
        }
        died(step, &life).await;
    }
    unreachable!("everything ends")
}

#[tokio::test]
async fn a_savepoint_whose_writer_dies_is_none_and_can_be_written_again_or_removed() {
    let job = Job::with_a_checkpoint().await;
    let without = Mortal::new(&job.objects, usize::MAX).keys().await;
    let steps = at_each_step(
        &job.objects,
        async |store| job.write(store).await,
        async |step, life| {
            let store = life.store_of_the_next_life();
            let error = store.read_savepoint(PLACE).await.unwrap_err();
            match step {
                0 => assert!(matches!(error, SavepointError::NotThere { .. }), "{error}"),
                _ => assert!(
                    matches!(error, SavepointError::Incomplete { .. }),
                    "{error}"
                ),
            }
            let again = Mortal::new(&life.clone().into_objects(), usize::MAX);
            let written = job.write(&again.store()).await.unwrap();
            is_whole(&again.store()).await;
            let objects = again.keys().await.len() - without.len();
            assert_eq!(objects, 9, "nothing is there twice");
            assert_eq!(written.savepoint.metadata.tasks.len(), 3);

            let now = SystemTime::now() + std::time::Duration::from_secs(60);
            let cleaned = store.delete_incomplete_savepoints("savepoints", now).await;
            assert_eq!(cleaned.unwrap().len(), usize::from(step > 0));
            assert_eq!(life.keys().await, without, "after a death at step {step}");
        },
    )
    .await;
    assert_eq!(
        steps, 9,
        "module, graph, three segments and manifests, savepoint"
    );
}

#[tokio::test]
async fn a_deletion_that_dies_leaves_no_savepoint_that_only_looks_whole() {
    let job = Job::with_a_checkpoint().await;
    let without = Mortal::new(&job.objects, usize::MAX).keys().await;
    let life = Mortal::new(&job.objects, usize::MAX);
    job.write(&life.store()).await.unwrap();
    let steps = at_each_step(
        &life.clone().into_objects(),
        async |store| store.delete_savepoint(PLACE).await,
        async |step, life| {
            let store = life.store_of_the_next_life();
            match store.read_savepoint(PLACE).await {
                Ok(_) if step == 0 => is_whole(&store).await,
                Err(SavepointError::Incomplete { .. }) if step > 0 => {}
                other => panic!("after a death at step {step}: {other:?}"),
            }
            store.delete_savepoint(PLACE).await.unwrap();
            assert_eq!(life.keys().await, without, "after a death at step {step}");
            let error = store.delete_savepoint(PLACE).await.unwrap_err();
            assert!(matches!(error, SavepointError::NotThere { .. }), "{error}");
        },
    )
    .await;
    assert_eq!(steps, 9);
}

#[tokio::test]
async fn an_import_that_dies_is_done_again_or_goes_with_its_job() {
    let job = Job::with_a_checkpoint().await;
    let life = Mortal::new(&job.objects, usize::MAX);
    job.write(&life.store()).await.unwrap();
    let without = life.keys().await;
    let steps = at_each_step(
        &life.clone().into_objects(),
        async |store| store.import_savepoint(PLACE, NEW_JOB, FIRST).await,
        async |step, life| {
            let again = Mortal::new(&life.clone().into_objects(), usize::MAX);
            let store = again.store();
            let (object, metadata) = store.import_savepoint(PLACE, NEW_JOB, FIRST).await.unwrap();
            assert_eq!(store.read_metadata(&object).await.unwrap(), metadata);
            for task in &metadata.tasks {
                let read = store.read_image(NEW_JOB, task.task, &task.manifest).await;
                let expected = task.task.subtask as u8 + 1;
                assert!(read.unwrap().0.memory.iter().all(|byte| *byte == expected));
            }
            let store = life.store_of_the_next_life();
            store.delete_orphans(NEW_JOB, &[], FIRST).await.unwrap();
            assert_eq!(life.keys().await, without, "after a death at step {step}");
            is_whole(&store).await;
        },
    )
    .await;
    assert_eq!(steps, 7, "three segments and manifests, metadata");
}

#[tokio::test]
async fn a_savepoint_of_which_an_object_vanished_meanwhile_does_not_come_to_exist() {
    let job = Job::with_a_checkpoint().await;
    let life = Mortal::new(&job.objects, usize::MAX);
    let store = life.store();
    let of = SavepointOf {
        record: &job.record,
        metadata: &job.metadata,
        created_at_ms: 5,
    };
    let thief = life.clone();
    let robbed = store.write_savepoint(PLACE, of, move |done, total| {
        if done == total {
            thief.remove(&format!("{PLACE}/graph"));
        }
    });
    let error = robbed.await.unwrap_err();
    assert!(matches!(error, SavepointError::Vanished { .. }), "{error}");
    assert!(error.to_string().contains("`graph`"), "{error}");
    let error = store.read_savepoint(PLACE).await.unwrap_err();
    assert!(
        matches!(error, SavepointError::Incomplete { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn two_jobs_do_not_write_one_savepoint() {
    let mut job = Job::with_a_checkpoint().await;
    let life = Mortal::new(&job.objects, usize::MAX);
    let cut_off = Mortal::new(&life.clone().into_objects(), 5);
    job.write(&cut_off.store()).await.unwrap_err();
    let before = cut_off.keys().await;
    let store = cut_off.store_of_the_next_life();

    // Another job of another module, and one of the same module and graph that is at a checkpoint of the same number.
    let own = (job.record.module, job.metadata.clone());
    job.record.module = store.put_module(&b"\0asm other"[..]).await.unwrap();
    let error = job.write(&store).await.unwrap_err();
    assert!(matches!(error, SavepointError::Occupied { .. }), "{error}");
    (job.record.module, job.metadata) = own;
    let manifest = job.metadata.tasks[1].manifest.clone();
    job.metadata.tasks[0].manifest = manifest;
    job.metadata.tasks[0].task = job.metadata.tasks[1].task;
    job.metadata.tasks.truncate(1);
    let key = format!(
        "{PLACE}/{}",
        keys::savepoint_manifest(job.metadata.tasks[0].task, job.metadata.checkpoint)
    );
    store.put_object(&key, "of another job").await.unwrap();
    let error = job.write(&store).await.unwrap_err();
    assert!(matches!(error, SavepointError::Occupied { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("`savepoints/a`") && text.contains("savepoint delete"),
        "{text}"
    );

    store.delete_savepoint(PLACE).await.unwrap();
    job.write(&store).await.unwrap();
    is_whole(&store).await;
    assert!(before.len() < cut_off.keys().await.len());
}

#[tokio::test]
async fn one_savepoint_that_cannot_be_read_does_not_keep_what_is_left_of_others() {
    let job = Job::with_a_checkpoint().await;
    let life = Mortal::new(&job.objects, usize::MAX);
    let store = life.store();
    job.write(&store).await.unwrap();
    store
        .put_object(&format!("{PLACE}/savepoint"), "SP?")
        .await
        .unwrap();
    store.put_object("savepoints/b/module", WASM).await.unwrap();
    store
        .put_object("savepoints/c/module", "a file of this name")
        .await
        .unwrap();
    let later = SystemTime::now() + std::time::Duration::from_secs(60);
    let deleted = store
        .delete_incomplete_savepoints("savepoints", later)
        .await;
    assert_eq!(deleted.unwrap(), ["savepoints/b"]);
    let error = store.delete_savepoint("savepoints/c").await.unwrap_err();
    assert!(matches!(error, SavepointError::NotThere { .. }), "{error}");
    store.delete_savepoint(PLACE).await.unwrap();
    let left = life.keys().await;
    let left: Vec<_> = left
        .iter()
        .filter(|key| key.starts_with("savepoints/"))
        .collect();
    assert_eq!(left, ["savepoints/c/module"]);
}
