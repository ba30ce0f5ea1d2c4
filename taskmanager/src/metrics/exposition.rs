//! The figures as text: tables of families, each with what it means and how its value is found. It never changes a figure.

use std::fmt::{self, Write};

use tidemill_protocol::control::{ImageSource, TaskProgress};
use tidemill_protocol::{JobId, TaskId};

use super::{Figures, Standing, TaskFigures};

/// Samples of one name. Values are numbers as Prometheus has them, durations in seconds.
struct Family<T> {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&T) -> f64,
}

const fn gauge<T>(name: &'static str, help: &'static str, value: fn(&T) -> f64) -> Family<T> {
    Family {
        name,
        kind: "gauge",
        help,
        value,
    }
}

const fn counter<T>(name: &'static str, help: &'static str, value: fn(&T) -> f64) -> Family<T> {
    Family {
        kind: "counter",
        ..gauge(name, help, value)
    }
}

const BUILD: Family<()> = gauge(
    "tidemill_build_info",
    "The release that the TaskManager runs.",
    |()| 1.0,
);

/// Of this process.
const PROCESS: [Family<Usage>; 2] = [
    gauge(
        "process_resident_memory_bytes",
        "Memory of the process that is resident.",
        |usage| usage.resident_bytes as f64,
    ),
    gauge("process_open_fds", "Open files.", |usage| {
        usage.open_files as f64
    }),
];

/// Of the TaskManager as it is.
const STANDING: [Family<Standing>; 5] = [
    gauge(
        "tidemill_taskmanager_slots",
        "Slots that it offers.",
        |it| f64::from(it.slots),
    ),
    gauge("tidemill_taskmanager_tasks", "Tasks that run here.", |it| {
        it.tasks.len() as f64
    }),
    gauge(
        "tidemill_taskmanager_connected",
        "1 while it has a leader.",
        |it| flag(it.has_leader),
    ),
    gauge(
        "tidemill_taskmanager_draining",
        "1 while it leaves.",
        |it| flag(it.is_draining),
    ),
    gauge(
        "tidemill_taskmanager_warm_images",
        "Images kept for tasks elsewhere.",
        |it| it.warm as f64,
    ),
];

/// Of what has happened here.
const EVENTS: [Family<Figures>; 3] = [
    counter(
        "tidemill_taskmanager_tasks_failed_total",
        "Tasks that failed here.",
        |all| all.tasks_failed as f64,
    ),
    counter(
        "tidemill_taskmanager_captures_declined_total",
        "Captures that tasks here could not make.",
        |all| all.captures_declined as f64,
    ),
    counter(
        "tidemill_taskmanager_channels_broken_total",
        "Data connections that broke under a task.",
        |all| all.channels_broken as f64,
    ),
];

const STARTED: Family<u64> = counter(
    "tidemill_taskmanager_tasks_started_total",
    "Tasks that began to run here, by where their images came from.",
    |count| *count as f64,
);

/// Of each task by the last report.
const TASKS: [Family<TaskProgress>; 7] = [
    counter(
        "tidemill_taskmanager_task_records_in_total",
        "Records into the task.",
        |task| task.records_in as f64,
    ),
    counter(
        "tidemill_taskmanager_task_records_out_total",
        "Records out of the task.",
        |task| task.records_out as f64,
    ),
    counter(
        "tidemill_taskmanager_task_received_bytes_total",
        "Bytes received in frames.",
        |task| task.bytes_in as f64,
    ),
    counter(
        "tidemill_taskmanager_task_sent_bytes_total",
        "Bytes sent in frames.",
        |task| task.bytes_out as f64,
    ),
    counter(
        "tidemill_taskmanager_task_busy_seconds_total",
        "Time inside the guest.",
        |task| seconds(task.busy_us),
    ),
    counter(
        "tidemill_taskmanager_task_backpressured_seconds_total",
        "Time waiting for room in an output channel.",
        |task| seconds(task.backpressured_us),
    ),
    gauge(
        "tidemill_taskmanager_task_memory_bytes",
        "The size of the linear memory.",
        |task| task.memory_bytes as f64,
    ),
];

/// Of each task's captures, and of how it began.
const CAPTURES: [Family<TaskFigures>; 11] = [
    counter(
        "tidemill_taskmanager_task_captures_total",
        "Captures that are stored.",
        |task| task.captures as f64,
    ),
    counter(
        "tidemill_taskmanager_task_captures_unaligned_total",
        "Those that did not wait for every barrier.",
        |task| task.unaligned as f64,
    ),
    counter(
        "tidemill_taskmanager_task_captured_dirty_bytes_total",
        "Pages captured, uncompressed.",
        |task| task.dirty_bytes as f64,
    ),
    counter(
        "tidemill_taskmanager_task_captured_ahead_bytes_total",
        "Pages copied before their capture's pause; those copied twice count twice.",
        |task| task.ahead_bytes as f64,
    ),
    counter(
        "tidemill_taskmanager_task_captured_written_bytes_total",
        "What captures wrote to the store.",
        |task| task.written_bytes as f64,
    ),
    counter(
        "tidemill_taskmanager_task_captured_channel_bytes_total",
        "Frames that became part of checkpoints.",
        |task| task.channel_bytes as f64,
    ),
    gauge(
        "tidemill_taskmanager_task_last_pause_seconds",
        "How long the last capture held the task up.",
        |task| seconds(task.last.pause_us),
    ),
    gauge(
        "tidemill_taskmanager_task_last_alignment_seconds",
        "From the last checkpoint's first barrier to its last.",
        |task| seconds(task.last.alignment_us),
    ),
    gauge(
        "tidemill_taskmanager_task_last_upload_seconds",
        "The last capture's compression and upload.",
        |task| seconds(task.last.upload_us),
    ),
    gauge(
        "tidemill_taskmanager_task_deploy_fetch_seconds",
        "What had to be read of the image before the task could run.",
        |task| seconds(task.deployed.fetch_us),
    ),
    gauge(
        "tidemill_taskmanager_task_deploy_restore_seconds",
        "Making the instance and laying the image over it.",
        |task| seconds(task.deployed.restore_us),
    ),
];

/// The whole text.
pub(super) fn exposition(figures: &Figures) -> String {
    let mut text = Exposition::default();
    let version = ("version", env!("CARGO_PKG_VERSION").to_owned());
    text.family(&BUILD, [([version], &())]);
    if let Some(usage) = Usage::of_this_process() {
        text.each(&PROCESS, || [([], &usage)]);
    }
    if let Some(standing) = &figures.standing {
        text.each(&STANDING, || [([], standing)]);
    }
    text.each(&EVENTS, || [([], figures)]);
    let started = figures.started.iter();
    text.family(
        &STARTED,
        started.map(|(source, count)| ([("source", source_name(*source).to_owned())], count)),
    );
    if let Some(standing) = &figures.standing {
        let tasks = || standing.tasks.iter();
        text.each(&TASKS, || {
            tasks().map(|task| (labels(task.job, task.task), task))
        });
    }
    let tasks = || figures.tasks.iter();
    text.each(&CAPTURES, || {
        tasks().map(|((job, task), figures)| (labels(*job, *task), figures))
    });
    text.0
}

fn labels(job: JobId, task: TaskId) -> [(&'static str, String); 2] {
    [("job", job.to_string()), ("task", task.to_string())]
}

/// What the kernel tells of this process.
struct Usage {
    resident_bytes: u64,
    open_files: usize,
}

impl Usage {
    fn of_this_process() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Self {
            resident_bytes: kib << 10,
            open_files: std::fs::read_dir("/proc/self/fd").ok()?.count(),
        })
    }
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

fn flag(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The text so far. Labels are ids and numbers, which need no escaping.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    /// A family with its samples: labels, and what the value is found in.
    fn family<'a, T: 'a, const LABELS: usize>(
        &mut self,
        family: &Family<T>,
        samples: impl IntoIterator<Item = ([(&'static str, String); LABELS], &'a T)>,
    ) {
        let Family {
            name, kind, help, ..
        } = family;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (labels, of) in samples {
            self.0.push_str(name);
            for (index, (label, text)) in labels.iter().enumerate() {
                let before = if index == 0 { '{' } else { ',' };
                self.write(format_args!("{before}{label}=\"{text}\""));
            }
            let after = if LABELS == 0 { "" } else { "}" };
            self.write(format_args!("{after} {}\n", (family.value)(of)));
        }
    }

    /// Each family of a table with the same samples.
    fn each<'a, T: 'a, const LABELS: usize, S>(
        &mut self,
        families: &[Family<T>],
        samples: impl Fn() -> S,
    ) where
        S: IntoIterator<Item = ([(&'static str, String); LABELS], &'a T)>,
    {
        for family in families {
            self.family(family, samples());
        }
    }

    fn write(&mut self, arguments: fmt::Arguments<'_>) {
        self.0
            .write_fmt(arguments)
            .expect("writing to a string never fails");
    }
}
