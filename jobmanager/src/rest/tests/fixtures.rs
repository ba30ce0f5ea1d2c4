//! What the driver of these tests answers with: one of each view.

use super::*;

pub(super) const KNOWN_JOB: JobId = JobId([0xab; 16]);
pub(super) const ENDED_JOB: JobId = JobId([0xcd; 16]);
pub(super) const KNOWN: &str = "abababababababababababababababab";
pub(super) const ENDED: &str = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd";
pub(super) const UNKNOWN: &str = "00000000000000000000000000000000";

pub(super) fn summary() -> JobSummary {
    JobSummary {
        id: KNOWN.into(),
        name: "word \"count\"".into(),
        status: JobStatus::Waiting,
        message: Some("4 slots are needed and 2 are free".into()),
        submitted_at_ms: 1_700_000_000_000,
        ended_at_ms: None,
        parallelism: 4,
        tasks: 9,
        tasks_running: 0,
        tasks_finished: 1,
        restarts: 2,
        checkpoints_completed: 17,
        last_checkpoint: Some("3.17".into()),
        records_in: 1000,
        records_out: 900,
    }
}

pub(super) fn task() -> TaskView {
    TaskView {
        id: "1/0".into(),
        stage: 1,
        subtask: 0,
        name: "split → count".into(),
        status: TaskStatus::Running,
        attempt: Some("3.2".into()),
        task_manager: Some("worker-1".into()),
        standby: Some(StandbyView {
            task_manager: "worker-2".into(),
            checkpoint: Some("3.7".into()),
        }),
        timings: TimingsView {
            module_us: 1,
            fetch_us: 2,
            restore_us: 3,
            source: ImageSourceName::Peer,
            restored_bytes: 4096,
        },
        progress: ProgressView {
            records_in: 10,
            records_out: 11,
            bytes_in: 12,
            bytes_out: 13,
            busy_us: 1_500_000,
            backpressured_us: 250,
            memory_bytes: 65536,
        },
    }
}

pub(super) fn checkpoint() -> CheckpointView {
    CheckpointView {
        id: "3.17".into(),
        status: CheckpointStatus::Completed,
        is_final: false,
        started_at_ms: 1_700_000_000_500,
        duration_us: 12_345,
        tasks_acknowledged: 9,
        tasks: 9,
        image_bytes: 1 << 20,
        dirty_bytes: 1 << 17,
        written_bytes: 1 << 16,
        channel_bytes: 512,
        unaligned: true,
        alignment_us_max: 40,
        pause_us_max: 300,
        upload_us_max: 9_000,
        failure: None,
    }
}

pub(super) fn capture() -> TaskCaptureView {
    TaskCaptureView {
        task: "1/0".into(),
        name: "split → count".into(),
        attempt: "3.2".into(),
        finished: false,
        acknowledged_after_us: 11_000,
        alignment_us: 40,
        pause_us: 300,
        upload_us: 9_000,
        image_bytes: 1 << 20,
        dirty_bytes: 1 << 17,
        ahead_bytes: 1 << 15,
        written_bytes: 1 << 16,
        channel_bytes: 512,
        unaligned: true,
    }
}

pub(super) fn checkpoint_totals() -> CheckpointTotals {
    CheckpointTotals {
        unaligned: 2,
        dirty_bytes: 3 << 20,
        written_bytes: 1 << 20,
        channel_bytes: 1024,
    }
}

pub(super) fn restored() -> Vec<RestoredView> {
    vec![
        RestoredView {
            source: ImageSourceName::Memory,
            tasks: 6,
            bytes: 4096,
        },
        RestoredView {
            source: ImageSourceName::Store,
            tasks: 3,
            bytes: 8192,
        },
    ]
}

pub(super) fn request_id() -> SavepointRequestId {
    SavepointRequestId(0x5a)
}

pub(super) fn savepoint_info(is_checkpoint: bool) -> SavepointInfo {
    let object = |key: &str| ObjectRef {
        key: key.into(),
        len: 10,
        hash: [7; 32],
    };
    SavepointInfo {
        path: match is_checkpoint {
            true => format!("checkpoints/{ENDED}/3-17"),
            false => "savepoints/before".into(),
        },
        bytes: 1 << 20,
        is_checkpoint,
        savepoint: Savepoint {
            job: KNOWN_JOB,
            job_name: "wordcount".into(),
            parameters: BTreeMap::from([("input".into(), "/data".into())]),
            parallelism: 4,
            max_parallelism: 128,
            module: object("module"),
            graph: object("graph"),
            metadata: CheckpointMetadata {
                job: KNOWN_JOB,
                checkpoint: CheckpointId::new(Epoch(3), 17),
                module: ModuleHash([0xef; 32]),
                job_graph_hash: 1,
                tasks: Vec::new(),
            },
            created_at_ms: 1_700_000_000_800,
            version: "0.1.0".into(),
        },
    }
}

pub(super) fn savepoint_status(stop: bool) -> SavepointStatus {
    match stop {
        false => SavepointStatus::InProgress {
            step: SavepointStep::Copy,
            done_bytes: 10,
            total_bytes: 100,
        },
        true => SavepointStatus::Failed {
            reason: "the store is full".into(),
        },
    }
}

/// What the driver answers about stored savepoints.
pub(super) fn stored(path: &str) -> Result<SavepointInfo, StoredSavepointError> {
    match path {
        "savepoints/before" => Ok(savepoint_info(false)),
        "savepoints/damaged" => Err(StoredSavepointError::Damaged {
            path: path.into(),
            reason: "`module` has 9 bytes where 10 were written".into(),
        }),
        "checkpoints/live" => Err(StoredSavepointError::InUse {
            path: path.into(),
            job: KNOWN_JOB,
        }),
        "s3://away/x" => Err(StoredSavepointError::Store {
            path: path.into(),
            reason: "it did not answer within 30 s".into(),
        }),
        _ => Err(StoredSavepointError::Missing(path.into())),
    }
}

pub(super) fn recovery() -> RecoveryView {
    RecoveryView {
        attempt: Some("3.2".into()),
        cause: "TaskManager worker-2 was lost".into(),
        detected_at_ms: 1_700_000_000_600,
        detected_within_us: Some(300_000),
        planned_after_us: Some(100_200),
        delay_us: 100_000,
        resume_us: Some(14_800),
        running_after_us: Some(140_000),
        checkpoint: Some("3.16".into()),
        tasks_lost: 3,
        tasks_restarted: 9,
        timings_max: TimingsView {
            module_us: 0,
            fetch_us: 20_000,
            restore_us: 5_000,
            source: ImageSourceName::Store,
            restored_bytes: 8192,
        },
        restored: restored(),
    }
}

pub(super) fn detail() -> JobDetail {
    JobDetail {
        summary: summary(),
        module: "ef".repeat(32),
        parameters: BTreeMap::from([("input".into(), "/data".into())]),
        options: OptionsView {
            max_parallelism: 128,
            checkpoint_interval_ms: 1000,
            checkpoint_timeout_ms: 60_000,
            tolerable_failed_checkpoints: 10,
            retained_checkpoints: 2,
            aligned_checkpoint_timeout_ms: 1000,
            retain_on_cancel: true,
            standby: false,
            restart: "fixed-delay".into(),
        },
        stages: vec![StageView {
            index: 0,
            name: "files".into(),
            kind: "wasm".into(),
            parallelism: 4,
        }],
        edges: vec![EdgeView {
            from: 0,
            to: 1,
            routing: "all-to-all".into(),
        }],
        tasks_detail: vec![task()],
        began_from: Some("savepoints/before".into()),
        kept_checkpoint: None,
        last_failure: Some(FailureView {
            at_ms: 1_700_000_000_600,
            task: Some("1/0".into()),
            stage: Some("count".into()),
            blame: "job".into(),
            message: "panicked".into(),
            backtrace: vec!["count::add".into()],
            last_log_lines: vec!["record 1000".into()],
            batch_preview: "to be or".into(),
        }),
        recoveries: vec![recovery()],
        events: vec![EventView {
            at_ms: 1_700_000_000_000,
            text: "submitted".into(),
        }],
    }
}

pub(super) fn node() -> NodeView {
    NodeView {
        id: "worker-1".into(),
        incarnation: "00000000000000ff".into(),
        status: NodeStatus::Connected,
        data_address: "127.0.0.1:40000".into(),
        slots: 2,
        slots_free: 1,
        tasks: 3,
        version: "0.1.0".into(),
        registered_at_ms: 1_700_000_000_000,
        lost: None,
    }
}

pub(super) fn health() -> HealthView {
    HealthView {
        id: "jm-1".into(),
        role: Role::Leader,
        leading: true,
        epoch: Some(3),
        leader: Some(LeaderView {
            id: "jm-1".into(),
            epoch: 3,
            rest_url: "http://127.0.0.1:7421".into(),
        }),
        registry: RegistryView {
            kind: "zookeeper".into(),
            connection: RegistryConnection::Connected,
            since_ms: 9_000,
        },
        version: "0.1.0".into(),
        cluster: Some(ClusterView {
            leading_for_ms: 4_500,
            task_managers: 1,
            slots: 2,
            slots_free: 1,
            jobs_active: 1,
        }),
    }
}

pub(super) fn record(number: u64) -> JobManagerRecord {
    JobManagerRecord {
        id: format!("jm-{number}"),
        incarnation: Incarnation(number),
        control_address: format!("10.0.0.{number}:7420"),
        rest_url: format!("http://10.0.0.{number}:7421"),
    }
}

/// A JobManager that leads two others.
pub(super) fn leading() -> Standing {
    let leader = KnownLeader {
        epoch: Epoch(3),
        record: record(1),
    };
    Standing {
        me: record(1),
        role: Role::Leader,
        epoch: Some(Epoch(3)),
        leader: Some(leader),
        candidates: vec![record(1), record(2), record(3)],
        registry: RegistryState {
            kind: Coordination::ZooKeeper,
            connection: Connection::Connected,
            since: std::time::Instant::now(),
        },
    }
}

/// One that follows the leader that another is.
pub(super) fn following() -> Standing {
    Standing {
        me: record(2),
        role: Role::Follower,
        epoch: None,
        ..leading()
    }
}

pub(super) fn log_page() -> LogPage {
    LogPage {
        lines: vec![LogLineView {
            task_manager: "worker-1".into(),
            number: 7,
            time_ms: 1_700_000_000_700,
            task: "1/0".into(),
            attempt: "3.2".into(),
            source: "out".into(),
            text: "hello".into(),
        }],
        next: "worker-1:7".into(),
        missing: vec!["worker-2".into()],
    }
}

pub(super) fn metrics_view() -> MetricsView {
    MetricsView {
        health: health(),
        confirmed_before_us: Some(750_000),
        take_over: Some(TakeOverView {
            total_us: 30_000,
            elected_us: 1_000,
            list_us: 9_000,
            load_us: 20_000,
        }),
        nodes: vec![node()],
        jobs: vec![JobMetricsView {
            summary: summary(),
            tasks: vec![task()],
            checkpoints_failed: 1,
            checkpoint_totals: checkpoint_totals(),
            recoveries: 4,
            restored: restored(),
            last_checkpoint: Some(checkpoint()),
            last_recovery: Some(recovery()),
        }],
    }
}
