//! Captures that hold what changed, and uploads that come to nothing: whatever was stored last is what the memory was.

use std::ops::Range;

use proptest::prelude::*;
use tidemill_protocol::image::{PAGE_BYTES, PageRun, StoredCapture};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, TaskId};
use tidemill_storage::{ImageChain, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::capture::{Captured, Capturing, Change};
use super::super::{Execution, TaskEvent};
use super::{FOREVER, JOB};

const TASK: TaskId = TaskId::new(0, 0);
const PAGES: usize = 40;

/// A memory whose changed pages are known.
struct Memory {
    bytes: Vec<u8>,
    dirty: Vec<bool>,
    captured: bool,
}

impl Memory {
    fn change(&mut self, again: &[Range<u32>], whole: bool) -> Change {
        let whole = whole || !std::mem::replace(&mut self.captured, true);
        let mut capture = StoredCapture {
            memory_bytes: self.bytes.len() as u64,
            ..StoredCapture::default()
        };
        for page in 0..PAGES {
            let bytes = &self.bytes[page * PAGE_BYTES..][..PAGE_BYTES];
            let zero = bytes.iter().all(|byte| *byte == 0);
            let wanted = again.iter().any(|range| range.contains(&(page as u32)));
            let dirty = std::mem::take(&mut self.dirty[page]);
            if whole && zero || !(whole || dirty || wanted) {
                continue;
            }
            capture.runs.push(PageRun {
                first: page as u32,
                pages: 1,
                zero,
            });
            if !zero {
                capture.bytes.extend_from_slice(bytes);
            }
        }
        Change { capture, whole }
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write { page: usize, value: u8 },
    Capture { whole: bool, fate: Fate },
}

/// What becomes of an upload.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Stored,
    /// It has not even begun.
    Abandoned,
    /// It has begun, and how far it came is chance.
    Overtaken,
    /// The store refuses it.
    Refused,
}

fn any_step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        3 => Just(Fate::Stored),
        1 => Just(Fate::Abandoned),
        1 => Just(Fate::Overtaken),
        1 => Just(Fate::Refused),
    ];
    prop_oneof![
        5 => (0..PAGES, 0..4_u8).prop_map(|(page, value)| Step::Write { page, value }),
        3 => (prop::bool::weighted(0.2), fate).prop_map(|(whole, fate)| Step::Capture { whole, fate }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_was_stored_last_is_what_the_memory_was(steps in prop::collection::vec(any_step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path().to_str().expect("a path")).expect("a store");
        let (events, mut received) = mpsc::unbounded_channel();
        let execution = Execution {
            job: JOB,
            task: TASK,
            attempt: AttemptId::new(Epoch(1), 1),
        };
        let mut capturing = Capturing::new(
            execution,
            store.clone(),
            runtime.handle().clone(),
            events,
            CancellationToken::new(),
            ImageChain::new(),
        );
        let mut memory = Memory {
            bytes: vec![0; PAGES * PAGE_BYTES],
            dirty: vec![false; PAGES],
            captured: false,
        };
        for (counter, step) in steps.into_iter().enumerate() {
            let checkpoint = CheckpointId::new(Epoch(1), counter as u64);
            let (whole, fate) = match step {
                Step::Write { page, value } => {
                    memory.bytes[page * PAGE_BYTES..][..PAGE_BYTES].fill(value);
                    memory.dirty[page] = true;
                    continue;
                }
                Step::Capture { whole, fate } => (whole, fate),
            };
            let key = tidemill_storage::keys::manifest(JOB, TASK, execution.attempt, checkpoint);
            if matches!(fate, Fate::Refused) {
                let in_the_way = directory.path().join(&key).join("in-the-way");
                std::fs::create_dir_all(in_the_way).expect("a directory");
            }
            let change = memory.change(&capturing.again(), whole);
            capturing.upload(Captured {
                checkpoint,
                change,
                finished: false,
                alignment: std::time::Duration::ZERO,
                pause: std::time::Duration::ZERO,
                ahead_pages: 0,
                recorded: None,
            });
            match fate {
                Fate::Abandoned => capturing.abandon_all(),
                Fate::Overtaken => runtime.block_on(async {
                    for _ in 0..counter % 5 {
                        tokio::task::yield_now().await;
                    }
                }),
                Fate::Stored | Fate::Refused => {
                    let part = runtime.block_on(async {
                        loop {
                            let event = tokio::time::timeout(FOREVER, received.recv());
                            match event.await.expect("in time").expect("a sender") {
                                TaskEvent::Acknowledged(part) if part.checkpoint == checkpoint => break Some(part),
                                TaskEvent::Declined { checkpoint: declined, .. } if declined == checkpoint => break None,
                                // Of one that was overtaken, but too late.
                                TaskEvent::Acknowledged(_) => {}
                                other => panic!("unexpected {other:?}"),
                            }
                        }
                    });
                    assert_eq!(part.is_some(), matches!(fate, Fate::Stored));
                    if let Some(part) = part {
                        let read = store.read_image(JOB, TASK, &part.manifest);
                        let (image, _) = runtime.block_on(read).expect("stored");
                        assert!(image.memory == memory.bytes, "checkpoint {checkpoint}");
                    }
                }
            }
        }
    }
}
