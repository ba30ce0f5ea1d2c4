//! Where each page of an image is: which block of which segment holds its newest bytes. Manifests are laid over it from
//! the oldest to the newest. It never touches the store, and only takes manifests that have been checked.

use std::collections::BTreeMap;
use std::ops::Range;

use tidemill_protocol::image::{PAGE_BYTES, PageRun};
use tidemill_protocol::manifest::{BLOCK_PAGES_MAX, BlockRef, ObjectRef};

/// A segment of which less than this share is still part of the image, in percent, is to be written again.
const MOSTLY_DEAD_PERCENT: u64 = 20;

/// From so many segments on, those with few pages left are brought together: every one is an object, and is listed in each
/// full manifest.
const SEGMENTS_MANY: usize = 256;

/// A segment with fewer pages of the image than this has few. What is brought together has more, so that no page is written
/// again twice for this reason.
const FEW_PAGES: u32 = 16;

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
        let places = self.place(segments);
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

    /// The indexes of these segments; two manifests of a chain may list the same one.
    fn place(&mut self, segments: Vec<ObjectRef>) -> Vec<u32> {
        let known: Vec<Option<u32>> = {
            let numbers = self.numbers();
            let number = |segment| self.number(&numbers, segment);
            segments.iter().map(number).collect()
        };
        let place = |(segment, known): (ObjectRef, Option<u32>)| {
            known.unwrap_or_else(|| {
                self.segments.push(segment);
                index(self.segments.len() - 1)
            })
        };
        segments.into_iter().zip(known).map(place).collect()
    }

    /// The indexes of all segments by their keys.
    fn numbers(&self) -> BTreeMap<&str, u32> {
        let segments = (0..).zip(&self.segments);
        segments
            .map(|(number, segment)| (segment.key.as_str(), number))
            .collect()
    }

    /// The index of this segment, if there is one.
    fn number(&self, numbers: &BTreeMap<&str, u32>, segment: &ObjectRef) -> Option<u32> {
        let number = *numbers.get(segment.key.as_str())?;
        (self.segment(number) == segment).then_some(number)
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

    /// The pages of segments that are not worth an object any more, up to a number of pages: written again, they free the
    /// segments. Those are the mostly dead ones, and of very many segments those with few pages.
    pub(crate) fn pages_to_write_again(&self, pages_max: u32) -> Vec<Range<u32>> {
        let mut live_bytes = vec![0; self.segments.len()];
        let mut live_pages = vec![0; self.segments.len()];
        for placed in &self.blocks {
            let (block, segment) = (&placed.block, placed.block.segment as usize);
            let share = u64::from(block.len) * u64::from(placed.owned);
            live_bytes[segment] += share / u64::from(block.pages);
            live_pages[segment] += placed.owned;
        }
        let mut chosen = vec![false; self.segments.len()];
        let mut room = pages_max;
        let mut choose = |segment: usize| {
            if !chosen[segment] && live_pages[segment] > 0 && live_pages[segment] <= room {
                room -= live_pages[segment];
                chosen[segment] = true;
            }
        };
        for (number, segment) in self.segments.iter().enumerate() {
            if live_bytes[number] * 100 < segment.len * MOSTLY_DEAD_PERCENT {
                choose(number);
            }
        }
        let live = live_pages.iter().filter(|pages| **pages > 0).count();
        if live >= SEGMENTS_MANY {
            let has_few = |number: &usize| (1..FEW_PAGES).contains(&live_pages[*number]);
            let few: Vec<usize> = (0..live_pages.len()).filter(has_few).collect();
            if few.len() >= FEW_PAGES as usize {
                few.into_iter().for_each(choose);
            }
        }
        let wanted = |owner: &u32| {
            *owner != ZERO && chosen[self.blocks[*owner as usize].block.segment as usize]
        };
        runs_where(self.owners.iter().map(wanted), 0)
    }

    /// Where the pages are that are not zero, each run within one block.
    pub(crate) fn pieces(&self) -> Vec<PageRun> {
        let mut pieces: Vec<PageRun> = Vec::new();
        let mut before = ZERO;
        for (page, owner) in self.owners.iter().enumerate() {
            if *owner != ZERO {
                match pieces.last_mut() {
                    Some(piece) if *owner == before => piece.pages += 1,
                    _ => pieces.push(PageRun {
                        first: index(page),
                        pages: 1,
                        zero: false,
                    }),
                }
            }
            before = *owner;
        }
        pieces
    }

    /// The block that a page is in; its segment is for [`Layout::segment`]. `None` when the page is zero.
    pub(crate) fn block_of(&self, page: u32) -> Option<&BlockRef> {
        let owner = *self.owners.get(page as usize)?;
        (owner != ZERO).then(|| &self.blocks[owner as usize].block)
    }

    pub(crate) fn segment(&self, number: u32) -> &ObjectRef {
        &self.segments[number as usize]
    }

    /// The pages that are in another place than in `older`, and all beyond its end, ascending.
    pub(crate) fn changed_since(&self, older: &Self) -> Vec<PageRun> {
        let numbers = self.numbers();
        let here = |segment| self.number(&numbers, segment);
        let same_segment: Vec<Option<u32>> = older.segments.iter().map(here).collect();
        let same_block = |owner: u32, before: u32| {
            if owner == ZERO || before == ZERO {
                return owner == before;
            }
            let block = &self.blocks[owner as usize].block;
            let before = &older.blocks[before as usize].block;
            same_segment[before.segment as usize] == Some(block.segment)
                && (block.offset, block.first_page) == (before.offset, before.first_page)
        };
        let mut changed: Vec<PageRun> = Vec::new();
        for (page, owner) in self.owners.iter().enumerate() {
            let before = older.owners.get(page);
            if before.is_some_and(|before| same_block(*owner, *before)) {
                continue;
            }
            let zero = *owner == ZERO;
            match changed.last_mut() {
                Some(run) if run.end() == page && run.zero == zero => run.pages += 1,
                _ => changed.push(PageRun {
                    first: index(page),
                    pages: 1,
                    zero,
                }),
            }
        }
        changed
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
    use std::slice;

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
        let pieces: Vec<_> = layout
            .pieces()
            .iter()
            .map(|piece| {
                let block = layout.block_of(piece.first).unwrap();
                let segment = layout.segment(block.segment).key.as_str();
                (piece.first..piece.end() as u32, segment, block.offset)
            })
            .collect();
        let expected = [
            (0..4, "base", 0),
            (4..6, "delta", 0),
            (6..8, "base", 0),
            (9..16, "base", 0),
            (16..32, "delta", 10),
        ];
        assert_eq!(pieces, expected);
        assert!(layout.block_of(8).is_none(), "it has become zero");
        assert!(layout.block_of(64).is_none(), "there is no such page");
    }

    #[test]
    fn what_changed_is_what_lies_elsewhere_now() {
        let mut older = Layout::default();
        let base = [block(0, 16, 0, 100), block(16, 16, 100, 100)];
        older.lay_over(MEMORY, vec![segment("base", 200)], &base);
        assert_eq!(older.changed_since(&older.clone()), []);

        let mut newer = older.clone();
        let delta = [block(4, 2, 0, 10), block(6, 1, 0, 0), block(40, 1, 10, 10)];
        newer.lay_over(MEMORY + 4096, vec![segment("delta", 100)], &delta);
        // However the list is put together: places are compared, not numbers.
        newer.compact();
        let run = |first, pages, zero| PageRun { first, pages, zero };
        let expected = [
            run(4, 2, false),
            run(6, 1, true),
            run(40, 1, false),
            run(64, 1, true),
        ];
        assert_eq!(newer.changed_since(&older), expected);
    }

    #[test]
    fn a_mostly_dead_segment_is_named_by_its_last_pages_and_gone_once_they_are_rewritten() {
        let mut layout = Layout::default();
        layout.lay_over(
            MEMORY,
            vec![segment("old", 1000)],
            &[block(0, 16, 0, 500), block(16, 16, 500, 500)],
        );
        assert_eq!(layout.pages_to_write_again(64), []);
        layout.lay_over(
            MEMORY,
            vec![segment("new", 800)],
            &[block(0, 14, 0, 400), block(16, 13, 400, 400)],
        );
        let left = layout.pages_to_write_again(64);
        assert_eq!(left, [14..16, 29..32]);
        assert_eq!(layout.pages_to_write_again(4), [], "too many at once");

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

    /// A memory of which every capture has written other pages, so many each time.
    fn layout_of_captures(captures: u32, pages: u32) -> Layout {
        let mut layout = Layout::default();
        let memory_bytes = u64::from(captures * pages) * PAGE_BYTES as u64;
        for capture in 0..captures {
            let segment = segment(&format!("{capture:05}"), u64::from(pages) * 100);
            let block = block(capture * pages, pages, 0, pages * 100);
            layout.lay_over(memory_bytes, vec![segment], &[block]);
        }
        layout
    }

    #[test]
    fn very_many_segments_with_few_pages_are_brought_together() {
        let few = layout_of_captures(255, 2);
        assert_eq!(few.pages_to_write_again(1024), []);
        let whole = layout_of_captures(300, 16);
        assert_eq!(whole.pages_to_write_again(1024), [], "each has enough");

        let mut many = layout_of_captures(300, 2);
        for (room, pages) in [(1024, 600), (100, 100)] {
            let again = many.pages_to_write_again(room);
            assert_eq!(again, slice::from_ref(&(0..pages)), "with room for {room}");
        }
        let together: Vec<BlockRef> = (0..300_u32)
            .step_by(8)
            .map(|number| block(number * 2, 16.min(600 - number * 2), u64::from(number), 1))
            .collect();
        let memory_bytes = 600 * PAGE_BYTES as u64;
        many.lay_over(memory_bytes, vec![segment("together", 38)], &together);
        assert_eq!(many.pages_to_write_again(1024), []);
        assert_eq!(many.compact().0.len(), 1);
    }

    #[test]
    fn a_hundred_thousand_segments_are_told_apart_in_no_time() {
        let layout = layout_of_captures(1, 1);
        let segments: Vec<ObjectRef> = (0..100_000)
            .map(|number| segment(&format!("{number:05}"), 100))
            .collect();
        let blocks: Vec<BlockRef> = (0..100_000)
            .map(|number| BlockRef {
                segment: number,
                ..block(number, 1, 0, 100)
            })
            .collect();
        let memory_bytes = 100_000 * PAGE_BYTES as u64;
        let mut newer = layout.clone();
        newer.lay_over(memory_bytes, segments, &blocks);
        // The first is the one that was known, with the same length and hash.
        assert_eq!(newer.segments.len(), 100_000);
        let changed = newer.changed_since(&layout);
        assert_eq!(changed.len(), 1);
        assert_eq!((changed[0].first, changed[0].end()), (1, 100_000));
    }
}
