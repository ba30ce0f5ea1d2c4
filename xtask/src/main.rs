//! The project's own commands, as `cargo xtask VERB`: a file per verb.
//!
//! It never holds logic that a user of Tidemill needs; that is in the crates. Its dependencies are few,
//! for it is the first thing that a newcomer compiles.

mod bench;
mod binary;
mod build_wasm;
mod check_dependencies;
mod cluster;
mod demo;
mod interrupt;
mod lint;
mod setup;
mod sim;
mod test;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Tidemill's developer commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make this machine able to compile jobs to Wasm and to start ZooKeeper. Quick when it already is.
    Setup,
    /// Compile example jobs to Wasm and print the modules' paths.
    BuildWasm(build_wasm::Arguments),
    /// Run a job on a cluster, kill a machine of it in mid-run, and check the result.
    Demo(demo::Arguments),
    /// Measure throughput, processor time and memory, also against another system's harness.
    Bench(bench::Arguments),
    /// Run clusters in a simulated world, one for each seed. The exit code is the simulator's.
    Sim(sim::Arguments),
    /// Run every test: set-up, example jobs, the binary, doctests, simulations, then all tests.
    Test(test::Arguments),
    /// Check format, lints, documentation, licences, and this project's own rules.
    Lint,
    /// Check who may depend on whom.
    CheckDependencies,
    /// Check heads, lengths and leftovers of the source files.
    Tidy,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::find()?;
    let done = match verb {
        Verb::Sim(arguments) => return sim::run(&workspace, &arguments),
        Verb::Setup => setup::run(&workspace),
        Verb::BuildWasm(arguments) => build_wasm::run(&workspace, &arguments),
        Verb::Demo(arguments) => demo::run(&workspace, &arguments),
        Verb::Bench(arguments) => bench::run(&workspace, &arguments),
        Verb::Test(arguments) => test::run(&workspace, &arguments),
        Verb::Lint => lint::run(&workspace),
        Verb::CheckDependencies => check_dependencies::run(&workspace),
        Verb::Tidy => tidy::run(&workspace),
    };
    done.map(|()| ExitCode::SUCCESS)
}
