//! One process of a cluster: started with its output in a file, ended or stopped by its own id.
//!
//! None outlives the test: each is killed when its owner is dropped, and by the kernel should the test itself be killed.

use std::fs::{self, OpenOptions};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tidemill_zookeeper_ensemble::signal;

use crate::log::tail;
use crate::wait_for;

/// A process that was started, and may have been killed since.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Killed by the test: that it is gone is no surprise.
    is_killed: bool,
    is_frozen: bool,
    /// Told to crash at a fault point: that it aborts is no surprise.
    is_armed: bool,
}

impl Process {
    /// Starts `command`; everything it prints is added to `directory/name.log`.
    pub(crate) fn start(
        name: &str,
        command: &mut Command,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        // SAFETY: between fork and exec only one system call is made, and no memory is allocated.
        unsafe {
            command.pre_exec(|| {
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            is_killed: false,
            is_frozen: false,
            is_armed: false,
        })
    }

    /// The name under which it was started.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that processes of this name have printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the test has ended it.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.is_killed
    }

    /// From now on it may abort.
    pub(crate) fn arm(&mut self) {
        self.is_armed = true;
    }

    /// Whether it has come to the fault point that it was told to crash at.
    ///
    /// # Errors
    /// When it has ended in any other way that the test did not cause.
    pub fn has_crashed(&mut self) -> anyhow::Result<bool> {
        self.check()?;
        Ok(self.is_armed && self.is_killed)
    }

    /// Whether the test has stopped it.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Ends it with SIGKILL. Does not wait: the kernel takes its time to free the memory, and that is part of what is
    /// measured.
    ///
    /// # Errors
    /// When it has ended by itself before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.check()?;
        self.is_killed = true;
        self.signal(libc::SIGKILL)
    }

    /// Stops it with SIGSTOP: it keeps its connections and says nothing. No thread of it runs when this returns.
    ///
    /// # Errors
    /// When the signal cannot be sent, or it ends instead.
    pub fn freeze(&mut self) -> anyhow::Result<()> {
        self.check()?;
        self.ensure_not_ended()?;
        self.is_frozen = true;
        signal::freeze(&self.child).with_context(|| format!("cannot freeze {}", self.name))
    }

    /// Lets it go on with SIGCONT.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn thaw(&mut self) -> anyhow::Result<()> {
        self.ensure_not_ended()?;
        self.is_frozen = false;
        signal::thaw(&self.child).with_context(|| format!("cannot thaw {}", self.name))
    }

    /// Asks it with SIGTERM to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.ask_to_end()?;
        self.wait(limit)
    }

    /// Asks it with SIGTERM to end.
    ///
    /// # Errors
    /// When it has ended by itself before.
    pub fn ask_to_end(&mut self) -> anyhow::Result<()> {
        self.check()?;
        self.is_killed = true;
        self.signal(libc::SIGTERM)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_for(&what, limit, || Ok(self.child.try_wait()?))
    }

    /// Fails, with the end of its log, if it has ended and the test did not end it.
    ///
    /// # Errors
    /// See above.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) if self.is_armed && status.signal() == Some(libc::SIGABRT) => {
                self.is_killed = true;
                Ok(())
            }
            Some(status) if !self.is_killed => {
                bail!(
                    "{} ended by itself ({status}):\n{}",
                    self.name,
                    tail(&self.log(), 20)
                )
            }
            _ => Ok(()),
        }
    }

    /// What it has in memory now, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.id());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = field.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{path} has no VmRSS"))? << 10)
    }

    fn signal(&mut self, signal: libc::c_int) -> anyhow::Result<()> {
        self.ensure_not_ended()?;
        signal::send(&self.child, signal)
            .with_context(|| format!("cannot send signal {signal} to {}", self.name))
    }

    /// The id of one that has ended may be another's by now.
    fn ensure_not_ended(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "{} has ended already",
            self.name
        );
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn shell(directory: &Path, script: &str) -> Process {
        let mut command = Command::new("sh");
        Process::start("shell", command.args(["-c", script]), directory).expect("there is a shell")
    }

    #[test]
    fn an_end_is_a_surprise_unless_the_test_made_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ended = shell(directory.path(), "echo the last word; exit 3");
        ended.wait(LIMIT).expect("it ends");
        let surprise = ended.check().unwrap_err().to_string();
        assert!(
            surprise.contains("exit status: 3") && surprise.contains("the last word"),
            "{surprise}"
        );
        assert!(ended.kill().is_err(), "its id may be another's by now");

        let mut killed = shell(directory.path(), "exec sleep 100");
        killed.kill().expect("it runs");
        killed.wait(LIMIT).expect("it is gone");
        killed.check().expect("no surprise");
        assert!(killed.thaw().is_err(), "its id may be another's by now");
    }

    #[test]
    fn a_crash_is_no_surprise_where_it_was_asked_for() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut process = shell(directory.path(), "kill -ABRT $$");
        process.wait(LIMIT).expect("it ends");
        assert!(process.has_crashed().is_err(), "nobody asked for it");
        process.arm();
        assert!(process.has_crashed().expect("no surprise") && process.is_killed());
    }

    #[test]
    fn a_frozen_process_stays_until_it_is_thawed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut process = shell(
            directory.path(),
            "trap 'echo ended; exit 0' TERM; echo ready; while :; do sleep 0.01; done",
        );
        wait_for("the trap", LIMIT, || {
            Ok(process.log().contains("ready").then_some(()))
        })
        .expect("it starts");
        assert!(process.resident_bytes().expect("it runs") > 0);
        process.freeze().expect("it runs");
        let state = fs::read_to_string(format!("/proc/{}/stat", process.id()));
        let state = state.expect("it is there");
        assert!(state.contains(") T "), "it has stopped: {state}");
        process.thaw().expect("it is there");
        let status = process.terminate(LIMIT).expect("it ends");
        assert!(
            status.success() && process.log().contains("ended"),
            "{status}"
        );
    }
}
