//! What every backend of the registry offers, and means. It never says how.

use std::fmt;
use std::pin::Pin;

use tidemill_protocol::codec::DecodeError;
use tidemill_protocol::record::{CheckpointPointers, JobRecord};
use tidemill_protocol::{Epoch, JobId};

use crate::{LeadError, ReadError, WriteError};

/// What a registry answers with, some time later.
pub type Answer<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// The durable records of one cluster.
///
/// A write is durable when it returns `Ok`, and everybody who reads afterwards sees it. A write that is dropped before
/// it answers is as one that answers [`WriteError::Unknown`].
pub trait Registry: Send + Sync + fmt::Debug {
    /// Becomes the leader, with an epoch greater than every one before; waits for as long as another process leads.
    /// From then on older proofs are worth nothing.
    fn lead(&self) -> Answer<'_, Leading, LeadError>;

    /// Every job, in order of its id. A damaged record does not hold up the others.
    fn jobs(&self) -> Answer<'_, Vec<Result<JobRecord, DamagedJob>>, ReadError>;

    /// Writes a job's record, new or in place of the one there is.
    fn put_job(&self, leading: &Leading, job: &JobRecord) -> Answer<'_, (), WriteError>;

    /// Removes a job's record and its pointers, both or neither. That there is none is no error.
    fn remove_job(&self, leading: &Leading, job: JobId) -> Answer<'_, (), WriteError>;

    /// A job's completed checkpoints; none for a job that is not known.
    fn pointers(&self, job: JobId) -> Answer<'_, CheckpointPointers, ReadError>;

    /// Publishes a job's completed checkpoints: the one thing that makes a checkpoint exist. Refused for a job that
    /// has no record, so that a late publication cannot bring back what was removed.
    fn put_pointers(
        &self,
        leading: &Leading,
        job: JobId,
        pointers: &CheckpointPointers,
    ) -> Answer<'_, (), WriteError>;
}

/// Proof that this process was elected, with the fencing number it got. Only [`Registry::lead`] makes one. It may have
/// been outlived by a newer leader: each write finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leading {
    epoch: Epoch,
}

impl Leading {
    pub(crate) const fn new(epoch: Epoch) -> Self {
        Self { epoch }
    }

    /// The leader's epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// A job whose record is there but cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the record of job {job} cannot be read, so the job is not run: use the release that wrote it, or submit it again"
)]
pub struct DamagedJob {
    /// Which job.
    pub job: JobId,
    /// Why not.
    pub source: DecodeError,
}
