//! What the metrics say, and that nothing else can be asked.

use super::*;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const JOB: JobId = JobId([0xab; 16]);
const TASK: TaskId = TaskId {
    stage: 1,
    subtask: 0,
};

fn execution() -> Execution {
    Execution {
        job: JOB,
        task: TASK,
        attempt: AttemptId::new(Epoch(1), 1),
    }
}

fn progress() -> TaskProgress {
    TaskProgress {
        job: JOB,
        attempt: execution().attempt,
        task: TASK,
        records_in: 7,
        records_out: 8,
        bytes_in: 9,
        bytes_out: 10,
        busy_us: 1_500_000,
        backpressured_us: 0,
        memory_bytes: 65536,
    }
}

fn standing(tasks: Vec<TaskProgress>) -> Standing {
    Standing {
        slots: 2,
        has_leader: true,
        is_draining: false,
        warm: 3,
        tasks,
    }
}

fn captured() -> TaskEvent {
    TaskEvent::Acknowledged(CheckpointAcknowledgement {
        job: JOB,
        attempt: execution().attempt,
        task: TASK,
        checkpoint: CheckpointId::new(Epoch(1), 1),
        manifest: ObjectRef {
            key: String::new(),
            len: 0,
            hash: [0; 32],
        },
        finished: false,
        stats: CaptureStats {
            pause_us: 2_000,
            dirty_bytes: 4096,
            unaligned: true,
            ..CaptureStats::default()
        },
    })
}

fn happened(metrics: &Metrics) {
    metrics.happened(&TaskEvent::State {
        execution: execution(),
        state: TaskState::Running {
            timings: DeployTimings {
                source: ImageSource::Peer,
                fetch_us: 500,
                ..DeployTimings::default()
            },
        },
    });
    metrics.happened(&captured());
    metrics.happened(&captured());
}

#[test]
fn tasks_and_their_captures_are_told_while_they_run_here() {
    let metrics = Metrics::default();
    happened(&metrics);
    metrics.reported(standing(vec![progress()]));
    let text = exposition(&metrics.lock());
    let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    let task = format!("{{job=\"{JOB}\",task=\"1/0\"}}");
    has(&format!("tidemill_taskmanager_task_captures_total{task} 2"));
    has(&format!(
        "tidemill_taskmanager_task_captured_dirty_bytes_total{task} 8192"
    ));
    has(&format!(
        "tidemill_taskmanager_task_last_pause_seconds{task} 0.002"
    ));
    has(&format!(
        "tidemill_taskmanager_task_busy_seconds_total{task} 1.5"
    ));
    has("tidemill_taskmanager_tasks_started_total{source=\"peer\"} 1");
    has("tidemill_taskmanager_warm_images 3");
    assert!(text.contains("process_resident_memory_bytes "), "{text}");

    metrics.reported(standing(Vec::new()));
    let text = exposition(&metrics.lock());
    assert!(!text.contains("task=\"1/0\""), "{text}");
    assert!(text.contains("tidemill_taskmanager_tasks 0"), "{text}");
}

#[test]
fn every_sample_belongs_to_the_family_announced_last() {
    let metrics = Metrics::default();
    happened(&metrics);
    metrics.reported(standing(vec![progress()]));
    let text = exposition(&metrics.lock());
    let mut announced: Vec<&str> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap_or_default();
            assert!(!announced.contains(&name), "{name} twice");
            announced.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            assert_eq!(announced.last(), Some(&name), "{line}");
        }
    }
}

#[tokio::test]
async fn they_are_served_over_http_and_nothing_else_is() {
    let metrics = Metrics::default();
    let address = ([127, 0, 0, 1], 0).into();
    let bound = metrics.serve(address).await.expect("a free port");
    let ask = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(bound).await.expect("served");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    };
    let answer = ask("/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("tidemill_build_info"), "{answer}");
    assert!(ask("/v1/jobs").await.starts_with("HTTP/1.1 404"));
    let taken = Metrics::default().serve(bound).await;
    assert!(taken.is_err(), "the address is taken");
}
