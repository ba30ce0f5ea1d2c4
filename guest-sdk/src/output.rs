//! The ends of a stage: records are encoded into a buffer per target, and full buffers go to the host. It never
//! blocks, and never holds back a record past a flush.

use core::marker::PhantomData;
use std::cell::Cell;
use std::rc::Rc;

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use tidemill_abi::{KeyHasher, Partitioning, TARGET_ALL, framed, key_group, task_of_key_group};

use crate::context::Context;
use crate::format::Format;
use crate::push::{Progress, Push, Signal};
use crate::record::{Record, encode};
use crate::state::Key;

/// Bytes at which a buffer is handed to the host.
const BATCH_BYTES: usize = 32 * 1024;

/// A buffer that grows up to a batch.
fn buffer() -> Vec<u8> {
    // A little more than a batch: the record that fills it seldom makes it grow.
    Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 8)
}

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
    buffers: Vec<Vec<u8>>,
    key_type: PhantomData<fn() -> K>,
}

impl<K, F> HashEdge<K, F> {
    pub(crate) fn new(port: Port, key: F) -> Self {
        let buffers = (0..port.parallelism).map(|_| buffer()).collect();
        Self {
            port,
            key,
            buffers,
            key_type: PhantomData,
        }
    }
}

impl<T: Record, K: Key, F: Fn(&T) -> K + 'static> Push<T> for HashEdge<K, F> {
    #[inline]
    fn push(&mut self, record: T, cx: &mut Context) {
        let hash = key_hash(&(self.key)(&record));
        let group = key_group(hash, self.port.max_parallelism);
        let target = task_of_key_group(group, self.port.parallelism, self.port.max_parallelism);
        let buffer = &mut self.buffers[target as usize];
        encode(&record, buffer);
        cx.records_out += 1;
        if buffer.len() >= BATCH_BYTES {
            cx.emit(self.port.output, target, buffer);
            buffer.clear();
        }
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        if signal == Signal::Flush {
            for (target, buffer) in (0..).zip(&mut self.buffers) {
                if !buffer.is_empty() {
                    cx.emit(self.port.output, target, buffer);
                    buffer.clear();
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
    buffer: Vec<u8>,
}

impl BatchEdge {
    pub(crate) fn new(port: Port, subtask: u32, partitioning: Rc<Cell<Partitioning>>) -> Self {
        // Senders begin at different receivers, so that few records are still spread.
        Self {
            port,
            partitioning,
            turn: subtask % port.parallelism.max(1),
            buffer: buffer(),
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
        cx.emit(self.port.output, target, &self.buffer);
        self.buffer.clear();
    }
}

impl<T: Record> Push<T> for BatchEdge {
    #[inline]
    fn push(&mut self, record: T, cx: &mut Context) {
        encode(&record, &mut self.buffer);
        cx.records_out += 1;
        if self.buffer.len() >= BATCH_BYTES {
            self.send(cx);
        }
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        if signal == Signal::Flush && !self.buffer.is_empty() {
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
            buffer: buffer(),
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
