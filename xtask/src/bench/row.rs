//! What is measured: a job on a shape of cluster, and the figures of one run.
//!
//! It never computes a figure; who measured it did.

use std::fmt;

use serde_json::{Value, json};

/// A job on a shape of cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    /// The job, as the peers' harnesses call it too.
    pub(super) job: String,
    /// On what.
    pub(super) shape: Shape,
}

/// A shape of cluster. Each is exactly large enough for the parallelism, but the first, whose second slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub(super) taskmanagers: u32,
    pub(super) slots: u32,
    pub(super) parallelism: u32,
}

/// The shapes that each job is measured on.
pub(super) const SHAPES: [Shape; 3] = [
    Shape {
        taskmanagers: 1,
        slots: 2,
        parallelism: 1,
    },
    Shape {
        taskmanagers: 1,
        slots: 2,
        parallelism: 2,
    },
    Shape {
        taskmanagers: 2,
        slots: 1,
        parallelism: 2,
    },
];

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape {
            taskmanagers,
            parallelism,
            ..
        } = self.shape;
        write!(
            f,
            "{}, parallelism {parallelism}, {taskmanagers} TM",
            self.job
        )
    }
}

/// The figures of one run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    /// Records of the source per second.
    pub(super) rate: f64,
    /// Processor seconds of all processes per million records.
    pub(super) processor_s_per_million: f64,
    /// Processors that all processes used.
    pub(super) processors: f64,
    /// The most memory that the JobManager ever had, in MiB.
    pub(super) jobmanager_mib: f64,
    /// The same of all TaskManagers together.
    pub(super) taskmanagers_mib: f64,
    /// Memory of all processes before the job, in MiB.
    pub(super) idle_mib: f64,
    /// The mean duration of a checkpoint.
    pub(super) checkpoint_ms: Option<f64>,
    /// The duration that 99 % of the checkpoints don't exceed.
    pub(super) checkpoint_p99_ms: Option<f64>,
    /// From the start of the submitting command to the first record.
    pub(super) first_record_s: f64,
    /// Processors that the rest of the machine used meanwhile: well above 0, and the run says little.
    pub(super) others: f64,
}

impl Figures {
    /// For the file of results.
    pub(super) fn to_json(&self, system: &str, row: &Row) -> Value {
        json!({
            "system": system,
            "name": row.job,
            "p": row.shape.parallelism,
            "tms": row.shape.taskmanagers,
            "rate": self.rate,
            "cpu_per_M": self.processor_s_per_million,
            "cores": self.processors,
            "rss_jm": self.jobmanager_mib,
            "rss_tm": self.taskmanagers_mib,
            "rss_idle": self.idle_mib,
            "ckpt_ms_avg": self.checkpoint_ms,
            "ckpt_ms_p99": self.checkpoint_p99_ms,
            "first_src_s": self.first_record_s,
            "foreign_cores": self.others,
        })
    }

    /// Reads what [`Self::to_json`] or a peer's harness wrote, if it has all that a comparison needs.
    pub(super) fn from_json(line: &Value) -> Option<Self> {
        let figure = |name: &str| line[name].as_f64();
        Some(Self {
            rate: figure("rate")?,
            processor_s_per_million: figure("cpu_per_M")?,
            processors: figure("cores")?,
            jobmanager_mib: figure("rss_jm")?,
            taskmanagers_mib: figure("rss_tm")?,
            idle_mib: figure("rss_idle")?,
            checkpoint_ms: figure("ckpt_ms_avg"),
            checkpoint_p99_ms: figure("ckpt_ms_p99"),
            first_record_s: figure("first_src_s")?,
            others: figure("foreign_cores")?,
        })
    }

    /// The run of the middle rate; of two, the slower. A whole run, so that its figures belong together.
    pub(super) fn median(mut runs: Vec<Self>) -> Option<Self> {
        runs.sort_by(|one, other| one.rate.total_cmp(&other.rate));
        let middle = runs.len().saturating_sub(1) / 2;
        (!runs.is_empty()).then(|| runs.swap_remove(middle))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn figures(rate: f64) -> Figures {
        Figures {
            rate,
            processor_s_per_million: 0.5,
            processors: 1.5,
            jobmanager_mib: 20.0,
            taskmanagers_mib: 100.0,
            idle_mib: 40.0,
            checkpoint_ms: Some(12.0),
            checkpoint_p99_ms: None,
            first_record_s: 0.1,
            others: 0.0,
        }
    }

    #[test]
    fn figures_survive_their_file() {
        let row = Row {
            job: "pass".to_owned(),
            shape: SHAPES[2],
        };
        let figures = figures(1e6);
        let line = figures.to_json("tidemill", &row);
        assert_eq!(Figures::from_json(&line), Some(figures));
        assert_eq!(Figures::from_json(&json!({"rate": 1})), None);
    }

    #[test]
    fn the_median_is_a_whole_run() {
        let runs = vec![figures(3.0), figures(1.0), figures(2.0)];
        assert_eq!(Figures::median(runs), Some(figures(2.0)));
        assert_eq!(
            Figures::median(vec![figures(3.0), figures(1.0)]),
            Some(figures(1.0))
        );
        assert_eq!(Figures::median(Vec::new()), None);
    }
}
