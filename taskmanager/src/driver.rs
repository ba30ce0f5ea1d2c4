//! Facts in: one `select!` over everything that happens to a TaskManager. What follows from a fact is decided by
//! [`Worker`] and carried out by [`Performer`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tidemill_core::worker::{Disobeyed, Worker, WorkerAction};
use tidemill_protocol::control::{FromLeader, Registration, TaskState, ToLeader};
use tidemill_protocol::{AttemptId, Epoch, JobId, TaskManagerId};
use tidemill_transport::DataPlane;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::warn;

use crate::draining::Draining;
use crate::link::{Introduction, LinkEvent};
use crate::metrics::{Metrics, Standing};
use crate::perform::Performer;
use crate::registry::Announcement;
use crate::task::{Execution, TaskEvent};

/// Before a leader says how often it wants reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What is asked of a running TaskManager from outside; each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wanted {
    /// To run.
    #[default]
    Run,
    /// To leave once nothing here is needed any more.
    Drain,
    /// To stop at once.
    Stop,
}

/// Everything a running TaskManager is.
pub(crate) struct Driver {
    pub(crate) worker: Worker,
    pub(crate) performer: Performer,
    /// Where the leader is, for whoever fetches something from it; `None` while there is none.
    pub(crate) leader: watch::Sender<Option<SocketAddr>>,
    /// What this TaskManager says of itself; what runs is filled in when it registers.
    pub(crate) registration: Registration,
    pub(crate) link: mpsc::Receiver<LinkEvent>,
    pub(crate) tasks: mpsc::UnboundedReceiver<TaskEvent>,
    pub(crate) plane: DataPlane,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) drain_timeout: Duration,
    /// Its node in the registry, where there is one.
    pub(crate) announcement: Option<Announcement>,
    /// What it tells of itself to others than its leader, if it does.
    pub(crate) metrics: Option<Metrics>,
    pub(crate) state: State,
}

/// What a TaskManager remembers besides its tasks.
#[derive(Default)]
pub(crate) struct State {
    /// To the leader that was introduced to what runs here last. It exists from that moment on, so that nothing which
    /// happens while the leader makes up its mind is lost.
    voice: Option<mpsc::UnboundedSender<ToLeader>>,
    /// Broken channels of attempts that run here. A leader may hear of one before it knows the TaskManager at the other
    /// end, and then forgets it: so each is repeated for as long as its attempt runs.
    broken: BTreeMap<(JobId, AttemptId, TaskManagerId), String>,
    draining: Option<Draining>,
    /// Nothing that runs here is needed any more.
    drained: bool,
}

fn reports_every(interval: Duration) -> Interval {
    let mut report = tokio::time::interval(interval);
    report.set_missed_tick_behavior(MissedTickBehavior::Delay);
    report
}

impl Driver {
    /// Runs until stopped, or drained.
    pub(crate) async fn run(mut self) {
        let mut report = reports_every(REPORT_INTERVAL);
        let (plane, mut wanted) = (self.plane.clone(), self.wanted.clone());
        while !self.state.drained {
            let patience = self.state.draining.as_ref().map(Draining::next_at);
            tokio::select! {
                Some(event) = self.link.recv() => {
                    if let LinkEvent::Connected(leader) = &event {
                        report = reports_every(leader.report_interval);
                    }
                    self.on_link(event);
                }
                Some(event) = self.tasks.recv() => self.on_task(event),
                (_, request) = plane.recv_hint() => { self.performer.hint(request); }
                _ = report.tick() => {
                    self.performer.expire();
                    self.report();
                }
                () = at(patience) => self.still_draining(),
                Ok(()) = wanted.changed() => {
                    match *wanted.borrow_and_update() {
                        Wanted::Run => {}
                        Wanted::Drain => self.drain(),
                        Wanted::Stop => break,
                    }
                }
            }
        }
        self.performer.stop_all();
        self.withdraw(wanted).await;
    }

    /// Takes the TaskManager's node out of the registry, unless that is to be left to its session's end.
    async fn withdraw(&mut self, mut wanted: watch::Receiver<Wanted>) {
        let Some(announcement) = self.announcement.take() else {
            return;
        };
        tokio::select! {
            () = announcement.withdraw() => {}
            _ = wanted.wait_for(|wanted| *wanted == Wanted::Stop) => {}
        }
    }

    fn report(&self) {
        for ((job, attempt, peer), reason) in &self.state.broken {
            self.say(|_| ToLeader::ChannelBroken {
                job: *job,
                attempt: *attempt,
                peer: peer.clone(),
                reason: reason.clone(),
            });
        }
        let report = self.performer.report();
        if let Some(metrics) = &self.metrics {
            metrics.reported(Standing {
                slots: self.registration.slots,
                has_leader: self.leader.borrow().is_some(),
                is_draining: self.state.draining.is_some(),
                warm: self.performer.warm().len(),
                tasks: report.tasks.clone(),
            });
        }
        self.say(|_| ToLeader::Report(report));
    }

    /// Asks for the tasks here to be moved; from now on every registration does.
    fn drain(&mut self) {
        if self.state.draining.is_none() {
            let draining = Draining::begin(Instant::now(), self.drain_timeout, self.needed().len());
            self.state.draining = Some(draining);
            self.say(|_| ToLeader::Draining);
            self.still_draining();
        }
    }

    /// The attempts of tasks that a leader would have to move.
    fn needed(&self) -> Vec<(JobId, AttemptId)> {
        let gone = |state: &TaskState| {
            matches!(
                state,
                TaskState::Failed(_) | TaskState::Unrestorable { .. } | TaskState::Cancelled
            )
        };
        let running = self.worker.running().into_iter();
        running
            .filter(|task| !gone(&task.state))
            .map(|task| (task.job, task.attempt))
            .collect()
    }

    fn still_draining(&mut self) {
        let has_leader = self.leader.borrow().is_some();
        let needed = self.needed();
        if let Some(draining) = &mut self.state.draining {
            self.state.drained = draining.is_over(Instant::now(), &needed, has_leader);
        }
    }

    fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Register(ask) => {
                let registration = Registration {
                    running: self.worker.running(),
                    draining: self.state.draining.is_some(),
                    warm: self.performer.warm(),
                    ..self.registration.clone()
                };
                let (voice, afterwards) = mpsc::unbounded_channel();
                self.state.voice = Some(voice);
                let introduction = Introduction {
                    registration,
                    afterwards,
                };
                // The link that asked may have lost its connection meanwhile.
                let _ = ask.send(introduction);
            }
            LinkEvent::Met(epoch, answer) => {
                let _ = answer.send(self.met(epoch));
            }
            LinkEvent::Connected(leader) => {
                self.leader.send_replace(Some(leader.address));
            }
            LinkEvent::Lost => {
                self.leader.send_replace(None);
                self.state.voice = None;
                self.performer.leader_lost();
            }
            LinkEvent::Message(message) => self.on_message(*message),
        }
    }

    fn met(&mut self, epoch: Epoch) -> Result<(), Disobeyed> {
        self.worker.met(epoch)?;
        self.performer.leader_met(epoch);
        Ok(())
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
                self.performer.stop(Execution { job, task, attempt });
                let over = (job, attempt);
                self.state
                    .broken
                    .retain(|(job, attempt, _), _| (*job, *attempt) != over);
            }
            WorkerAction::Start(deployment) => self.performer.start(deployment),
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
            WorkerAction::KeepWarm(images) => self.performer.keep_warm(images),
            WorkerAction::PrepareModule(module) => self.performer.prepare_module(module),
            WorkerAction::Drained => {
                if let Some(draining) = &self.state.draining {
                    draining.drained();
                    self.state.drained = true;
                }
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
        if let Some(metrics) = &self.metrics {
            metrics.happened(&event);
        }
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
            TaskEvent::Warm(warm) => ToLeader::Warm(warm),
            TaskEvent::SplitWanted(request) => return self.performer.split_wanted(request),
            TaskEvent::ChannelBroken {
                job,
                attempt,
                peer,
                reason,
            } => match self.channel_broken(job, attempt, peer, reason) {
                Some(message) => message,
                None => return,
            },
        };
        self.say(|_| message);
    }

    /// What is to be said of a broken channel. A connection takes all its channels with it, and is reported once; that an
    /// attempt's channels break when it is stopped is nobody's news.
    fn channel_broken(
        &mut self,
        job: JobId,
        attempt: AttemptId,
        peer: TaskManagerId,
        reason: String,
    ) -> Option<ToLeader> {
        let known = (job, attempt, peer.clone());
        if self.state.broken.contains_key(&known) || !self.performer.runs(job, attempt) {
            return None;
        }
        warn!(%job, %attempt, %peer, reason, "a data connection broke");
        self.state.broken.insert(known, reason.clone());
        Some(ToLeader::ChannelBroken {
            job,
            attempt,
            peer,
            reason,
        })
    }

    /// Says something to the leader, if there is one. What is lost with a leader does not matter to the next: states of
    /// tasks are in the registration; an acknowledgement or a refusal is of a checkpoint that ends with its leader; a
    /// commit is asked for again by whoever has not heard that it was done; reports are repeated, and broken channels
    /// with them; logs are asked for by somebody who asks again.
    fn say(&self, message: impl FnOnce(&Self) -> ToLeader) {
        if let Some(voice) = &self.state.voice {
            // A link that has just broken is reported by its own event.
            let _ = voice.send(message(self));
        }
    }
}

/// Waits for a moment, or for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn error_line(
    job: JobId,
    task: tidemill_protocol::TaskId,
    failure: &tidemill_protocol::control::TaskFailure,
) {
    warn!(%job, %task, blame = ?failure.blame, backtrace = ?failure.backtrace, "a task failed: {}", failure.message);
}
