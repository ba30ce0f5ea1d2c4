//! One image file: a memory as it is, page after page, zeros left out as holes. It has no name in its directory, so that
//! nothing of it outlives the process, however that ends.
//!
//! It never knows which image it is, and never writes to a file that it has given away to be mapped: that is its
//! owner's care.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use tidemill_protocol::image::{PAGE_BYTES, PageRun, StoredCapture};

/// How much is read from a file at once.
const READ_BYTES_MAX: usize = 1 << 20;

/// A sparse file.
#[derive(Debug)]
pub(crate) struct ImageFile {
    file: Arc<File>,
    bytes: u64,
}

impl ImageFile {
    /// A memory of zeros.
    pub(super) fn create(directory: &Path, bytes: u64) -> io::Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        file.set_len(bytes)?;
        Ok(Self {
            file: Arc::new(file),
            bytes,
        })
    }

    /// The same file, for whoever reads or maps it.
    pub(super) fn share(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// The same file once more, to be copied.
    pub(super) fn another(&self) -> Self {
        Self {
            file: self.share(),
            bytes: self.bytes,
        }
    }

    /// Another file with the same contents. Where the file system can, they share their blocks.
    pub(super) fn copy(&self, directory: &Path) -> io::Result<Self> {
        let copy = Self::create(directory, self.bytes)?;
        if rustix::fs::ioctl_ficlone(&copy.file, &self.file).is_ok() {
            return Ok(copy);
        }
        let mut at = 0;
        while let Some(start) = self.seek(at, Seek::Data)? {
            at = self.seek(start, Seek::Hole)?.unwrap_or(self.bytes);
            copy.copy_range(&self.file, start, at)?;
        }
        Ok(copy)
    }

    fn copy_range(&self, from: &File, mut start: u64, end: u64) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES_MAX.min((end - start) as usize)];
        while start < end {
            let part = buffer.len().min((end - start) as usize);
            from.read_exact_at(&mut buffer[..part], start)?;
            self.file.write_all_at(&buffer[..part], start)?;
            start += part as u64;
        }
        Ok(())
    }

    /// Where data or a hole begins; `None` when there is none any more.
    fn seek(&self, from: u64, what: Seek) -> io::Result<Option<u64>> {
        if from >= self.bytes {
            return Ok(None);
        }
        let from = match what {
            Seek::Data => rustix::fs::SeekFrom::Data(from),
            Seek::Hole => rustix::fs::SeekFrom::Hole(from),
        };
        match rustix::fs::seek(&self.file, from) {
            Ok(at) => Ok(Some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The memory has this size; what it gains is zero.
    pub(super) fn resize(&mut self, bytes: u64) -> io::Result<()> {
        if bytes != self.bytes {
            self.file.set_len(bytes)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Makes it what the capture says.
    ///
    /// # Errors
    /// When the system refuses, or the capture contradicts itself; it is undefined then.
    pub(super) fn lay_over(&mut self, capture: &StoredCapture) -> io::Result<()> {
        self.resize(capture.memory_bytes)?;
        let mut rest = capture.bytes.as_slice();
        let mut runs = capture.runs.iter().copied().peekable();
        while let Some(mut run) = runs.next() {
            // Neighbours whose bytes are neighbours too are written together.
            while let Some(next) =
                runs.next_if(|next| next.zero == run.zero && next.first as usize == run.end())
            {
                run.pages += next.pages;
            }
            if run.zero {
                self.clear(run)?;
                continue;
            }
            let len = run.memory_range().len();
            let (bytes, after) = rest
                .split_at_checked(len)
                .ok_or_else(|| io::Error::other("a capture has fewer bytes than its runs say"))?;
            rest = after;
            self.write(run, bytes)?;
        }
        Ok(())
    }

    /// Writes pages.
    pub(super) fn write(&self, run: PageRun, bytes: &[u8]) -> io::Result<()> {
        if run.memory_range().end as u64 > self.bytes {
            return Err(io::Error::other("pages are beyond the memory's end"));
        }
        self.file
            .write_all_at(bytes, run.memory_range().start as u64)
    }

    /// Makes pages zero.
    pub(super) fn clear(&self, run: PageRun) -> io::Result<()> {
        let place = run.memory_range();
        let (start, end) = (place.start as u64, (place.end as u64).min(self.bytes));
        if start >= end {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, hole, start, end - start) {
            Ok(()) => Ok(()),
            // Not every file system has holes.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeros = [0; PAGE_BYTES];
                (start..end)
                    .step_by(PAGE_BYTES)
                    .try_for_each(|at| self.file.write_all_at(&zeros, at))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What it takes of the disk.
    pub(super) fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

/// What is looked for in a file.
#[derive(Clone, Copy)]
enum Seek {
    Data,
    Hole,
}

/// Hands over pages of an image file.
///
/// # Errors
/// When it cannot be read, for people.
pub(crate) fn read_runs(
    file: &File,
    wanted: &[PageRun],
    lay: &mut dyn FnMut(PageRun, &[u8]),
) -> Result<(), String> {
    let mut buffer = Vec::new();
    for run in wanted.iter().filter(|run| !run.zero) {
        let mut first = run.first;
        while (first as usize) < run.end() {
            let pages = (run.end() - first as usize).min(READ_BYTES_MAX / PAGE_BYTES) as u32;
            let part = PageRun {
                first,
                pages,
                zero: false,
            };
            let place = part.memory_range();
            buffer.resize(place.len(), 0);
            file.read_exact_at(&mut buffer, place.start as u64)
                .map_err(|error| format!("the local image cannot be read: {error}"))?;
            lay(part, &buffer);
            first += pages;
        }
    }
    Ok(())
}
