//! What high availability promises, a sentence each.

use std::time::Duration;
use tidemill_core::job::{Phase, TaskStatus};
use tidemill_core::leader::Event;
use tidemill_protocol::control::{TaskState, ToLeader};
use tidemill_protocol::record::{JobState, RestartStrategy};
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

/// A job of four slots on three TaskManagers of two.
fn running() -> Cluster {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    cluster.submit(record(JOB), graph(4, Routing::AllToAll));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster
}

/// It has one completed checkpoint.
fn checkpointed() -> Cluster {
    let mut cluster = running();
    cluster.seconds(1);
    assert_eq!(cluster.completed(JOB), 1);
    cluster
}

fn runs_again(cluster: &mut Cluster) {
    cluster.seconds(5);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let before = cluster.completed(JOB);
    cluster.seconds(3);
    assert!(cluster.completed(JOB) > before, "checkpoints go on");
}

#[test]
fn a_submitted_job_runs_and_checkpoints_each_second() {
    let mut cluster = running();
    assert!(cluster.stored.contains(&JOB));
    cluster.seconds(5);
    assert_eq!(cluster.completed(JOB), 5);
    assert_eq!(
        cluster.pointers[&JOB].completed.len(),
        2,
        "two are retained"
    );
}

#[test]
fn a_job_whose_record_cannot_be_stored_is_refused_and_leaves_nothing() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.records_fail = true;
    cluster.submit(record(JOB), graph(4, Routing::AllToAll));
    assert!(cluster.rejected.contains(&JOB) && cluster.leader.job(JOB).is_none());
}

#[test]
fn a_taskmanager_dies_and_its_tasks_go_back_to_the_last_checkpoint_elsewhere() {
    let mut cluster = checkpointed();
    cluster.kill("a");
    assert_eq!(cluster.phase(JOB), Phase::Restarting);
    assert!(
        cluster.attempts(JOB).is_empty(),
        "survivors are stopped at once"
    );
    cluster.advance(Duration::from_millis(100));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 2)].into());
    let recovery = cluster
        .job(JOB)
        .history()
        .recoveries()
        .next()
        .expect("it is remembered");
    assert_eq!(recovery.checkpoint, Some(checkpoint(1, 1)));
    assert_eq!(recovery.tasks_lost, 4);
    assert_eq!(recovery.tasks_restarted, 8);
    assert_eq!(recovery.timings.module_us, 3);
    assert!(recovery.running_at >= recovery.planned_at && recovery.planned_at.is_some());
    assert_eq!(cluster.records[&JOB].restarts, 1, "counted over leaders");
    runs_again(&mut cluster);
}

#[test]
fn a_taskmanager_dies_before_the_first_checkpoint_and_the_job_begins_anew() {
    let mut cluster = running();
    cluster.kill("b");
    runs_again(&mut cluster);
    let recovery = cluster
        .job(JOB)
        .history()
        .recoveries()
        .next()
        .expect("it is remembered");
    assert_eq!(recovery.checkpoint, None);
}

#[test]
fn a_taskmanager_dies_while_tasks_are_being_deployed() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    cluster.behaviour.deployments_stall = true;
    cluster.submit(record(JOB), graph(4, Routing::AllToAll));
    assert_eq!(cluster.phase(JOB), Phase::Deploying);
    cluster.kill("a");
    cluster.behaviour.deployments_stall = false;
    runs_again(&mut cluster);
}

#[test]
fn a_deployment_that_never_gets_to_run_is_made_again() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.behaviour.deployments_stall = true;
    cluster.submit(record(JOB), graph(4, Routing::AllToAll));
    cluster.seconds(599);
    assert_eq!(cluster.phase(JOB), Phase::Deploying);
    cluster.behaviour.deployments_stall = false;
    cluster.seconds(2);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert!(cluster.noted("8 tasks, 0/0 among them, did not run 600s after their deployment"));
}

#[test]
fn a_taskmanager_dies_while_a_checkpoint_is_in_flight_which_is_given_up() {
    let mut cluster = checkpointed();
    cluster.behaviour.captures_stall = true;
    cluster.seconds(1);
    cluster.kill("a");
    cluster.behaviour.captures_stall = false;
    assert_eq!(cluster.job(JOB).checkpoints().history().failed(), 1);
    runs_again(&mut cluster);
    assert!(cluster.noted("start from checkpoint 1.1"));
}

#[test]
fn two_taskmanagers_die_at_once_and_the_job_waits_until_one_joins() {
    let mut cluster = checkpointed();
    cluster.kill("a");
    cluster.kill("b");
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Waiting);
    assert!(cluster.noted("4 are needed and 2 are free") || cluster.noted("are needed"));
    assert_eq!(
        cluster.records[&JOB].restarts, 1,
        "one incident, one restart"
    );
    cluster.join("d", 2);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    runs_again(&mut cluster);
}

#[test]
fn the_taskmanager_that_took_over_dies_too() {
    let mut cluster = checkpointed();
    cluster.join("d", 4);
    cluster.kill("a");
    cluster.behaviour.deployments_stall = true;
    cluster.advance(Duration::from_millis(100));
    assert_eq!(cluster.phase(JOB), Phase::Deploying);
    cluster.kill("d");
    cluster.behaviour.deployments_stall = false;
    runs_again(&mut cluster);
    assert_eq!(cluster.records[&JOB].restarts, 2);
}

#[test]
fn a_failing_task_restarts_its_region_and_no_other() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(4, Routing::Forward));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster.seconds(1);
    cluster.one_task(JOB, TaskId::new(1, 2), TaskManager::fail);
    assert!(cluster.noted("task 1/2 (") && cluster.noted(") failed on"));
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let attempts = cluster.attempts(JOB);
    assert_eq!(
        attempts,
        [1, 2, 3, 4, 5]
            .map(|counter| attempt(1, counter))
            .into_iter()
            .filter(|id| id.counter != 3)
            .collect()
    );
}

#[test]
fn a_job_whose_restarts_are_used_up_fails_and_is_cleaned_up_once_that_is_stored() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let mut limited = record(JOB);
    limited.options.restart = RestartStrategy::FixedDelay {
        attempts: 1,
        delay_ms: 10,
    };
    cluster.submit(limited, graph(4, Routing::AllToAll));
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::fail);
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster.records_fail = true;
    cluster.one_task(JOB, TaskId::new(0, 1), TaskManager::fail);
    assert_eq!(cluster.phase(JOB), Phase::Ending);
    assert!(!cluster.cleaned.contains(&JOB));
    cluster.records_fail = false;
    cluster.seconds(2);
    assert_eq!(cluster.phase(JOB), Phase::Failed);
    assert!(cluster.cleaned.contains(&JOB) && cluster.attempts(JOB).is_empty());
    let JobState::Failed { reason } = &cluster.records[&JOB].state else {
        panic!("it failed")
    };
    assert!(reason.contains("task 0/1 (") && reason.contains("restarts are used up"));
}

#[test]
fn a_job_waits_for_slots_and_goes_on_when_a_taskmanager_joins() {
    let mut cluster = Cluster::new(&["a"]);
    cluster.submit(record(JOB), graph(4, Routing::AllToAll));
    assert_eq!(cluster.phase(JOB), Phase::Waiting);
    assert!(cluster.noted("4 are needed and 2 are free"));
    cluster.join("b", 2);
    assert_eq!(cluster.phase(JOB), Phase::Running);
}

#[test]
fn a_second_job_waits_for_the_slots_of_the_first() {
    let mut cluster = running();
    cluster.submit(record(OTHER), graph(4, Routing::AllToAll));
    assert_eq!(cluster.phase(OTHER), Phase::Waiting);
    cluster.cancel(JOB);
    assert_eq!(cluster.phase(JOB), Phase::Cancelled);
    assert_eq!(cluster.phase(OTHER), Phase::Running);
}

#[test]
fn what_had_run_goes_on_before_what_is_new_begins() {
    let mut cluster = running();
    cluster.submit(record(OTHER), graph(4, Routing::AllToAll));
    cluster.kill("a");
    cluster.kill("b");
    cluster.seconds(1);
    assert_eq!(
        (cluster.phase(JOB), cluster.phase(OTHER)),
        (Phase::Waiting, Phase::Waiting)
    );
    cluster.join("d", 2);
    assert_eq!(
        (cluster.phase(JOB), cluster.phase(OTHER)),
        (Phase::Running, Phase::Waiting)
    );
}

#[test]
fn the_jobmanager_restarts_and_adopts_what_runs_without_stopping_it() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    assert_eq!(cluster.phase(JOB), Phase::Adopting);
    cluster.connect_all();
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(
        cluster.attempts(JOB),
        [attempt(1, 1)].into(),
        "the same attempt runs on"
    );
    cluster.seconds(2);
    let last = cluster.pointers[&JOB]
        .completed
        .last()
        .expect("checkpoints go on");
    assert_eq!(last.checkpoint.epoch, Epoch(2));
}

#[test]
fn the_last_completion_is_repeated_after_a_jobmanagers_restart() {
    let mut cluster = running();
    cluster.publishing = Publishing::Hangs;
    cluster.seconds(1);
    let (job, checkpoint, pointers) = cluster.publications.remove(0);
    cluster.pointers.insert(job, pointers);
    cluster.publishing = Publishing::Works;
    cluster.restart_jobmanager();
    cluster.connect_all();
    let told = |task_manager: &TaskManager| task_manager.completed.contains(&(JOB, checkpoint));
    assert!(
        cluster
            .task_managers
            .values()
            .all(|one| one.tasks.is_empty() || told(one))
    );
}

#[test]
fn the_jobmanager_restarts_while_a_taskmanager_is_missing_and_recovers_what_is_missing() {
    let mut cluster = checkpointed();
    cluster.task_managers.remove("a");
    cluster.restart_jobmanager();
    cluster.connect_all();
    cluster.seconds(2);
    assert_eq!(cluster.phase(JOB), Phase::Adopting, "it may still come");
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(cluster.attempts(JOB), [attempt(2, 1)].into());
    assert!(cluster.noted("4 tasks were not reported"));
    runs_again(&mut cluster);
}

#[test]
fn only_the_missing_regions_restart_after_a_jobmanagers_restart() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(2, Routing::Forward));
    cluster.seconds(1);
    cluster.task_managers.remove("a");
    cluster.restart_jobmanager();
    cluster.connect_all();
    cluster.seconds(3);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let attempts = cluster.attempts(JOB);
    assert_eq!(attempts.len(), 2);
    assert!(attempts.contains(&attempt(2, 1)), "{attempts:?}");
}

#[test]
fn a_taskmanager_that_comes_too_late_is_told_to_stop_its_old_tasks() {
    let mut cluster = checkpointed();
    cluster.restart_jobmanager();
    cluster.connect("b");
    cluster.connect("c");
    cluster.seconds(4);
    assert_eq!(
        cluster.attempts(JOB).len(),
        2,
        "the old attempt runs on unseen"
    );
    cluster.connect("a");
    assert_eq!(cluster.attempts(JOB), [attempt(2, 1)].into());
}

#[test]
fn a_job_that_was_never_deployed_survives_a_jobmanagers_restart() {
    let mut cluster = Cluster::new(&[]);
    cluster.submit(record(JOB), graph(4, Routing::AllToAll));
    cluster.restart_jobmanager();
    cluster.seconds(4);
    assert_eq!(cluster.phase(JOB), Phase::Waiting);
    cluster.join("a", 4);
    assert_eq!(cluster.phase(JOB), Phase::Running);
}

#[test]
fn tasks_of_jobs_that_nobody_knows_are_stopped() {
    let mut cluster = running();
    cluster.records.clear();
    cluster.restart_jobmanager();
    cluster.connect_all();
    assert!(cluster.attempts(JOB).is_empty());
}

#[test]
fn a_lost_publish_reply_is_resolved_by_reading_back() {
    for lost in [Publishing::ReplyLost, Publishing::WriteLost] {
        let mut cluster = running();
        cluster.publishing = lost;
        cluster.seconds(1);
        assert_eq!(cluster.completed(JOB), 1, "{lost:?}");
        runs_again(&mut cluster);
    }
}

#[test]
fn a_recovery_waits_until_it_is_known_whether_a_checkpoint_is_published() {
    let mut cluster = checkpointed();
    cluster.publishing = Publishing::Hangs;
    cluster.seconds(1);
    cluster.kill("a");
    cluster.seconds(5);
    assert_eq!(
        cluster.phase(JOB),
        Phase::Restarting,
        "an older checkpoint may not be used"
    );
    cluster.publications_land();
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert!(cluster.noted("start from checkpoint 1.2"));
}

#[test]
fn late_and_repeated_words_of_an_old_attempt_change_nothing() {
    let mut cluster = checkpointed();
    cluster.kill("a");
    cluster.seconds(1);
    let before = format!("{:?}", cluster.job(JOB).tasks());
    for state in [
        TaskState::Finished,
        TaskState::Deploying,
        TaskState::Cancelled,
    ] {
        let (task, old) = (TaskId::new(0, 0), attempt(1, 1));
        let message = ToLeader::TaskState {
            job: JOB,
            attempt: old,
            task,
            state,
        };
        cluster.say("b", message.clone());
        cluster.say("b", message);
    }
    assert_eq!(format!("{:?}", cluster.job(JOB).tasks()), before);
    let stranger = ToLeader::TaskState {
        job: JOB,
        attempt: attempt(1, 2),
        task: TaskId::new(77, 0),
        state: TaskState::Finished,
    };
    cluster.say("b", stranger);
    assert_eq!(cluster.phase(JOB), Phase::Running);
}

#[test]
fn running_said_after_finished_does_not_undo_it() {
    let mut cluster = running();
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::finish);
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::run);
    assert_eq!(
        cluster.job(JOB).tasks()[&TaskId::new(0, 0)].status,
        TaskStatus::Finished
    );
}

#[test]
fn a_job_finishes_when_its_final_checkpoint_is_published_and_every_commit_confirmed() {
    let mut cluster = checkpointed();
    cluster.behaviour.commits_stall = true;
    cluster.all_tasks(JOB, TaskManager::finish);
    assert_eq!(cluster.phase(JOB), Phase::Finishing);
    assert_eq!(
        cluster.completed(JOB),
        2,
        "the final checkpoint does not wait for the interval"
    );
    assert_eq!(cluster.records[&JOB].state, JobState::Active);
    for task_manager in ["a", "b", "c"] {
        confirm_commits(&mut cluster, task_manager, checkpoint(1, 2));
    }
    assert_eq!(cluster.phase(JOB), Phase::Finished);
    assert_eq!(cluster.records[&JOB].state, JobState::Finished);
    assert!(cluster.cleaned.contains(&JOB) && cluster.attempts(JOB).is_empty());
}

#[test]
fn a_taskmanager_dies_after_the_final_checkpoint_and_before_its_commit() {
    let mut cluster = running();
    cluster.behaviour.commits_stall = true;
    cluster.all_tasks(JOB, TaskManager::finish);
    cluster.kill("a");
    cluster.behaviour.commits_stall = false;
    cluster.seconds(1);
    assert_eq!(
        cluster.phase(JOB),
        Phase::Running,
        "restored from the final checkpoint"
    );
    cluster.all_tasks(JOB, TaskManager::finish);
    assert_eq!(cluster.phase(JOB), Phase::Finished);
}

fn confirm_commits(cluster: &mut Cluster, task_manager: &str, checkpoint: CheckpointId) {
    let tasks = cluster.task_managers[task_manager].tasks.clone();
    for ((job, task), execution) in tasks {
        let attempt = execution.attempt;
        cluster.say(
            task_manager,
            ToLeader::Committed {
                job,
                attempt,
                task,
                checkpoint,
            },
        );
    }
}

#[test]
fn who_has_confirmed_the_last_commit_is_not_missed_unless_another_has_to_start_again() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.submit(record(JOB), graph(2, Routing::Forward));
    cluster.behaviour.commits_stall = true;
    cluster.all_tasks(JOB, TaskManager::finish);
    confirm_commits(&mut cluster, "b", checkpoint(1, 1));
    cluster.kill("b");
    assert_eq!(cluster.phase(JOB), Phase::Finishing);
    cluster.kill("a");
    cluster.behaviour.commits_stall = false;
    cluster.join("c", 2);
    cluster.seconds(1);
    assert_eq!(
        cluster
            .job(JOB)
            .history()
            .recoveries()
            .next()
            .map(|one| one.tasks_restarted),
        Some(4)
    );
    cluster.all_tasks(JOB, TaskManager::finish);
    assert_eq!(cluster.phase(JOB), Phase::Finished);
}

#[test]
fn a_stream_that_breaks_while_commits_are_confirmed_repeats_the_question() {
    let mut cluster = running();
    cluster.behaviour.commits_stall = true;
    cluster.all_tasks(JOB, TaskManager::finish);
    cluster.break_stream("a");
    cluster.behaviour.commits_stall = false;
    for name in ["a", "b", "c"] {
        cluster.connect(name);
    }
    assert_eq!(cluster.phase(JOB), Phase::Finished);
    assert_eq!(
        cluster.completed(JOB),
        1,
        "no further checkpoint was needed"
    );
}

#[test]
fn a_job_is_cancelled_in_whatever_state_it_is() {
    type Prepare = fn(&mut Cluster);
    let states: [(Phase, Prepare); 5] = [
        (Phase::Running, |_| {}),
        (Phase::Restarting, |cluster| cluster.kill("a")),
        (Phase::Waiting, |cluster| {
            cluster.kill("a");
            cluster.kill("b");
            cluster.seconds(1);
        }),
        (Phase::Deploying, |cluster| {
            cluster.behaviour.deployments_stall = true;
            cluster.kill("a");
            cluster.advance(Duration::from_millis(100));
        }),
        (Phase::Finishing, |cluster| {
            cluster.behaviour.commits_stall = true;
            cluster.all_tasks(JOB, TaskManager::finish);
        }),
    ];
    for (phase, prepare) in states {
        let mut cluster = checkpointed();
        prepare(&mut cluster);
        assert_eq!(cluster.phase(JOB), phase);
        cluster.cancel(JOB);
        assert_eq!(cluster.phase(JOB), Phase::Cancelled, "from {phase:?}");
        assert!(cluster.attempts(JOB).is_empty() && cluster.cleaned.contains(&JOB));
        cluster.seconds(20);
        cluster.cancel(JOB);
        assert_eq!(cluster.phase(JOB), Phase::Cancelled, "for ever");
    }
}

#[test]
fn a_cancelled_publication_is_cleaned_up_only_when_its_outcome_is_known() {
    let mut cluster = running();
    cluster.publishing = Publishing::Hangs;
    cluster.seconds(1);
    cluster.cancel(JOB);
    assert_eq!(cluster.phase(JOB), Phase::Cancelled);
    assert!(!cluster.cleaned.contains(&JOB), "the write may still land");
    cluster.publications_land();
    assert!(cluster.cleaned.contains(&JOB));
}

#[test]
fn a_job_that_was_being_cancelled_is_cancelled_at_take_over() {
    let mut cluster = checkpointed();
    cluster.records.get_mut(&JOB).expect("it is stored").state = JobState::Cancelling;
    cluster.restart_jobmanager();
    assert_eq!(cluster.phase(JOB), Phase::Cancelled);
    cluster.connect_all();
    assert!(cluster.attempts(JOB).is_empty());
}

#[test]
fn an_ended_job_does_not_come_back() {
    let mut cluster = checkpointed();
    cluster.cancel(JOB);
    cluster.restart_jobmanager();
    cluster.connect_all();
    cluster.seconds(10);
    assert_eq!(cluster.phase(JOB), Phase::Cancelled);
    assert!(cluster.attempts(JOB).is_empty());
}

#[test]
fn damaged_metadata_is_found_when_read_and_the_checkpoint_before_is_used_loudly() {
    let mut cluster = running();
    cluster.seconds(3);
    cluster.task_managers.clear();
    cluster.metadata_damaged.insert(checkpoint(1, 3));
    cluster.restart_jobmanager();
    cluster.join("d", 4);
    cluster.seconds(4);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert!(cluster.noted("checkpoint 1.3 cannot be used"));
    assert!(cluster.noted("start from checkpoint 1.2"));
    runs_again(&mut cluster);
}

#[test]
fn a_damaged_image_is_found_by_the_task_and_the_checkpoint_before_is_used() {
    let mut cluster = running();
    cluster.seconds(3);
    cluster.behaviour.damaged.insert(checkpoint(1, 3));
    cluster.kill("a");
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert!(cluster.noted("start from checkpoint 1.2"));
    runs_again(&mut cluster);
}

#[test]
fn an_image_that_turns_out_to_be_damaged_while_its_task_runs_takes_back_what_was_captured_since() {
    let mut cluster = running();
    cluster.seconds(3);
    cluster.kill("a");
    cluster.seconds(1);
    assert!(cluster.noted("start from checkpoint 1.3"));
    assert_eq!(cluster.published(JOB).last(), Some(&checkpoint(1, 4)));
    cluster.behaviour.captures_stall = true;
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::lose_image);
    assert_eq!(cluster.phase(JOB), Phase::Failed, "1.4 is made of 1.3");
    let mut cluster = running();
    cluster.seconds(3);
    cluster.behaviour.captures_stall = true;
    cluster.kill("a");
    cluster.seconds(1);
    cluster.one_task(JOB, TaskId::new(0, 0), TaskManager::lose_image);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert!(cluster.noted("could not be restored to the end: checksum"));
    assert!(cluster.noted("start from checkpoint 1.2"));
    assert_eq!(cluster.records[&JOB].restarts, 1, "the job is not to blame");
    cluster.behaviour.captures_stall = false;
    runs_again(&mut cluster);
}

#[test]
fn a_job_without_a_usable_checkpoint_fails_rather_than_commit_everything_twice() {
    let mut cluster = running();
    cluster.seconds(3);
    cluster
        .behaviour
        .damaged
        .extend([checkpoint(1, 2), checkpoint(1, 3)]);
    cluster.kill("a");
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Failed);
    assert!(cluster.noted("no completed checkpoint is usable"));
}

#[test]
fn a_store_that_fails_fails_checkpoints_and_only_too_many_in_a_row_fail_the_job() {
    let mut cluster = running();
    cluster.metadata_fails = true;
    cluster.seconds(2);
    assert_eq!(cluster.phase(JOB), Phase::Running, "two are tolerated");
    cluster.seconds(1);
    assert!(cluster.noted("too many checkpoints failed in a row"));
    cluster.metadata_fails = false;
    runs_again(&mut cluster);
}

#[test]
fn a_taskmanager_whose_stream_broke_comes_back_and_nothing_restarts() {
    let mut cluster = checkpointed();
    cluster.break_stream("a");
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster.seconds(1);
    cluster.connect("a");
    assert_eq!(cluster.attempts(JOB), [attempt(1, 1)].into());
    runs_again(&mut cluster);
    assert_eq!(cluster.records[&JOB].restarts, 0);
}

#[test]
fn a_taskmanager_whose_stream_broke_and_that_does_not_come_back_is_lost() {
    let mut cluster = checkpointed();
    cluster.break_stream("a");
    cluster.seconds(3);
    assert!(cluster.noted("TaskManager a is lost"));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster.connect("a");
    assert_eq!(
        cluster.attempts(JOB),
        [attempt(1, 2)].into(),
        "its old tasks are stopped"
    );
}

#[test]
fn a_restarted_taskmanager_of_the_same_name_replaces_the_old_one() {
    let mut cluster = checkpointed();
    cluster.join("a", 2);
    assert_eq!(cluster.phase(JOB), Phase::Restarting);
    cluster.seconds(1);
    assert_eq!(cluster.attempts(JOB), [attempt(1, 2)].into());
}

#[test]
fn two_taskmanagers_that_cannot_reach_each_other_are_kept_apart() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    cluster.submit(record(JOB), graph(2, Routing::AllToAll));
    let broken = ToLeader::ChannelBroken {
        job: JOB,
        attempt: attempt(1, 1),
        peer: cluster.task_managers["b"].id.clone(),
        reason: "timed out".into(),
    };
    cluster.say("a", broken.clone());
    cluster.say("a", broken);
    assert_eq!(cluster.phase(JOB), Phase::Running, "a death may explain it");
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let used = |name: &str| !cluster.task_managers[name].tasks.is_empty();
    assert!(
        !(used("a") && used("b")),
        "they are not used together again"
    );
    assert_eq!(cluster.records[&JOB].restarts, 1);
}

#[test]
fn a_broken_channel_that_a_death_explains_is_no_second_failure() {
    let mut cluster = checkpointed();
    let (peer, reason) = (cluster.task_managers["b"].id.clone(), "reset".to_owned());
    cluster.say(
        "a",
        ToLeader::ChannelBroken {
            job: JOB,
            attempt: attempt(1, 1),
            peer,
            reason,
        },
    );
    cluster.kill("b");
    cluster.seconds(2);
    assert_eq!(cluster.records[&JOB].restarts, 1);
    assert_eq!(cluster.phase(JOB), Phase::Running);
}

#[test]
fn survivors_whose_channels_break_because_their_attempt_is_over_are_not_kept_apart() {
    let mut cluster = Cluster::new(&[]);
    for name in ["a", "b", "c"] {
        cluster.join(name, 4);
    }
    cluster.submit(record(JOB), graph(3, Routing::AllToAll));
    cluster.seconds(2);
    let lost = cluster.task_managers["c"].tasks.len();
    cluster.kill("c");
    // The survivors stop the old attempt's tasks one after the other, and their channels with them.
    for (name, peer) in [("a", "b"), ("b", "a")] {
        let (peer, reason) = (cluster.task_managers[peer].id.clone(), "reset".to_owned());
        let (job, attempt) = (JOB, attempt(1, 1));
        cluster.say(
            name,
            ToLeader::ChannelBroken {
                job,
                attempt,
                peer,
                reason,
            },
        );
    }
    cluster.seconds(2);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    assert_eq!(cluster.records[&JOB].restarts, 1);
    assert!(lost > 0 && cluster.noted(&format!("({lost} moved)")));
    let used = |cluster: &Cluster, name: &str| !cluster.task_managers[name].tasks.is_empty();
    assert!(used(&cluster, "a") && used(&cluster, "b"));
    cluster.kill("b");
    cluster.join("b", 4);
    cluster.seconds(2);
    assert!(
        used(&cluster, "a") && used(&cluster, "b"),
        "nobody has a reason to avoid anybody"
    );
}

#[test]
fn a_taskmanager_of_another_configuration_is_refused_with_the_reason() {
    let mut cluster = Cluster::new(&[]);
    let mut registration = TaskManager::new("x", 1, 1).registration();
    registration.cluster_config_hash = 8;
    let connection = tidemill_core::membership::ConnectionId(99);
    cluster.tell(Event::Registering {
        connection,
        registration,
    });
    assert!(cluster.refused[0].contains("[cluster]"));
}

#[test]
fn ended_jobs_are_remembered_up_to_a_bound() {
    let mut cluster = Cluster::new(&["a", "b"]);
    for number in 1..=15 {
        let id = tidemill_protocol::JobId([number; 16]);
        cluster.submit(record(id), graph(1, Routing::AllToAll));
        cluster.cancel(id);
    }
    assert_eq!(cluster.leader.jobs().count(), 10);
    assert_eq!(cluster.records.len(), 10);
}
