//! The registry: who leads, which jobs there are, and which of their checkpoints are published. Small records behind a
//! fence: a write takes the proof of leadership, and one by a leader that has been replaced is refused.
//!
//! It never stores what runs where (TaskManagers report it), never holds anything large (that is the object store's),
//! and never decides: a lost reply is handed back as [`WriteError::Unknown`], and the caller reads back.
//!
//! Nouns: [`Registry`] (what every backend offers), [`Leading`] (the proof), [`NamedLock`], and the backends: [`ZooKeeper`]
//! (an ensemble, for any number of JobManagers) and [`Embedded`] (one machine's disk, for one).
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use tidemill_coordination::{Embedded, Registry};
//! use tidemill_protocol::{Incarnation, record::JobManagerRecord};
//!
//! let directory = tempfile::tempdir()?;
//! let registry = Embedded::open(directory.path())?;
//! let candidate = JobManagerRecord {
//!     id: "jm-1".into(),
//!     incarnation: Incarnation(1),
//!     control_address: "127.0.0.1:7422".into(),
//!     rest_url: "http://127.0.0.1:7421".into(),
//! };
//! let leading = registry.lead(&candidate).await?;
//! assert_eq!(leading.epoch().0, 1);
//! assert!(registry.jobs().await?.is_empty());
//! registry.resign(&leading).await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod decode;
mod embedded;
mod error;
mod leading;
mod registry;
mod zookeeper;

pub use embedded::Embedded;
pub use error::{LeadError, LockError, OpenError, ReadError, WriteError};
pub use leading::{Leading, NamedLock};
pub use registry::{Answer, Connection, DamagedJob, KnownLeader, Registry};
pub use zookeeper::{Access, Credentials, Presence, TlsFiles, ZooKeeper, ZooKeeperOptions};
