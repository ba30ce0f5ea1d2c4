//! Compiles crates to Wasm with cargo, and tells which modules came out.
//!
//! It never strips or optimises what the linker made: the name section must stay, for a trap's
//! backtrace is symbolised by it.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde_json::Value;

use crate::TARGET;

/// What jobs may use of WebAssembly beyond the compiler's own choice: vectors of 128 bits, which every host has. Copying
/// records and filling memory become some moves instead of many or instead of library calls.
const TARGET_FEATURES: &str = "-Ctarget-feature=+simd128";

/// A cargo command line that is known to compile for [`TARGET`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmToolchain {
    pub(crate) cargo: PathBuf,
    /// The compiler to use instead of the one that cargo would choose.
    pub(crate) rustc: Option<PathBuf>,
    /// Where the target's standard library is, when it is not in the compiler's own directories.
    pub(crate) sysroot: Option<PathBuf>,
    /// The linker, when the compiler does not bring one.
    pub(crate) linker: Option<PathBuf>,
}

/// What to compile, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// The `Cargo.toml` of the crate or workspace.
    pub manifest_path: PathBuf,
    /// The packages of the workspace to build; all that the manifest stands for when empty.
    pub packages: Vec<String>,
    /// The name of the profile.
    pub profile: String,
    /// Where cargo puts what it makes; cargo's own choice when `None`. A directory apart from native
    /// builds saves both from waiting for each other.
    pub target_directory: Option<PathBuf>,
    /// Further flags for the compiler, only for the target.
    pub rustflags: Vec<String>,
    /// Whether `Cargo.lock` must be up to date.
    pub locked: bool,
    /// Whether cargo says nothing but errors on standard error.
    pub quiet: bool,
}

impl BuildOptions {
    /// Everything that the manifest stands for, with the `release` profile.
    pub fn new(manifest_path: impl Into<PathBuf>) -> Self {
        Self {
            manifest_path: manifest_path.into(),
            packages: Vec::new(),
            profile: "release".to_owned(),
            target_directory: None,
            rustflags: Vec::new(),
            locked: false,
            quiet: false,
        }
    }
}

/// Why no module came out.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The manifest does not exist.
    #[error("there is no manifest at `{}`: run this in a job's crate, or name its Cargo.toml", .0.display())]
    NoManifest(PathBuf),
    /// Cargo could not be started.
    #[error("cannot run `{program}`: is Rust installed and in PATH?")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Cargo said why on standard error.
    #[error("cargo could not build the job ({0}); its messages are above")]
    Failed(ExitStatus),
    /// No crate among those that were built makes a module.
    #[error("no Wasm module came out of `{}`: add `crate-type = [\"cdylib\"]` under `[lib]`", .0.display())]
    NoModule(PathBuf),
}

impl WasmToolchain {
    /// A `cargo` command whose environment compiles for [`TARGET`], to be run in `manifest_directory`.
    ///
    /// The caller adds the verb, `--target` and the rest. Flags in `RUSTFLAGS` are for native code and
    /// are taken away; those which the user's cargo configuration has for the target are kept.
    pub fn command(&self, manifest_directory: &Path) -> Command {
        self.command_with(manifest_directory, &[])
    }

    fn command_with(&self, manifest_directory: &Path, rustflags: &[String]) -> Command {
        let mut command = Command::new(&self.cargo);
        // An empty parent is what a bare file name has.
        if !manifest_directory.as_os_str().is_empty() {
            command.current_dir(manifest_directory);
        }
        clean_environment(&mut command);
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc);
        }
        if let Some(linker) = &self.linker {
            command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        let mut flags = vec![TARGET_FEATURES.to_owned()];
        flags.extend_from_slice(rustflags);
        if let Some(sysroot) = &self.sysroot {
            flags.push(format!("--sysroot={}", sysroot.display()));
        }
        // A JSON array of strings is a TOML array too; as configuration it joins the user's own.
        command
            .arg("--config")
            .arg(format!("target.{TARGET}.rustflags={}", Value::from(flags)));
        command
    }

    /// Compiles, and returns the paths of the modules, sorted. Cargo's progress and diagnostics go to
    /// this process's standard error.
    pub fn cargo_build(&self, options: &BuildOptions) -> Result<Vec<PathBuf>, BuildError> {
        let manifest = std::path::absolute(&options.manifest_path)
            .ok()
            .filter(|path| path.is_file())
            .ok_or_else(|| BuildError::NoManifest(options.manifest_path.clone()))?;
        let directory = manifest.parent().unwrap_or(Path::new("/"));
        let mut command = self.command_with(directory, &options.rustflags);
        command.args([
            "build",
            "--target",
            TARGET,
            "--message-format=json-render-diagnostics",
            "--profile",
        ]);
        command
            .arg(&options.profile)
            .arg("--manifest-path")
            .arg(&manifest);
        for package in &options.packages {
            command.arg("--package").arg(package);
        }
        if let Some(target_directory) = &options.target_directory {
            // Relative to the caller's directory, not to the manifest's.
            command
                .arg("--target-dir")
                .arg(std::path::absolute(target_directory).unwrap_or(target_directory.clone()));
        }
        command
            .args(options.locked.then_some("--locked"))
            .args(options.quiet.then_some("--quiet"));

        let start_failed = |source| BuildError::Start {
            program: self.cargo.display().to_string(),
            source,
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(start_failed)?;
        let mut modules = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                modules.extend(
                    Artifact::parse(&line)
                        .into_iter()
                        .flat_map(Artifact::into_modules),
                );
            }
        }
        let status = child.wait().map_err(start_failed)?;
        if !status.success() {
            return Err(BuildError::Failed(status));
        }
        if modules.is_empty() {
            return Err(BuildError::NoModule(options.manifest_path.clone()));
        }
        modules.sort();
        modules.dedup();
        Ok(modules)
    }
}

/// Takes away what would change a build for the target: flags meant for native code, and the variables
/// by which an outer cargo speaks to its child.
pub(crate) fn clean_environment(command: &mut Command) {
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "RUSTC_WORKSPACE_WRAPPER",
    ] {
        command.env_remove(name);
    }
}

/// What cargo says about one crate that it has compiled.
pub(crate) struct Artifact {
    /// The crate's name.
    pub(crate) target_name: String,
    /// The files that were made.
    pub(crate) files: Vec<PathBuf>,
}

impl Artifact {
    /// Reads one line of cargo's messages; `None` when it is about something else.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        if message["reason"] != "compiler-artifact" {
            return None;
        }
        let files = message["filenames"]
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .map(PathBuf::from)
            .collect();
        Some(Self {
            target_name: message["target"]["name"].as_str()?.to_owned(),
            files,
        })
    }

    /// The modules that were asked for. Those of dependencies stay in cargo's `deps`.
    fn into_modules(self) -> impl Iterator<Item = PathBuf> {
        self.files.into_iter().filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "wasm")
                && file
                    .parent()
                    .and_then(Path::file_name)
                    .is_none_or(|directory| directory != "deps")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain() -> WasmToolchain {
        WasmToolchain {
            cargo: "cargo".into(),
            rustc: None,
            sysroot: None,
            linker: None,
        }
    }

    #[test]
    fn modules_of_dependencies_are_left_out() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"job"},
            "filenames":["/t/release/job.wasm","/t/release/deps/other.wasm","/t/release/libjob.rlib"]}"#;
        let modules: Vec<_> = Artifact::parse(line)
            .expect("an artifact")
            .into_modules()
            .collect();
        assert_eq!(modules, [PathBuf::from("/t/release/job.wasm")]);
    }

    #[test]
    fn other_messages_and_noise_are_no_artifacts() {
        for line in [
            "",
            "{",
            "[]",
            "null",
            r#"{"reason":"build-finished","success":true}"#,
            r#"{"reason":7}"#,
        ] {
            assert!(Artifact::parse(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_path_with_quotes_and_spaces_survives_the_configuration() {
        let toolchain = WasmToolchain {
            sysroot: Some("/a b/\"c\"".into()),
            ..toolchain()
        };
        let command = toolchain.command(Path::new("/"));
        let arguments: Vec<_> = command
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            arguments,
            [
                "--config",
                r#"target.wasm32-unknown-unknown.rustflags=["-Ctarget-feature=+simd128","--sysroot=/a b/\"c\""]"#
            ]
        );
    }

    #[test]
    fn native_flags_do_not_reach_the_target() {
        let command = toolchain().command(Path::new("/"));
        let removed: Vec<_> = command
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name)
            .collect();
        assert!(
            removed.contains(&"RUSTFLAGS".as_ref())
                && removed.contains(&"CARGO_ENCODED_RUSTFLAGS".as_ref())
        );
    }

    #[test]
    fn a_missing_manifest_is_named() {
        let error = toolchain()
            .cargo_build(&BuildOptions::new("/no/such/Cargo.toml"))
            .expect_err("no such file");
        assert!(error.to_string().contains("/no/such/Cargo.toml"), "{error}");
    }
}
