//! Connections are cut between hosts that all go on: output stays exact, and the job makes progress wherever a majority
//! can. Each process has a network namespace of its own; without root these tests say so and do nothing.

use anyhow::{Context, ensure};
use tidemill_tests::{Cluster, ClusterOptions, Leader, OUTSIDE, ZOOKEEPER_HOST, unix_ms};

use crate::common::{REACTION_LIMIT, SESSION, Watched, watched_count};

const TASK_MANAGERS: [&str; 3] = ["tm-1", "tm-2", "tm-3"];

fn name(leader: Leader) -> String {
    format!("jm-{}", leader.index + 1)
}

/// A cluster of hosts with a job, if this machine can have one.
fn start(seconds: u64) -> anyhow::Result<Option<(Cluster, Watched)>> {
    let options = ClusterOptions {
        has_network: true,
        ..ClusterOptions::highly_available(SESSION)
    };
    let options = options
        .set("cluster.heartbeat_interval_ms", 200)
        .set("cluster.heartbeat_timeout_ms", 1_500);
    let Some(mut cluster) = Cluster::try_start(options)? else {
        return Ok(None);
    };
    let host = cluster.network().address(OUTSIDE)?;
    let watched = watched_count(&cluster, "output", seconds, &host)?;
    watched.settle(&mut cluster)?;
    Ok(Some((cluster, watched)))
}

/// Heals everything; the job finishes, and its output is exact.
fn heal_and_finish(mut cluster: Cluster, watched: &Watched) -> anyhow::Result<()> {
    cluster.network().heal()?;
    cluster
        .wait_for_registration()
        .context("after the healing")?;
    watched.running.finish(&mut cluster)?;
    cluster.shut_down()
}

/// Another leads, and the old leader, which can still speak to every TaskManager, has no say.
#[test]
fn leader_cut_off_from_zookeeper() -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start(20)? else {
        return Ok(());
    };
    let before = watched.attempts()?;
    let old = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    cluster.network().cut(&name(old), ZOOKEEPER_HOST)?;
    let new = cluster.wait_for_leader(old.epoch, REACTION_LIMIT)?;
    watched.wait_for_checkpoint(&mut cluster, new.epoch, 0, REACTION_LIMIT)?;
    ensure!(
        cluster.leads(old.index).is_none(),
        "the old leader has stepped down"
    );
    watched.nothing_moved(&before, "after the hand-over")?;
    heal_and_finish(cluster, &watched)
}

/// The leader hears from ZooKeeper and is not heard there: it cannot prove anything, so it steps down.
#[test]
fn leader_hears_zookeeper_and_is_not_heard() -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start(20)? else {
        return Ok(());
    };
    let before = watched.attempts()?;
    let old = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    cluster.network().cut_one_way(&name(old), ZOOKEEPER_HOST)?;
    let new = cluster.wait_for_leader(old.epoch, REACTION_LIMIT)?;
    watched.wait_for_checkpoint(&mut cluster, new.epoch, 0, REACTION_LIMIT)?;
    watched.nothing_moved(&before, "after the hand-over")?;
    heal_and_finish(cluster, &watched)
}

/// The leader is fine by ZooKeeper and useless to the job: it makes way for another.
#[test]
fn leader_cut_off_from_task_managers() -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start(30)? else {
        return Ok(());
    };
    let old = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    for task_manager in TASK_MANAGERS {
        cluster.network().cut(&name(old), task_manager)?;
    }
    let new = cluster.wait_for("another leader", REACTION_LIMIT, |cluster| {
        let leader = cluster.leader();
        Ok(leader.filter(|leader| leader.index != old.index))
    })?;
    watched.wait_for_checkpoint(&mut cluster, new.epoch, 0, REACTION_LIMIT)?;
    heal_and_finish(cluster, &watched)
}

/// The leader hears every TaskManager, and none hears it.
#[test]
fn leader_cut_off_asymmetrically() -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start(30)? else {
        return Ok(());
    };
    let old = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    for task_manager in TASK_MANAGERS {
        cluster.network().cut_one_way(&name(old), task_manager)?;
    }
    let new = cluster.wait_for("another leader", REACTION_LIMIT, |cluster| {
        let leader = cluster.leader();
        Ok(leader.filter(|leader| leader.index != old.index))
    })?;
    watched.wait_for_checkpoint(&mut cluster, new.epoch, 0, REACTION_LIMIT)?;
    heal_and_finish(cluster, &watched)
}

/// Its tasks run elsewhere; what it still does by itself, and what it says when it comes back, changes nothing.
#[test]
fn task_manager_cut_off() -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start(20)? else {
        return Ok(());
    };
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    cluster.network().isolate("tm-2")?;
    cluster.wait_for("the tasks to run elsewhere", REACTION_LIMIT, |_| {
        let detail = watched.running.job.detail()?;
        Ok(detail["recoveries"][0]["running_after_us"]
            .is_u64()
            .then_some(()))
    })?;
    let cut_off_ms = unix_ms();
    watched.wait_for_checkpoint(&mut cluster, leader.epoch, cut_off_ms, REACTION_LIMIT)?;
    ensure!(
        !watched
            .attempts()?
            .iter()
            .any(|task| task.ends_with("tm-2")),
        "nothing is placed where nobody answers"
    );
    heal_and_finish(cluster, &watched)
}

/// Two TaskManagers do not reach each other, while the leader and ZooKeeper reach both.
#[test]
fn two_task_managers_cut_off_from_each_other() -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start(20)? else {
        return Ok(());
    };
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    cluster.network().cut("tm-1", "tm-2")?;
    cluster.wait_for("the region to restart", REACTION_LIMIT, |_| {
        let detail = watched.running.job.detail()?;
        Ok(detail["recoveries"][0]["running_after_us"]
            .is_u64()
            .then_some(()))
    })?;
    let apart_ms = unix_ms();
    watched.wait_for_checkpoint(&mut cluster, leader.epoch, apart_ms, REACTION_LIMIT)?;
    heal_and_finish(cluster, &watched)
}
