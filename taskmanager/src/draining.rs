//! The wait of a TaskManager that is to leave until its tasks have moved: how long, and what is said of it meanwhile.
//! Moving them is the leader's business.

use std::collections::BTreeSet;
use std::time::Duration;

use tidemill_protocol::{AttemptId, JobId};
use tokio::time::Instant;
use tracing::{info, warn};

/// How often the log says what is being waited for.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// A wait that has begun.
#[derive(Debug)]
pub(crate) struct Draining {
    began: Instant,
    until: Instant,
    timeout: Duration,
    /// When the log is due.
    tell_at: Instant,
}

impl Draining {
    /// Begins to wait, for `timeout` at most, until `tasks` tasks are not needed any more.
    pub(crate) fn begin(began: Instant, timeout: Duration, tasks: usize) -> Self {
        info!(tasks, ?timeout, "draining: the tasks here are moved");
        Self {
            began,
            until: began + timeout,
            timeout,
            tell_at: began + TOLD_EVERY,
        }
    }

    /// The leader has said that nothing here is needed any more.
    pub(crate) fn drained(&self) {
        let waited = self.began.elapsed();
        info!(?waited, "drained: nothing here is needed any more");
    }

    /// When [`Self::is_over`] is to be asked again at the latest.
    pub(crate) fn next_at(&self) -> Instant {
        self.until.min(self.tell_at)
    }

    /// Whether it has waited in vain for as long as it may, or need not wait at all. `needed` are the attempts of the
    /// tasks that run here.
    pub(crate) fn is_over(
        &mut self,
        now: Instant,
        needed: &[(JobId, AttemptId)],
        has_leader: bool,
    ) -> bool {
        let jobs = needed.iter().map(|(job, _)| *job).collect::<BTreeSet<_>>();
        let tasks = needed.len();
        if tasks == 0 && !has_leader {
            info!("nothing runs here, and no leader is linked that could change that");
            return true;
        }
        if now >= self.until {
            let timeout = self.timeout;
            warn!(
                tasks,
                ?jobs,
                ?timeout,
                "the tasks here were not moved in time (taskmanager.drain_timeout_ms); they go on elsewhere from their last checkpoint"
            );
            return true;
        }
        if now >= self.tell_at {
            self.tell_at = now + TOLD_EVERY;
            let (waited, left) = (now - self.began, self.until - now);
            if has_leader {
                info!(
                    tasks,
                    ?jobs,
                    ?waited,
                    ?left,
                    "draining: waiting until the leader has moved the tasks"
                );
            } else {
                info!(
                    tasks,
                    ?jobs,
                    ?waited,
                    ?left,
                    "draining: waiting for a leader that moves the tasks"
                );
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::Epoch;

    use super::*;

    const NEEDED: [(JobId, AttemptId); 1] = [(JobId([1; 16]), AttemptId::new(Epoch(1), 1))];

    #[test]
    fn it_waits_for_a_leader_and_for_its_word_but_not_longer_than_allowed() {
        let began = Instant::now();
        let mut draining = Draining::begin(began, Duration::from_secs(12), NEEDED.len());
        let (mut now, mut wakes) = (began, 0);
        while !draining.is_over(now, &NEEDED, wakes % 2 == 0) {
            now = draining.next_at();
            wakes += 1;
        }
        assert_eq!(now - began, Duration::from_secs(12));
        assert_eq!(wakes, 3, "two lines in the log, and the end");
    }

    #[test]
    fn with_nothing_to_move_only_a_leader_has_to_be_asked() {
        let now = Instant::now();
        let mut draining = Draining::begin(now, Duration::from_secs(12), 0);
        assert!(
            !draining.is_over(now, &[], true),
            "it may be about to deploy something here"
        );
        assert!(draining.is_over(now, &[], false));
    }

    #[test]
    fn without_patience_it_is_over_at_once() {
        let now = Instant::now();
        assert!(Draining::begin(now, Duration::ZERO, 1).is_over(now, &NEEDED, true));
    }
}
