//! Tasks: one parallel subtask each, one instance, one thread, the only one that enters the instance.
//!
//! A task knows its channels, its body and what it is told; it never knows the leader, the cluster or other tasks.

mod ahead;
mod body;
mod build;
mod capture;
mod counters;
mod inputs;
mod mailbox;
mod outputs;
mod recorded;
mod remains;
mod restore;
mod runner;
mod splits;
mod state;
#[cfg(test)]
mod tests;
mod watermarks;

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::Thread;

use tidemill_protocol::control::{
    Blame, CheckpointAcknowledgement, TaskFailure, TaskProgress, TaskState, WarmTask,
};
use tidemill_protocol::split::SplitRequest;
use tidemill_protocol::{AttemptId, CheckpointId, JobId, TaskId, TaskManagerId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub(crate) use build::{Prepared, TaskSetup, spawn};
pub(crate) use counters::micros;
pub(crate) use mailbox::TaskCommand;
pub(crate) use remains::Remains;
pub(crate) use restore::{Origin, Restorable};

use counters::Counters;

/// How much of a batch a failure shows.
const PREVIEW_MAX_BYTES: usize = 120;

/// One execution of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Execution {
    pub(crate) job: JobId,
    pub(crate) task: TaskId,
    pub(crate) attempt: AttemptId,
}

/// What tasks and their pumps tell the driver.
#[derive(Debug)]
pub(crate) enum TaskEvent {
    /// A task changed state.
    State {
        execution: Execution,
        state: TaskState,
    },
    /// A task's part of a checkpoint is stored.
    Acknowledged(CheckpointAcknowledgement),
    /// A task takes no part in a checkpoint.
    Declined {
        execution: Execution,
        checkpoint: CheckpointId,
        reason: String,
    },
    /// A task has committed everything up to a checkpoint.
    Committed {
        execution: Execution,
        checkpoint: CheckpointId,
    },
    /// A source task wants more splits.
    SplitWanted(SplitRequest),
    /// Images that are kept for tasks elsewhere.
    Warm(Vec<WarmTask>),
    /// A data connection broke under an attempt.
    ChannelBroken {
        job: JobId,
        attempt: AttemptId,
        peer: TaskManagerId,
        reason: String,
    },
}

/// A running task, from outside.
pub(crate) struct TaskHandle {
    commands: Sender<TaskCommand>,
    thread: Thread,
    stop: CancellationToken,
    counters: Arc<Counters>,
    remains: oneshot::Receiver<Remains>,
}

impl TaskHandle {
    /// Tells the task something. A task that has ended does not hear it.
    pub(crate) fn tell(&self, command: TaskCommand) {
        if self.commands.send(command).is_ok() {
            self.thread.unpark();
        }
    }

    /// Ends the task and its pumps; a call that runs is waited for by nobody. What the task leaves comes when its thread
    /// is done.
    pub(crate) fn stop(self) -> oneshot::Receiver<Remains> {
        self.stop.cancel();
        self.tell(TaskCommand::Stop);
        self.remains
    }

    /// What it has done so far.
    pub(crate) fn progress(&self, execution: Execution) -> TaskProgress {
        self.counters
            .progress(execution.job, execution.attempt, execution.task)
    }
}

/// A failure with a message and nothing else.
pub(crate) fn failure(blame: Blame, message: String) -> TaskFailure {
    TaskFailure {
        blame,
        message,
        backtrace: Vec::new(),
        last_log_lines: Vec::new(),
        batch_preview: String::new(),
    }
}

/// The start of a batch, printable.
fn preview(batch: &[u8]) -> String {
    batch[..batch.len().min(PREVIEW_MAX_BYTES)]
        .escape_ascii()
        .to_string()
}
