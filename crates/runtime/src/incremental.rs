//! Captures that cost what changed, and reverts that rewrite what changed.
//!
//! It never runs guest code.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tidemill_protocol::Image;
use tidemill_protocol::image::PageRun;

use crate::capture::{Capture, CaptureCost, CaptureRoom};
use crate::dirty::{CAPTURE_PAGE_BYTES, DirtyMethod, PageRange, all};
use crate::host::GuestHost;
use crate::image::{self, CaptureError};
use crate::instance::{Instance, InstanceError};
use crate::limits::InstanceLimits;
use crate::mapping::RESERVED_BYTES;
use crate::report::PAGE_BYTES;

impl<H: GuestHost> Instance<H> {
    /// Captures what changed since the capture before: the pages, and everything outside memory. The first capture of
    /// an instance is whole, unless [`Instance::follow`] named what it adds to; so is every capture of a memory that is
    /// small or mostly rewritten, and one after the kernel could not say what changed. The task waits for as long as
    /// finding and copying the changed pages takes; compressing and storing them is for other threads.
    ///
    /// Changes are named once: the next capture holds only what changes from now on. So an abort undoes nothing: keep
    /// each capture until a checkpoint that contains it, or a later whole one, is complete.
    ///
    /// # Errors
    /// As [`Instance::capture`]. Memory's changes are not lost then: the next capture holds them.
    pub fn capture_changes(&mut self, mut room: CaptureRoom) -> Result<Capture, CaptureError> {
        let (globals, tables) = self.capture_outside_memory()?;
        let began = Instant::now();
        let memory = self.guest.memory.data(&self.guest.store);
        let found = self.changes.next(memory);
        let scanned = Instant::now();
        if found.base.is_none() {
            self.ahead.clear();
        }
        if self.ahead.is_empty() {
            room.copy(memory, found.ranges);
        } else {
            self.ahead.copy(memory, found.ranges);
            self.ahead.move_to(&mut room);
        }
        Ok(Capture {
            sequence: found.sequence,
            base: found.base,
            memory_bytes: memory.len() as u64,
            runs: room.runs,
            bytes: room.bytes,
            globals,
            tables,
            cost: CaptureCost {
                method: found.method,
                scan: scanned - began,
                copy: scanned.elapsed(),
            },
        })
    }

    /// Copies some of the pages that changed since the last capture, at most about `pages_max`, so that the next
    /// capture's pause is shorter: for tasks that change more than can be copied in a pause. Between two calls into the
    /// guest it takes as long as these pages do; a page that is written again is copied again. Returns how many pages
    /// were copied: zero when none is left, or when changes are not found by write protection.
    pub fn capture_ahead(&mut self, pages_max: u32) -> u64 {
        let memory = self.guest.memory.data(&self.guest.store);
        let ranges = self.changes.some(memory, pages_max as usize);
        self.ahead.copy(memory, ranges);
        ranges.iter().map(|range| range.pages as u64).sum()
    }

    /// The next capture holds these pages too, whether they change or not: an earlier capture that held them was not
    /// stored. Pages beyond the memory's end are left out.
    pub fn capture_again(&mut self, pages: impl IntoIterator<Item = Range<u32>>) {
        let memory = self.guest.memory.data(&self.guest.store);
        let end = all(memory).pages;
        let ranges: Vec<PageRange> = pages
            .into_iter()
            .map(|pages| (pages.start as usize, end.min(pages.end as usize)))
            .filter(|(first, end)| first < end)
            .map(|(first, end)| PageRange {
                first,
                pages: end - first,
            })
            .collect();
        self.ahead.copy(memory, &ranges);
    }

    /// The caller has this instance, as it is now, as capture `sequence`: it was restored from an image that stands for
    /// it. The next capture adds to it instead of being whole.
    pub fn follow(&mut self, sequence: u64) {
        self.ahead.clear();
        let memory = self.guest.memory.data(&self.guest.store);
        self.changes.follow(sequence, memory);
    }

    /// Finds changes in this way, instead of the best one that suits the machine and the memory's size. The next
    /// capture is whole.
    pub fn find_changes_by(&mut self, method: DirtyMethod) {
        self.changes.force(method);
    }

    /// Goes back to `image`, which is capture `sequence` of this task: a new instance over the same memory, in which
    /// only the pages that may have changed since are written. `changed` names the runs of every capture after
    /// `sequence`; what changed after the last one is found here. The next capture adds to `sequence`, and has the number
    /// after it, which a capture that was given up may have had before. The instance may have failed.
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
        let Self {
            guest,
            module,
            mapping,
            changes,
            ahead,
            ..
        } = self;
        let old_pages = all(guest.memory.data(&guest.store)).pages;
        let mut stale = PageSet::default();
        stale.extend(ahead.ranges());
        stale.extend(changed.into_iter().map(PageRange::from));
        // Ends the instance, and with it the other reference to the mapping.
        drop(guest);
        let mapping = match Arc::into_inner(mapping) {
            Some(mut mapping) => {
                let bytes = image.memory.len().next_multiple_of(PAGE_BYTES as usize);
                mapping.cut(bytes).map_err(InstanceError::no_memory)?;
                mapping
            }
            None => {
                let mut instance = Self::restore(&module, limits, host, image)?;
                instance.follow(sequence);
                return Ok(instance);
            }
        };
        let mut instance = Self::over(Arc::new(mapping), &module, limits, host)?;
        instance.changes = changes;
        image::grow_to(&mut instance.guest, &image.memory)?;
        let memory = instance.guest.memory.data_mut(&mut instance.guest.store);
        // What changed after the last capture, and where instantiation has placed the module's data segments.
        match instance.changes.peek(memory) {
            Some(ranges) => stale.extend(ranges.iter().copied()),
            None => stale.insert(all(memory)),
        }
        let pages = all(memory).pages;
        if pages > old_pages {
            stale.insert(PageRange {
                first: old_pages,
                pages: pages - old_pages,
            });
        }
        rewrite(memory, &image.memory, &stale);
        instance.changes.follow(sequence, memory);
        image::lay_outside_memory(
            &mut instance.guest,
            &instance.wasmtime,
            module.reachable(),
            image,
        )?;
        Ok(instance)
    }
}

/// Makes these pages of a memory the image's, which is as large.
fn rewrite(memory: &mut [u8], image: &[u8], stale: &PageSet) {
    let pages = all(memory).pages;
    for page in stale.pages().take_while(|page| *page < pages) {
        let start = page * CAPTURE_PAGE_BYTES;
        let (to, from) = (
            &mut memory[start..start + CAPTURE_PAGE_BYTES],
            &image[start..start + CAPTURE_PAGE_BYTES],
        );
        // A write to a page that is as it should be would make it count as changed.
        if to != from {
            to.copy_from_slice(from);
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

    /// The members, ascending.
    fn pages(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(index, word)| {
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
