//! What JobManagers and TaskManagers say to each other on a control stream. A TaskManager opens the stream and
//! registers; everything the leader says carries its epoch, and a TaskManager refuses an older one than it has seen.
//! Nothing here is ever blocked on: each message stands alone.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::codec::Versioned;
use crate::manifest::ObjectRef;
use crate::record::JobManagerRecord;
use crate::{
    AttemptId, CheckpointId, Epoch, ExecutionGraph, Incarnation, JobId, ModuleHash, TaskId,
    TaskManagerId,
};

/// The longest control message, in bytes, that either side accepts.
pub const CONTROL_MESSAGE_MAX_BYTES: usize = 16 << 20;

/// From the leader to a TaskManager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromLeader {
    /// The speaker's epoch.
    pub epoch: Epoch,
    /// What it says.
    pub command: Command,
}

impl Versioned for FromLeader {
    const KIND: [u8; 2] = *b"FL";
    const VERSION: u16 = 3;
    const NAME: &'static str = "message from the leader";
}

/// What a leader says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The registration is accepted.
    Registered {
        /// To be sent as the first bytes on the idle TCP connection, which binds it to this registration.
        liveness_token: [u8; 16],
        /// The port of that connection, on the leader's host.
        liveness_port: u16,
        /// How often the leader wants a [`Report`], in milliseconds.
        report_interval_ms: u64,
    },
    /// The registration is refused; the reason says what to do.
    Refused {
        /// For the TaskManager's log.
        reason: String,
    },
    /// Run these tasks. Older attempts of the same tasks are cancelled first.
    Deploy(Deployment),
    /// Stop this job's tasks of this attempt and of every older one, without a final word to the outside.
    Cancel {
        /// Whose tasks.
        job: JobId,
        /// The newest attempt to stop.
        attempt: AttemptId,
        /// Which of them; empty for all.
        tasks: Vec<TaskId>,
    },
    /// Checkpoint `checkpoint` has begun; tasks without inputs inject its barrier.
    TriggerCheckpoint {
        /// Whose.
        job: JobId,
        /// Each region's current attempt is addressed on its own.
        attempt: AttemptId,
        /// Which.
        checkpoint: CheckpointId,
        /// The job is to stop at it: whoever has been captured for it processes nothing more, until it is aborted or a
        /// later one begins.
        then_pause: bool,
    },
    /// The checkpoint is published: commit everything prepared at barriers up to it, and answer `Committed`.
    CompleteCheckpoint {
        /// Whose.
        job: JobId,
        /// Addressed attempt.
        attempt: AttemptId,
        /// Which.
        checkpoint: CheckpointId,
    },
    /// The checkpoint will never be published. Undoes nothing; frees an alignment that waits for it.
    AbortCheckpoint {
        /// Whose.
        job: JobId,
        /// Addressed attempt.
        attempt: AttemptId,
        /// Which.
        checkpoint: CheckpointId,
    },
    /// Keep the images of exactly these tasks of a job warm, and nothing else of it.
    KeepWarm(WarmImages),
    /// Have this module fetched and compiled: tasks of a job that runs it may be moved here.
    PrepareModule(ModuleHash),
    /// The answer to [`ToLeader::Draining`]: nothing runs there that is still needed, so the TaskManager may leave.
    Drained,
    /// Send log lines of a task.
    FetchLogs {
        /// Comes back in the answer.
        request: u64,
        /// Whose.
        job: JobId,
        /// One task, or all of the job's tasks here.
        task: Option<TaskId>,
        /// Only lines with a greater number (see [`LogLine::number`]).
        after: u64,
        /// At most this many, the newest.
        limit: u32,
    },
}

/// Tasks to run on one TaskManager, with everything needed to run them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Whose tasks.
    pub job: JobId,
    /// The job's name, for logs.
    pub job_name: String,
    /// This execution.
    pub attempt: AttemptId,
    /// The prepared module to run; fetched from the leader by hash when it is not there.
    pub module: ModuleHash,
    /// The submission's parameters.
    pub parameters: BTreeMap<String, String>,
    /// The whole graph; a task finds its channels in it.
    pub graph: ExecutionGraph,
    /// The tasks to run here.
    pub tasks: Vec<TaskDeployment>,
    /// Where every task of the region runs, these included.
    pub locations: Vec<TaskLocation>,
    /// The checkpoint to which this attempt goes back; `None` from the beginning. Its pending commits are replayed.
    pub restore: Option<CheckpointId>,
    /// How long after its announcement a checkpoint waits for barriers before the frames in front of them become part
    /// of it, in milliseconds; 0 waits for ever.
    pub aligned_checkpoint_timeout_ms: u64,
}

/// One task to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDeployment {
    /// Which one.
    pub task: TaskId,
    /// Its manifest in the checkpoint; `None` to begin anew.
    pub image: Option<ObjectRef>,
    /// Where other TaskManagers are reached that keep this image warm, each `host:port`.
    pub warm_at: Vec<String>,
}

/// Images that a TaskManager is to keep at hand for tasks that run elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmImages {
    /// Whose tasks.
    pub job: JobId,
    /// The module that they run, to be compiled ahead.
    pub module: ModuleHash,
    /// The published checkpoint that the images are of.
    pub checkpoint: CheckpointId,
    /// Each task with its manifest; none: forget the job.
    pub images: Vec<(TaskId, ObjectRef)>,
}

/// Where a task runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLocation {
    /// Which task.
    pub task: TaskId,
    /// On which TaskManager.
    pub task_manager: TaskManagerId,
    /// Its data address, `host:port`.
    pub address: String,
}

/// From a TaskManager to the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToLeader {
    /// The first message on a control stream.
    Register(Registration),
    /// A task changed state.
    TaskState {
        /// Whose.
        job: JobId,
        /// The attempt that speaks.
        attempt: AttemptId,
        /// Which.
        task: TaskId,
        /// Its new state.
        state: TaskState,
    },
    /// A task's part of a checkpoint is stored.
    CheckpointAcknowledged(CheckpointAcknowledgement),
    /// A task cannot take part in a checkpoint (its capture or upload failed). The job goes on.
    CheckpointDeclined {
        /// Whose.
        job: JobId,
        /// The attempt that speaks.
        attempt: AttemptId,
        /// Which task.
        task: TaskId,
        /// Which checkpoint.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
    /// Everything the task prepared up to the checkpoint is committed.
    Committed {
        /// Whose.
        job: JobId,
        /// The attempt that speaks.
        attempt: AttemptId,
        /// Which task.
        task: TaskId,
        /// Up to which checkpoint.
        checkpoint: CheckpointId,
    },
    /// A data connection to another TaskManager broke under these tasks.
    ChannelBroken {
        /// Whose.
        job: JobId,
        /// The attempt that speaks.
        attempt: AttemptId,
        /// The other end.
        peer: TaskManagerId,
        /// For people.
        reason: String,
    },
    /// The images of [`Command::KeepWarm`] are there, or not: those that could not be read are missing.
    Warm(Vec<WarmTask>),
    /// The TaskManager wants to leave: its tasks are to go on elsewhere, from a checkpoint taken for that. Answered by
    /// [`Command::Drained`] when they do.
    Draining,
    /// What the tasks have done so far; sent at the interval the leader named.
    Report(Report),
    /// The answer to [`Command::FetchLogs`].
    Logs {
        /// From the request.
        request: u64,
        /// In order of their numbers.
        lines: Vec<LogLine>,
    },
    /// The first message of a JobManager that stands by and wants to see at once when the leader's process ends. Answered
    /// by [`Command::Registered`], for its liveness connection alone: nothing else is said.
    Follow(JobManagerRecord),
}

impl Versioned for ToLeader {
    const KIND: [u8; 2] = *b"TL";
    const VERSION: u16 = 3;
    const NAME: &'static str = "message to the leader";
}

/// Who a TaskManager is and what it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its name.
    pub id: TaskManagerId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Where other TaskManagers reach it, `host:port`.
    pub data_address: String,
    /// How many slots it has.
    pub slots: u32,
    /// The hash of the configuration that must be equal everywhere.
    pub cluster_config_hash: u64,
    /// The release, for people.
    pub version: String,
    /// It wants to leave, as if it had said [`ToLeader::Draining`]: nothing new is placed there.
    pub draining: bool,
    /// What it runs already: a JobManager that comes back adopts it.
    pub running: Vec<RunningTask>,
    /// The tasks whose images it keeps warm for others.
    pub warm: Vec<WarmTask>,
}

/// A task whose image a TaskManager keeps warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmTask {
    /// Whose.
    pub job: JobId,
    /// Which task.
    pub task: TaskId,
    /// The newest checkpoint whose image is there whole.
    pub checkpoint: CheckpointId,
}

/// A task that survived a JobManager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// Whose.
    pub job: JobId,
    /// Which execution.
    pub attempt: AttemptId,
    /// Which task.
    pub task: TaskId,
    /// How it is.
    pub state: TaskState,
}

/// How a task is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    /// The module is being fetched or compiled, or the image restored.
    Deploying,
    /// It processes records.
    Running {
        /// How long it took to get here.
        timings: DeployTimings,
    },
    /// Its inputs have ended and it has said its last word; it waits for a checkpoint that began after that.
    Finished,
    /// It failed and is gone.
    Failed(TaskFailure),
    /// The image it was to restore is missing or damaged, so it never ran and is gone. The leader goes back to the
    /// checkpoint before.
    Unrestorable {
        /// Which object, and what is wrong with it.
        reason: String,
    },
    /// It was cancelled and is gone.
    Cancelled,
}

/// How long the steps of a deployment took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployTimings {
    /// Getting and compiling the module.
    pub module_us: u64,
    /// Reading what is needed of the image before the task runs: from the store, or from another TaskManager.
    pub fetch_us: u64,
    /// Making the instance and laying the image over it.
    pub restore_us: u64,
    /// Where the image came from.
    pub source: ImageSource,
    /// Bytes of memory that had to be written before the task could run; the rest is there, or follows when touched.
    pub restored_bytes: u64,
}

/// Where the image of a restored task came from, the dearest last.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum ImageSource {
    /// Nowhere: the task began anew.
    #[default]
    None,
    /// Its own memory, in which what had changed was put back.
    Memory,
    /// An image file on the TaskManager.
    Local,
    /// Another TaskManager.
    Peer,
    /// The object store.
    Store,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailure {
    /// Whose fault it is, as far as the task can tell; the restart strategy reads it.
    pub blame: Blame,
    /// What happened, with the names of task, function and limit.
    pub message: String,
    /// The guest's symbolised backtrace, innermost first; empty when the guest was not running.
    pub backtrace: Vec<String>,
    /// The task's last log lines.
    pub last_log_lines: Vec<String>,
    /// The start of the batch that was being processed, printable.
    pub batch_preview: String,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blame {
    /// The job's code or options: restarting may not help, but the strategy decides.
    Job,
    /// The cluster: a machine, a connection or the store.
    Cluster,
    /// Tidemill itself.
    Bug,
}

/// A task's part of a checkpoint, stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointAcknowledgement {
    /// Whose.
    pub job: JobId,
    /// The attempt that captured.
    pub attempt: AttemptId,
    /// Which task.
    pub task: TaskId,
    /// Which checkpoint.
    pub checkpoint: CheckpointId,
    /// Its manifest.
    pub manifest: ObjectRef,
    /// The task had finished before the capture: the checkpoint began after its last word.
    pub finished: bool,
    /// The capture's measurements.
    pub stats: CaptureStats,
}

/// What one task's part of a checkpoint cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStats {
    /// From the first barrier to the last.
    pub alignment_us: u64,
    /// While the task did nothing else.
    pub pause_us: u64,
    /// Compression and upload, in the background.
    pub upload_us: u64,
    /// The image's size.
    pub image_bytes: u64,
    /// The pages that the capture held, uncompressed.
    pub dirty_bytes: u64,
    /// Of those pages, what was copied before the pause; a page that was copied twice counts twice.
    pub ahead_bytes: u64,
    /// What was written to the store.
    pub written_bytes: u64,
    /// Frames that became part of the checkpoint because their barriers came late.
    pub channel_bytes: u64,
    /// The task did not wait for every barrier.
    pub unaligned: bool,
}

/// What tasks have done so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// One entry for each task.
    pub tasks: Vec<TaskProgress>,
}

/// What one task has done so far, counted from the beginning of its attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskProgress {
    /// Whose.
    pub job: JobId,
    /// Which execution.
    pub attempt: AttemptId,
    /// Which task.
    pub task: TaskId,
    /// Records into the guest, as far as the guest counts them.
    pub records_in: u64,
    /// Records out of the guest.
    pub records_out: u64,
    /// Bytes received in frames.
    pub bytes_in: u64,
    /// Bytes sent in frames.
    pub bytes_out: u64,
    /// Time inside the guest, in microseconds.
    pub busy_us: u64,
    /// Time waiting for room in an output channel, in microseconds.
    pub backpressured_us: u64,
    /// The linear memory's size.
    pub memory_bytes: u64,
}

/// One line of a task's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Grows by one with each line of this TaskManager.
    pub number: u64,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Which task.
    pub task: TaskId,
    /// Which execution.
    pub attempt: AttemptId,
    /// `out`, `err` or `panic`, or `host` for the TaskManager's own words about the task.
    pub source: String,
    /// The text, without the line's end.
    pub text: String,
}
