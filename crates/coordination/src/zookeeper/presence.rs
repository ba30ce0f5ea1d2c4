//! A TaskManager's announcement, kept up over all sessions. It never fights for a name: who announced himself last has
//! it.

use std::sync::Arc;

use tidemill_protocol::codec;
use tidemill_protocol::record::TaskManagerRecord;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{info, warn};
use zookeeper_client::{CreateMode, Error};

use super::layout::{self, TASK_MANAGERS, node_name};
use super::node;
use super::session::{Session, Shared};

/// A TaskManager that is announced, over all sessions, until this value is dropped or withdrawn.
#[derive(Debug)]
pub struct Presence {
    /// Dropped to end it.
    stop: oneshot::Sender<()>,
    keeping: JoinHandle<()>,
}

impl Presence {
    pub(super) fn keep(shared: &Arc<Shared>, record: &TaskManagerRecord) -> Self {
        let (stop, stopped) = oneshot::channel();
        let announcement = Announcement {
            path: format!("{TASK_MANAGERS}/{}", node_name(&record.id.0)),
            data: codec::encode(record),
            shared: Arc::clone(shared),
            announced: false,
            outdone: false,
        };
        let keeping = shared.runtime.spawn(announcement.run(stopped));
        Self { stop, keeping }
    }

    /// Takes the announcement back, and waits until it is gone or its session is.
    pub async fn withdraw(self) {
        drop(self.stop);
        let _ = self.keeping.await;
    }
}

/// What is announced, and how that went so far.
struct Announcement {
    shared: Arc<Shared>,
    path: String,
    data: Vec<u8>,
    /// Whether it has been there before.
    announced: bool,
    /// Whether another process has the name, which was said.
    outdone: bool,
}

/// How an attempt to be announced went.
enum Outcome {
    /// The node is there, and this session's.
    There,
    /// Another process has announced itself by the same name after this one.
    Outdone,
}

impl Announcement {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let shared = Arc::clone(&self.shared);
        loop {
            let session = tokio::select! {
                _ = &mut stopped => return,
                session = shared.session() => session,
            };
            let Ok(session) = session else {
                // Somebody has to change something first; the session says what.
                tokio::select! {
                    _ = &mut stopped => return,
                    () = tokio::time::sleep(shared.session_timeout()) => continue,
                }
            };
            tokio::select! {
                _ = &mut stopped => {
                    self.take_back(&session).await;
                    return;
                }
                () = session.ended() => {}
                result = self.hold(&session) => {
                    if let Err(error) = result
                        && !session.is_over()
                    {
                        let path = &self.path;
                        warn!(path, "this TaskManager cannot be announced: {error}");
                        tokio::select! {
                            _ = &mut stopped => return,
                            () = tokio::time::sleep(shared.session_timeout()) => {}
                        }
                    }
                }
            }
        }
    }

    /// Keeps the node there until the session ends.
    async fn hold(&mut self, session: &Session) -> Result<(), Error> {
        loop {
            match self.announce(session).await {
                Ok(Outcome::There) => {
                    if !self.announced || self.outdone {
                        info!(path = self.path, "announced");
                    }
                    self.announced = true;
                    self.outdone = false;
                }
                Ok(Outcome::Outdone) if self.outdone => {}
                Ok(Outcome::Outdone) => {
                    self.outdone = true;
                    let path = &self.path;
                    warn!(
                        path,
                        "another TaskManager has announced itself by this one's name: give each its own id"
                    );
                }
                // The next request waits for the connection.
                Err(Error::ConnectionLoss) => continue,
                Err(error) => return Err(error),
            }
            match session.client.check_and_watch_stat(&self.path).await {
                Ok((Some(_), watcher)) => {
                    watcher.changed().await;
                }
                Ok((None, _)) | Err(Error::ConnectionLoss) => {}
                Err(error) => return Err(error),
            }
            if session.client.state().is_terminated() {
                return Err(Error::SessionExpired);
            }
        }
    }

    async fn announce(&self, session: &Session) -> Result<Outcome, Error> {
        let client = &session.client;
        let options = CreateMode::Ephemeral.with_acls(self.shared.options.acl.acls());
        loop {
            match client.create(&self.path, &self.data, &options).await {
                Ok(_) => return Ok(Outcome::There),
                Err(Error::NoNode) => layout::make(client, &self.shared).await?,
                Err(Error::NodeExists) => {
                    let Some(stat) = client.check_stat(&self.path).await? else {
                        continue;
                    };
                    let owner = stat.ephemeral_owner;
                    if owner == session.id() {
                        return Ok(Outcome::There);
                    }
                    // The first time it is an earlier life of this TaskManager, whose session has not ended yet.
                    if self.announced && !self.shared.is_ghost(owner) {
                        return Ok(Outcome::Outdone);
                    }
                    match client.delete(&self.path, Some(stat.version)).await {
                        Ok(()) | Err(Error::NoNode | Error::BadVersion) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Deletes the node, if it is this session's.
    async fn take_back(&self, session: &Session) {
        let owner = session.client.check_stat(&self.path).await;
        let foreign = matches!(&owner, Ok(Some(stat)) if stat.ephemeral_owner != session.id());
        if !foreign && let Err(error) = node::remove(session, &self.path).await {
            let path = &self.path;
            warn!(
                path,
                "the announcement stays until the session ends: {error}"
            );
        }
    }
}
