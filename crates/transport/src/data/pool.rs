//! The data connections that exist, by their peer's address. It neither dials nor accepts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::loss::{ConnectError, Peer, canonical};

/// Held while somebody dials a peer; keeps the last failure for those who waited meanwhile.
pub(super) type Dialling = Arc<tokio::sync::Mutex<Option<(Instant, ConnectError)>>>;

/// Every data connection of a process.
#[derive(Default)]
pub(super) struct Pool {
    entries: Mutex<HashMap<SocketAddr, Entry>>,
}

/// What is known of one peer. When both sides dial at once there are two connections, and the older is used.
#[derive(Default)]
struct Entry {
    connections: Vec<(quinn::Connection, Peer)>,
    dialling: Dialling,
}

impl Pool {
    /// The connection to use with a peer.
    pub(super) fn live(&self, peer: SocketAddr) -> Option<(quinn::Connection, Peer)> {
        let entries = self.entries();
        let mut connections = entries.get(&canonical(peer))?.connections.iter();
        connections
            .find(|(connection, _)| connection.close_reason().is_none())
            .cloned()
    }

    /// The lock that whoever dials a peer holds.
    pub(super) fn dialling(&self, peer: SocketAddr) -> Dialling {
        let mut entries = self.entries();
        Arc::clone(&entries.entry(canonical(peer)).or_default().dialling)
    }

    pub(super) fn insert(&self, connection: &quinn::Connection, peer: &Peer) {
        let mut entries = self.entries();
        let entry = entries.entry(canonical(peer.address)).or_default();
        entry.connections.push((connection.clone(), peer.clone()));
    }

    /// Removes a connection that has ended.
    pub(super) fn forget(&self, connection: &quinn::Connection, peer: &Peer) {
        let mut entries = self.entries();
        let address = canonical(peer.address);
        if let Some(entry) = entries.get_mut(&address) {
            entry
                .connections
                .retain(|(held, _)| held.stable_id() != connection.stable_id());
            let unused = entry.connections.is_empty() && Arc::strong_count(&entry.dialling) == 1;
            if unused {
                entries.remove(&address);
            }
        }
    }

    pub(super) fn close(&self, peer: SocketAddr, reason: &str) {
        if let Some(entry) = self.entries().get(&canonical(peer)) {
            entry.close(reason);
        }
    }

    pub(super) fn close_all(&self, reason: &str) {
        self.entries()
            .values()
            .for_each(|entry| entry.close(reason));
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SocketAddr, Entry>> {
        // Nothing that runs under the lock can leave the map half-changed.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn close(&self, reason: &str) {
        for (connection, _) in &self.connections {
            connection.close(0_u32.into(), reason.as_bytes());
        }
    }
}
