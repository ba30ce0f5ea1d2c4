//! `cargo xtask test [ARGUMENT…]`: every test there is.
//!
//! It never runs the tests before what they need is built: the end-to-end tests start the `tidemill`
//! binary and submit the example jobs, and are told by the environment where both are. The runner's
//! summary is the last thing on the screen.

use anyhow::Context;

use crate::workspace::{self, Workspace};
use crate::{build_wasm, setup, sim, tools};

/// The path of the `tidemill` binary, for the tests.
const BINARY_VARIABLE: &str = "TIDEMILL_BIN";

/// The directory of the example jobs' modules, for the tests.
const MODULES_VARIABLE: &str = "TIDEMILL_WASM_DIR";

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Further arguments of `cargo nextest run`, such as a filter; doctests and simulations are left out then.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds, then runs doctests, then simulations, then all other tests.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    tools::ensure(workspace, "nextest", "cargo-nextest")?;
    setup::ensure_zookeeper()?;
    let modules = build_wasm::build(workspace, &[])?;
    let directory = modules
        .first()
        .and_then(|module| module.parent())
        .context("no module was built")?;
    // All at once, as the runner would: a build of the binary alone has other features of the shared
    // dependencies, and would compile many of them twice.
    workspace::run(&mut workspace.cargo(["build", "--workspace", "--tests", "--bin", "tidemill"]))?;
    let binary = workspace.target_directory()?.join("debug/tidemill");

    if arguments.arguments.is_empty() {
        workspace::run(&mut workspace.cargo(["test", "--workspace", "--doc", "--quiet"]))?;
        sim::check(workspace)?;
    }
    let mut command = workspace.cargo(["nextest", "run", "--workspace"]);
    command
        .args(&arguments.arguments)
        .env(BINARY_VARIABLE, binary)
        .env(MODULES_VARIABLE, directory);
    workspace::run(&mut command)
}
