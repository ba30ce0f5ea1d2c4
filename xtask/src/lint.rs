//! `cargo xtask lint`: everything that judges the source without running it.
//!
//! It never stops at the first failure: all the judgements come in one run, with a list at the end.

use anyhow::bail;

use crate::workspace::{self, Workspace};
use crate::{check_dependencies, tidy, tools};

/// A judgement's name and how to get it.
type Check = (&'static str, fn(&Workspace) -> anyhow::Result<()>);

/// The quick ones first.
const CHECKS: [Check; 7] = [
    ("format", format),
    ("tidy", tidy::run),
    ("dependencies", check_dependencies::run),
    ("clippy", clippy),
    ("documentation", documentation),
    ("licences", licences),
    ("advisories", advisories),
];

/// Runs all checks and fails if any did.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        if let Err(error) = check(workspace) {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint found something: {}", failed.join(", "));
    }
    eprintln!("lint: all {} checks passed", CHECKS.len());
    Ok(())
}

fn format(workspace: &Workspace) -> anyhow::Result<()> {
    workspace::run(&mut workspace.cargo(["fmt", "--all", "--check"]))
}

fn clippy(workspace: &Workspace) -> anyhow::Result<()> {
    let words = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ];
    workspace::run(&mut workspace.cargo(words))
}

/// The libraries' only: the SDK and the binary share their name, and would share their pages.
fn documentation(workspace: &Workspace) -> anyhow::Result<()> {
    let words = ["doc", "--workspace", "--no-deps", "--lib", "--quiet"];
    workspace::run(
        workspace
            .cargo(words)
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )
}

fn licences(workspace: &Workspace) -> anyhow::Result<()> {
    tools::ensure(workspace, "deny", "cargo-deny")?;
    let words = [
        "deny",
        "--log-level=error",
        "check",
        "licenses",
        "bans",
        "sources",
    ];
    workspace::run(&mut workspace.cargo(words))
}

/// Known vulnerabilities, where their database can be fetched. A machine without that network says so
/// and goes on: the database changes by the day, so a stored copy would only pretend.
fn advisories(workspace: &Workspace) -> anyhow::Result<()> {
    tools::ensure(workspace, "deny", "cargo-deny")?;
    if workspace::run(&mut workspace.cargo(["deny", "--log-level=off", "fetch", "db"])).is_err() {
        eprintln!("advisories: NOT CHECKED, for their database cannot be fetched from here");
        return Ok(());
    }
    let words = [
        "deny",
        "--log-level=error",
        "check",
        "--disable-fetch",
        "advisories",
    ];
    workspace::run(&mut workspace.cargo(words))
}
