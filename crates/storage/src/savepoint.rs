//! Savepoints: copies of checkpoints that users own. Each is a directory with everything that it takes to begin a job from
//! it, in which every key is relative to the directory, so that it can be moved or copied whole. It exists from the moment
//! that its last object, `savepoint`, is written. It never overwrites one, and never refers to what is outside.

use std::collections::BTreeMap;
use std::time::SystemTime;

use futures::StreamExt;
use tidemill_protocol::JobId;
use tidemill_protocol::codec;
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef, Savepoint};
use tidemill_protocol::record::JobRecord;

use crate::error::SavepointError;
use crate::fault::fault_point;
use crate::{ReadError, Store, WriteError, keys};
use copy::{Target, segments_of};
use place::Place;

mod copy;
mod delete;
mod import;
mod place;
mod verify;

pub use verify::Verification;

/// The length of the hash that ends the object `savepoint`.
const HASH_BYTES: usize = 32;

/// Segments that are copied at the same time.
const COPIES_MAX: usize = 4;

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
        let images = source.open_images(of.metadata).await?;
        let segments = segments_of(&images);
        let module = self.get_module(&of.record.module).await?;
        let graph = self.get_object(&of.record.graph).await?;
        let total = segments.values().map(|segment| segment.len).sum::<u64>()
            + (module.len() + graph.len()) as u64;

        // The first object is new in any case, and linked ones may be as old as what they link to: whoever looks for
        // savepoints that were given up long ago sees that this one was not.
        let inside = place.inside()?;
        let module = inside.put_object(keys::SAVEPOINT_MODULE, module).await?;
        let graph = inside.put_object(keys::SAVEPOINT_GRAPH, graph).await?;
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
            job: of.metadata.job,
            checkpoint: of.metadata.checkpoint,
            segment: &|segment| keys::savepoint_segment(&segment.hash),
            manifest: &|task| keys::savepoint_manifest(task.task, of.metadata.checkpoint),
        }
        .write_manifests(of.metadata, &images)
        .await?;
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
        let mut missing: BTreeMap<String, u64> = segments
            .map(|segment| (keys::savepoint_segment(&segment.hash), segment.len))
            .collect();
        let tasks = savepoint.metadata.tasks.iter().map(|task| &task.manifest);
        for object in tasks.chain([&savepoint.module, &savepoint.graph]) {
            missing.insert(object.key.clone(), object.len);
        }
        for object in place.list().await? {
            if missing.get(&object.key) == Some(&object.bytes) {
                missing.remove(&object.key);
            }
        }
        if let Some(key) = missing.into_keys().next() {
            return Err(SavepointError::Vanished {
                path: place.name().into(),
                key,
            });
        }
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
                Ok(Some(savepoint)) => Ok(savepoint),
                Ok(None) => Err(found.place.incomplete()),
                Err(error) => Err(error),
            };
            listed.push(ListedSavepoint {
                path: found.place.name().into(),
                bytes: found.bytes,
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
        let mut directories: BTreeMap<&str, Directory> = objects
            .iter()
            .filter_map(|object| keys::marked_savepoint(&object.key))
            .map(|directory| {
                let place = all.child(directory);
                (directory, Directory::new(place))
            })
            .collect();
        for object in &objects {
            let parents = object.key.rmatch_indices('/').take(2);
            for (end, _) in parents {
                let (directory, relative) = object.key.split_at(end);
                if let Some(found) = directories.get_mut(directory)
                    && keys::is_of_savepoint(&relative[1..])
                {
                    found.bytes += object.bytes;
                    found.newest = found.newest.max(object.modified);
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
    /// Of all its objects.
    bytes: u64,
    /// When the newest of them was written.
    newest: SystemTime,
}

impl Directory {
    fn new(place: Place) -> Self {
        Self {
            place,
            bytes: 0,
            newest: SystemTime::UNIX_EPOCH,
        }
    }
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
            let metadata = codec::decode(&bytes);
            let metadata = metadata.map_err(|error| ReadError::undecodable(&key, &error))?;
            return Ok(Found::Checkpoint(root, metadata));
        }
        Err(match self.is_begun().await? {
            true => self.incomplete(),
            false => SavepointError::NotThere {
                path: self.name().into(),
            },
        })
    }

    /// Whether there is at least a part of a savepoint.
    async fn is_begun(&self) -> Result<bool, SavepointError> {
        let module = self.list().await?;
        Ok(!self.is_reserved()
            && module
                .iter()
                .any(|object| object.key == keys::SAVEPOINT_MODULE))
    }

    fn incomplete(&self) -> SavepointError {
        SavepointError::Incomplete {
            path: self.name().into(),
        }
    }

    /// The savepoint at this place, if there is one.
    async fn savepoint(&self) -> Result<Option<Savepoint>, SavepointError> {
        let Some(bytes) = self.get_if_there(keys::SAVEPOINT).await? else {
            return Ok(None);
        };
        let key = self.key(keys::SAVEPOINT);
        Ok(Some(unseal(&bytes, &key)?))
    }

    async fn get_if_there(&self, relative: &str) -> Result<Option<bytes::Bytes>, SavepointError> {
        match self.store.get(&self.key(relative), None).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
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
}

/// The bytes of the object `savepoint`: nothing else tells its hash, so it ends with it.
fn seal(savepoint: &Savepoint) -> Vec<u8> {
    let mut bytes = codec::encode(savepoint);
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

fn unseal(bytes: &[u8], key: &str) -> Result<Savepoint, ReadError> {
    let damaged = |reason: &str| ReadError::damaged(key, reason);
    let Some((body, hash)) = bytes.split_last_chunk::<HASH_BYTES>() else {
        return Err(damaged("it is too short for a savepoint"));
    };
    let decoded = codec::decode(body).map_err(|error| ReadError::undecodable(key, &error));
    // What a newer release writes may end otherwise; so its version is looked at first.
    if matches!(decoded, Err(ReadError::Unsupported { .. })) {
        return decoded;
    }
    if blake3::hash(body).as_bytes() != hash {
        return Err(damaged("its hash is not that of what was written"));
    }
    decoded
}

#[cfg(test)]
mod tests;
