//! What can go wrong with the store, an enum per kind of operation. Messages name the key and what to do; the cause is
//! in the source. It never hides whether an object is damaged or merely out of reach: the first calls for an older
//! checkpoint, the second for another try.

use std::error::Error;
use std::io;
use std::time::Duration;

use tidemill_protocol::codec::DecodeError;

use crate::bucket::misses_bucket;

/// A cause from below: the store's client or the operating system.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL's scheme is none of those this release has.
    #[error(
        "`{url}` is not a place for checkpoints that this release supports: use `s3://bucket/prefix`, `gs://…`, `az://…`, \
         `file:///…` or an absolute path on a disk that every process reaches, or `memory://` for tests"
    )]
    UnsupportedScheme {
        /// As it was given.
        url: String,
    },
    /// The path depends on the working directory, which differs between processes.
    #[error(
        "`{url}` is a relative path, and processes differ in where they start: give an absolute one"
    )]
    RelativePath {
        /// As it was given.
        url: String,
    },
    /// The URL cannot be read as a path.
    #[error("`{url}` is not a file URL ({reason}): give the absolute path instead")]
    Malformed {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The URL cannot be read as a bucket and a prefix.
    #[error("`{url}` is not the URL of a bucket ({reason}): it has the form `s3://bucket/prefix`")]
    MalformedBucket {
        /// As it was given, without what may be a secret.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The client cannot be set up by the environment.
    #[error(
        "the environment does not say how to reach `{url}`: check {variables}, and the other variables of its service"
    )]
    Settings {
        /// The store.
        url: String,
        /// What gives credentials.
        variables: &'static str,
        /// What is missing or wrong.
        #[source]
        source: Cause,
    },
    /// Amazon's buckets are in regions.
    #[error(
        "the region of `{url}` is not known: set AWS_REGION, or AWS_ENDPOINT_URL where the service is not Amazon's"
    )]
    NoRegion {
        /// The store.
        url: String,
    },
    /// Keys and data would cross the network unencrypted.
    #[error(
        "`{url}` is served by {endpoint}, without encryption: use https, or set AWS_ALLOW_HTTP=true where the network is \
         trusted"
    )]
    PlainHttp {
        /// The store.
        url: String,
        /// Where its service is.
        endpoint: String,
    },
    /// No credentials are configured, and this machine has no role that grants any.
    #[error(
        "there are no credentials for `{url}`: set {variables}, or give this machine a role that may use it"
    )]
    NoCredentials {
        /// The store.
        url: String,
        /// What gives credentials.
        variables: &'static str,
        /// What the machine answered.
        #[source]
        source: Cause,
    },
    /// The service refuses these credentials.
    #[error(
        "`{url}` is closed to these credentials: check {variables}, and that they may list, read, write and delete there"
    )]
    Denied {
        /// The store.
        url: String,
        /// What gives credentials.
        variables: &'static str,
        /// The service's words.
        #[source]
        source: Cause,
    },
    /// There is no such bucket.
    #[error(
        "there is no bucket `{bucket}` for `{url}`: create it, or check its name and the service's address"
    )]
    NoSuchBucket {
        /// The store.
        url: String,
        /// The bucket.
        bucket: String,
    },
    /// The bucket is in another region.
    #[error("the bucket of `{url}` is in another region: set AWS_REGION to it")]
    WrongRegion {
        /// The store.
        url: String,
        /// The service's words, which may name the right one.
        #[source]
        source: Cause,
    },
    /// The service did not answer, or with a failure of its own.
    #[error("`{url}` cannot be reached: check the network, the service's address and its health")]
    Unreachable {
        /// The store.
        url: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The directory cannot be made or used.
    #[error(
        "the directory `{path}` cannot be used as the object store: check that it may be created and written to"
    )]
    Unusable {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

/// An object was not written, as far as is known. The store never shows a part of one; a whole one that appears after all
/// is an orphan.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk or the quota is full.
    #[error(
        "no space is left in the object store to write `{key}`: free some, or move the store to a larger disk"
    )]
    NoSpace {
        /// The object.
        key: String,
        /// The system's words.
        #[source]
        source: Cause,
    },
    /// The store did not answer in time.
    #[error(
        "the object store did not answer within {after:?} to a write of `{key}`: check that it is reachable"
    )]
    TimedOut {
        /// The object.
        key: String,
        /// How long the request was waited for.
        after: Duration,
    },
    /// Another object has this key, and must not be overwritten. It stays as it is.
    #[error("there is a `{key}` in the object store already: choose another name, or delete it")]
    AlreadyExists {
        /// The object.
        key: String,
    },
    /// It is larger than what could be read back.
    #[error(
        "what is to be stored as `{key}` has {bytes} bytes, and at most {max} can be: let the task keep less"
    )]
    TooLarge {
        /// The object.
        key: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Anything else.
    #[error("the object store refused to write `{key}`: check its permissions and its health")]
    Failed {
        /// The object.
        key: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

/// An object could not be read, or is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such object.
    #[error(
        "`{key}` is missing from the object store: if it was deleted by hand, bring it back; otherwise go on from an older checkpoint"
    )]
    Missing {
        /// The object.
        key: String,
    },
    /// The object is shorter or longer than what was written.
    #[error(
        "`{key}` has {found} bytes where {expected} were written: it was cut or overwritten; go on from an older checkpoint"
    )]
    Truncated {
        /// The object.
        key: String,
        /// What was written.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The object's bytes are not those that were written, or make no sense.
    #[error(
        "`{key}` is damaged ({reason}): check the disk beneath it, and go on from an older checkpoint"
    )]
    Damaged {
        /// The object.
        key: String,
        /// What does not hold.
        reason: String,
    },
    /// The object is whole but made by a release that this one does not understand.
    #[error("`{key}` cannot be read by this release ({reason})")]
    Unsupported {
        /// The object.
        key: String,
        /// What is not understood.
        reason: String,
    },
    /// There is not enough memory to hold the image.
    #[error(
        "the image of `{key}` needs {bytes} bytes of memory, which this machine does not have: run the task on a larger one"
    )]
    OutOfMemory {
        /// The manifest.
        key: String,
        /// The memory's size.
        bytes: u64,
    },
    /// The store did not answer in time. The object may be whole.
    #[error(
        "the object store did not answer within {after:?} to a read of `{key}`: check that it is reachable"
    )]
    TimedOut {
        /// The object.
        key: String,
        /// How long the request was waited for.
        after: Duration,
    },
    /// The store failed. The object may be whole.
    #[error("the object store could not read `{key}`: check its permissions and its health")]
    Failed {
        /// The object.
        key: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

impl ReadError {
    /// Whether another try can never help: the object itself is lost, and an older checkpoint is called for.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::Truncated { .. } | Self::Damaged { .. } => true,
            Self::Unsupported { .. }
            | Self::OutOfMemory { .. }
            | Self::TimedOut { .. }
            | Self::Failed { .. } => false,
        }
    }

    pub(crate) fn damaged(key: &str, reason: impl Into<String>) -> Self {
        Self::Damaged {
            key: key.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn undecodable(key: &str, error: &DecodeError) -> Self {
        let (key, reason) = (key.into(), error.to_string());
        match error {
            DecodeError::Version { .. } => Self::Unsupported { key, reason },
            DecodeError::Kind { .. } | DecodeError::Body { .. } => Self::Damaged { key, reason },
        }
    }
}

/// Objects could not be listed or deleted. What was deleted stays deleted; every clean-up may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The store did not answer in time.
    #[error(
        "the object store did not answer within {after:?} while `{prefix}` was cleaned up: it is tried again later"
    )]
    TimedOut {
        /// Below which keys.
        prefix: String,
        /// How long the request was waited for.
        after: Duration,
    },
    /// The store failed.
    #[error(
        "the object store could not list or delete what is below `{prefix}`: check its permissions and its health"
    )]
    Failed {
        /// Below which keys.
        prefix: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A retained checkpoint cannot be read, so what it refers to is unknown. Nothing was deleted.
    #[error(
        "nothing below `{prefix}` was deleted, since a retained checkpoint that may refer to it cannot be read"
    )]
    RetainedUnreadable {
        /// Below which keys.
        prefix: String,
        /// Why not.
        #[source]
        source: ReadError,
    },
}

/// A savepoint cannot be written, read or deleted.
#[derive(Debug, thiserror::Error)]
pub enum SavepointError {
    /// The name cannot be a place.
    #[error(
        "`{path}` names no place for a savepoint ({reason}): give a path in the cluster's object store, or a URL"
    )]
    Malformed {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The name is one of the cluster's own.
    #[error("`{path}` is where the cluster keeps objects of its own: name another place")]
    Reserved {
        /// As it was given.
        path: String,
    },
    /// There is nothing.
    #[error(
        "there is no savepoint at `{path}`, nor a retained checkpoint: `tidemill savepoint list` shows those that there are"
    )]
    NotThere {
        /// Its name.
        path: String,
    },
    /// There is a retained checkpoint.
    #[error(
        "at `{path}` there is a retained checkpoint and no savepoint: a job can begin from it, and it goes with its job"
    )]
    NotASavepoint {
        /// Its name.
        path: String,
    },
    /// Its writing or its deletion was begun and not ended.
    #[error(
        "the savepoint at `{path}` is incomplete{}: its writing, its deletion or its copying was not ended; use another \
         one, and `tidemill savepoint delete` removes what is left of it",
        in_words(.missing)
    )]
    Incomplete {
        /// Its name.
        path: String,
        /// The objects that are known to be missing, or have another length than was written; relative to it. Which
        /// segments belong to it only its verification tells.
        missing: Vec<String>,
    },
    /// Another one was begun there, or is just being written.
    #[error(
        "at `{path}` another savepoint was begun: name another place, or remove what is left of that one with \
         `tidemill savepoint delete`"
    )]
    Occupied {
        /// Its name.
        path: String,
    },
    /// There is another one.
    #[error(
        "at `{path}` there is a savepoint already, and none is ever overwritten: name another place"
    )]
    Taken {
        /// Its name.
        path: String,
    },
    /// An object disappeared before the savepoint was complete.
    #[error(
        "`{key}` disappeared from the savepoint at `{path}` while that was written: write it again"
    )]
    Vanished {
        /// The savepoint.
        path: String,
        /// The object, relative to it.
        key: String,
    },
    /// The store that is named cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An object cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An object cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Objects cannot be listed or deleted.
    #[error(transparent)]
    Cleanup(#[from] CleanupError),
}

/// How many missing objects a message names.
const NAMED_MAX: usize = 3;

fn in_words(missing: &[String]) -> String {
    let (named, others) = missing.split_at(missing.len().min(NAMED_MAX));
    let named: Vec<String> = named.iter().map(|key| format!("`{key}`")).collect();
    match (named.is_empty(), others.len()) {
        (true, _) => String::new(),
        (false, 0) => format!(" (without {})", named.join(", ")),
        (false, others) => format!(" (without {} and {others} more)", named.join(", ")),
    }
}

/// Why a request to the store came to nothing; each operation says the rest.
#[derive(Debug)]
pub(crate) enum RequestError {
    TimedOut(Duration),
    Store(object_store::Error),
    /// A helper thread died; only a bug does that.
    Lost(tokio::task::JoinError),
}

impl From<object_store::Error> for RequestError {
    fn from(error: object_store::Error) -> Self {
        Self::Store(error)
    }
}

impl RequestError {
    pub(crate) fn writing(self, key: &str) -> WriteError {
        let key = key.into();
        match self {
            Self::TimedOut(after) => WriteError::TimedOut { key, after },
            Self::Store(source) if is_full(&source) => WriteError::NoSpace {
                key,
                source: source.into(),
            },
            Self::Store(source) => WriteError::Failed {
                key,
                source: source.into(),
            },
            Self::Lost(source) => WriteError::Failed {
                key,
                source: source.into(),
            },
        }
    }

    pub(crate) fn reading(self, key: &str) -> ReadError {
        let key = key.into();
        match self {
            Self::TimedOut(after) => ReadError::TimedOut { key, after },
            Self::Store(error @ object_store::Error::NotFound { .. }) if !misses_bucket(&error) => {
                ReadError::Missing { key }
            }
            Self::Store(source) => ReadError::Failed {
                key,
                source: source.into(),
            },
            Self::Lost(source) => ReadError::Failed {
                key,
                source: source.into(),
            },
        }
    }

    pub(crate) fn cleaning(self, prefix: &str) -> CleanupError {
        let prefix = prefix.into();
        match self {
            Self::TimedOut(after) => CleanupError::TimedOut { prefix, after },
            Self::Store(source) => CleanupError::Failed {
                prefix,
                source: source.into(),
            },
            Self::Lost(source) => CleanupError::Failed {
                prefix,
                source: source.into(),
            },
        }
    }
}

/// Whether a full disk or quota is at the bottom of an error.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            );
        }
        cause = error.source();
    }
    false
}
