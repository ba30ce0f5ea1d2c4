//! One image file: a memory as it is, page after page, zeros left out as holes. It keeps its name while it is in use: the
//! kernel would have to free a nameless file before it closes the connections of a killed process, by which others learn
//! that it is gone (0.2 s for each GiB on ext4).
//!
//! It never knows which image it is. It recalls what it has lent before it changes; that it never changes a file that
//! is mapped is its owner's care.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::FallocateFlags;
use tempfile::TempPath;
use tidemill_protocol::image::{PAGE_BYTES, PageRun, StoredCapture};

use super::loan::Loan;

/// How much is read from a file at once.
const READ_BYTES_MAX: usize = 1 << 20;

/// How much is written to a file at once. The kernel keeps what is written at once in one piece of its page cache, and
/// goes through the whole piece at each later write to one of its pages: after writes of 1 MiB, single pages took 17 µs
/// each on ext4, and 3 µs after writes of this size.
const WRITE_BYTES_MAX: usize = 16 << 10;

/// How many pages are written before it is asked whether to go on: 1 MiB, some milliseconds.
const PART_PAGES: u32 = 256;

/// A sparse file.
#[derive(Debug)]
pub(crate) struct ImageFile {
    file: Arc<File>,
    /// Removed with the last that has it. Whoever still maps the file does not need it.
    name: Arc<TempPath>,
    bytes: u64,
    /// To whoever reads it as it is now.
    lent: OnceLock<Loan>,
}

impl ImageFile {
    /// A memory of zeros.
    pub(super) fn create(directory: &Path, bytes: u64) -> io::Result<Self> {
        let named = tempfile::Builder::new()
            .prefix("image-")
            .tempfile_in(directory)?;
        let (file, name) = named.into_parts();
        file.set_len(bytes)?;
        Ok(Self {
            file: Arc::new(file),
            name: Arc::new(name),
            bytes,
            lent: OnceLock::new(),
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
            name: Arc::clone(&self.name),
            bytes: self.bytes,
            lent: OnceLock::new(),
        }
    }

    /// The file as it is now, for others to read.
    pub(super) fn lend(&self) -> Loan {
        let lent = || Loan::new(self.share(), self.bytes);
        self.lent.get_or_init(lent).clone()
    }

    /// Whether others are reading it.
    pub(super) fn is_in_use(&self) -> bool {
        self.lent.get().is_some_and(Loan::is_in_use)
    }

    /// It is about to change.
    fn recall(&mut self) {
        if let Some(loan) = self.lent.take() {
            loan.recall();
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
            self.write_at(&buffer[..part], start)?;
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
            self.recall();
            self.file.set_len(bytes)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Makes it what the capture says, if `goes_on` stays true, which is asked again and again.
    ///
    /// # Errors
    /// When the system refuses, the capture contradicts itself, or it is not to go on; the file is undefined then.
    pub(super) fn lay_over(
        &mut self,
        capture: &StoredCapture,
        goes_on: &dyn Fn() -> bool,
    ) -> io::Result<()> {
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
            let first = run.first;
            for (index, bytes) in (0..).zip(bytes.chunks(PART_PAGES as usize * PAGE_BYTES)) {
                if !goes_on() {
                    return Err(io::Error::other("it is not wanted any more"));
                }
                let part = PageRun {
                    first: first + index * PART_PAGES,
                    pages: (bytes.len() / PAGE_BYTES) as u32,
                    zero: false,
                };
                self.write(part, bytes)?;
            }
        }
        Ok(())
    }

    /// Writes pages.
    pub(super) fn write(&mut self, run: PageRun, bytes: &[u8]) -> io::Result<()> {
        if run.memory_range().end as u64 > self.bytes {
            return Err(io::Error::other("pages are beyond the memory's end"));
        }
        self.recall();
        self.write_at(bytes, run.memory_range().start as u64)
    }

    fn write_at(&self, bytes: &[u8], mut at: u64) -> io::Result<()> {
        for part in bytes.chunks(WRITE_BYTES_MAX) {
            self.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes pages zero.
    pub(super) fn clear(&mut self, run: PageRun) -> io::Result<()> {
        let place = run.memory_range();
        let (start, end) = (place.start as u64, (place.end as u64).min(self.bytes));
        if start >= end {
            return Ok(());
        }
        self.recall();
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
