//! What users are told: plain data that serialises to the JSON of the REST API and back. Identifiers are text here, times
//! are milliseconds since the Unix epoch, durations say their unit. Nothing here is ever read to decide anything.

mod checkpoints;
mod recoveries;
mod savepoints;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub use checkpoints::{
    CheckpointDetail, CheckpointStatus, CheckpointTotals, CheckpointView, CheckpointsView,
    RetainedView, TaskCaptureView,
};
pub use recoveries::{ImageSourceName, RecoveryView, RestoredView, TimingsView};
pub use savepoints::{
    SavepointKind, SavepointRequestStatus, SavepointRequestView, SavepointStepName, SavepointView,
    UnusableSavepointView,
};

/// What a job is doing, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobStatus {
    /// A JobManager took over and waits for TaskManagers to report what they run.
    Adopting,
    /// There are not enough free slots; it goes on when a TaskManager joins.
    Waiting,
    /// Tasks are being started.
    Deploying,
    /// Every task processes records, or has finished.
    Running,
    /// Tasks failed; they start again from the last checkpoint after the restart strategy's delay.
    Restarting,
    /// Every task has finished; the final checkpoint and the sinks' commits are awaited.
    Finishing,
    /// A user asked for its end.
    Cancelling,
    /// Every source ended and everything is committed.
    Finished,
    /// Ended by a user.
    Cancelled,
    /// Ended by failures that its restart strategy does not cover.
    Failed,
}

impl JobStatus {
    /// Whether the job never runs again.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled | Self::Failed)
    }
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobSummary {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Given at submission, else the job's own; not unique.
    pub name: String,
    /// What it is doing.
    pub status: JobStatus,
    /// The status in words when there is more to say: what it waits for, why it failed.
    pub message: Option<String>,
    /// When it was submitted.
    pub submitted_at_ms: u64,
    /// When it reached its end, if this JobManager saw it.
    pub ended_at_ms: Option<u64>,
    /// Tasks of each stage that does not fix its own number.
    pub parallelism: u32,
    /// All of its tasks.
    pub tasks: u32,
    /// Those that process records.
    pub tasks_running: u32,
    /// Those that have finished.
    pub tasks_finished: u32,
    /// Restarts so far.
    pub restarts: u32,
    /// Completed checkpoints so far, as far as this JobManager saw them.
    pub checkpoints_completed: u64,
    /// The last completed checkpoint, `epoch.counter`.
    pub last_checkpoint: Option<String>,
    /// Records into the source stages' guests since each task's attempt began.
    pub records_in: u64,
    /// Records out of all stages that write to a sink, counted likewise.
    pub records_out: u64,
}

/// Everything about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub summary: JobSummary,
    /// The prepared module's hash.
    pub module: String,
    /// The submission's parameters.
    pub parameters: BTreeMap<String, String>,
    /// How it runs, as resolved at submission.
    pub options: OptionsView,
    /// In order of their index.
    pub stages: Vec<StageView>,
    /// In order of their index.
    pub edges: Vec<EdgeView>,
    /// In order of their id.
    pub tasks_detail: Vec<TaskView>,
    /// The savepoint or retained checkpoint that it began from, as its submitter named it.
    pub began_from: Option<String>,
    /// Where the checkpoint is that was kept when the job was cancelled or failed: a job can be started from there, as from a
    /// savepoint.
    pub kept_checkpoint: Option<String>,
    /// The last failure of a task, if there was one.
    pub last_failure: Option<FailureView>,
    /// The last recoveries, oldest first.
    pub recoveries: Vec<RecoveryView>,
    /// What happened to it, oldest first; bounded.
    pub events: Vec<EventView>,
}

/// How a job runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OptionsView {
    /// Number of key groups, and the largest parallelism.
    pub max_parallelism: u32,
    /// Time between the starts of two checkpoints; 0 means none.
    pub checkpoint_interval_ms: u64,
    /// After this time a checkpoint is given up.
    pub checkpoint_timeout_ms: u64,
    /// Consecutive failed checkpoints that do not fail the job.
    pub tolerable_failed_checkpoints: u32,
    /// Completed checkpoints that are kept.
    pub retained_checkpoints: u32,
    /// How long a checkpoint waits for barriers before the records in front of them become part of it; 0: for ever.
    pub aligned_checkpoint_timeout_ms: u64,
    /// Whether the last checkpoint stays when the job is cancelled or fails.
    pub retain_on_cancel: bool,
    /// Whether a second TaskManager keeps each task's last image at hand.
    pub standby: bool,
    /// The restart strategy in words.
    pub restart: String,
}

/// A stage of a job's graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageView {
    /// Its index; the first part of its tasks' ids.
    pub index: u32,
    /// Its operators' names.
    pub name: String,
    /// `wasm` or `enumerator`.
    pub kind: String,
    /// The number of its tasks.
    pub parallelism: u32,
}

/// An edge of a job's graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EdgeView {
    /// The sending stage.
    pub from: u32,
    /// The receiving stage.
    pub to: u32,
    /// `forward`, `all-to-all` or `splits`.
    pub routing: String,
}

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskStatus {
    /// It is not deployed.
    Idle,
    /// It is being started.
    Deploying,
    /// It processes records.
    Running,
    /// Its input has ended and it has said its last word.
    Finished,
    /// It failed and is gone.
    Failed,
    /// It was cancelled and is gone.
    Cancelled,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskView {
    /// `stage/subtask`.
    pub id: String,
    /// The stage's index.
    pub stage: u32,
    /// Which of the stage's tasks.
    pub subtask: u32,
    /// The stage's name.
    pub name: String,
    /// What it is doing.
    pub status: TaskStatus,
    /// Its execution, `epoch.counter`.
    pub attempt: Option<String>,
    /// Where it runs.
    pub task_manager: Option<String>,
    /// Who keeps its last image at hand, where a standby is wished.
    pub standby: Option<StandbyView>,
    /// How long the steps of its last deployment took.
    pub timings: TimingsView,
    /// What it has done since its attempt began.
    pub progress: ProgressView,
}

/// The TaskManager that keeps a task's last image at hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StandbyView {
    /// Which.
    pub task_manager: String,
    /// The newest checkpoint of which the image is there whole, `epoch.counter`; none as long as there is none.
    pub checkpoint: Option<String>,
}

/// What a task has done since its attempt began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressView {
    /// Records into the guest.
    pub records_in: u64,
    /// Records out of the guest.
    pub records_out: u64,
    /// Bytes received in frames.
    pub bytes_in: u64,
    /// Bytes sent in frames.
    pub bytes_out: u64,
    /// Time inside the guest.
    pub busy_us: u64,
    /// Time waiting for room in an output channel.
    pub backpressured_us: u64,
    /// The linear memory's size.
    pub memory_bytes: u64,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailureView {
    /// When the JobManager learned of it.
    pub at_ms: u64,
    /// Which task, if it was one task's failure.
    pub task: Option<String>,
    /// The name of that task's stage.
    pub stage: Option<String>,
    /// `job`, `cluster` or `bug`.
    pub blame: String,
    /// What happened.
    pub message: String,
    /// The guest's symbolised backtrace, innermost first.
    pub backtrace: Vec<String>,
    /// The task's last log lines.
    pub last_log_lines: Vec<String>,
    /// The start of the batch that was being processed.
    pub batch_preview: String,
}

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// When.
    pub at_ms: u64,
    /// What, for people.
    pub text: String,
}

/// How a TaskManager is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeStatus {
    /// It is registered and connected.
    Connected,
    /// It is connected and leaves: nothing new is placed there, and what runs there moves elsewhere.
    Draining,
    /// It has announced itself in ZooKeeper and is not connected to the leader.
    Announced,
    /// It is gone; shown for a while.
    Lost,
}

/// One TaskManager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its name.
    pub id: String,
    /// Its life, 16 hexadecimal digits.
    pub incarnation: String,
    /// How it is.
    pub status: NodeStatus,
    /// Where other TaskManagers reach it.
    pub data_address: String,
    /// How many slots it has.
    pub slots: u32,
    /// How many of them are free.
    pub slots_free: u32,
    /// Tasks that run on it.
    pub tasks: u32,
    /// Its release.
    pub version: String,
    /// When it registered.
    pub registered_at_ms: u64,
    /// When and why it was lost.
    pub lost: Option<EventView>,
}

/// A line of a task's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLineView {
    /// Where the task ran.
    pub task_manager: String,
    /// Grows with each line of that TaskManager.
    pub number: u64,
    /// When.
    pub time_ms: u64,
    /// `stage/subtask`.
    pub task: String,
    /// `epoch.counter`.
    pub attempt: String,
    /// `out`, `err`, `panic` or `host`.
    pub source: String,
    /// The text, without the line's end.
    pub text: String,
}

/// Log lines, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogPage {
    /// In order of their times.
    pub lines: Vec<LogLineView>,
    /// Pass it as `after` to get what comes next. Opaque.
    pub next: String,
    /// TaskManagers that did not answer in time.
    pub missing: Vec<String>,
}

/// What a JobManager is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It leads.
    Leader,
    /// It was elected and loads what the registry holds.
    TakingOver,
    /// It stands by.
    Follower,
    /// It has led and is giving its place up.
    SteppingDown,
}

impl Role {
    /// As JSON and metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::TakingOver => "taking-over",
            Self::Follower => "follower",
            Self::SteppingDown => "stepping-down",
        }
    }
}

/// How a JobManager is: itself, its registry, and, when it leads, what it has to work with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// Its name.
    pub id: String,
    /// What it is to its cluster.
    pub role: Role,
    /// Whether it is the leader.
    pub leading: bool,
    /// The epoch under which it leads or takes over.
    pub epoch: Option<u64>,
    /// Who leads, as far as this JobManager knows.
    pub leader: Option<LeaderView>,
    /// The registry of jobs as it is reached from here.
    pub registry: RegistryView,
    /// The release.
    pub version: String,
    /// What a leader has to work with.
    #[serde(flatten)]
    pub cluster: Option<ClusterView>,
}

/// A leader, as others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaderView {
    /// Its name.
    pub id: String,
    /// Its epoch.
    pub epoch: u64,
    /// Where users reach it.
    pub rest_url: String,
}

/// Whether a registry is in reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RegistryConnection {
    /// There is no session yet, or the last one has ended.
    Connecting,
    /// It answers.
    Connected,
    /// It does not answer; nothing is lost yet.
    Suspended,
}

/// The registry of jobs, as it is reached from one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegistryView {
    /// `embedded` or `zookeeper`.
    pub kind: String,
    /// Whether it is in reach.
    pub connection: RegistryConnection,
    /// For how long it has been so.
    pub since_ms: u64,
}

/// What a leader has to work with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    /// How long it has led.
    pub leading_for_ms: u64,
    /// TaskManagers connected.
    pub task_managers: u32,
    /// All slots.
    pub slots: u32,
    /// Free slots.
    pub slots_free: u32,
    /// Jobs that have not ended.
    pub jobs_active: u32,
}

/// A JobManager that leads or stands by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobManagerView {
    /// Its name.
    pub id: String,
    /// Its life, 16 hexadecimal digits.
    pub incarnation: String,
    /// `leader` or `follower`.
    pub role: Role,
    /// The leader's epoch.
    pub epoch: Option<u64>,
    /// Where TaskManagers reach it.
    pub control_address: String,
    /// Where users reach it.
    pub rest_url: String,
}

/// The answer to a submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubmittedView {
    /// The new job, 32 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Slots it needs.
    pub slots_needed: u32,
    /// Slots that are free now; when fewer than needed, it waits.
    pub slots_free: u32,
    /// What the user may want to know about the graph.
    pub warnings: Vec<String>,
}

/// Everything that `/metrics` is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetricsView {
    /// The JobManager and the cluster.
    pub health: HealthView,
    /// How long ago the last confirmation of its leadership that succeeded was sent.
    pub confirmed_before_us: Option<u64>,
    /// Its last take-over.
    pub take_over: Option<TakeOverView>,
    /// Every TaskManager.
    pub nodes: Vec<NodeView>,
    /// Every job.
    pub jobs: Vec<JobMetricsView>,
}

/// How long a take-over took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakeOverView {
    /// From the election until it led.
    pub total_us: u64,
    /// Of that: until the election was confirmed and known here.
    pub elected_us: u64,
    /// Of that: reading the list of jobs.
    pub list_us: u64,
    /// Of that: reading their graphs and checkpoint pointers.
    pub load_us: u64,
}

/// A job's part of the metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobMetricsView {
    /// What a list shows.
    pub summary: JobSummary,
    /// Every task.
    pub tasks: Vec<TaskView>,
    /// Checkpoints given up.
    pub checkpoints_failed: u64,
    /// What all completed checkpoints came to.
    pub checkpoint_totals: CheckpointTotals,
    /// The last completed checkpoint.
    pub last_checkpoint: Option<CheckpointView>,
    /// Recoveries begun, since this JobManager has known the job.
    pub recoveries: u64,
    /// What all recoveries restored, by where it came from.
    pub restored: Vec<RestoredView>,
    /// The last recovery.
    pub last_recovery: Option<RecoveryView>,
}
