//! Loads what the registry holds, for a JobManager that was elected. A job that is lost for good holds up no other; a
//! registry or a store that does not answer is asked again. It decides nothing about jobs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_coordination::{NamedLock, ReadError, Registry};
use tidemill_core::leader::LoadedJob;
use tidemill_protocol::JobId;
use tidemill_protocol::record::{CheckpointPointers, JobRecord};
use tidemill_storage::{ReadError as StoreReadError, Store};
use tokio::task::JoinSet;
use tracing::{error, warn};

use crate::{error_chain, submission};

/// Held while job graphs are loaded, and while an ended job's is deleted.
pub(crate) const JOB_GRAPHS_LOCK: &str = "job-graphs";

/// How long a take-over waits for the lock on job graphs. The fence alone keeps a job from being loaded that was removed
/// before the election; the lock keeps its graph from vanishing while it is read, which would only fail an ended job.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Pauses between two tries, the first and the longest.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// After this time another JobManager may have better luck.
const GIVE_UP: Duration = Duration::from_secs(30);

/// What the registry holds, and how long it took to learn it.
pub(crate) struct Loaded {
    pub(crate) jobs: Vec<LoadedJob>,
    pub(crate) list: Duration,
    pub(crate) load: Duration,
}

/// What does not answer. It may well be there: an acknowledged job is never given up for that.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The registry cannot be read.
    #[error("cannot read the registry of jobs")]
    Registry(#[source] ReadError),
    /// A job's graph cannot be read.
    #[error("cannot read the graph of job {job} from the checkpoint store")]
    Graph {
        /// Whose.
        job: JobId,
        /// Why.
        #[source]
        source: StoreReadError,
    },
}

/// Loads everything; a patient caller asks again for what does not answer, for as long as that makes sense.
pub(crate) async fn load(
    registry: &Arc<dyn Registry>,
    store: &Store,
    patient: bool,
) -> Result<Loaded, LoadError> {
    let (begun, mut pause) = (Instant::now(), RETRY_MIN);
    let mut again = async |error: LoadError| {
        if !patient || begun.elapsed() > GIVE_UP {
            return Err(error);
        }
        warn!("taking over waits: {}", error_chain(&error));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
        Ok(())
    };
    let listing = async {
        loop {
            match records(registry.as_ref()).await {
                Ok(records) => return Ok(records),
                Err(error) => again(error).await?,
            }
        }
    };
    let (_lock, listed) = tokio::join!(lock(registry.as_ref()), listing);
    let (mut waiting, list) = listed?;
    let (load_begun, mut jobs) = (Instant::now(), Vec::new());
    loop {
        let mut loading = JoinSet::new();
        for record in waiting.drain(..) {
            loading.spawn(load_job(record, Arc::clone(registry), store.clone()));
        }
        let mut failed = None;
        while let Some(loaded) = loading.join_next().await {
            match loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                Ok(job) => jobs.push(job),
                Err((record, error)) => {
                    waiting.push(*record);
                    failed = Some(error);
                }
            }
        }
        match failed {
            None => break,
            Some(error) => again(error).await?,
        }
    }
    let load = load_begun.elapsed();
    Ok(Loaded { jobs, list, load })
}

/// The lock on job graphs, unless it is not to be had soon: a take-over never waits for long.
async fn lock(registry: &dyn Registry) -> Option<NamedLock> {
    match tokio::time::timeout(LOCK_TIMEOUT, registry.lock(JOB_GRAPHS_LOCK)).await {
        Ok(Ok(lock)) => Some(lock),
        Ok(Err(error)) => {
            warn!(
                "taking over without the lock on job graphs: {}",
                error_chain(&error)
            );
            None
        }
        Err(_) => {
            warn!("taking over without the lock on job graphs, which is held for long");
            None
        }
    }
}

async fn records(registry: &dyn Registry) -> Result<(Vec<JobRecord>, Duration), LoadError> {
    let begun = Instant::now();
    let mut records = Vec::new();
    for record in registry.jobs().await.map_err(LoadError::Registry)? {
        match record {
            Ok(record) => records.push(record),
            Err(damaged) => {
                error!(job = %damaged.job, "a job's record is damaged and it is not run: {}", error_chain(&damaged.source));
            }
        }
    }
    Ok((records, begun.elapsed()))
}

/// A job with its graph and pointers. What is lost for good fails that job; what only does not answer is an error, which
/// gives the record back.
async fn load_job(
    record: JobRecord,
    registry: Arc<dyn Registry>,
    store: Store,
) -> Result<LoadedJob, (Box<JobRecord>, LoadError)> {
    let job = record.id;
    let graph = match store.get_object(&record.graph).await {
        Ok(bytes) => submission::stored_graph(&bytes, &record.options),
        // An ended job is only shown.
        Err(error) if error.is_lost() || record.state.is_terminal() => Err(error_chain(&error)),
        Err(source) => return Err((Box::new(record), LoadError::Graph { job, source })),
    };
    match registry.pointers(job).await {
        Ok(pointers) => Ok(LoadedJob {
            record,
            graph,
            pointers,
        }),
        Err(error @ ReadError::Unavailable { .. }) => {
            Err((Box::new(record), LoadError::Registry(error)))
        }
        // Beginning anew would repeat what is committed: the job is not run.
        Err(error @ ReadError::DamagedPointers { .. }) => Ok(LoadedJob {
            record,
            graph: Err(error_chain(&error)),
            pointers: CheckpointPointers::default(),
        }),
    }
}
