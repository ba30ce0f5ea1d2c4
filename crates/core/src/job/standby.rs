//! The second TaskManager of each task: who keeps its last image warm, what he was told to keep, and what he has. Where a
//! task starts again is decided with it; that it is there is never relied upon.
//!
//! TaskManagers also keep, for a while and untold, what tasks leave that are stopped there. Whoever is needed no more is
//! told to drop all that.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use tidemill_protocol::control::{Command, WarmImages};
use tidemill_protocol::{CheckpointId, TaskId, TaskManagerId};

use super::{Job, Phase, Resources};
use crate::scheduler::Placements;
use crate::standby::{self, Warmth};

/// What placing a task is worth where its image is kept: that of the checkpoint it goes back to, or of an older one.
const WARM: u32 = 2;
const STALE: u32 = 1;

/// What a TaskManager keeps.
type Kept = BTreeMap<TaskId, CheckpointId>;

/// The standby images of a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Standby {
    /// Who is to keep each task's image.
    keepers: Placements,
    /// What each was told to keep; `None` when it keeps something that this leader has not told it.
    told: BTreeMap<TaskManagerId, Option<(CheckpointId, BTreeSet<TaskId>)>>,
    /// What each has said that it keeps.
    warm: BTreeMap<TaskManagerId, Kept>,
    /// Where tasks run or have run, and may have left their memory and images.
    remains: BTreeSet<TaskManagerId>,
    /// Who is there, or what runs where, has changed since the keepers were chosen.
    is_outdated: bool,
    /// What is to be kept may have changed since the keepers were told.
    is_untold: bool,
}

impl Job {
    /// Whether keepers are to be chosen.
    #[must_use]
    pub fn wants_keepers(&self) -> bool {
        self.record.options.standby && self.phase == Phase::Running && self.standby.is_outdated
    }

    /// Who is to keep each task's image.
    #[must_use]
    pub fn keepers(&self) -> &Placements {
        &self.standby.keepers
    }

    /// What each TaskManager has said that it keeps.
    #[must_use]
    pub fn warm(&self) -> &BTreeMap<TaskManagerId, BTreeMap<TaskId, CheckpointId>> {
        &self.standby.warm
    }

    /// Who is there, or who may keep something, has changed.
    pub fn keepers_changed(&mut self) {
        self.standby.is_outdated = true;
    }

    /// Chooses keepers. `load` is what TaskManagers keep for other jobs.
    pub fn choose_keepers(&mut self, resources: &Resources, load: &BTreeMap<TaskManagerId, usize>) {
        self.standby.is_outdated = false;
        let mut current = self.standby.keepers.clone();
        for (keeper, kept) in &self.standby.warm {
            for task in kept.keys() {
                current.entry(*task).or_insert_with(|| keeper.clone());
            }
        }
        let keepers = standby::plan(&standby::Request {
            graph: &self.graph,
            placements: &self.placements,
            capacity: &resources.capacity,
            load,
            current: &current,
        });
        if keepers != self.standby.keepers {
            self.standby.keepers = keepers;
            self.standby.is_untold = true;
        }
        self.settle_standby();
    }

    /// A TaskManager registered: what it was told may not have arrived, and it may keep what another leader told it.
    pub(super) fn keeper_registered(
        &mut self,
        id: &TaskManagerId,
        warm: Vec<(TaskId, CheckpointId)>,
    ) {
        let standby = &mut self.standby;
        if warm.is_empty() {
            standby.told.remove(id);
            standby.warm.remove(id);
        } else {
            standby.told.insert(id.clone(), None);
            standby.warm.insert(id.clone(), warm.into_iter().collect());
        }
        standby.is_outdated = true;
        standby.is_untold = true;
    }

    /// A TaskManager says what it keeps.
    pub(super) fn kept_warm(&mut self, id: TaskManagerId, warm: Vec<(TaskId, CheckpointId)>) {
        self.standby.warm.entry(id).or_default().extend(warm);
    }

    pub(super) fn keeper_lost(&mut self, id: &TaskManagerId) {
        let standby = &mut self.standby;
        standby.told.remove(id);
        standby.warm.remove(id);
        standby.remains.remove(id);
        standby.keepers.retain(|_, keeper| keeper != id);
        standby.is_outdated = true;
    }

    /// Tasks run there, and leave something when they are stopped.
    pub(super) fn leaves_remains(&mut self, at: &TaskManagerId) {
        self.standby.remains.insert(at.clone());
    }

    /// A checkpoint is published or known: it is what is to be kept from now on.
    pub(super) fn keepers_want_news(&mut self) {
        self.standby.is_untold = true;
    }

    /// How much is gained by placing tasks where their images are kept.
    pub(super) fn warmth(&self) -> Warmth {
        let Some(last) = self.coordinator.restart_point() else {
            return Warmth::new();
        };
        let worth = |(task, of): (&TaskId, &CheckpointId)| {
            let worth = if *of == last.checkpoint { WARM } else { STALE };
            (*task, worth)
        };
        let keeper = |(keeper, kept): (&TaskManagerId, &Kept)| {
            (keeper.clone(), kept.iter().map(worth).collect())
        };
        self.standby.warm.iter().map(keeper).collect()
    }

    /// The TaskManagers other than this one that have exactly this image of a task.
    pub(super) fn warm_elsewhere(
        &self,
        task: TaskId,
        of: CheckpointId,
        not: &TaskManagerId,
    ) -> impl Iterator<Item = &TaskManagerId> {
        let has = move |(_, kept): &(&TaskManagerId, &Kept)| kept.get(&task) == Some(&of);
        let keepers = self.standby.warm.iter().filter(has);
        keepers
            .map(|(keeper, _)| keeper)
            .filter(move |keeper| *keeper != not)
    }

    /// Tells the keepers what has changed.
    pub(super) fn settle_standby(&mut self) {
        if !self.phase.is_active() && self.phase != Phase::Cancelling {
            return self.dismiss_everybody();
        }
        self.dismiss_left();
        if !self.standby.is_untold {
            return;
        }
        let last = self.coordinator.last().map(|last| last.checkpoint);
        let metadata = last.and_then(|last| self.coordinator.metadata(last));
        let Some(metadata) = metadata else {
            // It is told when it is known; and before the first one there is nothing to keep.
            self.standby.is_untold = last.is_some();
            return;
        };
        self.standby.is_untold = false;
        let mut wanted: BTreeMap<TaskManagerId, WarmImages> = BTreeMap::new();
        let nothing = WarmImages {
            job: self.record.id,
            module: self.record.module,
            checkpoint: metadata.checkpoint,
            images: Vec::new(),
        };
        for told in self.standby.told.keys() {
            wanted.insert(told.clone(), nothing.clone());
        }
        for part in &metadata.tasks {
            if let Some(keeper) = self.standby.keepers.get(&part.task) {
                let images = wanted
                    .entry(keeper.clone())
                    .or_insert_with(|| nothing.clone());
                images.images.push((part.task, part.manifest.clone()));
            }
        }
        for (keeper, images) in wanted {
            self.tell_keeper(keeper, images);
        }
    }

    /// Tells a keeper what he is to keep, unless he was told.
    fn tell_keeper(&mut self, keeper: TaskManagerId, images: WarmImages) {
        let tasks: BTreeSet<TaskId> = images.images.iter().map(|(task, _)| *task).collect();
        let standby = &mut self.standby;
        if let Some(warm) = standby.warm.get_mut(&keeper) {
            warm.retain(|task, _| tasks.contains(task));
        }
        let forgets = tasks.is_empty();
        let told = Some((images.checkpoint, tasks));
        if standby.told.get(&keeper) == Some(&told) {
            return;
        }
        if forgets {
            standby.told.remove(&keeper);
            standby.warm.remove(&keeper);
        } else {
            standby.told.insert(keeper.clone(), told);
        }
        self.send(&keeper, Command::KeepWarm(images));
    }

    /// The job runs: where none of its tasks is any more, what they left is of no use.
    fn dismiss_left(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        let hosts: BTreeSet<&TaskManagerId> = self.placements.values().collect();
        let standby = &mut self.standby;
        let needed = |id: &TaskManagerId| hosts.contains(id) || standby.told.contains_key(id);
        let (needed, left) = core::mem::take(&mut standby.remains)
            .into_iter()
            .partition(needed);
        standby.remains = needed;
        self.dismiss(left);
    }

    /// The job has ended: nobody keeps anything of it.
    fn dismiss_everybody(&mut self) {
        let standby = &mut self.standby;
        standby.keepers.clear();
        standby.warm.clear();
        let mut all = core::mem::take(&mut standby.remains);
        all.extend(core::mem::take(&mut standby.told).into_keys());
        self.dismiss(all);
    }

    /// Tells them to keep nothing of the job.
    fn dismiss(&mut self, keepers: BTreeSet<TaskManagerId>) {
        for keeper in keepers {
            let nothing = WarmImages {
                job: self.record.id,
                module: self.record.module,
                checkpoint: CheckpointId::new(self.reign.epoch, 0),
                images: Vec::new(),
            };
            self.send(&keeper, Command::KeepWarm(nothing));
        }
    }
}
