//! The registry in a ZooKeeper ensemble. Election and locks are queues of ephemeral nodes; all that a leader writes is in
//! transactions that check its own node. It never blocks a thread, and never takes a suspended connection for a lost
//! session.

mod depose;
mod fenced;
mod follow;
mod layout;
mod node;
mod options;
mod presence;
mod read;
mod session;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_protocol::JobId;
use tidemill_protocol::codec;
use tidemill_protocol::record::{
    CheckpointPointers, JobManagerRecord, JobRecord, TaskManagerRecord,
};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use zookeeper_client::{CreateMode, Error};

use self::fenced::Fenced;
use self::layout::{LEADER, LOCKS};
use self::node::Lost;
pub(crate) use self::node::OwnNode;
pub use self::options::{Access, Credentials, TlsFiles, ZooKeeperOptions};
pub use self::presence::Presence;
use self::session::{Session, Shared};
use crate::error::{Cause, LockError, check_lock_name};
use crate::leading::{LeadingHold, LockHold};
use crate::{
    Answer, Connection, DamagedJob, KnownLeader, LeadError, Leading, NamedLock, OpenError,
    ReadError, Registry, WriteError,
};

/// The registry in a ZooKeeper ensemble. Its session ends when this value and everything that it gave out are dropped.
#[derive(Debug)]
pub struct ZooKeeper {
    shared: Arc<Shared>,
    running: AbortHandle,
}

impl ZooKeeper {
    /// Begins to open the registry: sessions are opened, and opened again, in the background.
    ///
    /// # Errors
    /// When an option cannot be right or a file that it names cannot be used.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn open(options: ZooKeeperOptions) -> Result<Self, OpenError> {
        options.check()?;
        let (connector, servers) = options.connector()?;
        let runtime = tokio::runtime::Handle::current();
        let shared = Arc::new(Shared::new(options, runtime.clone()));
        let running = runtime.spawn(session::run(Arc::clone(&shared), connector, servers));
        Ok(Self {
            shared,
            running: running.abort_handle(),
        })
    }

    /// Keeps a TaskManager announced, over all sessions, until the value is dropped or withdrawn.
    #[must_use]
    pub fn announce(&self, record: TaskManagerRecord) -> Presence {
        Presence::keep(&self.shared, &record)
    }

    /// Elected, and confirmed: once elected it may have been a while until this process ran again.
    async fn stand(&self, session: &Session, record: &[u8]) -> Result<Leading, Lost> {
        let (node, stat) = OwnNode::queue(&self.shared, session, LEADER, record).await?;
        let epoch = follow::epoch(stat.czxid);
        let hold = LeadingHold::ZooKeeper(Arc::new(node));
        loop {
            let leading = Leading::new(epoch, Instant::now(), hold.clone());
            let what = "nothing, to prove who leads".to_owned();
            let fenced = Fenced::new(&self.shared, &leading, what).map_err(|_| Lost::Gone)?;
            match fenced.confirm().await {
                Ok(()) => return Ok(leading),
                Err(WriteError::Unknown { .. }) if !session.is_over() => {}
                Err(_) => return Err(Lost::Gone),
            }
        }
    }

    /// Makes the directories again, which somebody has deleted.
    async fn restore(&self, session: &Session) -> Result<(), Error> {
        match layout::make(&session.client, &self.shared).await {
            // Whoever asks begins anew.
            Err(Error::ConnectionLoss | Error::SessionExpired | Error::ClientClosed) => Ok(()),
            made => made,
        }
    }

    /// Makes a lock's directory, which the servers take away when it has not been used for a while.
    async fn prepare_lock(&self, session: &Session, directory: &str) -> Result<(), Error> {
        let options = CreateMode::Container.with_acls(self.shared.options.acl.acls());
        loop {
            match session.client.create(directory, b"", &options).await {
                Ok(_) | Err(Error::NodeExists) => return Ok(()),
                Err(Error::NoNode) => self.restore(session).await?,
                Err(Error::ConnectionLoss) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a lock within a session.
    async fn queue_for(&self, session: &Session, directory: &str) -> Result<OwnNode, Lost> {
        let prepared = self.prepare_lock(session, directory).await;
        match prepared {
            Ok(()) => {}
            Err(_) if session.is_over() => return Err(Lost::Gone),
            Err(Error::SessionExpired | Error::ClientClosed) => return Err(Lost::Gone),
            Err(error) => return Err(Lost::Refused(error)),
        }
        match OwnNode::queue(&self.shared, session, directory, b"").await {
            // The directory was taken away in between.
            Err(Lost::Refused(Error::NoNode)) => Err(Lost::Gone),
            queued => queued.map(|(node, _)| node),
        }
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Registry for ZooKeeper {
    fn lead(&self, candidate: &JobManagerRecord) -> Answer<'_, Leading, LeadError> {
        let record = codec::encode(candidate);
        Box::pin(async move {
            let unavailable = |source: Cause| LeadError::Unavailable {
                place: self.shared.place.clone(),
                source,
            };
            loop {
                let session = self
                    .shared
                    .session()
                    .await
                    .map_err(|trouble| unavailable(trouble.into()))?;
                match self.stand(&session, &record).await {
                    Ok(leading) => return Ok(leading),
                    Err(Lost::Gone) => session.settled().await,
                    Err(Lost::Refused(Error::NoNode)) => self
                        .restore(&session)
                        .await
                        .map_err(|error| unavailable(error.into()))?,
                    Err(Lost::Refused(error)) => return Err(unavailable(error.into())),
                }
            }
        })
    }

    fn confirm(&self, leading: &Leading) -> Answer<'_, (), WriteError> {
        let what = "nothing, to prove who leads".to_owned();
        let fenced = Fenced::new(&self.shared, leading, what);
        Box::pin(async move { fenced?.confirm().await })
    }

    fn resign(&self, leading: &Leading) -> Answer<'_, (), WriteError> {
        let fenced = Fenced::new(&self.shared, leading, "the end of a leadership".into());
        Box::pin(async move { fenced?.resign().await })
    }

    fn depose(&self, leader: &KnownLeader) -> Answer<'_, (), WriteError> {
        Box::pin(depose::depose(&self.shared, leader.epoch))
    }

    fn jobs(&self) -> Answer<'_, Vec<Result<JobRecord, DamagedJob>>, ReadError> {
        Box::pin(read::jobs(&self.shared))
    }

    fn put_job(&self, leading: &Leading, job: &JobRecord) -> Answer<'_, (), WriteError> {
        let (id, record) = (job.id, codec::encode(job));
        let fenced = Fenced::new(&self.shared, leading, format!("job {id}"));
        Box::pin(async move { fenced?.put_job(id, &record).await })
    }

    fn remove_job(&self, leading: &Leading, job: JobId) -> Answer<'_, (), WriteError> {
        let fenced = Fenced::new(&self.shared, leading, format!("the end of job {job}"));
        Box::pin(async move { fenced?.remove_job(job).await })
    }

    fn pointers(&self, job: JobId) -> Answer<'_, CheckpointPointers, ReadError> {
        Box::pin(read::pointers(&self.shared, job))
    }

    fn put_pointers(
        &self,
        leading: &Leading,
        job: JobId,
        pointers: &CheckpointPointers,
    ) -> Answer<'_, (), WriteError> {
        let record = codec::encode(pointers);
        let what = format!("the checkpoint pointers of job {job}");
        let fenced = Fenced::new(&self.shared, leading, what);
        Box::pin(async move { fenced?.put_pointers(job, &record).await })
    }

    fn lock(&self, name: &str) -> Answer<'_, NamedLock, LockError> {
        let name = name.to_owned();
        Box::pin(async move {
            check_lock_name(&name)?;
            let unavailable = |source: Cause| LockError::Unavailable {
                place: self.shared.place.clone(),
                name: name.clone(),
                source,
            };
            let directory = format!("{LOCKS}/{name}");
            loop {
                let session = self
                    .shared
                    .session()
                    .await
                    .map_err(|trouble| unavailable(trouble.into()))?;
                match self.queue_for(&session, &directory).await {
                    Ok(node) => {
                        let hold = LockHold::ZooKeeper(Box::new(node));
                        return Ok(NamedLock::new(name.clone(), hold));
                    }
                    Err(Lost::Gone) => session.settled().await,
                    Err(Lost::Refused(error)) => return Err(unavailable(error.into())),
                }
            }
        })
    }

    fn leader(&self) -> watch::Receiver<Option<KnownLeader>> {
        self.shared.leader.subscribe()
    }

    fn job_managers(&self) -> watch::Receiver<Vec<JobManagerRecord>> {
        self.shared.job_managers.subscribe()
    }

    fn task_managers(&self) -> watch::Receiver<Vec<TaskManagerRecord>> {
        self.shared.task_managers.subscribe()
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.shared.connection.subscribe()
    }

    fn session_timeout(&self) -> Option<Duration> {
        Some(self.shared.session_timeout())
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut removals = self.shared.removals.subscribe();
        Box::pin(async move {
            // The sender lives as long as this registry.
            let _ = removals.wait_for(|number| *number == 0).await;
        })
    }
}
