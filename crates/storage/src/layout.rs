//! Where each page of an image is: which block of which segment holds its newest bytes. Manifests are laid over it from
//! the oldest to the newest. It never touches the store, and only takes manifests that have been checked.

use std::collections::BTreeMap;
use std::ops::Range;

use tidemill_protocol::image::PAGE_BYTES;
use tidemill_protocol::manifest::{BLOCK_PAGES_MAX, BlockRef, ObjectRef};

/// A segment of which less than this share is still part of the image, in percent, is to be written again.
const MOSTLY_DEAD_PERCENT: u64 = 20;

/// In [`Layout::owners`]: the page is zero.
const ZERO: u32 = u32::MAX;

/// The newest place of every page of one memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// For each page, the block that holds it, or [`ZERO`].
    owners: Vec<u32>,
    /// In the order in which they were laid over each other.
    blocks: Vec<Placed>,
    segments: Vec<ObjectRef>,
}

/// A block, and how much of it has not been overlaid.
#[derive(Clone, Copy, Debug)]
struct Placed {
    /// Its segment is an index into [`Layout::segments`].
    block: BlockRef,
    /// How many of its pages are the newest.
    owned: u32,
}

/// What there is to decode out of one segment.
#[derive(Debug)]
pub(crate) struct SegmentPlan {
    pub(crate) segment: ObjectRef,
    /// In order of their offset, without overlap.
    pub(crate) blocks: Vec<PlannedBlock>,
}

/// One block to decode.
#[derive(Clone, Debug)]
pub(crate) struct PlannedBlock {
    pub(crate) block: BlockRef,
    /// Which of its pages are part of the image; all, when it is empty.
    pub(crate) pieces: Vec<Range<u32>>,
}

impl Layout {
    /// Lays the blocks of the next manifest, or of a new segment, over what there is. The memory may have grown.
    pub(crate) fn lay_over(
        &mut self,
        memory_bytes: u64,
        segments: Vec<ObjectRef>,
        blocks: &[BlockRef],
    ) {
        let pages = usize::try_from(memory_bytes).unwrap_or(usize::MAX) / PAGE_BYTES;
        self.owners.resize(pages, ZERO);
        let places: Vec<u32> = segments
            .into_iter()
            .map(|segment| self.place(segment))
            .collect();
        for block in blocks {
            let owner = index(self.blocks.len());
            let zero = block.len == 0;
            for page in block.first_page as usize..block.end_page() as usize {
                let before =
                    std::mem::replace(&mut self.owners[page], if zero { ZERO } else { owner });
                if before != ZERO {
                    self.blocks[before as usize].owned -= 1;
                }
            }
            if !zero {
                let segment = places[block.segment as usize];
                self.blocks.push(Placed {
                    block: BlockRef { segment, ..*block },
                    owned: block.pages,
                });
            }
        }
    }

    /// The index of a segment; two manifests of a chain may list the same one.
    fn place(&mut self, segment: ObjectRef) -> u32 {
        let known = self.segments.iter().rposition(|known| *known == segment);
        index(known.unwrap_or_else(|| {
            self.segments.push(segment);
            self.segments.len() - 1
        }))
    }

    /// How many blocks hold at least one page of the image.
    pub(crate) fn live_blocks(&self) -> usize {
        self.blocks.iter().filter(|placed| placed.owned > 0).count()
    }

    /// Forgets what is no part of the image any more, and says what a full manifest lists.
    pub(crate) fn compact(&mut self) -> (Vec<ObjectRef>, Vec<BlockRef>) {
        let mut new_block = vec![ZERO; self.blocks.len()];
        let mut new_segment: BTreeMap<u32, u32> = BTreeMap::new();
        let mut segments = Vec::new();
        let mut blocks = Vec::new();
        for (old, placed) in self.blocks.iter().enumerate() {
            if placed.owned == 0 {
                continue;
            }
            let segment = *new_segment.entry(placed.block.segment).or_insert_with(|| {
                segments.push(self.segments[placed.block.segment as usize].clone());
                index(segments.len() - 1)
            });
            new_block[old] = index(blocks.len());
            blocks.push(Placed {
                block: BlockRef {
                    segment,
                    ..placed.block
                },
                owned: placed.owned,
            });
        }
        for owner in &mut self.owners {
            if *owner != ZERO {
                *owner = new_block[*owner as usize];
            }
        }
        self.segments.clone_from(&segments);
        self.blocks = blocks;
        let listed = self.blocks.iter().map(|placed| placed.block);
        (segments, listed.chain(self.zeros_within_blocks()).collect())
    }

    /// The pages that are zero though a block that is still needed holds something else for them.
    fn zeros_within_blocks(&self) -> impl Iterator<Item = BlockRef> {
        let mut hidden = vec![false; self.owners.len()];
        for placed in &self.blocks {
            let block = &placed.block;
            hidden[block.first_page as usize..block.end_page() as usize].fill(true);
        }
        let zeros = hidden.iter().zip(&self.owners);
        let runs = runs_where(zeros.map(|(hidden, owner)| *hidden && *owner == ZERO), 0);
        runs.into_iter().flat_map(zero_blocks)
    }

    /// The pages that keep mostly dead segments alive, up to a number of pages: written again, they free the segments.
    pub(crate) fn pages_of_mostly_dead_segments(&self, pages_max: u32) -> Vec<Range<u32>> {
        let mut live_bytes = vec![0; self.segments.len()];
        let mut live_pages = vec![0; self.segments.len()];
        for placed in &self.blocks {
            let (block, segment) = (&placed.block, placed.block.segment as usize);
            let share = u64::from(block.len) * u64::from(placed.owned);
            live_bytes[segment] += share / u64::from(block.pages);
            live_pages[segment] += placed.owned;
        }
        let mut room = pages_max;
        let dead: Vec<bool> = (0..self.segments.len())
            .map(|segment| {
                let len = self.segments[segment].len;
                let dead = live_bytes[segment] * 100 < len * MOSTLY_DEAD_PERCENT;
                let chosen = dead && live_pages[segment] > 0 && live_pages[segment] <= room;
                if chosen {
                    room -= live_pages[segment];
                }
                chosen
            })
            .collect();
        let wanted = |owner: &u32| {
            *owner != ZERO && dead[self.blocks[*owner as usize].block.segment as usize]
        };
        runs_where(self.owners.iter().map(wanted), 0)
    }

    /// What is to be read, segment by segment.
    ///
    /// # Errors
    /// When blocks overlap in a segment, as none that was written does.
    pub(crate) fn plan(&self) -> Result<Vec<SegmentPlan>, String> {
        let mut plans: Vec<SegmentPlan> = self
            .segments
            .iter()
            .map(|segment| SegmentPlan {
                segment: segment.clone(),
                blocks: Vec::new(),
            })
            .collect();
        for (number, placed) in self.blocks.iter().enumerate() {
            let (block, owner) = (placed.block, index(number));
            if placed.owned == 0 {
                continue;
            }
            let pieces = if placed.owned == block.pages {
                Vec::new()
            } else {
                let pages = block.first_page as usize..block.end_page() as usize;
                let owned = self.owners[pages].iter().map(|known| *known == owner);
                runs_where(owned, block.first_page)
            };
            plans[block.segment as usize]
                .blocks
                .push(PlannedBlock { block, pieces });
        }
        plans.retain(|plan| !plan.blocks.is_empty());
        for plan in &mut plans {
            plan.blocks.sort_by_key(|planned| planned.block.offset);
            let overlap = plan.blocks.windows(2).any(|pair| {
                let (one, next) = (&pair[0].block, &pair[1].block);
                one.offset + u64::from(one.len) > next.offset
            });
            if overlap {
                let key = &plan.segment.key;
                return Err(format!("blocks overlap in segment `{key}`"));
            }
        }
        Ok(plans)
    }
}

/// Blocks that say that these pages are zero.
fn zero_blocks(run: Range<u32>) -> impl Iterator<Item = BlockRef> {
    let end = run.end;
    run.step_by(BLOCK_PAGES_MAX as usize)
        .map(move |first_page| BlockRef {
            first_page,
            pages: BLOCK_PAGES_MAX.min(end - first_page),
            segment: 0,
            offset: 0,
            len: 0,
            checksum: 0,
        })
}

/// The ranges of pages, counted from `first`, of which this is true.
fn runs_where(pages: impl Iterator<Item = bool>, first: u32) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for (number, wanted) in pages.enumerate() {
        let page = first + index(number);
        match runs.last_mut() {
            _ if !wanted => {}
            Some(run) if run.end == page => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

/// Memories have at most 2^20 pages, and a chain of manifests far fewer than 2^32 blocks.
fn index(number: usize) -> u32 {
    u32::try_from(number).expect("bounded by the size of the memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(name: &str, len: u64) -> ObjectRef {
        ObjectRef {
            key: name.into(),
            len,
            hash: [0; 32],
        }
    }

    fn block(first: u32, pages: u32, offset: u64, len: u32) -> BlockRef {
        BlockRef {
            first_page: first,
            pages,
            segment: 0,
            offset,
            len,
            checksum: 0,
        }
    }

    const MEMORY: u64 = 64 * PAGE_BYTES as u64;

    #[test]
    fn what_is_overlaid_is_not_read_and_what_is_left_of_a_block_is() {
        let mut layout = Layout::default();
        let base = [block(0, 16, 0, 100), block(16, 16, 100, 100)];
        layout.lay_over(MEMORY, vec![segment("base", 200)], &base);
        let delta = [block(4, 2, 0, 10), block(16, 16, 10, 90), block(8, 1, 0, 0)];
        layout.lay_over(MEMORY, vec![segment("delta", 100)], &delta);
        let plan = layout.plan().unwrap();
        let of = |key: &str| plan.iter().find(|plan| plan.segment.key == key).unwrap();
        let base = &of("base").blocks;
        assert_eq!(base.len(), 1, "the second block is overlaid whole");
        assert_eq!(base[0].pieces, [0..4, 6..8, 9..16]);
        assert!(
            of("delta")
                .blocks
                .iter()
                .all(|block| block.pieces.is_empty())
        );
    }

    #[test]
    fn a_mostly_dead_segment_is_named_by_its_last_pages_and_gone_once_they_are_rewritten() {
        let mut layout = Layout::default();
        layout.lay_over(
            MEMORY,
            vec![segment("old", 1000)],
            &[block(0, 16, 0, 500), block(16, 16, 500, 500)],
        );
        assert_eq!(layout.pages_of_mostly_dead_segments(64), []);
        layout.lay_over(
            MEMORY,
            vec![segment("new", 800)],
            &[block(0, 14, 0, 400), block(16, 13, 400, 400)],
        );
        let left = layout.pages_of_mostly_dead_segments(64);
        assert_eq!(left, [14..16, 29..32]);
        assert_eq!(
            layout.pages_of_mostly_dead_segments(4),
            [],
            "too many at once"
        );

        let again = [block(14, 2, 0, 40), block(29, 3, 40, 60)];
        layout.lay_over(MEMORY, vec![segment("newest", 100)], &again);
        let (segments, blocks) = layout.compact();
        let keys: Vec<&str> = segments
            .iter()
            .map(|segment| segment.key.as_str())
            .collect();
        assert_eq!(keys, ["new", "newest"]);
        assert_eq!(blocks.len(), 4);
        assert_eq!(layout.live_blocks(), 4);
    }
}
