//! `cargo xtask bench checkpoints`: what checkpoints cost, by the size of the state and by how much of it is written.
//!
//! Each row is a fresh cluster of real processes with two jobs that differ in one setting: one has a checkpoint each
//! second, the other none. They take turns of a few seconds, for which the other waits, since a job that looks up words
//! of a table larger than any cache is as fast as the machine's memory is at that time, and that changes by the second.
//! It never takes a figure of a checkpoint that had begun before the measurement, such as the first of a job, which
//! stores everything.

mod figures;
mod rows;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use self::figures::{Checkpoint, Figures, Run, TURN_PER_WORK, read_checkpoint, table};
use self::rows::{Row, rows};
use super::own::Sample;
use super::place::{Place, available_memory_bytes, unix_ms};
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

/// A measurement goes on until so many of its checkpoints are complete, for so many times its length at most.
const CHECKPOINTS_MIN: usize = 3;
const STRETCH_MAX: u32 = 4;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only the smallest sizes: about ten minutes instead of half an hour.
    #[arg(long)]
    quick: bool,

    /// Only rows of these sizes, in MiB: 64, 1024, 8192; may be repeated.
    #[arg(long = "mib", value_name = "N")]
    sizes_mib: Vec<u64>,

    /// Only rows of these shares of pages written each second; may be repeated.
    #[arg(long = "percent", value_name = "N")]
    percents: Vec<u64>,

    /// How long each of the two jobs is measured in a round at least, in seconds.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(3..))]
    seconds: u64,

    /// How often each row is run, with new jobs; tables of more than 1 GiB run once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// How often a number is mixed for each record: what a job computes beside its look-up. 0: it only waits for memory.
    #[arg(long, value_name = "N", default_value_t = 200)]
    mixes: u32,

    /// Measure every row of up to 1 GiB also with checkpoints in neither job: what a loss is that is none.
    #[arg(long)]
    null: bool,

    /// Measure this binary instead of building one.
    #[arg(long, value_name = "FILE")]
    pub(super) binary: Option<PathBuf>,
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
        "\n{} rounds of {} s or longer with a checkpoint each second and as long with none, in turns; {} mixes for each record; pages \
         are filled with noise, which no compression makes smaller, so that bytes written are those before compression.\n\n{}",
        arguments.rounds,
        arguments.seconds,
        arguments.mixes,
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
            for round in 0..self.rounds {
                // The first of two jobs may have the better part of the memory.
                self.in_turns(&mut cluster, row, u64::from(round % 2), &mut figures)?;
                figures.end_round();
                eprintln!(
                    "  round {} of {}: {}",
                    round + 1,
                    self.rounds,
                    figures.loss()
                );
            }
        } else {
            for has_checkpoints in [true, false] {
                let run = self.alone(&mut cluster, row, has_checkpoints)?;
                figures.add(run, has_checkpoints);
            }
            figures.end_round();
        }
        Ok(figures)
    }

    /// Runs two jobs that take turns, of which that of turn `with` has checkpoints, to their cancellation.
    fn in_turns(
        &self,
        cluster: &mut Cluster,
        row: Row,
        with: u64,
        figures: &mut Figures,
    ) -> anyhow::Result<()> {
        let mut jobs = Vec::new();
        for turn in 0..2 {
            let has_checkpoints = turn == with && !row.is_null;
            jobs.push(self.submit(cluster, row, has_checkpoints, Some(turn))?);
        }
        for job in &jobs {
            wait_for_tables(cluster, job, row.tasks)?;
        }
        let observed = &jobs[usize::try_from(with)?];
        if !row.is_null {
            wait_for_checkpoints(cluster, observed)?;
        }
        let turn = Duration::from_millis(TURN_MS).div_f64(TURN_PER_WORK);
        let pairs = self.steady.div_duration_f64(turn).ceil() as u64;
        let began_ms = wait_for_end_of_turn(1)?;
        let failed_before = number(&cluster.checkpoints(observed)?, "failed")?;
        let mut checkpoints = BTreeMap::new();
        let mut before = Sample::take(cluster, &jobs[0])?;
        for _ in 0..pairs {
            wait_for_end_of_turn(0)?;
            let first = Sample::take(cluster, &jobs[0])?;
            let between = Sample::take(cluster, &jobs[1])?;
            wait_for_end_of_turn(1)?;
            let second = Sample::take(cluster, &jobs[1])?;
            figures.add(Run::of_turn(&before, &first)?, with == 0);
            figures.add(Run::of_turn(&between, &second)?, with == 1);
            // Before anything that takes time: the next turn must not have begun.
            before = Sample::take(cluster, &jobs[0])?;
            cluster.check()?;
            collect(cluster, observed, began_ms, &mut checkpoints)?;
        }
        figures.failed += number(&cluster.checkpoints(observed)?, "failed")? - failed_before;
        // Those of the other's turns find next to nothing written.
        let of_turn = checkpoints.into_values();
        figures
            .checkpoints
            .extend(of_turn.filter(|it| it.is_in_turn(with)));
        jobs.iter().try_for_each(|job| cluster.cancel(job))
    }

    /// Runs one job by itself, to its cancellation.
    fn alone(&self, cluster: &mut Cluster, row: Row, has_checkpoints: bool) -> anyhow::Result<Run> {
        let job = self.submit(cluster, row, has_checkpoints, None)?;
        wait_for_tables(cluster, &job, row.tasks)?;
        if has_checkpoints {
            wait_for_checkpoints(cluster, &job)?;
        }
        let run = self.steady(cluster, &job, has_checkpoints)?;
        cluster.cancel(&job)?;
        Ok(run)
    }

    /// Submits the job; with a turn, to take turns.
    fn submit(
        &self,
        cluster: &Cluster,
        row: Row,
        has_checkpoints: bool,
        turn: Option<u64>,
    ) -> anyhow::Result<String> {
        let mut parameters = vec![
            "job=state".to_owned(),
            format!("mib={}", row.mib_per_task),
            format!("writes={}", row.writes()),
            format!("mixes={}", row.mixes),
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
        cluster.submit(&self.module, &arguments)
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
