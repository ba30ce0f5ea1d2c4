//! Facts in: one `select!` over everything that happens to a TaskManager. What follows from a fact is decided by
//! [`Worker`] and carried out by [`Performer`].

use std::time::Duration;

use tidemill_core::worker::{Worker, WorkerAction};
use tidemill_protocol::control::{FromLeader, Registration, TaskState, ToLeader};
use tidemill_transport::DataPlane;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::link::{Leader, LinkEvent};
use crate::perform::Performer;
use crate::task::{Execution, TaskEvent};

/// Before a leader says how often it wants reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Everything a running TaskManager is.
pub(crate) struct Driver {
    pub(crate) worker: Worker,
    pub(crate) performer: Performer,
    pub(crate) leader: Option<Leader>,
    /// What this TaskManager says of itself; what runs is filled in when it registers.
    pub(crate) registration: Registration,
    pub(crate) link: mpsc::Receiver<LinkEvent>,
    pub(crate) tasks: mpsc::UnboundedReceiver<TaskEvent>,
    pub(crate) plane: DataPlane,
    pub(crate) stop: CancellationToken,
}

impl Driver {
    /// Runs until stopped.
    pub(crate) async fn run(mut self) {
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (plane, stop) = (self.plane.clone(), self.stop.clone());
        loop {
            tokio::select! {
                Some(event) = self.link.recv() => {
                    if let LinkEvent::Connected(leader) = &event {
                        report = tokio::time::interval(leader.report_interval);
                        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    }
                    self.on_link(event);
                }
                Some(event) = self.tasks.recv() => self.on_task(event),
                (_, request) = plane.recv_hint() => { self.performer.hint(request); }
                _ = report.tick() => self.say(|this| ToLeader::Report(this.performer.report())),
                () = stop.cancelled() => break,
            }
        }
        self.performer.stop_all();
    }

    fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Register(ask) => {
                let registration = Registration {
                    running: self.worker.running(),
                    ..self.registration.clone()
                };
                // The link that asked may have lost its connection meanwhile.
                let _ = ask.send(registration);
            }
            LinkEvent::Connected(leader) => self.leader = Some(leader),
            LinkEvent::Lost => self.leader = None,
            LinkEvent::Message(message) => self.on_message(message),
        }
    }

    fn on_message(&mut self, message: FromLeader) {
        match self.worker.handle(message) {
            Ok(actions) => actions.into_iter().for_each(|action| self.act(action)),
            Err(disobeyed) => warn!(reason = %disobeyed, "a command is not obeyed"),
        }
    }

    fn act(&mut self, action: WorkerAction) {
        match action {
            WorkerAction::Stop { job, task, attempt } => {
                self.performer.stop(Execution { job, task, attempt })
            }
            WorkerAction::Start(deployment) => {
                let leader = self.leader.as_ref().map(|leader| leader.address);
                self.performer.start(deployment, leader);
            }
            WorkerAction::Checkpoint {
                job,
                task,
                attempt,
                checkpoint,
                word,
            } => {
                self.performer
                    .word(Execution { job, task, attempt }, checkpoint, word);
            }
            WorkerAction::FetchLogs {
                request,
                job,
                task,
                after,
                limit,
            } => {
                let lines = self.performer.logs().fetch(job, task, after, limit);
                self.say(|_| ToLeader::Logs { request, lines });
            }
        }
    }

    fn on_task(&mut self, event: TaskEvent) {
        let message = match event {
            TaskEvent::State {
                execution: Execution { job, task, attempt },
                state,
            } => {
                if let TaskState::Failed(failure) = &state {
                    error_line(job, task, failure);
                }
                if !self.worker.changed(job, task, attempt, state.clone()) {
                    return;
                }
                if state == TaskState::Finished {
                    // The job may end before the next report is due: its last counts go first.
                    self.say(|this| ToLeader::Report(this.performer.report()));
                }
                ToLeader::TaskState {
                    job,
                    attempt,
                    task,
                    state,
                }
            }
            TaskEvent::Acknowledged(acknowledgement) => {
                ToLeader::CheckpointAcknowledged(acknowledgement)
            }
            TaskEvent::Declined {
                execution: Execution { job, task, attempt },
                checkpoint,
                reason,
            } => ToLeader::CheckpointDeclined {
                job,
                attempt,
                task,
                checkpoint,
                reason,
            },
            TaskEvent::Committed {
                execution: Execution { job, task, attempt },
                checkpoint,
            } => ToLeader::Committed {
                job,
                attempt,
                task,
                checkpoint,
            },
            TaskEvent::SplitWanted(request) => return self.performer.split_wanted(request),
            TaskEvent::ChannelBroken {
                job,
                attempt,
                peer,
                reason,
            } => {
                warn!(%job, %attempt, %peer, reason, "a data channel broke");
                ToLeader::ChannelBroken {
                    job,
                    attempt,
                    peer,
                    reason,
                }
            }
        };
        self.say(|_| message);
    }

    /// Says something to the leader, if there is one: a leader met later hears of everything that still counts.
    fn say(&self, message: impl FnOnce(&Self) -> ToLeader) {
        if let Some(leader) = &self.leader {
            // A link that has just broken is reported by its own event.
            let _ = leader.outbox.send(message(self));
        }
    }
}

fn error_line(
    job: tidemill_protocol::JobId,
    task: tidemill_protocol::TaskId,
    failure: &tidemill_protocol::control::TaskFailure,
) {
    warn!(%job, %task, blame = ?failure.blame, backtrace = ?failure.backtrace, "a task failed: {}", failure.message);
}
