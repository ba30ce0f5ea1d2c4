//! `/metrics` of a TaskManager: what its tasks did and what became of its captures, in Prometheus' text format, version
//! 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>). Figures are those of the last report.
//!
//! It tells, and takes no orders: nothing that is asked here changes anything.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use tidemill_protocol::control::{
    CaptureStats, CheckpointAcknowledgement, DeployTimings, ImageSource, TaskProgress, TaskState,
};
use tidemill_protocol::{JobId, TaskId};
use tokio::net::TcpListener;
use tracing::warn;

use crate::task::{Execution, TaskEvent};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How the TaskManager is.
pub(crate) struct Standing {
    pub(crate) slots: u32,
    pub(crate) has_leader: bool,
    pub(crate) is_draining: bool,
    /// Images kept for tasks elsewhere.
    pub(crate) warm: usize,
    /// Every task that runs here.
    pub(crate) tasks: Vec<TaskProgress>,
}

/// The figures so far. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    figures: Arc<Mutex<Figures>>,
}

#[derive(Default)]
struct Figures {
    standing: Option<Standing>,
    /// Of tasks that run here, and of those that have been started since the last report.
    tasks: BTreeMap<(JobId, TaskId), TaskFigures>,
    tasks_failed: u64,
    captures_declined: u64,
    channels_broken: u64,
    /// Tasks that ran, by where their image came from.
    started: BTreeMap<ImageSource, u64>,
}

/// Of one task, whichever its attempt.
#[derive(Clone, Copy, Default)]
struct TaskFigures {
    deployed: DeployTimings,
    captures: u64,
    unaligned: u64,
    dirty_bytes: u64,
    written_bytes: u64,
    channel_bytes: u64,
    last: CaptureStats,
}

impl TaskFigures {
    fn captured(&mut self, stats: CaptureStats) {
        self.captures += 1;
        self.unaligned += u64::from(stats.unaligned);
        self.dirty_bytes = self.dirty_bytes.saturating_add(stats.dirty_bytes);
        self.written_bytes = self.written_bytes.saturating_add(stats.written_bytes);
        self.channel_bytes = self.channel_bytes.saturating_add(stats.channel_bytes);
        self.last = stats;
    }
}

impl Metrics {
    /// Begins to serve them, and says where.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub(crate) async fn serve(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let router = Router::new()
            .route("/metrics", get(answer))
            .with_state(self.clone());
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                warn!(%error, "metrics are not served any more");
            }
        });
        Ok(bound)
    }

    /// Something happened to a task.
    pub(crate) fn happened(&self, event: &TaskEvent) {
        let mut figures = self.lock();
        match event {
            TaskEvent::State { execution, state } => figures.changed(*execution, state),
            TaskEvent::Acknowledged(CheckpointAcknowledgement {
                job, task, stats, ..
            }) => figures.task(*job, *task).captured(*stats),
            TaskEvent::Declined { .. } => figures.captures_declined += 1,
            TaskEvent::ChannelBroken { .. } => figures.channels_broken += 1,
            TaskEvent::Committed { .. } | TaskEvent::SplitWanted(_) | TaskEvent::Warm(_) => {}
        }
    }

    /// A report is due. What does not run here any more is forgotten.
    pub(crate) fn reported(&self, standing: Standing) {
        let mut figures = self.lock();
        figures.tasks.retain(|(job, task), _| {
            let runs = |progress: &TaskProgress| (progress.job, progress.task) == (*job, *task);
            standing.tasks.iter().any(runs)
        });
        figures.standing = Some(standing);
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        // Nothing that holds it leaves it half changed.
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Figures {
    fn task(&mut self, job: JobId, task: TaskId) -> &mut TaskFigures {
        self.tasks.entry((job, task)).or_default()
    }

    fn changed(&mut self, Execution { job, task, .. }: Execution, state: &TaskState) {
        match state {
            TaskState::Running { timings } => {
                self.task(job, task).deployed = *timings;
                *self.started.entry(timings.source).or_default() += 1;
            }
            TaskState::Failed(_) | TaskState::Unrestorable { .. } => self.tasks_failed += 1,
            TaskState::Deploying | TaskState::Finished | TaskState::Cancelled => {}
        }
    }

    fn exposition(&self) -> String {
        let mut text = Exposition::default();
        self.process(&mut text);
        self.events(&mut text);
        if let Some(standing) = &self.standing {
            tasks(&mut text, &standing.tasks);
        }
        self.captures(&mut text);
        text.text
    }

    fn process(&self, text: &mut Exposition) {
        text.family(
            "tidemill_build_info",
            GAUGE,
            "The release that the TaskManager runs.",
        );
        text.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        if let Some((resident, open_files)) = of_this_process() {
            text.one(
                "process_resident_memory_bytes",
                GAUGE,
                "Memory of the process that is resident.",
                resident,
            );
            text.one("process_open_fds", GAUGE, "Open files.", open_files);
        }
        if let Some(standing) = &self.standing {
            let flag = |is: bool| if is { 1.0 } else { 0.0 };
            let gauges = [
                (
                    "tidemill_taskmanager_slots",
                    "Slots that it offers.",
                    f64::from(standing.slots),
                ),
                (
                    "tidemill_taskmanager_tasks",
                    "Tasks that run here.",
                    standing.tasks.len() as f64,
                ),
                (
                    "tidemill_taskmanager_connected",
                    "1 while it has a leader.",
                    flag(standing.has_leader),
                ),
                (
                    "tidemill_taskmanager_draining",
                    "1 while it leaves.",
                    flag(standing.is_draining),
                ),
                (
                    "tidemill_taskmanager_warm_images",
                    "Images kept for tasks elsewhere.",
                    standing.warm as f64,
                ),
            ];
            for (name, help, value) in gauges {
                text.one(name, GAUGE, help, value);
            }
        }
    }

    fn events(&self, text: &mut Exposition) {
        let counters = [
            (
                "tidemill_taskmanager_tasks_failed_total",
                "Tasks that failed here.",
                self.tasks_failed,
            ),
            (
                "tidemill_taskmanager_captures_declined_total",
                "Captures that tasks here could not make.",
                self.captures_declined,
            ),
            (
                "tidemill_taskmanager_channels_broken_total",
                "Data connections that broke under a task.",
                self.channels_broken,
            ),
        ];
        for (name, help, value) in counters {
            text.one(name, COUNTER, help, value as f64);
        }
        text.family(
            "tidemill_taskmanager_tasks_started_total",
            COUNTER,
            "Tasks that began to run here, by where their images came from.",
        );
        for (source, count) in &self.started {
            text.sample(&[("source", source_name(*source))], *count as f64);
        }
    }

    fn captures(&self, text: &mut Exposition) {
        let mut family = |name, kind, help, value: fn(&TaskFigures) -> f64| {
            text.family(name, kind, help);
            for ((job, task), figures) in &self.tasks {
                let (job, task) = (job.to_string(), task.to_string());
                text.sample(&[("job", &job), ("task", &task)], value(figures));
            }
        };
        family(
            "tidemill_taskmanager_task_captures_total",
            COUNTER,
            "Captures that are stored.",
            |task| task.captures as f64,
        );
        family(
            "tidemill_taskmanager_task_captures_unaligned_total",
            COUNTER,
            "Those that did not wait for every barrier.",
            |task| task.unaligned as f64,
        );
        family(
            "tidemill_taskmanager_task_captured_dirty_bytes_total",
            COUNTER,
            "Pages captured, uncompressed.",
            |task| task.dirty_bytes as f64,
        );
        family(
            "tidemill_taskmanager_task_captured_written_bytes_total",
            COUNTER,
            "What captures wrote to the store.",
            |task| task.written_bytes as f64,
        );
        family(
            "tidemill_taskmanager_task_captured_channel_bytes_total",
            COUNTER,
            "Frames that became part of checkpoints.",
            |task| task.channel_bytes as f64,
        );
        family(
            "tidemill_taskmanager_task_last_pause_seconds",
            GAUGE,
            "How long the last capture held the task up.",
            |task| seconds(task.last.pause_us),
        );
        family(
            "tidemill_taskmanager_task_last_alignment_seconds",
            GAUGE,
            "From the last checkpoint's first barrier to its last.",
            |task| seconds(task.last.alignment_us),
        );
        family(
            "tidemill_taskmanager_task_last_upload_seconds",
            GAUGE,
            "The last capture's compression and upload.",
            |task| seconds(task.last.upload_us),
        );
        family(
            "tidemill_taskmanager_task_deploy_fetch_seconds",
            GAUGE,
            "What had to be read of the image before the task could run.",
            |task| seconds(task.deployed.fetch_us),
        );
        family(
            "tidemill_taskmanager_task_deploy_restore_seconds",
            GAUGE,
            "Making the instance and laying the image over it.",
            |task| seconds(task.deployed.restore_us),
        );
    }
}

fn tasks(text: &mut Exposition, all: &[TaskProgress]) {
    let mut family = |name, kind, help, value: fn(&TaskProgress) -> f64| {
        text.family(name, kind, help);
        for progress in all {
            let (job, task) = (progress.job.to_string(), progress.task.to_string());
            text.sample(&[("job", &job), ("task", &task)], value(progress));
        }
    };
    family(
        "tidemill_taskmanager_task_records_in_total",
        COUNTER,
        "Records into the task.",
        |task| task.records_in as f64,
    );
    family(
        "tidemill_taskmanager_task_records_out_total",
        COUNTER,
        "Records out of the task.",
        |task| task.records_out as f64,
    );
    family(
        "tidemill_taskmanager_task_received_bytes_total",
        COUNTER,
        "Bytes received in frames.",
        |task| task.bytes_in as f64,
    );
    family(
        "tidemill_taskmanager_task_sent_bytes_total",
        COUNTER,
        "Bytes sent in frames.",
        |task| task.bytes_out as f64,
    );
    family(
        "tidemill_taskmanager_task_busy_seconds_total",
        COUNTER,
        "Time inside the guest.",
        |task| seconds(task.busy_us),
    );
    family(
        "tidemill_taskmanager_task_backpressured_seconds_total",
        COUNTER,
        "Time waiting for room in an output channel.",
        |task| seconds(task.backpressured_us),
    );
    family(
        "tidemill_taskmanager_task_memory_bytes",
        GAUGE,
        "The size of the linear memory.",
        |task| task.memory_bytes as f64,
    );
}

async fn answer(State(metrics): State<Metrics>) -> impl IntoResponse {
    let text = metrics.lock().exposition();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text)
}

/// Resident memory in bytes, and the number of open files, as the kernel tells them.
fn of_this_process() -> Option<(f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let files = std::fs::read_dir("/proc/self/fd").ok()?.count();
    Some((kib * 1024.0, files as f64))
}

fn source_name(source: ImageSource) -> &'static str {
    match source {
        ImageSource::None => "none",
        ImageSource::Memory => "memory",
        ImageSource::Local => "local",
        ImageSource::Peer => "peer",
        ImageSource::Store => "store",
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// The text so far, and the family that samples belong to. Labels are ids and numbers, which need no escaping.
#[derive(Default)]
struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            self.write(format_args!("{before}{label}=\"{text}\""));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        self.write(format_args!("{after} {value}\n"));
    }

    /// A family of one sample.
    fn one(&mut self, name: &'static str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.text
            .write_fmt(arguments)
            .expect("writing to a string never fails");
    }
}

#[cfg(test)]
mod tests {
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
        let text = metrics.lock().exposition();
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
        let text = metrics.lock().exposition();
        assert!(!text.contains("task=\"1/0\""), "{text}");
        assert!(text.contains("tidemill_taskmanager_tasks 0"), "{text}");
    }

    #[test]
    fn every_sample_belongs_to_the_family_announced_last() {
        let metrics = Metrics::default();
        happened(&metrics);
        metrics.reported(standing(vec![progress()]));
        let text = metrics.lock().exposition();
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
}
