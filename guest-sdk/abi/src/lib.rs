//! The binary interface between a Tidemill host and a job module: names, numbers and wire types, defined
//! once and used by both sides. `docs/abi.md` is the prose; this crate is the authority.
//!
//! It never touches a Wasm engine, a file or a clock: words only, `no_std` with `alloc`.
//!
//! Nouns: [`JobGraph`] (what `describe` returns), [`OpenRequest`] (what starts an instance), [`Step`] (what
//! each bounded call returns), [`framed`] records (what native sources and sinks exchange with a guest), [`key_group`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod framed;
mod graph;
mod hash;
mod step;

pub use graph::{
    ConnectorSpec, DescribeRequest, DescribeResponse, JobGraph, OpenRequest, OpenResponse,
    Operator, Output, ParameterSpec, Partitioning, Stage, StageInput,
};
pub use hash::{
    KEY_GROUP_DEFAULT_MAX, KeyHasher, graph_hash, hash_bytes, key_group, task_of_key_group,
};
pub use step::{Status, Step};

/// The version this crate describes. A module exports its own through [`export::VERSION`]; hosts serve N and N−1.
pub const ABI_VERSION: u32 = 1;

/// The module name of every host function.
pub const IMPORT_MODULE: &str = "tidemill";

/// Host functions, all in [`IMPORT_MODULE`].
pub mod import {
    /// `emit(output: i32, target: i32, ptr: i32, len: i32)`: copies one encoded batch to the host, for
    /// the given output of the stage (index into [`crate::Stage::outputs`]) and subtask of the next stage. The
    /// target is 0 for forward edges and sinks, [`crate::TARGET_ALL`] for broadcast edges. Never blocks.
    pub const EMIT: &str = "emit";
    /// `log(level: i32, ptr: i32, len: i32)`: one UTF-8 line to the task's log. Levels are [`crate::LogLevel`].
    pub const LOG: &str = "log";
}

/// Functions and memory that a job module exports.
pub mod export {
    /// The linear memory, which is the task's state.
    pub const MEMORY: &str = "memory";
    /// `tidemill_abi_version() -> i32`.
    pub const VERSION: &str = "tidemill_abi_version";
    /// `tidemill_allocate(len: i32) -> i32`: where the host may write `len` bytes of input. The buffer stays
    /// valid, and is not handed out again, until the call that takes it has returned [`crate::Status::Done`]. 0 = refused.
    pub const ALLOCATE: &str = "tidemill_allocate";
    /// `tidemill_describe(ptr: i32, len: i32) -> i64`: postcard [`crate::DescribeRequest`] in, packed
    /// (`ptr << 32 | len`) postcard [`crate::DescribeResponse`] out.
    pub const DESCRIBE: &str = "tidemill_describe";
    /// `tidemill_open(ptr: i32, len: i32) -> i64`: postcard [`crate::OpenRequest`] in, packed postcard
    /// [`crate::OpenResponse`] out. Called once per fresh instance, never after a restore.
    pub const OPEN: &str = "tidemill_open";
    /// `tidemill_process(port: i32, split: i64, ptr: i32, len: i32, now_ms: i64) -> i64` ([`crate::Step`]): one frame of
    /// input. `Status::More` means that `tidemill_resume` must be called before any other input.
    pub const PROCESS: &str = "tidemill_process";
    /// `tidemill_resume(now_ms: i64) -> i64` ([`crate::Step`]): continues the call that answered `More`.
    pub const RESUME: &str = "tidemill_resume";
    /// `tidemill_poll(now_ms: i64) -> i64` ([`crate::Step`]): a guest-written source makes its next batch. `More`: poll
    /// again; `Done`: nothing now, poll again at the deadline; `Ended`: never poll again.
    pub const POLL: &str = "tidemill_poll";
    /// `tidemill_watermark(port: i32, timestamp_ms: i64, now_ms: i64) -> i64` ([`crate::Step`]).
    pub const WATERMARK: &str = "tidemill_watermark";
    /// `tidemill_timer(now_ms: i64) -> i64` ([`crate::Step`]): the deadline that an earlier step returned has come.
    pub const TIMER: &str = "tidemill_timer";
    /// `tidemill_finish(now_ms: i64) -> i64` ([`crate::Step`]): every input has ended. Called again while it answers `More`.
    pub const FINISH: &str = "tidemill_finish";
    /// `tidemill_flush()`: emits every partly filled output buffer. Called before each barrier and when the input is idle.
    pub const FLUSH: &str = "tidemill_flush";

    /// Optional. `tidemill_records(which: i32) -> i64`: records since `open`, as the guest counts them: 0 = taken in, or made by
    /// a source of the guest's own; 1 = given out, to discarding sinks too. −1 for any other question.
    pub const RECORDS: &str = "tidemill_records";

    /// Every function a module must export, for checks.
    pub const FUNCTIONS: [&str; 11] = [
        VERSION, ALLOCATE, DESCRIBE, OPEN, PROCESS, RESUME, POLL, WATERMARK, TIMER, FINISH, FLUSH,
    ];
}

/// The `target` of [`import::EMIT`] that means every subtask of the next stage.
pub const TARGET_ALL: u32 = u32::MAX;

/// The split number passed to `process` for frames that come from an edge, not from a source's split.
pub const SPLIT_NONE: u64 = u64::MAX;

/// The level of a line logged by a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LogLevel {
    /// What the job wrote with `println!`.
    Out = 0,
    /// What the job wrote with `eprintln!` or `dbg!`.
    Err = 1,
    /// The message and location of a panic; a trap follows.
    Panic = 2,
}

impl LogLevel {
    /// The level with this number, if there is one.
    #[must_use]
    pub fn from_u32(level: u32) -> Option<Self> {
        [Self::Out, Self::Err, Self::Panic]
            .into_iter()
            .find(|known| *known as u32 == level)
    }
}
