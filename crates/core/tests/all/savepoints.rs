//! Savepoints, stops with one, jobs that begin from one, and checkpoints that outlive their job, a sentence each.

use std::time::Duration;
use tidemill_core::job::{Phase, SavepointStatus, SavepointStep};
use tidemill_core::leader::Event;
use tidemill_protocol::record::{JobRecord, JobState};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, Routing, TaskId};

use crate::cluster::{Cluster, Publishing, WALL_START_MS};
use crate::jobs::{JOB, OTHER, graph, record};
use crate::task_manager::TaskManager;

fn checkpoint(epoch: u64, counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(epoch), counter)
}

fn attempt(epoch: u64, counter: u64) -> AttemptId {
    AttemptId::new(Epoch(epoch), counter)
}

/// Checkpoints only each minute: whatever is published sooner was taken for a savepoint.
fn seldom(id: JobId) -> JobRecord {
    let mut record = record(id);
    record.options.checkpoint_interval_ms = 60_000;
    record.options.checkpoint_timeout_ms = 10_000;
    record
}

/// A job on `a` and `b`.
fn running() -> Cluster {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(seldom(JOB), graph(2, Routing::AllToAll));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster
}

fn completed(id: u128, counter: u64) -> SavepointStatus {
    SavepointStatus::Completed {
        path: format!("savepoints/{id}"),
        bytes: 1000,
        checkpoint: checkpoint(1, counter),
    }
}

fn step(cluster: &Cluster, id: u128) -> SavepointStep {
    match cluster.savepoint_status(JOB, id) {
        SavepointStatus::InProgress { step, .. } => step,
        other => panic!("it is over: {other:?}"),
    }
}

/// Why a wish came to nothing.
fn failure(cluster: &Cluster, id: u128) -> String {
    match cluster.savepoint_status(JOB, id) {
        SavepointStatus::Failed { reason } => reason,
        other => panic!("it has not failed: {other:?}"),
    }
}

#[test]
fn a_savepoint_is_a_copy_of_a_checkpoint_taken_for_it_and_the_job_goes_on() {
    let mut cluster = running();
    cluster.savepoint(JOB, 1, false);
    assert_eq!(cluster.savepoint_status(JOB, 1), completed(1, 1));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    cluster.savepoint(JOB, 1, false);
    assert_eq!(cluster.completed(JOB), 1, "the same wish again");
}

#[test]
fn several_wishes_are_fulfilled_by_one_checkpoint_that_begins_after_them() {
    let mut cluster = running();
    cluster.behaviour.captures_stall = true;
    cluster.savepoint(JOB, 1, false);
    cluster.behaviour.captures_stall = false;
    cluster.savepoint(JOB, 2, false);
    cluster.savepoint(JOB, 3, false);
    assert_eq!(step(&cluster, 2), SavepointStep::Checkpoint);
    cluster.seconds(10);
    assert!(failure(&cluster, 1).contains("checkpoint 1.1 was given up: 4 tasks had not"));
    assert_eq!(cluster.savepoint_status(JOB, 2), completed(2, 2));
    assert_eq!(cluster.savepoint_status(JOB, 3), completed(3, 2));
}

#[test]
fn a_wish_is_given_up_when_no_checkpoint_begins_for_long() {
    let mut cluster = running();
    cluster.kill("a");
    cluster.kill("b");
    cluster.savepoint(JOB, 1, false);
    cluster.seconds(9);
    assert_eq!(step(&cluster, 1), SavepointStep::Checkpoint);
    cluster.seconds(1);
    let reason = "no checkpoint could begin in 10s: the job is waiting for slots";
    assert_eq!(failure(&cluster, 1), reason);
}

#[test]
fn what_is_wished_while_a_checkpoint_is_in_flight_is_taken_after_it() {
    let mut cluster = running();
    cluster.publishing = Publishing::Hangs;
    cluster.savepoint(JOB, 1, false);
    cluster.savepoint(JOB, 2, false);
    cluster.savepoint(JOB, 3, false);
    cluster.publications_land();
    assert_eq!(cluster.savepoint_status(JOB, 1), completed(1, 1));
    assert_eq!(cluster.savepoint_status(JOB, 2), completed(2, 2));
    assert_eq!(cluster.savepoint_status(JOB, 3), completed(3, 2));
}

#[test]
fn a_job_that_restarts_takes_the_savepoint_when_it_runs_again() {
    let mut cluster = running();
    cluster.behaviour.deployments_stall = true;
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    cluster.seconds(2);
    cluster.savepoint(JOB, 1, true);
    assert_eq!(step(&cluster, 1), SavepointStep::Checkpoint);
    cluster.behaviour.deployments_stall = false;
    cluster.all_tasks(JOB, TaskManager::run);
    assert_eq!(cluster.savepoint_status(JOB, 1), completed(1, 1));
    assert_eq!(cluster.phase(JOB), Phase::Finished);
}

#[test]
fn a_savepoint_that_cannot_be_written_costs_the_job_nothing() {
    let mut cluster = running();
    cluster.copies_hang = true;
    cluster.savepoint(JOB, 1, false);
    assert_eq!(step(&cluster, 1), SavepointStep::Copy);
    cluster.copies_end(&Err("no space is left".into()));
    assert_eq!(failure(&cluster, 1), "no space is left");
    assert!(cluster.noted("savepoint savepoints/1 could not be written: no space is left"));
    cluster.seconds(70);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    assert_eq!(cluster.completed(JOB), 2);
}

#[test]
fn a_checkpoint_stays_while_it_is_copied_whatever_else_is_published() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(2, Routing::AllToAll));
    cluster.copies_hang = true;
    cluster.savepoint(JOB, 1, false);
    cluster.seconds(20);
    assert!(cluster.completed(JOB) > 5);
    assert!(!cluster.published(JOB).contains(&checkpoint(1, 1)));
    // The world checks that nothing of it was deleted.
    cluster.copies_end(&Ok(1000));
    assert_eq!(cluster.savepoint_status(JOB, 1), completed(1, 1));
}

#[test]
fn a_job_stops_when_its_savepoint_is_written_and_everything_is_committed() {
    let mut cluster = running();
    cluster.copies_hang = true;
    cluster.behaviour.commits_stall = true;
    cluster.savepoint(JOB, 1, true);
    let paused = |one: &TaskManager| one.pauses.contains(&(JOB, checkpoint(1, 1)));
    assert!(cluster.task_managers.values().all(paused), "at the barrier");
    assert_eq!(step(&cluster, 1), SavepointStep::Copy);
    cluster.seconds(200);
    assert_eq!(cluster.completed(JOB), 1, "nothing begins after it");
    cluster.copies_end(&Ok(1000));
    assert_eq!(step(&cluster, 1), SavepointStep::Commit);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster.behaviour.commits_stall = false;
    cluster.all_tasks(JOB, |one, job, task| {
        one.commit(job, task, checkpoint(1, 1))
    });
    assert_eq!(cluster.phase(JOB), Phase::Finished);
    assert_eq!(cluster.savepoint_status(JOB, 1), completed(1, 1));
    let stored = &cluster.records[&JOB];
    assert_eq!(stored.state, JobState::Finished);
    assert_eq!(stored.ended_at_ms, Some(WALL_START_MS + 200_000));
    assert!(cluster.cleaned.contains(&JOB) && cluster.attempts(JOB).is_empty());
    for one in cluster.task_managers.values() {
        assert!(one.aborted.is_empty(), "nobody goes on before the end");
    }
}

#[test]
fn a_job_that_cannot_be_stopped_goes_on() {
    let mut cluster = running();
    cluster.copies_hang = true;
    cluster.savepoint(JOB, 1, true);
    cluster.copies_end(&Err("no space is left".into()));
    assert_eq!(failure(&cluster, 1), "no space is left");
    for one in cluster.task_managers.values() {
        assert!(one.aborted.contains(&(JOB, checkpoint(1, 1))), "they go on");
    }
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    cluster.seconds(70);
    assert_eq!(cluster.completed(JOB), 2);
    cluster.savepoint(JOB, 2, true);
    assert_eq!(cluster.phase(JOB), Phase::Finished, "and can be later");
}

#[test]
fn a_task_that_fails_before_the_end_keeps_the_job_from_stopping() {
    let mut cluster = running();
    cluster.copies_hang = true;
    cluster.savepoint(JOB, 1, true);
    cluster.kill("a");
    cluster.seconds(5);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert!(cluster.noted("start from checkpoint 1.1"));
    assert_eq!(step(&cluster, 1), SavepointStep::Copy);
    cluster.copies_end(&Ok(1000));
    let reason = failure(&cluster, 1);
    assert!(reason.starts_with(
        "the savepoint is written to savepoints/1, but the job was not stopped: TaskManager a is lost"
    ));
    assert_eq!(cluster.phase(JOB), Phase::Running);
}

#[test]
fn a_broken_control_stream_keeps_the_job_from_stopping_and_everybody_goes_on() {
    let mut cluster = running();
    cluster.copies_hang = true;
    cluster.savepoint(JOB, 1, true);
    cluster.break_stream("a");
    cluster.connect("a");
    for one in cluster.task_managers.values() {
        let newest = one.aborted.iter().max();
        assert!(newest >= Some(&(JOB, checkpoint(1, 1))), "{}", one.id);
    }
    cluster.copies_end(&Ok(1000));
    assert!(failure(&cluster, 1).contains("was not stopped"));
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
}

#[test]
fn a_cancelled_job_s_savepoint_is_still_written_and_its_objects_stay_until_then() {
    let mut cluster = running();
    cluster.copies_hang = true;
    cluster.savepoint(JOB, 1, false);
    cluster.savepoint(JOB, 2, true);
    cluster.cancel(JOB);
    assert_eq!(cluster.phase(JOB), Phase::Cancelled);
    assert!(cluster.cleaned.is_empty(), "it is being copied");
    cluster.copies_end(&Ok(1000));
    assert_eq!(cluster.savepoint_status(JOB, 1), completed(1, 1));
    assert!(failure(&cluster, 2).contains("not stopped: the job was cancelled"));
    assert!(cluster.cleaned.contains(&JOB));
}

#[test]
fn a_job_that_ends_takes_no_savepoint_any_more() {
    let mut cluster = running();
    cluster.behaviour.deployments_stall = true;
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    cluster.savepoint(JOB, 1, false);
    cluster.cancel(JOB);
    assert!(failure(&cluster, 1).starts_with("the job is being cancelled"));
    cluster.savepoint(JOB, 2, false);
    assert_eq!(failure(&cluster, 2), "it is cancelled");
    assert_eq!(
        cluster.job(JOB).refuses_savepoint(true),
        Some("it is cancelled".into())
    );
}

#[test]
fn a_job_stops_once_and_does_not_move_meanwhile() {
    let mut cluster = running();
    cluster.join("c", 2);
    cluster.copies_hang = true;
    cluster.savepoint(JOB, 1, true);
    cluster.savepoint(JOB, 2, true);
    assert_eq!(failure(&cluster, 2), "it is being stopped already");
    cluster.drain("a");
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    cluster.copies_end(&Ok(1000));
    assert_eq!(cluster.phase(JOB), Phase::Finished);
    assert!(cluster.task_managers["a"].drained, "nothing is left there");
}

#[test]
fn a_job_that_is_being_moved_is_not_stopped() {
    let mut cluster = running();
    cluster.join("c", 2);
    cluster.behaviour.captures_stall = true;
    cluster.drain("a");
    cluster.savepoint(JOB, 1, true);
    assert!(failure(&cluster, 1).contains("moving to another TaskManager"));
    assert_eq!(cluster.job(JOB).refuses_savepoint(false), None);
}

#[test]
fn the_next_leader_knows_nothing_of_a_wish_and_whoever_paused_goes_on() {
    let mut cluster = running();
    cluster.copies_hang = true;
    cluster.savepoint(JOB, 1, true);
    cluster.restart_jobmanager();
    cluster.connect_all();
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into(), "adopted");
    let id = tidemill_core::job::SavepointRequestId(1);
    assert_eq!(cluster.job(JOB).savepoint(id), None);
    for one in cluster.task_managers.values() {
        let newest = one.aborted.iter().max();
        assert!(newest > Some(&(JOB, checkpoint(1, 1))), "{}", one.id);
    }
}

#[test]
fn so_many_wishes_are_taken_and_so_many_remembered() {
    let mut cluster = running();
    cluster.copies_hang = true;
    for id in 0..17 {
        cluster.savepoint(JOB, id, false);
    }
    assert!(failure(&cluster, 16).contains("16 of it are being taken already"));
    cluster.copies_end(&Ok(1000));
    for id in 100..300 {
        cluster.savepoint(JOB, id, false);
        assert!(matches!(
            cluster.savepoint_status(JOB, id),
            SavepointStatus::Completed { .. }
        ));
    }
}

#[test]
fn a_job_begins_from_a_savepoint_that_is_published_before_it_runs() {
    let mut cluster = running();
    cluster.savepoint(JOB, 1, true);
    cluster.publishing = Publishing::Hangs;
    cluster.submit_from(seldom(OTHER), JOB);
    assert!(cluster.records.contains_key(&OTHER) && !cluster.stored.contains(&OTHER));
    assert!(cluster.attempts(OTHER).is_empty());
    cluster.publications_land();
    assert!(cluster.stored.contains(&OTHER));
    assert_eq!(cluster.phase(OTHER), Phase::Running);
    assert!(cluster.noted("4 tasks (0 moved) start from checkpoint 1.0"));
    cluster.savepoint(OTHER, 2, false);
    assert_eq!(
        cluster.published(OTHER),
        [checkpoint(1, 0), checkpoint(1, 1)]
    );
}

#[test]
fn whatever_becomes_of_the_reply_a_job_begins_once_from_its_savepoint() {
    for publishing in [Publishing::ReplyLost, Publishing::WriteLost] {
        let mut cluster = running();
        cluster.savepoint(JOB, 1, true);
        cluster.publishing = publishing;
        cluster.submit_from(seldom(OTHER), JOB);
        assert!(cluster.stored.contains(&OTHER), "{publishing:?}");
        assert_eq!(cluster.attempts(OTHER), [attempt(1, 1)].into());
        assert_eq!(cluster.published(OTHER), [checkpoint(1, 0)]);
    }
}

#[test]
fn a_job_is_adopted_though_another_one_s_later_attempt_made_what_it_began_from() {
    let mut cluster = running();
    for _ in 0..3 {
        cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
        cluster.seconds(1);
    }
    assert!(cluster.attempts(JOB).last() > Some(&attempt(1, 2)));
    cluster.savepoint(JOB, 1, true);
    cluster.submit_from(seldom(OTHER), JOB);
    assert_eq!(cluster.attempts(OTHER), [attempt(1, 1)].into());
    cluster.restart_jobmanager();
    cluster.connect_all();
    assert_eq!(cluster.attempts(OTHER), [attempt(1, 1)].into());
    assert_eq!(cluster.phase(OTHER), Phase::Running);
}

#[test]
fn a_job_whose_beginning_was_lost_with_the_leader_does_not_begin_anew() {
    let mut cluster = running();
    cluster.savepoint(JOB, 1, true);
    cluster.publishing = Publishing::Hangs;
    cluster.submit_from(seldom(OTHER), JOB);
    cluster.publishing = Publishing::Works;
    cluster.restart_jobmanager();
    cluster.connect_all();
    assert_eq!(cluster.phase(OTHER), Phase::Failed);
    let JobState::Failed { reason } = &cluster.records[&OTHER].state else {
        panic!("it has failed");
    };
    assert!(reason.contains("submit it again"), "{reason}");
    cluster.seconds(30);
    assert!(cluster.attempts(OTHER).is_empty());
}

#[test]
fn a_checkpoint_outlives_its_job_when_that_was_wished_until_it_is_deleted() {
    for cancelled in [true, false] {
        let mut cluster = Cluster::new(&["a", "b"]);
        let mut keeps = record(JOB);
        keeps.options.retain_on_cancel = true;
        keeps.options.restart = tidemill_protocol::record::RestartStrategy::None;
        cluster.submit(keeps, graph(2, Routing::AllToAll));
        cluster.advance(Duration::from_millis(3500));
        if cancelled {
            cluster.cancel(JOB);
        } else {
            cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
        }
        assert!(cluster.phase(JOB).is_terminal() && cluster.cleaned.contains(&JOB));
        let last = checkpoint(1, 3);
        assert_eq!(cluster.published(JOB), [last]);
        cluster.restart_jobmanager();
        let kept = cluster.job(JOB).kept_checkpoint();
        assert_eq!(kept.map(|kept| kept.checkpoint), Some(last));
        assert!(!cluster.job(JOB).may_be_forgotten());
        assert_eq!(cluster.published(JOB), [last], "nor does a leader clean up");
        cluster.tell(Event::KeptDropped { job: JOB });
        assert_eq!(cluster.published(JOB), []);
        assert!(cluster.job(JOB).may_be_forgotten());
    }
}

#[test]
fn a_finished_job_leaves_nothing() {
    let mut cluster = running();
    let mut keeps = seldom(OTHER);
    keeps.options.retain_on_cancel = true;
    cluster.submit(keeps, graph(2, Routing::AllToAll));
    cluster.all_tasks(OTHER, TaskManager::finish);
    assert_eq!(cluster.phase(OTHER), Phase::Finished);
    assert_eq!(cluster.published(OTHER), []);
    assert!(cluster.job(OTHER).may_be_forgotten());
}
