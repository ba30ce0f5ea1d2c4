//! `cargo xtask setup`: a toolchain for Wasm, and ZooKeeper for the tests.
//!
//! It never decides how to get a toolchain; that is `tidemill-toolchain`'s, which `tidemill build` uses too. It installs
//! system packages only where it may, and says otherwise what is to be installed.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context, bail};
use tidemill_toolchain::WasmToolchain;
use tidemill_zookeeper_ensemble::check_installation;

use crate::workspace::{self, Workspace};

/// What Debian and Ubuntu call Java and ZooKeeper, without a service that starts by itself.
const PACKAGES: [&str; 3] = ["default-jre-headless", "libzookeeper-java", "libslf4j-java"];

/// Makes both and says that they are there.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    ensure(workspace)?;
    eprintln!("this machine compiles for {}", tidemill_toolchain::TARGET);
    ensure_zookeeper()?;
    eprintln!("this machine can start ZooKeeper");
    Ok(())
}

/// Makes the toolchain, with progress on standard error when there is something to do.
pub(crate) fn ensure(workspace: &Workspace) -> anyhow::Result<WasmToolchain> {
    Ok(tidemill_toolchain::ensure_for(workspace.root(), &|line| {
        eprintln!("{line}")
    })?)
}

/// Installs Java and ZooKeeper where they are missing and this may be done.
pub(crate) fn ensure_zookeeper() -> anyhow::Result<()> {
    let Err(missing) = check_installation() else {
        return Ok(());
    };
    if !may_install() {
        bail!(
            "{missing}. On Debian and Ubuntu: apt-get install -y --no-install-recommends {}",
            PACKAGES.join(" ")
        );
    }
    eprintln!("{missing}: installing it, once");
    // Java's package registers its pages, and small images have no place for them.
    fs::create_dir_all("/usr/share/man/man1").context("cannot create /usr/share/man/man1")?;
    workspace::run(apt_get().arg("update"))?;
    let install = ["install", "-y", "--no-install-recommends"];
    workspace::run(apt_get().args(install).args(PACKAGES))?;
    check_installation().context("what apt-get installed does not suffice")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Whether this process may install packages, and knows how, and the user does not want others.
fn may_install() -> bool {
    let chosen = ["TIDEMILL_JAVA", "TIDEMILL_ZOOKEEPER_CLASSPATH"];
    if chosen.iter().any(|name| env::var_os(name).is_some()) {
        return false;
    }
    // SAFETY: the call has no preconditions and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let is_there = |mut command: Command| {
        let output = command.arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    is_root && is_there(apt_get())
}
