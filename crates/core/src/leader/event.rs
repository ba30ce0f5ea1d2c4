//! What a leader is told and what it wants: the table of contents of a JobManager.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use tidemill_protocol::control::{FromLeader, Registration, ToLeader};
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobRecord};
use tidemill_protocol::{
    AttemptId, CheckpointId, ExecutionGraph, Incarnation, JobId, TaskManagerId,
};

use crate::job::{self, SavepointRequestId};
use crate::membership::{ConnectionId, HowLost};

/// What a leader is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A user submits a job; its module and graph are stored already, its record is not.
    JobSubmitted {
        /// The record to store.
        record: Box<JobRecord>,
        /// Its graph, checked and resolved.
        graph: ExecutionGraph,
        /// The checkpoint that it begins from, if it begins from one: its objects are stored already. Published before
        /// anything runs.
        pointers: CheckpointPointers,
    },
    /// A user wishes for a savepoint.
    SavepointRequested {
        /// Of which job.
        job: JobId,
        /// What the wish is called.
        id: SavepointRequestId,
        /// Where to.
        directory: String,
        /// The job is to end when it is written.
        stop: bool,
    },
    /// A user deletes the checkpoint that an ended job left.
    KeptDropped {
        /// Whose.
        job: JobId,
    },
    /// A user asks for a job's end.
    CancelRequested {
        /// Which.
        job: JobId,
    },
    /// A TaskManager says who it is, on a new connection.
    Registering {
        /// The connection.
        connection: ConnectionId,
        /// What it says.
        registration: Registration,
    },
    /// Who has announced himself in the registry: said at the take-over and whenever it changes. It introduces
    /// TaskManagers and decides nothing about those that are registered; but when all of them are, nothing more will be
    /// reported of jobs of which nothing was.
    Announced {
        /// Every TaskManager, with its life.
        task_managers: BTreeMap<TaskManagerId, Incarnation>,
    },
    /// A registered TaskManager says something.
    Message {
        /// On which connection.
        connection: ConnectionId,
        /// What.
        message: ToLeader,
    },
    /// A connection is gone.
    ConnectionLost {
        /// Which.
        connection: ConnectionId,
        /// How that was seen.
        how: HowLost,
        /// For people.
        reason: String,
    },
    /// What came of an action for a job.
    Performed {
        /// Which job.
        job: JobId,
        /// What came of it.
        result: job::Event,
    },
}

/// What a leader wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell a TaskManager that it is registered. Comes before anything else that is sent to it.
    AcceptTaskManager {
        /// On this connection.
        connection: ConnectionId,
    },
    /// Tell a TaskManager that it is not registered, and close the connection.
    RefuseTaskManager {
        /// On this connection.
        connection: ConnectionId,
        /// Why, and what to do.
        reason: String,
    },
    /// Close a connection that is of no further use.
    CloseTaskManager {
        /// Which.
        connection: ConnectionId,
        /// Why.
        reason: String,
    },
    /// Say this to a TaskManager, after everything said before.
    Send {
        /// On this connection.
        connection: ConnectionId,
        /// What.
        message: FromLeader,
    },
    /// Store a job's record, under the fence. Answer `RecordStored` or `RecordFailed`.
    StoreJobRecord(JobRecord),
    /// A submitted job survives from now on: tell its submitter.
    SubmissionStored {
        /// Which.
        job: JobId,
    },
    /// A submitted job could not be stored: tell its submitter.
    SubmissionRejected {
        /// Which.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// The wish to cancel a job is stored: tell whoever asked.
    CancelStored {
        /// Which.
        job: JobId,
    },
    /// Store a checkpoint's metadata object. Answer `MetadataWritten` or `MetadataFailed`.
    WriteMetadata(CheckpointMetadata),
    /// Write a job's pointers, under the fence. Answer `Published`, `PublishRefused` or `PublishUnknown`.
    PublishPointers {
        /// Which job.
        job: JobId,
        /// The new one among them.
        checkpoint: CheckpointId,
        /// All that are to be there.
        pointers: CheckpointPointers,
    },
    /// Read a job's pointers. Answer `PointersRead` or `PointersUnreadable`.
    ReadPointers {
        /// Which job.
        job: JobId,
        /// The one in doubt.
        checkpoint: CheckpointId,
    },
    /// Read a checkpoint's metadata object. Answer `MetadataLoaded`, `MetadataDamaged` or `MetadataUnavailable`.
    LoadMetadata {
        /// Which job.
        job: JobId,
        /// Which checkpoint.
        pointer: CheckpointPointer,
    },
    /// Delete what only the obsolete checkpoints name. No answer: what is left over is deleted with the next.
    DeleteCheckpoints {
        /// Which job.
        job: JobId,
        /// No pointer names them any more.
        obsolete: Vec<CheckpointPointer>,
        /// Whatever these name stays.
        retained: Vec<CheckpointPointer>,
    },
    /// Delete what a running job's checkpoints have written for nothing. No answer: what is left over is deleted with the
    /// next.
    DeleteOrphans {
        /// Which job.
        job: JobId,
        /// Whatever these name stays.
        retained: Vec<CheckpointPointer>,
        /// It and all lesser ones are published or never will be. Of those later than all retained ones, what belongs to
        /// no task goes, and what these attempts wrote.
        over: CheckpointId,
        /// Attempts that never go on.
        ended: BTreeSet<AttemptId>,
    },
    /// Copy a completed checkpoint as a savepoint. Answer `SavepointCopied`, and `SavepointProgress` on the way.
    WriteSavepoint {
        /// For which wish.
        id: SavepointRequestId,
        /// Where to.
        directory: String,
        /// The job.
        record: JobRecord,
        /// The checkpoint: nothing of it is deleted before the answer.
        metadata: CheckpointMetadata,
    },
    /// A job has ended, which is stored: delete its pointers and everything that its tasks stored, but for one
    /// checkpoint perhaps. No answer.
    DeleteJobObjects {
        /// Which.
        job: JobId,
        /// What stays.
        kept: Option<CheckpointPointer>,
    },
    /// Delete an ended job's record, its graph and whatever else is left of it. No answer.
    ForgetJob {
        /// Which.
        job: JobId,
    },
    /// For logs.
    Note(Note),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A TaskManager registered.
    TaskManagerJoined {
        /// Its name.
        id: TaskManagerId,
        /// Its life.
        incarnation: Incarnation,
        /// Its slots.
        slots: u32,
        /// Its data address.
        address: String,
    },
    /// A TaskManager's control stream broke; it has a moment to come back.
    TaskManagerSuspected {
        /// Its name.
        id: TaskManagerId,
        /// What happened.
        reason: String,
    },
    /// A TaskManager is gone.
    TaskManagerLost {
        /// Its name.
        id: TaskManagerId,
        /// How that was seen.
        reason: String,
    },
    /// A TaskManager wants to go.
    TaskManagerDraining {
        /// Its name.
        id: TaskManagerId,
    },
    /// Nothing on a TaskManager is needed any more: it may go.
    TaskManagerDrained {
        /// Its name.
        id: TaskManagerId,
    },
    /// A TaskManager that had been drained is gone.
    TaskManagerLeft {
        /// Its name.
        id: TaskManagerId,
    },
    /// Something happened to a job.
    Job {
        /// Which.
        job: JobId,
        /// Its name.
        name: String,
        /// What.
        note: job::Note,
    },
}

impl Note {
    /// Whether somebody should look at it.
    #[must_use]
    pub fn is_alarming(&self) -> bool {
        match self {
            Self::TaskManagerJoined { .. }
            | Self::TaskManagerDraining { .. }
            | Self::TaskManagerDrained { .. }
            | Self::TaskManagerLeft { .. } => false,
            Self::TaskManagerSuspected { .. } | Self::TaskManagerLost { .. } => true,
            Self::Job { note, .. } => note.is_alarming(),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TaskManagerJoined {
                id, slots, address, ..
            } => {
                write!(f, "TaskManager {id} at {address} joined with {slots} slots")
            }
            Self::TaskManagerSuspected { id, reason } => {
                write!(f, "the control stream of TaskManager {id} broke: {reason}")
            }
            Self::TaskManagerLost { id, reason } => {
                write!(f, "TaskManager {id} is lost: {reason}")
            }
            Self::TaskManagerDraining { id } => {
                write!(f, "TaskManager {id} wants to leave: its tasks are moved")
            }
            Self::TaskManagerDrained { id } => {
                write!(
                    f,
                    "nothing on TaskManager {id} is needed any more: it may leave"
                )
            }
            Self::TaskManagerLeft { id } => write!(f, "TaskManager {id} has left"),
            Self::Job { name, note, .. } => write!(f, "job {name}: {note}"),
        }
    }
}
