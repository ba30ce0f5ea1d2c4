//! Changes by comparison: a hash of every page as it was. For kernels and containers where writes cannot be watched.
//! It never trusts a hash that could collide by accident: 128 bits of BLAKE3.

use std::io;

use super::{CAPTURE_PAGE_BYTES, DirtyMethod, DirtyTracker, PageRange, ZEROS, push};

type PageHash = [u8; 16];

/// What a page of zeros has, so that memory which nobody ever wrote costs a comparison only.
const HASH_OF_ZEROS: PageHash = [0; 16];

/// Remembers a hash of each page.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    hashes: Vec<PageHash>,
}

impl DirtyTracker for Hashes {
    fn method(&self) -> DirtyMethod {
        DirtyMethod::Hashes
    }

    fn reset(&mut self, memory: &[u8]) -> io::Result<()> {
        self.hashes.clear();
        self.hashes
            .extend(memory.chunks_exact(CAPTURE_PAGE_BYTES).map(hash));
        Ok(())
    }

    fn take_dirty(&mut self, memory: &[u8], dirty: &mut Vec<PageRange>) -> io::Result<()> {
        let pages = memory.len() / CAPTURE_PAGE_BYTES;
        self.hashes.resize(pages, HASH_OF_ZEROS);
        let pages = memory.chunks_exact(CAPTURE_PAGE_BYTES);
        for (first, (page, known)) in pages.zip(&mut self.hashes).enumerate() {
            let found = hash(page);
            if *known != found {
                *known = found;
                push(dirty, PageRange { first, pages: 1 });
            }
        }
        Ok(())
    }
}

fn hash(page: &[u8]) -> PageHash {
    if *page == ZEROS {
        return HASH_OF_ZEROS;
    }
    let mut hash = HASH_OF_ZEROS;
    hash.copy_from_slice(&blake3::hash(page).as_bytes()[..size_of::<PageHash>()]);
    hash
}
