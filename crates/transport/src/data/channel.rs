//! The two ends of a channel: frames in order on one unidirectional stream. The stream's flow control is the credit: a
//! receiver that is not asked takes nothing, and its sender waits. Neither end looks into a payload.

use std::collections::VecDeque;
use std::time::Duration;

use quinn::{ReadError, WriteError};
use serde::{Deserialize, Serialize};
use tidemill_protocol::codec::{self, Versioned};
use tidemill_protocol::{
    ChannelHeader, FRAME_HEADER_BYTES, FRAME_PAYLOAD_MAX_BYTES, Frame, FrameBody, FrameError,
};

use crate::control::ConnectionHandle;
use crate::loss::{ConnectError, ConnectionLoss, Peer};
use crate::stream::{Inbox, Outbox, within};

/// How much [`ChannelSender::send_all`] hands to QUIC at once, in bytes.
const SEND_BATCH_BYTES: usize = 64 << 10;
/// How long opening a stream may wait for the peer to allow one more.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The first message of a channel's stream.
#[derive(Serialize, Deserialize)]
pub(super) struct ChannelOpening(pub(super) ChannelHeader);

impl Versioned for ChannelOpening {
    const KIND: [u8; 2] = *b"CH";
    const VERSION: u16 = 1;
    const NAME: &'static str = "channel opening";
}

/// Why a channel is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// There is no connection with the peer.
    #[error("a channel cannot be opened")]
    Connect(#[source] ConnectError),
    /// The connection with the peer is gone, and all its channels with it.
    #[error("the data connection with {peer} is lost")]
    Lost {
        /// The other end.
        peer: Peer,
        /// Why.
        #[source]
        loss: ConnectionLoss,
    },
    /// The peer allows no more channels on this connection.
    #[error(
        "{peer} allows no more channels from this process: lower the parallelism or raise its `channels_max`"
    )]
    TooMany {
        /// The other end.
        peer: Peer,
    },
    /// The receiver has stopped reading: its task is gone, or refuses the attempt.
    #[error("{peer} has stopped reading the channel")]
    Stopped {
        /// The other end.
        peer: Peer,
    },
    /// The sender has given the channel up before its end.
    #[error("{peer} has given the channel up before its end")]
    Reset {
        /// The other end.
        peer: Peer,
    },
    /// The stream ended inside a frame.
    #[error("the channel from {peer} ended in the middle of frame {sequence}")]
    CutShort {
        /// The other end.
        peer: Peer,
        /// The frame's number.
        sequence: u64,
    },
    /// A frame was lost or doubled.
    #[error("the channel from {peer} brought frame {found} where frame {expected} was due")]
    Sequence {
        /// The other end.
        peer: Peer,
        /// The number that was due.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// Something followed the end of input.
    #[error("the channel from {peer} goes on after its end of input")]
    AfterEnd {
        /// The other end.
        peer: Peer,
    },
    /// The bytes are no frame.
    #[error("the channel from {peer} brought something that is no frame")]
    Frame {
        /// The other end.
        peer: Peer,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// A payload is longer than a receiver accepts.
    #[error(
        "a frame of {len} bytes is longer than the {FRAME_PAYLOAD_MAX_BYTES} that a channel carries"
    )]
    TooLong {
        /// The payload's length in bytes.
        len: usize,
    },
}

/// The end of a channel that sends. Dropped before [`ChannelSender::finish`], it gives the channel up.
pub struct ChannelSender {
    outbox: Outbox,
    handle: ConnectionHandle,
    header: ChannelHeader,
    finished: bool,
}

/// The end of a channel that receives. Dropped, it stops the sender.
pub struct ChannelReceiver {
    inbox: Inbox,
    handle: ConnectionHandle,
    header: ChannelHeader,
    due: u64,
    input_ended: bool,
}

impl ChannelSender {
    pub(super) async fn open(
        connection: &quinn::Connection,
        handle: ConnectionHandle,
        header: ChannelHeader,
    ) -> Result<Self, ChannelError> {
        let stream = match within(OPEN_TIMEOUT, connection.open_uni()).await {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => {
                return Err(ChannelError::Lost {
                    peer: handle.peer().clone(),
                    loss: (&error).into(),
                });
            }
            None => {
                return Err(ChannelError::TooMany {
                    peer: handle.peer().clone(),
                });
            }
        };
        let mut sender = Self {
            outbox: Outbox::new(stream),
            handle,
            header,
            finished: false,
        };
        sender
            .outbox
            .put_message(codec::encode(&ChannelOpening(header)));
        sender.flush().await?;
        Ok(sender)
    }

    /// Sends a frame. Returns when QUIC has taken it, which waits while the receiver's window is full. When the future
    /// is dropped before, the frame stays in the sender and goes out first with the next call.
    ///
    /// # Errors
    /// When the channel is of no further use, or the payload is too long.
    pub async fn send(&mut self, frame: Frame) -> Result<(), ChannelError> {
        self.put(frame)?;
        self.flush().await
    }

    /// Sends frames from the front of a queue until it is empty, many small ones together. When the future is dropped,
    /// those taken from the queue stay in the sender (at most 64 KiB and one frame) and go out first with the next call.
    ///
    /// # Errors
    /// When the channel is of no further use, or a payload is too long.
    pub async fn send_all(&mut self, frames: &mut VecDeque<Frame>) -> Result<(), ChannelError> {
        loop {
            while self.outbox.pending_bytes() < SEND_BATCH_BYTES {
                let Some(frame) = frames.pop_front() else {
                    return self.flush().await;
                };
                self.put(frame)?;
            }
            self.flush().await?;
        }
    }

    /// Sends what a dropped call left behind and ends the channel in order. Delivery goes on in the background for as
    /// long as the connection lives.
    ///
    /// # Errors
    /// When the channel is of no further use.
    pub async fn finish(&mut self) -> Result<(), ChannelError> {
        self.flush().await?;
        self.outbox.finish();
        self.finished = true;
        Ok(())
    }

    /// Gives the channel up: the receiver gets [`ChannelError::Reset`], and what it has not read is lost.
    pub fn reset(mut self) {
        self.finished = true;
        self.outbox.reset();
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.handle.peer()
    }

    /// Which channel this is.
    #[must_use]
    pub fn header(&self) -> ChannelHeader {
        self.header
    }

    fn put(&mut self, frame: Frame) -> Result<(), ChannelError> {
        if let FrameBody::Data(payload) = &frame.body
            && payload.len() > FRAME_PAYLOAD_MAX_BYTES
        {
            return Err(ChannelError::TooLong { len: payload.len() });
        }
        self.outbox.put_slice(&frame.encode_head());
        if let FrameBody::Data(payload) = frame.body {
            self.outbox.put(payload);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), ChannelError> {
        let peer = || self.handle.peer().clone();
        self.outbox.flush().await.map_err(|error| match error {
            WriteError::Stopped(_) => ChannelError::Stopped { peer: peer() },
            error => ChannelError::Lost {
                peer: peer(),
                loss: self.handle.loss_after(&error),
            },
        })
    }
}

impl Drop for ChannelSender {
    fn drop(&mut self) {
        if !self.finished {
            self.outbox.reset();
        }
    }
}

impl ChannelReceiver {
    pub(super) fn new(inbox: Inbox, handle: ConnectionHandle, header: ChannelHeader) -> Self {
        Self {
            inbox,
            handle,
            header,
            due: 0,
            input_ended: false,
        }
    }

    /// The next frame; `None` when the sender has finished. Not calling it is backpressure. May be dropped and called
    /// again.
    ///
    /// # Errors
    /// When the channel is of no further use; the sender is then stopped.
    pub async fn recv(&mut self) -> Result<Option<Frame>, ChannelError> {
        let result = self.read_frame().await;
        if result.is_err() {
            self.inbox.stop();
        }
        result
    }

    /// The next frame if it is already in this process's hands, without waiting: what [`ChannelReceiver::recv`] has read
    /// ahead. `None` says nothing about the channel's end.
    ///
    /// # Errors
    /// When the channel is of no further use; the sender is then stopped.
    pub fn recv_held(&mut self) -> Result<Option<Frame>, ChannelError> {
        let result = self.take_frame();
        if result.is_err() {
            self.inbox.stop();
        }
        result
    }

    /// Stops the sender; it gets [`ChannelError::Stopped`].
    pub fn stop(mut self) {
        self.inbox.stop();
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        self.handle.peer()
    }

    /// Which channel this is.
    #[must_use]
    pub fn header(&self) -> ChannelHeader {
        self.header
    }

    async fn read_frame(&mut self) -> Result<Option<Frame>, ChannelError> {
        if !self.fill(FRAME_HEADER_BYTES).await? {
            return if self.inbox.held_bytes() == 0 {
                Ok(None)
            } else {
                Err(self.cut_short())
            };
        }
        let payload_bytes = self.check_head()?.1;
        if !self.fill(FRAME_HEADER_BYTES + payload_bytes).await? {
            return Err(self.cut_short());
        }
        self.take_frame()
    }

    /// Takes the frame that is wholly here, if one is.
    fn take_frame(&mut self) -> Result<Option<Frame>, ChannelError> {
        if self.inbox.held_bytes() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let (kind, payload_bytes) = self.check_head()?;
        if self.inbox.held_bytes() < FRAME_HEADER_BYTES + payload_bytes {
            return Ok(None);
        }
        self.inbox.skip(FRAME_HEADER_BYTES);
        let frame = Frame::decode_body(self.due, kind, self.inbox.take(payload_bytes))
            .map_err(|source| self.no_frame(source))?;
        self.due += 1;
        self.input_ended = frame.body == FrameBody::EndOfInput;
        Ok(Some(frame))
    }

    /// The kind and payload length in the header that is here.
    fn check_head(&self) -> Result<(u8, usize), ChannelError> {
        let (found, kind, payload_bytes) =
            Frame::decode_head(&self.inbox.peek()).map_err(|source| self.no_frame(source))?;
        if self.input_ended {
            return Err(ChannelError::AfterEnd {
                peer: self.handle.peer().clone(),
            });
        }
        if found != self.due {
            return Err(ChannelError::Sequence {
                peer: self.handle.peer().clone(),
                expected: self.due,
                found,
            });
        }
        Ok((kind, payload_bytes))
    }

    async fn fill(&mut self, len: usize) -> Result<bool, ChannelError> {
        let peer = || self.handle.peer().clone();
        self.inbox.fill(len).await.map_err(|error| match error {
            ReadError::Reset(_) => ChannelError::Reset { peer: peer() },
            error => ChannelError::Lost {
                peer: peer(),
                loss: self.handle.loss_after(&error),
            },
        })
    }

    fn cut_short(&self) -> ChannelError {
        ChannelError::CutShort {
            peer: self.handle.peer().clone(),
            sequence: self.due,
        }
    }

    fn no_frame(&self, source: FrameError) -> ChannelError {
        ChannelError::Frame {
            peer: self.handle.peer().clone(),
            source,
        }
    }
}

impl std::fmt::Debug for ChannelSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChannelSender")
            .field("header", &self.header)
            .field("peer", self.handle.peer())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ChannelReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChannelReceiver")
            .field("header", &self.header)
            .field("peer", self.handle.peer())
            .finish_non_exhaustive()
    }
}
