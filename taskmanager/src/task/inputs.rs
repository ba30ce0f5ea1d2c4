//! A task's input channels, read in turn so that none starves, and read ahead where barriers are late. A channel that is
//! blocked by an alignment is not read; nothing here decides which those are.

use std::collections::VecDeque;

use tidemill_core::{Alignment, AlignmentAction};
use tidemill_protocol::{ChannelId, Frame, FrameBody};
use tokio::sync::oneshot;

use super::recorded::Recorded;
use crate::exchange::queue::Consumer;

/// What may be recorded for one checkpoint, as a multiple of what the task's channels hold when they are full. A channel
/// from another TaskManager has two more queues and two windows on its way.
const RECORDED_QUEUES_MAX: usize = 16;

/// Below this nothing is too much, in bytes.
const RECORDED_MIN_BYTES: usize = 1 << 20;

/// One input channel.
pub(crate) struct Input {
    /// Which channel.
    pub(crate) channel: ChannelId,
    /// Where its records go.
    pub(crate) role: InputRole,
    /// Its frames.
    pub(crate) queue: Consumer,
}

/// What a channel's data frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputRole {
    /// Batches for a guest port.
    Records {
        /// The port.
        port: u32,
    },
    /// Split assignments for the native source reader.
    Splits,
}

/// All input channels; the index of a channel here is its index in the task's [`Alignment`].
pub(crate) struct Inputs {
    inputs: Vec<Input>,
    /// Where the next search begins.
    next: usize,
    recording: Option<Recording>,
}

/// Channels that are read ahead of what is processed.
struct Recording {
    recorded: Recorded,
    /// Of each channel, what was read of it and is not processed; nothing unless it is recorded.
    ahead: Vec<VecDeque<Frame>>,
    /// Who waits for the end.
    done: oneshot::Sender<Recorded>,
}

impl Inputs {
    pub(crate) fn new(inputs: Vec<Input>) -> Self {
        Self {
            inputs,
            next: 0,
            recording: None,
        }
    }

    pub(crate) fn get(&self, index: usize) -> &Input {
        &self.inputs[index]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Input> {
        self.inputs.iter()
    }

    /// Takes the next frame of any channel that is not blocked, with the channel's index.
    pub(crate) fn pop(&mut self, alignment: &Alignment) -> Option<(usize, Frame)> {
        let count = self.inputs.len();
        for offset in 0..count {
            let index = (self.next + offset) % count;
            if !alignment.is_blocked(index)
                && let Some(frame) = self.pop_from(index, alignment)
            {
                self.next = (index + 1) % count;
                return Some((index, frame));
            }
        }
        None
    }

    fn pop_from(&mut self, index: usize, alignment: &Alignment) -> Option<Frame> {
        if alignment.is_recorded(index) {
            // What has arrived since is recorded first.
            return self.recording.as_mut()?.ahead[index].pop_front();
        }
        let queue = &self.inputs[index].queue;
        if queue.is_ready() { queue.pop() } else { None }
    }

    /// Whether what waits already, most of it perhaps recorded before, leaves room for recording more.
    pub(crate) fn may_record(&self) -> bool {
        let waiting = self.inputs.iter().map(|input| input.queue.bytes());
        waiting.fold(0, usize::saturating_add) <= self.recorded_max_bytes() / 2
    }

    fn recorded_max_bytes(&self) -> usize {
        let bounds = self.inputs.iter().map(|input| input.queue.bytes_max());
        bounds
            .fold(0, usize::saturating_add)
            .saturating_mul(RECORDED_QUEUES_MAX)
            .max(RECORDED_MIN_BYTES)
    }

    /// Records from now on what the alignment says, for whoever waits for it.
    pub(crate) fn begin_recording(&mut self, done: oneshot::Sender<Recorded>) {
        self.recording = Some(Recording {
            recorded: Recorded::default(),
            ahead: self.inputs.iter().map(|_| VecDeque::new()).collect(),
            done,
        });
    }

    /// Reads whatever has arrived on recorded channels.
    ///
    /// # Errors
    /// When it is more than may be kept.
    pub(crate) fn record(
        &mut self,
        alignment: &mut Alignment,
    ) -> Result<Vec<AlignmentAction>, TooMuch> {
        let max_bytes = self.recorded_max_bytes();
        let Some(recording) = &mut self.recording else {
            return Ok(Vec::new());
        };
        let mut actions = Vec::new();
        for (index, input) in self.inputs.iter().enumerate() {
            while alignment.is_recorded(index)
                && let Some(frame) = input.queue.pop()
            {
                match &frame.body {
                    FrameBody::Data(_) | FrameBody::Watermark(_) => {
                        recording.recorded.add(input.channel, &frame);
                        if recording.recorded.bytes() > max_bytes {
                            recording.ahead[index].push_back(frame);
                            return Err(TooMuch { max_bytes });
                        }
                    }
                    FrameBody::Barrier(checkpoint) => {
                        actions.extend(alignment.recorded_to_barrier(index, *checkpoint));
                    }
                    FrameBody::EndOfInput => actions.extend(alignment.recorded_to_end(index)),
                }
                recording.ahead[index].push_back(frame);
            }
            if !alignment.is_recorded(index) {
                input.queue.put_first(recording.ahead[index].drain(..));
            }
        }
        Ok(actions)
    }

    /// Every late barrier has come.
    pub(crate) fn finish_recording(&mut self) {
        if let Some(recorded) = self.end_recording() {
            let (done, recorded) = recorded;
            // An upload that was abandoned does not listen.
            let _ = done.send(recorded);
        }
    }

    /// The recording is for nothing. What was read ahead is processed next; whoever waits learns that there is nothing.
    pub(crate) fn drop_recording(&mut self) {
        self.end_recording();
    }

    fn end_recording(&mut self) -> Option<(oneshot::Sender<Recorded>, Recorded)> {
        let Recording {
            recorded,
            ahead,
            done,
        } = self.recording.take()?;
        for (input, mut ahead) in self.inputs.iter().zip(ahead) {
            input.queue.put_first(ahead.drain(..));
        }
        Some((done, recorded))
    }

    /// Who is woken when a frame arrives.
    pub(crate) fn set_waker(&self, waker: &std::task::Waker) {
        self.inputs
            .iter()
            .for_each(|input| input.queue.set_waker(waker));
    }
}

/// More frames were in front of late barriers than may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {max_bytes} bytes were in front of late barriers, {RECORDED_QUEUES_MAX} times what the task's channels hold (taskmanager.channel_queue_max_bytes each)"
)]
pub(crate) struct TooMuch {
    max_bytes: usize,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tidemill_core::Time;
    use tidemill_protocol::{CheckpointId, Epoch};

    use super::*;
    use crate::exchange::queue::queue;

    fn frame(bytes: usize) -> Frame {
        Frame {
            sequence: 0,
            body: FrameBody::Data(Bytes::from(vec![1; bytes])),
        }
    }

    #[test]
    fn what_is_too_much_is_an_error_and_nothing_of_it_is_lost() {
        let (producer, queue) = queue(100);
        let channel = ChannelId {
            edge: 0,
            from: 0,
            to: 0,
        };
        let role = InputRole::Records { port: 0 };
        let mut inputs = Inputs::new(vec![Input {
            channel,
            role,
            queue,
        }]);
        let patience = Some(Duration::from_millis(1));
        let mut alignment = Alignment::new(1, std::iter::empty(), patience);
        let (now, checkpoint) = (Time::from_micros(0), CheckpointId::new(Epoch(1), 1));
        alignment.announced(now, checkpoint, false);
        alignment.handle_timeout(now + Duration::from_millis(1));
        let (done, mut recorded) = oneshot::channel();
        assert!(inputs.may_record());
        inputs.begin_recording(done);
        for bytes in [10, RECORDED_MIN_BYTES, 20] {
            producer.push(frame(bytes));
        }
        let too_much = inputs.record(&mut alignment);
        assert!(too_much.is_err(), "{too_much:?}");
        alignment.aborted(now, checkpoint);
        inputs.drop_recording();
        assert!(recorded.try_recv().is_err(), "nobody waits in vain");
        assert!(!inputs.may_record(), "first some of it is processed");
        let weights: Vec<usize> = std::iter::from_fn(|| inputs.pop(&alignment))
            .map(|(_, frame)| frame.weight())
            .collect();
        let expected = [10, RECORDED_MIN_BYTES, 20].map(|bytes| frame(bytes).weight());
        assert_eq!(weights, expected);
    }
}
