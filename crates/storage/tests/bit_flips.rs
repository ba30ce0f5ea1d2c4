//! A checkpoint of about a megabyte, of which single bits are flipped: whoever reads it notices, or reads what was written.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{ATTEMPT, BLOCK, CHECKPOINT, JOB, files, id_of, noise, write_full};
use tidemill_protocol::image::GlobalValue;
use tidemill_protocol::manifest::{CheckpointMetadata, Manifest, ObjectRef, TaskImageRef};
use tidemill_protocol::{Image, ModuleHash, TaskId, codec};
use tidemill_storage::{CaptureId, ReadError, Store};

/// Bytes of a segment that are tried, each with all its bits.
const SAMPLED_BYTES: usize = 200;

/// One task whose memory does not compress, and one whose memory does, as text and counters do.
fn images() -> [Image; 2] {
    let vocabulary = [
        "tide ", "mill ", "stone ", "grinds ", "sluice ", "of ", "the ", "ebb ",
    ];
    let mut words = Vec::new();
    for byte in noise(3, 6 * BLOCK) {
        words.extend_from_slice(vocabulary[usize::from(byte % 8)].as_bytes());
    }
    words.resize(20 * BLOCK, b'.');
    let image = |memory: Vec<u8>| Image {
        memory,
        globals: vec![GlobalValue::I32(7); 40],
        tables: vec![vec![Some(3); 100]],
        host_state: noise(8, 300),
        channel_state: noise(9, 200),
    };
    [image(noise(1, 8 * BLOCK)), image(words)]
}

struct Stored {
    store: Store,
    metadata: ObjectRef,
    images: [Image; 2],
}

impl Stored {
    async fn read(&self) -> Result<(), ReadError> {
        let metadata = self.store.read_metadata(&self.metadata).await?;
        for (task, image) in metadata.tasks.iter().zip(&self.images) {
            let opened = self
                .store
                .open_image(JOB, task.task, &task.manifest)
                .await?;
            assert_eq!(opened.head().host_state, image.host_state);
            assert_eq!(opened.head().channel_state, image.channel_state);
            let pieces = opened.read(0..opened.pieces().len()).await?;
            let bytes: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
            assert_eq!(bytes, image.memory.len());
            for (piece, bytes) in pieces {
                assert!(bytes == image.memory[piece.memory_range()], "{piece:?}");
            }
        }
        Ok(())
    }
}

async fn checkpoint(store: Store) -> (Stored, Vec<ObjectRef>) {
    let images = images();
    let mut objects = Vec::new();
    let mut tasks = Vec::new();
    for (subtask, image) in (0..).zip(&images) {
        let task = TaskId::new(1, subtask);
        let id = CaptureId {
            task,
            ..id_of(CHECKPOINT)
        };
        let manifest = write_full(&store, id, image).await.unwrap().manifest;
        let listed: Manifest = codec::decode(&store.get_object(&manifest).await.unwrap()).unwrap();
        // Right after a full capture, every byte of a segment is a block's.
        let mut end = 0;
        for block in &listed.blocks {
            assert_eq!(block.offset, end);
            end += u64::from(block.len);
        }
        assert_eq!(listed.segments[0].len, end);
        objects.extend([manifest.clone(), listed.segments[0].clone()]);
        tasks.push(TaskImageRef {
            task,
            attempt: ATTEMPT,
            manifest,
            finished: false,
        });
    }
    let metadata = CheckpointMetadata {
        job: JOB,
        checkpoint: CHECKPOINT,
        module: ModuleHash([5; 32]),
        job_graph_hash: 1,
        tasks,
    };
    let metadata = store.write_metadata(&metadata).await.unwrap();
    objects.push(metadata.clone());
    let stored = Stored {
        store,
        metadata,
        images,
    };
    (stored, objects)
}

/// Where bits are flipped: everywhere in small objects.
fn sample(len: usize) -> impl Iterator<Item = usize> {
    let step = (len / SAMPLED_BYTES).max(1);
    // Both ends, and in between positions that share no rhythm with anything.
    (0..len).filter(move |at| *at < 8 || *at + 8 >= len || at * 7 % step == 0 || step == 1)
}

/// Flips one bit, tells what reading says, and flips it back.
async fn with_flipped(stored: &Stored, path: &Path, at: usize, bit: u32) -> Result<(), ReadError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at as u64).unwrap();
    let read = stored.read().await;
    file.write_all_at(&byte, at as u64).unwrap();
    read
}

#[tokio::test]
async fn every_flipped_bit_is_noticed_or_means_nothing() {
    let (directory, store) = files();
    let (stored, objects) = checkpoint(store).await;
    let total: u64 = objects.iter().map(|object| object.len).sum();
    assert!((800_000..1_400_000).contains(&total), "{total} bytes");
    stored.read().await.unwrap();
    let (mut flips, mut meaningless) = (0, 0);
    for object in &objects {
        let path = common::file(&directory, &object.key);
        let len = fs::metadata(&path).unwrap().len();
        assert_eq!(len, object.len);
        for at in sample(usize::try_from(len).unwrap()) {
            for bit in 0..8 {
                flips += 1;
                match with_flipped(&stored, &path, at, bit).await {
                    Err(error @ ReadError::Damaged { .. }) => {
                        let named = error.to_string().contains(&object.key);
                        assert!(named, "bit {bit} of byte {at} of {}: {error}", object.key);
                    }
                    // LZ4 has a few bits that mean nothing: the length of the match that a block's last sequence has
                    // not, and a match's distance where what is repeated is there twice. What was read was right.
                    Ok(()) if object.key.ends_with(".segment") => meaningless += 1,
                    other => panic!("bit {bit} of byte {at} of {}: {other:?}", object.key),
                }
            }
        }
    }
    println!("{meaningless} of {flips} flips were without effect");
    assert!(flips > 9_000, "{flips} flips");
    assert!(meaningless * 100 < flips, "{meaningless} of {flips}");
    stored.read().await.unwrap();
}
