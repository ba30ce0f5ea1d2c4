//! Who is there: JobManagers, TaskManagers, ZooKeeper and the object store, and the processes among them.

use std::fmt;

use crate::event::Input;
use crate::time::Clock;

/// JobManagers of every world.
pub(crate) const JOB_MANAGERS: usize = 3;
/// TaskManagers of every world.
pub(crate) const TASK_MANAGERS: usize = 10;
/// Processes of ours.
pub(crate) const PROCESSES: usize = JOB_MANAGERS + TASK_MANAGERS;
/// All ends of links.
pub(crate) const NODES: usize = PROCESSES + 2;

/// One machine: JobManagers first, then TaskManagers, then the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node(pub(crate) usize);

/// The ensemble.
pub(crate) const ZOOKEEPER: Node = Node(PROCESSES);
/// The object store.
pub(crate) const STORE: Node = Node(PROCESSES + 1);

impl Node {
    /// JobManager `number`, counted from 1.
    pub(crate) const fn job_manager(number: usize) -> Self {
        Self(number - 1)
    }

    /// TaskManager `number`, counted from 1.
    pub(crate) const fn task_manager(number: usize) -> Self {
        Self(JOB_MANAGERS + number - 1)
    }

    /// The TaskManager of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let number = name.strip_prefix("TM-")?.parse().ok()?;
        (1..=TASK_MANAGERS)
            .contains(&number)
            .then(|| Self::task_manager(number))
    }

    /// Every JobManager.
    pub(crate) fn job_managers() -> impl Iterator<Item = Self> {
        (0..JOB_MANAGERS).map(Self)
    }

    /// Every TaskManager.
    pub(crate) fn task_managers() -> impl Iterator<Item = Self> {
        (JOB_MANAGERS..PROCESSES).map(Self)
    }

    pub(crate) const fn is_job_manager(self) -> bool {
        self.0 < JOB_MANAGERS
    }

    /// Its index among TaskManagers; meaningless for others.
    pub(crate) const fn worker(self) -> usize {
        self.0 - JOB_MANAGERS
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ZOOKEEPER => f.write_str("ZooKeeper"),
            STORE => f.write_str("store"),
            Self(index) if index < JOB_MANAGERS => write!(f, "JM-{}", index + 1),
            Self(index) => write!(f, "TM-{}", index - JOB_MANAGERS + 1),
        }
    }
}

/// How a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessState {
    Running,
    /// Stopped by a signal: nothing is lost, nothing moves.
    Frozen,
    Dead,
}

/// One process of ours.
#[derive(Debug)]
pub(crate) struct Process {
    /// Which life this is, counted from 1.
    pub(crate) life: u64,
    pub(crate) state: ProcessState,
    /// What happened to it while it was frozen.
    pub(crate) deferred: Vec<Input>,
    pub(crate) clock: Clock,
    /// When it is to be woken for its machines' timers.
    pub(crate) wake_at_us: Option<u64>,
    /// It was asked to end.
    pub(crate) stopping: bool,
}

impl Process {
    pub(crate) fn runs(&self) -> bool {
        self.state == ProcessState::Running
    }
}
