//! A task's input channels, read in turn so that none starves. A channel that is blocked by an alignment is not read;
//! nothing here decides which those are.

use tidemill_core::Alignment;
use tidemill_protocol::{ChannelId, Frame};

use crate::exchange::queue::Consumer;

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
}

impl Inputs {
    pub(crate) fn new(inputs: Vec<Input>) -> Self {
        Self { inputs, next: 0 }
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
            let input = &self.inputs[index];
            if input.queue.is_ready()
                && !alignment.is_blocked(index)
                && let Some(frame) = input.queue.pop()
            {
                self.next = (index + 1) % count;
                return Some((index, frame));
            }
        }
        None
    }

    /// Who is woken when a frame arrives.
    pub(crate) fn set_waker(&self, waker: &std::task::Waker) {
        self.inputs
            .iter()
            .for_each(|input| input.queue.set_waker(waker));
    }
}
