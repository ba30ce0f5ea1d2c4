//! What the registry keeps: jobs, the pointers to their completed checkpoints, and who is there. Small: anything larger is an object
//! in the store. It never says what runs where; TaskManagers report that.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::codec::Versioned;
use crate::manifest::ObjectRef;
use crate::{CheckpointId, Incarnation, JobId, ModuleHash, TaskManagerId};

/// One submitted job, from its acknowledgement until it is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Which job.
    pub id: JobId,
    /// For people; not unique.
    pub name: String,
    /// The prepared module.
    pub module: ModuleHash,
    /// The object that holds the postcard-encoded [`tidemill_abi::JobGraph`].
    pub graph: ObjectRef,
    /// [`tidemill_abi::graph_hash`] of that graph.
    pub graph_hash: u64,
    /// The submission's parameters.
    pub parameters: BTreeMap<String, String>,
    /// How it is to run.
    pub options: JobOptions,
    /// When it was submitted, in milliseconds since the Unix epoch.
    pub submitted_at_ms: u64,
    /// Whether it runs or how it ended.
    pub state: JobState,
    /// Restarts so far, by its restart strategy's count.
    pub restarts: u32,
    /// The savepoint or retained checkpoint that it began from, as the user named it.
    pub began_from: Option<String>,
    /// When it ended, in milliseconds since the Unix epoch.
    pub ended_at_ms: Option<u64>,
}

impl Versioned for JobRecord {
    const KIND: [u8; 2] = *b"JR";
    const VERSION: u16 = 2;
    const NAME: &'static str = "job record";
}

/// How a job is to run; resolved at submission, so that a later default changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOptions {
    /// Tasks of each stage that does not fix its own.
    pub parallelism: u32,
    /// Number of key groups, and the largest parallelism.
    pub max_parallelism: u32,
    /// Time between the starts of two checkpoints, in milliseconds; 0 turns periodic checkpoints off.
    pub checkpoint_interval_ms: u64,
    /// After this time a checkpoint is given up, in milliseconds.
    pub checkpoint_timeout_ms: u64,
    /// Consecutive failed checkpoints that do not fail the job.
    pub tolerable_failed_checkpoints: u32,
    /// Completed checkpoints that are kept; at least 1.
    pub retained_checkpoints: u32,
    /// How long a checkpoint waits for barriers before the frames in front of them become part of it, in milliseconds;
    /// 0 waits for ever.
    pub aligned_checkpoint_timeout_ms: u64,
    /// The last checkpoint stays when a user cancels the job.
    pub retain_on_cancel: bool,
    /// A second TaskManager keeps each task's last image at hand.
    pub standby: bool,
    /// What a failure of a task leads to.
    pub restart: RestartStrategy,
}

/// What a failure of a task leads to: Flink's names and semantics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartStrategy {
    /// The job fails.
    None,
    /// Up to `attempts` restarts, each after the delay.
    FixedDelay {
        /// Restarts in the job's life.
        attempts: u32,
        /// Before each.
        delay_ms: u64,
    },
    /// Restarts as long as there are at most `failures_max` failures in any interval.
    FailureRate {
        /// Failures tolerated in an interval.
        failures_max: u32,
        /// The interval.
        interval_ms: u64,
        /// Before each restart.
        delay_ms: u64,
    },
    /// Restarts for ever, with a delay that grows and is reset after quiet.
    ExponentialDelay {
        /// The first delay.
        initial_ms: u64,
        /// The longest.
        max_ms: u64,
        /// By how much it grows, in hundredths (150 = ×1.5).
        multiplier_percent: u32,
        /// Running this long without a failure resets the delay.
        reset_after_ms: u64,
    },
}

/// Whether a job runs or how it ended. The registry's view; finer states are the leader's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// It is to run.
    Active,
    /// A user asked for its end; it has not ended yet.
    Cancelling,
    /// Every source ended and everything is committed.
    Finished,
    /// Ended by a user.
    Cancelled,
    /// Ended by failures that its restart strategy does not cover.
    Failed {
        /// The last failure.
        reason: String,
    },
}

impl JobState {
    /// Whether the job never runs again.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled | Self::Failed { .. })
    }
}

/// The completed checkpoints of a job, oldest first: the one thing that publishes a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPointers {
    /// At most the retained number, plus those being cleaned up.
    pub completed: Vec<CheckpointPointer>,
}

impl Versioned for CheckpointPointers {
    const KIND: [u8; 2] = *b"CP";
    const VERSION: u16 = 1;
    const NAME: &'static str = "checkpoint pointer record";
}

/// One completed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPointer {
    /// Which one.
    pub checkpoint: CheckpointId,
    /// Its metadata object.
    pub metadata: ObjectRef,
}

/// A JobManager that stands for election or leads: what its ephemeral node holds. The epoch is not in it; it is the
/// node's own creation number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobManagerRecord {
    /// Its configured or generated name.
    pub id: String,
    /// One life of the process.
    pub incarnation: Incarnation,
    /// Where TaskManagers reach it (QUIC), `host:port`.
    pub control_address: String,
    /// Where users reach it, such as `http://10.0.0.1:7421`.
    pub rest_url: String,
}

impl Versioned for JobManagerRecord {
    const KIND: [u8; 2] = *b"JM";
    const VERSION: u16 = 1;
    const NAME: &'static str = "JobManager record";
}

/// A TaskManager that is there: what its ephemeral node holds. It introduces the TaskManager and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskManagerRecord {
    /// Its configured or generated name.
    pub id: TaskManagerId,
    /// One life of the process.
    pub incarnation: Incarnation,
    /// Where other TaskManagers reach it, `host:port`.
    pub data_address: String,
    /// How many slots it offers.
    pub slots: u32,
}

impl Versioned for TaskManagerRecord {
    const KIND: [u8; 2] = *b"TM";
    const VERSION: u16 = 1;
    const NAME: &'static str = "TaskManager record";
}
