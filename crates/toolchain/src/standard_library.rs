//! Builds the target's standard library from a compiler's source, once, into the user's cache.
//!
//! The result is a sysroot of its own beside the compiler's: nothing is written where a package
//! manager's files are, and no right beyond the user's is needed. It is moved into place whole, and a
//! stamp names the compiler and every file in it, so that what a killed build or another release left
//! behind is never taken for it.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use crate::TARGET;
use crate::build::{Artifact, clean_environment};
use crate::compiler::{Compiler, Version};
use crate::process::{Line, RunError, run};

/// Raised whenever a sysroot of an older Tidemill must not be used, as when the flags change.
const REVISION: u32 = 1;

/// The file that is written last; what it says must hold for the sysroot to be used.
const STAMP: &str = "tidemill-stamp";

/// How the names of directories begin in which builds work.
const WORK_PREFIX: &str = "work-";

/// The crate whose only purpose is to make cargo build the standard library.
const PROBE: &str = "tidemill-std-probe";

/// Why the standard library could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    /// The cache directory could not be used.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Files {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The build failed.
    #[error(transparent)]
    Build(#[from] RunError),
    /// The build ended well, without the libraries.
    #[error("the standard library's build made no `{0}` library")]
    Incomplete(&'static str),
}

/// The place of one compiler's standard library in the cache.
pub(crate) struct StandardLibrary<'a> {
    compiler: &'a Compiler,
    version: &'a Version,
    /// The directory of all of them.
    home: PathBuf,
    /// The name of this one.
    name: String,
}

impl<'a> StandardLibrary<'a> {
    /// Names the place, without touching it.
    pub(crate) fn new(compiler: &'a Compiler, version: &'a Version, cache: &Path) -> Self {
        let commit = version.commit().get(..9).unwrap_or("unknown");
        let name = format!("{}-{commit}-r{REVISION}", version.release());
        Self {
            compiler,
            version,
            home: cache.join("wasm-std"),
            name,
        }
    }

    /// The sysroot to give to the compiler, if it is there and whole.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let sysroot = self.home.join(&self.name);
        let stamp = fs::read_to_string(sysroot.join(STAMP)).ok()?;
        let expected = stamp_of(self.version, &libraries_in(&sysroot).ok()?);
        (stamp == expected).then_some(sysroot)
    }

    /// Builds it. The caller holds the cache's lock.
    pub(crate) fn build(
        &self,
        cargo: &Path,
        progress: &dyn Fn(&str),
    ) -> Result<PathBuf, LibraryError> {
        let release = self.version.release();
        progress(&format!(
            "building the standard library of rustc {release} for {TARGET}: about a minute, once"
        ));
        // A killed process leaves its cargo running, which goes on writing here: never share it.
        let work = self
            .home
            .join(format!("{WORK_PREFIX}{}-{}", self.name, process::id()));
        let staging = self.home.join(format!("staging-{}", self.name));
        let sysroot = self.home.join(&self.name);
        let libraries = self.compile(cargo, &work, progress)?;

        remove(&staging)?;
        let directory = library_directory(&staging);
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        for library in libraries {
            let Some(name) = library.file_name() else {
                continue;
            };
            let placed = directory.join(name);
            fs::rename(&library, &placed).map_err(failed("move a library to", &placed))?;
            sync(&placed)?;
        }
        let placed = libraries_in(&staging).map_err(failed("read", &directory))?;
        for required in ["core", "alloc", "std", "panic_abort"] {
            if !placed
                .iter()
                .any(|(name, _)| name.starts_with(&format!("lib{required}-")))
            {
                return Err(LibraryError::Incomplete(required));
            }
        }
        let stamp = staging.join(STAMP);
        fs::write(&stamp, stamp_of(self.version, &placed)).map_err(failed("write", &stamp))?;
        sync(&stamp)?;

        remove(&sysroot)?;
        fs::rename(&staging, &sysroot).map_err(failed("move the sysroot to", &sysroot))?;
        self.remove_work();
        Ok(sysroot)
    }

    /// Removes what this build and killed ones worked in. What cannot be removed now is removed
    /// after the next build: no reason to fail.
    fn remove_work(&self) {
        for entry in fs::read_dir(&self.home)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            if entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(WORK_PREFIX))
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Runs cargo's `build-std` and returns the libraries that it made.
    fn compile(
        &self,
        cargo: &Path,
        work: &Path,
        progress: &dyn Fn(&str),
    ) -> Result<Vec<PathBuf>, LibraryError> {
        // A killed process may have had the same id.
        remove(work)?;
        let source_directory = work.join("src");
        fs::create_dir_all(&source_directory).map_err(failed("create", &source_directory))?;
        let manifest = work.join("Cargo.toml");
        let text = format!(
            "[package]\nname = \"{PROBE}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n"
        );
        fs::write(&manifest, text).map_err(failed("write", &manifest))?;
        let root = source_directory.join("lib.rs");
        fs::write(&root, "#![no_std]\n").map_err(failed("write", &root))?;

        let mut command = Command::new(cargo);
        clean_environment(&mut command);
        for (name, _) in env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("CARGO_PROFILE_"))
            {
                command.env_remove(name);
            }
        }
        // Both the compiler and cargo take unstable options only so. Libraries without bitcode could
        // not take part in the link-time optimisation of the job.
        command
            .env("RUSTC", &self.compiler.program)
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTC_WRAPPER");
        let flags = format!("target.{TARGET}.rustflags=[\"-Cembed-bitcode=yes\"]");
        command.current_dir(work).args([
            "build",
            "--release",
            "--target",
            TARGET,
            "--config",
            &flags,
        ]);
        command.args([
            "-Zbuild-std=std,panic_abort",
            "--message-format=json-render-diagnostics",
            "--target-dir",
        ]);
        command.arg(work.join("target"));
        let mut libraries = Vec::new();
        run(&mut command, None, &mut |line| match line {
            Line::Output(text) => libraries.extend(libraries_of(text)),
            Line::Error(text) => progress(&without_path(text)),
        })?;
        Ok(libraries)
    }
}

/// The libraries for the target among the files of cargo's message, if it is about one.
fn libraries_of(message: &str) -> Vec<PathBuf> {
    let Some(artifact) = Artifact::parse(message) else {
        return Vec::new();
    };
    let is_ours = |file: &Path| {
        file.extension()
            .is_some_and(|extension| extension == "rlib")
            && file
                .components()
                .any(|component| component.as_os_str() == TARGET)
    };
    if artifact.target_name == PROBE.replace('-', "_") {
        return Vec::new();
    }
    artifact
        .files
        .into_iter()
        .filter(|file| is_ours(file))
        .collect()
}

/// Cargo's progress line without the path of the source, which says nothing to a user.
fn without_path(line: &str) -> String {
    line.split(" (")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn library_directory(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib").join(TARGET).join("lib")
}

/// Names and sizes in bytes of a sysroot's libraries, sorted.
fn libraries_in(sysroot: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut libraries = Vec::new();
    for entry in fs::read_dir(library_directory(sysroot))? {
        let entry = entry?;
        libraries.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.metadata()?.len(),
        ));
    }
    libraries.sort();
    Ok(libraries)
}

fn stamp_of(version: &Version, libraries: &[(String, u64)]) -> String {
    let files: String = libraries
        .iter()
        .map(|(name, bytes)| format!("{bytes} {name}\n"))
        .collect();
    format!("{}\n{files}", version.identity)
}

/// Removes a directory of ours with all that is in it, if it exists.
fn remove(directory: &Path) -> Result<(), LibraryError> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", directory)(source))
        }
        _ => Ok(()),
    }
}

fn sync(file: &Path) -> Result<(), LibraryError> {
    File::open(file)
        .and_then(|file| file.sync_all())
        .map_err(failed("write", file))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LibraryError {
    move |source| LibraryError::Files {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_targets_libraries_count() {
        let message = |name: &str, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"filenames":["{file}","/x/y.rmeta"]}}"#
            )
        };
        let library = "/build/target/wasm32-unknown-unknown/release/deps/libcore-1.rlib";
        assert_eq!(
            libraries_of(&message("core", library)),
            [PathBuf::from(library)]
        );
        assert!(libraries_of(&message("tidemill_std_probe", library)).is_empty());
        assert!(
            libraries_of(&message(
                "core",
                "/build/target/release/deps/libcore-1.rlib"
            ))
            .is_empty()
        );
        assert!(libraries_of("not a message").is_empty());
    }

    #[test]
    fn progress_lines_lose_the_path() {
        assert_eq!(
            without_path("   Compiling core v0.0.0 (/usr/lib/x)"),
            "Compiling core v0.0.0"
        );
        assert_eq!(
            without_path("    Updating crates.io index"),
            "Updating crates.io index"
        );
    }
}
