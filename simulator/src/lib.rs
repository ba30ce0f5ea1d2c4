//! The simulator: the real machines of `tidemill-core` for three JobManagers and ten TaskManagers, in a simulated world
//! that is driven by one seed.
//!
//! A [`World`] holds processes around the real machines (`Leadership`, `Leader`, `Worker`, `Alignment`), links that delay,
//! lose and partition, ZooKeeper, an object store, clocks that drift and users. Nothing in it reads a clock, opens a socket
//! or starts a thread: the same seed gives the same events, byte for byte. Checkers watch from outside.
#![forbid(unsafe_code)]

mod check;
mod connection;
mod event;
mod exchange;
mod faults;
mod job_manager;
#[cfg(feature = "mutations")]
pub mod mutations;
mod network;
mod node;
mod options;
mod perform;
pub mod random;
mod registry_client;
pub mod run;
pub mod scenario;
mod script;
mod store;
mod task;
mod task_manager;
mod time;
mod user;
mod workload;
mod world;
mod zookeeper;

pub use faults::Kind;
pub use options::{JobOptions, NetworkOptions, Options, StoreOptions, ZooKeeperOptions};
pub use world::{Counts, Failure, World};
