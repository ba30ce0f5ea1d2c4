//! Whatever happens to captures, checkpoints, attempts and the disk: a file that is given is the image that was asked for,
//! and one that is mapped never changes.

mod thread;

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tidemill_protocol::control::{WarmImages, WarmTask};
use tidemill_protocol::image::{PAGE_BYTES, PageRun, StoredCapture};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, ModuleHash, TaskId};
use tidemill_storage::{CaptureId, ImageChain, Store};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::build::Builder;
use super::discard::Discard;
use super::file::{ImageFile, read_runs};
use super::loan::Loan;
use super::table::{Built, Table};
use super::{Claim, Command, ImagesOptions, Room, Stored};
use crate::task::Execution;

const JOB: JobId = JobId([5; 16]);
const TASK: TaskId = TaskId::new(0, 0);
const PAGES_MAX: usize = 64;
const FOREVER: Duration = Duration::from_secs(60);

/// A checkpoint and what the memory was.
#[derive(Clone)]
struct Moment {
    checkpoint: CheckpointId,
    manifest: ObjectRef,
    memory: Vec<u8>,
}

impl Moment {
    /// What is said of its image where that is kept warm.
    const fn warm(&self) -> WarmTask {
        WarmTask {
            job: JOB,
            task: TASK,
            checkpoint: self.checkpoint,
        }
    }
}

/// A task whose memory is known, and the table that keeps its image.
struct World {
    runtime: Runtime,
    store: Store,
    table: Table,
    built: Receiver<Built>,
    _directory: tempfile::TempDir,
    attempt: u64,
    counter: u64,
    memory: Vec<u8>,
    dirty: Vec<bool>,
    captured: bool,
    chain: ImageChain,
    completed: Option<Moment>,
    mapped: Vec<(Arc<File>, Vec<u8>)>,
    over: CancellationToken,
}

fn contents(file: &File, bytes: usize) -> Vec<u8> {
    let mut memory = vec![0; bytes];
    file.read_exact_at(&mut memory, 0)
        .expect("a file of that size");
    memory
}

impl World {
    fn new(max_bytes: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open("memory://").expect("a store in memory");
        let (done, built) = channel();
        let (table, _) = table(directory.path(), &store, &runtime, max_bytes, move |one| {
            // The test may have ended.
            let _ = done.send(one);
        });
        Self {
            runtime,
            store,
            table,
            built,
            _directory: directory,
            attempt: 1,
            counter: 0,
            memory: vec![0; 16 * PAGE_BYTES],
            dirty: vec![false; PAGES_MAX],
            captured: false,
            chain: ImageChain::new(),
            completed: None,
            mapped: Vec::new(),
            over: CancellationToken::new(),
        }
    }

    fn execution(&self) -> Execution {
        Execution {
            job: JOB,
            task: TASK,
            attempt: AttemptId::new(Epoch(1), self.attempt),
        }
    }

    fn write(&mut self, page: usize, value: u8) {
        let page = page % (self.memory.len() / PAGE_BYTES);
        self.memory[page * PAGE_BYTES..][..PAGE_BYTES].fill(value);
        self.dirty[page] = true;
    }

    fn grow(&mut self) {
        let pages = (self.memory.len() / PAGE_BYTES + 16).min(PAGES_MAX);
        self.memory.resize(pages * PAGE_BYTES, 0);
    }

    fn capture(&mut self, whole: bool, is_at_hand: bool) -> Moment {
        let whole = whole || !std::mem::replace(&mut self.captured, true);
        let mut capture = StoredCapture {
            memory_bytes: self.memory.len() as u64,
            ..StoredCapture::default()
        };
        for (page, bytes) in self.memory.chunks(PAGE_BYTES).enumerate() {
            let zero = bytes.iter().all(|byte| *byte == 0);
            if std::mem::take(&mut self.dirty[page]) || whole && !zero {
                capture.runs.push(PageRun {
                    first: page as u32,
                    pages: 1,
                    zero,
                });
                if !zero {
                    capture.bytes.extend_from_slice(bytes);
                }
            }
        }
        self.counter += 1;
        let checkpoint = CheckpointId::new(Epoch(1), self.counter);
        if whole {
            self.chain = ImageChain::new();
        }
        let id = CaptureId {
            job: JOB,
            task: TASK,
            attempt: self.execution().attempt,
            checkpoint,
        };
        let capture = Arc::new(capture);
        let writing = self.store.write_capture(id, &capture, &mut self.chain);
        let written = self.runtime.block_on(writing).expect("stored");
        let stored = Stored {
            checkpoint,
            manifest: written.manifest.clone(),
            capture: is_at_hand.then(|| Arc::into_inner(capture).expect("nobody else has it")),
            whole,
            room: Room::default(),
            over: self.over.clone(),
        };
        let command = Command::Stored(self.execution(), Box::new(stored));
        self.table.handle(command);
        Moment {
            checkpoint,
            manifest: written.manifest,
            memory: self.memory.clone(),
        }
    }

    fn complete(&mut self, moment: Moment, is_told: bool) {
        if is_told {
            let command = Command::Completed(self.execution(), moment.checkpoint);
            self.table.handle(command);
        }
        self.completed = Some(moment);
    }

    /// Waits for the next image that is being made.
    fn build(&mut self) -> Option<Vec<WarmTask>> {
        let built = self.built.recv_timeout(FOREVER).expect("an image, or none");
        self.table.handle(Command::Built(built))
    }

    fn build_if_any(&mut self) {
        while let Ok(built) = self.built.try_recv() {
            self.table.handle(Command::Built(built));
        }
    }

    /// A new attempt begins at the last completed checkpoint; returns the file that it is given.
    fn restart(&mut self, is_mapped: bool) -> Option<Arc<File>> {
        let moment = self.completed.clone()?;
        self.attempt += 1;
        let answered = self.claim(&moment, is_mapped);
        let opened = self.store.open_image(JOB, TASK, &moment.manifest);
        self.chain = self.runtime.block_on(opened).expect("stored").chain();
        self.dirty.fill(false);
        self.captured = true;
        self.memory.clone_from(&moment.memory);
        while answered.is_empty() && !answered.is_terminated() {
            self.build();
        }
        let file = answered.blocking_recv().expect("an answer")?;
        assert!(
            contents(&file, moment.memory.len()) == moment.memory,
            "{}",
            moment.checkpoint
        );
        if is_mapped {
            self.mapped.push((Arc::clone(&file), moment.memory));
        }
        Some(file)
    }

    fn claim(&mut self, moment: &Moment, is_mapped: bool) -> oneshot::Receiver<Option<Arc<File>>> {
        let (answer, answered) = oneshot::channel();
        self.table.handle(Command::Claim(Claim {
            execution: self.execution(),
            manifest: moment.manifest.clone(),
            is_mapped,
            answer,
        }));
        answered
    }

    fn check_mapped(&self) {
        for (file, memory) in &self.mapped {
            assert!(
                contents(file, memory.len()) == *memory,
                "a mapped file has changed"
            );
        }
    }

    /// The leader has the task's image kept here while it runs elsewhere.
    fn keep_warm(&mut self, moment: &Moment) -> Option<Vec<WarmTask>> {
        self.table.handle(Command::KeepWarm(WarmImages {
            job: JOB,
            module: ModuleHash([0; 32]),
            checkpoint: moment.checkpoint,
            images: vec![(TASK, moment.manifest.clone())],
        }))
    }
}

fn table(
    directory: &Path,
    store: &Store,
    runtime: &Runtime,
    max_bytes: u64,
    done: impl Fn(Built) + Send + Sync + 'static,
) -> (Table, ImagesOptions) {
    let options = ImagesOptions {
        directory: directory.to_owned(),
        max_bytes,
    };
    let builder = Builder::new(
        directory.to_owned(),
        store.clone(),
        runtime.handle().clone(),
        done,
    );
    let discard = Discard::start().expect("a thread");
    (Table::new(options.clone(), builder, discard), options)
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Write {
        page: usize,
        value: u8,
    },
    Grow,
    Capture {
        whole: bool,
        at_hand: bool,
        completes: bool,
        told: bool,
    },
    Build,
    Restart {
        is_mapped: bool,
    },
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..PAGES_MAX, 0..3_u8).prop_map(|(page, value)| Event::Write { page, value }),
        1 => Just(Event::Grow),
        4 => (prop::bool::weighted(0.2), prop::bool::weighted(0.9), prop::bool::weighted(0.7), prop::bool::weighted(0.8))
            .prop_map(|(whole, at_hand, completes, told)| Event::Capture { whole, at_hand, completes, told }),
        2 => Just(Event::Build),
        1 => any::<bool>().prop_map(|is_mapped| Event::Restart { is_mapped }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_file_that_is_given_is_the_image_and_a_mapped_one_never_changes(
        events in prop::collection::vec(any_event(), 1..80),
    ) {
        let mut world = World::new(1 << 30);
        for event in events {
            match event {
                Event::Write { page, value } => world.write(page, value),
                Event::Grow => world.grow(),
                Event::Capture { whole, at_hand, completes, told } => {
                    let moment = world.capture(whole, at_hand);
                    if completes {
                        world.complete(moment, told);
                    }
                }
                Event::Build => world.build_if_any(),
                Event::Restart { is_mapped } => {
                    world.restart(is_mapped);
                }
            }
            world.check_mapped();
        }
        world.restart(false);
        world.check_mapped();
    }
}

#[test]
fn an_image_follows_its_task_from_checkpoint_to_checkpoint_and_from_attempt_to_attempt() {
    let mut world = World::new(1 << 30);
    for round in 1..=3 {
        for page in 0..10 {
            world.write(page * round as usize, round);
        }
        let moment = world.capture(false, true);
        world.complete(moment, true);
        // A later capture never completes.
        world.write(3, 99);
        world.capture(false, true);
        assert!(world.restart(false).is_some(), "round {round}");
    }
}

#[test]
fn the_leader_may_be_ahead_of_its_word_that_a_checkpoint_is_complete() {
    let mut world = World::new(1 << 30);
    world.write(1, 1);
    let moment = world.capture(false, true);
    world.complete(moment, true);
    world.write(2, 2);
    let moment = world.capture(false, true);
    world.complete(moment, false);
    assert!(world.restart(false).is_some());
}

#[test]
fn a_mapped_image_is_followed_by_a_copy() {
    let mut world = World::new(1 << 30);
    world.write(1, 1);
    let moment = world.capture(false, true);
    world.complete(moment, true);
    assert!(world.restart(true).is_some());
    for value in 2..5 {
        world.write(1, value);
        let moment = world.capture(false, true);
        world.complete(moment, true);
    }
    world.build();
    world.check_mapped();
    assert!(world.restart(true).is_some());
}

#[test]
fn after_a_capture_that_was_too_large_to_be_held_the_image_is_read_from_the_store() {
    let mut world = World::new(1 << 30);
    world.write(1, 1);
    let moment = world.capture(false, true);
    world.complete(moment, true);
    world.write(2, 2);
    let moment = world.capture(false, false);
    world.complete(moment, true);
    world.write(2, 3);
    let moment = world.capture(false, true);
    world.complete(moment, true);
    world.build();
    world.write(3, 3);
    let moment = world.capture(false, true);
    world.complete(moment, true);
    assert!(world.restart(false).is_some());
}

#[test]
fn without_room_on_the_disk_there_is_no_image_and_the_task_goes_on() {
    let mut world = World::new(PAGE_BYTES as u64);
    for value in 1..4 {
        for page in 0..8 {
            world.write(page, value);
        }
        let moment = world.capture(false, true);
        world.complete(moment, true);
    }
    assert!(world.restart(false).is_none());
}

#[test]
fn a_warm_image_is_brought_up_to_date_with_what_changed_and_mapped_where_the_task_goes_on() {
    let mut world = World::new(1 << 30);
    world.write(1, 1);
    world.write(9, 9);
    let first = world.capture(false, true);
    world.write(1, 0);
    world.write(2, 2);
    world.grow();
    let second = world.capture(false, true);
    // Another TaskManager, which has never seen the task.
    let mut elsewhere = World::new(1 << 30);
    elsewhere.store = world.store.clone();
    let (done, built) = channel();
    let directory = tempfile::tempdir().expect("a directory");
    (elsewhere.table, _) = table(
        directory.path(),
        &world.store,
        &elsewhere.runtime,
        1 << 30,
        move |one| {
            let _ = done.send(one);
        },
    );
    elsewhere.built = built;
    for moment in [&first, &second] {
        assert_eq!(elsewhere.keep_warm(moment), None, "it takes a while");
        assert_eq!(elsewhere.build(), Some(vec![moment.warm()]));
        assert_eq!(elsewhere.table.warm(), [moment.warm()]);
    }
    elsewhere.completed = Some(second);
    assert!(elsewhere.restart(true).is_some());
    assert_eq!(elsewhere.table.warm(), [], "it runs here now");
}

#[test]
fn a_task_that_is_deployed_while_its_warm_image_is_on_the_way_is_given_it() {
    let mut world = World::new(1 << 30);
    world.write(4, 4);
    let moment = world.capture(true, false);
    let mut elsewhere = World::new(1 << 30);
    elsewhere.completed = Some(moment.clone());
    std::mem::swap(&mut elsewhere.table, &mut world.table);
    std::mem::swap(&mut elsewhere.built, &mut world.built);
    elsewhere.store = world.store.clone();
    // What it knows of the task is that it ran here and was stopped.
    elsewhere.table.handle(Command::Stopped(world.execution()));
    assert_eq!(elsewhere.keep_warm(&moment), None);
    assert!(elsewhere.restart(true).is_some());
}

#[test]
fn a_damaged_warm_image_is_not_said_to_be_there() {
    let mut world = World::new(1 << 30);
    let moment = world.capture(true, true);
    let mut wrong = moment;
    wrong.manifest.key.push('x');
    world.table.handle(Command::Stopped(world.execution()));
    assert_eq!(world.keep_warm(&wrong), None);
    assert_eq!(world.build(), Some(Vec::new()));
    assert_eq!(
        world.keep_warm(&wrong),
        Some(Vec::new()),
        "it is not tried again"
    );
}

#[test]
fn a_warm_image_is_said_to_be_there_while_another_is_on_the_way() {
    let mut world = World::new(1 << 30);
    let moment = world.capture(true, true);
    world.table.handle(Command::Stopped(world.execution()));
    // The other one cannot be read, and is told of as well.
    let other = TaskId::new(TASK.stage, TASK.subtask + 1);
    let images = vec![
        (TASK, moment.manifest.clone()),
        (other, moment.manifest.clone()),
    ];
    let said = world.table.handle(Command::KeepWarm(WarmImages {
        job: JOB,
        module: ModuleHash([0; 32]),
        checkpoint: moment.checkpoint,
        images,
    }));
    assert_eq!(said, None);
    assert!(world.build().is_some(), "without waiting for the other");
    assert_eq!(world.build(), Some(vec![moment.warm()]));
}

#[test]
fn a_warm_image_is_said_to_be_there_though_a_newer_one_is_wanted() {
    let mut world = World::new(1 << 30);
    let first = world.capture(true, true);
    world.write(1, 1);
    let second = world.capture(false, true);
    world.table.handle(Command::Stopped(world.execution()));
    assert_eq!(world.keep_warm(&first), None);
    assert_eq!(world.keep_warm(&second), None);
    for moment in [&first, &second] {
        assert_eq!(world.build(), Some(vec![moment.warm()]));
    }
}

#[test]
fn zeros_take_no_room_in_a_file_and_a_copy_is_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = ImageFile::create(directory.path(), 0).expect("a file");
    let run = |first, pages, zero| PageRun { first, pages, zero };
    let mut capture = StoredCapture {
        memory_bytes: 1 << 26,
        runs: vec![run(7, 1, false), run(8, 2, false), run(9000, 1, false)],
        bytes: vec![3; 4 * PAGE_BYTES],
        ..StoredCapture::default()
    };
    file.lay_over(&capture, &|| true).expect("written");
    let copy = file.copy(directory.path()).expect("copied");
    for file in [&file, &copy] {
        assert!(file.allocated_bytes().expect("known") < 1 << 20);
        let mut read = Vec::new();
        read_runs(
            &file.share(),
            &[run(6, 5, false), run(9000, 1, false)],
            &mut |run, bytes| {
                read.push((run.first, bytes.iter().filter(|byte| **byte == 3).count()));
            },
        )
        .expect("read");
        assert_eq!(read, [(6, 3 * PAGE_BYTES), (9000, PAGE_BYTES)]);
    }
    capture.runs = vec![run(7, 3, true)];
    capture.bytes.clear();
    file.lay_over(&capture, &|| true).expect("written");
    assert!(
        contents(&file.share(), 1 << 20)
            .iter()
            .all(|byte| *byte == 0)
    );
    assert!(contents(&copy.share(), 1 << 20).contains(&3));
}

#[test]
fn whoever_reads_an_image_file_that_changes_reads_one_image_or_learns_that_it_is_gone() {
    const PAGES: u32 = 64;
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = ImageFile::create(directory.path(), 0).expect("a file");
    let whole = PageRun {
        first: 0,
        pages: PAGES,
        zero: false,
    };
    let (lend, lent) = channel::<Loan>();
    let reader = std::thread::spawn(move || {
        let mut read = 0;
        for loan in lent {
            // Until it is gone.
            while let Some(pages) = loan.read(&[whole]) {
                assert_eq!(pages.len(), PAGES as usize * PAGE_BYTES);
                assert!(pages.iter().all(|byte| *byte == pages[0]), "two images");
                read += 1;
            }
        }
        read
    });
    for value in 1..=200 {
        let capture = StoredCapture {
            memory_bytes: u64::from(PAGES) * PAGE_BYTES as u64,
            runs: (0..PAGES)
                .map(|first| PageRun {
                    first,
                    pages: 1,
                    zero: false,
                })
                .collect(),
            bytes: vec![value; PAGES as usize * PAGE_BYTES],
            ..StoredCapture::default()
        };
        file.lay_over(&capture, &|| true).expect("written");
        assert!(!file.is_in_use());
        let loan = file.lend();
        assert!(loan.read(&[whole]).is_some_and(|pages| pages[0] == value));
        assert!(file.is_in_use());
        let beyond = PageRun { first: 1, ..whole };
        assert_eq!(loan.read(&[beyond]), None, "it ends before that");
        lend.send(loan).expect("it listens");
    }
    file.clear(whole).expect("cleared");
    drop(lend);
    assert!(reader.join().is_ok());
}

#[test]
fn a_warm_image_that_others_read_is_brought_up_to_date_when_they_are_done() {
    let mut world = World::new(1 << 30);
    world.write(1, 1);
    let first = world.capture(true, false);
    world.write(1, 2);
    let second = world.capture(false, false);
    world.table.handle(Command::Stopped(world.execution()));
    assert_eq!(world.keep_warm(&first), None);
    world.build();
    let (manifest, loan) = world
        .table
        .lent()
        .remove(&(JOB, TASK))
        .expect("it is there");
    assert_eq!(manifest, first.manifest);
    let page = PageRun {
        first: 1,
        pages: 1,
        zero: false,
    };
    assert!(loan.read(&[page]).is_some_and(|bytes| bytes[0] == 1));
    // Nothing is begun while somebody reads, and what is said is what is there.
    assert_eq!(world.keep_warm(&second), Some(vec![first.warm()]));
    assert!(loan.read(&[page]).is_some_and(|bytes| bytes[0] == 1));
    let began = Instant::now();
    let built = loop {
        world.table.sweep();
        match world.built.recv_timeout(Duration::from_millis(10)) {
            Ok(built) => break built,
            Err(_) => assert!(began.elapsed() < FOREVER, "it is brought up to date"),
        }
    };
    assert_eq!(
        world.table.handle(Command::Built(built)),
        Some(vec![second.warm()])
    );
    assert_eq!(loan.read(&[page]), None, "the older one is gone");
    let (manifest, loan) = world
        .table
        .lent()
        .remove(&(JOB, TASK))
        .expect("it is there");
    assert_eq!(manifest, second.manifest);
    assert!(loan.read(&[page]).is_some_and(|bytes| bytes[0] == 2));
}

#[test]
fn an_image_of_an_attempt_that_is_over_is_not_written_to_its_end() {
    let mut world = World::new(1 << 30);
    world.write(1, 1);
    world.over.cancel();
    let moment = world.capture(true, true);
    world.complete(moment, true);
    assert!(world.restart(false).is_none(), "it is half an image");
    world.over = CancellationToken::new();
    world.write(2, 2);
    let moment = world.capture(true, true);
    world.complete(moment, true);
    assert!(
        world.restart(false).is_some(),
        "the next attempt's is whole"
    );
}

#[test]
fn a_large_capture_is_asked_about_on_the_way() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = ImageFile::create(directory.path(), 0).expect("a file");
    let pages = 600;
    let capture = StoredCapture {
        memory_bytes: (pages * PAGE_BYTES) as u64,
        runs: vec![PageRun {
            first: 0,
            pages: pages as u32,
            zero: false,
        }],
        bytes: vec![7; pages * PAGE_BYTES],
        ..StoredCapture::default()
    };
    let asked = Cell::new(0);
    let twice = || asked.replace(asked.get() + 1) < 2;
    file.lay_over(&capture, &twice).expect_err("it was stopped");
    assert_eq!(asked.get(), 3, "once for each MiB");
    file.lay_over(&capture, &|| true).expect("written");
    assert!(contents(&file.share(), pages * PAGE_BYTES) == capture.bytes);
}
