//! Runs job modules: checks and instruments them at upload, compiles them, calls their instances within limits,
//! and captures and restores whole instances. The only crate that names wasmtime.
//!
//! It never looks at a record, never blocks on anything but guest code, and knows neither jobs nor clusters:
//! what a guest emits goes to the [`GuestHost`] that the caller hands in.
//!
//! Nouns: [`Engine`] (the project's one wasmtime configuration, and its clock for deadlines), [`PreparedModule`]
//! (checked bytes, addressed by their hash), [`Module`] (compiled), [`Instance`] (one task's guest),
//! [`tidemill_protocol::Image`] (what restores it), [`Capture`] (what makes a newer image of an older one).
//!
//! The life of a module: [`prepare`] at upload, [`describe_job`] at submission, [`Engine::compile`] wherever it runs,
//! [`Instance::new`] or [`Instance::restore`] for each task.
#![deny(unsafe_code)]

mod ahead;
mod cache;
mod call_error;
mod capture;
mod changes;
mod describe;
mod dirty;
mod engine;
mod features;
mod fill;
mod guest;
mod host;
mod image;
mod incremental;
mod instance;
mod instrument;
mod limits;
#[allow(
    unsafe_code,
    reason = "memory that outlives an instance is mapped by hand"
)]
mod mapping;
mod module;
mod prepare;
mod report;
mod restore;
mod revert;
mod scan;
mod source;
mod version;

pub use call_error::{CallError, TrapReason};
pub use capture::{Capture, CaptureCost, CaptureRoom, LayError};
pub use describe::{DescribeError, describe_job};
pub use dirty::{CAPTURE_PAGE_BYTES, DirtyMethod};
pub use engine::{Engine, EngineError, EngineOptions, GUEST_STACK_BYTES};
pub use host::{GuestHost, LOG_LINE_MAX_BYTES};
pub use image::{CaptureError, ImageMismatch};
pub use instance::{Instance, InstanceError, RecordCount};
pub use limits::InstanceLimits;
pub use module::{CompileError, Module};
pub use prepare::{
    ABI_VERSION_OLDEST, ModuleError, ModuleLimits, PreparedModule, Refusal, prepare,
};
pub use report::{ExportReport, GlobalReport, MemoryReport, ModuleReport, TableReport};
pub use source::{Filling, MemoryImage, PageSource};
