//! Waiting for a condition, with a deadline. What is waited for is named, so that a test that waits in vain says for what.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// Waits until `condition` gives a value. One that cannot be evaluated is not fulfilled yet; the last reason is part of
/// the error.
///
/// # Errors
/// When the limit has passed.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let outcome = condition();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            match outcome {
                Err(error) => {
                    return Err(error.context(format!("waited {limit:?} in vain for {what}")));
                }
                Ok(_) => bail!("waited {limit:?} in vain for {what}"),
            }
        }
        thread::sleep(LOOK_EVERY);
    }
}
