//! Restart strategies: whether a failure is followed by a restart, and after how long. Flink's four, with Flink's
//! semantics. It never restarts anything itself, and knows nothing of what failed.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use core::time::Duration;
use tidemill_protocol::record::RestartStrategy;

use crate::time::Time;

/// What follows a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Restart after this long.
    Restart {
        /// The delay.
        after: Duration,
    },
    /// The job has failed.
    GiveUp {
        /// What the strategy says, for people.
        reason: String,
    },
}

/// A strategy with what it remembers of earlier failures.
#[derive(Clone, Debug)]
pub struct Restarts {
    strategy: RestartStrategy,
    restarts: u32,
    /// The failures of the last interval, for [`RestartStrategy::FailureRate`].
    failures: VecDeque<Time>,
    /// The last restart's moment and its delay, for [`RestartStrategy::ExponentialDelay`].
    last: Option<(Time, Duration)>,
}

impl Restarts {
    /// A strategy that has led to this many restarts before (under an earlier leader).
    #[must_use]
    pub fn new(strategy: RestartStrategy, restarts: u32) -> Self {
        Self {
            strategy,
            restarts,
            failures: VecDeque::new(),
            last: None,
        }
    }

    /// Restarts in the job's life.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.restarts
    }

    /// A failure happened: what now? Counts the restart. The loss of a TaskManager is not the job's doing: where delays
    /// grow, the first one after quiet is not waited for, since nothing says that the next restart would fail too.
    pub fn failed(&mut self, now: Time, task_manager_lost: bool) -> Decision {
        let decision = match self.strategy {
            RestartStrategy::None => Decision::GiveUp {
                reason: "its restart strategy is `none`".into(),
            },
            RestartStrategy::FixedDelay { attempts, delay_ms } => {
                self.fixed_delay(attempts, Duration::from_millis(delay_ms))
            }
            RestartStrategy::FailureRate {
                failures_max,
                interval_ms,
                delay_ms,
            } => {
                let interval = Duration::from_millis(interval_ms);
                self.failure_rate(now, failures_max, interval, Duration::from_millis(delay_ms))
            }
            RestartStrategy::ExponentialDelay {
                initial_ms,
                max_ms,
                multiplier_percent,
                reset_after_ms,
            } => {
                let (initial, max) = (
                    Duration::from_millis(initial_ms),
                    Duration::from_millis(max_ms),
                );
                let reset_after = Duration::from_millis(reset_after_ms);
                let first = if task_manager_lost {
                    Duration::ZERO
                } else {
                    initial.min(max)
                };
                self.exponential(now, first, (initial, max), multiplier_percent, reset_after)
            }
        };
        if matches!(decision, Decision::Restart { .. }) {
            self.restarts = self.restarts.saturating_add(1);
        }
        decision
    }

    fn fixed_delay(&self, attempts: u32, delay: Duration) -> Decision {
        if self.restarts < attempts {
            Decision::Restart { after: delay }
        } else {
            Decision::GiveUp {
                reason: format!("its {attempts} restarts are used up"),
            }
        }
    }

    fn failure_rate(
        &mut self,
        now: Time,
        failures_max: u32,
        interval: Duration,
        delay: Duration,
    ) -> Decision {
        while self
            .failures
            .front()
            .is_some_and(|first| now.since(*first) > interval)
        {
            self.failures.pop_front();
        }
        if self.failures.len() >= failures_max as usize {
            let reason = format!("it failed more than {failures_max} times in {interval:?}");
            return Decision::GiveUp { reason };
        }
        self.failures.push_back(now);
        Decision::Restart { after: delay }
    }

    fn exponential(
        &mut self,
        now: Time,
        first: Duration,
        (initial, max): (Duration, Duration),
        multiplier_percent: u32,
        reset_after: Duration,
    ) -> Decision {
        let after = match self.last {
            // Quiet is counted from when the job ran again, not from the failure: a long delay is not quiet.
            Some((failed, delay)) if now.since(failed + delay) < reset_after => {
                let grown = u128::from(multiplier_percent) * delay.as_micros() / 100;
                let grown = Duration::from_micros(u64::try_from(grown).unwrap_or(u64::MAX));
                grown.max(initial).min(max)
            }
            _ => first,
        };
        self.last = Some((now, after));
        Decision::Restart { after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn seconds(at: u64) -> Time {
        Time::from_micros(at * 1_000_000)
    }

    /// The delays in milliseconds after failures at these seconds; `None` where the job is given up.
    fn delays(strategy: RestartStrategy, at: &[u64]) -> Vec<Option<u128>> {
        let mut restarts = Restarts::new(strategy, 0);
        at.iter()
            .map(|at| match restarts.failed(seconds(*at), false) {
                Decision::Restart { after } => Some(after.as_millis()),
                Decision::GiveUp { .. } => None,
            })
            .collect()
    }

    #[test]
    fn none_never_restarts() {
        assert_eq!(delays(RestartStrategy::None, &[1]), [None]);
    }

    #[test]
    fn fixed_delay_restarts_so_many_times_in_the_jobs_life() {
        let strategy = RestartStrategy::FixedDelay {
            attempts: 2,
            delay_ms: 500,
        };
        assert_eq!(
            delays(strategy.clone(), &[1, 1000, 9000]),
            [Some(500), Some(500), None]
        );
        let mut resumed = Restarts::new(strategy, 2);
        assert!(matches!(
            resumed.failed(seconds(1), false),
            Decision::GiveUp { .. }
        ));
    }

    #[test]
    fn failure_rate_forgets_what_is_older_than_the_interval() {
        let strategy = RestartStrategy::FailureRate {
            failures_max: 2,
            interval_ms: 10_000,
            delay_ms: 1,
        };
        assert_eq!(
            delays(strategy.clone(), &[0, 1, 11, 12, 40]),
            [Some(1), Some(1), Some(1), Some(1), Some(1)]
        );
        assert_eq!(delays(strategy, &[0, 5, 10]), [Some(1), Some(1), None]);
    }

    #[test]
    fn exponential_delay_grows_to_its_maximum_and_is_reset_by_quiet() {
        let strategy = RestartStrategy::ExponentialDelay {
            initial_ms: 1000,
            max_ms: 3000,
            multiplier_percent: 200,
            reset_after_ms: 60_000,
        };
        assert_eq!(
            delays(strategy, &[0, 5, 10, 15, 100]),
            [Some(1000), Some(2000), Some(3000), Some(3000), Some(1000)]
        );
    }

    #[test]
    fn where_delays_grow_the_first_loss_of_a_taskmanager_is_not_waited_for() {
        let strategy = RestartStrategy::ExponentialDelay {
            initial_ms: 1000,
            max_ms: 3000,
            multiplier_percent: 200,
            reset_after_ms: 60_000,
        };
        let mut restarts = Restarts::new(strategy, 0);
        let mut after = |at, lost| match restarts.failed(seconds(at), lost) {
            Decision::Restart { after } => after.as_secs(),
            Decision::GiveUp { reason } => panic!("{reason}"),
        };
        assert_eq!((after(0, true), after(1, true), after(10, true)), (0, 1, 2));
        assert_eq!((after(100, true), after(101, false)), (0, 1));
        assert_eq!((after(200, false), after(201, true)), (1, 2));
        let delay_ms = 500;
        let attempts = 1;
        let fixed = RestartStrategy::FixedDelay { attempts, delay_ms };
        let after = Duration::from_millis(delay_ms);
        let decision = Restarts::new(fixed, 0).failed(seconds(0), true);
        assert_eq!(decision, Decision::Restart { after }, "as it was asked for");
    }

    #[test]
    fn absurd_numbers_neither_wrap_nor_panic() {
        let strategy = RestartStrategy::ExponentialDelay {
            initial_ms: u64::MAX,
            max_ms: u64::MAX,
            multiplier_percent: u32::MAX,
            reset_after_ms: u64::MAX,
        };
        assert_eq!(delays(strategy, &[0, 1]).len(), 2);
    }
}
