//! The address range behind one linear memory: reserved once for all that 32 bits address, made accessible as the
//! memory grows, and handed from an instance to the one that replaces it. Owning it is what lets a revert keep the
//! pages that did not change, and what tells the kernel which range to watch.
//!
//! It never moves, and never reads or writes a byte of what it holds.

use std::cell::Cell;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

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

    /// Takes back what lies beyond the first `bytes`: inaccessible, and zero when the memory grows into it again.
    pub(crate) fn cut(&mut self, bytes: usize) -> io::Result<()> {
        let accessible = *self.accessible.get_mut();
        if bytes >= accessible {
            return Ok(());
        }
        // SAFETY: the range is inside the accessible part, and no memory is made of the mapping (each holds a
        // reference count of it), so nobody has a reference into the range.
        let beyond = unsafe { self.base.as_ptr().add(bytes) }.cast();
        let beyond_bytes = accessible - bytes;
        *self.accessible.get_mut() = bytes;
        // SAFETY: as above.
        check(unsafe { libc::mprotect(beyond, beyond_bytes, libc::PROT_NONE) })?;
        // SAFETY: as above; the pages are dropped, and read as zeros when they are accessible again.
        check(unsafe { libc::madvise(beyond, beyond_bytes, libc::MADV_DONTNEED) })
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
        // SAFETY: the range is the one that `reserve` mapped, and no memory is made of it any more.
        let result =
            unsafe { libc::munmap(self.base.as_ptr().sub(GUARD_BYTES).cast(), MAPPED_BYTES) };
        debug_assert_eq!(result, 0, "a mapping can be given back");
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
    use super::*;

    #[test]
    fn what_is_cut_off_is_zero_when_the_memory_grows_again() {
        let mut mapping = Mapping::reserve().expect("addresses");
        mapping.grown(3 << 16).expect("memory").fill(7);
        mapping.cut(1 << 16).expect("a system call that works");
        let memory = mapping.grown(3 << 16).expect("memory");
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
