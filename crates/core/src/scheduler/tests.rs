//! Placement as scenarios, and its promises over random clusters.

use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;
use tidemill_protocol::{ExecutionStage, StageKind};

fn graph(parallelism: &[u32]) -> ExecutionGraph {
    let stages = parallelism
        .iter()
        .map(|parallelism| ExecutionStage {
            name: "stage".to_string(),
            kind: StageKind::Wasm {
                input: tidemill_abi::StageInput::Guest,
                ports: 0,
                outputs: vec![],
            },
            parallelism: *parallelism,
        })
        .collect();
    ExecutionGraph {
        stages,
        edges: vec![],
        max_parallelism: 128,
        job_graph_hash: 0,
    }
}

fn tm(name: &str) -> TaskManagerId {
    TaskManagerId(name.into())
}

fn capacity(slots: &[(&str, u32)]) -> BTreeMap<TaskManagerId, u32> {
    slots
        .iter()
        .map(|(name, slots)| (tm(name), *slots))
        .collect()
}

fn place_all(
    graph: &ExecutionGraph,
    capacity: &BTreeMap<TaskManagerId, u32>,
    keep_apart: &BTreeSet<Pair>,
) -> Result<Placements, Shortfall> {
    let (tasks, staying) = (graph.tasks().collect(), Placements::new());
    place(&Request {
        graph,
        tasks: &tasks,
        staying: &staying,
        capacity,
        keep_apart,
        warmth: &Warmth::new(),
    })
}

fn used(placements: &Placements) -> Vec<(alloc::string::String, u32)> {
    slots_used(placements)
        .into_iter()
        .map(|(task_manager, slots)| (task_manager.0, slots))
        .collect()
}

#[test]
fn a_job_needs_the_slots_of_its_widest_stage_and_is_spread() {
    let graph = graph(&[4, 4, 1]);
    assert_eq!(slots_needed(&graph), 4);
    let placed = place_all(&graph, &capacity(&[("a", 4), ("b", 4)]), &BTreeSet::new());
    let placed = placed.expect("there is room");
    assert_eq!(used(&placed), [("a".to_string(), 2), ("b".to_string(), 2)]);
    assert_eq!(
        placed[&TaskId::new(0, 3)],
        placed[&TaskId::new(1, 3)],
        "a column shares a slot"
    );
}

#[test]
fn narrow_stages_are_spread_as_well() {
    let graph = graph(&[4, 2]);
    let placed = place_all(&graph, &capacity(&[("a", 2), ("b", 2)]), &BTreeSet::new());
    let placed = placed.expect("there is room");
    assert_eq!(used(&placed), [("a".to_string(), 2), ("b".to_string(), 2)]);
}

#[test]
fn the_tasks_of_a_lost_taskmanager_are_spread_over_the_others() {
    let graph = graph(&[4, 4]);
    let before = place_all(
        &graph,
        &capacity(&[("a", 4), ("b", 4), ("c", 4)]),
        &BTreeSet::new(),
    );
    let mut staying = before.expect("there is room");
    let lost: BTreeSet<TaskId> = staying
        .iter()
        .filter(|(_, task_manager)| **task_manager == tm("a"))
        .map(|(task, _)| *task)
        .collect();
    staying.retain(|task, _| !lost.contains(task));
    assert_eq!(lost.len(), 4, "two columns of two stages");
    let placed = place(&Request {
        graph: &graph,
        tasks: &lost,
        staying: &staying,
        capacity: &capacity(&[("b", 4), ("c", 4)]),
        keep_apart: &BTreeSet::new(),
        warmth: &Warmth::new(),
    });
    let placed = placed.expect("there is room");
    assert_eq!(used(&placed), [("b".to_string(), 1), ("c".to_string(), 1)]);
}

#[test]
fn too_few_slots_say_how_many_are_missing() {
    let graph = graph(&[4]);
    let shortfall = place_all(&graph, &capacity(&[("a", 1), ("b", 2)]), &BTreeSet::new());
    let shortfall = shortfall.expect_err("there is no room");
    assert_eq!(
        (shortfall.needed, shortfall.free, shortfall.missing()),
        (4, 3, 1)
    );
    let nowhere = place_all(&graph, &BTreeMap::new(), &BTreeSet::new());
    assert_eq!(nowhere, Err(Shortfall { needed: 4, free: 0 }));
}

#[test]
fn a_pair_is_kept_apart_when_others_have_room_and_not_otherwise() {
    let graph = graph(&[2]);
    let apart = BTreeSet::from([Pair::new(tm("b"), tm("a"))]);
    let placed = place_all(&graph, &capacity(&[("a", 1), ("b", 1), ("c", 1)]), &apart);
    assert_eq!(
        used(&placed.expect("room")),
        [("a".to_string(), 1), ("c".to_string(), 1)]
    );
    let placed = place_all(&graph, &capacity(&[("a", 1), ("b", 1)]), &apart);
    assert_eq!(
        used(&placed.expect("room")).len(),
        2,
        "better together than not at all"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn placement_succeeds_exactly_when_slots_suffice_and_never_overfills(
        stages in proptest::collection::vec(1u32..6, 1..4),
        slots in proptest::collection::vec(0u32..4, 0..5),
    ) {
        let graph = graph(&stages);
        let capacity: BTreeMap<TaskManagerId, u32> =
            (0..).zip(&slots).map(|(index, slots): (u32, _)| (tm(&index.to_string()), *slots)).collect();
        let total: u32 = slots.iter().sum();
        match place_all(&graph, &capacity, &BTreeSet::new()) {
            Ok(placed) => {
                prop_assert!(total >= slots_needed(&graph));
                prop_assert_eq!(placed.len(), graph.tasks().count());
                let used = slots_used(&placed);
                prop_assert!(used.iter().all(|(task_manager, used)| *used <= capacity[task_manager]));
                prop_assert_eq!(used.values().sum::<u32>(), slots_needed(&graph));
            }
            Err(shortfall) => {
                prop_assert!(total < slots_needed(&graph));
                prop_assert_eq!(shortfall.missing(), slots_needed(&graph) - total);
            }
        }
    }
}
