//! The buffer that an edge encodes records into. Its memory is there before the record is, so that encoding only stores;
//! it never holds back a record: its owner hands it to the host when it is full, and at every flush.

use crate::record::refuse;
use crate::wire::Encoder;
use serde::Serialize;

/// Bytes at which a batch is handed to the host.
pub(crate) const BATCH_BYTES: usize = 32 * 1024;

/// Encoded records, one after the other.
pub(crate) struct Batch {
    memory: Vec<u8>,
    used: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            // A little more than a batch: the record that fills it seldom makes it grow.
            memory: vec![0; BATCH_BYTES + BATCH_BYTES / 8],
            used: 0,
        }
    }

    /// Appends a record.
    #[inline]
    pub(crate) fn push<T: Serialize>(&mut self, record: &T) {
        loop {
            let mut encoder = Encoder::new(&mut self.memory[self.used..]);
            match record.serialize(&mut encoder) {
                Ok(()) => {
                    self.used += encoder.written();
                    return;
                }
                Err(error) if error.is_full() => self.grow(),
                Err(error) => refuse::<T>("encoded", &error),
            }
        }
    }

    #[cold]
    fn grow(&mut self) {
        self.memory.resize(2 * self.memory.len(), 0);
    }

    /// Whether it is time to hand it over.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.used >= BATCH_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The encoded records, of which it is empty afterwards.
    pub(crate) fn take(&mut self) -> &[u8] {
        let used = core::mem::take(&mut self.used);
        &self.memory[..used]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bytes;

    #[test]
    fn a_record_larger_than_a_batch_makes_it_grow() {
        let mut batch = Batch::new();
        let records = [vec![1; 10], vec![2; 5 * BATCH_BYTES], vec![3; 10]].map(Bytes);
        let mut encoded = Vec::new();
        for record in &records {
            batch.push(record);
            encoded.extend(postcard::to_allocvec(record).expect("encodes"));
        }
        assert!(batch.is_full());
        assert_eq!(batch.take(), encoded);
        assert!(batch.is_empty() && batch.take().is_empty());
    }
}
