//! The mini-cluster: real `tidemill` processes on this machine, to be killed, stopped and restarted by tests, and the
//! oracles that say what a job's output must be.
//!
//! It knows what a user knows: the command line, configuration keys, the REST API, a process's log, and the file in which
//! it says where it listens. It never reaches into a process, never waits without a condition and a deadline, and leaves
//! no process behind.
//!
//! Nouns: [`Cluster`] (processes and their directory), [`Job`] (one submitted job), [`oracle`] (what must come out),
//! [`RecoveryTable`] (how long failures took).
//!
//! A test whose processes log an ERROR that it did not announce with [`Cluster::expect_error`] fails. After a failure the
//! ends of all logs are printed; with `TIDEMILL_TESTS_KEEP=1` the cluster's directory stays too.

mod artifacts;
mod cluster;
mod job;
mod log;
pub mod oracle;
mod process;
mod recovery;
mod rest;
mod seeds;
mod wait;

pub use artifacts::{data, module, tidemill};
pub use cluster::{Cluster, ClusterOptions};
pub use job::Job;
pub use process::Process;
pub use recovery::{RecoveryTable, unix_ms};
pub use rest::{Answer, Rest};
pub use seeds::seeds;
pub use wait::wait_for;
