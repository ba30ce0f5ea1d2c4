//! The data plane of a TaskManager: one connection per peer, used in both directions, one stream per channel, unreliable
//! hints beside them, and a stream for each request for pages of an image. A channel whose consumer does not read stalls alone. It never decides whether an
//! attempt is current, and never reopens a channel: what was lost is the recovery's business.

mod channel;
mod pages;
mod pool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidemill_protocol::ChannelHeader;
use tidemill_protocol::codec;
use tidemill_protocol::split::SplitRequest;
use tokio::sync::{Mutex, Semaphore, mpsc};

pub use channel::{ChannelError, ChannelReceiver, ChannelSender};
pub use pages::{IncomingPages, PAGES_REQUEST_MAX, PagesError, PagesRequest};

use crate::control::ConnectionHandle;
use crate::endpoint::Endpoint;
use crate::hello::ConnectionKind;
use crate::loss::{ConnectError, Peer};
use crate::stream::{Inbox, MessageError, within};
use channel::ChannelOpening;
use pool::Pool;

/// Opened channels that wait for [`DataPlane::accept_channel`].
const CHANNELS_WAITING_MAX: usize = 1024;
/// Hints that wait for [`DataPlane::recv_hint`]; more are dropped.
const HINTS_WAITING_MAX: usize = 1024;
/// Hints that wait for a connection; more are dropped.
const HINTS_DIALLING_MAX: usize = 64;
/// How long the first message of a stream may take after its first byte.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest first message of a channel, in bytes.
const OPENING_MAX_BYTES: usize = 256;

/// A greeted connection from another TaskManager.
pub struct DataConnection {
    connection: quinn::Connection,
    peer: Peer,
}

/// A channel that a peer has opened.
#[derive(Debug)]
pub struct IncomingChannel {
    /// Whose frames these are. Whether the attempt is current is for the caller to judge; dropping the receiver refuses
    /// the channel.
    pub header: ChannelHeader,
    /// The frames.
    pub receiver: ChannelReceiver,
    /// Who sends them.
    pub peer: Peer,
}

/// All data connections of one TaskManager. Clones share them; when the last is dropped they are closed.
#[derive(Clone)]
pub struct DataPlane(Arc<Plane>);

struct Plane {
    endpoint: Endpoint,
    pool: Arc<Pool>,
    arrivals: Arrivals,
    channels: Mutex<mpsc::Receiver<IncomingChannel>>,
    hints: Mutex<mpsc::Receiver<(Peer, SplitRequest)>>,
    pages: Mutex<mpsc::Receiver<IncomingPages>>,
    hints_dialling: Arc<Semaphore>,
}

/// Where a connection's task puts what comes in.
#[derive(Clone)]
struct Arrivals {
    channels: mpsc::Sender<IncomingChannel>,
    hints: mpsc::Sender<(Peer, SplitRequest)>,
    pages: mpsc::Sender<IncomingPages>,
}

impl DataConnection {
    pub(crate) fn new(connection: quinn::Connection, peer: Peer) -> Self {
        Self { connection, peer }
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl DataPlane {
    /// A data plane without connections.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        let (channels_in, channels) = mpsc::channel(CHANNELS_WAITING_MAX);
        let (hints_in, hints) = mpsc::channel(HINTS_WAITING_MAX);
        let (pages_in, pages) = mpsc::channel(pages::REQUESTS_WAITING_MAX);
        Self(Arc::new(Plane {
            endpoint,
            pool: Arc::default(),
            arrivals: Arrivals {
                channels: channels_in,
                hints: hints_in,
                pages: pages_in,
            },
            channels: Mutex::new(channels),
            hints: Mutex::new(hints),
            pages: Mutex::new(pages),
            hints_dialling: Arc::new(Semaphore::new(HINTS_DIALLING_MAX)),
        }))
    }

    /// Takes over a connection that a peer has dialled ([`crate::Incoming::Data`]).
    pub fn adopt(&self, connection: DataConnection) {
        self.register(&connection.connection, &connection.peer);
    }

    /// Opens a channel to the TaskManager at `peer`, over the connection with it, which is dialled if there is none.
    ///
    /// # Errors
    /// When there is no connection to be had, or it breaks at once.
    pub async fn open_channel(
        &self,
        peer: SocketAddr,
        header: ChannelHeader,
    ) -> Result<ChannelSender, ChannelError> {
        let (connection, peer) = self.connection(peer).await.map_err(ChannelError::Connect)?;
        let handle = ConnectionHandle::new(connection.clone(), peer);
        ChannelSender::open(&connection, handle, header).await
    }

    /// The next channel that a peer has opened. May be dropped and called again.
    pub async fn accept_channel(&self) -> IncomingChannel {
        let channel = self.0.channels.lock().await.recv().await;
        channel.expect("the data plane itself holds a sender of this queue")
    }

    /// Sends a hint, or loses it: it waits for nothing, and is dropped wherever it would have to.
    pub fn send_hint(&self, peer: SocketAddr, hint: &SplitRequest) {
        let hint = bytes::Bytes::from(codec::encode(hint));
        if let Some((connection, _)) = self.0.pool.live(peer) {
            // Fails when the connection is just being lost; a hint may be.
            connection.send_datagram(hint).ok();
            return;
        }
        let Ok(permit) = Arc::clone(&self.0.hints_dialling).try_acquire_owned() else {
            return;
        };
        let plane = self.clone();
        self.0.endpoint.runtime().spawn(async move {
            if let Ok((connection, _)) = plane.connection(peer).await {
                connection.send_datagram(hint).ok();
            }
            drop(permit);
        });
    }

    /// The next hint from a peer. May be dropped and called again.
    pub async fn recv_hint(&self) -> (Peer, SplitRequest) {
        let hint = self.0.hints.lock().await.recv().await;
        hint.expect("the data plane itself holds a sender of this queue")
    }

    /// Closes all connections with the peer at an address, so that its channels fail now and not after the idle
    /// timeout: for a peer that others know to be lost, or that is to be kept apart.
    pub fn disconnect(&self, peer: SocketAddr, reason: &str) {
        self.0.pool.close(peer, reason);
    }

    /// The connection with a peer, dialled if need be. Those who ask at the same time share one dial and its error.
    async fn connection(
        &self,
        peer: SocketAddr,
    ) -> Result<(quinn::Connection, Peer), ConnectError> {
        let dialling = self.0.pool.dialling(peer);
        let asked_at = std::time::Instant::now();
        if let Some(found) = self.0.pool.live(peer) {
            return Ok(found);
        }
        let mut last_failure = dialling.lock().await;
        if let Some(found) = self.0.pool.live(peer) {
            return Ok(found);
        }
        if let Some((failed_at, error)) = &*last_failure
            && *failed_at >= asked_at
        {
            return Err(error.clone());
        }
        match self.0.endpoint.connect(peer, ConnectionKind::Data).await {
            Ok((connection, peer, _)) => {
                self.register(&connection, &peer);
                Ok((connection, peer))
            }
            Err(error) => {
                *last_failure = Some((std::time::Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn register(&self, connection: &quinn::Connection, peer: &Peer) {
        connection.set_max_concurrent_bi_streams(pages::REQUESTS_MAX.into());
        self.0.pool.insert(connection, peer);
        let served = serve(
            connection.clone(),
            peer.clone(),
            self.0.arrivals.clone(),
            Arc::clone(&self.0.pool),
        );
        self.0.endpoint.runtime().spawn(served);
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.pool.close_all("the process has closed its data plane");
    }
}

impl std::fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DataPlane").field(&self.0.endpoint).finish()
    }
}

impl std::fmt::Debug for DataConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DataConnection").field(&self.peer).finish()
    }
}

/// Receives what a connection brings, until it ends.
async fn serve(connection: quinn::Connection, peer: Peer, arrivals: Arrivals, pool: Arc<Pool>) {
    let error = loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    let handle = ConnectionHandle::new(connection.clone(), peer.clone());
                    tokio::spawn(receive_opening(stream, handle, arrivals.channels.clone()));
                }
                Err(error) => break error,
            },
            streams = connection.accept_bi() => match streams {
                Ok(streams) => {
                    tokio::spawn(pages::receive_request(streams, peer.clone(), arrivals.pages.clone()));
                }
                Err(error) => break error,
            },
            datagram = connection.read_datagram() => match datagram {
                // A full queue drops the hint, as the network might have.
                Ok(datagram) => match codec::decode(&datagram) {
                    Ok(hint) => { arrivals.hints.try_send((peer.clone(), hint)).ok(); }
                    Err(error) => tracing::debug!(%peer, "a hint was dropped: {error}"),
                },
                Err(error) => break error,
            },
        }
    };
    pool.forget(&connection, &peer);
    tracing::info!(%peer, "the data connection ended: {}", crate::loss::ConnectionLoss::from(&error));
}

#[cfg(test)]
pub(crate) fn encode_opening(header: ChannelHeader) -> Vec<u8> {
    codec::encode(&ChannelOpening(header))
}

#[cfg(test)]
pub(crate) use pages::{encode_answer, encode_request};

#[cfg(test)]
impl DataPlane {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }
}

/// Reads a channel's first message and hands the channel over.
async fn receive_opening(
    stream: quinn::RecvStream,
    handle: ConnectionHandle,
    channels: mpsc::Sender<IncomingChannel>,
) {
    let peer = handle.peer().clone();
    let mut inbox = Inbox::new(stream);
    let opening = inbox.message::<ChannelOpening>(OPENING_MAX_BYTES);
    let reason = match within(OPENING_TIMEOUT, opening).await {
        Some(Ok(Some(ChannelOpening(header)))) => {
            let channel = IncomingChannel {
                header,
                receiver: ChannelReceiver::new(inbox, handle, header),
                peer,
            };
            // Fails when the data plane is gone; the channel goes with it.
            channels.send(channel).await.ok();
            return;
        }
        // Withdrawn by the sender, or lost with its connection, which is logged once.
        Some(Ok(None) | Err(MessageError::Read(_))) => return,
        Some(Err(MessageError::CutShort)) => "its first message is cut short".to_owned(),
        Some(Err(MessageError::TooLong(len))) => format!("its first message claims {len} bytes"),
        Some(Err(MessageError::Decode(error))) => error.to_string(),
        None => "its first message did not come in time".to_owned(),
    };
    tracing::warn!(%peer, "a channel is refused: {reason}");
}
