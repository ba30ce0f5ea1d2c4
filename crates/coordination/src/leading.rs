//! What a process holds of the registry: the leadership, or a named lock. It never renews what was lost.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tidemill_protocol::Epoch;
use tokio::sync::watch;

use crate::embedded::{Permit, Seat};
use crate::zookeeper::OwnNode;

/// Proof that this process was elected, with the fencing number it got. Only [`Registry::lead`](crate::Registry::lead)
/// makes one. It may have been outlived by a newer leader: each write finds out. When the last clone is dropped without
/// [`Registry::resign`](crate::Registry::resign), the leadership is given up as soon as possible.
#[derive(Clone)]
pub struct Leading {
    epoch: Epoch,
    confirmed_at: Instant,
    pub(crate) hold: LeadingHold,
}

/// What a backend keeps for a leadership.
#[derive(Clone)]
pub(crate) enum LeadingHold {
    Embedded(Arc<Seat>),
    ZooKeeper(Arc<OwnNode>),
}

impl Leading {
    pub(crate) const fn new(epoch: Epoch, confirmed_at: Instant, hold: LeadingHold) -> Self {
        Self {
            epoch,
            confirmed_at,
            hold,
        }
    }

    /// The leader's epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// When the confirmation that followed the election was sent: the leadership held then or later.
    #[must_use]
    pub const fn confirmed_at(&self) -> Instant {
        self.confirmed_at
    }

    /// Waits until the leadership is gone for certain: resigned, deleted by somebody, or ended with its session. A
    /// leader whose registry is out of reach learns it here too late: it must stop by its own clock before.
    pub async fn lost(&self) {
        match &self.hold {
            LeadingHold::Embedded(seat) => ended(seat.over()).await,
            LeadingHold::ZooKeeper(node) => ended(node.gone()).await,
        }
    }
}

impl fmt::Debug for Leading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leading")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// A named lock that this process holds until the value is dropped.
pub struct NamedLock {
    name: String,
    hold: LockHold,
}

/// What a backend keeps for a lock.
pub(crate) enum LockHold {
    Embedded(Permit),
    ZooKeeper(Box<OwnNode>),
}

impl NamedLock {
    pub(crate) const fn new(name: String, hold: LockHold) -> Self {
        Self { name, hold }
    }

    /// What is locked.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the lock is gone for certain although the value is still there: it was deleted by somebody, or ended
    /// with its session.
    pub async fn lost(&self) {
        match &self.hold {
            LockHold::Embedded(permit) => permit.lost().await,
            LockHold::ZooKeeper(node) => ended(node.gone()).await,
        }
    }
}

impl fmt::Debug for NamedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedLock")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Waits for the word that something is over. Whoever could have said it and is gone has said it.
async fn ended(mut over: watch::Receiver<bool>) {
    let _ = over.wait_for(|over| *over).await;
}
