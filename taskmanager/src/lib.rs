//! The working process: runs tasks in Wasm sandboxes and exchanges their records over QUIC.
//!
//! A body: `driver.rs` takes facts in with one `select!`, `tidemill-core` decides, `perform.rs` carries out. It never
//! decides where a task runs, when a checkpoint begins or whether one is complete; and it never stops a task because
//! its leader is gone.
//!
//! Nouns: a [`TaskManagerHandle`]; inside, a *task* (a thread with one instance), a *link* (to the leader), the *exchange*.

mod draining;
mod driver;
mod exchange;
mod images;
mod leaders;
mod link;
mod logs;
mod metrics;
mod modules;
mod perform;
mod prepare;
mod registry;
mod survivors;
mod task;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemill_config::Config;
use tidemill_core::worker::Worker;
use tidemill_protocol::control::Registration;
use tidemill_protocol::{Incarnation, TaskManagerId};
use tidemill_runtime::{DirtyMethod, Engine, EngineError, EngineOptions, InstanceLimits};
use tidemill_storage::Store;
use tidemill_transport::{
    BindError, Credentials, DataPlane, Endpoint, Incoming as Connection, TransportOptions,
};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use driver::{Driver, State, Wanted};
use exchange::{Incoming, OnBroken};
use images::{Images, ImagesOptions, Peers, serve_peers};
use link::LinkOptions;
use logs::Logs;
use metrics::Metrics;
use modules::Modules;
use perform::{Performer, Resources};
use prepare::Sources;
use task::TaskEvent;

/// How many events of the link may wait for the driver.
const LINK_EVENTS_MAX: usize = 1024;

/// Threads for QUIC and control, apart from the threads that run guests.
const RUNTIME_THREADS: usize = 2;

/// Why a TaskManager did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be made or written.
    #[error("cannot use the data directory {path}: choose another with taskmanager.data_dir")]
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
        source: tidemill_storage::OpenError,
    },
    /// The data address cannot be bound.
    #[error("cannot listen on taskmanager.data_address")]
    Bind(#[source] BindError),
    /// The metrics' address cannot be bound.
    #[error(
        "cannot serve metrics at {address}: stop what uses it, or set taskmanager.metrics_address to another address (port 0: any free one)"
    )]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The registry's options cannot be right.
    #[error("cannot open the registry in ZooKeeper")]
    Registry(#[source] tidemill_coordination::OpenError),
    /// The Wasm engine refuses its configuration on this machine.
    #[error("cannot start the Wasm engine")]
    Engine(#[source] EngineError),
    /// The system gives no threads.
    #[error("cannot start the threads of the control runtime")]
    Runtime(#[source] std::io::Error),
}

/// A running TaskManager.
pub struct TaskManagerHandle {
    id: TaskManagerId,
    data_address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    wanted: watch::Sender<Wanted>,
    stopped: watch::Receiver<bool>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl std::fmt::Debug for TaskManagerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskManagerHandle")
            .field("id", &self.id)
            .field("data_address", &self.data_address)
            .finish()
    }
}

impl TaskManagerHandle {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &TaskManagerId {
        &self.id
    }

    /// The address it is bound to.
    #[must_use]
    pub fn data_address(&self) -> SocketAddr {
        self.data_address
    }

    /// The address at which its metrics are, if they are anywhere.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Asks it to leave: its tasks are moved elsewhere first, for which it waits no longer than
    /// `taskmanager.drain_timeout_ms`. [`TaskManagerHandle::stopped`] says when it has.
    pub fn shutdown(&self) {
        self.want(Wanted::Drain);
    }

    /// Stops it without waiting for anything: its tasks end, and are run elsewhere from their last checkpoint.
    pub fn stop(&self) {
        self.want(Wanted::Stop);
    }

    fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|held| {
            let more = wanted > *held;
            *held = wanted.max(*held);
            more
        });
    }

    /// Waits until it has stopped.
    pub async fn stopped(&mut self) {
        // An error means that the driver is gone, which is what is waited for.
        let _ = self.stopped.wait_for(|stopped| *stopped).await;
    }
}

impl Drop for TaskManagerHandle {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An error with its causes, joined by colons.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some libraries repeat their source in their own words.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// Starts a TaskManager on threads of its own and returns when it listens; it registers when it finds a leader.
///
/// # Errors
/// When something it needs on this machine cannot be had; the error says what to change.
pub async fn start(
    config: &Config,
    credentials: Credentials,
) -> Result<TaskManagerHandle, StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("taskmanager")
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let config = config.clone();
    let (wanted, asked) = watch::channel(Wanted::Run);
    let (running, stopped) = watch::channel(false);
    let built = {
        let handle = runtime.handle().clone();
        runtime.spawn(async move { build(&config, &credentials, handle, asked).await })
    };
    let (driver, id, data_address, metrics_address) = match built.await {
        Ok(Ok(built)) => built,
        // A runtime that is dropped waits for its threads, which the caller's own does not allow.
        Ok(Err(error)) => {
            runtime.shutdown_background();
            return Err(error);
        }
        Err(panic) => {
            runtime.shutdown_background();
            std::panic::resume_unwind(panic.into_panic())
        }
    };
    runtime.spawn(async move {
        driver.run().await;
        running.send_replace(true);
    });
    info!(%id, %data_address, "the TaskManager listens");
    Ok(TaskManagerHandle {
        id,
        data_address,
        metrics_address,
        wanted,
        stopped,
        runtime: Some(runtime),
    })
}

fn transport_options(config: &Config) -> TransportOptions {
    TransportOptions {
        keep_alive_interval: Duration::from_millis(config.cluster.heartbeat_interval_ms),
        idle_timeout: Duration::from_millis(config.cluster.heartbeat_timeout_ms),
        channel_window_bytes: config.taskmanager.channel_queue_max_bytes,
        ..TransportOptions::default()
    }
}

/// A name for a TaskManager that is not given one: unlike any other's, and telling where it runs.
fn generated_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() {
        "taskmanager"
    } else {
        host.trim()
    };
    format!(
        "{host}-{}-{:04x}",
        std::process::id(),
        rand::random::<u16>()
    )
}

/// Other TaskManagers' data connections; a TaskManager serves nothing else.
async fn accept_connections(endpoint: Endpoint, plane: DataPlane) {
    while let Some(connection) = endpoint.accept().await {
        match connection {
            Connection::Data(connection) => plane.adopt(connection),
            Connection::Control(_) | Connection::Blob(_) => {
                warn!("refused a connection that is meant for a JobManager");
            }
        }
    }
}

async fn accept_channels(plane: DataPlane, incoming: Incoming) {
    loop {
        let channel = plane.accept_channel().await;
        incoming.arrived(channel.header, channel.receiver);
    }
}

async fn build(
    config: &Config,
    credentials: &Credentials,
    runtime: Handle,
    wanted: watch::Receiver<Wanted>,
) -> Result<(Driver, TaskManagerId, SocketAddr, Option<SocketAddr>), StartError> {
    let options = &config.taskmanager;
    let (metrics, metrics_address) = metrics(options.metrics_address).await?;
    let endpoint = Endpoint::bind(options.data_address, credentials, transport_options(config));
    let endpoint = endpoint.map_err(StartError::Bind)?;
    let data_address = endpoint.local_address();
    let plane = DataPlane::new(endpoint.clone());
    let (events, tasks) = mpsc::unbounded_channel();
    let (leader, known_leader) = watch::channel(None);
    let resources = resources(
        config,
        (&endpoint, &plane),
        known_leader,
        events,
        runtime.clone(),
    )?;
    let reached = resources.sources.store.probe().await;
    reached.map_err(|source| StartError::Store {
        url: config.cluster.checkpoint_store_url.clone(),
        source,
    })?;
    runtime.spawn(accept_connections(endpoint.clone(), plane.clone()));
    runtime.spawn(accept_channels(plane.clone(), resources.incoming.clone()));
    runtime.spawn(serve_peers(
        plane.clone(),
        resources.sources.images.lender(),
    ));

    let id = TaskManagerId(options.id.clone().unwrap_or_else(generated_id));
    let registration = Registration {
        id: id.clone(),
        incarnation: Incarnation(rand::random()),
        data_address: options.advertised_address(data_address),
        slots: options.slots(),
        cluster_config_hash: config.cluster.hash(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        draining: false,
        running: Vec::new(),
        warm: Vec::new(),
    };
    let (link_events, link) = mpsc::channel(LINK_EVENTS_MAX);
    let link_options = LinkOptions {
        reconnect_max: Duration::from_millis(options.reconnect_max_ms),
    };
    let announced = registry::announce(config, &registration);
    let (leaders, announcement) = announced.map_err(StartError::Registry)?;
    runtime.spawn(link::run(endpoint, leaders, link_options, link_events));
    let (worker, performer) = (Worker::default(), Performer::new(resources));
    let driver = Driver {
        worker,
        performer,
        leader,
        registration,
        link,
        tasks,
        plane,
        wanted,
        drain_timeout: Duration::from_millis(options.drain_timeout_ms),
        announcement,
        metrics,
        state: State::default(),
    };
    Ok((driver, id, data_address, metrics_address))
}

/// Serves metrics at an address, if there is one.
async fn metrics(
    address: Option<SocketAddr>,
) -> Result<(Option<Metrics>, Option<SocketAddr>), StartError> {
    let Some(address) = address else {
        return Ok((None, None));
    };
    let metrics = Metrics::default();
    let bound = metrics.serve(address).await;
    let bound = bound.map_err(|source| StartError::Metrics { address, source })?;
    Ok((Some(metrics), Some(bound)))
}

/// What tasks are made with.
fn resources(
    config: &Config,
    (endpoint, plane): (&Endpoint, &DataPlane),
    leader: watch::Receiver<Option<SocketAddr>>,
    events: mpsc::UnboundedSender<TaskEvent>,
    runtime: Handle,
) -> Result<Resources, StartError> {
    let options = &config.taskmanager;
    let cache_dir = options.data_dir.join("compiled");
    let data_dir = |source| StartError::DataDir {
        path: options.data_dir.clone(),
        source,
    };
    std::fs::create_dir_all(&cache_dir).map_err(data_dir)?;
    let url = config.cluster.checkpoint_store_url.clone();
    let store = Store::open(&url).map_err(|source| StartError::Store { url, source })?;
    if let Some(point) = tidemill_storage::armed_fault_point() {
        warn!("TIDEMILL_FAULT_POINT is set: this process ends at `{point}`");
    }
    let engine = Engine::new(EngineOptions::default()).map_err(StartError::Engine)?;
    let modules = Modules::new(
        engine,
        endpoint.clone(),
        cache_dir,
        config.jobmanager.module_bytes_max,
        leader,
    );
    let broken = events.clone();
    let on_broken: OnBroken = Arc::new(move |header, peer, error| {
        let (job, attempt, reason) = (header.job, header.attempt, error_chain(&error));
        // The driver outlives every pump; when it is gone the process ends.
        let _ = broken.send(TaskEvent::ChannelBroken {
            job,
            attempt,
            peer,
            reason,
        });
    });
    let images = ImagesOptions {
        directory: options.data_dir.join("images"),
        max_bytes: options.local_image_max_bytes,
    };
    let images = Images::start(images, store.clone(), runtime.clone(), events.clone());
    let peers = Peers::unless_nearer(&store, plane.clone(), endpoint.clone());
    // The first call tries the machine out, and logs what it offers.
    let _method = DirtyMethod::of_this_machine();
    Ok(Resources {
        sources: Sources {
            modules: Arc::new(modules),
            store,
            images: images.map_err(data_dir)?,
            peers,
            runtime: runtime.clone(),
            events,
        },
        plane: plane.clone(),
        endpoint: endpoint.clone(),
        incoming: Incoming::new(runtime, on_broken),
        logs: Logs::new(options.log_lines_max as usize),
        limits: InstanceLimits {
            memory_max_bytes: options.memory_max_bytes,
            table_elements_max: options.table_elements_max,
            call_deadline: Duration::from_millis(options.call_deadline_ms),
            call_output_max_bytes: options.call_output_max_bytes,
        },
        channel_queue_bytes: u64::from(options.channel_queue_max_bytes),
        channel_window_bytes: u64::from(options.channel_queue_max_bytes),
        exchange_memory_max_bytes: options.exchange_memory_max_bytes,
    })
}
