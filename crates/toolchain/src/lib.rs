//! Finds or makes a toolchain for `wasm32-unknown-unknown`, and compiles jobs with it.
//!
//! Shared by `tidemill build` and by the project's own developer commands. It never looks inside the
//! modules it makes, never changes the toolchain that a user has chosen beyond adding the target to it,
//! and never writes into directories that a distribution's packages own.
//!
//! The nouns: a [`WasmToolchain`] is a cargo command line that is known to work; [`ensure`] climbs a
//! ladder of ways to get one; [`BuildOptions`] says what to compile.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let toolchain = tidemill_toolchain::ensure(&|line| eprintln!("{line}"))?;
//! let options = tidemill_toolchain::BuildOptions::new("my-job/Cargo.toml");
//! for module in toolchain.cargo_build(&options)? {
//!     println!("{}", module.display());
//! }
//! # Ok(())
//! # }
//! ```

mod build;
mod compiler;
mod host;
mod ladder;
mod process;
mod standard_library;

pub use build::{BuildError, BuildOptions, WasmToolchain};
pub use ladder::{ToolchainError, ensure, ensure_for};

/// The target that every job is compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";
