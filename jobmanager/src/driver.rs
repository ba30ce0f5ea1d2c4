//! Facts in: one `select!` over everything that happens to a JobManager, whatever its role. What follows from a fact is
//! decided by [`Leadership`] and, while it leads, by the [`Leader`](tidemill_core::leader::Leader) of its [`Reign`].

use std::time::{Duration, Instant};

use tidemill_coordination::{Connection, KnownLeader};
use tidemill_core::Time;
use tidemill_core::leadership::{Action, Event, Leadership, Phase, Reach};
use tidemill_protocol::Epoch;
use tidemill_protocol::record::{JobManagerRecord, TaskManagerRecord};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::error_chain;
use crate::handle::{Request, SubmitError};
use crate::reign::{Done, Reign};
use crate::roles::{Fact, Process, Roles};
use crate::sessions::{Answer, NO_EPOCH, SessionEvent};
use crate::standing::{self, Standing};
use crate::start::StartError;
use crate::views::{MetricsView, Role};

/// TaskManagers that may wait until a take-over is done; more are refused, and come again.
const REGISTERING_MAX: usize = 4096;

/// What the driver listens to.
pub(crate) struct Inputs {
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) sessions: mpsc::Receiver<SessionEvent>,
    pub(crate) facts: mpsc::UnboundedReceiver<Fact>,
    pub(crate) stop: CancellationToken,
}

/// A JobManager.
pub(crate) struct Driver {
    process: Process,
    leadership: Leadership,
    roles: Roles,
    reign: Option<Reign>,
    /// TaskManagers that registered while this JobManager was taking over.
    registering: Vec<SessionEvent>,
    reach: Reach,
    registry: RegistryWatch,
    standing: watch::Sender<Standing>,
    inputs: Inputs,
    /// Whoever waits for the first reign, and does not want another try when it cannot begin.
    started: Option<oneshot::Sender<Result<(), StartError>>>,
}

/// What the registry tells by itself.
struct RegistryWatch {
    leader: watch::Receiver<Option<KnownLeader>>,
    job_managers: watch::Receiver<Vec<JobManagerRecord>>,
    task_managers: watch::Receiver<Vec<TaskManagerRecord>>,
    connection: watch::Receiver<Connection>,
}

impl RegistryWatch {
    /// Waits until anything is told. May be dropped and called again.
    async fn changed(&mut self) {
        let told = tokio::select! {
            told = self.leader.changed() => told,
            told = self.job_managers.changed() => told,
            told = self.task_managers.changed() => told,
            told = self.connection.changed() => told,
        };
        if told.is_err() {
            // Nothing will ever be told again.
            std::future::pending::<()>().await;
        }
    }
}

impl Driver {
    pub(crate) fn new(
        process: Process,
        roles: Roles,
        standing: watch::Sender<Standing>,
        inputs: Inputs,
        started: Option<oneshot::Sender<Result<(), StartError>>>,
    ) -> Self {
        let reach_grace = Duration::from_millis(process.config.cluster.heartbeat_timeout_ms);
        let registry = RegistryWatch {
            leader: process.registry.leader(),
            job_managers: process.registry.job_managers(),
            task_managers: process.registry.task_managers(),
            connection: process.registry.connection(),
        };
        Self {
            process,
            leadership: Leadership::new(reach_grace),
            roles,
            reign: None,
            registering: Vec::new(),
            reach: Reach::default(),
            registry,
            standing,
            inputs,
            started,
        }
    }

    /// Runs until stopped, or until a start has failed.
    pub(crate) async fn run(mut self) {
        let stop = self.inputs.stop.clone();
        let mut stopping = false;
        self.on_registry();
        loop {
            if self.act() {
                self.roles.leave().await;
                return;
            }
            let leadership = self.leadership.poll_timeout();
            let leadership = leadership.map(|at| self.process.clock.instant(at));
            let reign = self.reign.as_ref().and_then(Reign::next_timeout);
            let timeout = [leadership, reign].into_iter().flatten().min();
            tokio::select! {
                Some(event) = self.inputs.sessions.recv() => self.on_session(event),
                Some(fact) = self.inputs.facts.recv() => if self.on_fact(fact) { return },
                done = next_done(&mut self.reign) => self.on_done(done),
                Some(request) = self.inputs.requests.recv() => self.on_request(request),
                () = self.registry.changed() => self.on_registry(),
                () = at(timeout) => self.on_timeout(),
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.tell(Event::StopRequested);
                }
            }
        }
    }

    /// Carries out what was decided: first what concerns the role, then, while that allows it, what the leader wants.
    /// Says whether the process may end.
    fn act(&mut self) -> bool {
        let now = self.now();
        // A process that was stopped for a while finds out here, before it does anything else.
        if self.leadership.poll_timeout().is_some_and(|due| due <= now) {
            self.leadership.handle_timeout(now);
        }
        while let Some(action) = self.leadership.poll_action() {
            match action {
                Action::Stand => self.roles.stand(),
                Action::TakeOver { epoch } => self.roles.take_over(epoch),
                Action::Lead { epoch } => self.lead(epoch),
                Action::Confirm { epoch } => self.roles.confirm(epoch),
                Action::StepDown { epoch, reason } => {
                    let reign = self.reign.take();
                    self.registering.clear();
                    self.roles.step_down(epoch, &reason, reign);
                }
                Action::Resign { epoch } => self.roles.resign(epoch),
                Action::Stopped => return true,
            }
        }
        self.show_role();
        while self.may_lead() && self.reign.as_mut().is_some_and(Reign::perform_next) {}
        false
    }

    fn now(&self) -> Time {
        self.process.clock.time(Instant::now())
    }

    fn may_lead(&self) -> bool {
        self.leadership.may_lead(self.now())
    }

    fn tell(&mut self, event: Event) {
        self.leadership.handle(self.now(), event);
    }

    fn lead(&mut self, epoch: Epoch) {
        self.reign = self.roles.lead(epoch);
        if let Some(started) = self.started.take() {
            // Whoever started it and has gone does not want to know.
            let _ = started.send(Ok(()));
        }
        self.show_role();
        for event in std::mem::take(&mut self.registering) {
            self.on_session(event);
        }
        self.look_around();
    }

    /// Says whether the process may end, since it could not even start.
    fn on_fact(&mut self, fact: Fact) -> bool {
        match fact {
            Fact::Elected(leading) => {
                let event = Event::Elected {
                    epoch: leading.epoch(),
                    confirmed_at: self.process.clock.time(leading.confirmed_at()),
                    session_timeout: self.process.registry.session_timeout(),
                };
                self.roles.hold(leading);
                self.tell(event);
            }
            Fact::NotElected(error) => {
                let reason = error_chain(&error);
                if self.fail_start(StartError::Lead(error)) {
                    return true;
                }
                warn!("cannot stand for election: {reason}");
                self.tell(Event::StandFailed { reason });
            }
            Fact::Loaded { epoch, loaded } => {
                self.roles.keep(loaded);
                self.tell(Event::TakenOver { epoch });
            }
            Fact::NotLoaded { epoch, error } => {
                let reason = error_chain(&error);
                if self.fail_start(error.into()) {
                    return true;
                }
                self.tell(Event::TakeOverFailed { epoch, reason });
            }
            Fact::Confirmed { epoch, sent_at } => {
                self.roles.confirmed(sent_at);
                let sent_at = self.process.clock.time(sent_at);
                self.tell(Event::Confirmed { epoch, sent_at });
            }
            Fact::NotConfirmed { epoch, reason } => {
                debug!(%epoch, "the leadership is not confirmed: {reason}");
                self.tell(Event::ConfirmFailed { epoch });
            }
            Fact::Fenced { epoch } => self.tell(Event::Fenced { epoch }),
            Fact::Lost { epoch } => {
                self.roles.close_connections();
                self.tell(Event::Lost { epoch });
            }
            Fact::Resigned { epoch } => {
                info!(%epoch, "resigned");
                self.roles.close_connections();
                self.tell(Event::Resigned { epoch });
            }
            Fact::NotResigned { epoch, reason } => {
                info!(%epoch, "the resignation is not confirmed: {reason}");
                self.roles.close_connections();
                self.tell(Event::ResignFailed { epoch });
            }
        }
        false
    }

    /// Tells whoever waits for the first reign that there will be none; says whether anybody waits.
    fn fail_start(&mut self, error: StartError) -> bool {
        let started = self.started.take();
        started.is_some_and(|started| started.send(Err(error)).is_ok())
    }

    fn on_done(&mut self, done: Done) {
        if let Some(reign) = &mut self.reign {
            reign.on_done(done);
        }
    }

    fn on_timeout(&mut self) {
        let now = self.now();
        if self.leadership.poll_timeout().is_some_and(|due| due <= now) {
            self.leadership.handle_timeout(now);
        }
        if let Some(reign) = &mut self.reign {
            reign.on_timeout();
        }
    }

    fn on_session(&mut self, event: SessionEvent) {
        if let Some(reign) = &mut self.reign {
            reign.on_session(event);
            return self.look_around();
        }
        let SessionEvent::Registering { answer, .. } = &event else {
            // Of a reign that is over.
            return;
        };
        let taking_over = matches!(self.leadership.phase(), Phase::TakingOver { .. });
        if taking_over && self.registering.len() < REGISTERING_MAX && !answer.is_closed() {
            return self.registering.push(event);
        }
        if let SessionEvent::Registering { answer, .. } = event {
            let reason = self.standing.borrow().why_not_here();
            // A session that has ended wants no answer.
            let _ = answer.send(Answer::Refused {
                epoch: NO_EPOCH,
                reason,
            });
        }
    }

    fn on_request(&mut self, request: Request) {
        let standing = self.standing.borrow().clone();
        let announced = self.registry.task_managers.borrow().clone();
        let may_lead = self.may_lead();
        let reign = self.reign.as_mut().filter(|_| may_lead);
        match (request, reign) {
            (Request::Health(reply), reign) => {
                let cluster = reign.map(|reign| reign.view(&standing, &announced).cluster());
                drop(reply.send(standing.health(cluster)));
            }
            (Request::Metrics(reply), reign) => {
                let view = reign.map(|reign| reign.view(&standing, &announced));
                let confirmed_at = self.roles.confirmed_at().filter(|_| may_lead);
                let metrics = MetricsView {
                    health: standing.health(view.as_ref().map(|view| view.cluster())),
                    confirmed_before_us: confirmed_at
                        .map(|at| u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX)),
                    take_over: self.roles.take_over_times(),
                    nodes: view.as_ref().map(|view| view.nodes()).unwrap_or_default(),
                    jobs: view.map(|view| view.job_metrics()).unwrap_or_default(),
                };
                drop(reply.send(metrics));
            }
            (request, Some(reign)) => reign.on_request(request, &standing, &announced),
            (Request::Submit { reply, .. }, None) => {
                let refused = SubmitError::Unavailable(crate::Unavailable);
                drop(reply.send(Err(refused)));
            }
            (Request::Cancel(_, reply), None) => drop(reply.send(Err(crate::Unavailable.into()))),
            // Whoever asked is told by the reply's end that nobody answers here.
            (_, None) => {}
        }
    }

    /// The registry told something.
    fn on_registry(&mut self) {
        let leader = self.registry.leader.borrow_and_update().clone();
        let candidates = self.registry.job_managers.borrow_and_update().clone();
        let connection = *self.registry.connection.borrow_and_update();
        self.registry.task_managers.mark_unchanged();
        self.standing.send_if_modified(|standing| {
            let before = standing.clone();
            if standing.registry.connection != connection {
                log_connection(standing, connection);
                standing.registry.connection = connection;
                standing.registry.since = Instant::now();
            }
            if standing.leader != leader {
                standing.leader = leader;
                if let Some(leader) = standing.other_leader() {
                    let (id, url) = (&leader.record.id, &leader.record.rest_url);
                    info!(epoch = %leader.epoch, leader = %id, %url, "following");
                }
            }
            standing.candidates = candidates;
            *standing != before
        });
        self.look_around();
    }

    /// Tells the leadership who is there and who is reached, and the leader who is expected, when that has changed.
    fn look_around(&mut self) {
        let announced = self.registry.task_managers.borrow();
        if let Some(reign) = &mut self.reign {
            reign.on_announced(&announced);
        }
        let me = self.process.record.incarnation;
        let others = |record: &&JobManagerRecord| record.incarnation != me;
        let reach = Reach {
            task_managers_announced: announced.len(),
            task_managers_connected: self
                .reign
                .as_ref()
                .map_or(0, |reign| reign.connected(&announced)),
            other_candidates: self
                .standing
                .borrow()
                .candidates
                .iter()
                .filter(others)
                .count(),
        };
        drop(announced);
        if self.reach != reach {
            self.reach = reach;
            self.tell(Event::Reach(reach));
        }
    }

    /// Shows the role to whoever asks.
    fn show_role(&self) {
        let (role, epoch) = (
            standing::role(self.leadership.phase()),
            self.leadership.epoch(),
        );
        self.standing.send_if_modified(|standing| {
            let changed = (standing.role, standing.epoch) != (role, epoch);
            if changed && role == Role::Follower {
                info!(id = %standing.me.id, "standing by");
            }
            (standing.role, standing.epoch) = (role, epoch);
            changed
        });
    }
}

fn log_connection(before: &Standing, now: Connection) {
    let seconds = before.registry.since.elapsed().as_secs_f64();
    match now {
        Connection::Connected => info!("the registry is in reach again after {seconds:.1} s"),
        Connection::Connecting => warn!(
            "there is no session with the registry: submissions and checkpoints wait, tasks go on"
        ),
        Connection::Suspended => {
            warn!("the registry does not answer: submissions and checkpoints wait, tasks go on")
        }
    }
}

async fn next_done(reign: &mut Option<Reign>) -> Done {
    match reign {
        Some(reign) => reign.next_done().await,
        None => std::future::pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
