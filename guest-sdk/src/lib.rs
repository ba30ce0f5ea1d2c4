//! Tidemill's guest SDK: write a streaming job as a function, compile it to one WebAssembly module, run it on a cluster.
//!
//! ```
//! use tidemill::prelude::*;
//!
//! #[tidemill::job]
//! fn wordcount(job: &mut Job) {
//!     job.source(files(job.param("input")).lines())
//!         .flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
//!         .key_by(|word| word.clone())
//!         .fold(|| 0u64, |count, _word| *count += 1) // per key, checkpointed as memory
//!         .sink(files(job.param("output")).json());
//! }
//!
//! // The same job runs in a test, with everything that crosses an exchange encoded and decoded:
//! let outputs = tidemill::testing::TestRun::new(wordcount)
//!     .parameter("input", "poem")
//!     .parameter("output", "counts")
//!     .file("poem", "to be\nor not to be")
//!     .parallelism(2)
//!     .run()
//!     .unwrap();
//! let mut counts = outputs.lines("counts");
//! counts.sort();
//! assert_eq!(counts, [r#"["be",1]"#, r#"["be",2]"#, r#"["not",1]"#, r#"["or",1]"#, r#"["to",1]"#, r#"["to",2]"#]);
//! ```
//!
//! Nouns: a [`Job`] is described once and begins [`Stream`]s; a [`KeyedStream`] is partitioned by key; an [`Operator`] or
//! [`KeyedOperator`] is a struct where a closure is not enough; a [`Source`] is written in the guest and its position is
//! its state; a [`Param`] is a typed parameter of the submission; a [`testing::TestRun`] runs a whole job under `cargo test`.
//!
//! All state lives in the instance's linear memory, so any value that a closure or an operator owns is checkpointed.
//! The SDK never reads a clock, a file or a random number; native connectors do the reading and writing.
#![deny(unsafe_op_in_unsafe_fn)]

extern crate self as tidemill;

mod batch;
mod chain;
mod connector;
mod context;
mod format;
#[cfg(target_arch = "wasm32")]
mod host;
mod instance;
mod job;
mod keyed;
pub mod log;
mod operator;
mod output;
mod param;
mod plan;
mod push;
mod record;
#[cfg(target_arch = "wasm32")]
pub mod rt;
mod runner;
mod source;
mod state;
mod stream;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod wire;

pub use chain::Chain;
pub use connector::{
    Discard, Files, Formatted, Generator, IntoSink, IntoSource, Native, Print, Socket, discard,
    files, generator, print, socket,
};
pub use context::Context;
#[cfg(feature = "json")]
pub use format::Json;
pub use format::{Debugged, Format, Raw, Text};
pub use job::{Job, Outcome};
pub use keyed::KeyedStream;
pub use operator::{Emit, KeyedOperator, Operator};
pub use output::key_hash;
pub use param::{Param, ParamValue};
pub use push::{Progress, Push, Signal};
pub use record::{ByteArray, Bytes, Record};
pub use source::{FromFrame, Next, Source};
pub use state::{FixedHasher, Key, KeyedState, State, WordHasher};
pub use stream::{Sink, Stream};
pub use tidemill_abi as abi;
pub use tidemill_macros::job;

/// What a job needs: `use tidemill::prelude::*;`.
///
/// It holds the SDK's `println!`, `eprintln!` and `dbg!` beside std's, so that writing one of them without saying which
/// is an error: std's would be discarded in a Wasm instance. Import the one that is meant: `use tidemill::println;`.
pub mod prelude {
    pub use crate::{
        ByteArray, Bytes, Chain, Context, Emit, Job, KeyedOperator, KeyedState, Next, Operator,
        Progress, Source, Stream, dbg, discard, eprintln, files, generator, print, println, socket,
    };
}

/// What the README shows compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The guide's examples, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guest-guide.md")]
struct Guide;
