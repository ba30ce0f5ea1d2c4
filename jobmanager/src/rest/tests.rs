//! The API over real HTTP, in front of a driver that answers from fixed views.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};
use tidemill_config::{Config, Coordination};
use tidemill_coordination::{Connection, KnownLeader};
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef, Savepoint};
use tidemill_protocol::record::{JobManagerRecord, RestartStrategy};
use tidemill_protocol::{CheckpointId, Epoch, Incarnation, JobId, ModuleHash, TaskId};
use tokio::sync::{mpsc, oneshot, watch};
use utoipa::OpenApi;

use super::openapi::Description;
use super::{BindError, bind, metrics, serve};
use crate::handle::Request;
use crate::standing::{RegistryState, Standing};
use crate::views::*;
use crate::{
    CancelError, ClusterHandle, LogQuery, QueryError, SavepointError, SavepointInfo,
    SavepointListing, SavepointRequestId, SavepointStatus, SavepointStep, StoredSavepointError,
    SubmitError, SubmitOptions, UnusableSavepoint,
};

const KNOWN_JOB: JobId = JobId([0xab; 16]);
const ENDED_JOB: JobId = JobId([0xcd; 16]);
const KNOWN: &str = "abababababababababababababababab";
const ENDED: &str = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd";
const UNKNOWN: &str = "00000000000000000000000000000000";

fn summary() -> JobSummary {
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

fn task() -> TaskView {
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

fn checkpoint() -> CheckpointView {
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

fn capture() -> TaskCaptureView {
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
        written_bytes: 1 << 16,
        channel_bytes: 512,
        unaligned: true,
    }
}

fn checkpoint_totals() -> CheckpointTotals {
    CheckpointTotals {
        unaligned: 2,
        dirty_bytes: 3 << 20,
        written_bytes: 1 << 20,
        channel_bytes: 1024,
    }
}

fn restored() -> Vec<RestoredView> {
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

fn request_id() -> SavepointRequestId {
    SavepointRequestId(0x5a)
}

fn savepoint_info(is_checkpoint: bool) -> SavepointInfo {
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

fn savepoint_status(stop: bool) -> SavepointStatus {
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
fn stored(path: &str) -> Result<SavepointInfo, StoredSavepointError> {
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

fn recovery() -> RecoveryView {
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

fn detail() -> JobDetail {
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

fn node() -> NodeView {
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

fn health() -> HealthView {
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

fn record(number: u64) -> JobManagerRecord {
    JobManagerRecord {
        id: format!("jm-{number}"),
        incarnation: Incarnation(number),
        control_address: format!("10.0.0.{number}:7420"),
        rest_url: format!("http://10.0.0.{number}:7421"),
    }
}

/// A JobManager that leads two others.
fn leading() -> Standing {
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
fn following() -> Standing {
    Standing {
        me: record(2),
        role: Role::Follower,
        epoch: None,
        ..leading()
    }
}

fn log_page() -> LogPage {
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

fn metrics_view() -> MetricsView {
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

fn submit(wasm: &Bytes) -> Result<SubmittedView, SubmitError> {
    match wasm.as_ref() {
        b"not a module" => Err(SubmitError::Module {
            reason: "it does not begin with \\0asm".into(),
        }),
        b"same output" => Err(SubmitError::OutputInUse {
            output: "/out".into(),
            other: ENDED_JOB,
            other_name: "other".into(),
        }),
        _ => Ok(SubmittedView {
            id: KNOWN.into(),
            name: "wordcount".into(),
            slots_needed: 4,
            slots_free: 2,
            warnings: vec!["operator `map-1` keeps state in a closure".into()],
        }),
    }
}

/// What the driver was asked for, for tests that look at it.
type Asked = Arc<Mutex<Vec<String>>>;
type Submitted = Arc<Mutex<Vec<SubmitOptions>>>;

async fn answer(mut requests: mpsc::Receiver<Request>, submitted: Submitted, asked: Asked) {
    let known = |job: JobId| {
        if job == KNOWN_JOB {
            Ok(())
        } else {
            Err(QueryError::UnknownJob(job))
        }
    };
    let note = |text: String| asked.lock().expect("no test panics here").push(text);
    while let Some(request) = requests.recv().await {
        // Whoever asked may be gone, which is no concern of the driver's.
        match request {
            Request::Submit {
                wasm,
                options,
                reply,
            } => {
                submitted.lock().expect("no test panics here").push(options);
                let _ = reply.send(submit(&wasm));
            }
            Request::Jobs(reply) => drop(reply.send(vec![summary()])),
            Request::Job(job, reply) => drop(reply.send(known(job).map(|()| detail()))),
            Request::Cancel(job, reply) => {
                note(format!("cancel {job}"));
                let _ = reply.send(match job {
                    KNOWN_JOB => Ok(()),
                    ENDED_JOB => Err(CancelError::Ended {
                        job,
                        state: "finished".into(),
                    }),
                    _ => Err(CancelError::UnknownJob(job)),
                });
            }
            Request::Checkpoints(job, reply) => {
                let view = CheckpointsView {
                    completed: 17,
                    failed: 1,
                    totals: checkpoint_totals(),
                    retained: vec!["3.17".into()],
                    retained_at: vec![RetainedView {
                        id: "3.17".into(),
                        path: format!("checkpoints/{KNOWN}/3-17"),
                    }],
                    history: vec![checkpoint()],
                };
                let _ = reply.send(known(job).map(|()| view));
            }
            Request::Checkpoint(job, id, reply) => {
                let is_known = id == CheckpointId::new(Epoch(3), 17);
                let view = CheckpointDetail {
                    checkpoint: checkpoint(),
                    path: Some(format!("checkpoints/{KNOWN}/3-17")),
                    captures: Some(vec![capture()]),
                    tasks_missing: vec!["1/1".into()],
                };
                let unknown = QueryError::UnknownCheckpoint {
                    job,
                    checkpoint: id,
                };
                let _ = reply.send(known(job).and(is_known.then_some(view).ok_or(unknown)));
            }
            Request::TriggerSavepoint {
                job,
                id,
                directory,
                stop,
                reply,
            } => {
                note(format!("savepoint {job} {id} {directory:?} {stop}"));
                let _ = reply.send(match job {
                    KNOWN_JOB => Ok(savepoint_status(stop)),
                    ENDED_JOB => Err(SavepointError::Refused {
                        job,
                        reason: "it has ended".into(),
                    }),
                    _ => Err(SavepointError::UnknownJob(job)),
                });
            }
            Request::SavepointStatus(job, id, reply) => {
                let known = id == request_id();
                let completed = SavepointStatus::Completed {
                    path: "savepoints/before".into(),
                    bytes: 1 << 20,
                    checkpoint: CheckpointId::new(Epoch(3), 17),
                };
                let unknown = SavepointError::UnknownRequest { job, id };
                let _ = reply.send(known.then_some(completed).ok_or(unknown));
            }
            Request::Savepoints(reply) => {
                let _ = reply.send(Ok(SavepointListing {
                    savepoints: [false, true].map(savepoint_info).into(),
                    unusable: vec![UnusableSavepoint {
                        path: "savepoints/begun".into(),
                        bytes: 10,
                        is_incomplete: true,
                        missing: vec!["savepoint".into(), "graph".into()],
                        reason: "it is incomplete".into(),
                    }],
                }));
            }
            Request::Savepoint(path, reply) => drop(reply.send(stored(&path))),
            Request::VerifySavepoint(path, reply) => {
                note(format!("verify {path}"));
                let _ = reply.send(stored(&path));
            }
            Request::DeleteSavepoint(path, reply) => {
                note(format!("delete {path}"));
                let _ = reply.send(stored(&path).map(|_| ()));
            }
            Request::Nodes(reply) => drop(reply.send(vec![node()])),
            Request::JobManagers(reply) => drop(reply.send(leading().job_managers())),
            Request::Logs { job, query, reply } => {
                let LogQuery { task, after, limit } = query;
                note(format!("logs {task:?} {after:?} {limit}"));
                let task_is_known = task.is_none_or(|task| task == TaskId::new(1, 0));
                let page = known(job).and_then(|()| match (task, task_is_known) {
                    (Some(task), false) => Err(QueryError::UnknownTask { job, task }),
                    _ => Ok(log_page()),
                });
                let _ = reply.send(page);
            }
            Request::Metrics(reply) => drop(reply.send(metrics_view())),
            Request::Health(reply) => drop(reply.send(health())),
        }
    }
}

/// A served API; its client is blocking, so tests run in ordinary functions.
struct Server {
    runtime: tokio::runtime::Runtime,
    base: String,
    agent: ureq::Agent,
    submitted: Submitted,
    asked: Asked,
    standing: watch::Sender<Standing>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
}

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn problem(&self) -> (u16, String, String) {
        let json = self.json();
        let error = &json["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (
            self.status,
            text("code"),
            format!("{} {}", text("message"), text("help")),
        )
    }
}

impl Server {
    fn start(overrides: &[&str]) -> Self {
        let mut settings = vec!["jobmanager.rest_address=127.0.0.1:0".to_owned()];
        settings.extend(overrides.iter().map(|text| (*text).to_owned()));
        let config = Arc::new(Config::load(None, [], &settings).expect("good settings"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(bind(&config)).expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("a bound address"));
        let (requests, received) = mpsc::channel(4);
        let (submitted, asked) = (Submitted::default(), Asked::default());
        runtime.spawn(answer(received, submitted.clone(), asked.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (standing, seen) = watch::channel(leading());
        let served = runtime.spawn(serve(
            listener,
            ClusterHandle::new(requests, seen),
            config,
            async {
                let _ = stopped.await;
            },
        ));
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build()
            .new_agent();
        Self {
            runtime,
            base,
            agent,
            submitted,
            asked,
            standing,
            stop: Some(stop),
            served: Some(served),
        }
    }

    fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.call().expect("an answer"))
    }

    fn post(&self, path: &str, content_type: Option<&str>, body: &[u8]) -> Answer {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(content_type) = content_type {
            request = request.content_type(content_type);
        }
        read(request.send(body).expect("an answer"))
    }

    fn upload(&self, query: &str, body: &[u8]) -> Answer {
        self.post(&format!("/v1/jobs{query}"), Some("application/wasm"), body)
    }
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.body_mut().read_to_string().expect("a body"),
    }
}

/// Compares with the checked-in JSON; `UPDATE_GOLDEN=1` writes it instead.
fn check_golden(name: &str, found: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/rest/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let text = serde_json::to_string_pretty(found).expect("JSON") + "\n";
        fs::write(&path, text).expect("a writable source tree");
    }
    let expected =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let expected: Value = serde_json::from_str(&expected).expect("golden files are JSON");
    assert_eq!(
        found, &expected,
        "{name} has changed: if that is meant, run again with UPDATE_GOLDEN=1"
    );
}

#[test]
fn every_answer_has_the_documented_shape() {
    let server = Server::start(&[]);
    let paths = [
        ("jobs.json", "/v1/jobs".to_owned()),
        ("job.json", format!("/v1/jobs/{KNOWN}")),
        ("checkpoints.json", format!("/v1/jobs/{KNOWN}/checkpoints")),
        (
            "checkpoint.json",
            format!("/v1/jobs/{KNOWN}/checkpoints/3.17"),
        ),
        (
            "savepoint_request.json",
            format!("/v1/jobs/{KNOWN}/savepoints/{}", request_id()),
        ),
        ("savepoints.json", "/v1/savepoints".to_owned()),
        (
            "savepoint.json",
            "/v1/savepoints/savepoints%2Fbefore".to_owned(),
        ),
        ("logs.json", format!("/v1/jobs/{KNOWN}/logs")),
        ("nodes.json", "/v1/nodes".to_owned()),
        ("jobmanagers.json", "/v1/jobmanagers".to_owned()),
        ("health.json", "/health".to_owned()),
    ];
    for (golden, path) in paths {
        let answer = server.get(&path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        check_golden(golden, &answer.json());
    }
    let answer = server.upload("", b"\0asm");
    assert_eq!(answer.status, 201);
    assert_eq!(
        answer.headers["location"],
        format!("/v1/jobs/{KNOWN}").as_str()
    );
    check_golden("submitted.json", &answer.json());
    let answer = server.post(&format!("/v1/jobs/{KNOWN}/cancel"), None, b"");
    assert_eq!(answer.status, 202);
    check_golden("cancelled.json", &answer.json());
    check_golden(
        "problem.json",
        &server.get(&format!("/v1/jobs/{UNKNOWN}")).json(),
    );
}

#[test]
fn metrics_are_prometheus_text() {
    let server = Server::start(&[]);
    let answer = server.get("/metrics");
    assert_eq!(
        (answer.status, answer.headers["content-type"].to_str().ok()),
        (200, Some("text/plain; version=0.0.4; charset=utf-8"))
    );
    assert_eq!(answer.body, metrics::exposition(&metrics_view()));
    let has = |line: &str| {
        assert!(
            answer.body.lines().any(|found| found == line),
            "{line}\n{}",
            answer.body
        )
    };
    has("tidemill_slots_free 1");
    has("tidemill_jobmanager_role{role=\"leader\"} 1");
    has("tidemill_jobmanager_role{role=\"follower\"} 0");
    has("tidemill_registry_connected{kind=\"zookeeper\"} 1");
    has("tidemill_take_over_seconds{step=\"total\"} 0.03");
    has(&format!(
        "tidemill_job_restarts_total{{job=\"{KNOWN}\",job_name=\"word \\\"count\\\"\"}} 2"
    ));
    has(&format!(
        "tidemill_job_last_recovery_seconds{{job=\"{KNOWN}\",job_name=\"word \\\"count\\\"\",step=\"running\"}} 0.14"
    ));
    let job = format!("job=\"{KNOWN}\",job_name=\"word \\\"count\\\"\"");
    has(&format!(
        "tidemill_job_last_recovery_seconds{{{job},step=\"resume\"}} 0.0148"
    ));
    has(&format!(
        "tidemill_job_last_recovery_seconds{{{job},step=\"detect\"}} 0.3"
    ));
    has(&format!(
        "tidemill_job_tasks_restored_total{{{job},source=\"memory\"}} 6"
    ));
    has(&format!(
        "tidemill_job_checkpoints_unaligned_total{{{job}}} 2"
    ));
    has(&format!(
        "tidemill_job_last_checkpoint_dirty_bytes{{{job}}} 131072"
    ));
    // Every sample belongs to the family announced last, and no family is announced twice.
    let mut announced: Vec<&str> = Vec::new();
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap_or_default();
            assert!(!announced.contains(&name), "{name} twice");
            announced.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            assert_eq!(announced.last(), Some(&name), "{line}");
            let value = line.rsplit(' ').next().unwrap_or_default();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn a_submission_carries_its_options() {
    let server = Server::start(&["checkpoints.retained=5"]);
    let query = "?id=0102030405060708090a0b0c0d0e0f10&name=n&parallelism=4&max_parallelism=64&param=input=/a=b&param.output=%2Fout%20x\
                 &checkpoint_interval_ms=250&restart=fixed-delay&restart.fixed_delay_attempts=7\
                 &aligned_timeout_ms=0&retain_on_cancel=true&standby=true&from_savepoint=file:///sp/x";
    assert_eq!(server.upload(query, b"\0asm").status, 201);
    let options = server.submitted.lock().expect("no test panics here")[0].clone();
    let parameters = [("input", "/a=b"), ("output", "/out x")];
    let id: [u8; 16] = std::array::from_fn(|index| index as u8 + 1);
    let expected = SubmitOptions {
        id: Some(JobId(id)),
        name: Some("n".into()),
        parameters: parameters
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        parallelism: Some(4),
        max_parallelism: Some(64),
        checkpoint_interval_ms: Some(250),
        checkpoint_timeout_ms: Some(60_000),
        tolerable_failed_checkpoints: Some(10),
        retained_checkpoints: Some(5),
        restart: Some(RestartStrategy::FixedDelay {
            attempts: 7,
            delay_ms: 1000,
        }),
        aligned_checkpoint_timeout_ms: Some(0),
        retain_on_cancel: Some(true),
        standby: Some(true),
        from: Some("file:///sp/x".into()),
    };
    assert_eq!(options, expected);
}

#[test]
fn bad_options_are_named_and_nothing_is_submitted() {
    let server = Server::start(&[]);
    let refused = [
        (
            "?paralelism=4",
            "unknown-option",
            "did you mean `parallelism`",
        ),
        (
            "?colour=red",
            "unknown-option",
            "the options are id, name, parallelism",
        ),
        (
            "?parallelism=four",
            "bad-query",
            "`parallelism` must be a whole number",
        ),
        ("?parallelism=-1", "bad-query", "`-1`"),
        ("?parallelism=1&parallelism=2", "bad-query", "given 2 times"),
        ("?param=input", "bad-query", "param=name=value"),
        ("?param=a=1&param.a=2", "bad-query", "`a` is given twice"),
        (
            "?checkpoints.intervall_ms=1",
            "bad-option",
            "did you mean `checkpoints.interval_ms`",
        ),
        ("?checkpoints.retained=0", "bad-option", "at least 1"),
        ("?restart=sometimes", "bad-option", "exponential-delay"),
        ("?standby=maybe", "bad-option", "recovery.standby"),
        (
            "?checkpoints.savepoint_dir=x",
            "bad-option",
            "no setting `checkpoints.savepoint_dir`",
        ),
        ("?from_savepoint=", "bad-path", "names no place"),
        ("?from_savepoint=a/../b", "bad-path", "`..`"),
    ];
    for (query, code, words) in refused {
        let (status, found, message) = server.upload(query, b"\0asm").problem();
        assert_eq!((status, found.as_str()), (400, code), "{query}");
        assert!(message.contains(words), "{query}: {message}");
    }
    assert!(
        server
            .submitted
            .lock()
            .expect("no test panics here")
            .is_empty()
    );
}

#[test]
fn a_bad_upload_says_what_is_wrong_with_it() {
    let server = Server::start(&["jobmanager.module_bytes_max=16"]);
    let (status, code, message) = server.upload("", &[0; 17]).problem();
    assert_eq!((status, code.as_str()), (413, "module-too-large"));
    assert!(
        message.contains("17 bytes") && message.contains("16"),
        "{message}"
    );
    let (status, code, message) = server.post("/v1/jobs", Some("text/html"), b"<p>").problem();
    assert_eq!((status, code.as_str()), (415, "not-wasm"));
    assert!(
        message.contains("text/html") && message.contains("application/wasm"),
        "{message}"
    );
    assert_eq!(server.post("/v1/jobs", None, b"\0asm").problem().0, 415);
    assert_eq!(server.upload("", b"not a module").problem().0, 422);
    let (status, code, message) = server.upload("", b"same output").problem();
    assert_eq!((status, code.as_str()), (409, "output-in-use"));
    assert!(
        message.contains("/out") && message.contains(ENDED),
        "{message}"
    );
    assert_eq!(server.upload("", &[0; 16]).status, 201);
}

#[test]
fn an_upload_of_unknown_length_is_cut_at_the_limit() {
    let server = Server::start(&["jobmanager.module_bytes_max=16"]);
    let request = server
        .agent
        .post(format!("{}/v1/jobs", server.base))
        .content_type("application/wasm");
    let mut body: &[u8] = &[0; 17];
    let reader: &mut dyn std::io::Read = &mut body;
    let answer = read(
        request
            .send(ureq::SendBody::from_reader(reader))
            .expect("an answer"),
    );
    assert_eq!(answer.problem().1, "module-too-large");
}

#[test]
fn what_is_not_there_is_said_with_the_right_status() {
    let server = Server::start(&[]);
    let check = |answer: Answer, status, code: &str| {
        let (found_status, found, message) = answer.problem();
        assert_eq!((found_status, found.as_str()), (status, code), "{message}");
    };
    check(
        server.get(&format!("/v1/jobs/{UNKNOWN}")),
        404,
        "unknown-job",
    );
    check(
        server.get(&format!("/v1/jobs/{UNKNOWN}/checkpoints")),
        404,
        "unknown-job",
    );
    check(server.get("/v1/jobs/nonsense"), 400, "bad-job-id");
    check(
        server.get(&format!("/v1/jobs/{KNOWN}/checkpoints/9.9")),
        404,
        "unknown-checkpoint",
    );
    check(
        server.get(&format!("/v1/jobs/{KNOWN}/checkpoints/last")),
        400,
        "bad-checkpoint-id",
    );
    check(
        server.get(&format!("/v1/jobs/{KNOWN}/logs?task=9/9")),
        404,
        "unknown-task",
    );
    check(
        server.get(&format!("/v1/jobs/{KNOWN}/logs?task=nine")),
        400,
        "bad-query",
    );
    check(
        server.get(&format!("/v1/jobs/{KNOWN}?verbose=1")),
        400,
        "unknown-option",
    );
    check(server.get("/v2"), 404, "no-such-path");
    check(server.post("/v1/nodes", None, b""), 405, "no-such-method");
    check(
        server.post(&format!("/v1/jobs/{ENDED}/cancel"), None, b""),
        409,
        "job-ended",
    );
    check(
        server.post(&format!("/v1/jobs/{UNKNOWN}/cancel"), None, b""),
        404,
        "unknown-job",
    );
}

#[test]
fn a_savepoint_is_asked_for_under_an_id() {
    let server = Server::start(&[]);
    let path = format!("/v1/jobs/{KNOWN}/savepoints");
    let id = request_id();
    let answer = server.post(
        &format!("{path}?id={id}&directory=savepoints/before&stop=true"),
        None,
        b"",
    );
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.headers["location"], format!("{path}/{id}").as_str());
    let found = answer.json();
    assert_eq!(
        (&found["status"], &found["failure"]),
        (&json!("failed"), &json!("the store is full"))
    );
    let answer = server.post(&path, None, b"");
    assert_eq!(
        (&answer.json()["step"], &answer.json()["done_bytes"]),
        (&json!("copy"), &json!(10))
    );
    let chosen = answer.json()["id"].as_str().map(str::len);
    assert_eq!(chosen, Some(32));
    let asked = server.asked.lock().expect("no test panics here").clone();
    let expected = format!("savepoint {KNOWN} {id} Some(\"savepoints/before\") true");
    assert_eq!(asked[0], expected);
    assert!(asked[1].ends_with("None false"), "{}", asked[1]);
}

#[test]
fn a_savepoint_that_cannot_be_is_refused_and_says_why() {
    let server = Server::start(&[]);
    let of = |job: &str, query: &str| format!("/v1/jobs/{job}/savepoints{query}");
    let refused = [
        (of("nonsense", ""), 400, "bad-job-id", "hexadecimal"),
        (of(UNKNOWN, ""), 404, "unknown-job", UNKNOWN),
        (of(ENDED, ""), 409, "savepoint-refused", "it has ended"),
        (of(KNOWN, "?id=12"), 400, "bad-query", "32 hexadecimal"),
        (
            of(KNOWN, "?stop=perhaps"),
            400,
            "bad-query",
            "true or false",
        ),
        (of(KNOWN, "?directory="), 400, "bad-path", "names no place"),
        (of(KNOWN, "?directory=a%00b"), 400, "bad-path", "control"),
        (of(KNOWN, "?directory=../x"), 400, "bad-path", "`..`"),
        (of(KNOWN, "?dir=x"), 400, "unknown-option", "id, directory"),
    ];
    for (path, status, code, words) in refused {
        let (found_status, found, message) = server.post(&path, None, b"").problem();
        assert_eq!((found_status, found.as_str()), (status, code), "{path}");
        assert!(message.contains(words), "{path}: {message}");
    }
    let (status, code, message) = server
        .get(&of(KNOWN, "/00000000000000000000000000000001"))
        .problem();
    assert_eq!((status, code.as_str()), (404, "unknown-request"));
    assert!(message.contains("tidemill savepoint list"), "{message}");
    let (status, code, _) = server.get(&of(KNOWN, "/12")).problem();
    assert_eq!((status, code.as_str()), (400, "bad-request-id"));
}

#[test]
fn stored_savepoints_are_named_by_their_paths_and_urls() {
    let server = Server::start(&[]);
    let verify = |path: &str| server.post(&format!("/v1/savepoints/{path}/verify"), None, b"");
    assert_eq!(verify("savepoints%2Fbefore").status, 200);
    let delete = |path: &str| {
        let request = server
            .agent
            .delete(format!("{}/v1/savepoints/{path}", server.base));
        read(request.call().expect("an answer"))
    };
    let answer = delete("savepoints%2Fbefore");
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({ "path": "savepoints/before" }))
    );
    let check = |answer: Answer, status, code: &str, words: &str| {
        let (found_status, found, message) = answer.problem();
        assert_eq!((found_status, found.as_str()), (status, code), "{message}");
        assert!(message.contains(words), "{message}");
    };
    let get = |path: &str| server.get(&format!("/v1/savepoints/{path}"));
    check(get("nothing"), 404, "unknown-savepoint", "`nothing`");
    check(
        verify("savepoints%2Fdamaged"),
        422,
        "savepoint-damaged",
        "9 bytes where 10",
    );
    check(
        delete("checkpoints%2Flive"),
        409,
        "savepoint-in-use",
        "cancel the job first",
    );
    check(
        get("s3%3A%2F%2Faway%2Fx"),
        503,
        "storage-failed",
        "within 30 s",
    );
    check(get("a%2F..%2Fb"), 400, "bad-path", "`..`");
    check(get("file%3A%2F%2F%2F"), 400, "bad-path", "names no place");
    let long = "x".repeat(5000);
    check(get(&long), 400, "bad-path", "too long");
}

#[test]
fn log_queries_reach_the_driver_within_bounds() {
    let server = Server::start(&[]);
    assert_eq!(
        server
            .get(&format!(
                "/v1/jobs/{KNOWN}/logs?task=1/0&after=x&limit=99999999"
            ))
            .status,
        200
    );
    assert_eq!(server.get(&format!("/v1/jobs/{KNOWN}/logs")).status, 200);
    let asked = server.asked.lock().expect("no test panics here").clone();
    assert_eq!(
        asked,
        [
            format!("logs {:?} Some(\"x\") 10000", Some(TaskId::new(1, 0))),
            "logs None None 1000".into()
        ]
    );
}

#[test]
fn a_token_is_asked_for_where_one_is_set() {
    let server = Server::start(&["jobmanager.rest_token=secret"]);
    let with = |value: &str| {
        server
            .get_with("/v1/jobs", &[("authorization", value)])
            .status
    };
    assert_eq!(server.get("/v1/jobs").status, 401);
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(
        (
            with("Bearer wrong"),
            with("Basic secret"),
            with("Bearer secret")
        ),
        (401, 401, 200)
    );
    assert_eq!(
        (
            server.get("/health").status,
            server.get("/v1/openapi.json").status
        ),
        (200, 200)
    );
    let answer = server.get("/v1/jobs");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    assert!(answer.problem().2.contains("TIDEMILL_TOKEN"));
}

#[test]
fn without_a_token_no_web_page_can_ask() {
    let server = Server::start(&[]);
    let status = |headers: &[(&str, &str)]| server.get_with("/v1/jobs", headers).status;
    let host = server.base.trim_start_matches("http://").to_owned();
    assert_eq!(status(&[("host", "evil.example:7421")]), 403);
    assert_eq!(status(&[("origin", "http://evil.example")]), 403);
    assert_eq!(status(&[("origin", &server.base), ("host", &host)]), 200);
    assert_eq!(status(&[("host", "localhost:1")]), 200);
    assert_eq!(status(&[("host", "[::1]")]), 200);
}

#[test]
fn a_follower_sends_every_question_to_the_leader_and_answers_for_itself() {
    let server = Server::start(&[]);
    server.standing.send_replace(following());
    let job = format!("/v1/jobs/{KNOWN}/logs?task=1/0&limit=7");
    for path in ["/v1/jobs", &job, "/v1/nodes", "/v1/jobmanagers", "/v2"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 307, "{path}: {}", answer.body);
        let location = format!("http://10.0.0.1:7421{path}");
        assert_eq!(answer.headers["location"], location.as_str());
    }
    let (status, code, message) = server.upload("?name=n&param.a=b%20c", b"\0asm").problem();
    assert_eq!((status, code.as_str()), (307, "not-the-leader"));
    assert!(
        message.contains("jm-1 at http://10.0.0.1:7421"),
        "{message}"
    );
    assert!(
        server
            .submitted
            .lock()
            .expect("no test panics here")
            .is_empty()
    );
    for path in ["/health", "/metrics", "/v1/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn without_a_leader_it_is_said_who_might_lead_and_why_none_does() {
    let server = Server::start(&[]);
    let away = |standing: &mut Standing| {
        standing.leader = None;
        standing.registry.connection = Connection::Suspended;
    };
    server.standing.send_replace(following());
    server.standing.send_modify(away);
    let answer = server.get("/v1/jobs");
    assert_eq!(answer.headers["retry-after"], "1");
    let (status, code, message) = answer.problem();
    assert_eq!((status, code.as_str()), (503, "no-leader"));
    assert!(
        message.contains("jm-3 at http://10.0.0.3:7421"),
        "{message}"
    );
    assert!(
        message.contains("ZooKeeper has not been reachable"),
        "{message}"
    );
    // What is known of a leadership of its own that is over leads nowhere.
    server.standing.send_replace(Standing {
        role: Role::SteppingDown,
        ..leading()
    });
    assert_eq!(server.get("/v1/jobs").problem().1, "no-leader");
}

#[test]
fn a_question_waits_for_the_take_over_that_is_under_way() {
    let server = Server::start(&[]);
    server.standing.send_replace(Standing {
        role: Role::TakingOver,
        ..leading()
    });
    let standing = server.standing.clone();
    server.runtime.spawn(async move {
        // Whoever has come to wait for it has not been answered before.
        while standing.receiver_count() < 3 {
            tokio::task::yield_now().await;
        }
        standing.send_replace(leading());
    });
    assert_eq!(server.get("/v1/jobs").status, 200);
}

#[test]
fn a_token_is_asked_for_before_the_leader_is_named() {
    let server = Server::start(&["jobmanager.rest_token=secret"]);
    server.standing.send_replace(following());
    assert_eq!(server.get("/v1/jobs").status, 401);
    let answer = server.get_with("/v1/jobs", &[("authorization", "Bearer secret")]);
    assert_eq!(answer.status, 307);
}

#[test]
fn the_api_binds_to_others_only_with_a_token_and_names_a_taken_port() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut config = Config::default();
    config.jobmanager.rest_address = "0.0.0.0:0".parse().expect("an address");
    let error = runtime.block_on(bind(&config)).unwrap_err();
    assert!(
        matches!(error, BindError::Unprotected { .. }) && error.to_string().contains("rest_token")
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    config.jobmanager.rest_address = taken.local_addr().expect("a bound address");
    let error = runtime.block_on(bind(&config)).unwrap_err();
    assert!(matches!(error, BindError::Bind { .. }));
    assert!(
        error
            .to_string()
            .contains(&config.jobmanager.rest_address.to_string()),
        "{error}"
    );
}

#[test]
fn the_api_stops_when_told() {
    let mut server = Server::start(&[]);
    assert_eq!(server.get("/health").status, 200);
    drop(server.stop.take());
    let served = server.served.take().expect("served once");
    server
        .runtime
        .block_on(served)
        .expect("no panic")
        .expect("a clean end");
}

#[test]
fn the_description_covers_every_path_and_resolves_its_references() {
    let server = Server::start(&[]);
    let description = server.get("/v1/openapi.json").json();
    assert_eq!(
        description,
        serde_json::to_value(Description::openapi()).expect("JSON")
    );
    let paths = description["paths"].as_object().expect("paths");
    let found: Vec<&str> = paths.keys().map(String::as_str).collect();
    let expected = [
        "/health",
        "/metrics",
        "/v1/jobmanagers",
        "/v1/jobs",
        "/v1/jobs/{job}",
        "/v1/jobs/{job}/cancel",
        "/v1/jobs/{job}/checkpoints",
        "/v1/jobs/{job}/checkpoints/{checkpoint}",
        "/v1/jobs/{job}/logs",
        "/v1/jobs/{job}/savepoints",
        "/v1/jobs/{job}/savepoints/{request}",
        "/v1/nodes",
        "/v1/savepoints",
        "/v1/savepoints/{path}",
        "/v1/savepoints/{path}/verify",
    ];
    assert_eq!(found, expected);
    assert!(paths["/v1/jobs"]["post"]["requestBody"]["content"]["application/wasm"].is_object());
    let mut references = Vec::new();
    collect_references(&description, &mut references);
    assert!(references.contains(&"#/components/schemas/JobDetail".to_owned()));
    for reference in references {
        let pointer = reference.trim_start_matches('#');
        assert!(
            description.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(
                fields
                    .get("$ref")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            fields
                .values()
                .for_each(|value| collect_references(value, found));
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_references(item, found)),
        _ => {}
    }
}

#[test]
fn views_survive_their_json() {
    let text = serde_json::to_string(&detail()).expect("JSON");
    assert_eq!(
        serde_json::from_str::<JobDetail>(&text).expect("its own JSON"),
        detail()
    );
    assert_eq!(
        json!({ "status": JobStatus::Waiting }),
        json!({ "status": "waiting" })
    );
}
