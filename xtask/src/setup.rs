//! `cargo xtask setup`: a toolchain for Wasm.
//!
//! It never decides how to get one; that is `tidemill-toolchain`'s, which `tidemill build` uses too.

use tidemill_toolchain::WasmToolchain;

use crate::workspace::Workspace;

/// Makes the toolchain and says that it is there.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    ensure(workspace)?;
    eprintln!("this machine compiles for {}", tidemill_toolchain::TARGET);
    Ok(())
}

/// Makes the toolchain, with progress on standard error when there is something to do.
pub(crate) fn ensure(workspace: &Workspace) -> anyhow::Result<WasmToolchain> {
    Ok(tidemill_toolchain::ensure_for(workspace.root(), &|line| {
        eprintln!("{line}")
    })?)
}
