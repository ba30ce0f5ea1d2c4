//! The idle TCP connection beside QUIC. When a process ends, for whatever reason, its kernel closes its sockets, and the
//! other side hears at once what QUIC would only learn from silence. A connection is bound to a registration by a token
//! that was sent over QUIC; it carries nothing else, ever. On the side that connects, a thread of its own holds it, for which
//! see `witness.rs`.
//!
//! The token crosses the network in the clear. Whoever steals one can at most make a TaskManager's own attempt fail,
//! which the TaskManager repeats with a new one; it opens no other door.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use crate::loss::canonical;
use crate::stream::within;
use crate::witness::Witness;

/// The length of a token.
pub const LIVENESS_TOKEN_BYTES: usize = 16;

/// Proves that a TCP connection belongs to a registration. Used once.
pub type LivenessToken = [u8; LIVENESS_TOKEN_BYTES];

/// What the listener answers to a good token.
const ACCEPTED: u8 = 1;
/// A stranger that has not shown its token after this long is closed.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Strangers that may be heard at once; more are closed unheard, and try again.
const STRANGERS_MAX: usize = 256;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer whose machine is gone answers no keep-alive: the kernel gives up after about this long.
const SILENCE_MAX: Duration = Duration::from_secs(3);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 256;

/// An open liveness connection. Keep it for as long as the process is to be seen alive.
#[derive(Debug)]
pub struct Liveness {
    connection: Connection,
    peer: SocketAddr,
}

/// Who holds the connection.
#[derive(Debug)]
enum Connection {
    /// The process, as it holds all its files.
    Process(TcpStream),
    /// A thread, so that it closes first when the process is killed.
    Thread(Witness),
}

/// Who answers at a liveness port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LivenessProbe {
    /// Somebody listens: the process lives, or one has been started in its place.
    Listens,
    /// The machine says that nobody does: the process has ended.
    Gone,
    /// Nothing is known.
    Silent,
}

/// How a liveness connection ended. Whichever it is, the peer is lost.
#[derive(Debug, thiserror::Error)]
pub enum LivenessLoss {
    /// The other process has ended, or closed the connection.
    #[error("the process at {peer} has ended")]
    Ended {
        /// The other end.
        peer: SocketAddr,
    },
    /// It was reset: the other process ended before it had read everything, or the network kept the two apart for so long
    /// that the other kernel had given the connection up. [`probe_liveness`] tells which.
    #[error("the liveness connection with {peer} was reset")]
    Reset {
        /// The other end.
        peer: SocketAddr,
    },
    /// The kernel reports the connection broken.
    #[error("the liveness connection with {peer} broke")]
    Broken {
        /// The other end.
        peer: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Something was sent where nothing may be.
    #[error("{peer} sent data on a liveness connection")]
    Garbage {
        /// The other end.
        peer: SocketAddr,
    },
}

/// Why a liveness connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum LivenessError {
    /// No TCP connection.
    #[error(
        "the liveness port {address} cannot be reached: check that TCP to it is allowed wherever UDP is"
    )]
    Connect {
        /// Who was called.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The token is not known there (any more), or the listener is swamped.
    #[error("{address} refused the liveness token: register again for a new one")]
    Refused {
        /// Who was called.
        address: SocketAddr,
    },
    /// The TaskManager has not connected in time.
    #[error("no liveness connection came within {} ms: check that the TaskManager can reach this port by TCP", waited.as_millis())]
    NotConnected {
        /// How long it was waited for.
        waited: Duration,
    },
}

/// Why a liveness port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LivenessBindError {
    /// Another process has the port.
    #[error(
        "TCP address {address} is in use: another Tidemill process may be running; stop it or configure another port"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system refuses the address.
    #[error(
        "TCP address {address} cannot be used: configure an address of this machine and a port it may open"
    )]
    Address {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The JobManager's side: hears strangers, knows tokens.
pub struct LivenessListener {
    local: SocketAddr,
    expected: Arc<Expected>,
    serving: tokio::task::AbortHandle,
}

/// A token that was issued and the connection that it stands for. Dropping it revokes the token.
#[derive(Debug)]
pub struct LivenessTicket {
    token: LivenessToken,
    connected: oneshot::Receiver<Liveness>,
    expected: Arc<Expected>,
}

/// The tokens that were issued and not yet shown.
#[derive(Debug, Default)]
struct Expected(Mutex<HashMap<LivenessToken, oneshot::Sender<Liveness>>>);

impl Expected {
    fn lock(&self) -> MutexGuard<'_, HashMap<LivenessToken, oneshot::Sender<Liveness>>> {
        // Nothing that runs under the lock can leave the map half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Liveness {
    fn new(stream: TcpStream, peer: SocketAddr) -> Self {
        watch_closely(&stream);
        Self {
            connection: Connection::Process(stream),
            peer: canonical(peer),
        }
    }

    /// Has the connection close before everything else when this process is killed, where the system can do that.
    async fn closing_first(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        watch_closely(&stream);
        let blocking = stream.into_std()?;
        blocking.set_nonblocking(false)?;
        let connection = match Witness::hold(blocking).await {
            Ok(witness) => Connection::Thread(witness),
            Err((error, None)) => return Err(error),
            Err((error, Some(stream))) => {
                tracing::debug!(
                    "if this process is killed, others learn of it when its memory is free: {error}"
                );
                stream.set_nonblocking(true)?;
                Connection::Process(TcpStream::from_std(stream)?)
            }
        };
        Ok(Self {
            connection,
            peer: canonical(peer),
        })
    }

    /// Waits until the other process is lost. May be dropped and called again.
    pub async fn lost(&mut self) -> LivenessLoss {
        let peer = self.peer;
        let read = match &mut self.connection {
            Connection::Process(stream) => stream.read(&mut [0; 1]).await,
            Connection::Thread(witness) => witness.read().await,
        };
        match read {
            Ok(0) => LivenessLoss::Ended { peer },
            Ok(_) => LivenessLoss::Garbage { peer },
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                LivenessLoss::Reset { peer }
            }
            Err(source) => LivenessLoss::Broken { peer, source },
        }
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl LivenessListener {
    /// Opens the port. Must be called within a tokio runtime, which from then on hears strangers.
    ///
    /// # Errors
    /// When the address is taken or refused.
    pub fn bind(address: SocketAddr) -> Result<Self, LivenessBindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => LivenessBindError::InUse { address },
            _ => LivenessBindError::Address { address, source },
        };
        let listener = open_listener(address)
            .and_then(TcpListener::from_std)
            .map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let expected = Arc::<Expected>::default();
        let serving = tokio::spawn(serve(listener, Arc::clone(&expected))).abort_handle();
        Ok(Self {
            local,
            expected,
            serving,
        })
    }

    /// The bound address, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// A new token, to be sent to one TaskManager over its control connection.
    #[must_use]
    pub fn issue(&self) -> LivenessTicket {
        let token = rand::random();
        let (sender, connected) = oneshot::channel();
        self.expected.lock().insert(token, sender);
        LivenessTicket {
            token,
            connected,
            expected: Arc::clone(&self.expected),
        }
    }
}

impl Drop for LivenessListener {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl LivenessTicket {
    /// What the TaskManager must show.
    #[must_use]
    pub fn token(&self) -> LivenessToken {
        self.token
    }

    /// Waits for the TaskManager's connection.
    ///
    /// # Errors
    /// When it does not come in time.
    pub async fn connected(mut self, limit: Duration) -> Result<Liveness, LivenessError> {
        match within(limit, &mut self.connected).await {
            Some(Ok(liveness)) => Ok(liveness),
            Some(Err(_)) | None => Err(LivenessError::NotConnected { waited: limit }),
        }
    }
}

impl Drop for LivenessTicket {
    fn drop(&mut self) {
        self.expected.lock().remove(&self.token);
    }
}

/// The TaskManager's side: connects to the JobManager's liveness port and shows the token.
///
/// # Errors
/// When the port cannot be reached or the token is refused.
pub async fn connect_liveness(
    address: SocketAddr,
    token: LivenessToken,
) -> Result<Liveness, LivenessError> {
    let failed = |source| LivenessError::Connect { address, source };
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.map_err(failed)?;
        let shown = stream.write_all(&token).await;
        let mut answer = [0; 1];
        match shown.and(stream.read_exact(&mut answer).await) {
            Ok(_) if answer[0] == ACCEPTED => Liveness::closing_first(stream, address)
                .await
                .map_err(failed),
            _ => Err(LivenessError::Refused { address }),
        }
    };
    let timed_out = || failed(io::ErrorKind::TimedOut.into());
    within(CONNECT_TIMEOUT, exchange)
        .await
        .ok_or_else(timed_out)?
}

/// Asks a machine whether a process still listens at its liveness port; the answer comes within about a second.
///
/// A kernel closes the sockets of a process that ends one after the other, so that the port may accept for a moment more:
/// it is asked again a few times.
pub async fn probe_liveness(address: SocketAddr) -> LivenessProbe {
    const TIMEOUT: Duration = Duration::from_millis(600);
    const ASKED: u32 = 3;
    const PAUSE: Duration = Duration::from_millis(100);
    for asked in 1..=ASKED {
        match within(TIMEOUT, TcpStream::connect(address)).await {
            Some(Ok(_)) if asked == ASKED => return LivenessProbe::Listens,
            Some(Ok(_)) => tokio::time::sleep(PAUSE).await,
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return LivenessProbe::Gone;
            }
            Some(Err(_)) | None => return LivenessProbe::Silent,
        }
    }
    LivenessProbe::Silent
}

async fn serve(listener: TcpListener, expected: Arc<Expected>) {
    /// So that a process that is out of file descriptors does not spin.
    const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
                    tracing::debug!(%peer, "a liveness connection is closed unheard: too many strangers at once");
                    continue;
                };
                let expected = Arc::clone(&expected);
                tokio::spawn(async move {
                    hear(stream, peer, &expected).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("a liveness connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }
}

/// Reads a stranger's token and hands its connection to whoever waits for it.
async fn hear(mut stream: TcpStream, peer: SocketAddr, expected: &Expected) {
    let mut token = [0; LIVENESS_TOKEN_BYTES];
    let shown = within(TOKEN_TIMEOUT, stream.read_exact(&mut token)).await;
    let Some(Ok(_)) = shown else {
        tracing::debug!(%peer, "a liveness connection is closed: it showed no token in time");
        return;
    };
    let waiting = expected.lock().remove(&token);
    let Some(waiting) = waiting else {
        tracing::info!(%peer, "a liveness connection is closed: its token is not known");
        return;
    };
    if stream.write_all(&[ACCEPTED]).await.is_ok() {
        // Fails when the ticket was dropped meanwhile; then the connection goes too.
        waiting.send(Liveness::new(stream, peer)).ok();
    }
}

fn open_listener(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restarted JobManager need not wait for its former connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Has the kernel probe an idle connection, so that the loss of the whole machine is noticed as well.
fn watch_closely(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(PROBE_INTERVAL)
        .with_interval(PROBE_INTERVAL)
        .with_retries(2);
    let set = socket
        .set_tcp_keepalive(&keepalive)
        .and_then(|()| socket.set_tcp_user_timeout(Some(SILENCE_MAX)))
        .and_then(|()| socket.set_tcp_nodelay(true));
    if let Err(error) = set {
        tracing::warn!("a liveness connection is without keep-alive, QUIC's has to do: {error}");
    }
}
