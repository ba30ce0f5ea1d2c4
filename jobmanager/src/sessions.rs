//! Sessions with TaskManagers, and with JobManagers that stand by: accepts their control connections, binds each to its idle TCP connection, passes messages
//! both ways, and says at once when either is gone. It also serves modules to whoever asks by hash.
//!
//! It never judges a registration and never interprets a message: the driver answers and hears.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_core::membership::ConnectionId;
use tidemill_protocol::control::{Command, FromLeader, Registration, ToLeader};
use tidemill_protocol::record::JobManagerRecord;
use tidemill_protocol::{Epoch, ModuleHash};
use tidemill_storage::fault_point;
use tidemill_transport::{
    ConnectionHandle, ControlConnection, ControlReceiver, ControlSender, Endpoint, Incoming,
    Liveness, LivenessListener, LivenessTicket,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

/// How long a connection may take to say who it is, and then to open its liveness connection.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the end of a process is watched for after its control connection broke. By then it has come back in a
/// session of its own or been given up.
const AFTERWATCH: Duration = Duration::from_secs(60);

/// Of whom no epoch is: the epoch of a JobManager that does not lead. TaskManagers do not look at it in a refusal.
pub(crate) const NO_EPOCH: Epoch = Epoch(0);

/// Why a session ends when the driver lets go of it unheard.
const NOT_LEADING: &str = "this JobManager does not lead any more, or is shutting down";

/// What the driver hears.
pub(crate) enum SessionEvent {
    /// A TaskManager says who it is; the driver answers.
    Registering {
        connection: ConnectionId,
        registration: Registration,
        remote: SocketAddr,
        answer: oneshot::Sender<Answer>,
    },
    /// It says something.
    Message {
        connection: ConnectionId,
        message: ToLeader,
    },
    /// Its control connection is gone, but not, as far as is known, its process: it may come back with all its tasks.
    Disconnected {
        connection: ConnectionId,
        reason: String,
    },
    /// Its process has ended: the kernel closed the idle TCP connection. May follow `Disconnected`.
    ProcessEnded {
        connection: ConnectionId,
        reason: String,
        at: Instant,
    },
}

/// The driver's answer to a registration.
pub(crate) enum Answer {
    Accepted {
        epoch: Epoch,
        report_interval_ms: u64,
        /// What the driver says from then on; when its sender is dropped, the session is closed.
        outbox: mpsc::UnboundedReceiver<FromLeader>,
    },
    Refused {
        epoch: Epoch,
        reason: String,
    },
}

/// Why a session was never accepted.
struct NotAccepted {
    reason: String,
    /// It is as it should be: this JobManager does not lead, and TaskManagers try each of them until one does.
    expected: bool,
}

impl From<String> for NotAccepted {
    fn from(reason: String) -> Self {
        Self {
            reason,
            expected: false,
        }
    }
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
                tokio::spawn(session(ConnectionId(next), connection, liveness, events));
            }
            Incoming::Blob(connection) => {
                let find = Arc::clone(&find_module);
                tokio::spawn(
                    connection.serve(move |hash| tokio::task::block_in_place(|| find(hash))),
                );
            }
            Incoming::Data(connection) => {
                warn!(peer = %connection.peer(), "refused a data connection: a JobManager has no data plane");
            }
        }
    }
}

async fn session(
    connection: ConnectionId,
    control: ControlConnection,
    liveness: Arc<LivenessListener>,
    events: mpsc::Sender<SessionEvent>,
) {
    let (sender, receiver, handle) = control.split();
    let peer = handle.peer().clone();
    let mut talk = Talk {
        connection,
        sender,
        receiver,
        handle,
        events,
    };
    let (reason, watch) = match talk.greet(&liveness).await {
        Ok((reason, watch)) => {
            info!(%peer, reason, "a session has ended");
            (reason, watch)
        }
        Err(NotAccepted { reason, expected }) => {
            if expected {
                debug!(%peer, reason, "a session was not accepted");
            } else {
                info!(%peer, reason, "a session was not accepted");
            }
            (reason, None)
        }
    };
    talk.handle.close(&reason);
    if let Some(mut liveness) = watch
        && let Ok(loss) = tokio::time::timeout(AFTERWATCH, liveness.lost()).await
    {
        let (reason, at) = (loss.to_string(), Instant::now());
        talk.tell(SessionEvent::ProcessEnded {
            connection,
            reason,
            at,
        })
        .await;
    }
}

struct Talk {
    connection: ConnectionId,
    sender: ControlSender,
    receiver: ControlReceiver,
    handle: ConnectionHandle,
    events: mpsc::Sender<SessionEvent>,
}

impl Talk {
    /// Tells the driver. One that is gone hears nothing: the process is ending.
    async fn tell(&self, event: SessionEvent) {
        let _ = self.events.send(event).await;
    }

    /// Takes the registration and, when it is accepted, stays until the session ends; then says why it did, and what
    /// is left to watch. An error means that it was never accepted.
    async fn greet(
        &mut self,
        liveness: &LivenessListener,
    ) -> Result<(String, Option<Liveness>), NotAccepted> {
        let first = tokio::time::timeout(GREETING_TIMEOUT, self.receiver.recv::<ToLeader>()).await;
        let registration = match first.map_err(|_| "it did not register in time".to_owned())? {
            Ok(Some(ToLeader::Register(registration))) => registration,
            Ok(Some(ToLeader::Follow(record))) => {
                return Ok((self.follow(record, liveness).await, None));
            }
            Ok(Some(_)) => {
                return Err("its first message was not a registration".to_owned().into());
            }
            Ok(None) => {
                return Err("it closed the connection unregistered".to_owned().into());
            }
            Err(error) => return Err(error.to_string().into()),
        };
        let (answer, answered) = oneshot::channel();
        let remote = self.handle.peer().address;
        let connection = self.connection;
        self.tell(SessionEvent::Registering {
            connection,
            registration,
            remote,
            answer,
        })
        .await;
        match answered.await.map_err(|_| NOT_LEADING.to_owned())? {
            Answer::Refused { epoch, reason } => {
                let refused = FromLeader {
                    epoch,
                    command: Command::Refused {
                        reason: reason.clone(),
                    },
                };
                // Whether it arrives or not, the session ends; the peer closes when it has read the refusal.
                let _ = self.sender.send(&refused).await;
                let _ = tokio::time::timeout(GREETING_TIMEOUT, self.handle.closed()).await;
                Err(NotAccepted {
                    reason: format!("it was refused: {reason}"),
                    expected: epoch == NO_EPOCH,
                })
            }
            Answer::Accepted {
                epoch,
                report_interval_ms,
                outbox,
            } => {
                let ticket = liveness.issue();
                let command = Command::Registered {
                    liveness_token: ticket.token(),
                    liveness_port: liveness.local_address().port(),
                    report_interval_ms,
                };
                let bound = self.bind(ticket, FromLeader { epoch, command }).await;
                Ok(match bound {
                    Ok(liveness) => self.accepted(liveness, outbox).await,
                    Err(reason) => {
                        self.tell(SessionEvent::Disconnected {
                            connection,
                            reason: reason.clone(),
                        })
                        .await;
                        (reason, None)
                    }
                })
            }
        }
    }

    /// Says that the peer is registered, and waits for its liveness connection.
    async fn bind(
        &mut self,
        ticket: LivenessTicket,
        registered: FromLeader,
    ) -> Result<Liveness, String> {
        let sent = self.sender.send(&registered).await;
        sent.map_err(|error| error.to_string())?;
        let connected = ticket.connected(GREETING_TIMEOUT).await;
        connected.map_err(|error| error.to_string())
    }

    /// A JobManager that stands by sees this process's end by its liveness connection, which stays open until one of both
    /// ends. Nobody else needs to know; says why it ended.
    async fn follow(&mut self, record: JobManagerRecord, liveness: &LivenessListener) -> String {
        let ticket = liveness.issue();
        let answer = FromLeader {
            // Whether this process leads does not matter: what is watched is the process.
            epoch: NO_EPOCH,
            command: Command::Registered {
                liveness_token: ticket.token(),
                liveness_port: liveness.local_address().port(),
                report_interval_ms: 0,
            },
        };
        if let Err(error) = self.sender.send(&answer).await {
            return error.to_string();
        }
        match ticket.connected(GREETING_TIMEOUT).await {
            Ok(mut connected) => {
                debug!(follower = record.id, "a JobManager watches this process");
                connected.lost().await.to_string()
            }
            Err(error) => error.to_string(),
        }
    }

    /// The session proper; returns why it ended, and the liveness connection when that has not.
    async fn accepted(
        &mut self,
        mut liveness: Liveness,
        mut outbox: mpsc::UnboundedReceiver<FromLeader>,
    ) -> (String, Option<Liveness>) {
        let Self {
            connection,
            sender,
            receiver,
            events,
            ..
        } = self;
        let connection = *connection;
        let speak = async {
            while let Some(message) = outbox.recv().await {
                if let Err(error) = sender.send(&message).await {
                    return error.to_string();
                }
                if matches!(message.command, Command::CompleteCheckpoint { .. }) {
                    fault_point("publish.complete-sent");
                }
            }
            "this JobManager has closed it".to_owned()
        };
        let hear = async {
            loop {
                match receiver.recv::<ToLeader>().await {
                    Ok(Some(message)) => {
                        if events
                            .send(SessionEvent::Message {
                                connection,
                                message,
                            })
                            .await
                            .is_err()
                        {
                            return NOT_LEADING.to_owned();
                        }
                    }
                    Ok(None) => return "it closed the connection".to_owned(),
                    Err(error) => return error.to_string(),
                }
            }
        };
        let disconnected = tokio::select! {
            loss = liveness.lost() => Err(loss.to_string()),
            reason = speak => Ok(reason),
            reason = hear => Ok(reason),
        };
        match disconnected {
            Err(reason) => {
                let at = Instant::now();
                self.tell(SessionEvent::ProcessEnded {
                    connection,
                    reason: reason.clone(),
                    at,
                })
                .await;
                (reason, None)
            }
            Ok(reason) => {
                self.tell(SessionEvent::Disconnected {
                    connection,
                    reason: reason.clone(),
                })
                .await;
                (reason, Some(liveness))
            }
        }
    }
}
