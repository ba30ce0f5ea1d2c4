//! Images that are kept warm for tasks that run elsewhere, a sentence each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tidemill_core::job::Phase;
use tidemill_protocol::record::{JobRecord, RestartStrategy};
use tidemill_protocol::{CheckpointId, Epoch, JobId, Routing, TaskId};

use crate::cluster::Cluster;
use crate::jobs::{JOB, OTHER, graph, record};
use crate::task_manager::TaskManager;

fn checkpoint(epoch: u64, counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(epoch), counter)
}

fn warm(id: JobId) -> JobRecord {
    let mut record = record(id);
    record.options.standby = true;
    record.options.restart = RestartStrategy::ExponentialDelay {
        initial_ms: 1000,
        max_ms: 1000,
        multiplier_percent: 100,
        reset_after_ms: 60_000,
    };
    record
}

/// A job of two slots on `a` and `b`, and `c` beside it, after a checkpoint.
fn running() -> Cluster {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(warm(JOB), graph(2, Routing::AllToAll));
    cluster.join("c", 2);
    cluster.seconds(1);
    cluster
}

/// What each TaskManager keeps of a job, if anything.
fn kept(cluster: &Cluster, job: JobId) -> BTreeMap<&str, BTreeSet<(TaskId, CheckpointId)>> {
    let of_job = |one: &TaskManager| {
        let warm = one.warm.iter().filter(|((of, _), _)| *of == job);
        warm.map(|((_, task), of)| (*task, *of)).collect()
    };
    let all = cluster.task_managers.iter();
    let all = all.map(|(name, one)| (name.as_str(), of_job(one)));
    all.filter(|(_, kept): &(_, BTreeSet<_>)| !kept.is_empty())
        .collect()
}

fn places(cluster: &Cluster) -> BTreeMap<TaskId, String> {
    let placements = cluster.job(JOB).placements();
    placements
        .iter()
        .map(|(task, place)| (*task, place.0.clone()))
        .collect()
}

#[test]
fn each_task_s_last_image_is_kept_by_somebody_else_and_a_slot_s_tasks_together() {
    let mut cluster = running();
    for counter in 1..4 {
        let kept = kept(&cluster, JOB);
        let all: Vec<_> = kept.values().flatten().collect();
        assert_eq!(all.len(), 4, "{kept:?}");
        assert!(all.iter().all(|(_, of)| *of == checkpoint(1, counter)));
        for tasks in kept.values() {
            let columns: BTreeSet<u32> = tasks.iter().map(|(task, _)| task.subtask).collect();
            assert_eq!(tasks.len(), columns.len() * 2);
        }
        cluster.seconds(1);
    }
}

#[test]
fn lost_tasks_go_on_where_their_images_are_at_once() {
    let mut cluster = running();
    let before = places(&cluster);
    let keepers = cluster.job(JOB).keepers().clone();
    let lost = before[&TaskId::new(0, 0)].clone();
    cluster.kill(&lost);
    assert_eq!(cluster.phase(JOB), Phase::Running, "no delay");
    for (task, place) in places(&cluster) {
        if before[&task] == lost {
            assert_eq!(place, keepers[&task].0, "{task}");
        } else {
            assert_eq!(place, before[&task], "survivors stay");
        }
    }
    let recovery = cluster.job(JOB).history().recoveries().next_back();
    let recovery = recovery.expect("there was one");
    assert_eq!(recovery.delay, Duration::ZERO);
    assert_eq!(recovery.detected_within, Some(Duration::ZERO));
    cluster.seconds(1);
    let kept = kept(&cluster, JOB);
    assert_eq!(kept.values().flatten().count(), 4, "others keep them now");
}

#[test]
fn where_the_keeper_has_no_room_the_tasks_learn_who_has_their_images() {
    let mut cluster = running();
    let mut other = record(OTHER);
    other.options.standby = false;
    cluster.submit(other, graph(4, Routing::AllToAll));
    assert_eq!(cluster.phase(OTHER), Phase::Running, "no slot is free");
    cluster.join("d", 1);
    let keepers = cluster.job(JOB).keepers().clone();
    // Nobody but `d` has room.
    let task = TaskId::new(0, 0);
    let keeper = keepers[&task].0.clone();
    assert_ne!(keeper, "d", "it has joined after the last checkpoint");
    cluster.one_task(JOB, task, TaskManager::fail);
    cluster.seconds(2);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let place = &places(&cluster)[&task];
    let warm_at = &cluster.task_managers[place].warm_at[&(JOB, task)];
    assert_eq!(*warm_at, [format!("{keeper}:1")]);
}

#[test]
fn keepers_change_with_who_is_there() {
    let mut cluster = running();
    let spread = kept(&cluster, JOB).len();
    cluster.kill("c");
    assert_eq!(kept(&cluster, JOB).values().flatten().count(), 4, "at once");
    assert!(kept(&cluster, JOB).len() <= 2 && spread >= 1);
    cluster.join("d", 2);
    cluster.drain("d");
    cluster.seconds(1);
    assert!(cluster.task_managers["d"].warm.is_empty(), "it leaves");
    let of_last = |(_, of): &(TaskId, CheckpointId)| *of == checkpoint(1, 2);
    assert!(kept(&cluster, JOB).values().flatten().all(of_last));
}

#[test]
fn what_is_kept_is_known_to_the_next_leader() {
    let mut cluster = running();
    let before = kept(&cluster, JOB).len();
    let keepers = cluster.job(JOB).keepers().clone();
    cluster.restart_jobmanager();
    cluster.connect_all();
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(*cluster.job(JOB).keepers(), keepers);
    assert_eq!(kept(&cluster, JOB).len(), before);
    let lost = places(&cluster)[&TaskId::new(0, 0)].clone();
    cluster.kill(&lost);
    assert_eq!(
        places(&cluster)[&TaskId::new(0, 0)],
        keepers[&TaskId::new(0, 0)].0
    );
}

#[test]
fn images_that_never_came_are_not_relied_upon() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    cluster.behaviour.warming_stalls = true;
    cluster.submit(warm(JOB), graph(2, Routing::AllToAll));
    cluster.seconds(1);
    let lost = places(&cluster)[&TaskId::new(0, 0)].clone();
    cluster.kill(&lost);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    for one in cluster.task_managers.values() {
        assert!(one.warm_at.values().all(Vec::is_empty));
    }
}

#[test]
fn nothing_is_kept_of_a_job_that_has_ended_or_is_not_known() {
    let mut cluster = running();
    cluster.cancel(JOB);
    assert_eq!(kept(&cluster, JOB), BTreeMap::new());
    let stray = (OTHER, TaskId::new(0, 0));
    let one = cluster.task_managers.get_mut("a").expect("it lives");
    one.warm.insert(stray, checkpoint(1, 1));
    cluster.connect("a");
    assert_eq!(kept(&cluster, OTHER), BTreeMap::new());
}

/// Where something is that tasks of a job have left, or may leave.
fn remains(cluster: &Cluster, job: JobId) -> BTreeSet<&str> {
    let has = |one: &TaskManager| one.remains.iter().any(|(of, _)| *of == job);
    let all = cluster.task_managers.iter();
    let all = all.filter(|(_, one)| has(one));
    all.map(|(name, _)| name.as_str()).collect()
}

/// A job without keepers, on `a` and `b`.
fn plain() -> Cluster {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(4, Routing::AllToAll));
    cluster.seconds(1);
    assert_eq!(remains(&cluster, JOB), ["a", "b"].into());
    cluster
}

#[test]
fn what_tasks_leave_is_dropped_at_once_when_their_job_ends() {
    let mut cancelled = plain();
    cancelled.cancel(JOB);
    assert_eq!(remains(&cancelled, JOB), BTreeSet::new());

    let mut finished = plain();
    finished.all_tasks(JOB, TaskManager::finish);
    finished.seconds(1);
    assert_eq!(finished.phase(JOB), Phase::Finished);
    assert_eq!(remains(&finished, JOB), BTreeSet::new());

    let mut failed = Cluster::new(&["a", "b"]);
    let mut brittle = record(JOB);
    brittle.options.restart = RestartStrategy::FixedDelay {
        attempts: 0,
        delay_ms: 0,
    };
    failed.submit(brittle, graph(4, Routing::AllToAll));
    failed.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    assert_eq!(failed.phase(JOB), Phase::Failed);
    assert_eq!(remains(&failed, JOB), BTreeSet::new());
}

#[test]
fn a_successor_knows_where_its_tasks_leave_something() {
    let mut cluster = plain();
    cluster.restart_jobmanager();
    cluster.connect_all();
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster.cancel(JOB);
    assert_eq!(remains(&cluster, JOB), BTreeSet::new());
}

#[test]
fn where_no_task_runs_any_more_nothing_is_left_of_them() {
    let mut cluster = plain();
    cluster.join("c", 2);
    cluster.drain("b");
    cluster.seconds(1);
    assert!(!places(&cluster).values().any(|place| place == "b"));
    assert_eq!(remains(&cluster, JOB), ["a", "c"].into());
}

#[test]
fn what_is_there_of_a_job_that_nobody_knows_is_dropped() {
    let mut cluster = plain();
    cluster.records.clear();
    cluster.restart_jobmanager();
    cluster.connect_all();
    assert_eq!(remains(&cluster, JOB), BTreeSet::new());
}

#[test]
fn a_job_that_wants_no_keepers_has_none() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(2, Routing::AllToAll));
    cluster.seconds(3);
    assert_eq!(kept(&cluster, JOB), BTreeMap::new());
}
