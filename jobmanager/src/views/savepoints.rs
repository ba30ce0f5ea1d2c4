//! What users are told of savepoints: of requests for them, and of those that are stored. Nothing here is ever read to
//! decide anything.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidemill_protocol::JobId;
use utoipa::ToSchema;

use crate::handle::{
    SavepointInfo, SavepointRequestId, SavepointStatus, SavepointStep, UnusableSavepoint,
};

/// How a request for a savepoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SavepointRequestStatus {
    /// It is being taken.
    InProgress,
    /// It is written; and the job has stopped, if that was asked for.
    Completed,
    /// It came to nothing, and the job goes on.
    Failed,
}

/// What is being done for a savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SavepointStepName {
    /// A checkpoint is awaited that began after the request.
    Checkpoint,
    /// The checkpoint's objects are being copied.
    Copy,
    /// It is copied, and the job is about to stop.
    Commit,
}

impl From<SavepointStep> for SavepointStepName {
    fn from(step: SavepointStep) -> Self {
        match step {
            SavepointStep::Checkpoint => Self::Checkpoint,
            SavepointStep::Copy => Self::Copy,
            SavepointStep::Commit => Self::Commit,
        }
    }
}

/// A request for a savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SavepointRequestView {
    /// The request's id, 32 hexadecimal digits.
    pub id: String,
    /// The job.
    pub job: String,
    /// How it stands.
    pub status: SavepointRequestStatus,
    /// While it is in progress: what is being done.
    pub step: Option<SavepointStepName>,
    /// Bytes copied so far.
    pub done_bytes: u64,
    /// Bytes to copy; 0 as long as that is not known.
    pub total_bytes: u64,
    /// Once it is written: where it is, which is what a job can be started from.
    pub path: Option<String>,
    /// Once it is written: the checkpoint that it is a copy of, `epoch.counter`.
    pub checkpoint: Option<String>,
    /// Why it came to nothing.
    pub failure: Option<String>,
}

impl SavepointRequestView {
    /// How a request stands.
    #[must_use]
    pub fn new(job: JobId, id: SavepointRequestId, status: SavepointStatus) -> Self {
        let mut view = Self {
            id: id.to_string(),
            job: job.to_string(),
            status: SavepointRequestStatus::InProgress,
            step: None,
            done_bytes: 0,
            total_bytes: 0,
            path: None,
            checkpoint: None,
            failure: None,
        };
        match status {
            SavepointStatus::InProgress {
                step,
                done_bytes,
                total_bytes,
            } => {
                view.step = Some(step.into());
                (view.done_bytes, view.total_bytes) = (done_bytes, total_bytes);
            }
            SavepointStatus::Completed {
                path,
                bytes,
                checkpoint,
            } => {
                view.status = SavepointRequestStatus::Completed;
                (view.done_bytes, view.total_bytes) = (bytes, bytes);
                view.path = Some(path);
                view.checkpoint = Some(checkpoint.to_string());
            }
            SavepointStatus::Failed { reason } => {
                view.status = SavepointRequestStatus::Failed;
                view.failure = Some(reason);
            }
        }
        view
    }
}

/// What a stored image of a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SavepointKind {
    /// A savepoint: whole in its own directory, which may be moved or copied.
    Savepoint,
    /// A checkpoint that an ended job has left; it cannot be moved.
    Checkpoint,
}

/// A stored savepoint, or a checkpoint that an ended job has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SavepointView {
    /// Where it is: what a job can be started from.
    pub path: String,
    /// Which of the two it is.
    pub kind: SavepointKind,
    /// The size of all its objects.
    pub bytes: u64,
    /// The job that it was taken of.
    pub job: String,
    /// That job's name.
    pub job_name: String,
    /// Its parameters.
    pub parameters: BTreeMap<String, String>,
    /// Tasks of each stage that did not fix its own number.
    pub parallelism: u32,
    /// The number of key groups.
    pub max_parallelism: u32,
    /// The prepared module's hash: only that module can be started from it.
    pub module: String,
    /// The checkpoint that it is a copy of, `epoch.counter`.
    pub checkpoint: String,
    /// How many tasks it has images of.
    pub tasks: u32,
    /// When it was complete.
    pub created_at_ms: u64,
    /// The release that wrote it.
    pub version: String,
}

/// What is at a place of savepoints though no job can be started from it. It can be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnusableSavepointView {
    /// Where it is.
    pub path: String,
    /// The size of its objects.
    pub bytes: u64,
    /// Its writing, its deletion or its copying was not ended; otherwise it is damaged, of a newer release, or out of reach.
    pub incomplete: bool,
    /// The objects that are known to be missing of an incomplete one, relative to its path.
    pub missing: Vec<String>,
    /// Why it cannot be used.
    pub reason: String,
}

impl From<UnusableSavepoint> for UnusableSavepointView {
    fn from(unusable: UnusableSavepoint) -> Self {
        let UnusableSavepoint {
            path,
            bytes,
            is_incomplete,
            missing,
            reason,
        } = unusable;
        Self {
            path,
            bytes,
            incomplete: is_incomplete,
            missing,
            reason,
        }
    }
}

impl From<SavepointInfo> for SavepointView {
    fn from(info: SavepointInfo) -> Self {
        let SavepointInfo {
            path,
            bytes,
            is_checkpoint,
            savepoint,
        } = info;
        Self {
            path,
            kind: match is_checkpoint {
                true => SavepointKind::Checkpoint,
                false => SavepointKind::Savepoint,
            },
            bytes,
            job: savepoint.job.to_string(),
            job_name: savepoint.job_name,
            parameters: savepoint.parameters,
            parallelism: savepoint.parallelism,
            max_parallelism: savepoint.max_parallelism,
            module: savepoint.metadata.module.to_string(),
            checkpoint: savepoint.metadata.checkpoint.to_string(),
            tasks: u32::try_from(savepoint.metadata.tasks.len()).unwrap_or(u32::MAX),
            created_at_ms: savepoint.created_at_ms,
            version: savepoint.version,
        }
    }
}
