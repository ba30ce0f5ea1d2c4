//! The words of a Tidemill cluster: identifiers, graphs, messages, images, manifests and stored records, with their
//! versioned encodings. Everything that two processes exchange, or that outlives one, is spelled here once.
//!
//! It never performs IO, reads a clock, draws a random number or decides anything.
//!
//! Nouns: [`JobId`], [`TaskId`], [`AttemptId`], [`CheckpointId`] (who); [`ExecutionGraph`] (what runs);
//! [`Frame`] (what flows); [`control`] (what is said); [`Image`] and [`Manifest`] (what restores a task);
//! [`record`] (what the registry keeps).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod codec;
pub mod control;
mod frame;
mod graph;
mod ids;
pub mod image;
pub mod manifest;
pub mod record;
pub mod split;

pub use frame::{
    ChannelHeader, FRAME_HEADER_BYTES, FRAME_PAYLOAD_MAX_BYTES, Frame, FrameBody, FrameError,
};
pub use graph::{
    Channel, ChannelId, ExecutionEdge, ExecutionGraph, ExecutionStage, Routing, StageKind,
};
pub use ids::{
    AttemptId, CheckpointId, Epoch, Incarnation, JobId, ModuleHash, ParseIdError, TaskId,
    TaskManagerId,
};
pub use image::{Image, ImageHead};
pub use manifest::Manifest;
