//! Ephemeral nodes of this process's own that stand in a queue: the candidate's and those of locks. A node is deleted
//! when its value is dropped, also when whoever waited for it went away. It never holds a place over the end of its
//! session.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use zookeeper_client::{CreateMode, Error, Stat};

use super::session::{Session, Shared};

/// Letters of a sequence number at the end of a node's name, at least.
const SEQUENCE_LETTERS: usize = 10;

/// A node of this process's own in a queue.
#[derive(Debug)]
pub(crate) struct OwnNode {
    place: Place,
    gone: watch::Receiver<bool>,
    watching: AbortHandle,
}

/// What a place in a queue was lost by.
#[derive(Debug)]
pub(super) enum Lost {
    /// Its node or its session is gone: begin anew.
    Gone,
    /// Beginning anew will not help.
    Refused(Error),
}

/// A node, or the attempt to make one; deleted with this value.
#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    session: Session,
    directory: String,
    /// Of this attempt only, so that a node is found whose creation was not answered.
    prefix: String,
    /// Empty until it is known.
    name: String,
}

impl OwnNode {
    /// Queues up in a directory, and waits until all that came before are gone.
    pub(super) async fn queue(
        shared: &Arc<Shared>,
        session: &Session,
        directory: &str,
        data: &[u8],
    ) -> Result<(Self, Stat), Lost> {
        let mut place = Place {
            shared: Arc::clone(shared),
            session: session.clone(),
            directory: directory.to_owned(),
            prefix: format!("n-{}-", unique()),
            name: String::new(),
        };
        place.make(data).await?;
        let stat = place.wait_for_turn().await?;
        let (gone_in, gone) = watch::channel(false);
        let (path, session) = (place.path(), session.clone());
        let watching = shared.runtime.spawn(async move {
            wait_until_gone(&session, &path).await;
            gone_in.send_replace(true);
        });
        let watching = watching.abort_handle();
        Ok((
            Self {
                place,
                gone,
                watching,
            },
            stat,
        ))
    }

    /// True once the node or its session is gone for certain.
    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.clone()
    }

    pub(super) fn path(&self) -> String {
        self.place.path()
    }

    pub(super) fn session(&self) -> &Session {
        &self.place.session
    }

    /// Whether it was made through this registry.
    pub(super) fn belongs_to(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.place.shared, shared)
    }

    /// Deletes the node now. With its session over it is as good as gone.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        remove(&self.place.session, &self.place.path()).await
    }
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Place {
    fn path(&self) -> String {
        format!("{}/{}", self.directory, self.name)
    }

    async fn make(&mut self, data: &[u8]) -> Result<(), Lost> {
        let path = format!("{}/{}", self.directory, self.prefix);
        let options = CreateMode::EphemeralSequential.with_acls(self.shared.options.acl.acls());
        let client = &self.session.client;
        loop {
            match client.create(&path, data, &options).await {
                Ok((_, sequence)) => {
                    self.name = format!("{}{sequence}", self.prefix);
                    return Ok(());
                }
                Err(Error::ConnectionLoss) => {
                    if let Some(name) = self.find().await? {
                        self.name = name;
                        return Ok(());
                    }
                }
                Err(error) => return Err(self.judge(error)),
            }
        }
    }

    /// The node, if it was made although that was not answered.
    async fn find(&self) -> Result<Option<String>, Lost> {
        let names = self.names().await?;
        Ok(names
            .into_iter()
            .find(|name| name.starts_with(&self.prefix)))
    }

    /// The names in the directory, nothing older than what this session has asked for.
    async fn names(&self) -> Result<Vec<String>, Lost> {
        let client = &self.session.client;
        loop {
            let (synced, names) = (
                client.sync(&self.directory),
                client.list_children(&self.directory),
            );
            match (synced.await, names.await) {
                (Ok(()), Ok(names)) => return Ok(names),
                (Err(Error::ConnectionLoss), _) | (_, Err(Error::ConnectionLoss)) => {}
                (Err(error), _) | (_, Err(error)) => return Err(self.judge(error)),
            }
        }
    }

    /// Waits until the node is the first; what it is like then.
    async fn wait_for_turn(&self) -> Result<Stat, Lost> {
        let client = &self.session.client;
        let own = order(&self.name).ok_or(Lost::Gone)?;
        loop {
            let names = self.names().await?;
            if !names.contains(&self.name) {
                return Err(Lost::Gone);
            }
            let before = names
                .iter()
                .filter_map(|name| Some((order(name)?, name)))
                .filter(|(order, _)| *order < own)
                .max();
            let Some((_, before)) = before else {
                match client.check_stat(&self.path()).await {
                    Ok(Some(stat)) => return Ok(stat),
                    Ok(None) => return Err(Lost::Gone),
                    Err(Error::ConnectionLoss) => continue,
                    Err(error) => return Err(self.judge(error)),
                }
            };
            let before = format!("{}/{before}", self.directory);
            // Its own node too: somebody may delete it while it waits.
            let own_path = self.path();
            let watched = (
                client.check_and_watch_stat(&before),
                client.check_and_watch_stat(&own_path),
            );
            match (watched.0.await, watched.1.await) {
                (Ok((Some(_), before)), Ok((Some(_), own))) => {
                    tokio::select! {
                        _ = before.changed() => {}
                        _ = own.changed() => {}
                        () = self.session.ended() => return Err(Lost::Gone),
                    }
                }
                (Ok(_), Ok(_)) => {}
                (Err(Error::ConnectionLoss), _) | (_, Err(Error::ConnectionLoss)) => {}
                (Err(error), _) | (_, Err(error)) => return Err(self.judge(error)),
            }
        }
    }

    fn judge(&self, error: Error) -> Lost {
        match error {
            Error::SessionExpired | Error::ClientClosed | Error::SessionMoved => Lost::Gone,
            _ if self.session.is_over() => Lost::Gone,
            error => Lost::Refused(error),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.session.is_over() {
            return;
        }
        let (session, directory) = (self.session.clone(), self.directory.clone());
        let (prefix, name) = (self.prefix.clone(), self.name.clone());
        let removal = Removal::begin(&self.shared);
        self.shared.runtime.spawn(async move {
            let _removal = removal;
            let client = &session.client;
            // Whoever was cut off while it was made does not know its whole name.
            let names = match name.is_empty() {
                false => vec![name],
                true => {
                    let _ = client.sync(&directory).await;
                    let names = client.list_children(&directory).await;
                    names.unwrap_or_default()
                }
            };
            for name in names.iter().filter(|name| name.starts_with(&prefix)) {
                let _ = remove(&session, &format!("{directory}/{name}")).await;
            }
        });
    }
}

/// Counts among the removals that are under way for as long as it lives.
struct Removal(Arc<Shared>);

impl Removal {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.removals.send_modify(|number| *number += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.0.removals.send_modify(|number| *number -= 1);
    }
}

/// Deletes a node for certain, or until its session is over.
pub(super) async fn remove(session: &Session, path: &str) -> Result<(), Error> {
    while !session.is_over() {
        match session.client.delete(path, None).await {
            Ok(()) | Err(Error::NoNode | Error::SessionExpired | Error::ClientClosed) => break,
            Err(Error::ConnectionLoss) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn wait_until_gone(session: &Session, path: &str) {
    while !session.is_over() {
        match session.client.check_and_watch_stat(path).await {
            Ok((None, _)) => return,
            Ok((Some(_), watcher)) => {
                tokio::select! {
                    _ = watcher.changed() => {}
                    () = session.ended() => return,
                }
            }
            // The next question waits for the connection.
            Err(Error::ConnectionLoss) => {}
            // The session is at its end, or nobody may ask: its end is waited for.
            Err(_) => return session.ended().await,
        }
    }
}

/// The place that a node's name gives it; `None` for what is no place in a queue.
pub(super) fn order(name: &str) -> Option<i64> {
    let (_, sequence) = name.rsplit_once('-')?;
    if sequence.len() < SEQUENCE_LETTERS {
        return None;
    }
    sequence.parse().ok()
}

/// Text that no other process or attempt comes up with.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    // Its keys are random.
    let random = RandomState::new().hash_one((next, std::process::id()));
    format!("{random:016x}{next:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_at_the_end_gives_the_place() {
        assert_eq!(order("n-0123456789abcdef0-0000000017"), Some(17));
        assert_eq!(order("n-0123456789abcdef0-2147483648"), Some(2_147_483_648));
        for foreign in ["", "n", "0000000017", "n-17", "n-00000000x7", "é-"] {
            assert_eq!(order(foreign), None, "{foreign}");
        }
        assert_ne!(unique(), unique());
    }
}
