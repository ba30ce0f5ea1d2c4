//! Which seeds a randomised test runs: so many from 0, or the ones that a developer names to repeat a failure.

use std::env;

/// The seeds `0..count`, or those in `TIDEMILL_TESTS_SEEDS`, separated by commas.
///
/// # Panics
/// When the variable is not a list of numbers.
#[must_use]
pub fn seeds(count: u64) -> Vec<u64> {
    match env::var("TIDEMILL_TESTS_SEEDS") {
        Ok(text) => text
            .split(',')
            .map(|seed| {
                seed.trim()
                    .parse()
                    .expect("TIDEMILL_TESTS_SEEDS is a list of numbers")
            })
            .collect(),
        Err(_) => (0..count).collect(),
    }
}
