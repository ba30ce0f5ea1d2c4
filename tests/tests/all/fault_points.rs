//! A process crashes at every step of making, publishing and deleting a checkpoint, each tried by name: the job ends with
//! exact output, and once it has ended nothing of its checkpoints is left in the store.

use anyhow::Context;
use tidemill_tests::{Cluster, ClusterOptions};

use crate::common::{REACTION_LIMIT, keyed_count, wait_for_no_leftovers};

/// How long a job without failures takes.
const JOB_SECONDS: u64 = 2;

/// Two TaskManagers, so that both have tasks of every job.
fn two_taskmanagers() -> ClusterOptions {
    ClusterOptions {
        task_managers: 2,
        ..ClusterOptions::default()
    }
    .set("checkpoints.interval_ms", 200)
}

/// Runs a job on a cluster one of whose processes crashes at this point; it comes back at once.
fn crash_at(cluster: &mut Cluster, process: &str, point: &str) -> anyhow::Result<()> {
    let is_jobmanager = process == "jobmanager";
    cluster.arm(process, point);
    if is_jobmanager {
        cluster.jobmanager().kill()?;
        cluster.restart_jobmanager()?;
    } else {
        cluster.taskmanagers()[0].kill()?;
        cluster.restart_taskmanagers()?;
    }
    cluster.wait_for_registration()?;
    cluster.disarm();
    let name = point.replace([':', '.'], "-");
    let running = keyed_count(cluster, &name, JOB_SECONDS)?;
    let what = format!("the crash at {point}");
    cluster.wait_for(&what, REACTION_LIMIT, |cluster| {
        let has_crashed = match is_jobmanager {
            true => cluster.jobmanager().has_crashed()?,
            false => cluster.taskmanagers()[0].has_crashed()?,
        };
        Ok(has_crashed.then_some(()))
    })?;
    if is_jobmanager {
        cluster.restart_jobmanager()?;
    } else {
        cluster.restart_taskmanagers()?;
    }
    running.finish(cluster)?;
    wait_for_no_leftovers(cluster, &running.job)
}

fn crash_at_each(process: &str, points: &[&str]) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(two_taskmanagers())?;
    for point in points {
        crash_at(&mut cluster, process, point).with_context(|| (*point).to_owned())?;
    }
    cluster.shut_down()
}

#[test]
fn a_taskmanager_crashes_at_every_step_of_storing_a_capture() -> anyhow::Result<()> {
    crash_at_each(
        "tm-1",
        &[
            "capture.before-segment:5",
            "capture.segment-written:5",
            "capture.manifest-written:5",
        ],
    )
}
