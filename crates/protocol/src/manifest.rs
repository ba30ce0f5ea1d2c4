//! What the object store keeps of a checkpoint: a segment per capture, a manifest per task, one metadata object per
//! checkpoint. Keys are relative to the store's root. Nothing here is reachable until a pointer names it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::codec::Versioned;
use crate::image::GlobalValue;
use crate::{AttemptId, CheckpointId, JobId, ModuleHash, TaskId};

/// A stored object with what proves that it is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The object's key.
    pub key: String,
    /// Its length in bytes.
    pub len: u64,
    /// The BLAKE3 hash of its bytes.
    pub hash: [u8; 32],
}

/// How one task's image is put together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Whose task.
    pub job: JobId,
    /// Which task.
    pub task: TaskId,
    /// The capture's checkpoint; the image may be used by later ones.
    pub checkpoint: CheckpointId,
    /// The manifest this one is a delta on; `None` for a full one.
    pub base: Option<ObjectRef>,
    /// The linear memory's size in bytes, a multiple of [`crate::image::PAGE_BYTES`].
    pub memory_bytes: u64,
    /// The segments that `blocks` index.
    pub segments: Vec<ObjectRef>,
    /// Pages of memory that differ from the base (from zero, in a full manifest). Each is laid over those before it.
    pub blocks: Vec<BlockRef>,
    /// Every mutable global.
    pub globals: Vec<GlobalValue>,
    /// Every table that the module can change.
    pub tables: Vec<Vec<Option<u32>>>,
    /// The host's part.
    pub host_state: Vec<u8>,
    /// As in [`crate::Image::channel_state`]; empty for aligned checkpoints.
    pub channel_state: Vec<u8>,
}

impl Versioned for Manifest {
    const KIND: [u8; 2] = *b"MF";
    const VERSION: u16 = 2;
    const NAME: &'static str = "task manifest";
}

/// Where some neighbouring pages of a memory are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRef {
    /// The first page, counted from the memory's beginning.
    pub first_page: u32,
    /// How many pages; at most [`BLOCK_PAGES_MAX`].
    pub pages: u32,
    /// Index into [`Manifest::segments`].
    pub segment: u32,
    /// Where their compressed bytes begin in the segment.
    pub offset: u64,
    /// How many compressed bytes there are; 0 means that the pages are all zeros.
    pub len: u32,
    /// CRC-32 (IEEE) of the uncompressed pages.
    pub checksum: u32,
}

impl BlockRef {
    /// The page after the last.
    #[must_use]
    pub const fn end_page(&self) -> u64 {
        self.first_page as u64 + self.pages as u64
    }
}

/// The most pages that are compressed together: 64 KiB.
pub const BLOCK_PAGES_MAX: u32 = 16;

/// A whole checkpoint: the object that the pointer names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMetadata {
    /// Whose checkpoint.
    pub job: JobId,
    /// Which one.
    pub checkpoint: CheckpointId,
    /// The module it belongs to.
    pub module: ModuleHash,
    /// [`tidemill_abi::graph_hash`] of the job graph.
    pub job_graph_hash: u64,
    /// Every task's part, in order of the task.
    pub tasks: Vec<TaskImageRef>,
}

impl Versioned for CheckpointMetadata {
    const KIND: [u8; 2] = *b"CM";
    const VERSION: u16 = 1;
    const NAME: &'static str = "checkpoint metadata";
}

/// One task's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskImageRef {
    /// Which task.
    pub task: TaskId,
    /// The attempt that captured it.
    pub attempt: AttemptId,
    /// Its manifest.
    pub manifest: ObjectRef,
    /// The task had finished before the checkpoint began; it restores as finished.
    pub finished: bool,
}

/// A savepoint: a checkpoint that a user owns. The object `savepoint` in its directory; every key in it, and in the
/// manifests that it names, is relative to that directory, which can be moved or copied whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Savepoint {
    /// The job that it was taken of.
    pub job: JobId,
    /// That job's name.
    pub job_name: String,
    /// Its parameters.
    pub parameters: BTreeMap<String, String>,
    /// Tasks of each stage that did not fix its own.
    pub parallelism: u32,
    /// The number of key groups.
    pub max_parallelism: u32,
    /// The module, which is part of the savepoint.
    pub module: ObjectRef,
    /// The graph, which is part of the savepoint.
    pub graph: ObjectRef,
    /// The checkpoint that it is a copy of.
    pub metadata: CheckpointMetadata,
    /// When it was complete, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// The release that wrote it, for people.
    pub version: String,
}

impl Versioned for Savepoint {
    const KIND: [u8; 2] = *b"SP";
    const VERSION: u16 = 1;
    const NAME: &'static str = "savepoint";
}
