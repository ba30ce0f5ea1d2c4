//! Records to write and compare. It never opens a registry.
#![allow(
    dead_code,
    reason = "each test binary compiles this module and uses a part of it"
)]

pub(crate) mod proxy;

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_coordination::{Access, ZooKeeperOptions};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::record::{
    CheckpointPointer, CheckpointPointers, JobManagerRecord, JobOptions, JobRecord, JobState,
    RestartStrategy, TaskManagerRecord,
};
use tidemill_protocol::{CheckpointId, Epoch, Incarnation, JobId, ModuleHash, TaskManagerId};

/// The job with this number.
pub(crate) fn job_id(number: u8) -> JobId {
    JobId([number; 16])
}

/// A record with something in every field.
pub(crate) fn job(number: u8) -> JobRecord {
    JobRecord {
        id: job_id(number),
        name: format!("word-count-{number}"),
        module: ModuleHash([0x4d; 32]),
        graph: ObjectRef {
            key: format!("jobs/{}/graph", job_id(number)),
            len: 345,
            hash: [0x47; 32],
        },
        graph_hash: 0x0123_4567_89ab_cdef,
        parameters: BTreeMap::from([("input".into(), "/data/*.txt".into())]),
        options: JobOptions {
            parallelism: 4,
            max_parallelism: 128,
            checkpoint_interval_ms: 1000,
            checkpoint_timeout_ms: 600_000,
            tolerable_failed_checkpoints: 3,
            retained_checkpoints: 2,
            aligned_checkpoint_timeout_ms: 0,
            retain_on_cancel: false,
            standby: false,
            restart: RestartStrategy::FixedDelay {
                attempts: 10,
                delay_ms: 100,
            },
        },
        submitted_at_ms: 1_790_000_000_000,
        state: JobState::Active,
        restarts: 1,
        began_from: None,
        ended_at_ms: None,
    }
}

/// Pointers whose newest checkpoint has this counter.
pub(crate) fn pointers(counter: u64) -> CheckpointPointers {
    let pointer = |counter| CheckpointPointer {
        checkpoint: CheckpointId::new(Epoch(2), counter),
        metadata: ObjectRef {
            key: format!("checkpoints/x/{counter}/metadata"),
            len: 99,
            hash: [0x50; 32],
        },
    };
    CheckpointPointers {
        completed: vec![pointer(counter.saturating_sub(1)), pointer(counter)],
    }
}

/// The JobManager with this number.
pub(crate) fn job_manager(number: u8) -> JobManagerRecord {
    JobManagerRecord {
        id: format!("jm-{number}"),
        incarnation: Incarnation(0x0123_4567_89ab_cd00 + u64::from(number)),
        control_address: format!("10.0.0.{number}:7422"),
        rest_url: format!("http://10.0.0.{number}:7421"),
    }
}

/// The TaskManager with this number.
pub(crate) fn task_manager(number: u8) -> TaskManagerRecord {
    TaskManagerRecord {
        id: TaskManagerId(format!("tm-{number}")),
        incarnation: Incarnation(0x0fed_cba9_8765_4300 + u64::from(number)),
        data_address: format!("10.0.1.{number}:7432"),
        slots: 4,
    }
}

/// Options for servers with a tick of 200 ms: a session is lost after some seconds, which no server or client is silent for
/// by itself on a busy machine.
pub(crate) fn options(servers: Vec<String>, root: &str) -> ZooKeeperOptions {
    ZooKeeperOptions {
        servers,
        root: root.into(),
        session_timeout: Duration::from_secs(3),
        connection_timeout: Duration::from_secs(1),
        credentials: None,
        acl: Access::Open,
        tls: None,
    }
}

/// Waits for what must come, and not for ever.
pub(crate) async fn soon<T>(what: &str, coming: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), coming).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come in 30 s"),
    }
}
