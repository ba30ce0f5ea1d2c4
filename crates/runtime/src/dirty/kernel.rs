//! The three system calls behind write protection, with the kernel's structures (`linux/userfaultfd.h`, `linux/fs.h`).
//! Asynchronous write protection never blocks a writer: the kernel itself lifts the protection, so nothing here can
//! make another thread's access fail or wait.
//!
//! It never maps, unmaps, reads or writes memory other than its own arguments.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::CAPTURE_PAGE_BYTES;

// Where ioctl numbers are built in the usual way (x86, Arm, RISC-V): direction, size, type, number.
const UFFDIO_API: libc::Ioctl = read_write::<Api>(0xAA, 0x3F);
const UFFDIO_REGISTER: libc::Ioctl = read_write::<Register>(0xAA, 0x00);
const UFFDIO_WRITEPROTECT: libc::Ioctl = read_write::<WriteProtect>(0xAA, 0x06);
const PAGEMAP_SCAN: libc::Ioctl = read_write::<Scan>(b'f', 16);

const UFFD_API: u64 = 0xAA;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 2;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;

const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Regions that one scan reports at most; a longer list takes several calls.
const REGIONS_MAX: usize = 4096;

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
pub(super) struct Watch(OwnedFd);

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
        let watch = Self(unsafe { OwnedFd::from_raw_fd(descriptor) });
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
        let mut register = Register {
            start: start as u64,
            len: bytes as u64,
            mode: UFFDIO_REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: the argument is the structure that this number belongs to, valid for reads and writes. The range is
        // only watched: accesses to it do what they did.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        check("UFFDIO_REGISTER", result)
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

fn page_bytes() -> u64 {
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
        assert_eq!(UFFDIO_WRITEPROTECT, 0xC018_AA06);
        assert_eq!(PAGEMAP_SCAN, 0xC060_6610);
    }
}
