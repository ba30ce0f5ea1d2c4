//! Copies of images: segments as they are, and manifests that list everything and build on none. It never writes an image
//! whose manifests it has not verified.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{Error as StoreError, ObjectStoreExt};
use tidemill_protocol::codec;
use tidemill_protocol::manifest::{CheckpointMetadata, Manifest, ObjectRef, TaskImageRef};
use tidemill_protocol::{CheckpointId, JobId};

use super::COPIES_MAX;
use super::place::Place;
use crate::error::{RequestError, SavepointError};
use crate::store::{WRONG_HASH, path};
use crate::{ReadError, Store, StoredImage};

/// How much is read and written at once of what is copied from one store to another.
const PART_BYTES: u64 = 8 << 20;

/// What copied images become.
pub(super) struct Target<'a> {
    /// Where their manifests go.
    pub(super) store: &'a Store,
    /// No manifest may be there with other bytes.
    pub(super) is_new: bool,
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
        source: &Place,
        metadata: &CheckpointMetadata,
    ) -> Result<CheckpointMetadata, SavepointError> {
        let inside = source.inside()?;
        let write = |task| self.write_manifest(&inside, metadata.job, task);
        // Made before they are awaited, so that the future can be sent to another thread.
        let writes: Vec<_> = metadata.tasks.iter().map(write).collect();
        let tasks = futures::stream::iter(writes).buffered(COPIES_MAX);
        Ok(CheckpointMetadata {
            job: self.job,
            checkpoint: self.checkpoint,
            tasks: tasks.try_collect().await?,
            ..metadata.clone()
        })
    }

    async fn write_manifest(
        &self,
        source: &Store,
        job: JobId,
        task: &TaskImageRef,
    ) -> Result<TaskImageRef, SavepointError> {
        let image = source.open_image(job, task.task, &task.manifest).await?;
        let key = (self.manifest)(task);
        let manifest = self.manifest_of(task, &image);
        let encoded = self.store.compute(move || codec::encode(&manifest));
        let encoded = encoded.await.map_err(|error| error.writing(&key))?;
        let manifest = match self.is_new {
            true => self.store.put_new(&key, encoded).await?,
            false => self.store.put_object(&key, encoded).await?,
        };
        Ok(TaskImageRef {
            manifest,
            ..task.clone()
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
    /// Each segment that the images of a checkpoint are made of, once. The checkpoint's keys are relative to this place.
    /// The images are looked at a few at a time: all of a large job's would take too much memory.
    pub(super) async fn segments_of(
        &self,
        metadata: &CheckpointMetadata,
    ) -> Result<BTreeMap<[u8; 32], ObjectRef>, SavepointError> {
        let inside = self.inside()?;
        let open = |task: &TaskImageRef| {
            let (inside, task) = (inside.clone(), task.clone());
            let job = metadata.job;
            async move { segments_of_task(&inside, job, &task).await }
        };
        let opened: Vec<_> = metadata.tasks.iter().map(open).collect();
        let mut opened = futures::stream::iter(opened).buffer_unordered(COPIES_MAX);
        let mut all = BTreeMap::new();
        while let Some(segments) = opened.next().await {
            add_segments(&mut all, segments?)?;
        }
        Ok(all)
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
        if !store
            .is_plain_file(&from.key)
            .await
            .map_err(|error| error.reading(&from.key))?
        {
            return Ok(false);
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
        let mut parts = Parts::of(from, object);
        while let Some(part) = parts.next().await? {
            let sent = to.request(upload.put_part(part.into())).await;
            sent.map_err(writing)?;
        }
        let finished = to.finish_upload(&target, upload.as_mut(), object.len);
        finished.await.map_err(writing)
    };
    let sent = sent.await;
    if sent.is_err() {
        to.abort_upload(upload.as_mut()).await;
    }
    sent
}

/// An object that is read in parts.
pub(super) struct Parts<'a> {
    store: &'a Store,
    object: &'a ObjectRef,
    hasher: blake3::Hasher,
    read_bytes: u64,
}

impl<'a> Parts<'a> {
    pub(super) fn of(store: &'a Store, object: &'a ObjectRef) -> Self {
        Self {
            store,
            object,
            hasher: blake3::Hasher::new(),
            read_bytes: 0,
        }
    }

    /// The next part. With the last one comes proof that all of them are what was written: before that it is an error, and
    /// after it `None`.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let Self { store, object, .. } = *self;
        let start = self.read_bytes;
        if start == object.len {
            return Ok(None);
        }
        let end = object.len.min(start + PART_BYTES);
        let part = store.get_range(object, start..end).await?;
        let (mut hasher, hashed) = (std::mem::take(&mut self.hasher), part.clone());
        let hashed = store.compute(move || {
            hasher.update(&hashed);
            hasher
        });
        self.hasher = hashed.await.map_err(|error| error.reading(&object.key))?;
        self.read_bytes = end;
        if end == object.len && self.hasher.finalize().as_bytes() != &object.hash {
            return Err(ReadError::damaged(&object.key, WRONG_HASH));
        }
        Ok(Some(part))
    }
}

/// The segments that hold pages of a task's image.
pub(super) async fn segments_of_task(
    store: &Store,
    job: JobId,
    task: &TaskImageRef,
) -> Result<Vec<ObjectRef>, ReadError> {
    let image = store.open_image(job, task.task, &task.manifest).await?;
    Ok(image.live_segments())
}

/// Adds segments to those of other images. They are known by their hashes, so two of one hash are the same.
pub(super) fn add_segments(
    all: &mut BTreeMap<[u8; 32], ObjectRef>,
    segments: Vec<ObjectRef>,
) -> Result<(), ReadError> {
    for segment in segments {
        if let Some(known) = all.get(&segment.hash)
            && known.len != segment.len
        {
            let reason = format!("`{}` has its hash and another length", known.key);
            return Err(ReadError::damaged(&segment.key, reason));
        }
        all.insert(segment.hash, segment);
    }
    Ok(())
}
