//! An image in the object store as a source of pages, for a memory that is filled while the guest runs and for one that
//! is put back. Where another TaskManager keeps the image too, its pages come from there for as long as they do.
//!
//! The first time that something cannot be read it says so to whoever made it, since the task that the pages are for may
//! be running by then and not touch one of them for long.

use std::ops::Range;
use std::sync::OnceLock;

use bytes::Bytes;
use tidemill_protocol::control::{Blame, TaskState};
use tidemill_protocol::image::PageRun;
use tidemill_runtime::PageSource;
use tidemill_storage::{ReadError, StoredImage};
use tokio::runtime::Handle;

use super::PeerImage;
use crate::error_chain;
use crate::task::failure;

/// How many pieces are in memory at once: at most 4 MiB.
pub(super) const PIECES_AT_ONCE: usize = 64;

/// How much of a file is read together, give or take [`PIECES_AT_ONCE`].
const BYTES_AT_ONCE: usize = 32 << 20;

/// Hears how a task ends whose image cannot be read.
type OnFailure = Box<dyn Fn(TaskState) + Send + Sync>;

/// The pages of a stored image.
pub(crate) struct StoredSource {
    image: StoredImage,
    /// Who else has it.
    peer: Option<PeerImage>,
    runtime: Handle,
    on_failure: OnFailure,
    failed: OnceLock<()>,
}

impl std::fmt::Debug for StoredSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredSource")
            .field("manifest", self.image.manifest())
            .field("peer", &self.peer)
            .field("failed", &self.has_failed())
            .finish_non_exhaustive()
    }
}

impl StoredSource {
    /// The runtime is the one whose threads read; the threads that ask wait for them.
    pub(crate) fn new(image: StoredImage, runtime: Handle, on_failure: OnFailure) -> Self {
        Self {
            image,
            peer: None,
            runtime,
            on_failure,
            failed: OnceLock::new(),
        }
    }

    /// The same, and first of all from another TaskManager.
    pub(crate) fn with_peer(self, peer: Option<PeerImage>) -> Self {
        Self { peer, ..self }
    }

    /// Whether another TaskManager has said that it has the image.
    pub(crate) fn has_peer(&self) -> bool {
        self.peer.is_some()
    }

    /// Whether something could not be read, which has been said then.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.get().is_some()
    }

    /// Hands over the pieces that have pages of these runs, from the store.
    ///
    /// # Errors
    /// What cannot be read, for people.
    pub(crate) fn read_runs(
        &self,
        wanted: &[PageRun],
        lay: &mut dyn FnMut(PageRun, &[u8]),
    ) -> Result<(), String> {
        let wanted = wanted_pieces(&self.image, wanted);
        for pieces in together(&wanted, self.image.pieces()) {
            let read = self.runtime.block_on(self.image.read_scattered(pieces));
            hand_over(read.map_err(|error| self.failed(&error))?, lay);
        }
        Ok(())
    }

    async fn read_pieces(&self, pieces: Range<usize>) -> Result<Vec<(PageRun, Bytes)>, ReadError> {
        if let Some(peer) = &self.peer
            && let Some(read) = peer.read(&self.image, pieces.clone()).await
        {
            return Ok(read);
        }
        self.image.read(pieces).await
    }

    fn failed(&self, error: &ReadError) -> String {
        if self.failed.set(()).is_ok() {
            (self.on_failure)(unreadable(error));
        }
        error_chain(error)
    }
}

/// How a task ends whose image cannot be read: a damaged one is of no use to anybody, and a store that is out of reach
/// may come back.
pub(crate) fn unreadable(error: &ReadError) -> TaskState {
    let reason = error_chain(error);
    match error.is_lost() {
        true => TaskState::Unrestorable { reason },
        false => TaskState::Failed(failure(Blame::Cluster, reason)),
    }
}

impl PageSource for StoredSource {
    fn pieces(&self) -> &[PageRun] {
        self.image.pieces()
    }

    fn read(
        &self,
        pieces: Range<usize>,
        lay: &mut dyn FnMut(PageRun, &[u8]),
    ) -> Result<(), String> {
        for pieces in batches(pieces) {
            let read = self.runtime.block_on(self.read_pieces(pieces));
            hand_over(read.map_err(|error| self.failed(&error))?, lay);
        }
        Ok(())
    }
}

/// The pieces that have pages of these ascending runs, as ranges of their indexes: disjoint, ascending, none of them long.
pub(super) fn wanted_pieces(image: &StoredImage, wanted: &[PageRun]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for run in wanted.iter().filter(|run| !run.zero) {
        let pieces = image.pieces_of(run.first..run.first + run.pages);
        match ranges.last_mut() {
            Some(last) if pieces.start <= last.end => last.end = last.end.max(pieces.end),
            _ if pieces.is_empty() => {}
            _ => ranges.push(pieces),
        }
    }
    ranges.into_iter().flat_map(batches).collect()
}

/// The same ranges, in parts that are read at once: pages that were captured together lie side by side in the store, and
/// anywhere in memory.
pub(super) fn together<'a>(
    ranges: &'a [Range<usize>],
    pieces: &'a [PageRun],
) -> impl Iterator<Item = &'a [Range<usize>]> {
    let bytes = |range: &Range<usize>| -> usize {
        let pieces = pieces[range.clone()].iter();
        pieces.map(|piece| piece.memory_range().len()).sum()
    };
    let mut held = 0;
    ranges.chunk_by(move |before, _| {
        held += bytes(before);
        let goes_on = held < BYTES_AT_ONCE;
        held *= usize::from(goes_on);
        goes_on
    })
}

fn batches(pieces: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = pieces.end;
    pieces
        .step_by(PIECES_AT_ONCE)
        .map(move |start| start..end.min(start + PIECES_AT_ONCE))
}

fn hand_over(
    read: impl IntoIterator<Item = (PageRun, Bytes)>,
    lay: &mut dyn FnMut(PageRun, &[u8]),
) {
    for (piece, bytes) in read {
        lay(piece, &bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_together_is_bounded() {
        let run = |first: u32| PageRun {
            first: first * 16,
            pages: 16,
            zero: false,
        };
        let pieces: Vec<PageRun> = (0..2000).map(run).collect();
        let every_second: Vec<Range<usize>> =
            (0..1000).map(|index| 2 * index..2 * index + 1).collect();
        let parts: Vec<_> = together(&every_second, &pieces).collect();
        assert_eq!(parts.concat(), every_second);
        // 512 pieces of 64 KiB are 32 MiB.
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [512, 488]
        );
        assert_eq!(together(&[], &pieces).count(), 0);
    }
}
