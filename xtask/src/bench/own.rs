//! One run of one job on a cluster of our own: started for it, measured from outside, and killed.
//!
//! It never asks a process what it cost: processor time and memory are the kernel's figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::place::unix_ms;
use super::row::{Figures, Row};
use super::statistics::{mean, percentile};
use crate::cluster::Cluster;
use crate::cluster::process::{Process, machine_processor_time};
use crate::cluster::rest::{list, number, text};
use crate::interrupt;

/// How long the first record may take.
const FIRST_RECORD_LIMIT: Duration = Duration::from_secs(30);

/// How often TaskManagers report what they have done: the grain of the first record's time.
const REPORT_INTERVAL_MS: &str = "50";

/// How often checkpoints are collected; their history is bounded.
const COLLECT_EVERY: Duration = Duration::from_secs(5);

/// What it takes to run a row.
pub(super) struct Bench {
    /// The binary.
    pub(super) tidemill: PathBuf,
    /// The module with all the jobs in it.
    pub(super) module: PathBuf,
    /// Where each run gets a new directory.
    pub(super) directory: PathBuf,
    /// From the first record to the beginning of the measurement.
    pub(super) warm_up: Duration,
    /// How long it is measured.
    pub(super) steady: Duration,
}

impl Bench {
    /// Runs a row.
    pub(super) fn run(&self, row: &Row) -> anyhow::Result<Figures> {
        let name = format!(
            "{}-p{}-tm{}",
            row.job, row.shape.parallelism, row.shape.taskmanagers
        );
        let directory = self.directory.join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let figures = self
            .measure(row, &directory)
            .with_context(|| format!("{row}: logs are in {}", directory.display()))?;
        // The logs stay; images may be large.
        let _ = fs::remove_dir_all(directory.join("store"));
        Ok(figures)
    }

    fn measure(&self, row: &Row, directory: &Path) -> anyhow::Result<Figures> {
        let settings = [
            ("checkpoints.interval_ms", "1000"),
            ("jobmanager.report_interval_ms", REPORT_INTERVAL_MS),
        ];
        let mut cluster = Cluster::start(&self.tidemill, directory, &settings)?;
        for number in 1..=row.shape.taskmanagers {
            cluster.start_taskmanager(&format!("tm-{number}"), row.shape.slots)?;
        }
        cluster.wait_for_taskmanagers()?;
        let idle_mib = memory_mib(cluster.processes(), "VmRSS")?;

        let submitted = Instant::now();
        let parallelism = row.shape.parallelism.to_string();
        let parameter = format!("job={}", row.job);
        let arguments = ["--parallelism", &parallelism, "--param", &parameter];
        let job = cluster.submit(&self.module, &arguments)?;
        interrupt::wait_for("the first record", FIRST_RECORD_LIMIT, || {
            cluster.check()?;
            Ok((records(&cluster, &job)? > 0).then_some(()))
        })?;
        let first_record_s = submitted.elapsed().as_secs_f64();
        interrupt::pause(self.warm_up)?;

        let before = Sample::take(&cluster, &job)?;
        let mut checkpoints = BTreeMap::new();
        let end = Instant::now() + self.steady;
        while Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            interrupt::pause(left.min(COLLECT_EVERY))?;
            cluster.check()?;
            collect(&cluster.checkpoints(&job)?, before.at_ms, &mut checkpoints)?;
        }
        let after = Sample::take(&cluster, &job)?;
        let durations: Vec<f64> = checkpoints.into_values().collect();
        Ok(Figures {
            idle_mib,
            first_record_s,
            jobmanager_mib: memory_mib([cluster.jobmanager()], "VmHWM")?,
            taskmanagers_mib: memory_mib(cluster.taskmanagers(), "VmHWM")?,
            checkpoint_ms: mean(&durations),
            checkpoint_p99_ms: percentile(durations, 99),
            ..after.since(&before)?
        })
    }
}

/// The counters at one time.
pub(super) struct Sample {
    at: Instant,
    pub(super) at_ms: u64,
    records: u64,
    processes: Duration,
    machine: Duration,
}

impl Sample {
    pub(super) fn take(cluster: &Cluster, job: &str) -> anyhow::Result<Self> {
        let mut processes = Duration::ZERO;
        for process in cluster.processes() {
            processes += process.processor_time()?;
        }
        Ok(Self {
            at: Instant::now(),
            at_ms: unix_ms(),
            records: records(cluster, job)?,
            processes,
            machine: machine_processor_time()?,
        })
    }

    /// Rate and processor time since an earlier sample; the other figures are 0.
    pub(super) fn since(&self, before: &Self) -> anyhow::Result<Figures> {
        let seconds = (self.at - before.at).as_secs_f64();
        let records = self.records.saturating_sub(before.records) as f64;
        let used = self
            .processes
            .saturating_sub(before.processes)
            .as_secs_f64();
        let machine = self.machine.saturating_sub(before.machine).as_secs_f64();
        if records == 0.0 {
            bail!("no record came from the source in {seconds:.0} s");
        }
        Ok(Figures {
            rate: records / seconds,
            processor_s_per_million: used * 1e6 / records,
            processors: used / seconds,
            others: (machine - used) / seconds,
            jobmanager_mib: 0.0,
            taskmanagers_mib: 0.0,
            idle_mib: 0.0,
            checkpoint_ms: None,
            checkpoint_p99_ms: None,
            first_record_s: 0.0,
        })
    }
}

/// Records out of the sources so far. A restart would set the counters back, and is a failed measurement.
fn records(cluster: &Cluster, job: &str) -> anyhow::Result<u64> {
    let detail = cluster.job(job)?;
    let status = text(&detail, "status")?;
    let message = detail["message"].as_str().unwrap_or("no reason is given");
    if number(&detail, "restarts")? > 0 || matches!(status, "finished" | "failed" | "cancelled") {
        bail!("the job is {status}, and should run without a failure: {message}");
    }
    number(&detail, "records_in")
}

/// Adds the completed checkpoints that began after `since_ms`, in milliseconds of duration by id.
fn collect(
    checkpoints: &Value,
    since_ms: u64,
    durations: &mut BTreeMap<String, f64>,
) -> anyhow::Result<()> {
    for checkpoint in list(checkpoints, "history")? {
        let is_completed = checkpoint["status"].as_str() == Some("completed");
        if is_completed && number(checkpoint, "started_at_ms")? >= since_ms {
            let duration_us = number(checkpoint, "duration_us")?;
            let id = text(checkpoint, "id")?.to_owned();
            durations.insert(id, duration_us as f64 / 1000.0);
        }
    }
    Ok(())
}

fn memory_mib<'a>(
    processes: impl IntoIterator<Item = &'a Process>,
    field: &str,
) -> anyhow::Result<f64> {
    let mut bytes = 0;
    for process in processes {
        bytes += process.memory_bytes(field)?;
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_completed_checkpoints_of_the_measured_time_count() {
        let history = json!({"history": [
            {"id": "1.1", "status": "completed", "started_at_ms": 999, "duration_us": 1000},
            {"id": "1.2", "status": "completed", "started_at_ms": 1000, "duration_us": 2500},
            {"id": "1.3", "status": "failed", "started_at_ms": 2000, "duration_us": 9000},
            {"id": "1.4", "status": "in-progress", "started_at_ms": 3000, "duration_us": 10},
        ]});
        let mut durations = BTreeMap::new();
        collect(&history, 1000, &mut durations).unwrap();
        collect(&history, 1000, &mut durations).unwrap();
        assert_eq!(durations, BTreeMap::from([("1.2".to_owned(), 2.5)]));
    }
}
