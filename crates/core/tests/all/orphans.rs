//! What a running job has in the store for nothing, and when it is looked for, a sentence each.

use std::collections::BTreeSet;
use tidemill_core::job::Phase;
use tidemill_protocol::record::RestartStrategy;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, Routing, TaskId};

use crate::cluster::Cluster;
use crate::jobs::{JOB, graph, record};
use crate::task_manager::TaskManager;

fn checkpoint(epoch: u64, counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(epoch), counter)
}

fn attempt(epoch: u64, counter: u64) -> AttemptId {
    AttemptId::new(Epoch(epoch), counter)
}

/// A job on `a` and `b`, of which a checkpoint is complete, and none is to come for a while.
fn running() -> Cluster {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    let mut record = record(JOB);
    record.options.restart = RestartStrategy::FixedDelay {
        attempts: u32::MAX,
        delay_ms: 0,
    };
    record.options.checkpoint_interval_ms = 20_000;
    record.options.tolerable_failed_checkpoints = 100;
    cluster.submit(record, graph(4, Routing::AllToAll));
    cluster.seconds(20);
    assert_eq!(cluster.completed(JOB), 1);
    assert_eq!(cluster.scans, []);
    cluster
}

#[test]
fn a_successor_looks_once_as_soon_as_the_job_runs() {
    let mut cluster = running();
    cluster.restart_jobmanager();
    assert_eq!(cluster.scans, [], "nothing is adopted yet");
    cluster.behaviour.captures_stall = true;
    cluster.connect_all();
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(cluster.scans, [(checkpoint(2, 0), BTreeSet::new())]);
    cluster.seconds(9);
    assert_eq!(cluster.scans.len(), 1);
}

#[test]
fn after_checkpoints_that_were_given_up_it_is_looked_once_a_minute() {
    let mut cluster = running();
    cluster.metadata_fails = true;
    cluster.seconds(20);
    assert_eq!(cluster.scans, [(checkpoint(1, 2), BTreeSet::new())]);
    cluster.seconds(59);
    assert_eq!(cluster.scans.len(), 1, "more have failed since");
    cluster.seconds(1);
    assert_eq!(cluster.scans.len(), 2);
    cluster.metadata_fails = false;
    cluster.seconds(300);
    assert_eq!(
        cluster.scans.len(),
        3,
        "the last that failed, and then none"
    );
}

#[test]
fn what_an_attempt_left_that_failed_goes_when_its_successor_runs() {
    let mut cluster = running();
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(cluster.scans, [(checkpoint(1, 1), [attempt(1, 1)].into())]);
}

#[test]
fn an_attempt_that_was_replaced_in_its_place_is_over() {
    let mut cluster = running();
    cluster.kill("a");
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let scan = (checkpoint(1, 1), [attempt(1, 1)].into());
    assert_eq!(cluster.scans, [scan], "`b` has the next one in its stead");
}

#[test]
fn an_attempt_of_which_nobody_says_that_it_is_over_may_be_found_again() {
    let mut cluster = Cluster::new(&["a"]);
    let mut record = record(JOB);
    record.options.parallelism = 1;
    cluster.submit(record, graph(1, Routing::AllToAll));
    cluster.seconds(1);
    cluster.join("b", 2);
    cluster.isolate("a");
    cluster.seconds(3);
    assert_eq!(cluster.phase(JOB), Phase::Running, "on `b`");
    cluster.behaviour.captures_stall = true;
    cluster.seconds(20);
    assert!(!cluster.scans.is_empty());
    assert!(cluster.scans.iter().all(|(_, ended)| ended.is_empty()));
}

#[test]
fn nothing_is_deleted_of_what_is_published_while_its_pointer_is_in_doubt() {
    let mut cluster = running();
    cluster.restart_jobmanager();
    cluster.publishing = crate::cluster::Publishing::Hangs;
    // The first checkpoint of a successor begins at once.
    cluster.connect_all();
    let before = cluster.scans.len();
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    cluster.seconds(100);
    assert_eq!(cluster.scans.len(), before);
    cluster.publications_land();
    assert!(cluster.published(JOB).contains(&checkpoint(2, 1)));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let after = &cluster.scans[before..];
    assert!(after.iter().all(|(_, ended)| ended.is_empty()), "{after:?}");
}
