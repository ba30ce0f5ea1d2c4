//! A process of a cluster that this program started: what it costs, and its end.
//!
//! None outlives this program: each is killed by its own id when its owner is dropped, and by the kernel should this
//! program be killed itself.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

/// How many lines of a log are shown when its process has ended.
const LOG_TAIL_LINES: usize = 12;

/// A running process with its log file.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with everything it prints going to `directory/name.log`.
    pub(crate) fn start(
        name: &str,
        command: &mut Command,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        stand_alone(command);
        let child = command.spawn().with_context(|| {
            format!("cannot start {name} ({})", command.get_program().display())
        })?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// As it was started under.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        // Fails only for a process that has ended already, and `wait` tells how.
        let _ = self.child.kill();
        Ok(self.child.wait()?)
    }

    /// Fails, with the end of its log, if the process has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        bail!(
            "{} ended by itself ({status}). The end of {}:\n{}",
            self.name,
            self.log.display(),
            tail.join("\n")
        )
    }

    /// The processor time it has used.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        let stat = self.read("stat")?;
        // The second field is the program's name in parentheses, which may hold anything.
        let fields: Vec<&str> = match stat.rsplit_once(')') {
            Some((_, rest)) => rest.split_whitespace().collect(),
            None => Vec::new(),
        };
        let ticks = |index: usize| {
            fields
                .get(index)
                .and_then(|field| field.parse::<u64>().ok())
        };
        match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => Ok(from_ticks(user + system)),
            _ => bail!("/proc/{}/stat is not as expected: {stat}", self.id()),
        }
    }

    /// A field of `/proc/PID/status` that is a size, such as `VmHWM` (the most it ever had in memory), in bytes.
    pub(crate) fn memory_bytes(&self, field: &str) -> anyhow::Result<u64> {
        let status = self.read("status")?;
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        match value {
            Some(kib) => Ok(kib << 10),
            None => bail!("/proc/{}/status has no {field}", self.id()),
        }
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.id());
        fs::read_to_string(&path).with_context(|| format!("cannot read {path} of {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing is left to do about a process that cannot be killed.
        let _ = self.kill();
    }
}

/// The processor time that the machine has spent on anything, other machines' share of its processors included.
pub(crate) fn machine_processor_time() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // The rest is counted in the first two already: time of guests of a virtual machine monitor.
    let [user, nice, system, _idle, _wait, irq, softirq, stolen, ..] = ticks[..] else {
        bail!("/proc/stat is not as expected: {line}");
    };
    Ok(from_ticks(user + nice + system + irq + softirq + stolen))
}

fn from_ticks(ticks: u64) -> Duration {
    // SAFETY: the call has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second).unwrap_or(100).max(1);
    Duration::from_micros(ticks * 1_000_000 / per_second)
}

/// Out of reach of the terminal's Ctrl-C, which is for this program, and not living longer than it.
fn stand_alone(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec only one system call is made, and no memory is allocated.
    unsafe {
        command.pre_exec(|| {
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}
