//! The sections of the configuration and their keys. The defaults are in `default.toml`, which is also the sample file:
//! they are written once.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidemill_protocol::record::{JobOptions, RestartStrategy};

use crate::secret::Secret;

/// The defaults: every key of every section.
pub(crate) const DEFAULTS: &str = include_str!("default.toml");

/// The configuration of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What must be equal in every process of a cluster.
    pub cluster: Cluster,
    /// How ZooKeeper is reached, where the registry is kept there.
    pub zookeeper: ZooKeeper,
    /// What only JobManagers read.
    pub jobmanager: JobManager,
    /// What only TaskManagers read.
    pub taskmanager: TaskManager,
    /// Checkpointing of jobs that choose nothing else.
    pub checkpoints: Checkpoints,
    /// What makes recoveries quicker.
    pub recovery: Recovery,
    /// Restarting of jobs that choose nothing else.
    pub restart: Restart,
    /// Where certificates are.
    pub tls: Tls,
    /// What is logged and how.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        toml::from_str(DEFAULTS).expect("the embedded defaults are checked by a test")
    }
}

impl Config {
    /// How a job is to run that chooses only its parallelism, or not even that (then 1).
    #[must_use]
    pub fn job_options(&self, parallelism: Option<u32>) -> JobOptions {
        JobOptions {
            parallelism: parallelism.unwrap_or(1),
            max_parallelism: self.cluster.max_parallelism,
            checkpoint_interval_ms: self.checkpoints.interval_ms,
            checkpoint_timeout_ms: self.checkpoints.timeout_ms,
            tolerable_failed_checkpoints: self.checkpoints.tolerable_failed,
            retained_checkpoints: self.checkpoints.retained,
            aligned_checkpoint_timeout_ms: self.checkpoints.aligned_timeout_ms,
            retain_on_cancel: self.checkpoints.retain_on_cancel,
            standby: self.recovery.standby,
            restart: self.restart.strategy(),
        }
    }

    /// The ZooKeeper node below which this cluster keeps its own: `zookeeper.root/cluster.name`.
    #[must_use]
    pub fn zookeeper_root(&self) -> String {
        let root = self.zookeeper.root.trim_end_matches('/');
        format!("{root}/{}", self.cluster.name)
    }
}

/// What must be equal in every process of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The cluster's name, in logs and metrics.
    pub name: String,
    /// Where JobManagers keep the registry.
    pub coordination: Coordination,
    /// The object store of checkpoints and job modules.
    pub checkpoint_store_url: String,
    /// How long a JobManager that starts waits for TaskManagers to report what they run, in milliseconds.
    pub adoption_timeout_ms: u64,
    /// QUIC keep-alive, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// QUIC idle timeout, in milliseconds.
    pub heartbeat_timeout_ms: u64,
    /// The number of key groups of a job that sets none.
    pub max_parallelism: u32,
}

impl Cluster {
    /// A number that is equal in two processes exactly when this section is (as far as 64 bits can tell).
    #[must_use]
    pub fn hash(&self) -> u64 {
        let text = toml::to_string(self).expect("a section of plain values has a TOML form");
        tidemill_abi::hash_bytes(text.as_bytes())
    }
}

/// Where JobManagers keep the registry of jobs and checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coordination {
    /// A durable store in the JobManager's data directory, for one JobManager.
    Embedded,
    /// A ZooKeeper ensemble, for any number of JobManagers.
    #[serde(rename = "zookeeper")]
    ZooKeeper,
}

/// How ZooKeeper is reached, and as whom. It is no part of [`Cluster`]: two processes may name the servers in another
/// order, and passwords are not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZooKeeper {
    /// The ensemble's servers, each `host:port`.
    pub servers: Vec<String>,
    /// The node below which clusters keep theirs. Read it with [`Config::zookeeper_root`].
    pub root: String,
    /// What is asked of the servers as the session's timeout, in milliseconds.
    pub session_timeout_ms: u64,
    /// How long one attempt to connect may take, in milliseconds.
    pub connection_timeout_ms: u64,
    /// Who this process is (the digest scheme); given exactly when `password` is.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub password: Option<Secret>,
    /// Who may read and write the cluster's nodes.
    pub acl: ZooKeeperAcl,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// The authorities that servers are checked against; given when `tls` is set.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub tls_ca: Option<PathBuf>,
    /// This process's certificate; given exactly when `tls_key` is.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub tls_key: Option<PathBuf>,
}

/// Who may read and write a cluster's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZooKeeperAcl {
    /// Everybody who reaches the servers.
    Open,
    /// Whoever authenticates as the one who made them.
    Creator,
}

/// What only JobManagers read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobManager {
    /// This JobManager's name; `None`: the process makes one.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub id: Option<String>,
    /// The embedded registry and the caches.
    pub data_dir: PathBuf,
    /// Where TaskManagers reach it; port 0 for any.
    #[serde(deserialize_with = "socket_address")]
    pub quic_address: SocketAddr,
    /// Where the REST API listens; port 0 for any.
    #[serde(deserialize_with = "socket_address")]
    pub rest_address: SocketAddr,
    /// The host that others are told to use; `None`: that of each address.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub advertised_host: Option<String>,
    /// The TCP port of the liveness connections, on `quic_address`'s host; 0 for any.
    pub liveness_port: u16,
    /// What REST clients must send as a bearer token.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub rest_token: Option<Secret>,
    /// The largest job module that is accepted, in bytes.
    pub module_bytes_max: u64,
    /// How long a module may take to describe its graph, in milliseconds.
    pub describe_deadline_ms: u64,
    /// How much memory a module may use while it describes its graph, in bytes.
    pub describe_memory_max_bytes: u64,
    /// How often TaskManagers report their progress, in milliseconds.
    pub report_interval_ms: u64,
    /// How many ended jobs stay in lists.
    pub ended_jobs_max: u32,
}

impl JobManager {
    /// What others are told, given the QUIC or REST address that was bound: `host:port`.
    #[must_use]
    pub fn advertised_address(&self, bound: SocketAddr) -> String {
        advertised(self.advertised_host.as_deref(), bound)
    }
}

/// What only TaskManagers read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskManager {
    /// This TaskManager's name; `None`: the process makes one.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub id: Option<String>,
    /// Compiled modules and local images.
    pub data_dir: PathBuf,
    /// As configured: 0 for one slot a core. Read it with [`TaskManager::slots`].
    pub slots: u32,
    /// Where other TaskManagers reach it; port 0 for any.
    #[serde(deserialize_with = "socket_address")]
    pub data_address: SocketAddr,
    /// The host that others are told to use; `None`: that of `data_address`.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub advertised_host: Option<String>,
    /// Where its metrics are served, for Prometheus; `None`: nowhere. Port 0 for any.
    #[serde(
        deserialize_with = "socket_address_or_none",
        serialize_with = "none_as_empty"
    )]
    pub metrics_address: Option<SocketAddr>,
    /// The JobManagers, each `host:port`.
    pub jobmanagers: Vec<String>,
    /// The longest pause between two attempts to reach a JobManager, in milliseconds.
    pub reconnect_max_ms: u64,
    /// How long a TaskManager that is asked to stop waits until its tasks have moved, in milliseconds; 0: not at all.
    pub drain_timeout_ms: u64,
    /// How much of the disk local images may take, in bytes; 0: none are kept.
    pub local_image_max_bytes: u64,
    /// What all incoming channels together may hold, in bytes.
    pub exchange_memory_max_bytes: u64,
    /// What one channel may hold before its sender waits, in bytes: the QUIC stream window and the local queue's bound.
    pub channel_queue_max_bytes: u32,
    /// The largest linear memory of a task, in bytes.
    pub memory_max_bytes: u64,
    /// The most elements that a task's tables may have together.
    pub table_elements_max: u64,
    /// How long one call into a guest may take, in milliseconds.
    pub call_deadline_ms: u64,
    /// How much one call may emit beyond its channels' room, in bytes.
    pub call_output_max_bytes: u64,
    /// How many log lines are kept for each task.
    pub log_lines_max: u32,
}

impl TaskManager {
    /// How many slots this process offers: as configured, else one for each core.
    #[must_use]
    pub fn slots(&self) -> u32 {
        if self.slots > 0 {
            return self.slots;
        }
        std::thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1))
    }

    /// What others are told, given the address that was bound: `host:port`.
    #[must_use]
    pub fn advertised_address(&self, bound: SocketAddr) -> String {
        advertised(self.advertised_host.as_deref(), bound)
    }
}

fn advertised(host: Option<&str>, bound: SocketAddr) -> String {
    match host {
        None => bound.to_string(),
        Some(host) if host.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6()) => {
            format!("[{host}]:{}", bound.port())
        }
        Some(host) => format!("{host}:{}", bound.port()),
    }
}

/// Checkpointing of jobs that choose nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoints {
    /// Time between the starts of two checkpoints, in milliseconds; 0 turns periodic checkpoints off.
    pub interval_ms: u64,
    /// After this time a checkpoint is given up, in milliseconds.
    pub timeout_ms: u64,
    /// Consecutive failed checkpoints that do not fail the job.
    pub tolerable_failed: u32,
    /// Completed checkpoints that are kept; at least 1.
    pub retained: u32,
    /// How long a checkpoint waits for its barriers, in milliseconds; 0: for ever.
    pub aligned_timeout_ms: u64,
    /// Whether the last checkpoint of a cancelled job is kept.
    pub retain_on_cancel: bool,
    /// The prefix in the object store of savepoints that name no place of their own.
    pub savepoint_dir: String,
}

/// What makes recoveries quicker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// Whether a second TaskManager keeps the last image of each task at hand.
    pub standby: bool,
}

/// Restarting of jobs that choose nothing else. Each strategy reads its own keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Which strategy. Read the whole with [`Restart::strategy`].
    #[serde(rename = "strategy")]
    pub strategy_name: RestartStrategyName,
    /// Fixed delay: restarts in the job's life.
    pub fixed_delay_attempts: u32,
    /// Fixed delay: the pause before each, in milliseconds.
    pub fixed_delay_ms: u64,
    /// Failure rate: failures tolerated in an interval.
    pub failure_rate_max: u32,
    /// Failure rate: the interval, in milliseconds.
    pub failure_rate_interval_ms: u64,
    /// Failure rate: the pause before each restart, in milliseconds.
    pub failure_rate_delay_ms: u64,
    /// Exponential delay: the first pause, in milliseconds.
    pub exponential_delay_initial_ms: u64,
    /// Exponential delay: the longest pause, in milliseconds.
    pub exponential_delay_max_ms: u64,
    /// Exponential delay: the growth, in percent.
    pub exponential_delay_multiplier_percent: u32,
    /// Exponential delay: after this time without a failure the pause is the first one again, in milliseconds.
    pub exponential_delay_reset_ms: u64,
}

impl Restart {
    /// The strategy with its own keys.
    #[must_use]
    pub fn strategy(&self) -> RestartStrategy {
        self.strategy_named(self.strategy_name)
    }

    /// The strategy of this name with this section's keys for it.
    #[must_use]
    pub fn strategy_named(&self, name: RestartStrategyName) -> RestartStrategy {
        match name {
            RestartStrategyName::None => RestartStrategy::None,
            RestartStrategyName::FixedDelay => RestartStrategy::FixedDelay {
                attempts: self.fixed_delay_attempts,
                delay_ms: self.fixed_delay_ms,
            },
            RestartStrategyName::FailureRate => RestartStrategy::FailureRate {
                failures_max: self.failure_rate_max,
                interval_ms: self.failure_rate_interval_ms,
                delay_ms: self.failure_rate_delay_ms,
            },
            RestartStrategyName::ExponentialDelay => RestartStrategy::ExponentialDelay {
                initial_ms: self.exponential_delay_initial_ms,
                max_ms: self.exponential_delay_max_ms,
                multiplier_percent: self.exponential_delay_multiplier_percent,
                reset_after_ms: self.exponential_delay_reset_ms,
            },
        }
    }
}

/// The restart strategies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartStrategyName {
    /// The job fails.
    None,
    /// A number of restarts, each after the same pause.
    FixedDelay,
    /// Restarts as long as failures are rare enough.
    FailureRate,
    /// Restarts for ever, after pauses that grow.
    ExponentialDelay,
}

impl RestartStrategyName {
    /// Every name, as text and as value.
    pub const ALL: [(&str, Self); 4] = [
        ("none", Self::None),
        ("fixed-delay", Self::FixedDelay),
        ("failure-rate", Self::FailureRate),
        ("exponential-delay", Self::ExponentialDelay),
    ];
}

/// Where certificates are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The directory that `tidemill certs` made.
    pub dir: PathBuf,
    /// Which certificate in it is this process's own; `None`: the process's kind.
    #[serde(deserialize_with = "text_or_none", serialize_with = "none_as_empty")]
    pub name: Option<String>,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A level, or levels by module.
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads the empty text as "not given", so that every key has a default that can be shown.
fn text_or_none<'de, D: Deserializer<'de>, T: From<String>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Some(text).filter(|text| !text.is_empty()).map(T::from))
}

fn none_as_empty<S: Serializer, T: Serialize>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        None => serializer.serialize_str(""),
        Some(value) => value.serialize(serializer),
    }
}

fn socket_address_or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "" => Ok(None),
        text => parsed(text).map(Some),
    }
}

fn socket_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    parsed(&String::deserialize(deserializer)?)
}

fn parsed<E: serde::de::Error>(text: &str) -> Result<SocketAddr, E> {
    text.parse().map_err(|_| {
        E::custom(format!(
            "`{text}` is not an address to listen on: expected IP:PORT, such as 127.0.0.1:7420 or [::1]:7420"
        ))
    })
}
