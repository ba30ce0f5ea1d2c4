//! Which pages the next capture takes: those that changed since the one before, or all of them where that is cheaper
//! or nothing better is known. It asks a [`DirtyTracker`] and decides when not to.
//!
//! It never copies a page, and never answers with fewer pages than changed.

use std::io;
use std::sync::Arc;

use crate::dirty::{
    DirtyMethod, DirtyTracker, Hashes, PageRange, Watch, Whole, WriteProtection, all,
};

/// Up to this size a memory is copied sooner than the kernel is asked and the guest takes the faults: 128 KiB are copied
/// in 4 µs, which is what a scan takes.
pub(crate) const WHOLE_UP_TO_BYTES: usize = 128 * 1024;
/// From this share of changed pages on, in eighths, looking for them costs more than the pages that are left out would:
/// the guest's fault takes 0.7 to 1 µs for each page that changed; copying, compressing and hashing about 6 µs for each
/// page that did not.
const WHOLE_FROM_EIGHTHS: usize = 7;
/// Larger memories are never captured whole for that: the pause would be longer than 10 ms on a busy machine, and pages
/// can be copied ahead only where changes are looked for.
const WHOLE_IF_MOSTLY_CHANGED_UP_TO_BYTES: usize = 32 << 20;
/// How many captures are then whole before changes are looked for again.
const WHOLE_CAPTURES: u32 = 15;

/// What one memory's captures were, and what the next one takes.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// What the caller wants instead of what suits the machine and the memory's size.
    forced: Option<DirtyMethod>,
    chosen: Option<Chosen>,
    /// The sequence number of the last capture, or of the image that the instance was made from.
    last: u64,
    /// Whether the tracker knows what changed since `last`.
    known: bool,
    /// Whether the tracker counts the memory as unchanged, with nothing said yet about what it follows.
    fresh: bool,
    /// Whether pages that the kernel knows nothing of may hold anything but zeros.
    elsewhere: bool,
    /// Whole captures still to come before changes are looked for again.
    resting: u32,
    /// Where [`Changes::some`] goes on.
    cursor: usize,
    ranges: Vec<PageRange>,
}

/// The tracker in use, and what it was chosen for.
#[derive(Debug)]
struct Chosen {
    wanted: DirtyMethod,
    tracker: Box<dyn DirtyTracker>,
}

/// What a capture takes.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub(crate) sequence: u64,
    pub(crate) base: Option<u64>,
    pub(crate) method: DirtyMethod,
    pub(crate) ranges: &'a [PageRange],
}

impl Changes {
    /// Finds changes in this way from now on; the next capture is whole.
    pub(crate) fn force(&mut self, method: DirtyMethod) {
        self.forced = Some(method);
        self.known = false;
        self.fresh = false;
    }

    /// Pages of the memory are somewhere else, and come when they are touched.
    pub(crate) fn are_elsewhere(&mut self) {
        self.elsewhere = true;
    }

    /// What tells when a missing page is touched, if the kernel watches this memory.
    pub(crate) fn watch(&mut self, memory: &[u8]) -> Option<Arc<Watch>> {
        self.choose(memory).tracker.watch()
    }

    /// The memory counts as unchanged from now on, before any of its pages has come.
    pub(crate) fn begin(&mut self, memory: &[u8]) {
        let reset = self.choose(memory).tracker.reset(memory);
        self.fresh = known(reset).is_some();
    }

    /// Only the memory's first `bytes` are what they were; what lay beyond is gone, and watched anew.
    pub(crate) fn cut(&mut self, bytes: usize) {
        if let Some(chosen) = &mut self.chosen {
            let cut = chosen.tracker.cut(bytes);
            self.known &= known(cut).is_some();
        }
        if bytes == 0 {
            self.fresh = false;
            self.elsewhere = false;
        }
    }

    /// The caller has the memory, as it is now, as capture `sequence`; what changes from now on is looked for.
    pub(crate) fn follow(&mut self, sequence: u64, memory: &[u8]) {
        self.last = sequence;
        self.resting = 0;
        self.choose(memory);
        if std::mem::take(&mut self.fresh) {
            self.known = true;
        }
        if self.known {
            // Protecting again what changed is quicker than protecting everything.
            let mut ranges = std::mem::take(&mut self.ranges);
            ranges.clear();
            let taken = self.choose(memory).tracker.take_dirty(memory, &mut ranges);
            self.ranges = ranges;
            self.known = known(taken).is_some();
        }
        if !self.known {
            let reset = self.choose(memory).tracker.reset(memory);
            self.known = known(reset).is_some();
        }
    }

    /// The pages that may have changed since the last capture or [`Changes::follow`], to be written to before the next
    /// `follow`. `None` when that is not known.
    pub(crate) fn peek(&mut self, memory: &[u8]) -> Option<&[PageRange]> {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.clear();
        self.choose(memory);
        if self.known {
            let peeked = self.choose(memory).tracker.peek_dirty(memory, &mut ranges);
            self.known = known(peeked).is_some();
        }
        self.ranges = ranges;
        self.known.then_some(self.ranges.as_slice())
    }

    /// Some of the pages that changed since the last capture; from now on they count as unchanged, so the caller adds
    /// them to what the next capture takes. None when nothing is left, or nothing is known.
    pub(crate) fn some(&mut self, memory: &[u8], pages_max: usize) -> &[PageRange] {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.clear();
        self.choose(memory);
        // From where the last call stopped to the end, and once more from the start.
        for _ in 0..2 {
            let from = self.cursor;
            if !self.known || !ranges.is_empty() {
                break;
            }
            let tracker = &mut self.choose(memory).tracker;
            let taken = tracker.take_some(memory, from, pages_max, &mut ranges);
            match known(taken) {
                Some(cursor) => self.cursor = cursor.unwrap_or(0),
                None => self.known = false,
            }
        }
        self.ranges = ranges;
        &self.ranges
    }

    /// The pages that the next capture takes.
    pub(crate) fn next(&mut self, memory: &[u8]) -> Found<'_> {
        let base = self.last;
        self.last += 1;
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.clear();
        let looked = self.look(memory, &mut ranges);
        let method = known(looked).unwrap_or_else(|| {
            self.known = false;
            ranges.clear();
            ranges.push(all(memory));
            DirtyMethod::Whole
        });
        self.ranges = ranges;
        Found {
            sequence: self.last,
            base: (method != DirtyMethod::Whole).then_some(base),
            method,
            ranges: &self.ranges,
        }
    }

    /// Appends all that is not zero, or what changed; says by which method.
    fn look(&mut self, memory: &[u8], ranges: &mut Vec<PageRange>) -> io::Result<DirtyMethod> {
        let resting = self.resting;
        self.resting = resting.saturating_sub(1);
        let method = self.choose(memory).tracker.method();
        if !self.known {
            let elsewhere = self.elsewhere;
            let tracker = &mut self.choose(memory).tracker;
            match elsewhere {
                true => ranges.push(all(memory)),
                false => tracker.populated(memory, ranges)?,
            }
            if resting == 0 {
                tracker.reset(memory)?;
                self.known = true;
            }
            return Ok(DirtyMethod::Whole);
        }
        self.choose(memory).tracker.take_dirty(memory, ranges)?;
        let changed: usize = ranges.iter().map(|range| range.pages).sum();
        let mostly = changed * 8 >= all(memory).pages * WHOLE_FROM_EIGHTHS
            && memory.len() <= WHOLE_IF_MOSTLY_CHANGED_UP_TO_BYTES;
        if mostly && self.forced.is_none() && method != DirtyMethod::Whole {
            self.known = false;
            self.resting = WHOLE_CAPTURES;
        }
        Ok(method)
    }

    /// The tracker that suits this memory. When it is another than before, it knows nothing yet.
    fn choose(&mut self, memory: &[u8]) -> &mut Chosen {
        let wanted = match self.forced {
            Some(method) => method,
            None if memory.len() <= WHOLE_UP_TO_BYTES => DirtyMethod::Whole,
            None => DirtyMethod::of_this_machine(),
        };
        let same = |chosen: &Chosen| chosen.wanted == wanted;
        if !self.chosen.as_ref().is_some_and(same) {
            self.known = false;
            self.fresh = false;
        }
        let chosen = self.chosen.take().filter(|chosen| chosen.wanted == wanted);
        self.chosen.insert(chosen.unwrap_or_else(|| Chosen {
            wanted,
            tracker: open(wanted, memory),
        }))
    }
}

/// A tracker, or a slower one when the machine offers it no longer (it may have run out of descriptors).
fn open(method: DirtyMethod, memory: &[u8]) -> Box<dyn DirtyTracker> {
    match method {
        DirtyMethod::WriteProtection => match WriteProtection::open(memory.as_ptr() as usize) {
            Ok(tracker) => Box::new(tracker),
            Err(error) => {
                tracing::warn!(%error, "this instance's changed pages are found by comparing hashes, which takes longer");
                Box::new(Hashes::default())
            }
        },
        DirtyMethod::Hashes => Box::new(Hashes::default()),
        DirtyMethod::Whole => Box::new(Whole),
    }
}

/// After a tracker has failed nothing is known, and the next capture is whole.
fn known<T>(answer: io::Result<T>) -> Option<T> {
    answer
        .inspect_err(|error| {
            tracing::warn!(%error, "changed pages could not be found; the capture is whole");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;

    const LARGE: usize = 4 * WHOLE_UP_TO_BYTES;
    const PAGE: usize = crate::dirty::CAPTURE_PAGE_BYTES;

    fn range(first: usize, pages: usize) -> PageRange {
        PageRange { first, pages }
    }

    fn using(tracker: impl DirtyTracker + 'static) -> Changes {
        using_boxed(Box::new(tracker))
    }

    fn using_boxed(tracker: Box<dyn DirtyTracker>) -> Changes {
        Changes {
            chosen: Some(Chosen {
                wanted: DirtyMethod::of_this_machine(),
                tracker,
            }),
            ..Changes::default()
        }
    }

    #[test]
    fn the_first_capture_is_whole_and_each_later_one_adds_to_the_one_before() {
        let mut changes = using(Hashes::default());
        let mut memory = vec![0; LARGE];
        let first = changes.next(&memory);
        assert_eq!((first.sequence, first.base), (1, None));
        assert_eq!(first.ranges, [all(&vec![0; LARGE])]);
        memory[5 * PAGE] = 1;
        let second = changes.next(&memory);
        assert_eq!((second.sequence, second.base), (2, Some(1)));
        assert_eq!(second.ranges, [range(5, 1)]);
        assert_eq!(changes.next(&memory).ranges, []);
    }

    #[test]
    fn small_memories_are_captured_whole_until_they_grow() {
        let mut mapping = Mapping::reserve().expect("addresses");
        let mut changes = Changes::default();
        for _ in 0..3 {
            let memory = mapping.grown(WHOLE_UP_TO_BYTES).expect("memory");
            memory.fill(1);
            let found = changes.next(memory);
            assert_eq!((found.base, found.method), (None, DirtyMethod::Whole));
            assert_eq!(found.ranges, [all(memory)]);
        }
        let memory = mapping.grown(LARGE).expect("memory");
        assert_eq!(changes.next(memory).base, None);
        memory[LARGE - 1] = 1;
        let found = changes.next(memory);
        assert_eq!(found.base, Some(4));
        assert_eq!(found.method, DirtyMethod::of_this_machine());
        assert_eq!(found.ranges, [range(LARGE / PAGE - 1, 1)]);
    }

    #[test]
    fn mostly_changed_memories_are_captured_whole_for_a_while() {
        let mut changes = using(Hashes::default());
        let mut memory = vec![0; LARGE];
        changes.next(&memory);
        memory.fill(1);
        assert_eq!(changes.next(&memory).base, Some(1));
        for _ in 0..=WHOLE_CAPTURES {
            memory.fill(2);
            assert_eq!(changes.next(&memory).base, None);
        }
        assert!(changes.next(&memory).base.is_some());
    }

    #[test]
    fn large_memories_are_never_captured_whole_for_being_mostly_changed() {
        let mut changes = using(Hashes::default());
        let mut memory = vec![0; WHOLE_IF_MOSTLY_CHANGED_UP_TO_BYTES + PAGE];
        assert_eq!(changes.next(&memory).base, None);
        for value in 1..4 {
            memory.fill(value);
            assert!(changes.next(&memory).base.is_some());
        }
    }

    #[test]
    fn where_a_memory_cannot_be_watched_hashes_are_compared() {
        // Nothing is reserved behind it, so the kernel refuses.
        let mut memory = vec![0; LARGE];
        let tracker = open(DirtyMethod::WriteProtection, &memory[1..]);
        assert_eq!(tracker.method(), DirtyMethod::Hashes);
        let mut changes = using_boxed(tracker);
        changes.next(&memory);
        memory[3 * PAGE] = 1;
        let found = changes.next(&memory);
        assert_eq!((found.base, found.method), (Some(1), DirtyMethod::Hashes));
        assert_eq!(found.ranges, [range(3, 1)]);
    }

    #[test]
    fn what_follows_an_image_adds_to_it() {
        let mut changes = using(Hashes::default());
        let mut memory = vec![3; LARGE];
        changes.follow(40, &memory);
        memory[9 * PAGE] = 1;
        let found = changes.next(&memory);
        assert_eq!((found.sequence, found.base), (41, Some(40)));
        assert_eq!(found.ranges, [range(9, 1)]);
    }

    #[test]
    fn a_tracker_that_fails_costs_one_whole_capture() {
        /// Fails when told to.
        #[derive(Debug)]
        struct Fails(Hashes, u32);
        impl DirtyTracker for Fails {
            fn method(&self) -> DirtyMethod {
                DirtyMethod::WriteProtection
            }
            fn reset(&mut self, memory: &[u8]) -> io::Result<()> {
                self.0.reset(memory)
            }
            fn take_dirty(&mut self, memory: &[u8], dirty: &mut Vec<PageRange>) -> io::Result<()> {
                self.1 += 1;
                match self.1 {
                    2 => Err(io::Error::other("no more")),
                    _ => self.0.take_dirty(memory, dirty),
                }
            }
        }
        let mut changes = using(Fails(Hashes::default(), 0));
        let mut memory = vec![1; LARGE];
        let mut bases = Vec::new();
        for turn in 0..6 {
            memory[turn * PAGE] = 2;
            bases.push(changes.next(&memory).base.is_some());
        }
        // The one that failed is whole; the next one is too, and begins anew.
        assert_eq!(bases, [false, true, false, false, true, true]);
    }
}
