//! Facts in: one `select!` over everything that happens to a leading JobManager. What follows from a fact is decided by
//! [`Leader`] and carried out by [`Performer`].

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tidemill_config::Config;
use tidemill_core::Time;
use tidemill_core::leader::{Event, Leader};
use tidemill_core::membership::HowLost;
use tidemill_core::scheduler::slots_needed;
use tidemill_protocol::control::ToLeader;
use tidemill_protocol::record::JobRecord;
use tidemill_protocol::{ExecutionGraph, JobId};
use tidemill_runtime::Engine;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::answers::{self, Clock};
use crate::error_chain;
use crate::handle::{CancelError, QueryError, Reply, Request, SubmitError, SubmitOptions};
use crate::log_requests::LogRequests;
use crate::perform::{Hands, Performer};
use crate::sessions::SessionEvent;
use crate::submission;
use crate::views::SubmittedView;

/// A submission whose module and graph are stored.
pub(crate) struct Submission {
    record: JobRecord,
    graph: ExecutionGraph,
    output_directories: BTreeSet<PathBuf>,
    warnings: Vec<String>,
    reply: Reply<Result<SubmittedView, SubmitError>>,
}

/// Everything a leading JobManager is.
pub(crate) struct Driver {
    pub(crate) leader: Leader,
    pub(crate) performer: Performer,
    pub(crate) hands: Hands,
    pub(crate) clock: Clock,
    pub(crate) config: Arc<Config>,
    pub(crate) engine: Engine,
    pub(crate) log_requests: LogRequests,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) sessions: mpsc::Receiver<SessionEvent>,
    /// What came of actions.
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) submissions: mpsc::Receiver<Submission>,
    pub(crate) submissions_in: mpsc::Sender<Submission>,
    pub(crate) stop: CancellationToken,
}

impl Driver {
    /// Runs until stopped.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            while let Some(action) = self.leader.poll_action() {
                self.performer.perform(action);
            }
            let leader_timeout = self.leader.poll_timeout().map(|at| self.clock.instant(at));
            let timeout = [leader_timeout, self.log_requests.next_timeout()]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                Some(event) = self.sessions.recv() => self.on_session(event),
                Some(event) = self.events.recv() => self.tell(event),
                Some(submission) = self.submissions.recv() => self.on_submission(submission),
                Some(request) = self.requests.recv() => self.on_request(request),
                () = at(timeout) => self.on_timeout(),
                () = stop.cancelled() => return,
            }
        }
    }

    fn now(&self) -> Time {
        self.clock.time(Instant::now())
    }

    fn tell(&mut self, event: Event) {
        self.leader.handle(self.now(), event);
    }

    fn on_timeout(&mut self) {
        self.log_requests.handle_timeout(Instant::now());
        let now = self.now();
        if self.leader.poll_timeout().is_some_and(|due| due <= now) {
            self.leader.handle_timeout(now);
        }
    }

    fn on_session(&mut self, event: SessionEvent) {
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
                self.leader.handle(self.clock.time(at), lost);
            }
        }
    }

    /// Answers at once whatever needs no action. A reply that nobody waits for any more is dropped.
    fn on_request(&mut self, request: Request) {
        let view = answers::View {
            leader: &self.leader,
            clock: &self.clock,
            now: self.now(),
        };
        match request {
            Request::Submit {
                wasm,
                options,
                reply,
            } => self.on_submit(wasm, options, reply),
            Request::Cancel(job, reply) => self.on_cancel(job, reply),
            Request::Logs { job, query, reply } => match self.leader.job(job) {
                None => drop(reply.send(Err(QueryError::UnknownJob(job)))),
                Some(known) => {
                    if let Some(task) = query.task.filter(|task| !known.tasks().contains_key(task))
                    {
                        return drop(reply.send(Err(QueryError::UnknownTask { job, task })));
                    }
                    self.log_requests
                        .ask(&self.leader, &self.performer, job, &query, reply);
                }
            },
            Request::Jobs(reply) => drop(reply.send(view.jobs())),
            Request::Job(job, reply) => drop(reply.send(view.job(job))),
            Request::Checkpoints(job, reply) => drop(reply.send(view.checkpoints(job))),
            Request::Nodes(reply) => drop(reply.send(view.nodes())),
            Request::Metrics(reply) => drop(reply.send(view.metrics())),
            Request::Health(reply) => drop(reply.send(view.health())),
        }
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
        reply: Reply<Result<SubmittedView, SubmitError>>,
    ) {
        let (engine, config, hands) = (
            self.engine.clone(),
            Arc::clone(&self.config),
            self.hands.clone(),
        );
        let (submissions, submitted_at_ms) =
            (self.submissions_in.clone(), self.clock.wall_ms(self.now()));
        tokio::spawn(async move {
            let parameters = options.parameters.clone();
            let checked = tokio::task::spawn_blocking(move || {
                submission::check(&engine, &config, &wasm, options)
            });
            let checked = match checked.await {
                Ok(Ok(checked)) => checked,
                Ok(Err(refused)) => return drop(reply.send(Err(refused))),
                Err(panic) => {
                    let reason = format!("the check of the submission failed: {panic}");
                    return drop(reply.send(Err(SubmitError::Module { reason })));
                }
            };
            match store(&hands, &checked, parameters, submitted_at_ms).await {
                Err(reason) => drop(reply.send(Err(SubmitError::Storage { reason }))),
                Ok(record) => {
                    let submission::CheckedSubmission {
                        execution: graph,
                        output_directories,
                        warnings,
                        ..
                    } = checked;
                    let submission = Submission {
                        record,
                        graph,
                        output_directories,
                        warnings,
                        reply,
                    };
                    // A driver that is gone drops the reply, which tells the submitter.
                    let _ = submissions.send(submission).await;
                }
            }
        });
    }

    fn on_submission(&mut self, submission: Submission) {
        let Submission {
            record,
            graph,
            output_directories,
            warnings,
            reply,
        } = submission;
        if let Some(in_use) = self.output_in_use(&output_directories) {
            return drop(reply.send(Err(in_use)));
        }
        let slots_free = self
            .leader
            .slots()
            .map(|(member, used)| member.registration.slots - used)
            .sum();
        let view = SubmittedView {
            id: record.id.to_string(),
            name: record.name.clone(),
            slots_needed: slots_needed(&graph),
            slots_free,
            warnings,
        };
        self.performer.expect_submission(record.id, view, reply);
        self.tell(Event::JobSubmitted { record, graph });
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

/// Stores the module and the graph, and makes the record that names them.
async fn store(
    hands: &Hands,
    checked: &submission::CheckedSubmission,
    parameters: std::collections::BTreeMap<String, String>,
    submitted_at_ms: u64,
) -> Result<JobRecord, String> {
    let id = JobId(rand::random());
    let module = hands
        .store
        .put_module(checked.module.clone())
        .await
        .map_err(|error| error_chain(&error))?;
    let graph = hands
        .store
        .put_graph(id, checked.encoded_graph())
        .await
        .map_err(|error| error_chain(&error))?;
    Ok(JobRecord {
        id,
        name: checked.name.clone(),
        module,
        graph,
        graph_hash: tidemill_abi::graph_hash(&checked.graph),
        parameters,
        options: checked.options.clone(),
        submitted_at_ms,
        state: tidemill_protocol::record::JobState::Active,
        restarts: 0,
    })
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
