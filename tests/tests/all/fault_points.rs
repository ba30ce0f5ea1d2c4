//! A process crashes at every step of making, publishing and deleting a checkpoint, each tried by name: the job ends with
//! exact output, and once it has ended nothing of its checkpoints is left in the store.

use anyhow::Context;
use tidemill_tests::{Cluster, ClusterOptions};

use crate::command_line::{owned, printed, refused};
use crate::common::{REACTION_LIMIT, keyed_count, wait_for_no_leftovers};

/// How long a job without failures takes. It passes every point until it has ended, and its end needs a JobManager.
const JOB_SECONDS: u64 = 2;

/// How long one takes that is asked for something while it runs, after a JobManager has come back.
const LONG_JOB_SECONDS: u64 = 8;

/// Two TaskManagers, so that both have tasks of every job.
fn two_taskmanagers() -> ClusterOptions {
    ClusterOptions {
        task_managers: 2,
        ..ClusterOptions::default()
    }
    .set("checkpoints.interval_ms", 200)
}

/// Starts a process again, which crashes at this point.
fn restart_armed(cluster: &mut Cluster, process: &str, point: &str) -> anyhow::Result<()> {
    cluster.arm(process, point);
    if process == "jobmanager" {
        cluster.jobmanager().kill()?;
        cluster.restart_jobmanager()?;
    } else {
        cluster.taskmanagers()[0].kill()?;
        cluster.restart_taskmanagers()?;
    }
    cluster.disarm();
    Ok(())
}

/// Runs a job on a cluster one of whose processes crashes at this point; it comes back at once.
fn crash_at(cluster: &mut Cluster, process: &str, point: &str) -> anyhow::Result<()> {
    let is_jobmanager = process == "jobmanager";
    let name = point.replace([':', '.'], "-");
    // A TaskManager is to pass the point with tasks that began on it; a JobManager's first deletions may be those of its
    // take-over, while it runs nothing yet.
    if !is_jobmanager {
        restart_armed(cluster, process, point)?;
    }
    let running = keyed_count(cluster, &name, JOB_SECONDS)?;
    if is_jobmanager {
        running
            .job
            .wait_for_checkpoints(cluster, 1, REACTION_LIMIT)?;
        restart_armed(cluster, process, point)?;
    }
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

#[test]
fn the_jobmanager_crashes_at_every_step_of_publishing() -> anyhow::Result<()> {
    crash_at_each(
        "jobmanager",
        &[
            "publish.before-metadata",
            "publish.metadata-written",
            "publish.pointer-written",
            "publish.complete-sent",
        ],
    )
}

#[test]
fn the_jobmanager_crashes_at_every_step_of_deleting() -> anyhow::Result<()> {
    crash_at_each(
        "jobmanager",
        &[
            "delete.listed:2",
            "delete.between-objects:3",
            "delete.done:2",
        ],
    )
}

/// What a crash leaves of a savepoint is none; it can be taken again at the same place, and the job runs on.
#[test]
fn the_jobmanager_crashes_at_every_step_of_writing_a_savepoint() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(two_taskmanagers())?;
    for point in [
        "savepoint.between-objects:2",
        "savepoint.objects-copied",
        "savepoint.written",
    ] {
        crash_at_savepoint(&mut cluster, point).with_context(|| point.to_owned())?;
    }
    cluster.shut_down()
}

fn crash_at_savepoint(cluster: &mut Cluster, point: &str) -> anyhow::Result<()> {
    cluster.arm("jobmanager", point);
    cluster.jobmanager().kill()?;
    cluster.restart_jobmanager()?;
    cluster.wait_for_registration()?;
    cluster.disarm();
    let name = point.replace([':', '.'], "-");
    let running = keyed_count(cluster, &name, LONG_JOB_SECONDS)?;
    running
        .job
        .wait_for_checkpoints(cluster, 2, REACTION_LIMIT)?;
    let words = ["savepoint", running.job.id(), &name];
    let url = cluster.rest().url().to_owned();
    let mut asking = cluster.command(&url, &owned(&words)).spawn()?;
    cluster.wait_for(&format!("the crash at {point}"), REACTION_LIMIT, |it| {
        Ok(it.jobmanager().has_crashed()?.then_some(()))
    })?;
    // It would wait for a JobManager that knows its wish.
    asking.kill()?;
    asking.wait()?;
    cluster.restart_jobmanager()?;
    cluster.wait_for_registration()?;
    // It is there once it is written, and not before.
    if point == "savepoint.written" {
        printed(cluster, &["savepoint", "verify", &name])?;
    } else {
        refused(cluster, &["savepoint", "verify", &name])?;
        printed(cluster, &words)?;
    }
    running.finish(cluster)?;
    wait_for_no_leftovers(cluster, &running.job)
}
