//! Writing a task's image: its memory cut into blocks, zero blocks left out, the others compressed into one segment
//! that is uploaded while it grows; then the manifest. It never holds more than a few chunks beside the image itself.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use object_store::{MultipartUpload, ObjectStoreExt};
use tidemill_protocol::codec;
use tidemill_protocol::manifest::{BlockRef, Manifest, ObjectRef};
use tidemill_protocol::{AttemptId, CheckpointId, Image, JobId, TaskId};
use tokio::runtime::Handle;

use crate::error::RequestError;
use crate::store::path;
use crate::{BLOCK_BYTES, MEMORY_BYTES_MAX, Store, WriteError, keys};

/// How much memory is compressed in one go, off the async threads: some milliseconds of work.
const CHUNK_BYTES: usize = 4 << 20;

/// How much of a segment is sent at once. Object stores want parts of at least 5 MiB.
const PART_BYTES: usize = 8 << 20;

const BLOCK: usize = BLOCK_BYTES as usize;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A stored image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenImage {
    /// What restores the task.
    pub manifest: ObjectRef,
    /// What went into the store, in bytes: segment and manifest.
    pub written_bytes: u64,
    /// The image's own size in bytes: its memory and the host's part.
    pub image_bytes: u64,
}

impl Store {
    /// Stores a task's image in full. When it returns, the image is durable and can be read by its manifest.
    ///
    /// # Errors
    /// When a part of it could not be written; what was written is an orphan that clean-up removes.
    pub async fn write_image(
        &self,
        job: JobId,
        task: TaskId,
        attempt: AttemptId,
        checkpoint: CheckpointId,
        image: &Arc<Image>,
    ) -> Result<WrittenImage, WriteError> {
        let memory_bytes = image.memory.len() as u64;
        let key = keys::segment(job, task, attempt, checkpoint);
        if memory_bytes > MEMORY_BYTES_MAX {
            return Err(WriteError::TooLarge {
                key,
                bytes: memory_bytes,
                max: MEMORY_BYTES_MAX,
            });
        }
        let (segments, blocks) = self.write_segment(key, image).await?;
        let segment_bytes: u64 = segments.iter().map(|segment| segment.len).sum();

        let key = keys::manifest(job, task, attempt, checkpoint);
        let encoded = self.compute({
            let image = Arc::clone(image);
            move || {
                codec::encode(&Manifest {
                    job,
                    task,
                    checkpoint,
                    base: None,
                    memory_bytes,
                    block_bytes: BLOCK_BYTES,
                    segments,
                    blocks,
                    globals: image.globals.clone(),
                    tables: image.tables.clone(),
                    host_state: image.host_state.clone(),
                    channel_state: Vec::new(),
                })
            }
        });
        let encoded = encoded.await.map_err(|error| error.writing(&key))?;
        let manifest = self.put_object(&key, encoded).await?;
        Ok(WrittenImage {
            written_bytes: segment_bytes + manifest.len,
            image_bytes: memory_bytes + image.host_state.len() as u64,
            manifest,
        })
    }

    /// Writes the blocks of an image. An image of zeros alone, or of no memory, needs no segment.
    async fn write_segment(
        &self,
        key: String,
        image: &Arc<Image>,
    ) -> Result<(Vec<ObjectRef>, Vec<BlockRef>), WriteError> {
        let mut upload = None;
        let encoder = match self.stream_segment(&key, image, &mut upload).await {
            Ok(encoder) => encoder,
            Err(error) => {
                if let Some(mut upload) = upload {
                    // The upload's own error is the one worth telling; what is left behind is not visible.
                    let _ = self.request(upload.abort()).await;
                }
                return Err(error.writing(&key));
            }
        };
        if encoder.written_bytes == 0 {
            return Ok((Vec::new(), Vec::new()));
        }
        let segment = ObjectRef {
            key,
            len: encoder.written_bytes,
            hash: *encoder.hasher.finalize().as_bytes(),
        };
        Ok((vec![segment], encoder.blocks))
    }

    /// Compresses and sends at the same time. `upload` is the caller's, so that it can be aborted after an error.
    async fn stream_segment(
        &self,
        key: &str,
        image: &Arc<Image>,
        upload: &mut Option<Box<dyn MultipartUpload>>,
    ) -> Result<SegmentEncoder, RequestError> {
        let mut encoder = SegmentEncoder::new();
        loop {
            let part = encoder.take_part();
            let done = encoder.is_done(image);
            if part.is_none() && done {
                break;
            }
            if part.is_some() && upload.is_none() {
                *upload = Some(self.start_upload(key).await?);
            }
            let send = async {
                match (part, upload.as_mut()) {
                    (Some(part), Some(upload)) => self.request(upload.put_part(part.into())).await,
                    _ => Ok(()),
                }
            };
            let encode = async {
                if done {
                    return Ok(encoder);
                }
                let image = Arc::clone(image);
                self.compute(move || encoder.encode_chunk(&image)).await
            };
            let (encoded, sent) = tokio::join!(encode, send);
            sent?;
            encoder = encoded?;
        }
        let rest = encoder.compressed.split().freeze();
        match upload.as_mut() {
            Some(upload) => {
                if !rest.is_empty() {
                    self.request(upload.put_part(rest.into())).await?;
                }
                self.request(upload.complete()).await?;
            }
            None if rest.is_empty() => {}
            None => {
                let path = path(key)?;
                self.request(self.objects().put(&path, rest.into())).await?;
            }
        }
        Ok(encoder)
    }

    async fn start_upload(&self, key: &str) -> Result<Box<dyn MultipartUpload>, RequestError> {
        let path = path(key)?;
        let objects = Arc::clone(self.objects());
        let runtime = Handle::current();
        // For files, this makes and syncs directories on the calling thread, which must not be an async one.
        let started = tokio::task::spawn_blocking(move || {
            runtime.block_on(async { objects.put_multipart(&path).await })
        });
        self.request(async { started.await? }).await
    }
}

/// The state of a segment that grows.
struct SegmentEncoder {
    /// Compressed and not yet sent.
    compressed: BytesMut,
    blocks: Vec<BlockRef>,
    hasher: blake3::Hasher,
    /// Compressed so far: the offset of the next block.
    written_bytes: u64,
    /// Where in the memory the next chunk begins.
    position: usize,
    table: CompressTable,
}

impl SegmentEncoder {
    fn new() -> Self {
        Self {
            compressed: BytesMut::new(),
            blocks: Vec::new(),
            hasher: blake3::Hasher::new(),
            written_bytes: 0,
            position: 0,
            table: CompressTable::large(),
        }
    }

    fn is_done(&self, image: &Image) -> bool {
        self.position >= image.memory.len()
    }

    fn take_part(&mut self) -> Option<Bytes> {
        (self.compressed.len() >= PART_BYTES).then(|| self.compressed.split_to(PART_BYTES).freeze())
    }

    fn encode_chunk(mut self, image: &Image) -> Self {
        let end = image.memory.len().min(self.position + CHUNK_BYTES);
        let before = self.compressed.len();
        for block in image.memory[self.position..end].chunks(BLOCK) {
            if block != &ZEROS[..block.len()] {
                self.encode_block(block);
            }
            self.position += block.len();
        }
        self.hasher.update(&self.compressed[before..]);
        self
    }

    fn encode_block(&mut self, block: &[u8]) {
        let start = self.compressed.len();
        self.compressed
            .resize(start + get_maximum_output_size(block.len()), 0);
        let len = compress_into_with_table(block, &mut self.compressed[start..], &mut self.table)
            .expect("the output has the size that the compressor asks for");
        self.compressed.truncate(start + len);
        self.blocks.push(BlockRef {
            index: u32::try_from(self.position / BLOCK).expect("the memory's size is bounded"),
            segment: 0,
            offset: self.written_bytes,
            len: u32::try_from(len).expect("a block is small"),
            checksum: crc32fast::hash(block),
        });
        self.written_bytes += len as u64;
    }
}
