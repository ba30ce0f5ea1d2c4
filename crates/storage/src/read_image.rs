//! Reading a task's image back: each segment streamed once, hashed as a whole, and its blocks decoded straight into the
//! memory they belong to. It returns an image only when every hash and every checksum holds, and never allocates what a
//! manifest claims before the system has agreed to it.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStoreExt};
use tidemill_protocol::image::PAGE_BYTES;
use tidemill_protocol::manifest::{BLOCK_PAGES_MAX, ObjectRef};
use tidemill_protocol::{Image, JobId, TaskId};

use crate::image_chain::ImageChain;
use crate::layout::{PlannedBlock, SegmentPlan};
use crate::store::{WRONG_HASH, path};
use crate::{ReadError, Store};

/// How much of a segment is read at once.
const PIECE_BYTES: u64 = 4 << 20;

impl Store {
    /// Reads the image of a task by its manifest, and verifies all of it. With it comes what later captures of the task
    /// build upon.
    ///
    /// # Errors
    /// When the manifest, a base of it or a segment is missing, damaged or out of reach, or is another task's.
    pub async fn read_image(
        &self,
        job: JobId,
        task: TaskId,
        manifest: &ObjectRef,
    ) -> Result<(Image, ImageChain), ReadError> {
        let resolved = self.resolve_image(job, task, manifest).await?;
        let plan = resolved
            .layout
            .plan()
            .map_err(|reason| ReadError::damaged(&manifest.key, reason))?;
        let mut memory = allocate(&manifest.key, resolved.manifest.memory_bytes)?;
        for segment in plan {
            memory = self.decode_segment(segment, memory).await?;
        }
        let chain = ImageChain::read(manifest.clone(), resolved.layout, resolved.deltas);
        let image = Image {
            memory,
            globals: resolved.manifest.globals,
            tables: resolved.manifest.tables,
            host_state: resolved.manifest.host_state,
            channel_state: resolved.manifest.channel_state,
        };
        Ok((image, chain))
    }

    /// Decodes a segment's blocks into the memory; the next piece is read while one is decoded.
    async fn decode_segment(
        &self,
        plan: SegmentPlan,
        memory: Vec<u8>,
    ) -> Result<Vec<u8>, ReadError> {
        let key = plan.segment.key.clone();
        let len = plan.segment.len;
        let path = path(&key).map_err(|error| ReadError::damaged(&key, error.to_string()))?;
        let found = self
            .request(self.objects().head(&path))
            .await
            .map_err(|error| error.reading(&key))?
            .size;
        if found != len {
            return Err(ReadError::Truncated {
                key,
                expected: len,
                found,
            });
        }
        let mut decoder = SegmentDecoder::new(plan, memory);
        let mut position = 0;
        let mut piece = Bytes::new();
        loop {
            let next = async {
                let end = len.min(position + PIECE_BYTES);
                if position == end {
                    return Ok(Bytes::new());
                }
                self.read_piece(&key, &path, position, end).await
            };
            let decode = async {
                self.compute(move || decoder.feed(&piece))
                    .await
                    .map_err(|error| error.reading(&key))?
            };
            let (read, decoded) = tokio::join!(next, decode);
            decoder = decoded?;
            piece = read?;
            if piece.is_empty() {
                break;
            }
            position += piece.len() as u64;
        }
        decoder.finish()
    }

    async fn read_piece(
        &self,
        key: &str,
        path: &Path,
        start: u64,
        end: u64,
    ) -> Result<Bytes, ReadError> {
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(start..end)));
        let piece = self
            .request(async {
                let found = self.objects().get_opts(path, options).await?;
                found.bytes().await
            })
            .await
            .map_err(|error| error.reading(key))?;
        if piece.len() as u64 == end - start {
            Ok(piece)
        } else {
            Err(ReadError::damaged(key, "it changed while it was read"))
        }
    }
}

/// Zeroed memory, if there is that much. Asking first matters: `vec!` ends the process when the system refuses.
fn allocate(key: &str, bytes: u64) -> Result<Vec<u8>, ReadError> {
    let refused = || ReadError::OutOfMemory {
        key: key.into(),
        bytes,
    };
    let len = usize::try_from(bytes).map_err(|_| refused())?;
    let mut asked = Vec::<u8>::new();
    asked.try_reserve_exact(len).map_err(|_| refused())?;
    drop(asked);
    Ok(vec![0; len])
}

/// The state of a segment that is read.
struct SegmentDecoder {
    segment: ObjectRef,
    /// The blocks that are not yet decoded, the next one last.
    blocks: Vec<PlannedBlock>,
    memory: Vec<u8>,
    hasher: blake3::Hasher,
    /// The beginning of the next block, when a piece ended inside it.
    pending: Vec<u8>,
    /// Where a block is decoded of which only a part is wanted.
    scratch: Vec<u8>,
    /// How much of the segment has been taken.
    position: u64,
}

impl SegmentDecoder {
    fn new(plan: SegmentPlan, memory: Vec<u8>) -> Self {
        let mut blocks = plan.blocks;
        blocks.reverse();
        Self {
            segment: plan.segment,
            blocks,
            memory,
            hasher: blake3::Hasher::new(),
            pending: Vec::new(),
            scratch: vec![0; BLOCK_PAGES_MAX as usize * PAGE_BYTES],
            position: 0,
        }
    }

    /// Takes the segment's next bytes and decodes every block that is now complete.
    fn feed(mut self, bytes: &[u8]) -> Result<Self, ReadError> {
        self.hasher.update(bytes);
        let mut rest = bytes;
        while let Some(planned) = self.blocks.pop() {
            let len = planned.block.len as usize;
            if self.pending.is_empty() {
                let gap = planned.block.offset - self.position;
                self.take(&mut rest, usize::try_from(gap).unwrap_or(usize::MAX));
            }
            let part = self.take(&mut rest, len - self.pending.len());
            if part.len() == len {
                self.decode(&planned, part)?;
                continue;
            }
            self.pending.extend_from_slice(part);
            if self.pending.len() < len {
                self.blocks.push(planned);
                return Ok(self);
            }
            let whole = std::mem::take(&mut self.pending);
            self.decode(&planned, &whole)?;
        }
        Ok(self)
    }

    /// Takes up to `len` bytes from the front of `rest`.
    fn take<'a>(&mut self, rest: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (taken, tail) = rest.split_at(len.min(rest.len()));
        *rest = tail;
        self.position += taken.len() as u64;
        taken
    }

    fn decode(&mut self, planned: &PlannedBlock, compressed: &[u8]) -> Result<(), ReadError> {
        let (block, pieces) = (&planned.block, &planned.pieces);
        let start = block.first_page as usize * PAGE_BYTES;
        let bytes = block.pages as usize * PAGE_BYTES;
        let target = if pieces.is_empty() {
            &mut self.memory[start..start + bytes]
        } else {
            &mut self.scratch[..bytes]
        };
        let decoded = lz4_flex::block::decompress_into(compressed, target);
        let whole = decoded.is_ok_and(|decoded| decoded == bytes);
        if !whole || crc32fast::hash(target) != block.checksum {
            let reason = format!(
                "the block at offset {} does not match its checksum",
                block.offset
            );
            return Err(ReadError::damaged(&self.segment.key, reason));
        }
        for piece in pieces {
            let to = piece.start as usize * PAGE_BYTES..piece.end as usize * PAGE_BYTES;
            let from = to.start - start..to.end - start;
            self.memory[to].copy_from_slice(&self.scratch[from]);
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>, ReadError> {
        if self.hasher.finalize().as_bytes() != &self.segment.hash {
            return Err(ReadError::damaged(&self.segment.key, WRONG_HASH));
        }
        if !self.blocks.is_empty() {
            let reason = "it ends before its last block";
            return Err(ReadError::damaged(&self.segment.key, reason));
        }
        Ok(self.memory)
    }
}
