//! `cargo xtask bench checkpoints`: what checkpoints cost, by the size of the state and by how much of it is written.
//!
//! Each row is a fresh cluster of real processes with two jobs that differ in one setting: one has a checkpoint each
//! second, the other none. They take turns of a few seconds, for which the other waits, since a job that looks up words
//! of a table larger than any cache is as fast as the machine's memory is at that time, and that changes by the second.
//! It never takes a figure of a checkpoint that had begun before the measurement, such as the first of a job, which
//! stores everything.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::own::Sample;
use super::place::{Place, available_memory_bytes, unix_ms};
use super::statistics::{mean, median, percentile};
use crate::cluster::Cluster;
use crate::cluster::rest::{list, number, text};
use crate::interrupt;

const MIB: u64 = 1 << 20;
const PAGES_PER_MIB: u64 = 256;

/// How long tables may take to be filled and to be stored for the first time.
const WARM_LIMIT: Duration = Duration::from_secs(180);

/// How often checkpoints are collected; the details of the last twenty are remembered.
const COLLECT_EVERY: Duration = Duration::from_secs(4);

/// How long a turn of the job `state` is; it works for the first four fifths of it.
const TURN_MS: u64 = 3000;

/// How long before the end of a turn everything of it has been done and reported.
const SETTLED_MS: u64 = 200;

/// A turn by the time that is worked in it.
const TURN_PER_WORK: f64 = 1.25;

/// A measurement goes on until so many of its checkpoints are complete, for so many times its length at most.
const CHECKPOINTS_MIN: usize = 3;
const STRETCH_MAX: u32 = 4;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only the smallest sizes: three minutes instead of twelve.
    #[arg(long)]
    quick: bool,

    /// Only rows of these sizes, in MiB: 64, 1024, 8192; may be repeated.
    #[arg(long = "mib", value_name = "N")]
    sizes_mib: Vec<u64>,

    /// Only rows of these shares of pages written each second; may be repeated.
    #[arg(long = "percent", value_name = "N")]
    percents: Vec<u64>,

    /// How long each run is measured at least, in seconds.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u64).range(3..))]
    seconds: u64,

    /// How often each row is run, with new jobs; tables of more than 1 GiB run once.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Measure every row of up to 1 GiB also with checkpoints in neither job: what a loss is that is none.
    #[arg(long)]
    null: bool,

    /// Measure this binary instead of building one.
    #[arg(long, value_name = "FILE")]
    pub(super) binary: Option<PathBuf>,
}

/// A size of state and how much of it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    tasks: u64,
    mib_per_task: u64,
    /// Of the pages, each second.
    percent: u64,
    /// Neither job has checkpoints.
    is_null: bool,
}

impl Row {
    const fn state_mib(self) -> u64 {
        self.tasks * self.mib_per_task
    }

    /// Whether two jobs of this size can be there at once.
    const fn takes_turns(self) -> bool {
        self.state_mib() <= 1024
    }

    /// Pages that each task writes in a second.
    const fn writes(self) -> u64 {
        self.mib_per_task * PAGES_PER_MIB * self.percent / 100
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = match self.state_mib() {
            mib if mib >= 1024 => format!("{} GiB", mib / 1024),
            mib => format!("{mib} MiB"),
        };
        write!(f, "{size} in {} task(s), {} %/s", self.tasks, self.percent)?;
        f.write_str(if self.is_null { ", none in either" } else { "" })
    }
}

/// Every row, the quickest first. Memory is 32-bit, so that 8 GiB take several tasks.
fn rows(arguments: &Arguments) -> Vec<Row> {
    let sizes = [(1, 64), (1, 1024), (8, 1024)];
    let all = sizes.into_iter().flat_map(|(tasks, mib_per_task)| {
        [1, 10, 100]
            .into_iter()
            .flat_map(move |percent| [false, true].map(|is_null| (percent, is_null)))
            .map(move |(percent, is_null)| Row {
                tasks,
                mib_per_task,
                percent,
                is_null,
            })
    });
    let wanted = |list: &[u64], value| list.is_empty() || list.contains(&value);
    all.filter(|row| {
        wanted(&arguments.sizes_mib, row.state_mib())
            && wanted(&arguments.percents, row.percent)
            && (!row.is_null || arguments.null && row.takes_turns())
            && (!arguments.quick || row.state_mib() * row.percent <= 6400)
    })
    .collect()
}

/// Builds, measures and prints the table.
pub(super) fn run(
    tidemill: &Path,
    module: &Path,
    directory: &Path,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let bench = Bench {
        tidemill: tidemill.to_owned(),
        module: module.to_owned(),
        directory: directory.join("checkpoints"),
        steady: Duration::from_secs(arguments.seconds),
        rounds: arguments.rounds,
    };
    fs::create_dir_all(&bench.directory)?;
    let place = Place::of(&bench.directory)?;
    println!("{}\n{place}", super::machine());
    let results = directory.join("checkpoints.jsonl");
    let mut measured = Vec::new();
    for row in rows(arguments) {
        eprintln!("{row}");
        if let Some(reason) = out_of_reach(row, &place)? {
            println!("{row}: left out, {reason}");
            continue;
        }
        let figures = bench.row(row)?;
        super::append(&results, &figures.to_json(row, &place))?;
        eprintln!("  {}", figures.line(row));
        measured.push((row, figures));
    }
    println!(
        "\n{} s or longer with a checkpoint each second and as long with none, in turns; pages are filled with noise, which no compression \
         makes smaller, so that bytes written are those before compression.\n\n{}",
        arguments.seconds,
        table(&measured)
    );
    eprintln!("all figures are appended to {}", results.display());
    Ok(())
}

/// Why this machine cannot run a row: a swapping or full one measures nothing.
fn out_of_reach(row: Row, place: &Place) -> anyhow::Result<Option<String>> {
    let state = row.state_mib() * MIB;
    // What is written in a second is also held by captures on their way to the store.
    let memory = state + state * row.percent / 100 + 2048 * MIB;
    let available = available_memory_bytes()?;
    if available < memory {
        return Ok(Some(format!(
            "it takes {} MiB of memory and {} are available",
            memory / MIB,
            available / MIB
        )));
    }
    let disk = 4 * state;
    let free = place.free_bytes()?;
    Ok((free < disk).then(|| {
        format!(
            "it takes {} MiB of the disk and {} are free",
            disk / MIB,
            free / MIB
        )
    }))
}

struct Bench {
    tidemill: PathBuf,
    module: PathBuf,
    directory: PathBuf,
    steady: Duration,
    rounds: u32,
}

/// One checkpoint of a measurement.
#[derive(Clone, Debug, PartialEq)]
struct Checkpoint {
    started_at_ms: u64,
    duration_ms: f64,
    dirty_bytes: u64,
    written_bytes: u64,
    pauses_ms: Vec<f64>,
}

impl Checkpoint {
    /// Whether it began in the part of such a turn in which a second's writes had gone before.
    const fn is_in_turn(&self, turn: u64) -> bool {
        let in_turn_ms = (self.started_at_ms % (2 * TURN_MS)).wrapping_sub(turn * TURN_MS);
        in_turn_ms >= 1000 && in_turn_ms < TURN_MS / 5 * 4
    }
}

/// One run of the job, or one turn.
struct Run {
    rate: f64,
    processors: f64,
    others: f64,
    checkpoints: Vec<Checkpoint>,
    failed: u64,
}

impl Run {
    /// One turn; its checkpoints are collected otherwise.
    fn of_turn(before: &Sample, after: &Sample) -> anyhow::Result<Self> {
        let figures = after.since(before)?;
        Ok(Self {
            rate: figures.rate * TURN_PER_WORK,
            processors: figures.processors * TURN_PER_WORK,
            others: figures.others,
            checkpoints: Vec::new(),
            failed: 0,
        })
    }
}

impl Bench {
    fn row(&self, row: Row) -> anyhow::Result<Figures> {
        let name = format!("{}mib-{}", row.state_mib(), row.percent);
        let directory = self.directory.join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let figures = self
            .measure(row, &directory)
            .with_context(|| format!("{row}: logs are in {}", directory.display()))?;
        // The logs stay; images may be large.
        for large in ["store", "tm-1"] {
            let _ = fs::remove_dir_all(directory.join(large));
        }
        Ok(figures)
    }

    fn measure(&self, row: Row, directory: &Path) -> anyhow::Result<Figures> {
        let settings = [
            ("checkpoints.interval_ms", "1000"),
            ("jobmanager.report_interval_ms", "50"),
        ];
        let mut cluster = Cluster::start(&self.tidemill, directory, &settings)?;
        cluster.start_taskmanager("tm-1", u32::try_from(2 * row.tasks)?)?;
        cluster.wait_for_taskmanagers()?;
        let mut figures = Figures::default();
        if row.takes_turns() {
            for _ in 0..self.rounds {
                self.in_turns(&mut cluster, row, &mut figures)?;
            }
        } else {
            for has_checkpoints in [true, false] {
                let run = self.alone(&mut cluster, row, has_checkpoints)?;
                figures.add(run, has_checkpoints);
            }
        }
        Ok(figures)
    }

    /// Runs two jobs that take turns, one with checkpoints, to their cancellation.
    fn in_turns(
        &self,
        cluster: &mut Cluster,
        row: Row,
        figures: &mut Figures,
    ) -> anyhow::Result<()> {
        let with = submit(cluster, &self.module, row, !row.is_null, Some(0))?;
        let without = submit(cluster, &self.module, row, false, Some(1))?;
        wait_for_tables(cluster, &with, row.tasks)?;
        wait_for_tables(cluster, &without, row.tasks)?;
        if !row.is_null {
            wait_for_checkpoints(cluster, &with)?;
        }
        let turn = Duration::from_millis(TURN_MS).div_f64(TURN_PER_WORK);
        let pairs = self.steady.div_duration_f64(turn).ceil() as u64;
        let began_ms = wait_for_end_of_turn(1)?;
        let failed_before = number(&cluster.checkpoints(&with)?, "failed")?;
        let mut checkpoints = BTreeMap::new();
        let mut before = Sample::take(cluster, &with)?;
        for _ in 0..pairs {
            wait_for_end_of_turn(0)?;
            let first = Sample::take(cluster, &with)?;
            let between = Sample::take(cluster, &without)?;
            wait_for_end_of_turn(1)?;
            let second = Sample::take(cluster, &without)?;
            figures.add(Run::of_turn(&before, &first)?, true);
            figures.add(Run::of_turn(&between, &second)?, false);
            cluster.check()?;
            collect(cluster, &with, began_ms, &mut checkpoints)?;
            before = Sample::take(cluster, &with)?;
        }
        figures.failed += number(&cluster.checkpoints(&with)?, "failed")? - failed_before;
        // Those of the other's turns find next to nothing written.
        let of_turn = checkpoints.into_values().filter(|it| it.is_in_turn(0));
        figures.checkpoints.extend(of_turn);
        cluster.cancel(&with)?;
        cluster.cancel(&without)
    }

    /// Runs one job by itself, to its cancellation.
    fn alone(&self, cluster: &mut Cluster, row: Row, has_checkpoints: bool) -> anyhow::Result<Run> {
        let job = submit(cluster, &self.module, row, has_checkpoints, None)?;
        wait_for_tables(cluster, &job, row.tasks)?;
        if has_checkpoints {
            wait_for_checkpoints(cluster, &job)?;
        }
        let run = self.steady(cluster, &job, has_checkpoints)?;
        cluster.cancel(&job)?;
        Ok(run)
    }

    fn steady(
        &self,
        cluster: &mut Cluster,
        job: &str,
        has_checkpoints: bool,
    ) -> anyhow::Result<Run> {
        let before = Sample::take(cluster, job)?;
        let failed_before = number(&cluster.checkpoints(job)?, "failed")?;
        let mut checkpoints = BTreeMap::new();
        let began = Instant::now();
        loop {
            let left = self.steady.saturating_sub(began.elapsed());
            let step = if left.is_zero() {
                Duration::from_millis(200)
            } else {
                left.min(COLLECT_EVERY)
            };
            interrupt::pause(step)?;
            cluster.check()?;
            collect(cluster, job, before.at_ms, &mut checkpoints)?;
            let is_enough = !has_checkpoints || checkpoints.len() >= CHECKPOINTS_MIN;
            let passed = began.elapsed();
            if passed >= self.steady && (is_enough || passed >= self.steady * STRETCH_MAX) {
                break;
            }
        }
        let figures = Sample::take(cluster, job)?.since(&before)?;
        let failed = number(&cluster.checkpoints(job)?, "failed")?;
        Ok(Run {
            rate: figures.rate,
            processors: figures.processors,
            others: figures.others,
            checkpoints: checkpoints.into_values().collect(),
            failed: failed - failed_before,
        })
    }
}

/// Submits the job; with a turn, to take turns.
fn submit(
    cluster: &mut Cluster,
    module: &Path,
    row: Row,
    has_checkpoints: bool,
    turn: Option<u64>,
) -> anyhow::Result<String> {
    let mut parameters = vec![
        "job=state".to_owned(),
        format!("mib={}", row.mib_per_task),
        format!("writes={}", row.writes()),
    ];
    if let Some(turn) = turn {
        parameters.extend([format!("turn_ms={TURN_MS}"), format!("turn={turn}")]);
    }
    let parallelism = row.tasks.to_string();
    let mut arguments = vec!["--parallelism", &parallelism];
    for parameter in &parameters {
        arguments.extend(["--param", parameter]);
    }
    if !has_checkpoints {
        arguments.extend(["--set", "checkpoints.interval_ms=0"]);
    }
    cluster.submit(module, &arguments)
}

/// Waits until two checkpoints are complete: the first stores everything, and what follows it may have waited for it.
fn wait_for_checkpoints(cluster: &mut Cluster, job: &str) -> anyhow::Result<()> {
    let filled_ms = unix_ms();
    interrupt::wait_for("the first checkpoints", WARM_LIMIT, || {
        cluster.check()?;
        let mut known = BTreeMap::new();
        collect(cluster, job, filled_ms, &mut known)?;
        Ok((known.len() >= 2).then_some(()))
    })
}

/// Waits until the work of such a turn has been done and reported; when that is, by the clock.
fn wait_for_end_of_turn(turn: u64) -> anyhow::Result<u64> {
    let round_ms = 2 * TURN_MS;
    let end_ms = (turn + 1) * TURN_MS - SETTLED_MS;
    let now_ms = unix_ms();
    let left_ms = (end_ms + round_ms - now_ms % round_ms) % round_ms;
    interrupt::pause(Duration::from_millis(left_ms))?;
    Ok(now_ms + left_ms)
}

/// Waits until every task with a table has made records, which it does when its table is filled.
fn wait_for_tables(cluster: &mut Cluster, job: &str, tasks: u64) -> anyhow::Result<()> {
    interrupt::wait_for("the tables to be filled", WARM_LIMIT, || {
        cluster.check()?;
        let detail = cluster.job(job)?;
        ensure!(
            !matches!(text(&detail, "status")?, "failed" | "cancelled"),
            "the job has failed: {}",
            detail["message"]
        );
        let mut filled = 0;
        for task in list(&detail, "tasks_detail")? {
            let is_source = task["stage"].as_u64() == Some(0);
            filled += u64::from(is_source && number(&task["progress"], "records_in")? > 0);
        }
        Ok((filled >= tasks).then_some(()))
    })
}

/// Adds the completed checkpoints that began after `since_ms`.
fn collect(
    cluster: &Cluster,
    job: &str,
    since_ms: u64,
    checkpoints: &mut BTreeMap<String, Checkpoint>,
) -> anyhow::Result<()> {
    for checkpoint in list(&cluster.checkpoints(job)?, "history")? {
        let id = text(checkpoint, "id")?;
        let is_completed = checkpoint["status"].as_str() == Some("completed");
        let is_new = number(checkpoint, "started_at_ms")? >= since_ms;
        if is_completed && is_new && !checkpoints.contains_key(id) {
            let detail = cluster
                .rest()
                .get(&format!("/v1/jobs/{job}/checkpoints/{id}"))?;
            checkpoints.insert(id.to_owned(), read_checkpoint(checkpoint, &detail)?);
        }
    }
    Ok(())
}

fn read_checkpoint(summary: &Value, detail: &Value) -> anyhow::Result<Checkpoint> {
    let ms = |of: &Value, field| anyhow::Ok(number(of, field)? as f64 / 1000.0);
    let captures = detail["captures"].as_array();
    let pauses_ms = captures
        .into_iter()
        .flatten()
        .map(|capture| ms(capture, "pause_us"))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Checkpoint {
        started_at_ms: number(summary, "started_at_ms")?,
        duration_ms: ms(summary, "duration_us")?,
        dirty_bytes: number(summary, "dirty_bytes")?,
        written_bytes: number(summary, "written_bytes")?,
        pauses_ms,
    })
}

/// What the runs of a row came to.
#[derive(Default)]
struct Figures {
    with: Vec<f64>,
    without: Vec<f64>,
    processors_with: Vec<f64>,
    processors_without: Vec<f64>,
    others: Vec<f64>,
    checkpoints: Vec<Checkpoint>,
    failed: u64,
}

impl Figures {
    fn add(&mut self, run: Run, has_checkpoints: bool) {
        let (rates, processors) = match has_checkpoints {
            true => (&mut self.with, &mut self.processors_with),
            false => (&mut self.without, &mut self.processors_without),
        };
        rates.push(run.rate);
        processors.push(run.processors);
        self.others.push(run.others);
        self.checkpoints.extend(run.checkpoints);
        self.failed += run.failed;
    }

    fn pause_ms(&self, percent: usize) -> Option<f64> {
        let pauses = self.checkpoints.iter().flat_map(|it| it.pauses_ms.clone());
        percentile(pauses.collect(), percent)
    }

    fn duration_ms(&self, percent: usize) -> Option<f64> {
        let durations = self.checkpoints.iter().map(|it| it.duration_ms);
        percentile(durations.collect(), percent)
    }

    /// The middle checkpoint's, in MiB.
    fn mib(&self, bytes: impl Fn(&Checkpoint) -> u64) -> Option<f64> {
        let all = self.checkpoints.iter().map(|it| bytes(it) as f64);
        Some(median(all.collect())? / MIB as f64)
    }

    /// All bytes written by all dirty bytes.
    fn amplification(&self) -> Option<f64> {
        let sum = |bytes: fn(&Checkpoint) -> u64| self.checkpoints.iter().map(bytes).sum::<u64>();
        let (written, dirty) = (sum(|it| it.written_bytes), sum(|it| it.dirty_bytes));
        (dirty > 0).then(|| written as f64 / dirty as f64)
    }

    /// Of each pair of turns, in its order.
    fn losses_percent(&self) -> Vec<f64> {
        let rounds = self.with.iter().zip(&self.without);
        rounds
            .map(|(with, without)| (1.0 - with / without) * 100.0)
            .collect()
    }

    /// The middle pair's.
    fn loss_percent(&self) -> Option<f64> {
        median(self.losses_percent())
    }

    fn to_json(&self, row: Row, place: &Place) -> Value {
        json!({
            "state_mib": row.state_mib(),
            "null": row.is_null,
            "tasks": row.tasks,
            "percent": row.percent,
            "pause_ms_p50": self.pause_ms(50),
            "pause_ms_p99": self.pause_ms(99),
            "duration_ms_p50": self.duration_ms(50),
            "duration_ms_max": self.duration_ms(100),
            "dirty_mib": self.mib(|it| it.dirty_bytes),
            "written_mib": self.mib(|it| it.written_bytes),
            "written_by_dirty": self.amplification(),
            "checkpoints": self.checkpoints.len(),
            "failed": self.failed,
            "rates_with": self.with,
            "rates_without": self.without,
            "losses_percent": self.losses_percent(),
            "loss_percent": self.loss_percent(),
            "cores_with": mean(&self.processors_with),
            "cores_without": mean(&self.processors_without),
            "foreign_cores": mean(&self.others),
            "store": place.to_string(),
        })
    }

    fn line(&self, row: Row) -> String {
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_owned(),
        };
        let millions = |rates: &[f64]| number(median(rates.to_vec()).map(|rate| rate / 1e6), 2);
        let losses = |percent| number(percentile(self.losses_percent(), percent), 1);
        let failed = match self.failed {
            0 => String::new(),
            failed => format!(" (+{failed} failed)"),
        };
        format!(
            "| {row} | {} / {} | {} / {} | {}{failed} | {} | {} | {} | {} | {} | {} % ({} to {}) | {} / {} | {} |",
            number(self.pause_ms(50), 2),
            number(self.pause_ms(99), 2),
            number(self.duration_ms(50), 0),
            number(self.duration_ms(100), 0),
            self.checkpoints.len(),
            number(self.mib(|it| it.dirty_bytes), 1),
            number(self.mib(|it| it.written_bytes), 1),
            number(self.amplification(), 3),
            millions(&self.without),
            millions(&self.with),
            number(self.loss_percent(), 1),
            losses(25),
            losses(75),
            number(mean(&self.processors_without), 2),
            number(mean(&self.processors_with), 2),
            number(mean(&self.others), 2),
        )
    }
}

fn table(rows: &[(Row, Figures)]) -> String {
    let mut table = "| state, pages written | pause p50 / p99, ms | checkpoint p50 / max, ms | checkpoints | dirty MiB | written MiB | written ÷ dirty | M records/s without | with | loss: median (quartiles) | cores without / with | others' cores |\n\
                     |---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (row, figures) in rows {
        table.push_str(&figures.line(*row));
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(quick: bool) -> Arguments {
        Arguments {
            quick,
            sizes_mib: Vec::new(),
            percents: Vec::new(),
            seconds: 8,
            rounds: 2,
            null: false,
            binary: None,
        }
    }

    #[test]
    fn quick_rows_are_the_small_ones() {
        assert_eq!(rows(&arguments(false)).len(), 9);
        let quick: Vec<String> = rows(&arguments(true)).iter().map(Row::to_string).collect();
        assert_eq!(
            quick,
            [
                "64 MiB in 1 task(s), 1 %/s",
                "64 MiB in 1 task(s), 10 %/s",
                "64 MiB in 1 task(s), 100 %/s",
                "1 GiB in 1 task(s), 1 %/s"
            ]
        );
        let only = Arguments {
            sizes_mib: vec![8192],
            percents: vec![10],
            ..arguments(false)
        };
        assert_eq!(rows(&only)[0].writes(), 26_214);
    }

    #[test]
    fn figures_are_of_all_runs_together() {
        let checkpoint = |duration_us: u64, written_bytes: u64| {
            let summary = json!({
                "started_at_ms": 0, "duration_us": duration_us, "dirty_bytes": MIB, "written_bytes": written_bytes,
            });
            let detail = json!({"captures": [{"pause_us": duration_us / 100}]});
            read_checkpoint(&summary, &detail).expect("all that is read")
        };
        let run = |rate: f64, checkpoints: Vec<Checkpoint>| Run {
            rate,
            processors: 1.0,
            others: 0.0,
            checkpoints,
            failed: 0,
        };
        let mut figures = Figures::default();
        figures.add(run(90.0, vec![checkpoint(100_000, 2 * MIB)]), true);
        figures.add(run(100.0, Vec::new()), false);
        figures.add(run(96.0, vec![checkpoint(300_000, MIB)]), true);
        figures.add(run(100.0, Vec::new()), false);
        figures.add(run(99.0, Vec::new()), true);
        figures.add(run(100.0, Vec::new()), false);
        assert_eq!(figures.pause_ms(50), Some(1.0));
        assert_eq!(figures.pause_ms(99), Some(3.0));
        assert_eq!(figures.duration_ms(100), Some(300.0));
        assert_eq!(figures.amplification(), Some(1.5));
        let loss = figures.loss_percent().expect("both were measured");
        assert!((loss - 4.0).abs() < 1e-9, "{loss}");
    }
}
