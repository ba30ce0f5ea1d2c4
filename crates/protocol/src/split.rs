//! Splits: units of work of a connector source, handed out by its enumerator, and the hints that ask for them.
//! An assignment is a data frame on a [`crate::Routing::Splits`] edge, so it is ordered with barriers.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::codec::Versioned;
use crate::{AttemptId, JobId, TaskId};

/// What the enumerator sends to one source task in one data frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SplitAssignment {
    /// A split to read after those already received.
    Split {
        /// Unique within the source.
        id: u64,
        /// What to read; only the connector understands it.
        description: Vec<u8>,
    },
    /// The enumerator has no more for this task. `EndOfInput` follows.
    NoMore,
}

impl Versioned for SplitAssignment {
    const KIND: [u8; 2] = *b"SA";
    const VERSION: u16 = 1;
    const NAME: &'static str = "split assignment";
}

/// A source task asks its enumerator for more. A hint: it carries no state, may be lost, and may come twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitRequest {
    /// Whose source.
    pub job: JobId,
    /// The attempt that asks.
    pub attempt: AttemptId,
    /// The enumerator's task.
    pub enumerator: TaskId,
    /// The subtask of the source stage that asks.
    pub subtask: u32,
    /// How many splits it wants to have received in all, since the job began; the enumerator assigns up to that many.
    pub wanted_total: u64,
}

impl Versioned for SplitRequest {
    const KIND: [u8; 2] = *b"SR";
    const VERSION: u16 = 1;
    const NAME: &'static str = "split request";
}
