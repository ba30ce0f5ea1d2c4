//! The `tidemill` binary, for the verbs that start it.
//!
//! It never builds with options of its own: those of the workspace's profiles are what users get.

use std::path::PathBuf;

use crate::workspace::{self, Workspace};

/// Builds it with the dev profile and returns its path.
pub(crate) fn build(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    // For the whole workspace, as the tests are built: for one package alone the shared dependencies would have other
    // features, and many of them would be compiled twice.
    workspace::run(&mut workspace.cargo(["build", "--workspace", "--bin", "tidemill"]))?;
    Ok(workspace.target_directory()?.join("debug/tidemill"))
}

/// Builds it with the release profile and returns its path.
pub(crate) fn build_release(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let words = ["build", "--release", "--workspace", "--bin", "tidemill"];
    workspace::run(&mut workspace.cargo(words))?;
    Ok(workspace.target_directory()?.join("release/tidemill"))
}
