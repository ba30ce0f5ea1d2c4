//! Manifests as they are read: checked for sense, followed from a delta to its base, and resolved to the newest place of
//! each block. The bytes may be anyone's: nothing here trusts a number before it has been compared. It never reads a
//! block.

use std::collections::BTreeMap;

use lz4_flex::block::get_maximum_output_size;
use tidemill_protocol::manifest::{BlockRef, Manifest, ObjectRef};
use tidemill_protocol::{JobId, TaskId};

use crate::{MEMORY_BYTES_MAX, ReadError, Store};

/// The longest chain of deltas that is followed. Full manifests are written far more often than this.
const CHAIN_MAX: usize = 256;

/// The largest block that is accepted, in bytes.
const BLOCK_BYTES_MAX: u32 = 16 << 20;

/// What there is to decode out of one segment.
#[derive(Debug)]
pub(crate) struct SegmentPlan {
    pub(crate) segment: ObjectRef,
    /// In order of their offset, without overlap.
    pub(crate) blocks: Vec<PlannedBlock>,
}

/// One block to decode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedBlock {
    /// Where in the memory it goes.
    pub(crate) position: usize,
    /// Its size there.
    pub(crate) block_bytes: usize,
    /// Where it is in the segment.
    pub(crate) offset: u64,
    /// Its compressed size; not 0.
    pub(crate) len: usize,
    /// CRC-32 of the uncompressed block.
    pub(crate) checksum: u32,
}

/// A manifest with all its bases, resolved.
#[derive(Debug)]
pub(crate) struct ImagePlan {
    /// The newest manifest, without its blocks and segments.
    pub(crate) manifest: Manifest,
    /// Whatever the memory is made of; the rest of it is zero.
    pub(crate) segments: Vec<SegmentPlan>,
}

impl Store {
    /// Reads a manifest and its bases, and finds the newest place of each block.
    pub(crate) async fn plan_image(
        &self,
        job: JobId,
        task: TaskId,
        object: &ObjectRef,
    ) -> Result<ImagePlan, ReadError> {
        let mut chain = self.manifest_chain(job, task, object).await?;
        let mut resolved = Resolved::default();
        for (_, manifest) in &mut chain {
            resolved.lay_under(manifest);
        }
        let segments = resolved
            .into_segments()
            .map_err(|reason| ReadError::damaged(&object.key, reason))?;
        let (_, manifest) = chain.swap_remove(0);
        if !manifest.channel_state.is_empty() {
            return Err(ReadError::Unsupported {
                key: object.key.clone(),
                reason: "it holds frames that were in flight, which only a newer one restores"
                    .into(),
            });
        }
        Ok(ImagePlan { manifest, segments })
    }

    /// The keys of every object that an image is made of, its bases included.
    pub(crate) async fn keys_of_image(
        &self,
        job: JobId,
        task: TaskId,
        object: &ObjectRef,
    ) -> Result<Vec<String>, ReadError> {
        let chain = self.manifest_chain(job, task, object).await?;
        let keys = chain.into_iter().flat_map(|(object, manifest)| {
            let segments = manifest.segments.into_iter().map(|segment| segment.key);
            std::iter::once(object.key).chain(segments)
        });
        Ok(keys.collect())
    }

    /// A manifest and its bases, the newest first, each checked.
    async fn manifest_chain(
        &self,
        job: JobId,
        task: TaskId,
        object: &ObjectRef,
    ) -> Result<Vec<(ObjectRef, Manifest)>, ReadError> {
        let mut chain: Vec<(ObjectRef, Manifest)> = Vec::new();
        let mut next = Some(object.clone());
        while let Some(object) = next {
            let manifest: Manifest = self.read_versioned(&object).await?;
            let newer = chain.last().map(|(_, manifest)| manifest);
            check(&manifest, job, task)
                .and_then(|()| newer.map_or(Ok(()), |newer| check_base(&manifest, newer)))
                .map_err(|reason| ReadError::damaged(&object.key, reason))?;
            if chain.len() == CHAIN_MAX {
                let reason = format!("more than {CHAIN_MAX} deltas lie upon it");
                return Err(ReadError::damaged(&object.key, reason));
            }
            next = manifest.base.clone();
            chain.push((object, manifest));
        }
        Ok(chain)
    }
}

/// Whether a manifest makes sense on its own.
fn check(manifest: &Manifest, job: JobId, task: TaskId) -> Result<(), String> {
    if (manifest.job, manifest.task) != (job, task) {
        return Err(format!(
            "it is of task {} of job {}, not of task {task} of job {job}",
            manifest.task, manifest.job
        ));
    }
    if manifest.memory_bytes > MEMORY_BYTES_MAX {
        return Err(format!(
            "its memory has {} bytes, and at most {MEMORY_BYTES_MAX} are possible",
            manifest.memory_bytes
        ));
    }
    if !(1..=BLOCK_BYTES_MAX).contains(&manifest.block_bytes) {
        return Err(format!("its blocks have {} bytes", manifest.block_bytes));
    }
    let mut last = None;
    for block in &manifest.blocks {
        if last.is_some_and(|last| block.index <= last) {
            return Err(format!("block {} is out of order", block.index));
        }
        last = Some(block.index);
        check_block(manifest, block)?;
    }
    Ok(())
}

fn check_block(manifest: &Manifest, block: &BlockRef) -> Result<(), String> {
    let index = block.index;
    let Some(block_bytes) = bytes_of_block(manifest, index) else {
        return Err(format!("block {index} lies beyond the memory"));
    };
    if block.len == 0 {
        return Ok(());
    }
    let Some(segment) = manifest.segments.get(block.segment as usize) else {
        return Err(format!("block {index} is in a segment that is not listed"));
    };
    let end = block.offset.checked_add(u64::from(block.len));
    if end.is_none_or(|end| end > segment.len) {
        return Err(format!("block {index} lies beyond its segment"));
    }
    if block.len as usize > get_maximum_output_size(block_bytes) {
        return Err(format!("block {index} is larger than it can be"));
    }
    Ok(())
}

fn check_base(base: &Manifest, newer: &Manifest) -> Result<(), String> {
    if base.block_bytes != newer.block_bytes {
        return Err("a delta on it has blocks of another size".into());
    }
    if base.memory_bytes > newer.memory_bytes {
        return Err("a delta on it has a smaller memory, and memories do not shrink".into());
    }
    Ok(())
}

/// The size of a block in the memory: the last may be shorter.
fn bytes_of_block(manifest: &Manifest, index: u32) -> Option<usize> {
    let block_bytes = u64::from(manifest.block_bytes);
    let rest = manifest
        .memory_bytes
        .checked_sub(u64::from(index) * block_bytes)?;
    match rest.min(block_bytes) {
        0 => None,
        bytes => usize::try_from(bytes).ok(),
    }
}

/// The newest place of each block so far, from the newest manifest down.
#[derive(Default)]
struct Resolved {
    /// `None`: all zeros, whatever an older manifest says.
    blocks: BTreeMap<u32, Option<(usize, PlannedBlock)>>,
    segments: Vec<ObjectRef>,
}

impl Resolved {
    /// Adds what an older, checked manifest has and newer ones do not. Takes its blocks and segments.
    fn lay_under(&mut self, manifest: &mut Manifest) {
        let first = self.segments.len();
        self.segments.append(&mut manifest.segments);
        for block in std::mem::take(&mut manifest.blocks) {
            let block_bytes = bytes_of_block(manifest, block.index)
                .expect("manifests are checked when they are read");
            let planned = (block.len > 0).then_some((
                first + block.segment as usize,
                PlannedBlock {
                    position: block.index as usize * manifest.block_bytes as usize,
                    block_bytes,
                    offset: block.offset,
                    len: block.len as usize,
                    checksum: block.checksum,
                },
            ));
            self.blocks.entry(block.index).or_insert(planned);
        }
    }

    fn into_segments(self) -> Result<Vec<SegmentPlan>, String> {
        // Two manifests of a chain may list the same segment; it is read once.
        let mut plans: Vec<SegmentPlan> = Vec::new();
        let mut place_of_key = BTreeMap::new();
        let mut place_of_segment = Vec::with_capacity(self.segments.len());
        for segment in self.segments {
            let place = *place_of_key
                .entry(segment.key.clone())
                .or_insert(plans.len());
            place_of_segment.push(place);
            match plans.get(place) {
                None => plans.push(SegmentPlan {
                    segment,
                    blocks: Vec::new(),
                }),
                Some(plan) if plan.segment == segment => {}
                Some(_) => return Err(format!("it is unsure about segment `{}`", segment.key)),
            }
        }
        for (segment, block) in self.blocks.into_values().flatten() {
            plans[place_of_segment[segment]].blocks.push(block);
        }
        plans.retain(|plan| !plan.blocks.is_empty());
        for plan in &mut plans {
            plan.blocks.sort_by_key(|block| block.offset);
            let overlap = plan
                .blocks
                .windows(2)
                .any(|pair| pair[0].offset + pair[0].len as u64 > pair[1].offset);
            if overlap {
                let key = &plan.segment.key;
                return Err(format!("blocks overlap in segment `{key}`"));
            }
        }
        Ok(plans)
    }
}
