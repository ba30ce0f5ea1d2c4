//! Savepoints as users ask for them and see them. It decides nothing: wishes go to the leader, and whatever is in the store
//! is the store's to read.

use tidemill_protocol::JobId;
use tidemill_protocol::manifest::Savepoint;

pub use tidemill_core::job::{SavepointRequestId, SavepointStatus, SavepointStep};

use crate::handle::Unavailable;

/// A wish for a savepoint that is refused, or not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavepointError {
    /// There is no such job.
    #[error("there is no job {0}: `tidemill list` shows every job")]
    UnknownJob(JobId),
    /// This leader has heard of no such wish, or not lately.
    #[error(
        "this JobManager knows no request {id} for a savepoint of job {job}: one that was made of an earlier leader is dropped, and `tidemill savepoint list` shows whether it was written"
    )]
    UnknownRequest {
        /// Of which job.
        job: JobId,
        /// Which wish.
        id: SavepointRequestId,
    },
    /// There can be none now.
    #[error("job {job} takes no savepoint: {reason}")]
    Refused {
        /// Which job.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// Nobody answers.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A savepoint, or a checkpoint that an ended job left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavepointInfo {
    /// Where it is: what can be begun from.
    pub path: String,
    /// The size of all its objects.
    pub bytes: u64,
    /// It is a checkpoint that an ended job left, and not a savepoint: it goes with the job's other objects if these are
    /// deleted, and cannot be moved.
    pub is_checkpoint: bool,
    /// What it says of itself.
    pub savepoint: Savepoint,
}

/// What is at a place of savepoints though no job can begin from it: most often what was left of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableSavepoint {
    /// Where it is: what can be deleted.
    pub path: String,
    /// The size of its objects.
    pub bytes: u64,
    /// Its writing, its deletion or its copying was not ended. Otherwise it is damaged, of a newer release, or out of
    /// reach.
    pub is_incomplete: bool,
    /// The objects that are known to be missing of an incomplete one, relative to it.
    pub missing: Vec<String>,
    /// Why it cannot be used, in words.
    pub reason: String,
}

/// Everything at the places of savepoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavepointListing {
    /// Newest first; then the checkpoints that ended jobs have left.
    pub savepoints: Vec<SavepointInfo>,
    /// In order of their paths.
    pub unusable: Vec<UnusableSavepoint>,
}

/// What is stored cannot be read, checked or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredSavepointError {
    /// There is none.
    #[error(
        "there is no savepoint at `{0}`: `tidemill savepoint list` shows those of this cluster"
    )]
    Missing(String),
    /// It is damaged, or made by a newer release.
    #[error("the savepoint at `{path}` cannot be used: {reason}")]
    Damaged {
        /// Where it is.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It belongs to a job that runs.
    #[error("`{path}` belongs to job {job}, which has not ended: cancel the job first")]
    InUse {
        /// Where it is.
        path: String,
        /// Whose it is.
        job: JobId,
    },
    /// The store does not answer, or refuses.
    #[error("the savepoint at `{path}` cannot be reached: {reason}")]
    Store {
        /// Where it is.
        path: String,
        /// Why.
        reason: String,
    },
    /// Nobody answers.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}
