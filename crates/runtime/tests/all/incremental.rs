//! Captures of what changed give the same images, byte for byte, as captures of everything: under random writes by the
//! guest and by the host, growth, restores, reverts and captures that nobody used. What everything is, a twin says, whose
//! memory is always whole: the task's own may still be coming.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;
use tidemill_protocol::Image;
use tidemill_protocol::image::PageRun;
use tidemill_runtime::{
    CAPTURE_PAGE_BYTES, Capture, CaptureRoom, DirtyMethod, Instance, InstanceLimits, MemoryImage,
    Module,
};

use crate::support::{Job, Recorder, Source, head, limits, pieces};

const BLOCK: u32 = 65536;
const BLOCKS_INITIAL: u32 = 8;
const BLOCKS_MAX: u32 = 40;
/// What a frame says, before the bytes that merely lie where the host put them.
const HEAD_BYTES: usize = 16;

/// Fills memory as its frames say: address, length, value, and where the next frame goes. Grows at each timer.
fn job() -> Job {
    Job::default()
        .memory("(memory (export \"memory\") 8)")
        .with(
            "(global $input (mut i32) (i32.const 4096)) (global $calls (mut i64) (i64.const 0))
             (table $t 1 100 funcref) (elem declare func $tidemill_flush)
             (data (i32.const 70000) \"data segments are placed again before an image is laid over\")",
        )
        .function("tidemill_allocate", "(param i32) (result i32) (global.get $input)")
        .function(
            "tidemill_process",
            "(param i32 i64 i32 i32 i64) (result i64) (local $next i32)
             (global.set $calls (i64.add (global.get $calls) (i64.const 1)))
             (local.set $next (i32.load offset=12 (local.get 2)))
             (memory.fill (i32.load (local.get 2)) (i32.load offset=8 (local.get 2)) (i32.load offset=4 (local.get 2)))
             (global.set $input (local.get $next)) (i64.const 0)",
        )
        .function(
            "tidemill_timer",
            "(param i64) (result i64)
             (drop (memory.grow (i32.wrap_i64 (local.get 0)))) (drop (table.grow $t (ref.func $tidemill_flush) (i32.const 1)))
             (i64.const 0)",
        )
}

fn wide() -> InstanceLimits {
    InstanceLimits {
        memory_max_bytes: u64::from(BLOCKS_MAX) * u64::from(BLOCK),
        ..limits()
    }
}

/// One thing that happens to a task.
#[derive(Clone, Debug)]
enum Event {
    /// The host writes a frame somewhere and the guest fills something.
    Frame {
        address: u32,
        len: u32,
        value: u8,
        next_input: u32,
        payload: usize,
    },
    Grow {
        blocks: u8,
    },
    Capture,
    /// Some pages are copied before their capture.
    Ahead {
        pages: u32,
    },
    /// A new process restores the image of an earlier capture.
    Restore {
        back: usize,
        follow: bool,
        memory: Memory,
    },
    /// The pages that are missing come now, while other things happen.
    Fill,
    /// The same process goes back to it.
    Revert {
        back: usize,
    },
}

/// What a memory is restored from.
#[derive(Clone, Copy, Debug)]
enum Memory {
    Image,
    Whole,
    Lazy,
    File,
}

/// A task, and what a store would have of it.
struct Task {
    module: Module,
    method: Option<DirtyMethod>,
    instance: Instance<Recorder>,
    twin: Instance<Recorder>,
    /// Where the instance's pages come from.
    source: Option<Arc<Source>>,
    /// Every capture since the last restore, by number; none of them is ever given up.
    captures: BTreeMap<u64, Capture>,
    /// The full copies that they stand for.
    images: BTreeMap<u64, Image>,
    adding: usize,
}

impl Task {
    fn new(method: Option<DirtyMethod>) -> Self {
        let module = job().compile();
        let fresh = || Instance::new(&module, wide(), Recorder::default()).expect("it starts");
        let (instance, twin) = (fresh(), fresh());
        let mut task = Self {
            module,
            method,
            instance,
            twin,
            source: None,
            captures: BTreeMap::new(),
            images: BTreeMap::new(),
            adding: 0,
        };
        task.force();
        task
    }

    fn force(&mut self) {
        if let Some(method) = self.method {
            self.instance.find_changes_by(method);
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Frame {
                address,
                len,
                value,
                next_input,
                payload,
            } => {
                let memory = u32::try_from(self.instance.memory_bytes()).expect("small");
                let address = address % memory;
                let len = (*len).min(memory - address);
                let frame_bytes = HEAD_BYTES + payload;
                let next_input = 8 + next_input % (memory - frame_bytes_max() - 8);
                let mut frame = Vec::with_capacity(frame_bytes);
                for word in [address, len, u32::from(*value), next_input] {
                    frame.extend_from_slice(&word.to_le_bytes());
                }
                frame.resize(frame_bytes, value.wrapping_add(1));
                for instance in [&mut self.instance, &mut self.twin] {
                    instance.process(0, 0, &frame, 0).expect("it runs");
                }
            }
            Event::Grow { blocks } => {
                for instance in [&mut self.instance, &mut self.twin] {
                    instance.timer(u64::from(*blocks)).expect("it runs");
                }
            }
            Event::Capture => self.capture(),
            Event::Ahead { pages } => {
                self.instance.capture_ahead(*pages);
            }
            Event::Restore {
                back,
                follow,
                memory,
            } => self.restore(*back, *follow, *memory),
            Event::Fill => self.fill(),
            Event::Revert { back } => self.revert(*back),
        }
    }

    fn fill(&self) {
        if let Some(source) = &self.source {
            source.open();
        }
    }

    /// Captures what changed, lays it over what is known, and compares with a full copy.
    fn capture(&mut self) {
        let full = self.twin.capture().expect("between calls");
        let room = CaptureRoom::default();
        let capture = self.instance.capture_changes(room).expect("between calls");
        let mut image = match capture.base {
            Some(base) => self.images[&base].clone(),
            None => Image::default(),
        };
        self.adding += usize::from(capture.base.is_some());
        capture
            .lay_over(&mut image)
            .expect("it is the base's image");
        assert!(
            image == full,
            "capture {} differs from a full copy",
            capture.sequence
        );
        self.images.insert(capture.sequence, full);
        self.captures.insert(capture.sequence, capture);
    }

    fn earlier(&self, back: usize) -> Option<(u64, Image)> {
        let number = back % self.images.len().max(1);
        let (sequence, image) = self.images.iter().rev().nth(number)?;
        Some((*sequence, image.clone()))
    }

    fn restore(&mut self, back: usize, follow: bool, memory: Memory) {
        let Some((sequence, image)) = self.earlier(back) else {
            return;
        };
        self.fill();
        self.source = None;
        let restore_from = |memory| {
            let host = Recorder::default();
            Instance::restore_from(&self.module, wide(), host, &head(&image), memory)
        };
        let whole = || {
            Instance::restore(&self.module, wide(), Recorder::default(), &image).expect("it fits")
        };
        let instance = match memory {
            Memory::Image => Ok(whole()),
            Memory::Whole => restore_from(MemoryImage::Whole(image.memory.clone())),
            Memory::Lazy => {
                let source = Arc::new(Source::of(image.memory.clone()));
                self.source = Some(Arc::clone(&source));
                restore_from(MemoryImage::Lazy(source))
            }
            Memory::File => restore_from(file_of(&image)),
        };
        self.twin = whole();
        self.instance = instance.expect("it fits");
        self.force();
        self.captures.clear();
        self.images.clear();
        if follow {
            self.instance.follow(sequence);
            self.images.insert(sequence, image.clone());
        }
        self.compare(&image, memory);
    }

    fn revert(&mut self, back: usize) {
        let Some((sequence, image)) = self.earlier(back) else {
            return;
        };
        let later = self.captures.split_off(&(sequence + 1));
        self.images.split_off(&(sequence + 1));
        let changed: Vec<PageRun> = later
            .values()
            .flat_map(|capture| capture.runs.iter().copied())
            .collect();
        let host = Recorder::default;
        self.twin = Instance::restore(&self.module, wide(), host(), &image).expect("it fits");
        let blank = Instance::new(&self.module, wide(), host()).expect("it starts");
        let instance = std::mem::replace(&mut self.instance, blank);
        let reverted = match back % 2 {
            0 => instance.revert(wide(), host(), &image, sequence, changed),
            // As a store does it: stored pieces that have any of the pages.
            _ => instance.revert_from(wide(), host(), &head(&image), sequence, changed, &mut {
                |wanted: &[PageRun], lay: &mut dyn FnMut(PageRun, &[u8])| {
                    let meets = |piece: &PageRun| {
                        let apart = |run: &PageRun| {
                            run.end() <= piece.first as usize || piece.end() <= run.first as usize
                        };
                        !wanted.iter().all(apart)
                    };
                    for piece in pieces(&image.memory).into_iter().filter(meets) {
                        lay(piece, &image.memory[piece.memory_range()]);
                    }
                    Ok(())
                }
            }),
        };
        self.instance = reverted.expect("it fits");
        if self.source.is_none() {
            self.compare(&image, Memory::Whole);
        }
    }

    /// Compares a task's memory with its image, unless that would make all of its pages come.
    fn compare(&mut self, image: &Image, memory: Memory) {
        if !matches!(memory, Memory::Lazy) {
            assert!(self.instance.capture().expect("between calls") == *image);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.fill();
    }
}

/// The image's memory as a file, without the zeros at its end.
fn file_of(image: &Image) -> MemoryImage {
    let zeros = image.memory.iter().rev().take_while(|byte| **byte == 0);
    let len = image.memory.len() - zeros.count();
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&image.memory[..len]).expect("it is written");
    MemoryImage::File(Arc::new(file))
}

fn frame_bytes_max() -> u32 {
    3 * CAPTURE_PAGE_BYTES as u32
}

fn memory() -> impl Strategy<Value = Memory> {
    prop_oneof![
        1 => Just(Memory::Image),
        1 => Just(Memory::Whole),
        4 => Just(Memory::Lazy),
        2 => Just(Memory::File),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let len = prop_oneof![Just(0), 1..64u32, 4000..9000u32, 60_000..300_000u32];
    let value = prop_oneof![Just(0u8), any::<u8>()];
    let payload = prop_oneof![Just(0usize), 1..200usize, 4000..9000usize];
    let frame = (any::<u32>(), len, value, any::<u32>(), payload).prop_map(
        |(address, len, value, next_input, payload)| Event::Frame {
            address,
            len,
            value,
            next_input,
            payload,
        },
    );
    prop_oneof![
        10 => frame,
        1 => (0u8..6).prop_map(|blocks| Event::Grow { blocks }),
        5 => Just(Event::Capture),
        3 => (0..60u32).prop_map(|pages| Event::Ahead { pages }),
        2 => (0usize..4, any::<bool>(), memory()).prop_map(|(back, follow, memory)| Event::Restore {
            back,
            follow,
            memory,
        }),
        2 => Just(Event::Fill),
        2 => (0usize..4).prop_map(|back| Event::Revert { back }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn incremental_images_are_full_copies_byte_for_byte(events in proptest::collection::vec(event(), 20..120)) {
        let methods = [
            Some(DirtyMethod::WriteProtection),
            Some(DirtyMethod::Hashes),
            Some(DirtyMethod::Whole),
            None,
        ];
        for method in methods {
            let mut task = Task::new(method);
            for event in &events {
                task.happen(event);
            }
            task.capture();
            let (own, twin) = (task.instance.capture(), task.twin.capture());
            prop_assert!(own.expect("between calls") == twin.expect("between calls"));
        }
    }
}

fn frame(address: u32, len: u32, value: u8) -> Event {
    Event::Frame {
        address,
        len,
        value,
        next_input: 4096,
        payload: 0,
    }
}

#[test]
fn a_capture_holds_what_changed_since_the_one_before_it_and_no_more() {
    let mut task = Task::new(None);
    task.capture();
    task.happen(&frame(200_000, 10_000, 7));
    task.capture();
    let second = &task.captures[&2];
    assert_eq!(second.base, Some(1));
    assert_eq!(second.cost.method, DirtyMethod::of_this_machine());
    // What the guest filled, and the page where the host put the frame.
    assert_eq!(second.changed_pages(), 1 + 4);
    task.capture();
    assert_eq!(task.captures[&3].changed_pages(), 0);
}

#[test]
fn a_restored_task_adds_to_the_image_it_was_restored_from() {
    let mut task = Task::new(None);
    task.happen(&frame(100_000, 50_000, 1));
    task.capture();
    task.happen(&Event::Restore {
        back: 0,
        follow: true,
        memory: Memory::Image,
    });
    task.happen(&frame(100_000, 10, 2));
    task.capture();
    let next = &task.captures[&2];
    assert_eq!(next.base, Some(1));
    assert!(next.changed_pages() <= 2, "{:?}", next.runs);
}

#[test]
fn a_reverted_task_forgets_growth_and_adds_to_what_it_went_back_to() {
    let mut task = Task::new(None);
    task.happen(&frame(300_000, 100_000, 1));
    task.capture();
    task.happen(&Event::Grow { blocks: 20 });
    task.happen(&frame(BLOCKS_INITIAL * BLOCK, 10 * BLOCK, 2));
    task.capture();
    task.happen(&frame(310_000, 1, 3));
    task.happen(&Event::Revert { back: 1 });
    assert_eq!(
        task.instance.memory_bytes(),
        u64::from(BLOCKS_INITIAL * BLOCK)
    );
    task.happen(&Event::Grow { blocks: 20 });
    task.capture();
    let next = &task.captures[&2];
    assert_eq!(next.base, Some(1));
    assert_eq!(next.changed_pages(), 0, "grown anew, it is zero");
}

#[test]
fn a_task_that_trapped_can_be_reverted() {
    let mut task = Task::new(None);
    task.happen(&frame(100_000, 50_000, 1));
    task.capture();
    let wild = [u32::MAX, 100, 7, 4096].map(u32::to_le_bytes).concat();
    task.instance
        .process(0, 0, &wild, 0)
        .expect_err("it is out of bounds");
    task.happen(&Event::Revert { back: 0 });
    task.happen(&frame(100_000, 10, 2));
    task.capture();
    assert_eq!(task.captures[&2].base, Some(1));
}

#[test]
fn a_reverted_task_cannot_reach_what_it_gave_back() {
    let job = job().function(
        "tidemill_poll",
        "(param i64) (result i64) (i64.load (i32.wrap_i64 (local.get 0)))",
    );
    let module = job.compile();
    let mut instance = Instance::new(&module, wide(), Recorder::default()).expect("it starts");
    let first = instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls");
    let mut image = Image::default();
    first.lay_over(&mut image).expect("it is whole");
    instance.timer(4).expect("it grows");
    let mut instance = instance
        .revert(wide(), Recorder::default(), &image, first.sequence, [])
        .expect("it fits");
    let beyond = u64::from(BLOCKS_INITIAL * BLOCK);
    let error = instance.poll(beyond).expect_err("it is out of bounds");
    assert!(error.to_string().contains("memory"), "{error}");
}

#[test]
fn adding_is_what_the_random_runs_do_most() {
    let mut task = Task::new(Some(DirtyMethod::of_this_machine()));
    for turn in 0..10 {
        task.happen(&frame(turn * 30_000, 5_000, turn as u8));
        task.capture();
    }
    assert_eq!(task.adding, 9);
}

#[test]
fn pages_copied_ahead_are_in_the_next_capture_as_they_were_at_its_moment() {
    let mut task = Task::new(None);
    task.capture();
    task.happen(&frame(100_000, 200_000, 1));
    let mut ahead = 0;
    loop {
        let copied = task.instance.capture_ahead(10);
        assert!(copied <= 16, "a few of the host's pages at a time");
        ahead += copied;
        if copied == 0 {
            break;
        }
    }
    task.happen(&frame(200_000, 5_000, 2));
    task.happen(&frame(400_000, 5_000, 3));
    task.capture();
    let second = &task.captures[&2];
    assert_eq!(second.base, Some(1));
    if second.cost.method == DirtyMethod::WriteProtection {
        // What the guest filled first, and the page where the host puts frames.
        assert_eq!(ahead, 50 + 1);
        assert_eq!(second.changed_pages(), 51 + 2);
    }
    task.happen(&frame(0, 100, 4));
    assert!(task.instance.capture_ahead(10) <= 2);
    task.happen(&Event::Revert { back: 0 });
    task.capture();
    assert_eq!(task.captures[&3].changed_pages(), 0);
}

#[test]
fn a_buffer_is_used_again() {
    let mut task = Task::new(None);
    let mut room = CaptureRoom::default();
    room.warm(1 << 20);
    let capacity = room.capacity_bytes();
    for turn in 0..5 {
        task.happen(&frame(turn * 1000, 1000, 9));
        let capture = task.instance.capture_changes(room).expect("between calls");
        room = capture.into_room();
        assert_eq!(room.capacity_bytes(), capacity);
    }
}
