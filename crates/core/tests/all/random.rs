//! A random walk through everything that can happen, from printed seeds. The cluster checks itself after each step; at
//! the end, when nothing goes wrong any more, every job must come to a good end.

use std::time::Duration;
use tidemill_core::job::{Phase, SavepointStatus};
use tidemill_protocol::{Routing, TaskId};

use crate::cluster::{Cluster, Publishing};
use crate::jobs::{JOB, OTHER, graph, record};
use crate::task_manager::TaskManager;

/// SplitMix64: enough randomness for a walk, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) % sides
    }

    fn name(&mut self, cluster: &Cluster) -> Option<String> {
        let count = cluster.task_managers.len() as u64;
        let names = cluster.task_managers.keys();
        (count > 0)
            .then(|| names.clone().nth(self.roll(count) as usize).cloned())
            .flatten()
    }

    fn connected(&mut self, cluster: &Cluster) -> Option<String> {
        self.name(cluster)
            .filter(|name| cluster.task_managers[name].connection.is_some())
    }
}

fn step(cluster: &mut Cluster, dice: &mut Dice) {
    match dice.roll(33) {
        0 => {
            if let Some(name) = dice.name(cluster) {
                cluster.kill(&name);
            }
        }
        1..=3 => {
            let name = format!("tm{}", dice.roll(4));
            let slots = 1 + dice.roll(3) as u32;
            cluster.join(&name, slots);
        }
        4 => {
            if let Some(name) = dice.connected(cluster) {
                cluster.break_stream(&name);
            }
        }
        5 => {
            if let Some(name) = dice.name(cluster) {
                cluster.connect(&name);
            }
        }
        6 => {
            // It dies in the midst of things: some were done, the others and all replies are lost.
            cluster.halt_after = Some(dice.roll(40) as u32);
            cluster.advance(Duration::from_millis(dice.roll(2000)));
            cluster.restart_jobmanager();
            if dice.roll(2) == 0 {
                cluster.connect_all();
            }
        }
        7 => cluster.behaviour.deployments_stall ^= true,
        8 => cluster.behaviour.captures_stall ^= true,
        9 => cluster.behaviour.commits_stall ^= true,
        10 => {
            let ways = [
                Publishing::ReplyLost,
                Publishing::WriteLost,
                Publishing::Hangs,
            ];
            cluster.publishing = ways[dice.roll(3) as usize];
        }
        11 => cluster.publications_land(),
        12 => {
            let task = TaskId::new(dice.roll(2) as u32, dice.roll(3) as u32);
            let job = if dice.roll(2) == 0 { JOB } else { OTHER };
            cluster.one_task(job, task, TaskManager::fail);
        }
        13 => {
            let task = TaskId::new(dice.roll(2) as u32, dice.roll(3) as u32);
            cluster.one_task(JOB, task, TaskManager::finish);
        }
        14 => cluster.records_fail ^= true,
        15 => cluster.metadata_fails ^= true,
        16 => cluster.all_tasks(JOB, TaskManager::run),
        17 => {
            if let Some(name) = dice.name(cluster) {
                cluster.drain(&name);
            }
        }
        18 => drop(cluster.drained_leave()),
        19 => {
            if let Some(name) = dice.connected(cluster) {
                cluster.isolate(&name);
            }
        }
        20 => {
            cluster.depose();
            if dice.roll(2) == 0 {
                cluster.connect_all();
            }
        }
        21 => {
            if let Some(name) = dice.name(cluster) {
                cluster.deposed_acts(&name);
            }
        }
        22 => cluster.announce(),
        23 => cluster.metadata_unavailable ^= true,
        24..=26 => {
            let job = if dice.roll(2) == 0 { JOB } else { OTHER };
            if cluster.leader.job(job).is_some() {
                let stop = dice.roll(6) == 0;
                cluster.savepoint(job, u128::from(dice.roll(1 << 40)), stop);
            }
        }
        27 => cluster.copies_hang = true,
        28 => {
            let failed = Err("no space is left".to_owned());
            let result = if dice.roll(2) == 0 { Ok(1000) } else { failed };
            cluster.copies_end(&result);
        }
        _ => cluster.advance(Duration::from_millis(dice.roll(3000))),
    }
}

/// Nothing goes wrong any more: every job that has not ended runs, finishes and is cleaned up.
fn come_to_rest(cluster: &mut Cluster) {
    cluster.behaviour.deployments_stall = false;
    cluster.behaviour.captures_stall = false;
    cluster.behaviour.commits_stall = false;
    cluster.records_fail = false;
    cluster.metadata_fails = false;
    cluster.metadata_unavailable = false;
    cluster.publications_land();
    cluster.copies_end(&Ok(1000));
    cluster.connect_all();
    cluster.join("enough", 10);
    for job in [JOB, OTHER] {
        cluster.all_tasks(job, TaskManager::run);
    }
    cluster.seconds(30);
    for job in [JOB, OTHER] {
        if cluster.leader.job(job).is_none() {
            assert!(
                !cluster.stored.contains(&job),
                "an acknowledged job is never lost"
            );
            continue;
        }
        // Restored tasks of this world do not remember that they had finished, so ask until it holds.
        for _ in 0..3 {
            cluster.all_tasks(job, TaskManager::finish);
            cluster.seconds(15);
        }
        assert_eq!(cluster.phase(job), Phase::Finished, "{:#?}", cluster.notes);
        for id in cluster.wishes(job) {
            let status = cluster.savepoint_status(job, id);
            let pending = matches!(status, SavepointStatus::InProgress { .. });
            assert!(!pending, "{id} of {job} is {status:?}");
        }
        assert!(cluster.cleaned.contains(&job));
    }
    assert!(
        cluster
            .task_managers
            .values()
            .all(|task_manager| task_manager.tasks.is_empty())
    );
}

#[test]
fn whatever_happens_no_task_runs_twice_no_checkpoint_goes_back_and_every_job_ends_well() {
    let mut savepoints = 0;
    for seed in 0..400 {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let mut cluster = Cluster::new(&["tm0", "tm1"]);
        let mut warm = record(JOB);
        warm.options.standby = seed % 2 == 0;
        cluster.submit(warm, graph(3, Routing::AllToAll));
        cluster.submit(record(OTHER), graph(2, Routing::Forward));
        for _ in 0..120 {
            step(&mut cluster, &mut dice);
        }
        come_to_rest(&mut cluster);
        savepoints += cluster.savepoints.len();
    }
    assert!(savepoints > 400, "{savepoints} were written in all");
}
