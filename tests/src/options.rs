//! What a cluster is made of, and the configuration file that says so to its processes.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// JobManagers: one, called `jobmanager`, with the embedded registry; or several, called `jm-1`, `jm-2`, …, with a
    /// ZooKeeper ensemble of three servers.
    pub job_managers: u32,
    /// TaskManagers, called `tm-1`, `tm-2`, …
    pub task_managers: u32,
    /// Slots of each.
    pub slots: u32,
    /// Whether each process is a host of its own, in a network whose connections can be cut.
    pub has_network: bool,
    /// Settings of every process, beside what a cluster in one directory needs: key and value.
    pub settings: Vec<(&'static str, String)>,
    /// Variables of every process, beside those of the test: name and value.
    pub environment: Vec<(String, String)>,
}

impl Default for ClusterOptions {
    /// One JobManager, and three TaskManagers with two slots each, which report often and restart jobs at once.
    fn default() -> Self {
        let settings = [
            ("jobmanager.report_interval_ms", "50"),
            ("checkpoints.interval_ms", "300"),
            ("restart.strategy", "fixed-delay"),
            ("restart.fixed_delay_attempts", "1000"),
            ("restart.fixed_delay_ms", "0"),
        ];
        Self {
            job_managers: 1,
            task_managers: 3,
            slots: 2,
            has_network: false,
            settings: settings.map(|(key, value)| (key, value.to_owned())).into(),
            environment: Vec::new(),
        }
    }
}

impl ClusterOptions {
    /// Three JobManagers and the default's TaskManagers, with sessions short enough for a test and long enough for a
    /// machine that does other things too.
    #[must_use]
    pub fn highly_available(session_timeout: Duration) -> Self {
        let options = Self {
            job_managers: 3,
            ..Self::default()
        };
        options
            .set("zookeeper.session_timeout_ms", session_timeout.as_millis())
            .set(
                "zookeeper.connection_timeout_ms",
                (session_timeout / 3).as_millis(),
            )
    }

    /// These options with one more setting, which overrules an earlier one of the same key.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: impl ToString) -> Self {
        self.settings.retain(|(known, _)| *known != key);
        self.settings.push((key, value.to_string()));
        self
    }

    /// Whether several JobManagers stand for election.
    #[must_use]
    pub fn has_election(&self) -> bool {
        self.job_managers > 1
    }

    /// The JobManagers' names.
    pub(crate) fn jobmanager_names(&self) -> Vec<String> {
        match self.has_election() {
            true => (1..=self.job_managers).map(|n| format!("jm-{n}")).collect(),
            false => vec!["jobmanager".to_owned()],
        }
    }

    /// The TaskManagers' names.
    pub(crate) fn taskmanager_names(&self) -> Vec<String> {
        (1..=self.task_managers)
            .map(|n| format!("tm-{n}"))
            .collect()
    }

    /// What is the same for all processes, as the text of a configuration file.
    pub(crate) fn configuration(&self, directory: &Path, servers: &[String]) -> String {
        let path = |name: &str| Value::from(directory.join(name).to_string_lossy().as_ref());
        let store = format!("file://{}", directory.join("store").display());
        let mut lines = vec![
            ("tls.dir", path("tls")),
            ("log.format", Value::from("json")),
        ];
        if self.has_election() {
            lines.push(("cluster.coordination", Value::from("zookeeper")));
            lines.push(("zookeeper.servers", Value::from(servers)));
            lines.push(("zookeeper.root", Value::from("/tidemill-tests")));
        }
        let store_key = "cluster.checkpoint_store_url";
        if self.settings.iter().all(|(key, _)| *key != store_key) {
            lines.push((store_key, Value::from(store)));
        }
        for (key, text) in &self.settings {
            let value = match (text.parse::<u64>(), text.parse::<bool>()) {
                (Ok(number), _) => Value::from(number),
                (_, Ok(switch)) => Value::from(switch),
                _ => Value::from(text.as_str()),
            };
            lines.push((key, value));
        }
        // Numbers, texts and lists of texts read the same in JSON and TOML.
        let lines = lines
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"));
        lines.collect()
    }
}
