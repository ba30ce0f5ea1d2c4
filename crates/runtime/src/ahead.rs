//! Pages that are copied before their capture, so that less is left to copy in its pause. A page that is written again
//! is copied again, over its first copy.
//!
//! It never gives a page up before a capture has it.

use tidemill_protocol::image::PageRun;

use crate::capture::CaptureRoom;
use crate::dirty::{CAPTURE_PAGE_BYTES, PageRange};

/// The place of a page that has none.
const NOWHERE: u32 = u32::MAX;

/// Copies of pages, in the order in which they were first made.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The page in each place.
    pages: Vec<u32>,
    /// The contents of each place.
    bytes: Vec<u8>,
    /// Each page's place; [`NOWHERE`], or beyond the end, for those without.
    places: Vec<u32>,
}

impl Ahead {
    /// Whether nothing was copied since the last capture.
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The pages that were copied.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = PageRange> {
        self.pages.iter().map(|page| PageRange {
            first: *page as usize,
            pages: 1,
        })
    }

    /// Copies pages, over older copies of them.
    pub(crate) fn copy(&mut self, memory: &[u8], ranges: &[PageRange]) {
        let pages = memory.len() / CAPTURE_PAGE_BYTES;
        if self.places.len() < pages {
            self.places.resize(pages, NOWHERE);
        }
        for page in ranges
            .iter()
            .flat_map(|range| range.first..range.first + range.pages)
        {
            let start = page * CAPTURE_PAGE_BYTES;
            let contents = &memory[start..start + CAPTURE_PAGE_BYTES];
            let place = &mut self.places[page];
            if *place == NOWHERE {
                *place = self.pages.len() as u32;
                self.pages.push(page as u32);
                self.bytes.extend_from_slice(contents);
            } else {
                let at = *place as usize * CAPTURE_PAGE_BYTES;
                self.bytes[at..at + CAPTURE_PAGE_BYTES].copy_from_slice(contents);
            }
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        for page in self.pages.drain(..) {
            self.places[page as usize] = NOWHERE;
        }
        self.bytes.clear();
    }

    /// Moves everything to a capture, and takes its buffer for what comes next.
    pub(crate) fn move_to(&mut self, room: &mut CaptureRoom) {
        room.runs.clear();
        for page in &self.pages {
            match room.runs.last_mut() {
                Some(last) if last.first + last.pages == *page => last.pages += 1,
                _ => room.runs.push(PageRun {
                    first: *page,
                    pages: 1,
                    zero: false,
                }),
            }
        }
        std::mem::swap(&mut room.bytes, &mut self.bytes);
        self.clear();
    }
}
