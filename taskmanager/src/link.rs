//! The link to the leader: finds it, registers, keeps the control stream and the idle TCP connection beside it, and
//! starts over when either breaks. Tasks do not notice: what the link loses is only a voice.

use std::net::SocketAddr;
use std::time::Duration;

use tidemill_protocol::control::{Command, FromLeader, Registration, ToLeader};
use tidemill_transport::{Endpoint, connect_liveness};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::error_chain;

/// The first wait after a failed connection; it doubles up to the configured maximum.
const RECONNECT_FIRST: Duration = Duration::from_millis(20);

/// How long a leader may take to answer a registration.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(5);

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
    let failed = |error: &dyn std::error::Error| SessionError::Failed(error_chain(error));
    let address = endpoint
        .resolve(jobmanager)
        .await
        .map_err(|error| failed(&error))?;
    let connection = endpoint
        .connect_control(address)
        .await
        .map_err(|error| failed(&error))?;
    let (mut sender, mut receiver, _connection) = connection.split();

    let (ask, answer) = oneshot::channel();
    events
        .send(LinkEvent::Register(ask))
        .await
        .map_err(|_| SessionError::DriverGone)?;
    let registration = answer.await.map_err(|_| SessionError::DriverGone)?;
    sender
        .send(&ToLeader::Register(registration))
        .await
        .map_err(|error| failed(&error))?;
    let answer = tokio::time::timeout(REGISTRATION_TIMEOUT, receiver.recv::<FromLeader>())
        .await
        .map_err(|_| SessionError::Failed("it did not answer the registration in 5 s".to_owned()))?
        .map_err(|error| failed(&error))?;
    let Some(FromLeader { epoch, command }) = answer else {
        return Err(SessionError::Failed(
            "it closed the connection during the registration".to_owned(),
        ));
    };
    let (token, port, report_interval_ms) = match command {
        Command::Registered {
            liveness_token,
            liveness_port,
            report_interval_ms,
        } => (liveness_token, liveness_port, report_interval_ms),
        Command::Refused { reason } => {
            return Err(SessionError::Failed(format!(
                "it refuses this TaskManager: {reason}"
            )));
        }
        other => {
            return Err(SessionError::Failed(format!(
                "it answered the registration with {other:?}"
            )));
        }
    };
    let mut liveness = connect_liveness(SocketAddr::new(address.ip(), port), token)
        .await
        .map_err(|error| failed(&error))?;
    info!(%address, %epoch, "registered with the leader");

    let (outbox, mut queued) = mpsc::unbounded_channel();
    let report_interval = Duration::from_millis(report_interval_ms.max(1));
    let leader = Leader {
        address,
        outbox,
        report_interval,
    };
    events
        .send(LinkEvent::Connected(leader))
        .await
        .map_err(|_| SessionError::DriverGone)?;
    let speak = async {
        while let Some(message) = queued.recv().await {
            sender.send(&message).await?;
        }
        Ok::<_, tidemill_transport::SendError>(())
    };
    let hear = async {
        loop {
            match receiver.recv::<FromLeader>().await {
                Ok(Some(message)) => {
                    if events.send(LinkEvent::Message(message)).await.is_err() {
                        return "the TaskManager stops".to_owned();
                    }
                }
                Ok(None) => return "it closed the connection".to_owned(),
                Err(error) => return error_chain(&error),
            }
        }
    };
    let reason = tokio::select! {
        result = speak => result.err().map_or_else(|| "the TaskManager stops".to_owned(), |error| error_chain(&error)),
        reason = hear => reason,
        loss = liveness.lost() => loss.to_string(),
    };
    warn!(%address, reason, "lost the leader; tasks go on, and it is looked for");
    Ok(())
}
