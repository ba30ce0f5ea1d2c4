//! What a leading JobManager does for its leader: a function per action, and what comes back of it. Nothing is decided here.

use tidemill_core::leader::{self, Action, Note};
use tidemill_core::leadership::Event as Told;
use tidemill_core::membership::ConnectionId;
use tidemill_core::{checkpoint, job};
use tidemill_protocol::control::{Command, FromLeader};
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers};
use tidemill_protocol::{CheckpointId, Epoch, JobId};

use crate::connection::Message;
use crate::event::{Preparation, Side};
use crate::node::Node;
use crate::savepoints::SavepointRequest;
use crate::store::{Scope, StoreAnswer, StoreRequest};
use crate::time::MILLISECOND;
use crate::user::Answer;
use crate::world::World;
use crate::zookeeper::{Operation, Outcome, Purpose};

impl World {
    pub(crate) fn perform(&mut self, node: Node, action: Action) {
        let Some(epoch) = self.job_managers[node.0].leads() else {
            return;
        };
        let life = self.processes[node.0].life;
        let judged = self.checkers.acts(node, life, epoch);
        self.judge(judged);
        match action {
            Action::AcceptTaskManager { connection } => self.registered(node, epoch, connection),
            Action::RefuseTaskManager { connection, reason } => {
                let message = FromLeader {
                    epoch,
                    command: Command::Refused { reason },
                };
                self.send(connection.0, Side::Acceptor, Message::FromLeader(message));
            }
            Action::CloseTaskManager { connection, .. } => {
                self.job_managers[node.0].connections.remove(&connection.0);
                self.close(connection.0, Side::Acceptor);
            }
            Action::Send {
                connection,
                message,
            } => self.speak(connection, message),
            Action::SubmissionStored { job } => self.answer_submitter(node, job, true),
            Action::SubmissionRejected { job, .. } => self.answer_submitter(node, job, false),
            Action::CancelStored { job } => {
                let waiting = self.job_managers[node.0].cancellers.remove(&job);
                for (user, turn) in waiting.unwrap_or_default() {
                    self.answer_user(user, turn, Answer::CancelStored);
                }
            }
            Action::Note(note) => self.note(node, &note),
            Action::WriteSavepoint {
                id,
                directory,
                metadata,
                ..
            } => self.write_savepoint(node, id, directory, metadata),
            write => self.perform_write(node, epoch, write),
        }
    }

    /// What goes to the registry or the store.
    fn perform_write(&mut self, node: Node, epoch: Epoch, action: Action) {
        match action {
            Action::StoreJobRecord(record) => {
                let purpose = Purpose::StoreRecord {
                    epoch,
                    job: record.id,
                };
                self.ask(node, Operation::PutJob(epoch, Box::new(record)), purpose);
            }
            Action::WriteMetadata(metadata) => {
                self.ask_store(node, StoreRequest::WriteMetadata { epoch, metadata });
            }
            Action::PublishPointers {
                job,
                checkpoint,
                pointers,
            } => {
                let purpose = Purpose::Publish {
                    epoch,
                    job,
                    checkpoint,
                };
                self.ask(node, Operation::PutPointers(epoch, job, pointers), purpose);
            }
            Action::ReadPointers { job, checkpoint } => {
                let purpose = Purpose::ReadBack {
                    epoch,
                    job,
                    checkpoint,
                };
                self.ask(node, Operation::ReadPointers(job), purpose);
            }
            Action::LoadMetadata { job, pointer } => {
                self.ask_store(
                    node,
                    StoreRequest::ReadMetadata {
                        epoch,
                        job,
                        pointer,
                    },
                );
            }
            Action::DeleteCheckpoints { job, retained, .. } => {
                if let Some(up_to) = retained.iter().map(|pointer| pointer.checkpoint).max() {
                    self.clean_up(node, job, retained, Scope::UpTo(up_to));
                }
            }
            Action::DeleteOrphans {
                job,
                retained,
                over,
                ended,
            } => self.clean_up(node, job, retained, Scope::Orphans { over, ended }),
            Action::DeleteJobObjects { job, kept } => {
                let kept = CheckpointPointers {
                    completed: kept.into_iter().collect(),
                };
                let purpose = Purpose::ClearPointers { epoch, job };
                self.ask(node, Operation::PutPointers(epoch, job, kept), purpose);
            }
            Action::ForgetJob { job } => {
                self.ask(
                    node,
                    Operation::RemoveJob(epoch, job),
                    Purpose::RemoveJob { epoch, job },
                );
            }
            _ => {}
        }
    }

    fn registered(&mut self, node: Node, epoch: Epoch, connection: ConnectionId) {
        if !self.job_managers[node.0]
            .connections
            .contains(&connection.0)
        {
            return;
        }
        let command = Command::Registered {
            liveness_token: [0; 16],
            liveness_port: 1,
            report_interval_ms: 1_000,
        };
        let message = FromLeader { epoch, command };
        self.send(connection.0, Side::Acceptor, Message::FromLeader(message));
    }

    fn speak(&mut self, connection: ConnectionId, message: FromLeader) {
        if let Command::Deploy(deployment) = &message.command {
            let runs = self.runs_undisturbed(deployment.job, &deployment.locations);
            let judged = self
                .checkers
                .deployed(deployment, runs && self.options.restarts_nothing);
            self.counts.deployments += 1;
            self.judge(judged);
        }
        if let Command::CompleteCheckpoint {
            job, checkpoint, ..
        } = &message.command
        {
            let judged = self.checkers.completed(*job, *checkpoint);
            self.judge(judged);
        }
        self.send(connection.0, Side::Acceptor, Message::FromLeader(message));
    }

    fn note(&mut self, node: Node, note: &Note) {
        match note {
            Note::Job {
                note: job::Note::RecoveryBegun { .. },
                ..
            } => self.counts.recoveries += 1,
            Note::Job {
                note: job::Note::Adopted { .. },
                ..
            } => self.counts.adoptions += 1,
            _ => {}
        }
        if self.log.is_on() {
            let line = format!("{node}: {note}");
            self.log(|| line);
        }
    }

    fn answer_submitter(&mut self, node: Node, job: JobId, stored: bool) {
        let waiting = self.job_managers[node.0].submitters.remove(&job);
        for (user, turn) in waiting.unwrap_or_default() {
            let answer = if stored {
                Answer::Stored(job)
            } else {
                Answer::Rejected
            };
            self.answer_user(user, turn, answer);
        }
    }

    pub(crate) fn answer_user(&mut self, user: usize, turn: u64, answer: Answer) {
        let delay_us = self.random.between(1, 20) * MILLISECOND;
        self.after(
            delay_us,
            crate::event::Event::UserHears { user, turn, answer },
        );
    }

    /// A user's submission reaches a JobManager: what it needs is stored before the leader hears of it.
    pub(crate) fn submitted(&mut self, node: Node, user: usize, turn: u64, job: JobId) {
        if self.job_managers[node.0].leads().is_none() {
            return self.redirect(node, user, turn);
        }
        self.ask_store(node, StoreRequest::WriteGraph { user, turn, job });
    }

    pub(crate) fn redirect(&mut self, node: Node, user: usize, turn: u64) {
        let leader = self.zookeeper.clients[node.0]
            .seen
            .leader
            .map(|(_, node, _)| node);
        self.answer_user(
            user,
            turn,
            Answer::NotLeading(leader.filter(|leader| *leader != node)),
        );
    }

    pub(crate) fn graph_written(
        &mut self,
        node: Node,
        user: usize,
        turn: u64,
        job: JobId,
        succeeded: bool,
    ) {
        if !succeeded {
            return self.answer_user(user, turn, Answer::Rejected);
        }
        let Some(leader) = &self.job_managers[node.0].leader else {
            return self.redirect(node, user, turn);
        };
        if leader.job(job).is_some() {
            // It was carried out when it was sent before, to this leader or an earlier one.
            return self.answer_user(user, turn, Answer::Stored(job));
        }
        let epoch = leader.epoch();
        match self.users.origin(job) {
            None => self.submit(node, user, turn, job, CheckpointPointers::default()),
            Some(origin) => {
                let request = SavepointRequest::Import {
                    user,
                    turn,
                    job,
                    epoch,
                    origin,
                };
                self.ask_store(node, StoreRequest::Savepoint(request));
            }
        }
    }

    /// All that a submission needs is stored: the leader hears of it.
    pub(crate) fn submit(
        &mut self,
        node: Node,
        user: usize,
        turn: u64,
        job: JobId,
        pointers: CheckpointPointers,
    ) {
        let Some(leader) = &self.job_managers[node.0].leader else {
            return self.redirect(node, user, turn);
        };
        if leader.job(job).is_some() {
            return self.answer_user(user, turn, Answer::Stored(job));
        }
        let is_being_stored = leader.submissions().any(|(record, _)| record.id == job);
        let Some(spec) = self.users.spec(job) else {
            return;
        };
        let mut record = spec.record(job, self.now_us / MILLISECOND);
        let began = !pointers.completed.is_empty();
        record.began_from = began.then(|| "a savepoint".to_owned());
        self.job_managers[node.0]
            .submitters
            .entry(job)
            .or_default()
            .push((user, turn));
        if is_being_stored {
            return;
        }
        self.tell_leader(
            node,
            leader::Event::JobSubmitted {
                record: Box::new(record),
                graph: spec.graph(),
                pointers,
            },
        );
    }

    pub(crate) fn cancel_asked(&mut self, node: Node, user: usize, turn: u64, job: JobId) {
        let Some(leader) = &self.job_managers[node.0].leader else {
            return self.redirect(node, user, turn);
        };
        if leader
            .job(job)
            .is_none_or(|known| known.phase().is_terminal())
        {
            return self.answer_user(user, turn, Answer::Ended);
        }
        self.job_managers[node.0]
            .cancellers
            .entry(job)
            .or_default()
            .push((user, turn));
        self.tell_leader(node, leader::Event::CancelRequested { job });
    }

    /// What came of a write or a read of the registry.
    pub(crate) fn written(
        &mut self,
        node: Node,
        operation: Operation,
        purpose: Purpose,
        outcome: &Outcome,
    ) {
        let (epoch, job) = match purpose {
            Purpose::StoreRecord { epoch, job }
            | Purpose::Publish { epoch, job, .. }
            | Purpose::ReadBack { epoch, job, .. }
            | Purpose::ClearPointers { epoch, job }
            | Purpose::RemoveJob { epoch, job } => (epoch, job),
            _ => return,
        };
        if matches!(outcome, Outcome::Fenced) {
            return self.tell_leadership(node, Told::Fenced { epoch });
        }
        if self.job_managers[node.0].leads() != Some(epoch) {
            return;
        }
        let reason = || format!("{outcome:?}");
        let is_submitted = self.job_managers[node.0].submitters.contains_key(&job);
        let result = match (purpose, outcome) {
            // A record is written until it is certain that it is there, or that a submission is not. What was certainly
            // not written waits for the registry.
            (Purpose::StoreRecord { .. }, Outcome::Unknown) => {
                return self.ask(node, operation, purpose);
            }
            (Purpose::StoreRecord { .. }, Outcome::Failed) if !is_submitted => {
                return self.ask(node, operation, purpose);
            }
            (Purpose::Publish { .. }, Outcome::Failed) => {
                return self.ask(node, operation, purpose);
            }
            (Purpose::StoreRecord { .. }, Outcome::Done) => job::Event::RecordStored,
            (Purpose::StoreRecord { .. }, _) => job::Event::RecordFailed { reason: reason() },
            (Purpose::Publish { checkpoint, .. }, outcome) => {
                job::Event::Checkpoint(publication(checkpoint, outcome))
            }
            (Purpose::ReadBack { checkpoint, .. }, outcome) => {
                job::Event::Checkpoint(read_back(checkpoint, outcome))
            }
            (
                Purpose::ClearPointers { .. } | Purpose::RemoveJob { .. },
                Outcome::Done | Outcome::UnknownJob,
            ) => {
                // Objects go only when no pointer names them any more.
                let retained = match operation {
                    Operation::PutPointers(_, _, kept) => kept.completed,
                    _ => Vec::new(),
                };
                let scope = Scope::UpTo(CheckpointId::new(epoch, u64::MAX));
                return self.clean_up(node, job, retained, scope);
            }
            _ => return,
        };
        self.tell_leader(node, leader::Event::Performed { job, result });
    }

    /// Lets one clean-up of a job follow another.
    fn clean_up(&mut self, node: Node, job: JobId, retained: Vec<CheckpointPointer>, scope: Scope) {
        let request = StoreRequest::CleanUp {
            job,
            retained,
            scope,
        };
        let clean_ups = self.job_managers[node.0].clean_ups.entry(job).or_default();
        clean_ups.push_back(request.clone());
        if clean_ups.len() == 1 {
            self.ask_store(node, request);
        }
    }

    /// What came of a request to the store.
    pub(crate) fn stored(&mut self, node: Node, answer: StoreAnswer) {
        let (epoch, job, result) = match answer {
            StoreAnswer::MetadataWritten {
                epoch,
                job,
                checkpoint,
                object,
            } => {
                let event = match object {
                    Some(object) => checkpoint::Event::MetadataWritten { checkpoint, object },
                    None => checkpoint::Event::MetadataFailed {
                        checkpoint,
                        reason: "the store".to_owned(),
                    },
                };
                (epoch, job, job::Event::Checkpoint(event))
            }
            StoreAnswer::MetadataRead {
                epoch,
                job,
                checkpoint,
                read,
            } => {
                let event = match read {
                    Ok(metadata) => job::Event::MetadataLoaded(metadata),
                    Err(Preparation::Lost) => job::Event::MetadataDamaged {
                        checkpoint,
                        reason: "damaged".to_owned(),
                    },
                    Err(Preparation::Unavailable) => job::Event::MetadataUnavailable {
                        checkpoint,
                        reason: "the store".to_owned(),
                    },
                };
                (epoch, job, event)
            }
            StoreAnswer::CleanedUp { job } => {
                let clean_ups = self.job_managers[node.0].clean_ups.entry(job).or_default();
                clean_ups.pop_front();
                if let Some(next) = clean_ups.front().cloned() {
                    self.ask_store(node, next);
                }
                return;
            }
            _ => return,
        };
        if self.job_managers[node.0].leads() == Some(epoch) {
            self.tell_leader(node, leader::Event::Performed { job, result });
        }
    }
}

/// What the coordinator hears of the pointers' write.
fn publication(checkpoint: CheckpointId, outcome: &Outcome) -> checkpoint::Event {
    match outcome {
        Outcome::Done => checkpoint::Event::Published { checkpoint },
        Outcome::Unknown => checkpoint::Event::PublishUnknown { checkpoint },
        _ => checkpoint::Event::PublishRefused {
            checkpoint,
            reason: format!("{outcome:?}"),
        },
    }
}

/// What the coordinator hears when the pointers are read after a write whose outcome is not known.
fn read_back(checkpoint: CheckpointId, outcome: &Outcome) -> checkpoint::Event {
    match outcome {
        Outcome::Pointers(pointers) => checkpoint::Event::PointersRead {
            checkpoint,
            pointers: pointers.clone(),
        },
        _ => checkpoint::Event::PointersUnreadable { checkpoint },
    }
}
