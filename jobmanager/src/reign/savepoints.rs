//! What a leading JobManager answers about savepoints. Wishes for one go to the leader; those that are stored are read,
//! checked and deleted by the store, beside everything else. Whether a checkpoint that a job left may go is the
//! leader's to know.

use tidemill_core::job::{Job, SavepointStatus};
use tidemill_core::leader::Event;
use tidemill_protocol::manifest::{ObjectRef, Savepoint};
use tidemill_protocol::record::{CheckpointPointer, JobRecord};
use tidemill_protocol::{JobId, ModuleHash};
use tidemill_storage::{SavepointError as StoreError, SavepointSummary, Store, keys};
use tracing::warn;

use super::Reign;
use crate::error_chain;
use crate::handle::{
    Reply, SavepointError, SavepointInfo, SavepointListing, SavepointRequestId,
    StoredSavepointError, UnusableSavepoint,
};

/// A checkpoint that an ended job left.
#[derive(Clone)]
struct Kept {
    path: String,
    record: JobRecord,
    pointer: CheckpointPointer,
}

/// What is asked about one that is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Show,
    Verify,
}

type Answer<T> = Result<T, StoredSavepointError>;

impl Reign {
    /// A wish for a savepoint. One that is known already changes nothing.
    pub(super) fn on_savepoint(
        &mut self,
        job: JobId,
        id: SavepointRequestId,
        directory: Option<String>,
        stop: bool,
    ) -> Result<SavepointStatus, SavepointError> {
        let Some(known) = self.leader.job(job) else {
            return Err(SavepointError::UnknownJob(job));
        };
        if known.savepoint(id).is_none() {
            if let Some(reason) = known.refuses_savepoint(stop) {
                return Err(SavepointError::Refused { job, reason });
            }
            let below = &self.process.config.checkpoints.savepoint_dir;
            // Enough of the wish's name that two of one job are never the same.
            let short = format!("{id}").split_off(20);
            let directory = directory.unwrap_or_else(|| format!("{below}/{job}-{short}"));
            self.tell(Event::SavepointRequested {
                job,
                id,
                directory,
                stop,
            });
        }
        self.savepoint_status(job, id)
    }

    pub(super) fn savepoint_status(
        &self,
        job: JobId,
        id: SavepointRequestId,
    ) -> Result<SavepointStatus, SavepointError> {
        let known = self.leader.job(job);
        let known = known.ok_or(SavepointError::UnknownJob(job))?;
        let status = known.savepoint(id);
        status.ok_or(SavepointError::UnknownRequest { job, id })
    }

    /// The checkpoints that ended jobs left.
    fn kept(&self) -> impl Iterator<Item = Kept> {
        let kept = |job: &Job| {
            let pointer = job.kept_checkpoint()?.clone();
            Some(Kept {
                path: keys::checkpoint(job.id(), pointer.checkpoint),
                record: job.record().clone(),
                pointer,
            })
        };
        self.leader.jobs().filter_map(kept)
    }

    /// The checkpoint that an ended job left at this place, named by its path or by a URL of the store.
    fn kept_at(&self, name: &str) -> Option<Kept> {
        let in_store = name.strip_prefix(self.hands.store.url()).unwrap_or(name);
        let path = in_store.trim_matches('/');
        self.kept().find(|kept| kept.path == path)
    }

    pub(super) fn list_savepoints(&self, reply: Reply<Answer<SavepointListing>>) {
        let store = self.hands.store.clone();
        let below = self.process.config.checkpoints.savepoint_dir.clone();
        let kept: Vec<Kept> = self.kept().collect();
        let over = self.hands.over.clone();
        tokio::spawn(over.run_until_cancelled_owned(async move {
            let listed = list(&store, &below, kept).await;
            // Whoever asked may have gone.
            let _ = reply.send(listed);
        }));
    }

    pub(super) fn on_stored(
        &self,
        question: Question,
        path: String,
        reply: Reply<Answer<SavepointInfo>>,
    ) {
        let (store, kept) = (self.hands.store.clone(), self.kept_at(&path));
        let over = self.hands.over.clone();
        tokio::spawn(over.run_until_cancelled_owned(async move {
            let mut answer = match kept {
                Some(kept) => show_kept(&store, kept).await,
                None => show(&store, &path).await,
            };
            if let (Ok(info), Question::Verify) = (&answer, question) {
                answer = verify(&store, &path).await.map(|()| info.clone());
            }
            let _ = reply.send(answer);
        }));
    }

    pub(super) fn delete_savepoint(&mut self, path: String, reply: Reply<Answer<()>>) {
        if let Some(kept) = self.kept_at(&path) {
            let job = kept.record.id;
            self.tell(Event::KeptDropped { job });
            return drop(reply.send(Ok(())));
        }
        let holds = |job: &&Job| path.contains(&keys::checkpoints(job.id()));
        if let Some(job) = self.leader.jobs().find(holds).map(Job::id) {
            return drop(reply.send(Err(StoredSavepointError::InUse { path, job })));
        }
        let (store, over) = (self.hands.store.clone(), self.hands.over.clone());
        tokio::spawn(over.run_until_cancelled_owned(async move {
            let deleted = store.delete_savepoint(&path).await;
            let _ = reply.send(deleted.map_err(|error| refused(&path, &error)));
        }));
    }
}

async fn list(store: &Store, below: &str, kept: Vec<Kept>) -> Answer<SavepointListing> {
    let listed = store.list_savepoints(below).await;
    let listed = listed.map_err(|error| refused(below, &error))?;
    let mut listing = SavepointListing::default();
    for one in listed {
        match one.savepoint {
            Ok(savepoint) => listing.savepoints.push(SavepointInfo {
                path: one.path,
                bytes: one.bytes,
                is_checkpoint: false,
                savepoint,
            }),
            Err(error) => listing.unusable.push(unusable(one.path, one.bytes, &error)),
        }
    }
    let newest_first = |info: &SavepointInfo| core::cmp::Reverse(info.savepoint.created_at_ms);
    listing.savepoints.sort_by_key(newest_first);
    for one in kept {
        let path = one.path.clone();
        match show_kept(store, one).await {
            Ok(info) => listing.savepoints.push(info),
            Err(error) => warn!("{path} is not listed: {error}"),
        }
    }
    Ok(listing)
}

fn unusable(path: String, bytes: u64, error: &StoreError) -> UnusableSavepoint {
    let missing = match error {
        StoreError::Incomplete { missing, .. } => Some(missing.clone()),
        _ => None,
    };
    UnusableSavepoint {
        path,
        bytes,
        is_incomplete: missing.is_some(),
        missing: missing.unwrap_or_default(),
        reason: error_chain(error),
    }
}

async fn show(store: &Store, path: &str) -> Answer<SavepointInfo> {
    let read = store.read_savepoint(path).await;
    let SavepointSummary {
        path,
        bytes,
        savepoint,
    } = read.map_err(|error| refused(path, &error))?;
    Ok(SavepointInfo {
        path,
        bytes,
        is_checkpoint: false,
        savepoint,
    })
}

/// A checkpoint that a job left, told as the savepoint that it would be.
async fn show_kept(store: &Store, kept: Kept) -> Answer<SavepointInfo> {
    let Kept {
        path,
        record,
        pointer,
    } = kept;
    let metadata = store.read_metadata(&pointer.metadata).await;
    let metadata = metadata.map_err(|error| refused(&path, &error.into()))?;
    let bytes = store.checkpoints_bytes(record.id).await;
    let bytes = bytes.map_err(|error| refused(&path, &error))?;
    let savepoint = Savepoint {
        job: record.id,
        job_name: record.name,
        parameters: record.parameters,
        parallelism: record.options.parallelism,
        max_parallelism: record.options.max_parallelism,
        module: module_object(&record.module),
        graph: record.graph,
        metadata,
        created_at_ms: record.ended_at_ms.unwrap_or(record.submitted_at_ms),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok(SavepointInfo {
        path,
        bytes,
        is_checkpoint: true,
        savepoint,
    })
}

/// The module's object, whose length only the store knows.
fn module_object(module: &ModuleHash) -> ObjectRef {
    ObjectRef {
        key: keys::module(module),
        len: 0,
        hash: module.0,
    }
}

/// Reads everything; the error names what is damaged.
async fn verify(store: &Store, path: &str) -> Answer<()> {
    let verified = store.verify_savepoint(path).await;
    let verified = verified.map_err(|error| refused(path, &error))?;
    let damaged: Vec<String> = verified
        .damaged
        .iter()
        .map(|error| error_chain(error))
        .collect();
    if damaged.is_empty() {
        return Ok(());
    }
    Err(StoredSavepointError::Damaged {
        path: path.to_owned(),
        reason: damaged.join("; "),
    })
}

fn refused(path: &str, error: &StoreError) -> StoredSavepointError {
    let (path, reason) = (path.to_owned(), error_chain(error));
    match error {
        StoreError::NotThere { .. } => StoredSavepointError::Missing(path),
        StoreError::Incomplete { .. } => StoredSavepointError::Damaged { path, reason },
        StoreError::Read(read) if read.is_lost() => StoredSavepointError::Damaged { path, reason },
        _ => StoredSavepointError::Store { path, reason },
    }
}
