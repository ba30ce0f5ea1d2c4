//! What users can ask of a cluster: the one door for REST and for a cluster inside this process. Each method sends a
//! request to the driver and waits for its answer. It never touches a machine's state itself.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tidemill_protocol::record::RestartStrategy;
use tidemill_protocol::{CheckpointId, JobId, TaskId};
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::savepoints::{
    SavepointError, SavepointInfo, SavepointListing, SavepointRequestId, SavepointStatus,
    SavepointStep, StoredSavepointError, UnusableSavepoint,
};
use crate::standing::Standing;
use crate::views::{
    CheckpointDetail, CheckpointsView, HealthView, JobDetail, JobManagerView, JobSummary, LogPage,
    MetricsView, NodeView, SubmittedView,
};

/// How a job is to run, as far as its submitter says; the cluster's configuration fills in the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubmitOptions {
    /// The job's id, chosen by the submitter, so that a submission that is sent again is not carried out twice.
    pub id: Option<JobId>,
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
    /// How long a checkpoint waits for barriers before the frames in front of them become part of it; 0 waits for ever.
    pub aligned_checkpoint_timeout_ms: Option<u64>,
    /// The last checkpoint stays when the job is cancelled or fails.
    pub retain_on_cancel: Option<bool>,
    /// A second TaskManager keeps each task's last image at hand.
    pub standby: Option<bool>,
    /// The savepoint or retained checkpoint to begin from.
    pub from: Option<String>,
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

/// The JobManager is shutting down, or is not the leader (any more). Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this JobManager does not lead, or is shutting down: ask again, or ask the leader")]
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
    /// The job's history has no such checkpoint.
    #[error(
        "job {job} has no checkpoint {checkpoint} among its last ones: `tidemill checkpoints {job}` lists them"
    )]
    UnknownCheckpoint {
        /// The job.
        job: JobId,
        /// What was asked for.
        checkpoint: CheckpointId,
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
    /// The leadership ended while the wish was being stored.
    #[error(
        "whether the wish to cancel job {0} was stored is not known, since this JobManager does not lead any more: ask the leader again, which does no harm"
    )]
    InDoubt(JobId),
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
    /// The job cannot begin from what it is to begin from.
    #[error("the job cannot begin from `{path}`: {reason}")]
    From {
        /// What was named.
        path: String,
        /// Why.
        reason: String,
    },
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
    /// The module or the record could not be stored.
    #[error("the job could not be stored, and nothing was kept of it: {reason}")]
    Storage {
        /// Why.
        reason: String,
    },
    /// The registry is out of reach.
    #[error(
        "jobs cannot be submitted now, and nothing was kept: ZooKeeper has not been reachable from the leader for {} s. Running jobs go on", .away.as_secs()
    )]
    RegistryAway {
        /// For how long.
        away: Duration,
    },
    /// The leadership ended while the job was being stored.
    #[error(
        "whether the job was stored is not known, since this JobManager does not lead any more: `tidemill list` tells"
    )]
    InDoubt,
    /// Nobody answers.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Asks the driver; cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    requests: mpsc::Sender<Request>,
    standing: watch::Receiver<Standing>,
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
    Checkpoint(
        JobId,
        CheckpointId,
        Reply<Result<CheckpointDetail, QueryError>>,
    ),
    TriggerSavepoint {
        job: JobId,
        id: SavepointRequestId,
        directory: Option<String>,
        stop: bool,
        reply: Reply<Result<SavepointStatus, SavepointError>>,
    },
    SavepointStatus(
        JobId,
        SavepointRequestId,
        Reply<Result<SavepointStatus, SavepointError>>,
    ),
    Savepoints(Reply<Result<SavepointListing, StoredSavepointError>>),
    Savepoint(String, Reply<Result<SavepointInfo, StoredSavepointError>>),
    VerifySavepoint(String, Reply<Result<SavepointInfo, StoredSavepointError>>),
    DeleteSavepoint(String, Reply<Result<(), StoredSavepointError>>),
    Nodes(Reply<Vec<NodeView>>),
    JobManagers(Reply<Vec<JobManagerView>>),
    Logs {
        job: JobId,
        query: LogQuery,
        reply: Reply<Result<LogPage, QueryError>>,
    },
    Metrics(Reply<MetricsView>),
    Health(Reply<HealthView>),
}

impl ClusterHandle {
    pub(crate) fn new(
        requests: mpsc::Sender<Request>,
        standing: watch::Receiver<Standing>,
    ) -> Self {
        Self { requests, standing }
    }

    /// What the JobManager is to its cluster.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Checks a module, describes its graph, stores both and the job. Returns once the job survives this process.
    ///
    /// # Errors
    /// When the job is refused; nothing is left of it then, unless the error is [`SubmitError::InDoubt`].
    pub async fn submit(
        &self,
        wasm: Bytes,
        options: SubmitOptions,
    ) -> Result<SubmittedView, SubmitError> {
        let answer = self.send(|reply| Request::Submit {
            wasm,
            options,
            reply,
        });
        answer.await?.await.unwrap_or(Err(SubmitError::InDoubt))
    }

    /// Every known job, newest first.
    ///
    /// # Errors
    /// When the JobManager is shutting down or does not lead.
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
        let answer = self.send(|reply| Request::Cancel(job, reply));
        answer
            .await?
            .await
            .unwrap_or(Err(CancelError::InDoubt(job)))
    }

    /// The checkpoints of one job.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn checkpoints(&self, job: JobId) -> Result<CheckpointsView, QueryError> {
        self.ask(|reply| Request::Checkpoints(job, reply)).await?
    }

    /// One of a job's last checkpoints, task by task.
    ///
    /// # Errors
    /// When there is no such job, or its history does not have the checkpoint.
    pub async fn checkpoint(
        &self,
        job: JobId,
        checkpoint: CheckpointId,
    ) -> Result<CheckpointDetail, QueryError> {
        self.ask(|reply| Request::Checkpoint(job, checkpoint, reply))
            .await?
    }

    /// Asks for a savepoint, and with `stop` for the job's end when that is written. Returns at once; what becomes of it is
    /// asked for with the same id. Asking again with an id that is known changes nothing.
    ///
    /// `directory` is a path in the cluster's store or a URL; without one it is chosen, below `checkpoints.savepoint_dir`.
    ///
    /// # Errors
    /// When there is no such job, it has ended, or it cannot be stopped now.
    pub async fn trigger_savepoint(
        &self,
        job: JobId,
        id: SavepointRequestId,
        directory: Option<String>,
        stop: bool,
    ) -> Result<SavepointStatus, SavepointError> {
        self.ask(|reply| Request::TriggerSavepoint {
            job,
            id,
            directory,
            stop,
            reply,
        })
        .await?
    }

    /// How a wish for a savepoint stands.
    ///
    /// # Errors
    /// When this leader knows no such job or wish. A leader forgets wishes when it is succeeded, and the oldest of a job.
    pub async fn savepoint_status(
        &self,
        job: JobId,
        id: SavepointRequestId,
    ) -> Result<SavepointStatus, SavepointError> {
        self.ask(|reply| Request::SavepointStatus(job, id, reply))
            .await?
    }

    /// The savepoints below `checkpoints.savepoint_dir` of the cluster's store, newest first, then the checkpoints that
    /// cancelled jobs left; and what is left of savepoints that are not whole.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn savepoints(&self) -> Result<SavepointListing, StoredSavepointError> {
        self.ask(Request::Savepoints).await?
    }

    /// One savepoint or retained checkpoint.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub async fn savepoint(&self, path: String) -> Result<SavepointInfo, StoredSavepointError> {
        self.ask(|reply| Request::Savepoint(path, reply)).await?
    }

    /// Reads every object of a savepoint or retained checkpoint, and checks it.
    ///
    /// # Errors
    /// When there is none; or the first object that is missing or damaged.
    pub async fn verify_savepoint(
        &self,
        path: String,
    ) -> Result<SavepointInfo, StoredSavepointError> {
        self.ask(|reply| Request::VerifySavepoint(path, reply))
            .await?
    }

    /// Deletes a savepoint, or the checkpoint that an ended job left.
    ///
    /// # Errors
    /// When there is none, or it belongs to a job that runs.
    pub async fn delete_savepoint(&self, path: String) -> Result<(), StoredSavepointError> {
        self.ask(|reply| Request::DeleteSavepoint(path, reply))
            .await?
    }

    /// Every TaskManager: connected, announced in ZooKeeper, or lost lately.
    ///
    /// # Errors
    /// When the JobManager is shutting down or does not lead.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, Unavailable> {
        self.ask(Request::Nodes).await
    }

    /// Every JobManager that leads or stands by.
    ///
    /// # Errors
    /// When the JobManager does not lead.
    pub async fn job_managers(&self) -> Result<Vec<JobManagerView>, Unavailable> {
        self.ask(Request::JobManagers).await
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
    /// When the JobManager is shutting down or does not lead.
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
        self.send(request).await?.await.map_err(|_| Unavailable)
    }

    async fn send<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<oneshot::Receiver<T>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(request(reply)).await;
        sent.map_err(|_| Unavailable)?;
        Ok(answer)
    }
}
