//! A job whose sink computes so long for each record that every channel before it is full: how long its checkpoints take
//! when barriers wait behind all that, and when they don't; and that nothing of it is lost or doubled by a failure.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::oracle::RollingCounts;
use tidemill_tests::{Cluster, ClusterOptions, Job, module};

use crate::common::{REACTION_LIMIT, Running};

/// Rounds that the sink computes for each record: with it the job is about a hundredth as fast as without.
const WORK: u64 = 20_000;

/// How long barriers are waited for.
const ALIGNED_TIMEOUT_MS: u64 = 200;

/// How long the quickest checkpoint may take then. (What else the machine does may hold up one or another.)
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(3);

/// How long one that waits for every barrier may take, which is for all that is on the way to be processed.
const ALIGNED_LIMIT: Duration = Duration::from_secs(120);

/// Checkpoints that are looked at.
const CHECKPOINTS: usize = 5;

const KEYS: u64 = 97;

fn slow_count(
    cluster: &Cluster,
    name: &str,
    count: u64,
    aligned_timeout_ms: u64,
) -> anyhow::Result<Running> {
    let output = cluster.directory().join(name);
    let mut arguments: Vec<String> = ["--parallelism", "2", "--aligned-timeout-ms"]
        .map(str::to_owned)
        .into();
    arguments.push(aligned_timeout_ms.to_string());
    for (parameter, value) in [
        ("count", count.to_string()),
        ("keys", KEYS.to_string()),
        ("work", WORK.to_string()),
        ("output", output.to_string_lossy().into_owned()),
    ] {
        arguments.extend(["--param".to_owned(), format!("{parameter}={value}")]);
    }
    Ok(Running {
        job: cluster.submit(&module("keyed-count")?, &arguments)?,
        output,
        truth: RollingCounts::of_numbers(count, KEYS),
    })
}

/// Completed checkpoints, the oldest first.
fn completed(job: &Job) -> anyhow::Result<Vec<Value>> {
    let checkpoints = job.checkpoints()?;
    let history = checkpoints["history"].as_array().context("a history")?;
    let is_completed = |checkpoint: &&Value| checkpoint["status"] == "completed";
    let mut completed: Vec<Value> = history.iter().filter(is_completed).cloned().collect();
    completed.sort_by_key(|checkpoint| checkpoint["started_at_ms"].as_u64());
    Ok(completed)
}

fn took(checkpoint: &Value) -> anyhow::Result<Duration> {
    let duration_us = checkpoint["duration_us"].as_u64();
    Ok(Duration::from_micros(duration_us.with_context(|| {
        format!("{checkpoint} has no duration")
    })?))
}

fn channel_bytes(checkpoint: &Value) -> u64 {
    checkpoint["channel_bytes"].as_u64().unwrap_or(0)
}

#[test]
fn checkpoints_of_a_job_under_backpressure_are_quick_and_restored_exactly() -> anyhow::Result<()> {
    let options = ClusterOptions::default()
        .set("taskmanager.channel_queue_max_bytes", 64 << 10)
        .set("checkpoints.interval_ms", 500);
    let mut cluster = Cluster::start(options)?;
    let running = slow_count(&cluster, "output", 500_000, ALIGNED_TIMEOUT_MS)?;
    let seen = cluster.wait_for("checkpoints with frames in them", ALIGNED_LIMIT, |_| {
        let unaligned = |checkpoint: &Value| checkpoint["unaligned"] == true;
        let mut completed = completed(&running.job)?;
        completed.retain(|checkpoint| unaligned(checkpoint) && channel_bytes(checkpoint) > 0);
        Ok((completed.len() >= CHECKPOINTS).then_some(completed))
    })?;
    let times = seen.iter().map(took).collect::<anyhow::Result<Vec<_>>>()?;
    let bytes: Vec<u64> = seen.iter().map(channel_bytes).collect();
    println!("unaligned: {times:?}, {bytes:?} bytes of frames");
    ensure!(
        times.iter().min() <= Some(&CHECKPOINT_LIMIT),
        "no checkpoint was quick: {times:?}"
    );
    cluster.taskmanagers()[0].kill()?;
    cluster.restart_taskmanagers()?;
    let detail = running
        .job
        .wait_until(&mut cluster, "finished", ALIGNED_LIMIT)?;
    running.truth.check(&running.output)?;
    let from = detail["recoveries"][0]["checkpoint"].as_str();
    ensure!(from.is_some(), "it went back to a checkpoint: {detail}");
    cluster.shut_down()
}

#[test]
fn a_checkpoint_that_waits_for_every_barrier_waits_for_all_that_is_on_the_way() -> anyhow::Result<()>
{
    let options = ClusterOptions::default()
        .set("taskmanager.channel_queue_max_bytes", 64 << 10)
        .set("checkpoints.timeout_ms", ALIGNED_LIMIT.as_millis())
        .set("checkpoints.interval_ms", 500);
    let mut cluster = Cluster::start(options)?;
    let running = slow_count(&cluster, "output", 3_000_000, 0)?;
    running
        .job
        .wait_until(&mut cluster, "running", REACTION_LIMIT)?;
    let first = cluster.wait_for("an aligned checkpoint", ALIGNED_LIMIT, |_| {
        Ok(completed(&running.job)?.into_iter().find(|checkpoint| {
            // The very first may come before the channels are full. One that takes longer than barriers are waited for
            // elsewhere would have been unaligned there.
            took(checkpoint).is_ok_and(|took| took > Duration::from_millis(ALIGNED_TIMEOUT_MS))
        }))
    })?;
    println!("aligned: {:?}", took(&first)?);
    ensure!(
        channel_bytes(&first) == 0 && first["unaligned"] == false,
        "{first}"
    );
    running.job.cancel(&cluster)?;
    running
        .job
        .wait_until(&mut cluster, "cancelled", REACTION_LIMIT)?;
    cluster.shut_down()
}
