//! The life cycle of a job: its phases, and the one table of legal steps between them.

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// A leader took over and waits for TaskManagers to report what they run.
    Adopting,
    /// There are not enough free slots.
    Waiting,
    /// Tasks are being started.
    Deploying,
    /// Every task processes records, or has finished while others have not.
    Running,
    /// Tasks failed, and start again after a delay.
    Restarting,
    /// Every task has finished; the final checkpoint and the commits are awaited.
    Finishing,
    /// A user asked for its end, which is being stored; tasks go on until then.
    Cancelling,
    /// How it ended is decided and being stored; no task runs any more.
    Ending,
    /// Every source ended and everything is committed.
    Finished,
    /// Ended by a user.
    Cancelled,
    /// Ended by failures that its restart strategy does not cover.
    Failed,
}

use Phase::{
    Adopting, Cancelled, Cancelling, Deploying, Ending, Failed, Finished, Finishing, Restarting,
    Running, Waiting,
};

/// Every legal step.
const STEPS: &[(Phase, &[Phase])] = &[
    // What was reported may be anything that was going on; what was not is started again.
    (
        Adopting,
        &[
            Waiting, Deploying, Running, Restarting, Finishing, Cancelling, Ending,
        ],
    ),
    (Waiting, &[Deploying, Restarting, Cancelling, Ending]),
    // Tasks that had finished restore as finished: all of them at once, perhaps.
    (
        Deploying,
        &[Running, Finishing, Restarting, Cancelling, Ending],
    ),
    (Running, &[Finishing, Restarting, Cancelling, Ending]),
    (Restarting, &[Waiting, Deploying, Cancelling, Ending]),
    // A finished task whose commit is not confirmed is lost with its machine like any other.
    (Finishing, &[Restarting, Cancelling, Ending]),
    (Cancelling, &[Ending]),
    (Ending, &[Finished, Cancelled, Failed]),
    (Finished, &[]),
    (Cancelled, &[]),
    (Failed, &[]),
];

impl core::fmt::Display for Phase {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Adopting => "being taken over",
            Waiting => "waiting for slots",
            Deploying => "being deployed",
            Running => "running",
            Restarting => "restarting",
            Finishing => "finishing",
            Cancelling => "being cancelled",
            Ending => "ending",
            Finished => "finished",
            Cancelled => "cancelled",
            Failed => "failed",
        })
    }
}

impl Phase {
    /// Whether a job may go from this phase to that.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        STEPS
            .iter()
            .any(|(from, to)| *from == self && to.contains(&next))
    }

    /// Whether the job has ended and that is stored.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Finished | Cancelled | Failed)
    }

    /// Whether tasks may be started, and failures lead to restarts.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(
            self,
            Adopting | Waiting | Deploying | Running | Restarting | Finishing
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    const ALL: [Phase; 11] = [
        Adopting, Waiting, Deploying, Running, Restarting, Finishing, Cancelling, Ending, Finished,
        Cancelled, Failed,
    ];

    #[test]
    fn every_phase_has_one_line_and_no_step_to_itself() {
        let lines: BTreeSet<Phase> = STEPS.iter().map(|(from, _)| *from).collect();
        assert_eq!(lines, ALL.into());
        assert_eq!(STEPS.len(), ALL.len());
        assert!(ALL.iter().all(|phase| !phase.may_become(*phase)));
    }

    #[test]
    fn every_phase_that_is_not_terminal_can_end_and_terminal_ones_are_for_ever() {
        for phase in ALL {
            let mut reached = BTreeSet::from([phase]);
            while let Some(next) = ALL
                .iter()
                .find(|next| {
                    !reached.contains(next) && reached.iter().any(|from| from.may_become(**next))
                })
                .copied()
            {
                reached.insert(next);
            }
            let ends = reached.iter().filter(|phase| phase.is_terminal()).count();
            if phase.is_terminal() {
                assert_eq!(reached, [phase].into(), "nothing follows the end");
            } else {
                assert_eq!(ends, 3, "{phase:?} can end in every way");
            }
        }
    }

    #[test]
    fn only_what_is_decided_and_stored_ends_a_job() {
        for (from, to) in ALL.into_iter().flat_map(|from| ALL.map(|to| (from, to))) {
            if to.is_terminal() {
                assert_eq!(from.may_become(to), from == Ending, "{from:?} to {to:?}");
            }
        }
    }
}
