//! The end-to-end suite, one binary: real clusters, real jobs, real kills. `cargo xtask test` builds what it needs.

mod backpressure;
mod command_line;
mod common;
mod damage;
mod fault_points;
mod faults;
mod full_store;
mod ha;
mod images;
mod kills;
mod object_store;
mod operations;
mod refusals;
mod runs;
mod savepoints;
mod strangers;
