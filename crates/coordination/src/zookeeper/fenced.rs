//! Writes of a leader: one transaction each, with a check that its candidate's node is still there. It never tells of a
//! write that may have happened as of one that did not.

use std::sync::Arc;

use tidemill_protocol::{Epoch, JobId};
use zookeeper_client::{CheckWriteError, CheckWriter, CreateMode, CreateOptions, Error};

use super::layout::{CHECKPOINTS, JOBS};
use super::node::OwnNode;
use super::session::Shared;
use crate::leading::LeadingHold;
use crate::{Leading, WriteError};

/// What fits into a node: the servers' `jute.maxbuffer` (1 MiB by default) less what surrounds the record. They answer
/// more by closing the connection.
const RECORD_BYTES_MAX: usize = 1_000_000;

/// How often a write is shaped anew because a node turned out to be there or not. One leader writes at a time, so that
/// twice is usual.
const SHAPES_MAX: usize = 8;

/// A leader about to write.
pub(super) struct Fenced<'a> {
    shared: &'a Shared,
    node: Arc<OwnNode>,
    epoch: Epoch,
    /// What is written, for messages.
    what: String,
}

/// One change within a transaction.
#[derive(Clone, Copy)]
enum Change<'a> {
    Exists(&'a str),
    Create(&'a str, &'a [u8]),
    Set(&'a str, &'a [u8]),
    Delete(&'a str),
}

/// What came of a transaction.
enum Outcome {
    Done,
    /// The change with this index met a node that is not there.
    Missing(usize),
    /// The change with this index met a node that is there already.
    Present,
}

impl<'a> Fenced<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        leading: &Leading,
        what: String,
    ) -> Result<Self, WriteError> {
        match &leading.hold {
            LeadingHold::ZooKeeper(node) if node.belongs_to(shared) => Ok(Self {
                shared,
                node: Arc::clone(node),
                epoch: leading.epoch(),
                what,
            }),
            // That proof is another registry's.
            _ => Err(WriteError::Fenced {
                ours: leading.epoch(),
                stored: None,
            }),
        }
    }

    /// Writes nothing, the way of all writes: every transaction goes through the quorum.
    pub(super) async fn confirm(&self) -> Result<(), WriteError> {
        self.commit(&[]).await.map(|_| ())
    }

    pub(super) async fn resign(&self) -> Result<(), WriteError> {
        let removed = self.node.remove().await;
        removed.map_err(|error| self.failed(error.into()))
    }

    pub(super) async fn put_job(&self, job: JobId, record: &[u8]) -> Result<(), WriteError> {
        self.check_size(record)?;
        let path = format!("{JOBS}/{job}");
        self.first_that_fits(&[
            &[Change::Set(&path, record)],
            &[Change::Create(&path, record)],
        ])
        .await
    }

    pub(super) async fn put_pointers(&self, job: JobId, record: &[u8]) -> Result<(), WriteError> {
        self.check_size(record)?;
        let (known, path) = (format!("{JOBS}/{job}"), format!("{CHECKPOINTS}/{job}"));
        for _ in 0..SHAPES_MAX {
            for change in [Change::Set(&path, record), Change::Create(&path, record)] {
                match self.commit(&[Change::Exists(&known), change]).await? {
                    Outcome::Done => return Ok(()),
                    Outcome::Missing(0) => return Err(WriteError::UnknownJob { job }),
                    Outcome::Missing(_) | Outcome::Present => {}
                }
            }
        }
        Err(self.restless())
    }

    pub(super) async fn remove_job(&self, job: JobId) -> Result<(), WriteError> {
        let (record, pointers) = (format!("{JOBS}/{job}"), format!("{CHECKPOINTS}/{job}"));
        self.first_that_fits(&[
            &[Change::Delete(&record), Change::Delete(&pointers)],
            // Made and deleted at once: proof that pointers are not there, and do not come in between.
            &[
                Change::Delete(&record),
                Change::Create(&pointers, b""),
                Change::Delete(&pointers),
            ],
            &[
                Change::Create(&record, b""),
                Change::Delete(&record),
                Change::Delete(&pointers),
            ],
            &[
                Change::Create(&record, b""),
                Change::Delete(&record),
                Change::Create(&pointers, b""),
                Change::Delete(&pointers),
            ],
        ])
        .await
    }

    /// Does the first of these transactions whose nodes are there, or not there, as it takes them to be.
    async fn first_that_fits(&self, shapes: &[&[Change<'_>]]) -> Result<(), WriteError> {
        for _ in 0..SHAPES_MAX {
            for shape in shapes {
                if let Outcome::Done = self.commit(shape).await? {
                    return Ok(());
                }
            }
        }
        Err(self.restless())
    }

    async fn commit(&self, changes: &[Change<'_>]) -> Result<Outcome, WriteError> {
        let session = self.node.session();
        if session.is_over() {
            // The node went with it, and this leader has no other.
            return Err(self.fenced());
        }
        let client = &session.client;
        let options = CreateMode::Persistent.with_acls(self.shared.options.acl.acls());
        let mut writer = client
            .new_check_writer(&self.node.path(), None)
            .map_err(|error| self.failed(error.into()))?;
        for change in changes {
            change
                .add(&mut writer, &options)
                .map_err(|error| self.failed(error.into()))?;
        }
        match writer.commit().await {
            Ok(_) => Ok(Outcome::Done),
            Err(CheckWriteError::CheckFailed {
                source: Error::NoNode | Error::BadVersion,
            }) => Err(self.fenced()),
            Err(CheckWriteError::OperationFailed {
                index,
                source: Error::NoNode,
            }) => Ok(Outcome::Missing(index)),
            Err(CheckWriteError::OperationFailed {
                source: Error::NodeExists,
                ..
            }) => Ok(Outcome::Present),
            Err(
                CheckWriteError::CheckFailed { source }
                | CheckWriteError::OperationFailed { source, .. }
                | CheckWriteError::RequestFailed { source },
            ) => Err(self.explain(source)),
        }
    }

    fn explain(&self, error: Error) -> WriteError {
        // The server has answered that it did not do it.
        let refused = matches!(
            error,
            Error::NoAuth
                | Error::InvalidAcl
                | Error::BadArguments(_)
                | Error::BadVersion
                | Error::NotEmpty
                | Error::NoChildrenForEphemerals
                | Error::QuotaExceeded
                | Error::Throttled
                | Error::NotReadOnly
                | Error::MarshallingError
                | Error::Unimplemented
        );
        if refused {
            return self.failed(error.into());
        }
        WriteError::Unknown {
            place: self.shared.place.clone(),
            what: self.what.clone(),
            source: error.into(),
        }
    }

    fn fenced(&self) -> WriteError {
        let leader = self.shared.leader.borrow();
        let stored = leader.as_ref().map(|leader| leader.epoch);
        WriteError::Fenced {
            ours: self.epoch,
            stored: stored.filter(|stored| *stored > self.epoch),
        }
    }

    fn failed(&self, source: crate::error::Cause) -> WriteError {
        WriteError::Failed {
            place: self.shared.place.clone(),
            what: self.what.clone(),
            source,
        }
    }

    fn restless(&self) -> WriteError {
        self.failed("its nodes come and go: something else writes below zookeeper.root".into())
    }

    fn check_size(&self, record: &[u8]) -> Result<(), WriteError> {
        if record.len() <= RECORD_BYTES_MAX {
            return Ok(());
        }
        let reason = format!(
            "it has {} bytes and a node holds {RECORD_BYTES_MAX}: give the job smaller parameters, or keep them in a file",
            record.len()
        );
        Err(self.failed(reason.into()))
    }
}

impl Change<'_> {
    fn add(&self, writer: &mut CheckWriter<'_>, options: &CreateOptions<'_>) -> Result<(), Error> {
        match *self {
            Self::Exists(path) => writer.add_check_version(path, -1),
            Self::Create(path, data) => writer.add_create(path, data, options),
            Self::Set(path, data) => writer.add_set_data(path, data, None),
            Self::Delete(path) => writer.add_delete(path, None),
        }
    }
}
