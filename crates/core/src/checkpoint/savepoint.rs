//! What savepoints want of a job's checkpoints: that one begins after the wish, that it stays while it is copied, and that
//! nothing is processed after it when the job is to stop. It knows neither who wishes nor where copies go.

use alloc::vec::Vec;
use tidemill_protocol::CheckpointId;
use tidemill_protocol::record::CheckpointPointer;

use super::{Action, Coordinator, Retained};
use crate::mutation::{self, Mutation};
use crate::time::Time;

/// That a checkpoint is wanted which begins after the wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The job is to stop at it.
    pub stop: bool,
}

impl Coordinator {
    /// What is wished from now on. One that is in flight will not do: it may lack what was processed before the wish. The
    /// next one that begins fulfils it, and begins as soon as it may; if it fails, the wish is not renewed.
    pub fn wish(&mut self, now: Time, wish: Option<Wish>) {
        if self.wish != wish {
            self.wish = wish;
            self.schedule(now);
        }
    }

    /// Whether the job is to stop at its last checkpoint: that is published, and no other begins.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether every task has confirmed what it committed with the checkpoint at which the job is to stop.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopping
            .as_ref()
            .is_some_and(|(_, waiting)| waiting.is_empty())
    }

    /// The job does not stop after all: its tasks go on.
    pub fn resume(&mut self, now: Time) {
        if let Some((checkpoint, _)) = self.stopping.take() {
            self.actions.push_back(Action::Abort(checkpoint));
            self.schedule(now);
        }
    }

    /// The job ends: nobody goes on from where it stopped.
    pub fn end(&mut self) {
        self.stopping = None;
    }

    /// Keeps what a completed checkpoint is made of until [`Coordinator::unpin`] has been called as often.
    pub fn pin(&mut self, checkpoint: CheckpointId) {
        *self.pins.entry(checkpoint).or_default() += 1;
    }

    /// A copy is over, well or not.
    pub fn unpin(&mut self, checkpoint: CheckpointId) {
        let Some(pins) = self.pins.get_mut(&checkpoint) else {
            return;
        };
        *pins -= 1;
        if *pins > 0 {
            return;
        }
        self.pins.remove(&checkpoint);
        let of_it = |pointer: &CheckpointPointer| pointer.checkpoint == checkpoint;
        if self.pinned.iter().any(of_it) {
            let (over, kept) = self.pinned.drain(..).partition(of_it);
            self.pinned = kept;
            self.obsolete.extend::<Vec<_>>(over);
            self.delete_obsolete();
        }
    }

    /// No pointer is to name these any more. Those that are being copied stay until that is over.
    pub(super) fn let_go(&mut self, dropped: Vec<Retained>) {
        for one in dropped {
            let is_copied = self.pins.contains_key(&one.pointer.checkpoint);
            if is_copied && !mutation::is(Mutation::CopiedNotPinned) {
                self.pinned.push(one.pointer);
            } else {
                self.obsolete.push(one.pointer);
            }
        }
    }

    /// What may not be deleted anything of: what can be gone back to, and what is being copied. Oldest first.
    fn needed(&self) -> Vec<CheckpointPointer> {
        let mut needed: Vec<_> = self.pinned.clone();
        needed.extend(self.retained().cloned());
        needed.sort_unstable_by_key(|pointer| pointer.checkpoint);
        needed
    }

    /// The checkpoints that everything in the store up to [`Coordinator::over`] is there for; `None` while that is not
    /// known: what is being published, or what the registry still names though it is not to be used again.
    #[must_use]
    pub fn settled(&self) -> Option<Vec<CheckpointPointer>> {
        let known = self.obsolete.is_empty() && !self.is_publication_pending();
        known.then(|| self.needed())
    }

    /// Has what only obsolete checkpoints name deleted.
    pub(super) fn delete_obsolete(&mut self) {
        if self.obsolete.is_empty() {
            return;
        }
        let obsolete = core::mem::take(&mut self.obsolete);
        let mut retained = self.needed();
        if mutation::is(Mutation::RetainedNotSpared) && retained.len() > 1 {
            retained.remove(0);
        }
        self.actions
            .push_back(Action::Delete { obsolete, retained });
    }
}
