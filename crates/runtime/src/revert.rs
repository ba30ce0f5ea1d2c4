//! Going back to an earlier image: a new instance over the same memory, in which only what changed is written.
//!
//! It never runs guest code, and never asks for a page that is as it should be.

use std::sync::Arc;

use tidemill_protocol::image::PageRun;
use tidemill_protocol::{Image, ImageHead};

use crate::dirty::{CAPTURE_PAGE_BYTES, PageRange, ZEROS, all};
use crate::host::GuestHost;
use crate::image;
use crate::instance::{Instance, InstanceError};
use crate::limits::InstanceLimits;
use crate::mapping::RESERVED_BYTES;
use crate::source::does_not_fit;

/// Reads pages of an image, as [`Instance::revert_from`] says.
type ReadPages<'a> =
    dyn FnMut(&[PageRun], &mut dyn FnMut(PageRun, &[u8])) -> Result<(), String> + 'a;

impl<H: GuestHost> Instance<H> {
    /// As [`Instance::revert_from`], to an image that is at hand.
    ///
    /// # Errors
    /// As [`Instance::restore`]; the instance is gone then, and can be restored from any image.
    pub fn revert(
        self,
        limits: InstanceLimits,
        host: H,
        image: &Image,
        sequence: u64,
        changed: impl IntoIterator<Item = PageRun>,
    ) -> Result<Self, InstanceError> {
        let head = ImageHead {
            memory_bytes: image.memory.len() as u64,
            globals: image.globals.clone(),
            tables: image.tables.clone(),
            host_state: Vec::new(),
            channel_state: Vec::new(),
        };
        self.revert_from(
            limits,
            host,
            &head,
            sequence,
            changed,
            &mut |wanted, lay| {
                for run in wanted {
                    lay(*run, &image.memory[run.memory_range()]);
                }
                Ok(())
            },
        )
    }

    /// Goes back to the image that `head` begins, which is capture `sequence` of this task: a new instance over the same
    /// memory, in which only the pages that may have changed since are written. `changed` names the runs of every
    /// capture after `sequence`; what changed after the last one is found here. The next capture adds to `sequence`, and
    /// has the number after it, which a capture that was given up may have had before. The instance may have failed,
    /// its memory may still be being filled, and the image that it was filled from may be lost.
    ///
    /// `read` is asked once for these pages, ascending and merged where they meet, and hands over every one that is
    /// not zero; it may hand over others too. Pages that it does not hand over are zero.
    ///
    /// # Errors
    /// As [`Instance::restore`], and when `read` fails; the instance is gone then, and can be restored from any image.
    pub fn revert_from(
        self,
        limits: InstanceLimits,
        host: H,
        head: &ImageHead,
        sequence: u64,
        changed: impl IntoIterator<Item = PageRun>,
        read: &mut ReadPages<'_>,
    ) -> Result<Self, InstanceError> {
        let Self {
            guest,
            module,
            mapping,
            mut changes,
            ahead,
            ..
        } = self;
        let old_bytes = guest.memory.data_size(&guest.store);
        let fill = guest.store.data().fill.clone();
        let mut stale = PageSet::default();
        stale.extend(ahead.ranges());
        stale.extend(changed.into_iter().map(PageRange::from));
        // Ends the instance, and with it the other reference to the mapping.
        drop(guest);
        let Some(mut mapping) = Arc::into_inner(mapping) else {
            return Err(InstanceError::Memory {
                reason: "something else holds the instance's memory".to_owned(),
            });
        };
        let bytes = usize::try_from(head.memory_bytes).unwrap_or(RESERVED_BYTES);
        let kept_bytes = mapping.cut(bytes).map_err(InstanceError::no_memory)?;
        if kept_bytes < old_bytes {
            changes.cut(kept_bytes);
        }
        let mut instance = Self::over(Arc::new(mapping), &module, limits, host)?;
        instance.changes = changes;
        if kept_bytes > 0 {
            // Its pages still come, as they were: what changed since is not among those that are missing.
            instance.guest.store.data_mut().fill = fill;
        }
        image::grow_to(&mut instance.guest, head.memory_bytes)?;
        let memory = instance.guest.memory.data_mut(&mut instance.guest.store);
        // What changed after the last capture, and where instantiation has placed the module's data segments.
        match instance.changes.peek(memory) {
            Some(ranges) => stale.extend(ranges.iter().copied()),
            None => stale.insert(all(memory)),
        }
        stale.insert(PageRange::bytes(kept_bytes.min(old_bytes), memory.len()));
        stale.cut(all(memory).pages);
        rewrite(memory, stale, read).map_err(|reason| InstanceError::Memory { reason })?;
        instance.changes.follow(sequence, memory);
        instance.lay_outside(&head.globals, &head.tables)?;
        Ok(instance)
    }
}

/// Makes these pages of a memory what `read` says they are.
fn rewrite(memory: &mut [u8], mut stale: PageSet, read: &mut ReadPages<'_>) -> Result<(), String> {
    let wanted = stale.runs();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut wrong = None;
    read(&wanted, &mut |run, bytes| {
        if !run.zero && bytes.len() != run.memory_range().len() {
            wrong = Some(run);
            return;
        }
        for page in (run.first as usize..run.end()).filter(|page| !run.zero && stale.has(*page)) {
            let from = (page - run.first as usize) * CAPTURE_PAGE_BYTES;
            write_page(memory, page, &bytes[from..from + CAPTURE_PAGE_BYTES]);
        }
        if !run.zero {
            stale.remove(PageRange::from(run));
        }
    })?;
    if let Some(run) = wrong {
        return Err(does_not_fit(run));
    }
    for page in stale.pages() {
        write_page(memory, page, &ZEROS);
    }
    Ok(())
}

fn write_page(memory: &mut [u8], page: usize, from: &[u8]) {
    let start = page * CAPTURE_PAGE_BYTES;
    let to = &mut memory[start..start + CAPTURE_PAGE_BYTES];
    // A write to a page that is as it should be would make it count as changed.
    if to != from {
        to.copy_from_slice(from);
    }
}

impl PageRange {
    /// The pages from one byte to another.
    fn bytes(from: usize, to: usize) -> Self {
        Self {
            first: from / CAPTURE_PAGE_BYTES,
            pages: to.saturating_sub(from) / CAPTURE_PAGE_BYTES,
        }
    }
}

impl From<PageRun> for PageRange {
    fn from(run: PageRun) -> Self {
        Self {
            first: run.first as usize,
            pages: run.pages as usize,
        }
    }
}

/// A set of pages.
#[derive(Debug, Default)]
struct PageSet {
    /// A bit for each page.
    words: Vec<u64>,
}

impl PageSet {
    fn insert(&mut self, range: PageRange) {
        let end = (range.first + range.pages).min(RESERVED_BYTES / CAPTURE_PAGE_BYTES);
        if self.words.len() * 64 < end {
            self.words.resize(end.div_ceil(64), 0);
        }
        for page in range.first..end {
            self.words[page / 64] |= 1 << (page % 64);
        }
    }

    fn remove(&mut self, range: PageRange) {
        for page in range.first..(range.first + range.pages).min(self.words.len() * 64) {
            self.words[page / 64] &= !(1 << (page % 64));
        }
    }

    /// Forgets pages from this one on.
    fn cut(&mut self, end: usize) {
        let beyond = self.words.len() * 64;
        if end < beyond {
            self.remove(PageRange {
                first: end,
                pages: beyond - end,
            });
        }
    }

    fn has(&self, page: usize) -> bool {
        let word = self.words.get(page / 64).copied().unwrap_or(0);
        word >> (page % 64) & 1 == 1
    }

    /// The members as runs, ascending.
    fn runs(&self) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for page in self.pages() {
            match runs.last_mut() {
                Some(last) if last.end() == page => last.pages += 1,
                _ => runs.push(PageRun {
                    first: page as u32,
                    pages: 1,
                    zero: false,
                }),
            }
        }
        runs
    }

    /// The members, ascending.
    fn pages(&self) -> impl Iterator<Item = usize> {
        let words = self.words.iter().enumerate();
        words
            .filter(|(_, word)| **word != 0)
            .flat_map(|(index, word)| {
                let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
                set.map(move |bit| index * 64 + bit)
            })
    }
}

impl Extend<PageRange> for PageSet {
    fn extend<T: IntoIterator<Item = PageRange>>(&mut self, ranges: T) {
        ranges.into_iter().for_each(|range| self.insert(range));
    }
}
