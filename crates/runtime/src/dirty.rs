//! Which pages of a linear memory may have changed since they were last captured. One question, three ways to answer
//! it: the kernel notes writes ([`DirtyMethod::WriteProtection`]), contents are compared by hashes
//! ([`DirtyMethod::Hashes`]), or everything counts as changed ([`DirtyMethod::Whole`]).
//!
//! It never misses a change, whoever wrote: the guest, the host, or the kernel on the host's behalf. It may name pages
//! that did not change.

mod hashes;
#[allow(
    unsafe_code,
    reason = "userfaultfd and the page map are system calls without a safe form"
)]
mod kernel;
#[allow(
    unsafe_code,
    reason = "pages are placed in a mapping that belongs to somebody else, who is asked"
)]
mod missing;
mod protection;
#[cfg(test)]
mod tests;
mod whole;

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

pub(crate) use hashes::Hashes;
pub(crate) use kernel::Watch;
pub(crate) use missing::{Faults, Missing, NotPlaced};
pub(crate) use protection::WriteProtection;
pub(crate) use whole::Whole;

/// The size of the host's pages.
pub(crate) fn host_page_bytes() -> usize {
    kernel::page_bytes() as usize
}

/// The unit in which changes are found and captured, on every machine.
pub const CAPTURE_PAGE_BYTES: usize = 4096;

/// One page of nothing.
pub(crate) const ZEROS: [u8; CAPTURE_PAGE_BYTES] = [0; CAPTURE_PAGE_BYTES];

/// How changed pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DirtyMethod {
    /// The kernel (Linux 6.7 or later) lets the first write to each page pass and remembers it. The pause grows with
    /// the pages that changed; the first write to a page after a capture costs about a microsecond.
    WriteProtection,
    /// Every page's hash is compared with the one it had. Works everywhere; the pause grows with the memory's size.
    Hashes,
    /// Nothing is remembered, and every capture is whole.
    Whole,
}

impl fmt::Display for DirtyMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteProtection => "write protection",
            Self::Hashes => "page hashes",
            Self::Whole => "whole images",
        })
    }
}

impl DirtyMethod {
    /// The best way that this machine offers. The first call tries it out and logs which it is, and why not a better
    /// one; a process does so at its start.
    #[must_use]
    pub fn of_this_machine() -> Self {
        static FOUND: OnceLock<DirtyMethod> = OnceLock::new();
        *FOUND.get_or_init(|| match protection::probe() {
            Ok(()) => {
                tracing::info!(method = %Self::WriteProtection, "changed pages are found by the kernel");
                Self::WriteProtection
            }
            Err(error) => {
                tracing::warn!(method = %Self::Hashes, reason = %error, "changed pages are found by comparing hashes, which takes longer with larger state: write protection needs Linux 6.7 and a container that allows userfaultfd and /proc/self/pagemap");
                Self::Hashes
            }
        })
    }
}

/// Pages that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRange {
    /// The first page's number.
    pub(crate) first: usize,
    /// How many.
    pub(crate) pages: usize,
}

/// Appends a range, as a part of the last one where they meet.
pub(crate) fn push(ranges: &mut Vec<PageRange>, range: PageRange) {
    match ranges.last_mut() {
        Some(last) if last.first + last.pages == range.first => last.pages += range.pages,
        _ if range.pages == 0 => {}
        _ => ranges.push(range),
    }
}

/// Watches one memory, which is handed in whole each time, always from the same address on. It may have grown in
/// between; what has grown counts as zero before. Its size is a multiple of [`CAPTURE_PAGE_BYTES`].
///
/// After an error nothing is known: [`DirtyTracker::reset`] comes next.
pub(crate) trait DirtyTracker: Send + fmt::Debug {
    /// Which way this is.
    fn method(&self) -> DirtyMethod;

    /// What else watches the memory for it; only one can, at a time.
    fn watch(&self) -> Option<Arc<Watch>> {
        None
    }

    /// The memory has only its first `bytes` now, a multiple of 64 KiB; what lay beyond is gone.
    fn cut(&mut self, _bytes: usize) -> io::Result<()> {
        Ok(())
    }

    /// From now on all of `memory` counts as unchanged.
    fn reset(&mut self, memory: &[u8]) -> io::Result<()>;

    /// Appends, in ascending order, the pages that may have changed since the last reset or the last call; from now on
    /// they count as unchanged. So whoever calls this keeps what it got until nobody needs it any more.
    fn take_dirty(&mut self, memory: &[u8], dirty: &mut Vec<PageRange>) -> io::Result<()>;

    /// Like [`DirtyTracker::take_dirty`], for a caller that is about to write to these pages: they may count as changed
    /// still, so that writing to them costs no more than usual.
    fn peek_dirty(&mut self, memory: &[u8], dirty: &mut Vec<PageRange>) -> io::Result<()> {
        self.take_dirty(memory, dirty)
    }

    /// Like [`DirtyTracker::take_dirty`], but at most about `pages_max` pages, from page `from` on. Returns where to go
    /// on, or `None` at the end. What has grown since the last call is left to `take_dirty`; a tracker that can only
    /// look at everything at once leaves all of it.
    fn take_some(
        &mut self,
        _memory: &[u8],
        _from: usize,
        _pages_max: usize,
        _dirty: &mut Vec<PageRange>,
    ) -> io::Result<Option<usize>> {
        Ok(None)
    }

    /// Appends, in ascending order, the pages that may hold anything but zeros.
    fn populated(&mut self, memory: &[u8], populated: &mut Vec<PageRange>) -> io::Result<()> {
        push(populated, all(memory));
        Ok(())
    }
}

/// Every page of a memory.
pub(crate) fn all(memory: &[u8]) -> PageRange {
    PageRange {
        first: 0,
        pages: memory.len() / CAPTURE_PAGE_BYTES,
    }
}
