//! The leader in a small world: TaskManagers that obey the real [`tidemill_core::worker::Worker`], a registry and a store
//! in memory, and time that jumps. Scenarios read like sentences; a random walk checks what must always hold.

mod adoption;
mod cluster;
mod draining;
mod jobs;
mod modules;
mod orphans;
mod random;
mod savepoints;
mod scenarios;
mod standby;
mod task_manager;
