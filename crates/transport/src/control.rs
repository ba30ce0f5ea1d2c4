//! Control connections: whole messages in order on one stream, each way. A peer that sends anything else loses that
//! connection and nothing more. It never interprets a message.

use std::sync::Arc;

use tidemill_protocol::codec::{DecodeError, Versioned};
use tidemill_protocol::control::CONTROL_MESSAGE_MAX_BYTES;

use crate::hello::GreetedStream;
use crate::loss::{ConnectionLoss, Peer};
use crate::stream::{Inbox, MessageError, Outbox};

/// A greeted control connection. It lives as long as any of its three parts.
#[derive(Debug)]
pub struct ControlConnection {
    sender: ControlSender,
    receiver: ControlReceiver,
    handle: ConnectionHandle,
}

/// The way out of a control connection.
pub struct ControlSender {
    outbox: Outbox,
    handle: ConnectionHandle,
}

/// The way in of a control connection.
pub struct ControlReceiver {
    inbox: Inbox,
    handle: ConnectionHandle,
}

/// Watches and closes a connection.
#[derive(Clone)]
pub struct ConnectionHandle {
    connection: quinn::Connection,
    peer: Arc<Peer>,
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection is gone.
    #[error("the control connection with {peer} is lost")]
    Lost {
        /// The other end.
        peer: Peer,
        /// Why.
        #[source]
        loss: ConnectionLoss,
    },
    /// The message is longer than a peer accepts. The connection stays usable.
    #[error(
        "a {name} of {len} bytes is longer than the {CONTROL_MESSAGE_MAX_BYTES} that a control stream carries"
    )]
    TooLong {
        /// The kind of message.
        name: &'static str,
        /// Its length in bytes.
        len: usize,
    },
}

/// Why no message was received. The connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// The connection is gone.
    #[error("the control connection with {peer} is lost")]
    Lost {
        /// The other end.
        peer: Peer,
        /// Why.
        #[source]
        loss: ConnectionLoss,
    },
    /// The peer announced more than a message may have.
    #[error(
        "{peer} announced a control message of {len} bytes, more than the {CONTROL_MESSAGE_MAX_BYTES} allowed: the connection is closed"
    )]
    TooLong {
        /// The other end.
        peer: Peer,
        /// The announced length in bytes.
        len: usize,
    },
    /// The peer's bytes are no message.
    #[error("{peer} sent something that is no control message: the connection is closed")]
    Garbage {
        /// The other end.
        peer: Peer,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The peer ended its stream in the middle of a message.
    #[error("{peer} ended the control stream in the middle of a message: the connection is closed")]
    CutShort {
        /// The other end.
        peer: Peer,
    },
}

impl ControlConnection {
    pub(crate) fn new(connection: quinn::Connection, peer: Peer, stream: GreetedStream) -> Self {
        let handle = ConnectionHandle::new(connection, peer);
        Self {
            sender: ControlSender {
                outbox: stream.outbox,
                handle: handle.clone(),
            },
            receiver: ControlReceiver {
                inbox: stream.inbox,
                handle: handle.clone(),
            },
            handle,
        }
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.handle.peer()
    }

    /// The connection's parts, for different tasks.
    #[must_use]
    pub fn split(self) -> (ControlSender, ControlReceiver, ConnectionHandle) {
        (self.sender, self.receiver, self.handle)
    }
}

impl ControlSender {
    /// Sends a message. Returns when QUIC has taken it, which waits while the peer does not read. When the future is
    /// dropped before, the message still goes out with the next one.
    ///
    /// # Errors
    /// When the connection is gone or the message is too long.
    pub async fn send<T: Versioned>(&mut self, message: &T) -> Result<(), SendError> {
        let bytes = tidemill_protocol::codec::encode(message);
        if bytes.len() > CONTROL_MESSAGE_MAX_BYTES {
            return Err(SendError::TooLong {
                name: T::NAME,
                len: bytes.len(),
            });
        }
        self.outbox.put_message(bytes);
        self.outbox.flush().await.map_err(|error| SendError::Lost {
            peer: self.handle.peer().clone(),
            loss: self.handle.loss_after(&error),
        })
    }

    /// Ends this side in order and waits until the peer's machine has everything that was sent, or the connection is
    /// gone. Without this, closing the connection may overtake the last message.
    pub async fn finish(mut self) {
        // A connection that is gone has delivered what it could.
        if self.outbox.flush().await.is_ok() {
            self.outbox.finish();
            self.outbox.acknowledged().await;
        }
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.handle.peer()
    }
}

impl ControlReceiver {
    /// The next message; `None` when the peer has ended its side in order. May be dropped and called again.
    ///
    /// # Errors
    /// When the connection is gone, or is closed because the peer sent something else than a `T`.
    pub async fn recv<T: Versioned>(&mut self) -> Result<Option<T>, RecvError> {
        let peer = || self.handle.peer().clone();
        let error = match self.inbox.message(CONTROL_MESSAGE_MAX_BYTES).await {
            Ok(message) => return Ok(message),
            Err(MessageError::Read(error)) => {
                return Err(RecvError::Lost {
                    peer: peer(),
                    loss: self.handle.loss_after(&error),
                });
            }
            Err(MessageError::CutShort) => RecvError::CutShort { peer: peer() },
            Err(MessageError::TooLong(len)) => RecvError::TooLong { peer: peer(), len },
            Err(MessageError::Decode(source)) => RecvError::Garbage {
                peer: peer(),
                source,
            },
        };
        self.handle.close(&error.to_string());
        Err(error)
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.handle.peer()
    }
}

impl ConnectionHandle {
    pub(crate) fn new(connection: quinn::Connection, peer: Peer) -> Self {
        Self {
            connection,
            peer: Arc::new(peer),
        }
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Waits until the connection is gone.
    pub async fn closed(&self) -> ConnectionLoss {
        (&self.connection.closed().await).into()
    }

    /// Closes the connection at once; the peer is told the reason. What it has not received yet is lost.
    pub fn close(&self, reason: &str) {
        self.connection.close(0_u32.into(), reason.as_bytes());
    }

    /// Whether both handles are of one connection.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// Why a stream operation failed: the connection's end if it has ended, else what the stream says.
    pub(crate) fn loss_after(&self, error: &dyn std::error::Error) -> ConnectionLoss {
        match self.connection.close_reason() {
            Some(reason) => (&reason).into(),
            None => ConnectionLoss::Protocol(error.to_string()),
        }
    }
}

impl std::fmt::Debug for ConnectionHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ConnectionHandle").field(&self.peer).finish()
    }
}

impl std::fmt::Debug for ControlSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ControlSender")
            .field(&self.handle.peer)
            .finish()
    }
}

impl std::fmt::Debug for ControlReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ControlReceiver")
            .field(&self.handle.peer)
            .finish()
    }
}
