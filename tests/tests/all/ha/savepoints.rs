//! The leader dies while it writes a savepoint, and another takes over: whoever asked hears what became of it, nothing half
//! is shown as a savepoint, and the job goes on.

use anyhow::{Context, ensure};
use tidemill_tests::{Cluster, ClusterOptions, Leader};

use crate::command_line::{Background, printed, refused, says, text};
use crate::common::{REACTION_LIMIT, SESSION, keyed_count, wait_for_no_leftovers};

/// How long the job runs: long enough for another leader, and to be asked again.
const JOB_SECONDS: u64 = 10;

/// The exit code of a verb that did not come to its end.
const FAILED: Option<i32> = Some(1);

/// Of two JobManagers the one that does not lead is started again, to crash at this point, and made the leader; the other
/// stands by. Returns who leads, and the other's index.
fn let_lead_until(cluster: &mut Cluster, point: &str) -> anyhow::Result<(Leader, usize)> {
    let old = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let next = 1 - old.index;
    cluster.arm(&format!("jm-{}", next + 1), point);
    cluster.jobmanager_at(next).kill()?;
    cluster.restart_jobmanager_at(next)?;
    cluster.disarm();
    cluster.jobmanager_at(old.index).kill()?;
    let armed = cluster.wait_for_leader(old.epoch, REACTION_LIMIT)?;
    cluster.restart_jobmanager_at(old.index)?;
    cluster.wait_for_registration()?;
    Ok((armed, old.index))
}

/// Takes a savepoint of a job while the leader crashes at this point of it.
fn take_over_at(cluster: &mut Cluster, point: &str, is_written: bool) -> anyhow::Result<()> {
    let (armed, other) = let_lead_until(cluster, point)?;
    let name = point.replace([':', '.'], "-");
    let running = keyed_count(cluster, &name, JOB_SECONDS)?;
    running
        .job
        .wait_for_checkpoints(cluster, 1, REACTION_LIMIT)?;
    let path = format!("savepoints/{name}");
    let words = ["savepoint", running.job.id(), &path];
    let url = cluster.rest().at(other).url().to_owned();
    let asking = Background::start(cluster, &url, &words)?;
    cluster.wait_for("the leader to crash", REACTION_LIMIT, |cluster| {
        let has_crashed = cluster.jobmanager_at(armed.index).has_crashed()?;
        Ok(has_crashed.then_some(()))
    })?;
    cluster.wait_for_leader(armed.epoch, REACTION_LIMIT)?;
    cluster.wait_for_registration()?;

    let answer = asking.wait(cluster)?;
    let said = text(&answer);
    if is_written {
        ensure!(answer.status.success(), "{}: {said}", answer.status);
        says(&said, &[&path, "does not lead any more"])?;
    } else {
        ensure!(answer.status.code() == FAILED, "{}: {said}", answer.status);
        says(&said, &["an earlier leader is dropped", "ask again"])?;
        refused(cluster, &["savepoint", "verify", &path])?;
        let listed = printed(cluster, &["savepoint", "list"])?;
        let is_half = |line: &str| line.contains(&path) && line.contains("incomplete");
        ensure!(
            listed.lines().any(is_half),
            "a half of one is shown as what it is: {listed}"
        );
        // What is left of it does not stand in the way.
        printed(cluster, &words)?;
    }
    printed(cluster, &["savepoint", "verify", &path])?;
    let listed = printed(cluster, &["savepoint", "list"])?;
    ensure!(listed.contains(&path), "it is one: {listed}");

    cluster.restart_jobmanager_at(armed.index)?;
    running.finish(cluster)?;
    wait_for_no_leftovers(cluster, &running.job)
}

#[test]
fn leader_fails_while_it_writes_a_savepoint() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions {
        job_managers: 2,
        ..ClusterOptions::highly_available(SESSION)
    })?;
    for (point, is_written) in [
        ("savepoint.between-objects:2", false),
        ("savepoint.written", true),
    ] {
        take_over_at(&mut cluster, point, is_written).with_context(|| point.to_owned())?;
    }
    cluster.shut_down()
}
