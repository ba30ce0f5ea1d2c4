//! Slots and placement. A slot has room for one task of each stage of one job, so a job needs as many slots as its
//! widest stage. Tasks are spread over TaskManagers; what runs already stays where it is. It never starts anything.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use tidemill_protocol::{ExecutionGraph, TaskId, TaskManagerId};

use crate::standby::Warmth;

/// Where tasks run, or are to run.
pub type Placements = BTreeMap<TaskId, TaskManagerId>;

/// Two TaskManagers whose data connection broke while both lived; the lesser first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair(TaskManagerId, TaskManagerId);

impl Pair {
    /// The pair of these two, in any order.
    #[must_use]
    pub fn new(a: TaskManagerId, b: TaskManagerId) -> Self {
        if a <= b { Self(a, b) } else { Self(b, a) }
    }

    /// Both, the one of which more slots are used first; `None` when not both are used.
    pub(crate) fn by_use(
        &self,
        used: &BTreeMap<TaskManagerId, u32>,
    ) -> Option<(TaskManagerId, TaskManagerId)> {
        let (first, second) = (used.get(&self.0)?, used.get(&self.1)?);
        let (more, less) = if first >= second {
            (&self.0, &self.1)
        } else {
            (&self.1, &self.0)
        };
        Some((more.clone(), less.clone()))
    }

    /// Whether this TaskManager is one of the two.
    #[must_use]
    pub fn contains(&self, task_manager: &TaskManagerId) -> bool {
        self.0 == *task_manager || self.1 == *task_manager
    }

    /// Whether both are among these.
    fn within(&self, chosen: &BTreeSet<&TaskManagerId>) -> bool {
        chosen.contains(&self.0) && chosen.contains(&self.1)
    }
}

/// There are not enough free slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Slots that the tasks to place need.
    pub needed: u32,
    /// Slots that are free for them.
    pub free: u32,
}

impl Shortfall {
    /// How many slots must come.
    #[must_use]
    pub const fn missing(&self) -> u32 {
        self.needed.saturating_sub(self.free)
    }
}

/// What to place, and where there is room.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The job's graph.
    pub graph: &'a ExecutionGraph,
    /// Tasks that need a place.
    pub tasks: &'a BTreeSet<TaskId>,
    /// The job's other tasks, which stay where they are.
    pub staying: &'a Placements,
    /// For each TaskManager, the slots this job may use: its own there included, those of other jobs not.
    pub capacity: &'a BTreeMap<TaskManagerId, u32>,
    /// Pairs that should not both run this job.
    pub keep_apart: &'a BTreeSet<Pair>,
    /// Where tasks are at home already, which comes before anything else.
    pub warmth: &'a Warmth,
}

/// The slots a job needs: the tasks of its widest stage.
#[must_use]
pub fn slots_needed(graph: &ExecutionGraph) -> u32 {
    graph
        .stages
        .iter()
        .map(|stage| stage.parallelism)
        .max()
        .unwrap_or(0)
}

/// The slots that a job's tasks take on each TaskManager: of each, the most tasks of one stage.
#[must_use]
pub fn slots_used(placements: &Placements) -> BTreeMap<TaskManagerId, u32> {
    let mut per_stage: BTreeMap<(&TaskManagerId, u32), u32> = BTreeMap::new();
    for (task, task_manager) in placements {
        *per_stage.entry((task_manager, task.stage)).or_default() += 1;
    }
    let mut used: BTreeMap<TaskManagerId, u32> = BTreeMap::new();
    for ((task_manager, _), tasks) in per_stage {
        let most = used.entry(task_manager.clone()).or_default();
        *most = (*most).max(tasks);
    }
    used
}

/// Places tasks: each in its column (the tasks that share a slot), columns spread over TaskManagers, pairs kept apart
/// when that is possible at all.
///
/// # Errors
/// When the slots do not suffice.
pub fn place(request: &Request<'_>) -> Result<Placements, Shortfall> {
    let columns = columns(request.graph, request.tasks);
    place_columns(request, &columns, request.keep_apart)
        .or_else(|| place_columns(request, &columns, &BTreeSet::new()))
        .ok_or_else(|| shortfall(request, &columns))
}

/// The tasks by the slot they share: narrower stages are stretched over the widest, so that they are spread as well.
pub(crate) fn columns(graph: &ExecutionGraph, tasks: &BTreeSet<TaskId>) -> Vec<BTreeSet<TaskId>> {
    let width = u64::from(slots_needed(graph));
    let mut columns: BTreeMap<u64, BTreeSet<TaskId>> = BTreeMap::new();
    for task in tasks {
        let parallelism = graph
            .stage(*task)
            .map_or(1, |stage| u64::from(stage.parallelism));
        let column = u64::from(task.subtask) * width / parallelism;
        columns.entry(column).or_default().insert(*task);
    }
    columns.into_values().collect()
}

/// What is used of each TaskManager while columns are placed one after the other.
struct Usage<'a> {
    tasks: BTreeMap<(&'a TaskManagerId, u32), u32>,
    slots: BTreeMap<&'a TaskManagerId, u32>,
}

impl<'a> Usage<'a> {
    fn of(placements: &'a Placements) -> Self {
        let mut usage = Self {
            tasks: BTreeMap::new(),
            slots: BTreeMap::new(),
        };
        for (task, task_manager) in placements {
            usage.add(task_manager, core::iter::once(task));
        }
        usage
    }

    fn slots(&self, task_manager: &TaskManagerId) -> u32 {
        self.slots.get(task_manager).copied().unwrap_or(0)
    }

    fn slots_with(&self, task_manager: &TaskManagerId, column: &BTreeSet<TaskId>) -> u32 {
        let tasks = |stage| self.tasks.get(&(task_manager, stage)).copied().unwrap_or(0);
        let most = column
            .iter()
            .map(|task| tasks(task.stage) + 1)
            .max()
            .unwrap_or(0);
        most.max(self.slots(task_manager))
    }

    fn add<'t>(
        &mut self,
        task_manager: &'a TaskManagerId,
        tasks: impl Iterator<Item = &'t TaskId>,
    ) {
        for task in tasks {
            let count = self.tasks.entry((task_manager, task.stage)).or_default();
            *count += 1;
            let slots = self.slots.entry(task_manager).or_default();
            *slots = (*slots).max(*count);
        }
    }
}

fn place_columns(
    request: &Request<'_>,
    columns: &[BTreeSet<TaskId>],
    keep_apart: &BTreeSet<Pair>,
) -> Option<Placements> {
    let mut usage = Usage::of(request.staying);
    let mut placed = Placements::new();
    for column in columns {
        let fits = |task_manager: &TaskManagerId, capacity: u32| {
            let mut chosen: BTreeSet<&TaskManagerId> = usage.slots.keys().copied().collect();
            chosen.insert(task_manager);
            usage.slots_with(task_manager, column) <= capacity
                && !keep_apart.iter().any(|pair| pair.within(&chosen))
        };
        let warmth = |task_manager: &TaskManagerId| {
            let kept = request.warmth.get(task_manager)?;
            let worth = column.iter().filter_map(|task| kept.get(task));
            Some(worth.fold(0u32, |sum, worth| sum.saturating_add(*worth)))
        };
        // Where the most is kept warm, then a place that costs no further slot, then the TaskManager with the fewest of this job, then the one
        // with the most room.
        let (best, _) = request
            .capacity
            .iter()
            .filter(|(task_manager, capacity)| fits(task_manager, **capacity))
            .min_by_key(|(task_manager, capacity)| {
                let after = usage.slots_with(task_manager, column);
                let cost = after - usage.slots(task_manager);
                let cold = u32::MAX - warmth(task_manager).unwrap_or(0);
                let room = u32::MAX - (**capacity - after);
                (cold, cost, after, room, *task_manager)
            })?;
        usage.add(best, column.iter());
        placed.extend(column.iter().map(|task| (*task, best.clone())));
    }
    Some(placed)
}

fn shortfall(request: &Request<'_>, columns: &[BTreeSet<TaskId>]) -> Shortfall {
    let usage = Usage::of(request.staying);
    let free = request
        .capacity
        .iter()
        .map(|(task_manager, capacity)| capacity.saturating_sub(usage.slots(task_manager)))
        .fold(0u32, u32::saturating_add);
    let needed = u32::try_from(columns.len()).unwrap_or(u32::MAX);
    // Columns that share a slot with staying tasks may cost nothing, so what is short is at least one.
    Shortfall {
        needed: needed.max(free.saturating_add(1)),
        free,
    }
}

#[cfg(test)]
#[path = "scheduler/tests.rs"]
mod tests;
