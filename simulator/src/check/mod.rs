//! What must always hold, checked by what is observed: writes that ZooKeeper carried out, commits that sinks made, messages
//! that were obeyed. Checkers know none of the machines, and no machine knows them.

mod checkpoints;
mod jobs;
mod leadership;
mod output;
mod savepoints;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tidemill_protocol::record::JobState;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, TaskId};

use crate::node::Node;
use crate::task::Written;
use crate::workload::JobSpec;

/// What is known of one job.
#[derive(Debug, Default)]
struct Facts {
    spec: Option<Rc<JobSpec>>,
    /// As the registry held it last.
    state: Option<JobState>,
    /// A user was told that it survives.
    acknowledged: bool,
    cancel_asked: bool,
    /// A user wishes that it stops with a savepoint.
    stop_asked: bool,
    /// Checkpoints of which there is or was a savepoint.
    saved: BTreeSet<CheckpointId>,
    /// It begins from what another job left.
    began: bool,
    /// A user was told that it will be cancelled.
    cancel_acknowledged: bool,
    /// An object of it was damaged: it may go back further, and so repeat output, or fail.
    excused: bool,
    /// The pointers that the registry holds.
    pointers: Vec<CheckpointId>,
    /// Everything that was ever published.
    published: BTreeSet<CheckpointId>,
    /// The objects that the registry's pointers lead to.
    references: BTreeSet<String>,
    /// The attempt of each task in the last published checkpoint.
    captured_by: BTreeMap<TaskId, AttemptId>,
    /// The attempt of each task that was deployed last.
    deployed: BTreeMap<TaskId, AttemptId>,
    /// Transactions that a published checkpoint holds, with the first one that did.
    covered: BTreeMap<u64, (CheckpointId, Rc<Vec<Written>>)>,
    /// Transactions that were committed.
    committed: BTreeSet<u64>,
    /// Records whose effect is in the output.
    seen: BTreeSet<u32>,
    /// Counts of keys that are in the output.
    counted: BTreeSet<(u32, u32)>,
}

/// Every checker.
#[derive(Debug, Default)]
pub(crate) struct Checkers {
    jobs: BTreeMap<JobId, Facts>,
    /// Who was elected under which epoch.
    elected: BTreeMap<Epoch, (Node, u64)>,
    /// Epochs whose session was ended by an administrator: no clock could tell the leader.
    forced: BTreeSet<Epoch>,
    /// The epoch of the last write.
    written_under: Epoch,
    /// The newest epoch that each life of a TaskManager obeyed.
    obeyed: BTreeMap<(Node, u64), Epoch>,
    /// The newest attempt of each task that each life of a TaskManager started.
    started: BTreeMap<(Node, u64, JobId, TaskId), AttemptId>,
    /// Transactions that somebody has made visible.
    visible: BTreeSet<u64>,
    published: u64,
}

/// What is checked: an error says what must never be.
type Judged = Result<(), String>;

impl Checkers {
    fn facts(&mut self, job: JobId) -> &mut Facts {
        self.jobs.entry(job).or_default()
    }

    /// Checkpoints that were published.
    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    /// Jobs that came to an end.
    pub(crate) fn ended(&self) -> u64 {
        let ended = |facts: &&Facts| facts.state.as_ref().is_some_and(JobState::is_terminal);
        self.jobs.values().filter(ended).count() as u64
    }
}
