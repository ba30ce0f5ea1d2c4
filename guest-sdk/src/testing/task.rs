//! One task, called as a host calls an instance. For measuring and for tests of single stages; a whole job runs in a
//! [`super::TestRun`]. It never carries a batch from one task to another.

use tidemill_abi::{OpenRequest, Step};

use crate::context::Emission;
use crate::instance::Instance;
use crate::job::{Job, Outcome};

/// One task of a job, as native code, with a method for each call that a host makes.
pub struct Task {
    instance: Instance,
    inbox: Vec<u8>,
}

/// A batch that a task emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Which of the stage's outputs it is for.
    pub output: u32,
    /// Which subtask of the next stage, or [`tidemill_abi::TARGET_ALL`].
    pub target: u32,
    /// The encoded records.
    pub batch: Vec<u8>,
}

impl Task {
    /// Opens one subtask of one stage.
    ///
    /// # Errors
    /// Every mistake in the job or its parameters; a stage that the job does not have.
    pub fn open<R: Outcome>(job: fn(&mut Job) -> R, request: OpenRequest) -> Result<Self, String> {
        let (instance, _hash) = Instance::open(job, "job", request)?;
        Ok(Self {
            instance,
            inbox: Vec::new(),
        })
    }

    /// Lets a guest-written source make its next batch.
    pub fn poll(&mut self, now_ms: u64) -> Step {
        self.instance.poll(now_ms)
    }

    /// Hands over a batch.
    pub fn process(&mut self, batch: &[u8], now_ms: u64) -> Step {
        if self.inbox.len() < batch.len() {
            self.inbox.resize(batch.len(), 0);
        }
        self.inbox[..batch.len()].copy_from_slice(batch);
        self.instance.process(&mut self.inbox, batch.len(), now_ms)
    }

    /// Goes on with a call that answered [`tidemill_abi::Status::More`].
    pub fn resume(&mut self, now_ms: u64) -> Step {
        self.instance.resume(&mut self.inbox, now_ms)
    }

    /// Says that every input has ended.
    pub fn finish(&mut self, now_ms: u64) -> Step {
        self.instance.finish(now_ms)
    }

    /// Makes it emit its partly filled buffers.
    pub fn flush(&mut self) {
        self.instance.flush();
    }

    /// What it emitted since this was last asked.
    pub fn take_emitted(&mut self) -> impl Iterator<Item = Emitted> {
        let outbox = core::mem::take(&mut self.instance.cx.outbox);
        outbox.into_iter().map(|emission| {
            let Emission {
                output,
                target,
                batch,
            } = emission;
            Emitted {
                output,
                target,
                batch,
            }
        })
    }

    /// Records that came in, or that its own source made.
    #[must_use]
    pub fn records_in(&self) -> u64 {
        self.instance.cx.records_in
    }

    /// Records that it gave out.
    #[must_use]
    pub fn records_out(&self) -> u64 {
        self.instance.cx.records_out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::prelude::*;
    use tidemill_abi::{KEY_GROUP_DEFAULT_MAX, Status, framed};

    fn doubled(job: &mut Job) {
        job.source(generator(3))
            .rebalance()
            .map(|n| 2 * n)
            .sink(files("out").text());
    }

    fn open(stage: u32) -> Result<Task, String> {
        Task::open(
            doubled,
            OpenRequest {
                stage,
                subtask: 0,
                parallelism: 1,
                max_parallelism: KEY_GROUP_DEFAULT_MAX,
                output_parallelism: vec![1],
                parameters: BTreeMap::new(),
            },
        )
    }

    #[test]
    fn what_one_task_emits_another_takes() {
        let mut source = open(0).expect("opens");
        let mut input = Vec::new();
        for n in [20u64, 21] {
            framed::push(&mut input, &n.to_le_bytes());
        }
        assert_eq!(source.process(&input, 1).status, Status::Done);
        source.flush();
        let mut sink = open(1).expect("opens");
        for emitted in source.take_emitted() {
            assert_eq!(sink.process(&emitted.batch, 1).status, Status::Done);
        }
        assert_eq!(sink.finish(1).status, Status::Done);
        sink.flush();
        let written: Vec<_> = sink.take_emitted().collect();
        let mut lines = framed::records(&written[0].batch);
        assert_eq!(lines.next(), Some(Ok(&b"40"[..])));
        assert_eq!(lines.next(), Some(Ok(&b"42"[..])));
        assert_eq!((sink.records_in(), sink.records_out()), (2, 2));
        assert!(open(2).is_err());
    }
}
