//! The store itself: opening it, and whole objects in and out. Every read is verified by length and hash; every write
//! is atomic (an object is there whole or not at all) and durable when it returns.

use std::future::Future;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tidemill_protocol::codec::{self, Versioned};
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef};
use tidemill_protocol::{JobId, ModuleHash};
use tokio::sync::Semaphore;

use crate::bucket::{self, Clients, Probe};
use crate::error::RequestError;
use crate::links::Links;
use crate::location::Location;
use crate::sealed::{seal, unseal};
use crate::{OpenError, ReadError, WriteError, keys};

/// How long one request may take. Generous, since a request may write and sync megabytes on a slow disk; what bounds a
/// checkpoint is the coordinator's own timeout.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// The largest object that is held in memory whole: modules, graphs, manifests. Pages are written and read in parts.
const WHOLE_BYTES_MAX: u64 = 1 << 30;

/// The largest object that says what a checkpoint or a savepoint is made of: a few hundred bytes a task.
pub(crate) const METADATA_BYTES_MAX: u64 = 64 << 20;

/// What is known of an object's length before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// Whoever names the object says it.
    Exactly(u64),
    /// Nothing of its kind is longer.
    AtMost(u64),
}

/// From this size on, hashing leaves the async threads.
const HASH_INLINE_BYTES_MAX: usize = 256 << 10;

/// A place for objects. Cheap to clone; clones share the place.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    objects: Arc<dyn ObjectStore>,
    /// The directory, where objects are files.
    directory: Option<PathBuf>,
    url: String,
    request_timeout: Duration,
    /// One permit a core: captures of many tasks at once must not take all cores from the guests for long.
    cpu: Arc<Semaphore>,
    links: Links,
    /// Where objects are in a bucket.
    probe: Option<Probe>,
}

impl Store {
    /// Opens the store at `url`, and makes its directory where there is none: `file:///…` or a plain absolute path,
    /// `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix` with credentials and whatever else from
    /// the environment variables that object_store reads (`AWS_…`, `GOOGLE_…`, `AZURE_…`), or `memory://` (a new one with
    /// each call). It asks nothing of a bucket: [`Self::probe`] does.
    ///
    /// # Errors
    /// When the URL is none of these, the directory cannot be made or read, or the environment says too little.
    pub fn open(url: &str) -> Result<Self, OpenError> {
        Self::open_with(url, &bucket::environment())
    }

    /// As [`Self::open`], with these variables instead of the environment's.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(url: &str, variables: &[(String, String)]) -> Result<Self, OpenError> {
        let (objects, directory): (Arc<dyn ObjectStore>, _) = match Location::parse(url)? {
            Location::Memory => (Arc::new(InMemory::new()), None),
            Location::Bucket(bucket) => {
                let clients = Clients::new(bucket, url, variables)?;
                let store = Self::over(clients.objects, None, url, REQUEST_TIMEOUT);
                return Ok(store.with_probe(clients.probe));
            }
            Location::Directory(directory) => {
                let unusable = |source: crate::error::Cause| OpenError::Unusable {
                    path: directory.display().to_string(),
                    source,
                };
                fs::create_dir_all(&directory).map_err(|error| unusable(error.into()))?;
                let files = LocalFileSystem::new_with_prefix(&directory)
                    .map_err(|error| unusable(error.into()))?
                    .with_fsync(true);
                (Arc::new(files), Some(directory))
            }
        };
        Ok(Self::over(objects, directory, url, REQUEST_TIMEOUT))
    }

    /// A store over any client; tests put failing ones here.
    pub(crate) fn over(
        objects: Arc<dyn ObjectStore>,
        directory: Option<PathBuf>,
        url: &str,
        request_timeout: Duration,
    ) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            shared: Arc::new(Shared {
                objects,
                directory,
                url: url.into(),
                request_timeout,
                cpu: Arc::new(Semaphore::new(cores)),
                links: Links::default(),
                probe: None,
            }),
        }
    }

    /// A store over a part of this one's objects, which asks as this one does and computes no more than that alone.
    pub(crate) fn view(&self, objects: Arc<dyn ObjectStore>, directory: Option<PathBuf>) -> Self {
        let shared = &self.shared;
        let mut view = Self::over(objects, directory, &shared.url, shared.request_timeout);
        let own = Arc::get_mut(&mut view.shared).expect("the view is new and has no clones");
        own.cpu = Arc::clone(&shared.cpu);
        view
    }

    fn with_probe(mut self, probe: Probe) -> Self {
        let shared = Arc::get_mut(&mut self.shared).expect("the store is new and has no clones");
        shared.probe = Some(probe);
        self
    }

    /// Asks a bucket whether it is there and lets these credentials in, for seconds at most. Of a directory and of memory
    /// that is known since they were opened.
    ///
    /// # Errors
    /// When it is not so, with what is to be done about it.
    pub async fn probe(&self) -> Result<(), OpenError> {
        match &self.shared.probe {
            Some(probe) => probe.ask(self.url()).await,
            None => Ok(()),
        }
    }

    /// The URL that it was opened with.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Stores a prepared module under its hash. Storing it again changes nothing, and heals a damaged one.
    ///
    /// # Errors
    /// When it could not be written; nothing is then visible.
    pub async fn put_module(&self, module: impl Into<Bytes>) -> Result<ModuleHash, WriteError> {
        let module = module.into();
        let hash = self.hash(module.clone()).await;
        let hash = ModuleHash(hash.map_err(|error| error.writing("modules"))?);
        self.put(&keys::module(&hash), module).await?;
        Ok(hash)
    }

    /// Reads a module and verifies it by its hash.
    ///
    /// # Errors
    /// When it is missing, damaged or out of reach.
    pub async fn get_module(&self, hash: &ModuleHash) -> Result<Bytes, ReadError> {
        let key = keys::module(hash);
        let bytes = self.get(&key, Length::AtMost(WHOLE_BYTES_MAX)).await?;
        self.verify(&key, bytes, hash.0).await
    }

    /// Stores the postcard-encoded graph of a job.
    ///
    /// # Errors
    /// When it could not be written; nothing is then visible.
    pub async fn put_graph(
        &self,
        job: JobId,
        graph: impl Into<Bytes>,
    ) -> Result<ObjectRef, WriteError> {
        self.put_object(&keys::graph(job), graph).await
    }

    /// Stores an object whole, replacing one of the same key.
    ///
    /// # Errors
    /// When it could not be written; nothing is then visible.
    pub async fn put_object(
        &self,
        key: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<ObjectRef, WriteError> {
        let bytes = bytes.into();
        let object = self.describe(key, &bytes).await?;
        self.put(key, bytes).await?;
        Ok(object)
    }

    /// Reads an object whole and verifies its length and its hash.
    ///
    /// # Errors
    /// When it is missing, damaged or out of reach.
    pub async fn get_object(&self, object: &ObjectRef) -> Result<Bytes, ReadError> {
        let length = Length::Exactly(object.len);
        let bytes = self.get(&object.key, length).await?;
        self.verify(&object.key, bytes, object.hash).await
    }

    /// Stores a checkpoint's metadata, which the registry's pointer will name.
    ///
    /// # Errors
    /// When it could not be written; nothing is then visible.
    pub async fn write_metadata(
        &self,
        metadata: &CheckpointMetadata,
    ) -> Result<ObjectRef, WriteError> {
        let key = keys::metadata(metadata.job, metadata.checkpoint);
        self.put_object(&key, seal(metadata)).await
    }

    /// Reads a checkpoint's metadata.
    ///
    /// # Errors
    /// When it is missing, damaged or out of reach, or of another version.
    pub async fn read_metadata(&self, object: &ObjectRef) -> Result<CheckpointMetadata, ReadError> {
        let bytes = self.get_object(object).await?;
        unseal(&bytes, &object.key)
    }

    pub(crate) async fn read_versioned<T: Versioned>(
        &self,
        object: &ObjectRef,
    ) -> Result<T, ReadError> {
        let bytes = self.get_object(object).await?;
        codec::decode(&bytes).map_err(|error| ReadError::undecodable(&object.key, &error))
    }

    pub(crate) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.shared.objects
    }

    pub(crate) fn links(&self) -> &Links {
        &self.shared.links
    }

    pub(crate) fn directory(&self) -> Option<&FilePath> {
        self.shared.directory.as_deref()
    }

    /// Waits for a request, but not for ever.
    pub(crate) async fn request<T>(
        &self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, RequestError> {
        let timeout = self.shared.request_timeout;
        match tokio::time::timeout(timeout, request).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(RequestError::TimedOut(timeout)),
        }
    }

    /// Computes off the async threads, as many at a time as there are cores.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let permit = self.shared.cpu.acquire().await;
        let _permit = permit.expect("the semaphore is never closed");
        tokio::task::spawn_blocking(work)
            .await
            .map_err(RequestError::Lost)
    }

    /// What names these bytes under this key.
    ///
    /// # Errors
    /// When there are more of them than could be read back.
    pub(crate) async fn describe(&self, key: &str, bytes: &Bytes) -> Result<ObjectRef, WriteError> {
        let len = bytes.len() as u64;
        if len > WHOLE_BYTES_MAX {
            return Err(WriteError::TooLarge {
                key: key.into(),
                bytes: len,
                max: WHOLE_BYTES_MAX,
            });
        }
        let hash = self.hash(bytes.clone()).await;
        Ok(ObjectRef {
            key: key.into(),
            len,
            hash: hash.map_err(|error| error.writing(key))?,
        })
    }

    /// Reads an object. A wrong length is found before anything is allocated.
    pub(crate) async fn get(&self, key: &str, length: Length) -> Result<Bytes, ReadError> {
        let path = path(key).map_err(|error| ReadError::damaged(key, error.to_string()))?;
        self.request(async {
            let found = self.objects().get(&path).await?;
            match check_length(key, length, found.meta.size) {
                Ok(()) => found.bytes().await.map(Ok),
                Err(error) => Ok(Err(error)),
            }
        })
        .await
        .map_err(|error| error.reading(key))?
    }

    /// The length of an object; `None` if there is none.
    pub(crate) async fn len_if_there(&self, key: &str) -> Result<Option<u64>, ReadError> {
        let path = path(key).map_err(|error| ReadError::damaged(key, error.to_string()))?;
        let found = self.request(self.objects().head(&path)).await;
        match found.map_err(|error| error.reading(key)) {
            Ok(found) => Ok(Some(found.size)),
            Err(ReadError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every object below a prefix. Each page of a long list has its own time.
    pub(crate) async fn list_below(&self, prefix: &Path) -> Result<Vec<ObjectMeta>, RequestError> {
        let mut listed = self.objects().list(Some(prefix));
        let mut found = Vec::new();
        while let Some(object) = self.request(listed.try_next()).await? {
            found.push(object);
        }
        Ok(found)
    }

    async fn verify(&self, key: &str, bytes: Bytes, hash: [u8; 32]) -> Result<Bytes, ReadError> {
        let found = self.hash(bytes.clone()).await;
        if found.map_err(|error| error.reading(key))? == hash {
            Ok(bytes)
        } else {
            Err(ReadError::damaged(key, WRONG_HASH))
        }
    }

    async fn hash(&self, bytes: Bytes) -> Result<[u8; 32], RequestError> {
        if bytes.len() <= HASH_INLINE_BYTES_MAX {
            return Ok(*blake3::hash(&bytes).as_bytes());
        }
        self.compute(move || *blake3::hash(&bytes).as_bytes()).await
    }
}

/// Whether an object of this length is one that is read.
fn check_length(key: &str, length: Length, found: u64) -> Result<(), ReadError> {
    let (expected, max) = match length {
        Length::Exactly(expected) => (expected, WHOLE_BYTES_MAX),
        Length::AtMost(max) => (found, max),
    };
    if expected != found {
        return Err(ReadError::Truncated {
            key: key.into(),
            expected,
            found,
        });
    }
    if found > max {
        let reason = format!("it has {found} bytes, and nothing of its kind has more than {max}");
        return Err(ReadError::damaged(key, reason));
    }
    Ok(())
}

/// Why an object is refused whose bytes are not those that were written.
pub(crate) const WRONG_HASH: &str = "its hash is not that of what was written";

/// The client's form of a key. Keys from manifests may be anything; the client refuses those that leave the store.
pub(crate) fn path(key: &str) -> Result<Path, object_store::Error> {
    Ok(Path::parse(key)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::throttle::{ThrottleConfig, ThrottledStore};

    /// A store whose requests take an hour.
    fn stuck() -> Store {
        let hour = Duration::from_secs(3600);
        let config = ThrottleConfig {
            wait_get_per_call: hour,
            wait_put_per_call: hour,
            wait_list_with_delimiter_per_call: hour,
            ..ThrottleConfig::default()
        };
        let objects = Arc::new(ThrottledStore::new(InMemory::new(), config));
        Store::over(objects, None, "stuck", Duration::from_millis(10))
    }

    #[tokio::test]
    async fn a_store_that_does_not_answer_is_waited_for_only_so_long() {
        let store = stuck();
        let written = store.put_object("jobs/x/graph", "graph").await;
        let Err(error @ WriteError::TimedOut { .. }) = written else {
            panic!("{written:?}");
        };
        assert!(error.to_string().contains("`jobs/x/graph`"), "{error}");

        let object = ObjectRef {
            key: "jobs/x/graph".into(),
            len: 5,
            hash: [0; 32],
        };
        let error = store.get_object(&object).await.unwrap_err();
        assert!(matches!(error, ReadError::TimedOut { .. }), "{error:?}");
        assert!(!error.is_lost(), "the object may be whole");

        let error = store.list_checkpoints(JobId([1; 16])).await.unwrap_err();
        assert!(
            matches!(error, crate::CleanupError::TimedOut { .. }),
            "{error:?}"
        );
    }

    #[test]
    fn files_are_synced() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().to_str().unwrap()).unwrap();
        let client = format!("{:?}", store.objects());
        assert!(client.contains("fsync: true"), "{client}");
    }
}
