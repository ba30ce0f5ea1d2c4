//! What an operator does with a running cluster: cancel, look, stop processes in order.

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::{Cluster, ClusterOptions};

use crate::common::{JOB_LIMIT, REACTION_LIMIT, word_count};

#[test]
fn a_cancelled_job_ends_and_frees_its_slots() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let running = word_count(&cluster, "output", 30)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 1, JOB_LIMIT)?;
    running.job.cancel(&cluster)?;
    running
        .job
        .wait_until(&mut cluster, "cancelled", REACTION_LIMIT)?;
    let slots: u64 = 6;
    cluster.wait_for("every slot to be free", REACTION_LIMIT, |cluster| {
        let health = cluster.rest().get("/health")?;
        Ok((health["slots_free"].as_u64() == Some(slots)).then_some(()))
    })?;
    let output = cluster.run(&["cancel".to_owned(), running.job.id().to_owned()])?;
    ensure!(
        !output.status.success(),
        "a job that has ended cannot be cancelled"
    );
    cluster.shut_down()
}

/// A TaskManager that is told to end hands its tasks over; nothing is lost by it.
#[test]
fn a_taskmanager_that_is_stopped_in_order_costs_nothing() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let running = word_count(&cluster, "output", 4)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 2, JOB_LIMIT)?;
    let status = cluster.taskmanagers()[2].terminate(REACTION_LIMIT)?;
    ensure!(status.success(), "it ended with {status}");
    running.finish(&mut cluster)?;
    cluster.shut_down()
}

#[test]
fn a_jobmanager_that_is_stopped_in_order_leaves_the_tasks_running() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let running = word_count(&cluster, "output", 5)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 1, JOB_LIMIT)?;
    let status = cluster.jobmanager().terminate(REACTION_LIMIT)?;
    ensure!(status.success(), "it ended with {status}");
    cluster.restart_jobmanager()?;
    let detail = running.finish(&mut cluster)?;
    ensure!(
        detail["recoveries"].as_array().is_none_or(Vec::is_empty),
        "{}",
        detail["recoveries"]
    );
    cluster.shut_down()
}

#[test]
fn every_view_answers_in_text_and_json() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let running = word_count(&cluster, "output", 4)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 1, JOB_LIMIT)?;
    let id = running.job.id();
    for verb in [
        vec!["list"],
        vec!["nodes"],
        vec!["info", id],
        vec!["checkpoints", id],
        vec!["logs", id],
    ] {
        for format in ["text", "json"] {
            let mut arguments: Vec<String> = verb.iter().map(|word| (*word).to_owned()).collect();
            arguments.extend(["--output".to_owned(), format.to_owned()]);
            let output = cluster.run(&arguments)?;
            let printed = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "{arguments:?}: {output:?}");
            if format == "json" && verb[0] != "logs" {
                serde_json::from_str::<Value>(&printed)
                    .with_context(|| format!("{arguments:?}: {printed}"))?;
            }
        }
    }
    for path in ["/health", "/v1/jobs", "/v1/nodes", "/v1/openapi.json"] {
        cluster.rest().get(path)?;
    }
    let metrics = cluster.rest().ask("/metrics")?;
    ensure!(
        metrics.status == 200 && metrics.text.contains("# TYPE"),
        "{}",
        metrics.text
    );
    running.finish(&mut cluster)?;
    cluster.shut_down()
}
