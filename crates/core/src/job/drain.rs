//! How a job leaves TaskManagers that want to go: once its tasks there fit elsewhere, a checkpoint is taken for the
//! move, and when that is published their regions go back to it with those tasks placed elsewhere. Until then they run
//! where they are. What fails meanwhile is a failure like any other.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::{TaskId, TaskManagerId};

use super::{Job, Note, Phase, RegionState, Resources};
use crate::checkpoint;
use crate::recovery::{NoPlan, RecoveryPlan};
use crate::scheduler::{self, Placements, Shortfall};
use crate::time::{Duration, Time};

/// A move that is being made.
#[derive(Clone, Debug)]
pub(super) struct Move {
    /// Where tasks are to leave.
    pub(super) from: BTreeSet<TaskManagerId>,
    /// The slots that the job takes afterwards: nobody else is to take them meanwhile.
    pub(super) reserved: BTreeMap<TaskManagerId, u32>,
    /// The checkpoint is published.
    due: bool,
}

/// Why tasks stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stay {
    /// The room there was when it was last tried, and who was to be left.
    tried: (BTreeMap<TaskManagerId, u32>, BTreeSet<TaskManagerId>),
    shortfall: Shortfall,
}

impl Job {
    /// Whether tasks of it may be moved now: when all run, and none move already.
    #[must_use]
    pub fn may_leave(&self) -> bool {
        self.phase == Phase::Running && self.moving.is_none() && !self.is_to_stop()
    }

    /// These TaskManagers want to go. `resources` are those without this job's own use; the ones that want to go are
    /// among [`Resources::leaving`].
    pub fn leave(&mut self, now: Time, draining: &BTreeSet<TaskManagerId>, resources: &Resources) {
        let concerned: BTreeSet<TaskManagerId> = draining
            .iter()
            .filter(|id| !self.live_regions_on(&[(*id).clone()].into()).is_empty())
            .cloned()
            .collect();
        if !self.may_leave() || concerned.is_empty() {
            return;
        }
        let tried = (resources.capacity.clone(), concerned.clone());
        if self.stay.as_ref().is_some_and(|stay| stay.tried == tried) {
            return;
        }
        // All of them, or else one of them while the others are used as before.
        let alone = concerned.iter().map(|id| BTreeSet::from([id.clone()]));
        let mut shortfall = None;
        for from in core::iter::once(concerned.clone()).chain(alone) {
            match self.plan_move(&from, resources) {
                Ok(plan) => return self.begin_move(now, from, plan),
                Err(NoPlan::Slots(missing)) => shortfall = shortfall.or(Some(missing)),
                Err(NoPlan::NoImage { .. }) => {}
            }
        }
        let Some(shortfall) = shortfall else { return };
        if self.stay.as_ref().map(|stay| stay.shortfall) != Some(shortfall) {
            let from = concerned.into_iter().collect();
            self.note(now, Note::CannotMove { from, shortfall });
        }
        self.stay = Some(Stay { tried, shortfall });
    }

    /// The slots that its tasks elsewhere and those of these regions take, when these have moved.
    fn plan_move(
        &self,
        from: &BTreeSet<TaskManagerId>,
        resources: &Resources,
    ) -> Result<RecoveryPlan, NoPlan> {
        let regions: Vec<usize> = self.live_regions_on(from).into_iter().collect();
        let mut leaving = resources.leaving.clone();
        leaving.retain(|id, _| !from.contains(id));
        self.plan(&regions, resources, &leaving, None)
    }

    fn begin_move(&mut self, now: Time, from: BTreeSet<TaskManagerId>, plan: RecoveryPlan) {
        let mut afterwards: Placements = self.placements.clone();
        afterwards.extend(
            plan.regions
                .into_iter()
                .flat_map(|region| region.placements),
        );
        let reserved = scheduler::slots_used(&afterwards);
        let tasks = self.placements.values();
        let tasks = tasks.filter(|place| from.contains(*place)).count();
        let names = from.iter().cloned().collect();
        self.stay = None;
        self.moving = Some(Move {
            from,
            reserved,
            due: false,
        });
        self.note(now, Note::MoveBegun { from: names, tasks });
        self.coordinator.handle(now, checkpoint::Event::Requested);
        self.settle(now);
    }

    /// A checkpoint is published: a move that waits for one can be made.
    pub(super) fn move_is_due(&mut self) {
        if let Some(moving) = &mut self.moving {
            moving.due = true;
        }
    }

    /// Makes the move that is due: the regions go down, and are placed like any that wait.
    pub(super) fn make_move(&mut self, now: Time) {
        let Some(moving) = self.moving.as_ref().filter(|moving| moving.due) else {
            return;
        };
        let hit = self.live_regions_on(&moving.from);
        if self.phase != Phase::Running || hit.is_empty() {
            // It ends, or something failed: whatever has to start again is placed elsewhere anyway.
            self.moving = None;
            return;
        }
        let names: Vec<String> = moving.from.iter().map(|id| id.0.clone()).collect();
        let cause = alloc::format!("{} is being drained", names.join(", "));
        let reason = cause.clone();
        self.tasks_lost(now, reason);
        let restarted = hit
            .iter()
            .map(|region| self.region_tasks[*region].len())
            .sum();
        for region in &hit {
            self.stop_region(*region);
            self.regions[*region].state = RegionState::Pending;
        }
        self.begin_recovery(now, hit, cause, 0, restarted, Duration::ZERO);
    }

    /// The live regions with tasks on any of these.
    fn live_regions_on(&self, from: &BTreeSet<TaskManagerId>) -> BTreeSet<usize> {
        let there = |(task, place): (&TaskId, &TaskManagerId)| {
            from.contains(place)
                .then(|| self.region_of(*task))
                .flatten()
        };
        self.placements
            .iter()
            .filter_map(there)
            .filter(|region| self.regions[*region].is_live())
            .collect()
    }
}
