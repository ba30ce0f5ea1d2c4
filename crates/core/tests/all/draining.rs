//! TaskManagers that leave, a sentence each.

use std::time::Duration;
use tidemill_core::job::Phase;
use tidemill_protocol::record::JobRecord;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, Routing, TaskId};

use crate::cluster::{Cluster, Publishing};
use crate::jobs::{JOB, OTHER, graph, record};
use crate::task_manager::TaskManager;

fn attempt(epoch: u64, counter: u64) -> AttemptId {
    AttemptId::new(Epoch(epoch), counter)
}

fn checkpoint(epoch: u64, counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(epoch), counter)
}

/// Checkpoints only each minute: whatever is published sooner was taken for a move.
fn seldom(id: JobId) -> JobRecord {
    let mut record = record(id);
    record.options.checkpoint_interval_ms = 60_000;
    record
}

/// A job of two slots on `a` and `b`, and `c` beside it.
fn running() -> Cluster {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(seldom(JOB), graph(2, Routing::AllToAll));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster.join("c", 2);
    cluster
}

fn is_drained(cluster: &Cluster, name: &str) -> bool {
    cluster.task_managers[name].drained
}

fn runs_on(cluster: &Cluster, job: JobId, names: &[&str]) {
    assert_eq!(cluster.phase(job), Phase::Running, "{:#?}", cluster.notes);
    let mut places: Vec<&str> = cluster
        .task_managers
        .iter()
        .filter(|(_, one)| one.tasks.keys().any(|(of, _)| *of == job))
        .map(|(name, _)| name.as_str())
        .collect();
    places.sort_unstable();
    assert_eq!(places, names);
}

#[test]
fn a_taskmanager_with_nothing_on_it_may_leave_at_once() {
    let mut cluster = running();
    cluster.drain("c");
    assert!(is_drained(&cluster, "c"));
    assert_eq!(cluster.drained_leave(), ["c"]);
    assert!(cluster.noted("TaskManager c has left") && !cluster.noted("c is lost"));
    assert_eq!(cluster.leader.lost_members().len(), 0);
    runs_on(&cluster, JOB, &["a", "b"]);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
}

#[test]
fn tasks_move_after_a_checkpoint_taken_for_that_and_the_taskmanager_leaves() {
    let mut cluster = running();
    cluster.drain("a");
    assert_eq!(cluster.completed(JOB), 1, "at once, not in a minute");
    assert!(cluster.noted("start from checkpoint 1.1"));
    assert!(is_drained(&cluster, "a"));
    runs_on(&cluster, JOB, &["b", "c"]);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 2)].into());
    assert_eq!(cluster.records[&JOB].restarts, 0, "no failure");
    cluster.drained_leave();
    cluster.seconds(10);
    runs_on(&cluster, JOB, &["b", "c"]);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 2)].into());
    let recoveries: Vec<_> = cluster.job(JOB).history().recoveries().collect();
    assert_eq!(recoveries.len(), 1);
    assert_eq!(
        (recoveries[0].tasks_lost, recoveries[0].tasks_restarted),
        (0, 4)
    );
    assert!(recoveries[0].cause.contains("a is being drained"));
}

#[test]
fn the_tasks_hear_that_the_checkpoint_is_published_before_they_are_moved() {
    let mut cluster = running();
    cluster.drain("a");
    for name in ["a", "b"] {
        let completed = &cluster.task_managers[name].completed;
        assert!(completed.contains(&(JOB, checkpoint(1, 1))), "{name}");
    }
}

#[test]
fn a_job_without_periodic_checkpoints_is_checkpointed_for_the_move() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let mut never = record(JOB);
    never.options.checkpoint_interval_ms = 0;
    cluster.submit(never, graph(2, Routing::AllToAll));
    cluster.join("c", 2);
    cluster.seconds(60);
    assert_eq!(cluster.completed(JOB), 0);
    cluster.drain("a");
    runs_on(&cluster, JOB, &["b", "c"]);
    assert!(is_drained(&cluster, "a") && cluster.noted("start from checkpoint 1.1"));
    cluster.seconds(60);
    assert_eq!(cluster.completed(JOB), 1, "and for nothing else");
}

#[test]
fn a_checkpoint_for_a_move_that_fails_is_tried_again_and_fails_no_job_that_has_none() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let mut never = record(JOB);
    never.options.checkpoint_interval_ms = 0;
    cluster.submit(never, graph(2, Routing::AllToAll));
    cluster.join("c", 2);
    cluster.metadata_fails = true;
    cluster.drain("a");
    cluster.seconds(60);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    assert!(cluster.job(JOB).checkpoints().history().failed() > 2);
    cluster.metadata_fails = false;
    cluster.seconds(10);
    runs_on(&cluster, JOB, &["b", "c"]);
    assert!(is_drained(&cluster, "a"));
}

#[test]
fn tasks_that_fit_nowhere_else_stay_and_run_until_they_do() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(seldom(JOB), graph(4, Routing::AllToAll));
    cluster.drain("a");
    cluster.seconds(70);
    assert!(!is_drained(&cluster, "a"));
    runs_on(&cluster, JOB, &["a", "b"]);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    let said = |note: &&String| note.contains("its tasks stay and run");
    assert_eq!(cluster.notes.iter().filter(said).count(), 1, "said once");
    cluster.join("c", 2);
    assert!(is_drained(&cluster, "a"));
    runs_on(&cluster, JOB, &["b", "c"]);
}

#[test]
fn a_task_that_fails_on_a_taskmanager_that_cannot_be_left_starts_again_there() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(4, Routing::AllToAll));
    cluster.seconds(1);
    cluster.drain("a");
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    cluster.seconds(1);
    runs_on(&cluster, JOB, &["a", "b"]);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 2)].into());
    assert!(!is_drained(&cluster, "a"));
}

#[test]
fn nothing_new_begins_on_a_taskmanager_that_leaves() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(seldom(JOB), graph(4, Routing::AllToAll));
    cluster.join("c", 1);
    cluster.drain("a");
    cluster.submit(record(OTHER), graph(2, Routing::AllToAll));
    assert_eq!(cluster.phase(OTHER), Phase::Waiting);
    cluster.cancel(JOB);
    assert_eq!(cluster.phase(OTHER), Phase::Running);
    runs_on(&cluster, OTHER, &["b", "c"]);
    assert!(is_drained(&cluster, "a"));
}

#[test]
fn only_the_regions_with_tasks_there_move() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(seldom(JOB), graph(2, Routing::Forward));
    cluster.join("c", 2);
    cluster.drain("a");
    runs_on(&cluster, JOB, &["b", "c"]);
    let attempts = cluster.attempts(JOB);
    assert_eq!(attempts.len(), 2);
    assert!(attempts.contains(&attempt(1, 3)), "{attempts:?}");
    assert_eq!(
        attempts.iter().filter(|id| id.counter < 3).count(),
        1,
        "the other runs on"
    );
}

#[test]
fn a_drain_during_a_recovery_moves_what_restarts_and_needs_no_checkpoint() {
    let mut cluster = running();
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    assert_eq!(cluster.phase(JOB), Phase::Restarting);
    cluster.drain("a");
    assert!(
        !is_drained(&cluster, "a"),
        "its tasks may have to come back"
    );
    cluster.advance(Duration::from_millis(100));
    runs_on(&cluster, JOB, &["b", "c"]);
    assert!(is_drained(&cluster, "a"));
    assert_eq!(cluster.completed(JOB), 0);
}

#[test]
fn a_drain_during_a_deployment_waits_until_that_runs() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.behaviour.deployments_stall = true;
    cluster.submit(seldom(JOB), graph(2, Routing::AllToAll));
    cluster.join("c", 2);
    cluster.drain("a");
    assert_eq!(cluster.phase(JOB), Phase::Deploying);
    cluster.behaviour.deployments_stall = false;
    cluster.all_tasks(JOB, TaskManager::run);
    runs_on(&cluster, JOB, &["b", "c"]);
    assert!(is_drained(&cluster, "a"));
}

#[test]
fn two_leave_at_once_and_one_move_is_enough() {
    let mut cluster = running();
    cluster.behaviour.captures_stall = true;
    cluster.drain("a");
    cluster.drain("b");
    assert!(cluster.noted("a is being drained"));
    cluster.behaviour.captures_stall = false;
    cluster.seconds(120);
    runs_on(&cluster, JOB, &["c"]);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 2)].into());
    assert_eq!(cluster.drained_leave(), ["a", "b"]);
}

#[test]
fn when_only_one_of_two_can_be_left_that_one_is() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(seldom(JOB), graph(4, Routing::AllToAll));
    cluster.drain("a");
    cluster.drain("b");
    cluster.join("c", 2);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let left: Vec<bool> = ["a", "b"].map(|name| is_drained(&cluster, name)).into();
    assert_eq!(left.iter().filter(|drained| **drained).count(), 1);
    cluster.seconds(70);
    assert_eq!(
        cluster.attempts(JOB),
        [attempt(1, 2)].into(),
        "and no further"
    );
    cluster.join("d", 2);
    runs_on(&cluster, JOB, &["c", "d"]);
    assert_eq!(cluster.drained_leave(), ["a", "b"]);
}

#[test]
fn two_jobs_that_move_do_not_take_the_same_slots() {
    let mut cluster = Cluster::new(&["a"]);
    for id in [JOB, OTHER] {
        cluster.submit(seldom(id), graph(1, Routing::AllToAll));
    }
    cluster.join("b", 1);
    cluster.behaviour.captures_stall = true;
    cluster.drain("a");
    cluster.behaviour.captures_stall = false;
    cluster.seconds(120);
    let attempts: Vec<_> = [JOB, OTHER]
        .into_iter()
        .flat_map(|job| cluster.attempts(job))
        .collect();
    assert!(attempts.contains(&attempt(1, 1)), "one stays: {attempts:?}");
    assert!(attempts.contains(&attempt(1, 2)), "one moves: {attempts:?}");
    cluster.join("c", 1);
    assert!(is_drained(&cluster, "a"));
}

#[test]
fn the_taskmanager_that_leaves_dies_before_its_tasks_have_moved() {
    let mut cluster = running();
    cluster.behaviour.captures_stall = true;
    cluster.drain("a");
    cluster.kill("a");
    cluster.behaviour.captures_stall = false;
    cluster.seconds(1);
    assert!(cluster.noted("TaskManager a is lost"));
    assert_eq!(
        cluster.records[&JOB].restarts, 1,
        "a failure like any other"
    );
    runs_on(&cluster, JOB, &["b", "c"]);
    assert!(
        !cluster.noted("start from checkpoint"),
        "there was none, and none is waited for"
    );
}

#[test]
fn the_leader_dies_during_a_drain_and_the_next_one_learns_of_it() {
    let mut cluster = running();
    cluster.behaviour.captures_stall = true;
    cluster.drain("a");
    cluster.restart_jobmanager();
    cluster.behaviour.captures_stall = false;
    cluster.connect_all();
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    cluster.seconds(1);
    runs_on(&cluster, JOB, &["b", "c"]);
    assert!(is_drained(&cluster, "a"));
    assert_eq!(cluster.attempts(JOB), [attempt(2, 1)].into());
    assert!(cluster.noted("start from checkpoint 2.2"));
}

#[test]
fn a_stream_that_breaks_during_a_drain_delays_it_only() {
    let mut cluster = running();
    cluster.behaviour.captures_stall = true;
    cluster.drain("a");
    cluster.break_stream("a");
    cluster.behaviour.captures_stall = false;
    cluster.connect("a");
    runs_on(&cluster, JOB, &["b", "c"]);
    assert!(is_drained(&cluster, "a"));
    cluster.break_stream("a");
    assert!(cluster.noted("TaskManager a has left"));
}

#[test]
fn the_target_dies_before_the_move_which_is_made_when_another_comes() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(seldom(JOB), graph(4, Routing::AllToAll));
    cluster.join("c", 2);
    cluster.publishing = Publishing::Hangs;
    cluster.drain("a");
    cluster.kill("c");
    cluster.publications_land();
    // The checkpoint was published for nothing: everything starts again where it was.
    runs_on(&cluster, JOB, &["a", "b"]);
    cluster.seconds(70);
    assert!(!is_drained(&cluster, "a"));
    cluster.join("d", 2);
    runs_on(&cluster, JOB, &["b", "d"]);
    assert!(is_drained(&cluster, "a"));
}

#[test]
fn a_job_that_ends_during_a_drain_is_not_moved() {
    let mut cluster = running();
    cluster.behaviour.commits_stall = true;
    cluster.publishing = Publishing::Hangs;
    cluster.drain("a");
    cluster.all_tasks(JOB, TaskManager::finish);
    cluster.behaviour.commits_stall = false;
    cluster.publications_land();
    assert_eq!(cluster.phase(JOB), Phase::Finished);
    assert!(is_drained(&cluster, "a"));
    assert_eq!(cluster.job(JOB).history().recoveries().count(), 0);
}

#[test]
fn a_taskmanager_that_was_drained_and_is_started_again_is_used_again() {
    let mut cluster = running();
    cluster.drain("a");
    cluster.drained_leave();
    cluster.join("a", 2);
    cluster.kill("c");
    cluster.seconds(1);
    runs_on(&cluster, JOB, &["a", "b"]);
}
