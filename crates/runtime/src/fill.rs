//! Fills a memory whose guest runs already: a page that is touched comes first, with its piece of the source, and
//! all others come in the background.
//!
//! One thread for each such memory serves its guest, which waits for one piece at a time, and reads it itself, whatever
//! else is being read: so no memory waits for another one's store. A few threads for the whole process fill the rest.
//!
//! It never touches a page that the guest may have written, and never lets anything that was computed from a page that
//! did not come pass as a result: the error is known before whoever waited goes on.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tidemill_protocol::image::{PAGE_BYTES, PageRun};

use crate::dirty::{Faults, Missing, NotPlaced, PageRange, Watch, ZEROS};
use crate::source::{Filling, PageSource, check_pieces, does_not_fit};

/// What the background asks a source for at once, in bytes: enough that the way to a store is used well, and little
/// enough that a memory whose pages are all waited for stays responsive.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// How long the background gives way to a fault. A fault that takes longer waits for something other than the processor.
const GIVE_WAY_MAX: Duration = Duration::from_millis(1);

/// One memory that is being filled.
#[derive(Debug)]
pub(crate) struct Fill {
    source: Arc<dyn PageSource>,
    missing: Arc<Missing>,
    /// Which pieces are there.
    done: Box<[AtomicBool]>,
    pieces_left: AtomicUsize,
    bytes_left: AtomicU64,
    /// The first piece that the background has not asked for.
    next: AtomicUsize,
    lost: OnceLock<String>,
}

/// Why a memory is not filled while its guest runs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FillError {
    /// The source contradicts the memory.
    #[error("{0}")]
    Source(String),
    /// The kernel or the machine does not offer it; nothing has happened.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Fill {
    /// Makes the memory's pages come from `source`, from now on. What it held is lost, and none of it may count as
    /// protected yet.
    pub(crate) fn prepare(
        source: Arc<dyn PageSource>,
        watch: Arc<Watch>,
        memory: &mut [u8],
    ) -> Result<(Arc<Self>, Faults), FillError> {
        let pieces = source.pieces();
        let bytes = check_pieces(pieces, memory.len()).map_err(FillError::Source)?;
        let ranges = pieces.iter().map(|piece| PageRange::from(*piece));
        let (missing, faults) = Missing::begin(watch, memory, ranges)?;
        let fill = Self {
            missing: Arc::new(missing),
            done: pieces.iter().map(|_| AtomicBool::new(false)).collect(),
            pieces_left: AtomicUsize::new(pieces.len()),
            bytes_left: AtomicU64::new(bytes),
            next: AtomicUsize::new(0),
            lost: OnceLock::new(),
            source,
        };
        Ok((Arc::new(fill), faults))
    }

    /// Starts the threads. Where that fails, nothing comes, and the memory is zero and watched no longer.
    pub(crate) fn start(self: &Arc<Self>, mut faults: Faults) -> io::Result<()> {
        if self.done.is_empty() {
            self.missing.close();
            return Ok(());
        }
        let fill = Arc::clone(self);
        let served = std::thread::Builder::new()
            .name("tidemill-fault".into())
            .spawn(move || fill.serve(&mut faults))
            .map(|_thread| ())
            .and_then(|()| fill_in_background(Arc::clone(self)));
        served.inspect_err(|_| self.give_up("no thread could be started to fill it".to_owned()))
    }

    /// The pages that are placed, for the owner of their mapping.
    pub(crate) fn missing(&self) -> Arc<Missing> {
        Arc::clone(&self.missing)
    }

    /// Why the memory is lost.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Whether every page is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.lost.get().is_none() && self.pieces_left.load(Ordering::Acquire) == 0
    }

    pub(crate) fn progress(&self) -> Option<Filling> {
        (!self.is_complete()).then(|| Filling {
            left_bytes: self.bytes_left.load(Ordering::Relaxed),
            error: self.lost.get().cloned(),
        })
    }

    /// Serves those who wait, until nobody can.
    fn serve(&self, faults: &mut Faults) {
        loop {
            match faults.next(&self.missing) {
                Ok(None) => return,
                Ok(Some(pages)) => pages.for_each(|page| self.serve_page(page)),
                Err(error) => {
                    self.give_up(format!("missing pages could not be waited for: {error}"));
                    return;
                }
            }
        }
    }

    fn serve_page(&self, page: usize) {
        let pieces = self.source.pieces();
        let piece = pieces.partition_point(|piece| piece.end() <= page);
        let within = pieces
            .get(piece)
            .is_some_and(|piece| piece.first as usize <= page);
        if self.lost.get().is_some() || !within {
            // Its error is known to all, or it has no contents.
            self.placed(self.missing.place(page, &ZEROS));
        } else if !self.done[piece].load(Ordering::Acquire) {
            let _wait = Wait::begin();
            self.read(piece..piece + 1, &mut || {});
        }
        // Whoever came to wait just after the page was placed.
        self.missing.wake(page);
    }

    /// Reads pieces and places them.
    fn read(&self, wanted: Range<usize>, before_each: &mut dyn FnMut()) {
        let pieces = self.source.pieces();
        let mut wrong = None;
        let mut lay = |run: PageRun, bytes: &[u8]| {
            let piece = wanted.start
                + pieces[wanted.clone()].partition_point(|piece| piece.end() <= run.first as usize);
            if wanted.contains(&piece)
                && pieces[piece] == run
                && bytes.len() == run.memory_range().len()
            {
                before_each();
                self.lay(piece, bytes);
            } else {
                wrong.get_or_insert(run);
            }
        };
        let read = catch_unwind(AssertUnwindSafe(|| {
            self.source.read(wanted.clone(), &mut lay)
        }));
        let read =
            read.unwrap_or_else(|_| Err("its source failed in an unforeseen way".to_owned()));
        let missed = || {
            self.done[wanted.clone()]
                .iter()
                .position(|done| !done.load(Ordering::Acquire))
        };
        match (read, wrong) {
            (Err(reason), _) => self.give_up(reason),
            (Ok(()), Some(run)) => self.give_up(does_not_fit(run)),
            (Ok(()), None) if self.missing.is_open() => {
                if let Some(missed) = missed() {
                    let run = pieces[wanted.start + missed];
                    self.give_up(format!("page {} of it was not found", run.first));
                }
            }
            (Ok(()), None) => {}
        }
    }

    fn lay(&self, piece: usize, bytes: &[u8]) {
        if self.done[piece].load(Ordering::Acquire) {
            return;
        }
        let first = self.source.pieces()[piece].first as usize;
        if self.placed(self.missing.place(first, bytes))
            && !self.done[piece].swap(true, Ordering::AcqRel)
        {
            self.bytes_left
                .fetch_sub(bytes.len() as u64, Ordering::Relaxed);
            if self.pieces_left.fetch_sub(1, Ordering::AcqRel) == 1 {
                // Every page exists, so that nobody waits any more.
                self.missing.close();
            }
        }
    }

    fn placed(&self, placed: Result<(), NotPlaced>) -> bool {
        match placed {
            Ok(()) => true,
            Err(NotPlaced::Closed) => false,
            Err(error @ NotPlaced::Kernel(_)) => {
                self.give_up(error.to_string());
                false
            }
        }
    }

    /// The memory is lost. That is known before anybody who waits goes on, with zeros.
    fn give_up(&self, reason: String) {
        if !self.missing.is_open() {
            return;
        }
        tracing::warn!(%reason, "pages of a restored memory did not come; its instance is lost");
        // The first reason counts.
        let _ = self.lost.set(reason);
        if let Err(error) = self.missing.release() {
            tracing::error!(%error, "missing pages of a lost memory are placed one by one");
        }
    }

    /// Takes the next pieces for the background: a batch, and whether there are more.
    fn next_batch(&self) -> (Range<usize>, bool) {
        let pieces = self.source.pieces();
        let is_done = |piece: usize| self.done[piece].load(Ordering::Acquire);
        let mut first = self.next.load(Ordering::Relaxed);
        while first < pieces.len() && is_done(first) {
            first += 1;
        }
        let mut end = first;
        let mut bytes = 0;
        while end < pieces.len() && bytes < BATCH_BYTES_MAX && !is_done(end) {
            bytes += pieces[end].pages as usize * PAGE_BYTES;
            end += 1;
        }
        self.next.store(end, Ordering::Relaxed);
        (first..end, end < pieces.len() && self.missing.is_open())
    }
}

/// The memories that are filled in the background, in turn, and the threads that do it.
struct Background {
    queue: VecDeque<Arc<Fill>>,
    threads: usize,
}

static BACKGROUND: Mutex<Background> = Mutex::new(Background {
    queue: VecDeque::new(),
    threads: 0,
});

fn background() -> MutexGuard<'static, Background> {
    BACKGROUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread for two of the machine's processors: the guests need the others.
fn threads_max() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| (processors.get() / 2).max(1))
}

fn fill_in_background(fill: Arc<Fill>) -> io::Result<()> {
    let mut background = background();
    if background.threads < threads_max() {
        let spawned = std::thread::Builder::new()
            .name("tidemill-fill".into())
            .spawn(work);
        match spawned {
            Ok(_thread) => background.threads += 1,
            Err(error) if background.threads == 0 => return Err(error),
            // The others will come to it.
            Err(_) => {}
        }
    }
    background.queue.push_back(fill);
    Ok(())
}

/// What a thread does while there is a memory to fill: a batch of each in turn.
fn work() {
    loop {
        let (fill, batch) = {
            let mut background = background();
            let Some(fill) = background.queue.pop_front() else {
                background.threads -= 1;
                return;
            };
            let (batch, more) = fill.next_batch();
            if more {
                background.queue.push_back(Arc::clone(&fill));
            }
            (fill, batch)
        };
        if !batch.is_empty() && fill.missing.is_open() {
            fill.read(batch, &mut give_way);
        }
    }
}

/// Those who wait for a piece, in the whole process: the background gives way to each for a moment.
struct Waiting {
    count: usize,
    /// When the last one began to wait.
    since: Option<Instant>,
}

static WAITING: Mutex<Waiting> = Mutex::new(Waiting {
    count: 0,
    since: None,
});
static NOBODY_WAITS: Condvar = Condvar::new();

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody waits while this lives.
struct Wait;

impl Wait {
    fn begin() -> Self {
        let mut waiting = waiting();
        waiting.count += 1;
        waiting.since = Some(Instant::now());
        Self
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waiting = waiting();
        waiting.count -= 1;
        if waiting.count == 0 {
            NOBODY_WAITS.notify_all();
        }
    }
}

/// Lets those go first who wait, unless they wait for something other than the processor.
fn give_way() {
    let waiting = waiting();
    let waited = waiting.since.map_or(GIVE_WAY_MAX, |since| since.elapsed());
    let left = GIVE_WAY_MAX.saturating_sub(waited);
    if waiting.count > 0 && !left.is_zero() {
        drop(NOBODY_WAITS.wait_timeout_while(waiting, left, |waiting| waiting.count > 0));
    }
}
