//! What a value of the right type must still satisfy. It never touches the machine: no file, no socket, no name lookup.

use crate::Config;

/// The lowest and highest number of slots of one TaskManager; 0 stands for the number of cores.
const SLOTS_MAX: u32 = 1024;
/// WebAssembly's own limit for 32-bit memories.
const WASM_MEMORY_MAX_BYTES: u64 = 1 << 32;
const WASM_PAGE_BYTES: u64 = 1 << 16;
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
                cluster
                    .checkpoint_store_url
                    .strip_prefix("file://")
                    .is_some_and(|path| path.starts_with('/')),
                "expected the URL of a directory, such as file:///var/lib/tidemill/store",
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

    fn jobmanager_problem(&self) -> Option<Problem> {
        let jobmanager = &self.jobmanager;
        first(&[
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

fn is_memory_size(bytes: u64) -> bool {
    (WASM_PAGE_BYTES..=WASM_MEMORY_MAX_BYTES).contains(&bytes)
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}
