//! Images to store, and stores to break. It never asserts.
#![allow(
    dead_code,
    reason = "each test binary compiles this module and uses a part of it"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tidemill_protocol::image::{GlobalValue, PAGE_BYTES, StoredCapture};
use tidemill_protocol::manifest::{BLOCK_PAGES_MAX, CheckpointMetadata, ObjectRef, TaskImageRef};
use tidemill_protocol::record::{JobOptions, JobRecord, JobState, RestartStrategy};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, Image, JobId, ModuleHash, TaskId};
use tidemill_storage::{CaptureId, ImageChain, ReadError, Store, WriteError, WrittenImage};

pub(crate) const JOB: JobId = JobId([0x0a; 16]);
pub(crate) const TASK: TaskId = TaskId::new(1, 4);
pub(crate) const ATTEMPT: AttemptId = AttemptId::new(Epoch(2), 5);
pub(crate) const CHECKPOINT: CheckpointId = CheckpointId::new(Epoch(3), 17);
/// What is compressed together, in bytes.
pub(crate) const BLOCK: usize = BLOCK_PAGES_MAX as usize * PAGE_BYTES;
pub(crate) const ID: CaptureId = id_of(CHECKPOINT);

/// The capture of [`TASK`] in this checkpoint.
pub(crate) const fn id_of(checkpoint: CheckpointId) -> CaptureId {
    CaptureId {
        job: JOB,
        task: TASK,
        attempt: ATTEMPT,
        checkpoint,
    }
}

/// A store in a directory of its own.
pub(crate) fn files() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", directory.path().display())).unwrap();
    (directory, store)
}

/// The file of an object.
pub(crate) fn file(directory: &TempDir, key: &str) -> PathBuf {
    directory.path().join(key)
}

/// Every file below a directory, staged ones included.
pub(crate) fn all_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(all_files(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Bytes that do not compress, the same for the same seed (xorshift64).
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// An image of these blocks: `None` is all zeros, a number is noise of that seed.
pub(crate) fn image(blocks: &[Option<u64>]) -> Image {
    let mut memory = Vec::with_capacity(blocks.len() * BLOCK);
    for block in blocks {
        match block {
            None => memory.resize(memory.len() + BLOCK, 0),
            Some(seed) => memory.extend(noise(*seed, BLOCK)),
        }
    }
    Image {
        memory,
        globals: vec![
            GlobalValue::I32(-1),
            GlobalValue::F64(f64::NAN.to_bits()),
            GlobalValue::V128(u128::MAX),
        ],
        tables: vec![vec![None, Some(7)], vec![]],
        host_state: b"offset 42".to_vec(),
        channel_state: b"frames".to_vec(),
    }
}

/// Stores an image in full.
pub(crate) async fn write_full(
    store: &Store,
    id: CaptureId,
    image: &Image,
) -> Result<WrittenImage, WriteError> {
    let capture = Arc::new(StoredCapture::from(image.clone()));
    store
        .write_capture(id, &capture, &mut ImageChain::new())
        .await
}

/// Stores an image as that of [`TASK`] in `checkpoint`.
pub(crate) async fn write(store: &Store, checkpoint: CheckpointId, image: &Image) -> WrittenImage {
    write_full(store, id_of(checkpoint), image).await.unwrap()
}

/// Reads an image of [`TASK`].
pub(crate) async fn read(store: &Store, manifest: &ObjectRef) -> Result<Image, ReadError> {
    let (image, _) = store.read_image(JOB, TASK, manifest).await?;
    Ok(image)
}

/// Stores a checkpoint whose only task has this manifest.
pub(crate) async fn publish(
    store: &Store,
    checkpoint: CheckpointId,
    manifest: &ObjectRef,
) -> ObjectRef {
    let metadata = CheckpointMetadata {
        job: JOB,
        checkpoint,
        module: ModuleHash([0x4d; 32]),
        job_graph_hash: 0x0123_4567_89ab_cdef,
        tasks: vec![TaskImageRef {
            task: TASK,
            attempt: ATTEMPT,
            manifest: manifest.clone(),
            finished: false,
        }],
    };
    store.write_metadata(&metadata).await.unwrap()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// What names these bytes.
pub(crate) fn object(key: &str, bytes: &[u8]) -> ObjectRef {
    ObjectRef {
        key: key.into(),
        len: bytes.len() as u64,
        hash: *blake3::hash(bytes).as_bytes(),
    }
}

/// One block, 65,536 times the letter `t`, as LZ4 has it: a literal, one long match and five literals. Written down,
/// since another compressor's bytes are as good.
pub(crate) fn segment() -> Vec<u8> {
    unhex(&format!("1f740100{}e660747474747474", "ff".repeat(256)))
}

/// The record of [`JOB`].
pub(crate) fn record(metadata: &CheckpointMetadata, graph: ObjectRef) -> JobRecord {
    JobRecord {
        id: JOB,
        name: "totals".into(),
        module: metadata.module,
        graph,
        graph_hash: metadata.job_graph_hash,
        parameters: BTreeMap::from([("input".into(), "clicks".into())]),
        options: JobOptions {
            parallelism: 2,
            max_parallelism: 128,
            checkpoint_interval_ms: 1000,
            checkpoint_timeout_ms: 60_000,
            tolerable_failed_checkpoints: 0,
            retained_checkpoints: 1,
            aligned_checkpoint_timeout_ms: 0,
            retain_on_cancel: false,
            standby: false,
            restart: RestartStrategy::None,
        },
        submitted_at_ms: 1,
        state: JobState::Active,
        restarts: 0,
        began_from: None,
        ended_at_ms: None,
    }
}
