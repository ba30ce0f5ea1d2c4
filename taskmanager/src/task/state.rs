//! The host's part of a task's image: everything about the task that is not in the guest's memory.
//! It never holds records; those are in the guest or in channels.

use serde::{Deserialize, Serialize};
use tidemill_protocol::ChannelId;
use tidemill_protocol::codec::Versioned;

/// Where a task stands in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// It reads its inputs.
    #[default]
    Running,
    /// Every input has ended; the guest is saying its last words.
    Finishing,
    /// It has said everything.
    Finished,
}

/// The host's part of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostState {
    /// The latest processing time the guest was told, in milliseconds since the Unix epoch.
    pub(crate) now_ms: u64,
    /// Where the task stands.
    pub(crate) phase: Phase,
    /// The guest's last call answered `More`.
    pub(crate) unfinished_call: bool,
    /// When the guest wants its timer called.
    pub(crate) timer_at_ms: Option<u64>,
    /// A polled source has ended.
    pub(crate) source_ended: bool,
    /// Channels whose end of input has been read.
    pub(crate) ended_channels: Vec<ChannelId>,
    /// The latest watermark of each channel that has sent one.
    pub(crate) watermarks: Vec<(ChannelId, i64)>,
    /// The native source reader's state.
    pub(crate) reader: Option<Vec<u8>>,
    /// The state of each native sink, by output.
    pub(crate) sinks: Vec<(u32, Vec<u8>)>,
    /// A native task's own state.
    pub(crate) body: Vec<u8>,
}

impl Versioned for HostState {
    const KIND: [u8; 2] = *b"HS";
    const VERSION: u16 = 1;
    const NAME: &'static str = "host state of a task";
}
