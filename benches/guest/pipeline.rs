//! The tasks of one job in one thread: the first stage makes a batch, the second takes it at once. It never queues
//! batches, so that they are as warm in the caches as they can be.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use tidemill_abi::{KEY_GROUP_DEFAULT_MAX, OpenRequest, Status, Step};

use crate::cpu::thread_time;

/// A batch on its way.
pub(crate) struct Emission {
    pub(crate) target: u32,
    pub(crate) batch: Vec<u8>,
}

/// A task, whatever runs it.
pub(crate) trait Task: Sized {
    /// Lets the source make a batch.
    fn poll(&mut self) -> anyhow::Result<Step>;

    /// Hands over a batch, to the end of it.
    fn process(&mut self, batch: &[u8]) -> anyhow::Result<Step>;

    /// Goes on with a batch.
    fn resume(&mut self) -> anyhow::Result<Step>;

    /// What was emitted since the last time.
    fn take_emitted(&mut self) -> Vec<Emission>;

    /// Records that came in or were made so far.
    fn records_in(&mut self) -> anyhow::Result<u64>;
}

/// What a round cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) records: u64,
    pub(crate) first_stage: Duration,
    /// `None` for a job of one stage.
    pub(crate) second_stage: Option<Duration>,
}

/// One task of the first stage, and those of the second.
pub(crate) struct Pipeline<T> {
    source: T,
    receivers: Vec<T>,
}

impl<T: Task> Pipeline<T> {
    /// Opens the tasks of a job.
    pub(crate) fn new(
        job: &str,
        parallelism: u32,
        open: impl Fn(OpenRequest) -> anyhow::Result<T>,
    ) -> anyhow::Result<Self> {
        let task = |stage, subtask, output_parallelism| {
            open(OpenRequest {
                stage,
                subtask,
                parallelism,
                max_parallelism: KEY_GROUP_DEFAULT_MAX,
                output_parallelism: vec![output_parallelism],
                parameters: BTreeMap::from([("job".to_owned(), job.to_owned())]),
            })
        };
        let receivers = if job == "pass" { 0 } else { parallelism };
        Ok(Self {
            source: task(0, 0, receivers.max(1))?,
            receivers: (0..receivers)
                .map(|subtask| task(1, subtask, 1))
                .collect::<anyhow::Result<_>>()?,
        })
    }

    /// Runs until so much CPU time is spent.
    pub(crate) fn run(&mut self, round: Duration) -> anyhow::Result<Spent> {
        let before = self.source.records_in()?;
        let (mut first_stage, mut second_stage) = (Duration::ZERO, Duration::ZERO);
        let mut now = thread_time();
        while first_stage + second_stage < round {
            let step = self.source.poll()?;
            ensure!(step.status == Status::More, "the source has ended");
            let batches = self.source.take_emitted();
            let polled = thread_time();
            first_stage += polled.saturating_sub(now);
            now = polled;
            if self.receivers.is_empty() {
                continue;
            }
            for Emission { target, batch } in batches {
                let receiver = &mut self.receivers[target as usize];
                let mut step = receiver.process(&batch)?;
                while step.status == Status::More {
                    step = receiver.resume()?;
                }
            }
            let processed = thread_time();
            second_stage += processed.saturating_sub(now);
            now = processed;
        }
        Ok(Spent {
            records: self.source.records_in()? - before,
            first_stage,
            second_stage: (!self.receivers.is_empty()).then_some(second_stage),
        })
    }
}
