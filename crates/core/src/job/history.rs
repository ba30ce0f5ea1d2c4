//! What happened to a job, for people: notes as they happen, and a record of each recovery. Nothing is ever decided by it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use tidemill_protocol::control::{DeployTimings, ImageSource, TaskFailure};
use tidemill_protocol::{AttemptId, CheckpointId, TaskId, TaskManagerId};

use super::Phase;
use crate::checkpoint::{CheckpointRecord, Outcome};
use crate::scheduler::Shortfall;
use crate::time::{Duration, Time};

/// How many recoveries are remembered.
pub const RECOVERIES_MAX: usize = 50;
/// How many notes are remembered.
pub const NOTES_MAX: usize = 200;

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It does something else now.
    Phase {
        /// What it did.
        from: Phase,
        /// What it does.
        to: Phase,
    },
    /// It waits: slots are missing.
    WaitingForSlots(Shortfall),
    /// Regions were found running and are taken over.
    Adopted {
        /// How many tasks.
        tasks: usize,
        /// Their attempt.
        attempt: AttemptId,
    },
    /// A task failed.
    TaskFailed {
        /// Which.
        task: TaskId,
        /// Its stage's name.
        stage: String,
        /// Where.
        task_manager: TaskManagerId,
        /// Why.
        failure: TaskFailure,
    },
    /// Something failed; tasks restart after a delay.
    RecoveryBegun {
        /// What failed.
        cause: String,
        /// Tasks that restart.
        restarted: usize,
        /// After how long.
        delay: Duration,
    },
    /// TaskManagers want to go, and a checkpoint is taken to move what runs there.
    MoveBegun {
        /// Which TaskManagers.
        from: Vec<TaskManagerId>,
        /// How many tasks run there.
        tasks: usize,
    },
    /// TaskManagers want to go, and what runs there stays since it fits nowhere else.
    CannotMove {
        /// Which TaskManagers.
        from: Vec<TaskManagerId>,
        /// What is missing elsewhere.
        shortfall: Shortfall,
    },
    /// A region is being deployed.
    Deployed {
        /// Its attempt.
        attempt: AttemptId,
        /// How many tasks.
        tasks: usize,
        /// Those that have moved to another TaskManager.
        moved: usize,
        /// What they go back to.
        checkpoint: Option<CheckpointId>,
    },
    /// Every task of a recovery runs again.
    Recovered {
        /// The last attempt it made.
        attempt: AttemptId,
        /// From detection until now.
        after: Duration,
        /// The longest of the tasks' steps.
        timings: DeployTimings,
    },
    /// A checkpoint was published or given up.
    Checkpoint(CheckpointRecord),
    /// A savepoint is written.
    SavepointWritten {
        /// Where.
        directory: String,
        /// Of which checkpoint.
        checkpoint: CheckpointId,
        /// Its size.
        bytes: u64,
    },
    /// A savepoint could not be written.
    SavepointFailed {
        /// Where to.
        directory: String,
        /// Why.
        reason: String,
    },
    /// A completed checkpoint cannot be used: what was committed since the one before may appear again.
    CheckpointDamaged {
        /// Which.
        checkpoint: CheckpointId,
        /// What is wrong with it.
        reason: String,
    },
    /// A write to the registry or a read from the store failed, and will be tried again.
    Retrying {
        /// What failed.
        what: String,
    },
    /// It failed for good.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Note {
    /// Whether somebody should look at it.
    #[must_use]
    pub fn is_alarming(&self) -> bool {
        match self {
            Self::TaskFailed { .. }
            | Self::RecoveryBegun { .. }
            | Self::CheckpointDamaged { .. }
            | Self::SavepointFailed { .. }
            | Self::Retrying { .. }
            | Self::WaitingForSlots(_)
            | Self::CannotMove { .. }
            | Self::Failed { .. } => true,
            Self::Checkpoint(record) => matches!(record.outcome, Outcome::Failed { .. }),
            Self::Phase { .. }
            | Self::Adopted { .. }
            | Self::MoveBegun { .. }
            | Self::SavepointWritten { .. }
            | Self::Deployed { .. }
            | Self::Recovered { .. } => false,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Phase { from, to } => write!(f, "{from:?} → {to:?}"),
            Self::WaitingForSlots(Shortfall { needed, free }) => write!(
                f,
                "waiting for slots: {needed} are needed and {free} are free; start a TaskManager, or cancel another job"
            ),
            Self::Adopted { tasks, attempt } => write!(
                f,
                "{tasks} running tasks of attempt {attempt} were taken over"
            ),
            Self::TaskFailed {
                task,
                stage,
                task_manager,
                failure,
            } => write!(
                f,
                "task {task} ({stage}) failed on {task_manager}: {}",
                failure.message
            ),
            Self::RecoveryBegun {
                cause,
                restarted,
                delay,
            } => write!(f, "{cause}; {restarted} tasks restart after {delay:?}"),
            Self::MoveBegun { from, tasks } => write!(
                f,
                "{} is being drained: {tasks} tasks leave after a checkpoint",
                Names(from)
            ),
            Self::CannotMove { from, shortfall } => fmt_stay(&Names(from), *shortfall, f),
            Self::Deployed {
                attempt,
                tasks,
                moved,
                checkpoint,
            } => write!(
                f,
                "attempt {attempt}: {tasks} tasks ({moved} moved) start from {}",
                Start(*checkpoint)
            ),
            Self::Recovered {
                attempt,
                after,
                timings,
            } => fmt_recovered(*attempt, *after, timings, f),
            Self::Checkpoint(record) => fmt_checkpoint(record, f),
            Self::SavepointWritten {
                directory,
                checkpoint,
                bytes,
            } => write!(
                f,
                "savepoint {directory} is written: checkpoint {checkpoint}, {bytes} bytes"
            ),
            Self::SavepointFailed {
                directory: to,
                reason,
            } => write!(f, "savepoint {to} could not be written: {reason}"),
            Self::CheckpointDamaged { checkpoint, reason } => write!(
                f,
                "checkpoint {checkpoint} cannot be used, so the one before is: output committed since that one may appear again ({reason})"
            ),
            Self::Retrying { what } => write!(f, "{what}; it is tried again"),
            Self::Failed { reason } => write!(f, "the job has failed: {reason}"),
        }
    }
}

fn fmt_recovered(
    attempt: AttemptId,
    after: Duration,
    timings: &DeployTimings,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(
        f,
        "attempt {attempt} runs, {after:?} after the failure was seen (module {} µs, images read {} µs, restored {} µs)",
        timings.module_us, timings.fetch_us, timings.restore_us
    )
}

/// TaskManagers in a row.
struct Names<'a>(&'a [TaskManagerId]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, id) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{id}")?;
        }
        Ok(())
    }
}

/// What an attempt starts from.
struct Start(Option<CheckpointId>);

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(checkpoint) => write!(f, "checkpoint {checkpoint}"),
            None => f.write_str("the beginning"),
        }
    }
}

fn fmt_stay(
    from: &Names<'_>,
    Shortfall { needed, free }: Shortfall,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(
        f,
        "{from} is being drained, but its tasks stay and run: elsewhere {needed} slots are needed and {free} are free; start a TaskManager, or cancel another job"
    )
}

fn fmt_checkpoint(record: &CheckpointRecord, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let id = record.id;
    if let Outcome::Failed { reason } = &record.outcome {
        return write!(f, "checkpoint {id} was given up: {reason}");
    }
    let duration = record.ended.unwrap_or(record.started).since(record.started);
    write!(f, "checkpoint {id} is complete after {duration:?}")
}

/// One recovery: from a failure until every task of the failed regions ran again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// What failed.
    pub cause: String,
    /// When the leader learned of it.
    pub detected_at: Time,
    /// How long before that the lost TaskManager was last heard of, when one was lost.
    pub detected_within: Option<Duration>,
    /// The restart strategy's delay.
    pub delay: Duration,
    /// When it was planned and sent out.
    pub planned_at: Option<Time>,
    /// When the last task ran.
    pub running_at: Option<Time>,
    /// The last attempt it made.
    pub attempt: Option<AttemptId>,
    /// What it went back to.
    pub checkpoint: Option<CheckpointId>,
    /// Tasks whose TaskManager was lost.
    pub tasks_lost: usize,
    /// Tasks that were started again.
    pub tasks_restarted: usize,
    /// The longest of the tasks' steps.
    pub timings: DeployTimings,
    /// Where the tasks' images came from.
    pub sources: BTreeMap<ImageSource, Restored>,
    /// The regions that have not been seen running since.
    pub(super) open: BTreeSet<usize>,
}

impl Recovery {
    /// From the plan until every task ran, without the longest of the tasks' own steps: commands, channels, answers.
    #[must_use]
    pub fn resume(&self) -> Option<Duration> {
        let all = self.running_at?.since(self.planned_at?);
        let timings = &self.timings;
        let steps = [timings.module_us, timings.fetch_us, timings.restore_us];
        let steps = steps.into_iter().fold(0, u64::saturating_add);
        Some(all.saturating_sub(Duration::from_micros(steps)))
    }
}

/// What was restored from one kind of source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// So many tasks.
    pub tasks: u64,
    /// Bytes of memory that were written before they could run.
    pub bytes: u64,
}

impl Restored {
    fn add(&mut self, bytes: u64) {
        self.tasks += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// The last recoveries and notes of a job, oldest first.
#[derive(Clone, Debug, Default)]
pub struct JobHistory {
    restored: BTreeMap<ImageSource, Restored>,
    recovered: u64,
    pub(super) recoveries: VecDeque<Recovery>,
    notes: VecDeque<(Time, Note)>,
}

impl JobHistory {
    /// Oldest first.
    pub fn recoveries(&self) -> impl DoubleEndedIterator<Item = &Recovery> {
        self.recoveries.iter()
    }

    /// Oldest first. Completed checkpoints are in a history of their own.
    pub fn notes(&self) -> impl DoubleEndedIterator<Item = &(Time, Note)> {
        self.notes.iter()
    }

    /// Where images came from in all recoveries since this leader has known the job.
    #[must_use]
    pub fn restored(&self) -> &BTreeMap<ImageSource, Restored> {
        &self.restored
    }

    /// How many recoveries have begun since this leader has known the job.
    #[must_use]
    pub fn recovered(&self) -> u64 {
        self.recovered
    }

    /// The TaskManager whose loss has just begun a recovery had not been heard of for so long.
    pub(super) fn was_silent(&mut self, now: Time, silent_for: Option<Duration>) {
        let newest = self.recoveries.back_mut();
        if let Some(recovery) = newest.filter(|recovery| recovery.detected_at == now) {
            recovery.detected_within = recovery.detected_within.max(silent_for);
        }
    }

    /// The tasks of a region in recovery run again.
    pub(super) fn restored_from<'a>(
        &mut self,
        region: usize,
        tasks: impl Iterator<Item = &'a DeployTimings>,
    ) {
        let mut newest_first = self.recoveries.iter_mut().rev();
        let Some(recovery) = newest_first.find(|recovery| recovery.open.contains(&region)) else {
            return;
        };
        for task in tasks {
            for all in [&mut recovery.sources, &mut self.restored] {
                all.entry(task.source).or_default().add(task.restored_bytes);
            }
        }
    }

    pub(super) fn begin(&mut self, recovery: Recovery) {
        self.recovered += 1;
        if self.recoveries.len() == RECOVERIES_MAX {
            self.recoveries.pop_front();
        }
        self.recoveries.push_back(recovery);
    }

    /// The recovery that a region is in.
    pub(super) fn open(&mut self, region: usize) -> Option<&mut Recovery> {
        self.recoveries
            .iter_mut()
            .rev()
            .find(|recovery| recovery.open.contains(&region))
    }

    pub(super) fn note(&mut self, now: Time, note: &Note) {
        if matches!(note, Note::Checkpoint(record) if record.outcome == Outcome::Completed) {
            return;
        }
        if self.notes.len() == NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back((now, note.clone()));
    }
}
