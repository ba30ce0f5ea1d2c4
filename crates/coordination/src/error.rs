//! What can go wrong with the registry, an enum per kind of operation. It never lets a write that may have happened pass
//! for one that did not.

use std::error::Error;

use tidemill_protocol::codec::DecodeError;
use tidemill_protocol::{Epoch, JobId};

/// A cause from below: the backend's client or the operating system.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// The registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the registry in `{directory}` is in use by {holder}: stop that JobManager, or give this one a directory of its own"
    )]
    InUse {
        /// The directory.
        directory: String,
        /// Who has it, as far as is known.
        holder: String,
    },
    /// The directory cannot be made or used.
    #[error(
        "the directory `{directory}` cannot be used for the registry: check that it may be created and written to"
    )]
    Unusable {
        /// The directory.
        directory: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A setting cannot be right.
    #[error("{setting} cannot be `{value}`: {reason}")]
    BadSetting {
        /// Which, as in the configuration file.
        setting: &'static str,
        /// What it is; nothing secret.
        value: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A file that is named by a setting cannot be read, or holds something else.
    #[error(
        "{setting}: the file `{file}` cannot be used: check that it exists, may be read and is in PEM format"
    )]
    BadFile {
        /// Which setting names it.
        setting: &'static str,
        /// Which file.
        file: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// The database file is not one, or its pages do not match their checksums.
    #[error(
        "the registry in `{file}` is damaged: bring the file back from a backup, or move it away to begin with no jobs \
         (checkpoints stay in the object store)"
    )]
    Damaged {
        /// The database file.
        file: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

/// A lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The name cannot be one of a lock.
    #[error(
        "`{name}` cannot name a lock: use letters, digits, `-`, `_` and `.`, and at least one that is no dot"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The registry is out of order or out of reach.
    #[error("the registry at `{place}` does not give the lock `{name}`")]
    Unavailable {
        /// Which registry.
        place: String,
        /// Which lock.
        name: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

/// Refuses a lock's name that not every backend can keep.
pub(crate) fn check_lock_name(name: &str) -> Result<(), LockError> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if name.chars().all(fits) && name.chars().any(|letter| letter != '.') {
        return Ok(());
    }
    Err(LockError::BadName { name: name.into() })
}

/// Leadership could not be taken. Another try does no harm.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// The registry is out of order or out of reach.
    #[error("the registry at `{place}` does not let this process lead")]
    Unavailable {
        /// Which registry.
        place: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

/// A record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The registry is out of order or out of reach.
    #[error("the registry at `{place}` cannot be read")]
    Unavailable {
        /// Which registry.
        place: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The pointers of a job are there but cannot be read.
    #[error(
        "the checkpoint pointers of job {job} cannot be read, so it cannot be restored: use the release that wrote \
         them, or cancel the job and submit it again"
    )]
    DamagedPointers {
        /// Whose.
        job: JobId,
        /// Why not.
        #[source]
        source: DecodeError,
    },
}

/// A write did not succeed, or not for certain.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A newer leader has taken over; nothing was written, and nothing by this leader ever will be.
    #[error("this JobManager led with epoch {ours} and {}: its write was refused", replaced(*stored))]
    Fenced {
        /// The epoch of the write.
        ours: Epoch,
        /// The successor's, when it is known.
        stored: Option<Epoch>,
    },
    /// The job has no record; nothing was written.
    #[error("job {job} is not in the registry: it was removed")]
    UnknownJob {
        /// Which job.
        job: JobId,
    },
    /// Nothing was written. Another try may help.
    #[error("the registry at `{place}` refused a write of {what}")]
    Failed {
        /// Which registry.
        place: String,
        /// What was to be written.
        what: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// It was written or it was not: read it back before anything else is done.
    #[error("the registry at `{place}` did not confirm a write of {what}: it is read back")]
    Unknown {
        /// Which registry.
        place: String,
        /// What was to be written.
        what: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

fn replaced(stored: Option<Epoch>) -> String {
    match stored {
        Some(epoch) => format!("has been replaced by epoch {epoch}"),
        None => "does not lead any more".into(),
    }
}
