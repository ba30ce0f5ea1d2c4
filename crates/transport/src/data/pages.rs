//! Pages of task images between TaskManagers: each request has a bidirectional stream of the data connection to itself,
//! so that no channel waits for it. It knows neither who has which image nor what a page should be: it counts bytes, and
//! compares the checksum that the sender made of them.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream};
use serde::{Deserialize, Serialize};
use tidemill_protocol::codec::{self, Versioned};
use tidemill_protocol::image::PageRun;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{JobId, TaskId};
use tokio::sync::mpsc;

use super::{DataPlane, OPENING_TIMEOUT};
use crate::control::ConnectionHandle;
use crate::loss::{ConnectError, ConnectionLoss, Peer};
use crate::stream::{Inbox, MessageError, Outbox, within};

/// Pages of one request at most: 4 MiB.
pub const PAGES_REQUEST_MAX: u32 = 1024;
/// Requests that a peer may have under way on one connection.
pub(super) const REQUESTS_MAX: u32 = 16;
/// Requests that wait for [`DataPlane::accept_pages`].
pub(super) const REQUESTS_WAITING_MAX: usize = 64;
/// The longest request, in bytes: a run takes ten at most, and a key is short.
const REQUEST_MAX_BYTES: usize = 32 << 10;
/// The longest head of an answer, in bytes.
const ANSWER_MAX_BYTES: usize = 64;
/// How long a peer may take to accept an answer that it has asked for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Which pages of which image are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesRequest {
    /// Whose image.
    pub job: JobId,
    /// Of which task.
    pub task: TaskId,
    /// The manifest of the image: of this very capture, and no other.
    pub manifest: ObjectRef,
    /// The pages, at most [`PAGES_REQUEST_MAX`] of them, in runs that have some and are not said to be zero. None of them asks
    /// whether the image is there.
    pub runs: Vec<PageRun>,
}

impl PagesRequest {
    /// How many bytes are asked for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(|run| run.memory_range().len()).sum()
    }
}

/// A request on its way.
#[derive(Serialize, Deserialize)]
struct Opening {
    job: JobId,
    task: TaskId,
    manifest: ObjectRef,
    /// First page, and how many.
    runs: Vec<(u32, u32)>,
}

impl Versioned for Opening {
    const KIND: [u8; 2] = *b"PQ";
    const VERSION: u16 = 1;
    const NAME: &'static str = "request for pages";
}

impl From<&PagesRequest> for Opening {
    fn from(request: &PagesRequest) -> Self {
        Self {
            job: request.job,
            task: request.task,
            manifest: request.manifest.clone(),
            runs: request
                .runs
                .iter()
                .map(|run| (run.first, run.pages))
                .collect(),
        }
    }
}

impl Opening {
    /// The request, if somebody may ask so.
    fn check(self) -> Result<PagesRequest, String> {
        let pages: u64 = self.runs.iter().map(|(_, pages)| u64::from(*pages)).sum();
        if pages > u64::from(PAGES_REQUEST_MAX) {
            return Err(format!("it is for {pages} pages"));
        }
        if self.runs.iter().any(|(_, pages)| *pages == 0) {
            return Err("it is for a run of no pages".to_owned());
        }
        let run = |(first, pages)| PageRun {
            first,
            pages,
            zero: false,
        };
        Ok(PagesRequest {
            job: self.job,
            task: self.task,
            manifest: self.manifest,
            runs: self.runs.into_iter().map(run).collect(),
        })
    }
}

/// What comes before the pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    /// All of them follow, in the order in which they were asked for.
    Found {
        /// CRC-32 of their bytes, made after they were read.
        checksum: u32,
    },
    /// They are not here: it is another image, or none, or it has no such pages.
    Missing,
}

impl Versioned for Answer {
    const KIND: [u8; 2] = *b"PA";
    const VERSION: u16 = 1;
    const NAME: &'static str = "answer to a request for pages";
}

/// Why no pages came.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// There is no connection with the peer.
    #[error("it cannot be asked")]
    Connect(#[source] ConnectError),
    /// The connection broke.
    #[error("the data connection with {peer} is lost")]
    Lost {
        /// The other end.
        peer: Peer,
        /// Why.
        #[source]
        loss: ConnectionLoss,
    },
    /// The peer does not have this image, or not any more.
    #[error("{peer} does not have that image")]
    Missing {
        /// The other end.
        peer: Peer,
    },
    /// It takes too long.
    #[error("{address} did not send them within {patience:?}")]
    Late {
        /// Who was asked.
        address: SocketAddr,
        /// How long it had.
        patience: Duration,
    },
    /// What came is no answer.
    #[error("{peer} did not answer as it should: {reason}")]
    Garbage {
        /// The other end.
        peer: Peer,
        /// What is wrong with it.
        reason: String,
    },
    /// What came is not what was sent.
    #[error("the pages from {peer} do not match their checksum")]
    Damaged {
        /// The other end.
        peer: Peer,
    },
}

/// A peer's request for pages. Dropped without an answer, the peer finds that out at once.
pub struct IncomingPages {
    request: PagesRequest,
    outbox: Outbox,
    peer: Peer,
}

impl IncomingPages {
    /// What is wanted.
    #[must_use]
    pub fn request(&self) -> &PagesRequest {
        &self.request
    }

    /// Who asks.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Sends the pages, one after the other as they were asked for, and returns when the peer has them or has taken too
    /// long. `None`, and any other number of bytes, tells the peer that they are not here.
    pub async fn answer(mut self, pages: Option<Bytes>) {
        let pages = pages.filter(|pages| pages.len() == self.request.bytes());
        let head = match &pages {
            Some(pages) => Answer::Found {
                checksum: crc32fast::hash(pages),
            },
            None => Answer::Missing,
        };
        self.outbox.put_message(codec::encode(&head));
        self.outbox.put(pages.unwrap_or_default());
        let sent = within(ANSWER_TIMEOUT, async {
            self.outbox.flush().await?;
            self.outbox.finish();
            self.outbox.acknowledged().await;
            Ok::<(), quinn::WriteError>(())
        });
        let reason = match sent.await {
            Some(Ok(())) => return,
            Some(Err(error)) => error.to_string(),
            None => "it took too long to accept them".to_owned(),
        };
        self.outbox.reset();
        tracing::debug!(peer = %self.peer, "pages were not delivered: {reason}");
    }
}

impl std::fmt::Debug for IncomingPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IncomingPages")
            .field("request", &self.request)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl DataPlane {
    /// Asks the TaskManager at `peer` for pages of an image, over the connection with it, which is dialled if there is none.
    /// They come one after the other as they are named, and are what the peer has sent: whether it had the right ones is
    /// for the caller to find out.
    ///
    /// # Errors
    /// When they do not come whole within `patience`, for whatever reason.
    pub async fn read_pages(
        &self,
        peer: SocketAddr,
        request: &PagesRequest,
        patience: Duration,
    ) -> Result<Bytes, PagesError> {
        let read = within(patience, async {
            let (connection, peer) = self.connection(peer).await.map_err(PagesError::Connect)?;
            let handle = ConnectionHandle::new(connection.clone(), peer);
            ask(&connection, &handle, request).await
        });
        let late = PagesError::Late {
            address: peer,
            patience,
        };
        read.await.unwrap_or(Err(late))
    }

    /// The next request for pages of a peer. May be dropped and called again.
    pub async fn accept_pages(&self) -> IncomingPages {
        let request = self.0.pages.lock().await.recv().await;
        request.expect("the data plane itself holds a sender of this queue")
    }
}

async fn ask(
    connection: &quinn::Connection,
    handle: &ConnectionHandle,
    request: &PagesRequest,
) -> Result<Bytes, PagesError> {
    let peer = || handle.peer().clone();
    let lost = |loss| PagesError::Lost { peer: peer(), loss };
    let garbage = |reason: String| PagesError::Garbage {
        peer: peer(),
        reason,
    };
    let broken = |error: ReadError| match error {
        ReadError::Reset(_) => garbage("it gave up".to_owned()),
        error => lost(handle.loss_after(&error)),
    };
    let opened = connection.open_bi().await;
    let (send, receive) = opened.map_err(|error| lost((&error).into()))?;
    let (mut outbox, mut inbox) = (Outbox::new(send), Inbox::new(receive));
    outbox.put_message(codec::encode(&Opening::from(request)));
    // A peer that stops reading says why in its answer, or gives none.
    match outbox.flush().await {
        Ok(()) | Err(quinn::WriteError::Stopped(_)) => outbox.finish(),
        Err(error) => return Err(lost(handle.loss_after(&error))),
    }
    let too_short = || garbage("its answer is cut short".to_owned());
    let checksum = match inbox.message::<Answer>(ANSWER_MAX_BYTES).await {
        Ok(Some(Answer::Found { checksum })) => checksum,
        Ok(Some(Answer::Missing)) => return Err(PagesError::Missing { peer: peer() }),
        Ok(None) | Err(MessageError::CutShort) => return Err(too_short()),
        Err(MessageError::Read(error)) => return Err(broken(error)),
        Err(MessageError::TooLong(len)) => {
            return Err(garbage(format!("its answer claims {len} bytes")));
        }
        Err(MessageError::Decode(error)) => return Err(garbage(error.to_string())),
    };
    let len = request.bytes();
    if !inbox.fill(len).await.map_err(broken)? {
        return Err(too_short());
    }
    let pages = inbox.take(len);
    match crc32fast::hash(&pages) == checksum {
        true => Ok(pages),
        false => Err(PagesError::Damaged { peer: peer() }),
    }
}

#[cfg(test)]
pub(crate) fn encode_request(request: &PagesRequest) -> Vec<u8> {
    codec::encode(&Opening::from(request))
}

#[cfg(test)]
pub(crate) fn encode_answer(pages: &[u8]) -> Vec<u8> {
    let checksum = crc32fast::hash(pages);
    codec::encode(&Answer::Found { checksum })
}

/// Reads a request and hands it over.
pub(super) async fn receive_request(
    (send, receive): (SendStream, RecvStream),
    peer: Peer,
    requests: mpsc::Sender<IncomingPages>,
) {
    let mut inbox = Inbox::new(receive);
    let opening = inbox.message::<Opening>(REQUEST_MAX_BYTES);
    let reason = match within(OPENING_TIMEOUT, opening).await {
        Some(Ok(Some(opening))) => match opening.check() {
            Ok(request) => {
                let outbox = Outbox::new(send);
                let request = IncomingPages {
                    request,
                    outbox,
                    peer,
                };
                // Fails when the data plane is gone; the request goes with it.
                requests.send(request).await.ok();
                return;
            }
            Err(reason) => reason,
        },
        // Withdrawn by the sender, or lost with its connection, which is logged once.
        Some(Ok(None) | Err(MessageError::Read(_))) => return,
        Some(Err(MessageError::CutShort)) => "it is cut short".to_owned(),
        Some(Err(MessageError::TooLong(len))) => format!("it claims {len} bytes"),
        Some(Err(MessageError::Decode(error))) => error.to_string(),
        None => "it did not come in time".to_owned(),
    };
    tracing::warn!(%peer, "a request for pages is refused: {reason}");
}
