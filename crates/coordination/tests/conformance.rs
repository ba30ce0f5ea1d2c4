//! What every backend of the registry must do, as scenarios over [`World`]. A backend joins by one line at the end.

mod common;

use std::sync::Arc;

use common::{job, job_id, job_manager, pointers};
use tempfile::TempDir;
use tidemill_coordination::{Embedded, Registry, WriteError};
use tidemill_protocol::Epoch;
use tidemill_protocol::record::{CheckpointPointers, JobState};

/// A registry that outlives the processes that use it.
trait World {
    /// What a JobManager that starts gets. The one before has been dropped.
    fn start(&self) -> Arc<dyn Registry>;
}

/// Runs every scenario in a world of its own.
async fn conforms<W: World>(new_world: impl Fn() -> W) {
    epochs_grow_over_take_overs_and_restarts(&new_world()).await;
    what_was_written_is_there_after_a_restart(&new_world()).await;
    a_leader_that_was_replaced_writes_nothing(&new_world()).await;
    a_record_is_replaced_and_removed_with_its_pointers(&new_world()).await;
    pointers_are_published_for_known_jobs_only(&new_world()).await;
    writers_at_the_same_time_do_not_mix(&new_world()).await;
}

async fn epochs_grow_over_take_overs_and_restarts(world: &impl World) {
    let mut last = Epoch(0);
    for _ in 0..3 {
        let registry = world.start();
        for _ in 0..2 {
            let leading = registry.lead(&job_manager(1)).await.unwrap();
            assert!(leading.epoch() > last);
            last = leading.epoch();
        }
    }
}

async fn what_was_written_is_there_after_a_restart(world: &impl World) {
    let registry = world.start();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    for number in [3, 1, 2] {
        registry.put_job(&leading, &job(number)).await.unwrap();
    }
    registry
        .put_pointers(&leading, job_id(2), &pointers(7))
        .await
        .unwrap();
    drop(registry);

    let registry = world.start();
    let jobs: Vec<_> = registry
        .jobs()
        .await
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(jobs, [job(1), job(2), job(3)]);
    assert_eq!(registry.pointers(job_id(2)).await.unwrap(), pointers(7));
    assert_eq!(
        registry.pointers(job_id(1)).await.unwrap(),
        CheckpointPointers::default()
    );
}

async fn a_leader_that_was_replaced_writes_nothing(world: &impl World) {
    let registry = world.start();
    let old = registry.lead(&job_manager(1)).await.unwrap();
    registry.put_job(&old, &job(1)).await.unwrap();
    registry
        .put_pointers(&old, job_id(1), &pointers(1))
        .await
        .unwrap();
    registry.resign(&old).await.unwrap();
    let new = registry.lead(&job_manager(1)).await.unwrap();

    let refused = [
        registry.put_job(&old, &job(2)).await,
        registry.put_pointers(&old, job_id(1), &pointers(2)).await,
        registry.remove_job(&old, job_id(1)).await,
        registry.confirm(&old).await,
    ];
    for outcome in refused {
        let Err(WriteError::Fenced { ours, stored }) = outcome else {
            panic!("{outcome:?} instead of a refusal");
        };
        assert_eq!((ours, stored), (old.epoch(), Some(new.epoch())));
    }
    assert_eq!(registry.jobs().await.unwrap(), [Ok(job(1))]);
    assert_eq!(registry.pointers(job_id(1)).await.unwrap(), pointers(1));

    registry
        .put_pointers(&new, job_id(1), &pointers(2))
        .await
        .unwrap();
    assert_eq!(registry.pointers(job_id(1)).await.unwrap(), pointers(2));
}

async fn a_record_is_replaced_and_removed_with_its_pointers(world: &impl World) {
    let registry = world.start();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    let mut record = job(1);
    registry.put_job(&leading, &record).await.unwrap();
    registry
        .put_pointers(&leading, record.id, &pointers(1))
        .await
        .unwrap();
    record.state = JobState::Finished;
    registry.put_job(&leading, &record).await.unwrap();
    assert_eq!(registry.jobs().await.unwrap(), [Ok(record.clone())]);
    assert_eq!(registry.pointers(record.id).await.unwrap(), pointers(1));

    for _ in 0..2 {
        registry.remove_job(&leading, record.id).await.unwrap();
        assert_eq!(registry.jobs().await.unwrap(), []);
        assert_eq!(
            registry.pointers(record.id).await.unwrap(),
            CheckpointPointers::default()
        );
    }
}

async fn pointers_are_published_for_known_jobs_only(world: &impl World) {
    let registry = world.start();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    registry.put_job(&leading, &job(1)).await.unwrap();
    registry.remove_job(&leading, job_id(1)).await.unwrap();
    let late = registry
        .put_pointers(&leading, job_id(1), &pointers(1))
        .await;
    assert!(
        matches!(late, Err(WriteError::UnknownJob { job }) if job == job_id(1)),
        "{late:?}"
    );
    registry.put_job(&leading, &job(1)).await.unwrap();
    assert_eq!(
        registry.pointers(job_id(1)).await.unwrap(),
        CheckpointPointers::default()
    );
}

async fn writers_at_the_same_time_do_not_mix(world: &impl World) {
    let registry = world.start();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    let writers: Vec<_> = (0..8)
        .map(|number| {
            let (registry, leading) = (Arc::clone(&registry), leading.clone());
            tokio::spawn(async move {
                registry.put_job(&leading, &job(number)).await.unwrap();
                for counter in 1..=5 {
                    registry
                        .put_pointers(&leading, job_id(number), &pointers(counter))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(registry.jobs().await.unwrap().len(), 8);
    for number in 0..8 {
        assert_eq!(
            registry.pointers(job_id(number)).await.unwrap(),
            pointers(5)
        );
    }
}

struct Directory(TempDir);

impl World for Directory {
    fn start(&self) -> Arc<dyn Registry> {
        Arc::new(Embedded::open(self.0.path()).unwrap())
    }
}

#[tokio::test]
async fn the_embedded_registry_conforms() {
    conforms(|| Directory(tempfile::tempdir().unwrap())).await;
}
