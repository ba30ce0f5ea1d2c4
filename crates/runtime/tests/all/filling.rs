//! Memories that come while their guest runs, or from a file: what is computed is computed from the right bytes, or
//! nobody hears of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemill_abi::LogLevel;
use tidemill_protocol::image::PageRun;
use tidemill_protocol::{Image, ImageHead};
use tidemill_runtime::{
    CAPTURE_PAGE_BYTES, CallError, CaptureError, CaptureRoom, DirtyMethod, GuestHost, Instance,
    InstanceError, InstanceLimits, MemoryImage, Module, TrapReason,
};

use crate::support::{Job, Recorder, Source, head, limits};

const PAGE: usize = CAPTURE_PAGE_BYTES;
const MIB: usize = 1 << 20;

/// Writes eight bytes at an address (`timer`), emits a range of its memory (`watermark`), and loops (`poll`).
fn job() -> Module {
    Job::default()
        .with("(data (i32.const 70000) \"placed by every instantiation\")")
        .function(
            "tidemill_timer",
            "(param i64) (result i64) (i64.store (i32.wrap_i64 (local.get 0)) (local.get 0)) (i64.const 0)",
        )
        .function(
            "tidemill_watermark",
            "(param i32 i64 i64) (result i64)
             (call $emit (i32.const 0) (i32.const 0) (i32.wrap_i64 (local.get 1)) (local.get 0)) (i64.const 0)",
        )
        .function(
            "tidemill_poll",
            "(param i64) (result i64) (drop (i64.load (i32.wrap_i64 (local.get 0)))) unreachable",
        )
        .compile()
}

fn wide() -> InstanceLimits {
    InstanceLimits {
        memory_max_bytes: 1 << 32,
        call_output_max_bytes: 1 << 20,
        ..limits()
    }
}

/// A memory that is nowhere zero, and nowhere like elsewhere.
fn contents(bytes: usize) -> Vec<u8> {
    let words = (1..=bytes as u64 / 8).map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    words.flat_map(u64::to_le_bytes).collect()
}

fn head_of(bytes: usize) -> ImageHead {
    head(&Image {
        memory: vec![0; bytes],
        ..Image::default()
    })
}

fn restore<H: GuestHost>(
    module: &Module,
    bytes: usize,
    memory: MemoryImage,
    host: H,
) -> Result<Instance<H>, InstanceError> {
    let mut instance = Instance::restore_from(module, wide(), host, &head_of(bytes), memory)?;
    instance.follow(0);
    Ok(instance)
}

fn lazy(source: &Arc<Source>, bytes: usize) -> Instance<Recorder> {
    let memory = MemoryImage::Lazy(Arc::<Source>::clone(source));
    restore(&job(), bytes, memory, Recorder::default()).expect("it fits")
}

/// Whether memories come lazily here; where they do not, what these tests promise holds from the start.
fn can_wait() -> bool {
    DirtyMethod::of_this_machine() == DirtyMethod::WriteProtection
}

fn emit<H: GuestHost>(
    instance: &mut Instance<H>,
    address: usize,
    len: usize,
) -> Result<(), CallError> {
    let step = instance.watermark(len as u32, address as i64, 0);
    step.map(|_| ())
}

fn wait_until_filled(instance: &Instance<Recorder>) {
    let began = Instant::now();
    while let Some(filling) = instance.filling() {
        assert_eq!(filling.error, None);
        assert!(began.elapsed() < Duration::from_secs(60), "{filling:?}");
        std::thread::yield_now();
    }
}

fn wait_until_lost(instance: &Instance<Recorder>) -> String {
    let began = Instant::now();
    loop {
        if let Some(reason) = instance.filling().and_then(|filling| filling.error) {
            return reason;
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
}

#[test]
fn a_guest_starts_at_once_and_touches_what_has_not_come_yet() {
    if !can_wait() {
        return;
    }
    let bytes = 256 * MIB;
    let memory = Arc::new(contents(bytes));
    let source = Arc::new(Source::of(Arc::clone(&memory)));
    let mut instance = lazy(&source, bytes);
    for address in [0, 70_000, 128 * MIB + 5, bytes - 100] {
        emit(&mut instance, address, 100).expect("it runs");
        let (_, _, emitted) = instance.host_mut().emitted.pop().expect("a batch");
        assert_eq!(emitted, memory[address..address + 100]);
    }
    instance.timer(200 * MIB as u64).expect("it runs");
    let left_bytes = instance.filling().expect("it is being filled").left_bytes;
    assert!(left_bytes > 255 * MIB as u64, "{left_bytes}");
    // A capture takes what changed and waits for nothing else.
    let capture = instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls");
    assert_eq!((capture.base, capture.changed_pages()), (Some(0), 1));
    assert!(instance.filling().expect("still").left_bytes > 255 * MIB as u64);
    source.open();
    wait_until_filled(&instance);
    let mut expected = memory.to_vec();
    expected[200 * MIB..][..8].copy_from_slice(&(200 * MIB as u64).to_le_bytes());
    assert!(instance.capture().expect("between calls").memory == expected);
    let capture = instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls");
    assert_eq!((capture.base, capture.changed_pages()), (Some(1), 0));
}

#[test]
fn nothing_that_was_computed_from_a_damaged_piece_gets_out() {
    if !can_wait() {
        return;
    }
    let bytes = 4 * MIB;
    let source = Source::of(contents(bytes)).meddle(|pieces| match pieces.contains(&20) {
        true => Err("block 20 is damaged".to_owned()),
        false => Ok(()),
    });
    let source = Arc::new(source);
    let lost = CallError::ImageLost {
        reason: "block 20 is damaged".to_owned(),
    };
    let damaged = 20 * 16 * PAGE;
    // The guest emits it, writes into it, or traps for what it finds there.
    type Touch = fn(&mut Instance<Recorder>, usize) -> Result<(), CallError>;
    let touch: [Touch; 3] = [
        |instance, at| emit(instance, at, 100),
        |instance, at| instance.timer(at as u64).map(|_| ()),
        |instance, at| instance.poll(at as u64).map(|_| ()),
    ];
    for touch in touch {
        let mut instance = lazy(&source, bytes);
        emit(&mut instance, 5 * MIB / 2, 100).expect("it has come");
        assert_eq!(touch(&mut instance, damaged), Err(lost.clone()));
        assert_eq!(instance.host_mut().emitted.len(), 1);
        assert_eq!(emit(&mut instance, 5 * MIB / 2, 100), Err(lost.clone()));
        assert_eq!(
            instance.capture_changes(CaptureRoom::default()),
            Err(CaptureError::ImageLost {
                reason: "block 20 is damaged".to_owned()
            })
        );
        let filling = instance.filling().expect("it is lost");
        assert_eq!(filling.error.as_deref(), Some("block 20 is damaged"));
        assert!(filling.left_bytes > 3 * MIB as u64);
    }
    // A capture of everything reads it, too.
    let mut instance = lazy(&source, bytes);
    assert!(matches!(
        instance.capture(),
        Err(CaptureError::ImageLost { .. })
    ));
    source.open();
}

#[test]
fn an_image_that_turns_out_damaged_in_the_background_is_lost_before_the_next_call() {
    if !can_wait() {
        return;
    }
    let bytes = 16 * MIB;
    let source = Source::of(contents(bytes)).meddle(|pieces| match pieces.end > 200 {
        true => Err("the store is out of reach".to_owned()),
        false => Ok(()),
    });
    let source = Arc::new(source);
    let mut instance = lazy(&source, bytes);
    instance.timer(8).expect("it runs");
    source.open();
    assert_eq!(wait_until_lost(&instance), "the store is out of reach");
    let reason = "the store is out of reach".to_owned();
    assert_eq!(instance.flush(), Err(CallError::ImageLost { reason }));
}

#[test]
fn a_source_that_does_not_keep_its_word_loses_the_image() {
    type Lie = fn(&mut dyn FnMut(PageRun, &[u8]), PageRun);
    /// Hands over something else than it was asked for.
    #[derive(Debug)]
    struct Liar(Vec<PageRun>, Lie);
    impl tidemill_runtime::PageSource for Liar {
        fn pieces(&self) -> &[PageRun] {
            &self.0
        }
        fn read(
            &self,
            pieces: Range<usize>,
            lay: &mut dyn FnMut(PageRun, &[u8]),
        ) -> Result<(), String> {
            self.0[pieces]
                .iter()
                .for_each(|piece| (self.1)(lay, *piece));
            Ok(())
        }
    }
    let run = |first, pages, zero| PageRun { first, pages, zero };
    let lies: [Lie; 5] = [
        |_, _| {},
        |lay, piece| lay(piece, &[1; PAGE]),
        |lay, piece| {
            lay(
                PageRun {
                    first: piece.first + 1,
                    ..piece
                },
                &[1; 2 * PAGE],
            )
        },
        |lay, _| {
            lay(
                PageRun {
                    first: 1 << 30,
                    pages: 2,
                    zero: false,
                },
                &[1; 2 * PAGE],
            )
        },
        |_, _| panic!("a source that panics, as this test wants it to"),
    ];
    for lie in lies {
        let source = Arc::new(Liar(vec![run(40, 2, false), run(90, 2, false)], lie));
        let memory = MemoryImage::Lazy(source);
        match restore(&job(), MIB, memory, Recorder::default()) {
            Ok(mut instance) => {
                let result = emit(&mut instance, 41 * PAGE, 8);
                assert!(
                    matches!(result, Err(CallError::ImageLost { .. })),
                    "{result:?}"
                );
            }
            Err(error) => assert!(!can_wait() && matches!(error, InstanceError::Memory { .. })),
        }
    }
    let impossible = [
        vec![run(255, 2, false)],
        vec![run(8, 2, false), run(9, 1, false)],
        vec![run(9, 1, false), run(8, 1, false)],
        vec![run(u32::MAX, u32::MAX, false)],
        vec![run(3, 0, false)],
    ];
    for pieces in impossible {
        let source = Arc::new(Source::of(contents(MIB)).pieces(pieces));
        let memory = MemoryImage::Lazy(source);
        let error = restore(&job(), MIB, memory, Recorder::default()).expect_err("it cannot be");
        assert!(matches!(error, InstanceError::Memory { .. }), "{error:?}");
    }
}

#[test]
fn instances_that_end_while_they_are_filled_disturb_no_other() {
    let bytes = 3 * MIB;
    let memories: Vec<Arc<Vec<u8>>> = (0..4)
        .map(|number| {
            let mut memory = contents(bytes);
            memory.iter_mut().step_by(8).for_each(|byte| *byte = number);
            Arc::new(memory)
        })
        .collect();
    std::thread::scope(|scope| {
        for memory in &memories {
            scope.spawn(move || {
                for round in 0..25 {
                    let source = Arc::new(Source::of(Arc::clone(memory)));
                    let mut instance = lazy(&source, bytes);
                    source.open();
                    let address = (round * 777_777) % (bytes - 8192);
                    emit(&mut instance, address, 8192).expect("it runs");
                    let (_, _, emitted) = instance.host_mut().emitted.pop().expect("a batch");
                    assert!(emitted == memory[address..address + 8192]);
                    if round % 5 == 0 {
                        assert!(instance.capture().expect("between calls").memory == **memory);
                    }
                }
            });
        }
    });
}

#[test]
fn memory_that_nobody_wrote_takes_no_reading_and_its_changes_are_seen() {
    let bytes = 1024 * MIB;
    let run = |first| PageRun {
        first,
        pages: 1,
        zero: false,
    };
    // Far apart, and near.
    let pieces = vec![run(20), run(22), run(100_000), run(262_143)];
    let memory = Arc::new(vec![5; bytes]);
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let source = Source::of(vec![]).pieces(pieces);
    let source = Arc::new(source.with_memory(memory).meddle(move |pieces| {
        counted.fetch_add(pieces.len() as u64, Ordering::Relaxed);
        Ok(())
    }));
    let mut instance = lazy(&source, bytes);
    for page in [0, 19, 21, 23, 50_000, 100_001, 262_142] {
        emit(&mut instance, page * PAGE, 16).expect("it runs");
        let (_, _, emitted) = instance.host_mut().emitted.pop().expect("a batch");
        assert_eq!(emitted, [0; 16], "page {page}");
    }
    let written = [1, 21, 22, 50_001, 100_000, 200_000];
    for page in written {
        instance.timer((page * PAGE) as u64).expect("it runs");
    }
    source.open();
    wait_until_filled(&instance);
    assert!(
        reads.load(Ordering::Relaxed) <= 6,
        "each once, or twice at most"
    );
    let capture = instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls");
    let pages: BTreeSet<usize> = capture
        .runs
        .iter()
        .flat_map(|run| run.first as usize..run.end())
        .collect();
    assert_eq!(capture.base, Some(0));
    assert!(written.iter().all(|page| pages.contains(page)), "{pages:?}");
    if can_wait() {
        assert_eq!(pages.len(), written.len());
    }
    for page in [20, 262_143] {
        emit(&mut instance, page * PAGE, 16).expect("it runs");
        let (_, _, emitted) = instance.host_mut().emitted.pop().expect("a batch");
        assert_eq!(emitted, [5; 16]);
    }
}

#[test]
fn a_host_that_hands_emitted_bytes_to_a_system_call_gets_them_all() {
    /// Writes what it hears to a file, without a copy of its own.
    struct Writes(File);
    impl GuestHost for Writes {
        fn emit(&mut self, _output: u32, _target: u32, batch: &[u8]) {
            self.0.write_all(batch).expect("the kernel reads it");
        }
        fn log(&mut self, _level: LogLevel, _line: &str) {}
    }
    let bytes = 4 * MIB;
    let memory = Arc::new(contents(bytes));
    let source = Arc::new(Source::of(Arc::clone(&memory)));
    let mut file = tempfile::tempfile().expect("a file");
    let host = Writes(file.try_clone().expect("a descriptor"));
    let image = MemoryImage::Lazy(Arc::<Source>::clone(&source));
    let mut instance = restore(&job(), bytes, image, host).expect("it fits");
    emit(&mut instance, MIB - 100, 300_000).expect("it runs");
    let mut written = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut written).expect("a file");
    assert!(written == memory[MIB - 100..][..300_000]);
    source.open();
}

/// Goes back to `memory`, and says which pages were asked for.
fn revert(
    instance: Instance<Recorder>,
    memory: &[u8],
    changed: &[PageRun],
) -> (Instance<Recorder>, BTreeSet<usize>) {
    let mut asked = BTreeSet::new();
    let host = Recorder::default();
    let changed = changed.iter().copied();
    let reverted = instance.revert_from(wide(), host, &head_of(memory.len()), 0, changed, &mut {
        |wanted: &[PageRun], lay: &mut dyn FnMut(PageRun, &[u8])| {
            for run in wanted {
                asked.extend(run.first as usize..run.end());
                lay(*run, &memory[run.memory_range()]);
            }
            Ok(())
        }
    });
    (reverted.expect("it fits"), asked)
}

#[test]
fn an_instance_goes_back_while_its_pages_still_come_and_asks_only_for_what_changed() {
    let bytes = 8 * MIB;
    let memory = Arc::new(contents(bytes));
    let source = Arc::new(Source::of(Arc::clone(&memory)));
    let mut instance = lazy(&source, bytes);
    instance.timer(4 * MIB as u64).expect("it runs");
    let capture = instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls");
    instance.timer(5 * MIB as u64).expect("it runs");
    let (mut instance, asked) = revert(instance, &memory, &capture.runs);
    if can_wait() {
        // What the guest wrote, and where the module's data segment was placed again.
        assert_eq!(asked, BTreeSet::from([17, 1024, 1280]));
        assert!(instance.filling().is_some());
    }
    emit(&mut instance, 4 * MIB, 8).expect("it runs");
    let (_, _, emitted) = instance.host_mut().emitted.pop().expect("a batch");
    assert_eq!(emitted, memory[4 * MIB..][..8]);
    source.open();
    assert!(instance.capture().expect("between calls").memory == *memory);
    let capture = instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls");
    assert_eq!((capture.base, capture.changed_pages()), (Some(0), 0));
}

#[test]
fn an_instance_whose_image_was_lost_goes_back_to_one_that_is_not() {
    if !can_wait() {
        return;
    }
    let bytes = 8 * MIB;
    let source = Arc::new(Source::of(contents(bytes)).meddle(|_| Err("gone".to_owned())));
    let mut instance = lazy(&source, bytes);
    emit(&mut instance, MIB, 8).expect_err("it is lost");
    let older: Vec<u8> = contents(4 * MIB).into_iter().rev().collect();
    let (mut instance, asked) = revert(instance, &older, &[]);
    assert_eq!(asked.len(), older.len() / PAGE);
    assert_eq!(instance.filling(), None);
    assert!(instance.capture().expect("between calls").memory == older);
    instance.timer(MIB as u64).expect("it runs");
    let capture = instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls");
    assert_eq!((capture.base, capture.changed_pages()), (Some(0), 1));
    assert_eq!(capture.cost.method, DirtyMethod::WriteProtection);
    source.open();
}

#[test]
fn an_instance_goes_back_to_less_than_it_was_being_filled_with() {
    let bytes = 8 * MIB;
    let source = Arc::new(Source::of(contents(bytes)));
    let mut instance = lazy(&source, bytes);
    emit(&mut instance, 6 * MIB, 8).expect("it runs");
    let older: Vec<u8> = contents(4 * MIB).into_iter().rev().collect();
    let everything = [PageRun {
        first: 0,
        pages: (bytes / PAGE) as u32,
        zero: false,
    }];
    let (mut instance, _) = revert(instance, &older, &everything);
    source.open();
    assert!(instance.capture().expect("between calls").memory == older);
    instance.timer(8).expect("it runs");
    let beyond = emit(&mut instance, 4 * MIB, 8).expect_err("it is out of bounds");
    assert!(matches!(
        beyond,
        CallError::Trap {
            reason: TrapReason::BadPointer { .. },
            ..
        }
    ));
}

#[test]
fn a_revert_whose_pages_cannot_be_read_says_so() {
    let source = Arc::new(Source::of(contents(MIB)));
    source.open();
    let mut instance = lazy(&source, MIB);
    instance.timer(8).expect("it runs");
    let host = Recorder::default();
    let error = instance
        .revert_from(wide(), host, &head_of(MIB), 0, [], &mut |_, _| {
            Err("out of reach".to_owned())
        })
        .expect_err("it cannot be read");
    let reason = "out of reach".to_owned();
    assert_eq!(error, InstanceError::Memory { reason });
}

fn file_with(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("it is written");
    Arc::new(file)
}

#[test]
fn a_mapped_file_is_the_memory_and_never_written() {
    let bytes = 16 * MIB;
    let image = contents(bytes);
    let file = file_with(&image);
    let memory = MemoryImage::File(Arc::clone(&file));
    let mut instance = restore(&job(), bytes, memory, Recorder::default()).expect("it fits");
    assert_eq!(instance.filling(), None);
    assert!(instance.capture().expect("between calls").memory == image);
    instance.timer(9 * MIB as u64).expect("it runs");
    let capture = instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls");
    assert_eq!((capture.base, capture.changed_pages()), (Some(0), 1));
    instance.timer(10 * MIB as u64).expect("it runs");
    let (mut instance, asked) = revert(instance, &image, &capture.runs);
    assert!(asked.contains(&(9 * MIB / PAGE)) && asked.len() <= 4096);
    assert!(instance.capture().expect("between calls").memory == image);
    let mut unchanged = Vec::new();
    (&*file).rewind().expect("a file");
    (&*file).read_to_end(&mut unchanged).expect("a file");
    assert!(unchanged == image);
}

#[test]
fn a_file_may_be_shorter_or_longer_than_the_memory() {
    let image = contents(4 * MIB);
    for file_bytes in [0, 1, 70_001, MIB, 3 * MIB + 5, 4 * MIB] {
        let memory = MemoryImage::File(file_with(&image[..file_bytes]));
        let mut instance = restore(&job(), 2 * MIB, memory, Recorder::default()).expect("it fits");
        let mut expected = image[..file_bytes.min(2 * MIB)].to_vec();
        expected.resize(2 * MIB, 0);
        assert!(instance.capture().expect("between calls").memory == expected);
        instance.timer(MIB as u64).expect("it runs");
        expected[MIB..][..8].copy_from_slice(&(MIB as u64).to_le_bytes());
        let capture = instance
            .capture_changes(CaptureRoom::default())
            .expect("between calls");
        assert_eq!((capture.base, capture.changed_pages()), (Some(0), 1));
        assert!(instance.capture().expect("between calls").memory == expected);
    }
    // What cannot be mapped is refused.
    let directory = tempfile::tempdir().expect("a directory");
    let memory = MemoryImage::File(Arc::new(File::open(directory.path()).expect("it is there")));
    let error = restore(&job(), MIB, memory, Recorder::default()).expect_err("no file");
    assert!(matches!(error, InstanceError::Memory { .. }), "{error}");
}

#[test]
fn an_image_at_hand_may_be_shorter_than_the_memory_and_not_longer() {
    let image = contents(MIB);
    let memory = MemoryImage::Whole(image[..100_000].to_vec());
    let mut instance = restore(&job(), MIB, memory, Recorder::default()).expect("it fits");
    let mut expected = image[..100_000].to_vec();
    expected.resize(MIB, 0);
    assert!(instance.capture().expect("between calls").memory == expected);
    let memory = MemoryImage::Whole(vec![1; MIB + PAGE]);
    let error = restore(&job(), MIB, memory, Recorder::default()).expect_err("it is too long");
    assert!(matches!(error, InstanceError::Image(_)), "{error}");
}

#[test]
fn a_fault_waits_for_its_own_piece_and_for_nothing_else() {
    if !can_wait() {
        return;
    }
    let bytes = 8 * MIB;
    const PIECE: Range<usize> = 48..49;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let source = Source::of(contents(bytes)).meddle(move |pieces| {
        noted.lock().expect("no test panics in here").push(pieces);
        Ok(())
    });
    let source = Arc::new(source);
    let mut instance = lazy(&source, bytes);
    // The background waits for its whole batch meanwhile.
    emit(&mut instance, 3 * MIB, 8).expect("it runs");
    emit(&mut instance, 3 * MIB + 8, 8).expect("it runs");
    assert_eq!(*asked.lock().expect("no test panics in here"), vec![PIECE]);
    source.open();
    wait_until_filled(&instance);
}
