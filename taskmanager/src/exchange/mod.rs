//! The exchange: moves frames between tasks, through memory within this TaskManager and over QUIC to others.
//!
//! It never looks into a frame and never decides about attempts beyond refusing streams of those it was told are over.

mod incoming;
mod outgoing;
pub(crate) mod queue;
pub(crate) mod wiring;

pub(crate) use incoming::{Incoming, OnBroken};
pub(crate) use outgoing::send_channel;
