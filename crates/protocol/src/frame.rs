//! Frames: what flows through a channel, and the header that opens its stream.
//!
//! A channel's stream carries its (job, attempt, channel) once, in a [`ChannelHeader`], because a revert opens new
//! streams; each frame then carries its sequence number, so that a receiver can prove that none was lost or doubled.
//! This file never reads a socket.

use alloc::vec::Vec;
use bytes::{Buf, BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::{AttemptId, ChannelId, CheckpointId, Epoch, JobId};

/// The first message on a channel's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChannelHeader {
    /// Whose records these are.
    pub job: JobId,
    /// Which execution they belong to; a receiver refuses an older one than it runs.
    pub attempt: AttemptId,
    /// Which channel.
    pub channel: ChannelId,
}

/// Bytes before each frame's payload on a stream: sequence (8), kind (1), payload length (4), little-endian.
pub const FRAME_HEADER_BYTES: usize = 13;

/// The longest payload that a receiver accepts: a guest's largest single emission fits many times.
pub const FRAME_PAYLOAD_MAX_BYTES: usize = 64 << 20;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Counts from 0 in each channel of each attempt.
    pub sequence: u64,
    /// What it says.
    pub body: FrameBody,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameBody {
    /// A batch of records (or a split assignment, on a [`crate::Routing::Splits`] edge).
    Data(Bytes),
    /// Everything before it belongs to the checkpoint, nothing after it does.
    Barrier(CheckpointId),
    /// No later record of this channel has an earlier event time, in milliseconds.
    Watermark(i64),
    /// Nothing follows.
    EndOfInput,
}

/// Bytes that are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind byte names no kind.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// The payload's length cannot be right for the kind.
    #[error("a frame of kind {kind} cannot have {len} bytes of payload")]
    Length {
        /// The kind byte.
        kind: u8,
        /// The claimed length in bytes.
        len: usize,
    },
}

const DATA: u8 = 0;
const BARRIER: u8 = 1;
const WATERMARK: u8 = 2;
const END_OF_INPUT: u8 = 3;

impl Frame {
    /// The bytes this frame counts for against a queue's bound: its payload and the header.
    #[must_use]
    pub fn weight(&self) -> usize {
        FRAME_HEADER_BYTES
            + match &self.body {
                FrameBody::Data(payload) => payload.len(),
                FrameBody::Barrier(_) | FrameBody::Watermark(_) | FrameBody::EndOfInput => 0,
            }
    }

    /// The header to send; for data, the payload follows it as it is, otherwise what is returned is the whole frame.
    #[must_use]
    pub fn encode_head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(FRAME_HEADER_BYTES + 16);
        head.put_u64_le(self.sequence);
        match &self.body {
            FrameBody::Data(payload) => {
                head.put_u8(DATA);
                head.put_u32_le(
                    u32::try_from(payload.len())
                        .expect("payloads are bounded by FRAME_PAYLOAD_MAX_BYTES"),
                );
            }
            FrameBody::Barrier(checkpoint) => {
                head.put_u8(BARRIER);
                head.put_u32_le(16);
                head.put_u64_le(checkpoint.epoch.0);
                head.put_u64_le(checkpoint.counter);
            }
            FrameBody::Watermark(timestamp_ms) => {
                head.put_u8(WATERMARK);
                head.put_u32_le(8);
                head.put_i64_le(*timestamp_ms);
            }
            FrameBody::EndOfInput => {
                head.put_u8(END_OF_INPUT);
                head.put_u32_le(0);
            }
        }
        head
    }

    /// Reads a header: the sequence, the kind byte and the length of the payload that follows.
    ///
    /// # Errors
    /// When the kind is unknown or the length impossible for it; the stream is then of no further use.
    pub fn decode_head(head: &[u8; FRAME_HEADER_BYTES]) -> Result<(u64, u8, usize), FrameError> {
        let mut head = &head[..];
        let (sequence, kind, len) = (head.get_u64_le(), head.get_u8(), head.get_u32_le() as usize);
        let fits = match kind {
            DATA => len <= FRAME_PAYLOAD_MAX_BYTES,
            BARRIER => len == 16,
            WATERMARK => len == 8,
            END_OF_INPUT => len == 0,
            _ => return Err(FrameError::Kind(kind)),
        };
        if fits {
            Ok((sequence, kind, len))
        } else {
            Err(FrameError::Length { kind, len })
        }
    }

    /// Joins what [`Frame::decode_head`] returned with its payload.
    ///
    /// # Errors
    /// When the kind is unknown or the payload is not of the announced length.
    pub fn decode_body(sequence: u64, kind: u8, mut payload: Bytes) -> Result<Self, FrameError> {
        let len = payload.len();
        let body = match (kind, len) {
            (DATA, _) => FrameBody::Data(payload),
            (BARRIER, 16) => FrameBody::Barrier(CheckpointId::new(
                Epoch(payload.get_u64_le()),
                payload.get_u64_le(),
            )),
            (WATERMARK, 8) => FrameBody::Watermark(payload.get_i64_le()),
            (END_OF_INPUT, 0) => FrameBody::EndOfInput,
            (BARRIER | WATERMARK | END_OF_INPUT, _) => {
                return Err(FrameError::Length { kind, len });
            }
            _ => return Err(FrameError::Kind(kind)),
        };
        Ok(Self { sequence, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_the_wire(frame: &Frame) -> Frame {
        let head = frame.encode_head();
        let (fixed, rest) = head
            .split_first_chunk()
            .expect("a head is at least its fixed part");
        let (sequence, kind, len) = Frame::decode_head(fixed).expect("own heads decode");
        let payload = match &frame.body {
            FrameBody::Data(payload) => payload.clone(),
            _ => Bytes::copy_from_slice(rest),
        };
        assert_eq!(payload.len(), len);
        Frame::decode_body(sequence, kind, payload).expect("own frames decode")
    }

    #[test]
    fn frames_survive_the_wire() {
        let bodies = [
            FrameBody::Data(Bytes::from_static(b"records")),
            FrameBody::Data(Bytes::new()),
            FrameBody::Barrier(CheckpointId::new(Epoch(7), 42)),
            FrameBody::Watermark(-5),
            FrameBody::EndOfInput,
        ];
        for (sequence, body) in (0..).zip(bodies) {
            let frame = Frame { sequence, body };
            assert_eq!(through_the_wire(&frame), frame);
        }
    }

    #[test]
    fn impossible_heads_are_refused() {
        let head = |kind: u8, len: u32| {
            let mut head = [0; FRAME_HEADER_BYTES];
            head[8] = kind;
            head[9..].copy_from_slice(&len.to_le_bytes());
            Frame::decode_head(&head)
        };
        assert_eq!(head(9, 0), Err(FrameError::Kind(9)));
        assert!(matches!(
            head(BARRIER, 15),
            Err(FrameError::Length {
                kind: BARRIER,
                len: 15
            })
        ));
        assert!(matches!(
            head(DATA, u32::MAX),
            Err(FrameError::Length { .. })
        ));
    }
}
