//! Virtual time: microseconds since the world began, and the clocks of processes, which run a little fast or slow and begin
//! anywhere. It never reads a real clock.

use tidemill_core::Time;

/// In microseconds.
pub(crate) const MILLISECOND: u64 = 1_000;
/// In microseconds.
pub(crate) const SECOND: u64 = 1_000_000;

/// One process's clock: monotonic, as `CLOCK_MONOTONIC` is, and wrong by a constant rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What it shows when the world begins.
    pub(crate) offset_us: u64,
    /// How much too fast it runs, in millionths; negative when it is slow.
    pub(crate) drift_ppm: i64,
}

impl Clock {
    /// What it shows at a moment of the world.
    pub(crate) fn local(self, now_us: u64) -> Time {
        let rate = u64::try_from(1_000_000 + self.drift_ppm).unwrap_or(1_000_000);
        Time::from_micros(
            self.offset_us + now_us / 1_000_000 * rate + now_us % 1_000_000 * rate / 1_000_000,
        )
    }

    /// The first moment of the world at which it shows this time, or later.
    pub(crate) fn world_us(self, local: Time) -> u64 {
        let rate = u128::from(u64::try_from(1_000_000 + self.drift_ppm).unwrap_or(1_000_000));
        let elapsed = u128::from(local.as_micros().saturating_sub(self.offset_us));
        let mut at = u64::try_from(elapsed * 1_000_000 / rate).unwrap_or(u64::MAX);
        while at < u64::MAX / 4 && self.local(at) < local {
            at += 1;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_by_a_clock_is_met_at_the_first_moment_that_reaches_it() {
        for drift_ppm in [-20_000, -1, 0, 1, 20_000] {
            let clock = Clock {
                offset_us: 5_000_000,
                drift_ppm,
            };
            for local in [5_000_000, 5_000_001, 6_234_567, 99_999_999] {
                let due = Time::from_micros(local);
                let at = clock.world_us(due);
                assert!(clock.local(at) >= due);
                assert!(at == 0 || clock.local(at - 1) < due);
            }
        }
    }
}
