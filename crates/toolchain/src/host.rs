//! What this machine offers: the programs, the cache directory and the rights that the ladder may use.
//!
//! Everything comes in by this one struct, so that a test can describe another machine. It never runs
//! anything.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long `rustup target add` may take: it downloads 30 MB, and without a network it should not hold
/// anybody up for long.
const RUSTUP_TIMEOUT: Duration = Duration::from_secs(60);

/// The programs, paths and rights of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// The compiler that the user's builds use: a path, or a name that is looked up in `PATH`.
    pub(crate) rustc: PathBuf,
    /// The cargo to run, in the same way.
    pub(crate) cargo: PathBuf,
    /// `rustup`, when it is installed.
    pub(crate) rustup: Option<PathBuf>,
    /// The time limit of `rustup target add`.
    pub(crate) rustup_timeout: Duration,
    /// The distribution's compiler, whether or not it exists.
    pub(crate) system_rustc: PathBuf,
    /// `apt-get`, when it exists and this process may install packages.
    pub(crate) apt_get: Option<PathBuf>,
    /// Where `wasm-ld` is looked for, as in `PATH`.
    pub(crate) program_directories: Vec<PathBuf>,
    /// Where a standard library that is built here is kept; `None` when no place is known.
    pub(crate) cache_directory: Option<PathBuf>,
}

impl Host {
    /// Describes the machine this process runs on.
    pub(crate) fn detect() -> Self {
        let program_directories: Vec<PathBuf> = env::var_os("PATH")
            .map(|path| env::split_paths(&path).collect())
            .unwrap_or_default();
        let find = |name: &str| {
            program_directories
                .iter()
                .map(|directory| directory.join(name))
                .find(|path| path.is_file())
        };
        Self {
            rustc: variable("RUSTC").unwrap_or_else(|| "rustc".into()),
            cargo: variable("CARGO").unwrap_or_else(|| "cargo".into()),
            rustup: find("rustup"),
            rustup_timeout: RUSTUP_TIMEOUT,
            system_rustc: "/usr/bin/rustc".into(),
            apt_get: find("apt-get").filter(|_| is_root()),
            cache_directory: cache_directory(),
            program_directories,
        }
    }

    /// The newest `wasm-ld` of this machine: the plain name, else the one with the highest version
    /// behind it, as distributions install several (`wasm-ld-19`).
    pub(crate) fn wasm_linker(&self) -> Option<PathBuf> {
        self.program_directories
            .iter()
            .filter_map(|directory| newest_linker_in(directory))
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, path)| path)
    }
}

fn newest_linker_in(directory: &Path) -> Option<(u32, PathBuf)> {
    let entries = fs::read_dir(directory).ok()?;
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let rank = match name.to_str()?.strip_prefix("wasm-ld")? {
                "" => u32::MAX,
                suffix => suffix.strip_prefix('-')?.parse().ok()?,
            };
            Some((rank, entry.path()))
        })
        .max_by_key(|(rank, _)| *rank)
}

/// The path in an environment variable, unless it is unset or empty.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn cache_directory() -> Option<PathBuf> {
    variable("TIDEMILL_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("tidemill")))
        .or_else(|| variable("HOME").map(|path| path.join(".cache/tidemill")))
        .filter(|path| path.is_absolute())
}

/// Whether this process runs as root: the owner of `/proc/self` is the process's effective user.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_versioned_linker_wins_and_the_plain_name_beats_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let host = Host {
            program_directories: vec![directory.path().into(), "/no/such/place".into()],
            ..Host::detect()
        };
        assert_eq!(host.wasm_linker(), None);
        for name in ["wasm-ld-9", "wasm-ld-19", "wasm-ld-old", "wasm-ldd"] {
            fs::write(directory.path().join(name), "").expect("a file is written");
        }
        assert_eq!(
            host.wasm_linker(),
            Some(directory.path().join("wasm-ld-19"))
        );
        fs::write(directory.path().join("wasm-ld"), "").expect("a file is written");
        assert_eq!(host.wasm_linker(), Some(directory.path().join("wasm-ld")));
    }
}
