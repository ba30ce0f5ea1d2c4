//! The link to the leader: finds it, registers, keeps the control stream and the idle TCP connection beside it, and
//! starts over when either breaks. Tasks do not notice: what the link loses is only a voice.

use std::net::SocketAddr;
use std::time::Duration;

use tidemill_protocol::Epoch;
use tidemill_protocol::control::{Command, FromLeader, Registration, ToLeader};
use tidemill_transport::{ControlReceiver, ControlSender, Endpoint, connect_liveness};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::error_chain;

/// The first wait after a failed connection; it doubles up to the configured maximum.
const RECONNECT_FIRST: Duration = Duration::from_millis(20);

/// How long a leader may take to answer a registration.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a session ends when its driver does.
const DRIVER_STOPS: &str = "the TaskManager stops";

/// What the link tells the driver.
pub(crate) enum LinkEvent {
    /// A JobManager is reached and asks who this is; the driver answers at once.
    Register(oneshot::Sender<Registration>),
    /// The leader has accepted the registration.
    Connected(Leader),
    /// The leader says something.
    Message(FromLeader),
    /// The leader is out of reach; the link looks for it again.
    Lost,
}

/// A leader that has accepted this TaskManager.
pub(crate) struct Leader {
    /// Its control and module address.
    pub(crate) address: SocketAddr,
    /// Where messages for it go; unbounded, because a leader that reads nothing is soon lost.
    pub(crate) outbox: mpsc::UnboundedSender<ToLeader>,
    /// How often it wants a report.
    pub(crate) report_interval: Duration,
}

/// Where JobManagers are and how patiently they are tried.
pub(crate) struct LinkOptions {
    pub(crate) jobmanagers: Vec<String>,
    pub(crate) reconnect_max: Duration,
}

/// Runs the link for ever; ends when the driver does.
pub(crate) async fn run(endpoint: Endpoint, options: LinkOptions, events: mpsc::Sender<LinkEvent>) {
    let mut wait = RECONNECT_FIRST;
    let mut told = false;
    loop {
        for jobmanager in &options.jobmanagers {
            match session(&endpoint, jobmanager, &events).await {
                Ok(()) => {
                    wait = RECONNECT_FIRST;
                    told = false;
                    if events.send(LinkEvent::Lost).await.is_err() {
                        return;
                    }
                }
                Err(SessionError::DriverGone) => return,
                Err(SessionError::Failed(reason)) if told => {
                    debug!(%jobmanager, reason, "no leader yet")
                }
                Err(SessionError::Failed(reason)) => {
                    warn!(%jobmanager, reason, "cannot reach the leader; trying again")
                }
            }
        }
        told = true;
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(options.reconnect_max);
    }
}

enum SessionError {
    Failed(String),
    DriverGone,
}

/// One session with one leader, from the connection to its loss.
async fn session(
    endpoint: &Endpoint,
    jobmanager: &str,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<(), SessionError> {
    let address = endpoint
        .resolve(jobmanager)
        .await
        .map_err(|error| failed(&error))?;
    let connection = endpoint
        .connect_control(address)
        .await
        .map_err(|error| failed(&error))?;
    let (mut sender, mut receiver, _connection) = connection.split();
    let accepted = register(&mut sender, &mut receiver, events).await?;
    let liveness_address = SocketAddr::new(address.ip(), accepted.liveness_port);
    let liveness = connect_liveness(liveness_address, accepted.liveness_token);
    let mut liveness = liveness.await.map_err(|error| failed(&error))?;
    info!(%address, epoch = %accepted.epoch, "registered with the leader");

    let (outbox, mut queued) = mpsc::unbounded_channel();
    let leader = Leader {
        address,
        outbox,
        report_interval: accepted.report_interval,
    };
    events
        .send(LinkEvent::Connected(leader))
        .await
        .map_err(|_| SessionError::DriverGone)?;
    let speak = async {
        while let Some(message) = queued.recv().await {
            if let Err(error) = sender.send(&message).await {
                return error_chain(&error);
            }
        }
        DRIVER_STOPS.to_owned()
    };
    let reason = tokio::select! {
        reason = speak => reason,
        reason = hear(&mut receiver, events) => reason,
        loss = liveness.lost() => loss.to_string(),
    };
    warn!(%address, reason, "lost the leader; tasks go on, and it is looked for");
    Ok(())
}

fn failed(error: &dyn std::error::Error) -> SessionError {
    SessionError::Failed(error_chain(error))
}

/// What a leader says when it accepts a registration.
struct Accepted {
    epoch: Epoch,
    liveness_token: [u8; 16],
    liveness_port: u16,
    report_interval: Duration,
}

async fn register(
    sender: &mut ControlSender,
    receiver: &mut ControlReceiver,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<Accepted, SessionError> {
    let (ask, answer) = oneshot::channel();
    events
        .send(LinkEvent::Register(ask))
        .await
        .map_err(|_| SessionError::DriverGone)?;
    let registration = answer.await.map_err(|_| SessionError::DriverGone)?;
    let register = ToLeader::Register(registration);
    sender
        .send(&register)
        .await
        .map_err(|error| failed(&error))?;
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
                Ok(Accepted {
                    epoch,
                    liveness_token,
                    liveness_port,
                    report_interval,
                })
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
                if events.send(LinkEvent::Message(message)).await.is_err() {
                    return DRIVER_STOPS.to_owned();
                }
            }
            Ok(None) => return "it closed the connection".to_owned(),
            Err(error) => return error_chain(&error),
        }
    }
}
