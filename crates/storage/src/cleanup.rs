//! Deletion: of a checkpoint, of a job, and of what crashes and aborted checkpoints left behind. Every deletion may be
//! repeated and may stop half-way. It never deletes a key that it cannot read, nor one that a retained checkpoint needs.

use std::collections::BTreeSet;
use std::{fs, io};

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{CheckpointId, JobId};

use crate::error::RequestError;
use crate::store::path;
use crate::{CleanupError, ReadError, Store, keys};

impl Store {
    /// Deletes everything that a checkpoint wrote. That there is nothing is no error.
    ///
    /// Images are full, so no other checkpoint refers to it.
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
        self.delete_below(&keys::job(job)).await
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

    /// Deletes the checkpoints up to `up_to` that no retained one needs, and says which they were. The caller knows that
    /// none of them is in flight any more; whatever is newer, also a newer leader's, may be, even if it began this instant.
    ///
    /// Whatever the manifests of retained checkpoints refer to stays, also under other checkpoints' keys.
    ///
    /// # Errors
    /// When the store fails, or when a retained checkpoint cannot be read; then nothing is deleted.
    pub async fn delete_orphans(
        &self,
        job: JobId,
        retained: &[CheckpointPointer],
        up_to: CheckpointId,
    ) -> Result<Vec<CheckpointId>, CleanupError> {
        let mut needed = BTreeSet::new();
        let mut orphans = self.list_checkpoints(job).await?;
        for pointer in retained {
            needed.insert(pointer.checkpoint);
            let references = self.references(job, pointer).await;
            needed.extend(
                references.map_err(|source| CleanupError::RetainedUnreadable {
                    prefix: keys::checkpoints(job),
                    source,
                })?,
            );
        }
        orphans.retain(|id| *id <= up_to && !needed.contains(id));
        for orphan in &orphans {
            self.delete_checkpoint(job, *orphan).await?;
        }
        Ok(orphans)
    }

    /// The checkpoints under whose keys a retained checkpoint's objects are.
    async fn references(
        &self,
        job: JobId,
        pointer: &CheckpointPointer,
    ) -> Result<Vec<CheckpointId>, ReadError> {
        let metadata = self.read_metadata(&pointer.metadata).await?;
        let mut ids = Vec::new();
        for task in &metadata.tasks {
            let keys = self.keys_of_image(job, task.task, &task.manifest).await?;
            ids.extend(keys.iter().filter_map(|key| keys::checkpoint_of(job, key)));
        }
        Ok(ids)
    }

    async fn delete_below(&self, prefix: &str) -> Result<(), CleanupError> {
        self.try_delete_below(prefix)
            .await
            .map_err(|error| error.cleaning(prefix))
    }

    async fn try_delete_below(&self, prefix: &str) -> Result<(), RequestError> {
        let below = path(prefix)?;
        let listed = self.objects().list(Some(&below));
        let found: Vec<Path> = self
            .request(listed.map_ok(|object| object.location).try_collect())
            .await?;
        let mut deleted = self
            .objects()
            .delete_stream(futures::stream::iter(found).map(Ok).boxed());
        while let Some(outcome) = self.request(async { Ok(deleted.next().await) }).await? {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Where objects are files, an upload that a crash cut off is a file which listing does not show, and an empty
        // directory is left.
        let Some(directory) = self.directory().map(|root| root.join(prefix)) else {
            return Ok(());
        };
        let removed = tokio::task::spawn_blocking(move || match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        self.request(async {
            removed
                .await?
                .map_err(|source| object_store::Error::Generic {
                    store: "directory",
                    source: source.into(),
                })
        })
        .await
    }
}
