//! Captures that cost what changed.
//!
//! It never runs guest code.

use std::ops::Range;
use std::time::Instant;

use crate::capture::{Capture, CaptureCost, CaptureRoom};
use crate::dirty::{DirtyMethod, PageRange, all};
use crate::host::GuestHost;
use crate::image::CaptureError;
use crate::instance::Instance;

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
        let copied = scanned.elapsed();
        if let Some(reason) = self.guest.store.data().lost() {
            return Err(CaptureError::ImageLost {
                reason: reason.to_owned(),
            });
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
                copy: copied,
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
}
