//! What a job is told and what it wants.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::control::{Command, RunningTask, TaskProgress, TaskState};
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobRecord};
use tidemill_protocol::{AttemptId, CheckpointId, TaskId, TaskManagerId};

use super::{Note, SavepointRequestId};
use crate::checkpoint;
use crate::time::Duration;

/// What a job is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A task changed state.
    TaskState {
        /// Who says so.
        from: TaskManagerId,
        /// The attempt that speaks.
        attempt: AttemptId,
        /// Which task.
        task: TaskId,
        /// Its state.
        state: TaskState,
    },
    /// Something happened to a checkpoint; acknowledgements and commits among it.
    Checkpoint(checkpoint::Event),
    /// What a task has done so far.
    Progress(TaskProgress),
    /// A TaskManager registered, and runs these tasks of the job.
    Registered {
        /// Who.
        from: TaskManagerId,
        /// This job's tasks on it.
        running: Vec<RunningTask>,
        /// This job's tasks whose images it keeps, with their checkpoints.
        warm: Vec<(TaskId, CheckpointId)>,
    },
    /// A TaskManager keeps these tasks' images.
    Warm {
        /// Who.
        from: TaskManagerId,
        /// Each with the checkpoint whose image is there.
        tasks: Vec<(TaskId, CheckpointId)>,
    },
    /// A TaskManager's control stream broke; it may come back with everything that it runs.
    Suspected(TaskManagerId),
    /// A TaskManager is gone with everything on it.
    TaskManagerLost {
        /// Which.
        id: TaskManagerId,
        /// Why, for people.
        reason: String,
        /// How long ago it was last heard of.
        silent_for: Option<Duration>,
    },
    /// The data connection between two TaskManagers broke under an attempt, and both live.
    ChannelBroken {
        /// Which attempt.
        attempt: AttemptId,
        /// What happened, for people.
        cause: String,
    },
    /// A user asks for the job's end.
    Cancel,
    /// A user wishes for a savepoint. A wish that is known already changes nothing.
    Savepoint {
        /// What the wish is called.
        id: SavepointRequestId,
        /// Where to.
        directory: String,
        /// The job is to end when it is written.
        stop: bool,
    },
    /// How far a savepoint's copy is.
    SavepointProgress {
        /// For which wish.
        id: SavepointRequestId,
        /// Bytes copied.
        done_bytes: u64,
        /// Bytes to copy.
        total_bytes: u64,
    },
    /// A savepoint's copy is over: its size in bytes, or why there is none.
    SavepointCopied {
        /// For which wish.
        id: SavepointRequestId,
        /// What came of it.
        result: Result<u64, String>,
    },
    /// The checkpoint that the ended job left is not to stay any longer.
    DropKept,
    /// The last record given out is stored.
    RecordStored,
    /// The last record given out may not be stored.
    RecordFailed {
        /// Why.
        reason: String,
    },
    /// The metadata of a completed checkpoint was read.
    MetadataLoaded(CheckpointMetadata),
    /// The metadata of a completed checkpoint is missing or damaged.
    MetadataDamaged {
        /// Which.
        checkpoint: CheckpointId,
        /// What is wrong with it.
        reason: String,
    },
    /// The store did not answer; the metadata may well be there.
    MetadataUnavailable {
        /// Which.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
}

/// What a job wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say this to a TaskManager.
    Send {
        /// To whom.
        to: TaskManagerId,
        /// What.
        command: Command,
    },
    /// Store the record. One at a time.
    StoreRecord(JobRecord),
    /// Store a checkpoint's metadata object.
    WriteMetadata(CheckpointMetadata),
    /// Write the pointers, under the leader's fence.
    PublishPointers {
        /// The new one among them.
        checkpoint: CheckpointId,
        /// All that are to be there.
        pointers: CheckpointPointers,
    },
    /// Read the pointers: a reply was lost.
    ReadPointers {
        /// The one in doubt.
        checkpoint: CheckpointId,
    },
    /// Read a completed checkpoint's metadata object.
    LoadMetadata(CheckpointPointer),
    /// Delete what only the obsolete checkpoints name.
    DeleteCheckpoints {
        /// No pointer names them any more.
        obsolete: Vec<CheckpointPointer>,
        /// Whatever these name stays.
        retained: Vec<CheckpointPointer>,
    },
    /// Delete what the checkpoints that are over have written for nothing.
    DeleteOrphans {
        /// Whatever these name stays.
        retained: Vec<CheckpointPointer>,
        /// It and all lesser ones are published or never will be. Of those later than all retained ones, what belongs to
        /// no task goes, and what these attempts wrote.
        over: CheckpointId,
        /// Attempts that never go on.
        ended: BTreeSet<AttemptId>,
    },
    /// Copy a completed checkpoint as a savepoint.
    WriteSavepoint {
        /// For which wish.
        id: SavepointRequestId,
        /// Where to.
        directory: String,
        /// The job.
        record: JobRecord,
        /// The checkpoint, which stays until the answer.
        metadata: CheckpointMetadata,
    },
    /// The job has ended and that is stored: delete its checkpoints and their pointers, but for one.
    DeleteJobObjects {
        /// What stays.
        kept: Option<CheckpointPointer>,
    },
    /// The wish to cancel is stored.
    CancelStored,
    /// For logs.
    Note(Note),
}
