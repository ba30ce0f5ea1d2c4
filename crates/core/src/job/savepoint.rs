//! Savepoints of a job, and its stop with one: a checkpoint that begins after the wish, a copy of it, and with a stop the
//! job's end when all that is done. Wishes are kept in memory alone: whoever made one of a leader that is succeeded
//! hears that its successor does not know it, and the job goes on.
//!
//! Nothing is tried twice: what fails, fails the wish and not the job, and tasks that paused for it go on.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use tidemill_protocol::CheckpointId;
use tidemill_protocol::record::{CheckpointPointer, JobState};

use super::{Action, Job, Note, SavepointRequestId, SavepointStep, Timer};
use crate::checkpoint::{CheckpointRecord, Outcome, Wish};
use crate::time::{Duration, Time};

/// How many wishes of a job are remembered; the oldest of those that are over go first.
pub const SAVEPOINTS_MAX: usize = 64;
/// How many may be pending.
const PENDING_MAX: usize = 16;

/// How a wish for a savepoint stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavepointStatus {
    /// It is being taken.
    InProgress {
        /// What is being done.
        step: SavepointStep,
        /// Bytes copied.
        done_bytes: u64,
        /// Bytes to copy; 0 as long as that is not known.
        total_bytes: u64,
    },
    /// It is written; and the job has stopped, if that was wished.
    Completed {
        /// Where it is: what can be begun from.
        path: String,
        /// Its size.
        bytes: u64,
        /// The checkpoint that it is a copy of.
        checkpoint: CheckpointId,
    },
    /// It came to nothing, and the job goes on as if nothing had been wished.
    Failed {
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Debug)]
enum State {
    /// The checkpoint has not begun.
    Waiting,
    Capturing(CheckpointId),
    Copying {
        checkpoint: CheckpointId,
        done_bytes: u64,
        total_bytes: u64,
    },
    Written {
        checkpoint: CheckpointId,
        bytes: u64,
    },
    Failed(String),
}

/// One wish.
#[derive(Clone, Debug)]
struct Request {
    directory: String,
    stop: bool,
    since: Time,
    state: State,
    /// Why the job does not stop after all.
    not_stopped: Option<String>,
}

impl Request {
    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// Whether the copy is written or will never be.
    fn is_over(&self) -> bool {
        matches!(self.state, State::Written { .. } | State::Failed(_))
    }

    /// Whether the job is to stop for it.
    fn stops(&self) -> bool {
        self.stop && self.not_stopped.is_none() && !matches!(self.state, State::Failed(_))
    }

    fn fail(&mut self, reason: String) {
        self.state = State::Failed(reason);
    }

    /// A savepoint without a stop is half of what was wished.
    fn settle_stop(&mut self) {
        if let (State::Written { .. }, Some(reason)) = (&self.state, &self.not_stopped) {
            let directory = &self.directory;
            self.state = State::Failed(format!(
                "the savepoint is written to {directory}, but the job was not stopped: {reason}"
            ));
        }
    }
}

/// The wishes of a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Savepoints {
    requests: BTreeMap<SavepointRequestId, Request>,
}

impl Job {
    /// Why there can be no savepoint now, or no stop with one; `None` when there can.
    #[must_use]
    pub fn refuses_savepoint(&self, stop: bool) -> Option<String> {
        if !self.phase.is_active() {
            return Some(format!("it is {}", self.phase));
        }
        let requests = self.savepoints.requests.values();
        if requests.filter(|request| !request.is_over()).count() >= PENDING_MAX {
            let reason = format!("{PENDING_MAX} of it are being taken already");
            return Some(reason);
        }
        if stop && self.moving.is_some() {
            return Some("its tasks are just moving to another TaskManager: ask again".into());
        }
        (stop && self.is_to_stop()).then(|| "it is being stopped already".into())
    }

    /// Whether it is to stop with a savepoint.
    #[must_use]
    pub fn is_to_stop(&self) -> bool {
        self.savepoints.requests.values().any(Request::stops)
    }

    /// How a wish stands; `None` when it is not known, or not any more.
    #[must_use]
    pub fn savepoint(&self, id: SavepointRequestId) -> Option<SavepointStatus> {
        let request = self.savepoints.requests.get(&id)?;
        let in_progress = |step, done_bytes, total_bytes| SavepointStatus::InProgress {
            step,
            done_bytes,
            total_bytes,
        };
        Some(match &request.state {
            State::Waiting | State::Capturing(_) => in_progress(SavepointStep::Checkpoint, 0, 0),
            State::Copying {
                done_bytes,
                total_bytes,
                ..
            } => in_progress(SavepointStep::Copy, *done_bytes, *total_bytes),
            State::Written { bytes, .. } if request.stop && !self.phase.is_terminal() => {
                in_progress(SavepointStep::Commit, *bytes, *bytes)
            }
            State::Written { checkpoint, bytes } => SavepointStatus::Completed {
                path: request.directory.clone(),
                bytes: *bytes,
                checkpoint: *checkpoint,
            },
            State::Failed(reason) => SavepointStatus::Failed {
                reason: reason.clone(),
            },
        })
    }

    /// Whether checkpoints are being copied: the job's objects stay until that is over.
    pub(super) fn is_copying(&self) -> bool {
        let copying = |request: &Request| matches!(request.state, State::Copying { .. });
        self.savepoints.requests.values().any(copying)
    }

    /// Whether it has ended and nothing is left of it that its record alone names.
    #[must_use]
    pub fn may_be_forgotten(&self) -> bool {
        self.phase.is_terminal() && !self.is_copying() && self.kept_checkpoint().is_none()
    }

    /// The checkpoint that stays although the job has ended.
    #[must_use]
    pub fn kept_checkpoint(&self) -> Option<&CheckpointPointer> {
        let state = &self.record.state;
        let ended_early = matches!(state, JobState::Cancelled | JobState::Failed { .. });
        let keeps = self.record.options.retain_on_cancel && ended_early && !self.kept_dropped;
        self.coordinator.last().filter(|_| keeps)
    }

    pub(super) fn savepoint_wished(
        &mut self,
        now: Time,
        id: SavepointRequestId,
        directory: String,
        stop: bool,
    ) {
        if self.savepoints.requests.contains_key(&id) {
            return;
        }
        let refused = self.refuses_savepoint(stop);
        self.forget_savepoints();
        let request = Request {
            directory,
            stop,
            since: now,
            state: refused.map_or(State::Waiting, State::Failed),
            not_stopped: None,
        };
        self.savepoints.requests.insert(id, request);
    }

    /// Forgets the oldest that is over when there are too many.
    fn forget_savepoints(&mut self) {
        let requests = &mut self.savepoints.requests;
        if requests.len() < SAVEPOINTS_MAX {
            return;
        }
        let over = requests.iter().filter(|(_, request)| request.is_over());
        let oldest = over.min_by_key(|(_, request)| request.since);
        if let Some(id) = oldest.map(|(id, _)| *id) {
            requests.remove(&id);
        }
    }

    pub(super) fn savepoint_progressed(&mut self, id: SavepointRequestId, done: u64, total: u64) {
        let request = self.savepoints.requests.get_mut(&id);
        if let Some(State::Copying {
            done_bytes,
            total_bytes,
            ..
        }) = request.map(|request| &mut request.state)
        {
            (*done_bytes, *total_bytes) = (done, total);
        }
    }

    pub(super) fn savepoint_copied(
        &mut self,
        now: Time,
        id: SavepointRequestId,
        result: Result<u64, String>,
    ) {
        let Some(request) = self.savepoints.requests.get_mut(&id) else {
            return;
        };
        let State::Copying { checkpoint, .. } = request.state else {
            return;
        };
        self.coordinator.unpin(checkpoint);
        match result {
            Ok(bytes) => {
                request.state = State::Written { checkpoint, bytes };
                let directory = request.directory.clone();
                request.settle_stop();
                let note = Note::SavepointWritten {
                    directory,
                    checkpoint,
                    bytes,
                };
                self.note(now, note);
            }
            Err(reason) => {
                request.fail(reason.clone());
                let directory = request.directory.clone();
                self.note(now, Note::SavepointFailed { directory, reason });
            }
        }
    }

    /// A checkpoint has begun: whoever has wished for one before gets it.
    pub(super) fn savepoints_begin(&mut self, checkpoint: CheckpointId) {
        let requests = self.savepoints.requests.values_mut();
        for request in requests.filter(|request| request.is_waiting()) {
            request.state = State::Capturing(checkpoint);
        }
    }

    /// A checkpoint is published: it is copied for whoever waits for that.
    pub(super) fn savepoints_published(&mut self, checkpoint: CheckpointId) {
        let Some(metadata) = self.coordinator.metadata(checkpoint) else {
            return;
        };
        for (id, request) in &mut self.savepoints.requests {
            if !matches!(request.state, State::Capturing(of) if of == checkpoint) {
                continue;
            }
            request.state = State::Copying {
                checkpoint,
                done_bytes: 0,
                total_bytes: 0,
            };
            self.actions.push_back(Action::WriteSavepoint {
                id: *id,
                directory: request.directory.clone(),
                record: self.record.clone(),
                metadata: metadata.clone(),
            });
        }
        let copies = self.savepoints.requests.values();
        let copies = copies
            .filter(|request| matches!(request.state, State::Copying { checkpoint: of, .. } if of == checkpoint));
        for _ in 0..copies.count() {
            self.coordinator.pin(checkpoint);
        }
    }

    /// A checkpoint was given up.
    pub(super) fn savepoints_given_up(&mut self, record: &CheckpointRecord) {
        let Outcome::Failed { reason } = &record.outcome else {
            return;
        };
        for request in self.savepoints.requests.values_mut() {
            if matches!(request.state, State::Capturing(of) if of == record.id) {
                let id = record.id;
                request.fail(format!("checkpoint {id} was given up: {reason}"));
            }
        }
    }

    /// Tasks do not run any more: what has begun is not stopped at any more.
    pub(super) fn not_stopped(&mut self, reason: &str) {
        let requests = self.savepoints.requests.values_mut();
        for request in requests.filter(|request| request.stop && !request.is_waiting()) {
            if request.not_stopped.is_none() {
                request.not_stopped = Some(reason.to_string());
                request.settle_stop();
            }
        }
    }

    /// After every fact: what is wished goes to the coordinator, and the job ends when it has stopped.
    pub(super) fn settle_savepoints(&mut self, now: Time) {
        if self.savepoints.requests.is_empty() {
            return;
        }
        self.give_up_waiting(now);
        let ends_otherwise = match self.record.state {
            JobState::Active | JobState::Finished => None,
            JobState::Cancelling | JobState::Cancelled => Some("the job was cancelled"),
            JobState::Failed { .. } => Some("the job has failed"),
        };
        if let Some(reason) = ends_otherwise {
            self.not_stopped(reason);
        }
        let stops = self.is_to_stop();
        if self.coordinator.is_stopping() && !stops {
            self.coordinator.resume(now);
        }
        let mut waiting = self.savepoints.requests.values();
        let is_wished = waiting.any(Request::is_waiting);
        let stop_waits = |request: &Request| request.stop && request.is_waiting();
        let stop = self.savepoints.requests.values().any(stop_waits);
        self.coordinator
            .wish(now, is_wished.then_some(Wish { stop }));
        let written =
            |request: &Request| request.stops() && matches!(request.state, State::Written { .. });
        if self.phase.is_active()
            && self.coordinator.has_stopped()
            && self.savepoints.requests.values().any(written)
        {
            self.end(now, JobState::Finished);
        }
    }

    /// Wishes whose checkpoint has not begun in time, or cannot any more.
    fn give_up_waiting(&mut self, now: Time) {
        let patience = Duration::from_millis(self.record.options.checkpoint_timeout_ms);
        let (phase, active) = (self.phase, self.phase.is_active());
        let mut next = None;
        let requests = self.savepoints.requests.values_mut();
        for request in requests.filter(|request| request.is_waiting()) {
            let due = request.since + patience;
            if !active {
                request.fail(format!("the job is {phase}"));
            } else if due <= now {
                request.fail(format!(
                    "no checkpoint could begin in {patience:?}: the job is {phase}"
                ));
            } else {
                next = next.map_or(Some(due), |next: Time| Some(next.min(due)));
            }
        }
        match next {
            Some(next) => self.timers.set(Timer::Savepoint, next),
            None => self.timers.stop(Timer::Savepoint),
        }
    }
}
