//! One UDP port of one process: it dials, it listens, and everything that comes in is authenticated and greeted before
//! anybody hears of it. Slow, foreign or broken peers cost a bounded place in the greeting, never the listener.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Mutex, Semaphore, mpsc};

use crate::blob::BlobConnection;
use crate::certs::{CLUSTER_SERVER_NAME, CertificateError, Credentials};
use crate::control::ControlConnection;
use crate::data::DataConnection;
use crate::hello::{self, ConnectionKind, GreetedStream, HelloError};
use crate::loss::{ConnectError, ConnectionLoss, Peer, canonical, tls_alert};
use crate::options::TransportOptions;
use crate::stream::within;
use crate::tls::{self, TlsConfigs};

/// Connections that are being greeted at once; more are refused, and their diallers try again.
const GREETINGS_MAX: usize = 512;
/// Above this many, a dialler must first prove that it owns its address (a QUIC retry costs it a round trip).
const GREETINGS_TRUSTING_MAX: usize = 64;
/// How long a dialler may take from its first packet until it is handed over.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Greeted connections that wait for [`Endpoint::accept`].
const ACCEPTED_MAX: usize = 64;

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error(
        "UDP address {address} is in use: another Tidemill process may be running; stop it or configure another port"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system refuses the address.
    #[error(
        "UDP address {address} cannot be used: configure an address of this machine and a port it may open"
    )]
    Address {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The credentials cannot be used.
    #[error("the endpoint's certificate cannot be used")]
    Credentials(#[from] CertificateError),
    /// There is no tokio runtime.
    #[error("endpoint {address} was bound outside of a tokio runtime")]
    NoRuntime {
        /// The address.
        address: SocketAddr,
    },
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The system's resolver failed.
    #[error("`{name}` cannot be resolved: expected HOST:PORT with a host that this machine knows")]
    Lookup {
        /// What was looked up.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There are addresses, but of another family than the endpoint's.
    #[error(
        "`{name}` has no address that this endpoint, bound to {local}, can reach: use the same IP version on all nodes"
    )]
    Family {
        /// What was looked up.
        name: String,
        /// The endpoint's address.
        local: SocketAddr,
    },
}

/// A greeted connection that a peer has dialled.
#[derive(Debug)]
pub enum Incoming {
    /// From a TaskManager to this JobManager.
    Control(ControlConnection),
    /// From a TaskManager to this one; hand it to [`crate::DataPlane::adopt`].
    Data(DataConnection),
    /// A request for a module; hand it to [`BlobConnection::serve`].
    Blob(BlobConnection),
}

/// One UDP port and all its connections. Clones share it; when the last is dropped its connections are closed.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    quic: quinn::Endpoint,
    tls: TlsConfigs,
    options: TransportOptions,
    name: String,
    local: SocketAddr,
    runtime: tokio::runtime::Handle,
    accepted: Mutex<mpsc::Receiver<Incoming>>,
}

impl Endpoint {
    /// Opens the port and begins to listen. Must be called within a tokio runtime, which from then on drives the port.
    ///
    /// # Errors
    /// When the address is taken or refused, or the credentials cannot be used.
    pub fn bind(
        address: SocketAddr,
        credentials: &Credentials,
        options: TransportOptions,
    ) -> Result<Self, BindError> {
        let runtime =
            tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime { address })?;
        let tls = tls::configs(credentials)?;
        let socket = open_socket(address, options.socket_buffer_bytes)?;
        let failed = |source| BindError::Address { address, source };
        let local = socket.local_addr().map_err(failed)?;
        let quic = quinn::Endpoint::new(
            endpoint_config(credentials, &options),
            Some(server_config(&tls, &options, local)),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(failed)?;
        let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let listener = Listener {
            quic: quic.clone(),
            server: Arc::clone(&tls.server),
            options: options.clone(),
            sender,
        };
        runtime.spawn(listener.run());
        Ok(Self(Arc::new(Inner {
            quic,
            tls,
            options,
            name: credentials.name().to_owned(),
            local,
            runtime,
            accepted: Mutex::new(accepted),
        })))
    }

    /// The bound address, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.0.local
    }

    /// The name in this endpoint's certificate.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Looks up `host:port`, for an address that this endpoint can dial.
    ///
    /// # Errors
    /// When there is none.
    pub async fn resolve(&self, host_and_port: &str) -> Result<SocketAddr, ResolveError> {
        let name = || host_and_port.to_owned();
        let addresses: Vec<_> = tokio::net::lookup_host(host_and_port)
            .await
            .map_err(|source| ResolveError::Lookup {
                name: name(),
                source,
            })?
            .collect();
        let local = self.0.local;
        let same_family = addresses.iter().find(|a| a.is_ipv4() == local.is_ipv4());
        let reachable = same_family.or(addresses.first().filter(|_| local.is_ipv6()));
        reachable.copied().ok_or_else(|| ResolveError::Family {
            name: name(),
            local,
        })
    }

    /// Dials a JobManager.
    ///
    /// # Errors
    /// When nobody answers within the idle timeout, or one side refuses the other.
    pub async fn connect_control(
        &self,
        address: SocketAddr,
    ) -> Result<ControlConnection, ConnectError> {
        let (connection, peer, stream) = self.connect(address, ConnectionKind::Control).await?;
        Ok(ControlConnection::new(connection, peer, stream))
    }

    /// The next connection that a peer has dialled and that is authenticated and greeted; `None` once the endpoint is
    /// closed. May be dropped and called again.
    pub async fn accept(&self) -> Option<Incoming> {
        self.0.accepted.lock().await.recv().await
    }

    /// Closes every connection at once; peers are told the reason, and nothing more is accepted.
    pub fn close(&self, reason: &str) {
        self.0.quic.close(0_u32.into(), reason.as_bytes());
    }

    /// After [`Endpoint::close`]: waits until the peers have been told, or a time limit has passed for each.
    pub async fn wait_closed(&self) {
        self.0.quic.wait_idle().await;
    }

    /// The runtime that drives this endpoint.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.0.runtime
    }

    /// Dials and greets.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        kind: ConnectionKind,
    ) -> Result<(quinn::Connection, Peer, GreetedStream), ConnectError> {
        let mut config =
            quinn::ClientConfig::new(Arc::<QuicClientConfig>::clone(&self.0.tls.client));
        config.transport_config(self.0.options.transport_config(address));
        let connecting = {
            let _guard = self.0.runtime.enter();
            self.0
                .quic
                .connect_with(config, address, CLUSTER_SERVER_NAME)
                .map_err(|error| ConnectError::Address {
                    address,
                    reason: error.to_string(),
                })?
        };
        let failed = |error: &quinn::ConnectionError| {
            let error = ConnectError::from_quic(address, error);
            if let ConnectError::Foreign { .. } = error {
                tracing::warn!(peer = %address, "{error}");
            }
            error
        };
        let connection = connecting.await.map_err(|error| failed(&error))?;
        let greeted = within(GREETING_TIMEOUT, hello::say_hello(&connection, kind)).await;
        match greeted {
            Some(Ok(stream)) => {
                let peer = Peer {
                    name: tls::peer_name(&connection),
                    address: canonical(connection.remote_address()),
                };
                Ok((connection, peer, stream))
            }
            Some(Err(HelloError::Connection(error))) => Err(failed(&error)),
            Some(Err(HelloError::Other(reason))) => {
                connection.close(1_u32.into(), reason.as_bytes());
                Err(ConnectError::OtherProtocol { address, reason })
            }
            None => {
                connection.close(1_u32.into(), b"the greeting was not answered");
                Err(ConnectError::Lost {
                    address,
                    loss: ConnectionLoss::Protocol("it did not answer the greeting".to_owned()),
                })
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.quic
            .close(0_u32.into(), b"the process has let go of its endpoint");
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("name", &self.0.name)
            .field("local", &self.0.local)
            .finish_non_exhaustive()
    }
}

/// What runs in the background of an endpoint. It holds no [`Inner`], whose drop ends it.
struct Listener {
    quic: quinn::Endpoint,
    server: Arc<QuicServerConfig>,
    options: TransportOptions,
    sender: mpsc::Sender<Incoming>,
}

impl Listener {
    async fn run(self) {
        let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
        while let Some(incoming) = self.quic.accept().await {
            let address = incoming.remote_address();
            let under_way = GREETINGS_MAX - greetings.available_permits();
            if under_way >= GREETINGS_TRUSTING_MAX && incoming.may_retry() {
                // Fails only for a connection that may not retry.
                incoming.retry().ok();
                continue;
            }
            let Ok(permit) = Arc::clone(&greetings).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let mut config =
                quinn::ServerConfig::with_crypto(Arc::<QuicServerConfig>::clone(&self.server));
            config.transport_config(self.options.transport_config(address));
            let sender = self.sender.clone();
            tokio::spawn(async move {
                let greeting = greet(incoming, Arc::new(config), sender);
                if within(GREETING_TIMEOUT, greeting).await.is_none() {
                    tracing::info!(peer = %address, "a connection was dropped that was not greeted in time");
                }
                drop(permit);
            });
        }
    }
}

/// Authenticates and greets a dialler, and hands it over. A drop on the way closes the connection.
async fn greet(
    incoming: quinn::Incoming,
    config: Arc<quinn::ServerConfig>,
    sender: mpsc::Sender<Incoming>,
) {
    let address = incoming.remote_address();
    let connection = match incoming.accept_with(config) {
        Ok(connecting) => connecting.await,
        Err(error) => Err(error),
    };
    let connection = match connection {
        Ok(connection) => connection,
        Err(error) => return log_refusal(address, &error),
    };
    let peer = Peer {
        name: tls::peer_name(&connection),
        address: canonical(address),
    };
    let accepted = match hello::hear_hello(&connection).await {
        Ok((ConnectionKind::Control, stream)) => {
            Incoming::Control(ControlConnection::new(connection, peer, stream))
        }
        Ok((ConnectionKind::Data, _)) => Incoming::Data(DataConnection::new(connection, peer)),
        Ok((ConnectionKind::Blob, stream)) => {
            Incoming::Blob(BlobConnection::new(connection, peer, stream))
        }
        Err(HelloError::Connection(error)) => return log_refusal(address, &error),
        Err(HelloError::Other(reason)) => {
            tracing::warn!(%peer, "a connection is closed: {reason}");
            return connection.close(1_u32.into(), reason.as_bytes());
        }
    };
    // Fails when the endpoint is being dropped; the connection goes with it.
    sender.send(accepted).await.ok();
}

fn log_refusal(address: SocketAddr, error: &quinn::ConnectionError) {
    match tls_alert(error) {
        Some((_, reason)) => tracing::warn!(
            peer = %address,
            "a connection was refused ({reason}): give every process of a cluster a certificate of the same CA \
             (`tidemill certs`), and check the machines' clocks"
        ),
        None => tracing::debug!(peer = %address, "a connection was not completed: {error}"),
    }
}

fn endpoint_config(credentials: &Credentials, options: &TransportOptions) -> quinn::EndpointConfig {
    // Both keys are the same in each life of the process: connection ids of the former life are then recognised as this
    // node's, and answered with a reset that their peer can verify.
    let reset_key = ResetKey(credentials.secret("tidemill transport 1: stateless reset"));
    let id_key = credentials.secret("tidemill transport 1: connection ids");
    let id_key = u64::from_le_bytes(*id_key.first_chunk().expect("32 bytes hold 8"));
    let mut config = quinn::EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config
        .max_udp_payload_size(options.udp_payload_max_bytes())
        .expect("the options' bound is within QUIC's");
    config
}

/// Signs the resets that tell a peer that this process has no memory of a connection (RFC 9000, section 10.3).
struct ResetKey([u8; 32]);

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        // Comparing a `blake3::Hash` takes the same time wherever it differs.
        if blake3::keyed_hash(&self.0, data) == *signature {
            Ok(())
        } else {
            Err(quinn::crypto::CryptoError)
        }
    }
}

fn server_config(
    tls: &TlsConfigs,
    options: &TransportOptions,
    local: SocketAddr,
) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(Arc::<QuicServerConfig>::clone(&tls.server));
    config
        .transport_config(options.transport_config(local))
        // Addresses identify TaskManagers; a peer that moves dials again.
        .migration(false)
        .max_incoming(GREETINGS_MAX);
    config
}

fn open_socket(address: SocketAddr, buffer_bytes: usize) -> Result<UdpSocket, BindError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        _ => BindError::Address { address, source },
    };
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )
    .map_err(failed)?;
    // The kernel gives less than asked for without complaint; what it gave is what counts.
    socket.set_recv_buffer_size(buffer_bytes).ok();
    socket.set_send_buffer_size(buffer_bytes).ok();
    socket.bind(&address.into()).map_err(failed)?;
    let socket_buffers = (socket.recv_buffer_size(), socket.send_buffer_size());
    if let (Ok(receive_bytes), Ok(send_bytes)) = socket_buffers {
        tracing::info!(%address, asked_bytes = buffer_bytes, receive_bytes, send_bytes, "UDP socket buffers");
        if receive_bytes.min(send_bytes) < buffer_bytes {
            tracing::warn!(
                %address,
                "UDP socket buffers are smaller than asked for, which costs bulk transfer speed: raise the sysctls \
                 net.core.rmem_max and net.core.wmem_max to {buffer_bytes}"
            );
        }
    }
    Ok(socket.into())
}
