//! Cargo's sub-commands that the project needs and a new machine may lack.
//!
//! It never replaces one that is installed, whatever its version.

use std::process::Stdio;

use crate::workspace::{self, Workspace};

/// Installs the crate `name` when `cargo VERB` does not work.
pub(crate) fn ensure(workspace: &Workspace, verb: &str, name: &str) -> anyhow::Result<()> {
    let mut probe = workspace.cargo([verb, "--version"]);
    let installed = probe.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if installed.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    eprintln!("installing {name}, once: a few minutes");
    // Not in the workspace, whose configuration is not theirs.
    workspace::run(
        workspace
            .cargo(["install", "--locked", name])
            .current_dir("/"),
    )
}
