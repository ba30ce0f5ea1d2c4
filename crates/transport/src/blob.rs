//! Modules on their way from a JobManager: asked for by hash, each on a connection of its own so that a large one delays
//! nothing else, resumed where a broken connection left off, and handed out only when the hash is right. It keeps
//! nothing on disk.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_protocol::ModuleHash;
use tidemill_protocol::codec::{self, Versioned};

use crate::endpoint::Endpoint;
use crate::hello::{ConnectionKind, GreetedStream};
use crate::loss::{ConnectError, Peer};
use crate::stream::{Inbox, MessageError, Outbox, within};

const REQUEST_MAX_BYTES: usize = 256;
/// How long a peer may take to ask, or to answer, once it is connected.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BlobRequest {
    hash: ModuleHash,
    offset: u64,
}

impl Versioned for BlobRequest {
    const KIND: [u8; 2] = *b"BQ";
    const VERSION: u16 = 1;
    const NAME: &'static str = "module request";
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum BlobAnswer {
    /// The bytes from the offset to the end follow.
    Found { len: u64 },
    /// Nobody has uploaded it here.
    Missing,
}

impl Versioned for BlobAnswer {
    const KIND: [u8; 2] = *b"BA";
    const VERSION: u16 = 1;
    const NAME: &'static str = "answer to a module request";
}

/// A greeted connection that asks for one module.
pub struct BlobConnection {
    connection: quinn::Connection,
    peer: Peer,
    stream: GreetedStream,
}

/// What was done for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobServed {
    /// The peer has all bytes from the offset to the end.
    Sent {
        /// Which module.
        hash: ModuleHash,
        /// Where the peer had asked to begin, in bytes.
        offset: u64,
    },
    /// There is no such module here, and the peer knows.
    Missing {
        /// Which module.
        hash: ModuleHash,
    },
    /// The request could not be understood or the connection was lost.
    Failed {
        /// For the log.
        reason: String,
    },
}

/// How far a fetch may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    /// The longest module that is accepted, in bytes.
    pub len_max_bytes: u64,
    /// Connections in a row that may fail without bringing a byte.
    pub fruitless_attempts_max: u32,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            len_max_bytes: 512 << 20,
            fruitless_attempts_max: 5,
        }
    }
}

/// Why a module was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The JobManager does not have it.
    #[error("{address} does not have module {hash}: submit the job again")]
    Missing {
        /// Who was asked.
        address: SocketAddr,
        /// Which module.
        hash: ModuleHash,
    },
    /// It is longer than allowed.
    #[error(
        "module {hash} has {len} bytes, more than the {len_max_bytes} allowed: raise the limit or make the module smaller"
    )]
    TooLong {
        /// Which module.
        hash: ModuleHash,
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        len_max_bytes: u64,
    },
    /// What came has another hash.
    #[error(
        "{address} sent bytes with hash {found} for module {hash}: its copy is damaged; submit the job again"
    )]
    WrongHash {
        /// Who was asked.
        address: SocketAddr,
        /// What was asked for.
        hash: ModuleHash,
        /// What came.
        found: ModuleHash,
    },
    /// The JobManager cannot be reached, or its certificate is foreign.
    #[error("module {hash} cannot be fetched from {address}")]
    Connect {
        /// Who was asked.
        address: SocketAddr,
        /// Which module.
        hash: ModuleHash,
        /// The last failure.
        #[source]
        source: ConnectError,
    },
    /// Connections were made and broke.
    #[error("module {hash} cannot be fetched from {address}: {reason}")]
    Broken {
        /// Who was asked.
        address: SocketAddr,
        /// Which module.
        hash: ModuleHash,
        /// The last failure.
        reason: String,
    },
}

impl BlobConnection {
    pub(crate) fn new(connection: quinn::Connection, peer: Peer, stream: GreetedStream) -> Self {
        Self {
            connection,
            peer,
            stream,
        }
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Answers the request. `find` is called once, on this task, and must not block for long.
    pub async fn serve(mut self, find: impl FnOnce(ModuleHash) -> Option<Bytes>) -> BlobServed {
        let served = answer(&mut self.stream, find).await;
        if let BlobServed::Failed { reason } = &served {
            tracing::warn!(peer = %self.peer, "a module was not delivered: {reason}");
            self.connection.close(1_u32.into(), reason.as_bytes());
        }
        served
    }
}

impl std::fmt::Debug for BlobConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BlobConnection").field(&self.peer).finish()
    }
}

async fn answer(
    stream: &mut GreetedStream,
    find: impl FnOnce(ModuleHash) -> Option<Bytes>,
) -> BlobServed {
    let failed = |reason: String| BlobServed::Failed { reason };
    let request = within(ANSWER_TIMEOUT, read::<BlobRequest>(&mut stream.inbox)).await;
    let BlobRequest { hash, offset } = match request {
        Some(Ok(request)) => request,
        Some(Err(reason)) => return failed(reason),
        None => return failed("the request did not come in time".to_owned()),
    };
    let found = find(hash);
    let len = found.as_ref().map(|bytes| bytes.len() as u64);
    let outbox = &mut stream.outbox;
    outbox.put_message(codec::encode(&match len {
        Some(len) => BlobAnswer::Found { len },
        None => BlobAnswer::Missing,
    }));
    if let Some(mut bytes) = found {
        let Some(begin) = usize::try_from(offset).ok().filter(|at| *at <= bytes.len()) else {
            return failed(format!(
                "it asked for module {hash} from {offset}, past its end"
            ));
        };
        outbox.put(bytes.split_off(begin));
    }
    if let Err(error) = outbox.flush().await {
        return failed(error.to_string());
    }
    outbox.finish();
    outbox.acknowledged().await;
    match len {
        Some(_) => BlobServed::Sent { hash, offset },
        None => BlobServed::Missing { hash },
    }
}

/// Fetches the module with a hash from the JobManager at an address. `held` is what an earlier call has left of it, or
/// empty; after a failure it holds what came so far, for the next call.
///
/// Connections that break are made anew after a growing pause, for as long as they bring bytes.
///
/// # Errors
/// When the module is not there, not what was asked for or too long, or the JobManager cannot be reached. A foreign
/// certificate ends the attempts at once.
pub async fn fetch_blob(
    endpoint: &Endpoint,
    address: SocketAddr,
    hash: ModuleHash,
    held: &mut Vec<u8>,
    limits: &FetchLimits,
) -> Result<Bytes, FetchError> {
    let mut fruitless = 0;
    let mut pause = BACKOFF_FIRST;
    loop {
        let resumed_at = held.len();
        let failure = match fetch_rest(endpoint, address, hash, held, limits).await {
            Ok(()) => {
                let found = ModuleHash(*blake3::hash(held).as_bytes());
                let bytes = std::mem::take(held);
                if found == hash {
                    return Ok(bytes.into());
                }
                if resumed_at == 0 {
                    return Err(FetchError::WrongHash {
                        address,
                        hash,
                        found,
                    });
                }
                // The first part may have been the bad one: once more from the beginning tells.
                continue;
            }
            Err(failure) => failure,
        };
        let final_failure = match &failure {
            FetchError::Connect { source, .. } => !matches!(
                source,
                ConnectError::Silent { .. } | ConnectError::Lost { .. }
            ),
            FetchError::Broken { .. } => false,
            FetchError::Missing { .. }
            | FetchError::TooLong { .. }
            | FetchError::WrongHash { .. } => true,
        };
        if held.len() > resumed_at {
            (fruitless, pause) = (0, BACKOFF_FIRST);
        } else {
            fruitless += 1;
        }
        if final_failure || fruitless >= limits.fruitless_attempts_max {
            return Err(failure);
        }
        tracing::info!(%address, %hash, held_bytes = held.len(), "a module is being fetched again: {failure}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// One connection's worth: appends to `held` what is missing.
async fn fetch_rest(
    endpoint: &Endpoint,
    address: SocketAddr,
    hash: ModuleHash,
    held: &mut Vec<u8>,
    limits: &FetchLimits,
) -> Result<(), FetchError> {
    let connected = endpoint.connect(address, ConnectionKind::Blob).await;
    let (
        connection,
        _,
        GreetedStream {
            mut outbox,
            mut inbox,
        },
    ) = connected.map_err(|source| FetchError::Connect {
        address,
        hash,
        source,
    })?;
    let broken = |reason: String| FetchError::Broken {
        address,
        hash,
        reason,
    };
    ask(&mut outbox, hash, held.len() as u64)
        .await
        .map_err(broken)?;
    let answer = within(ANSWER_TIMEOUT, read::<BlobAnswer>(&mut inbox)).await;
    let answer = answer.unwrap_or_else(|| Err("it did not answer in time".to_owned()));
    let len = match answer.map_err(broken)? {
        BlobAnswer::Missing => return Err(FetchError::Missing { address, hash }),
        BlobAnswer::Found { len } if len > limits.len_max_bytes => {
            return Err(FetchError::TooLong {
                hash,
                len,
                len_max_bytes: limits.len_max_bytes,
            });
        }
        BlobAnswer::Found { len } => len,
    };
    while (held.len() as u64) < len {
        match inbox.take_any().await {
            Ok(Some(bytes)) => held.extend_from_slice(&bytes),
            Ok(None) => return Err(broken("it ended before its length".to_owned())),
            Err(error) => return Err(broken(error.to_string())),
        }
        if held.len() as u64 > len {
            held.clear();
            return Err(broken("it is longer than was announced".to_owned()));
        }
    }
    connection.close(0_u32.into(), b"received");
    Ok(())
}

async fn ask(outbox: &mut Outbox, hash: ModuleHash, offset: u64) -> Result<(), String> {
    outbox.put_message(codec::encode(&BlobRequest { hash, offset }));
    outbox.flush().await.map_err(|error| error.to_string())?;
    outbox.finish();
    Ok(())
}

async fn read<T: Versioned>(inbox: &mut Inbox) -> Result<T, String> {
    match inbox.message(REQUEST_MAX_BYTES).await {
        Ok(Some(message)) => Ok(message),
        Ok(None) | Err(MessageError::CutShort) => Err("the stream ended too early".to_owned()),
        Err(MessageError::Read(error)) => Err(error.to_string()),
        Err(MessageError::TooLong(len)) => Err(format!("a message of {len} bytes was announced")),
        Err(MessageError::Decode(error)) => Err(error.to_string()),
    }
}
