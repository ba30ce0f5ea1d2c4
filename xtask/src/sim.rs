//! `cargo xtask sim`: clusters in a simulated world, one for each seed.
//!
//! It never judges a run: the simulator's exit code tells what it found, and is this program's.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

use crate::workspace::{self, Workspace};

/// How many seeds the tests run.
const SEEDS_OF_TESTS: u64 = 200;

/// From this many seeds on, a build that takes a minute more is worth it.
const SEEDS_WORTH_A_RELEASE: u64 = 2_000;

/// What to simulate.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many seeds to run, from --seed on
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// The first seed, or the only one [default: 0]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Play this scenario instead of faults that the seed chooses; `all` plays each
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Break the machines, one fault after the other, and expect the checkers to find each
    #[arg(long)]
    mutations: bool,
    /// Show each event of one seed, one at a time
    #[arg(long)]
    step: bool,
    /// Print the first N events of one seed
    #[arg(long, value_name = "N")]
    until: Option<u64>,
    /// Compile with the release profile; done anyhow for many seeds
    #[arg(long)]
    release: bool,
}

/// Builds the simulator and runs it.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let is_release = arguments.release || arguments.seeds >= SEEDS_WORTH_A_RELEASE;
    let simulator = build(workspace, is_release, arguments.mutations)?;
    let mut command = Command::new(simulator);
    command.args(["--seeds", &arguments.seeds.to_string()]);
    if let Some(seed) = arguments.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(scenario) = &arguments.scenario {
        command.args(["--scenario", scenario]);
    }
    if let Some(events) = arguments.until {
        command.args(["--until", &events.to_string()]);
    }
    for (flag, is_given) in [
        ("--mutations", arguments.mutations),
        ("--step", arguments.step),
    ] {
        command.args(is_given.then_some(flag));
    }
    let status = command.status().context("cannot start the simulator")?;
    // A signal has no code; it counts as a crash, which a Rust program says with 101.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(101)))
}

/// What the tests of a change run: seeds of the full mix of faults, and the proof that the checkers see.
pub(crate) fn check(workspace: &Workspace) -> anyhow::Result<()> {
    for mutations in [false, true] {
        let simulator = build(workspace, false, mutations)?;
        let mut command = Command::new(simulator);
        if mutations {
            command.arg("--mutations");
        } else {
            command.args(["--seeds", &SEEDS_OF_TESTS.to_string()]);
        }
        let status = command.status().context("cannot start the simulator")?;
        ensure!(status.success(), "the simulator found something ({status})");
    }
    Ok(())
}

fn build(workspace: &Workspace, is_release: bool, mutations: bool) -> anyhow::Result<PathBuf> {
    let mut command = workspace.cargo(["build", "--quiet", "--bin", "simulator"]);
    if mutations {
        // A build of its own, since no other may have the faults in it.
        command.args(["-p", "tidemill-simulator", "--features", "mutations"]);
    } else if is_release {
        command.args(["-p", "tidemill-simulator"]);
    } else {
        // With the features that everything else is built with: nothing is compiled twice.
        command.arg("--workspace");
    }
    if is_release {
        command.arg("--release");
    }
    workspace::run(&mut command)?;
    let profile = if is_release { "release" } else { "debug" };
    let directory = workspace.target_directory()?;
    Ok(directory.join(profile).join("simulator"))
}
