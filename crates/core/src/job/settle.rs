//! What follows every fact: the coordinator's wishes are passed on, and the phase is what the regions say.

use alloc::string::String;
use tidemill_protocol::TaskId;
use tidemill_protocol::control::Command;
use tidemill_protocol::record::JobState;

use super::{Action, Job, Note, Phase, RegionState, Task, TaskStatus};
use crate::checkpoint::{self, CheckpointRecord};
use crate::time::Time;

impl Job {
    pub(super) fn become_phase(&mut self, now: Time, to: Phase) {
        let from = self.phase;
        if from != to {
            debug_assert!(
                from.may_become(to),
                "{from:?} → {to:?} is no step of a job's life"
            );
            self.phase = to;
            if to == Phase::Running {
                self.keepers_changed();
                self.module_holders.changed();
            }
            self.note(now, Note::Phase { from, to });
        }
    }

    /// After every fact: what the coordinator wants is done, and the phase is what the regions say.
    pub(super) fn settle(&mut self, now: Time) {
        self.drain_coordinator(now);
        for region in 0..self.regions.len() {
            self.settle_region(now, region);
        }
        self.settle_phase(now);
        self.settle_readiness(now);
        self.drain_coordinator(now);
        self.settle_phase(now);
        self.make_move(now);
        self.drain_coordinator(now);
        self.settle_savepoints(now);
        self.drain_coordinator(now);
        self.settle_phase(now);
        self.settle_standby();
        self.settle_orphans(now);
        let in_use = self.coordinator.is_publication_pending() || self.is_copying();
        if self.phase.is_terminal() && !self.cleaned && !in_use {
            self.cleaned = true;
            let kept = self.kept_checkpoint().cloned();
            self.actions.push_back(Action::DeleteJobObjects { kept });
        }
    }

    pub(super) fn settle_phase(&mut self, now: Time) {
        if !self.phase.is_active() {
            return;
        }
        let any = |state| self.regions.iter().any(|region| region.state == state);
        let has_run = self.regions.iter().any(|region| region.attempt.is_some());
        let finished = |task: &Task| task.status == TaskStatus::Finished;
        let phase = if any(RegionState::Adopting) {
            Phase::Adopting
        } else if any(RegionState::Delayed) {
            Phase::Restarting
        } else if any(RegionState::Pending) {
            if self.shortfall.is_some() || !has_run {
                Phase::Waiting
            } else {
                Phase::Restarting
            }
        } else if any(RegionState::Deploying) {
            Phase::Deploying
        } else if self.tasks.values().all(finished) {
            Phase::Finishing
        } else {
            Phase::Running
        };
        self.become_phase(now, phase);
    }

    /// Tasks do not run any more: the checkpoint in flight is given up, and nothing stops at it.
    pub(super) fn tasks_lost(&mut self, now: Time, reason: String) {
        self.not_stopped(&reason);
        self.coordinator
            .handle(now, checkpoint::Event::TasksLost { reason });
    }

    /// Tells the coordinator when checkpoints may begin.
    pub(super) fn settle_readiness(&mut self, now: Time) {
        let reachable = !self
            .placements
            .values()
            .any(|place| self.suspected.contains(place));
        if !matches!(self.phase, Phase::Running | Phase::Finishing) || !reachable {
            return;
        }
        if !self.coordinator.is_ready() {
            let attempt = |task: &TaskId| Some((*task, self.attempt(*task)?));
            let participants = self.tasks.keys().filter_map(attempt).collect();
            self.coordinator
                .handle(now, checkpoint::Event::TasksReady { participants });
            if self.moving.is_some() {
                self.coordinator.handle(now, checkpoint::Event::Requested);
            }
        }
        if self.phase == Phase::Finishing && !self.coordinator.is_finishing() {
            self.coordinator.handle(now, checkpoint::Event::AllFinished);
        }
    }

    pub(super) fn drain_coordinator(&mut self, now: Time) {
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                checkpoint::Action::Trigger {
                    checkpoint,
                    then_pause,
                } => {
                    self.savepoints_begin(checkpoint);
                    self.announce(|job, attempt| Command::TriggerCheckpoint {
                        then_pause,
                        job,
                        attempt,
                        checkpoint,
                    })
                }
                checkpoint::Action::Abort(checkpoint) => {
                    self.announce(|job, attempt| Command::AbortCheckpoint {
                        job,
                        attempt,
                        checkpoint,
                    })
                }
                checkpoint::Action::Complete(checkpoint) => {
                    self.announce(|job, attempt| Command::CompleteCheckpoint {
                        job,
                        attempt,
                        checkpoint,
                    })
                }
                checkpoint::Action::WriteMetadata(metadata) => {
                    self.actions.push_back(Action::WriteMetadata(metadata));
                }
                checkpoint::Action::Publish {
                    checkpoint,
                    pointers,
                } => {
                    self.actions.push_back(Action::PublishPointers {
                        checkpoint,
                        pointers,
                    });
                }
                checkpoint::Action::ReadPointers { checkpoint } => {
                    self.actions.push_back(Action::ReadPointers { checkpoint });
                }
                checkpoint::Action::Delete { obsolete, retained } => {
                    self.actions
                        .push_back(Action::DeleteCheckpoints { obsolete, retained });
                }
                checkpoint::Action::Completed(record) => self.checkpoint_completed(now, record),
                checkpoint::Action::Failed(record) => {
                    self.savepoints_given_up(&record);
                    self.orphans_are_due();
                    self.note(now, Note::Checkpoint(record));
                }
                checkpoint::Action::FailJob { reason } => {
                    self.checkpoints_failed(now, &reason);
                }
                checkpoint::Action::Finished => {
                    if self.phase.is_active() {
                        self.end(now, JobState::Finished);
                    }
                }
            }
        }
    }

    fn checkpoint_completed(&mut self, now: Time, record: CheckpointRecord) {
        self.has_completed = true;
        self.attempts_are_published();
        self.move_is_due();
        self.savepoints_published(record.id);
        self.keepers_want_news();
        self.note(now, Note::Checkpoint(record));
    }
}
