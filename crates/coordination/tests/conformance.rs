//! What every backend of the registry must do, as scenarios over [`World`]. A backend joins by one line at the end.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{job, job_id, job_manager, options, pointers, soon};
use tempfile::TempDir;
use tidemill_coordination::{
    Connection, Embedded, KnownLeader, LockError, Registry, WriteError, ZooKeeper,
};
use tidemill_protocol::Epoch;
use tidemill_protocol::record::{CheckpointPointers, JobState};
use tidemill_zookeeper_ensemble::{Ensemble, Options};

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
    a_second_candidate_waits_and_is_elected_when_the_first_resigns(&new_world()).await;
    a_leader_of_the_past_is_deposed_without_effect(&new_world()).await;
    a_leadership_that_is_dropped_is_given_up(&new_world()).await;
    a_candidature_is_withdrawn_with_its_future(&new_world()).await;
    nothing_is_left_once_it_is_settled(&new_world()).await;
    a_proof_of_another_registry_is_worth_nothing(&new_world(), &new_world()).await;
    a_named_lock_excludes_until_it_is_dropped(&new_world()).await;
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

async fn a_second_candidate_waits_and_is_elected_when_the_first_resigns(world: &impl World) {
    let registry = world.start();
    let (mut leader, mut candidates) = (registry.leader(), registry.job_managers());
    let first = registry.lead(&job_manager(1)).await.unwrap();
    let known = KnownLeader {
        epoch: first.epoch(),
        record: job_manager(1),
    };
    let is_known = leader.wait_for(|leader| leader.as_ref() == Some(&known));
    drop(soon("the first leader", is_known).await.unwrap());
    assert_eq!(*registry.connection().borrow(), Connection::Connected);

    let waiting = {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.lead(&job_manager(2)).await.unwrap() })
    };
    let both = [job_manager(1), job_manager(2)];
    let stand = candidates.wait_for(|candidates| candidates == &both);
    drop(soon("the second candidate", stand).await.unwrap());
    registry.confirm(&first).await.unwrap();
    assert!(!waiting.is_finished());

    registry.resign(&first).await.unwrap();
    soon("the end of the first", first.lost()).await;
    let second = soon("the second leader", waiting).await.unwrap();
    assert!(second.epoch() > first.epoch());
    assert!(second.confirmed_at() > first.confirmed_at());
    let known = KnownLeader {
        epoch: second.epoch(),
        record: job_manager(2),
    };
    let is_known = leader.wait_for(|leader| leader.as_ref() == Some(&known));
    drop(soon("word of the second leader", is_known).await.unwrap());
    let alone = candidates.wait_for(|candidates| candidates == &[job_manager(2)]);
    drop(soon("the second to be alone", alone).await.unwrap());
    registry.confirm(&second).await.unwrap();
    // It has nothing left to resign from.
    registry.resign(&first).await.unwrap();
    registry.confirm(&second).await.unwrap();
}

async fn a_leader_of_the_past_is_deposed_without_effect(world: &impl World) {
    let registry = world.start();
    let (old, new) = (job_manager(1), job_manager(2));
    let first = registry.lead(&old).await.unwrap();
    let past = KnownLeader {
        epoch: first.epoch(),
        record: old,
    };
    registry.resign(&first).await.unwrap();
    let second = registry.lead(&new).await.unwrap();
    let known = KnownLeader {
        epoch: second.epoch(),
        record: new,
    };
    let is_known = |leader: &Option<KnownLeader>| leader.as_ref() == Some(&known);
    let mut leader = registry.leader();
    drop(soon("the second", leader.wait_for(is_known)).await.unwrap());

    for _ in 0..2 {
        registry.depose(&past).await.unwrap();
        registry.put_job(&second, &job(1)).await.unwrap();
    }
    // The same process with an epoch that nobody had.
    let never = KnownLeader {
        epoch: Epoch(second.epoch().0 + 1),
        record: known.record.clone(),
    };
    registry.depose(&never).await.unwrap();
    registry.confirm(&second).await.unwrap();
    let lost = tokio::time::timeout(Duration::ZERO, second.lost()).await;
    assert!(lost.is_err(), "the second leader was deposed");
    assert_eq!(leader.borrow().as_ref(), Some(&known));
}

async fn a_leadership_that_is_dropped_is_given_up(world: &impl World) {
    let registry = world.start();
    let first = registry.lead(&job_manager(1)).await.unwrap();
    let epoch = first.epoch();
    drop(first.clone());
    registry.confirm(&first).await.unwrap();
    drop(first);
    let candidate = job_manager(2);
    let second = soon("the second", registry.lead(&candidate)).await.unwrap();
    assert!(second.epoch() > epoch);
}

async fn a_candidature_is_withdrawn_with_its_future(world: &impl World) {
    let registry = world.start();
    let mut candidates = registry.job_managers();
    let first = registry.lead(&job_manager(1)).await.unwrap();
    let second = {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.lead(&job_manager(2)).await.unwrap() })
    };
    let stands = candidates.wait_for(|candidates| candidates.contains(&job_manager(2)));
    drop(soon("the second candidate", stands).await.unwrap());
    second.abort();
    let gone = candidates.wait_for(|candidates| candidates == &[job_manager(1)]);
    drop(soon("its withdrawal", gone).await.unwrap());

    registry.resign(&first).await.unwrap();
    let candidate = job_manager(3);
    soon("the third", registry.lead(&candidate)).await.unwrap();
}

/// What is seen from another process, once this one says that it has left nothing behind.
async fn nothing_is_left_once_it_is_settled(world: &impl World) {
    let registry = world.start();
    let first = registry.lead(&job_manager(1)).await.unwrap();
    let lock = registry.lock("shelf").await.unwrap();
    drop((first, lock));
    soon("its end", registry.settled()).await;
    drop(registry);
    let next = world.start();
    let candidate = job_manager(2);
    soon("the next leader", next.lead(&candidate))
        .await
        .unwrap();
    soon("the lock", next.lock("shelf")).await.unwrap();
}

async fn a_proof_of_another_registry_is_worth_nothing(here: &impl World, there: &impl World) {
    let (here, there) = (here.start(), there.start());
    let foreign = there.lead(&job_manager(1)).await.unwrap();
    let own = here.lead(&job_manager(2)).await.unwrap();
    let refused = here.put_job(&foreign, &job(1)).await;
    assert!(
        matches!(refused, Err(WriteError::Fenced { .. })),
        "{refused:?}"
    );
    here.put_job(&own, &job(1)).await.unwrap();
    assert_eq!(there.jobs().await.unwrap(), []);
}

async fn a_named_lock_excludes_until_it_is_dropped(world: &impl World) {
    let registry = world.start();
    let lock = registry.lock("graph-of-a-job").await.unwrap();
    assert_eq!(lock.name(), "graph-of-a-job");
    // Another name is another lock.
    drop(registry.lock("another").await.unwrap());
    let waiting = {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.lock("graph-of-a-job").await.unwrap() })
    };
    // A lock that is asked for later and got shows that the first was not given away meanwhile.
    drop(registry.lock("another").await.unwrap());
    assert!(!waiting.is_finished());
    drop(lock);
    drop(soon("the lock", waiting).await.unwrap());
    for bad in ["", "..", "a/b", "\n"] {
        let refused = registry.lock(bad).await;
        assert!(
            matches!(refused, Err(LockError::BadName { .. })),
            "{refused:?}"
        );
    }
}

struct Directory(TempDir);

impl World for Directory {
    fn start(&self) -> Arc<dyn Registry> {
        Arc::new(Embedded::open(self.0.path()).unwrap())
    }
}

/// A cluster of its own in one ensemble.
struct Chroot {
    servers: Vec<String>,
    root: String,
}

impl World for Chroot {
    fn start(&self) -> Arc<dyn Registry> {
        let options = options(self.servers.clone(), &self.root);
        Arc::new(ZooKeeper::open(options).unwrap())
    }
}

#[tokio::test]
async fn the_registry_in_zookeeper_conforms() {
    let ensemble = Ensemble::start(Options::with_servers(1)).unwrap();
    let number = std::cell::Cell::new(0);
    conforms(|| {
        number.set(number.get() + 1);
        Chroot {
            servers: ensemble.addresses(),
            root: format!("/tidemill/cluster-{}", number.get()),
        }
    })
    .await;
}

#[tokio::test]
async fn the_embedded_registry_conforms() {
    conforms(|| Directory(tempfile::tempdir().unwrap())).await;
}
