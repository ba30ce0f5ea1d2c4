//! The system calls behind write protection and missing pages, with the kernel's structures (`linux/userfaultfd.h`,
//! `linux/fs.h`). Asynchronous write protection never blocks a writer: the kernel itself lifts the protection. An access
//! to a missing page waits until the page is placed.
//!
//! It never maps, unmaps, reads or writes memory that exists, other than its own arguments.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::CAPTURE_PAGE_BYTES;

// Where ioctl numbers are built in the usual way (x86, Arm, RISC-V): direction, size, type, number.
const UFFDIO_API: libc::Ioctl = read_write::<Api>(0xAA, 0x3F);
const UFFDIO_REGISTER: libc::Ioctl = read_write::<Register>(0xAA, 0x00);
const UFFDIO_UNREGISTER: libc::Ioctl = read::<Range>(0xAA, 0x01);
const UFFDIO_WAKE: libc::Ioctl = read::<Range>(0xAA, 0x02);
const UFFDIO_COPY: libc::Ioctl = read_write::<Copy>(0xAA, 0x03);
const UFFDIO_ZEROPAGE: libc::Ioctl = read_write::<ZeroPage>(0xAA, 0x04);
const UFFDIO_WRITEPROTECT: libc::Ioctl = read_write::<WriteProtect>(0xAA, 0x06);
const PAGEMAP_SCAN: libc::Ioctl = read_write::<Scan>(b'f', 16);

const UFFD_API: u64 = 0xAA;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFDIO_REGISTER_MODE_WP: u64 = 2;
const UFFDIO_COPY_MODE_WP: u64 = 2;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;

const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Regions that one scan reports at most; a longer list takes several calls.
const REGIONS_MAX: usize = 4096;

const fn read<T>(kind: u8, number: u8) -> libc::Ioctl {
    (2 << 30 | (size_of::<T>() as u32) << 16 | (kind as u32) << 8 | number as u32) as libc::Ioctl
}

const fn read_write<T>(kind: u8, number: u8) -> libc::Ioctl {
    (3 << 30 | (size_of::<T>() as u32) << 16 | (kind as u32) << 8 | number as u32) as libc::Ioctl
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// `struct uffdio_range`
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_copy`
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    /// What was copied before an error, in bytes; or the error, negated.
    copied: i64,
}

/// `struct uffdio_zeropage`
#[repr(C)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    zeroed: i64,
}

/// `struct uffd_msg`, for page faults
#[repr(C)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// Messages that are read at once.
const MESSAGES_MAX: usize = 16;

/// `struct pm_scan_arg`
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// A userfaultfd in asynchronous write-protect mode. What it watches ends with it.
#[derive(Debug)]
pub(crate) struct Watch(File);

impl Watch {
    /// Asks the kernel for one; a refusal says whose.
    pub(super) fn open() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        // SAFETY: the call takes flags and returns a descriptor or -1; it touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let descriptor = libc::c_int::try_from(result).unwrap_or(-1);
        if descriptor < 0 {
            return Err(said("userfaultfd", &io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
        let watch = Self(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }));
        let mut api = Api {
            api: UFFD_API,
            features: UFFD_FEATURE_WP_ASYNC
                | UFFD_FEATURE_WP_UNPOPULATED
                | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
            ioctls: 0,
        };
        // SAFETY: the argument is the structure that this number belongs to, valid for reads and writes.
        let result = unsafe { libc::ioctl(watch.0.as_raw_fd(), UFFDIO_API, &raw mut api) };
        check(
            "asynchronous write protection (UFFD_FEATURE_WP_ASYNC)",
            result,
        )?;
        Ok(watch)
    }

    /// Watches the mappings in a range from now on, accessible or not.
    pub(super) fn register(&self, start: usize, bytes: usize) -> io::Result<()> {
        self.register_mode(start, bytes, UFFDIO_REGISTER_MODE_WP)
    }

    /// Whoever touches a page of this range that does not exist yet, waits from now on until it is placed. The range is
    /// anonymous memory.
    pub(super) fn await_missing(&self, start: usize, bytes: usize) -> io::Result<()> {
        let mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
        self.register_mode(start, bytes, mode)
    }

    fn register_mode(&self, start: usize, bytes: usize, mode: u64) -> io::Result<()> {
        let mut register = Register {
            start: start as u64,
            len: bytes as u64,
            mode,
            ioctls: 0,
        };
        // SAFETY: the argument is the structure that this number belongs to, valid for reads and writes. The range is
        // only watched: accesses to it have the effect that they had, some of them later.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        check("UFFDIO_REGISTER", result)
    }

    /// Watches a range no longer: pages that do not exist are zero again, and whoever waits for one goes on.
    pub(super) fn unregister(&self, start: usize, bytes: usize) -> io::Result<()> {
        let mut range = Range {
            start: start as u64,
            len: bytes as u64,
        };
        // SAFETY: the argument is the structure that this number belongs to, valid for reads; the call changes no page
        // that exists.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, &raw mut range) };
        check("UFFDIO_UNREGISTER", result)
    }

    /// Lets whoever waits for these pages look again.
    pub(super) fn wake(&self, start: usize, bytes: usize) -> io::Result<()> {
        let mut range = Range {
            start: start as u64,
            len: bytes as u64,
        };
        // SAFETY: the argument is the structure that this number belongs to, valid for reads; the call changes no page.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE, &raw mut range) };
        check("UFFDIO_WAKE", result)
    }

    /// Places pages of zeros where none exist, in a range with no protection yet; they take no memory.
    ///
    /// # Safety
    /// The range is part of a mapping that its owner keeps, and registered with [`Watch::await_missing`].
    pub(super) unsafe fn place_zeros(&self, start: usize, bytes: usize) -> io::Result<()> {
        let mut zero = ZeroPage {
            start: start as u64,
            len: bytes as u64,
            mode: 0,
            zeroed: 0,
        };
        // SAFETY: the argument is the structure that this number belongs to, valid for reads and writes. The kernel only
        // makes pages that do not exist, and by this function's contract they are the caller's.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut zero) };
        check("UFFDIO_ZEROPAGE", result)
    }

    /// Places pages with these contents, protected, where none exist; those that exist stay as they are. Wakes whoever
    /// waits for them.
    ///
    /// # Safety
    /// The range is part of a mapping that its owner keeps, and registered with [`Watch::await_missing`].
    pub(super) unsafe fn place(&self, start: usize, contents: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < contents.len() {
            let mut copy = Copy {
                dst: (start + at) as u64,
                src: contents[at..].as_ptr() as u64,
                len: (contents.len() - at) as u64,
                mode: UFFDIO_COPY_MODE_WP,
                copied: 0,
            };
            // SAFETY: the argument is the structure that this number belongs to, valid for reads and writes; the source
            // is the rest of a slice. The kernel only makes pages that do not exist, which nobody has read, and by this
            // function's contract they are the caller's.
            let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
            match usize::try_from(copy.copied) {
                _ if result == 0 => return Ok(()),
                Ok(copied) if copied > 0 => at += copied,
                _ if copy.copied == -i64::from(libc::EEXIST) => at += CAPTURE_PAGE_BYTES,
                // The page's table was being replaced, as when the kernel makes a huge page of its neighbours: that is
                // over soon, and another thread's to end. (The other cause cannot be: `mmap_changing` is set from a
                // fork, an unmapping or a move until this descriptor has been read, for those alone who ask for such
                // events, and `open` asks for none.)
                _ if copy.copied == -i64::from(libc::EAGAIN) => std::thread::yield_now(),
                _ => return check("UFFDIO_COPY", result),
            }
        }
        Ok(())
    }

    /// Waits until somebody waits for a page, and appends the addresses; or until the other end of `stop` is closed, and
    /// answers `false`.
    pub(super) fn next_missing(
        &self,
        stop: &impl AsFd,
        addresses: &mut Vec<usize>,
    ) -> io::Result<bool> {
        let poll = |descriptor| libc::pollfd {
            fd: descriptor,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut polled = [poll(self.0.as_raw_fd()), poll(stop.as_fd().as_raw_fd())];
        // SAFETY: the argument is an array of this length, valid for reads and writes; both descriptors are open.
        let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(true),
                _ => Err(said("poll", &error)),
            };
        }
        if polled[1].revents != 0 {
            return Ok(false);
        }
        let mut bytes = [0; MESSAGES_MAX * size_of::<Message>()];
        match (&self.0).read(&mut bytes) {
            Ok(read) => {
                let messages = bytes[..read].chunks_exact(size_of::<Message>());
                addresses.extend(messages.filter_map(missing_at));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(said("userfaultfd", &error)),
        }
    }

    /// Protects every page of a registered range, touched or not.
    pub(super) fn protect(&self, start: usize, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let mut protect = WriteProtect {
            start: start as u64,
            len: bytes as u64,
            mode: UFFDIO_WRITEPROTECT_MODE_WP,
        };
        // SAFETY: the argument is the structure that this number belongs to, valid for reads. Protection is
        // asynchronous: a write goes on as if it were not there.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut protect) };
        check("UFFDIO_WRITEPROTECT", result)
    }
}

/// Which pages a scan names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Those written since they were protected, or never protected; they are protected as they are named.
    TakeWritten,
    /// The same, and nothing is protected.
    Written,
    /// Those written since they were protected, or never protected, of those that are the memory's own.
    TouchedAndWritten,
    /// Those that are the memory's own: all others were never written, and are zero.
    Touched,
}

/// This process's page map, and room for what it says.
pub(super) struct PageMap {
    file: File,
    regions: Box<[Region]>,
    /// The size of the host's pages.
    page_bytes: u64,
}

impl std::fmt::Debug for PageMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageMap").finish_non_exhaustive()
    }
}

impl PageMap {
    pub(super) fn open() -> io::Result<Self> {
        let file =
            File::open("/proc/self/pagemap").map_err(|error| said("/proc/self/pagemap", &error))?;
        Ok(Self {
            file,
            regions: vec![Region::default(); REGIONS_MAX].into(),
            page_bytes: page_bytes(),
        })
    }

    /// Calls `found` with the bounds of every run of such pages in a registered range, in ascending order; of so many of
    /// the host's pages at most. Returns how far it came.
    pub(super) fn scan(
        &mut self,
        start: usize,
        end: usize,
        pages: Pages,
        pages_max: Option<u64>,
        found: &mut impl FnMut(usize, usize),
    ) -> io::Result<usize> {
        let touched = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        let (wp, all_of, any_of) = match pages {
            Pages::TakeWritten => (PM_SCAN_WP_MATCHING, PAGE_IS_WRITTEN, 0),
            Pages::Written => (0, PAGE_IS_WRITTEN, 0),
            Pages::TouchedAndWritten => (0, PAGE_IS_WRITTEN | PAGE_IS_PFNZERO, touched),
            Pages::Touched => (0, PAGE_IS_PFNZERO, touched),
        };
        let mut at = start as u64;
        let mut left = pages_max;
        while at < end as u64 && left != Some(0) {
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                flags: PM_SCAN_CHECK_WPASYNC | wp,
                start: at,
                end: end as u64,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                // Zero is no limit.
                max_pages: left.unwrap_or(0),
                // Asked for inverted: not the page of zeros, which is what a read of an untouched page gets.
                category_inverted: all_of & PAGE_IS_PFNZERO,
                category_mask: all_of,
                category_anyof_mask: any_of,
                // Equal categories are what makes neighbouring pages one region.
                return_mask: all_of & PAGE_IS_WRITTEN,
            };
            // SAFETY: the argument is the structure that this number belongs to, valid for reads and writes, and names
            // `regions` with its true length, which outlives the call. The kernel writes nothing else; the range is
            // only protected asynchronously.
            let result = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
            let named = usize::try_from(result)
                .map_err(|_| said("PAGEMAP_SCAN", &io::Error::last_os_error()))?;
            for region in self.regions.iter().take(named) {
                found(region.start as usize, region.end as usize);
                let pages = (region.end - region.start) / self.page_bytes;
                left = left.map(|left| left.saturating_sub(pages));
            }
            if scan.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN does not get on"));
            }
            at = scan.walk_end;
        }
        Ok(at as usize)
    }
}

/// The address that a message is about.
fn missing_at(message: &[u8]) -> Option<usize> {
    const ADDRESS: usize = std::mem::offset_of!(Message, address);
    let address = message.get(ADDRESS..ADDRESS + size_of::<u64>())?;
    let address = u64::from_ne_bytes(address.try_into().ok()?);
    (message[0] == UFFD_EVENT_PAGEFAULT).then_some(address as usize)
}

/// The size of the host's pages, in bytes.
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: the call has no preconditions and touches no memory.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(CAPTURE_PAGE_BYTES as u64)
}

fn check(what: &str, result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(said(what, &io::Error::last_os_error())),
    }
}

fn said(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_kernels() {
        assert_eq!(UFFDIO_API, 0xC018_AA3F);
        assert_eq!(UFFDIO_REGISTER, 0xC020_AA00);
        assert_eq!(UFFDIO_UNREGISTER, 0x8010_AA01);
        assert_eq!(UFFDIO_WAKE, 0x8010_AA02);
        assert_eq!(UFFDIO_COPY, 0xC028_AA03);
        assert_eq!(UFFDIO_ZEROPAGE, 0xC020_AA04);
        assert_eq!(size_of::<Message>(), 32);
        assert_eq!(UFFDIO_WRITEPROTECT, 0xC018_AA06);
        assert_eq!(PAGEMAP_SCAN, 0xC060_6610);
    }
}
