//! Jobs to run in the small world.

use std::collections::BTreeMap;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::record::{JobOptions, JobRecord, JobState, RestartStrategy};
use tidemill_protocol::{
    ExecutionEdge, ExecutionGraph, ExecutionStage, JobId, ModuleHash, Routing, StageKind,
};

pub(crate) const JOB: JobId = JobId([1; 16]);
pub(crate) const OTHER: JobId = JobId([2; 16]);

/// Two stages joined by one edge: all to all is one region, forward one region for each pair of subtasks.
pub(crate) fn graph(parallelism: u32, routing: Routing) -> ExecutionGraph {
    let stage = |name: &str| ExecutionStage {
        name: name.to_owned(),
        kind: StageKind::Wasm {
            input: tidemill_abi::StageInput::Guest,
            ports: 0,
            outputs: vec![],
        },
        parallelism,
    };
    ExecutionGraph {
        stages: vec![stage("source"), stage("count")],
        edges: vec![ExecutionEdge {
            from: 0,
            from_output: 0,
            to: 1,
            to_port: 0,
            routing,
        }],
        max_parallelism: 128,
        job_graph_hash: 5,
    }
}

/// A job that checkpoints each second and restarts for ever after 100 ms.
pub(crate) fn record(id: JobId) -> JobRecord {
    JobRecord {
        id,
        name: format!("job-{}", id.0[0]),
        module: ModuleHash([9; 32]),
        graph: ObjectRef {
            key: "graph".into(),
            len: 1,
            hash: [0; 32],
        },
        graph_hash: 5,
        parameters: BTreeMap::new(),
        options: JobOptions {
            parallelism: 4,
            max_parallelism: 128,
            checkpoint_interval_ms: 1000,
            checkpoint_timeout_ms: 10_000,
            tolerable_failed_checkpoints: 2,
            retained_checkpoints: 2,
            aligned_checkpoint_timeout_ms: 0,
            retain_on_cancel: false,
            standby: false,
            restart: RestartStrategy::FixedDelay {
                attempts: u32::MAX,
                delay_ms: 100,
            },
        },
        submitted_at_ms: u64::from(id.0[0]),
        state: JobState::Active,
        restarts: 0,
        began_from: None,
        ended_at_ms: None,
    }
}
