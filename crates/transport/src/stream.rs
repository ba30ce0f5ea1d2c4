//! One direction of a QUIC stream as a box of bytes: what is put in goes out whole and in order, also when the future
//! that was sending it is dropped; what comes in is taken out in exact lengths. It never looks at the bytes.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tidemill_protocol::codec::{self, DecodeError, Versioned};

/// Pieces up to this length are copied together: a stream's cost is per piece, and small slices of received packets
/// would keep the whole packets in memory.
const COPY_MAX_BYTES: usize = 8 << 10;

/// Pieces handed over by one read.
const READ_PIECES: usize = 32;

/// The way out. Bytes that were put in stay until QUIC has taken them.
pub(crate) struct Outbox {
    stream: SendStream,
    open: BytesMut,
    sealed: VecDeque<Bytes>,
    pending_bytes: usize,
}

impl Outbox {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self {
            stream,
            open: BytesMut::new(),
            sealed: VecDeque::new(),
            pending_bytes: 0,
        }
    }

    /// Bytes that QUIC has not yet taken.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Copies bytes in.
    pub(crate) fn put_slice(&mut self, bytes: &[u8]) {
        self.open.extend_from_slice(bytes);
        self.pending_bytes += bytes.len();
    }

    /// Puts bytes in, without copying when they are many.
    pub(crate) fn put(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_MAX_BYTES {
            return self.put_slice(&bytes);
        }
        self.seal();
        self.pending_bytes += bytes.len();
        self.sealed.push_back(bytes);
    }

    /// Puts in an encoded message, after its length.
    pub(crate) fn put_message(&mut self, message: Vec<u8>) {
        let len = u32::try_from(message.len()).expect("messages are bounded far below 4 GiB");
        self.put_slice(&len.to_le_bytes());
        self.put(message.into());
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.sealed.push_back(self.open.split().freeze());
        }
    }

    /// Waits until QUIC has taken everything. May be dropped and called again.
    pub(crate) async fn flush(&mut self) -> Result<(), WriteError> {
        self.seal();
        while !self.sealed.is_empty() {
            let written = self
                .stream
                .write_chunks(self.sealed.make_contiguous())
                .await?;
            self.sealed.drain(..written.chunks);
            self.pending_bytes -= written.bytes;
        }
        Ok(())
    }

    /// Says that nothing follows.
    pub(crate) fn finish(&mut self) {
        // Fails only when the stream is closed already, and then there is nobody to tell.
        self.stream.finish().ok();
    }

    /// Waits until the peer has acknowledged everything up to the end, or has stopped reading.
    pub(crate) async fn acknowledged(&mut self) {
        self.stream.stopped().await.ok();
    }

    /// Gives the stream up: what the peer has not read is lost.
    pub(crate) fn reset(&mut self) {
        self.stream.reset(0_u32.into()).ok();
    }
}

/// Why no message was read.
#[derive(Debug)]
pub(crate) enum MessageError {
    /// The stream broke.
    Read(ReadError),
    /// The stream ended in the middle of a message.
    CutShort,
    /// The announced length is above the bound.
    TooLong(usize),
    /// The bytes are not the message.
    Decode(DecodeError),
}

/// The way in.
pub(crate) struct Inbox {
    stream: RecvStream,
    pieces: VecDeque<Bytes>,
    held_bytes: usize,
    ended: bool,
}

impl Inbox {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            pieces: VecDeque::new(),
            held_bytes: 0,
            ended: false,
        }
    }

    /// Bytes that are here and not yet taken.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Waits until `len` bytes are here, or the stream has ended before: then false. May be dropped and called again.
    pub(crate) async fn fill(&mut self, len: usize) -> Result<bool, ReadError> {
        while self.held_bytes < len && !self.ended {
            let mut pieces = [const { Bytes::new() }; READ_PIECES];
            match self.stream.read_chunks(&mut pieces).await? {
                None => self.ended = true,
                Some(count) => {
                    for piece in pieces.into_iter().take(count) {
                        self.held_bytes += piece.len();
                        self.pieces.push_back(piece);
                    }
                }
            }
        }
        Ok(self.held_bytes >= len)
    }

    /// The next bytes, which stay here. They must be here already.
    pub(crate) fn peek<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        let mut filled = 0;
        for piece in &self.pieces {
            let take = piece.len().min(N - filled);
            bytes[filled..filled + take].copy_from_slice(&piece[..take]);
            filled += take;
            if filled == N {
                break;
            }
        }
        bytes
    }

    /// Drops the next `len` bytes, which must be here already.
    pub(crate) fn skip(&mut self, mut len: usize) {
        self.held_bytes -= len;
        while len > 0 {
            let Some(piece) = self.pieces.front_mut() else {
                return;
            };
            let take = piece.len().min(len);
            piece.advance(take);
            len -= take;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    /// Takes the next `len` bytes, which must be here already; without copying when they are many and in one piece.
    pub(crate) fn take(&mut self, len: usize) -> Bytes {
        if len > COPY_MAX_BYTES
            && let Some(piece) = self.pieces.front_mut()
            && piece.len() >= len
        {
            let taken = piece.split_to(len);
            self.held_bytes -= len;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            return taken;
        }
        let mut taken = BytesMut::with_capacity(len);
        for piece in &self.pieces {
            let missing = len - taken.len();
            taken.extend_from_slice(&piece[..piece.len().min(missing)]);
            if taken.len() == len {
                break;
            }
        }
        self.skip(len);
        taken.freeze()
    }

    /// Takes whatever is here, waiting for at least one byte; `None` at the end.
    pub(crate) async fn take_any(&mut self) -> Result<Option<Bytes>, ReadError> {
        if !self.fill(1).await? {
            return Ok(None);
        }
        let piece = self.pieces.pop_front();
        self.held_bytes -= piece.as_ref().map_or(0, Bytes::len);
        Ok(piece)
    }

    /// Reads a message with its length; `None` when the stream ends before one begins. May be dropped and called again.
    pub(crate) async fn message<T: Versioned>(
        &mut self,
        len_max: usize,
    ) -> Result<Option<T>, MessageError> {
        if !self.fill(4).await.map_err(MessageError::Read)? {
            return if self.held_bytes == 0 {
                Ok(None)
            } else {
                Err(MessageError::CutShort)
            };
        }
        let len = u32::from_le_bytes(self.peek()) as usize;
        if len > len_max {
            return Err(MessageError::TooLong(len));
        }
        if !self.fill(4 + len).await.map_err(MessageError::Read)? {
            return Err(MessageError::CutShort);
        }
        self.skip(4);
        codec::decode(&self.take(len))
            .map(Some)
            .map_err(MessageError::Decode)
    }

    /// Tells the peer that nothing more is read.
    pub(crate) fn stop(&mut self) {
        self.stream.stop(0_u32.into()).ok();
    }
}

/// Waits for a future, but not for ever.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}
