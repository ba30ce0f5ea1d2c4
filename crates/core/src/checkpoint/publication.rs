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
        let dropped = self.retained.drain(..surplus).map(|one| one.pointer);
        self.obsolete.extend(dropped);
        if let Some(record) = self.history.current() {
            record.is_final = is_final;
        }
        let record = self.history.end(now, Outcome::Completed).cloned();
        self.actions.extend(record.map(Action::Completed));
        // Whoever does not run any more gets no `complete`: its next restore replays the commit.
        if self.participants.as_ref() == Some(&current.participants) {
            self.actions.push_back(Action::Complete(checkpoint));
            if is_final {
                let waiting = current.participants.into_keys().collect();
                self.committing = Some((checkpoint, waiting));
            }
        }
        if !self.obsolete.is_empty() {
            let obsolete = core::mem::take(&mut self.obsolete);
            let retained = self.retained().cloned().collect();
            self.actions
                .push_back(Action::Delete { obsolete, retained });
        }
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
        let Some((last, waiting)) = &mut self.committing else {
            return;
        };
        if current != Some(&attempt) || checkpoint < *last || !waiting.remove(&task) {
            return;
        }
        if waiting.is_empty() {
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
