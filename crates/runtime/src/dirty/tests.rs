//! What every tracker promises, over one memory: no change is missed, whoever wrote; nothing is named twice.

use std::fs::File;
use std::io::{Read, Write};

use super::*;
use crate::mapping::Mapping;

const PAGE: usize = CAPTURE_PAGE_BYTES;
/// As large as any host's page; Wasm's memories grow by it.
const BLOCK: usize = 64 * 1024;

/// A tracker with the memory that it watches.
struct Watched {
    tracker: Box<dyn DirtyTracker>,
    mapping: Mapping,
    bytes: usize,
}

impl Watched {
    /// Every tracker that this machine offers, each over a memory of `blocks`, all of it unchanged.
    fn all(blocks: usize) -> Vec<Self> {
        let mut methods = vec![DirtyMethod::Hashes, DirtyMethod::Whole];
        if DirtyMethod::of_this_machine() == DirtyMethod::WriteProtection {
            methods.push(DirtyMethod::WriteProtection);
        }
        let watched = |method| {
            let mapping = Mapping::reserve().expect("addresses");
            let tracker: Box<dyn DirtyTracker> = match method {
                DirtyMethod::WriteProtection => Box::new(
                    WriteProtection::open(mapping.address()).expect("as when it was probed"),
                ),
                DirtyMethod::Hashes => Box::new(Hashes::default()),
                DirtyMethod::Whole => Box::new(Whole),
            };
            assert_eq!(tracker.method(), method);
            let bytes = blocks * BLOCK;
            let mut watched = Self {
                tracker,
                mapping,
                bytes,
            };
            watched.memory()[0] = 1;
            watched.reset();
            watched
        };
        methods.into_iter().map(watched).collect()
    }

    fn memory(&mut self) -> &mut [u8] {
        self.mapping.grown(self.bytes).expect("memory")
    }

    fn grow(&mut self, blocks: usize) {
        self.bytes += blocks * BLOCK;
    }

    fn reset(&mut self) {
        let memory = self.mapping.grown(self.bytes).expect("memory");
        self.tracker.reset(memory).expect("it can be asked");
    }

    fn take(&mut self) -> Vec<usize> {
        let memory = self.mapping.grown(self.bytes).expect("memory");
        let mut ranges = Vec::new();
        self.tracker
            .take_dirty(memory, &mut ranges)
            .expect("it can be asked");
        self.check(&ranges)
    }

    fn populated(&mut self) -> Vec<usize> {
        let memory = self.mapping.grown(self.bytes).expect("memory");
        let mut ranges = Vec::new();
        self.tracker
            .populated(memory, &mut ranges)
            .expect("it can be asked");
        self.check(&ranges)
    }

    /// The ranges as pages: ascending, apart, within the memory.
    fn check(&self, ranges: &[PageRange]) -> Vec<usize> {
        let mut pages = Vec::new();
        let mut end = None;
        for range in ranges {
            assert!(range.pages > 0 && end.is_none_or(|end| range.first > end));
            end = Some(range.first + range.pages);
            pages.extend(range.first..range.first + range.pages);
        }
        assert!(end.unwrap_or(0) <= self.bytes / PAGE);
        pages
    }

    /// Whether pages that did not change are never named. The host's pages may be larger than ours.
    fn exact(&self) -> bool {
        match self.tracker.method() {
            DirtyMethod::WriteProtection => host_page_bytes() == PAGE,
            DirtyMethod::Hashes => true,
            DirtyMethod::Whole => false,
        }
    }

    /// Takes what is dirty: these pages, and others only if the tracker may be wrong about them.
    fn expect(&mut self, changed: &[usize]) {
        let taken = self.take();
        let method = self.tracker.method();
        if self.exact() {
            assert_eq!(taken, changed, "{method}");
        } else {
            let missed = changed.iter().find(|page| !taken.contains(page));
            assert_eq!(missed, None, "{method}");
        }
    }
}

#[test]
fn a_memory_that_nobody_writes_to_does_not_change() {
    for mut watched in Watched::all(4) {
        watched.expect(&[]);
        let sum: u64 = watched.memory().iter().map(|byte| u64::from(*byte)).sum();
        assert_eq!(sum, 1, "reading changes nothing either");
        watched.expect(&[]);
    }
}

#[test]
fn every_written_page_is_named_once() {
    for mut watched in Watched::all(4) {
        let memory = watched.memory();
        memory[0] = 2;
        memory[3 * PAGE - 1..3 * PAGE + 1].fill(7);
        memory[63 * PAGE + 17] = 1;
        watched.expect(&[0, 2, 3, 63]);
        watched.expect(&[]);
        watched.memory()[3 * PAGE] = 8;
        watched.expect(&[3]);
    }
}

#[test]
fn a_page_that_becomes_zero_has_changed() {
    for mut watched in Watched::all(1) {
        watched.memory()[0] = 0;
        watched.expect(&[0]);
    }
}

#[test]
fn what_the_host_copies_in_is_seen() {
    for mut watched in Watched::all(4) {
        let memory = watched.memory();
        let input = vec![3; 2 * PAGE];
        memory[5 * PAGE + 100..7 * PAGE + 100].copy_from_slice(&input);
        memory.copy_within(5 * PAGE + 100..5 * PAGE + 200, 20 * PAGE);
        watched.expect(&[5, 6, 7, 20]);
    }
}

#[test]
fn what_the_kernel_writes_is_seen() {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&[9; 3 * PAGE]).expect("room on disk");
    for mut watched in Watched::all(4) {
        let (mut pipe, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(&[5; 10]).expect("it takes ten bytes");
        let memory = watched.memory();
        pipe.read_exact(&mut memory[8 * PAGE..8 * PAGE + 10])
            .expect("ten bytes");
        std::os::unix::fs::FileExt::read_exact_at(
            &file,
            &mut memory[10 * PAGE + 1..12 * PAGE + 1],
            0,
        )
        .expect("the file is as long");
        let mut random = File::open("/dev/urandom").expect("Linux has it");
        random
            .read_exact(&mut memory[40 * PAGE..41 * PAGE])
            .expect("it never ends");
        watched.expect(&[8, 10, 11, 12, 40]);
    }
}

#[test]
fn what_other_threads_write_is_seen() {
    for mut watched in Watched::all(4) {
        let (first, second) = watched.memory().split_at_mut(2 * BLOCK);
        std::thread::scope(|scope| {
            scope.spawn(|| first[4 * PAGE] = 1);
            scope.spawn(|| second[4 * PAGE] = 1);
        });
        watched.expect(&[4, 36]);
    }
}

#[test]
fn growth_is_covered_and_counts_as_zero_before() {
    for mut watched in Watched::all(1) {
        watched.grow(2);
        watched.memory()[20 * PAGE] = 1;
        watched.expect(&[20]);
        watched.memory()[21 * PAGE] = 1;
        watched.grow(100);
        let memory = watched.memory();
        let last = memory.len() - 1;
        memory[last] = 1;
        watched.expect(&[21, 103 * 16 - 1]);
        watched.grow(1);
        assert_eq!(watched.memory()[103 * BLOCK], 0, "reading changes nothing");
        watched.expect(&[]);
        watched.memory()[103 * 16 * PAGE] = 1;
        watched.expect(&[103 * 16]);
    }
}

#[test]
fn after_a_reset_nothing_has_changed() {
    for mut watched in Watched::all(2) {
        watched.memory()[9 * PAGE] = 1;
        watched.grow(2);
        watched.memory()[50 * PAGE] = 1;
        watched.reset();
        watched.expect(&[]);
        watched.memory()[50 * PAGE] = 2;
        watched.expect(&[50]);
    }
}

#[test]
fn a_memory_that_was_cut_and_grows_again_counts_as_zero_before() {
    for mut watched in Watched::all(4) {
        watched.memory().fill(6);
        watched.reset();
        watched.bytes = 2 * BLOCK;
        watched
            .mapping
            .cut(2 * BLOCK)
            .expect("a system call that works");
        watched
            .tracker
            .cut(2 * BLOCK)
            .expect("what lies beyond can be watched");
        watched.expect(&[]);
        watched.grow(2);
        watched.memory()[40 * PAGE] = 1;
        watched.expect(&[40]);
    }
}

#[test]
fn populated_pages_are_all_that_are_not_zero() {
    for mut watched in Watched::all(8) {
        watched.memory()[70 * PAGE] = 1;
        watched.reset();
        watched.memory()[90 * PAGE] = 1;
        watched.grow(8);
        watched.memory()[200 * PAGE] = 1;
        let populated = watched.populated();
        for page in [0, 70, 90, 200] {
            assert!(populated.contains(&page), "{}", watched.tracker.method());
        }
        watched.expect(&[90, 200]);
    }
}

#[test]
fn many_scattered_pages_are_all_named() {
    // More runs than one answer of the kernel holds.
    let changed: Vec<usize> = (0..320 * 16).filter(|page| page % 2 == 1).collect();
    for mut watched in Watched::all(1) {
        watched.grow(639);
        watched.reset();
        let changed: Vec<usize> = changed.iter().map(|page| page * 2).collect();
        for page in &changed {
            watched.memory()[page * PAGE + page % PAGE] = 1;
        }
        watched.expect(&changed);
        watched.expect(&[]);
    }
}

#[test]
fn a_tracker_refuses_a_memory_that_is_not_its_own() {
    if DirtyMethod::of_this_machine() != DirtyMethod::WriteProtection {
        return;
    }
    let mut mapping = Mapping::reserve().expect("addresses");
    let mut other = Mapping::reserve().expect("addresses");
    let mut tracker = WriteProtection::open(mapping.address()).expect("as when it was probed");
    let memory = mapping.grown(BLOCK).expect("memory");
    tracker.reset(memory).expect("its own");
    let other = other.grown(BLOCK).expect("memory");
    assert!(tracker.take_dirty(other, &mut Vec::new()).is_err());
    assert!(tracker.populated(other, &mut Vec::new()).is_err());
    assert!(tracker.reset(other).is_err());
}

#[test]
fn looking_ahead_of_a_write_names_what_changed_and_loses_nothing() {
    for mut watched in Watched::all(4) {
        watched.memory()[7 * PAGE] = 1;
        watched.grow(1);
        watched.memory()[70 * PAGE] = 1;
        let memory = watched.mapping.grown(watched.bytes).expect("memory");
        let mut ranges = Vec::new();
        watched
            .tracker
            .peek_dirty(memory, &mut ranges)
            .expect("it can be asked");
        let named = watched.check(&ranges);
        assert!(named.contains(&7) && named.contains(&70));
        watched.memory()[7 * PAGE] = 2;
        watched.memory()[8 * PAGE] = 2;
        let taken = watched.take();
        assert!(taken.contains(&7) && taken.contains(&8));
        watched.expect(&[]);
    }
}

#[test]
fn what_is_taken_in_parts_is_named_once_and_none_is_left_out() {
    for mut watched in Watched::all(8) {
        let changed = [3, 4, 5, 20, 21, 90, 127];
        for page in changed {
            watched.memory()[page * PAGE] = 1;
        }
        let memory = watched.mapping.grown(watched.bytes).expect("memory");
        let mut ranges = Vec::new();
        let mut from = Some(0);
        let mut parts = 0;
        while let Some(at) = from {
            let before = ranges
                .iter()
                .map(|range: &PageRange| range.pages)
                .sum::<usize>();
            let next = watched.tracker.take_some(memory, at, 2, &mut ranges);
            let after = ranges.iter().map(|range| range.pages).sum::<usize>();
            assert!(after - before <= 2 * host_page_bytes() / PAGE);
            from = next.expect("it can be asked");
            parts += 1;
        }
        let mut named = watched.check(&ranges);
        if watched.tracker.method() == DirtyMethod::WriteProtection {
            assert!(parts >= changed.len() / 2 && !named.is_empty());
        }
        watched.memory()[4 * PAGE] = 2;
        let rest = watched.take();
        assert!(rest.contains(&4));
        named.extend(rest);
        assert!(changed.iter().all(|page| named.contains(page)));
    }
}

#[test]
fn pages_that_are_placed_count_as_unchanged_and_never_replace_what_exists() {
    if DirtyMethod::of_this_machine() != DirtyMethod::WriteProtection {
        return;
    }
    let bytes = 40 * BLOCK;
    let mut mapping = Mapping::reserve().expect("addresses");
    let tracker = WriteProtection::open(mapping.address()).expect("as when it was probed");
    let watch = tracker.watch().expect("it has one");
    let contents = [(3, 2), (20, 1)].map(|(first, pages)| PageRange { first, pages });
    let memory = mapping.grown(bytes).expect("memory");
    let (missing, mut faults) =
        Missing::begin(watch, memory, contents.into_iter()).expect("the kernel offers it");
    let missing = Arc::new(missing);
    mapping.awaits(Arc::clone(&missing));
    let mut watched = Watched {
        tracker: Box::new(tracker),
        mapping,
        bytes,
    };
    watched.reset();
    missing.place(3, &[7; 2 * PAGE]).expect("it is awaited");
    assert_eq!(watched.memory()[3 * PAGE], 7);
    watched.memory()[4 * PAGE] = 8;
    missing.place(3, &[9; 2 * PAGE]).expect("it is awaited");
    assert_eq!(watched.memory()[3 * PAGE], 7);
    assert_eq!(watched.memory()[4 * PAGE], 8);
    watched.expect(&[4]);
    // Between the contents zeros exist already, and take no memory until somebody writes.
    assert_eq!(watched.memory()[10 * PAGE], 0);
    watched.memory()[11 * PAGE] = 1;
    watched.memory()[500 * PAGE] = 1;
    watched.expect(&[11, 500]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| watched.memory()[20 * PAGE + 5]);
        let waited_for: Vec<usize> = faults
            .next(&missing)
            .expect("it can be waited for")
            .expect("pages are awaited")
            .collect();
        assert_eq!(waited_for, [20]);
        missing.release().expect("it can be given up");
        assert_eq!(reader.join().expect("it went on"), 0);
    });
    assert!(!missing.is_whole() && !missing.is_open());
    assert!(matches!(missing.place(21, &ZEROS), Err(NotPlaced::Closed)));
    let more = faults.next(&missing).expect("it can be waited for");
    assert!(more.is_none());
    drop(more);
    assert_eq!(watched.mapping.cut(bytes).expect("a system call"), 0);
}
