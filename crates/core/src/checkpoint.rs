//! The checkpoint coordinator of one job: when to begin, who has acknowledged, what is published. One checkpoint is in
//! flight at a time.
//!
//! The order is fixed: all acknowledged → metadata object → pointer (the one thing that publishes) → `complete` to the
//! tasks → clean-up. A lost reply to the pointer's write is neither success nor failure: the pointer is read back first. An
//! abort undoes nothing. It never knows where tasks run; whoever owns it addresses its messages.

mod event;
mod history;
mod publication;
mod savepoint;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use tidemill_protocol::control::CheckpointAcknowledgement;
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef, TaskImageRef};
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobOptions, JobRecord};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, ModuleHash, TaskId};

pub use self::event::{Action, Event};
pub use self::history::{
    CAPTURES_MAX, CheckpointRecord, DETAILED_MAX, HISTORY_MAX, History, Outcome, TaskCapture,
    Totals,
};
pub use self::savepoint::Wish;
use crate::mutation::{self, Mutation};
use crate::time::{Duration, Time, Timers};

/// Between two tries to read the pointer back, and before a final checkpoint is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Before a checkpoint that was asked for is tried again, in a job without periodic ones.
const REQUEST_RETRY: Duration = Duration::from_secs(10);
/// How many tasks a message about missing acknowledgements names.
const TASKS_NAMED_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The next checkpoint begins.
    Trigger,
    /// The one in flight is given up.
    Expire,
    /// The pointer is read back again.
    ReadBack,
}

/// The checkpoint in flight.
#[derive(Clone, Debug)]
struct Current {
    id: CheckpointId,
    participants: BTreeMap<TaskId, AttemptId>,
    /// What it fulfils.
    wish: Option<Wish>,
    step: Step,
}

#[derive(Clone, Debug)]
enum Step {
    Collecting(BTreeMap<TaskId, CheckpointAcknowledgement>),
    WritingMetadata(CheckpointMetadata),
    /// From here on it cannot be given up: its pointer may be there.
    Publishing(Retained),
}

/// A completed checkpoint, with its metadata when this leader has seen it.
#[derive(Clone, Debug)]
struct Retained {
    pointer: CheckpointPointer,
    metadata: Option<CheckpointMetadata>,
}

/// The coordinator of one job.
#[derive(Clone, Debug)]
pub struct Coordinator {
    job: JobId,
    module: ModuleHash,
    job_graph_hash: u64,
    epoch: Epoch,
    counter: u64,
    interval: Option<Duration>,
    timeout: Duration,
    tolerable_failures: u32,
    retained_max: usize,
    /// Present while every task runs or has finished.
    participants: Option<BTreeMap<TaskId, AttemptId>>,
    all_finished: bool,
    /// When the final checkpoint was last tried.
    final_tried: Option<Time>,
    /// A checkpoint is wanted apart from the interval; and when one was last tried for that.
    requested: bool,
    request_tried: Option<Time>,
    /// A checkpoint is wanted that begins from now on.
    wish: Option<Wish>,
    current: Option<Current>,
    /// Completed checkpoints, oldest first.
    retained: Vec<Retained>,
    /// Completed once, not to be used again: deleted after the next publication.
    obsolete: Vec<CheckpointPointer>,
    /// The final checkpoint is published; these have not confirmed their commit.
    committing: Option<(CheckpointId, BTreeSet<TaskId>)>,
    /// The checkpoint at which the job is to stop is published; these have not confirmed their commit.
    stopping: Option<(CheckpointId, BTreeSet<TaskId>)>,
    /// Completed checkpoints that are being copied, with the number of copies.
    pins: BTreeMap<CheckpointId, u32>,
    /// Those of them that no pointer names any more.
    pinned: Vec<CheckpointPointer>,
    failures: u32,
    last_started: Option<Time>,
    /// The leader before this one may have been about to take a checkpoint: the first one is due at once.
    overdue: bool,
    history: History,
    timers: Timers<Timer>,
    actions: VecDeque<Action>,
}

impl Coordinator {
    /// The coordinator of a job under a leader; `pointers` are the checkpoints completed before.
    #[must_use]
    pub fn new(epoch: Epoch, record: &JobRecord, pointers: CheckpointPointers) -> Self {
        let options: &JobOptions = &record.options;
        let interval = options.checkpoint_interval_ms;
        Self {
            job: record.id,
            module: record.module,
            job_graph_hash: record.graph_hash,
            epoch,
            counter: 0,
            interval: (interval > 0).then(|| Duration::from_millis(interval)),
            timeout: Duration::from_millis(options.checkpoint_timeout_ms),
            tolerable_failures: options.tolerable_failed_checkpoints,
            retained_max: options.retained_checkpoints.max(1) as usize,
            participants: None,
            all_finished: false,
            final_tried: None,
            requested: false,
            request_tried: None,
            wish: None,
            current: None,
            retained: pointers
                .completed
                .into_iter()
                .map(|pointer| Retained {
                    pointer,
                    metadata: None,
                })
                .collect(),
            obsolete: Vec::new(),
            committing: None,
            stopping: None,
            pins: BTreeMap::new(),
            pinned: Vec::new(),
            failures: 0,
            last_started: None,
            overdue: false,
            history: History::default(),
            timers: Timers::default(),
            actions: VecDeque::new(),
        }
    }

    /// Another leader coordinated this job before: whoever waits for what its next checkpoint would have committed does not
    /// wait an interval longer for the change. Nothing begins before the tasks are ready, nor without an interval.
    pub fn taken_over(&mut self) {
        self.overdue = true;
    }

    /// Takes a fact. Facts about another checkpoint than the one in flight, or from an old attempt, change nothing.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::TasksReady { participants } => {
                self.participants = Some(participants);
                self.schedule(now);
            }
            Event::AllFinished => {
                self.all_finished = true;
                self.schedule(now);
            }
            Event::Requested => {
                self.requested = true;
                self.schedule(now);
            }
            Event::TasksLost { reason } => self.tasks_lost(now, reason),
            Event::Acknowledged(acknowledgement) => self.acknowledged(now, acknowledgement),
            Event::Declined {
                attempt,
                task,
                checkpoint,
                reason,
            } => {
                if self.awaits(checkpoint, task, attempt) {
                    self.give_up(now, format!("task {task} declined: {reason}"), true);
                }
            }
            Event::MetadataWritten { checkpoint, object } => {
                self.metadata_written(checkpoint, object);
            }
            Event::MetadataFailed { checkpoint, reason } => {
                if self.is_writing_metadata(checkpoint) {
                    let reason = format!("its metadata could not be stored: {reason}");
                    self.give_up(now, reason, true);
                }
            }
            Event::Published { checkpoint } => self.published(now, checkpoint),
            Event::PublishRefused { checkpoint, reason } => {
                if self.is_publishing(checkpoint) {
                    self.give_up(now, format!("its pointer was refused: {reason}"), true);
                }
            }
            Event::PublishUnknown { checkpoint } => {
                if mutation::is(Mutation::UnknownMeansPublished) {
                    self.published(now, checkpoint);
                } else if self.is_publishing(checkpoint) {
                    self.actions.push_back(Action::ReadPointers { checkpoint });
                }
            }
            Event::PointersRead {
                checkpoint,
                pointers,
            } => self.pointers_read(now, checkpoint, &pointers),
            Event::PointersUnreadable { checkpoint } => {
                if self.is_publishing(checkpoint) {
                    self.timers.set(Timer::ReadBack, now + RETRY);
                }
            }
            Event::Committed {
                attempt,
                task,
                checkpoint,
            } => {
                self.committed(attempt, task, checkpoint);
            }
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Coordinator::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next_timeout()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(timer) = self.timers.take_expired(now) {
            match timer {
                Timer::Trigger => self.begin(now),
                Timer::Expire => self.expired(now),
                Timer::ReadBack => {
                    if let Some(Current {
                        id: checkpoint,
                        step: Step::Publishing(_),
                        ..
                    }) = self.current
                    {
                        self.actions.push_back(Action::ReadPointers { checkpoint });
                    }
                }
            }
        }
    }

    /// Whether checkpoints may begin: every task runs or has finished.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.participants.is_some()
    }

    /// Whether the final checkpoint is due, in flight or done.
    #[must_use]
    pub fn is_finishing(&self) -> bool {
        self.all_finished
    }

    /// Whether a pointer is being written. Until it is known how that went, nobody may go back to an older checkpoint:
    /// what that restore discards, the newer one may have promised.
    #[must_use]
    pub fn is_publication_pending(&self) -> bool {
        matches!(
            self.current,
            Some(Current {
                step: Step::Publishing(_),
                ..
            })
        )
    }

    /// The last completed checkpoint.
    #[must_use]
    pub fn last(&self) -> Option<&CheckpointPointer> {
        self.retained.last().map(|retained| &retained.pointer)
    }

    /// It and all lesser ones are published or never will be. Before all of this leader's there are those of the leaders
    /// before it, which are over as well.
    #[must_use]
    pub fn over(&self) -> CheckpointId {
        let in_flight = u64::from(self.current.is_some());
        CheckpointId::new(self.epoch, self.counter - in_flight)
    }

    /// What whatever restarts goes back to: the last one.
    #[must_use]
    pub fn restart_point(&self) -> Option<&CheckpointPointer> {
        let before = self.retained.iter().nth_back(1);
        let known = |one: &&Retained| one.metadata.is_some();
        let skips = |_: &&Retained| mutation::is(Mutation::OlderCheckpointRestored);
        let older = before.filter(skips).filter(known);
        older.map(|one| &one.pointer).or_else(|| self.last())
    }

    /// The metadata of a completed checkpoint, when this leader has written or loaded it.
    #[must_use]
    pub fn metadata(&self, checkpoint: CheckpointId) -> Option<&CheckpointMetadata> {
        let retained = self
            .retained
            .iter()
            .find(|one| one.pointer.checkpoint == checkpoint)?;
        retained.metadata.as_ref()
    }

    /// The metadata of a completed checkpoint was loaded and is whole.
    pub fn metadata_loaded(&mut self, metadata: CheckpointMetadata) {
        let checkpoint = metadata.checkpoint;
        let mut retained = self.retained.iter_mut();
        if let Some(one) = retained.find(|one| one.pointer.checkpoint == checkpoint) {
            one.metadata = Some(metadata);
        }
    }

    /// A completed checkpoint turned out to be damaged: it and all later ones are not used again. Says whether an
    /// earlier one is left.
    pub fn damaged(&mut self, checkpoint: CheckpointId) -> bool {
        let from = self
            .retained
            .partition_point(|one| one.pointer.checkpoint < checkpoint);
        let dropped = self.retained.drain(from..).collect();
        self.let_go(dropped);
        !self.retained.is_empty()
    }

    /// Every completed checkpoint that a restart can go back to, oldest first.
    pub fn retained(&self) -> impl Iterator<Item = &CheckpointPointer> {
        self.retained.iter().map(|retained| &retained.pointer)
    }

    /// What became of the last checkpoints.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    fn schedule(&mut self, now: Time) {
        let is_over = self.committing.is_some() || self.stopping.is_some();
        if self.participants.is_none() || self.current.is_some() || is_over {
            self.timers.stop(Timer::Trigger);
            return;
        }
        let due = if self.all_finished {
            // One that failed is tried again after a pause, so that a broken store is not hammered.
            Some(
                self.final_tried
                    .map_or(now, |tried| (tried + RETRY).max(now)),
            )
        } else if self.wish.is_some() {
            Some(now)
        } else if self.requested {
            let pause = self.interval.unwrap_or(REQUEST_RETRY);
            Some(
                self.request_tried
                    .map_or(now, |tried| (tried + pause).max(now)),
            )
        } else {
            let next = |interval| match self.last_started {
                Some(last) => (last + interval).max(now),
                None if self.overdue => now,
                None => now + interval,
            };
            self.interval.map(next)
        };
        match due {
            Some(due) if due <= now => self.begin(now),
            Some(due) => self.timers.set(Timer::Trigger, due),
            None => self.timers.stop(Timer::Trigger),
        }
    }

    fn begin(&mut self, now: Time) {
        let Some(participants) = self.participants.clone().filter(|_| self.current.is_none())
        else {
            return;
        };
        self.timers.stop(Timer::Trigger);
        self.counter += 1;
        let id = CheckpointId::new(self.epoch, self.counter);
        self.last_started = Some(now);
        self.final_tried = self.all_finished.then_some(now);
        self.request_tried = self.requested.then_some(now);
        self.history
            .begin(CheckpointRecord::new(id, now, participants.len()));
        let wish = self.wish.take();
        self.current = Some(Current {
            id,
            participants,
            wish,
            step: Step::Collecting(BTreeMap::new()),
        });
        self.timers.set(Timer::Expire, now + self.timeout);
        self.actions.push_back(Action::Trigger {
            checkpoint: id,
            then_pause: wish.is_some_and(|wish| wish.stop),
        });
    }

    fn awaits(&self, checkpoint: CheckpointId, task: TaskId, attempt: AttemptId) -> bool {
        self.current.as_ref().is_some_and(|current| {
            current.id == checkpoint
                && current.participants.get(&task) == Some(&attempt)
                && matches!(&current.step, Step::Collecting(acks) if !acks.contains_key(&task))
        })
    }

    fn is_writing_metadata(&self, checkpoint: CheckpointId) -> bool {
        self.current.as_ref().is_some_and(|current| {
            current.id == checkpoint && matches!(current.step, Step::WritingMetadata(_))
        })
    }

    fn is_publishing(&self, checkpoint: CheckpointId) -> bool {
        self.is_publication_pending()
            && self
                .current
                .as_ref()
                .is_some_and(|current| current.id == checkpoint)
    }

    fn acknowledged(&mut self, now: Time, acknowledgement: CheckpointAcknowledgement) {
        let (checkpoint, task) = (acknowledgement.checkpoint, acknowledgement.task);
        if !self.awaits(checkpoint, task, acknowledgement.attempt) {
            return;
        }
        let Some(current) = &mut self.current else {
            return;
        };
        let Step::Collecting(acks) = &mut current.step else {
            return;
        };
        self.history.acknowledged(now, &acknowledgement);
        acks.insert(task, acknowledgement);
        let missing = usize::from(mutation::is(Mutation::AcknowledgementMissing));
        if acks.len() + missing < current.participants.len() {
            return;
        }
        let tasks = core::mem::take(acks).into_values().map(|ack| TaskImageRef {
            task: ack.task,
            attempt: ack.attempt,
            manifest: ack.manifest,
            finished: ack.finished,
        });
        let metadata = CheckpointMetadata {
            job: self.job,
            checkpoint,
            module: self.module,
            job_graph_hash: self.job_graph_hash,
            tasks: tasks.collect(),
        };
        current.step = Step::WritingMetadata(metadata.clone());
        self.actions.push_back(Action::WriteMetadata(metadata));
    }

    fn metadata_written(&mut self, checkpoint: CheckpointId, object: ObjectRef) {
        let Some(current) = self
            .current
            .as_mut()
            .filter(|current| current.id == checkpoint)
        else {
            return;
        };
        let Step::WritingMetadata(metadata) = &current.step else {
            return;
        };
        let pointer = CheckpointPointer {
            checkpoint,
            metadata: object,
        };
        let metadata = Some(metadata.clone());
        current.step = Step::Publishing(Retained { pointer, metadata });
        self.timers.stop(Timer::Expire);
        if mutation::is(Mutation::CompletedBeforePublished) {
            self.actions.push_back(Action::Complete(checkpoint));
        }
        self.publish();
    }

    fn tasks_lost(&mut self, now: Time, reason: String) {
        self.participants = None;
        self.requested = false;
        self.request_tried = None;
        self.all_finished = false;
        self.final_tried = None;
        self.committing = None;
        if let Some((checkpoint, _)) = self.stopping.take() {
            // Whoever still runs goes on.
            self.actions.push_back(Action::Abort(checkpoint));
        }
        self.timers.stop(Timer::Trigger);
        if !self.is_publication_pending() {
            self.give_up(now, reason, false);
        }
    }

    fn expired(&mut self, now: Time) {
        let Some(current) = &self.current else { return };
        let reason = match &current.step {
            Step::Collecting(acks) => {
                let silent = current
                    .participants
                    .keys()
                    .filter(|task| !acks.contains_key(task));
                let count = silent.clone().count();
                let named: Vec<_> = silent
                    .take(TASKS_NAMED_MAX)
                    .map(ToString::to_string)
                    .collect();
                let more = if count > named.len() { ", …" } else { "" };
                let named = named.join(", ");
                format!(
                    "{count} tasks had not acknowledged in {:?}: {named}{more}",
                    self.timeout
                )
            }
            Step::WritingMetadata(_) => {
                format!("its metadata was not stored in {:?}", self.timeout)
            }
            Step::Publishing(_) => return,
        };
        self.give_up(now, reason, true);
    }

    /// Gives up the checkpoint in flight. Undoes nothing.
    fn give_up(&mut self, now: Time, reason: String, counts: bool) {
        let Some(current) = self.current.take() else {
            return;
        };
        self.timers.stop(Timer::Expire);
        self.timers.stop(Timer::ReadBack);
        self.actions.push_back(Action::Abort(current.id));
        let outcome = Outcome::Failed {
            reason: reason.clone(),
        };
        let record = self.history.end(now, outcome).cloned();
        self.actions.extend(record.map(Action::Failed));
        // A job does not fail because a savepoint did, nor one without periodic checkpoints because of a move.
        let moves = self.requested && self.interval.is_none() && !self.all_finished;
        let wished = moves || current.wish.is_some();
        if counts && !wished {
            self.failures = self.failures.saturating_add(1);
            if self.failures > self.tolerable_failures {
                self.failures = 0;
                self.actions.push_back(Action::FailJob { reason });
                return;
            }
        }
        self.schedule(now);
    }
}

#[cfg(test)]
#[path = "checkpoint/tests.rs"]
mod tests;
