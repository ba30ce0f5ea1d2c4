//! What every backend of the registry offers, and means. It never says how.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tidemill_protocol::codec::DecodeError;
use tidemill_protocol::record::{
    CheckpointPointers, JobManagerRecord, JobRecord, TaskManagerRecord,
};
use tidemill_protocol::{Epoch, JobId};
use tokio::sync::watch;

use crate::{LeadError, Leading, LockError, NamedLock, ReadError, WriteError};

/// What a registry answers with, some time later.
pub type Answer<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// The durable records of one cluster, who leads it, and who is there.
///
/// A write is durable when it returns `Ok`, and everybody who reads afterwards sees it. A write that is dropped before
/// it answers is as one that answers [`WriteError::Unknown`].
pub trait Registry: Send + Sync + fmt::Debug {
    /// Stands for election with this record, and becomes the leader with an epoch greater than every one before; waits
    /// for as long as another candidate leads, in this process too. Dropping the future withdraws the candidature. A
    /// registry that is out of reach for a while is waited for.
    fn lead(&self, candidate: &JobManagerRecord) -> Answer<'_, Leading, LeadError>;

    /// Proves that this leadership still held after it was asked: a fenced write that changes nothing, and goes the way
    /// of all writes.
    fn confirm(&self, leading: &Leading) -> Answer<'_, (), WriteError>;

    /// Gives the leadership up: what it writes from now on is refused, and the next candidate is elected at once.
    fn resign(&self, leading: &Leading) -> Answer<'_, (), WriteError>;

    /// Ends the leadership of a process that is known to have ended, before its session does. Does nothing when another
    /// leads by now; a leader that lives nevertheless is fenced.
    fn depose(&self, leader: &KnownLeader) -> Answer<'_, (), WriteError>;

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

    /// Takes the lock with this name, and waits for as long as another has it. It is released when the value is
    /// dropped, and lost when the session that holds it ends.
    fn lock(&self, name: &str) -> Answer<'_, NamedLock, LockError>;

    /// Who leads, as far as is known; kept up to date. `None`: nobody, or not known yet.
    fn leader(&self) -> watch::Receiver<Option<KnownLeader>>;

    /// Every JobManager that leads or stands for election, in the order in which they would lead.
    fn job_managers(&self) -> watch::Receiver<Vec<JobManagerRecord>>;

    /// Every TaskManager that has announced itself, in order of its id.
    fn task_managers(&self) -> watch::Receiver<Vec<TaskManagerRecord>>;

    /// Whether the registry is in reach.
    fn connection(&self) -> watch::Receiver<Connection>;

    /// After this time without the registry a leader is replaced; as negotiated, or as configured until then. `None`:
    /// leadership never lapses by itself.
    fn session_timeout(&self) -> Option<Duration>;

    /// Waits until what was given up by being dropped is gone from the registry: candidatures, leaderships, locks. A
    /// process that ends waits for this, or others wait for what it left until its session is over.
    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// A leader as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLeader {
    /// Its fencing number.
    pub epoch: Epoch,
    /// What it stood for election with.
    pub record: JobManagerRecord,
}

/// Whether the registry is in reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// There is no session: there was none yet, or the last one has ended.
    Connecting,
    /// There is a session, and a server answers.
    Connected,
    /// No server answers, but the session may still hold: nothing is lost yet.
    Suspended,
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
