//! Where the memory of a restored instance comes from: bytes at hand, a source of pages that are read when they are
//! touched, or a file that is mapped.
//!
//! It never knows where a source has its pages from.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use tidemill_protocol::image::PageRun;

/// What a memory is filled from, page by page. It is called from several threads at once, which may block in it; when it
/// has to give up, such as for a cancelled task, it answers with an error.
pub trait PageSource: Send + Sync + fmt::Debug + 'static {
    /// Where pages are that are not zero: ascending, disjoint, and each small (a first touch waits for a whole one).
    fn pieces(&self) -> &[PageRun];

    /// Hands each of these pieces, verified, to `lay`: its pages and their bytes.
    ///
    /// # Errors
    /// When a piece cannot be read, or is not what was stored; in words for people. The memory is lost then, so
    /// whatever may be tried again is tried again in here.
    fn read(&self, pieces: Range<usize>, lay: &mut dyn FnMut(PageRun, &[u8]))
    -> Result<(), String>;
}

/// The memory of an image. What it does not have of the image's size is zero.
#[derive(Clone, Debug)]
pub enum MemoryImage {
    /// Laid over at once.
    Whole(Vec<u8>),
    /// Pages come when they are touched, and all of them in the background. Where the kernel cannot say that a page is
    /// touched for the first time, and for small memories, all of them come at once.
    Lazy(Arc<dyn PageSource>),
    /// Mapped copy-on-write: the file's first bytes are the memory. Whoever cuts it off or writes to it while the instance
    /// lives changes the memory, or ends the process.
    File(Arc<File>),
}

/// How far a memory's pages have come that are read while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filling {
    /// What is still to come, in bytes, zeros left out.
    pub left_bytes: u64,
    /// Why no more will come: the instance is lost.
    pub error: Option<String>,
}

/// Reads everything that a source has into a memory of zeros.
pub(crate) fn read_all(source: &dyn PageSource, memory: &mut [u8]) -> Result<(), String> {
    let pieces = source.pieces();
    let mut awaited = check_pieces(pieces, memory.len())?;
    let mut outside = None;
    source.read(
        0..pieces.len(),
        &mut |run, bytes| match memory.get_mut(run.memory_range()) {
            Some(room) if room.len() == bytes.len() => {
                room.copy_from_slice(bytes);
                awaited = awaited.saturating_sub(bytes.len() as u64);
            }
            _ => outside = Some(run),
        },
    )?;
    match outside {
        Some(run) => Err(does_not_fit(run)),
        None if awaited > 0 => Err(format!("{awaited} bytes of it were not found")),
        None => Ok(()),
    }
}

/// Checks that pieces are ascending, disjoint and within a memory; returns their size in bytes.
pub(crate) fn check_pieces(pieces: &[PageRun], memory_bytes: usize) -> Result<u64, String> {
    let mut end = 0;
    let mut bytes = 0;
    for piece in pieces {
        let range = piece.memory_range();
        if range.start < end || range.end > memory_bytes || range.is_empty() || piece.zero {
            return Err(does_not_fit(*piece));
        }
        end = range.end;
        bytes += range.len() as u64;
    }
    Ok(bytes)
}

pub(crate) fn does_not_fit(run: PageRun) -> String {
    format!(
        "{} pages from page {} on do not fit the memory, or not what was said of them",
        run.pages, run.first
    )
}
