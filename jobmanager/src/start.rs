//! Starts a JobManager: takes what it needs on this machine, and wires the driver to sockets and clocks. Whatever cannot
//! be had on this machine is an error that says what to change; nothing is left running then.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemill_config::{Config, Coordination, ZooKeeperAcl};
use tidemill_coordination::{
    Access, Credentials as ZooKeeperCredentials, Embedded, LeadError, OpenError as RegistryError,
    ReadError, Registry, TlsFiles, ZooKeeper, ZooKeeperOptions,
};
use tidemill_protocol::record::JobManagerRecord;
use tidemill_protocol::{Incarnation, JobId};
use tidemill_runtime::{Engine, EngineError, EngineOptions};
use tidemill_storage::{OpenError as StoreError, ReadError as StoreReadError, Store};
use tidemill_transport::{
    BindError, Credentials, Endpoint, LivenessBindError, LivenessListener, TransportOptions,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::answers::Clock;
use crate::driver::{Driver, Inputs};
use crate::handle::ClusterHandle;
use crate::roles::{Process, Roles};
use crate::sessions::{self, FindModule};
use crate::standing::Standing;
use crate::take_over::LoadError;
use crate::{error_chain, rest, vigil};

/// Threads for control, apart from those that check submissions.
const RUNTIME_THREADS: usize = 2;

/// Requests of users, and submissions, that may wait for the driver.
const REQUESTS_MAX: usize = 256;

/// Messages of TaskManagers that may wait for the driver; beyond that their streams' flow control holds them back.
const SESSION_EVENTS_MAX: usize = 4096;

/// How long requests under way may hold up the end of the process.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the last words to TaskManagers may.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a JobManager did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be made or written.
    #[error("cannot use the data directory {path}: choose another with jobmanager.data_dir")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The checkpoint store cannot be opened.
    #[error("cannot open the checkpoint store {url} (cluster.checkpoint_store_url)")]
    Store {
        /// Its URL.
        url: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The registry cannot be opened.
    #[error("cannot open the registry of jobs")]
    Registry(#[source] RegistryError),
    /// This process cannot become the leader.
    #[error("cannot become the leader")]
    Lead(#[source] LeadError),
    /// The registry cannot be read.
    #[error("cannot read the registry of jobs")]
    Load(#[source] ReadError),
    /// A job's graph cannot be read now, though it may well be there. Going on without it would fail the job for good.
    #[error(
        "cannot read the graph of job {job} from the checkpoint store: start again when it answers"
    )]
    LoadGraph {
        /// Whose graph.
        job: JobId,
        /// Why.
        #[source]
        source: StoreReadError,
    },
    /// The control address cannot be bound.
    #[error("cannot listen on jobmanager.quic_address")]
    Bind(#[source] BindError),
    /// The liveness port cannot be bound.
    #[error("cannot listen on jobmanager.liveness_port")]
    Liveness(#[source] LivenessBindError),
    /// The REST address cannot be bound.
    #[error("cannot serve the REST API")]
    Rest(#[source] rest::BindError),
    /// The Wasm engine refuses its configuration on this machine.
    #[error("cannot start the Wasm engine")]
    Engine(#[source] EngineError),
    /// The system gives no threads.
    #[error("cannot start the threads of the control runtime")]
    Runtime(#[source] std::io::Error),
}

impl From<LoadError> for StartError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Registry(error) => Self::Load(error),
            LoadError::Graph { job, source } => Self::LoadGraph { job, source },
        }
    }
}

/// A running JobManager.
pub struct JobManagerHandle {
    cluster: ClusterHandle,
    quic_address: SocketAddr,
    rest_address: SocketAddr,
    stop: CancellationToken,
    stopped: watch::Receiver<bool>,
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for JobManagerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (quic, rest) = (self.quic_address, self.rest_address);
        f.debug_struct("JobManagerHandle")
            .field("quic_address", &quic)
            .field("rest_address", &rest)
            .finish()
    }
}

impl JobManagerHandle {
    /// What users can ask for.
    #[must_use]
    pub fn cluster(&self) -> &ClusterHandle {
        &self.cluster
    }

    /// Where TaskManagers reach it.
    #[must_use]
    pub fn quic_address(&self) -> SocketAddr {
        self.quic_address
    }

    /// Where users reach it.
    #[must_use]
    pub fn rest_address(&self) -> SocketAddr {
        self.rest_address
    }

    /// Asks it to stop: a leader gives its place up at once. Jobs stay in the registry, and TaskManagers keep their tasks
    /// running.
    pub fn shutdown(&self) {
        self.stop.cancel();
    }

    /// Waits until it has stopped, which it does when it was asked to.
    pub async fn stopped(&mut self) {
        // An error means that the driver is gone, which is what is waited for.
        let _ = self.stopped.wait_for(|stopped| *stopped).await;
    }
}

impl Drop for JobManagerHandle {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a JobManager on threads of its own. Returns when it listens; with the embedded registry, when it leads as well,
/// since nobody else could. With ZooKeeper it follows until it is elected, and again after each of its reigns.
///
/// # Errors
/// When something it needs on this machine cannot be had; the error says what to change.
pub async fn start(
    config: &Config,
    credentials: Credentials,
) -> Result<JobManagerHandle, StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("jobmanager")
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let config = Arc::new(config.clone());
    let built = runtime
        .spawn(async move { build(config, &credentials).await })
        .await;
    let handle = built.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    match handle {
        Ok(mut handle) => {
            handle.runtime = Some(runtime);
            Ok(handle)
        }
        Err(error) => {
            runtime.shutdown_background();
            Err(error)
        }
    }
}

async fn build(
    config: Arc<Config>,
    credentials: &Credentials,
) -> Result<JobManagerHandle, StartError> {
    let resources = Resources::open(&config)?;
    let reached = resources.store.probe().await;
    reached.map_err(|source| StartError::Store {
        url: config.cluster.checkpoint_store_url.clone(),
        source,
    })?;
    // A port in use is found before this process takes the lead from anyone.
    let sockets = Sockets::bind(&config, credentials).await?;
    let (started, first_reign) = oneshot::channel();
    if config.cluster.coordination == Coordination::Embedded {
        let handle = run(config, resources, sockets, Some(started));
        return match first_reign.await {
            Ok(Err(error)) => Err(error),
            // A driver that ended before it led was asked to.
            Ok(Ok(())) | Err(_) => Ok(handle),
        };
    }
    Ok(run(config, resources, sockets, None))
}

/// What is kept on disk, and the engine.
struct Resources {
    store: Store,
    engine: Engine,
    registry: Arc<dyn Registry>,
}

impl Resources {
    fn open(config: &Config) -> Result<Self, StartError> {
        let options = &config.jobmanager;
        let data_dir = |source| StartError::DataDir {
            path: options.data_dir.clone(),
            source,
        };
        std::fs::create_dir_all(options.data_dir.join("compiled")).map_err(data_dir)?;
        let url = &config.cluster.checkpoint_store_url;
        let store = Store::open(url).map_err(|source| StartError::Store {
            url: url.clone(),
            source,
        })?;
        if let Some(point) = tidemill_storage::armed_fault_point() {
            warn!("TIDEMILL_FAULT_POINT is set: this process ends at `{point}`");
        }
        let engine = Engine::new(EngineOptions::default()).map_err(StartError::Engine)?;
        let registry = open_registry(config).map_err(StartError::Registry)?;
        Ok(Self {
            store,
            engine,
            registry,
        })
    }
}

fn open_registry(config: &Config) -> Result<Arc<dyn Registry>, RegistryError> {
    Ok(match config.cluster.coordination {
        Coordination::Embedded => Arc::new(Embedded::open(
            &config.jobmanager.data_dir.join("registry"),
        )?),
        Coordination::ZooKeeper => Arc::new(ZooKeeper::open(zookeeper_options(config))?),
    })
}

fn zookeeper_options(config: &Config) -> ZooKeeperOptions {
    let options = &config.zookeeper;
    let credentials = options.user.as_ref().zip(options.password.as_ref());
    let identity = options
        .tls_certificate
        .as_ref()
        .zip(options.tls_key.as_ref());
    let identity = identity.map(|(certificate, key)| (certificate.clone(), key.clone()));
    let ca = options.tls_ca.clone().filter(|_| options.tls);
    ZooKeeperOptions {
        servers: options.servers.clone(),
        root: config.zookeeper_root(),
        session_timeout: Duration::from_millis(options.session_timeout_ms),
        connection_timeout: Duration::from_millis(options.connection_timeout_ms),
        credentials: credentials.map(|(user, password)| ZooKeeperCredentials {
            user: user.clone(),
            password: password.to_string(),
        }),
        acl: match options.acl {
            ZooKeeperAcl::Open => Access::Open,
            ZooKeeperAcl::Creator => Access::Creator,
        },
        tls: ca.map(|ca| TlsFiles { ca, identity }),
    }
}

/// Every port that a JobManager listens on, with its address.
struct Sockets {
    rest: TcpListener,
    rest_address: SocketAddr,
    endpoint: Endpoint,
    liveness: LivenessListener,
}

impl Sockets {
    async fn bind(config: &Config, credentials: &Credentials) -> Result<Self, StartError> {
        let options = &config.jobmanager;
        let rest = rest::bind(config).await.map_err(StartError::Rest)?;
        let rest_address = rest.local_addr().map_err(StartError::Runtime)?;
        let transport = TransportOptions {
            keep_alive_interval: Duration::from_millis(config.cluster.heartbeat_interval_ms),
            idle_timeout: Duration::from_millis(config.cluster.heartbeat_timeout_ms),
            ..TransportOptions::default()
        };
        let endpoint = Endpoint::bind(options.quic_address, credentials, transport);
        let endpoint = endpoint.map_err(StartError::Bind)?;
        let liveness = SocketAddr::new(options.quic_address.ip(), options.liveness_port);
        let liveness = LivenessListener::bind(liveness).map_err(StartError::Liveness)?;
        Ok(Self {
            rest,
            rest_address,
            endpoint,
            liveness,
        })
    }
}

/// What this process stands for election with.
fn record(config: &Config, sockets: &Sockets) -> JobManagerRecord {
    let options = &config.jobmanager;
    let rest = sockets.rest_address;
    // A port of the loopback interface is nowhere else, whatever this machine is called.
    let rest = if rest.ip().is_loopback() {
        rest.to_string()
    } else {
        options.advertised_address(rest)
    };
    JobManagerRecord {
        id: options.id.clone().unwrap_or_else(generated_id),
        incarnation: Incarnation(rand::random()),
        control_address: options.advertised_address(sockets.endpoint.local_address()),
        rest_url: format!("http://{rest}"),
    }
}

/// A name for a JobManager that is not given one: unlike any other's, and telling where it runs.
fn generated_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty());
    let (process, number) = (std::process::id(), rand::random::<u16>());
    format!("{}-{process}-{number:04x}", host.unwrap_or("jobmanager"))
}

/// Wires the driver to everything and lets it run.
fn run(
    config: Arc<Config>,
    resources: Resources,
    sockets: Sockets,
    started: Option<oneshot::Sender<Result<(), StartError>>>,
) -> JobManagerHandle {
    let (rest_address, quic_address) = (sockets.rest_address, sockets.endpoint.local_address());
    let stop = CancellationToken::new();
    let (facts_in, facts) = mpsc::unbounded_channel();
    let (requests_in, requests) = mpsc::channel(REQUESTS_MAX);
    let (sessions_in, sessions) = mpsc::channel(SESSION_EVENTS_MAX);
    let process = Process {
        record: record(&config, &sockets),
        config: Arc::clone(&config),
        registry: resources.registry,
        store: resources.store,
        engine: resources.engine,
        clock: Clock::start(),
    };
    let endpoint = sockets.endpoint;
    tokio::spawn(sessions::serve(
        endpoint.clone(),
        Arc::new(sockets.liveness),
        find_module(process.store.clone()),
        sessions_in,
    ));
    if config.cluster.coordination == Coordination::ZooKeeper {
        let (registry, me) = (Arc::clone(&process.registry), process.record.clone());
        let vigil = vigil::keep(endpoint.clone(), registry, me);
        tokio::spawn(stop.clone().run_until_cancelled_owned(vigil));
    }
    let connection = *process.registry.connection().borrow();
    let standing = Standing::beginning(
        process.record.clone(),
        config.cluster.coordination,
        connection,
    );
    let (standing_in, standing) = watch::channel(standing);
    let cluster = ClusterHandle::new(requests_in, standing);
    let rest_stop = stop.clone().cancelled_owned();
    let serving = tokio::spawn(rest::serve(
        sockets.rest,
        cluster.clone(),
        config,
        rest_stop,
    ));
    let inputs = Inputs {
        requests,
        sessions,
        facts,
        stop: stop.clone(),
    };
    let roles = Roles::new(process.clone(), facts_in);
    let driver = Driver::new(process, roles, standing_in, inputs, started);
    let stopped = spawn(driver, endpoint, serving, stop.clone());
    JobManagerHandle {
        cluster,
        quic_address,
        rest_address,
        stop,
        stopped,
        runtime: None,
    }
}

/// Lets the driver run; when it ends, everything ends. The receiver tells when that is done.
fn spawn(
    driver: Driver,
    endpoint: Endpoint,
    serving: JoinHandle<std::io::Result<()>>,
    stop: CancellationToken,
) -> watch::Receiver<bool> {
    let (running, stopped) = watch::channel(false);
    tokio::spawn(async move {
        driver.run().await;
        stop.cancel();
        endpoint.close("this JobManager has stopped");
        // Whoever is not told sees it by his liveness connection.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, endpoint.wait_closed()).await;
        match tokio::time::timeout(CLOSING_TIMEOUT, serving).await {
            Ok(Ok(Err(error))) => error!("the REST API ended: {error}"),
            Ok(_) => {}
            Err(_) => warn!("requests under way are not answered: they took too long"),
        }
        running.send_replace(true);
    });
    stopped
}

fn find_module(store: Store) -> FindModule {
    let runtime = tokio::runtime::Handle::current();
    Arc::new(
        move |hash| match runtime.block_on(store.get_module(&hash)) {
            Ok(module) => Some(module),
            Err(error) => {
                error!(%hash, "a module is asked for and cannot be read: {}", error_chain(&error));
                None
            }
        },
    )
}
