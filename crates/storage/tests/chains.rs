//! Captures that build on each other: every image of a chain reads back as the memory was, whatever happened between.

mod common;

use std::sync::Arc;

use common::{ATTEMPT, JOB, TASK, files, id_of, noise, publish, read};
use proptest::prelude::*;
use tidemill_protocol::image::{PAGE_BYTES, PageRun, StoredCapture};
use tidemill_protocol::manifest::{Manifest, ObjectRef};
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{CheckpointId, Epoch, codec};
use tidemill_storage::{ImageChain, Store, WriteError, WrittenImage, keys};

fn checkpoint(counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(1), counter)
}

/// A memory that remembers which of its pages were written.
struct Memory {
    bytes: Vec<u8>,
    dirty: Vec<bool>,
}

impl Memory {
    fn new(pages: usize) -> Self {
        Self {
            bytes: vec![0; pages * PAGE_BYTES],
            dirty: vec![true; pages],
        }
    }

    fn write(&mut self, page: usize, seed: u64) {
        let bytes = match seed {
            0 => vec![0; PAGE_BYTES],
            seed => noise(seed, PAGE_BYTES),
        };
        self.bytes[page * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(&bytes);
        self.dirty[page] = true;
    }

    fn grow(&mut self, pages: usize) {
        self.dirty.resize(self.dirty.len() + pages, false);
        self.bytes.resize(self.dirty.len() * PAGE_BYTES, 0);
    }

    fn capture(&mut self) -> Arc<StoredCapture> {
        let mut capture = StoredCapture {
            memory_bytes: self.bytes.len() as u64,
            host_state: b"position".to_vec(),
            channel_state: Vec::new(),
            ..StoredCapture::default()
        };
        for (page, dirty) in self.dirty.iter_mut().enumerate() {
            if !std::mem::take(dirty) {
                continue;
            }
            let first = page as u32;
            let bytes = &self.bytes[page * PAGE_BYTES..][..PAGE_BYTES];
            // Some captures know that a page is zero, and some leave it to be found.
            let zero = page % 2 == 0 && bytes.iter().all(|byte| *byte == 0);
            match capture.runs.last_mut() {
                Some(run) if run.first + run.pages == first && run.zero == zero => run.pages += 1,
                _ => capture.runs.push(PageRun {
                    first,
                    pages: 1,
                    zero,
                }),
            }
            if !zero {
                capture.bytes.extend_from_slice(bytes);
            }
        }
        Arc::new(capture)
    }

    /// The capture was not stored: its pages are still to be.
    fn not_stored(&mut self, capture: &StoredCapture) {
        for run in &capture.runs {
            self.dirty[run.first as usize..(run.first + run.pages) as usize].fill(true);
        }
    }
}

async fn write(
    store: &Store,
    counter: u64,
    memory: &mut Memory,
    chain: &mut ImageChain,
) -> Result<WrittenImage, WriteError> {
    let capture = memory.capture();
    let written = store
        .write_capture(id_of(checkpoint(counter)), &capture, chain)
        .await;
    if written.is_err() {
        memory.not_stored(&capture);
    }
    written
}

async fn manifest_of(store: &Store, object: &ObjectRef) -> Manifest {
    codec::decode(&store.get_object(object).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_capture_costs_what_was_written_not_what_there_is() {
    let store = Store::open("memory://").unwrap();
    let (mut memory, mut chain) = (Memory::new(4096), ImageChain::new());
    for page in 0..4096 {
        memory.write(page, page as u64 + 1);
    }
    let full = write(&store, 1, &mut memory, &mut chain).await.unwrap();
    assert!(full.written_bytes > 4096 * PAGE_BYTES as u64);
    for page in (0..4096).step_by(100) {
        memory.write(page, page as u64 + 5000);
    }
    let dirty_bytes = 41 * PAGE_BYTES as u64;
    let delta = write(&store, 2, &mut memory, &mut chain).await.unwrap();
    assert!(
        delta.written_bytes < dirty_bytes + dirty_bytes / 10,
        "{} bytes were written for {dirty_bytes} dirty ones",
        delta.written_bytes
    );
    assert_eq!(delta.image_bytes, full.image_bytes);
    assert!(read(&store, &delta.manifest).await.unwrap().memory == memory.bytes);
}

#[tokio::test]
async fn a_page_that_becomes_zero_is_zero_after_a_restore() {
    let store = Store::open("memory://").unwrap();
    let (mut memory, mut chain) = (Memory::new(32), ImageChain::new());
    (0..32).for_each(|page| memory.write(page, 7));
    write(&store, 1, &mut memory, &mut chain).await.unwrap();
    [3, 4, 5, 31]
        .into_iter()
        .for_each(|page| memory.write(page, 0));
    let written = write(&store, 2, &mut memory, &mut chain).await.unwrap();
    let manifest = manifest_of(&store, &written.manifest).await;
    assert!(manifest.segments.is_empty(), "zeros need no bytes");
    assert!(read(&store, &written.manifest).await.unwrap().memory == memory.bytes);
}

#[tokio::test]
async fn a_page_that_became_zero_stays_zero_in_the_next_full_manifest() {
    let store = Store::open("memory://").unwrap();
    let (mut memory, mut chain) = (Memory::new(32), ImageChain::new());
    (0..32).for_each(|page| memory.write(page, 7));
    write(&store, 1, &mut memory, &mut chain).await.unwrap();
    memory.write(3, 0);
    for counter in 2.. {
        let written = write(&store, counter, &mut memory, &mut chain)
            .await
            .unwrap();
        if manifest_of(&store, &written.manifest).await.base.is_none() {
            assert!(read(&store, &written.manifest).await.unwrap().memory == memory.bytes);
            break;
        }
    }
}

#[tokio::test]
async fn chains_stay_short() {
    let store = Store::open("memory://").unwrap();
    let (mut memory, mut chain) = (Memory::new(64), ImageChain::new());
    let mut newest = None;
    let mut longest = 0;
    for counter in 1..200 {
        memory.write(counter as usize * 7 % 64, counter);
        let written = write(&store, counter, &mut memory, &mut chain)
            .await
            .unwrap();
        let mut length = 0;
        let mut next = Some(written.manifest.clone());
        while let Some(object) = next {
            length += 1;
            next = manifest_of(&store, &object).await.base;
        }
        longest = longest.max(length);
        newest = Some(written.manifest);
    }
    assert_eq!(longest, 33, "32 deltas on a full manifest");
    let image = read(&store, &newest.unwrap()).await.unwrap();
    assert!(image.memory == memory.bytes);
}

#[tokio::test]
async fn a_restored_task_goes_on_with_the_chain_of_its_image() {
    let (_directory, store) = files();
    let (mut memory, mut chain) = (Memory::new(48), ImageChain::new());
    (0..48).for_each(|page| memory.write(page, page as u64 + 1));
    write(&store, 1, &mut memory, &mut chain).await.unwrap();
    memory.write(7, 100);
    let second = write(&store, 2, &mut memory, &mut chain).await.unwrap();

    let (image, mut chain) = store.read_image(JOB, TASK, &second.manifest).await.unwrap();
    let mut restored = Memory {
        dirty: vec![false; 48],
        bytes: image.memory,
    };
    restored.write(8, 200);
    let third = write(&store, 3, &mut restored, &mut chain).await.unwrap();
    let manifest = manifest_of(&store, &third.manifest).await;
    assert_eq!(manifest.base, Some(second.manifest));
    assert!(read(&store, &third.manifest).await.unwrap().memory == restored.bytes);
}

#[tokio::test]
async fn clean_up_keeps_what_a_chain_needs_and_nothing_more() {
    let (_directory, store) = files();
    let (mut memory, mut chain) = (Memory::new(256), ImageChain::new());
    (0..256).for_each(|page| memory.write(page, page as u64 + 1));
    let mut retained = Vec::new();
    for counter in 1..100_u64 {
        (0..32).for_each(|step| memory.write((counter as usize * 32 + step) % 256, counter * 999));
        for run in chain.pages_to_write_again(64) {
            memory.dirty[run.start as usize..run.end as usize].fill(true);
        }
        let id = checkpoint(counter);
        let written = write(&store, counter, &mut memory, &mut chain)
            .await
            .unwrap();
        // Every third is aborted: it is stored, and no pointer names it.
        if counter % 3 == 0 {
            continue;
        }
        let metadata = publish(&store, id, &written.manifest).await;
        retained.push(CheckpointPointer {
            checkpoint: id,
            metadata,
        });
        if retained.len() > 2 {
            retained.remove(0);
        }
        store.delete_orphans(JOB, &retained, id).await.unwrap();
        assert!(read(&store, &written.manifest).await.unwrap().memory == memory.bytes);
    }
    for pointer in &retained {
        let metadata = store.read_metadata(&pointer.metadata).await.unwrap();
        read(&store, &metadata.tasks[0].manifest).await.unwrap();
    }
    let kept = store.list_checkpoints(JOB).await.unwrap();
    assert!(
        kept.len() <= 40,
        "{} checkpoints left something",
        kept.len()
    );
}

#[tokio::test]
async fn a_capture_that_could_not_be_stored_is_made_up_for_by_the_next() {
    let (directory, store) = files();
    let (mut memory, mut chain) = (Memory::new(32), ImageChain::new());
    (0..32).for_each(|page| memory.write(page, 7));
    write(&store, 1, &mut memory, &mut chain).await.unwrap();

    // A directory in the place of the segment, then of the manifest.
    type Key = fn(CheckpointId) -> String;
    let of: [Key; 2] = [
        |id| keys::segment(JOB, TASK, ATTEMPT, id),
        |id| keys::manifest(JOB, TASK, ATTEMPT, id),
    ];
    for (counter, key) in (2..).step_by(2).zip(of) {
        let place = common::file(&directory, &key(checkpoint(counter)));
        std::fs::create_dir_all(place.join("in-the-way")).unwrap();
        memory.write(counter as usize, counter);
        let error = write(&store, counter, &mut memory, &mut chain)
            .await
            .unwrap_err();
        assert!(matches!(error, WriteError::Failed { .. }), "{error:?}");
        memory.write(20, counter);
        let written = write(&store, counter + 1, &mut memory, &mut chain)
            .await
            .unwrap();
        let image = read(&store, &written.manifest).await.unwrap();
        assert!(image.memory == memory.bytes, "after {}", place.display());
    }
}

/// What may happen to a memory between two captures.
#[derive(Clone, Debug)]
enum Change {
    Write(prop::sample::Index, u64),
    Grow(usize),
    Capture,
    Restore,
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (any::<prop::sample::Index>(), 0..9_u64).prop_map(|(page, seed)| Change::Write(page, seed)),
        1 => (1..40_usize).prop_map(Change::Grow),
        3 => Just(Change::Capture),
        1 => Just(Change::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_capture_of_every_history_reads_back_as_the_memory_was(
        changes in prop::collection::vec(any_change(), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::open("memory://").unwrap();
            let (mut memory, mut chain) = (Memory::new(16), ImageChain::new());
            let mut last = None;
            for (counter, change) in changes.into_iter().enumerate() {
                match change {
                    Change::Write(page, seed) => memory.write(page.index(memory.dirty.len()), seed),
                    Change::Grow(pages) => memory.grow(pages),
                    Change::Capture => {
                        for run in chain.pages_to_write_again(16) {
                            memory.dirty[run.start as usize..run.end as usize].fill(true);
                        }
                        let written = write(&store, counter as u64, &mut memory, &mut chain).await.unwrap();
                        assert!(read(&store, &written.manifest).await.unwrap().memory == memory.bytes);
                        last = Some(written.manifest);
                    }
                    Change::Restore => if let Some(manifest) = &last {
                        let (image, restored) = store.read_image(JOB, TASK, manifest).await.unwrap();
                        chain = restored;
                        memory = Memory { dirty: vec![false; image.memory.len() / PAGE_BYTES], bytes: image.memory };
                    }
                }
            }
        });
    }
}
