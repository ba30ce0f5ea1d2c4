//! Faults put into the machines on purpose, and how many seeds the checkers may need to find each. It never breaks anything
//! by itself.

pub use tidemill_core::mutation::{Mutation, set};

/// Every mutation is found within this many seeds.
pub const SEEDS_MAX: u64 = 6_000;

/// The first seed that shows the mutation that is set, of so many.
#[must_use]
pub fn find(seeds: u64) -> Option<crate::run::Report> {
    (0..seeds)
        .map(|seed| crate::run::run(seed, None, false))
        .find(|report| report.failure.is_some())
}
