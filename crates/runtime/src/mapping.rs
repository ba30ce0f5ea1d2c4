//! The address range behind one linear memory: reserved once for all that 32 bits address, made accessible as the
//! memory grows, and handed from an instance to the one that replaces it. Owning it is what lets a revert keep the
//! pages that did not change, and what tells the kernel which range to watch.
//!
//! It never moves, and never reads a byte of what it holds.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

use crate::dirty::{Missing, host_page_bytes};

/// What compiled code may address without a check of its own: every 32-bit address, and every constant offset that is
/// smaller than the guard. The engine is configured with both.
pub(crate) const RESERVED_BYTES: usize = 1 << 32;
/// Inaccessible bytes before and after.
pub(crate) const GUARD_BYTES: usize = 32 << 20;
const MAPPED_BYTES: usize = GUARD_BYTES + RESERVED_BYTES + GUARD_BYTES;

thread_local! {
    /// What the next memory on this thread is to be made of: wasmtime asks for a memory in the middle of an
    /// instantiation, and passes nothing on.
    static NEXT: Cell<Option<Arc<Mapping>>> = const { Cell::new(None) };
}

/// A reserved range of addresses whose first bytes are accessible, and zero until written.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The first byte of the memory; a guard lies before it.
    base: NonNull<u8>,
    /// How many bytes from `base` on can be read and written.
    accessible: AtomicUsize,
    /// The pages of it that are placed by other threads.
    missing: Mutex<Option<Arc<Missing>>>,
}

// SAFETY: the pointer is an address range that this value alone owns; nothing in it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference only the bounds change, atomically, and they only grow.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves a range; nothing of it is accessible, and it takes no memory.
    pub(crate) fn reserve() -> io::Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MAPPED_BYTES,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the guard is a part of the mapping, so the sum stays within it.
        let base = unsafe { start.cast::<u8>().add(GUARD_BYTES) };
        Ok(Self {
            base: NonNull::new(base).expect("a mapping plus its guard is not at address zero"),
            accessible: AtomicUsize::new(0),
            missing: Mutex::new(None),
        })
    }

    /// The address of the memory's first byte.
    pub(crate) fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Makes the first `bytes` accessible; what was not before is zero. Never less than before.
    fn grow(&self, bytes: usize) -> io::Result<()> {
        let accessible = self.accessible.load(Ordering::Relaxed);
        if bytes <= accessible {
            return Ok(());
        }
        if bytes > RESERVED_BYTES {
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        // SAFETY: the range is inside the reservation, and making it accessible invalidates nothing.
        let result = unsafe {
            libc::mprotect(
                self.base.as_ptr().add(accessible).cast(),
                bytes - accessible,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        check(result)?;
        self.accessible.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Takes back what lies beyond the first `bytes`: inaccessible, unwatched, and zero when the memory grows into it
    /// again. Returns how many of the first bytes are what they were, or will be when all of their pages have come; the
    /// others are taken back too.
    pub(crate) fn cut(&mut self, bytes: usize) -> io::Result<usize> {
        let missing = self
            .missing
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let kept = match missing {
            Some(pages) if !pages.is_whole() || (pages.is_open() && bytes < pages.bytes()) => {
                pages.close();
                *missing = None;
                0
            }
            _ => bytes,
        };
        let accessible = *self.accessible.get_mut();
        if kept >= accessible {
            return Ok(accessible);
        }
        // SAFETY: the range is inside the accessible part, and no memory is made of the mapping (each holds a
        // reference count of it), so nobody has a reference into the range.
        let beyond = unsafe { self.base.as_ptr().add(kept) };
        *self.accessible.get_mut() = kept;
        // SAFETY: as above. A fresh mapping, rather than other rights and no contents: where a file was mapped, its
        // contents would come again.
        unsafe { replace(beyond, accessible - kept, libc::PROT_NONE, None) }?;
        Ok(kept)
    }

    /// Drops what a memory holds that is made of this mapping: it is zero again, and takes no room.
    pub(crate) fn clear(&self, memory: &mut [u8]) -> io::Result<()> {
        self.check_own(memory)?;
        // SAFETY: by `&mut` nobody else refers to the range, whose bytes change as if they were written.
        check(unsafe {
            libc::madvise(
                memory.as_mut_ptr().cast(),
                memory.len(),
                libc::MADV_DONTNEED,
            )
        })
    }

    /// Maps a file's first bytes, copy-on-write, as the first bytes of a memory that is made of this mapping.
    pub(crate) fn map_file(&self, memory: &mut [u8], file: &File) -> io::Result<()> {
        self.check_own(memory)?;
        let file_bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        // The rest of the last page is zero, as far as the file does not grow.
        let page_bytes = host_page_bytes();
        let bytes = file_bytes.min(memory.len()).next_multiple_of(page_bytes);
        if bytes == 0 {
            return Ok(());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a memory is made of whole pages, so the range is inside it, and by `&mut` nobody else refers to it: its
        // bytes change as if they were written.
        unsafe { replace(memory.as_mut_ptr(), bytes, access, Some(file)) }
    }

    /// Pages of the memory that is made of this mapping are placed by other threads, until it is given back.
    pub(crate) fn awaits(&self, missing: Arc<Missing>) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(missing);
    }

    /// No pages are placed by others after all.
    pub(crate) fn forgets(&self) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(missing) = missing.take() {
            missing.close();
        }
    }

    fn check_own(&self, memory: &[u8]) -> io::Result<()> {
        let own = memory.as_ptr() as usize == self.address()
            && memory.len() <= self.accessible.load(Ordering::Relaxed);
        own.then_some(())
            .ok_or_else(|| io::Error::other("the memory is made of another mapping"))
    }

    /// Runs an instantiation whose memory is made of this mapping.
    pub(crate) fn lend<R>(self: &Arc<Self>, instantiate: impl FnOnce() -> R) -> R {
        NEXT.set(Some(Arc::clone(self)));
        let result = instantiate();
        NEXT.set(None);
        result
    }

    /// Its first `bytes`, when no memory of an instance is made of it.
    pub(crate) fn grown(&mut self, bytes: usize) -> io::Result<&mut [u8]> {
        self.grow(bytes)?;
        // SAFETY: the range is accessible, the kernel has made it zeros, and by `&mut` nobody else refers to it.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), bytes) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let missing = self
            .missing
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(missing) = missing {
            // Nothing may be placed where another mapping may lie a moment later.
            missing.close();
        }
        // SAFETY: the range is the one that `reserve` mapped, and no memory is made of it any more.
        let result =
            unsafe { libc::munmap(self.base.as_ptr().sub(GUARD_BYTES).cast(), MAPPED_BYTES) };
        debug_assert_eq!(result, 0, "a mapping can be given back");
    }
}

/// Puts a fresh private mapping, of a file or of zeros, where pages were.
///
/// # Safety
/// The range is whole pages of a mapping of the caller's, and nobody refers to it who does not expect its bytes to change.
unsafe fn replace(
    at: *mut u8,
    bytes: usize,
    access: libc::c_int,
    file: Option<&File>,
) -> io::Result<()> {
    let (flags, descriptor) = match file {
        Some(file) => (libc::MAP_PRIVATE, file.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    let flags = flags | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: by this function's contract only pages of the caller's are replaced.
    let result = unsafe { libc::mmap(at.cast(), bytes, access, flags, descriptor, 0) };
    match result == libc::MAP_FAILED {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes memories of the mappings that [`Mapping::lend`] offers.
pub(crate) struct Mappings;

// SAFETY: the memories lie at fixed addresses, in a reservation and between guards as large as the engine is
// configured for, and stay mapped until wasmtime drops them.
unsafe impl MemoryCreator for Mappings {
    fn new_memory(
        &self,
        _ty: MemoryType,
        minimum: usize,
        _maximum: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let mapping = NEXT
            .take()
            .ok_or("a module has one memory, and this is another")?;
        if reserved_size_in_bytes.is_some_and(|wanted| wanted > RESERVED_BYTES)
            || guard_size_in_bytes > GUARD_BYTES
        {
            return Err("compiled for a larger reservation or guard than memories have".to_owned());
        }
        mapping.grow(minimum).map_err(|error| error.to_string())?;
        Ok(Box::new(Lent {
            mapping,
            bytes: minimum,
        }))
    }
}

/// A memory of an instance.
struct Lent {
    mapping: Arc<Mapping>,
    bytes: usize,
}

// SAFETY: the pointer stays the same for the life of the value, and the first `bytes` from it are accessible.
unsafe impl LinearMemory for Lent {
    fn byte_size(&self) -> usize {
        self.bytes
    }

    fn byte_capacity(&self) -> usize {
        RESERVED_BYTES
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        self.mapping.grow(new_size)?;
        self.bytes = new_size;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.mapping.base.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_cut_off_is_zero_when_the_memory_grows_again() {
        let mut mapping = Mapping::reserve().expect("addresses");
        mapping.grown(3 << 16).expect("memory").fill(7);
        assert_eq!(
            mapping.cut(1 << 16).expect("a system call that works"),
            1 << 16
        );
        let memory = mapping.grown(3 << 16).expect("memory");
        assert!(memory[..1 << 16].iter().all(|byte| *byte == 7));
        assert!(memory[1 << 16..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_file_is_mapped_and_what_is_cut_off_of_it_does_not_come_again() {
        let mut mapping = Mapping::reserve().expect("addresses");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&vec![7; (2 << 16) + 100])
            .expect("it is written");
        mapping.grown(4 << 16).expect("memory").fill(9);
        let address = mapping.address();
        let shared = Arc::new(mapping);
        // SAFETY: the range is accessible, and nobody else refers to it.
        let memory = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, 4 << 16) };
        shared.clear(memory).expect("it is its own");
        shared.map_file(memory, &file).expect("it can be mapped");
        assert!(memory[..(2 << 16) + 100].iter().all(|byte| *byte == 7));
        assert!(memory[(2 << 16) + 100..].iter().all(|byte| *byte == 0));
        assert!(shared.clear(&mut [0; 4096]).is_err());
        let mut mapping = Arc::into_inner(shared).expect("the only one");
        mapping.cut(1 << 16).expect("a system call that works");
        let memory = mapping.grown(4 << 16).expect("memory");
        assert!(memory[..1 << 16].iter().all(|byte| *byte == 7));
        assert!(memory[1 << 16..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_memory_never_grows_beyond_its_reservation() {
        let mapping = Mapping::reserve().expect("addresses");
        assert!(mapping.grow(RESERVED_BYTES + 1).is_err());
        mapping
            .grow(RESERVED_BYTES)
            .expect("untouched pages take no room");
    }
}
