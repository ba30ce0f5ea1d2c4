//! The image: what restores one task exactly. Free of host details (byte order, pointers, page size), so that
//! another machine can lay it over a new instance. It never says where it is stored; [`crate::manifest`] does.

use alloc::vec::Vec;
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
