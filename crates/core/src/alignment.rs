//! Barrier alignment of one task: which channels wait for a checkpoint's barrier on the others, when the task is to be
//! captured, and what becomes of barriers that are late. Asked once for each barrier, never for a record. It holds no
//! frames: a blocked channel is one that the caller does not process, a recorded one is one that the caller reads ahead.
//!
//! A task that has waited long enough is captured without the missing barriers, and the frames in front of them become
//! part of the checkpoint: the unaligned checkpoints of Flink, with its `aligned-checkpoint-timeout`. What is processed of a
//! channel before the capture, and what is recorded of it, are then together exactly the frames before its barrier.
//!
//! ```
//! use tidemill_core::{Alignment, AlignmentAction, Time};
//! use tidemill_protocol::{CheckpointId, Epoch};
//!
//! let first = CheckpointId::new(Epoch(1), 1);
//! let mut alignment = Alignment::new(2, [].into_iter(), None);
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
    /// How long barriers are waited for; `None` for ever.
    timeout: Option<Duration>,
    /// The checkpoint that is being aligned.
    open: Option<Open>,
    /// The checkpoint that was captured without some of its barriers, until those have come.
    recording: Option<Recording>,
    /// The greatest checkpoint that was captured, cancelled or aborted: it and all lesser ones are over here.
    settled: Option<CheckpointId>,
    /// The greatest checkpoint that was captured.
    captured: Option<CheckpointId>,
    /// The greatest checkpoint that the leader announced.
    announced: Option<Announced>,
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
    /// Barriers are late: capture, forward the barrier, and record the channels for which [`Alignment::is_recorded`] holds.
    /// The image is complete with [`AlignmentAction::Recorded`].
    CaptureAndRecord {
        /// For which checkpoint.
        checkpoint: CheckpointId,
        /// How long barriers were waited for.
        alignment: Duration,
    },
    /// Every late barrier has come: what was recorded is the rest of the image.
    Recorded {
        /// Of which checkpoint.
        checkpoint: CheckpointId,
    },
    /// The alignment or the recording will not complete: a greater checkpoint superseded it, or it was aborted. Its channels
    /// are unblocked; what was recorded is forgotten, and still to be processed.
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

#[derive(Clone, Debug)]
struct Recording {
    checkpoint: CheckpointId,
    /// Of each channel, whether its barrier is still to come.
    late: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Announced {
    checkpoint: CheckpointId,
    at: Time,
    then_pause: bool,
}

impl Alignment {
    /// The alignment of a task with this many channels, of which some had ended when its image was captured. Numbers
    /// that name no channel are ignored. `timeout` is how long a checkpoint waits for barriers, from its announcement or its
    /// first barrier on, whichever comes first; `None` waits for ever.
    #[must_use]
    pub fn new(
        channels: usize,
        already_ended: impl Iterator<Item = usize>,
        timeout: Option<Duration>,
    ) -> Self {
        let mut channels = vec![Channel::Flowing; channels];
        for ended in already_ended {
            if let Some(channel) = channels.get_mut(ended) {
                *channel = Channel::Ended;
            }
        }
        Self {
            channels,
            timeout,
            open: None,
            recording: None,
            settled: None,
            captured: None,
            announced: None,
        }
    }

    /// A barrier is next on a channel of which everything before it has been processed. One of a checkpoint that is over
    /// here, or on an ended channel, is ignored.
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
        if self.open.is_some_and(|open| open.checkpoint > checkpoint) {
            return actions;
        }
        self.supersede(checkpoint, &mut actions);
        self.open.get_or_insert(Open {
            checkpoint,
            since: now,
        });
        self.channels[channel] = Channel::Blocked;
        self.capture_if_aligned(now, &mut actions);
        actions
    }

    /// A channel has ended, and everything before its end has been processed: nothing follows on it, and it is not waited
    /// for again.
    pub fn end_of_input(&mut self, now: Time, channel: usize) -> Vec<AlignmentAction> {
        let mut actions = self.recorded_to_end(channel);
        if let Some(state) = self.channels.get_mut(channel) {
            *state = Channel::Ended;
            self.capture_if_aligned(now, &mut actions);
            self.capture_if_announced(&mut actions);
        }
        actions
    }

    /// A recorded channel was read as far as a barrier. It is handed to [`Self::barrier`] as well when everything before it
    /// has been processed.
    pub fn recorded_to_barrier(
        &mut self,
        channel: usize,
        checkpoint: CheckpointId,
    ) -> Vec<AlignmentAction> {
        let mut actions = Vec::new();
        if !self.is_recorded(channel) {
            return actions;
        }
        match self.recording.as_mut() {
            Some(recording) if recording.checkpoint == checkpoint => {
                recording.late[channel] = false;
                self.complete_if_recorded(&mut actions);
            }
            // Its sender knows that the recorded checkpoint is over.
            Some(recording) if recording.checkpoint < checkpoint => {
                self.cancel_recording(&mut actions);
            }
            _ => {}
        }
        actions
    }

    /// A recorded channel was read to its end, before which no barrier came: its sender had finished when it was captured,
    /// and says so again when it is restored. Handed to [`Self::end_of_input`] as well, when everything before it has been
    /// processed.
    pub fn recorded_to_end(&mut self, channel: usize) -> Vec<AlignmentAction> {
        let mut actions = Vec::new();
        if self.is_recorded(channel)
            && let Some(recording) = &mut self.recording
        {
            recording.late[channel] = false;
            self.complete_if_recorded(&mut actions);
        }
        actions
    }

    /// The leader announced a checkpoint on the control stream: there is none before it any more. A task whose channels
    /// have all ended (or which has none) is captured for it at once, since no barrier will come; so is one whose last
    /// channel ends before a barrier. With `then_pause`, [`Self::is_paused`] holds from the capture on.
    pub fn announced(
        &mut self,
        now: Time,
        checkpoint: CheckpointId,
        then_pause: bool,
    ) -> Vec<AlignmentAction> {
        let mut actions = Vec::new();
        if self
            .announced
            .is_none_or(|before| before.checkpoint < checkpoint)
        {
            self.announced = Some(Announced {
                checkpoint,
                at: now,
                // Given up already, by a word that overtook this one: whoever paused for it would never go on.
                then_pause: then_pause
                    && (!self.is_over(checkpoint) || self.captured == Some(checkpoint)),
            });
            self.supersede(checkpoint, &mut actions);
        }
        self.capture_if_announced(&mut actions);
        actions
    }

    /// The leader gave a checkpoint up. Since there is only one at a time, lesser ones are over as well.
    pub fn aborted(&mut self, _now: Time, checkpoint: CheckpointId) -> Vec<AlignmentAction> {
        let mut actions = Vec::new();
        if self.open.is_some_and(|open| open.checkpoint <= checkpoint) {
            self.cancel_open(&mut actions);
        }
        if self.recording().is_some_and(|id| id <= checkpoint) {
            self.cancel_recording(&mut actions);
        }
        if let Some(announced) = &mut self.announced
            && announced.checkpoint <= checkpoint
        {
            announced.then_pause = false;
        }
        self.settle(checkpoint);
        actions
    }

    /// Nobody is left who could complete what is under way: whatever was heard of is over.
    pub fn leader_lost(&mut self, now: Time) -> Vec<AlignmentAction> {
        let announced = self.announced.map(|announced| announced.checkpoint);
        match self.aligning().max(self.recording()).max(announced) {
            Some(checkpoint) => self.aborted(now, checkpoint),
            None => Vec::new(),
        }
    }

    /// When barriers are late, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let (_, since) = self.awaited()?;
        Some(since + self.timeout?)
    }

    /// Time has passed: a checkpoint whose barriers are late is captured without them.
    pub fn handle_timeout(&mut self, now: Time) -> Vec<AlignmentAction> {
        let Some((checkpoint, since)) = self.awaited() else {
            return Vec::new();
        };
        if self.poll_timeout().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let is_late = |channel: &Channel| *channel == Channel::Flowing;
        self.recording = Some(Recording {
            checkpoint,
            late: self.channels.iter().map(is_late).collect(),
        });
        self.open = None;
        self.captured_for(checkpoint);
        self.unblock();
        vec![AlignmentAction::CaptureAndRecord {
            checkpoint,
            alignment: now.since(since),
        }]
    }

    /// The checkpoint that is being aligned, if one is.
    #[must_use]
    pub fn aligning(&self) -> Option<CheckpointId> {
        self.open.map(|open| open.checkpoint)
    }

    /// The checkpoint that has been captured and of which channels are being recorded, if there is one.
    #[must_use]
    pub fn recording(&self) -> Option<CheckpointId> {
        self.recording
            .as_ref()
            .map(|recording| recording.checkpoint)
    }

    /// Whether the channel waits for others: the caller processes nothing of it.
    #[must_use]
    pub fn is_blocked(&self, channel: usize) -> bool {
        self.channels.get(channel) == Some(&Channel::Blocked)
            && !mutation::is(Mutation::BarrierNotAwaited)
    }

    /// Whether the channel's barrier is late: the caller reads it as fast as it can, and keeps a copy of what comes before
    /// the barrier. What is kept may be processed meanwhile, in order: the capture is made.
    #[must_use]
    pub fn is_recorded(&self, channel: usize) -> bool {
        let recording = self.recording.as_ref();
        recording.is_some_and(|recording| recording.late.get(channel) == Some(&true))
    }

    /// Whether the task has been captured for a checkpoint at which it is to stop: it processes nothing, but records and
    /// commits, until the checkpoint is aborted, a greater one is announced or the leader is lost.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.announced.is_some_and(|announced| {
            announced.then_pause && self.captured == Some(announced.checkpoint)
        })
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
            || self
                .announced
                .is_some_and(|announced| checkpoint < announced.checkpoint)
    }

    fn settle(&mut self, checkpoint: CheckpointId) {
        self.settled = self.settled.max(Some(checkpoint));
    }

    fn captured_for(&mut self, checkpoint: CheckpointId) {
        self.settle(checkpoint);
        self.captured = Some(checkpoint);
    }

    /// The checkpoint whose barriers are waited for, and since when.
    fn awaited(&self) -> Option<(CheckpointId, Time)> {
        let open = self.open.map(|open| (open.checkpoint, open.since));
        let announced = self
            .announced
            .map(|announced| (announced.checkpoint, announced.at));
        let awaited = match (open, announced) {
            (Some((checkpoint, first)), Some((same, at))) if checkpoint == same => {
                Some((checkpoint, first.min(at)))
            }
            _ => open.max(announced),
        };
        awaited.filter(|(checkpoint, _)| !self.is_over(*checkpoint))
    }

    fn unblock(&mut self) {
        for channel in &mut self.channels {
            if *channel == Channel::Blocked {
                *channel = Channel::Flowing;
            }
        }
    }

    /// A checkpoint has begun, so every lesser one is over.
    fn supersede(&mut self, checkpoint: CheckpointId, actions: &mut Vec<AlignmentAction>) {
        if self.aligning().is_some_and(|id| id < checkpoint) {
            self.cancel_open(actions);
        }
        if self.recording().is_some_and(|id| id < checkpoint) {
            self.cancel_recording(actions);
        }
    }

    fn cancel_open(&mut self, actions: &mut Vec<AlignmentAction>) {
        if let Some(Open { checkpoint, .. }) = self.open.take() {
            self.settle(checkpoint);
            self.unblock();
            actions.push(AlignmentAction::Cancelled { checkpoint });
        }
    }

    fn cancel_recording(&mut self, actions: &mut Vec<AlignmentAction>) {
        if let Some(Recording { checkpoint, .. }) = self.recording.take() {
            actions.push(AlignmentAction::Cancelled { checkpoint });
        }
    }

    fn complete_if_recorded(&mut self, actions: &mut Vec<AlignmentAction>) {
        let is_complete = |recording: &mut Recording| {
            !recording.late.contains(&true) || mutation::is(Mutation::LateBarrierForgotten)
        };
        if let Some(Recording { checkpoint, .. }) = self.recording.take_if(is_complete) {
            actions.push(AlignmentAction::Recorded { checkpoint });
        }
    }

    fn capture_if_aligned(&mut self, now: Time, actions: &mut Vec<AlignmentAction>) {
        let Some(Open { checkpoint, since }) = self.open else {
            return;
        };
        if !self.channels.contains(&Channel::Flowing) {
            self.open = None;
            self.captured_for(checkpoint);
            self.unblock();
            actions.push(AlignmentAction::Capture {
                checkpoint,
                alignment: now.since(since),
            });
        }
    }

    fn capture_if_announced(&mut self, actions: &mut Vec<AlignmentAction>) {
        let Some(Announced { checkpoint, .. }) = self.announced else {
            return;
        };
        if self.all_ended() && !self.is_over(checkpoint) {
            self.captured_for(checkpoint);
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
