//! Checkpoints of a job whose sink is slow: barriers stand behind records that wait, and what is on the way becomes part
//! of the checkpoint.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tidemill_tests::oracle::RollingCounts;
use tidemill_tests::{Cluster, ClusterOptions, Job, Receiver, module};

use crate::common::{JOB_LIMIT, REACTION_LIMIT, Running, arguments};

/// What the receiver takes of each of the sink's connections in a second: a hundredth of what they could send.
const SLOW_BYTES_PER_SECOND: u64 = 20_000;

/// How long a checkpoint may take behind such a sink.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(2);

/// Completed checkpoints that did not wait for every barrier, and the longest of those that began after `since_ms`.
fn unaligned(job: &Job, since_ms: u64) -> anyhow::Result<Vec<Value>> {
    let checkpoints = job.checkpoints()?;
    let history = checkpoints["history"].as_array().context("a history")?;
    let counts = |checkpoint: &&Value| {
        checkpoint["status"] == "completed"
            && checkpoint["unaligned"] == true
            && checkpoint["channel_bytes"].as_u64() > Some(0)
            && checkpoint["started_at_ms"].as_u64() >= Some(since_ms)
    };
    Ok(history.iter().filter(counts).cloned().collect())
}

#[test]
fn checkpoints_complete_behind_a_slow_sink_and_restore_exactly() -> anyhow::Result<()> {
    let options = ClusterOptions::default()
        .set("taskmanager.channel_queue_max_bytes", 16 << 10)
        .set("checkpoints.aligned_timeout_ms", 200);
    let mut cluster = Cluster::start(options)?;
    let receiver = Receiver::listen_slowly("127.0.0.1", SLOW_BYTES_PER_SECOND)?;
    let (count, keys) = (200_000, 97);
    let output = cluster.directory().join("output");
    let parameters = [
        ("count", count.to_string()),
        ("keys", keys.to_string()),
        ("output", output.to_string_lossy().into_owned()),
        ("socket", receiver.address().to_owned()),
    ];
    let running = Running {
        job: cluster.submit(&module("keyed-count")?, &arguments(&parameters))?,
        output,
        truth: RollingCounts::of_numbers(count, keys),
    };
    let limit_us = CHECKPOINT_LIMIT.as_micros() as u64;
    let first = cluster.wait_for("frames in a checkpoint", REACTION_LIMIT, |_| {
        Ok(unaligned(&running.job, 0)?.pop())
    })?;
    let since_ms = first["started_at_ms"].as_u64().context("a time")? + 1;
    cluster.wait_for("three more, none of them slow", REACTION_LIMIT, |_| {
        let later = unaligned(&running.job, since_ms)?;
        let durations = later.iter().filter_map(|it| it["duration_us"].as_u64());
        let quick = durations.filter(|us| *us <= limit_us).count();
        Ok((quick >= 3).then_some(()))
    })?;
    cluster.taskmanagers()[1].kill()?;
    cluster.restart_taskmanagers()?;
    running
        .job
        .wait_until(&mut cluster, "running", REACTION_LIMIT)?;
    receiver.hurry();
    let detail = running
        .job
        .wait_until(&mut cluster, "finished", JOB_LIMIT)?;
    running.truth.check(&running.output)?;
    anyhow::ensure!(
        detail["recoveries"]
            .as_array()
            .is_some_and(|all| !all.is_empty()),
        "the job went back to such a checkpoint: {detail}"
    );
    cluster.shut_down()
}
