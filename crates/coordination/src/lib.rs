//! The registry: who leads, which jobs there are, and which of their checkpoints are published. Small records behind a
//! fence: a write takes the proof of leadership, and one by a leader that has been replaced is refused.
//!
//! It never stores what runs where (TaskManagers report it), never holds anything large (that is the object store's),
//! and never decides: a lost reply is handed back as [`WriteError::Unknown`], and the caller reads back.
//!
//! Nouns: [`Registry`] (what every backend offers), [`Leading`] (the proof), [`Embedded`] (the backend on one machine's
//! disk).
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use tidemill_coordination::{Embedded, Registry};
//!
//! let directory = tempfile::tempdir()?;
//! let registry = Embedded::open(directory.path())?;
//! let leading = registry.lead().await?;
//! assert_eq!(leading.epoch().0, 1);
//! assert!(registry.jobs().await?.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod embedded;
mod error;
mod registry;

pub use embedded::Embedded;
pub use error::{LeadError, OpenError, ReadError, WriteError};
pub use registry::{Answer, DamagedJob, Leading, Registry};
