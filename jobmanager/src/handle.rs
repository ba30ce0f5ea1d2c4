//! What users can ask of a cluster: the one door for REST and for a cluster inside this process. Each method sends a
//! request to the driver and waits for its answer. It never touches a machine's state itself.

use bytes::Bytes;
use std::collections::BTreeMap;
use tidemill_protocol::record::RestartStrategy;
use tidemill_protocol::{JobId, TaskId};
use tokio::sync::{mpsc, oneshot};

use crate::views::{
    CheckpointsView, HealthView, JobDetail, JobSummary, LogPage, MetricsView, NodeView,
    SubmittedView,
};

/// How a job is to run, as far as its submitter says; the cluster's configuration fills in the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubmitOptions {
    /// Instead of the job's own.
    pub name: Option<String>,
    /// What the job's builder reads.
    pub parameters: BTreeMap<String, String>,
    /// Tasks of each stage that does not fix its own number.
    pub parallelism: Option<u32>,
    /// Number of key groups, and the largest parallelism.
    pub max_parallelism: Option<u32>,
    /// Time between the starts of two checkpoints; 0 turns them off.
    pub checkpoint_interval_ms: Option<u64>,
    /// After this time a checkpoint is given up.
    pub checkpoint_timeout_ms: Option<u64>,
    /// Consecutive failed checkpoints that do not fail the job.
    pub tolerable_failed_checkpoints: Option<u32>,
    /// Completed checkpoints that are kept.
    pub retained_checkpoints: Option<u32>,
    /// What a failure of a task leads to.
    pub restart: Option<RestartStrategy>,
}

/// Which log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// One task, or all.
    pub task: Option<TaskId>,
    /// Only lines after those of an earlier page: its `next`.
    pub after: Option<String>,
    /// At most this many from each TaskManager, the newest.
    pub limit: u32,
}

/// The JobManager is shutting down, or is not the leader any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this JobManager is shutting down: ask again, or ask the leader")]
pub struct Unavailable;

/// A question that has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// There is no such job.
    #[error("there is no job {0}: `tidemill list` shows every job")]
    UnknownJob(JobId),
    /// The job has no such task.
    #[error("job {job} has no task {task}: `tidemill info {job}` shows its tasks")]
    UnknownTask {
        /// The job.
        job: JobId,
        /// What was asked for.
        task: TaskId,
    },
    /// The cursor is not one that an earlier page returned.
    #[error("`{0}` is not where a page of log lines ended: pass the `next` of an earlier page")]
    BadCursor(String),
    /// Nobody answers.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A job that cannot be cancelled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CancelError {
    /// There is no such job.
    #[error("there is no job {0}: `tidemill list` shows every job")]
    UnknownJob(JobId),
    /// It has ended.
    #[error("job {job} has ended already: it is {state}")]
    Ended {
        /// The job.
        job: JobId,
        /// How it ended.
        state: String,
    },
    /// Nobody answers.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A submission that was refused. Nothing was kept of it.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The module cannot be run here; the message names what and where.
    #[error("the module is refused: {reason}")]
    Module {
        /// Why.
        reason: String,
    },
    /// The module is larger than the cluster accepts.
    #[error(
        "the module has {len} bytes, and this cluster accepts {max}: build with `--release`, strip debug information, or raise `jobmanager.module_bytes_max`"
    )]
    TooLarge {
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The job's builder failed or was refused: a missing parameter, a value that does not parse, a trap, a loop.
    #[error("the job cannot be described: {reason}")]
    Describe {
        /// Why.
        reason: String,
    },
    /// The graph cannot be run.
    #[error("the job's graph is refused: {reason}")]
    Graph {
        /// Why, with the names of the stages.
        reason: String,
    },
    /// A connector's options are wrong, or what they name is missing.
    #[error("stage `{stage}`: {reason}")]
    Connector {
        /// The stage's name.
        stage: String,
        /// Why.
        reason: String,
    },
    /// An option of the submission is out of range.
    #[error("{0}")]
    Option(String),
    /// Another job writes there.
    #[error(
        "job `{other_name}` ({other}) writes to {output} already: cancel it, or write somewhere else"
    )]
    OutputInUse {
        /// The directory.
        output: String,
        /// The job that has it.
        other: JobId,
        /// That job's name.
        other_name: String,
    },
    /// The module or the record could not be stored. Whether the job exists is not known when the registry did not
    /// answer; `tidemill list` tells.
    #[error("the job could not be stored: {reason}")]
    Storage {
        /// Why.
        reason: String,
    },
    /// Nobody answers.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Asks the driver; cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    requests: mpsc::Sender<Request>,
}

pub(crate) type Reply<T> = oneshot::Sender<T>;

/// What a [`ClusterHandle`] sends to the driver.
#[derive(Debug)]
pub(crate) enum Request {
    Submit {
        wasm: Bytes,
        options: SubmitOptions,
        reply: Reply<Result<SubmittedView, SubmitError>>,
    },
    Jobs(Reply<Vec<JobSummary>>),
    Job(JobId, Reply<Result<JobDetail, QueryError>>),
    Cancel(JobId, Reply<Result<(), CancelError>>),
    Checkpoints(JobId, Reply<Result<CheckpointsView, QueryError>>),
    Nodes(Reply<Vec<NodeView>>),
    Logs {
        job: JobId,
        query: LogQuery,
        reply: Reply<Result<LogPage, QueryError>>,
    },
    Metrics(Reply<MetricsView>),
    Health(Reply<HealthView>),
}

impl ClusterHandle {
    pub(crate) fn new(requests: mpsc::Sender<Request>) -> Self {
        Self { requests }
    }

    /// Checks a module, describes its graph, stores both and the job. Returns once the job survives this process.
    ///
    /// # Errors
    /// When the job is refused; nothing is left of it then.
    pub async fn submit(
        &self,
        wasm: Bytes,
        options: SubmitOptions,
    ) -> Result<SubmittedView, SubmitError> {
        self.ask(|reply| Request::Submit {
            wasm,
            options,
            reply,
        })
        .await?
    }

    /// Every known job, newest first.
    ///
    /// # Errors
    /// When the JobManager is shutting down.
    pub async fn jobs(&self) -> Result<Vec<JobSummary>, Unavailable> {
        self.ask(Request::Jobs).await
    }

    /// Everything about one job.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn job(&self, job: JobId) -> Result<JobDetail, QueryError> {
        self.ask(|reply| Request::Job(job, reply)).await?
    }

    /// Asks for a job's end. Returns once the wish is stored; the job ends soon after. Repeating it does no harm.
    ///
    /// # Errors
    /// When there is no such job or it has ended.
    pub async fn cancel(&self, job: JobId) -> Result<(), CancelError> {
        self.ask(|reply| Request::Cancel(job, reply)).await?
    }

    /// The checkpoints of one job.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn checkpoints(&self, job: JobId) -> Result<CheckpointsView, QueryError> {
        self.ask(|reply| Request::Checkpoints(job, reply)).await?
    }

    /// Every TaskManager, connected or lost lately.
    ///
    /// # Errors
    /// When the JobManager is shutting down.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, Unavailable> {
        self.ask(Request::Nodes).await
    }

    /// Log lines of a job's tasks, asked of the TaskManagers.
    ///
    /// # Errors
    /// When there is no such job or task, or the cursor is none.
    pub async fn logs(&self, job: JobId, query: LogQuery) -> Result<LogPage, QueryError> {
        self.ask(|reply| Request::Logs { job, query, reply })
            .await?
    }

    /// What `/metrics` is made of.
    ///
    /// # Errors
    /// When the JobManager is shutting down.
    pub async fn metrics(&self) -> Result<MetricsView, Unavailable> {
        self.ask(Request::Metrics).await
    }

    /// How the JobManager is.
    ///
    /// # Errors
    /// When it is shutting down.
    pub async fn health(&self) -> Result<HealthView, Unavailable> {
        self.ask(Request::Health).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(request(reply))
            .await
            .map_err(|_| Unavailable)?;
        answer.await.map_err(|_| Unavailable)
    }
}
