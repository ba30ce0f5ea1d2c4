//! What was recorded of channels whose barriers came late: part of a task's image, processed first when it is restored.
//! It holds no barriers and no ends: the senders' own images know those.

use bytes::Bytes;
use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use tidemill_protocol::codec::{self, DecodeError, Versioned};
use tidemill_protocol::{ChannelId, Frame, FrameBody};

/// Frames of channels, each channel's in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    channels: Vec<(ChannelId, Vec<Body>)>,
    #[serde(skip)]
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Body {
    Data(#[serde(serialize_with = "write_batch", deserialize_with = "read_batch")] Bytes),
    Watermark(i64),
}

fn write_batch<S: Serializer>(batch: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(batch)
}

fn read_batch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    Vec::<u8>::deserialize(deserializer).map(Bytes::from)
}

impl Versioned for Recorded {
    const KIND: [u8; 2] = *b"RF";
    const VERSION: u16 = 1;
    const NAME: &'static str = "recorded frames of a task";
}

impl Recorded {
    /// Adds a channel's next frame; barriers and ends are left out.
    pub(crate) fn add(&mut self, channel: ChannelId, frame: &Frame) {
        let body = match &frame.body {
            FrameBody::Data(batch) => Body::Data(batch.clone()),
            FrameBody::Watermark(timestamp_ms) => Body::Watermark(*timestamp_ms),
            FrameBody::Barrier(_) | FrameBody::EndOfInput => return,
        };
        self.bytes += frame.weight();
        match self.channels.last_mut() {
            Some((last, bodies)) if *last == channel => bodies.push(body),
            _ => self.channels.push((channel, vec![body])),
        }
    }

    /// What the frames weigh, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The image's part; empty when nothing was recorded.
    pub(crate) fn encode(&self) -> Vec<u8> {
        if self.channels.is_empty() {
            return Vec::new();
        }
        codec::encode(self)
    }

    /// Reads an image's part.
    ///
    /// # Errors
    /// When the bytes are not what [`Self::encode`] makes.
    pub(crate) fn decode(channel_state: &[u8]) -> Result<Self, DecodeError> {
        if channel_state.is_empty() {
            return Ok(Self::default());
        }
        codec::decode(channel_state)
    }

    /// The frames of a channel, in order. Their numbers are those of no stream.
    pub(crate) fn frames(&self, channel: ChannelId) -> impl DoubleEndedIterator<Item = Frame> + '_ {
        let of_channel = self.channels.iter().filter(move |(id, _)| *id == channel);
        of_channel.flat_map(|(_, bodies)| bodies).map(|body| Frame {
            sequence: 0,
            body: match body {
                Body::Data(batch) => FrameBody::Data(batch.clone()),
                Body::Watermark(timestamp_ms) => FrameBody::Watermark(*timestamp_ms),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::{CheckpointId, Epoch};

    use super::*;

    fn frame(body: FrameBody) -> Frame {
        Frame { sequence: 9, body }
    }

    #[test]
    fn frames_come_back_by_channel_in_order_without_barriers() {
        let [one, other] = [0, 1].map(|from| ChannelId {
            edge: 3,
            from,
            to: 0,
        });
        let mut recorded = Recorded::default();
        recorded.add(one, &frame(FrameBody::Data(Bytes::from_static(b"a"))));
        recorded.add(other, &frame(FrameBody::Watermark(-7)));
        recorded.add(
            one,
            &frame(FrameBody::Barrier(CheckpointId::new(Epoch(1), 1))),
        );
        recorded.add(one, &frame(FrameBody::Data(Bytes::from(vec![200; 300]))));
        recorded.add(one, &frame(FrameBody::EndOfInput));
        let back = Recorded::decode(&recorded.encode()).expect("own bytes decode");
        let bodies = |channel| {
            back.frames(channel)
                .map(|frame| frame.body)
                .collect::<Vec<_>>()
        };
        let data = |bytes: &[u8]| FrameBody::Data(Bytes::copy_from_slice(bytes));
        assert_eq!(bodies(one), [data(b"a"), data(&[200; 300])]);
        assert_eq!(bodies(other), [FrameBody::Watermark(-7)]);
    }

    #[test]
    fn nothing_is_no_bytes_and_damage_is_an_error() {
        assert_eq!(Recorded::default().encode(), Vec::<u8>::new());
        assert_eq!(Recorded::decode(&[]), Ok(Recorded::default()));
        assert!(Recorded::decode(b"RF\x01\x00\xff").is_err());
        assert!(Recorded::decode(b"no").is_err());
    }
}
