//! A cluster in a directory of its own: certificates, a configuration file, JobManagers and TaskManagers; with several
//! JobManagers a ZooKeeper ensemble too.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tidemill_zookeeper_ensemble::{Ensemble, Options, Place};

use crate::launch::{Addresses, Launcher, START_LIMIT, TOKEN, clean_environment};
use crate::log::{complaints, tail};
use crate::network::Network;
use crate::{ClusterOptions, Job, Process, Rest, wait_for};

/// How long a process may take to end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How much of each log is shown after a failure.
const LOG_TAIL_LINES: usize = 60;
/// The hosts of an ensemble's servers, where processes have hosts. One of three may fail.
pub const ZOOKEEPER_HOSTS: [&str; 3] = ["zk-1", "zk-2", "zk-3"];

/// Running processes, and the directory with all that they keep.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    launcher: Launcher,
    rest: Rest,
    jobmanagers: Vec<JobManager>,
    /// Index i is `tm-(i+1)`: the present process of this name, or the last.
    taskmanagers: Vec<Process>,
    ensemble: Option<Ensemble>,
    expected_errors: Vec<String>,
    is_shut_down: bool,
    directory: TempDir,
}

#[derive(Debug)]
struct JobManager {
    process: Process,
    addresses: Addresses,
}

/// A JobManager that says that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Which of the JobManagers.
    pub index: usize,
    /// Its epoch.
    pub epoch: u64,
    /// How long it has led, in milliseconds.
    pub leading_for_ms: u64,
}

impl Cluster {
    /// Starts everything, and waits until one JobManager leads and all TaskManagers have registered.
    ///
    /// # Errors
    /// When a process does not start or register in time, or the network cannot be made.
    pub fn start(options: ClusterOptions) -> anyhow::Result<Self> {
        ensure!(!options.has_network, "such a cluster is tried first");
        let cluster = Self::try_start(options)?;
        cluster.context("only a network can be out of reach")
    }

    /// Like [`Cluster::start`]; `None`, with the reason on the screen, where this user cannot make a network.
    ///
    /// # Errors
    /// When a process does not start or register in time.
    pub fn try_start(options: ClusterOptions) -> anyhow::Result<Option<Self>> {
        let directory = tempfile::Builder::new()
            .prefix("tidemill-test-")
            .tempdir()?;
        let network = match options.has_network {
            false => None,
            true => {
                let mut hosts = options.jobmanager_names();
                hosts.extend(options.taskmanager_names());
                hosts.extend(ZOOKEEPER_HOSTS.map(str::to_owned));
                let Some(network) = Network::create(&hosts)? else {
                    return Ok(None);
                };
                Some(network)
            }
        };
        let ensemble = match options.has_election() {
            false => None,
            true => Some(start_ensemble(network.as_ref())?),
        };
        let servers = ensemble.as_ref().map_or_else(Vec::new, Ensemble::addresses);
        fs::write(
            directory.path().join("tidemill.toml"),
            options.configuration(directory.path(), &servers),
        )?;
        let mut launcher = Launcher::new(directory.path(), network)?;
        launcher.environment.clone_from(&options.environment);
        launcher.issue_certificates()?;
        let jobmanagers = start_jobmanagers(&launcher, &options.jobmanager_names())?;
        let token = launcher.network.as_ref().map(|_| TOKEN);
        let rest: Vec<String> = jobmanagers
            .iter()
            .map(|jobmanager| jobmanager.addresses.rest.clone())
            .collect();
        let mut cluster = Self {
            rest: Rest::of(&rest, token),
            launcher,
            directory,
            jobmanagers,
            taskmanagers: Vec::new(),
            ensemble,
            expected_errors: Vec::new(),
            is_shut_down: false,
            options,
        };
        for name in cluster.options.taskmanager_names() {
            let process = cluster.spawn_taskmanager(&name)?;
            cluster.taskmanagers.push(process);
        }
        cluster.wait_for_registration()?;
        Ok(Some(cluster))
    }

    fn spawn_taskmanager(&self, name: &str) -> anyhow::Result<Process> {
        let jobmanager = match self.options.has_election() {
            true => None,
            false => Some(self.quic_address()),
        };
        self.launcher
            .taskmanager(name, self.options.slots, jobmanager)
    }

    /// Starts every TaskManager that was killed again, and waits until all are registered.
    ///
    /// # Errors
    /// When one does not start or register in time.
    pub fn restart_taskmanagers(&mut self) -> anyhow::Result<()> {
        for index in 0..self.taskmanagers.len() {
            if self.taskmanagers[index].is_killed() {
                self.restart_taskmanager(index)?;
            }
        }
        self.wait_for_registration()
    }

    /// Starts a TaskManager that was killed again, and does not wait until it is registered.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_taskmanager(&mut self, index: usize) -> anyhow::Result<()> {
        // Its data directory is locked until it is gone for good.
        self.taskmanagers[index].wait(STOP_LIMIT)?;
        let name = self.taskmanagers[index].name().to_owned();
        self.taskmanagers[index] = self.spawn_taskmanager(&name)?;
        Ok(())
    }

    /// Starts the JobManager, which was killed, again: on its old addresses, with all that it kept.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn restart_jobmanager(&mut self) -> anyhow::Result<()> {
        self.restart_jobmanager_at(0)
    }

    /// Starts one of the JobManagers, which was killed, again: on its old addresses, with all that it kept.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn restart_jobmanager_at(&mut self, index: usize) -> anyhow::Result<()> {
        let JobManager { process, addresses } = &mut self.jobmanagers[index];
        process.wait(STOP_LIMIT)?;
        *process = self.launcher.jobmanager(process.name(), addresses)?;
        self.launcher.listening(process)?;
        Ok(())
    }

    /// Waits until as many TaskManagers are connected to the leader as run.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn wait_for_registration(&mut self) -> anyhow::Result<()> {
        let running = self
            .taskmanagers
            .iter()
            .filter(|process| !process.is_killed())
            .count() as u64;
        self.wait_for("the TaskManagers to register", START_LIMIT, |cluster| {
            let health = cluster.rest.get("/health")?;
            Ok((health["task_managers"].as_u64() == Some(running)).then_some(()))
        })
    }

    /// Who leads, as far as the JobManagers that can answer say: the one with the greatest epoch.
    #[must_use]
    pub fn leader(&self) -> Option<Leader> {
        let running = self.jobmanagers.iter().enumerate();
        let running = running.filter(|(_, it)| !it.process.is_killed() && !it.process.is_frozen());
        let leading = running.filter_map(|(index, _)| self.leads(index));
        leading.max_by_key(|leader| leader.epoch)
    }

    /// What a JobManager says of itself if it leads.
    #[must_use]
    pub fn leads(&self, index: usize) -> Option<Leader> {
        let health = self.rest.at(index).get("/health").ok()?;
        (health["leading"] == true).then_some(Leader {
            index,
            epoch: health["epoch"].as_u64()?,
            leading_for_ms: health["leading_for_ms"].as_u64()?,
        })
    }

    /// Waits until somebody leads in an epoch after `epoch`; 0: in any.
    ///
    /// # Errors
    /// When nobody does in time.
    pub fn wait_for_leader(&mut self, epoch: u64, limit: Duration) -> anyhow::Result<Leader> {
        self.wait_for("a leader", limit, |cluster| {
            Ok(cluster.leader().filter(|leader| leader.epoch > epoch))
        })
    }

    /// Waits until `condition` gives a value; see [`wait_for`]. A process that ends by itself meanwhile is an error.
    ///
    /// # Errors
    /// When the limit has passed or a process has ended.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&mut Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        wait_for(what, limit, || match self.check() {
            Ok(()) => Ok(condition(self)?.map(Ok)),
            Err(error) => Ok(Some(Err(error))),
        })?
    }

    /// Fails if a process has ended that the test did not end.
    ///
    /// # Errors
    /// See above.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let jobmanagers = self.jobmanagers.iter_mut().map(|it| &mut it.process);
        jobmanagers
            .chain(&mut self.taskmanagers)
            .try_for_each(Process::check)
    }

    /// Submits a job with `tidemill run --detach`.
    ///
    /// # Errors
    /// When the job is refused, with all that the command printed.
    pub fn submit(&self, module: &Path, arguments: &[String]) -> anyhow::Result<Job> {
        let mut all = vec!["run".to_owned(), module.to_string_lossy().into_owned()];
        all.extend(["--detach", "--output", "json"].map(str::to_owned));
        all.extend_from_slice(arguments);
        let output = self.run(&all)?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "`tidemill run` failed ({}): {printed}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let submitted: Value = serde_json::from_str(&printed)
            .with_context(|| format!("`tidemill run --output json` printed no JSON: {printed}"))?;
        match submitted["id"].as_str() {
            Some(id) => Ok(self.job(id)),
            None => bail!("no id in {submitted}"),
        }
    }

    /// A job that is known by its id.
    #[must_use]
    pub fn job(&self, id: &str) -> Job {
        Job::new(self.rest.clone(), id)
    }

    /// Runs `tidemill` with these arguments against this cluster's leader, to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[String]) -> anyhow::Result<Output> {
        self.command(self.rest.url(), arguments)
            .output()
            .context("cannot start `tidemill`")
    }

    /// The command `tidemill` with these arguments, for the JobManager at `url`.
    #[must_use]
    pub fn command(&self, url: &str, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.launcher.tidemill);
        clean_environment(&mut command)
            .args(arguments)
            .args(["--jobmanager", url])
            .stdin(Stdio::null());
        if let Some(token) = self.rest.token() {
            command.args(["--token", token]);
        }
        command
    }

    /// The REST API.
    #[must_use]
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// The (first) JobManager's QUIC address, `host:port`.
    #[must_use]
    pub fn quic_address(&self) -> &str {
        &self.jobmanagers[0].addresses.quic
    }

    /// The directory of this cluster; a test may put its own files there.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The (first) JobManager.
    pub fn jobmanager(&mut self) -> &mut Process {
        &mut self.jobmanagers[0].process
    }

    /// One of the JobManagers; index i is `jm-(i+1)`.
    pub fn jobmanager_at(&mut self, index: usize) -> &mut Process {
        &mut self.jobmanagers[index].process
    }

    /// The TaskManagers; index i is `tm-(i+1)`.
    pub fn taskmanagers(&mut self) -> &mut [Process] {
        &mut self.taskmanagers
    }

    /// The ZooKeeper servers.
    ///
    /// # Panics
    /// When the cluster has one JobManager, and no ensemble.
    #[must_use]
    pub fn ensemble(&self) -> &Ensemble {
        self.ensemble.as_ref().expect("a cluster with an election")
    }

    /// The network whose connections can be cut.
    ///
    /// # Panics
    /// When the cluster has none.
    #[must_use]
    pub fn network(&self) -> &Network {
        let network = self.launcher.network.as_ref();
        network.expect("a cluster with a network")
    }

    /// The next process of this name crashes when it passes a fault point, `<name>` or `<name>:<n>` for the n-th time.
    pub fn arm(&mut self, process: &str, fault_point: &str) {
        let points = &mut self.launcher.fault_points;
        points.insert(process.to_owned(), fault_point.to_owned());
        self.expect_error("TIDEMILL_FAULT_POINT");
    }

    /// The next processes crash nowhere.
    pub fn disarm(&mut self) {
        self.launcher.fault_points.clear();
    }

    /// Announces that processes will log errors that contain this text.
    pub fn expect_error(&mut self, text: &str) {
        self.expected_errors.push(text.to_owned());
    }

    /// Ends all processes in order with SIGTERM, and fails if one does not end well or has logged an error.
    ///
    /// # Errors
    /// See above.
    pub fn shut_down(mut self) -> anyhow::Result<()> {
        self.check()?;
        let jobmanagers = self.jobmanagers.iter_mut().map(|it| &mut it.process);
        let all = self.taskmanagers.iter_mut().chain(jobmanagers);
        for process in all.filter(|process| !process.is_killed()) {
            let status = process.terminate(STOP_LIMIT)?;
            ensure!(
                status.success(),
                "{} ended with {status} on SIGTERM",
                process.name()
            );
        }
        // What they have logged is looked at by `drop`.
        self.is_shut_down = true;
        Ok(())
    }

    fn logs(&self) -> impl Iterator<Item = (&str, String)> {
        let jobmanagers = self.jobmanagers.iter().map(|it| &it.process);
        let all = jobmanagers.chain(&self.taskmanagers);
        all.map(|process| (process.name(), process.log()))
    }

    fn complaints(&self) -> Vec<String> {
        let of_log = |(name, log): (&str, String)| {
            let lines = complaints(&log, &self.expected_errors);
            lines
                .into_iter()
                .map(|line| format!("{name}: {line}"))
                .collect::<Vec<_>>()
        };
        self.logs().flat_map(of_log).collect()
    }
}

impl Drop for Cluster {
    /// A test that ended without [`Cluster::shut_down`] does not get away with errors in the logs either.
    fn drop(&mut self) {
        let complaints = self.complaints();
        if thread::panicking() || !self.is_shut_down || !complaints.is_empty() {
            for (name, log) in self.logs() {
                eprintln!("--- the end of {name}.log:\n{}", tail(&log, LOG_TAIL_LINES));
            }
            if let Some(ensemble) = &self.ensemble {
                for server in 0..ensemble.size() {
                    let end = ensemble.log_end(server);
                    eprintln!("--- the end of ZooKeeper server {server}'s log:\n{end}");
                }
            }
        }
        if env::var_os("TIDEMILL_TESTS_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            eprintln!("kept: {}", self.directory.path().display());
        }
        assert!(
            thread::panicking() || complaints.is_empty(),
            "unexpected errors were logged:\n{}",
            complaints.join("\n")
        );
    }
}

/// Servers on loopback, or each on a host of its own.
fn start_ensemble(network: Option<&Network>) -> anyhow::Result<Ensemble> {
    let mut options = Options::with_servers(ZOOKEEPER_HOSTS.len());
    if let Some(network) = network {
        let place = |host| {
            anyhow::Ok(Place {
                address: network.address(host)?.parse()?,
                launcher: network.launcher(host),
            })
        };
        options.places = ZOOKEEPER_HOSTS
            .into_iter()
            .map(place)
            .collect::<Result<_, _>>()?;
    }
    Ok(Ensemble::start(options)?)
}

/// Starts all, then waits for each.
fn start_jobmanagers(launcher: &Launcher, names: &[String]) -> anyhow::Result<Vec<JobManager>> {
    let mut processes = Vec::new();
    for name in names {
        processes.push(launcher.jobmanager(name, &launcher.first_addresses(name)?)?);
    }
    let listening = |mut process: Process| {
        let addresses = launcher.listening(&mut process)?;
        Ok(JobManager { process, addresses })
    };
    processes.into_iter().map(listening).collect()
}
