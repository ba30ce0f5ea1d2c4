//! `/metrics`: the views as Prometheus' text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Names begin with `tidemill_`, units are seconds and bytes, counters end in `_total`. It never keeps a number of its own.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::problem::Refusal;
use super::{Api, Problem};
use crate::views::{
    CheckpointView, JobMetricsView, MetricsView, NodeStatus, RegistryConnection, RestoredView,
    Role, TaskView,
};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const ROLES: [Role; 4] = [
    Role::Leader,
    Role::TakingOver,
    Role::Follower,
    Role::SteppingDown,
];

/// Metrics in Prometheus' text format: of this JobManager, and on the leader of the cluster and its jobs.
#[utoipa::path(
    get, path = "/metrics", tag = "cluster",
    responses((status = 200, content_type = "text/plain", body = String), (status = 503, body = Problem))
)]
pub(super) async fn metrics(State(api): State<Api>) -> Result<impl IntoResponse, Refusal> {
    let view = api.cluster.metrics().await?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], exposition(&view)))
}

/// The whole text.
pub(super) fn exposition(view: &MetricsView) -> String {
    let mut text = Exposition::default();
    process(&mut text, view);
    cluster(&mut text, view);
    jobs(&mut text, &view.jobs);
    checkpoints(&mut text, &view.jobs);
    recoveries(&mut text, &view.jobs);
    tasks(&mut text, &view.jobs);
    text.text
}

/// What every JobManager tells of itself.
fn process(text: &mut Exposition, view: &MetricsView) {
    let health = &view.health;
    text.family(
        "tidemill_build_info",
        Kind::Gauge,
        "The release that the JobManager runs.",
    );
    text.sample(&[("version", &health.version)], 1.0);
    text.family(
        "tidemill_jobmanager_role",
        Kind::Gauge,
        "1 for the role that this JobManager has.",
    );
    for role in ROLES {
        let has = if role == health.role { 1.0 } else { 0.0 };
        text.sample(&[("role", role.name())], has);
    }
    text.family(
        "tidemill_leader_epoch",
        Kind::Gauge,
        "The epoch of the leader, as far as this JobManager knows.",
    );
    let known = health.leader.as_ref().map(|leader| leader.epoch);
    if let Some(epoch) = health.epoch.or(known) {
        text.sample(&[], epoch as f64);
    }
    text.family(
        "tidemill_registry_connected",
        Kind::Gauge,
        "1 while the registry answers this JobManager.",
    );
    let connected = health.registry.connection == RegistryConnection::Connected;
    let kind = [("kind", health.registry.kind.as_str())];
    text.sample(&kind, if connected { 1.0 } else { 0.0 });
    text.family(
        "tidemill_registry_connection_seconds",
        Kind::Gauge,
        "How long it has answered, or not answered.",
    );
    text.sample(&kind, seconds_of_ms(health.registry.since_ms));
    text.family(
        "tidemill_leadership_confirmed_seconds",
        Kind::Gauge,
        "How long ago the last confirmation of this JobManager's leadership was sent.",
    );
    if let Some(us) = view.confirmed_before_us {
        text.sample(&[], seconds_of_us(us));
    }
    text.family(
        "tidemill_take_over_seconds",
        Kind::Gauge,
        "How long this JobManager's last take-over took, from the election until it led, and of that: reading the list of jobs, and their graphs and pointers.",
    );
    if let Some(times) = &view.take_over {
        let steps = [
            ("total", times.total_us),
            ("list", times.list_us),
            ("load", times.load_us),
        ];
        for (step, us) in steps {
            text.sample(&[("step", step)], seconds_of_us(us));
        }
    }
}

fn cluster(text: &mut Exposition, view: &MetricsView) {
    let Some(cluster) = &view.health.cluster else {
        return;
    };
    text.family(
        "tidemill_leading_seconds",
        Kind::Gauge,
        "How long this JobManager has led.",
    );
    text.sample(&[], seconds_of_ms(cluster.leading_for_ms));
    text.family(
        "tidemill_task_managers",
        Kind::Gauge,
        "TaskManagers that are connected.",
    );
    text.sample(&[], f64::from(cluster.task_managers));
    text.family(
        "tidemill_slots",
        Kind::Gauge,
        "Slots of the connected TaskManagers.",
    );
    text.sample(&[], f64::from(cluster.slots));
    text.family(
        "tidemill_slots_free",
        Kind::Gauge,
        "Slots that no job uses.",
    );
    text.sample(&[], f64::from(cluster.slots_free));
    text.family(
        "tidemill_jobs_active",
        Kind::Gauge,
        "Jobs that have not ended.",
    );
    text.sample(&[], f64::from(cluster.jobs_active));
    text.family(
        "tidemill_task_manager_up",
        Kind::Gauge,
        "1 while the TaskManager is connected, 0 when it was lost.",
    );
    for node in &view.nodes {
        let up = match node.status {
            NodeStatus::Connected | NodeStatus::Draining => 1.0,
            NodeStatus::Announced | NodeStatus::Lost => 0.0,
        };
        text.sample(&[("task_manager", &node.id)], up);
    }
    text.family(
        "tidemill_task_manager_tasks",
        Kind::Gauge,
        "Tasks that run on the TaskManager.",
    );
    for node in &view.nodes {
        text.sample(&[("task_manager", &node.id)], f64::from(node.tasks));
    }
}

fn jobs(text: &mut Exposition, jobs: &[JobMetricsView]) {
    text.family(
        "tidemill_job_status",
        Kind::Gauge,
        "1 for the status that the job has.",
    );
    for job in jobs {
        let status = serde_json::to_value(job.summary.status).ok();
        let status = status
            .as_ref()
            .and_then(|status| status.as_str())
            .unwrap_or_default();
        let mut labels = job_labels(job).to_vec();
        labels.push(("status", status));
        text.sample(&labels, 1.0);
    }
    let mut family = |name, kind, help, value: fn(&JobMetricsView) -> Option<f64>| {
        text.family(name, kind, help);
        for job in jobs {
            if let Some(value) = value(job) {
                text.sample(&job_labels(job), value);
            }
        }
    };
    family(
        "tidemill_job_restarts_total",
        Kind::Counter,
        "Restarts of the job.",
        |job| Some(f64::from(job.summary.restarts)),
    );
    family(
        "tidemill_job_tasks_running",
        Kind::Gauge,
        "Tasks of the job that process records.",
        |job| Some(f64::from(job.summary.tasks_running)),
    );
}

fn checkpoints(text: &mut Exposition, jobs: &[JobMetricsView]) {
    let mut counter = |name, help, value: fn(&JobMetricsView) -> u64| {
        text.family(name, Kind::Counter, help);
        for job in jobs {
            text.sample(&job_labels(job), value(job) as f64);
        }
    };
    counter(
        "tidemill_job_checkpoints_completed_total",
        "Completed checkpoints, as far as this JobManager saw them.",
        |job| job.summary.checkpoints_completed,
    );
    counter(
        "tidemill_job_checkpoints_failed_total",
        "Checkpoints given up, as far as this JobManager saw them.",
        |job| job.checkpoints_failed,
    );
    counter(
        "tidemill_job_checkpoints_unaligned_total",
        "Completed checkpoints for which a task did not wait for every barrier.",
        |job| job.checkpoint_totals.unaligned,
    );
    counter(
        "tidemill_job_checkpoint_dirty_bytes_total",
        "Pages that completed checkpoints captured, uncompressed.",
        |job| job.checkpoint_totals.dirty_bytes,
    );
    counter(
        "tidemill_job_checkpoint_written_bytes_total",
        "What completed checkpoints wrote to the store.",
        |job| job.checkpoint_totals.written_bytes,
    );
    counter(
        "tidemill_job_checkpoint_channel_bytes_total",
        "Frames that became part of completed checkpoints because their barriers came late.",
        |job| job.checkpoint_totals.channel_bytes,
    );
    last_checkpoint(text, jobs);
}

fn last_checkpoint(text: &mut Exposition, jobs: &[JobMetricsView]) {
    let mut gauge = |name, help, value: fn(&CheckpointView) -> f64| {
        text.family(name, Kind::Gauge, help);
        for job in jobs {
            if let Some(checkpoint) = &job.last_checkpoint {
                text.sample(&job_labels(job), value(checkpoint));
            }
        }
    };
    gauge(
        "tidemill_job_last_checkpoint_duration_seconds",
        "From the beginning of the last completed checkpoint until it was published.",
        |checkpoint| seconds_of_us(checkpoint.duration_us),
    );
    gauge(
        "tidemill_job_last_checkpoint_alignment_seconds",
        "The longest time from a task's first barrier of the last completed checkpoint to its last.",
        |checkpoint| seconds_of_us(checkpoint.alignment_us_max),
    );
    gauge(
        "tidemill_job_last_checkpoint_pause_seconds",
        "The longest time that a task did nothing else for the last completed checkpoint.",
        |checkpoint| seconds_of_us(checkpoint.pause_us_max),
    );
    gauge(
        "tidemill_job_last_checkpoint_upload_seconds",
        "The longest compression and upload of a task for the last completed checkpoint.",
        |checkpoint| seconds_of_us(checkpoint.upload_us_max),
    );
    gauge(
        "tidemill_job_last_checkpoint_image_bytes",
        "The sum of the sizes of the last completed checkpoint's images.",
        |checkpoint| checkpoint.image_bytes as f64,
    );
    gauge(
        "tidemill_job_last_checkpoint_dirty_bytes",
        "Pages that the last completed checkpoint captured, uncompressed.",
        |checkpoint| checkpoint.dirty_bytes as f64,
    );
    gauge(
        "tidemill_job_last_checkpoint_written_bytes",
        "What the last completed checkpoint wrote to the store.",
        |checkpoint| checkpoint.written_bytes as f64,
    );
    gauge(
        "tidemill_job_last_checkpoint_channel_bytes",
        "Frames that became part of the last completed checkpoint because their barriers came late.",
        |checkpoint| checkpoint.channel_bytes as f64,
    );
}

fn recoveries(text: &mut Exposition, jobs: &[JobMetricsView]) {
    text.family(
        "tidemill_job_recoveries_total",
        Kind::Counter,
        "Recoveries begun, as far as this JobManager saw them.",
    );
    for job in jobs {
        text.sample(&job_labels(job), job.recoveries as f64);
    }
    let mut by_source = |name, help, value: fn(&RestoredView) -> u64| {
        text.family(name, Kind::Counter, help);
        for job in jobs {
            for restored in &job.restored {
                let mut labels = job_labels(job).to_vec();
                labels.push(("source", restored.source.name()));
                text.sample(&labels, value(restored) as f64);
            }
        }
    };
    by_source(
        "tidemill_job_tasks_restored_total",
        "Tasks that recoveries started again, by where their images came from.",
        |restored| restored.tasks,
    );
    by_source(
        "tidemill_job_restored_bytes_total",
        "Bytes of memory that recoveries wrote before tasks could run, by where they came from.",
        |restored| restored.bytes,
    );
    text.family(
        "tidemill_job_last_recovery_seconds",
        Kind::Gauge,
        "How long the last recovery took: how long a lost TaskManager was silent before that was detected; from detection until the plan was made, the module was there, the image fetched and restored (longest task), from the plan until all ran without these steps, and from detection until all ran.",
    );
    for job in jobs {
        let Some(recovery) = &job.last_recovery else {
            continue;
        };
        let longest = &recovery.timings_max;
        let steps = [
            ("detect", recovery.detected_within_us),
            ("plan", recovery.planned_after_us),
            ("module", Some(longest.module_us)),
            ("fetch", Some(longest.fetch_us)),
            ("restore", Some(longest.restore_us)),
            ("resume", recovery.resume_us),
            ("running", recovery.running_after_us),
        ];
        for (step, us) in steps {
            let mut labels = job_labels(job).to_vec();
            labels.push(("step", step));
            if let Some(us) = us {
                text.sample(&labels, seconds_of_us(us));
            }
        }
    }
}

fn tasks(text: &mut Exposition, jobs: &[JobMetricsView]) {
    let mut family = |name, kind, help, value: fn(&TaskView) -> f64| {
        text.family(name, kind, help);
        for job in jobs {
            for task in &job.tasks {
                let mut labels = job_labels(job).to_vec();
                labels.extend([("task", task.id.as_str()), ("stage", task.name.as_str())]);
                if let Some(task_manager) = &task.task_manager {
                    labels.push(("task_manager", task_manager));
                }
                text.sample(&labels, value(task));
            }
        }
    };
    // Counters begin anew with each attempt, which Prometheus takes for the restart of a process: as it should.
    family(
        "tidemill_task_records_in_total",
        Kind::Counter,
        "Records into the task.",
        |task| task.progress.records_in as f64,
    );
    family(
        "tidemill_task_records_out_total",
        Kind::Counter,
        "Records out of the task.",
        |task| task.progress.records_out as f64,
    );
    family(
        "tidemill_task_received_bytes_total",
        Kind::Counter,
        "Bytes that the task received in frames.",
        |task| task.progress.bytes_in as f64,
    );
    family(
        "tidemill_task_sent_bytes_total",
        Kind::Counter,
        "Bytes that the task sent in frames.",
        |task| task.progress.bytes_out as f64,
    );
    family(
        "tidemill_task_busy_seconds_total",
        Kind::Counter,
        "Time inside the task's guest.",
        |task| seconds_of_us(task.progress.busy_us),
    );
    family(
        "tidemill_task_backpressured_seconds_total",
        Kind::Counter,
        "Time that the task waited for room in an output channel.",
        |task| seconds_of_us(task.progress.backpressured_us),
    );
    family(
        "tidemill_task_memory_bytes",
        Kind::Gauge,
        "The size of the task's linear memory.",
        |task| task.progress.memory_bytes as f64,
    );
}

fn job_labels(job: &JobMetricsView) -> [(&str, &str); 2] {
    [("job", &job.summary.id), ("job_name", &job.summary.name)]
}

fn seconds_of_ms(ms: u64) -> f64 {
    ms as f64 / 1e3
}

fn seconds_of_us(us: u64) -> f64 {
    us as f64 / 1e6
}

/// What Prometheus calls a metric's type.
#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}

/// The text so far, and the family that samples belong to.
#[derive(Default)]
struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        self.name = name;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            self.write(format_args!("{before}{label}=\"{}\"", escaped(text)));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        self.write(format_args!("{after} {value}\n"));
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.text
            .write_fmt(arguments)
            .expect("writing to a string never fails");
    }
}

/// A label's value may hold anything, a job's name being the user's.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
