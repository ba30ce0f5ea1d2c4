//! Which second TaskManager keeps each task's last image at hand. Tasks that share a slot go together, so that one
//! TaskManager can take them over; what ran on one TaskManager is spread over several, since it goes down together.
//! Pure: it neither says who keeps what already nor tells anybody to.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use tidemill_protocol::{ExecutionGraph, TaskId, TaskManagerId};

use crate::scheduler::{self, Placements};

/// For each TaskManager, how much is gained by placing a task there: what it keeps warm.
pub type Warmth = BTreeMap<TaskManagerId, BTreeMap<TaskId, u32>>;

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The job's graph.
    pub graph: &'a ExecutionGraph,
    /// Where its tasks run.
    pub placements: &'a Placements,
    /// For each TaskManager that may keep images, the slots that this job may use there: its own included.
    pub capacity: &'a BTreeMap<TaskManagerId, u32>,
    /// How many tasks of other jobs each TaskManager keeps warm.
    pub load: &'a BTreeMap<TaskManagerId, usize>,
    /// Who keeps what now: it stays as far as that is even.
    pub current: &'a Placements,
}

/// Tasks that share a slot, and where that is.
type Group = (TaskManagerId, BTreeSet<TaskId>);

/// What each TaskManager is to keep, while one group after the other is given away.
#[derive(Default)]
struct Given {
    groups: BTreeMap<TaskManagerId, usize>,
    of_host: BTreeMap<(TaskManagerId, TaskManagerId), u32>,
    standby: Placements,
}

impl Given {
    fn groups(&self, to: &TaskManagerId) -> usize {
        self.groups.get(to).copied().unwrap_or(0)
    }

    fn of_host(&self, host: &TaskManagerId, to: &TaskManagerId) -> u32 {
        let key = (host.clone(), to.clone());
        self.of_host.get(&key).copied().unwrap_or(0)
    }

    fn give(&mut self, (host, tasks): &Group, to: &TaskManagerId) {
        *self.groups.entry(to.clone()).or_default() += 1;
        *self.of_host.entry((host.clone(), to.clone())).or_default() += 1;
        let standby = tasks.iter().map(|task| (*task, to.clone()));
        self.standby.extend(standby);
    }
}

/// Who is to keep each task's image: never the TaskManager where it runs. Tasks for which there is nobody are left out.
#[must_use]
pub fn plan(request: &Request<'_>) -> Placements {
    let mut given = Given::default();
    let groups = groups(request);
    let even = groups.len().div_ceil(request.capacity.len().max(1));
    let (mut left, mut newcomers) = (Vec::new(), Vec::new());
    for group in groups {
        match keeper(request, &group) {
            Some(keeper) if given.groups(keeper) < even => given.give(&group, keeper),
            Some(_) => left.push(group),
            None => newcomers.push(group),
        }
    }
    left.extend(newcomers);
    let used = scheduler::slots_used(request.placements);
    for group in left {
        let host = &group.0;
        let others = request.capacity.iter().filter(|(id, _)| *id != host);
        // Whoever has room for what goes down with this host first, then the one with the least of that host, then the
        // one with the least altogether.
        let best = others.min_by_key(|(id, slots)| {
            let free = slots.saturating_sub(used.get(*id).copied().unwrap_or(0));
            let of_host = given.of_host(host, id);
            let load = request.load.get(*id).copied().unwrap_or(0);
            (of_host >= free, of_host, given.groups(id) + load, *id)
        });
        if let Some((best, _)) = best {
            given.give(&group, best);
        }
    }
    given.standby
}

/// The tasks by the slot that they share.
fn groups(request: &Request<'_>) -> Vec<Group> {
    let tasks = request.placements.keys().copied().collect();
    let mut groups = Vec::new();
    for column in scheduler::columns(request.graph, &tasks) {
        let mut hosts: BTreeMap<TaskManagerId, BTreeSet<TaskId>> = BTreeMap::new();
        for task in column {
            let host = request.placements[&task].clone();
            hosts.entry(host).or_default().insert(task);
        }
        groups.extend(hosts);
    }
    groups
}

/// Who keeps all of a group now, and may go on.
fn keeper<'a>(request: &Request<'a>, (host, tasks): &Group) -> Option<&'a TaskManagerId> {
    let keepers: BTreeSet<_> = tasks.iter().map(|task| request.current.get(task)).collect();
    let keeper = keepers.first().copied().flatten()?;
    let may = keepers.len() == 1 && keeper != host && request.capacity.contains_key(keeper);
    may.then_some(keeper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;
    use tidemill_protocol::{ExecutionStage, StageKind};

    fn tm(number: usize) -> TaskManagerId {
        TaskManagerId(alloc::format!("tm-{number}"))
    }

    fn graph(parallelism: u32) -> ExecutionGraph {
        let stage = || ExecutionStage {
            name: "stage".to_string(),
            kind: StageKind::Wasm {
                input: tidemill_abi::StageInput::Guest,
                ports: 0,
                outputs: vec![],
            },
            parallelism,
        };
        ExecutionGraph {
            stages: vec![stage(), stage()],
            edges: vec![],
            max_parallelism: 128,
            job_graph_hash: 0,
        }
    }

    /// Columns on these TaskManagers.
    fn on(columns: &[usize]) -> Placements {
        (0u32..)
            .zip(columns)
            .flat_map(|(subtask, number)| {
                (0..2).map(move |stage| (TaskId::new(stage, subtask), tm(*number)))
            })
            .collect()
    }

    fn planned(columns: &[usize], slots: &[u32], current: &Placements) -> Placements {
        let placements = on(columns);
        let capacity = slots.iter().enumerate();
        let capacity = capacity.map(|(number, slots)| (tm(number), *slots));
        plan(&Request {
            graph: &graph(columns.len() as u32),
            placements: &placements,
            capacity: &capacity.collect(),
            load: &BTreeMap::new(),
            current,
        })
    }

    /// By column, the TaskManager that keeps it.
    fn keepers(planned: &Placements) -> Vec<&str> {
        let columns = planned.iter().filter(|(task, _)| task.stage == 0);
        columns.map(|(_, keeper)| keeper.0.as_str()).collect()
    }

    #[test]
    fn what_goes_down_together_is_spread_over_those_that_have_room() {
        let nobody = Placements::new();
        let spread = planned(&[0, 0, 1, 2], &[2, 2, 2, 2], &nobody);
        assert_eq!(keepers(&spread), ["tm-1", "tm-2", "tm-3", "tm-1"]);
        let full = planned(&[0, 0, 1, 1], &[2, 2], &nobody);
        assert_eq!(keepers(&full), ["tm-1", "tm-1", "tm-0", "tm-0"]);
        assert_eq!(planned(&[0, 0], &[2], &nobody), Placements::new(), "alone");
    }

    #[test]
    fn who_keeps_something_goes_on_as_far_as_that_is_even() {
        let nobody = Placements::new();
        let three = planned(&[0, 0, 1, 1, 2, 2], &[2, 2, 2], &nobody);
        assert_eq!(planned(&[0, 0, 1, 1, 2, 2], &[2, 2, 2], &three), three);
        let four = planned(&[0, 0, 1, 1, 2, 2], &[2, 2, 2, 2], &three);
        let moved = three
            .iter()
            .filter(|(task, keeper)| four[*task] != **keeper);
        assert!(moved.count() <= 4, "{three:?} {four:?}");
    }

    proptest! {
        #[test]
        fn everything_is_kept_elsewhere_and_a_slot_s_tasks_together(
            (slots, columns, current) in (2usize..6).prop_flat_map(|count| (
                prop::collection::vec(1u32..5, count),
                prop::collection::vec(0..count, 1..12),
                prop::collection::vec(0..count + 1, 12),
            ))
        ) {
            let current = on(&current[..columns.len()]);
            let planned = planned(&columns, &slots, &current);
            let placements = on(&columns);
            prop_assert_eq!(planned.len(), placements.len());
            for (task, keeper) in &planned {
                prop_assert_ne!(keeper, &placements[task]);
                prop_assert_eq!(keeper, &planned[&TaskId::new(0, task.subtask)]);
                prop_assert!((0..slots.len()).any(|number| *keeper == tm(number)));
            }
            // Nobody keeps twice as much as is even, unless all the rest runs where he could not keep it.
            let even = columns.len().div_ceil(slots.len() - 1);
            for number in 0..slots.len() {
                let kept = keepers(&planned).iter().filter(|keeper| **keeper == tm(number).0).count();
                prop_assert!(kept <= columns.len().min(even * slots.len()));
            }
        }
    }
}
