//! The registry in a ZooKeeper ensemble. It never blocks a thread, and never takes a suspended connection for a lost
//! session.

mod options;

use std::time::Duration;

use tidemill_protocol::JobId;
use tidemill_protocol::record::{
    CheckpointPointers, JobManagerRecord, JobRecord, TaskManagerRecord,
};
use tokio::sync::watch;

pub use self::options::{Access, Credentials, TlsFiles, ZooKeeperOptions};
use crate::error::LockError;
use crate::{
    Answer, Connection, DamagedJob, KnownLeader, LeadError, Leading, NamedLock, OpenError,
    ReadError, Registry, WriteError,
};

/// The registry in a ZooKeeper ensemble.
#[derive(Debug)]
pub struct ZooKeeper {
    place: String,
    session_timeout: Duration,
    connection: watch::Sender<Connection>,
    leader: watch::Sender<Option<KnownLeader>>,
    job_managers: watch::Sender<Vec<JobManagerRecord>>,
    task_managers: watch::Sender<Vec<TaskManagerRecord>>,
}

/// A node that lives as long as this value and its session.
#[derive(Debug)]
pub(crate) struct OwnNode {
    gone: watch::Sender<bool>,
}

impl OwnNode {
    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.subscribe()
    }
}

/// A TaskManager that is announced for as long as this value lives, over all sessions.
#[derive(Debug)]
pub struct Presence {
    _record: TaskManagerRecord,
}

impl Presence {
    /// Takes the announcement back, and waits until it is gone or its session is.
    pub async fn withdraw(self) {}
}

impl ZooKeeper {
    /// Begins to open the registry: sessions are opened, and opened again, in the background.
    ///
    /// # Errors
    /// When an option cannot be right or a file that it names cannot be used.
    pub fn open(options: ZooKeeperOptions) -> Result<Self, OpenError> {
        options.check()?;
        options.connector()?;
        Ok(Self {
            place: options.place(),
            session_timeout: options.session_timeout,
            connection: watch::Sender::new(Connection::Connecting),
            leader: watch::Sender::new(None),
            job_managers: watch::Sender::new(Vec::new()),
            task_managers: watch::Sender::new(Vec::new()),
        })
    }

    /// Keeps a TaskManager announced until the value is dropped or withdrawn.
    #[must_use]
    pub fn announce(&self, record: TaskManagerRecord) -> Presence {
        Presence { _record: record }
    }

    fn unreadable<T>(&self) -> Answer<'_, T, ReadError> {
        let place = self.place.clone();
        let source = "there is no session".into();
        Box::pin(async move { Err(ReadError::Unavailable { place, source }) })
    }

    fn unwritable(&self, what: &str) -> Answer<'_, (), WriteError> {
        let (place, what) = (self.place.clone(), what.to_owned());
        let source = "there is no session".into();
        Box::pin(async move {
            Err(WriteError::Failed {
                place,
                what,
                source,
            })
        })
    }
}

impl Registry for ZooKeeper {
    fn lead(&self, _candidate: &JobManagerRecord) -> Answer<'_, Leading, LeadError> {
        let place = self.place.clone();
        let source = "there is no session".into();
        Box::pin(async move { Err(LeadError::Unavailable { place, source }) })
    }

    fn confirm(&self, _leading: &Leading) -> Answer<'_, (), WriteError> {
        self.unwritable("nothing")
    }

    fn resign(&self, _leading: &Leading) -> Answer<'_, (), WriteError> {
        self.unwritable("a resignation")
    }

    fn jobs(&self) -> Answer<'_, Vec<Result<JobRecord, DamagedJob>>, ReadError> {
        self.unreadable()
    }

    fn put_job(&self, _leading: &Leading, _job: &JobRecord) -> Answer<'_, (), WriteError> {
        self.unwritable("a job")
    }

    fn remove_job(&self, _leading: &Leading, _job: JobId) -> Answer<'_, (), WriteError> {
        self.unwritable("a removal")
    }

    fn pointers(&self, _job: JobId) -> Answer<'_, CheckpointPointers, ReadError> {
        self.unreadable()
    }

    fn put_pointers(
        &self,
        _leading: &Leading,
        _job: JobId,
        _pointers: &CheckpointPointers,
    ) -> Answer<'_, (), WriteError> {
        self.unwritable("pointers")
    }

    fn lock(&self, name: &str) -> Answer<'_, NamedLock, LockError> {
        let (place, name) = (self.place.clone(), name.to_owned());
        let source = "there is no session".into();
        Box::pin(async move {
            Err(LockError::Unavailable {
                place,
                name,
                source,
            })
        })
    }

    fn leader(&self) -> watch::Receiver<Option<KnownLeader>> {
        self.leader.subscribe()
    }

    fn job_managers(&self) -> watch::Receiver<Vec<JobManagerRecord>> {
        self.job_managers.subscribe()
    }

    fn task_managers(&self) -> watch::Receiver<Vec<TaskManagerRecord>> {
        self.task_managers.subscribe()
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    fn session_timeout(&self) -> Option<Duration> {
        Some(self.session_timeout)
    }
}
