//! Native sources and sinks: what a task's own thread calls to get records into a guest and out of it. Everything is
//! synchronous, and all of a connector's state is a value that its caller puts into the task's image.
//!
//! It never knows the cluster, a guest or a checkpoint's storage, reads no clock (time is handed in), starts no
//! thread, and looks into a record only as far as its own format demands.
//!
//! Nouns: [`Enumerator`] (lists a source's input and cuts it into splits), [`SourceReader`] (reads splits within one
//! source task), [`SinkWriter`] (writes what one sink task was given, and shows it only when its checkpoint completes).
//!
//! # Options
//!
//! Sizes take the suffixes `KiB`, `MiB` and `GiB`. Paths are local (`file://` may precede them), and every TaskManager
//! must see the same files there.
//!
//! | connector | option | default | meaning |
//! |---|---|---|---|
//! | source `files` | `path` | required | a file, a directory (its files, one level, hidden ones skipped) or a glob pattern |
//! | | `split_bytes` | up to 16 MiB, less for small inputs | files are cut at this size, at line boundaries |
//! | | `rate_per_second` | 0: unlimited | records per second and subtask |
//! | | `line_max_bytes` | 16 MiB | a longer line fails the task |
//! | source `generator` | `count` | 0: unbounded | how many records, over all subtasks |
//! | | `rate` | 0: unlimited | records per second, over all subtasks |
//! | sink `files` | `path` | required | a directory; created |
//! | | `records` | `lines` | `lines` ends each record with a newline, `raw` writes its bytes alone |
//! | | `roll_bytes` | 128 MiB | past this size a further file is begun |
//! | sink `socket` | `address` | required | `host:port`; each record is sent as a line over TCP, at once: after a failure, again |
//! | | `timeout_ms` | 10000 | a receiver that accepts nothing for this long fails the task |
//! | sink `print` | | | writes each record as a line to the task's log, at once: after a failure, again |
//! | sink `discard` | | | counts records |
//!
//! ```
//! use tidemill_abi::ConnectorSpec;
//!
//! let spec = ConnectorSpec {
//!     kind: "generator".into(),
//!     options: [("cuont".into(), "1000".into())].into(),
//! };
//! let error = tidemill_connectors::check_source(&spec).unwrap_err();
//! assert!(error.to_string().contains("did you mean `count`?"));
//! ```
#![forbid(unsafe_code)]

mod check;
mod error;
mod options;
mod path;
mod sink;
mod source;

pub use check::{SourceKind, check_sink, check_source, preflight, sink_directory};
pub use error::{SinkError, SourceError};
pub use options::OptionError;
pub use sink::{LineOutput, SinkIdentity, SinkWriter};
pub use source::{Enumerator, ReadOutcome, SourceReader};
