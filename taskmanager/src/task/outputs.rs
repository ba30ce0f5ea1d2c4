//! A task's outputs: channels to other tasks and native sinks, behind the one interface through which a guest emits.
//! It never blocks: a queue over its bound is reported by [`Outputs::has_room`], and the task is then not called.

use bytes::Bytes;
use tidemill_abi::{LogLevel, TARGET_ALL};
use tidemill_connectors::{SinkError, SinkWriter};
use tidemill_protocol::control::{Blame, TaskFailure};
use tidemill_protocol::{CheckpointId, Frame, FrameBody};
use tidemill_runtime::GuestHost;

use super::failure;
use crate::exchange::queue::Producer;
use crate::logs::TaskLog;

/// One channel, as its sender sees it.
pub(crate) struct OutputChannel {
    queue: Producer,
    sequence: u64,
    /// The receiver has not been told of a frame that ended its wait.
    wake_due: bool,
}

impl OutputChannel {
    pub(crate) fn new(queue: Producer) -> Self {
        Self {
            queue,
            sequence: 0,
            wake_due: false,
        }
    }

    fn push(&mut self, body: FrameBody) {
        self.wake_due |= self.queue.add(Frame {
            sequence: self.sequence,
            body,
        });
        self.sequence += 1;
    }
}

/// Where one of the stage's outputs leads.
pub(crate) enum Lane {
    /// The channels of an edge, one for each target; a forward edge has one.
    Channels(Vec<OutputChannel>),
    /// A native sink in this task.
    Sink(Box<SinkWriter>),
}

/// All outputs of a task.
pub(crate) struct Outputs {
    lanes: Vec<Lane>,
    log: TaskLog,
    bytes_out: u64,
    failure: Option<TaskFailure>,
    closed: bool,
}

impl Outputs {
    pub(crate) fn new(lanes: Vec<Lane>, log: TaskLog) -> Self {
        Self {
            lanes,
            log,
            bytes_out: 0,
            failure: None,
            closed: false,
        }
    }

    /// Lets go of every channel and sink.
    pub(crate) fn leave(&mut self) {
        self.lanes.clear();
    }

    fn channels(&mut self) -> impl Iterator<Item = &mut OutputChannel> {
        self.lanes.iter_mut().flat_map(|lane| match lane {
            Lane::Channels(channels) => channels.as_mut_slice(),
            Lane::Sink(_) => &mut [],
        })
    }

    fn sinks(&mut self) -> impl Iterator<Item = (u32, &mut SinkWriter)> {
        (0u32..)
            .zip(&mut self.lanes)
            .filter_map(|(index, lane)| match lane {
                Lane::Channels(_) => None,
                Lane::Sink(writer) => Some((index, writer.as_mut())),
            })
    }

    /// Whether every channel is below its bound, or nothing more will be emitted.
    pub(crate) fn has_room(&mut self) -> bool {
        self.closed || self.channels().all(|channel| channel.queue.has_room())
    }

    /// Who is woken when a channel has room again.
    pub(crate) fn set_waker(&mut self, waker: &std::task::Waker) {
        self.channels()
            .for_each(|channel| channel.queue.set_waker(waker));
    }

    /// Tells the receivers of what was emitted since the last time. Not done with each frame: a call emits several.
    pub(crate) fn wake_receivers(&mut self) {
        for channel in self.channels() {
            if std::mem::take(&mut channel.wake_due) {
                channel.queue.wake_consumer();
            }
        }
    }

    /// Bytes emitted so far.
    pub(crate) fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// A failure of an emission since the last call: emissions themselves cannot answer.
    pub(crate) fn take_failure(&mut self) -> Result<(), TaskFailure> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Closes the epoch of a checkpoint in every sink and sends its barrier on every channel. Returns the sinks' states.
    pub(crate) fn barrier(
        &mut self,
        checkpoint: CheckpointId,
    ) -> Result<Vec<(u32, Vec<u8>)>, TaskFailure> {
        let mut states = Vec::new();
        for (index, sink) in self.sinks() {
            states.push((
                index,
                sink.prepare(checkpoint)
                    .map_err(|error| sink_failure(&error))?,
            ));
        }
        if !self.closed {
            self.channels()
                .for_each(|channel| channel.push(FrameBody::Barrier(checkpoint)));
        }
        Ok(states)
    }

    /// Makes everything visible that was prepared up to a published checkpoint.
    pub(crate) fn commit(&mut self, checkpoint: CheckpointId) -> Result<(), TaskFailure> {
        for (_, sink) in self.sinks() {
            sink.commit(checkpoint)
                .map_err(|error| sink_failure(&error))?;
        }
        Ok(())
    }

    /// Forwards a watermark, in milliseconds of event time.
    pub(crate) fn watermark(&mut self, timestamp_ms: i64) {
        self.channels()
            .for_each(|channel| channel.push(FrameBody::Watermark(timestamp_ms)));
    }

    /// Says on every channel that nothing follows.
    pub(crate) fn end(&mut self) {
        if !self.closed {
            self.closed = true;
            self.channels()
                .for_each(|channel| channel.push(FrameBody::EndOfInput));
        }
    }

    fn try_emit(&mut self, output: u32, target: u32, batch: &[u8]) -> Result<(), TaskFailure> {
        self.bytes_out += batch.len() as u64;
        let lanes = self.lanes.len();
        match self.lanes.get_mut(output as usize) {
            Some(Lane::Sink(writer)) => writer.write(batch).map_err(|error| sink_failure(&error)),
            Some(Lane::Channels(channels)) if target == TARGET_ALL => {
                let batch = Bytes::copy_from_slice(batch);
                channels
                    .iter_mut()
                    .for_each(|channel| channel.push(FrameBody::Data(batch.clone())));
                Ok(())
            }
            Some(Lane::Channels(channels)) => {
                let targets = channels.len();
                let channel = channels.get_mut(target as usize).ok_or_else(|| {
                    failure(Blame::Job, format!("the module emitted to target {target} of output {output}, which has {targets} targets"))
                })?;
                channel.push(FrameBody::Data(Bytes::copy_from_slice(batch)));
                Ok(())
            }
            None => Err(failure(
                Blame::Job,
                format!("the module emitted to output {output}, but its stage has {lanes} outputs"),
            )),
        }
    }
}

fn sink_failure(error: &SinkError) -> TaskFailure {
    failure(Blame::Cluster, crate::error_chain(error))
}

impl GuestHost for Outputs {
    fn emit(&mut self, output: u32, target: u32, batch: &[u8]) {
        if self.failure.is_none() {
            self.failure = self.try_emit(output, target, batch).err();
        }
    }

    fn log(&mut self, level: LogLevel, line: &str) {
        self.log.guest(level, line);
    }
}
