//! Writing a task's capture: its pages cut into blocks, the others compressed into one segment that is uploaded while it
//! grows; then the manifest, which is a delta on the task's manifest before, or a full one that lists where every page is.
//! It never holds more than a few chunks beside the capture itself.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use object_store::{MultipartUpload, ObjectStoreExt};
use tidemill_protocol::codec;
use tidemill_protocol::image::{PAGE_BYTES, StoredCapture};
use tidemill_protocol::manifest::{BLOCK_PAGES_MAX, BlockRef, Manifest, ObjectRef};
use tidemill_protocol::{AttemptId, CheckpointId, JobId, TaskId};

use crate::error::RequestError;
use crate::fault::fault_point;
use crate::image_chain::ImageChain;
use crate::put::PART_BYTES;
use crate::store::path;
use crate::{MEMORY_BYTES_MAX, Store, WriteError, keys};

/// How much memory is compressed in one go, off the async threads: some milliseconds of work.
const CHUNK_BYTES: usize = 4 << 20;

static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Whose capture it is, and of when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureId {
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskId,
    /// The execution that was captured.
    pub attempt: AttemptId,
    /// The checkpoint that it is captured for.
    pub checkpoint: CheckpointId,
}

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
    /// Stores a task's capture. When it returns, the image is durable and can be read by its manifest.
    ///
    /// `chain` says what the captures before have stored; a new one stands for none, and then the capture holds every
    /// page that is not zero. A capture that was not stored leaves the chain as usable as it was, but its pages are then
    /// missing in it: the next capture must hold them again.
    ///
    /// # Errors
    /// When a part of it could not be written; what was written is an orphan that clean-up removes.
    pub async fn write_capture(
        &self,
        id: CaptureId,
        capture: &Arc<StoredCapture>,
        chain: &mut ImageChain,
    ) -> Result<WrittenImage, WriteError> {
        let CaptureId {
            job,
            task,
            attempt,
            checkpoint,
        } = id;
        let memory_bytes = capture.memory_bytes;
        let key = keys::segment(job, task, attempt, checkpoint);
        if memory_bytes > MEMORY_BYTES_MAX {
            return Err(WriteError::TooLarge {
                key,
                bytes: memory_bytes,
                max: MEMORY_BYTES_MAX,
            });
        }
        fault_point("capture.before-segment");
        let keep_zeros = !chain.is_new();
        let (segments, blocks) = self.write_segment(key, capture, keep_zeros).await?;
        fault_point("capture.segment-written");
        let segment_bytes: u64 = segments.iter().map(|segment| segment.len).sum();
        let listed = chain.extend(memory_bytes, segments, blocks);

        let key = keys::manifest(job, task, attempt, checkpoint);
        let encoded = self.compute({
            let capture = Arc::clone(capture);
            move || {
                codec::encode(&Manifest {
                    job,
                    task,
                    checkpoint,
                    base: listed.base,
                    memory_bytes,
                    segments: listed.segments,
                    blocks: listed.blocks,
                    globals: capture.globals.clone(),
                    tables: capture.tables.clone(),
                    host_state: capture.host_state.clone(),
                    channel_state: capture.channel_state.clone(),
                })
            }
        });
        let encoded = encoded.await.map_err(|error| error.writing(&key))?;
        let manifest = self.put_object(&key, encoded).await?;
        fault_point("capture.manifest-written");
        chain.stored(&manifest);
        Ok(WrittenImage {
            written_bytes: segment_bytes + manifest.len,
            image_bytes: memory_bytes + capture.host_state.len() as u64,
            manifest,
        })
    }

    /// Writes the pages of a capture. One of zeros alone, or of no pages, needs no segment.
    async fn write_segment(
        &self,
        key: String,
        capture: &Arc<StoredCapture>,
        keep_zeros: bool,
    ) -> Result<(Vec<ObjectRef>, Vec<BlockRef>), WriteError> {
        let mut upload = None;
        let encoder = SegmentEncoder::new(keep_zeros);
        let encoder = match self
            .stream_segment(&key, capture, encoder, &mut upload)
            .await
        {
            Ok(encoder) => encoder,
            Err(error) => {
                if let Some(mut upload) = upload {
                    self.abort_upload(upload.as_mut()).await;
                }
                return Err(error.writing(&key));
            }
        };
        let segment = (encoder.written_bytes > 0).then(|| ObjectRef {
            key,
            len: encoder.written_bytes,
            hash: *encoder.hasher.finalize().as_bytes(),
        });
        Ok((Vec::from_iter(segment), encoder.blocks))
    }

    /// Compresses and sends at the same time. `upload` is the caller's, so that it can be aborted after an error.
    async fn stream_segment(
        &self,
        key: &str,
        capture: &Arc<StoredCapture>,
        mut encoder: SegmentEncoder,
        upload: &mut Option<Box<dyn MultipartUpload>>,
    ) -> Result<SegmentEncoder, RequestError> {
        loop {
            let part = encoder.take_part();
            let done = encoder.is_done(capture);
            if part.is_none() && done {
                break;
            }
            if part.is_some() && upload.is_none() {
                *upload = Some(self.start_upload(&path(key)?).await?);
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
                let capture = Arc::clone(capture);
                self.compute(move || encoder.encode_chunk(&capture)).await
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
                self.finish_upload(&path(key)?, upload.as_mut(), encoder.written_bytes)
                    .await?;
            }
            None if rest.is_empty() => {}
            None => {
                let path = path(key)?;
                self.request(self.objects().put(&path, rest.into())).await?;
            }
        }
        Ok(encoder)
    }
}

/// The state of a segment that grows.
struct SegmentEncoder {
    /// Whether pages of zeros are listed: what lies below them may be something else.
    keep_zeros: bool,
    /// Compressed and not yet sent.
    compressed: BytesMut,
    blocks: Vec<BlockRef>,
    hasher: blake3::Hasher,
    /// Compressed so far: the offset of the next block.
    written_bytes: u64,
    /// Which run of the capture is being encoded, and how many of its pages have been.
    run: usize,
    pages_of_run: u32,
    /// Where in the capture's bytes the next page is.
    position: usize,
    table: CompressTable,
}

impl SegmentEncoder {
    fn new(keep_zeros: bool) -> Self {
        Self {
            keep_zeros,
            compressed: BytesMut::new(),
            blocks: Vec::new(),
            hasher: blake3::Hasher::new(),
            written_bytes: 0,
            run: 0,
            pages_of_run: 0,
            position: 0,
            table: CompressTable::large(),
        }
    }

    fn is_done(&self, capture: &StoredCapture) -> bool {
        self.run == capture.runs.len()
    }

    fn take_part(&mut self) -> Option<Bytes> {
        (self.compressed.len() >= PART_BYTES).then(|| self.compressed.split_to(PART_BYTES).freeze())
    }

    fn encode_chunk(mut self, capture: &StoredCapture) -> Self {
        let end = self.position + CHUNK_BYTES;
        let before = self.compressed.len();
        while self.position < end && !self.is_done(capture) {
            self.encode_block(capture);
        }
        self.hasher.update(&self.compressed[before..]);
        self
    }

    /// The next pages of the run that are alike in being zero or not.
    fn encode_block(&mut self, capture: &StoredCapture) {
        let run = capture.runs[self.run];
        let first_page = run.first + self.pages_of_run;
        let left = (run.pages - self.pages_of_run).min(BLOCK_PAGES_MAX) as usize;
        let (zero, alike) = if run.zero {
            (true, left)
        } else {
            let bytes = &capture.bytes[self.position..self.position + left * PAGE_BYTES];
            let mut pages = bytes.chunks(PAGE_BYTES).map(|page| *page == ZEROS);
            let zero = pages.next() == Some(true);
            (zero, 1 + pages.take_while(|other| *other == zero).count())
        };
        let pages = u32::try_from(alike).expect("a block has few pages");
        let end = self.position + alike * PAGE_BYTES;
        if !zero {
            self.compress(first_page, pages, &capture.bytes[self.position..end]);
        } else if self.keep_zeros {
            self.blocks.push(BlockRef {
                first_page,
                pages,
                segment: 0,
                offset: 0,
                len: 0,
                checksum: 0,
            });
        }
        if !run.zero {
            self.position = end;
        }
        self.pages_of_run += pages;
        if self.pages_of_run == run.pages {
            self.run += 1;
            self.pages_of_run = 0;
        }
    }

    fn compress(&mut self, first_page: u32, pages: u32, block: &[u8]) {
        let start = self.compressed.len();
        self.compressed
            .resize(start + get_maximum_output_size(block.len()), 0);
        let len = compress_into_with_table(block, &mut self.compressed[start..], &mut self.table)
            .expect("the output has the size that the compressor asks for");
        self.compressed.truncate(start + len);
        self.blocks.push(BlockRef {
            first_page,
            pages,
            segment: 0,
            offset: self.written_bytes,
            len: u32::try_from(len).expect("a block is small"),
            checksum: crc32fast::hash(block),
        });
        self.written_bytes += len as u64;
    }
}
