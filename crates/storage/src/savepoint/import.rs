//! The beginning of a job from a savepoint or a retained checkpoint: it becomes the new job's own first checkpoint. It
//! never publishes it, and needs nothing of the savepoint afterwards.

use bytes::Bytes;
use futures::StreamExt;
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef};
use tidemill_protocol::{CheckpointId, JobId};

use super::copy::Target;
use super::place::Place;
use super::{COPIES_MAX, Found};
use crate::error::SavepointError;
use crate::fault::fault_point;
use crate::{ReadError, Store, keys};

impl Store {
    /// The graph, as it was stored, of the job that a savepoint, or a retained checkpoint, was taken of. That of a retained
    /// one is whatever the store has: its hash in the checkpoint's metadata says whether it is right.
    ///
    /// # Errors
    /// When there is neither at this place, and when it cannot be read.
    pub async fn graph_at(&self, name: &str) -> Result<Bytes, SavepointError> {
        let found = Place::to_read(self, name)?.find().await?;
        match &found {
            Found::Savepoint(place, savepoint) => {
                Ok(place.inside()?.get_object(&savepoint.graph).await?)
            }
            Found::Checkpoint(place, metadata) => {
                let key = keys::graph(metadata.job);
                let graph = place.get_if_there(&key).await?;
                Ok(graph.ok_or(ReadError::Missing { key })?)
            }
        }
    }

    /// Copies a savepoint, or a retained checkpoint, below `checkpoints/<job>/<checkpoint>/`; returns its metadata object,
    /// for the job's first pointer to name. May be repeated.
    ///
    /// # Errors
    /// When there is neither at this place, and when something cannot be read or written. What was written is an orphan
    /// of this checkpoint then.
    pub async fn import_savepoint(
        &self,
        name: &str,
        job: JobId,
        checkpoint: CheckpointId,
    ) -> Result<(ObjectRef, CheckpointMetadata), SavepointError> {
        let found = Place::to_read(self, name)?.find().await?;
        let (place, metadata) = (found.place(), found.metadata());
        let segments = place.segments_of(metadata).await?;
        let key_of = |segment: &ObjectRef| keys::imported_segment(job, checkpoint, &segment.hash);
        let own = Place::whole(self);
        let copy = |segment: &ObjectRef| place.copy(segment.clone(), &own, key_of(segment));
        // Made before they are awaited, so that the future can be sent to another thread.
        let copies: Vec<_> = segments.values().map(copy).collect();
        let mut copies = futures::stream::iter(copies).buffer_unordered(COPIES_MAX);
        while let Some(copied) = copies.next().await {
            copied?;
            fault_point("savepoint.between-objects");
        }
        drop(copies);
        let metadata = Target {
            store: self,
            is_new: false,
            job,
            checkpoint,
            segment: &key_of,
            manifest: &|task| keys::manifest(job, task.task, task.attempt, checkpoint),
        }
        .write_manifests(place, metadata)
        .await?;
        let object = self.write_metadata(&metadata).await?;
        Ok((object, metadata))
    }
}
