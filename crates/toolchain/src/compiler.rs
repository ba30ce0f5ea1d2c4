//! What one installed rustc can do: its version, its directories, its standard library's source.
//!
//! It asks the compiler and looks at files; it never installs or builds anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use crate::TARGET;
use crate::process::{self, RunError};

/// The oldest compiler that Tidemill's crates build with, as (major, minor).
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// One installed compiler.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    /// The compiler itself, never a proxy that chooses one.
    pub(crate) program: PathBuf,
    /// Its root directory, which holds `lib/rustlib`.
    pub(crate) sysroot: PathBuf,
}

impl Compiler {
    /// Asks `rustc` (a compiler or a proxy such as rustup's) what it is, as seen from `directory`: a
    /// proxy chooses by the directory.
    pub(crate) fn probe(rustc: &Path, directory: &Path) -> Result<Self, RunError> {
        let output = process::output_of(
            Command::new(rustc)
                .args(["--print", "sysroot"])
                .current_dir(directory),
        )?;
        let sysroot = PathBuf::from(output.trim());
        let own = sysroot.join("bin/rustc");
        let program = if own.is_file() { own } else { rustc.to_owned() };
        Ok(Self { program, sysroot })
    }

    /// Where the compiler looks for the target's libraries.
    pub(crate) fn target_library_directory(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(TARGET).join("lib")
    }

    /// Whether the target's standard library came with the compiler or was added to it.
    pub(crate) fn has_target(&self) -> bool {
        let Ok(entries) = fs::read_dir(self.target_library_directory()) else {
            return false;
        };
        let names: Vec<_> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.file_name())
            .collect();
        ["libcore-", "liballoc-", "libstd-"].iter().all(|prefix| {
            names
                .iter()
                .filter_map(|name| name.to_str())
                .any(|name| name.starts_with(prefix) && name.ends_with(".rlib"))
        })
    }

    /// The directory with the source of the standard library, when it is installed.
    pub(crate) fn library_source(&self) -> Option<PathBuf> {
        let source = self.sysroot.join("lib/rustlib/src/rust");
        source
            .join("library/std/Cargo.toml")
            .is_file()
            .then_some(source)
    }

    /// Whether the compiler brings a linker that makes Wasm.
    pub(crate) fn has_linker(&self) -> bool {
        let Ok(entries) = fs::read_dir(self.sysroot.join("lib/rustlib")) else {
            return false;
        };
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.path().join("bin/rust-lld").is_file())
    }

    /// Its version in full.
    pub(crate) fn version(&self) -> Result<Version, RunError> {
        let mut verbose = process::output_of(Command::new(&self.program).arg("-vV"))?;
        let binary = fs::metadata(&self.program).ok();
        let modified = binary
            .as_ref()
            .and_then(|metadata| metadata.modified().ok());
        let modified_s = modified
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |age| age.as_secs());
        let bytes = binary.map_or(0, |metadata| metadata.len());
        // A distribution may build the same version again with other patches, and libraries of one
        // build are not for another.
        verbose.push_str(&format!(
            "binary-bytes: {bytes}\nbinary-modified-s: {modified_s}\n"
        ));
        Ok(Version { identity: verbose })
    }
}

/// What tells one build of a compiler from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// `rustc -vV`, and the size and age of the program.
    pub(crate) identity: String,
}

impl Version {
    /// The release, such as `1.96.0`.
    pub(crate) fn release(&self) -> &str {
        self.field("release")
    }

    /// The commit it was built from; empty or `unknown` for some distributions' compilers.
    pub(crate) fn commit(&self) -> &str {
        self.field("commit-hash")
    }

    /// Whether Tidemill's crates build with this release.
    pub(crate) fn is_recent_enough(&self) -> bool {
        match (numbers(self.release()), numbers(OLDEST)) {
            (Some(release), Some(oldest)) => release >= oldest,
            _ => false,
        }
    }

    fn field(&self, name: &str) -> &str {
        let fields = self
            .identity
            .lines()
            .filter_map(|line| line.split_once(": "));
        fields
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next()
            .unwrap_or_default()
    }
}

/// The oldest release that is recent enough, for messages.
pub(crate) fn oldest_release() -> &'static str {
    OLDEST
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(release: &str) -> Version {
        Version {
            identity: format!(
                "rustc {release}\nbinary: rustc\ncommit-hash: abc\nrelease: {release}\n"
            ),
        }
    }

    #[test]
    fn releases_compare_as_numbers() {
        assert!(version("1.96.0").is_recent_enough());
        assert!(version("1.100.0-nightly").is_recent_enough());
        assert!(version("2.0").is_recent_enough());
        assert!(!version("1.63.0").is_recent_enough());
        assert!(!version("1.9.0").is_recent_enough());
        assert!(!version("").is_recent_enough());
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(version("1.96.0").commit(), "abc");
        assert_eq!(version("1.96.0").release(), "1.96.0");
        assert_eq!(version("1.96.0").field("hash"), "");
    }
}
