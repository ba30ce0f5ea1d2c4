//! `cargo xtask bench`: how fast a cluster is, what it costs, and how that compares with another system's.
//!
//! It never measures two systems at once: with a peer, each row is run by one and then by the other, round after round,
//! so that a machine which slows down slows both.

mod arrivals;
mod checkpoints;
mod own;
mod peer;
mod place;
mod recovery;
mod row;
mod statistics;
mod table;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::workspace::Workspace;
use crate::{binary, build_wasm, interrupt};
use own::Bench;
use peer::{Peer, PeerArgument};
use row::{Figures, Row, SHAPES};

/// The jobs' module: which of them it is, a parameter says.
const MODULE: &str = "bench";

/// The jobs, as the parameter calls them.
const JOBS: [&str; 3] = ["count-gen", "pass", "pass-rebalance"];

/// What to measure.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,

    /// The jobs; all when none is named.
    #[arg(value_parser = JOBS)]
    names: Vec<String>,

    /// How long each run is measured, in seconds.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..))]
    seconds: u64,

    /// How long each run warms up before that, in seconds.
    #[arg(long, value_name = "N", default_value_t = 20)]
    warm_up: u64,

    /// How many times all rows are run.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Measure this binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,

    /// Another system to compare with, and the directory of its harness; may be repeated.
    #[arg(long = "peer", value_name = "NAME=DIR")]
    peers: Vec<PeerArgument>,
}

/// What is measured otherwise than by rows of jobs.
#[derive(clap::Subcommand)]
enum Other {
    /// What checkpoints cost: the pause, the bytes, the loss of throughput; by size of state and by how much is written.
    Checkpoints(checkpoints::Arguments),
    /// How soon a job goes on after the SIGKILL of a TaskManager with a large state.
    Recovery(recovery::Arguments),
}

impl Other {
    fn run(&self, workspace: &Workspace) -> anyhow::Result<()> {
        let binary = match self {
            Self::Checkpoints(arguments) => &arguments.binary,
            Self::Recovery(arguments) => &arguments.binary,
        };
        let directory = workspace.target_directory()?.join("bench");
        let (tidemill, module) = (tidemill(workspace, binary)?, module(workspace)?);
        interrupt::watch();
        match self {
            Self::Checkpoints(arguments) => {
                checkpoints::run(&tidemill, &module, &directory, arguments)
            }
            Self::Recovery(arguments) => recovery::run(&tidemill, &module, &directory, arguments),
        }
    }
}

/// A system and the figures of its runs, by row.
type Measured = (String, Vec<(Row, Vec<Figures>)>);

/// Builds, measures and prints the tables.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(other) = &arguments.other {
        return other.run(workspace);
    }
    let jobs: Vec<String> = match arguments.names.as_slice() {
        [] => JOBS.map(str::to_owned).to_vec(),
        names => names.to_vec(),
    };
    let directory = workspace.target_directory()?.join("bench");
    fs::create_dir_all(&directory)?;
    let bench = Bench {
        module: module(workspace)?,
        tidemill: tidemill(workspace, &arguments.binary)?,
        directory: directory.join("runs"),
        warm_up: Duration::from_secs(arguments.warm_up),
        steady: Duration::from_secs(arguments.seconds),
    };
    interrupt::watch();
    let peers: Vec<Peer> = arguments
        .peers
        .iter()
        .map(|argument| Peer::set_up(argument, &directory))
        .collect::<anyhow::Result<_>>()?;
    let rows: Vec<Row> = jobs
        .iter()
        .flat_map(|job| {
            SHAPES.map(|shape| Row {
                job: job.clone(),
                shape,
            })
        })
        .collect();
    let measured = measure(&bench, &peers, &rows, arguments.rounds, &directory)?;
    print(&measured, arguments);
    Ok(())
}

/// The module with all jobs in it.
fn module(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let modules = build_wasm::build(workspace, &[MODULE.to_owned()])?;
    modules.into_iter().next().context("no module was built")
}

/// The binary that was named, or one that is built.
fn tidemill(workspace: &Workspace, named: &Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match named {
        Some(binary) => Ok(binary.canonicalize()?),
        None => binary::build_release(workspace),
    }
}

fn measure(
    bench: &Bench,
    peers: &[Peer],
    rows: &[Row],
    rounds: u32,
    directory: &Path,
) -> anyhow::Result<Vec<Measured>> {
    let empty = || -> Vec<(Row, Vec<Figures>)> {
        rows.iter().map(|row| (row.clone(), Vec::new())).collect()
    };
    let mut measured: Vec<Measured> = vec![("tidemill".to_owned(), empty())];
    measured.extend(peers.iter().map(|peer| (peer.name().to_owned(), empty())));
    let results = directory.join("results.jsonl");
    for round in 1..=rounds {
        for (index, row) in rows.iter().enumerate() {
            for (system, (name, runs)) in measured.iter_mut().enumerate() {
                eprintln!("round {round} of {rounds}: {name}, {row}");
                let figures = match system.checked_sub(1) {
                    None => bench.run(row)?,
                    Some(peer) => peers[peer].run(row, bench.warm_up, bench.steady)?,
                };
                eprintln!(
                    "  {:.0} records/s, {:.3} CPU s per million, {:.2} cores of others",
                    figures.rate, figures.processor_s_per_million, figures.others
                );
                append(&results, &figures.to_json(name, row))?;
                runs[index].1.push(figures);
            }
        }
    }
    eprintln!("all figures are appended to {}", results.display());
    Ok(measured)
}

fn append(path: &Path, line: &Value) -> anyhow::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))
}

fn print(measured: &[Measured], arguments: &Arguments) {
    println!("{}", machine());
    println!(
        "Each figure: median of {} run(s), {} s measured after {} s of warm-up, a checkpoint each second.",
        arguments.rounds, arguments.seconds, arguments.warm_up
    );
    for (name, rows) in measured {
        println!("\n### {name}\n\n{}", table::of_one(rows));
    }
    if let [(_, own), peers @ ..] = measured {
        for (name, rows) in peers {
            println!("### Ratios\n\n{}", table::of_ratios(name, own, rows));
        }
    }
}

/// The machine in a line, as far as it tells.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_else(|| "?".to_owned())
    };
    let cores = thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores of {}, memory {}, Linux {}.",
        field(&read("/proc/cpuinfo"), "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}
