//! An S3-compatible object store in this process, for tests: a real server (s3s-fs) that keeps objects as files and
//! verifies signatures, behind a proxy that makes trouble on request. It never keeps anything longer than its own life,
//! and never listens beyond this machine.
//!
//! Nouns: [`ObjectServer`], [`Fault`] (what happens to a request instead of its being served), [`Faults`] (to which).
//!
//! ```
//! use tidemill_object_server::{Fault, ObjectServer};
//!
//! let server = ObjectServer::start()?;
//! server.faults().next(2, "PUT", Fault::Status(503));
//! assert!(server.environment().contains(&("AWS_ALLOW_HTTP".into(), "true".into())));
//! # Ok::<(), std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

mod faults;
mod http;
mod names;
mod proxy;
mod server;

pub use faults::{Fault, Faults};
pub use server::ObjectServer;
