//! What changed in an instance between two captures: runs of pages with their contents, and what lies outside memory.
//! Free of host details, as an image is.
//!
//! It never says where it is stored, and never touches a live memory: [`Capture::lay_over`] builds images.

use std::time::Duration;

use tidemill_protocol::Image;
use tidemill_protocol::image::{GlobalValue, PageRun, StoredCapture};

use crate::dirty::{CAPTURE_PAGE_BYTES, DirtyMethod, PageRange, ZEROS};

/// What an instance has become since an earlier capture, or, with no base, all that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// This capture's number within the task. It grows by one from capture to capture.
    pub sequence: u64,
    /// The capture that this one adds to: always the one before. `None`: it is whole.
    pub base: Option<u64>,
    /// The size of the linear memory, in bytes. Where it is more than the base's, or there is no base, pages that no
    /// run names are zero.
    pub memory_bytes: u64,
    /// Pages that may differ from the base's, disjoint; ascending where nothing was captured ahead.
    pub runs: Vec<PageRun>,
    /// The contents of all runs that are not zero, one after the other.
    pub bytes: Vec<u8>,
    /// Every mutable global, in index order.
    pub globals: Vec<GlobalValue>,
    /// Every table that the module can change, in index order: function indices, `None` for null.
    pub tables: Vec<Vec<Option<u32>>>,
    /// What the pause was spent on.
    pub cost: CaptureCost,
}

/// What a capture cost the task, which waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureCost {
    /// How changed pages were found; [`DirtyMethod::Whole`] when all were taken.
    pub method: DirtyMethod,
    /// Finding them, and protecting them again.
    pub scan: Duration,
    /// Copying them.
    pub copy: Duration,
}

/// Why a capture cannot be laid over an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayError {
    /// The image is larger than the memory was: it is of a later moment, or of another task.
    #[error(
        "the image's memory of {image_bytes} bytes is larger than the capture's {memory_bytes}"
    )]
    Larger {
        /// The image's memory, in bytes.
        image_bytes: u64,
        /// The memory's size at the capture, in bytes.
        memory_bytes: u64,
    },
    /// The runs and the bytes contradict each other, or the runs leave the memory.
    #[error("the capture is damaged: its runs do not fit its memory or its bytes")]
    Damaged,
}

impl Capture {
    /// The runs, each with its contents; `None` for zeros. Nothing after a run whose contents are missing.
    pub fn contents(&self) -> impl Iterator<Item = (PageRun, Option<&[u8]>)> {
        let mut rest = self.bytes.as_slice();
        self.runs.iter().map_while(move |run| {
            if run.zero {
                return Some((*run, None));
            }
            let (bytes, after) = rest.split_at_checked(run.memory_range().len())?;
            rest = after;
            Some((*run, Some(bytes)))
        })
    }

    /// How many pages the runs name.
    #[must_use]
    pub fn changed_pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.pages)).sum()
    }

    /// Makes the base's image this capture's. A whole capture goes over an empty image. `host_state` stays.
    ///
    /// # Errors
    /// When the image cannot be the base's, or the capture is damaged; the image is then undefined.
    pub fn lay_over(&self, image: &mut Image) -> Result<(), LayError> {
        let image_bytes = image.memory.len() as u64;
        let memory_bytes = self.memory_bytes;
        if image_bytes > memory_bytes {
            return Err(LayError::Larger {
                image_bytes,
                memory_bytes,
            });
        }
        let len = usize::try_from(memory_bytes).map_err(|_| LayError::Damaged)?;
        image.memory.resize(len, 0);
        let mut laid = 0;
        for (run, bytes) in self.contents() {
            let room = image.memory.get_mut(run.memory_range());
            let room = room.ok_or(LayError::Damaged)?;
            match bytes {
                Some(bytes) => room.copy_from_slice(bytes),
                None => room.fill(0),
            }
            laid += 1;
        }
        if laid != self.runs.len() {
            return Err(LayError::Damaged);
        }
        image.globals.clone_from(&self.globals);
        image.tables.clone_from(&self.tables);
        Ok(())
    }

    /// What is stored of it. The host's part is still empty.
    #[must_use]
    pub fn into_stored(self) -> StoredCapture {
        StoredCapture {
            memory_bytes: self.memory_bytes,
            runs: self.runs,
            bytes: self.bytes,
            globals: self.globals,
            tables: self.tables,
            host_state: Vec::new(),
            channel_state: Vec::new(),
        }
    }

    /// What the next capture can be written into. Its memory is warm: on a fresh buffer the kernel spends more time
    /// than the copy takes.
    #[must_use]
    pub fn into_room(self) -> CaptureRoom {
        CaptureRoom {
            runs: self.runs,
            bytes: self.bytes,
        }
    }
}

/// Buffers for a capture, kept from an earlier one.
#[derive(Debug, Default)]
pub struct CaptureRoom {
    pub(crate) runs: Vec<PageRun>,
    pub(crate) bytes: Vec<u8>,
}

impl From<StoredCapture> for CaptureRoom {
    fn from(stored: StoredCapture) -> Self {
        Self {
            runs: stored.runs,
            bytes: stored.bytes,
        }
    }
}

impl CaptureRoom {
    /// Makes room for this many bytes of pages and touches it, so that the task does not wait for the kernel to find
    /// memory. To be called where nobody waits.
    pub fn warm(&mut self, bytes: usize) {
        self.bytes.clear();
        if self.bytes.capacity() < bytes {
            self.bytes.resize(bytes, 0);
            // Zeros may come from the kernel untouched; a byte in each page is then written for its own sake.
            self.bytes
                .chunks_mut(CAPTURE_PAGE_BYTES)
                .for_each(|page| page[0] = std::hint::black_box(1));
            self.bytes.clear();
        }
    }

    /// How many bytes of pages it holds without growing.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Copies ranges of a memory, zeros left out.
    pub(crate) fn copy(&mut self, memory: &[u8], ranges: &[PageRange]) {
        self.runs.clear();
        self.bytes.clear();
        let pages: usize = ranges.iter().map(|range| range.pages).sum();
        self.bytes.reserve(pages * CAPTURE_PAGE_BYTES);
        for page in ranges
            .iter()
            .flat_map(|range| range.first..range.first + range.pages)
        {
            let start = page * CAPTURE_PAGE_BYTES;
            let contents = &memory[start..start + CAPTURE_PAGE_BYTES];
            // Compared and copied page by page, while it is in the processor's cache.
            let zero = *contents == ZEROS;
            if !zero {
                self.bytes.extend_from_slice(contents);
            }
            match self.runs.last_mut() {
                Some(last) if last.zero == zero && last.end() == page => last.pages += 1,
                _ => self.runs.push(PageRun {
                    first: page as u32,
                    pages: 1,
                    zero,
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = CAPTURE_PAGE_BYTES;

    fn capture(memory: &[u8], ranges: &[PageRange]) -> Capture {
        let mut room = CaptureRoom::default();
        room.copy(memory, ranges);
        Capture {
            sequence: 2,
            base: Some(1),
            memory_bytes: memory.len() as u64,
            runs: room.runs,
            bytes: room.bytes,
            globals: Vec::new(),
            tables: Vec::new(),
            cost: CaptureCost {
                method: DirtyMethod::Whole,
                scan: Duration::ZERO,
                copy: Duration::ZERO,
            },
        }
    }

    fn whole(memory: &[u8]) -> Capture {
        let pages = memory.len() / PAGE;
        capture(memory, &[PageRange { first: 0, pages }])
    }

    fn run(first: u32, pages: u32, zero: bool) -> PageRun {
        PageRun { first, pages, zero }
    }

    #[test]
    fn zeros_carry_no_bytes() {
        let mut memory = vec![0; 6 * PAGE];
        memory[2 * PAGE..4 * PAGE].fill(7);
        let capture = whole(&memory);
        assert_eq!(
            capture.runs,
            [run(0, 2, true), run(2, 2, false), run(4, 2, true)]
        );
        assert_eq!(capture.bytes.len(), 2 * PAGE);
        let mut image = Image::default();
        capture.lay_over(&mut image).expect("it is whole");
        assert_eq!(image.memory, memory);
    }

    #[test]
    fn only_what_is_named_changes_and_zeros_overwrite() {
        let mut image = Image {
            memory: vec![9; 3 * PAGE],
            ..Image::default()
        };
        let mut memory = vec![9; 4 * PAGE];
        memory[PAGE..2 * PAGE].fill(0);
        memory[3 * PAGE..].fill(0);
        let change = capture(&memory, &[PageRange { first: 1, pages: 1 }]);
        change.lay_over(&mut image).expect("it is the base");
        assert_eq!(image.memory, memory);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut later = Image {
            memory: vec![0; 2 * PAGE],
            ..Image::default()
        };
        let mut damaged = whole(&[1; PAGE]);
        assert_eq!(
            damaged.lay_over(&mut later),
            Err(LayError::Larger {
                image_bytes: 2 * PAGE as u64,
                memory_bytes: PAGE as u64
            })
        );
        damaged.runs[0].first = 1;
        assert_eq!(
            damaged.lay_over(&mut Image::default()),
            Err(LayError::Damaged)
        );
        damaged.runs[0].first = 0;
        damaged.bytes.pop();
        assert_eq!(
            damaged.lay_over(&mut Image::default()),
            Err(LayError::Damaged)
        );
    }
}
