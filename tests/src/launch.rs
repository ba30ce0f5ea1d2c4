//! How the processes of a cluster are started: on which host, with which arguments, and never with a developer's own
//! `TIDEMILL_…` variables, which are meant for another cluster.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::network::Network;
use crate::{Process, tidemill, wait_for};

/// How long a process may take until it listens or has registered, on a machine that does other things too.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(30);
/// What a JobManager on a network of its own asks of clients: it does not listen on a loopback address.
pub(crate) const TOKEN: &str = "the-tests-own-token";

/// Where a JobManager listens.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) quic: String,
    pub(crate) rest: String,
}

/// The binary, the cluster's directory, and the hosts if it has such.
#[derive(Debug)]
pub(crate) struct Launcher {
    pub(crate) tidemill: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) network: Option<Network>,
    /// The fault points at which processes are to crash, by their names.
    pub(crate) fault_points: BTreeMap<String, String>,
    /// Variables of every process.
    pub(crate) environment: Vec<(String, String)>,
}

impl Launcher {
    pub(crate) fn new(directory: &Path, network: Option<Network>) -> anyhow::Result<Self> {
        Ok(Self {
            tidemill: tidemill()?,
            directory: directory.to_owned(),
            network,
            fault_points: BTreeMap::new(),
            environment: Vec::new(),
        })
    }

    pub(crate) fn issue_certificates(&self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.tidemill);
        let command = clean_environment(&mut command)
            .args(["certs", "--out"])
            .arg(self.directory.join("tls"));
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("cannot start `tidemill certs`")?;
        ensure!(
            output.status.success(),
            "`tidemill certs` failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Where a JobManager listens that has not been started yet: a port that the system picks, or, on a host of its own,
    /// the usual ones.
    pub(crate) fn first_addresses(&self, name: &str) -> anyhow::Result<Addresses> {
        Ok(match &self.network {
            None => Addresses {
                quic: "127.0.0.1:0".to_owned(),
                rest: "127.0.0.1:0".to_owned(),
            },
            Some(network) => {
                let host = network.address(name)?;
                Addresses {
                    quic: format!("{host}:7420"),
                    rest: format!("{host}:7421"),
                }
            }
        })
    }

    /// Starts a JobManager, and does not wait for anything.
    pub(crate) fn jobmanager(&self, name: &str, at: &Addresses) -> anyhow::Result<Process> {
        let directory = self.directory.join(name);
        // What the last one told is not what this one will tell.
        fs::remove_file(directory.join("addresses.json")).ok();
        let mut command = self.server(name, "jobmanager");
        command
            .args(set("jobmanager.id", name))
            .args(set("jobmanager.data_dir", &directory.to_string_lossy()))
            .args(set("jobmanager.quic_address", &at.quic))
            .args(set("jobmanager.rest_address", &at.rest));
        if self.network.is_some() {
            command.args(set("jobmanager.rest_token", TOKEN));
        }
        self.start(name, &mut command)
    }

    /// Waits until a JobManager tells where it listens.
    pub(crate) fn listening(&self, process: &mut Process) -> anyhow::Result<Addresses> {
        let told = self.directory.join(process.name()).join("addresses.json");
        let what = format!("{} to listen", process.name());
        let told: Value = wait_for(&what, START_LIMIT, || {
            if let Err(error) = process.check() {
                return Ok(Some(Err(error)));
            }
            let bytes = fs::read(&told)?;
            Ok(Some(Ok(serde_json::from_slice(&bytes)?)))
        })??;
        let address = |key: &str| {
            let text = told[key].as_str().map(str::to_owned);
            text.with_context(|| format!("no {key} in {told}"))
        };
        Ok(Addresses {
            quic: address("quic_address")?,
            rest: address("rest_address")?,
        })
    }

    /// Starts a TaskManager. `jobmanager` is where the one JobManager is; `None` where ZooKeeper tells.
    pub(crate) fn taskmanager(
        &self,
        name: &str,
        slots: u32,
        jobmanager: Option<&str>,
    ) -> anyhow::Result<Process> {
        let directory = self.directory.join(name);
        let mut command = self.server(name, "taskmanager");
        command
            .args(set("taskmanager.id", name))
            .args(set("taskmanager.data_dir", &directory.to_string_lossy()))
            .args(set("taskmanager.slots", &slots.to_string()));
        if let Some(jobmanager) = jobmanager {
            command.args(set("taskmanager.jobmanagers", jobmanager));
        }
        if let Some(network) = &self.network {
            let address = format!("{}:0", network.address(name)?);
            command.args(set("taskmanager.data_address", &address));
        }
        self.start(name, &mut command)
    }

    fn start(&self, name: &str, command: &mut Command) -> anyhow::Result<Process> {
        let Some(point) = self.fault_points.get(name) else {
            return Process::start(name, command, &self.directory);
        };
        command.env("TIDEMILL_FAULT_POINT", point);
        let mut process = Process::start(name, command, &self.directory)?;
        process.arm();
        Ok(process)
    }

    fn server(&self, name: &str, kind: &str) -> Command {
        let mut command = match &self.network {
            Some(network) => network.command(name, &self.tidemill),
            None => Command::new(&self.tidemill),
        };
        clean_environment(&mut command)
            .args([kind, "--config"])
            .arg(self.directory.join("tidemill.toml"))
            .envs(self.environment.iter().cloned())
            .current_dir(&self.directory);
        command
    }
}

fn set(key: &str, value: &str) -> [String; 2] {
    ["--set".to_owned(), format!("{key}={value}")]
}

/// Removes the variables that are meant for another cluster.
pub fn clean_environment(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEMILL_") {
            command.env_remove(name);
        }
    }
    command
}
