//! Everything is dirty: right where memories are small or mostly rewritten. It never remembers anything.

use std::io;

use super::{DirtyMethod, DirtyTracker, PageRange, all, push};

/// Counts every page as changed.
#[derive(Debug)]
pub(crate) struct Whole;

impl DirtyTracker for Whole {
    fn method(&self) -> DirtyMethod {
        DirtyMethod::Whole
    }

    fn reset(&mut self, _memory: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn take_dirty(&mut self, memory: &[u8], dirty: &mut Vec<PageRange>) -> io::Result<()> {
        push(dirty, all(memory));
        Ok(())
    }
}
