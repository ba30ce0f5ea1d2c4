//! The mini-cluster: real `tidemill` processes and real ZooKeeper servers on this machine, to be killed, stopped, cut off
//! and restarted by tests, and the oracles that say what a job's output must be.
//!
//! It knows what a user knows: the command line, configuration keys, the REST API, a process's log, and the file in which
//! it says where it listens. It never reaches into a process, never waits without a condition and a deadline, and leaves
//! no process behind.
//!
//! Nouns: [`Cluster`] (processes and their directory), [`Job`] (one submitted job), [`oracle`] and [`table`] (what must come out),
//! [`Receiver`] (where records arrive before their checkpoint), [`Network`] (hosts that can be cut off from each other),
//! [`RecoveryTable`] and [`TakeoverTable`] (how long failures took).
//!
//! A test whose processes log an ERROR that it did not announce with [`Cluster::expect_error`] fails. After a failure the
//! ends of all logs are printed; with `TIDEMILL_TESTS_KEEP=1` the cluster's directory stays too.

mod artifacts;
mod cluster;
mod committed;
mod job;
mod launch;
mod log;
mod network;
mod options;
pub mod oracle;
mod process;
mod receiver;
mod recovery;
mod rest;
mod seeds;
pub mod table;
mod takeover;
mod time;
mod wait;

pub use artifacts::{data, module, tidemill};
pub use cluster::{Cluster, Leader, ZOOKEEPER_HOSTS};
pub use committed::{commits_ms, first_commit_ms};
pub use job::Job;
pub use launch::clean_environment;
pub use network::{Network, OUTSIDE};
pub use options::ClusterOptions;
pub use process::Process;
pub use receiver::{Gaps, Receiver};
pub use recovery::{RecoveryTable, unix_ms};
pub use rest::{Answer, Rest};
pub use seeds::seeds;
pub use takeover::TakeoverTable;
pub use time::parse_utc_ms;
pub use wait::wait_for;
