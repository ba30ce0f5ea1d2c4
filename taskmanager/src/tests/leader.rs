//! A JobManager that does what a test says: accepts or refuses registrations, speaks and hears.

use std::net::SocketAddr;
use std::time::Duration;

use tidemill_protocol::Epoch;
use tidemill_protocol::control::{Command, FromLeader, ToLeader};
use tidemill_transport::{
    BlobConnection, ConnectionHandle, ControlReceiver, ControlSender, Credentials, Endpoint,
    Incoming, Liveness, LivenessListener, TransportOptions,
};

/// Nothing here takes longer than milliseconds; a wait this long is for ever.
pub(super) const FOREVER: Duration = Duration::from_secs(60);

/// Waits for what must come.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(FOREVER, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} does not come"),
    }
}

pub(super) struct TestLeader {
    endpoint: Endpoint,
    liveness: LivenessListener,
}

/// A TaskManager that waits for the answer to its registration.
pub(super) struct Registering {
    linked: Linked,
}

/// A TaskManager, as its leader sees it.
pub(super) struct Linked {
    sender: ControlSender,
    receiver: ControlReceiver,
    handle: ConnectionHandle,
    liveness: Option<Liveness>,
    epoch: Epoch,
}

impl TestLeader {
    pub(super) fn start(credentials: &Credentials) -> Self {
        let local = "127.0.0.1:0".parse().expect("an address");
        let endpoint = Endpoint::bind(local, credentials, TransportOptions::default());
        Self {
            endpoint: endpoint.expect("a free port"),
            liveness: LivenessListener::bind(local).expect("a free port"),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    /// The next TaskManager that registers.
    pub(super) async fn registering(&self) -> Registering {
        let Some(Incoming::Control(connection)) =
            soon("a connection", self.endpoint.accept()).await
        else {
            panic!("not a control connection");
        };
        let (sender, mut receiver, handle) = connection.split();
        let first = soon("the registration", receiver.recv::<ToLeader>()).await;
        assert!(
            matches!(first, Ok(Some(ToLeader::Register(_)))),
            "not a registration"
        );
        let linked = Linked {
            sender,
            receiver,
            handle,
            liveness: None,
            epoch: Epoch(0),
        };
        Registering { linked }
    }

    /// The next request for a module.
    pub(super) async fn asked_for_a_module(&self) -> BlobConnection {
        match soon("a request", self.endpoint.accept()).await {
            Some(Incoming::Blob(connection)) => connection,
            other => panic!("not a request for a module: {other:?}"),
        }
    }

    /// Accepts a registration, as the leader of this epoch.
    pub(super) async fn accept(&self, registering: Registering, epoch: u64) -> Linked {
        let Registering { mut linked } = registering;
        linked.epoch = Epoch(epoch);
        let ticket = self.liveness.issue();
        linked
            .say(Command::Registered {
                liveness_token: ticket.token(),
                liveness_port: self.liveness.local_address().port(),
                report_interval_ms: 10,
            })
            .await;
        // A TaskManager that does not obey does not come.
        linked.liveness = ticket.connected(Duration::from_secs(5)).await.ok();
        linked
    }

    /// Ends as a process does that is killed, but at once.
    pub(super) fn die(self) {
        self.endpoint.close("the test ends this leader");
    }
}

impl Linked {
    pub(super) async fn say(&mut self, command: Command) {
        let message = FromLeader {
            epoch: self.epoch,
            command,
        };
        // A TaskManager that has left does not hear it.
        let _ = self.sender.send(&message).await;
    }

    /// The TaskManager has taken this leader for its own.
    pub(super) fn is_linked(&self) -> bool {
        self.liveness.is_some()
    }

    /// The next message that is no report; `None` when the TaskManager has left.
    pub(super) async fn next(&mut self) -> Option<ToLeader> {
        loop {
            match soon("a message", self.receiver.recv()).await {
                Ok(Some(ToLeader::Report(_))) => {}
                Ok(message) => return message,
                Err(_) => return None,
            }
        }
    }

    pub(super) fn close(self) {
        self.handle.close("the test closes this link");
    }
}
