//! One session after another: each is opened, prepared, followed until its end, and replaced. It never takes a suspended
//! connection for an end, and says once what is wrong until something else is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidemill_protocol::record::{JobManagerRecord, TaskManagerRecord};
use tokio::sync::watch;
use tokio::time;
use tracing::{info, warn};
use zookeeper_client::{Client, Connector, CreateMode, Error, SessionState, StateWatcher};

use super::options::ZooKeeperOptions;
use super::{follow, layout};
use crate::{Connection, KnownLeader};

/// The pause after the first failed attempt to get a session; it doubles up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// What all parts of one registry share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: ZooKeeperOptions,
    pub(super) place: String,
    /// Where background work runs, also that of values dropped elsewhere.
    pub(super) runtime: tokio::runtime::Handle,
    session: watch::Sender<Option<Session>>,
    /// Why there is no session, when somebody has to do something about it.
    trouble: watch::Sender<Option<Trouble>>,
    session_timeout_ms: AtomicU64,
    /// The sessions of this process that have ended: what they left behind is in its own way.
    old_sessions: Mutex<BTreeSet<i64>>,
    /// How many nodes are being removed whose owner was dropped.
    pub(super) removals: watch::Sender<usize>,
    pub(super) connection: watch::Sender<Connection>,
    pub(super) leader: watch::Sender<Option<KnownLeader>>,
    pub(super) job_managers: watch::Sender<Vec<JobManagerRecord>>,
    pub(super) task_managers: watch::Sender<Vec<TaskManagerRecord>>,
}

/// A session that others work with until it ends.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Below the registry's root.
    pub(super) client: Client,
    over: watch::Receiver<bool>,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(super) struct Trouble {
    what: String,
    /// Whether waiting will not help: somebody has to change something.
    pub(super) refused: bool,
    #[source]
    source: Error,
}

impl Session {
    /// Whether it has ended for certain.
    pub(super) fn is_over(&self) -> bool {
        // Without a task that follows it nobody works with it any more.
        *self.over.borrow() || self.over.has_changed().is_err()
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) {
        let _ = self.over.clone().wait_for(|over| *over).await;
    }

    /// Returns once others know of its end too, if that is near; else at once.
    pub(super) async fn settled(&self) {
        if self.client.state().is_terminated() {
            self.ended().await;
        }
    }

    pub(super) fn id(&self) -> i64 {
        self.client.session_id().0
    }
}

impl Shared {
    pub(super) fn new(options: ZooKeeperOptions, runtime: tokio::runtime::Handle) -> Self {
        Self {
            place: options.place(),
            runtime,
            session: watch::Sender::new(None),
            trouble: watch::Sender::new(None),
            session_timeout_ms: AtomicU64::new(milliseconds(options.session_timeout)),
            old_sessions: Mutex::default(),
            removals: watch::Sender::new(0),
            connection: watch::Sender::new(Connection::Connecting),
            leader: watch::Sender::new(None),
            job_managers: watch::Sender::new(Vec::new()),
            task_managers: watch::Sender::new(Vec::new()),
            options,
        }
    }

    /// As negotiated last, or as configured.
    pub(super) fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.session_timeout_ms.load(Ordering::Relaxed))
    }

    /// Waits for a session, for as long as waiting can help.
    pub(super) async fn session(&self) -> Result<Session, Trouble> {
        let (mut sessions, mut troubles) = (self.session.subscribe(), self.trouble.subscribe());
        loop {
            let session = sessions.borrow_and_update().clone();
            if let Some(session) = session.filter(|session| !session.is_over()) {
                return Ok(session);
            }
            let trouble = troubles.borrow_and_update().clone();
            if let Some(trouble) = trouble.filter(|trouble| trouble.refused) {
                return Err(trouble);
            }
            tokio::select! {
                _ = sessions.changed() => {}
                _ = troubles.changed() => {}
            }
        }
    }

    /// Why there is no session, as far as is known.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble.borrow().clone()
    }

    /// Whether an ephemeral node was left behind by a session of this process that has ended.
    pub(super) fn is_ghost(&self, owner: i64) -> bool {
        let old_sessions = self.old_sessions.lock();
        old_sessions
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&owner)
    }

    fn bury(&self, session: i64) {
        let old_sessions = self.old_sessions.lock();
        old_sessions
            .unwrap_or_else(PoisonError::into_inner)
            .insert(session);
    }

    /// Says what is wrong, once.
    fn complain(&self, trouble: Trouble) {
        let new = self.trouble.send_if_modified(|known| {
            let new = known.as_ref() != Some(&trouble);
            *known = Some(trouble.clone());
            new
        });
        if new {
            warn!(
                place = self.place,
                "no ZooKeeper session: {}: {}", trouble, trouble.source
            );
        }
    }

    fn negotiated(&self, client: &Client) {
        let (wanted, granted) = (self.options.session_timeout, client.session_timeout());
        self.session_timeout_ms
            .store(milliseconds(granted), Ordering::Relaxed);
        let (wanted_ms, granted_ms) = (milliseconds(wanted), milliseconds(granted));
        if wanted_ms != granted_ms {
            warn!(
                wanted_ms,
                granted_ms,
                "ZooKeeper grants another session timeout than zookeeper.session_timeout_ms: its servers allow 2 to 20 \
                 of their ticks unless minSessionTimeout and maxSessionTimeout say otherwise"
            );
        }
    }
}

/// Takes the session away when nobody follows it any more.
struct Following(Arc<Shared>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.session.send_replace(None);
        self.0.connection.send_replace(Connection::Connecting);
    }
}

/// Keeps a session open for as long as it is polled.
pub(super) async fn run(shared: Arc<Shared>, connector: Connector, servers: String) {
    let following = Following(shared);
    let shared = &following.0;
    let mut pause = RETRY_FIRST;
    loop {
        match open(shared, connector.clone(), &servers).await {
            Ok(client) => {
                pause = RETRY_FIRST;
                serve(shared, client).await;
            }
            Err(trouble) => {
                shared.complain(trouble);
                time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LAST);
            }
        }
    }
}

/// Opens a session and makes what everything else expects to be there.
async fn open(shared: &Shared, connector: Connector, servers: &str) -> Result<Client, Trouble> {
    let unreachable = |source| Trouble {
        what: format!(
            "none of the servers {servers} gives one: check that they run, that most of them reach each other, and that \
             zookeeper.servers and zookeeper.tls are right"
        ),
        refused: source == Error::AuthFailed,
        source,
    };
    let client = connector.connect(servers).await.map_err(unreachable)?;
    // Before anything can be left behind.
    shared.bury(client.session_id().0);
    let root = &shared.options.root;
    let forbidden = |source: Error| Trouble {
        what: format!(
            "the nodes below {root} cannot be used: check zookeeper.user and zookeeper.password, and who may use the node \
             and the one above it (zookeeper.acl)"
        ),
        refused: matches!(
            source,
            Error::NoAuth | Error::InvalidAcl | Error::AuthFailed
        ),
        source,
    };
    let directory = CreateMode::Persistent.with_acls(shared.options.acl.acls());
    if client.check_stat(root).await.map_err(forbidden)?.is_none() {
        client.mkdir(root, &directory).await.map_err(forbidden)?;
    }
    let client = client.chroot(root.clone()).map_err(|_| Trouble {
        what: format!("zookeeper.root cannot be {root}"),
        refused: true,
        source: Error::BadArguments(&"bad root"),
    })?;
    layout::make(&client, shared).await.map_err(forbidden)?;
    layout::exorcise(&client, shared).await.map_err(forbidden)?;
    Ok(client)
}

/// Lets others work with a session, and follows what is there, until it ends.
async fn serve(shared: &Shared, client: Client) {
    shared.negotiated(&client);
    shared.trouble.send_replace(None);
    let (over_in, over) = watch::channel(false);
    let states = client.state_watcher();
    let session = Session { client, over };
    info!(place = shared.place, session = %session.client.session_id(), "ZooKeeper session open");
    shared.connection.send_replace(Connection::Connected);
    shared.session.send_replace(Some(session.clone()));
    let state = tokio::select! {
        state = follow_state(shared, &session.client, states) => state,
        never = follow::job_managers(shared, &session) => never,
        never = follow::task_managers(shared, &session) => never,
    };
    warn!(place = shared.place, session = %session.client.session_id(), %state, "ZooKeeper session over");
    shared.session.send_replace(None);
    shared.connection.send_replace(Connection::Connecting);
    over_in.send_replace(true);
}

/// Tells whether a server answers, until the session has ended.
async fn follow_state(shared: &Shared, client: &Client, mut states: StateWatcher) -> SessionState {
    let mut state = client.state();
    loop {
        let connection = match state {
            state if state.is_terminated() => return state,
            SessionState::Disconnected => Connection::Suspended,
            _ => Connection::Connected,
        };
        let changed = shared.connection.send_if_modified(|known| {
            let changed = *known != connection;
            *known = connection;
            changed
        });
        if changed && connection == Connection::Suspended {
            warn!(
                place = shared.place,
                "no ZooKeeper server answers: its session is suspended"
            );
        } else if changed {
            info!(
                place = shared.place,
                "ZooKeeper answers again within the session"
            );
        }
        state = states.changed().await;
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
