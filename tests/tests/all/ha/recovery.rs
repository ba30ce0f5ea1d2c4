//! The reference scenarios: three JobManagers and ten TaskManagers, of which the fifth fails; alone, and with what may
//! happen meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidemill_tests::oracle::RollingCounts;
use tidemill_tests::{Cluster, ClusterOptions, RecoveryTable, module, unix_ms};

use crate::common::{REACTION_LIMIT, Running, SESSION};

/// Three tasks of each stage on each TaskManager, which have room for one more.
const PARALLELISM: u32 = 30;
const FIFTH: usize = 4;

struct Task {
    id: String,
    task_manager: String,
    attempt: String,
}

fn tasks(running: &Running) -> anyhow::Result<Vec<Task>> {
    let detail = running.job.detail()?;
    let tasks = detail["tasks_detail"]
        .as_array()
        .context("a job has tasks")?;
    let task = |task: &serde_json::Value| {
        let text = |key: &str| task[key].as_str().unwrap_or_default().to_owned();
        Task {
            id: text("id"),
            task_manager: text("task_manager"),
            attempt: text("attempt"),
        }
    };
    Ok(tasks.iter().map(task).collect())
}

fn start() -> anyhow::Result<(Cluster, Running)> {
    let options = ClusterOptions {
        task_managers: 10,
        slots: 4,
        ..ClusterOptions::highly_available(SESSION)
    };
    let mut cluster = Cluster::start(options)?;
    let (count, keys) = (30_000, 97);
    let output = cluster.directory().join("output");
    let mut arguments = vec!["--parallelism".to_owned(), PARALLELISM.to_string()];
    for (name, value) in [("count", count), ("keys", keys), ("rate", 2_000)] {
        arguments.extend(["--param".to_owned(), format!("{name}={value}")]);
    }
    let parameter = format!("output={}", output.display());
    arguments.extend(["--param".to_owned(), parameter]);
    let running = Running {
        job: cluster.submit(&module("keyed-count")?, &arguments)?,
        output,
        truth: RollingCounts::of_numbers(count, keys),
    };
    running
        .job
        .wait_until(&mut cluster, "running", REACTION_LIMIT)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 2, REACTION_LIMIT)?;
    Ok((cluster, running))
}

fn wait_for_recovery(cluster: &mut Cluster, running: &Running, step: &str) -> anyhow::Result<()> {
    cluster.wait_for(step, REACTION_LIMIT, |_| {
        let detail = running.job.detail()?;
        Ok(detail["recoveries"][0][step].is_u64().then_some(()))
    })
}

fn finish(mut cluster: Cluster, running: &Running, label: &str, at_ms: u64) -> anyhow::Result<()> {
    let detail = running.finish(&mut cluster)?;
    let mut table = RecoveryTable::default();
    table.add(label, at_ms, &detail);
    println!("{table}");
    cluster.shut_down()
}

/// Its tasks go to three others; tasks elsewhere stay where they are.
#[test]
fn task_manager_fails() -> anyhow::Result<()> {
    let (mut cluster, running) = start()?;
    let before = tasks(&running)?;
    let at_ms = unix_ms();
    cluster.taskmanagers()[FIFTH].kill()?;
    wait_for_recovery(&mut cluster, &running, "running_after_us")?;
    let after = tasks(&running)?;
    let mut heirs = BTreeSet::new();
    for (old, new) in before.iter().zip(&after) {
        if old.task_manager == "tm-5" {
            ensure!(old.attempt != new.attempt, "{} is a new attempt", new.id);
            heirs.insert(new.task_manager.clone());
        } else {
            ensure!(
                old.task_manager == new.task_manager,
                "{} ran on {} and stays there, not on {}",
                old.id,
                old.task_manager,
                new.task_manager
            );
        }
    }
    ensure!(
        heirs.len() == 3 && !heirs.contains("tm-5"),
        "its tasks go to three others: {heirs:?}"
    );
    finish(cluster, &running, "TM-5", at_ms)
}

/// The leader dies between the detection and the end of the recovery.
#[test]
fn leader_fails_during_recovery() -> anyhow::Result<()> {
    let (mut cluster, running) = start()?;
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let at_ms = unix_ms();
    cluster.taskmanagers()[FIFTH].kill()?;
    cluster.wait_for("the failure to be noticed", REACTION_LIMIT, |_| {
        let detail = running.job.detail()?;
        Ok(detail["recoveries"][0].is_object().then_some(()))
    })?;
    cluster.jobmanager_at(leader.index).kill()?;
    let next = cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 1, REACTION_LIMIT)?;
    ensure!(
        tasks(&running)?
            .iter()
            .all(|task| task.task_manager != "tm-5"),
        "the leader of epoch {} places nothing where nobody is",
        next.epoch
    );
    finish(cluster, &running, "TM-5, leader", at_ms)
}

/// One of those that took its tasks over dies too, while they are restored or soon after.
#[test]
fn replacement_fails_too() -> anyhow::Result<()> {
    let (mut cluster, running) = start()?;
    let before = tasks(&running)?;
    let mut random = StdRng::seed_from_u64(5);
    let at_ms = unix_ms();
    cluster.taskmanagers()[FIFTH].kill()?;
    wait_for_recovery(&mut cluster, &running, "planned_after_us")?;
    let heir = cluster.wait_for("a new place for a task", REACTION_LIMIT, |_| {
        let after = tasks(&running)?;
        let moved = before.iter().zip(&after).find(|(old, new)| {
            old.task_manager == "tm-5" && !["tm-5", ""].contains(&new.task_manager.as_str())
        });
        Ok(moved.map(|(_, new)| new.task_manager.clone()))
    })?;
    std::thread::sleep(Duration::from_millis(random.random_range(0..30)));
    let index: usize = heir.trim_start_matches("tm-").parse()?;
    cluster.taskmanagers()[index - 1].kill()?;
    finish(cluster, &running, "TM-5, heir", at_ms)
}
