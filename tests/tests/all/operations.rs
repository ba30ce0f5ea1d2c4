//! What an operator does with a running cluster: cancel, look, stop processes in order.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::{Cluster, ClusterOptions, Rest};

use crate::common::{JOB_LIMIT, REACTION_LIMIT, keyed_count, word_count};

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

/// The names of the metrics of TaskManagers that are documented: in a table, each in a row's first cell.
fn documented() -> anyhow::Result<BTreeSet<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let names = text.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
        let is_metric = name.starts_with("tidemill_") || name.starts_with("process_");
        is_metric.then(|| name.to_owned())
    });
    Ok(names.collect())
}

#[test]
fn a_taskmanager_tells_prometheus_what_is_documented() -> anyhow::Result<()> {
    let options = ClusterOptions {
        task_managers: 1,
        slots: 4,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start(options.set("taskmanager.metrics_address", "127.0.0.1:0"))?;
    let told = fs::read(cluster.directory().join("tm-1/addresses.json"))?;
    let told: Value = serde_json::from_slice(&told)?;
    let address = told["metrics_address"].as_str().context("an address")?;
    let metrics = Rest::new(address);
    let running = keyed_count(&cluster, "output", 4)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 1, JOB_LIMIT)?;
    let task = format!("{{job=\"{}\",task=\"0/0\"}}", running.job.id());
    let text = cluster.wait_for("the tasks to be told", REACTION_LIMIT, |_| {
        let text = metrics.ask("/metrics")?.text;
        let is_told = text.contains(&format!("task_records_out_total{task}"));
        Ok(is_told.then_some(text))
    })?;
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served: BTreeSet<String> = families
        .filter_map(|family| Some(family.split_once(' ')?.0.to_owned()))
        .collect();
    let documented = documented()?;
    ensure!(
        served == documented,
        "served and not documented: {:?}; documented and not served: {:?}",
        served.difference(&documented),
        documented.difference(&served)
    );
    let value = |sample: &str| -> anyhow::Result<f64> {
        let mut values = text.lines().filter_map(|line| line.strip_prefix(sample));
        let value = values.next().with_context(|| format!("no {sample}"))?;
        Ok(value.trim().parse()?)
    };
    ensure!(value("tidemill_taskmanager_connected ")? == 1.0);
    ensure!(value("tidemill_taskmanager_slots ")? == 4.0);
    let captures = format!("tidemill_taskmanager_task_captures_total{task} ");
    ensure!(value(&captures)? >= 1.0, "{text}");
    running.finish(&mut cluster)?;
    cluster.shut_down()
}
