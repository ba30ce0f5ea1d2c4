//! Views in words, shared by several verbs.

use tidemill_jobmanager::views::{
    CheckpointStatus, FailureView, JobStatus, RecoveryView, TaskStatus,
};

use crate::units;

/// Enough of an id to tell jobs apart; every verb takes it.
pub(crate) fn short_id(id: &str) -> String {
    id.chars().take(12).collect()
}

pub(crate) fn status(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Adopting => "adopting",
        JobStatus::Waiting => "waiting",
        JobStatus::Deploying => "deploying",
        JobStatus::Running => "running",
        JobStatus::Restarting => "restarting",
        JobStatus::Finishing => "finishing",
        JobStatus::Cancelling => "cancelling",
        JobStatus::Finished => "finished",
        JobStatus::Cancelled => "cancelled",
        JobStatus::Failed => "failed",
    }
}

pub(crate) fn task_status(status: TaskStatus) -> &'static str {
    match status {
        TaskStatus::Idle => "idle",
        TaskStatus::Deploying => "deploying",
        TaskStatus::Running => "running",
        TaskStatus::Finished => "finished",
        TaskStatus::Failed => "failed",
        TaskStatus::Cancelled => "cancelled",
    }
}

pub(crate) fn checkpoint_status(status: CheckpointStatus) -> &'static str {
    match status {
        CheckpointStatus::InProgress => "in progress",
        CheckpointStatus::Completed => "completed",
        CheckpointStatus::Failed => "failed",
    }
}

/// A failure with all that helps to find its cause.
pub(crate) fn failure(failure: &FailureView) -> String {
    let task = match (&failure.task, &failure.stage) {
        (Some(task), Some(stage)) => format!("task {task} ({stage}): "),
        (Some(task), None) => format!("task {task}: "),
        (None, _) => String::new(),
    };
    let mut text = format!("{task}{}", failure.message);
    let mut section = |heading: &str, lines: &[String]| {
        if !lines.is_empty() {
            text.push_str(&format!("\n  {heading}:"));
            lines
                .iter()
                .for_each(|line| text.push_str(&format!("\n    {line}")));
        }
    };
    section("backtrace, innermost first", &failure.backtrace);
    section("its last log lines", &failure.last_log_lines);
    if !failure.batch_preview.is_empty() {
        section(
            "the batch it was given begins with",
            std::slice::from_ref(&failure.batch_preview),
        );
    }
    text
}

/// A recovery with its times.
pub(crate) fn recovery(recovery: &RecoveryView) -> String {
    let checkpoint = recovery.checkpoint.as_deref().unwrap_or("the beginning");
    let step = |us: Option<u64>| us.map_or_else(|| "not yet".to_owned(), units::microseconds);
    format!(
        "{}: {} tasks started again from {checkpoint}; planned after {} (of which {} the restart strategy's delay), running after {} (longest fetch {}, restore {})",
        recovery.cause,
        recovery.tasks_restarted,
        step(recovery.planned_after_us),
        units::microseconds(recovery.delay_us),
        step(recovery.running_after_us),
        units::microseconds(recovery.timings_max.fetch_us),
        units::microseconds(recovery.timings_max.restore_us),
    )
}
