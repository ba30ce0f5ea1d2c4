//! How a checkpoint is published: its pointer is written, or read back when the reply was lost; then the tasks are told, and
//! those of a final one confirm their commits.

use tidemill_protocol::record::CheckpointPointers;
use tidemill_protocol::{AttemptId, CheckpointId, TaskId};

use super::{Action, Coordinator, Current, Outcome, Step, Timer};
use crate::time::Time;

impl Coordinator {
    /// Writes the pointers that are to be there: the newest retained, and the one in flight.
    pub(super) fn publish(&mut self) {
        let Some(Current {
            id,
            step: Step::Publishing(new),
            ..
        }) = &self.current
        else {
            return;
        };
        let (checkpoint, newest) = (*id, new.pointer.clone());
        let older = self.retained.len().saturating_sub(self.retained_max - 1);
        let kept = self.retained[older..].iter().map(|one| one.pointer.clone());
        let pointers = CheckpointPointers {
            completed: kept.chain([newest]).collect(),
        };
        self.actions.push_back(Action::Publish {
            checkpoint,
            pointers,
        });
    }

    pub(super) fn published(&mut self, now: Time, checkpoint: CheckpointId) {
        if !self.is_publishing(checkpoint) {
            return;
        }
        let Some(current) = self.current.take() else {
            return;
        };
        let Step::Publishing(new) = current.step else {
            return;
        };
        self.failures = 0;
        self.requested = false;
        self.request_tried = None;
        self.timers.stop(Timer::ReadBack);
        let parts = new.metadata.iter().flat_map(|metadata| &metadata.tasks);
        let is_final = parts.clone().next().is_some() && parts.clone().all(|part| part.finished);
        self.retained.push(new);
        let surplus = self.retained.len().saturating_sub(self.retained_max);
        let dropped = self.retained.drain(..surplus).collect();
        self.let_go(dropped);
        if let Some(record) = self.history.current() {
            record.is_final = is_final;
        }
        let record = self.history.end(now, Outcome::Completed).cloned();
        self.actions.extend(record.map(Action::Completed));
        let wished_to_stop = current.wish.is_some_and(|wish| wish.stop);
        // Whoever does not run any more gets no `complete`: its next restore replays the commit.
        if self.participants.as_ref() == Some(&current.participants) {
            self.actions.push_back(Action::Complete(checkpoint));
            let waiting = current.participants.into_keys().collect();
            if is_final {
                self.committing = Some((checkpoint, waiting));
            } else if wished_to_stop {
                self.stopping = Some((checkpoint, waiting));
            }
        }
        if wished_to_stop && self.stopping.is_none() && self.committing.is_none() {
            // Whoever has stopped for it goes on.
            self.actions.push_back(Action::Abort(checkpoint));
        }
        self.delete_obsolete();
        self.schedule(now);
    }

    /// The pointers were read back after a lost reply.
    pub(super) fn pointers_read(
        &mut self,
        now: Time,
        checkpoint: CheckpointId,
        pointers: &CheckpointPointers,
    ) {
        let mut completed = pointers.completed.iter();
        if completed.any(|found| found.checkpoint == checkpoint) {
            self.published(now, checkpoint);
        } else if self.is_publishing(checkpoint) {
            // The lost write may still land; writing the same again is right either way.
            self.publish();
        }
    }

    pub(super) fn committed(&mut self, attempt: AttemptId, task: TaskId, checkpoint: CheckpointId) {
        let current = self
            .participants
            .as_ref()
            .and_then(|tasks| tasks.get(&task));
        let is_final = self.committing.is_some();
        let waited_for = self.committing.as_mut().or(self.stopping.as_mut());
        let Some((last, waiting)) = waited_for else {
            return;
        };
        if current != Some(&attempt) || checkpoint < *last || !waiting.remove(&task) {
            return;
        }
        if waiting.is_empty() && is_final {
            self.actions.push_back(Action::Finished);
        }
    }

    /// Whether the final checkpoint is published and commits are being confirmed.
    #[must_use]
    pub fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Whether a task has nothing left to do: the final checkpoint is published and it has confirmed its commit.
    #[must_use]
    pub fn is_done(&self, task: TaskId) -> bool {
        self.committing
            .as_ref()
            .is_some_and(|(_, waiting)| !waiting.contains(&task))
    }
}
