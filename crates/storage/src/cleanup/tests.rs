//! Deletion that is cut off after each single step: what is retained reads back, and the next scan removes the rest.

use std::collections::BTreeSet;
use std::sync::Arc;

use object_store::memory::InMemory;
use tidemill_protocol::codec::decode;
use tidemill_protocol::image::{PAGE_BYTES, PageRun, StoredCapture};
use tidemill_protocol::manifest::{CheckpointMetadata, Manifest, TaskImageRef};
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, ModuleHash, TaskId};

use crate::mortal::Mortal;
use crate::{CaptureId, CleanupError, ImageChain, Store, keys};

const JOB: JobId = JobId([7; 16]);
const TASKS: [TaskId; 2] = [TaskId::new(0, 0), TaskId::new(1, 0)];
const ATTEMPT: AttemptId = AttemptId::new(Epoch(1), 1);
const PAGES: usize = 24;
/// More than lie upon one full manifest.
const CHECKPOINTS: u64 = 39;

/// A job of two tasks, each of which writes a page between two checkpoints.
struct Job {
    objects: InMemory,
    /// The checkpoints that a registry would name.
    retained: Vec<CheckpointPointer>,
    /// The memory of each task at each of these.
    memories: Vec<Vec<Vec<u8>>>,
}

fn id(counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(1), counter)
}

impl Job {
    /// Nothing has been deleted yet, though only the last two checkpoints are retained; every fifth was aborted.
    async fn that_has_run() -> Self {
        let life = Mortal::new(&InMemory::new(), usize::MAX);
        let store = life.store();
        let mut memories = vec![vec![1; PAGES * PAGE_BYTES]; TASKS.len()];
        let mut chains = vec![ImageChain::new(); TASKS.len()];
        let mut retained = Vec::new();
        let mut history = Vec::new();
        for counter in 1..=CHECKPOINTS {
            let mut tasks = Vec::new();
            for (number, task) in TASKS.into_iter().enumerate() {
                let page = (counter as usize * 5 + number) % PAGES;
                let pages = if counter == 1 {
                    0..PAGES
                } else {
                    page..page + 1
                };
                let place = pages.start * PAGE_BYTES..pages.end * PAGE_BYTES;
                memories[number][place.clone()].fill(counter as u8);
                let capture = Arc::new(StoredCapture {
                    memory_bytes: memories[number].len() as u64,
                    runs: vec![PageRun {
                        first: pages.start as u32,
                        pages: pages.len() as u32,
                        zero: false,
                    }],
                    bytes: memories[number][place].to_vec(),
                    ..StoredCapture::default()
                });
                let capture_id = CaptureId {
                    job: JOB,
                    task,
                    attempt: ATTEMPT,
                    checkpoint: id(counter),
                };
                let written = store.write_capture(capture_id, &capture, &mut chains[number]);
                tasks.push(TaskImageRef {
                    task,
                    attempt: ATTEMPT,
                    manifest: written.await.unwrap().manifest,
                    finished: false,
                });
            }
            if counter % 5 == 0 {
                continue;
            }
            let metadata = CheckpointMetadata {
                job: JOB,
                checkpoint: id(counter),
                module: ModuleHash([0; 32]),
                job_graph_hash: 0,
                tasks,
            };
            retained.push(CheckpointPointer {
                checkpoint: id(counter),
                metadata: store.write_metadata(&metadata).await.unwrap(),
            });
            history.push(memories.clone());
        }
        Self {
            objects: life.into_objects(),
            memories: history.split_off(history.len() - 2),
            retained: retained.split_off(retained.len() - 2),
        }
    }

    async fn scan(&self, store: &Store) -> Result<Vec<CheckpointId>, CleanupError> {
        let newest = self.retained.last().unwrap().checkpoint;
        store.delete_orphans(JOB, &self.retained, newest).await
    }

    /// Every retained checkpoint is what it was.
    async fn is_whole(&self, store: &Store) {
        for (pointer, memories) in self.retained.iter().zip(&self.memories) {
            let metadata = store.read_metadata(&pointer.metadata).await.unwrap();
            for (task, memory) in metadata.tasks.iter().zip(memories) {
                let read = store.read_image(JOB, task.task, &task.manifest).await;
                let (image, _) = read.unwrap();
                assert!(
                    image.memory == *memory,
                    "{} of {}",
                    task.task,
                    pointer.checkpoint
                );
            }
        }
    }
}

#[tokio::test]
async fn a_scan_that_dies_after_any_step_leaves_what_is_retained_and_the_next_removes_the_rest() {
    let job = Job::that_has_run().await;
    let clean = Mortal::new(&job.objects, usize::MAX);
    let before = clean.keys().await;
    job.scan(&clean.store()).await.unwrap();
    let needed = clean.keys().await;
    let steps = before.len() - needed.len();
    assert!(
        steps > 60 && needed.len() > 4,
        "{steps} of {}",
        before.len()
    );
    job.is_whole(&clean.store()).await;

    for step in 0..steps {
        let life = Mortal::new(&job.objects, step);
        job.scan(&life.store()).await.unwrap_err();
        assert_eq!(life.left(), 0);
        let store = life.store_of_the_next_life();
        job.is_whole(&store).await;
        assert_eq!(life.keys().await.len(), before.len() - step);
        job.scan(&store).await.unwrap();
        assert_eq!(life.keys().await, needed, "after a death at step {step}");
        job.is_whole(&store).await;
    }
}

#[tokio::test]
async fn nothing_is_left_that_no_retained_checkpoint_names() {
    let job = Job::that_has_run().await;
    let life = Mortal::new(&job.objects, usize::MAX);
    let store = life.store();
    job.scan(&store).await.unwrap();
    let mut named = BTreeSet::new();
    for pointer in &job.retained {
        named.insert(pointer.metadata.key.clone());
        let metadata = store.read_metadata(&pointer.metadata).await.unwrap();
        for task in metadata.tasks {
            let mut next = Some(task.manifest);
            while let Some(object) = next {
                let manifest: Manifest = decode(&store.get_object(&object).await.unwrap()).unwrap();
                named.insert(object.key);
                named.extend(manifest.segments.into_iter().map(|segment| segment.key));
                next = manifest.base;
            }
        }
    }
    assert_eq!(life.keys().await, Vec::from_iter(named));
}

#[tokio::test]
async fn what_ended_attempts_left_goes_before_the_next_publication_and_what_others_build_upon_stays()
 {
    let (alive, ended) = (ATTEMPT, AttemptId::new(Epoch(1), 2));
    let life = Mortal::new(&InMemory::new(), usize::MAX);
    let store = life.store();
    let imported = keys::imported_segment(JOB, id(2), &[7; 32]);
    let mut all = vec![imported];
    for counter in 1..=4 {
        for by in [alive, ended] {
            all.push(keys::segment(JOB, TASKS[0], by, id(counter)));
            all.push(keys::manifest(JOB, TASKS[0], by, id(counter)));
        }
        all.push(keys::metadata(JOB, id(counter)));
    }
    for key in &all {
        store.put_object(key, "bytes").await.unwrap();
    }
    let objects = life.into_objects();
    let goes = |key: &String| {
        let of = keys::checkpoint_of(JOB, key).unwrap();
        let by = keys::attempt_of(key);
        let abandoned = by == Some(ended) || by.is_none() && key.ends_with("metadata");
        of > id(1) && of <= id(3) && abandoned
    };
    let mut stays: Vec<String> = all.iter().filter(|key| !goes(key)).cloned().collect();
    stays.sort_unstable();
    let steps = all.len() - stays.len();
    assert_eq!(steps, 6);
    for step in 0..=steps {
        let life = Mortal::new(&objects, step);
        let scan = async |store: Store| {
            store
                .delete_abandoned(JOB, Some(id(1)), id(3), &BTreeSet::from([ended]))
                .await
        };
        assert_eq!(scan(life.store()).await.is_ok(), step == steps);
        scan(life.store_of_the_next_life()).await.unwrap();
        assert_eq!(life.keys().await, stays, "after a death at step {step}");
    }
}

#[tokio::test]
async fn the_deletion_of_a_job_that_dies_after_any_step_is_ended_by_the_next() {
    let job = Job::that_has_run().await;
    let all: BTreeSet<String> = Mortal::new(&job.objects, usize::MAX)
        .keys()
        .await
        .into_iter()
        .collect();
    for step in (0..all.len()).step_by(7) {
        let life = Mortal::new(&job.objects, step);
        life.store().delete_job(JOB).await.unwrap_err();
        assert_eq!(life.keys().await.len(), all.len() - step);
        life.store_of_the_next_life().delete_job(JOB).await.unwrap();
        assert_eq!(life.keys().await, Vec::<String>::new());
    }
}
