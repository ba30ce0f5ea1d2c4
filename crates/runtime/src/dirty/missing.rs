//! Pages of a memory that do not exist yet: whoever touches one waits until it is placed. Pages are placed protected,
//! so that they count as unchanged.
//!
//! It never changes a page that exists, never places one after [`Missing::close`], and never leaves anybody waiting
//! after [`Missing::release`].

use std::io::{self, PipeReader, PipeWriter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::kernel::{self, Watch};
use super::{CAPTURE_PAGE_BYTES, PageRange};

/// Ranges without contents from this size on are not watched for missing pages, but zero from the start as fresh
/// memory is: at most a thousand of them fit a memory, and each may take a mapping of its own, of which a process has
/// 65,530. Smaller ones are placed as pages of zeros, which takes 0.05 µs for each.
const UNWATCHED_FROM_PAGES: usize = (4 << 20) / CAPTURE_PAGE_BYTES;

/// The missing pages of one memory.
#[derive(Debug)]
pub(crate) struct Missing {
    start: usize,
    bytes: usize,
    /// Whether some of them were given up.
    lost: AtomicBool,
    /// While pages may be placed. Whoever places pages holds this for reading, so that the owner of the mapping, who
    /// takes it away, knows when it was the last time.
    open: RwLock<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    watch: Arc<Watch>,
    /// Closing it ends whoever waits in [`Missing::next`].
    _stop: PipeWriter,
}

/// What wakes the thread that serves faults.
#[derive(Debug)]
pub(crate) struct Faults {
    watch: Arc<Watch>,
    stop: PipeReader,
    addresses: Vec<usize>,
}

/// Why pages were not placed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotPlaced {
    /// The memory is gone, or complete, or lost.
    #[error("no pages are awaited any more")]
    Closed,
    /// The kernel has no memory for them.
    #[error("a page of the memory could not be placed: {0}")]
    Kernel(io::Error),
}

impl Missing {
    /// From now on whoever touches one of the pages with contents waits for it; `contents` is ascending and disjoint, and
    /// within the memory. All other pages are zero. What the memory holds is lost.
    pub(crate) fn begin(
        watch: Arc<Watch>,
        memory: &mut [u8],
        contents: impl Iterator<Item = PageRange>,
    ) -> io::Result<(Self, Faults)> {
        if kernel::page_bytes() != CAPTURE_PAGE_BYTES as u64 {
            return Err(io::Error::other("the host's pages are larger than ours"));
        }
        let (stopped, stop) = io::pipe()?;
        let missing = Self {
            start: memory.as_ptr() as usize,
            bytes: memory.len(),
            lost: AtomicBool::new(false),
            open: RwLock::new(None),
        };
        let began = missing.watch_contents(&watch, contents);
        if let Err(error) = began {
            // Half of it is watched: nobody may wait for what does not come.
            watch.unregister(missing.start, missing.bytes)?;
            return Err(error);
        }
        let faults = Faults {
            watch: Arc::clone(&watch),
            stop: stopped,
            addresses: Vec::new(),
        };
        let open = Some(Open { watch, _stop: stop });
        *missing.open.write().unwrap_or_else(PoisonError::into_inner) = open;
        Ok((missing, faults))
    }

    /// Registers ranges with contents, merged where the zeros between them are few, and places those zeros.
    fn watch_contents(
        &self,
        watch: &Watch,
        contents: impl Iterator<Item = PageRange>,
    ) -> io::Result<()> {
        let mut zeros = Vec::new();
        let mut region: Option<PageRange> = None;
        let address = |page: usize| self.start + page * CAPTURE_PAGE_BYTES;
        let register = |region: PageRange| {
            watch.await_missing(address(region.first), region.pages * CAPTURE_PAGE_BYTES)
        };
        for range in contents {
            match &mut region {
                Some(last) if range.first < last.first + last.pages + UNWATCHED_FROM_PAGES => {
                    let end = last.first + last.pages;
                    if end < range.first {
                        zeros.push(PageRange {
                            first: end,
                            pages: range.first - end,
                        });
                    }
                    last.pages = range.first + range.pages - last.first;
                }
                _ => {
                    region.replace(range).map_or(Ok(()), register)?;
                }
            }
        }
        region.map_or(Ok(()), register)?;
        for range in zeros {
            // SAFETY: the range lies in a region that was registered above, of a memory that `begin` has for itself.
            unsafe { watch.place_zeros(address(range.first), range.pages * CAPTURE_PAGE_BYTES) }?;
        }
        Ok(())
    }

    /// Places pages from this one on, as far as they do not exist.
    pub(crate) fn place(&self, first_page: usize, contents: &[u8]) -> Result<(), NotPlaced> {
        let at = first_page * CAPTURE_PAGE_BYTES;
        assert!(
            at + contents.len() <= self.bytes && contents.len().is_multiple_of(CAPTURE_PAGE_BYTES),
            "pages are placed in the memory that awaits them"
        );
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let open = open.as_ref().ok_or(NotPlaced::Closed)?;
        // SAFETY: the range is within the memory, and the owner of its mapping calls `close` before it gives the mapping
        // back, which waits for the lock that is held here.
        unsafe { open.watch.place(self.start + at, contents) }.map_err(NotPlaced::Kernel)
    }

    /// Lets whoever waits for this page look again.
    pub(crate) fn wake(&self, page: usize) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.as_ref() {
            let woken = open
                .watch
                .wake(self.start + page * CAPTURE_PAGE_BYTES, CAPTURE_PAGE_BYTES);
            debug_assert!(woken.is_ok(), "{woken:?}");
        }
    }

    /// How far the awaited pages reach, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether all pages that did not come yet will come.
    pub(crate) fn is_whole(&self) -> bool {
        !self.lost.load(Ordering::Acquire)
    }

    /// Whether pages are still awaited.
    pub(crate) fn is_open(&self) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.is_some()
    }

    /// No more pages are placed when this returns. All are there, or nobody touches the memory any more.
    pub(crate) fn close(&self) {
        self.open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Gives up: what is missing is zero, and nobody waits.
    pub(crate) fn release(&self) -> io::Result<()> {
        self.lost.store(true, Ordering::Release);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = open.as_ref() {
            watched.watch.unregister(self.start, self.bytes)?;
        }
        open.take();
        Ok(())
    }
}

impl Faults {
    /// Waits until somebody waits for pages of this memory, and names them; `None` when no more are awaited.
    pub(crate) fn next(
        &mut self,
        missing: &Missing,
    ) -> io::Result<Option<impl Iterator<Item = usize>>> {
        let on = self.watch.next_missing(&self.stop, &mut self.addresses)?;
        let pages = self.addresses.drain(..).map(|address| {
            let offset = address.saturating_sub(missing.start).min(missing.bytes - 1);
            offset / CAPTURE_PAGE_BYTES
        });
        Ok(on.then_some(pages))
    }
}
