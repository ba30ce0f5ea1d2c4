//! The kernel watches: pages are write-protected, the first write to each lifts its protection without waking anybody,
//! and one call lists the pages whose protection was lifted and protects them again. The scan costs microseconds for
//! each mebibyte of memory, not for each page written.
//!
//! It never scans or protects beyond the memory's size: the reservation is registered whole, so that growth is
//! covered, but walking all of it would take longer than most captures.

use std::io;
use std::sync::Arc;

use super::kernel::{PageMap, Pages, Watch};
use super::{CAPTURE_PAGE_BYTES, DirtyMethod, DirtyTracker, PageRange, push};
use crate::mapping::{Mapping, RESERVED_BYTES};

/// Watches one reservation.
#[derive(Debug)]
pub(crate) struct WriteProtection {
    watch: Arc<Watch>,
    page_map: PageMap,
    /// Where the memory begins.
    start: usize,
    /// How many bytes from the start were protected at some time. Pages beyond are not known to be unwritten.
    primed_bytes: usize,
}

impl WriteProtection {
    /// Registers the whole reservation that begins at address `start`.
    pub(crate) fn open(start: usize) -> io::Result<Self> {
        let watch = Watch::open()?;
        watch.register(start, RESERVED_BYTES)?;
        Ok(Self {
            watch: Arc::new(watch),
            page_map: PageMap::open()?,
            start,
            primed_bytes: 0,
        })
    }

    /// The address after the memory's last byte.
    fn end(&self, memory: &[u8]) -> io::Result<usize> {
        if memory.as_ptr() as usize == self.start {
            Ok(self.start + memory.len())
        } else {
            Err(io::Error::other(
                "the memory is not the one that is watched",
            ))
        }
    }
}

impl DirtyTracker for WriteProtection {
    fn method(&self) -> DirtyMethod {
        DirtyMethod::WriteProtection
    }

    fn watch(&self) -> Option<Arc<Watch>> {
        Some(Arc::clone(&self.watch))
    }

    fn cut(&mut self, bytes: usize) -> io::Result<()> {
        self.primed_bytes = self.primed_bytes.min(bytes);
        self.watch
            .register(self.start + bytes, RESERVED_BYTES - bytes)
    }

    fn reset(&mut self, memory: &[u8]) -> io::Result<()> {
        self.end(memory)?;
        self.primed_bytes = 0;
        self.watch.protect(self.start, memory.len())?;
        self.primed_bytes = memory.len();
        Ok(())
    }

    fn take_dirty(&mut self, memory: &[u8], dirty: &mut Vec<PageRange>) -> io::Result<()> {
        let (start, end) = (self.start, self.end(memory)?);
        let primed_end = start + self.primed_bytes.min(memory.len());
        let mut found = |from: usize, to: usize| push(dirty, pages(start, from, to));
        self.page_map
            .scan(start, primed_end, Pages::TakeWritten, None, &mut found)?;
        if primed_end < end {
            // What has grown was zero, and where nobody has written still is. The guest does not run now, so nothing
            // is written between the two calls.
            self.page_map
                .scan(primed_end, end, Pages::TouchedAndWritten, None, &mut found)?;
            self.watch.protect(primed_end, end - primed_end)?;
        }
        self.primed_bytes = memory.len();
        Ok(())
    }

    fn populated(&mut self, memory: &[u8], populated: &mut Vec<PageRange>) -> io::Result<()> {
        let (start, end) = (self.start, self.end(memory)?);
        let mut found = |from: usize, to: usize| push(populated, pages(start, from, to));
        self.page_map
            .scan(start, end, Pages::Touched, None, &mut found)?;
        Ok(())
    }

    fn peek_dirty(&mut self, memory: &[u8], dirty: &mut Vec<PageRange>) -> io::Result<()> {
        let (start, end) = (self.start, self.end(memory)?);
        let primed_end = start + self.primed_bytes.min(memory.len());
        let mut found = |from: usize, to: usize| push(dirty, pages(start, from, to));
        self.page_map
            .scan(start, primed_end, Pages::Written, None, &mut found)?;
        self.page_map
            .scan(primed_end, end, Pages::TouchedAndWritten, None, &mut found)?;
        Ok(())
    }

    fn take_some(
        &mut self,
        memory: &[u8],
        from: usize,
        pages_max: usize,
        dirty: &mut Vec<PageRange>,
    ) -> io::Result<Option<usize>> {
        self.end(memory)?;
        let start = self.start;
        let end = start + self.primed_bytes.min(memory.len());
        let from = (start + from * CAPTURE_PAGE_BYTES).min(end);
        let mut found = |from: usize, to: usize| push(dirty, pages(start, from, to));
        let to = self.page_map.scan(
            from,
            end,
            Pages::TakeWritten,
            Some(pages_max as u64),
            &mut found,
        )?;
        Ok((to < end).then_some((to - start) / CAPTURE_PAGE_BYTES))
    }
}

/// Addresses as page numbers.
fn pages(start: usize, from: usize, to: usize) -> PageRange {
    PageRange {
        first: (from - start) / CAPTURE_PAGE_BYTES,
        pages: (to - from) / CAPTURE_PAGE_BYTES,
    }
}

/// Tries it out on a small memory: a kernel can know every call and still not see a write (emulated ones do).
pub(super) fn probe() -> io::Result<()> {
    const BLOCK_BYTES: usize = 64 * 1024;
    let mut mapping = Mapping::reserve()?;
    let mut tracker = WriteProtection::open(mapping.address())?;
    let memory = mapping.grown(BLOCK_BYTES)?;
    memory[0] = 1;
    tracker.reset(memory)?;
    memory[BLOCK_BYTES / 2] = 1;
    let memory = mapping.grown(2 * BLOCK_BYTES)?;
    memory[BLOCK_BYTES] = 1;
    // One page of the host may be several of ours.
    let mut first = Vec::new();
    tracker.take_dirty(memory, &mut first)?;
    let mut second = Vec::new();
    tracker.take_dirty(memory, &mut second)?;
    let has = |byte: usize| {
        let page = byte / CAPTURE_PAGE_BYTES;
        first
            .iter()
            .any(|range| (range.first..range.first + range.pages).contains(&page))
    };
    if !has(BLOCK_BYTES / 2) || !has(BLOCK_BYTES) || has(0) || !second.is_empty() {
        let found = format!("the kernel reported writes to {first:?} and then {second:?}");
        return Err(io::Error::other(found));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_kernel_offers_it_it_works() {
        match Watch::open().and_then(|_watch| PageMap::open()) {
            Ok(_) => probe().expect("asynchronous write protection sees every write"),
            Err(error) => {
                assert!(probe().is_err());
                eprintln!("the rest is not tested here: {error}");
            }
        }
    }
}
