//! A cluster of real processes on this machine, as a user would start it: certificates, a configuration file, a
//! JobManager or several, TaskManagers.
//!
//! It never reaches inside a process: it knows the command line, the configuration's keys, the file in which a process
//! says where it listens, and the REST API.

pub(crate) mod process;
pub(crate) mod rest;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::interrupt;
use process::Process;
use rest::Rest;

/// How long a process may take until it listens or has registered.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Processes, and the directory with everything that they keep.
pub(crate) struct Cluster {
    tidemill: PathBuf,
    directory: PathBuf,
    jobmanagers: Vec<JobManager>,
    /// Which of them leads, as far as is known.
    leader: usize,
    quic_address: String,
    taskmanagers: Vec<Process>,
}

/// A JobManager, and where its users reach it.
struct JobManager {
    process: Process,
    rest: Rest,
}

impl Cluster {
    /// Makes certificates and a configuration in `directory`, with `settings` beside what a cluster in one directory
    /// needs, and starts a JobManager.
    pub(crate) fn start(
        tidemill: &Path,
        directory: &Path,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        Self::start_several(tidemill, directory, settings, &["jobmanager".to_owned()])
    }

    /// The same with a JobManager for each of `ids`, which `settings` must let find each other.
    pub(crate) fn start_several(
        tidemill: &Path,
        directory: &Path,
        settings: &[(&str, &str)],
        ids: &[String],
    ) -> anyhow::Result<Self> {
        fs::write(
            directory.join("tidemill.toml"),
            configuration(directory, settings),
        )?;
        certificates(tidemill, directory)?;
        let mut cluster = Self {
            tidemill: tidemill.to_owned(),
            directory: directory.to_owned(),
            jobmanagers: Vec::new(),
            leader: 0,
            quic_address: String::new(),
            taskmanagers: Vec::new(),
        };
        for id in ids {
            cluster.start_jobmanager(id)?;
        }
        Ok(cluster)
    }

    fn start_jobmanager(&mut self, id: &str) -> anyhow::Result<()> {
        let data = self.directory.join(id);
        let mut command = node(&self.tidemill, &self.directory, "jobmanager");
        command
            .args(set("jobmanager.data_dir", &data.to_string_lossy()))
            .args(set("jobmanager.id", id));
        let mut process = Process::start(id, &mut command, &self.directory)?;
        let addresses = addresses(&mut process, &data)?;
        rest::text(&addresses, "quic_address")?.clone_into(&mut self.quic_address);
        let rest = Rest::new(rest::text(&addresses, "rest_address")?);
        self.jobmanagers.push(JobManager { process, rest });
        Ok(())
    }

    /// Waits until one of the JobManagers leads, and returns how it says it is.
    pub(crate) fn wait_for_leader(&mut self, limit: Duration) -> anyhow::Result<Value> {
        interrupt::wait_for("a leader", limit, || {
            self.check()?;
            for (index, jobmanager) in self.jobmanagers.iter().enumerate() {
                let health = jobmanager.rest.get("/health")?;
                if health["leading"] == true {
                    self.leader = index;
                    return Ok(Some(health));
                }
            }
            Ok(None)
        })
    }

    /// Starts a TaskManager called `id`. It registers in its own time: see [`Self::wait_for_taskmanagers`].
    pub(crate) fn start_taskmanager(&mut self, id: &str, slots: u32) -> anyhow::Result<&Process> {
        let mut command = node(&self.tidemill, &self.directory, "taskmanager");
        let data = self.directory.join(id);
        command
            .args(set("taskmanager.data_dir", &data.to_string_lossy()))
            .args(set("taskmanager.id", id))
            .args(set("taskmanager.slots", &slots.to_string()))
            .args(set("taskmanager.jobmanagers", &self.quic_address));
        let process = Process::start(id, &mut command, &self.directory)?;
        self.taskmanagers.push(process);
        Ok(&self.taskmanagers[self.taskmanagers.len() - 1])
    }

    /// Waits until every TaskManager that was started has registered.
    pub(crate) fn wait_for_taskmanagers(&mut self) -> anyhow::Result<()> {
        let expected = self.taskmanagers.len() as u64;
        interrupt::wait_for("the TaskManagers to register", START_LIMIT, || {
            self.check()?;
            let health = self.rest().get("/health")?;
            Ok((rest::number(&health, "task_managers")? == expected).then_some(()))
        })
    }

    /// Submits a job with `tidemill run --detach` and returns its id.
    pub(crate) fn submit(&self, module: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.tidemill);
        clean_environment(&mut command)
            .arg("run")
            .arg(module)
            .args(["--detach", "--output", "json", "--jobmanager"])
            .arg(self.rest().url())
            .args(arguments);
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("cannot start `tidemill run`")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "`tidemill run` failed ({}):\n{}{printed}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let submitted: Value = serde_json::from_str(&printed)
            .with_context(|| format!("`tidemill run` printed no JSON: {printed}"))?;
        Ok(rest::text(&submitted, "id")?.to_owned())
    }

    /// Cancels a job with `tidemill cancel` and waits until it has ended.
    pub(crate) fn cancel(&self, id: &str) -> anyhow::Result<()> {
        let mut command = Command::new(&self.tidemill);
        clean_environment(&mut command)
            .args(["cancel", id, "--jobmanager"])
            .arg(self.rest().url());
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("cannot start `tidemill cancel`")?;
        ensure!(
            output.status.success(),
            "`tidemill cancel` failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        interrupt::wait_for("the job's end", START_LIMIT, || {
            let detail = self.job(id)?;
            Ok((rest::text(&detail, "status")? == "cancelled").then_some(()))
        })
    }

    /// Everything about a job.
    pub(crate) fn job(&self, id: &str) -> anyhow::Result<Value> {
        self.rest().get(&format!("/v1/jobs/{id}"))
    }

    /// A job's checkpoints.
    pub(crate) fn checkpoints(&self, id: &str) -> anyhow::Result<Value> {
        self.rest().get(&format!("/v1/jobs/{id}/checkpoints"))
    }

    /// Where the leader's REST API is.
    pub(crate) fn rest(&self) -> &Rest {
        &self.jobmanagers[self.leader].rest
    }

    /// The JobManager that leads, or is alone.
    pub(crate) fn jobmanager(&self) -> &Process {
        &self.jobmanagers[self.leader].process
    }

    /// The JobManagers that were started and not killed.
    pub(crate) fn jobmanagers(&self) -> impl Iterator<Item = &Process> {
        self.jobmanagers
            .iter()
            .map(|jobmanager| &jobmanager.process)
    }

    /// The leader's name.
    pub(crate) fn leader(&self) -> &str {
        self.jobmanager().name()
    }

    /// Ends the JobManager that leads with SIGKILL and returns its name. There must be others.
    pub(crate) fn kill_leader(&mut self) -> anyhow::Result<String> {
        ensure!(self.jobmanagers.len() > 1, "there is no other JobManager");
        let mut gone = self.jobmanagers.remove(self.leader);
        self.leader = 0;
        gone.process.kill()?;
        Ok(gone.process.name().to_owned())
    }

    /// The TaskManagers that were started and not killed.
    pub(crate) fn taskmanagers(&self) -> &[Process] {
        &self.taskmanagers
    }

    /// All processes.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.taskmanagers.iter().chain(self.jobmanagers())
    }

    /// Ends a TaskManager with SIGKILL.
    pub(crate) fn kill_taskmanager(&mut self, id: &str) -> anyhow::Result<()> {
        let index = self
            .taskmanagers
            .iter()
            .position(|process| process.name() == id);
        let index = index.with_context(|| format!("there is no TaskManager {id}"))?;
        self.taskmanagers.remove(index).kill()?;
        Ok(())
    }

    /// Fails if a process has ended that should not have.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for jobmanager in &mut self.jobmanagers {
            jobmanager.process.check()?;
        }
        self.taskmanagers.iter_mut().try_for_each(Process::check)
    }
}

/// What is the same for all processes, with every port free to choose.
fn configuration(directory: &Path, settings: &[(&str, &str)]) -> String {
    let store = format!("file://{}", directory.join("store").display());
    let tls = directory.join("tls");
    let all = [
        ("cluster.checkpoint_store_url", store.as_str()),
        ("jobmanager.quic_address", "127.0.0.1:0"),
        ("jobmanager.rest_address", "127.0.0.1:0"),
        ("tls.dir", &tls.to_string_lossy()),
    ];
    let mut text = String::new();
    for (key, value) in all.iter().chain(settings) {
        // Numbers, switches and lists are written alike in TOML; anything else is text.
        let is_plain = value.parse::<u64>().is_ok() || value.parse::<bool>().is_ok();
        let is_text = !is_plain && !value.starts_with('[');
        let value = match is_text {
            true => Value::from(*value).to_string(),
            false => (*value).to_owned(),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    text
}

fn certificates(tidemill: &Path, directory: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(tidemill);
    let output = clean_environment(&mut command)
        .args(["certs", "--out"])
        .arg(directory.join("tls"))
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", tidemill.display()))?;
    ensure!(
        output.status.success(),
        "`tidemill certs` failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn node(tidemill: &Path, directory: &Path, kind: &str) -> Command {
    let mut command = Command::new(tidemill);
    clean_environment(&mut command)
        .args([kind, "--config"])
        .arg(directory.join("tidemill.toml"));
    command
}

fn set(key: &str, value: &str) -> [String; 2] {
    ["--set".to_owned(), format!("{key}={value}")]
}

/// The developer's own `TIDEMILL_…` variables are meant for another cluster.
fn clean_environment(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEMILL_") {
            command.env_remove(name);
        }
    }
    command
}

/// Where a process listens, as soon as it does.
fn addresses(process: &mut Process, data: &Path) -> anyhow::Result<Value> {
    let path = data.join("addresses.json");
    let what = format!("{} to listen", process.name());
    interrupt::wait_for(&what, START_LIMIT, || {
        process.check()?;
        // Written under another name and renamed, so that it is whole when it is there.
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(_) => Ok(None),
        }
    })
}
