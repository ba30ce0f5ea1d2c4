//! Sinks: [`SinkWriter`] takes the batches of one sink task. What a file sink shows is decided by checkpoints: written
//! records are hidden, *prepared* at a barrier, and appear when the checkpoint is complete. The other sinks show theirs at once.

mod directory;
mod files;
#[cfg(test)]
mod memory;
mod name;
mod socket;

use std::fmt;

use tidemill_abi::{ConnectorSpec, framed};
use tidemill_protocol::{AttemptId, CheckpointId, JobId};

use crate::SinkError;
use crate::options::SinkOptions;
use directory::LocalDirectory;
use files::FileSink;
use socket::SocketSink;

/// Whose sink it is. Together with a checkpoint it names every file, so that no two writers share a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkIdentity {
    /// The job.
    pub job: JobId,
    /// The stage whose output it is.
    pub stage: u32,
    /// Which of the stage's outputs.
    pub output: u32,
    /// Which of the stage's subtasks.
    pub subtask: u32,
    /// The execution that writes.
    pub attempt: AttemptId,
}

/// Where the sink `print` puts its lines, without their ends.
pub type LineOutput = Box<dyn FnMut(&str) + Send>;

/// Writes what one sink task is given.
///
/// Dropped, it removes what it wrote since the last barrier and keeps what it prepared, which a restored writer may
/// still have to show.
pub struct SinkWriter {
    kind: Kind,
    records: u64,
}

enum Kind {
    Files(FileSink<LocalDirectory>),
    Socket(SocketSink),
    Print(LineOutput),
    Discard,
}

impl fmt::Debug for SinkWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Files(_) => "files",
            Kind::Socket(_) => "socket",
            Kind::Print(_) => "print",
            Kind::Discard => "discard",
        };
        f.debug_struct("SinkWriter")
            .field("kind", &kind)
            .field("records", &self.records)
            .finish()
    }
}

impl SinkWriter {
    /// A writer that begins anew. A file sink creates its directory, and removes the hidden files that earlier attempts
    /// of this very sink subtask left. `lines` is where the sink `print` writes.
    ///
    /// # Errors
    /// When the options are wrong or the directory cannot be made or read.
    pub fn start(
        spec: &ConnectorSpec,
        identity: SinkIdentity,
        lines: LineOutput,
    ) -> Result<Self, SinkError> {
        Self::open(spec, identity, lines, None)
    }

    /// A writer that goes on from a checkpoint: `state` is what [`SinkWriter::prepare`] returned for it. What earlier
    /// attempts wrote after that checkpoint is discarded; what they had prepared by then is kept, and appears by
    /// [`SinkWriter::commit`], which must be called with the restored checkpoint.
    ///
    /// # Errors
    /// When the options are wrong, the state is not this sink's, or the directory cannot be made or read.
    pub fn restore(
        spec: &ConnectorSpec,
        identity: SinkIdentity,
        lines: LineOutput,
        state: &[u8],
    ) -> Result<Self, SinkError> {
        Self::open(spec, identity, lines, Some(state))
    }

    fn open(
        spec: &ConnectorSpec,
        identity: SinkIdentity,
        lines: LineOutput,
        state: Option<&[u8]>,
    ) -> Result<Self, SinkError> {
        let kind = match SinkOptions::parse(spec)? {
            SinkOptions::Files(options) => {
                let directory = LocalDirectory::create(&options.path)
                    .map_err(|error| SinkError::io("create", options.path.clone(), error))?;
                Kind::Files(FileSink::open(directory, &options, identity, state)?)
            }
            SinkOptions::Socket(options) => {
                no_state(state)?;
                Kind::Socket(SocketSink::open(options)?)
            }
            SinkOptions::Print => {
                no_state(state)?;
                Kind::Print(lines)
            }
            SinkOptions::Discard => {
                no_state(state)?;
                Kind::Discard
            }
        };
        Ok(Self { kind, records: 0 })
    }

    /// Takes a batch of framed records, as the guest emitted it.
    ///
    /// # Errors
    /// When the batch is not framed records, or cannot be written. The task must then fail: part of the batch may be
    /// written, and is discarded with the attempt.
    pub fn write(&mut self, batch: &[u8]) -> Result<(), SinkError> {
        for record in framed::records(batch) {
            let record = record?;
            match &mut self.kind {
                Kind::Files(sink) => sink.write(record)?,
                Kind::Socket(sink) => sink.add(record),
                Kind::Print(lines) => lines(&String::from_utf8_lossy(record)),
                Kind::Discard => {}
            }
            self.records += 1;
        }
        match &mut self.kind {
            Kind::Socket(sink) => sink.send(),
            Kind::Files(_) | Kind::Print(_) | Kind::Discard => Ok(()),
        }
    }

    /// The records written by this writer.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Makes everything written so far durable, still hidden, under this checkpoint. Returns the state that goes into
    /// the checkpoint's image: what is prepared and not yet committed.
    ///
    /// # Errors
    /// When the disk is full or does not answer. The task must then fail.
    pub fn prepare(&mut self, checkpoint: CheckpointId) -> Result<Vec<u8>, SinkError> {
        match &mut self.kind {
            Kind::Files(sink) => sink.prepare(checkpoint),
            Kind::Socket(_) | Kind::Print(_) | Kind::Discard => Ok(Vec::new()),
        }
    }

    /// Shows everything that was prepared at barriers up to this checkpoint, which is complete. Idempotent: may be
    /// replayed by this writer, a restored one, or both at once.
    ///
    /// # Errors
    /// When a prepared file was changed or removed by something else, its name is taken by a different file, or the
    /// disk does not answer. What was committed before stays so, and the call may be repeated.
    pub fn commit(&mut self, up_to: CheckpointId) -> Result<(), SinkError> {
        match &mut self.kind {
            Kind::Files(sink) => sink.commit(up_to),
            Kind::Socket(_) | Kind::Print(_) | Kind::Discard => Ok(()),
        }
    }
}

fn no_state(state: Option<&[u8]>) -> Result<(), SinkError> {
    match state {
        None | Some([]) => Ok(()),
        Some(_) => Err(SinkError::State {
            reason: "this sink has none".into(),
        }),
    }
}

#[cfg(test)]
mod tests;
