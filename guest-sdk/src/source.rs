//! Sources written in the guest, and how the records of native sources arrive. A source never blocks and never reads a
//! clock: it gives a record, says until when it is idle, or says that it has ended.

use crate::context::Context;
use crate::record::Bytes;

/// A source written in the guest. Its fields are its position, and so its checkpoint: it needs no other.
///
/// ```
/// use tidemill::prelude::*;
///
/// /// The numbers below `end`, shared out among the subtasks.
/// struct Numbers { next: u64, step: u64, end: u64 }
///
/// impl Source for Numbers {
///     type Item = u64;
///
///     fn open(&mut self, subtask: u32, parallelism: u32) {
///         (self.next, self.step) = (subtask.into(), parallelism.into());
///     }
///
///     fn next(&mut self, _cx: &Context) -> Next<u64> {
///         if self.next >= self.end {
///             return Next::End;
///         }
///         let n = self.next;
///         self.next += self.step;
///         Next::Record(n)
///     }
/// }
/// ```
pub trait Source: 'static {
    /// The records it makes.
    type Item: 'static;

    /// Called once, before the first record, with the subtask's number and how many there are.
    fn open(&mut self, subtask: u32, parallelism: u32) {
        let _ = (subtask, parallelism);
    }

    /// The next record, if there is one now.
    fn next(&mut self, cx: &Context) -> Next<Self::Item>;
}

/// What a source has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// A record.
    Record(T),
    /// No record before this processing time.
    Idle {
        /// In milliseconds since the Unix epoch.
        until_ms: u64,
    },
    /// No record ever again.
    End,
}

/// A record as a native source hands it over: made from its bytes.
pub trait FromFrame: 'static {
    /// Reads a record. Bytes that are none end the task.
    fn from_frame(bytes: &[u8]) -> Self;
}

/// A line of text. Bytes that are not UTF-8 are replaced by U+FFFD.
impl FromFrame for String {
    #[inline]
    fn from_frame(bytes: &[u8]) -> Self {
        match core::str::from_utf8(bytes) {
            Ok(line) => line.to_owned(),
            Err(_) => Self::from_utf8_lossy(bytes).into_owned(),
        }
    }
}

impl FromFrame for Bytes {
    #[inline]
    fn from_frame(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

/// A number of the native generator.
impl FromFrame for u64 {
    #[inline]
    fn from_frame(bytes: &[u8]) -> Self {
        let Ok(bytes) = bytes.try_into() else {
            panic!("a number of the generator has 8 bytes, not {}", bytes.len())
        };
        Self::from_le_bytes(bytes)
    }
}
