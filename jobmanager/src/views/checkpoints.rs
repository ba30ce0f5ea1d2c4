//! What users are told of checkpoints: what each of them cost, and which task's part of it. Nothing here is ever read to
//! decide anything.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a checkpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointStatus {
    /// Tasks capture, or it is being published.
    InProgress,
    /// Its pointer is published: a restart can go back to it.
    Completed,
    /// It was given up.
    Failed,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointView {
    /// `epoch.counter`.
    pub id: String,
    /// How it stands.
    pub status: CheckpointStatus,
    /// Whether it is the one that ends the job.
    pub is_final: bool,
    /// When it began.
    pub started_at_ms: u64,
    /// From its beginning until it was published or given up, or until now.
    pub duration_us: u64,
    /// Tasks that have acknowledged it.
    pub tasks_acknowledged: u32,
    /// Tasks that take part.
    pub tasks: u32,
    /// The sum of the images' sizes.
    pub image_bytes: u64,
    /// The pages that were captured, uncompressed: those written to since the checkpoint before.
    pub dirty_bytes: u64,
    /// What was written to the store.
    pub written_bytes: u64,
    /// Frames that became part of it because their barriers came late.
    pub channel_bytes: u64,
    /// Whether a task did not wait for every barrier.
    pub unaligned: bool,
    /// The longest time from a task's first barrier to its last.
    pub alignment_us_max: u64,
    /// The longest time that a task did nothing else.
    pub pause_us_max: u64,
    /// The longest compression and upload of a task.
    pub upload_us_max: u64,
    /// Why it was given up.
    pub failure: Option<String>,
}

/// One checkpoint, task by task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub checkpoint: CheckpointView,
    /// Where it is in the object store, while it is kept: a job can be started from there.
    pub path: Option<String>,
    /// What each task did for it, in the order in which they acknowledged it; none when that is not remembered any more.
    pub captures: Option<Vec<TaskCaptureView>>,
    /// Tasks of which no acknowledgement came.
    pub tasks_missing: Vec<String>,
}

/// One task's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskCaptureView {
    /// `stage/subtask`.
    pub task: String,
    /// The stage's name.
    pub name: String,
    /// Its execution, `epoch.counter`.
    pub attempt: String,
    /// Whether it had finished before.
    pub finished: bool,
    /// From the checkpoint's beginning until the task's acknowledgement came.
    pub acknowledged_after_us: u64,
    /// From its first barrier to its last.
    pub alignment_us: u64,
    /// How long it did nothing else.
    pub pause_us: u64,
    /// Compression and upload.
    pub upload_us: u64,
    /// Its image's size.
    pub image_bytes: u64,
    /// The pages that were captured, uncompressed.
    pub dirty_bytes: u64,
    /// Of these pages, what was copied before the pause; a page that was copied twice counts twice.
    pub ahead_bytes: u64,
    /// What was written to the store.
    pub written_bytes: u64,
    /// Frames that became part of the checkpoint because their barriers came late.
    pub channel_bytes: u64,
    /// Whether it did not wait for every barrier.
    pub unaligned: bool,
}

/// A completed checkpoint that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RetainedView {
    /// `epoch.counter`.
    pub id: String,
    /// Where it is in the object store: a job can be started from there, as from a savepoint.
    pub path: String,
}

/// What all completed checkpoints came to, since this JobManager has known the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointTotals {
    /// Those of which a task did not wait for every barrier.
    pub unaligned: u64,
    /// Pages captured, uncompressed.
    pub dirty_bytes: u64,
    /// Written to the store.
    pub written_bytes: u64,
    /// Frames that became part of a checkpoint.
    pub channel_bytes: u64,
}

/// The checkpoints of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointsView {
    /// Completed since this JobManager has known the job.
    pub completed: u64,
    /// Given up since this JobManager has known the job.
    pub failed: u64,
    /// What the completed ones came to.
    pub totals: CheckpointTotals,
    /// Those that a restart can go back to, oldest first, `epoch.counter`.
    pub retained: Vec<String>,
    /// The same with their places.
    pub retained_at: Vec<RetainedView>,
    /// The last ones, oldest first; bounded.
    pub history: Vec<CheckpointView>,
}
