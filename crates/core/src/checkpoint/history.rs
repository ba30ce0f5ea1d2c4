//! What became of the last checkpoints, with what they cost: for people. Nothing is ever decided by it.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::control::{CaptureStats, CheckpointAcknowledgement};
use tidemill_protocol::{AttemptId, CheckpointId, TaskId};

use crate::time::{Duration, Time};

/// How many checkpoints are remembered.
pub const HISTORY_MAX: usize = 100;
/// Of how many of them it is remembered what each task did.
pub const DETAILED_MAX: usize = 20;
/// How many captures are remembered in all, so that jobs of many tasks keep the details of fewer checkpoints; those of
/// the newest are always kept.
pub const CAPTURES_MAX: usize = 20_000;

/// How a checkpoint stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Tasks capture, or it is being published.
    InProgress,
    /// Its pointer is published.
    Completed,
    /// It was given up.
    Failed {
        /// Why.
        reason: String,
    },
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// Which.
    pub id: CheckpointId,
    /// When it was announced.
    pub started: Time,
    /// When it was published or given up.
    pub ended: Option<Time>,
    /// How it stands.
    pub outcome: Outcome,
    /// Whether every task had finished when it was captured.
    pub is_final: bool,
    /// Tasks that take part.
    pub tasks: u32,
    /// Those that have acknowledged.
    pub acknowledged: u32,
    /// The sum of all sizes; of each time, the longest of any task; unaligned when any task was.
    pub stats: CaptureStats,
}

/// What one task did for a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskCapture {
    /// Which.
    pub task: TaskId,
    /// Its execution.
    pub attempt: AttemptId,
    /// From the checkpoint's beginning until the task's acknowledgement came.
    pub after: Duration,
    /// It had finished before.
    pub finished: bool,
    /// What it cost.
    pub stats: CaptureStats,
}

impl CheckpointRecord {
    pub(super) fn new(id: CheckpointId, started: Time, tasks: usize) -> Self {
        Self {
            id,
            started,
            ended: None,
            outcome: Outcome::InProgress,
            is_final: false,
            tasks: u32::try_from(tasks).unwrap_or(u32::MAX),
            acknowledged: 0,
            stats: CaptureStats::default(),
        }
    }

    /// From its beginning to its end, or until now.
    #[must_use]
    pub fn duration(&self, now: Time) -> Duration {
        self.ended.unwrap_or(now).since(self.started)
    }

    fn add(&mut self, task: &CaptureStats) {
        let all = &mut self.stats;
        self.acknowledged += 1;
        all.alignment_us = all.alignment_us.max(task.alignment_us);
        all.pause_us = all.pause_us.max(task.pause_us);
        all.upload_us = all.upload_us.max(task.upload_us);
        all.image_bytes = all.image_bytes.saturating_add(task.image_bytes);
        all.dirty_bytes = all.dirty_bytes.saturating_add(task.dirty_bytes);
        all.ahead_bytes = all.ahead_bytes.saturating_add(task.ahead_bytes);
        all.written_bytes = all.written_bytes.saturating_add(task.written_bytes);
        all.channel_bytes = all.channel_bytes.saturating_add(task.channel_bytes);
        all.unaligned |= task.unaligned;
    }
}

/// What all completed checkpoints came to, since this leader has known the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Those of which a task did not wait for every barrier.
    pub unaligned: u64,
    /// Pages captured, uncompressed.
    pub dirty_bytes: u64,
    /// Written to the store.
    pub written_bytes: u64,
    /// Frames that became part of a checkpoint.
    pub channel_bytes: u64,
}

/// The last checkpoints, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    records: VecDeque<CheckpointRecord>,
    /// What the tasks of the newest ones did, oldest first.
    captures: VecDeque<(CheckpointId, Vec<TaskCapture>)>,
    completed: u64,
    failed: u64,
    totals: Totals,
}

impl History {
    /// Oldest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &CheckpointRecord> {
        self.records.iter()
    }

    /// Completed so far.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Given up so far.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// What all completed ones came to.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// What each task did for a checkpoint, in the order in which they acknowledged it; `None` when that is not
    /// remembered.
    #[must_use]
    pub fn captures(&self, id: CheckpointId) -> Option<&[TaskCapture]> {
        let of_it = self.captures.iter().find(|(of, _)| *of == id)?;
        Some(&of_it.1)
    }

    pub(super) fn begin(&mut self, record: CheckpointRecord) {
        if self.records.len() == HISTORY_MAX {
            self.records.pop_front();
        }
        self.captures.push_back((record.id, Vec::new()));
        self.records.push_back(record);
        self.forget_captures();
    }

    /// A task has acknowledged the one in flight.
    pub(super) fn acknowledged(&mut self, now: Time, task: &CheckpointAcknowledgement) {
        let Some(record) = self.current() else {
            return;
        };
        record.add(&task.stats);
        let (id, after) = (record.id, now.since(record.started));
        if let Some((of, captures)) = self.captures.back_mut()
            && *of == id
        {
            captures.push(TaskCapture {
                task: task.task,
                attempt: task.attempt,
                after,
                finished: task.finished,
                stats: task.stats,
            });
        }
        self.forget_captures();
    }

    fn forget_captures(&mut self) {
        let mut count: usize = self.captures.iter().map(|(_, all)| all.len()).sum();
        while self.captures.len() > DETAILED_MAX
            || (count > CAPTURES_MAX && self.captures.len() > 1)
        {
            let oldest = self.captures.pop_front();
            count -= oldest.map_or(0, |(_, all)| all.len());
        }
    }

    /// The one in flight, which is always the newest.
    pub(super) fn current(&mut self) -> Option<&mut CheckpointRecord> {
        self.records
            .back_mut()
            .filter(|record| record.outcome == Outcome::InProgress)
    }

    pub(super) fn end(&mut self, now: Time, outcome: Outcome) -> Option<&CheckpointRecord> {
        match outcome {
            Outcome::Completed => self.completed += 1,
            Outcome::Failed { .. } => self.failed += 1,
            Outcome::InProgress => {}
        }
        let is_complete = outcome == Outcome::Completed;
        let record = self.current()?;
        record.ended = Some(now);
        record.outcome = outcome;
        if is_complete {
            let stats = record.stats;
            let all = &mut self.totals;
            all.unaligned += u64::from(stats.unaligned);
            all.dirty_bytes = all.dirty_bytes.saturating_add(stats.dirty_bytes);
            all.written_bytes = all.written_bytes.saturating_add(stats.written_bytes);
            all.channel_bytes = all.channel_bytes.saturating_add(stats.channel_bytes);
        }
        self.records.back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_protocol::manifest::ObjectRef;
    use tidemill_protocol::{Epoch, JobId};

    fn id(counter: u64) -> CheckpointId {
        CheckpointId::new(Epoch(1), counter)
    }

    fn acknowledgement(checkpoint: CheckpointId, subtask: u32) -> CheckpointAcknowledgement {
        CheckpointAcknowledgement {
            job: JobId([1; 16]),
            attempt: AttemptId::new(Epoch(1), 1),
            task: TaskId::new(0, subtask),
            checkpoint,
            manifest: ObjectRef {
                key: String::new(),
                len: 0,
                hash: [0; 32],
            },
            finished: false,
            stats: CaptureStats {
                alignment_us: u64::from(subtask),
                dirty_bytes: 4096,
                channel_bytes: 10,
                unaligned: subtask == 1,
                ..CaptureStats::default()
            },
        }
    }

    fn completed(history: &mut History, counter: u64, tasks: u32) {
        let started = Time::ZERO;
        history.begin(CheckpointRecord::new(id(counter), started, tasks as usize));
        for subtask in 0..tasks {
            let now = started + Duration::from_millis(subtask.into());
            history.acknowledged(now, &acknowledgement(id(counter), subtask));
        }
        history.end(started, Outcome::Completed);
    }

    #[test]
    fn each_task_s_part_is_kept_and_all_of_them_are_summed() {
        let mut history = History::default();
        completed(&mut history, 1, 3);
        completed(&mut history, 2, 1);
        let first = history.captures(id(1)).expect("it is remembered");
        assert_eq!(first[2].task, TaskId::new(0, 2));
        assert_eq!(first[2].after, Duration::from_millis(2));
        let record = history.records().next().expect("it is remembered");
        let stats = record.stats;
        assert_eq!((stats.alignment_us, stats.dirty_bytes), (2, 3 * 4096));
        assert_eq!((stats.channel_bytes, stats.unaligned), (30, true));
        let totals = history.totals();
        assert_eq!((totals.unaligned, totals.dirty_bytes), (1, 4 * 4096));
        assert_eq!(history.captures(id(7)), None);
    }

    #[test]
    fn what_was_given_up_costs_nothing_in_the_totals() {
        let mut history = History::default();
        history.begin(CheckpointRecord::new(id(1), Time::ZERO, 2));
        history.acknowledged(Time::ZERO, &acknowledgement(id(1), 1));
        let reason = String::from("a task was lost");
        history.end(Time::ZERO, Outcome::Failed { reason });
        assert_eq!(history.totals(), Totals::default());
        assert_eq!(history.captures(id(1)).map(<[TaskCapture]>::len), Some(1));
    }

    #[test]
    fn details_are_bounded_by_checkpoints_and_by_tasks() {
        let mut history = History::default();
        for counter in 1..=DETAILED_MAX as u64 + 5 {
            completed(&mut history, counter, 2);
        }
        assert_eq!(history.captures.len(), DETAILED_MAX);
        assert_eq!(history.captures(id(5)), None);
        let many = u32::try_from(CAPTURES_MAX).expect("a small number") + 1;
        completed(&mut history, 100, many);
        assert_eq!(history.captures.len(), 1);
        let newest = history.captures(id(100)).map(<[TaskCapture]>::len);
        assert_eq!(newest, Some(CAPTURES_MAX + 1));
    }
}
