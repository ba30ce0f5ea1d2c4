//! What the stored captures of one task have in common: each builds on the one before. It decides when a manifest lists
//! everything again and which pages are written again for the sake of others. It never touches the store.
//!
//! An abort undoes nothing: a chain grows with every capture that is stored, also of checkpoints that never complete.
//! The scheme is that of incremental snapshots over a log-structured store (as in LSM trees): segments are written once,
//! mostly dead ones are freed by writing their last live pages again, and small ones are brought together when there are many.

use std::ops::Range;

use tidemill_protocol::manifest::{BlockRef, ObjectRef};

use crate::layout::Layout;

/// After this many deltas a manifest is full again, so that few have to be read for a restore.
const DELTAS_MAX: usize = 32;

/// Fewer blocks than this never make a chain too long.
const DELTA_BLOCKS_MIN: usize = 1024;

/// What later captures of a task build upon.
#[derive(Clone, Debug, Default)]
pub struct ImageChain {
    /// The newest manifest that was stored.
    newest: Option<ObjectRef>,
    layout: Layout,
    /// Deltas since the last full manifest, and their blocks.
    deltas: usize,
    delta_blocks: usize,
    /// The layout has what no stored manifest lists.
    unlisted: bool,
}

/// What a manifest lists.
pub(crate) struct Listed {
    pub(crate) base: Option<ObjectRef>,
    pub(crate) segments: Vec<ObjectRef>,
    pub(crate) blocks: Vec<BlockRef>,
}

impl ImageChain {
    /// Of a task that has stored nothing: its first capture must hold every page that is not zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of a task that is restored from this manifest.
    pub(crate) fn read(newest: ObjectRef, layout: Layout, deltas: (usize, usize)) -> Self {
        Self {
            newest: Some(newest),
            layout,
            deltas: deltas.0,
            delta_blocks: deltas.1,
            unlisted: false,
        }
    }

    /// Whether nothing has been stored.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.newest.is_none() && !self.unlisted
    }

    /// Pages that the next capture should hold though they may not have been written to: they alone keep segments that are
    /// mostly dead, or of very many that have few pages, from being deleted. At most `pages_max`.
    #[must_use]
    pub fn pages_to_write_again(&self, pages_max: u32) -> Vec<Range<u32>> {
        self.layout.pages_to_write_again(pages_max)
    }

    /// A segment has been stored; says what its manifest is to list.
    pub(crate) fn extend(
        &mut self,
        memory_bytes: u64,
        segments: Vec<ObjectRef>,
        blocks: Vec<BlockRef>,
    ) -> Listed {
        self.layout
            .lay_over(memory_bytes, segments.clone(), &blocks);
        let delta_blocks = self.delta_blocks + blocks.len();
        let outgrown = delta_blocks > self.layout.live_blocks().max(DELTA_BLOCKS_MIN);
        let base = self
            .newest
            .clone()
            .filter(|_| !self.unlisted && self.deltas < DELTAS_MAX && !outgrown);
        self.unlisted = true;
        if base.is_some() {
            self.deltas += 1;
            self.delta_blocks = delta_blocks;
            return Listed {
                base,
                segments,
                blocks,
            };
        }
        (self.deltas, self.delta_blocks) = (0, 0);
        let (segments, blocks) = self.layout.compact();
        Listed {
            base,
            segments,
            blocks,
        }
    }

    /// The manifest that lists everything so far is stored.
    pub(crate) fn stored(&mut self, manifest: &ObjectRef) {
        self.newest = Some(manifest.clone());
        self.unlisted = false;
    }
}
