//! Deletion: of a checkpoint, of a job, and of what crashes and aborted checkpoints left behind. Every deletion may be
//! repeated and may stop half-way. It never deletes a key that it cannot read, nor one that a retained checkpoint needs.

use std::collections::BTreeSet;

use futures::StreamExt;
use object_store::path::Path;
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{AttemptId, CheckpointId, JobId};

use crate::error::RequestError;
use crate::fault::fault_point;
use crate::store::path;
use crate::{CleanupError, Store, keys};

impl Store {
    /// Deletes everything that a checkpoint wrote. That there is nothing is no error. The caller knows that no other
    /// checkpoint builds on it.
    ///
    /// # Errors
    /// When the store fails; it may be repeated.
    pub async fn delete_checkpoint(
        &self,
        job: JobId,
        checkpoint: CheckpointId,
    ) -> Result<(), CleanupError> {
        self.delete_below(&keys::checkpoint(job, checkpoint)).await
    }

    /// Deletes all of a job's checkpoints and its graph. Modules are shared between jobs and stay.
    ///
    /// # Errors
    /// When the store fails; it may be repeated.
    pub async fn delete_job(&self, job: JobId) -> Result<(), CleanupError> {
        self.delete_below(&keys::checkpoints(job)).await?;
        let prefix = keys::job(job);
        // A mark that the job has no record stays as long as anything else does.
        let graph = self.delete_key(&keys::graph(job)).await;
        graph.map_err(|error| error.cleaning(&prefix))?;
        self.delete_below(&prefix).await?;
        fault_point("delete.done");
        Ok(())
    }

    /// Every checkpoint of a job that left anything in the store, complete or not, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list_checkpoints(&self, job: JobId) -> Result<Vec<CheckpointId>, CleanupError> {
        let prefix = keys::checkpoints(job);
        let list = async {
            let path = path(&prefix)?;
            let listed = self.objects().list_with_delimiter(Some(&path)).await;
            listed.map(|listed| listed.common_prefixes)
        };
        let found = self.request(list).await;
        let mut ids: Vec<_> = found
            .map_err(|error| error.cleaning(&prefix))?
            .iter()
            .filter_map(|path| keys::checkpoint_of(job, path.as_ref()))
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Deletes what the checkpoints up to `up_to` have written and no retained one is made of, and says which checkpoints
    /// are gone without a trace. Stopped between any two steps, it leaves every retained checkpoint whole, and what it has not
    /// come to for the next time. The caller knows that none of them is in flight any more; whatever is newer, also a newer
    /// leader's, may be, even if it began this instant.
    ///
    /// A task's next capture builds on its newest one. That is safe: the newest capture belongs to a checkpoint that is
    /// retained or newer than all that are, or else the task itself is of no retained attempt.
    ///
    /// # Errors
    /// When the store fails, or when a retained checkpoint cannot be read; then nothing is deleted.
    pub async fn delete_orphans(
        &self,
        job: JobId,
        retained: &[CheckpointPointer],
        up_to: CheckpointId,
    ) -> Result<Vec<CheckpointId>, CleanupError> {
        let mut candidates = self.list_checkpoints(job).await?;
        candidates.retain(|id| *id <= up_to);
        let needed = self.keys_of_checkpoints(job, retained).await;
        let needed = needed.map_err(|source| CleanupError::RetainedUnreadable {
            prefix: keys::checkpoints(job),
            source,
        })?;
        let in_use: BTreeSet<CheckpointId> = needed
            .iter()
            .filter_map(|key| keys::checkpoint_of(job, key))
            .collect();
        let (partly, orphans): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|id| in_use.contains(id));
        for orphan in &orphans {
            self.delete_checkpoint(job, *orphan).await?;
        }
        for checkpoint in partly {
            let prefix = keys::checkpoint(job, checkpoint);
            self.delete_except(&prefix, &needed)
                .await
                .map_err(|error| error.cleaning(&prefix))?;
        }
        fault_point("delete.done");
        Ok(orphans)
    }

    /// Deletes of the checkpoints later than `after`, up to `over`, what attempts wrote that never go on, and the metadata.
    /// The caller knows that none of these checkpoints was published, nor ever will be.
    ///
    /// What other attempts wrote stays: what they capture next builds on it.
    ///
    /// # Errors
    /// When the store fails; it may be repeated.
    pub async fn delete_abandoned(
        &self,
        job: JobId,
        after: Option<CheckpointId>,
        over: CheckpointId,
        ended: &BTreeSet<AttemptId>,
    ) -> Result<(), CleanupError> {
        for checkpoint in self.list_checkpoints(job).await? {
            if Some(checkpoint) <= after || checkpoint > over {
                continue;
            }
            let prefix = keys::checkpoint(job, checkpoint);
            let metadata = keys::metadata(job, checkpoint);
            let is_abandoned = |key: &str| {
                key == metadata || keys::attempt_of(key).is_some_and(|by| ended.contains(&by))
            };
            let deleted = async {
                self.delete_where(&prefix, is_abandoned).await?;
                self.delete_empty_directory(&prefix).await
            };
            deleted.await.map_err(|error| error.cleaning(&prefix))?;
        }
        Ok(())
    }

    /// Deletes one object. That there is none is no error.
    pub(crate) async fn delete_key(&self, key: &str) -> Result<(), RequestError> {
        let path = path(key)?;
        let one = futures::stream::once(async { Ok(path) }).boxed();
        let mut deleted = self.objects().delete_stream(one);
        self.request(async {
            match deleted.next().await {
                Some(Err(error)) if !matches!(error, object_store::Error::NotFound { .. }) => {
                    Err(error)
                }
                _ => Ok(()),
            }
        })
        .await
    }

    async fn delete_below(&self, prefix: &str) -> Result<(), CleanupError> {
        self.try_delete_below(prefix)
            .await
            .map_err(|error| error.cleaning(prefix))
    }

    async fn try_delete_below(&self, prefix: &str) -> Result<(), RequestError> {
        self.delete_except(prefix, &BTreeSet::new()).await?;
        self.delete_directory(prefix).await
    }

    /// Deletes the objects below a prefix but for these.
    async fn delete_except(
        &self,
        prefix: &str,
        needed: &BTreeSet<String>,
    ) -> Result<(), RequestError> {
        self.delete_cut_off_uploads(prefix, None).await?;
        self.delete_where(prefix, |key| !needed.contains(key)).await
    }

    async fn delete_where(
        &self,
        prefix: &str,
        is_to_go: impl Fn(&str) -> bool,
    ) -> Result<(), RequestError> {
        let listed = self.list_below(&path(prefix)?).await?.into_iter();
        let found: Vec<Path> = listed
            .map(|object| object.location)
            .filter(|location| is_to_go(location.as_ref()))
            .collect();
        fault_point("delete.listed");
        let mut deleted = self
            .objects()
            .delete_stream(futures::stream::iter(found).map(Ok).boxed());
        while let Some(outcome) = self.request(async { Ok(deleted.next().await) }).await? {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            fault_point("delete.between-objects");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
