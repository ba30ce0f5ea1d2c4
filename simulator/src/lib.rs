//! The simulator: the real machines of `tidemill-core` for three JobManagers and ten TaskManagers, in a simulated world
//! that is driven by one seed.
//!
//! A [`World`] holds processes around the real machines (`Leadership`, `Leader`, `Worker`, `Alignment`), links that delay,
//! lose and partition, ZooKeeper, an object store, clocks that drift and users. Nothing in it reads a clock, opens a socket
//! or starts a thread: the same seed gives the same events, byte for byte. Checkers watch from outside.
//!
//! | part | what it does |
//! |---|---|
//! | network | each direction of each link delays, sometimes for long; partitions of pairs, groups and single directions; streams keep their own order and overtake each other; silence ends a connection on the side that hears nothing; the kernel's word of a process's end comes late, or never when its machine is gone; old messages are heard once more |
//! | ZooKeeper | one order of writes behind a fence; sessions that expire, as early as a follower's late report allows; suspended connections; replies of writes that happened are lost; watches that fire late; the whole ensemble away; sessions ended by force |
//! | object store | slow, failing, writes that happened and answer with an error, damaged objects, clean-ups that list first and delete later |
//! | processes | killed, frozen and continued (timers and sockets then in any order), asked to end, started again; clocks up to 2 % wrong |
//! | jobs | sources with positions, an exchange by key or forward channels, counts by key, transactional sinks; back-pressure, alignment, images; user code that fails |
//! | users | submissions repeated under one id, redirections, cancellations; savepoints with and without a stop, jobs that begin from them or from checkpoints that ended jobs left, deletions of both |
//!
//! Not modelled: what a guest does inside (watermarks, timers, splits and their enumerator), delta images and the segments
//! they share, modules that cannot be fetched, log requests, and reports of progress.
#![forbid(unsafe_code)]

mod check;
mod connection;
mod event;
mod exchange;
mod faults;
mod images;
mod job_manager;
mod late;
#[cfg(feature = "mutations")]
pub mod mutations;
mod network;
mod node;
mod options;
mod perform;
pub mod random;
mod registry_client;
pub mod run;
mod savepoints;
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
