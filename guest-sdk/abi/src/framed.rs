//! Length-framed records: how native sources hand records to a guest and how a guest hands records to native
//! sinks. Each record is its length as four little-endian bytes, then its bytes.
//!
//! Edges between guests never use this: there a batch is encoded and decoded by the guests alone.

use alloc::vec::Vec;

/// The bytes that frame each record.
pub const HEADER_BYTES: usize = 4;

/// Appends one record to a batch.
///
/// # Panics
/// When the record is 4 GiB or longer, which no linear memory of 32-bit addresses can hold beside its frame.
pub fn push(batch: &mut Vec<u8>, record: &[u8]) {
    let len = u32::try_from(record.len()).expect("a record is shorter than 4 GiB");
    batch.extend_from_slice(&len.to_le_bytes());
    batch.extend_from_slice(record);
}

/// The records of a batch, in order. A batch cut short yields `Err(Truncated)` once, last.
#[must_use]
pub fn records(batch: &[u8]) -> Records<'_> {
    Records { rest: batch }
}

/// A batch ended in the middle of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

impl core::fmt::Display for Truncated {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a batch of framed records ends in the middle of a record")
    }
}

impl core::error::Error for Truncated {}

/// The iterator behind [`records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// The bytes not yet read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<&'a [u8], Truncated>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((head, tail)) = self.rest.split_first_chunk::<HEADER_BYTES>() else {
            self.rest = &[];
            return Some(Err(Truncated));
        };
        let len = u32::from_le_bytes(*head) as usize;
        if tail.len() < len {
            self.rest = &[];
            return Some(Err(Truncated));
        }
        let (record, rest) = tail.split_at(len);
        self.rest = rest;
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order_and_a_cut_is_seen() {
        let mut batch = Vec::new();
        for record in [&b"one"[..], b"", b"three"] {
            push(&mut batch, record);
        }
        let read: Vec<_> = records(&batch)
            .map(|record| record.expect("whole"))
            .collect();
        assert_eq!(read, [&b"one"[..], b"", b"three"]);
        batch.pop();
        assert_eq!(records(&batch).last(), Some(Err(Truncated)));
    }
}
