//! Barrier alignment of one task: which channels wait for a checkpoint's barrier on the others, and when the task is to
//! be captured. Asked once for each barrier, never for a record. It holds no frames: a blocked channel is one that the
//! caller does not read.
//!
//! ```
//! use tidemill_core::{Alignment, AlignmentAction, Time};
//! use tidemill_protocol::{CheckpointId, Epoch};
//!
//! let first = CheckpointId::new(Epoch(1), 1);
//! let mut alignment = Alignment::new(2, [].into_iter());
//! assert_eq!(alignment.barrier(Time::from_micros(10), 0, first), []);
//! assert!(alignment.is_blocked(0) && !alignment.is_blocked(1));
//! let actions = alignment.barrier(Time::from_micros(30), 1, first);
//! assert!(matches!(actions[..], [AlignmentAction::Capture { checkpoint, .. }] if checkpoint == first));
//! assert!(!alignment.is_blocked(0));
//! ```

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use tidemill_protocol::CheckpointId;

use crate::mutation::{self, Mutation};
use crate::time::Time;

/// The alignment of one task's input channels, which are numbered from 0.
#[derive(Clone, Debug)]
pub struct Alignment {
    channels: Vec<Channel>,
    /// The checkpoint that is being aligned.
    open: Option<Open>,
    /// The greatest checkpoint that was captured, cancelled or aborted: it and all lesser ones are over here.
    settled: Option<CheckpointId>,
    /// The greatest checkpoint that the leader announced.
    announced: Option<CheckpointId>,
}

/// What the task is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlignmentAction {
    /// Every channel is at the barrier or has ended: capture, and forward the barrier.
    Capture {
        /// For which checkpoint.
        checkpoint: CheckpointId,
        /// How long channels were blocked: from the first barrier to the last.
        alignment: Duration,
    },
    /// The alignment will not complete: a greater barrier superseded it, or it was aborted. Its channels are unblocked.
    Cancelled {
        /// Which checkpoint.
        checkpoint: CheckpointId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Flowing,
    /// At the open checkpoint's barrier.
    Blocked,
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    checkpoint: CheckpointId,
    since: Time,
}

impl Alignment {
    /// The alignment of a task with this many channels, of which some had ended when its image was captured. Numbers
    /// that name no channel are ignored.
    #[must_use]
    pub fn new(channels: usize, already_ended: impl Iterator<Item = usize>) -> Self {
        let mut channels = vec![Channel::Flowing; channels];
        for ended in already_ended {
            if let Some(channel) = channels.get_mut(ended) {
                *channel = Channel::Ended;
            }
        }
        Self {
            channels,
            open: None,
            settled: None,
            announced: None,
        }
    }

    /// A barrier arrived on a channel. One of a checkpoint that is over here, or on an ended channel, is ignored.
    pub fn barrier(
        &mut self,
        now: Time,
        channel: usize,
        checkpoint: CheckpointId,
    ) -> Vec<AlignmentAction> {
        let mut actions = Vec::new();
        if self.is_over(checkpoint) || self.ended(channel) || channel >= self.channels.len() {
            return actions;
        }
        match self.open {
            Some(open) if open.checkpoint > checkpoint => return actions,
            Some(open) if open.checkpoint == checkpoint => {}
            Some(_) | None => {
                self.cancel(&mut actions);
                self.open = Some(Open {
                    checkpoint,
                    since: now,
                });
            }
        }
        self.channels[channel] = Channel::Blocked;
        self.capture_if_aligned(now, &mut actions);
        actions
    }

    /// A channel has ended: nothing follows on it, and it is not waited for again.
    pub fn end_of_input(&mut self, now: Time, channel: usize) -> Vec<AlignmentAction> {
        let mut actions = Vec::new();
        if let Some(state) = self.channels.get_mut(channel) {
            *state = Channel::Ended;
            self.capture_if_aligned(now, &mut actions);
            self.capture_if_announced(&mut actions);
        }
        actions
    }

    /// The leader announced a checkpoint on the control stream. A task whose channels have all ended (or which has
    /// none) is captured for it at once, since no barrier will come; so is one whose last channel ends before a barrier.
    pub fn announced(&mut self, _now: Time, checkpoint: CheckpointId) -> Vec<AlignmentAction> {
        self.announced = self.announced.max(Some(checkpoint));
        let mut actions = Vec::new();
        self.capture_if_announced(&mut actions);
        actions
    }

    /// The leader gave a checkpoint up. Since there is only one at a time, lesser ones are over as well.
    pub fn aborted(&mut self, _now: Time, checkpoint: CheckpointId) -> Vec<AlignmentAction> {
        let mut actions = Vec::new();
        if self.open.is_some_and(|open| open.checkpoint <= checkpoint) {
            self.cancel(&mut actions);
        }
        self.settle(checkpoint);
        actions
    }

    /// The checkpoint that is being aligned, if one is.
    #[must_use]
    pub fn aligning(&self) -> Option<CheckpointId> {
        self.open.map(|open| open.checkpoint)
    }

    /// Whether the channel waits for others: the caller does not read it.
    #[must_use]
    pub fn is_blocked(&self, channel: usize) -> bool {
        self.channels.get(channel) == Some(&Channel::Blocked)
            && !mutation::is(Mutation::BarrierNotAwaited)
    }

    /// Whether the channel has ended.
    #[must_use]
    pub fn ended(&self, channel: usize) -> bool {
        self.channels.get(channel) == Some(&Channel::Ended)
    }

    /// Whether every channel has ended; true when there are none.
    #[must_use]
    pub fn all_ended(&self) -> bool {
        self.channels
            .iter()
            .all(|channel| *channel == Channel::Ended)
    }

    /// The channels that have ended, in order.
    pub fn ended_channels(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.channels.len()).filter(|channel| self.ended(*channel))
    }

    fn is_over(&self, checkpoint: CheckpointId) -> bool {
        self.settled.is_some_and(|settled| checkpoint <= settled)
    }

    fn settle(&mut self, checkpoint: CheckpointId) {
        self.settled = self.settled.max(Some(checkpoint));
    }

    fn unblock(&mut self) {
        for channel in &mut self.channels {
            if *channel == Channel::Blocked {
                *channel = Channel::Flowing;
            }
        }
    }

    fn cancel(&mut self, actions: &mut Vec<AlignmentAction>) {
        if let Some(Open { checkpoint, .. }) = self.open.take() {
            self.settle(checkpoint);
            self.unblock();
            actions.push(AlignmentAction::Cancelled { checkpoint });
        }
    }

    fn capture_if_aligned(&mut self, now: Time, actions: &mut Vec<AlignmentAction>) {
        let Some(Open { checkpoint, since }) = self.open else {
            return;
        };
        if !self.channels.contains(&Channel::Flowing) {
            self.open = None;
            self.settle(checkpoint);
            self.unblock();
            actions.push(AlignmentAction::Capture {
                checkpoint,
                alignment: now.since(since),
            });
        }
    }

    fn capture_if_announced(&mut self, actions: &mut Vec<AlignmentAction>) {
        let Some(checkpoint) = self.announced else {
            return;
        };
        if self.all_ended() && !self.is_over(checkpoint) {
            self.settle(checkpoint);
            actions.push(AlignmentAction::Capture {
                checkpoint,
                alignment: Duration::ZERO,
            });
        }
    }
}

#[cfg(test)]
#[path = "alignment/tests.rs"]
mod tests;
