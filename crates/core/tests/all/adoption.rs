//! What a new leader makes of what it finds, a sentence each.

use std::time::Duration;
use tidemill_core::job::{Phase, TaskStatus};
use tidemill_core::leader::Event;
use tidemill_core::membership::ConnectionId;
use tidemill_protocol::control::{RunningTask, TaskState};
use tidemill_protocol::record::RestartStrategy;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, Routing, TaskId};

use crate::cluster::{Cluster, Publishing};
use crate::jobs::{JOB, OTHER, graph, record};
use crate::task_manager::TaskManager;

fn attempt(epoch: u64, counter: u64) -> AttemptId {
    AttemptId::new(Epoch(epoch), counter)
}

fn checkpoint(epoch: u64, counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(epoch), counter)
}

/// A job of two slots, one on each of two TaskManagers, with one completed checkpoint.
fn checkpointed() -> Cluster {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(2, Routing::AllToAll));
    cluster.seconds(1);
    assert_eq!(cluster.completed(JOB), 1);
    for name in ["a", "b"] {
        assert_eq!(cluster.task_managers[name].tasks.len(), 2, "{name}");
    }
    cluster
}

fn meet(cluster: &mut Cluster, names: &[&str]) {
    names.iter().for_each(|name| cluster.connect(name));
}

fn goes_on(cluster: &mut Cluster, expected: AttemptId) {
    assert_eq!(cluster.phase(JOB), Phase::Running, "{:#?}", cluster.notes);
    assert_eq!(cluster.attempts(JOB), [expected].into());
    let before = cluster.completed(JOB);
    cluster.seconds(3);
    assert!(cluster.completed(JOB) > before, "checkpoints go on");
}

#[test]
fn a_checkpoint_in_flight_at_the_take_over_is_over_for_every_task() {
    let mut cluster = checkpointed();
    cluster.behaviour.captures_stall = true;
    cluster.seconds(1);
    cluster.behaviour.captures_stall = false;
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    for name in ["a", "b"] {
        let aborted = &cluster.task_managers[name].aborted;
        assert!(aborted.contains(&(JOB, checkpoint(2, 0))), "{aborted:?}");
    }
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn the_first_checkpoint_after_a_take_over_begins_as_soon_as_everything_is_adopted() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    cluster.connect("a");
    assert_eq!(cluster.completed(JOB), 0, "a part of it is not known");
    cluster.connect("b");
    assert_eq!(cluster.completed(JOB), 1, "and no time has passed");
    assert!(cluster.published(JOB).contains(&checkpoint(2, 1)));
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());

    cluster.advance(Duration::from_millis(999));
    assert_eq!(cluster.completed(JOB), 1, "from then on each interval");
    cluster.advance(Duration::from_millis(1));
    assert_eq!(cluster.completed(JOB), 2);
}

#[test]
fn the_first_checkpoint_after_a_take_over_begins_as_soon_as_what_was_missing_runs_again() {
    let mut cluster = checkpointed();
    cluster.join("c", 2);
    cluster.task_managers.remove("b");
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "c"]);
    cluster.advance(Duration::from_millis(2999));
    assert_eq!(cluster.completed(JOB), 0);
    cluster.advance(Duration::from_millis(1));
    assert_eq!(cluster.attempts(JOB), [attempt(2, 1)].into());
    assert_eq!(cluster.completed(JOB), 1);
}

#[test]
fn a_take_over_begins_no_checkpoint_of_a_job_without_them() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let mut without = record(JOB);
    without.options.checkpoint_interval_ms = 0;
    cluster.submit(without, graph(2, Routing::AllToAll));
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    cluster.seconds(20);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    assert!(cluster.published(JOB).is_empty(), "nobody asked for one");
}

#[test]
fn a_stream_that_breaks_leaves_no_channel_waiting_for_the_checkpoint_that_was_given_up() {
    let mut cluster = checkpointed();
    cluster.behaviour.captures_stall = true;
    cluster.seconds(1);
    cluster.break_stream("a");
    cluster.connect("a");
    let aborted = &cluster.task_managers["a"].aborted;
    assert!(aborted.contains(&(JOB, checkpoint(1, 2))), "{aborted:?}");
}

/// The leader loses both at once: neither is told to stop anything.
fn isolate_both(cluster: &mut Cluster) {
    cluster.deaf.insert("b".to_owned());
    cluster.isolate("a");
    cluster.isolate("b");
    cluster.deaf.clear();
}

#[test]
fn an_attempt_that_was_replaced_out_of_its_reach_is_not_adopted() {
    let mut cluster = checkpointed();
    isolate_both(&mut cluster);
    cluster.join("c", 2);
    cluster.join("d", 2);
    cluster.seconds(3);
    assert_eq!(
        cluster.job(JOB).attempt(TaskId::new(0, 0)),
        Some(attempt(1, 2))
    );
    let committed = cluster.completed(JOB);
    assert!(committed > 1, "the successor has committed");

    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    assert_eq!(cluster.phase(JOB), Phase::Adopting, "not these");
    for name in ["a", "b"] {
        let told = &cluster.task_managers[name];
        assert!(told.tasks.is_empty(), "they are stopped");
        let own = |word: &(_, _)| *word == (JOB, checkpoint(1, 1));
        assert!(
            told.completed.iter().all(own),
            "and told of no commit that is not theirs"
        );
    }
    meet(&mut cluster, &["c", "d"]);
    goes_on(&mut cluster, attempt(1, 2));
}

#[test]
fn an_attempt_is_adopted_when_its_successor_has_committed_nothing() {
    let mut cluster = checkpointed();
    isolate_both(&mut cluster);
    cluster.join("c", 2);
    cluster.join("d", 2);
    cluster.advance(Duration::from_millis(200));
    assert_eq!(cluster.completed(JOB), 1);
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    meet(&mut cluster, &["c", "d"]);
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn an_attempt_that_never_came_into_its_own_is_not_adopted_by_the_leader_after_next() {
    let mut cluster = checkpointed();
    cluster.behaviour.captures_stall = true;
    isolate_both(&mut cluster);
    cluster.join("c", 2);
    cluster.join("d", 2);
    cluster.seconds(1);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1), attempt(1, 2)].into());

    // The next leader meets only those who were cut off, and publishes what they go on to do.
    cluster.behaviour.captures_stall = false;
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    goes_on_as(&mut cluster, attempt(1, 1));

    cluster.restart_jobmanager();
    meet(&mut cluster, &["c", "d"]);
    assert_eq!(
        cluster.phase(JOB),
        Phase::Adopting,
        "though 1.2 is the later"
    );
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    meet(&mut cluster, &["a", "b"]);
    goes_on(&mut cluster, attempt(1, 1));
}

/// The leader means this attempt, whatever else runs unseen.
fn goes_on_as(cluster: &mut Cluster, expected: AttemptId) {
    let current = cluster.job(JOB).attempt(TaskId::new(0, 0));
    assert_eq!(current, Some(expected));
    let before = cluster.completed(JOB);
    cluster.seconds(3);
    assert!(cluster.completed(JOB) > before, "checkpoints go on");
}

#[test]
fn a_region_that_was_deployed_only_partly_starts_again_at_once() {
    let mut cluster = checkpointed();
    // The region fails; the word of it, and of its next attempt, reaches one TaskManager only.
    cluster.deaf.insert("b".to_owned());
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    cluster.advance(Duration::from_millis(100));
    let found: Vec<_> = cluster.attempts(JOB).into_iter().collect();
    assert_eq!(found.len(), 2, "{found:?}");

    cluster.deaf.clear();
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    assert!(cluster.noted("under 2 different attempts"));
    goes_on(&mut cluster, attempt(2, 1));
    assert!(cluster.noted("start from checkpoint 1.1"));
}

#[test]
fn a_region_whose_deployment_is_under_way_is_taken_over_and_gets_to_run() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.behaviour.deployments_stall = true;
    cluster.submit(record(JOB), graph(2, Routing::AllToAll));
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    assert_eq!(cluster.phase(JOB), Phase::Deploying);
    cluster.behaviour.deployments_stall = false;
    cluster.all_tasks(JOB, TaskManager::run);
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn a_deployment_that_was_taken_over_and_never_gets_to_run_is_made_again() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.behaviour.deployments_stall = true;
    cluster.submit(record(JOB), graph(2, Routing::AllToAll));
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    cluster.seconds(599);
    assert_eq!(cluster.phase(JOB), Phase::Deploying);
    cluster.behaviour.deployments_stall = false;
    cluster.seconds(2);
    goes_on(&mut cluster, attempt(2, 1));
}

#[test]
fn a_task_that_failed_while_there_was_no_leader_fails_its_region_as_soon_as_all_is_known() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    cluster.one_task(JOB, TaskId::new(1, 1), TaskManager::fail);
    meet(&mut cluster, &["a", "b"]);
    assert_eq!(cluster.phase(JOB), Phase::Restarting);
    assert!(cluster.noted("task 1/1 (") && cluster.noted("it panicked"));
    assert_eq!(
        cluster.records[&JOB].restarts, 1,
        "it counts like any failure"
    );
    cluster.advance(Duration::from_millis(100));
    goes_on(&mut cluster, attempt(2, 1));
}

#[test]
fn a_job_that_may_not_restart_fails_when_a_task_failed_while_there_was_no_leader() {
    for missing in [false, true] {
        let mut cluster = Cluster::new(&["a", "b"]);
        let mut strict = record(JOB);
        strict.options.restart = RestartStrategy::None;
        cluster.submit(strict, graph(2, Routing::AllToAll));
        cluster.seconds(1);
        cluster.restart_jobmanager();
        let task = *cluster.task_managers["a"].tasks.keys().next().expect("two");
        cluster.one_task(JOB, task.1, TaskManager::fail);
        cluster.connect("a");
        if !missing {
            cluster.connect("b");
        }
        cluster.seconds(4);
        assert_eq!(cluster.phase(JOB), Phase::Failed);
        cluster.connect("b");
        assert!(cluster.attempts(JOB).is_empty());
    }
}

#[test]
fn tasks_that_finished_while_there_was_no_leader_are_finished() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    cluster.all_tasks(JOB, TaskManager::finish);
    cluster.connect("a");
    assert_eq!(cluster.phase(JOB), Phase::Adopting);
    cluster.connect("b");
    assert_eq!(cluster.phase(JOB), Phase::Finished);
}

#[test]
fn one_task_that_finished_while_there_was_no_leader_does_not_end_the_job() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    cluster.one_task(JOB, TaskId::new(0, 1), TaskManager::finish);
    meet(&mut cluster, &["a", "b"]);
    let status = cluster.job(JOB).tasks()[&TaskId::new(0, 1)].status;
    assert_eq!(status, TaskStatus::Finished);
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn a_taskmanager_that_reported_and_then_dies_is_a_failure_as_soon_as_all_is_known() {
    let mut cluster = checkpointed();
    cluster.join("c", 2);
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "c"]);
    cluster.kill("a");
    assert_eq!(cluster.phase(JOB), Phase::Adopting);
    cluster.connect("b");
    assert_eq!(cluster.phase(JOB), Phase::Restarting);
    cluster.advance(Duration::from_millis(100));
    goes_on(&mut cluster, attempt(2, 1));
}

#[test]
fn taskmanagers_that_died_with_the_leader_are_missed_when_the_time_is_over() {
    let mut cluster = checkpointed();
    cluster.join("c", 2);
    cluster.task_managers.remove("a");
    cluster.restart_jobmanager();
    meet(&mut cluster, &["b", "c"]);
    cluster.announce();
    cluster.advance(Duration::from_millis(2999));
    assert_eq!(cluster.phase(JOB), Phase::Adopting, "a part of it runs");
    cluster.advance(Duration::from_millis(1));
    assert!(cluster.noted("2 tasks were not reported"));
    goes_on(&mut cluster, attempt(2, 1));
}

#[test]
fn a_taskmanager_with_a_part_of_a_region_that_comes_late_is_used_again() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    cluster.connect("a");
    cluster.seconds(4);
    assert_eq!(cluster.phase(JOB), Phase::Running, "two slots are enough");
    cluster.connect("b");
    assert!(cluster.task_managers["b"].tasks.is_empty());
    goes_on(&mut cluster, attempt(2, 1));
}

/// A TaskManager claims to run tasks.
fn claim(cluster: &mut Cluster, name: &str, connection: u64, tasks: &[(TaskId, AttemptId)]) {
    let mut registration = TaskManager::new(name, 77, 2).registration();
    registration.running = tasks
        .iter()
        .map(|(task, attempt)| RunningTask {
            job: JOB,
            attempt: *attempt,
            task: *task,
            state: TaskState::Finished,
        })
        .collect();
    cluster.tell(Event::Registering {
        connection: ConnectionId(connection),
        registration,
    });
}

#[test]
fn of_two_reports_of_one_task_the_newer_attempt_counts() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    let all: Vec<TaskId> = cluster.job(JOB).tasks().keys().copied().collect();
    let old: Vec<_> = all[..2].iter().map(|task| (*task, attempt(1, 0))).collect();
    claim(&mut cluster, "x", 900, &old);
    meet(&mut cluster, &["a", "b"]);
    claim(&mut cluster, "y", 901, &old);
    let placed = cluster.job(JOB).placements().values();
    assert!(
        placed
            .into_iter()
            .all(|place| place.0 == "a" || place.0 == "b")
    );
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn the_same_attempt_of_a_task_is_never_believed_of_two() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    cluster.connect("a");
    let task = cluster.task_managers["a"]
        .tasks
        .keys()
        .next()
        .expect("two")
        .1;
    claim(&mut cluster, "x", 900, &[(task, attempt(1, 1))]);
    assert_eq!(cluster.job(JOB).placements()[&task].0, "a");
    cluster.connect("b");
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn a_leader_that_meets_attempts_of_a_later_one_lets_them_be() {
    let mut cluster = checkpointed();
    let before = cluster.attempts(JOB);
    claim(
        &mut cluster,
        "x",
        900,
        &[(TaskId::new(0, 0), attempt(5, 1))],
    );
    assert!(
        cluster.refused[0].contains("succeeded"),
        "{:?}",
        cluster.refused
    );
    assert_eq!(cluster.attempts(JOB), before);
    assert_eq!(
        cluster.job(JOB).attempt(TaskId::new(0, 0)),
        Some(attempt(1, 1))
    );
}

#[test]
fn a_job_that_waited_for_slots_waits_again_as_soon_as_everybody_has_registered() {
    let mut cluster = checkpointed();
    cluster.submit(record(OTHER), graph(4, Routing::AllToAll));
    assert_eq!(cluster.phase(OTHER), Phase::Waiting);
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    cluster.announce();
    assert_eq!(cluster.phase(OTHER), Phase::Adopting);
    cluster.advance(Duration::from_millis(750));
    assert_eq!(cluster.phase(OTHER), Phase::Waiting);
    assert_eq!(cluster.job(OTHER).history().recoveries().count(), 0);
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn a_job_of_which_nothing_is_reported_waits_for_taskmanagers_that_are_announced() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(2, Routing::AllToAll));
    cluster.restart_jobmanager();
    cluster.announce();
    cluster.advance(Duration::from_millis(2900));
    assert_eq!(cluster.phase(JOB), Phase::Adopting);
    meet(&mut cluster, &["a", "b"]);
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn jobs_that_cannot_be_recovered_do_not_hold_up_the_others() {
    let mut cluster = checkpointed();
    cluster.join("c", 2);
    cluster.submit(record(OTHER), graph(1, Routing::AllToAll));
    cluster.seconds(3);
    assert_eq!(cluster.phase(OTHER), Phase::Running);
    // Both checkpoints of the one are gone for good, and with them its TaskManager.
    cluster.metadata_lost.insert(OTHER);
    cluster.kill("c");
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster.seconds(4);
    assert_eq!(cluster.phase(OTHER), Phase::Failed);
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn a_job_whose_graph_is_lost_fails_alone_and_its_tasks_are_stopped() {
    let mut cluster = checkpointed();
    cluster.join("c", 2);
    cluster.submit(record(OTHER), graph(1, Routing::AllToAll));
    cluster.graphs_lost.insert(OTHER);
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b", "c"]);
    assert_eq!(cluster.phase(OTHER), Phase::Failed);
    assert!(cluster.attempts(OTHER).is_empty());
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn a_taskmanager_that_registers_again_before_its_stream_is_missed_does_not_hold_up_a_checkpoint() {
    let mut cluster = checkpointed();
    cluster.deaf.insert("a".to_owned());
    cluster.seconds(1);
    assert_eq!(cluster.completed(JOB), 1, "the word of it got lost");
    cluster.deaf.clear();
    cluster.connect("a");
    cluster.seconds(1);
    assert_eq!(
        cluster.completed(JOB),
        2,
        "and nobody waits for its time to be over"
    );
}

#[test]
fn a_job_whose_checkpoints_are_lost_is_adopted_as_long_as_it_runs() {
    let mut cluster = checkpointed();
    cluster.seconds(2);
    cluster.metadata_lost.insert(JOB);
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    cluster.metadata_lost.clear();
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn a_store_that_does_not_answer_restarts_nothing() {
    let mut cluster = checkpointed();
    cluster.metadata_unavailable = true;
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    cluster.seconds(20);
    assert_eq!(cluster.phase(JOB), Phase::Adopting);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    cluster.metadata_unavailable = false;
    cluster.seconds(1);
    goes_on(&mut cluster, attempt(1, 1));
}

#[test]
fn a_job_whose_end_is_stored_stays_ended_though_its_tasks_are_found_running() {
    let mut cluster = checkpointed();
    cluster.deaf.extend(["a".to_owned(), "b".to_owned()]);
    cluster.cancel(JOB);
    assert_eq!(cluster.phase(JOB), Phase::Cancelled);
    assert!(!cluster.attempts(JOB).is_empty(), "nobody has told them");
    cluster.deaf.clear();
    cluster.restart_jobmanager();
    meet(&mut cluster, &["a", "b"]);
    assert_eq!(cluster.phase(JOB), Phase::Cancelled);
    assert!(cluster.attempts(JOB).is_empty());
    cluster.seconds(20);
    assert!(cluster.attempts(JOB).is_empty());
}

#[test]
fn a_publication_that_the_dead_leader_had_asked_for_is_committed_or_never_was() {
    for lands in [false, true] {
        let mut cluster = checkpointed();
        cluster.publishing = Publishing::Hangs;
        cluster.seconds(1);
        let (job, in_doubt, pointers) = cluster.publications.remove(0);
        if lands {
            cluster.pointers.insert(job, pointers);
        }
        cluster.publishing = Publishing::Works;
        cluster.restart_jobmanager();
        meet(&mut cluster, &["a", "b"]);
        for name in ["a", "b"] {
            let told = cluster.task_managers[name]
                .completed
                .contains(&(JOB, in_doubt));
            assert_eq!(told, lands, "{name}");
        }
        goes_on(&mut cluster, attempt(1, 1));
    }
}

#[test]
fn who_registers_while_a_cancellation_is_being_stored_is_stopped_as_well() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    cluster.records_fail = true;
    cluster.cancel(JOB);
    cluster.connect_all();
    assert_eq!(cluster.phase(JOB), Phase::Cancelling);
    assert_eq!(
        cluster.attempts(JOB).len(),
        1,
        "tasks go on until it is stored"
    );
    cluster.records_fail = false;
    cluster.seconds(2);
    assert_eq!(cluster.phase(JOB), Phase::Cancelled);
    assert!(cluster.attempts(JOB).is_empty(), "nothing runs for ever");
}
