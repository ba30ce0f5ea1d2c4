//! Connections are cut between hosts that all go on: output stays exact, and the job makes progress wherever a majority
//! can. Each process has a network namespace of its own; without root these tests say so and do nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tidemill_tests::{
    Cluster, ClusterOptions, Leader, Network, OUTSIDE, ZOOKEEPER_HOSTS, commits_ms, unix_ms,
};

use crate::common::{REACTION_LIMIT, SESSION, Watched, watched_count};

const TASK_MANAGERS: [&str; 3] = ["tm-1", "tm-2", "tm-3"];

/// How long the job of a test runs that nothing disturbs.
const JOB_SECONDS: u64 = 14;

fn name(leader: Leader) -> String {
    format!("jm-{}", leader.index + 1)
}

/// A cluster of hosts with a job, if this machine can have one.
fn start() -> anyhow::Result<Option<(Cluster, Watched)>> {
    let options = ClusterOptions {
        has_network: true,
        ..ClusterOptions::highly_available(SESSION)
    };
    let options = options
        .set("cluster.heartbeat_interval_ms", 200)
        .set("cluster.heartbeat_timeout_ms", 2_000);
    let Some(mut cluster) = Cluster::try_start(options)? else {
        return Ok(None);
    };
    let host = cluster.network().address(OUTSIDE)?;
    let watched = watched_count(&cluster, "output", JOB_SECONDS, &host)?;
    watched.settle(&mut cluster)?;
    Ok(Some((cluster, watched)))
}

/// Waits until another JobManager leads and has completed a checkpoint, and says how long that took since the cut.
fn another_leads(
    cluster: &mut Cluster,
    watched: &Watched,
    old: Leader,
    at: Instant,
) -> anyhow::Result<Leader> {
    let at_ms = unix_ms() - u64::try_from(at.elapsed().as_millis())?;
    let new = cluster.wait_for("another leader", REACTION_LIMIT, |cluster| {
        let leader = cluster.leader();
        Ok(leader.filter(|leader| leader.epoch > old.epoch && leader.index != old.index))
    })?;
    let leads = at
        .elapsed()
        .saturating_sub(Duration::from_millis(new.leading_for_ms));
    let done_ms = watched.wait_for_checkpoint(cluster, new.epoch, 0, REACTION_LIMIT)?;
    println!(
        "another leader {} ms and its first checkpoint {} ms after the cut; {}",
        leads.as_millis(),
        done_ms.saturating_sub(at_ms),
        watched.receiver.gaps(at, Instant::now())
    );
    Ok(new)
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

/// Cuts the leader off as `cut` says; another leads, and no task notices.
fn leader_is_replaced_and_no_task_notices(
    cut: impl Fn(&Network, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start()? else {
        return Ok(());
    };
    let before = watched.attempts()?;
    let old = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let at = Instant::now();
    cut(cluster.network(), &name(old))?;
    another_leads(&mut cluster, &watched, old, at)?;
    ensure!(
        cluster.leads(old.index).is_none(),
        "the old leader has stepped down"
    );
    watched.nothing_moved(&before, "after the hand-over")?;
    heal_and_finish(cluster, &watched)
}

/// The old leader, which can still speak to every TaskManager, has no say.
#[test]
fn leader_cut_off_from_zookeeper() -> anyhow::Result<()> {
    leader_is_replaced_and_no_task_notices(|network, leader| {
        ZOOKEEPER_HOSTS
            .iter()
            .try_for_each(|server| network.cut(leader, server))
    })
}

/// The leader hears from ZooKeeper and is not heard there: it cannot prove anything, so it steps down.
#[test]
fn leader_hears_zookeeper_and_is_not_heard() -> anyhow::Result<()> {
    leader_is_replaced_and_no_task_notices(|network, leader| {
        ZOOKEEPER_HOSTS
            .iter()
            .try_for_each(|server| network.cut_one_way(leader, server))
    })
}

/// The leader and one server of three are on the wrong side: the majority elects another.
#[test]
fn leader_cut_off_with_a_minority_of_zookeeper() -> anyhow::Result<()> {
    leader_is_replaced_and_no_task_notices(|network, leader| {
        let (alone, majority) = ZOOKEEPER_HOSTS.split_first().context("three")?;
        let others = majority.iter().copied().chain(TASK_MANAGERS);
        let others = others.chain(
            ["jm-1", "jm-2", "jm-3"]
                .into_iter()
                .filter(|it| *it != leader),
        );
        others.into_iter().try_for_each(|other| {
            network.cut(alone, other)?;
            network.cut(leader, other)
        })
    })
}

/// Cuts the leader off from every TaskManager as `cut` says; it makes way for another.
fn leader_makes_way(
    cut: impl Fn(&Network, &str, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start()? else {
        return Ok(());
    };
    let old = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let at = Instant::now();
    for task_manager in TASK_MANAGERS {
        cut(cluster.network(), &name(old), task_manager)?;
    }
    another_leads(&mut cluster, &watched, old, at)?;
    heal_and_finish(cluster, &watched)
}

/// The leader is fine by ZooKeeper and useless to the job.
#[test]
fn leader_cut_off_from_task_managers() -> anyhow::Result<()> {
    leader_makes_way(Network::cut)
}

/// No TaskManager hears the leader, which hears all of them.
#[test]
fn leader_cut_off_asymmetrically() -> anyhow::Result<()> {
    leader_makes_way(Network::cut_one_way)
}

/// Waits until a recovery is over and a checkpoint after it complete; says how long that took since the cut.
fn recovered(cluster: &mut Cluster, watched: &Watched, at: Instant) -> anyhow::Result<()> {
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    cluster.wait_for("the tasks to run again", REACTION_LIMIT, |_| {
        let detail = watched.running.job.detail()?;
        let recovery = &detail["recoveries"][0]["running_after_us"];
        Ok(recovery.is_u64().then_some(()))
    })?;
    let running = at.elapsed();
    let since_ms = unix_ms();
    watched.wait_for_checkpoint(cluster, leader.epoch, since_ms, REACTION_LIMIT)?;
    println!("recovered {} ms after the cut", running.as_millis());
    Ok(())
}

/// Its tasks run elsewhere; what it still does by itself, and what it says when it comes back, changes nothing.
#[test]
fn task_manager_cut_off() -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start()? else {
        return Ok(());
    };
    let at = Instant::now();
    cluster.network().isolate("tm-2")?;
    recovered(&mut cluster, &watched, at)?;
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
    let Some((mut cluster, watched)) = start()? else {
        return Ok(());
    };
    let at = Instant::now();
    cluster.network().cut("tm-1", "tm-2")?;
    recovered(&mut cluster, &watched, at)?;
    heal_and_finish(cluster, &watched)
}

/// Everybody is alone: nothing can be decided and nothing is committed; then everybody is back.
#[test]
fn everybody_cut_off_from_everybody() -> anyhow::Result<()> {
    let Some((mut cluster, watched)) = start()? else {
        return Ok(());
    };
    let hosts: Vec<String> = cluster.network().hosts().map(str::to_owned).collect();
    for host in &hosts {
        cluster.network().isolate(host)?;
    }
    let (from, from_ms) = (Instant::now(), unix_ms());
    let quiet = SESSION * 3;
    cluster.wait_for("three sessions to pass", REACTION_LIMIT, |_| {
        Ok((from.elapsed() >= quiet).then_some(()))
    })?;
    let back_ms = unix_ms();
    // What had been decided before is shown soon after, by a machine that is busy too.
    let since_ms = from_ms + u64::try_from((SESSION * 2).as_millis())?;
    let commits = commits_ms(&watched.running.output)?;
    ensure!(
        !commits.iter().any(|ms| (since_ms..back_ms).contains(ms)),
        "nothing is committed that nobody could decide"
    );
    heal_and_finish(cluster, &watched)
}
