//! What can go wrong while a source is read or a sink is written, with the path and the remedy in each message.
//! Mistakes in options are [`crate::OptionError`].

use std::io;
use std::path::PathBuf;

use tidemill_abi::framed::Truncated;
use tidemill_protocol::codec::DecodeError;
use tidemill_protocol::control::Blame;

use crate::OptionError;

/// A source cannot be listed or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The connector's options are wrong.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The input path does not exist on this machine.
    #[error(
        "the input path `{}` does not exist: check the option `path`, and that the JobManager and every TaskManager \
         see the input under this name",
        path.display()
    )]
    Missing {
        /// The path, absolute.
        path: PathBuf,
    },
    /// The input path is a pattern that no file matches.
    #[error(
        "no file matches the input path `{}`: check the option `path`, and that the JobManager and every TaskManager \
         see the input under this name",
        pattern.display()
    )]
    NoMatch {
        /// The pattern, absolute.
        pattern: PathBuf,
    },
    /// The input path is not a valid pattern.
    #[error("the input path `{}` is not a valid pattern: {reason}", pattern.display())]
    Pattern {
        /// The pattern.
        pattern: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {action} the input `{}`", path.display())]
    Io {
        /// What was tried: `open`, `read`, …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file was there when the input was listed and is not now.
    #[error(
        "the input file `{}` has disappeared since the job began, or this TaskManager does not see it: input files must \
         stay until the job has ended, and be visible to every TaskManager",
        path.display()
    )]
    Disappeared {
        /// Which.
        path: PathBuf,
    },
    /// A file is shorter than when the input was listed.
    #[error(
        "the input file `{}` has shrunk since the job began, from {expected_bytes} to {found_bytes} bytes: input files \
         must not change until the job has ended",
        path.display()
    )]
    Shrunk {
        /// Which.
        path: PathBuf,
        /// Its size at listing.
        expected_bytes: u64,
        /// Its size now.
        found_bytes: u64,
    },
    /// A line is longer than `line_max_bytes`.
    #[error(
        "the line at byte {offset} of `{}` is longer than {max_bytes} bytes: raise the source's option \
         `line_max_bytes`, or check that the file is text",
        path.display()
    )]
    LineTooLong {
        /// In which file.
        path: PathBuf,
        /// Where the line begins.
        offset: u64,
        /// The limit.
        max_bytes: usize,
    },
    /// The state in an image is not this source's.
    #[error("the saved state of the source cannot be used: {reason}")]
    State {
        /// Why not.
        reason: String,
    },
    /// The enumerator and the reader do not agree.
    #[error("a split that the enumerator assigned cannot be used: {reason}")]
    Assignment {
        /// Why not.
        reason: String,
    },
}

impl SourceError {
    /// Whose fault it is, as far as can be told.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Options(_)
            | Self::Missing { .. }
            | Self::NoMatch { .. }
            | Self::Pattern { .. }
            | Self::Shrunk { .. }
            | Self::LineTooLong { .. } => Blame::Job,
            Self::Io { .. } | Self::Disappeared { .. } => Blame::Cluster,
            Self::State { .. } | Self::Assignment { .. } => Blame::Bug,
        }
    }

    pub(crate) fn state(error: &DecodeError) -> Self {
        Self::State {
            reason: error.to_string(),
        }
    }
}

/// A sink cannot be written or committed.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The connector's options are wrong.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// There is no room for more.
    #[error(
        "no space is left for the output `{}`: free some, or give the sink another `path`; the job can go on from its \
         last checkpoint",
        path.display()
    )]
    Full {
        /// What was written.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
    /// The operating system refused.
    #[error("cannot {action} the output `{}`", path.display())]
    Io {
        /// What was tried: `create`, `write`, …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The receiver of a socket cannot be reached.
    #[error(
        "cannot connect to the receiver `{address}` of the sink `socket`: check the option `address`, and that it \
         accepts connections from every TaskManager"
    )]
    Connect {
        /// `host:port`.
        address: String,
        /// The reason.
        source: io::Error,
    },
    /// The receiver of a socket is gone, or accepts nothing.
    #[error(
        "cannot send to the receiver `{address}` of the sink `socket`: the job goes back to its last checkpoint and \
         sends again what came after it"
    )]
    Send {
        /// `host:port`.
        address: String,
        /// The reason.
        source: io::Error,
    },
    /// The guest's batch is not framed records.
    #[error("the job gave the sink a batch that is not framed records")]
    Records(#[from] Truncated),
    /// A prepared file is not as it was prepared.
    #[error(
        "the prepared output file `{}` has {found_bytes} bytes where {expected_bytes} were written: something else \
         changed it, and its records cannot be shown",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Its size when it was prepared.
        expected_bytes: u64,
        /// Its size now.
        found_bytes: u64,
    },
    /// The name under which a file is to appear is taken by a different one.
    #[error(
        "the output file `{}` exists already and differs from `{}`, which is to appear under that name: move one of \
         them away; nothing is overwritten",
        visible.display(),
        hidden.display()
    )]
    Conflict {
        /// The name that is taken.
        visible: PathBuf,
        /// The prepared file.
        hidden: PathBuf,
    },
    /// A prepared file is gone.
    #[error(
        "the prepared output file `{}` is gone before it could appear as `{}`: hidden files in the output directory \
         belong to running jobs and must be left alone",
        hidden.display(),
        visible.display()
    )]
    Lost {
        /// The prepared file.
        hidden: PathBuf,
        /// The name under which it was to appear.
        visible: PathBuf,
    },
    /// The state in an image is not this sink's.
    #[error("the saved state of the sink cannot be used: {reason}")]
    State {
        /// Why not.
        reason: String,
    },
}

impl SinkError {
    /// Whose fault it is, as far as can be told.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Options(_) | Self::Records(_) => Blame::Job,
            Self::State { .. } => Blame::Bug,
            Self::Full { .. }
            | Self::Io { .. }
            | Self::Connect { .. }
            | Self::Send { .. }
            | Self::Damaged { .. }
            | Self::Conflict { .. }
            | Self::Lost { .. } => Blame::Cluster,
        }
    }

    pub(crate) fn io(action: &'static str, path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { path, source }
            }
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }
}
