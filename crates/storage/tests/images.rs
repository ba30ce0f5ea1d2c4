//! Images that are stored and read back, whole and damaged.

mod common;

use std::fs;

use common::{
    ATTEMPT, BLOCK, CHECKPOINT, JOB, TASK, all_files, file, files, image, noise, publish, read,
    write,
};
use proptest::prelude::*;
use tidemill_protocol::codec::{decode, encode};
use tidemill_protocol::image::PAGE_BYTES;
use tidemill_protocol::manifest::{BLOCK_PAGES_MAX, BlockRef, Manifest, ObjectRef};
use tidemill_protocol::{CheckpointId, Epoch, Image, JobId, TaskId};
use tidemill_storage::{MEMORY_BYTES_MAX, ReadError, Store};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

async fn manifest_of(store: &Store, object: &ObjectRef) -> Manifest {
    decode(&store.get_object(object).await.unwrap()).unwrap()
}

/// Stores a manifest as a hostile writer would: changed, and with the hash that belongs to it.
async fn forge(store: &Store, manifest: &Manifest) -> ObjectRef {
    store
        .put_object("checkpoints/forged", encode(manifest))
        .await
        .unwrap()
}

#[tokio::test]
async fn an_image_comes_back_as_it_was() {
    let (_directory, store) = files();
    let image = image(&[Some(1), None, Some(2), None, None]);
    let written = write(&store, CHECKPOINT, &image).await;
    assert_eq!(written.image_bytes, 5 * BLOCK as u64 + 9);
    assert!((2 * BLOCK as u64..3 * BLOCK as u64).contains(&written.written_bytes));

    let manifest = manifest_of(&store, &written.manifest).await;
    let stored: Vec<u32> = manifest
        .blocks
        .iter()
        .map(|block| block.first_page)
        .collect();
    assert_eq!(stored, [0, 32], "zero blocks are left out");
    assert_eq!(
        written.written_bytes,
        written.manifest.len + manifest.segments[0].len
    );
    let found = read(&store, &written.manifest).await;
    assert_eq!(found.unwrap(), image);
}

#[tokio::test]
async fn an_image_without_memory_is_a_manifest_alone() {
    let (directory, store) = files();
    for (counter, image) in [image(&[]), image(&[None, None])].into_iter().enumerate() {
        let checkpoint = CheckpointId::new(Epoch(1), counter as u64);
        let written = write(&store, checkpoint, &image).await;
        assert_eq!(all_files(directory.path()).len(), counter + 1);
        let found = read(&store, &written.manifest).await;
        assert_eq!(found.unwrap(), image);
    }
}

#[tokio::test]
async fn an_image_of_many_parts_comes_back_as_it_was() {
    let (directory, store) = files();
    let mut image = image(&[Some(9)]);
    image.memory = noise(3, 20 << 20);
    image.memory[5 << 20..7 << 20].fill(0);
    let written = write(&store, CHECKPOINT, &image).await;
    assert!(written.written_bytes > 17 << 20);
    assert_eq!(all_files(directory.path()).len(), 2);
    let found = read(&store, &written.manifest).await;
    assert!(found.unwrap() == image);
}

#[tokio::test]
async fn an_image_is_given_to_its_own_task_only() {
    let (_directory, store) = files();
    let written = write(&store, CHECKPOINT, &image(&[Some(1)])).await;
    for (job, task) in [(JOB, TaskId::new(1, 5)), (JobId([0x0b; 16]), TASK)] {
        let error = store
            .read_image(job, task, &written.manifest)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("it is of task 1/4"), "{error}");
    }
}

#[tokio::test]
async fn metadata_comes_back_as_it_was() {
    let (_directory, store) = files();
    let written = write(&store, CHECKPOINT, &image(&[])).await;
    let object = publish(&store, CHECKPOINT, &written.manifest).await;
    let metadata = store.read_metadata(&object).await.unwrap();
    assert_eq!(metadata.checkpoint, CHECKPOINT);
    assert_eq!(metadata.tasks[0].manifest, written.manifest);
    let error = store.read_metadata(&written.manifest).await.unwrap_err();
    assert!(
        error.to_string().contains("not a checkpoint metadata"),
        "{error}"
    );
}

#[tokio::test]
async fn a_module_is_found_by_its_hash_and_verified() {
    let (directory, store) = files();
    let module = noise(1, 1 << 20);
    let hash = store.put_module(module.clone()).await.unwrap();
    assert_eq!(store.put_module(module.clone()).await.unwrap(), hash);
    assert_eq!(store.get_module(&hash).await.unwrap(), module);
    let path = file(&directory, &format!("modules/{hash}"));
    fs::write(&path, &module[1..]).unwrap();
    let error = store.get_module(&hash).await.unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error:?}");
    fs::remove_file(&path).unwrap();
    let error = store.get_module(&hash).await.unwrap_err();
    assert!(matches!(error, ReadError::Missing { .. }), "{error:?}");
}

#[tokio::test]
async fn whatever_happens_to_a_stored_object_is_noticed_and_named() {
    let (directory, store) = files();
    let mut image = image(&[Some(1), None, None]);
    image.memory[2 * BLOCK..].fill(b'x');
    let written = write(&store, CHECKPOINT, &image).await;
    let objects = all_files(directory.path());
    assert_eq!(objects.len(), 2);
    for path in &objects {
        let name = path.file_name().unwrap().to_str().unwrap();
        let whole = fs::read(path).unwrap();
        let read_damaged = async |bytes: &[u8]| {
            fs::write(path, bytes).unwrap();
            let Err(error) = read(&store, &written.manifest).await.map(|found| {
                assert!(found == image, "another image was taken for the stored one");
            }) else {
                return None;
            };
            assert!(
                error.is_lost() && error.to_string().contains(name),
                "{error}"
            );
            Some(error)
        };
        for bit in (0..whole.len() * 8).step_by(whole.len() / 32 + 1) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            match read_damaged(&damaged).await {
                Some(error) => assert!(matches!(error, ReadError::Damaged { .. }), "{error:?}"),
                // LZ4 has a few bits that mean nothing, such as the length of a match that the last sequence has not.
                None => assert!(name.ends_with(".segment"), "bit {bit} of {name}"),
            }
        }
        for length in (0..whole.len()).step_by(whole.len() / 16 + 1) {
            let error = read_damaged(&whole[..length]).await.unwrap();
            assert!(matches!(error, ReadError::Truncated { .. }), "{error:?}");
        }
        let longer = [whole.as_slice(), b"!"].concat();
        let error = read_damaged(&longer).await.unwrap();
        assert!(matches!(error, ReadError::Truncated { .. }), "{error:?}");

        fs::remove_file(path).unwrap();
        let error = read(&store, &written.manifest).await;
        let error = error.unwrap_err();
        assert!(matches!(error, ReadError::Missing { .. }), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
        fs::write(path, &whole).unwrap();
    }
    let found = read(&store, &written.manifest).await;
    assert_eq!(found.unwrap(), image);
}

/// A delta on `base` that changes these blocks; `None` makes one zero.
async fn write_delta(
    store: &Store,
    counter: u64,
    base: &ObjectRef,
    memory_bytes: u64,
    changes: &[(u32, Option<&[u8]>)],
) -> ObjectRef {
    let checkpoint = CheckpointId::new(Epoch(3), counter);
    let mut segment = Vec::new();
    let mut blocks = Vec::new();
    for &(index, change) in changes {
        let compressed = change.map(lz4_flex::block::compress).unwrap_or_default();
        blocks.push(BlockRef {
            first_page: index * BLOCK_PAGES_MAX,
            pages: BLOCK_PAGES_MAX,
            segment: 0,
            offset: segment.len() as u64,
            len: compressed.len() as u32,
            checksum: crc32fast::hash(change.unwrap_or_default()),
        });
        segment.extend(compressed);
    }
    let key = tidemill_storage::keys::segment(JOB, TASK, ATTEMPT, checkpoint);
    let segment = store.put_object(&key, segment).await.unwrap();
    let manifest = Manifest {
        base: Some(base.clone()),
        checkpoint,
        memory_bytes,
        segments: vec![segment],
        blocks,
        ..manifest_of(store, base).await
    };
    let key = tidemill_storage::keys::manifest(JOB, TASK, ATTEMPT, checkpoint);
    store.put_object(&key, encode(&manifest)).await.unwrap()
}

#[tokio::test]
async fn a_delta_is_laid_over_its_bases() {
    let (_directory, store) = files();
    let mut expected = image(&[Some(1), Some(2), Some(3)]);
    let full = write(&store, CHECKPOINT, &expected).await.manifest;
    let (first, second) = (noise(4, BLOCK), noise(5, BLOCK));
    let bytes = 5 * BLOCK as u64;
    let delta = write_delta(&store, 18, &full, bytes, &[(1, Some(&first)), (2, None)]).await;
    let newest = write_delta(
        &store,
        19,
        &delta,
        bytes,
        &[(2, Some(&second)), (4, Some(&first))],
    )
    .await;

    expected.memory.resize(5 * BLOCK, 0);
    expected.memory[BLOCK..2 * BLOCK].copy_from_slice(&first);
    expected.memory[2 * BLOCK..3 * BLOCK].fill(0);
    assert!(read(&store, &delta).await.unwrap() == expected);
    expected.memory[2 * BLOCK..3 * BLOCK].copy_from_slice(&second);
    expected.memory[4 * BLOCK..].copy_from_slice(&first);
    assert!(read(&store, &newest).await.unwrap() == expected);
}

#[tokio::test]
async fn a_delta_that_does_not_fit_its_base_is_refused() {
    let store = Store::open("memory://").unwrap();
    let full = write(&store, CHECKPOINT, &image(&[Some(1), Some(2)])).await;
    let smaller = write_delta(&store, 18, &full.manifest, BLOCK as u64, &[]).await;
    let error = read(&store, &smaller).await.unwrap_err();
    assert!(error.to_string().contains("do not shrink"), "{error}");

    let mut endless = full.manifest.clone();
    for counter in 0..300 {
        endless = write_delta(&store, 100 + counter, &endless, 2 * BLOCK as u64, &[]).await;
    }
    let error = read(&store, &endless).await.unwrap_err();
    assert!(
        error.to_string().contains("more than 256 deltas"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_that_lies_is_refused_with_the_lie() {
    let store = Store::open("memory://").unwrap();
    let image = image(&[Some(1), Some(2), None]);
    let written = write(&store, CHECKPOINT, &image).await;
    let honest = manifest_of(&store, &written.manifest).await;
    type Lie = fn(&mut Manifest);
    let lies: [(&str, Lie); 14] = [
        ("at most", |m| {
            m.memory_bytes = MEMORY_BYTES_MAX + PAGE_BYTES as u64
        }),
        ("at most", |m| m.memory_bytes = u64::MAX),
        ("whole pages", |m| m.memory_bytes += 1),
        ("beyond the memory", |m| m.memory_bytes = BLOCK as u64),
        ("has 0 pages", |m| m.blocks[0].pages = 0),
        ("has 4294967295 pages", |m| m.blocks[0].pages = u32::MAX),
        ("beyond the memory", |m| m.blocks[1].first_page = u32::MAX),
        ("checksum", |m| m.blocks[0].pages -= 1),
        ("not listed", |m| m.blocks[0].segment = 1),
        ("beyond its segment", |m| m.blocks[0].offset = u64::MAX),
        ("beyond its segment", |m| m.blocks[1].len += 1),
        ("larger than it can be", |m| m.blocks[0].len += 20_000),
        ("checksum", |m| m.blocks[1].offset -= 1),
        ("is damaged", |m| m.blocks[0].checksum ^= 1),
    ];
    for (word, lie) in lies {
        let mut manifest = honest.clone();
        lie(&mut manifest);
        let forged = forge(&store, &manifest).await;
        let error = read(&store, &forged).await.unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    let mut escaping = honest.clone();
    escaping.segments[0].key = "../../etc/passwd".into();
    let forged = forge(&store, &escaping).await;
    let error = read(&store, &forged).await.unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error:?}");
}

/// Blocks of every kind: zero, noise, and noise of which most is zero.
fn any_image() -> impl Strategy<Value = Image> {
    let block = prop_oneof![
        Just(None),
        (1..1000_u64, 0..BLOCK).prop_map(Some),
        (1..1000_u64).prop_map(|seed| Some((seed, 0))),
    ];
    (
        prop::collection::vec(block, 0..6),
        prop::collection::vec(prop::option::of(0..100_u32), 0..5),
        prop::collection::vec(any::<u8>(), 0..200),
        0..BLOCK_PAGES_MAX as usize,
    )
        .prop_map(|(blocks, table, host_state, cut)| {
            let mut memory = vec![0; blocks.len() * BLOCK];
            for (block, target) in blocks.iter().zip(memory.chunks_mut(BLOCK)) {
                if let Some((seed, start)) = *block {
                    target[start..].copy_from_slice(&noise(seed, BLOCK - start));
                }
            }
            memory.truncate(memory.len().saturating_sub(cut * PAGE_BYTES));
            Image {
                memory,
                globals: vec![],
                tables: vec![table],
                host_state,
                channel_state: Vec::new(),
            }
        })
}

/// One change to a manifest, of any size.
fn any_lie() -> impl Strategy<Value = (usize, usize, u64)> {
    let number = prop_oneof![
        0..10_u64,
        any::<u64>(),
        (0..64_u32).prop_map(|bits| 1 << bits),
        Just(u64::from(u32::MAX)),
    ];
    (0..8_usize, 0..8_usize, number)
}

fn tell(manifest: &mut Manifest, (what, which, number): (usize, usize, u64)) {
    let count = manifest.blocks.len();
    let block = manifest.blocks.get_mut(which % count.max(1));
    match (what, block) {
        (0, _) => manifest.memory_bytes = number,
        (1, Some(block)) => block.pages = number as u32,
        (2, Some(block)) => block.first_page = number as u32,
        (3, Some(block)) => block.segment = number as u32,
        (4, Some(block)) => block.offset = number,
        (5, Some(block)) => block.len = number as u32,
        (6, Some(block)) => block.checksum = number as u32,
        (_, _) => {
            if let Some(segment) = manifest.segments.first_mut() {
                segment.len = number;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_image_comes_back_as_it_was(image in any_image()) {
        runtime().block_on(async {
            let store = Store::open("memory://").unwrap();
            let written = write(&store, CHECKPOINT, &image).await;
            let found = read(&store, &written.manifest).await.unwrap();
            assert!(found == image);
        });
    }

    #[test]
    fn no_lie_in_a_manifest_does_harm(image in any_image(), lies in prop::collection::vec(any_lie(), 1..4)) {
        runtime().block_on(async {
            let store = Store::open("memory://").unwrap();
            let written = write(&store, CHECKPOINT, &image).await;
            let mut manifest = manifest_of(&store, &written.manifest).await;
            for lie in lies {
                tell(&mut manifest, lie);
            }
            let forged = forge(&store, &manifest).await;
            if let Ok(found) = read(&store, &forged).await {
                assert_eq!(found.memory.len() as u64, manifest.memory_bytes);
            }
        });
    }

    #[test]
    fn a_flipped_bit_in_a_segment_with_a_forged_hash_is_found_by_the_checksum(
        image in any_image(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        runtime().block_on(async {
            let store = Store::open("memory://").unwrap();
            let written = write(&store, CHECKPOINT, &image).await;
            let mut manifest = manifest_of(&store, &written.manifest).await;
            let Some(segment) = manifest.segments.first_mut() else {
                return;
            };
            let mut bytes = store.get_object(segment).await.unwrap().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            *segment = store.put_object("checkpoints/segment", bytes).await.unwrap();
            let forged = forge(&store, &manifest).await;
            // A bit of a match's distance may be without effect; anything else must be found.
            if let Ok(found) = read(&store, &forged).await {
                assert!(found == image);
            }
        });
    }

    #[test]
    fn bytes_that_are_no_manifest_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), envelope in any::<bool>()) {
        runtime().block_on(async {
            let store = Store::open("memory://").unwrap();
            let bytes = if envelope { [b"MF\x02\x00", bytes.as_slice()].concat() } else { bytes };
            let garbage = store.put_object("checkpoints/garbage", bytes).await.unwrap();
            let error = read(&store, &garbage).await.unwrap_err();
            assert!(error.to_string().contains("`checkpoints/garbage`"), "{error}");
        });
    }
}
