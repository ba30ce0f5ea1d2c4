//! Where the workspace is, what cargo says about it, and how commands are run in it.
//!
//! It never interprets a command's output beyond its exit status.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// The workspace that this command belongs to.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace by what `cargo run` says, else by where this program was compiled.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let manifest_directory =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest_directory)
            .parent()
            .unwrap_or(Path::new("/"))
            .to_owned();
        ensure!(
            root.join("xtask/Cargo.toml").is_file(),
            "{} is not the workspace: run this as `cargo xtask`",
            root.display()
        );
        Ok(Self { root })
    }

    /// The directory of the root manifest.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A cargo command in the root directory.
    pub(crate) fn cargo<Word: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = Word>,
    ) -> Command {
        let mut command = Command::new(
            env::var_os("CARGO")
                .as_deref()
                .unwrap_or(OsStr::new("cargo")),
        );
        command.args(words).current_dir(&self.root);
        // What `cargo run` says about this program: build scripts that ask for such variables (ring's does) would be run
        // again, with all that depends on them, each time cargo is started by hand and from here in turn.
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name.as_ref());
            }
        }
        command
    }

    /// Everything that `cargo metadata` says, with `arguments` added.
    pub(crate) fn metadata(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = self.cargo(["metadata", "--format-version=1"]);
        let output = command.args(arguments).stderr(Stdio::inherit()).output();
        let output = output.context("cannot run cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata failed ({})",
            output.status
        );
        serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
    }

    /// Where cargo puts what it makes.
    pub(crate) fn target_directory(&self) -> anyhow::Result<PathBuf> {
        let metadata = self.metadata(&["--no-deps"])?;
        let directory = metadata["target_directory"].as_str();
        Ok(directory
            .context("cargo metadata names no target directory")?
            .into())
    }

    /// The names of the packages whose manifests are under `directory`, sorted.
    pub(crate) fn packages_under(&self, directory: &str) -> anyhow::Result<Vec<String>> {
        let metadata = self.metadata(&["--no-deps"])?;
        let prefix = self.root.join(directory);
        let packages = metadata["packages"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut names: Vec<String> = packages
            .iter()
            .filter(|package| {
                let manifest = package["manifest_path"].as_str();
                manifest.is_some_and(|path| Path::new(path).starts_with(&prefix))
            })
            .filter_map(|package| package["name"].as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }
}

/// Shows `command` and runs it to its end.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_owned();
    let shown = format!("{} {}", program.display(), words.join(" "));
    eprintln!("$ {shown}");
    let status = command
        .status()
        .with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}
