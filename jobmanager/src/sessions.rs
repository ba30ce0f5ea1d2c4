//! Sessions with TaskManagers: accepts their control connections, binds each to its idle TCP connection, passes messages
//! both ways, and says at once when either is gone. It also serves modules to whoever asks by hash.
//!
//! It never judges a registration and never interprets a message: the driver answers and hears.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_protocol::control::{Command, FromLeader, Registration, ToLeader};
use tidemill_protocol::{Epoch, ModuleHash};
use tidemill_transport::{
    ConnectionHandle, ControlConnection, ControlReceiver, ControlSender, Endpoint, Incoming, LivenessListener,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

/// How long a connection may take to say who it is, and then to open its liveness connection.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// One control connection, in the order of their arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// What the driver hears.
pub(crate) enum SessionEvent {
    /// A TaskManager says who it is; the driver answers.
    Registering {
        session: SessionId,
        registration: Registration,
        remote: SocketAddr,
        answer: oneshot::Sender<Answer>,
    },
    /// It says something.
    Message { session: SessionId, message: ToLeader },
    /// It is gone. The last event of a session that was accepted.
    Lost { session: SessionId, reason: String, at: Instant },
}

/// The driver's answer to a registration.
pub(crate) enum Answer {
    Accepted {
        epoch: Epoch,
        report_interval_ms: u64,
        /// What the driver says from then on; when its sender is dropped, the session is closed.
        outbox: mpsc::UnboundedReceiver<FromLeader>,
    },
    Refused { epoch: Epoch, reason: String },
}

/// Finds the bytes of a module; called on a thread that may block.
pub(crate) type FindModule = Arc<dyn Fn(ModuleHash) -> Option<Bytes> + Send + Sync>;

/// Serves connections until the endpoint is closed.
pub(crate) async fn serve(
    endpoint: Endpoint,
    liveness: Arc<LivenessListener>,
    find_module: FindModule,
    events: mpsc::Sender<SessionEvent>,
) {
    let mut next = 0;
    while let Some(incoming) = endpoint.accept().await {
        match incoming {
            Incoming::Control(connection) => {
                next += 1;
                let (liveness, events) = (Arc::clone(&liveness), events.clone());
                tokio::spawn(session(SessionId(next), connection, liveness, events));
            }
            Incoming::Blob(connection) => {
                let find = Arc::clone(&find_module);
                tokio::spawn(connection.serve(move |hash| tokio::task::block_in_place(|| find(hash))));
            }
            Incoming::Data(connection) => {
                warn!(peer = %connection.peer(), "refused a data connection: a JobManager has no data plane");
            }
        }
    }
}

async fn session(
    session: SessionId,
    connection: ControlConnection,
    liveness: Arc<LivenessListener>,
    events: mpsc::Sender<SessionEvent>,
) {
    let (sender, receiver, handle) = connection.split();
    let peer = handle.peer().clone();
    let mut talk = Talk { session, sender, receiver, handle, events };
    let reason = match talk.greet(&liveness).await {
        Ok(reason) => {
            let lost = SessionEvent::Lost { session, reason: reason.clone(), at: Instant::now() };
            // A driver that is gone hears nothing; the process is ending.
            let _ = talk.events.send(lost).await;
            reason
        }
        Err(reason) => reason,
    };
    info!(%peer, reason, "a TaskManager's session has ended");
    talk.handle.close(&reason);
}

struct Talk {
    session: SessionId,
    sender: ControlSender,
    receiver: ControlReceiver,
    handle: ConnectionHandle,
    events: mpsc::Sender<SessionEvent>,
}

impl Talk {
    /// Takes the registration and, when it is accepted, stays until the session ends; then says why it did. An error
    /// means that it was never accepted.
    async fn greet(&mut self, liveness: &LivenessListener) -> Result<String, String> {
        let first = tokio::time::timeout(GREETING_TIMEOUT, self.receiver.recv::<ToLeader>()).await;
        let registration = match first.map_err(|_| "it did not register in time".to_owned())? {
            Ok(Some(ToLeader::Register(registration))) => registration,
            Ok(Some(_)) => return Err("its first message was not a registration".to_owned()),
            Ok(None) => return Err("it closed the connection before it registered".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let (answer, answered) = oneshot::channel();
        let remote = self.handle.peer().address;
        let registering = SessionEvent::Registering { session: self.session, registration, remote, answer };
        let gone = |_| "this JobManager is shutting down".to_owned();
        self.events.send(registering).await.map_err(|_| gone(()))?;
        match answered.await.map_err(|_| gone(()))? {
            Answer::Refused { epoch, reason } => {
                let refused = FromLeader { epoch, command: Command::Refused { reason: reason.clone() } };
                // Whether it arrives or not, the session ends.
                let _ = self.sender.send(&refused).await;
                // The peer closes when it has read the refusal.
                let _ = tokio::time::timeout(GREETING_TIMEOUT, self.handle.closed()).await;
                Err(format!("it was refused: {reason}"))
            }
            Answer::Accepted { epoch, report_interval_ms, outbox } => {
                Ok(self.accepted(liveness, epoch, report_interval_ms, outbox).await)
            }
        }
    }

    /// The session proper; returns why it ended.
    async fn accepted(
        &mut self,
        liveness: &LivenessListener,
        epoch: Epoch,
        report_interval_ms: u64,
        mut outbox: mpsc::UnboundedReceiver<FromLeader>,
    ) -> String {
        let ticket = liveness.issue();
        let registered = Command::Registered {
            liveness_token: ticket.token(),
            liveness_port: liveness.local_address().port(),
            report_interval_ms,
        };
        if let Err(error) = self.sender.send(&FromLeader { epoch, command: registered }).await {
            return error.to_string();
        }
        let watch = async {
            match ticket.connected(GREETING_TIMEOUT).await {
                Ok(mut liveness) => liveness.lost().await.to_string(),
                Err(error) => error.to_string(),
            }
        };
        let speak = async {
            while let Some(message) = outbox.recv().await {
                if let Err(error) = self.sender.send(&message).await {
                    return error.to_string();
                }
            }
            "this JobManager has closed it".to_owned()
        };
        let hear = async {
            loop {
                match self.receiver.recv::<ToLeader>().await {
                    Ok(Some(message)) => {
                        let event = SessionEvent::Message { session: self.session, message };
                        if self.events.send(event).await.is_err() {
                            return "this JobManager is shutting down".to_owned();
                        }
                    }
                    Ok(None) => return "it closed the connection".to_owned(),
                    Err(error) => return error.to_string(),
                }
            }
        };
        tokio::select! {
            reason = watch => reason,
            reason = speak => reason,
            reason = hear => reason,
        }
    }
}
