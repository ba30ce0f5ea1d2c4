//! From TaskManagers to jobs: who registers, what they say, and what it means that they are gone.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::control::{Command, Registration, RunningTask, ToLeader, WarmTask};
use tidemill_protocol::{AttemptId, Epoch, Incarnation, JobId, TaskManagerId};

use super::standby::by_job;
use super::{Action, BROKEN_CHANNEL_GRACE, BrokenChannel, KEEP_APART, Leader, Note};
use crate::checkpoint;
use crate::job::{self, Job};
use crate::membership::{ConnectionId, HowLost, Registered};
use crate::scheduler::Pair;
use crate::time::Time;

impl Leader {
    pub(super) fn registering(
        &mut self,
        now: Time,
        connection: ConnectionId,
        registration: Registration,
    ) {
        let (id, incarnation) = (registration.id.clone(), registration.incarnation);
        if let Some(theirs) = self.later_epoch(&registration) {
            let ours = self.config.epoch;
            let reason = format!(
                "TaskManager {id} runs attempts of epoch {theirs}, and this leader has epoch {ours}: it has been succeeded"
            );
            return self.refuse(connection, reason);
        }
        let (slots, address) = (registration.slots, registration.data_address.clone());
        let (running, warm) = (registration.running.clone(), registration.warm.clone());
        let draining = registration.draining;
        let left = self.has_left(&id);
        let replaced = match self.membership.register(now, connection, registration) {
            Ok(Registered::New) => None,
            Ok(Registered::Again { old }) => {
                // What was said on the old connection last may not have arrived, in either direction.
                self.tell_all(now, &job::Event::Suspected(id.clone()));
                Some(old)
            }
            Ok(Registered::Superseded { old, incarnation }) => {
                self.lost(
                    now,
                    &id,
                    &format!("it was started again (life {incarnation} is over)"),
                    left,
                );
                Some(old)
            }
            Err(refusal) => {
                return self.refuse(connection, format!("{refusal}"));
            }
        };
        if let Some(connection) = replaced.filter(|old| *old != connection) {
            let reason = "it registered again on another connection".into();
            self.actions
                .push_back(Action::CloseTaskManager { connection, reason });
        }
        self.actions
            .push_back(Action::AcceptTaskManager { connection });
        let joined = Note::TaskManagerJoined {
            id: id.clone(),
            incarnation,
            slots,
            address,
        };
        self.actions.push_back(Action::Note(joined));
        if draining {
            self.wants_to_go(&id);
        }
        self.tell_what_is_there(now, connection, &id, running, &warm);
    }

    /// Jobs hear what a TaskManager runs and keeps of them; what belongs to none ends.
    fn tell_what_is_there(
        &mut self,
        now: Time,
        connection: ConnectionId,
        from: &TaskManagerId,
        running: Vec<RunningTask>,
        warm: &[WarmTask],
    ) {
        let mut by_job_running: BTreeMap<JobId, Vec<RunningTask>> = BTreeMap::new();
        for task in running {
            by_job_running.entry(task.job).or_default().push(task);
        }
        let mut warm = by_job(warm);
        for (job, state) in &mut self.jobs {
            let event = job::Event::Registered {
                from: from.clone(),
                running: by_job_running.remove(job).unwrap_or_default(),
                warm: warm.remove(job).unwrap_or_default(),
            };
            state.handle(now, event);
        }
        for task in by_job_running.values().flatten() {
            self.cancel_orphan(connection, task.job, task.attempt);
        }
        let unknown: BTreeSet<JobId> = by_job_running.into_keys().chain(warm.into_keys()).collect();
        for job in unknown {
            self.forget_images(connection, job);
        }
    }

    fn refuse(&mut self, connection: ConnectionId, reason: String) {
        self.actions
            .push_back(Action::RefuseTaskManager { connection, reason });
    }

    /// The epoch of a later leader which the TaskManager has obeyed.
    fn later_epoch(&self, registration: &Registration) -> Option<Epoch> {
        let epochs = registration.running.iter().map(|task| task.attempt.epoch);
        epochs.max().filter(|newest| *newest > self.config.epoch)
    }

    /// Stops what belongs to no job that this leader knows.
    pub(super) fn cancel_orphan(
        &mut self,
        connection: ConnectionId,
        job: JobId,
        attempt: AttemptId,
    ) {
        let command = Command::Cancel {
            job,
            attempt,
            tasks: Vec::new(),
        };
        self.send(connection, command);
    }

    pub(super) fn message(&mut self, now: Time, connection: ConnectionId, message: ToLeader) {
        let Some(from) = self.membership.heard(now, connection) else {
            return;
        };
        match message {
            // The first message was the registration; there is no second. Logs are between the shell and whoever asked.
            ToLeader::Register(_) | ToLeader::Follow(_) | ToLeader::Logs { .. } => {}
            ToLeader::Warm(warm) => self.warm(now, connection, &from, &warm),
            ToLeader::Draining => self.wants_to_go(&from),
            ToLeader::TaskState {
                job,
                attempt,
                task,
                state,
            } => {
                if self.jobs.contains_key(&job) {
                    let event = job::Event::TaskState {
                        from,
                        attempt,
                        task,
                        state,
                    };
                    self.tell(now, job, event);
                } else {
                    self.cancel_orphan(connection, job, attempt);
                }
            }
            ToLeader::CheckpointAcknowledged(_)
            | ToLeader::CheckpointDeclined { .. }
            | ToLeader::Committed { .. } => {
                if let Some((job, event)) = checkpoint_event(message) {
                    self.tell(now, job, job::Event::Checkpoint(event));
                }
            }
            ToLeader::ChannelBroken {
                job,
                attempt,
                peer,
                reason,
            } => {
                // A peer that is known to be dead explains the break.
                if let (Some(one), Some(other)) = (self.life(&from), self.life(&peer)) {
                    self.suspect_channel(BrokenChannel {
                        due: now + BROKEN_CHANNEL_GRACE,
                        job,
                        attempt,
                        ends: (from, peer),
                        lives: (one, other),
                        reason,
                    });
                }
            }
            ToLeader::Report(report) => {
                for progress in report.tasks {
                    self.tell(now, progress.job, job::Event::Progress(progress));
                }
            }
        }
    }

    /// The life of a TaskManager that is registered.
    fn life(&self, id: &TaskManagerId) -> Option<Incarnation> {
        let member = self.membership.member(id);
        member.map(|member| member.registration.incarnation)
    }

    /// Remembers a broken channel until a death explains it or the grace is over. One for each attempt is enough.
    fn suspect_channel(&mut self, broken: BrokenChannel) {
        let same =
            |known: &BrokenChannel| (known.job, known.attempt) == (broken.job, broken.attempt);
        if !self.broken.iter().any(same) {
            self.broken.push(broken);
        }
    }

    pub(super) fn connection_lost(
        &mut self,
        now: Time,
        connection: ConnectionId,
        how: HowLost,
        reason: &str,
    ) {
        let Some(id) = self
            .membership
            .at(connection)
            .map(|member| member.registration.id.clone())
        else {
            return;
        };
        let left = self.has_left(&id);
        if self
            .membership
            .connection_lost(now, connection, how, reason)
            .is_some()
        {
            self.lost(now, &id, reason, left);
        } else {
            self.actions
                .push_back(Action::Note(Note::TaskManagerSuspected {
                    id: id.clone(),
                    reason: reason.into(),
                }));
            self.tell_all(now, &job::Event::Suspected(id));
        }
    }

    /// A TaskManager is gone. One that was drained has left: nothing of any job was there.
    pub(super) fn lost(&mut self, now: Time, id: &TaskManagerId, reason: &str, left: bool) {
        let (id, reason) = (id.clone(), String::from(reason));
        let note = if left {
            Note::TaskManagerLeft { id: id.clone() }
        } else {
            Note::TaskManagerLost {
                id: id.clone(),
                reason: reason.clone(),
            }
        };
        self.actions.push_back(Action::Note(note));
        let lost = self.membership.lost().last();
        let lost = lost.filter(|lost| lost.registration.id == id && lost.at == now);
        let silent_for = lost.map(|lost| now.since(lost.heard_at));
        self.tell_all(
            now,
            &job::Event::TaskManagerLost {
                id,
                reason,
                silent_for,
            },
        );
    }

    /// The grace is over: if both ends still live, they cannot reach each other and are kept apart.
    pub(super) fn channel_broken(&mut self, now: Time, broken: BrokenChannel) {
        let BrokenChannel {
            job,
            attempt,
            ends: (one, other),
            lives,
            reason,
            ..
        } = broken;
        // An attempt that is over breaks its own channels, and a life that has ended breaks those of its peers.
        let current = |job: &Job| job.runs_attempt(attempt);
        let attempt_runs = self.jobs.get(&job).is_some_and(current);
        let same_lives = (self.life(&one), self.life(&other)) == (Some(lives.0), Some(lives.1));
        if attempt_runs && same_lives {
            let cause = format!("the data connection between {one} and {other} broke: {reason}");
            self.keep_apart
                .insert(Pair::new(one, other), now + KEEP_APART);
            self.tell(now, job, job::Event::ChannelBroken { attempt, cause });
        }
    }
}

/// What a message tells the checkpoint coordinator of which job, if anything.
fn checkpoint_event(message: ToLeader) -> Option<(JobId, checkpoint::Event)> {
    let told = match message {
        ToLeader::CheckpointAcknowledged(acknowledgement) => {
            let job = acknowledgement.job;
            (job, checkpoint::Event::Acknowledged(acknowledgement))
        }
        ToLeader::CheckpointDeclined {
            job,
            attempt,
            task,
            checkpoint,
            reason,
        } => (
            job,
            checkpoint::Event::Declined {
                attempt,
                task,
                checkpoint,
                reason,
            },
        ),
        ToLeader::Committed {
            job,
            attempt,
            task,
            checkpoint,
        } => (
            job,
            checkpoint::Event::Committed {
                attempt,
                task,
                checkpoint,
            },
        ),
        _ => return None,
    };
    Some(told)
}
