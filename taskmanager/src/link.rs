//! The link to the leader: finds it, registers, keeps the control stream and the idle TCP connection beside it, and
//! starts over when either breaks or the registry names a successor. Tasks do not notice: what the link loses is only a
//! voice.

use std::net::SocketAddr;
use std::time::Duration;

use tidemill_core::worker::Disobeyed;
use tidemill_protocol::Epoch;
use tidemill_protocol::control::{Command, FromLeader, Registration, ToLeader};
use tidemill_transport::{ControlReceiver, ControlSender, Endpoint, Liveness, connect_liveness};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::error_chain;
use crate::leaders::{Candidate, Leaders};

/// The first wait after a failed connection; it doubles up to the configured maximum.
const RECONNECT_FIRST: Duration = Duration::from_millis(20);

/// How long a leader may take to answer a registration.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a session ends when its driver does.
const DRIVER_STOPS: &str = "the TaskManager stops";

/// What the link tells the driver.
pub(crate) enum LinkEvent {
    /// A JobManager is reached and asks who this is; the driver answers at once.
    Register(oneshot::Sender<Introduction>),
    /// A leader of this epoch has accepted the registration, or is named by the registry; the driver answers whether it
    /// is to be obeyed.
    Met(Epoch, oneshot::Sender<Result<(), Disobeyed>>),
    /// The leader is linked with.
    Connected(Leader),
    /// The leader says something.
    Message(Box<FromLeader>),
    /// The leader is out of reach; the link looks for it again.
    Lost,
}

/// What a JobManager is told by whoever registers.
pub(crate) struct Introduction {
    /// What this TaskManager is and runs.
    pub(crate) registration: Registration,
    /// What is said from then on. Unbounded, because a leader that reads nothing is soon lost.
    pub(crate) afterwards: mpsc::UnboundedReceiver<ToLeader>,
}

/// A leader that has accepted this TaskManager.
pub(crate) struct Leader {
    /// Its control and module address.
    pub(crate) address: SocketAddr,
    /// How often it wants a report.
    pub(crate) report_interval: Duration,
}

/// How patiently JobManagers are tried.
pub(crate) struct LinkOptions {
    pub(crate) reconnect_max: Duration,
}

/// Runs the link for ever; ends when the driver does.
pub(crate) async fn run(
    endpoint: Endpoint,
    mut leaders: Leaders,
    options: LinkOptions,
    events: mpsc::Sender<LinkEvent>,
) {
    let mut pause = Pause::new(options.reconnect_max);
    let mut waiting = Waiting::default();
    loop {
        let candidates = leaders.candidates();
        if candidates.is_empty() {
            waiting.say("the election of a leader", "none is known");
            leaders.changed().await;
            continue;
        }
        for candidate in candidates {
            match session(&endpoint, &leaders, &candidate, &events).await {
                Ok(()) => {
                    pause.reset();
                    waiting = Waiting::default();
                    if events.send(LinkEvent::Lost).await.is_err() {
                        return;
                    }
                }
                Err(SessionError::DriverGone) => return,
                Err(SessionError::Superseded) => debug!("{candidate} is not called any more"),
                Err(SessionError::Failed(reason)) => waiting.say(&candidate.to_string(), &reason),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause.next()) => {}
            () = leaders.changed() => pause.reset(),
        }
    }
}

/// The growing pause between attempts. Its jitter keeps all of a cluster's TaskManagers from calling a new leader in the
/// same moments.
struct Pause {
    next: Duration,
    max: Duration,
}

impl Pause {
    fn new(max: Duration) -> Self {
        let next = RECONNECT_FIRST.min(max);
        Self { next, max }
    }

    fn reset(&mut self) {
        *self = Self::new(self.max);
    }

    fn next(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        self.next = (self.next * 2).min(self.max);
        pause
    }
}

/// What the log has been told that is waited for: each thing once.
#[derive(Default)]
struct Waiting {
    told: Option<String>,
}

impl Waiting {
    fn say(&mut self, for_what: &str, reason: &str) {
        if self.told.as_deref() == Some(for_what) {
            debug!(reason, "still waiting for {for_what}");
        } else {
            warn!(reason, "waiting for {for_what}; tasks go on");
            self.told = Some(for_what.to_owned());
        }
    }
}

enum SessionError {
    Failed(String),
    /// The registry names a leader of a greater epoch.
    Superseded,
    DriverGone,
}

fn failed(error: &dyn std::error::Error) -> SessionError {
    SessionError::Failed(error_chain(error))
}

/// One session with one leader, from the connection to its loss.
async fn session(
    endpoint: &Endpoint,
    leaders: &Leaders,
    candidate: &Candidate,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<(), SessionError> {
    let mut session = tokio::select! {
        session = Session::begin(endpoint, candidate, events) => session?,
        successor = leaders.successor_of(candidate.epoch) => {
            // Whoever is still linked with the old one obeys it no more. The answer changes nothing here.
            let _ = ask(events, |answer| LinkEvent::Met(successor, answer)).await?;
            return Err(SessionError::Superseded);
        }
    };
    let (address, epoch) = (session.address, session.epoch);
    let reason = tokio::select! {
        reason = session.run(events) => reason,
        successor = leaders.successor_of(epoch) => {
            let _ = ask(events, |answer| LinkEvent::Met(successor, answer)).await?;
            format!("epoch {successor} has succeeded it")
        }
    };
    if reason != DRIVER_STOPS {
        warn!(%address, %epoch, reason, "lost the leader; tasks go on, and the next one is looked for");
    }
    Ok(())
}

/// A link that stands.
struct Session {
    address: SocketAddr,
    epoch: Epoch,
    sender: ControlSender,
    receiver: ControlReceiver,
    liveness: Liveness,
    queued: mpsc::UnboundedReceiver<ToLeader>,
}

impl Session {
    /// Connects and registers. The driver has been told of the leader when this returns.
    async fn begin(
        endpoint: &Endpoint,
        candidate: &Candidate,
        events: &mpsc::Sender<LinkEvent>,
    ) -> Result<Self, SessionError> {
        let resolved = endpoint.resolve(&candidate.address).await;
        let address = resolved.map_err(|error| failed(&error))?;
        let connection = endpoint.connect_control(address).await;
        let (mut sender, mut receiver, _) = connection.map_err(|error| failed(&error))?.split();
        let (accepted, queued) = register(&mut sender, &mut receiver, events).await?;
        let epoch = accepted.epoch;
        if epoch < candidate.epoch {
            let (theirs, known) = (epoch, candidate.epoch);
            return Err(SessionError::Failed(format!(
                "it speaks as the leader of epoch {theirs}, but epoch {known} has succeeded it"
            )));
        }
        let obeyed = ask(events, |answer| LinkEvent::Met(epoch, answer)).await?;
        obeyed.map_err(|disobeyed| failed(&disobeyed))?;
        let liveness_address = SocketAddr::new(address.ip(), accepted.liveness_port);
        let liveness = connect_liveness(liveness_address, accepted.liveness_token);
        let liveness = liveness.await.map_err(|error| failed(&error))?;
        info!(%address, %epoch, "registered with the leader");
        let leader = Leader {
            address,
            report_interval: accepted.report_interval,
        };
        let told = events.send(LinkEvent::Connected(leader)).await;
        told.map_err(|_| SessionError::DriverGone)?;
        Ok(Self {
            address,
            epoch,
            sender,
            receiver,
            liveness,
            queued,
        })
    }

    /// Speaks and hears; returns why it ended.
    async fn run(&mut self, events: &mpsc::Sender<LinkEvent>) -> String {
        let Self {
            sender,
            receiver,
            liveness,
            queued,
            ..
        } = self;
        let speak = async {
            while let Some(message) = queued.recv().await {
                if let Err(error) = sender.send(&message).await {
                    return error_chain(&error);
                }
            }
            DRIVER_STOPS.to_owned()
        };
        tokio::select! {
            reason = speak => reason,
            reason = hear(receiver, events) => reason,
            loss = liveness.lost() => loss.to_string(),
        }
    }
}

/// What a leader says when it accepts a registration.
struct Accepted {
    epoch: Epoch,
    liveness_token: [u8; 16],
    liveness_port: u16,
    report_interval: Duration,
}

/// Asks the driver something.
async fn ask<T>(
    events: &mpsc::Sender<LinkEvent>,
    question: impl FnOnce(oneshot::Sender<T>) -> LinkEvent,
) -> Result<T, SessionError> {
    let (ask, answer) = oneshot::channel();
    let asked = events.send(question(ask)).await;
    asked.map_err(|_| SessionError::DriverGone)?;
    answer.await.map_err(|_| SessionError::DriverGone)
}

async fn register(
    sender: &mut ControlSender,
    receiver: &mut ControlReceiver,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<(Accepted, mpsc::UnboundedReceiver<ToLeader>), SessionError> {
    let Introduction {
        registration,
        afterwards,
    } = ask(events, LinkEvent::Register).await?;
    let register = ToLeader::Register(registration);
    let sent = sender.send(&register).await;
    sent.map_err(|error| failed(&error))?;
    let answer = tokio::time::timeout(REGISTRATION_TIMEOUT, receiver.recv::<FromLeader>())
        .await
        .map_err(|_| SessionError::Failed("it did not answer the registration in time".to_owned()))?
        .map_err(|error| failed(&error))?;
    let refused = |reason: String| Err(SessionError::Failed(reason));
    match answer {
        None => refused("it closed the connection during the registration".to_owned()),
        Some(FromLeader { epoch, command }) => match command {
            Command::Registered {
                liveness_token,
                liveness_port,
                report_interval_ms,
            } => {
                let report_interval = Duration::from_millis(report_interval_ms.max(1));
                let accepted = Accepted {
                    epoch,
                    liveness_token,
                    liveness_port,
                    report_interval,
                };
                Ok((accepted, afterwards))
            }
            Command::Refused { reason } => {
                refused(format!("it refuses this TaskManager: {reason}"))
            }
            other => refused(format!("it answered the registration with {other:?}")),
        },
    }
}

/// Passes on what the leader says; returns why it stopped.
async fn hear(receiver: &mut ControlReceiver, events: &mpsc::Sender<LinkEvent>) -> String {
    loop {
        match receiver.recv::<FromLeader>().await {
            Ok(Some(message)) => {
                if events
                    .send(LinkEvent::Message(Box::new(message)))
                    .await
                    .is_err()
                {
                    return DRIVER_STOPS.to_owned();
                }
            }
            Ok(None) => return "it closed the connection".to_owned(),
            Err(error) => return error_chain(&error),
        }
    }
}
