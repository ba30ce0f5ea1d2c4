//! An image that is opened: its manifests are read and verified, its pages stay in the store until they are asked for.
//! It returns no page whose block does not match its checksum, and remembers none that it has returned.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStoreExt};
use tidemill_protocol::image::{PAGE_BYTES, PageRun};
use tidemill_protocol::manifest::{BlockRef, ObjectRef};
use tidemill_protocol::{ImageHead, JobId, TaskId};

use crate::error::RequestError;
use crate::image_chain::ImageChain;
use crate::layout::Layout;
use crate::store::path;
use crate::{ReadError, Store};

/// How much one request asks for at most, give or take a block.
const REQUEST_BYTES_MAX: u64 = 4 << 20;

/// How far apart two blocks may be in a segment to come with one request: reading this much in vain takes less time than
/// asking again.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// How many places of one file are read one after the other: to be called and to open the file takes longer than to read
/// a block.
const PLACES_MAX: usize = 64;

/// Requests of one read that are under way together.
const REQUESTS_MAX: usize = 4;

/// How many pages are decoded on the thread that asked: a fraction of a millisecond of work.
const DECODE_INLINE_PAGES_MAX: usize = 64;

impl Store {
    /// Reads and verifies the manifests of an image, none of its pages.
    ///
    /// # Errors
    /// When the manifest or a base of it is missing, damaged or out of reach, or is another task's.
    pub async fn open_image(
        &self,
        job: JobId,
        task: TaskId,
        manifest: &ObjectRef,
    ) -> Result<StoredImage, ReadError> {
        let resolved = self.resolve_image(job, task, manifest).await?;
        let head = ImageHead {
            memory_bytes: resolved.manifest.memory_bytes,
            globals: resolved.manifest.globals,
            tables: resolved.manifest.tables,
            host_state: resolved.manifest.host_state,
            channel_state: resolved.manifest.channel_state,
        };
        Ok(StoredImage {
            opened: Arc::new(Opened {
                store: self.clone(),
                manifest: manifest.clone(),
                head,
                pieces: resolved.layout.pieces(),
                layout: resolved.layout,
                deltas: resolved.deltas,
            }),
        })
    }
}

/// An image whose pages are read when they are wanted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoredImage {
    opened: Arc<Opened>,
}

#[derive(Debug)]
struct Opened {
    store: Store,
    manifest: ObjectRef,
    head: ImageHead,
    layout: Layout,
    /// As in [`crate::manifest_chain::ResolvedImage`].
    deltas: (usize, usize),
    pieces: Vec<PageRun>,
}

/// Blocks that are read by one request.
#[derive(Debug)]
struct Fetch {
    segment: ObjectRef,
    /// Where they are in it.
    range: Range<u64>,
    /// Each with the pieces that are wanted of it, in order of their offset.
    blocks: Vec<(BlockRef, Vec<PageRun>)>,
}

impl StoredImage {
    /// Everything but the pages.
    #[must_use]
    pub fn head(&self) -> &ImageHead {
        &self.opened.head
    }

    /// The manifest that it was opened by.
    #[must_use]
    pub fn manifest(&self) -> &ObjectRef {
        &self.opened.manifest
    }

    /// What later captures of the task build upon.
    #[must_use]
    pub fn chain(&self) -> ImageChain {
        let opened = &self.opened;
        ImageChain::read(
            opened.manifest.clone(),
            opened.layout.clone(),
            opened.deltas,
        )
    }

    /// Where pages are that are not zero: ascending, disjoint, each within one stored block, so of at most
    /// [`BLOCK_PAGES_MAX`](tidemill_protocol::manifest::BLOCK_PAGES_MAX) pages.
    #[must_use]
    pub fn pieces(&self) -> &[PageRun] {
        &self.opened.pieces
    }

    /// The indexes of the pieces that have pages of this range.
    #[must_use]
    pub fn pieces_of(&self, pages: Range<u32>) -> Range<usize> {
        let pieces = self.pieces();
        let start = pieces.partition_point(|piece| piece.end() <= pages.start as usize);
        let end = pieces.partition_point(|piece| piece.first < pages.end);
        start..end.max(start)
    }

    /// Reads pieces by their indexes, in ascending order, each verified by its block's checksum. Those that lie side by side
    /// in one segment are read by one request. The whole result is in memory: ask for few pieces of a large image at a time.
    ///
    /// # Errors
    /// When a segment is missing, damaged or out of reach. Nothing is returned then.
    ///
    /// # Panics
    /// When there is no piece of such an index.
    pub async fn read(&self, pieces: Range<usize>) -> Result<Vec<(PageRun, Bytes)>, ReadError> {
        self.read_scattered(&[pieces]).await
    }

    /// Reads pieces as [`StoredImage::read`] does, of several disjoint ranges of indexes. Pages that were captured together
    /// lie side by side in a segment however far apart they are in memory, so that few requests bring what a capture changed.
    ///
    /// # Errors
    /// When a segment is missing, damaged or out of reach. Nothing is returned then.
    ///
    /// # Panics
    /// When there is no piece of such an index.
    pub async fn read_scattered(
        &self,
        ranges: &[Range<usize>],
    ) -> Result<Vec<(PageRun, Bytes)>, ReadError> {
        let pieces = ranges
            .iter()
            .flat_map(|range| &self.pieces()[range.clone()]);
        let fetches = self.fetches(pieces);
        let together = self.opened.store.directory().is_some();
        let reads: Vec<_> = of_one_file(fetches, if together { PLACES_MAX } else { 1 })
            .into_iter()
            .map(|fetches| self.fetch(fetches))
            .collect();
        let read: Vec<_> = futures::stream::iter(reads)
            .buffered(REQUESTS_MAX)
            .try_collect()
            .await?;
        let mut read = read.concat();
        read.sort_unstable_by_key(|(piece, _)| piece.first);
        Ok(read)
    }

    /// Whether these are a piece's bytes, which have come from elsewhere. `None` when the piece is a part of a block: its
    /// checksum is of all the block's pages, of which some have been overwritten since.
    #[must_use]
    pub fn matches(&self, piece: usize, bytes: &[u8]) -> Option<bool> {
        let piece = self.pieces().get(piece)?;
        let block = self.opened.layout.block_of(piece.first)?;
        let is_whole = (block.first_page, block.pages) == (piece.first, piece.pages);
        is_whole.then(|| {
            bytes.len() == piece.memory_range().len() && crc32fast::hash(bytes) == block.checksum
        })
    }

    /// The pages that are stored elsewhere than in `older`, and all beyond its end: what brings a copy of `older` up to
    /// date. Runs of pages that are zero now say so; of the others, [`StoredImage::pieces_of`] finds the pieces.
    #[must_use]
    pub fn changed_since(&self, older: &Self) -> Vec<PageRun> {
        self.opened.layout.changed_since(&older.opened.layout)
    }

    /// What a full manifest of it lists.
    pub(crate) fn listed(&self) -> (Vec<ObjectRef>, Vec<BlockRef>) {
        self.opened.layout.clone().compact()
    }

    /// The segments that hold pages of it.
    pub(crate) fn live_segments(&self) -> Vec<ObjectRef> {
        self.listed().0
    }

    /// The requests that bring these pieces.
    fn fetches<'a>(&self, pieces: impl Iterator<Item = &'a PageRun>) -> Vec<Fetch> {
        let layout = &self.opened.layout;
        let mut places: Vec<(BlockRef, PageRun)> = pieces
            .filter_map(|piece| Some((*layout.block_of(piece.first)?, *piece)))
            .collect();
        places.sort_unstable_by_key(|(block, piece)| {
            (block.segment, block.offset, block.first_page, piece.first)
        });
        let mut fetches: Vec<Fetch> = Vec::new();
        let mut segment = None;
        for (block, piece) in places {
            let range = block.offset..block.offset + u64::from(block.len);
            match fetches.last_mut() {
                Some(fetch) if segment == Some(block.segment) && fetch.is_near(&range) => {
                    fetch.range.end = fetch.range.end.max(range.end);
                    match fetch.blocks.last_mut() {
                        Some((last, pieces)) if *last == block => pieces.push(piece),
                        _ => fetch.blocks.push((block, vec![piece])),
                    }
                }
                _ => fetches.push(Fetch {
                    segment: layout.segment(block.segment).clone(),
                    range,
                    blocks: vec![(block, vec![piece])],
                }),
            }
            segment = Some(block.segment);
        }
        fetches
    }

    /// Reads of one segment.
    async fn fetch(&self, fetches: Vec<Fetch>) -> Result<Vec<(PageRun, Bytes)>, ReadError> {
        let Some(first) = fetches.first() else {
            return Ok(Vec::new());
        };
        let (store, segment) = (&self.opened.store, first.segment.clone());
        let ranges: Vec<Range<u64>> = fetches.iter().map(|fetch| fetch.range.clone()).collect();
        let bytes = store.get_ranges(&segment, &ranges).await?;
        let blocks = fetches.iter().flat_map(|fetch| &fetch.blocks);
        let pages: usize = blocks.map(|(block, _)| block.pages as usize).sum();
        let decode = move || {
            let decoded = fetches.iter().zip(&bytes);
            let decoded: Result<Vec<_>, _> = decoded.map(|(fetch, it)| fetch.decode(it)).collect();
            decoded.map(|decoded| decoded.concat())
        };
        if pages <= DECODE_INLINE_PAGES_MAX {
            return decode();
        }
        let decoded = store.compute(decode).await;
        decoded.map_err(|error| error.reading(&segment.key))?
    }
}

/// Those that follow each other and are of one file, so many together.
fn of_one_file(fetches: Vec<Fetch>, places_max: usize) -> Vec<Vec<Fetch>> {
    let mut all: Vec<Vec<Fetch>> = Vec::new();
    for fetch in fetches {
        let bytes = |fetches: &[Fetch]| -> u64 { fetches.iter().map(Fetch::bytes).sum() };
        let fits = |last: &&mut Vec<Fetch>| {
            last.len() < places_max
                && last[0].segment == fetch.segment
                && bytes(last) + fetch.bytes() <= REQUEST_BYTES_MAX
        };
        match all.last_mut().filter(fits) {
            Some(last) => last.push(fetch),
            None => all.push(vec![fetch]),
        }
    }
    all
}

impl Fetch {
    fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether a block that begins no earlier than all before it is to come with them.
    fn is_near(&self, block: &Range<u64>) -> bool {
        block.start <= self.range.end.saturating_add(GAP_BYTES_MAX)
            && block.end - self.range.start <= REQUEST_BYTES_MAX
            || block.end <= self.range.end
    }

    /// Decodes and verifies the blocks, and cuts the pieces out of them.
    fn decode(&self, bytes: &Bytes) -> Result<Vec<(PageRun, Bytes)>, ReadError> {
        let mut read = Vec::new();
        for (block, pieces) in &self.blocks {
            let start = usize::try_from(block.offset - self.range.start)
                .expect("a request is for a few megabytes");
            let compressed = &bytes[start..start + block.len as usize];
            let decoded = decode_block(block, compressed)
                .map_err(|reason| ReadError::damaged(&self.segment.key, reason))?;
            let first = block.first_page as usize * PAGE_BYTES;
            for piece in pieces {
                let place = piece.memory_range();
                read.push((
                    *piece,
                    decoded.slice(place.start - first..place.end - first),
                ));
            }
        }
        Ok(read)
    }
}

/// The pages of a block, if they are those that were written.
pub(crate) fn decode_block(block: &BlockRef, compressed: &[u8]) -> Result<Bytes, String> {
    let mut pages = vec![0; block.pages as usize * PAGE_BYTES];
    let decoded = lz4_flex::block::decompress_into(compressed, &mut pages);
    let whole = decoded.is_ok_and(|decoded| decoded == pages.len());
    if whole && crc32fast::hash(&pages) == block.checksum {
        return Ok(pages.into());
    }
    Err(format!(
        "the block at offset {} does not match its checksum",
        block.offset
    ))
}

impl Store {
    /// Reads parts of an object, whose bytes are for the caller to verify.
    async fn get_ranges(
        &self,
        object: &ObjectRef,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Bytes>, ReadError> {
        if let [range] = ranges {
            let bytes = self.get_range(object, range.clone()).await?;
            return Ok(vec![bytes]);
        }
        let key = &object.key;
        let path = path(key).map_err(|error| ReadError::damaged(key, error.to_string()))?;
        let read = self.request(self.objects().get_ranges(&path, ranges));
        let read = match read.await {
            Ok(read) => read,
            Err(error) => return Err(self.why_unread(object, &path, error).await),
        };
        let wanted = ranges.iter().map(|range| range.end - range.start);
        match wanted.eq(read.iter().map(|bytes| bytes.len() as u64)) {
            true => Ok(read),
            false => Err(ReadError::damaged(key, "it is shorter than it should be")),
        }
    }

    /// Some stores refuse a range beyond an object's end without saying where that is.
    async fn why_unread(&self, object: &ObjectRef, at: &Path, error: RequestError) -> ReadError {
        match self.request(self.objects().head(at)).await {
            Ok(found) if found.size != object.len => truncated(object, found.size),
            _ => error.reading(&object.key),
        }
    }

    /// Reads a part of an object, and verifies the object's length: its bytes are for the caller to verify.
    pub(crate) async fn get_range(
        &self,
        object: &ObjectRef,
        range: Range<u64>,
    ) -> Result<Bytes, ReadError> {
        let key = &object.key;
        let path = path(key).map_err(|error| ReadError::damaged(key, error.to_string()))?;
        let wanted = range.end - range.start;
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(range)));
        let read = self
            .request(async {
                let found = self.objects().get_opts(&path, options).await?;
                if found.meta.size != object.len {
                    return Ok(Err(truncated(object, found.meta.size)));
                }
                found.bytes().await.map(Ok)
            })
            .await;
        match read {
            Ok(Ok(bytes)) if bytes.len() as u64 == wanted => Ok(bytes),
            Ok(Ok(_)) => Err(ReadError::damaged(key, "it changed while it was read")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(self.why_unread(object, &path, error).await),
        }
    }
}

fn truncated(object: &ObjectRef, found: u64) -> ReadError {
    ReadError::Truncated {
        key: object.key.clone(),
        expected: object.len,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_protocol::manifest::BLOCK_PAGES_MAX;

    /// An image of full blocks at these offsets of one segment.
    fn opened(store: &Store, offsets: &[u64], len: u32) -> StoredImage {
        let mut layout = Layout::default();
        let blocks: Vec<BlockRef> = (0..)
            .zip(offsets)
            .map(|(number, offset)| BlockRef {
                first_page: number * BLOCK_PAGES_MAX,
                pages: BLOCK_PAGES_MAX,
                segment: 0,
                offset: *offset,
                len,
                checksum: 0,
            })
            .collect();
        let object = ObjectRef {
            key: "segment".into(),
            len: u64::MAX,
            hash: [0; 32],
        };
        let memory_bytes = (offsets.len() * BLOCK_PAGES_MAX as usize * PAGE_BYTES) as u64;
        layout.lay_over(memory_bytes, vec![object.clone()], &blocks);
        StoredImage {
            opened: Arc::new(Opened {
                store: store.clone(),
                manifest: object,
                head: ImageHead::default(),
                pieces: layout.pieces(),
                layout,
                deltas: (0, 0),
            }),
        }
    }

    fn requests(offsets: &[u64], len: u32) -> Vec<Range<u64>> {
        let store = Store::open("memory://").unwrap();
        let image = opened(&store, offsets, len);
        let fetches = image.fetches(image.pieces().iter());
        fetches.into_iter().map(|fetch| fetch.range).collect()
    }

    #[test]
    fn neighbours_come_with_one_request_and_distant_blocks_with_their_own() {
        for (offsets, expected) in [
            (&[0, 100, 200][..], vec![(0, 300)]),
            (&[200, 0, 100], vec![(0, 300)]),
            (&[0, 65_636], vec![(0, 65_736)]),
            (&[0, 65_637], vec![(0, 100), (65_637, 65_737)]),
        ] {
            let requests = requests(offsets, 100).into_iter();
            let ends: Vec<_> = requests.map(|range| (range.start, range.end)).collect();
            assert_eq!(ends, expected, "of blocks at {offsets:?}");
        }
    }

    #[test]
    fn places_of_one_file_are_read_together_and_not_too_many() {
        let offsets: Vec<u64> = (0..200).map(|number| number * 200_000).collect();
        let store = Store::open("memory://").unwrap();
        for (len, places_max, expected) in [
            (100, 1, vec![1; 200]),
            (100, 64, vec![64, 64, 64, 8]),
            (60_000, 100, vec![69, 69, 62]),
        ] {
            let image = opened(&store, &offsets, len);
            let mut fetches = image.fetches(image.pieces().iter());
            let of = |all: Vec<Vec<Fetch>>| all.iter().map(Vec::len).collect::<Vec<_>>();
            assert_eq!(of(of_one_file(fetches, places_max)), expected);
            fetches = image.fetches(image.pieces().iter());
            fetches[0].segment.key = "another".into();
            let all = of(of_one_file(fetches, places_max));
            assert_eq!((all[0], all.iter().sum::<usize>()), (1, 200));
        }
    }

    #[test]
    fn a_request_is_for_a_few_megabytes() {
        let offsets: Vec<u64> = (0..1000).map(|number| number * 60_000).collect();
        let requests = requests(&offsets, 60_000);
        assert_eq!(requests.len(), 15);
        assert_eq!(requests.last().unwrap().end, 60_000_000);
        let longest = requests.iter().map(|range| range.end - range.start).max();
        assert!(longest <= Some(REQUEST_BYTES_MAX), "{longest:?}");
    }
}
