//! What the tests need and do not build: the `tidemill` binary, the example jobs' modules, and their input. `cargo xtask
//! test` builds them and says in the environment where they are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

const REMEDY: &str = "`cargo xtask test` builds everything that the tests need";

/// The `tidemill` binary: `TIDEMILL_BIN`, else the one in the target directory of this very test.
///
/// # Errors
/// When there is none.
pub fn tidemill() -> anyhow::Result<PathBuf> {
    let path = match env::var_os("TIDEMILL_BIN") {
        Some(path) => PathBuf::from(path),
        None => profile_directory()?.join("tidemill"),
    };
    ensure!(path.is_file(), "there is no {}: {REMEDY}", path.display());
    Ok(path)
}

/// The module of an example job, by its crate's name: in `TIDEMILL_WASM_DIR`, else where `cargo xtask build-wasm` puts it.
///
/// # Errors
/// When there is none.
pub fn module(name: &str) -> anyhow::Result<PathBuf> {
    let directory = match env::var_os("TIDEMILL_WASM_DIR") {
        Some(path) => PathBuf::from(path),
        None => {
            let target = profile_directory()?;
            let target = target
                .parent()
                .context("a profile lies in a target directory")?;
            target.join("wasm/wasm32-unknown-unknown/wasm")
        }
    };
    let path = directory.join(format!("{}.wasm", name.replace('-', "_")));
    ensure!(path.is_file(), "there is no {}: {REMEDY}", path.display());
    Ok(path)
}

/// A file of the example jobs' input.
///
/// # Panics
/// Never: this crate has a parent directory.
#[must_use]
pub fn data(name: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let workspace = workspace.expect("the crate lies in the workspace");
    workspace.join("examples-wasm/data").join(name)
}

/// `target/debug`, or what it is called: test executables lie in `deps` below it.
fn profile_directory() -> anyhow::Result<PathBuf> {
    let test = env::current_exe()?;
    let directory = test.parent().and_then(Path::parent);
    Ok(directory
        .context("a test executable lies in a target directory")?
        .to_owned())
}
