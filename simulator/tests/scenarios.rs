//! The reference scenarios, each with the delays of some seeds.

use tidemill_simulator::run::run;
use tidemill_simulator::scenario::Scenario;

const SEEDS: u64 = 3;

#[track_caller]
fn holds(name: &str) {
    let scenario = Scenario::named(name).expect("the scenario is in the list");
    for seed in 0..SEEDS {
        let report = run(seed, Some(scenario), false);
        assert_eq!(
            report.failure, None,
            "cargo xtask sim --scenario {name} --seed {seed} --step"
        );
        assert!(report.counts.jobs_ended > 0, "a job ran to its end");
    }
}

#[test]
fn a_task_manager_fails_and_its_tasks_go_to_three_others() {
    holds("task-manager-fails");
}

#[test]
fn the_leader_fails_during_that_recovery() {
    holds("leader-fails-during-recovery");
}

#[test]
fn a_reassigned_tasks_new_task_manager_fails_too() {
    holds("replacement-fails-too");
}

#[test]
fn the_leader_is_killed_while_a_checkpoint_completes_and_no_task_notices() {
    holds("leader-killed-while-checkpoint-completes");
}

#[test]
fn the_leader_loses_its_session_while_a_pointer_is_in_doubt_and_no_task_notices() {
    holds("leader-loses-session-with-pointer-in-doubt");
}

#[test]
fn the_leader_is_frozen_beyond_its_session_and_follows_when_it_goes_on() {
    holds("leader-frozen");
}

#[test]
fn a_task_manager_is_frozen_and_stops_what_runs_elsewhere_when_it_goes_on() {
    holds("task-manager-frozen");
}

#[test]
fn tasks_go_on_while_zookeeper_is_away_and_checkpoints_resume_after() {
    holds("zookeeper-away");
}

#[test]
fn a_leader_that_does_not_reach_zookeeper_steps_down_before_another_is_elected() {
    holds("leader-cut-off-from-zookeeper");
}

#[test]
fn a_leader_that_does_not_reach_the_task_managers_gives_way() {
    holds("leader-cut-off-from-task-managers");
}

#[test]
fn a_leader_that_hears_the_task_managers_and_is_not_heard_gives_way() {
    holds("leader-cut-off-asymmetrically");
}

#[test]
fn a_task_manager_that_is_cut_off_commits_nothing_and_stops_when_it_is_back() {
    holds("task-manager-cut-off");
}

#[test]
fn the_leader_and_two_of_three_task_managers_are_killed_and_the_job_recovers_when_they_return() {
    holds("leader-and-two-task-managers-killed");
}

#[test]
fn everything_is_restarted_one_by_one_and_nothing_fails() {
    holds("rolling-restart");
}
