//! What a running job has in the store for nothing: what crashes between the steps of a publication left, what belongs to
//! checkpoints that were given up, and what attempts wrote that are over. Publications clean up behind them; this is for
//! when they are rare, or fail.
//!
//! A task's next capture builds on its last one, whether that one's checkpoint completed or not. So of what is newer than
//! the last completed checkpoint only that goes which was written by attempts that certainly never go on. That a leader
//! has replaced an attempt does not do: a later leader may find it whole and adopt it. It takes the word of a TaskManager
//! that one of its tasks is gone, since regions are adopted whole or not at all.

use alloc::collections::{BTreeMap, BTreeSet};
use tidemill_protocol::{AttemptId, TaskId, TaskManagerId};

use super::{Action, Job, Phase, RegionState, Timer};
use crate::mutation::{self, Mutation};
use crate::scheduler::Placements;
use crate::time::{Duration, Time};

/// Between two scans of a job's part of the store.
const SCAN_PAUSE: Duration = Duration::from_secs(60);

/// What is known of a job's orphans.
#[derive(Clone, Debug, Default)]
pub(super) struct Orphans {
    /// There may be some.
    is_due: bool,
    scanned_at: Option<Time>,
    /// Attempts that were told to stop since the last publication, and where their tasks were.
    stopped: BTreeMap<AttemptId, Placements>,
    /// Attempts since then that certainly never go on.
    ended: BTreeSet<AttemptId>,
}

impl Job {
    /// There may be something in the store that nothing needs.
    pub(super) fn orphans_are_due(&mut self) {
        self.orphans.is_due = true;
    }

    /// A region's tasks are told to stop.
    pub(super) fn attempt_stopped(&mut self, region: usize, attempt: AttemptId) {
        let tasks = self.region_tasks[region].iter();
        let there = tasks.filter_map(|task| Some((*task, self.placements.get(task)?.clone())));
        self.orphans.stopped.insert(attempt, there.collect());
    }

    /// A TaskManager says that a task of this attempt is gone.
    pub(super) fn attempt_ended(&mut self, attempt: AttemptId) {
        self.orphans.stopped.remove(&attempt);
        self.orphans.ended.insert(attempt);
        self.orphans.is_due = true;
    }

    /// A TaskManager says how a task is under this attempt: it has at most one of each task, so older ones are gone there.
    pub(super) fn attempt_speaks(
        &mut self,
        from: &TaskManagerId,
        task: TaskId,
        attempt: AttemptId,
    ) {
        let replaced = |(older, there): &(&AttemptId, &Placements)| {
            **older < attempt && there.get(&task) == Some(from)
        };
        let stopped = self.orphans.stopped.iter();
        let replaced = stopped.filter(replaced).map(|(older, _)| *older);
        for older in replaced.collect::<BTreeSet<_>>() {
            self.attempt_ended(older);
        }
    }

    /// A checkpoint is published: all that attempts before it have written is older, and subject to the usual clean-up.
    pub(super) fn attempts_are_published(&mut self) {
        self.orphans.stopped.clear();
        self.orphans.ended.clear();
    }

    /// After every fact: has a job that runs looked over, if there may be something and it was not just done.
    pub(super) fn settle_orphans(&mut self, now: Time) {
        self.timers.stop(Timer::Orphans);
        let adopting = |region: &super::Region| region.state == RegionState::Adopting;
        let settled = matches!(self.phase, Phase::Running | Phase::Finishing)
            && !self.regions.iter().any(adopting);
        if !self.orphans.is_due || !settled {
            return;
        }
        let due = self.orphans.scanned_at.map_or(now, |at| at + SCAN_PAUSE);
        if due > now {
            return self.timers.set(Timer::Orphans, due);
        }
        // The next publication, or its end, comes here again.
        let Some(retained) = self.coordinator.settled() else {
            return;
        };
        self.orphans.is_due = false;
        self.orphans.scanned_at = Some(now);
        let mut ended = self.orphans.ended.clone();
        if mutation::is(Mutation::LiveAttemptsSwept) {
            ended.extend(self.regions.iter().filter_map(|region| region.attempt));
        }
        self.actions.push_back(Action::DeleteOrphans {
            retained,
            over: self.coordinator.over(),
            ended,
        });
    }
}
