//! Images that are opened, and read page by page.

mod common;

use std::fs;
use std::ops::Range;

use common::{BLOCK, CHECKPOINT, JOB, TASK, file, files, id_of, image, noise, read, write};
use tidemill_protocol::image::{PAGE_BYTES, PageRun};
use tidemill_protocol::{CheckpointId, Epoch, Image, ImageHead};
use tidemill_storage::{ImageChain, ReadError, Store, StoredImage, keys};

async fn open(store: &Store, image: &Image) -> StoredImage {
    let written = write(store, CHECKPOINT, image).await;
    store
        .open_image(JOB, TASK, &written.manifest)
        .await
        .unwrap()
}

fn pages_of(pieces: &[PageRun]) -> Vec<Range<usize>> {
    let pages = pieces.iter().map(|piece| piece.first as usize..piece.end());
    pages.collect()
}

#[tokio::test]
async fn an_opened_image_has_its_head_and_says_where_its_pages_are() {
    let (_directory, store) = files();
    assert!(!store.is_bucket());
    let mut whole = image(&[Some(1), None, Some(2)]);
    whole.memory[BLOCK - PAGE_BYTES..BLOCK].fill(0);
    whole.channel_state = b"frames".to_vec();
    let opened = open(&store, &whole).await;
    let head = ImageHead {
        memory_bytes: 3 * BLOCK as u64,
        globals: whole.globals.clone(),
        tables: whole.tables.clone(),
        host_state: whole.host_state.clone(),
        channel_state: whole.channel_state.clone(),
    };
    assert_eq!(*opened.head(), head);
    assert_eq!(pages_of(opened.pieces()), [0..15, 32..48]);
    for (pages, pieces) in [
        (0..48, 0..2),
        (0..1, 0..1),
        (14..33, 0..2),
        (15..32, 1..1),
        (47..48, 1..2),
        (48..60, 2..2),
        (20..20, 1..1),
    ] {
        assert_eq!(opened.pieces_of(pages.clone()), pieces, "{pages:?}");
    }
}

#[tokio::test]
async fn each_piece_reads_back_alone_and_with_its_neighbours() {
    let (_directory, store) = files();
    let mut whole = image(&[Some(1), None, Some(2), Some(3)]);
    let first = write(&store, CHECKPOINT, &whole).await;
    // Overlaid in the middle of a block, so that one block is two pieces.
    let (_, mut chain) = store.read_image(JOB, TASK, &first.manifest).await.unwrap();
    let place = 36 * PAGE_BYTES..38 * PAGE_BYTES;
    whole.memory[place.clone()].copy_from_slice(&noise(9, 2 * PAGE_BYTES));
    let capture = tidemill_protocol::image::StoredCapture {
        memory_bytes: whole.memory.len() as u64,
        runs: vec![PageRun {
            first: 36,
            pages: 2,
            zero: false,
        }],
        bytes: whole.memory[place].to_vec(),
        ..Default::default()
    };
    let later = CheckpointId::new(Epoch(3), 18);
    let written = store
        .write_capture(id_of(later), &capture.into(), &mut chain)
        .await
        .unwrap();

    let opened = store
        .open_image(JOB, TASK, &written.manifest)
        .await
        .unwrap();
    let pages = pages_of(opened.pieces());
    assert_eq!(pages, [0..16, 32..36, 36..38, 38..48, 48..64]);
    for (piece, is_block) in (0..).zip([true, false, true, false, true]) {
        let mut bytes = whole.memory[opened.pieces()[piece].memory_range()].to_vec();
        assert_eq!(opened.matches(piece, &bytes), is_block.then_some(true));
        bytes[PAGE_BYTES] ^= 1;
        assert_eq!(opened.matches(piece, &bytes), is_block.then_some(false));
        assert_eq!(opened.matches(piece, &[]), is_block.then_some(false));
    }
    for start in 0..pages.len() {
        for end in start..=pages.len() {
            let read = opened.read(start..end).await.unwrap();
            let runs: Vec<PageRun> = read.iter().map(|(run, _)| *run).collect();
            assert_eq!(runs, opened.pieces()[start..end]);
            for (run, bytes) in read {
                assert!(bytes == whole.memory[run.memory_range()], "{run:?}");
            }
        }
    }
}

#[tokio::test]
async fn damage_is_found_by_who_reads_it_and_by_nobody_else() {
    let (directory, store) = files();
    let whole = image(&[Some(1), Some(2), Some(3)]);
    let opened = open(&store, &whole).await;
    let key = keys::segment(JOB, TASK, common::ATTEMPT, CHECKPOINT);
    let path = file(&directory, &key);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    for (pieces, found) in [(0..1, true), (2..3, true), (1..2, false), (0..3, false)] {
        let read = opened.read(pieces.clone()).await;
        assert_eq!(read.is_ok(), found, "{pieces:?}");
        if let Err(error) = read {
            assert!(matches!(error, ReadError::Damaged { .. }), "{error:?}");
            assert!(error.to_string().contains(&key), "{error}");
        }
    }
    bytes.truncate(middle);
    fs::write(&path, &bytes).unwrap();
    for pieces in [0..1, 2..3] {
        let error = opened.read(pieces).await.unwrap_err();
        assert!(matches!(error, ReadError::Truncated { .. }), "{error:?}");
    }
    fs::remove_file(&path).unwrap();
    let error = opened.read(0..1).await.unwrap_err();
    assert!(matches!(error, ReadError::Missing { .. }), "{error:?}");
}

#[tokio::test]
async fn blocks_far_apart_are_read_together_and_verified_one_by_one() {
    let (directory, store) = files();
    let seeds: Vec<Option<u64>> = (1..=200).map(Some).collect();
    let whole = image(&seeds);
    let ranges: Vec<Range<usize>> = (0..200).step_by(3).map(|piece| piece..piece + 1).collect();
    for store in [&store, &Store::open("memory://").unwrap()] {
        let opened = open(store, &whole).await;
        let read = opened.read_scattered(&ranges).await.unwrap();
        let runs: Vec<PageRun> = read.iter().map(|(run, _)| *run).collect();
        let wanted: Vec<PageRun> = ranges
            .iter()
            .map(|one| opened.pieces()[one.start])
            .collect();
        assert_eq!(runs, wanted);
        for (run, bytes) in read {
            assert!(bytes == whole.memory[run.memory_range()], "{run:?}");
        }
    }
    let opened = open(&store, &whole).await;
    let key = keys::segment(JOB, TASK, common::ATTEMPT, CHECKPOINT);
    let path = file(&directory, &key);
    let intact = fs::read(&path).unwrap();
    let mut bytes = intact.clone();
    // In the block of piece 99, which is wanted, and of piece 100, which is not.
    for (piece, is_wanted) in [(99, true), (100, false)] {
        bytes.copy_from_slice(&intact);
        bytes[intact.len() * piece / 200 + 1000] ^= 1;
        fs::write(&path, &bytes).unwrap();
        match opened.read_scattered(&ranges).await {
            Ok(_) => assert!(!is_wanted, "piece {piece} is damaged"),
            Err(error) => assert!(
                is_wanted && matches!(error, ReadError::Damaged { .. }),
                "{error:?}"
            ),
        }
    }
    fs::write(&path, &intact[..intact.len() / 2]).unwrap();
    let error = opened.read_scattered(&ranges).await.unwrap_err();
    assert!(matches!(error, ReadError::Truncated { .. }), "{error:?}");
    fs::remove_file(&path).unwrap();
    let error = opened.read_scattered(&ranges).await.unwrap_err();
    assert!(matches!(error, ReadError::Missing { .. }), "{error:?}");
}

#[tokio::test]
async fn a_copy_is_brought_up_to_date_by_what_changed() {
    let store = Store::open("memory://").unwrap();
    let mut chain = ImageChain::new();
    let mut memory = noise(1, 64 * PAGE_BYTES);
    let mut opened: Vec<StoredImage> = Vec::new();
    let mut copy = memory.clone();
    // More captures than deltas follow each other, so that a full manifest is among them.
    for counter in 1..50_usize {
        let pages = [counter * 7 % 64, counter * 13 % 64, 64 + counter - 1];
        memory.resize(memory.len() + PAGE_BYTES, 0);
        let mut capture = tidemill_protocol::image::StoredCapture {
            memory_bytes: memory.len() as u64,
            ..Default::default()
        };
        if counter == 1 {
            let all = Image {
                memory: memory.clone(),
                ..Image::default()
            };
            capture = all.into();
        } else {
            for (number, page) in pages.into_iter().enumerate() {
                let place = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
                if number == 1 && pages[0] != pages[1] {
                    memory[place.clone()].fill(0);
                } else {
                    memory[place.clone()].copy_from_slice(&noise(counter as u64, PAGE_BYTES));
                }
                if number == 1 && pages[0] == pages[1] {
                    continue;
                }
                capture.runs.push(PageRun {
                    first: page as u32,
                    pages: 1,
                    zero: false,
                });
                capture.bytes.extend_from_slice(&memory[place]);
            }
        }
        let id = id_of(CheckpointId::new(Epoch(1), counter as u64));
        let written = store.write_capture(id, &capture.into(), &mut chain).await;
        let manifest = written.unwrap().manifest;
        let newer = store.open_image(JOB, TASK, &manifest).await.unwrap();
        if let Some(older) = opened.last() {
            let changed = newer.changed_since(older);
            let pages: u32 = changed.iter().map(|run| run.pages).sum();
            assert!(pages <= 3, "{pages} pages of 3 written ones");
            copy.resize(memory.len(), 0xee);
            for run in changed {
                copy[run.memory_range()].fill(0);
                if run.zero {
                    continue;
                }
                let pieces = newer.pieces_of(run.first..run.first + run.pages);
                for (piece, bytes) in newer.read(pieces).await.unwrap() {
                    copy[piece.memory_range()].copy_from_slice(&bytes);
                }
            }
        } else {
            copy.clone_from(&memory);
        }
        assert!(copy == memory, "after capture {counter}");
        assert!(read(&store, &manifest).await.unwrap().memory == memory);
        opened.push(newer);
    }
    assert_eq!(opened[9].changed_since(&opened[9]), []);
}
