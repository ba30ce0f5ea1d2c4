//! The ways to get a toolchain for the target, from the cheapest to the last resort.
//!
//! It never leaves a step half done: a step either gives a whole toolchain or is noted, with its
//! reason, and the next one is tried. What is found once is found again at once.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TARGET;
use crate::build::WasmToolchain;
use crate::compiler::{Compiler, Version, oldest_release};
use crate::host::Host;
use crate::process::{self, Line, RunError};
use crate::standard_library::StandardLibrary;

/// Debian's packages with a recent compiler, its source, and a linker for Wasm.
const PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "lld-19"];

/// Why there is no toolchain.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    /// Every way was tried.
    #[error(
        "nothing on this machine can compile for {TARGET}:\n{}\n{}",
        tried.iter().map(|reason| format!("  - {reason}")).collect::<Vec<_>>().join("\n"),
        remedies()
    )]
    Unavailable {
        /// What was tried, and why each did not do, in order.
        tried: Vec<String>,
    },
    /// The lock that keeps two processes from preparing one toolchain could not be taken.
    #[error("cannot lock `{}`; set TIDEMILL_CACHE_DIR to a directory that you may write to", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn remedies() -> String {
    format!(
        "do one of these, and run the command again:\n  \
         - with rustup (https://rustup.rs): rustup target add {TARGET}\n  \
         - on Debian or Ubuntu, as root: apt-get install --no-install-recommends {}\n  \
         - with another compiler of {} or newer: install the source of its standard library \
         (rustup component add rust-src) and a linker named wasm-ld, and set RUSTC to it",
        PACKAGES.join(" "),
        oldest_release(),
    )
}

/// Gives a toolchain for the target to builds in the current directory: the installed one, else one
/// that rustup adds, else a system compiler whose standard library is built here, once.
///
/// Long work is told to `progress`, a line at a time. Any number of processes may call this at once, and
/// any may be killed: one works, the others wait for it.
pub fn ensure(progress: &dyn Fn(&str)) -> Result<WasmToolchain, ToolchainError> {
    ensure_for(Path::new("."), progress)
}

/// Like [`ensure`], for builds in `directory`: rustup may choose the compiler by it.
pub fn ensure_for(
    directory: &Path,
    progress: &dyn Fn(&str),
) -> Result<WasmToolchain, ToolchainError> {
    climb(&Host::detect(), directory, progress)
}

/// A compiler that could build its own standard library.
struct Candidate {
    compiler: Compiler,
    version: Version,
}

/// One climb: what it needs at every step, and what it has tried.
struct Climb<'a> {
    host: &'a Host,
    directory: &'a Path,
    progress: &'a dyn Fn(&str),
    tried: Vec<String>,
}

fn climb(
    host: &Host,
    directory: &Path,
    progress: &dyn Fn(&str),
) -> Result<WasmToolchain, ToolchainError> {
    let mut climb = Climb {
        host,
        directory,
        progress,
        tried: Vec::new(),
    };
    if let Some(toolchain) = climb.existing() {
        return Ok(toolchain);
    }
    let _lock = climb.lock()?;
    // While this process waited, another may have done the work.
    climb.tried.clear();
    if let Some(toolchain) = climb.existing() {
        return Ok(toolchain);
    }
    if let Some(toolchain) = climb.added_by_rustup() {
        return Ok(toolchain);
    }
    if let Some(toolchain) = climb.built() {
        return Ok(toolchain);
    }
    if climb.install_packages()
        && let Some(toolchain) = climb.built()
    {
        return Ok(toolchain);
    }
    Err(ToolchainError::Unavailable { tried: climb.tried })
}

impl Climb<'_> {
    /// A toolchain that is there already, found without changing anything.
    fn existing(&mut self) -> Option<WasmToolchain> {
        self.installed().or_else(|| {
            let candidates = self.candidates();
            candidates.iter().find_map(|candidate| {
                self.toolchain_of(candidate, &candidate.library(self.host)?.find()?)
            })
        })
    }

    /// The user's own compiler, when it has the target.
    fn installed(&mut self) -> Option<WasmToolchain> {
        match Compiler::probe(&self.host.rustc, self.directory) {
            Ok(compiler) if compiler.has_target() => Some(WasmToolchain {
                cargo: self.host.cargo.clone(),
                rustc: None,
                sysroot: None,
                linker: None,
            }),
            Ok(compiler) => {
                let directory = compiler.target_library_directory();
                self.note(format!(
                    "`{}` has no standard library in {}",
                    self.host.rustc.display(),
                    directory.display()
                ));
                None
            }
            Err(error) => {
                self.note(error.to_string());
                None
            }
        }
    }

    /// The compilers with the source of their standard library: the user's own, then the system's.
    fn candidates(&mut self) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for rustc in [&self.host.rustc, &self.host.system_rustc] {
            // A name is looked up in PATH; a path must exist.
            if rustc.is_absolute() && !rustc.is_file() {
                self.note(format!(
                    "there is no system compiler at {}",
                    rustc.display()
                ));
                continue;
            }
            match candidate(rustc, self.directory) {
                Ok(found)
                    if candidates
                        .iter()
                        .any(|known| known.compiler.program == found.compiler.program) => {}
                Ok(found) => candidates.push(found),
                Err(reason) => self.note(reason),
            }
        }
        candidates
    }

    /// Lets rustup add the target to the user's compiler.
    fn added_by_rustup(&mut self) -> Option<WasmToolchain> {
        let Some(rustup) = &self.host.rustup else {
            self.note("rustup is not installed".to_owned());
            return None;
        };
        (self.progress)(&format!("rustup target add {TARGET}"));
        let mut command = Command::new(rustup);
        command
            .args(["target", "add", TARGET])
            .current_dir(self.directory);
        match process::run(&mut command, Some(self.host.rustup_timeout), &mut |_| {}) {
            Ok(()) => self.installed(),
            Err(error) => {
                self.note(error.to_string());
                None
            }
        }
    }

    /// Builds the standard library of the first candidate for which that works.
    fn built(&mut self) -> Option<WasmToolchain> {
        let candidates = self.candidates();
        for candidate in &candidates {
            let Some(library) = candidate.library(self.host) else {
                self.note("no cache directory is known: set TIDEMILL_CACHE_DIR or HOME".to_owned());
                continue;
            };
            // Before the long work, so that it is not in vain.
            if candidate.linker(self.host).is_err() {
                let program = candidate.compiler.program.display();
                self.note(format!(
                    "`{program}` brings no linker for Wasm, and no wasm-ld is in PATH (package lld)"
                ));
                continue;
            }
            match library.build(&self.host.cargo, self.progress) {
                Ok(sysroot) => return self.toolchain_of(candidate, &sysroot),
                Err(error) => self.note(error.to_string()),
            }
        }
        None
    }

    /// Installs the system compiler, when this process may; tells whether it did.
    fn install_packages(&mut self) -> bool {
        let Some(apt_get) = &self.host.apt_get else {
            self.note(format!(
                "the packages {} cannot be installed: not root, or no apt-get here",
                PACKAGES.join(", ")
            ));
            return false;
        };
        (self.progress)(&format!("apt-get install {}", PACKAGES.join(" ")));
        let install = ["install", "-y", "--no-install-recommends"];
        for arguments in [
            vec!["update"],
            [install.as_slice(), PACKAGES.as_slice()].concat(),
        ] {
            let mut command = Command::new(apt_get);
            command
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive");
            if let Err(error) =
                process::run(&mut command, None, &mut |line| self.report_package(line))
            {
                self.note(error.to_string());
                return false;
            }
        }
        true
    }

    fn report_package(&self, line: &Line) {
        if let Line::Output(text) = line
            && ["Unpacking ", "Setting up "]
                .iter()
                .any(|start| text.starts_with(start))
        {
            (self.progress)(text);
        }
    }

    fn toolchain_of(&self, candidate: &Candidate, sysroot: &Path) -> Option<WasmToolchain> {
        Some(WasmToolchain {
            cargo: self.host.cargo.clone(),
            rustc: Some(candidate.compiler.program.clone()),
            sysroot: Some(sysroot.to_owned()),
            linker: candidate.linker(self.host).ok()?,
        })
    }

    /// Keeps other processes from the same work until the file is dropped, or this process dies.
    fn lock(&self) -> Result<Option<File>, ToolchainError> {
        let Some(directory) = &self.host.cache_directory else {
            return Ok(None);
        };
        let path = directory.join("toolchain.lock");
        let failed = |source| ToolchainError::Lock {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(directory).map_err(failed)?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                (self.progress)("waiting for another process that prepares the same toolchain");
                file.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(Some(file))
    }

    fn note(&mut self, reason: String) {
        if !self.tried.contains(&reason) {
            self.tried.push(reason);
        }
    }
}

/// Looks at one compiler; the error says why it is no candidate.
fn candidate(rustc: &Path, directory: &Path) -> Result<Candidate, String> {
    let text = |error: RunError| error.to_string();
    let compiler = Compiler::probe(rustc, directory).map_err(text)?;
    let program = compiler.program.display();
    if compiler.library_source().is_none() {
        return Err(format!(
            "`{program}` has no source of its standard library in {}",
            compiler.sysroot.display()
        ));
    }
    let version = compiler.version().map_err(text)?;
    if !version.is_recent_enough() {
        return Err(format!(
            "`{program}` is {}, older than {}",
            version.release(),
            oldest_release()
        ));
    }
    Ok(Candidate { compiler, version })
}

/// Neither the compiler nor the machine has a linker for Wasm.
struct NoLinker;

impl Candidate {
    /// The place of its standard library, if there is a cache.
    fn library(&self, host: &Host) -> Option<StandardLibrary<'_>> {
        Some(StandardLibrary::new(
            &self.compiler,
            &self.version,
            host.cache_directory.as_deref()?,
        ))
    }

    /// The linker to name: none when the compiler brings its own.
    fn linker(&self, host: &Host) -> Result<Option<PathBuf>, NoLinker> {
        if self.compiler.has_linker() {
            return Ok(None);
        }
        host.wasm_linker().map(Some).ok_or(NoLinker)
    }
}

#[cfg(test)]
mod tests;
