//! Holds a source to a rate. It counts from an anchor, so that rounding never adds up, and lets records go in slices of
//! about ten milliseconds, so that a slow source does not wake for each record. Not part of any state: a restored
//! source begins a new count.

/// A slice's length.
const SLICE_MS: u128 = 10;
/// A source that fell behind by more than this does not catch up.
const LAG_MAX_MS: u128 = 1000;

/// What may be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// Up to this many records; at least 1.
    Records(u32),
    /// None before this time.
    At { until_ms: u64 },
}

/// `rate / divisor` records per second; a rate of 0 is unlimited.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    rate: u128,
    /// Milliseconds times the divisor: what one second is worth.
    scale: u128,
    anchor_ms: Option<u64>,
    /// Records since the anchor.
    spent: u128,
}

impl Pace {
    pub(crate) fn new(rate: u64, divisor: u32) -> Self {
        Self {
            rate: rate.into(),
            scale: 1000 * u128::from(divisor.max(1)),
            anchor_ms: None,
            spent: 0,
        }
    }

    pub(crate) fn allowance(&mut self, now_ms: u64) -> Allowance {
        if self.rate == 0 {
            return Allowance::Records(u32::MAX);
        }
        let anchor_ms = *self.anchor_ms.get_or_insert(now_ms);
        let elapsed_ms = u128::from(now_ms.saturating_sub(anchor_ms));
        let due = elapsed_ms * self.rate / self.scale;
        let slice = (SLICE_MS * self.rate / self.scale).max(1);
        let lag_max = (LAG_MAX_MS * self.rate / self.scale).max(slice);
        self.spent = self.spent.max(due.saturating_sub(lag_max));
        let open = due.saturating_sub(self.spent);
        if open >= slice {
            return Allowance::Records(u32::try_from(open).unwrap_or(u32::MAX));
        }
        let wait_ms = ((self.spent + slice) * self.scale).div_ceil(self.rate);
        let until_ms = u64::try_from(u128::from(anchor_ms) + wait_ms).unwrap_or(u64::MAX);
        Allowance::At { until_ms }
    }

    pub(crate) fn spend(&mut self, records: u32) {
        self.spent += u128::from(records);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes everything that is allowed until the end, following each wait; the total.
    fn drain(pace: &mut Pace, from_ms: u64, until_ms: u64) -> u64 {
        let (mut now_ms, mut total) = (from_ms, 0);
        while now_ms <= until_ms {
            match pace.allowance(now_ms) {
                Allowance::Records(records) => {
                    total += u64::from(records);
                    pace.spend(records);
                }
                Allowance::At { until_ms: next } => {
                    assert!(next > now_ms, "a wait ends later than it begins");
                    now_ms = next;
                }
            }
        }
        total
    }

    #[test]
    fn the_rate_is_exact_over_time_whatever_the_divisor() {
        for (rate, divisor) in [
            (1, 1),
            (1, 7),
            (999, 4),
            (1000, 3),
            (123_457, 2),
            (5_000_000, 1),
        ] {
            let total = drain(&mut Pace::new(rate, divisor), 5_000, 5_000 + 84_000);
            let expected = 84 * rate / u64::from(divisor);
            let slice = rate / u64::from(divisor) / 100 + 1;
            assert!(
                total <= expected && total + slice >= expected,
                "{rate}/{divisor}: {total} of {expected}"
            );
        }
    }

    #[test]
    fn a_source_that_was_held_up_does_not_flood() {
        let mut pace = Pace::new(1000, 1);
        assert_eq!(pace.allowance(0), Allowance::At { until_ms: 10 });
        assert_eq!(pace.allowance(3_600_000), Allowance::Records(1000));
        pace.spend(1000);
        assert_eq!(
            pace.allowance(3_600_000),
            Allowance::At {
                until_ms: 3_600_010
            }
        );
    }

    #[test]
    fn no_rate_is_no_limit_and_extremes_do_not_overflow() {
        assert_eq!(Pace::new(0, 1).allowance(0), Allowance::Records(u32::MAX));
        let mut fastest = Pace::new(u64::MAX, 1);
        assert!(matches!(fastest.allowance(0), Allowance::At { .. }));
        assert_eq!(fastest.allowance(u64::MAX), Allowance::Records(u32::MAX));
        let mut slowest = Pace::new(1, u32::MAX);
        assert_eq!(
            slowest.allowance(u64::MAX),
            Allowance::At { until_ms: u64::MAX }
        );
        assert!(
            matches!(slowest.allowance(0), Allowance::At { .. }),
            "time that runs backwards is no time"
        );
    }
}
