//! What a value of the right type must still satisfy. It never touches the machine: no file, no socket, no name lookup.

use std::net::{IpAddr, Ipv6Addr};

use crate::{Config, Coordination, ZooKeeperAcl};

/// The lowest and highest number of slots of one TaskManager; 0 stands for the number of cores.
const SLOTS_MAX: u32 = 1024;
/// WebAssembly's own limit for 32-bit memories.
const WASM_MEMORY_MAX_BYTES: u64 = 1 << 32;
const WASM_PAGE_BYTES: u64 = 1 << 16;
/// Below this, a leader that waits a moment for its disk or its processor loses its session.
const SESSION_TIMEOUT_MIN_MS: u64 = 500;
/// Nobody waits longer than this for a new leader.
const SESSION_TIMEOUT_MAX_MS: u64 = 600_000;
/// Key groups are numbered with 15 bits, as in Flink.
const MAX_PARALLELISM_MAX: u32 = 1 << 15;

/// A key and why its value cannot be.
pub(crate) struct Problem {
    pub(crate) key: &'static str,
    pub(crate) reason: String,
}

impl Config {
    /// The first setting that cannot be, if any.
    pub(crate) fn problem(&self) -> Option<Problem> {
        self.cluster_problem()
            .or_else(|| self.zookeeper_problem())
            .or_else(|| self.zookeeper_access_problem())
            .or_else(|| self.jobmanager_problem())
            .or_else(|| self.taskmanager_problem())
            .or_else(|| self.limits_problem())
            .or_else(|| self.job_problem())
            .or_else(|| self.log_problem())
    }

    fn cluster_problem(&self) -> Option<Problem> {
        let cluster = &self.cluster;
        first(&[
            (
                "cluster.name",
                !cluster.name.is_empty()
                    && cluster
                        .name
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)),
                "a name is made of letters, digits, `-`, `_` and `.`",
            ),
            (
                "cluster.checkpoint_store_url",
                is_store(&cluster.checkpoint_store_url),
                "expected the URL of a directory or of a bucket, such as file:///var/lib/tidemill/store or \
                 s3://bucket/prefix",
            ),
            (
                "cluster.heartbeat_interval_ms",
                cluster.heartbeat_interval_ms >= 1,
                "it must be at least 1",
            ),
            (
                "cluster.heartbeat_timeout_ms",
                cluster.heartbeat_timeout_ms >= 2 * cluster.heartbeat_interval_ms,
                "it must be at least twice cluster.heartbeat_interval_ms, or one late packet loses a process",
            ),
            (
                "cluster.max_parallelism",
                (1..=MAX_PARALLELISM_MAX).contains(&cluster.max_parallelism),
                "it must be from 1 to 32768",
            ),
        ])
    }

    fn zookeeper_problem(&self) -> Option<Problem> {
        let zookeeper = &self.zookeeper;
        if let Some(wrong) = zookeeper.servers.iter().find(|text| !is_server(text)) {
            return Some(Problem {
                key: "zookeeper.servers",
                reason: format!(
                    "`{wrong}` is not of the form host:port, such as zk1:2181 or [fd00::1]:2181, one server an element"
                ),
            });
        }
        first(&[
            (
                "zookeeper.servers",
                !zookeeper.servers.is_empty(),
                "at least one server is needed",
            ),
            (
                "zookeeper.root",
                is_node_path(&zookeeper.root),
                "a path begins with `/` and has names between single slashes, such as /tidemill; /zookeeper is ZooKeeper's own",
            ),
            (
                "zookeeper.session_timeout_ms",
                (SESSION_TIMEOUT_MIN_MS..=SESSION_TIMEOUT_MAX_MS)
                    .contains(&zookeeper.session_timeout_ms),
                "it must be from 500 to 600000",
            ),
            (
                "zookeeper.connection_timeout_ms",
                (1..=zookeeper.session_timeout_ms).contains(&zookeeper.connection_timeout_ms),
                "it must be from 1 to zookeeper.session_timeout_ms, or one server that does not answer costs the session",
            ),
        ])
    }

    /// Each rule is told of the setting that asks for another, since that one was written somewhere.
    fn zookeeper_access_problem(&self) -> Option<Problem> {
        const UNUSED: &str =
            "zookeeper.tls is false, and nothing would be encrypted: set it to true";
        let zookeeper = &self.zookeeper;
        let (tls, has_ca) = (zookeeper.tls, zookeeper.tls_ca.is_some());
        let has_certificate = zookeeper.tls_certificate.is_some();
        let has_key = zookeeper.tls_key.is_some();
        let has_user = zookeeper.user.is_some();
        let has_password = zookeeper.password.is_some();
        let is_creator = zookeeper.acl == ZooKeeperAcl::Creator;
        let has_colon = zookeeper
            .user
            .as_ref()
            .is_some_and(|user| user.contains(':'));
        first(&[
            ("zookeeper.user", !has_colon, "a user's name has no colon"),
            (
                "zookeeper.user",
                !has_user || has_password,
                "a user needs zookeeper.password",
            ),
            (
                "zookeeper.password",
                !has_password || has_user,
                "say whose it is with zookeeper.user",
            ),
            (
                "zookeeper.tls",
                !tls || has_ca,
                "name the file with the authorities that servers are checked against with zookeeper.tls_ca",
            ),
            ("zookeeper.tls_ca", tls || !has_ca, UNUSED),
            ("zookeeper.tls_certificate", tls || !has_certificate, UNUSED),
            (
                "zookeeper.tls_certificate",
                !has_certificate || has_key,
                "a certificate needs zookeeper.tls_key",
            ),
            (
                "zookeeper.tls_key",
                !has_key || has_certificate,
                "a key needs zookeeper.tls_certificate",
            ),
            (
                "zookeeper.acl",
                !is_creator || has_user || has_certificate,
                "\"creator\" needs somebody to be: set zookeeper.user and zookeeper.password, or zookeeper.tls_certificate",
            ),
        ])
    }

    fn jobmanager_problem(&self) -> Option<Problem> {
        let jobmanager = &self.jobmanager;
        // With ZooKeeper, others learn this process's addresses from its record there.
        let is_reachable = |ip: IpAddr| {
            self.cluster.coordination == Coordination::Embedded
                || !ip.is_unspecified()
                || jobmanager.advertised_host.is_some()
        };
        first(&[
            (
                "jobmanager.quic_address",
                is_reachable(jobmanager.quic_address.ip()),
                "TaskManagers cannot connect to it: name an address of this machine, or set jobmanager.advertised_host",
            ),
            (
                "jobmanager.advertised_host",
                is_host_or_none(jobmanager.advertised_host.as_deref()),
                "a host's name or address is expected, without a port",
            ),
            (
                "jobmanager.data_dir",
                !jobmanager.data_dir.as_os_str().is_empty(),
                "it names no directory",
            ),
            (
                "jobmanager.rest_token",
                jobmanager
                    .rest_token
                    .as_ref()
                    .is_none_or(|token| token.chars().all(|c| c.is_ascii_graphic())),
                "a token is made of printable ASCII characters without spaces",
            ),
            (
                "jobmanager.rest_address",
                jobmanager.rest_address.ip().is_loopback() || jobmanager.rest_token.is_some(),
                "whoever reaches it can run code: set jobmanager.rest_token too, or use a loopback address",
            ),
            (
                "jobmanager.rest_address",
                is_reachable(jobmanager.rest_address.ip()),
                "clients cannot be sent to it: name an address of this machine, or set jobmanager.advertised_host",
            ),
            (
                "jobmanager.module_bytes_max",
                jobmanager.module_bytes_max >= 1,
                "it must be at least 1",
            ),
            (
                "jobmanager.describe_deadline_ms",
                jobmanager.describe_deadline_ms >= 1,
                "it must be at least 1",
            ),
            (
                "jobmanager.describe_memory_max_bytes",
                is_memory_size(jobmanager.describe_memory_max_bytes),
                "it must be from 65536 (one WebAssembly page) to 4294967296 (4 GiB)",
            ),
            (
                "jobmanager.report_interval_ms",
                jobmanager.report_interval_ms >= 10,
                "it must be at least 10",
            ),
        ])
    }

    fn taskmanager_problem(&self) -> Option<Problem> {
        let taskmanager = &self.taskmanager;
        let host_is_known = !taskmanager.data_address.ip().is_unspecified()
            || taskmanager.advertised_host.is_some();
        if let Some(wrong) = taskmanager
            .jobmanagers
            .iter()
            .find(|address| !is_host_and_port(address))
        {
            return Some(Problem {
                key: "taskmanager.jobmanagers",
                reason: format!("`{wrong}` is not of the form host:port"),
            });
        }
        first(&[
            (
                "taskmanager.data_dir",
                !taskmanager.data_dir.as_os_str().is_empty(),
                "it names no directory",
            ),
            (
                "taskmanager.slots",
                taskmanager.slots <= SLOTS_MAX,
                "it must be from 1 to 1024, or 0 for one a core",
            ),
            (
                "taskmanager.jobmanagers",
                !taskmanager.jobmanagers.is_empty(),
                "at least one address is needed",
            ),
            (
                "taskmanager.data_address",
                host_is_known,
                "others cannot connect to it: name an address of this machine, or set taskmanager.advertised_host",
            ),
            (
                "taskmanager.reconnect_max_ms",
                taskmanager.reconnect_max_ms >= 1,
                "it must be at least 1",
            ),
        ])
    }

    fn limits_problem(&self) -> Option<Problem> {
        let taskmanager = &self.taskmanager;
        first(&[
            (
                "taskmanager.channel_queue_max_bytes",
                taskmanager.channel_queue_max_bytes >= 4096,
                "it must be at least 4096",
            ),
            (
                "taskmanager.exchange_memory_max_bytes",
                taskmanager.exchange_memory_max_bytes
                    >= u64::from(taskmanager.channel_queue_max_bytes),
                "it must be at least taskmanager.channel_queue_max_bytes, or not one channel fits",
            ),
            (
                "taskmanager.memory_max_bytes",
                is_memory_size(taskmanager.memory_max_bytes),
                "it must be from 65536 (one WebAssembly page) to 4294967296 (4 GiB)",
            ),
            (
                "taskmanager.call_deadline_ms",
                taskmanager.call_deadline_ms >= 1,
                "it must be at least 1",
            ),
            (
                "taskmanager.call_output_max_bytes",
                taskmanager.call_output_max_bytes >= 1,
                "it must be at least 1",
            ),
            (
                "taskmanager.log_lines_max",
                taskmanager.log_lines_max >= 1,
                "it must be at least 1",
            ),
        ])
    }

    fn job_problem(&self) -> Option<Problem> {
        let (checkpoints, restart) = (&self.checkpoints, &self.restart);
        first(&[
            (
                "checkpoints.timeout_ms",
                checkpoints.timeout_ms >= 1,
                "it must be at least 1",
            ),
            (
                "checkpoints.retained",
                checkpoints.retained >= 1,
                "at least 1 checkpoint must be kept",
            ),
            (
                "restart.failure_rate_interval_ms",
                restart.failure_rate_interval_ms >= 1,
                "it must be at least 1",
            ),
            (
                "restart.exponential_delay_initial_ms",
                restart.exponential_delay_initial_ms >= 1,
                "it must be at least 1, since nothing grows from 0",
            ),
            (
                "restart.exponential_delay_max_ms",
                restart.exponential_delay_max_ms >= restart.exponential_delay_initial_ms,
                "it must be at least restart.exponential_delay_initial_ms",
            ),
            (
                "restart.exponential_delay_multiplier_percent",
                restart.exponential_delay_multiplier_percent >= 100,
                "it must be at least 100, or the pauses shrink",
            ),
        ])
    }

    fn log_problem(&self) -> Option<Problem> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let is_directive = |directive: &str| match directive.split_once('=') {
            None => LEVELS.contains(&directive),
            Some((module, level)) => !module.is_empty() && LEVELS.contains(&level),
        };
        first(&[(
            "log.level",
            self.log.level.split(',').all(is_directive),
            "expected off, error, warn, info, debug or trace, or several as in info,tidemill_transport=debug",
        )])
    }
}

/// The first rule that does not hold.
fn first(rules: &[(&'static str, bool, &str)]) -> Option<Problem> {
    let (key, _, reason) = rules.iter().find(|(_, holds, _)| !holds)?;
    Some(Problem {
        key,
        reason: (*reason).to_owned(),
    })
}

/// Whether it has the form of a place for objects; the store itself says the rest when it is opened.
fn is_store(url: &str) -> bool {
    let bucket = ["s3://", "gs://", "az://"]
        .into_iter()
        .find_map(|scheme| url.strip_prefix(scheme));
    match bucket {
        Some(bucket) => !bucket.is_empty() && !bucket.starts_with('/'),
        None => url.starts_with("file:///"),
    }
}

fn is_memory_size(bytes: u64) -> bool {
    (WASM_PAGE_BYTES..=WASM_MEMORY_MAX_BYTES).contains(&bytes)
}

/// `host:port` or `[IPv6]:port`. A bare IPv6 address is refused: its last group would be taken for the port.
fn is_server(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let in_brackets = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => is_host_name(host),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_host_name(host: &str) -> bool {
    !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_host_or_none(host: Option<&str>) -> bool {
    host.is_none_or(|host| is_host_name(host) || host.parse::<Ipv6Addr>().is_ok())
}

/// What ZooKeeper accepts as a path, without a slash at the end, or the root itself.
fn is_node_path(path: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty()
            && name != "."
            && name != ".."
            && name.chars().all(|c| !c.is_control() && !c.is_whitespace())
    };
    path == "/"
        || path.strip_prefix('/').is_some_and(|names| {
            names.split('/').all(is_name) && names.split('/').next() != Some("zookeeper")
        })
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}
