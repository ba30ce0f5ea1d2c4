//! The image: what restores one task exactly. Free of host details (byte order, pointers, page size), so that
//! another machine can lay it over a new instance. It never says where it is stored; [`crate::manifest`] does.

use alloc::vec::Vec;
use core::ops::Range;
use serde::{Deserialize, Serialize};

/// Everything a task is, captured between two guest calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The whole linear memory; a multiple of 64 KiB. Empty for a native task.
    pub memory: Vec<u8>,
    /// Every mutable global, in index order.
    pub globals: Vec<GlobalValue>,
    /// Every table that the module can change, in index order: function indices, `None` for null.
    pub tables: Vec<Vec<Option<u32>>>,
    /// The host's part, opaque here: positions, pending commits, ended channels.
    pub host_state: Vec<u8>,
    /// Frames that were taken from channels before their barriers came, opaque here.
    pub channel_state: Vec<u8>,
}

/// An image without the bytes of its memory, which may be elsewhere or come later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageHead {
    /// The linear memory's size in bytes, a multiple of [`PAGE_BYTES`]; 0 for a native task.
    pub memory_bytes: u64,
    /// As in [`Image::globals`].
    pub globals: Vec<GlobalValue>,
    /// As in [`Image::tables`].
    pub tables: Vec<Vec<Option<u32>>>,
    /// As in [`Image::host_state`].
    pub host_state: Vec<u8>,
    /// As in [`Image::channel_state`].
    pub channel_state: Vec<u8>,
}

/// The size of the pages in which memories are captured and stored, in bytes. Part of the format, whatever the
/// machine's own page size is.
pub const PAGE_BYTES: usize = 4096;

/// Neighbouring pages of a memory that a capture names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The first page, counted from the memory's beginning.
    pub first: u32,
    /// How many there are.
    pub pages: u32,
    /// Whether they hold only zeros; then their bytes are left out.
    pub zero: bool,
}

impl PageRun {
    /// Where the run lies in memory, in bytes.
    #[must_use]
    pub fn memory_range(&self) -> Range<usize> {
        let start = self.first as usize * PAGE_BYTES;
        start..start + self.pages as usize * PAGE_BYTES
    }

    /// The number of the page after the last.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.first as usize + self.pages as usize
    }
}

/// What is stored of a task: what it has become since its last capture. The pages that were written since, and everything else in full. What
/// a page is that is not named, the captures before say; in a first one it is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredCapture {
    /// The linear memory's size in bytes, a multiple of [`PAGE_BYTES`]; 0 for a native task.
    pub memory_bytes: u64,
    /// The pages that are named, each once.
    pub runs: Vec<PageRun>,
    /// The bytes of all runs that are not zero, one after the other.
    pub bytes: Vec<u8>,
    /// Every mutable global, in index order.
    pub globals: Vec<GlobalValue>,
    /// Every table that the module can change, as in [`Image::tables`].
    pub tables: Vec<Vec<Option<u32>>>,
    /// The host's part, as in [`Image::host_state`].
    pub host_state: Vec<u8>,
    /// As in [`Image::channel_state`].
    pub channel_state: Vec<u8>,
}

impl From<Image> for StoredCapture {
    /// The capture that holds every page.
    ///
    /// # Panics
    /// When the memory is not made of whole pages, as no WebAssembly memory is.
    fn from(image: Image) -> Self {
        assert!(
            image.memory.len().is_multiple_of(PAGE_BYTES),
            "a memory is made of whole pages"
        );
        let pages = u32::try_from(image.memory.len() / PAGE_BYTES).expect("at most 16 TiB");
        let all = PageRun {
            first: 0,
            pages,
            zero: false,
        };
        Self {
            memory_bytes: image.memory.len() as u64,
            runs: Vec::from_iter((pages > 0).then_some(all)),
            bytes: image.memory,
            globals: image.globals,
            tables: image.tables,
            host_state: image.host_state,
            channel_state: image.channel_state,
        }
    }
}

/// The value of a mutable global; floats as bits, so that NaNs survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GlobalValue {
    /// `i32`
    I32(i32),
    /// `i64`
    I64(i64),
    /// `f32`, as bits
    F32(u32),
    /// `f64`, as bits
    F64(u64),
    /// `v128`
    V128(u128),
}
