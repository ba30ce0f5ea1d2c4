//! What became of the last checkpoints, with what they cost: for people. Nothing is ever decided by it.

use alloc::collections::VecDeque;
use alloc::string::String;
use tidemill_protocol::CheckpointId;
use tidemill_protocol::control::CaptureStats;

use crate::time::{Duration, Time};

/// How many checkpoints are remembered.
pub const HISTORY_MAX: usize = 100;

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
    /// The sum of images and of bytes written; of each time, the longest of any task.
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

    pub(super) fn add(&mut self, task: &CaptureStats) {
        let all = &mut self.stats;
        self.acknowledged += 1;
        all.alignment_us = all.alignment_us.max(task.alignment_us);
        all.pause_us = all.pause_us.max(task.pause_us);
        all.upload_us = all.upload_us.max(task.upload_us);
        all.image_bytes = all.image_bytes.saturating_add(task.image_bytes);
        all.written_bytes = all.written_bytes.saturating_add(task.written_bytes);
    }
}

/// The last checkpoints, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    records: VecDeque<CheckpointRecord>,
    completed: u64,
    failed: u64,
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

    pub(super) fn begin(&mut self, record: CheckpointRecord) {
        if self.records.len() == HISTORY_MAX {
            self.records.pop_front();
        }
        self.records.push_back(record);
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
        let record = self.current()?;
        record.ended = Some(now);
        record.outcome = outcome;
        Some(record)
    }
}
