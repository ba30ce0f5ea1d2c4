//! What a failure leads to: which regions fail, and where their tasks go. Pure and total: a plan holds everything that
//! its execution needs, and executing it involves no choice.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::{ExecutionGraph, TaskId, TaskManagerId};

use crate::scheduler::{self, Pair, Placements, Request, Shortfall};
use crate::standby::Warmth;

/// The regions that the failure of some tasks takes down, as indices into `regions`.
#[must_use]
pub fn failed_regions(regions: &[BTreeSet<TaskId>], failed: &BTreeSet<TaskId>) -> BTreeSet<usize> {
    let hit = |tasks: &BTreeSet<TaskId>| !tasks.is_disjoint(failed);
    regions
        .iter()
        .enumerate()
        .filter(|(_, tasks)| hit(tasks))
        .map(|(index, _)| index)
        .collect()
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The job's graph.
    pub graph: &'a ExecutionGraph,
    /// The regions to start again.
    pub regions: &'a [&'a BTreeSet<TaskId>],
    /// Where the job's tasks run or ran, as far as those TaskManagers live.
    pub placements: &'a Placements,
    /// For each TaskManager, the slots that this job may use.
    pub capacity: &'a BTreeMap<TaskManagerId, u32>,
    /// TaskManagers where tasks may stay as far as their slots suffice, and nothing new is placed.
    pub leaving: &'a BTreeMap<TaskManagerId, u32>,
    /// Pairs of TaskManagers that should not both run this job.
    pub keep_apart: &'a BTreeSet<Pair>,
    /// What TaskManagers keep of the tasks' images.
    pub warmth: &'a Warmth,
    /// The checkpoint to go back to; `None` for the beginning.
    pub checkpoint: Option<&'a CheckpointMetadata>,
}

impl Situation<'_> {
    /// The slots that this job may use on a TaskManager.
    fn slots(&self, task_manager: &TaskManagerId) -> Option<u32> {
        let slots = self.capacity.get(task_manager);
        slots.or_else(|| self.leaving.get(task_manager)).copied()
    }
}

/// How regions start again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// One for each region, in the order they were given.
    pub regions: Vec<RegionPlan>,
}

/// How one region starts again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionPlan {
    /// Where every task of the region runs.
    pub placements: Placements,
}

/// Why there is no plan yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPlan {
    /// Slots are missing.
    Slots(Shortfall),
    /// The checkpoint holds nothing of this task: it belongs to another graph, or is damaged.
    NoImage {
        /// Which task.
        task: TaskId,
    },
}

/// Plans: survivors stay where they are, lost tasks are spread over several others.
///
/// # Errors
/// When slots are missing, or the checkpoint does not fit the graph.
pub fn plan(situation: &Situation<'_>) -> Result<RecoveryPlan, NoPlan> {
    let restarted: BTreeSet<TaskId> = situation
        .regions
        .iter()
        .copied()
        .flatten()
        .copied()
        .collect();
    if let Some(checkpoint) = situation.checkpoint {
        let images: BTreeSet<TaskId> = checkpoint.tasks.iter().map(|part| part.task).collect();
        if let Some(task) = restarted.difference(&images).next() {
            return Err(NoPlan::NoImage { task: *task });
        }
    }
    let mut staying: Placements = situation
        .placements
        .iter()
        .filter(|(_, task_manager)| situation.slots(task_manager).is_some())
        .map(|(task, task_manager)| (*task, task_manager.clone()))
        .collect();
    vacate(situation, &restarted, &mut staying);
    let homeless: BTreeSet<TaskId> = restarted
        .iter()
        .filter(|task| !staying.contains_key(task))
        .copied()
        .collect();
    let placed = scheduler::place(&Request {
        graph: situation.graph,
        tasks: &homeless,
        staying: &staying,
        capacity: situation.capacity,
        keep_apart: situation.keep_apart,
        warmth: situation.warmth,
    })
    .map_err(NoPlan::Slots)?;
    staying.extend(placed);
    let region_plan = |tasks: &BTreeSet<TaskId>| RegionPlan {
        placements: tasks
            .iter()
            .map(|task| (*task, staying[task].clone()))
            .collect(),
    };
    let regions = situation
        .regions
        .iter()
        .map(|tasks| region_plan(tasks))
        .collect();
    Ok(RecoveryPlan { regions })
}

/// Takes restarted tasks off TaskManagers where they cannot stay: the job may not use as many slots there as it did, or
/// the TaskManager is to be kept apart from another which runs more of the job.
fn vacate(situation: &Situation<'_>, restarted: &BTreeSet<TaskId>, staying: &mut Placements) {
    let leave = |staying: &mut Placements, task_manager: &TaskManagerId| {
        staying.retain(|task, place| place != task_manager || !restarted.contains(task));
    };
    for (task_manager, used) in scheduler::slots_used(staying) {
        if situation
            .slots(&task_manager)
            .is_none_or(|slots| used > slots)
        {
            leave(staying, &task_manager);
        }
    }
    for pair in situation.keep_apart {
        let used = scheduler::slots_used(staying);
        if let Some((_, lesser)) = pair.by_use(&used) {
            leave(staying, &lesser);
        }
    }
}

#[cfg(test)]
#[path = "recovery/tests.rs"]
mod tests;
