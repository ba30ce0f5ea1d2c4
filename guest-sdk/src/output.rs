//! The ends of a stage: records are encoded into a buffer per target, and full buffers go to the host. It never
//! blocks, and never holds back a record past a flush.

use core::marker::PhantomData;
use std::cell::Cell;
use std::rc::Rc;

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use tidemill_abi::{KeyHasher, Partitioning, TARGET_ALL, framed, key_group, task_of_key_group};

use crate::batch::{BATCH_BYTES, Batch};
use crate::context::Context;
use crate::format::Format;
use crate::push::{Progress, Push, Signal};
use crate::record::Record;
use crate::state::Key;

/// Which output of a stage this is, and how many subtasks receive it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    pub(crate) output: u32,
    pub(crate) parallelism: u32,
    pub(crate) max_parallelism: u32,
}

/// An edge that sends each record to the owner of its key's group.
pub(crate) struct HashEdge<K, F> {
    port: Port,
    key: F,
    /// The subtask that owns each key group.
    owners: Vec<u32>,
    batches: Vec<Batch>,
    key_type: PhantomData<fn() -> K>,
}

impl<K, F> HashEdge<K, F> {
    pub(crate) fn new(port: Port, key: F) -> Self {
        let owner = |group| task_of_key_group(group, port.parallelism, port.max_parallelism);
        Self {
            port,
            key,
            owners: (0..port.max_parallelism).map(owner).collect(),
            batches: (0..port.parallelism).map(|_| Batch::new()).collect(),
            key_type: PhantomData,
        }
    }
}

impl<T: Record, K: Key, F: Fn(&T) -> K + 'static> Push<T> for HashEdge<K, F> {
    #[inline]
    fn push(&mut self, record: T, cx: &mut Context) {
        let hash = key_hash(&(self.key)(&record));
        // As many groups as there are owners: looked up, because dividing costs more than all the rest.
        let group = key_group(hash, self.owners.len() as u32);
        let target = self.owners[group as usize];
        let batch = &mut self.batches[target as usize];
        batch.push(&record);
        cx.records_out += 1;
        if batch.is_full() {
            cx.emit(self.port.output, target, batch.take());
        }
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        if signal == Signal::Flush {
            for (target, batch) in (0..).zip(&mut self.batches) {
                if !batch.is_empty() {
                    cx.emit(self.port.output, target, batch.take());
                }
            }
        }
        Progress::Done
    }
}

/// The hash of a key: of its postcard encoding, by the ABI's hash.
#[inline]
pub fn key_hash<K: Serialize>(key: &K) -> u64 {
    let mut serializer = postcard::Serializer {
        output: Hashing(KeyHasher::default()),
    };
    if let Err(error) = key.serialize(&mut serializer) {
        panic!(
            "a key of type `{}` could not be encoded: {error}",
            core::any::type_name::<K>()
        );
    }
    serializer.output.0.finish()
}

/// Lets postcard write into the hash.
struct Hashing(KeyHasher);

impl Flavor for Hashing {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.bytes(bytes);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.byte(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// An edge whose batches go whole: to the same subtask, to each in turn, or to all.
pub(crate) struct BatchEdge {
    port: Port,
    // A union's edges are decided last, when both sides' parallelism is known.
    partitioning: Rc<Cell<Partitioning>>,
    turn: u32,
    batch: Batch,
}

impl BatchEdge {
    pub(crate) fn new(port: Port, subtask: u32, partitioning: Rc<Cell<Partitioning>>) -> Self {
        // Senders begin at different receivers, so that few records are still spread.
        Self {
            port,
            partitioning,
            turn: subtask % port.parallelism.max(1),
            batch: Batch::new(),
        }
    }

    fn send(&mut self, cx: &mut Context) {
        let target = match self.partitioning.get() {
            Partitioning::Broadcast => TARGET_ALL,
            Partitioning::Rebalance => {
                let target = self.turn;
                self.turn = (self.turn + 1) % self.port.parallelism.max(1);
                target
            }
            Partitioning::Forward | Partitioning::Hash => 0,
        };
        cx.emit(self.port.output, target, self.batch.take());
    }
}

impl<T: Record> Push<T> for BatchEdge {
    #[inline]
    fn push(&mut self, record: T, cx: &mut Context) {
        self.batch.push(&record);
        cx.records_out += 1;
        if self.batch.is_full() {
            self.send(cx);
        }
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        if signal == Signal::Flush && !self.batch.is_empty() {
            self.send(cx);
        }
        Progress::Done
    }
}

/// A native sink: framed records, formatted here.
pub(crate) struct SinkOutput<R> {
    output: u32,
    format: R,
    buffer: Vec<u8>,
}

impl<R> SinkOutput<R> {
    pub(crate) fn new(output: u32, format: R) -> Self {
        Self {
            output,
            format,
            // A little more than a batch: the record that fills it seldom makes it grow.
            buffer: Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 8),
        }
    }
}

impl<T: 'static, R: Format<T>> Push<T> for SinkOutput<R> {
    #[inline]
    fn push(&mut self, record: T, cx: &mut Context) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; framed::HEADER_BYTES]);
        self.format.write(&record, &mut self.buffer);
        let body = start + framed::HEADER_BYTES;
        let len = u32::try_from(self.buffer.len() - body)
            .expect("a 32-bit memory holds no longer record");
        self.buffer[start..body].copy_from_slice(&len.to_le_bytes());
        cx.records_out += 1;
        if self.buffer.len() >= BATCH_BYTES {
            cx.emit(self.output, 0, &self.buffer);
            self.buffer.clear();
        }
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        if signal == Signal::Flush && !self.buffer.is_empty() {
            cx.emit(self.output, 0, &self.buffer);
            self.buffer.clear();
        }
        Progress::Done
    }
}

/// The discarding sink: counts records and drops them where they are.
pub(crate) struct DiscardOutput;

impl<T: 'static> Push<T> for DiscardOutput {
    #[inline]
    fn push(&mut self, _record: T, cx: &mut Context) {
        cx.records_out += 1;
    }

    fn signal(&mut self, _signal: Signal, _cx: &mut Context) -> Progress {
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_abi::hash_bytes;

    #[test]
    fn a_keys_hash_is_that_of_its_encoding() {
        for key in ["", "a", "carrier", "longer than two words of eight bytes"] {
            assert_eq!(
                key_hash(&key.to_owned()),
                hash_bytes(&postcard::to_allocvec(key).expect("encodes"))
            );
        }
        for key in [0i64, -1, 63, 64, 99_999, i64::MIN] {
            assert_eq!(
                key_hash(&key),
                hash_bytes(&postcard::to_allocvec(&key).expect("encodes"))
            );
        }
        let pair = ("EWR".to_owned(), 7u8);
        assert_eq!(
            key_hash(&pair),
            hash_bytes(&postcard::to_allocvec(&pair).expect("encodes"))
        );
    }
}
