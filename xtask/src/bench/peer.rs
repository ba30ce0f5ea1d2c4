//! Another system, measured by a harness that its directory holds: `setup.sh`, run once, and `bench.sh NAME`, which
//! measures a job and appends a line of JSON to `bench.jsonl` in the harness's work directory.
//!
//! It knows no system by name. For `--peer flink=DIR` the work directory is the environment variable `FLINK_WORK`, as
//! given or as chosen here; `PS` is the parallelism, `WARMUP` and `STEADY` are seconds, `NAME@2tm` asks for two
//! TaskManagers of one slot.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::row::{Figures, Row};
use crate::interrupt;

/// How long a harness that is to stop may take to stop what it started.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// `NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerArgument {
    name: String,
    harness: PathBuf,
}

impl FromStr for PeerArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, harness))
                if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()) =>
            {
                Ok(Self {
                    name: name.to_owned(),
                    harness: harness.into(),
                })
            }
            _ => Err("expected NAME=DIRECTORY, such as flink=../peers/flink".to_owned()),
        }
    }
}

/// A peer whose harness is set up.
pub(super) struct Peer {
    name: String,
    harness: PathBuf,
    work: PathBuf,
    work_variable: String,
}

impl Peer {
    /// Sets the harness up, unless that was done in its work directory before.
    pub(super) fn set_up(argument: &PeerArgument, directory: &Path) -> anyhow::Result<Self> {
        let PeerArgument { name, harness } = argument;
        let harness = harness
            .canonicalize()
            .with_context(|| format!("there is no harness in {}", harness.display()))?;
        let work_variable = format!("{}_WORK", name.to_uppercase());
        let work = match env::var_os(&work_variable) {
            Some(work) => PathBuf::from(work),
            None => directory.join(name),
        };
        fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
        let peer = Self {
            name: name.clone(),
            harness,
            work: work.canonicalize()?,
            work_variable,
        };
        let marker = peer.work.join("set-up-by-xtask");
        if !marker.exists() {
            eprintln!("setting up {name}, once");
            peer.script("setup.sh", &mut Command::new(peer.harness.join("setup.sh")))?;
            fs::write(&marker, "")?;
        }
        Ok(peer)
    }

    /// As the argument calls it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Measures a row.
    pub(super) fn run(
        &self,
        row: &Row,
        warm_up: Duration,
        steady: Duration,
    ) -> anyhow::Result<Figures> {
        let name = match row.shape.taskmanagers {
            1 => row.job.clone(),
            number => format!("{}@{number}tm", row.job),
        };
        let before = self.results()?.len();
        let mut command = Command::new(self.harness.join("bench.sh"));
        command
            .arg(&name)
            .env("PS", row.shape.parallelism.to_string())
            .env("WARMUP", warm_up.as_secs().to_string())
            .env("STEADY", steady.as_secs().to_string());
        self.script("bench.sh", &mut command)?;
        // It may have measured more than once, having been disturbed: the last is the one it was content with.
        let results = self.results()?;
        let last = results[before.min(results.len())..].iter().rfind(|line| {
            line["name"].as_str() == Some(&name)
                && line["p"].as_u64() == Some(row.shape.parallelism.into())
        });
        let line = last.with_context(|| format!("{} measured nothing of {row}", self.name))?;
        Figures::from_json(line)
            .with_context(|| format!("a result of {} lacks figures: {line}", self.name))
    }

    fn results(&self) -> anyhow::Result<Vec<Value>> {
        let path = self.work.join("bench.jsonl");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        text.lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("in {}", path.display()))
            })
            .collect()
    }

    /// Runs a script of the harness to its end, in a process group of its own so that all of it can be stopped.
    fn script(&self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        command
            .env(&self.work_variable, &self.work)
            .stdin(Stdio::null())
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}/{name}", self.harness.display()))?;
        let mut group = Group(child);
        let status = loop {
            if let Some(status) = group.0.try_wait()? {
                break status;
            }
            interrupt::pause(Duration::from_millis(100))?;
        };
        ensure!(
            status.success(),
            "{}/{name} failed ({status})",
            self.harness.display()
        );
        Ok(())
    }
}

/// A script with all that it started.
struct Group(Child);

impl Group {
    fn signal(&self, signal: libc::c_int) {
        if let Ok(id) = libc::pid_t::try_from(self.0.id()) {
            // SAFETY: the call has no preconditions. The group is the child's own, and the child has not been waited
            // for, so its id belongs to nobody else.
            unsafe { libc::killpg(id, signal) };
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        if self.0.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal(libc::SIGINT);
        let end = Instant::now() + STOP_LIMIT;
        while Instant::now() < end {
            if self.0.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.signal(libc::SIGKILL);
        self.0.wait()?;
        bail!("the harness did not stop when asked, and was killed")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_name_and_a_directory() {
        let peer: PeerArgument = "flink=../peers/flink=2".parse().unwrap();
        assert_eq!(peer.name, "flink");
        assert_eq!(peer.harness, Path::new("../peers/flink=2"));
        for bad in ["flink", "=dir", "a b=dir"] {
            assert!(bad.parse::<PeerArgument>().is_err(), "{bad}");
        }
    }
}
