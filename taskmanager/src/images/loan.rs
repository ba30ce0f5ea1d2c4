//! An image file that others read, and that may be brought up to date at any time: whoever reads gets pages of the image
//! that was lent, or learns that it is gone, and never something in between.
//!
//! It never writes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_protocol::image::PageRun;
use tracing::warn;

/// For so long after it was last read an image counts as in use: whoever fills a memory from it comes back for more.
const USE: Duration = Duration::from_secs(2);

/// No longer than this, from the first to the last reading, an image is left as it is for others' sake.
const USE_MAX: Duration = Duration::from_secs(60);

/// An image file as it is now. Clones are of the same loan.
#[derive(Clone, Debug)]
pub(crate) struct Loan(Arc<Lent>);

#[derive(Debug)]
struct Lent {
    file: Arc<File>,
    /// The memory's size.
    bytes: u64,
    /// Whether the file is still that image. Whoever reads holds the lock meanwhile, so that the file is not changed.
    is_valid: RwLock<bool>,
    read: Mutex<Option<Read>>,
}

/// When an image was read.
#[derive(Clone, Copy, Debug)]
struct Read {
    first: Instant,
    last: Instant,
}

impl Loan {
    pub(super) fn new(file: Arc<File>, bytes: u64) -> Self {
        Self(Arc::new(Lent {
            file,
            bytes,
            is_valid: RwLock::new(true),
            read: Mutex::default(),
        }))
    }

    /// Reads pages, one after the other as they are named. It waits for the disk. `None` when the image is gone, has no such
    /// pages or cannot be read.
    pub(crate) fn read(&self, runs: &[PageRun]) -> Option<Bytes> {
        let places = runs.iter().map(PageRun::memory_range);
        if places.clone().any(|place| place.end as u64 > self.0.bytes) {
            return None;
        }
        let mut pages = vec![0; places.clone().map(|place| place.len()).sum()];
        // Held until everything is read.
        let is_valid = self.0.is_valid.read();
        let is_valid = is_valid.unwrap_or_else(PoisonError::into_inner);
        if !*is_valid {
            return None;
        }
        self.used();
        let mut rest = pages.as_mut_slice();
        for place in places {
            let (part, after) = rest.split_at_mut(place.len());
            if let Err(error) = self.0.file.read_exact_at(part, place.start as u64) {
                warn!(%error, "a local image that another TaskManager asks for cannot be read");
                return None;
            }
            rest = after;
        }
        Some(pages.into())
    }

    /// The file is about to become something else. Waits for those who are reading it.
    pub(super) fn recall(&self) {
        let mut is_valid = self
            .0
            .is_valid
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *is_valid = false;
    }

    /// Whether somebody has read it just now and is likely to go on.
    pub(super) fn is_in_use(&self) -> bool {
        self.last_read()
            .is_some_and(|read| read.last.elapsed() < USE && read.last - read.first < USE_MAX)
    }

    fn used(&self) {
        let now = Instant::now();
        let mut read = self.last_read();
        // A pause ends a use.
        let going_on = read.filter(|read| now - read.last < USE);
        let first = going_on.map_or(now, |read| read.first);
        *read = Some(Read { first, last: now });
    }

    fn last_read(&self) -> MutexGuard<'_, Option<Read>> {
        self.0.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
