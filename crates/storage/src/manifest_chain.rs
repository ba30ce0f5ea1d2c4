//! Manifests as they are read: checked for sense, followed from a delta to its base, and laid over each other. The bytes
//! may be anyone's: nothing here trusts a number before it has been compared. It never reads a block.

use lz4_flex::block::get_maximum_output_size;
use tidemill_protocol::image::PAGE_BYTES;
use tidemill_protocol::manifest::{BLOCK_PAGES_MAX, BlockRef, Manifest, ObjectRef};
use tidemill_protocol::{JobId, TaskId};

use crate::layout::Layout;
use crate::{MEMORY_BYTES_MAX, ReadError, Store};

/// The longest chain of deltas that is followed. Full manifests are written far more often than this.
const CHAIN_MAX: usize = 256;

/// The most that a segment can have: a whole memory that does not compress, with what that adds to each block.
const SEGMENT_BYTES_MAX: u64 = MEMORY_BYTES_MAX + MEMORY_BYTES_MAX / 64;

/// A manifest with all its bases, resolved.
#[derive(Debug)]
pub(crate) struct ResolvedImage {
    /// The newest manifest, without its blocks and segments.
    pub(crate) manifest: Manifest,
    /// Whatever the memory is made of; the rest of it is zero.
    pub(crate) layout: Layout,
    /// How many deltas lie upon a full manifest, and how many blocks they have together.
    pub(crate) deltas: (usize, usize),
}

impl Store {
    /// Reads a manifest and its bases, and finds the newest place of each page.
    pub(crate) async fn resolve_image(
        &self,
        job: JobId,
        task: TaskId,
        object: &ObjectRef,
    ) -> Result<ResolvedImage, ReadError> {
        let mut chain = self.manifest_chain(job, task, object).await?;
        let mut layout = Layout::default();
        for manifest in chain.iter_mut().rev() {
            let segments = std::mem::take(&mut manifest.segments);
            layout.lay_over(manifest.memory_bytes, segments, &manifest.blocks);
        }
        let deltas = chain.iter().filter(|manifest| manifest.base.is_some());
        let deltas = (
            deltas.clone().count(),
            deltas.map(|delta| delta.blocks.len()).sum(),
        );
        let mut manifest = chain.swap_remove(0);
        manifest.blocks.clear();
        Ok(ResolvedImage {
            manifest,
            layout,
            deltas,
        })
    }

    /// A manifest and its bases, the newest first, each checked.
    async fn manifest_chain(
        &self,
        job: JobId,
        task: TaskId,
        object: &ObjectRef,
    ) -> Result<Vec<Manifest>, ReadError> {
        let mut chain: Vec<Manifest> = Vec::new();
        let mut next = Some(object.clone());
        while let Some(object) = next {
            let manifest: Manifest = self.read_versioned(&object).await?;
            check(&manifest, job, task)
                .and_then(|()| {
                    chain
                        .last()
                        .map_or(Ok(()), |newer| check_base(&manifest, newer))
                })
                .map_err(|reason| ReadError::damaged(&object.key, reason))?;
            if chain.len() == CHAIN_MAX {
                let reason = format!("more than {CHAIN_MAX} deltas lie upon it");
                return Err(ReadError::damaged(&object.key, reason));
            }
            next = manifest.base.clone();
            chain.push(manifest);
        }
        Ok(chain)
    }
}

/// Whether a manifest makes sense on its own.
fn check(manifest: &Manifest, job: JobId, task: TaskId) -> Result<(), String> {
    check_owner(manifest, job, task)?;
    if manifest.memory_bytes > MEMORY_BYTES_MAX {
        return Err(format!(
            "its memory has {} bytes, and at most {MEMORY_BYTES_MAX} are possible",
            manifest.memory_bytes
        ));
    }
    if !manifest.memory_bytes.is_multiple_of(PAGE_BYTES as u64) {
        return Err(format!(
            "its memory of {} bytes is not made of whole pages",
            manifest.memory_bytes
        ));
    }
    let mut segments = manifest.segments.iter();
    if let Some(segment) = segments.find(|segment| segment.len > SEGMENT_BYTES_MAX) {
        return Err(format!(
            "its segment `{}` has {} bytes, and at most {SEGMENT_BYTES_MAX} are possible",
            segment.key, segment.len
        ));
    }
    manifest
        .blocks
        .iter()
        .try_for_each(|block| check_block(manifest, block))
}

pub(crate) fn check_owner(manifest: &Manifest, job: JobId, task: TaskId) -> Result<(), String> {
    if (manifest.job, manifest.task) == (job, task) {
        return Ok(());
    }
    Err(format!(
        "it is of task {} of job {}, not of task {task} of job {job}",
        manifest.task, manifest.job
    ))
}

fn check_block(manifest: &Manifest, block: &BlockRef) -> Result<(), String> {
    let (first, pages) = (block.first_page, block.pages);
    if !(1..=BLOCK_PAGES_MAX).contains(&pages) {
        return Err(format!("the block of page {first} has {pages} pages"));
    }
    if block.end_page() > manifest.memory_bytes / PAGE_BYTES as u64 {
        return Err(format!("the block of page {first} lies beyond the memory"));
    }
    if block.len == 0 {
        return Ok(());
    }
    let Some(segment) = manifest.segments.get(block.segment as usize) else {
        return Err(format!(
            "the block of page {first} is in a segment that is not listed"
        ));
    };
    let end = block.offset.checked_add(u64::from(block.len));
    if end.is_none_or(|end| end > segment.len) {
        return Err(format!("the block of page {first} lies beyond its segment"));
    }
    if block.len as usize > get_maximum_output_size(pages as usize * PAGE_BYTES) {
        return Err(format!(
            "the block of page {first} is larger than it can be"
        ));
    }
    Ok(())
}

fn check_base(base: &Manifest, newer: &Manifest) -> Result<(), String> {
    if base.memory_bytes > newer.memory_bytes {
        return Err("a delta on it has a smaller memory, and memories do not shrink".into());
    }
    Ok(())
}
