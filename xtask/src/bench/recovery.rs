//! `cargo xtask bench recovery`: how soon a job goes on when a TaskManager with a large state is killed.
//!
//! Two TaskManagers run a task with a table each, a third is free; one of the two is killed. Each kill is of a job of its
//! own, so that no restart strategy remembers the kill before. It never kills before the checkpoints of full tables are
//! complete, nor, with standby images, before there is one of the task that dies.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::arrivals::Arrivals;
use super::place::{Place, unix_ms};
use super::statistics::median;
use crate::cluster::Cluster;
use crate::cluster::rest::{list, number, text};
use crate::interrupt;

/// Tasks with a table, each on a TaskManager of its own.
const TASKS: u64 = 2;

/// How long tables may take to be filled and stored, and standby images to be made.
const WARM_LIMIT: Duration = Duration::from_secs(120);

/// How long a recovery may take.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// Checkpoints of full tables before a kill.
const CHECKPOINTS: usize = 3;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many TaskManagers are killed, without and with standby images.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,

    /// The state on the TaskManager that is killed, in MiB.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1024))]
    mib: u64,

    /// Of its pages, the share that is written each second.
    #[arg(long, value_name = "N", default_value_t = 1)]
    percent: u64,

    /// Records of each task in a second: what the times are exact to. Those since the checkpoint come again first, and each
    /// looks at some page of a memory that may still be on its way.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,

    /// Only without, or only with standby images.
    #[arg(long, value_parser = ["yes", "no"])]
    standby: Option<String>,

    /// Measure this binary instead of building one.
    #[arg(long, value_name = "FILE")]
    pub(super) binary: Option<PathBuf>,
}

/// Builds, kills, measures and prints the tables.
pub(super) fn run(
    tidemill: &Path,
    module: &Path,
    directory: &Path,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let runs = directory.join("recovery");
    fs::create_dir_all(&runs)?;
    let place = Place::of(&runs)?;
    println!("{}\n{place}", super::machine());
    println!(
        "Tables of {} MiB, {} % of the pages written each second, {} records a second, a checkpoint each second; milliseconds.",
        arguments.mib, arguments.percent, arguments.rate
    );
    let results = directory.join("recovery.jsonl");
    for has_standby in [false, true] {
        let is_wanted = arguments.standby.as_deref();
        if is_wanted.is_some_and(|wanted| (wanted == "yes") != has_standby) {
            continue;
        }
        let name = if has_standby {
            "with standby images"
        } else {
            "default settings"
        };
        let directory = runs.join(if has_standby { "standby" } else { "default" });
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let bench = Bench {
            tidemill,
            module,
            directory: &directory,
            arguments,
            has_standby,
        };
        let kills = bench
            .kills(|kill| super::append(&results, &kill.to_json(arguments, has_standby, &place)))
            .with_context(|| format!("{name}: logs are in {}", directory.display()))?;
        println!("\n### {name}\n\n{}", table(&kills));
        // The logs stay; images are large.
        for large in ["store", "tm-1", "tm-2", "tm-3"] {
            let _ = fs::remove_dir_all(directory.join(large));
        }
    }
    eprintln!("all figures are appended to {}", results.display());
    Ok(())
}

struct Bench<'a> {
    tidemill: &'a Path,
    module: &'a Path,
    directory: &'a Path,
    arguments: &'a Arguments,
    has_standby: bool,
}

/// One kill, in milliseconds.
struct Kill {
    /// From the kill until a row of the lost table came that was never seen before.
    first_new: f64,
    /// From the kill until the leader knew.
    detect: f64,
    plan: Option<f64>,
    fetch: Option<f64>,
    restore: Option<f64>,
    resume: Option<f64>,
    /// Where the lost task's image came from, and its MiB that were written before it ran.
    source: String,
    restored_mib: f64,
    /// Of the task that went back on its own TaskManager.
    revert: Option<f64>,
    revert_source: String,
    record: Value,
}

impl Bench<'_> {
    fn kills(&self, note: impl Fn(&Kill) -> anyhow::Result<()>) -> anyhow::Result<Vec<Kill>> {
        let standby = [("recovery.standby", "true")];
        let settings = if self.has_standby { &standby[..] } else { &[] };
        let mut cluster = Cluster::start(self.tidemill, self.directory, settings)?;
        for name in ["tm-1", "tm-2", "tm-3"] {
            cluster.start_taskmanager(name, 1)?;
        }
        cluster.wait_for_taskmanagers()?;
        let mut kills = Vec::new();
        for number in 1..=self.arguments.kills {
            let kill = self.kill(&mut cluster)?;
            eprintln!("{number}: {}", kill.line());
            note(&kill)?;
            kills.push(kill);
        }
        Ok(kills)
    }

    /// Runs a job, kills one of its TaskManagers, and leaves the cluster as it was.
    fn kill(&self, cluster: &mut Cluster) -> anyhow::Result<Kill> {
        let arrivals = Arrivals::listen()?;
        let job = self.submit(cluster, &arrivals)?;
        self.settle(cluster, &job, &arrivals)?;
        let victim = 0;
        let lost = host(&cluster.job(&job)?, victim)?;
        let killed_ms = unix_ms();
        let killed = Instant::now();
        cluster.kill_taskmanager(&lost)?;
        let first_new = interrupt::wait_for("new output", RECOVERY_LIMIT, || {
            cluster.check()?;
            Ok(arrivals.first_new(victim, killed))
        })?;
        let detail = interrupt::wait_for("the recovery's record", RECOVERY_LIMIT, || {
            let detail = cluster.job(&job)?;
            let recovery = list(&detail, "recoveries")?.last();
            let is_over = recovery.is_some_and(|it| it["running_after_us"].is_u64());
            Ok(is_over.then_some(detail))
        })?;
        let first_new_ms = (first_new - killed).as_secs_f64() * 1000.0;
        let kill = read_kill(&detail, victim, killed_ms, first_new_ms)?;
        cluster.cancel(&job)?;
        cluster.start_taskmanager(&lost, 1)?;
        cluster.wait_for_taskmanagers()?;
        Ok(kill)
    }

    fn submit(&self, cluster: &Cluster, arrivals: &Arrivals) -> anyhow::Result<String> {
        let pages = self.arguments.mib * 256;
        let parallelism = TASKS.to_string();
        let parameters = [
            "job=state".to_owned(),
            // The survivor is part of the same region, and goes back too.
            "exchange=yes".to_owned(),
            format!("mib={}", self.arguments.mib),
            format!("writes={}", pages * self.arguments.percent / 100),
            format!("rate={}", self.arguments.rate),
            format!("socket={}", arrivals.address()),
        ];
        let mut words = vec!["--parallelism", &parallelism];
        for parameter in &parameters {
            words.extend(["--param", parameter]);
        }
        cluster.submit(self.module, &words)
    }

    /// Waits until rows come, checkpoints of what is then there are complete, and what stands by is ready.
    fn settle(&self, cluster: &mut Cluster, job: &str, arrivals: &Arrivals) -> anyhow::Result<()> {
        interrupt::wait_for("rows of every task", WARM_LIMIT, || {
            cluster.check()?;
            let all_came = (0..TASKS).all(|subtask| arrivals.number(subtask) > 0);
            Ok(all_came.then_some(()))
        })?;
        let filled_ms = unix_ms();
        interrupt::wait_for("checkpoints", WARM_LIMIT, || {
            cluster.check()?;
            let checkpoints = cluster.checkpoints(job)?;
            let mut later = 0;
            for checkpoint in list(&checkpoints, "history")? {
                let is_completed = checkpoint["status"].as_str() == Some("completed");
                let is_later = number(checkpoint, "started_at_ms")? >= filled_ms;
                later += usize::from(is_completed && is_later);
            }
            Ok((later >= CHECKPOINTS).then_some(()))
        })?;
        if !self.has_standby {
            return Ok(());
        }
        interrupt::wait_for("standby images", WARM_LIMIT, || {
            cluster.check()?;
            Ok(has_warm_tables(&cluster.job(job)?)?.then_some(()))
        })
    }
}

/// The tasks with a table.
fn tables(detail: &Value) -> anyhow::Result<impl Iterator<Item = &Value>> {
    let tasks = list(detail, "tasks_detail")?.iter();
    Ok(tasks.filter(|task| task["stage"].as_u64() == Some(0)))
}

/// Whether another TaskManager keeps each table's image of the last checkpoint.
fn has_warm_tables(detail: &Value) -> anyhow::Result<bool> {
    let last = &detail["last_checkpoint"];
    let is_warm = |task: &Value| last.is_string() && task["standby"]["checkpoint"] == *last;
    Ok(tables(detail)?.all(is_warm))
}

/// Where the task with a table runs.
fn host(detail: &Value, subtask: u64) -> anyhow::Result<String> {
    let task = tables(detail)?.find(|task| task["subtask"].as_u64() == Some(subtask));
    let task = task.with_context(|| format!("there is no task 0/{subtask} in {detail}"))?;
    Ok(text(task, "task_manager")?.to_owned())
}

fn read_kill(detail: &Value, victim: u64, killed_ms: u64, first_new: f64) -> anyhow::Result<Kill> {
    let recoveries = list(detail, "recoveries")?;
    ensure!(
        recoveries.len() == 1,
        "one kill is one recovery, not {}: {}",
        recoveries.len(),
        detail["recoveries"]
    );
    let record = &recoveries[0];
    let ms = |value: &Value| value.as_u64().map(|us| us as f64 / 1000.0);
    let of = |victim_wanted: bool| -> anyhow::Result<&Value> {
        let found = tables(detail)?
            .find(|task| (task["subtask"].as_u64() == Some(victim)) == victim_wanted);
        Ok(&found.context("two tasks have a table")?["timings"])
    };
    let (lost, survivor) = (of(true)?, of(false)?);
    let source = |timings: &Value| timings["source"].as_str().unwrap_or("-").to_owned();
    let detected_ms = number(record, "detected_at_ms")?;
    Ok(Kill {
        first_new,
        detect: detected_ms.saturating_sub(killed_ms) as f64,
        plan: ms(&record["planned_after_us"]),
        fetch: ms(&lost["fetch_us"]),
        restore: ms(&lost["restore_us"]),
        resume: ms(&record["resume_us"]),
        source: source(lost),
        restored_mib: lost["restored_bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20),
        revert: ms(&survivor["restore_us"]),
        revert_source: source(survivor),
        record: record.clone(),
    })
}

impl Kill {
    fn to_json(&self, arguments: &Arguments, has_standby: bool, place: &Place) -> Value {
        json!({
            "mib": arguments.mib,
            "percent": arguments.percent,
            "rate": arguments.rate,
            "standby": has_standby,
            "first_new_ms": self.first_new,
            "detect_ms": self.detect,
            "plan_ms": self.plan,
            "fetch_ms": self.fetch,
            "restore_ms": self.restore,
            "resume_ms": self.resume,
            "source": self.source,
            "restored_mib": self.restored_mib,
            "revert_ms": self.revert,
            "revert_source": self.revert_source,
            "recovery": self.record,
            "store": place.to_string(),
        })
    }

    /// The figures in the order of the table's columns.
    fn figures(&self) -> [Option<f64>; 7] {
        [
            Some(self.first_new),
            Some(self.detect),
            self.plan,
            self.fetch,
            self.restore,
            self.resume,
            self.revert,
        ]
    }

    fn line(&self) -> String {
        let [first_new, detect, plan, fetch, restore, resume, revert] = self.figures().map(short);
        format!(
            "| {first_new} | {detect} | {plan} | {fetch} | {restore} | {resume} | {}, {:.1} MiB | {revert} | {} |",
            self.source, self.restored_mib, self.revert_source
        )
    }
}

fn short(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

fn table(kills: &[Kill]) -> String {
    let mut table = "| kill | first new output | detect | plan | fetch | restore | resume | lost task's image | survivor's revert | its image |\n\
                     |---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (index, kill) in kills.iter().enumerate() {
        table.push_str(&format!("| {} {}\n", index + 1, kill.line()));
    }
    let column = |index: usize| -> Vec<f64> {
        let values = kills.iter().filter_map(|kill| kill.figures()[index]);
        values.collect()
    };
    let max = |values: Vec<f64>| values.into_iter().reduce(f64::max);
    for name in ["median", "max"] {
        let summary = |index| match name {
            "median" => median(column(index)),
            _ => max(column(index)),
        };
        let cells = [0, 1, 2, 3, 4, 5, 6].map(|index| short(summary(index)));
        let (of_lost, of_survivor) = cells.split_at(6);
        table.push_str(&format!(
            "| {name} | {} | | {} | |\n",
            of_lost.join(" | "),
            of_survivor[0]
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail() -> Value {
        let task = |subtask: u64, source: &str, restore_us: u64| {
            json!({
                "stage": 0, "subtask": subtask, "task_manager": format!("tm-{subtask}"),
                "timings": {"fetch_us": 1500, "restore_us": restore_us, "source": source, "restored_bytes": 1 << 20},
            })
        };
        json!({
            "tasks_detail": [task(0, "store", 20_000), task(1, "memory", 3_000), {"stage": 1, "subtask": 0}],
            "recoveries": [{"detected_at_ms": 1_040, "planned_after_us": 200, "resume_us": 900, "running_after_us": 30_000}],
        })
    }

    #[test]
    fn a_kill_is_told_by_the_lost_task_and_the_survivor() {
        let kill = read_kill(&detail(), 0, 1_000, 123.4).expect("all that is read");
        assert_eq!(kill.figures()[0], Some(123.4));
        assert_eq!(
            (kill.detect, kill.restore, kill.revert),
            (40.0, Some(20.0), Some(3.0))
        );
        assert_eq!((&*kill.source, &*kill.revert_source), ("store", "memory"));
        let table = table(&[kill]);
        let median = table.lines().find(|line| line.starts_with("| median"));
        assert_eq!(
            median,
            Some("| median | 123.4 | 40.0 | 0.2 | 1.5 | 20.0 | 0.9 | | 3.0 | |")
        );
        assert_eq!(host(&detail(), 1).expect("it has a host"), "tm-1");
        let twice = json!({"recoveries": [1, 2]});
        assert!(read_kill(&twice, 0, 0, 1.0).is_err());
    }
}
