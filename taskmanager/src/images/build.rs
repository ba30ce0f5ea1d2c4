//! Image files that are made of what is elsewhere: of the object store, or of another file. It takes as long as it takes,
//! on threads where nobody waits, a few at a time.
//!
//! It never touches a file that is somebody's image.

use std::path::PathBuf;
use std::sync::Arc;

use tidemill_protocol::CheckpointId;
use tidemill_protocol::image::PageRun;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_storage::{Store, StoredImage};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::Key;
use super::entry::Kept;
use super::file::ImageFile;
use super::source::{together, wanted_pieces};
use super::table::Built;
use crate::error_chain;

/// How many images are read at once. Reading one keeps about one core busy.
const BUILDS_MAX: usize = 1;

/// What an image is made from.
pub(super) enum From {
    /// Everything is read.
    Nothing,
    /// The image of an older checkpoint, which is brought up to date; what is in it is gone if that fails.
    Older(Kept),
    /// Another file is copied, which is this image.
    Copy(ImageFile),
}

/// Which image is to be made.
pub(super) struct Wanted {
    pub(super) key: Key,
    pub(super) number: u64,
    pub(super) checkpoint: CheckpointId,
    pub(super) manifest: ObjectRef,
    /// Larger ones are not made, in bytes of the disk.
    pub(super) max_bytes: u64,
}

/// Makes images.
pub(super) struct Builder {
    directory: PathBuf,
    store: Store,
    runtime: Handle,
    turns: Arc<Semaphore>,
    done: Arc<dyn Fn(Built) + Send + Sync>,
}

impl Builder {
    pub(super) fn new(
        directory: PathBuf,
        store: Store,
        runtime: Handle,
        done: impl Fn(Built) + Send + Sync + 'static,
    ) -> Self {
        Self {
            directory,
            store,
            runtime,
            turns: Arc::new(Semaphore::new(BUILDS_MAX)),
            done: Arc::new(done),
        }
    }

    /// Begins to make an image; it is told when it is done.
    pub(super) fn begin(&self, wanted: Wanted, from: From) {
        let (directory, store) = (self.directory.clone(), self.store.clone());
        let (turns, done) = (Arc::clone(&self.turns), Arc::clone(&self.done));
        self.runtime.spawn(async move {
            let _turn = turns.acquire().await;
            let (key, number) = (wanted.key, wanted.number);
            let made = make(&directory, &store, &wanted, from).await;
            let kept = made.inspect_err(|reason| {
                tracing::warn!(job = %key.0, task = %key.1, checkpoint = %wanted.checkpoint, reason, "a local image could not be made");
            });
            done(Built {
                key,
                number,
                kept: kept.ok(),
            });
        });
    }
}

async fn make(
    directory: &std::path::Path,
    store: &Store,
    wanted: &Wanted,
    from: From,
) -> Result<Kept, String> {
    let (file, stored) = match from {
        From::Copy(file) => {
            let directory = directory.to_owned();
            let copy = tokio::task::spawn_blocking(move || file.copy(&directory)).await;
            let copy = copy.map_err(|panic| panic.to_string())?;
            (copy.map_err(|error| error.to_string())?, None)
        }
        From::Older(older) => {
            let stored = open(store, wanted).await?;
            let file = match older.stored {
                Some(before) => {
                    let changed = stored.changed_since(&before);
                    fill(older.file, &stored, changed).await?
                }
                None => read_whole(directory, &stored).await?,
            };
            (file, Some(stored))
        }
        From::Nothing => {
            let stored = open(store, wanted).await?;
            (read_whole(directory, &stored).await?, Some(stored))
        }
    };
    Ok(Kept {
        file,
        checkpoint: wanted.checkpoint,
        manifest: wanted.manifest.clone(),
        stored,
        is_mapped: false,
    })
}

async fn open(store: &Store, wanted: &Wanted) -> Result<StoredImage, String> {
    let (job, task) = wanted.key;
    let opened = store.open_image(job, task, &wanted.manifest).await;
    let stored = opened.map_err(|error| error_chain(&error))?;
    let pieces = stored.pieces().iter();
    let bytes: usize = pieces.map(|piece| piece.memory_range().len()).sum();
    if bytes as u64 > wanted.max_bytes {
        return Err(format!(
            "it has {bytes} bytes, and local images may take {} (taskmanager.local_image_max_bytes)",
            wanted.max_bytes
        ));
    }
    Ok(stored)
}

async fn read_whole(
    directory: &std::path::Path,
    stored: &StoredImage,
) -> Result<ImageFile, String> {
    let file = ImageFile::create(directory, 0).map_err(|error| error.to_string())?;
    // A new file is zero wherever there is no piece.
    let pieces = stored.pieces().to_vec();
    fill(file, stored, pieces).await
}

/// Makes these pages of the file the image's.
async fn fill(
    mut file: ImageFile,
    stored: &StoredImage,
    changed: Vec<PageRun>,
) -> Result<ImageFile, String> {
    let wanted = wanted_pieces(stored, &changed);
    let bytes = stored.head().memory_bytes;
    let zeros: Vec<PageRun> = changed.into_iter().filter(|run| run.zero).collect();
    file = written(file, move |file| {
        file.resize(bytes)?;
        zeros.iter().try_for_each(|run| file.clear(*run))
    })
    .await?;
    for pieces in together(&wanted, stored.pieces()) {
        let read = stored.read_scattered(pieces).await;
        let read = read.map_err(|error| error_chain(&error))?;
        file = written(file, move |file| {
            read.iter()
                .try_for_each(|(piece, bytes)| file.write(*piece, bytes))
        })
        .await?;
    }
    Ok(file)
}

/// Writes where the system may make it wait.
async fn written(
    mut file: ImageFile,
    write: impl FnOnce(&mut ImageFile) -> std::io::Result<()> + Send + 'static,
) -> Result<ImageFile, String> {
    let writing = tokio::task::spawn_blocking(move || write(&mut file).map(|()| file));
    let written = writing.await.map_err(|panic| panic.to_string())?;
    written.map_err(|error| error.to_string())
}
