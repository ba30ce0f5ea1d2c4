//! Savepoints: copies of checkpoints that users own. Each is a directory with everything that it takes to begin a job from
//! it, in which every key is relative to the directory, so that it can be moved or copied whole. It exists from the moment
//! that its last object, `savepoint`, is written. It never overwrites one, and never refers to what is outside.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use tidemill_protocol::codec::Versioned;
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef, Savepoint};
use tidemill_protocol::record::JobRecord;
use tidemill_protocol::{CheckpointId, JobId};

use crate::error::SavepointError;
use crate::fault::fault_point;
use crate::put::Created;
use crate::sealed::{seal, unseal};
use crate::store::{Length, METADATA_BYTES_MAX};
use crate::{ReadError, Store, WriteError, keys};
use check::{check_metadata, check_place, check_savepoint};
use copy::Target;
use place::{Listed, Place};

mod check;
mod copy;
mod delete;
mod import;
mod place;
mod verify;

pub use verify::Verification;

/// Segments that are copied, and images that are opened, at the same time.
const COPIES_MAX: usize = 4;

/// What every module begins with.
const WASM: &[u8] = b"\0asm";

/// What a savepoint is made of.
#[derive(Clone, Copy, Debug)]
pub struct SavepointOf<'a> {
    /// The job.
    pub record: &'a JobRecord,
    /// The completed checkpoint that is copied. Nothing of it may be deleted meanwhile.
    pub metadata: &'a CheckpointMetadata,
    /// The time, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
}

/// A savepoint as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavepointSummary {
    /// Its name: a path in this store, or a URL.
    pub path: String,
    /// The size of all its objects.
    pub bytes: u64,
    /// What it says of itself.
    pub savepoint: Savepoint,
}

/// What is at a place where savepoints are looked for.
#[derive(Debug)]
pub struct ListedSavepoint {
    /// Its name, for all that takes one.
    pub path: String,
    /// The size of all its objects.
    pub bytes: u64,
    /// What it says of itself; or why that is not known, such as [`SavepointError::Incomplete`].
    pub savepoint: Result<Savepoint, SavepointError>,
}

/// What a name turns out to stand for.
#[derive(Debug)]
enum Found {
    /// A savepoint; its keys are relative to the place.
    Savepoint(Place, Box<Savepoint>),
    /// A retained checkpoint; its keys are relative to the place, which is a whole store.
    Checkpoint(Place, CheckpointMetadata),
}

impl Found {
    fn place(&self) -> &Place {
        match self {
            Self::Savepoint(place, _) | Self::Checkpoint(place, _) => place,
        }
    }

    fn metadata(&self) -> &CheckpointMetadata {
        match self {
            Self::Savepoint(_, savepoint) => &savepoint.metadata,
            Self::Checkpoint(_, metadata) => metadata,
        }
    }
}

impl Store {
    /// Copies a checkpoint into a new savepoint. `name` is a path in this store or a URL. `progress` hears how many bytes
    /// of how many are copied. Writing the same checkpoint to the same place again is no error.
    ///
    /// Segments are copied by the store itself where it can (files are linked), all else is read and verified.
    ///
    /// # Errors
    /// When there is another savepoint already, and when something cannot be read or written. There is no savepoint then;
    /// what is left is [`SavepointError::Incomplete`].
    pub async fn write_savepoint(
        &self,
        name: &str,
        of: SavepointOf<'_>,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<SavepointSummary, SavepointError> {
        let place = Place::to_write(self, name)?;
        if let Some(there) = self.written_before(&place, &of).await? {
            return Ok(there);
        }
        let source = Place::whole(self);
        let segments = source.segments_of(of.metadata).await?;
        let module = self.get_module(&of.record.module).await?;
        let graph = self.get_object(&of.record.graph).await?;
        let total = segments.values().map(|segment| segment.len).sum::<u64>()
            + (module.len() + graph.len()) as u64;

        let inside = place.inside()?;
        let module = place.begin(keys::SAVEPOINT_MODULE, module).await?;
        let graph = place.begin(keys::SAVEPOINT_GRAPH, graph).await?;
        let mut done = module.len + graph.len;
        progress(done, total);
        let copy = |segment: &ObjectRef| {
            let key = keys::savepoint_segment(&segment.hash);
            source.copy(segment.clone(), &place, key)
        };
        // Made before they are awaited, so that the future can be sent to another thread.
        let copies: Vec<_> = segments.values().map(copy).collect();
        let mut copies = futures::stream::iter(copies).buffer_unordered(COPIES_MAX);
        while let Some(copied) = copies.next().await {
            done += copied?;
            progress(done, total);
            fault_point("savepoint.between-objects");
        }
        drop(copies);
        let metadata = Target {
            store: &inside,
            is_new: true,
            job: of.metadata.job,
            checkpoint: of.metadata.checkpoint,
            segment: &|segment| keys::savepoint_segment(&segment.hash),
            manifest: &|task| keys::savepoint_manifest(task.task, of.metadata.checkpoint),
        }
        .write_manifests(&source, of.metadata)
        .await
        .map_err(|error| place.occupied(error))?;
        fault_point("savepoint.objects-copied");

        let savepoint = Savepoint {
            job: of.record.id,
            job_name: of.record.name.clone(),
            parameters: of.record.parameters.clone(),
            parallelism: of.record.options.parallelism,
            max_parallelism: of.record.options.max_parallelism,
            module,
            graph,
            metadata,
            created_at_ms: of.created_at_ms,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        self.complete(&place, &of, savepoint, segments.values())
            .await
    }

    /// Makes the savepoint exist, if all is there that it is made of.
    async fn complete<'a>(
        &self,
        place: &Place,
        of: &SavepointOf<'_>,
        savepoint: Savepoint,
        segments: impl Iterator<Item = &'a ObjectRef>,
    ) -> Result<SavepointSummary, SavepointError> {
        let segments = segments.map(|segment| ObjectRef {
            key: keys::savepoint_segment(&segment.hash),
            ..segment.clone()
        });
        let wanted: Vec<ObjectRef> = parts_of(&savepoint).cloned().chain(segments).collect();
        let missing = missing(wanted.iter(), &place.list().await?);
        if let Some(key) = missing.into_iter().next() {
            return Err(SavepointError::Vanished {
                path: place.name().into(),
                key,
            });
        }
        // Linked files, and those that a writer before this one came to write, may not be on the disk by their names yet.
        place.sync().await?;
        let created = place.create(keys::SAVEPOINT, seal(&savepoint)).await?;
        fault_point("savepoint.written");
        if !created {
            let there = self.written_before(place, of).await?;
            return there.ok_or_else(|| SavepointError::Taken {
                path: place.name().into(),
            });
        }
        self.summary(place, savepoint).await
    }

    /// The savepoint that is there, if it is this one; `None` if there is none.
    async fn written_before(
        &self,
        place: &Place,
        of: &SavepointOf<'_>,
    ) -> Result<Option<SavepointSummary>, SavepointError> {
        let Some(there) = place.savepoint().await? else {
            return Ok(None);
        };
        let same = |metadata: &CheckpointMetadata| (metadata.job, metadata.checkpoint);
        if same(&there.metadata) != same(of.metadata) {
            return Err(SavepointError::Taken {
                path: place.name().into(),
            });
        }
        self.summary(place, there).await.map(Some)
    }

    async fn summary(
        &self,
        place: &Place,
        savepoint: Savepoint,
    ) -> Result<SavepointSummary, SavepointError> {
        let objects = place.list().await?;
        let missing = missing(parts_of(&savepoint), &objects);
        if !missing.is_empty() {
            return Err(place.incomplete(missing));
        }
        Ok(SavepointSummary {
            path: place.name().into(),
            bytes: objects.iter().map(|object| object.bytes).sum(),
            savepoint,
        })
    }

    /// What a savepoint says of itself. None of its other objects is read.
    ///
    /// # Errors
    /// When there is none or only a part of one, and when it cannot be read.
    pub async fn read_savepoint(&self, name: &str) -> Result<SavepointSummary, SavepointError> {
        let place = Place::to_read(self, name)?;
        match place.find().await? {
            Found::Savepoint(place, savepoint) => self.summary(&place, *savepoint).await,
            Found::Checkpoint(..) => Err(SavepointError::NotASavepoint {
                path: place.name().into(),
            }),
        }
    }

    /// The checkpoint that is in a savepoint, or that is retained at this place: its module and its graph must be those of
    /// the job that begins from it. The keys in it are of no use elsewhere.
    ///
    /// # Errors
    /// When there is neither, and when it cannot be read.
    pub async fn checkpoint_at(&self, name: &str) -> Result<CheckpointMetadata, SavepointError> {
        let found = Place::to_read(self, name)?.find().await?;
        Ok(found.metadata().clone())
    }

    /// The job and the checkpoint that a name stands for, if that may be retained in this store; nothing is read. Their
    /// pointer in the registry, where there is one, has the hash that nothing in the store tells.
    ///
    /// # Errors
    /// When the name cannot be a place.
    pub fn checkpoint_named(
        &self,
        name: &str,
    ) -> Result<Option<(JobId, CheckpointId)>, SavepointError> {
        let place = Place::to_read(self, name)?;
        let is_own = place.shares_store(&Place::whole(self));
        let named = place.as_checkpoint().filter(|_| is_own);
        Ok(named.and_then(|(_, metadata)| keys::job_and_checkpoint_of(&metadata)))
    }

    /// Every savepoint below a prefix of this store, also what was left of some, in order of their names.
    ///
    /// # Errors
    /// When the store fails; a single savepoint that cannot be read is listed with the reason.
    pub async fn list_savepoints(
        &self,
        prefix: &str,
    ) -> Result<Vec<ListedSavepoint>, SavepointError> {
        let mut listed = Vec::new();
        for found in self.savepoint_directories(prefix).await? {
            let savepoint = match found.place.savepoint().await {
                Ok(Some(savepoint)) => {
                    let missing = missing(parts_of(&savepoint), &found.objects);
                    match missing.is_empty() {
                        true => Ok(savepoint),
                        false => Err(found.place.incomplete(missing)),
                    }
                }
                Ok(None) if !found.place.is_begun().await? => continue,
                Ok(None) => Err(found.place.incomplete(missing_without_mark(&found.objects))),
                Err(error) => Err(error),
            };
            listed.push(ListedSavepoint {
                path: found.place.name().into(),
                bytes: found.objects.iter().map(|object| object.bytes).sum(),
                savepoint,
            });
        }
        Ok(listed)
    }

    /// The size of all that a job has below `checkpoints/`: of an ended one, what the checkpoint takes that it left.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn checkpoints_bytes(&self, job: JobId) -> Result<u64, SavepointError> {
        let objects = Place::whole(self).child(&keys::checkpoints(job));
        let objects = objects.list().await?;
        Ok(objects.iter().map(|object| object.bytes).sum())
    }

    /// The directories below a prefix that are savepoints, or parts of one.
    async fn savepoint_directories(&self, prefix: &str) -> Result<Vec<Directory>, SavepointError> {
        let all = Place::to_write(self, prefix)?;
        let objects = all.list().await?;
        let mut directories: BTreeMap<String, Directory> = objects
            .iter()
            .filter_map(|object| keys::marked_savepoint(&object.key))
            .map(|directory| {
                let objects = Vec::new();
                let place = all.child(directory);
                (directory.to_owned(), Directory { place, objects })
            })
            .collect();
        for object in objects {
            for (directory, relative) in keys::in_savepoints(&object.key) {
                if let Some(found) = directories.get_mut(directory) {
                    found.objects.push(Listed {
                        key: relative.into(),
                        ..object
                    });
                }
            }
        }
        Ok(directories.into_values().collect())
    }
}

/// A savepoint's directory, whether it is complete or not.
#[derive(Debug)]
struct Directory {
    place: Place,
    /// Those of a savepoint, relative to it.
    objects: Vec<Listed>,
}

/// The objects that a savepoint names itself; its segments are named by its manifests.
fn parts_of(savepoint: &Savepoint) -> impl Iterator<Item = &ObjectRef> {
    let tasks = savepoint.metadata.tasks.iter();
    tasks
        .map(|task| &task.manifest)
        .chain([&savepoint.module, &savepoint.graph])
}

/// The keys of these objects that are not there with their length, in order.
fn missing<'a>(wanted: impl Iterator<Item = &'a ObjectRef>, there: &[Listed]) -> Vec<String> {
    let there: BTreeMap<&str, u64> = there
        .iter()
        .map(|object| (object.key.as_str(), object.bytes))
        .collect();
    let mut missing: Vec<String> = wanted
        .filter(|object| there.get(object.key.as_str()) != Some(&object.len))
        .map(|object| object.key.clone())
        .collect();
    missing.sort_unstable();
    missing
}

/// What is known to be missing of a savepoint of which nothing says what belongs to it.
fn missing_without_mark(there: &[Listed]) -> Vec<String> {
    let is_there = |key: &&str| there.iter().any(|object| object.key == *key);
    [keys::SAVEPOINT, keys::SAVEPOINT_GRAPH]
        .into_iter()
        .filter(|key| !is_there(key))
        .map(str::to_owned)
        .collect()
}

impl Place {
    /// What there is at this place.
    async fn find(&self) -> Result<Found, SavepointError> {
        if let Some(savepoint) = self.savepoint().await? {
            return Ok(Found::Savepoint(self.clone(), Box::new(savepoint)));
        }
        if let Some((root, key)) = self.as_checkpoint()
            && let Some(bytes) = root.get_if_there(&key).await?
        {
            let metadata = unseal(&bytes, &key)?;
            check_metadata(&metadata, &key)?;
            check_place(&metadata, &key)?;
            return Ok(Found::Checkpoint(root, metadata));
        }
        Err(match self.is_begun().await? {
            true => self.incomplete(missing_without_mark(&self.list().await?)),
            false => SavepointError::NotThere {
                path: self.name().into(),
            },
        })
    }

    /// Whether there is at least a part of a savepoint: not any file of such a name.
    async fn is_begun(&self) -> Result<bool, SavepointError> {
        let begun = !self.is_reserved()
            && (self.begins_with(keys::SAVEPOINT_MODULE, WASM).await?
                || self.begins_with(keys::SAVEPOINT, &Savepoint::KIND).await?);
        Ok(begun)
    }

    async fn begins_with(&self, relative: &str, with: &[u8]) -> Result<bool, SavepointError> {
        let key = self.key(relative);
        let Some(len) = self.store.len_if_there(&key).await? else {
            return Ok(false);
        };
        let wanted = with.len() as u64;
        if len < wanted {
            return Ok(false);
        }
        let object = ObjectRef {
            key,
            len,
            hash: [0; 32],
        };
        let beginning = self.store.get_range(&object, 0..wanted).await?;
        Ok(beginning == with)
    }

    fn incomplete(&self, missing: Vec<String>) -> SavepointError {
        SavepointError::Incomplete {
            path: self.name().into(),
            missing,
        }
    }

    /// The savepoint at this place, if there is one.
    async fn savepoint(&self) -> Result<Option<Savepoint>, SavepointError> {
        let Some(bytes) = self.get_if_there(keys::SAVEPOINT).await? else {
            return Ok(None);
        };
        let key = self.key(keys::SAVEPOINT);
        let savepoint = unseal(&bytes, &key)?;
        check_savepoint(&savepoint, &key)?;
        Ok(Some(savepoint))
    }

    async fn get_if_there(&self, relative: &str) -> Result<Option<Bytes>, SavepointError> {
        let length = Length::AtMost(METADATA_BYTES_MAX);
        match self.store.get(&self.key(relative), length).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes one of the first objects of a savepoint, which nobody else has begun here.
    async fn begin(&self, relative: &str, bytes: Bytes) -> Result<ObjectRef, SavepointError> {
        let inside = self.inside()?;
        let object = inside.describe(relative, &bytes).await?;
        let created = inside.create(&object, bytes.clone()).await;
        if created.map_err(|error| self.occupied(error.into()))? == Created::Same {
            // Once more, for its time: who looks for savepoints that were given up sees that this one was not. What is
            // linked may be as old as what it is linked to.
            inside.put_object(relative, bytes).await?;
        }
        Ok(object)
    }

    /// What it means for a savepoint that an object of it is another one's.
    fn occupied(&self, error: SavepointError) -> SavepointError {
        match error {
            SavepointError::Write(WriteError::AlreadyExists { .. }) => SavepointError::Occupied {
                path: self.name().into(),
            },
            other => other,
        }
    }

    /// Writes an object unless there is another one already; says whether it did.
    async fn create(&self, relative: &str, bytes: Vec<u8>) -> Result<bool, WriteError> {
        let key = self.key(relative);
        match self.store.put_new(&key, bytes).await {
            Err(WriteError::AlreadyExists { .. }) => Ok(false),
            outcome => outcome.map(|_| true),
        }
    }

    /// Lets what was linked and deleted here survive a loss of power.
    async fn sync(&self) -> Result<(), SavepointError> {
        let inside = self.inside()?;
        for below in [keys::SAVEPOINT_SEGMENTS, ""] {
            let synced = inside.sync_directory(below).await;
            synced.map_err(|error| error.writing(self.name()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
