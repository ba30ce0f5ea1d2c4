//! One reign: everything that lives from the moment a JobManager leads until it steps down. Facts go to the
//! [`Leader`], which decides; [`Performer`] carries out. It never asks whether it still leads: the driver does.

mod begin;
mod savepoints;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_coordination::Leading;
use tidemill_core::Time;
use tidemill_core::job;
use tidemill_core::leader::{Event, Leader, LeaderConfig, LoadedJob};
use tidemill_core::membership::HowLost;
use tidemill_core::scheduler::slots_needed;
use tidemill_protocol::control::ToLeader;
use tidemill_protocol::record::{CheckpointPointers, JobRecord, TaskManagerRecord};
use tidemill_protocol::{ExecutionGraph, Incarnation, JobId, TaskManagerId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::begin::{Stored, check_and_store};
use self::savepoints::Question;
use crate::answers::{self, View};
use crate::handle::{
    CancelError, LogQuery, QueryError, Reply, Request, SubmitError, SubmitOptions,
};
use crate::log_requests::LogRequests;
use crate::perform::{Connections, Hands, Performer};
use crate::roles::{Fact, Process};
use crate::sessions::SessionEvent;
use crate::standing::Standing;
use crate::submission;
use crate::sweep::sweep;
use crate::views::{LogPage, SubmittedView};

/// A submission whose module and graph are stored.
pub(crate) struct Submission {
    record: JobRecord,
    graph: ExecutionGraph,
    pointers: CheckpointPointers,
    output_directories: BTreeSet<PathBuf>,
    warnings: Vec<String>,
    reply: Reply<Result<SubmittedView, SubmitError>>,
}

/// What was done elsewhere for the leader.
pub(crate) enum Done {
    /// What came of an action for a job.
    Performed { job: JobId, result: Box<job::Event> },
    /// A submission is checked, and all of it but its record is stored.
    Checked(Box<Submission>),
}

impl Done {
    pub(crate) fn performed(job: JobId, result: job::Event) -> Self {
        let result = Box::new(result);
        Self::Performed { job, result }
    }
}

/// Everything that a leading JobManager has, beyond what a process has.
pub(crate) struct Reign {
    leader: Leader,
    performer: Performer,
    hands: Hands,
    process: Process,
    log_requests: LogRequests,
    done: mpsc::UnboundedReceiver<Done>,
    /// Who has announced himself, as the leader was told last.
    announced: BTreeMap<TaskManagerId, Incarnation>,
    since: Time,
}

impl Reign {
    /// Begins to lead, with the jobs that the registry holds.
    pub(crate) fn begin(
        process: &Process,
        leading: Leading,
        jobs: Vec<LoadedJob>,
        facts: mpsc::UnboundedSender<Fact>,
    ) -> Self {
        let config = &process.config;
        let leader_config = LeaderConfig {
            epoch: leading.epoch(),
            wall_start_ms: process.clock.wall_ms(Time::ZERO),
            cluster_config_hash: config.cluster.hash(),
            adoption_timeout: Duration::from_millis(config.cluster.adoption_timeout_ms),
            suspicion_timeout: Duration::from_millis(config.cluster.heartbeat_timeout_ms),
            ended_jobs_max: config.jobmanager.ended_jobs_max as usize,
        };
        let (done_in, done) = mpsc::unbounded_channel();
        let hands = Hands {
            registry: Arc::clone(&process.registry),
            leading,
            store: process.store.clone(),
            done: done_in,
            facts,
            over: CancellationToken::new(),
            swept: CancellationToken::new(),
            report_interval_ms: config.jobmanager.report_interval_ms,
        };
        let savepoint_dir = config.checkpoints.savepoint_dir.clone();
        let sweep = sweep(hands.clone(), savepoint_dir);
        tokio::spawn(hands.over.clone().run_until_cancelled_owned(sweep));
        let since = process.clock.time(Instant::now());
        Self {
            leader: Leader::new(since, leader_config, jobs),
            performer: Performer::new(hands.clone()),
            hands,
            process: process.clone(),
            log_requests: LogRequests::default(),
            done,
            announced: BTreeMap::new(),
            since,
        }
    }

    /// Carries out the next thing that the leader wants; says whether there was one.
    pub(crate) fn perform_next(&mut self) -> bool {
        let action = self.leader.poll_action();
        let wanted = action.is_some();
        if let Some(action) = action {
            self.performer.perform(action);
        }
        wanted
    }

    /// What was done elsewhere. May be dropped and called again.
    pub(crate) async fn next_done(&mut self) -> Done {
        let done = self.done.recv().await;
        done.expect("this reign holds a sender of its own")
    }

    /// When [`Reign::on_timeout`] is to be called.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let leader = self.leader.poll_timeout();
        let leader = leader.map(|at| self.process.clock.instant(at));
        [leader, self.log_requests.next_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Ends it: what is under way is dropped and nothing more is said. The connections are the caller's to close.
    pub(crate) fn end(mut self) -> Connections {
        self.hands.over.cancel();
        self.done.close();
        while let Ok(done) = self.done.try_recv() {
            if let Done::Checked(submission) = done {
                // Its record was never written.
                let refused = Err(SubmitError::Unavailable(crate::Unavailable));
                let _ = submission.reply.send(refused);
            }
        }
        self.performer.into_connections()
    }

    /// How many of the announced TaskManagers are registered here.
    pub(crate) fn connected(&self, announced: &[TaskManagerRecord]) -> usize {
        let members = self.leader.membership();
        let is_here = |id: &TaskManagerId| members.member(id).is_some_and(|it| it.is_usable());
        announced.iter().filter(|one| is_here(&one.id)).count()
    }

    /// Tells the leader who has announced himself, when that has changed.
    pub(crate) fn on_announced(&mut self, announced: &[TaskManagerRecord]) {
        let life = |record: &TaskManagerRecord| (record.id.clone(), record.incarnation);
        let task_managers: BTreeMap<_, _> = announced.iter().map(life).collect();
        if self.announced != task_managers {
            self.announced.clone_from(&task_managers);
            self.tell(Event::Announced { task_managers });
        }
    }

    fn now(&self) -> Time {
        self.process.clock.time(Instant::now())
    }

    fn tell(&mut self, event: Event) {
        self.leader.handle(self.now(), event);
    }

    pub(crate) fn on_done(&mut self, done: Done) {
        match done {
            Done::Performed { job, result } => self.tell(Event::Performed {
                job,
                result: *result,
            }),
            Done::Checked(submission) => self.on_submission(*submission),
        }
    }

    pub(crate) fn on_timeout(&mut self) {
        self.log_requests.handle_timeout(Instant::now());
        let now = self.now();
        if self.leader.poll_timeout().is_some_and(|due| due <= now) {
            self.leader.handle_timeout(now);
        }
    }

    pub(crate) fn on_session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Registering {
                connection,
                registration,
                remote,
                answer,
            } => {
                tracing::debug!(task_manager = %registration.id, %remote, "a TaskManager registers");
                self.performer.expect_answer(connection, answer);
                self.tell(Event::Registering {
                    connection,
                    registration,
                });
            }
            SessionEvent::Message {
                connection,
                message: ToLeader::Logs { request, lines },
            } => {
                self.log_requests.answered(request, connection, lines);
            }
            SessionEvent::Message {
                connection,
                message,
            } => self.tell(Event::Message {
                connection,
                message,
            }),
            SessionEvent::Disconnected { connection, reason } => {
                self.performer.forget_connection(connection);
                self.log_requests.gone(connection);
                self.tell(Event::ConnectionLost {
                    connection,
                    how: HowLost::StreamBroken,
                    reason,
                });
            }
            SessionEvent::ProcessEnded {
                connection,
                reason,
                at,
            } => {
                self.performer.forget_connection(connection);
                self.log_requests.gone(connection);
                let lost = Event::ConnectionLost {
                    connection,
                    how: HowLost::ProcessEnded,
                    reason,
                };
                self.leader.handle(self.process.clock.time(at), lost);
            }
        }
    }

    /// Answers at once whatever needs no action. A reply that nobody waits for any more is dropped.
    pub(crate) fn on_request(
        &mut self,
        request: Request,
        standing: &Standing,
        announced: &[TaskManagerRecord],
    ) {
        let view = self.view(standing, announced);
        match request {
            Request::Submit {
                wasm,
                options,
                reply,
            } => self.on_submit(wasm, options, standing, reply),
            Request::Cancel(job, reply) => self.on_cancel(job, reply),
            Request::Logs { job, query, reply } => self.on_logs(job, &query, reply),
            Request::Jobs(reply) => drop(reply.send(view.jobs())),
            Request::Job(job, reply) => drop(reply.send(view.job(job))),
            Request::Checkpoints(job, reply) => drop(reply.send(view.checkpoints(job))),
            Request::Checkpoint(job, checkpoint, reply) => {
                drop(reply.send(view.checkpoint_detail(job, checkpoint)));
            }
            Request::Nodes(reply) => drop(reply.send(view.nodes())),
            Request::JobManagers(reply) => drop(reply.send(standing.job_managers())),
            Request::TriggerSavepoint {
                job,
                id,
                directory,
                stop,
                reply,
            } => drop(reply.send(self.on_savepoint(job, id, directory, stop))),
            Request::SavepointStatus(job, id, reply) => {
                drop(reply.send(self.savepoint_status(job, id)));
            }
            Request::Savepoints(reply) => self.list_savepoints(reply),
            Request::Savepoint(path, reply) => self.on_stored(Question::Show, path, reply),
            Request::VerifySavepoint(path, reply) => self.on_stored(Question::Verify, path, reply),
            Request::DeleteSavepoint(path, reply) => self.delete_savepoint(path, reply),
            // What every JobManager answers, leader or not, it answers elsewhere.
            Request::Metrics(_) | Request::Health(_) => {}
        }
    }

    /// Looks at the leader.
    pub(crate) fn view<'a>(
        &'a self,
        standing: &'a Standing,
        announced: &'a [TaskManagerRecord],
    ) -> View<'a> {
        View {
            leader: &self.leader,
            clock: &self.process.clock,
            now: self.now(),
            since: self.since,
            registry: standing.registry,
            announced,
        }
    }

    fn on_logs(&mut self, job: JobId, query: &LogQuery, reply: Reply<Result<LogPage, QueryError>>) {
        let Some(known) = self.leader.job(job) else {
            return drop(reply.send(Err(QueryError::UnknownJob(job))));
        };
        let unknown = |task: &_| !known.tasks().contains_key(task);
        if let Some(task) = query.task.filter(unknown) {
            return drop(reply.send(Err(QueryError::UnknownTask { job, task })));
        }
        let (leader, performer) = (&self.leader, &self.performer);
        self.log_requests.ask(leader, performer, job, query, reply);
    }

    fn on_cancel(&mut self, job: JobId, reply: Reply<Result<(), CancelError>>) {
        let Some(known) = self.leader.job(job) else {
            return drop(reply.send(Err(CancelError::UnknownJob(job))));
        };
        if known.phase().is_terminal() {
            let state = answers::status(known).1;
            return drop(reply.send(Err(CancelError::Ended { job, state })));
        }
        self.performer.expect_cancel(job, reply);
        self.tell(Event::CancelRequested { job });
    }

    fn on_submit(
        &self,
        wasm: Bytes,
        options: SubmitOptions,
        standing: &Standing,
        reply: Reply<Result<SubmittedView, SubmitError>>,
    ) {
        if let Some(answer) = self.submitted_before(&options) {
            return drop(reply.send(answer));
        }
        if !standing.registry.is_connected() {
            let away = standing.registry.since.elapsed();
            return drop(reply.send(Err(SubmitError::RegistryAway { away })));
        }
        let (process, hands) = (self.process.clone(), self.hands.clone());
        let submitted_at_ms = self.process.clock.wall_ms(self.now());
        tokio::spawn(async move {
            let stored = check_and_store(&process, &hands, wasm, options, submitted_at_ms);
            let stored = hands.over.run_until_cancelled(stored).await;
            let Stored {
                record,
                checked,
                pointers,
            } = match stored {
                Some(Ok(stored)) => stored,
                Some(Err(refused)) => return drop(reply.send(Err(refused))),
                None => return drop(reply.send(Err(SubmitError::Unavailable(crate::Unavailable)))),
            };
            let submission = Submission {
                record,
                graph: checked.execution,
                pointers,
                output_directories: checked.output_directories,
                warnings: checked.warnings,
                reply,
            };
            if let Err(mpsc::error::SendError(Done::Checked(submission))) =
                hands.done.send(Done::Checked(Box::new(submission)))
            {
                let over = Err(SubmitError::Unavailable(crate::Unavailable));
                let _ = submission.reply.send(over);
            }
        });
    }

    fn on_submission(&mut self, submission: Submission) {
        let Submission {
            record,
            graph,
            pointers,
            output_directories,
            warnings,
            reply,
        } = submission;
        let view = SubmittedView {
            warnings,
            ..self.submitted_view(&record, &graph)
        };
        if self.leader.job(record.id).is_some() {
            return drop(reply.send(Ok(view)));
        }
        let is_being_stored = |(other, _): (&JobRecord, _)| other.id == record.id;
        if self.leader.submissions().any(is_being_stored) {
            return self.performer.expect_submission(record.id, view, reply);
        }
        if let Some(in_use) = self.output_in_use(&output_directories) {
            self.performer.delete_submission(record.id);
            return drop(reply.send(Err(in_use)));
        }
        self.performer.expect_submission(record.id, view, reply);
        self.tell(Event::JobSubmitted {
            record: Box::new(record),
            graph,
            pointers,
        });
    }

    /// The answer to a submission that was carried out when it was sent before, to this leader or an earlier one.
    fn submitted_before(
        &self,
        options: &SubmitOptions,
    ) -> Option<Result<SubmittedView, SubmitError>> {
        let known = self.leader.job(options.id?)?;
        let record = known.record();
        if record.parameters != options.parameters {
            let id = record.id;
            let reason =
                format!("job {id} is there already, with other parameters: choose another id");
            return Some(Err(SubmitError::Option(reason)));
        }
        Some(Ok(self.submitted_view(record, known.graph())))
    }

    fn submitted_view(&self, record: &JobRecord, graph: &ExecutionGraph) -> SubmittedView {
        let slots = self.leader.slots();
        let slots_free = slots.map(|(member, used)| member.registration.slots - used);
        SubmittedView {
            id: record.id.to_string(),
            name: record.name.clone(),
            slots_needed: slots_needed(graph),
            slots_free: slots_free.sum(),
            warnings: Vec::new(),
        }
    }

    /// Another job that writes where this one wants to.
    fn output_in_use(&self, wanted: &BTreeSet<PathBuf>) -> Option<SubmitError> {
        let running = self.leader.jobs().filter(|job| !job.phase().is_terminal());
        let running = running.map(|job| (job.record(), job.graph()));
        running
            .chain(self.leader.submissions())
            .find_map(|(record, graph)| {
                let taken = submission::output_directories(graph);
                let output = taken.intersection(wanted).next()?;
                Some(SubmitError::OutputInUse {
                    output: output.display().to_string(),
                    other: record.id,
                    other_name: record.name.clone(),
                })
            })
    }
}
