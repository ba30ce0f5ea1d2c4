//! Copies of images: segments as they are, and manifests that list everything and build on none. It never writes an image
//! whose manifests it has not verified.

use std::collections::BTreeMap;

use object_store::{Error as StoreError, ObjectStoreExt};
use tidemill_protocol::codec;
use tidemill_protocol::manifest::{CheckpointMetadata, Manifest, ObjectRef, TaskImageRef};
use tidemill_protocol::{CheckpointId, JobId};

use super::place::Place;
use crate::error::{RequestError, SavepointError};
use crate::store::{WRONG_HASH, path};
use crate::{ReadError, Store, StoredImage, WriteError};

/// How much is read and written at once of what is copied from one store to another.
const PART_BYTES: u64 = 8 << 20;

/// Each segment that images are made of, once.
pub(super) fn segments_of(images: &[StoredImage]) -> BTreeMap<[u8; 32], ObjectRef> {
    let segments = images.iter().flat_map(StoredImage::live_segments);
    segments.map(|segment| (segment.hash, segment)).collect()
}

/// What copied images become.
pub(super) struct Target<'a> {
    /// Where their manifests go.
    pub(super) store: &'a Store,
    pub(super) job: JobId,
    pub(super) checkpoint: CheckpointId,
    /// The key of a copied segment.
    pub(super) segment: &'a (dyn Fn(&ObjectRef) -> String + Sync),
    /// The key of a task's manifest.
    pub(super) manifest: &'a (dyn Fn(&TaskImageRef) -> String + Sync),
}

impl Target<'_> {
    /// Writes a full manifest for each image; the metadata that names them.
    pub(super) async fn write_manifests(
        &self,
        metadata: &CheckpointMetadata,
        images: &[StoredImage],
    ) -> Result<CheckpointMetadata, WriteError> {
        let mut tasks = Vec::with_capacity(metadata.tasks.len());
        for (task, image) in metadata.tasks.iter().zip(images) {
            let key = (self.manifest)(task);
            let encoded = codec::encode(&self.manifest_of(task, image));
            let manifest = self.store.put_object(&key, encoded).await?;
            tasks.push(TaskImageRef {
                manifest,
                ..task.clone()
            });
        }
        Ok(CheckpointMetadata {
            job: self.job,
            checkpoint: self.checkpoint,
            tasks,
            ..metadata.clone()
        })
    }

    fn manifest_of(&self, task: &TaskImageRef, image: &StoredImage) -> Manifest {
        let (mut segments, blocks) = image.listed();
        for segment in &mut segments {
            segment.key = (self.segment)(segment);
        }
        let head = image.head().clone();
        Manifest {
            job: self.job,
            task: task.task,
            checkpoint: self.checkpoint,
            base: None,
            memory_bytes: head.memory_bytes,
            segments,
            blocks,
            globals: head.globals,
            tables: head.tables,
            host_state: head.host_state,
            channel_state: head.channel_state,
        }
    }
}

impl Place {
    /// Opens the image of each task of a checkpoint whose keys are relative to this place.
    pub(super) async fn open_images(
        &self,
        metadata: &CheckpointMetadata,
    ) -> Result<Vec<StoredImage>, SavepointError> {
        let inside = self.inside()?;
        let mut images = Vec::with_capacity(metadata.tasks.len());
        for task in &metadata.tasks {
            let image = inside.open_image(metadata.job, task.task, &task.manifest);
            images.push(image.await?);
        }
        Ok(images)
    }

    /// Copies an object of this place to another one, where it gets this key; returns its length. If it is there
    /// already, it stays: keys of copies are made of their content.
    pub(super) async fn copy(
        &self,
        object: ObjectRef,
        to: &Self,
        key: String,
    ) -> Result<u64, SavepointError> {
        let from = self.in_store(&object);
        let key = to.key(&key);
        if self.shares_store(to) && self.copy_by_store(&from, &key).await? {
            return Ok(object.len);
        }
        copy_through(&self.store, &from, &to.store, &key).await?;
        Ok(object.len)
    }

    /// Lets the store copy an object; `false` if it can't.
    async fn copy_by_store(&self, from: &ObjectRef, to: &str) -> Result<bool, SavepointError> {
        let store = &self.store;
        let refused = |error: StoreError| ReadError::damaged(&from.key, error.to_string());
        let (source, target) = (
            path(&from.key).map_err(refused)?,
            path(to).map_err(refused)?,
        );
        let found = store.request(store.objects().head(&source)).await;
        let found = found.map_err(|error| error.reading(&from.key))?.size;
        if found != from.len {
            let (key, expected) = (from.key.clone(), from.len);
            return Err(ReadError::Truncated {
                key,
                expected,
                found,
            }
            .into());
        }
        // Files are linked, and one link cannot be laid over another of the same file.
        let outcome = if store.directory().is_some() {
            let copy = store.objects().copy_if_not_exists(&source, &target);
            store.request(copy).await
        } else {
            store.request(store.objects().copy(&source, &target)).await
        };
        match outcome {
            Ok(()) | Err(RequestError::Store(StoreError::AlreadyExists { .. })) => Ok(true),
            Err(error @ RequestError::TimedOut(_)) => Err(error.writing(to).into()),
            // Such as a file system without links. If there is more to it, reading or writing will say so.
            Err(_) => Ok(false),
        }
    }
}

/// Reads an object from one store, verifies it, and writes it to another.
async fn copy_through(
    from: &Store,
    object: &ObjectRef,
    to: &Store,
    key: &str,
) -> Result<(), SavepointError> {
    if object.len <= PART_BYTES {
        let bytes = from.get_object(object).await?;
        to.put_object(key, bytes).await?;
        return Ok(());
    }
    let writing = |error: RequestError| SavepointError::from(error.writing(key));
    let target = path(key).map_err(|error| writing(error.into()))?;
    let mut upload = to.start_upload(&target).await.map_err(writing)?;
    let sent = async {
        let mut hasher = blake3::Hasher::new();
        for start in (0..object.len).step_by(usize::try_from(PART_BYTES).expect("8 MiB")) {
            let end = object.len.min(start + PART_BYTES);
            let part = from.get_range(object, start..end).await?;
            hasher.update(&part);
            let sent = to.request(upload.put_part(part.into())).await;
            sent.map_err(writing)?;
        }
        if hasher.finalize().as_bytes() != &object.hash {
            return Err(ReadError::damaged(&object.key, WRONG_HASH).into());
        }
        Ok(())
    };
    if let Err(error) = sent.await {
        to.abort_upload(upload.as_mut()).await;
        return Err(error);
    }
    to.finish_upload(&target, upload.as_mut(), object.len)
        .await
        .map_err(writing)
}
