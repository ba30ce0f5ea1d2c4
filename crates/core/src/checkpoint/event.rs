//! What the coordinator is told and what it wants.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::control::CheckpointAcknowledgement;
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef};
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers};
use tidemill_protocol::{AttemptId, CheckpointId, TaskId};

use super::CheckpointRecord;

/// What the coordinator is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// Every task of the job runs or has finished: checkpoints may begin.
    TasksReady {
        /// All of them, with the attempts that may acknowledge.
        participants: BTreeMap<TaskId, AttemptId>,
    },
    /// Every task has finished: the final checkpoint begins at once.
    AllFinished,
    /// A checkpoint is wanted now, whether there are periodic ones or not. One that is in flight will do.
    Requested,
    /// Some tasks do not run any more: what is not yet being published is given up.
    TasksLost {
        /// Why, for the history.
        reason: String,
    },
    /// A task's part is stored.
    Acknowledged(CheckpointAcknowledgement),
    /// A task cannot take part.
    Declined {
        /// Who speaks.
        attempt: AttemptId,
        /// Which task.
        task: TaskId,
        /// Which checkpoint.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
    /// The metadata object is stored.
    MetadataWritten {
        /// Whose.
        checkpoint: CheckpointId,
        /// The object.
        object: ObjectRef,
    },
    /// The metadata object could not be stored.
    MetadataFailed {
        /// Whose.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
    /// The pointer's write succeeded.
    Published {
        /// Which.
        checkpoint: CheckpointId,
    },
    /// The pointer's write was refused and has certainly changed nothing.
    PublishRefused {
        /// Which.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
    /// Whether the pointer was written is not known.
    PublishUnknown {
        /// Which.
        checkpoint: CheckpointId,
    },
    /// The pointers were read back.
    PointersRead {
        /// After the write of this one.
        checkpoint: CheckpointId,
        /// What the registry holds.
        pointers: CheckpointPointers,
    },
    /// The pointers could not be read back.
    PointersUnreadable {
        /// After the write of this one.
        checkpoint: CheckpointId,
    },
    /// A task has committed everything up to a checkpoint.
    Committed {
        /// Who speaks.
        attempt: AttemptId,
        /// Which task.
        task: TaskId,
        /// Up to which.
        checkpoint: CheckpointId,
    },
}

/// What the coordinator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Announce it to every task.
    Trigger {
        /// Which.
        checkpoint: CheckpointId,
        /// The job is to stop at it.
        then_pause: bool,
    },
    /// Tell every task that it will never be published, or that the job does not stop at it.
    Abort(CheckpointId),
    /// Store the metadata object.
    WriteMetadata(CheckpointMetadata),
    /// Write the pointers, under the leader's fence.
    Publish {
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
    /// Tell every task that it is published.
    Complete(CheckpointId),
    /// Delete what only these name.
    Delete {
        /// No pointer names them any more.
        obsolete: Vec<CheckpointPointer>,
        /// Whatever these name stays.
        retained: Vec<CheckpointPointer>,
    },
    /// For logs: it is published.
    Completed(CheckpointRecord),
    /// For logs: it was given up.
    Failed(CheckpointRecord),
    /// More checkpoints failed in a row than is tolerable.
    FailJob {
        /// The last failure.
        reason: String,
    },
    /// The final checkpoint is published and every task has confirmed its commit.
    Finished,
}
