//! Starts a JobManager: takes the registry's lead, loads what it holds, and wires the driver to sockets and clocks.
//! Whatever cannot be had on this machine is an error that says what to change; nothing is left running then.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_config::{Config, Coordination};
use tidemill_coordination::{
    Embedded, LeadError, Leading, OpenError as RegistryError, ReadError, Registry,
};
use tidemill_core::leader::{Leader, LeaderConfig, LoadedJob};
use tidemill_protocol::record::{CheckpointPointers, JobManagerRecord, JobRecord};
use tidemill_protocol::{Incarnation, JobId};
use tidemill_runtime::{Engine, EngineError, EngineOptions};
use tidemill_storage::{OpenError as StoreError, ReadError as StoreReadError, Store};
use tidemill_transport::{
    BindError, Credentials, Endpoint, LivenessBindError, LivenessListener, TransportOptions,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::answers::Clock;
use crate::driver::Driver;
use crate::handle::ClusterHandle;
use crate::log_requests::LogRequests;
use crate::perform::{Hands, Performer};
use crate::sessions::{self, FindModule};
use crate::{error_chain, rest, submission};

/// Threads for control, apart from those that check submissions.
const RUNTIME_THREADS: usize = 2;

/// Requests of users, and submissions, that may wait for the driver.
const REQUESTS_MAX: usize = 256;

/// Messages of TaskManagers that may wait for the driver; beyond that their streams' flow control holds them back.
const SESSION_EVENTS_MAX: usize = 4096;

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
    /// The registry is in ZooKeeper, and this JobManager cannot use it.
    #[error("cannot keep the registry in ZooKeeper: set cluster.coordination to \"embedded\"")]
    Coordination,
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

    /// Asks it to stop. Jobs stay in the registry, and TaskManagers keep their tasks running.
    pub fn shutdown(&self) {
        self.stop.cancel();
    }

    /// Waits until it has stopped: because it was asked to, or because it may not go on.
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

/// Starts a JobManager on threads of its own and returns when it leads and listens.
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
    // A port in use is found before this process takes the lead from anyone.
    let sockets = Sockets::bind(&config, credentials).await?;
    let registry = &resources.registry;
    let candidate = JobManagerRecord {
        id: sockets.rest_address.to_string(),
        incarnation: Incarnation(rand::random()),
        control_address: sockets.endpoint.local_address().to_string(),
        rest_url: format!("http://{}", sockets.rest_address),
    };
    let leading = registry.lead(&candidate).await.map_err(StartError::Lead)?;
    info!(epoch = %leading.epoch(), "leading");
    let clock = Clock::start();
    let leader = take_over(
        &config,
        &leading,
        &clock,
        registry.as_ref(),
        &resources.store,
    )
    .await?;
    Ok(run(config, resources, sockets, leading, leader, clock))
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
        let engine = Engine::new(EngineOptions::default()).map_err(StartError::Engine)?;
        let registry = match config.cluster.coordination {
            Coordination::Embedded => Embedded::open(&options.data_dir.join("registry")),
            Coordination::ZooKeeper => return Err(StartError::Coordination),
        };
        let registry = registry.map_err(StartError::Registry)?;
        Ok(Self {
            store,
            engine,
            registry: Arc::new(registry),
        })
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

/// Wires the leader to everything and lets it run.
fn run(
    config: Arc<Config>,
    resources: Resources,
    sockets: Sockets,
    leading: Leading,
    leader: Leader,
    clock: Clock,
) -> JobManagerHandle {
    let (rest_address, quic_address) = (sockets.rest_address, sockets.endpoint.local_address());
    let (engine, store, endpoint) = (resources.engine, resources.store, sockets.endpoint);
    let stop = CancellationToken::new();
    let (events_in, events) = mpsc::unbounded_channel();
    let (requests_in, requests) = mpsc::channel(REQUESTS_MAX);
    let (sessions_in, sessions) = mpsc::channel(SESSION_EVENTS_MAX);
    let (submissions_in, submissions) = mpsc::channel(REQUESTS_MAX);
    let report_interval_ms = config.jobmanager.report_interval_ms;
    let find = find_module(store.clone());
    let hands = Hands {
        registry: resources.registry,
        leading,
        store,
        events: events_in,
        stop: stop.clone(),
        report_interval_ms,
    };
    tokio::spawn(sessions::serve(
        endpoint.clone(),
        Arc::new(sockets.liveness),
        find,
        sessions_in,
    ));
    let cluster = ClusterHandle::new(requests_in);
    let rest_stop = stop.clone().cancelled_owned();
    let serving = tokio::spawn(rest::serve(
        sockets.rest,
        cluster.clone(),
        Arc::clone(&config),
        rest_stop,
    ));
    let driver = Driver {
        leader,
        performer: Performer::new(hands.clone()),
        hands,
        clock,
        config,
        engine,
        log_requests: LogRequests::default(),
        requests,
        sessions,
        events,
        submissions,
        submissions_in,
        stop: stop.clone(),
    };
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
        if let Ok(Err(error)) = serving.await {
            error!("the REST API ended: {error}");
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

/// Loads what the registry holds. A job that cannot be loaded holds up no other.
async fn take_over(
    config: &Config,
    leading: &Leading,
    clock: &Clock,
    registry: &dyn Registry,
    store: &Store,
) -> Result<Leader, StartError> {
    let mut loaded = Vec::new();
    for record in registry.jobs().await.map_err(StartError::Load)? {
        match record {
            Ok(record) => loaded.push(load(record, registry, store).await?),
            Err(damaged) => {
                error!(job = %damaged.job, "a job's record is damaged and it is not run: {}", error_chain(&damaged.source))
            }
        }
    }
    let leader_config = LeaderConfig {
        epoch: leading.epoch(),
        cluster_config_hash: config.cluster.hash(),
        adoption_timeout: Duration::from_millis(config.cluster.adoption_timeout_ms),
        suspicion_timeout: Duration::from_millis(config.cluster.heartbeat_timeout_ms),
        ended_jobs_max: config.jobmanager.ended_jobs_max as usize,
    };
    info!(jobs = loaded.len(), "took over");
    Ok(Leader::new(
        clock.time(Instant::now()),
        leader_config,
        loaded,
    ))
}

/// A job with its graph and pointers. What is lost for good fails that job; what only does not answer fails the start,
/// since an acknowledged job is never given up for that.
async fn load(
    record: JobRecord,
    registry: &dyn Registry,
    store: &Store,
) -> Result<LoadedJob, StartError> {
    let job = record.id;
    let graph = match store.get_object(&record.graph).await {
        Ok(bytes) => submission::stored_graph(&bytes, &record.options),
        Err(error) if error.is_lost() => Err(error_chain(&error)),
        Err(source) => return Err(StartError::LoadGraph { job, source }),
    };
    match registry.pointers(job).await {
        Ok(pointers) => Ok(LoadedJob {
            record,
            graph,
            pointers,
        }),
        Err(error @ ReadError::Unavailable { .. }) => Err(StartError::Load(error)),
        // Beginning anew would repeat what is committed: the job is not run.
        Err(error @ ReadError::DamagedPointers { .. }) => Ok(LoadedJob {
            record,
            graph: Err(error_chain(&error)),
            pointers: CheckpointPointers::default(),
        }),
    }
}
