//! A cluster in a directory of its own: certificates, a configuration file, one JobManager, some TaskManagers.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::log::{complaints, tail};
use crate::{Job, Process, Rest, tidemill, wait_for};

/// How long a process may take until it listens or has registered, on a machine that does other things too.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a process may take to end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How much of each log is shown after a failure.
const LOG_TAIL_LINES: usize = 60;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// TaskManagers, called `tm-1`, `tm-2`, …
    pub task_managers: u32,
    /// Slots of each.
    pub slots: u32,
    /// Settings of every process, beside what a cluster in one directory needs: key and value.
    pub settings: Vec<(&'static str, String)>,
}

impl Default for ClusterOptions {
    /// Three TaskManagers with two slots each, which report often and restart jobs at once.
    fn default() -> Self {
        let settings = [
            ("jobmanager.report_interval_ms", "50"),
            ("checkpoints.interval_ms", "300"),
            ("restart.strategy", "fixed-delay"),
            ("restart.fixed_delay_attempts", "1000"),
            ("restart.fixed_delay_ms", "0"),
        ];
        Self {
            task_managers: 3,
            slots: 2,
            settings: settings.map(|(key, value)| (key, value.to_owned())).into(),
        }
    }
}

impl ClusterOptions {
    /// These options with one more setting, which overrules an earlier one of the same key.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: impl ToString) -> Self {
        self.settings.retain(|(known, _)| *known != key);
        self.settings.push((key, value.to_string()));
        self
    }
}

/// Running processes, and the directory with all that they keep.
#[derive(Debug)]
pub struct Cluster {
    tidemill: PathBuf,
    directory: TempDir,
    options: ClusterOptions,
    jobmanager: Process,
    quic_address: String,
    rest_address: String,
    rest: Rest,
    /// Index i is `tm-(i+1)`: the present process of this name, or the last.
    taskmanagers: Vec<Process>,
    expected_errors: Vec<String>,
    is_shut_down: bool,
}

impl Cluster {
    /// Starts a JobManager, then the TaskManagers, and waits until all have registered.
    ///
    /// # Errors
    /// When a process does not start or register in time.
    pub fn start(options: ClusterOptions) -> anyhow::Result<Self> {
        let tidemill = tidemill()?;
        let directory = tempfile::Builder::new()
            .prefix("tidemill-test-")
            .tempdir()?;
        fs::write(
            directory.path().join("tidemill.toml"),
            configuration(directory.path(), &options),
        )?;
        issue_certificates(&tidemill, directory.path())?;
        let (jobmanager, addresses) =
            start_jobmanager(&tidemill, directory.path(), ["127.0.0.1:0", "127.0.0.1:0"])?;
        let address = |key: &str| {
            let text = addresses[key].as_str();
            text.map(str::to_owned)
                .with_context(|| format!("no {key} in {addresses}"))
        };
        let rest_address = address("rest_address")?;
        let mut cluster = Self {
            quic_address: address("quic_address")?,
            rest: Rest::new(&rest_address),
            rest_address,
            tidemill,
            directory,
            options,
            jobmanager,
            taskmanagers: Vec::new(),
            expected_errors: Vec::new(),
            is_shut_down: false,
        };
        for number in 1..=cluster.options.task_managers {
            let process = cluster.spawn_taskmanager(number)?;
            cluster.taskmanagers.push(process);
        }
        cluster.wait_for_registration()?;
        Ok(cluster)
    }

    fn spawn_taskmanager(&self, number: u32) -> anyhow::Result<Process> {
        let id = format!("tm-{number}");
        let mut command = server(&self.tidemill, self.directory.path(), "taskmanager");
        command
            .args(set("taskmanager.id", &id))
            .args(set(
                "taskmanager.data_dir",
                &self.directory.path().join(&id).to_string_lossy(),
            ))
            .args(set("taskmanager.slots", &self.options.slots.to_string()))
            .args(set("taskmanager.jobmanagers", &self.quic_address));
        Process::start(&id, &mut command, self.directory.path())
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
        let number = u32::try_from(index)? + 1;
        self.taskmanagers[index] = self.spawn_taskmanager(number)?;
        Ok(())
    }

    /// Starts the JobManager, which was killed, again: on its old addresses, with all that it kept.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn restart_jobmanager(&mut self) -> anyhow::Result<()> {
        self.jobmanager.wait(STOP_LIMIT)?;
        let addresses = [self.quic_address.as_str(), self.rest_address.as_str()];
        let (jobmanager, _) = start_jobmanager(&self.tidemill, self.directory.path(), addresses)?;
        self.jobmanager = jobmanager;
        Ok(())
    }

    /// Waits until as many TaskManagers are connected as run.
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
        self.jobmanager.check()?;
        self.taskmanagers.iter_mut().try_for_each(Process::check)
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
            Some(id) => Ok(Job::new(self.rest.clone(), id)),
            None => bail!("no id in {submitted}"),
        }
    }

    /// Runs `tidemill` with these arguments against this cluster, to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[String]) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.tidemill);
        let command = clean_environment(&mut command)
            .args(arguments)
            .args(["--jobmanager", self.rest.url()]);
        command
            .stdin(Stdio::null())
            .output()
            .context("cannot start `tidemill`")
    }

    /// The REST API.
    #[must_use]
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// The JobManager's QUIC address, `host:port`.
    #[must_use]
    pub fn quic_address(&self) -> &str {
        &self.quic_address
    }

    /// The directory of this cluster; a test may put its own files there.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The JobManager.
    pub fn jobmanager(&mut self) -> &mut Process {
        &mut self.jobmanager
    }

    /// The TaskManagers; index i is `tm-(i+1)`.
    pub fn taskmanagers(&mut self) -> &mut [Process] {
        &mut self.taskmanagers
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
        let all = self.taskmanagers.iter_mut().chain([&mut self.jobmanager]);
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
        let all = [&self.jobmanager].into_iter().chain(&self.taskmanagers);
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

/// What is the same for all processes.
fn configuration(directory: &Path, options: &ClusterOptions) -> String {
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let common = [
        (
            "cluster.checkpoint_store_url",
            format!("file://{}", path("store")),
        ),
        ("jobmanager.data_dir", path("jobmanager")),
        ("tls.dir", path("tls")),
        ("log.format", "json".to_owned()),
    ];
    let mut text = String::new();
    for (key, value) in common.iter().chain(&options.settings) {
        let value = match value.parse::<u64>() {
            Ok(_) => value.clone(),
            Err(_) => Value::from(value.as_str()).to_string(),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    text
}

fn issue_certificates(tidemill: &Path, directory: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(tidemill);
    let command = clean_environment(&mut command)
        .args(["certs", "--out"])
        .arg(directory.join("tls"));
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

/// Starts a JobManager on the given QUIC and REST addresses, and waits until it says where it listens.
fn start_jobmanager(
    tidemill: &Path,
    directory: &Path,
    [quic, rest]: [&str; 2],
) -> anyhow::Result<(Process, Value)> {
    let told = directory.join("jobmanager/addresses.json");
    // That of an earlier life would be taken for the new one's.
    match fs::remove_file(&told) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut command = server(tidemill, directory, "jobmanager");
    command
        .args(set("jobmanager.quic_address", quic))
        .args(set("jobmanager.rest_address", rest));
    let mut process = Process::start("jobmanager", &mut command, directory)?;
    let addresses = wait_for("the JobManager to listen", START_LIMIT, || {
        if let Err(error) = process.check() {
            return Ok(Some(Err(error)));
        }
        let bytes = fs::read(&told)?;
        Ok(Some(Ok(serde_json::from_slice(&bytes)?)))
    })??;
    Ok((process, addresses))
}

fn server(tidemill: &Path, directory: &Path, kind: &str) -> Command {
    let mut command = Command::new(tidemill);
    clean_environment(&mut command)
        .args([kind, "--config"])
        .arg(directory.join("tidemill.toml"))
        .current_dir(directory);
    command
}

fn set(key: &str, value: &str) -> [String; 2] {
    ["--set".to_owned(), format!("{key}={value}")]
}

/// A developer's own `TIDEMILL_…` variables are meant for another cluster.
fn clean_environment(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEMILL_") {
            command.env_remove(name);
        }
    }
    command
}
