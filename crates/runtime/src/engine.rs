//! The one wasmtime configuration of the project, and the clock behind call deadlines. Compiled code is exchanged
//! only between engines of equal configuration, so no other place may make a `wasmtime::Config`.
//!
//! It never decides how long a call may take: it ticks, and instances count ticks.

use std::time::Duration;

use wasmparser::WasmFeatures;
use wasmtime::Config;

use crate::features;
use crate::mapping::{GUARD_BYTES, Mappings, RESERVED_BYTES};

/// How often the epoch advances; a call deadline is exact to one tick plus what the scheduler adds.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// The native stack that a guest may use. A thread that calls guests needs this much beyond its own needs
/// (the default 2 MiB of a Rust thread is enough).
pub const GUEST_STACK_BYTES: usize = 1024 * 1024;

/// Frames kept of a trap's backtrace, innermost first.
const BACKTRACE_FRAMES_MAX: usize = 32;

/// What may differ between engines without making their compiled code incompatible.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Whether one compilation may use all cores. `false` keeps it on the calling thread.
    pub parallel_compilation: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            parallel_compilation: true,
        }
    }
}

/// Compiles modules and advances the epoch that interrupts calls which outlast their deadline. Cheap to clone;
/// its ticker thread ends when the last clone, module and instance are gone.
#[derive(Clone)]
pub struct Engine {
    inner: wasmtime::Engine,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// Why an engine could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refuses the configuration on this machine.
    #[error("this machine cannot run WebAssembly as Tidemill needs it: {reason}")]
    Configuration {
        /// wasmtime's words.
        reason: String,
    },
    /// The thread that advances the epoch could not be started.
    #[error(
        "the thread that enforces call deadlines could not be started: {reason}; raise the limit on threads"
    )]
    Ticker {
        /// The operating system's words.
        reason: String,
    },
}

impl Engine {
    /// Makes an engine and starts its ticker.
    ///
    /// # Errors
    /// When this machine cannot run the configuration, or refuses a thread.
    pub fn new(options: EngineOptions) -> Result<Self, EngineError> {
        let inner = wasmtime::Engine::new(&configuration(&options)).map_err(|error| {
            EngineError::Configuration {
                reason: format!("{error:#}"),
            }
        })?;
        let ticked = inner.weak();
        std::thread::Builder::new()
            .name("tidemill-epoch".into())
            .spawn(move || {
                loop {
                    std::thread::sleep(TICK);
                    let Some(engine) = ticked.upgrade() else {
                        return;
                    };
                    engine.increment_epoch();
                }
            })
            .map_err(|error| EngineError::Ticker {
                reason: error.to_string(),
            })?;
        Ok(Self { inner })
    }

    /// wasmtime's engine.
    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner
    }
}

/// Deterministic guests (canonical NaNs, deterministic relaxed SIMD, an allow-list of features), interruptible at
/// any loop or call, with backtraces that name functions.
fn configuration(options: &EngineOptions) -> Config {
    let mut config = Config::new();
    config
        .strategy(wasmtime::Strategy::Cranelift)
        .cranelift_opt_level(wasmtime::OptLevel::Speed)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK_BYTES)
        .generate_address_map(true)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES_MAX))
        // Memories are ours, so that they outlive an instance; compiled code relies on their bounds. They are anonymous
        // pages throughout: data segments are copied, not mapped.
        .with_host_memory(std::sync::Arc::new(Mappings))
        .memory_reservation(RESERVED_BYTES as u64)
        .memory_guard_size(GUARD_BYTES as u64)
        .memory_may_move(false)
        .memory_init_cow(false)
        .parallel_compilation(options.parallel_compilation)
        .wasm_features(WasmFeatures::all().difference(features::ACCEPTED), false)
        .wasm_features(features::ACCEPTED, true);
    config
}
