//! `cargo bench -p tidemill-benches`: what one record costs in the guest. The measured jobs run in one thread without a
//! cluster: an instance of the first stage is polled, and what it emits is handed to the instances of the second. The
//! same stages run as native code, for the ratio of Wasm to native.
//!
//! It never measures wall time, so that other work on the machine disturbs it little; and it takes turns between Wasm
//! and native, round after round, so that a slow moment slows both.

mod cpu;
mod native;
mod pipeline;
mod table;
mod wasm;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tidemill_runtime::{Engine, EngineOptions, Module, ModuleLimits, prepare};

use native::Native;
use pipeline::{Pipeline, Spent};
use wasm::Wasm;

/// The jobs, as the module's parameter calls them.
const JOBS: [&str; 3] = ["count-gen", "pass", "pass-rebalance"];

/// Measures the guest's side of the benchmark jobs, in CPU time of one thread.
#[derive(Parser)]
struct Arguments {
    /// The jobs; all when none is named.
    #[arg(value_parser = JOBS)]
    jobs: Vec<String>,

    /// How many rounds each job runs, as Wasm and as native code in turn.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// CPU milliseconds of a round.
    #[arg(long, value_name = "N", default_value_t = 300)]
    round_ms: u64,

    /// Subtasks of each stage. One of the first stage is run, and all of the second.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=128))]
    parallelism: u32,

    /// Leave out native code.
    #[arg(long)]
    wasm_only: bool,

    /// The module; otherwise what `cargo xtask build-wasm bench` made.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,

    /// Keep the compiled code in this directory, where a disassembler finds it.
    #[arg(long, value_name = "DIR")]
    code: Option<PathBuf>,

    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let module = compile(&arguments)?;
    let jobs: Vec<&str> = match arguments.jobs.as_slice() {
        [] => JOBS.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    table::print_head();
    for job in jobs {
        let parallelism = arguments.parallelism;
        let mut wasm = Pipeline::new(job, parallelism, |request| Wasm::open(&module, &request))?;
        let mut native = match arguments.wasm_only {
            true => None,
            false => Some(Pipeline::new(job, parallelism, |request| {
                Native::open(request)
            })?),
        };
        let round = Duration::from_millis(arguments.round_ms);
        // Keys, pages and predictors get to know each other.
        wasm.run(round)?;
        if let Some(native) = &mut native {
            native.run(round)?;
        }
        let mut spent: [Vec<Spent>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..arguments.rounds {
            spent[0].push(wasm.run(round)?);
            if let Some(native) = &mut native {
                spent[1].push(native.run(round)?);
            }
        }
        table::print_rows(job, &spent[0], &spent[1]);
    }
    Ok(())
}

fn compile(arguments: &Arguments) -> anyhow::Result<Module> {
    let path = arguments.module.clone().unwrap_or_else(|| {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        PathBuf::from(root).join("target/wasm/wasm32-unknown-unknown/wasm/bench.wasm")
    });
    let wasm = std::fs::read(&path).with_context(|| {
        let path = path.display();
        format!("cannot read {path}: make it with `cargo xtask build-wasm bench`, or name another with `--module`")
    })?;
    let prepared = prepare(&wasm, &ModuleLimits::default())?;
    let engine = Engine::new(EngineOptions::default())?;
    Ok(engine.compile(&prepared.bytes, arguments.code.as_deref())?)
}
