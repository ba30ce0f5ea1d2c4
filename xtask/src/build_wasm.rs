//! `cargo xtask build-wasm [PACKAGE…]`: the example jobs as modules.
//!
//! It never touches the target directory of native builds, so that the two don't wait for each other.

use std::path::PathBuf;

use anyhow::ensure;
use tidemill_toolchain::BuildOptions;

use crate::setup;
use crate::workspace::Workspace;

/// What to build.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The packages to build; all example jobs when none is named.
    packages: Vec<String>,
}

/// Builds and prints a path on each line.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    for module in build(workspace, &arguments.packages)? {
        println!("{}", module.display());
    }
    Ok(())
}

/// Builds `packages`, or all example jobs when there are none, and returns the modules' paths.
pub(crate) fn build(workspace: &Workspace, packages: &[String]) -> anyhow::Result<Vec<PathBuf>> {
    let toolchain = setup::ensure(workspace)?;
    let mut options = BuildOptions::new(workspace.root().join("Cargo.toml"));
    options.packages = match packages {
        [] => workspace.packages_under("examples-wasm")?,
        named => named.to_vec(),
    };
    ensure!(
        !options.packages.is_empty(),
        "there is no crate in examples-wasm"
    );
    options.profile = "wasm".to_owned();
    options.target_directory = Some(workspace.target_directory()?.join("wasm"));
    Ok(toolchain.cargo_build(&options)?)
}
