//! Views in words, shared by several verbs.

use tidemill_jobmanager::views::{
    CheckpointStatus, FailureView, ImageSourceName, JobStatus, RestoredView, TaskStatus,
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

/// What can be done with the checkpoint that an ended job has left.
pub(crate) fn kept_checkpoint(path: &str) -> String {
    format!(
        "its last checkpoint is kept: `tidemill run JOB.wasm --from-savepoint {path}` goes on from it, `tidemill savepoint delete {path}` deletes it"
    )
}

/// Where images came from, in words.
pub(crate) fn restored(restored: &[RestoredView]) -> String {
    let parts = restored.iter().map(|from| {
        let source = match from.source {
            ImageSourceName::None => "anew",
            ImageSourceName::Memory => "own memory",
            ImageSourceName::Local => "local file",
            ImageSourceName::Peer => "another TaskManager",
            ImageSourceName::Store => "store",
        };
        let bytes = match from.bytes {
            0 => String::new(),
            bytes => format!(" ({})", units::bytes(bytes)),
        };
        format!("{} {source}{bytes}", from.tasks)
    });
    parts.collect::<Vec<_>>().join(", ")
}
