//! Checkpoints and recoveries as users see them. Nothing is decided or changed.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_core::Time;
use tidemill_core::checkpoint::{CheckpointRecord, History, Outcome, TaskCapture};
use tidemill_core::job::{Job, Recovery, Restored};
use tidemill_protocol::control::ImageSource;
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{CheckpointId, JobId, TaskId};

use super::{View, micros};
use crate::handle::QueryError;
use crate::views::{
    CheckpointDetail, CheckpointStatus, CheckpointTotals, CheckpointView, CheckpointsView,
    RecoveryView, RestoredView, RetainedView, TaskCaptureView,
};

/// Where a checkpoint is in the object store: a job can be started from there.
fn path(pointer: &CheckpointPointer) -> String {
    let key = pointer.metadata.key.as_str();
    key.rsplit_once('/')
        .map_or(key, |(directory, _)| directory)
        .to_owned()
}

/// Where the checkpoint is that an ended job has left, if it has left one.
pub(super) fn kept(job: &Job) -> Option<String> {
    job.kept_checkpoint().map(path)
}

pub(super) fn totals(history: &History) -> CheckpointTotals {
    let totals = history.totals();
    CheckpointTotals {
        unaligned: totals.unaligned,
        dirty_bytes: totals.dirty_bytes,
        written_bytes: totals.written_bytes,
        channel_bytes: totals.channel_bytes,
    }
}

pub(super) fn restored(by_source: &BTreeMap<ImageSource, Restored>) -> Vec<RestoredView> {
    let view = |(source, restored): (&ImageSource, &Restored)| RestoredView {
        source: (*source).into(),
        tasks: restored.tasks,
        bytes: restored.bytes,
    };
    by_source.iter().map(view).collect()
}

impl View<'_> {
    pub(super) fn recovery(&self, recovery: &Recovery) -> RecoveryView {
        let after = |at: Option<Time>| at.map(|at| micros(at.since(recovery.detected_at)));
        let timings = recovery.timings;
        let own_steps_us = timings.module_us + timings.fetch_us + timings.restore_us;
        let (planned_us, running_us) = (after(recovery.planned_at), after(recovery.running_at));
        let since_plan_us = |running_us: u64| running_us.saturating_sub(planned_us?).into();
        RecoveryView {
            attempt: recovery.attempt.map(|attempt| attempt.to_string()),
            cause: recovery.cause.clone(),
            detected_at_ms: self.clock.wall_ms(recovery.detected_at),
            detected_within_us: recovery.detected_within.map(micros),
            planned_after_us: planned_us,
            delay_us: micros(recovery.delay),
            resume_us: running_us
                .and_then(since_plan_us)
                .map(|us: u64| us.saturating_sub(own_steps_us)),
            running_after_us: running_us,
            checkpoint: recovery.checkpoint.map(|checkpoint| checkpoint.to_string()),
            tasks_lost: recovery.tasks_lost as u32,
            tasks_restarted: recovery.tasks_restarted as u32,
            timings_max: timings.into(),
            restored: restored(&recovery.sources),
        }
    }

    pub(crate) fn checkpoints(&self, id: JobId) -> Result<CheckpointsView, QueryError> {
        let coordinator = self.find(id)?.checkpoints();
        let history = coordinator.history();
        let retained_at = coordinator.retained().map(|pointer| RetainedView {
            id: pointer.checkpoint.to_string(),
            path: path(pointer),
        });
        let retained_at: Vec<RetainedView> = retained_at.collect();
        Ok(CheckpointsView {
            completed: history.completed(),
            failed: history.failed(),
            totals: totals(history),
            retained: retained_at.iter().map(|one| one.id.clone()).collect(),
            retained_at,
            history: history
                .records()
                .map(|record| self.checkpoint(record))
                .collect(),
        })
    }

    /// One checkpoint, task by task.
    pub(crate) fn checkpoint_detail(
        &self,
        id: JobId,
        checkpoint: CheckpointId,
    ) -> Result<CheckpointDetail, QueryError> {
        let job = self.find(id)?;
        let (coordinator, history) = (job.checkpoints(), job.checkpoints().history());
        let mut records = history.records();
        let record = records.find(|record| record.id == checkpoint).ok_or(
            QueryError::UnknownCheckpoint {
                job: id,
                checkpoint,
            },
        )?;
        let captures = history.captures(checkpoint);
        let kept = coordinator
            .retained()
            .find(|pointer| pointer.checkpoint == checkpoint);
        Ok(CheckpointDetail {
            checkpoint: self.checkpoint(record),
            path: kept.map(path),
            captures: captures.map(|all| all.iter().map(|one| capture(job, one)).collect()),
            tasks_missing: captures.map_or_else(Vec::new, |captures| missing(job, captures)),
        })
    }

    pub(super) fn checkpoint(&self, record: &CheckpointRecord) -> CheckpointView {
        let (status, failure) = match &record.outcome {
            Outcome::InProgress => (CheckpointStatus::InProgress, None),
            Outcome::Completed => (CheckpointStatus::Completed, None),
            Outcome::Failed { reason } => (CheckpointStatus::Failed, Some(reason.clone())),
        };
        let stats = &record.stats;
        CheckpointView {
            id: record.id.to_string(),
            status,
            is_final: record.is_final,
            started_at_ms: self.clock.wall_ms(record.started),
            duration_us: micros(record.duration(self.now)),
            tasks_acknowledged: record.acknowledged,
            tasks: record.tasks,
            image_bytes: stats.image_bytes,
            dirty_bytes: stats.dirty_bytes,
            written_bytes: stats.written_bytes,
            channel_bytes: stats.channel_bytes,
            unaligned: stats.unaligned,
            alignment_us_max: stats.alignment_us,
            pause_us_max: stats.pause_us,
            upload_us_max: stats.upload_us,
            failure,
        }
    }
}

fn capture(job: &Job, capture: &TaskCapture) -> TaskCaptureView {
    let stats = &capture.stats;
    let stage = job.graph().stage(capture.task);
    TaskCaptureView {
        task: capture.task.to_string(),
        name: stage.map(|stage| stage.name.clone()).unwrap_or_default(),
        attempt: capture.attempt.to_string(),
        finished: capture.finished,
        acknowledged_after_us: micros(capture.after),
        alignment_us: stats.alignment_us,
        pause_us: stats.pause_us,
        upload_us: stats.upload_us,
        image_bytes: stats.image_bytes,
        dirty_bytes: stats.dirty_bytes,
        ahead_bytes: stats.ahead_bytes,
        written_bytes: stats.written_bytes,
        channel_bytes: stats.channel_bytes,
        unaligned: stats.unaligned,
    }
}

/// Every task of a job takes part in each checkpoint.
fn missing(job: &Job, captures: &[TaskCapture]) -> Vec<String> {
    let there: BTreeSet<TaskId> = captures.iter().map(|capture| capture.task).collect();
    let tasks = job.tasks().keys().filter(|task| !there.contains(task));
    tasks.map(ToString::to_string).collect()
}
