//! The object store: what checkpoints and jobs leave outside the processes that run them. Task images (segments of
//! compressed pages, and manifests that say which of them make up an image), checkpoint metadata, job graphs and modules.
//!
//! It never publishes anything: an object that no pointer in the registry names does not exist for the cluster. It never
//! returns bytes that it has not verified, and never decides which checkpoint is restored or deleted.
//!
//! Nouns: [`Store`] (where objects are), [`keys`] (what they are called), [`ImageChain`] (what
//! the captures of one task build upon), [`WrittenImage`] (what a capture cost), [`StoredImage`] (an image whose pages are
//! read when they are wanted).
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use tidemill_storage::Store;
//!
//! let store = Store::open("memory://")?;
//! let hash = store.put_module(&b"\0asm"[..]).await?;
//! assert_eq!(&store.get_module(&hash).await?[..], b"\0asm");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod bucket;
mod cleanup;
mod error;
mod fault;
mod image_chain;
pub mod keys;
mod layout;
mod leftovers;
mod links;
mod location;
mod manifest_chain;
#[cfg(test)]
mod mortal;
mod put;
mod read_image;
mod savepoint;
mod sealed;
mod store;
mod stored_image;
mod unrecorded;
mod write_image;

pub use error::{CleanupError, OpenError, ReadError, SavepointError, WriteError};
pub use fault::{armed_fault_point, fault_point};
pub use image_chain::ImageChain;
pub use savepoint::{ListedSavepoint, SavepointOf, SavepointSummary, Verification};
pub use store::Store;
pub use stored_image::StoredImage;
pub use write_image::{CaptureId, WrittenImage};

/// The largest linear memory that is stored or read back, in bytes: all that a 32-bit memory can be.
pub const MEMORY_BYTES_MAX: u64 = 4 << 30;
