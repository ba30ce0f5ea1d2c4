//! Recovery plans as scenarios.

use super::*;
use alloc::string::ToString;
use alloc::vec;
use tidemill_protocol::manifest::{ObjectRef, TaskImageRef};
use tidemill_protocol::{
    AttemptId, CheckpointId, Epoch, ExecutionEdge, ExecutionStage, JobId, ModuleHash, Routing,
    StageKind,
};

fn tm(name: &str) -> TaskManagerId {
    TaskManagerId(name.into())
}

/// Two stages, all to all: one region.
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
    let edge = ExecutionEdge {
        from: 0,
        from_output: 0,
        to: 1,
        to_port: 0,
        routing: Routing::AllToAll,
    };
    ExecutionGraph {
        stages: vec![stage(), stage()],
        edges: vec![edge],
        max_parallelism: 128,
        job_graph_hash: 0,
    }
}

fn on(columns: &[&str]) -> Placements {
    (0u32..)
        .zip(columns)
        .flat_map(|(subtask, name)| {
            (0..2).map(move |stage| (TaskId::new(stage, subtask), tm(name)))
        })
        .collect()
}

fn capacity(slots: &[(&str, u32)]) -> BTreeMap<TaskManagerId, u32> {
    slots
        .iter()
        .map(|(name, slots)| (tm(name), *slots))
        .collect()
}

fn plan_after(
    before: &Placements,
    slots: &[(&str, u32)],
    apart: &BTreeSet<Pair>,
) -> Result<RegionPlan, NoPlan> {
    let graph = graph(4);
    let all: BTreeSet<TaskId> = graph.tasks().collect();
    let plan = plan(&Situation {
        graph: &graph,
        regions: &[&all],
        placements: before,
        capacity: &capacity(slots),
        leaving: &BTreeMap::new(),
        keep_apart: apart,
        warmth: &Warmth::new(),
        checkpoint: None,
    })?;
    Ok(plan.regions[0].clone())
}

#[test]
fn survivors_stay_and_the_lost_are_spread() {
    let before = on(&["a", "a", "b", "c"]);
    let slots = [("b", 4), ("c", 4), ("d", 4)];
    let plan = plan_after(&before, &slots, &BTreeSet::new()).expect("there is room");
    assert_eq!(plan.placements, on(&["d", "b", "b", "c"]));
}

#[test]
fn without_room_nothing_is_planned_and_the_shortfall_is_said() {
    let before = on(&["a", "a", "b", "b"]);
    let plan = plan_after(&before, &[("b", 3)], &BTreeSet::new());
    assert_eq!(plan, Err(NoPlan::Slots(Shortfall { needed: 2, free: 1 })));
}

#[test]
fn a_pair_that_lost_sight_of_each_other_is_not_used_together_again() {
    let before = on(&["a", "a", "a", "b"]);
    let apart = BTreeSet::from([Pair::new(tm("a"), tm("b"))]);
    let slots = [("a", 3), ("b", 3), ("c", 3)];
    let plan = plan_after(&before, &slots, &apart).expect("there is room");
    assert_eq!(plan.placements, on(&["a", "a", "a", "c"]));
}

#[test]
fn slots_that_another_job_took_meanwhile_are_given_up() {
    let before = on(&["a", "a", "b", "b"]);
    let plan = plan_after(&before, &[("a", 1), ("b", 2), ("c", 2)], &BTreeSet::new());
    let plan = plan.expect("there is room");
    assert_eq!(scheduler::slots_used(&plan.placements)[&tm("a")], 1);
}

#[test]
fn a_checkpoint_without_a_tasks_image_is_not_gone_back_to() {
    let graph = graph(1);
    let all: BTreeSet<TaskId> = graph.tasks().collect();
    let part = TaskImageRef {
        task: TaskId::new(0, 0),
        attempt: AttemptId::new(Epoch(1), 1),
        manifest: ObjectRef {
            key: "m".into(),
            len: 0,
            hash: [0; 32],
        },
        finished: false,
    };
    let checkpoint = CheckpointMetadata {
        job: JobId([0; 16]),
        checkpoint: CheckpointId::new(Epoch(1), 1),
        module: ModuleHash([0; 32]),
        job_graph_hash: 0,
        tasks: vec![part],
    };
    let refused = plan(&Situation {
        graph: &graph,
        regions: &[&all],
        placements: &Placements::new(),
        capacity: &capacity(&[("a", 4)]),
        leaving: &BTreeMap::new(),
        keep_apart: &BTreeSet::new(),
        warmth: &Warmth::new(),
        checkpoint: Some(&checkpoint),
    });
    assert_eq!(
        refused,
        Err(NoPlan::NoImage {
            task: TaskId::new(1, 0)
        })
    );
}

#[test]
fn a_failure_takes_down_the_regions_it_touches_and_no_other() {
    let task = |subtask| TaskId::new(0, subtask);
    let regions: Vec<BTreeSet<TaskId>> = (0..3).map(|subtask| [task(subtask)].into()).collect();
    assert_eq!(
        failed_regions(&regions, &[task(0), task(2)].into()),
        [0, 2].into()
    );
    assert_eq!(failed_regions(&regions, &BTreeSet::new()), BTreeSet::new());
}
