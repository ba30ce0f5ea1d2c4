//! The loops that drive a stage: one over the records of a batch, one over a guest-written source. Each stage is
//! one boxed runner, called once per batch. A runner never keeps a batch: its caller holds it and the position in it.

use core::marker::PhantomData;
use tidemill_abi::framed;

use crate::context::Context;
use crate::push::{Progress, Push, Signal};
use crate::record::{Record, decode};
use crate::source::{FromFrame, Next, Source};

/// How a poll of a guest-written source ended.
pub(crate) enum PollEnd {
    /// The batch is full: poll again.
    More,
    /// Nothing before this time, in milliseconds since the Unix epoch.
    IdleUntil(u64),
    /// The source has ended.
    Ended,
}

/// A stage, closed and boxed.
pub(crate) trait Runner: 'static {
    /// Runs the records of a batch from a position on, until the batch ends or the output is enough for one call.
    fn process(&mut self, batch: &[u8], position: &mut usize, cx: &mut Context) -> Progress;

    /// Lets a guest-written source make a batch.
    fn poll(&mut self, cx: &mut Context) -> PollEnd;

    /// Takes a port's watermark; answers the stage's, if that moved.
    fn watermark(&mut self, port: u32, timestamp_ms: i64) -> Option<i64>;

    /// Tells every operator.
    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress;
}

/// Reads records off a batch.
pub trait Decoder: 'static {
    /// A record.
    type Item: 'static;

    /// Takes the first record off a batch that is not empty.
    #[doc(hidden)]
    fn take(&mut self, batch: &mut &[u8]) -> Self::Item;
}

/// The records of an edge: postcard, one after the other.
pub(crate) struct EdgeRecords<T>(pub(crate) PhantomData<fn() -> T>);

impl<T: Record> Decoder for EdgeRecords<T> {
    type Item = T;

    #[inline]
    fn take(&mut self, batch: &mut &[u8]) -> T {
        decode(batch)
    }
}

/// The framed records of a native source.
pub struct SourceRecords<T>(pub(crate) PhantomData<fn() -> T>);

impl<T: FromFrame> Decoder for SourceRecords<T> {
    type Item = T;

    #[inline]
    fn take(&mut self, batch: &mut &[u8]) -> T {
        let mut records = framed::records(batch);
        match records.next() {
            Some(Ok(record)) => {
                *batch = records.rest();
                T::from_frame(record)
            }
            _ => panic!("a batch of framed records ends in the middle of a record"),
        }
    }
}

/// Runs a stage that is given batches.
pub(crate) struct BatchRunner<D, P> {
    decoder: D,
    watermarks_ms: Vec<i64>,
    next: P,
}

impl<D, P> BatchRunner<D, P> {
    pub(crate) fn new(decoder: D, ports: u32, next: P) -> Self {
        Self {
            decoder,
            watermarks_ms: vec![i64::MIN; ports.max(1) as usize],
            next,
        }
    }
}

impl<D: Decoder, P: Push<D::Item>> Runner for BatchRunner<D, P> {
    fn process(&mut self, batch: &[u8], position: &mut usize, cx: &mut Context) -> Progress {
        let mut rest = &batch[*position..];
        let mut records = 0;
        while !rest.is_empty() && !cx.call_is_full() {
            self.next.push(self.decoder.take(&mut rest), cx);
            records += 1;
        }
        cx.records_in += records;
        *position = batch.len() - rest.len();
        if rest.is_empty() {
            Progress::Done
        } else {
            Progress::More
        }
    }

    fn poll(&mut self, _cx: &mut Context) -> PollEnd {
        PollEnd::Ended
    }

    fn watermark(&mut self, port: u32, timestamp_ms: i64) -> Option<i64> {
        let before = self.watermarks_ms.iter().copied().min()?;
        let of_port = self.watermarks_ms.get_mut(port as usize)?;
        *of_port = timestamp_ms.max(*of_port);
        self.watermarks_ms
            .iter()
            .copied()
            .min()
            .filter(|now| *now > before)
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        self.next.signal(signal, cx)
    }
}

/// Records that a source makes in one poll when they produce little output: some tenths of a millisecond of work.
const POLL_RECORDS: u32 = 8192;

/// Runs a stage that begins with a guest-written source.
pub(crate) struct PollRunner<S, P> {
    source: S,
    opened: bool,
    next: P,
}

impl<S, P> PollRunner<S, P> {
    pub(crate) fn new(source: S, next: P) -> Self {
        Self {
            source,
            opened: false,
            next,
        }
    }
}

impl<S: Source, P: Push<S::Item>> Runner for PollRunner<S, P> {
    fn process(&mut self, _batch: &[u8], _position: &mut usize, _cx: &mut Context) -> Progress {
        panic!("a batch was given to a stage that makes its own records")
    }

    fn poll(&mut self, cx: &mut Context) -> PollEnd {
        if !self.opened {
            self.source.open(cx.subtask(), cx.parallelism());
            self.opened = true;
        }
        let mut records = 0;
        let end = loop {
            if records == POLL_RECORDS || cx.poll_is_full() {
                break PollEnd::More;
            }
            match self.source.next(cx) {
                Next::Record(record) => self.next.push(record, cx),
                Next::Idle { until_ms } => break PollEnd::IdleUntil(until_ms),
                Next::End => break PollEnd::Ended,
            }
            records += 1;
        };
        cx.records_in += u64::from(records);
        end
    }

    fn watermark(&mut self, _port: u32, _timestamp_ms: i64) -> Option<i64> {
        None
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        self.next.signal(signal, cx)
    }
}
