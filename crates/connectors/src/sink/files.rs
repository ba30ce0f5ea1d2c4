//! The transactional file sink. Records go to a hidden file; a barrier closes it, makes it durable and remembers it as
//! *pending* under the checkpoint; when the checkpoint completes the file appears by a rename. The pending files are the
//! sink's state. Nothing is ever overwritten.
//!
//! Why nothing appears twice: a checkpoint is taken by one attempt, so one hidden file is ever renamed to a name that is
//! made of the sink subtask, the checkpoint and the roll. Whoever commits it, and however often, moves that one file.
//! A job that begins from what another job left shows that one's pending files under the other's name, and where the other
//! wrote: both may do it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tidemill_protocol::codec::{self, Versioned};
use tidemill_protocol::{CheckpointId, JobId};

use super::SinkIdentity;
use super::directory::OutputDirectory;
use super::name::{HiddenFile, Names};
use crate::SinkError;
use crate::options::{FilesSinkOptions, RecordFormat};

const BUFFER_BYTES: usize = 256 << 10;

pub(crate) struct FileSink<D: OutputDirectory> {
    directory: D,
    names: Names,
    format: RecordFormat,
    roll_bytes: u64,
    identity: SinkIdentity,
    /// Of the next hidden file of this attempt.
    next_number: u64,
    open: Option<OpenFile<D::File>>,
    /// Full files since the last barrier, closed and synced.
    rolled: Vec<ClosedFile>,
    /// In the order of their checkpoints.
    pending: Vec<Pending<D>>,
}

struct OpenFile<F> {
    file: F,
    hidden: HiddenFile,
    /// Appended to the file, without what is in the buffer.
    length_bytes: u64,
    buffer: Vec<u8>,
}

struct ClosedFile {
    hidden: HiddenFile,
    length_bytes: u64,
}

/// A prepared file that was not committed when the state was taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PendingFile {
    /// Who prepared it: this job, or the one that it began from.
    job: JobId,
    /// Where: the directory of that job's sink.
    directory: String,
    checkpoint: CheckpointId,
    roll: u32,
    hidden: HiddenFile,
    length_bytes: u64,
}

struct Pending<D> {
    file: PendingFile,
    /// Its directory, when that is not this sink's.
    elsewhere: Option<D>,
    /// The state that it comes from is that of a completed checkpoint, so it is to be shown, and may have been by the
    /// attempt that prepared it. Its checkpoint's number says nothing here: it may be another job's.
    restored: bool,
}

#[derive(Serialize, Deserialize)]
struct State {
    checkpoint: CheckpointId,
    pending: Vec<PendingFile>,
}

impl Versioned for State {
    const KIND: [u8; 2] = *b"FK";
    const VERSION: u16 = 3;
    const NAME: &'static str = "state of a file sink";
}

impl<D: OutputDirectory> FileSink<D> {
    pub(crate) fn open(
        directory: D,
        options: &FilesSinkOptions,
        identity: SinkIdentity,
        state: Option<&[u8]>,
    ) -> Result<Self, SinkError> {
        let state = state
            .map(codec::decode::<State>)
            .transpose()
            .map_err(|error| SinkError::State {
                reason: error.to_string(),
            })?;
        let mut sink = Self {
            directory,
            names: Names::new(&identity),
            format: options.format,
            roll_bytes: options.roll_bytes,
            identity,
            next_number: 0,
            open: None,
            rolled: Vec::new(),
            pending: Vec::new(),
        };
        let checkpoint = state.as_ref().map(|state| state.checkpoint);
        if let Some(state) = state {
            let restored = state.pending.into_iter();
            let restored = restored.map(|file| sink.restored(file));
            sink.pending = restored.collect::<Result<_, _>>()?;
        }
        sink.clean_up(checkpoint)?;
        Ok(sink)
    }

    /// A file that the restored state names. What is not there counts as shown and moved away, so the directory must be.
    fn restored(&self, file: PendingFile) -> Result<Pending<D>, SinkError> {
        let path = Path::new(&file.directory);
        let is_elsewhere = file.directory != self.directory_name();
        let open = || {
            let opened = self.directory.elsewhere(path);
            opened.map_err(|error| {
                let action = "open what the job that this one begins from wrote to (an empty directory will do if nothing is missing there), in";
                SinkError::io(action, path.to_owned(), error)
            })
        };
        Ok(Pending {
            elsewhere: is_elsewhere.then(open).transpose()?,
            file,
            restored: true,
        })
    }

    fn directory_name(&self) -> String {
        self.directory.path().to_string_lossy().into_owned()
    }

    /// Removes hidden files of earlier attempts of this sink subtask that the restored checkpoint does not contain. A
    /// dead attempt's file is nobody's, and one that an attempt still writes, not knowing that it was replaced, is in
    /// no checkpoint that can complete. Files of this attempt and later ones are left alone: this may be the one that
    /// was replaced.
    fn clean_up(&self, restored: Option<CheckpointId>) -> Result<(), SinkError> {
        let failed = |action, error| SinkError::io(action, self.directory.path().to_owned(), error);
        let mut shown_again = 0;
        for name in self
            .directory
            .names()
            .map_err(|error| failed("list", error))?
        {
            if let Some(hidden) = self.names.parse_hidden(&name) {
                let is_pending = self.pending.iter().any(|pending| {
                    pending.file.job == self.identity.job && pending.file.hidden == hidden
                });
                if hidden.attempt < self.identity.attempt && !is_pending {
                    let name = self.names.hidden(hidden);
                    remove(&self.directory, &name)?;
                }
            } else if let Some(checkpoint) = self.names.parse_visible(&name) {
                shown_again += u32::from(restored.is_none_or(|restored| checkpoint > restored));
            }
        }
        if shown_again > 0 {
            tracing::warn!(
                directory = %self.directory.path().display(),
                files = shown_again,
                restored = restored.map_or_else(|| "none".into(), |id| id.to_string()),
                "the output holds files of later checkpoints than the one restored: their records will appear again"
            );
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, record: &[u8]) -> Result<(), SinkError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.create()?,
        };
        open.buffer.extend_from_slice(record);
        if self.format == RecordFormat::Lines {
            open.buffer.push(b'\n');
        }
        let length = open.length_bytes + open.buffer.len() as u64;
        let is_full = length >= self.roll_bytes;
        if is_full || open.buffer.len() >= BUFFER_BYTES {
            self.write_buffer(&mut open)?;
        }
        self.open = Some(open);
        if is_full { self.close() } else { Ok(()) }
    }

    fn create(&mut self) -> Result<OpenFile<D::File>, SinkError> {
        let hidden = HiddenFile {
            attempt: self.identity.attempt,
            number: self.next_number,
        };
        self.next_number += 1;
        let file = self
            .directory
            .create(&self.names.hidden(hidden))
            .map_err(|error| self.io_error("create", hidden, error))?;
        Ok(OpenFile {
            file,
            hidden,
            length_bytes: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    fn write_buffer(&self, open: &mut OpenFile<D::File>) -> Result<(), SinkError> {
        self.directory
            .append(&mut open.file, &open.buffer)
            .map_err(|error| self.io_error("write", open.hidden, error))?;
        open.length_bytes += open.buffer.len() as u64;
        open.buffer.clear();
        Ok(())
    }

    /// Makes the open file's bytes durable and closes it. An empty one stays open.
    fn close(&mut self) -> Result<(), SinkError> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        if !open.buffer.is_empty() {
            self.write_buffer(&mut open)?;
        }
        if open.length_bytes == 0 {
            self.open = Some(open);
            return Ok(());
        }
        self.directory
            .sync(&mut open.file)
            .map_err(|error| self.io_error("sync", open.hidden, error))?;
        self.rolled.push(ClosedFile {
            hidden: open.hidden,
            length_bytes: open.length_bytes,
        });
        Ok(())
    }

    pub(crate) fn prepare(&mut self, checkpoint: CheckpointId) -> Result<Vec<u8>, SinkError> {
        self.close()?;
        if !self.rolled.is_empty() {
            self.sync_names()?;
        }
        let directory = self.directory_name();
        for (roll, closed) in (0u32..).zip(self.rolled.drain(..)) {
            self.pending.push(Pending {
                file: PendingFile {
                    job: self.identity.job,
                    directory: directory.clone(),
                    checkpoint,
                    roll,
                    hidden: closed.hidden,
                    length_bytes: closed.length_bytes,
                },
                elsewhere: None,
                restored: false,
            });
        }
        Ok(codec::encode(&State {
            checkpoint,
            pending: self
                .pending
                .iter()
                .map(|pending| pending.file.clone())
                .collect(),
        }))
    }

    pub(crate) fn commit(&mut self, up_to: CheckpointId) -> Result<(), SinkError> {
        let complete = |pending: &Pending<D>| pending.restored || pending.file.checkpoint <= up_to;
        if !self.pending.iter().any(complete) {
            return Ok(());
        }
        for pending in self.pending.iter().filter(|pending| complete(pending)) {
            self.show(pending)?;
        }
        // Also when every rename was another's: it may have died before it made them durable.
        self.sync_names()?;
        for elsewhere in self.pending.iter().filter_map(|one| one.elsewhere.as_ref()) {
            sync_names(elsewhere)?;
        }
        self.pending.retain(|pending| !complete(pending));
        Ok(())
    }

    /// Lets one prepared file appear, unless it has.
    fn show(&self, pending: &Pending<D>) -> Result<(), SinkError> {
        let directory = pending.elsewhere.as_ref().unwrap_or(&self.directory);
        let names = Names::new(&SinkIdentity {
            job: pending.file.job,
            ..self.identity
        });
        let hidden = names.hidden(pending.file.hidden);
        let visible = names.visible(pending.file.checkpoint, pending.file.roll);
        let path = |name: &str| directory.path().join(name);
        let (hidden_path, visible_path) = (path(&hidden), path(&visible));
        let failed = |action, error| SinkError::io(action, hidden_path.clone(), error);
        let length = |name| {
            let length = directory.length(name);
            length.map_err(|error| failed("look at", error))
        };

        match (length(&hidden)?, length(&visible)?) {
            (Some(found_bytes), None) if found_bytes == pending.file.length_bytes => {
                match directory.rename(&hidden, &visible) {
                    // Another attempt that replays the same commit came first.
                    Err(_) if length(&hidden)?.is_none() && length(&visible)?.is_some() => Ok(()),
                    other => other.map_err(|error| failed("rename", error)),
                }
            }
            (Some(found_bytes), None) => Err(SinkError::Damaged {
                path: hidden_path,
                expected_bytes: pending.file.length_bytes,
                found_bytes,
            }),
            (None, Some(_)) => Ok(()),
            (Some(_), Some(_)) => {
                let same = directory.same_content(&hidden, &visible);
                if same.map_err(|error| failed("read", error))? {
                    remove(directory, &hidden)
                } else {
                    Err(SinkError::Conflict {
                        visible: visible_path,
                        hidden: hidden_path,
                    })
                }
            }
            (None, None) if pending.restored => {
                tracing::warn!(
                    file = %visible_path.display(),
                    "a file of a restored checkpoint is neither prepared nor shown: taken to have been shown, and \
                     moved away since"
                );
                Ok(())
            }
            (None, None) => Err(SinkError::Lost {
                hidden: hidden_path,
                visible: visible_path,
            }),
        }
    }

    fn sync_names(&self) -> Result<(), SinkError> {
        sync_names(&self.directory)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn io_error(
        &self,
        action: &'static str,
        hidden: HiddenFile,
        error: std::io::Error,
    ) -> SinkError {
        SinkError::io(action, self.path(&self.names.hidden(hidden)), error)
    }
}

fn remove(directory: &impl OutputDirectory, name: &str) -> Result<(), SinkError> {
    let removed = directory.remove(name);
    removed.map_err(|error| SinkError::io("remove", directory.path().join(name), error))
}

fn sync_names(directory: &impl OutputDirectory) -> Result<(), SinkError> {
    let synced = directory.sync_names();
    synced.map_err(|error| SinkError::io("sync", directory.path().to_owned(), error))
}

impl<D: OutputDirectory> Drop for FileSink<D> {
    /// What was never prepared is nobody's. That it may stay when the disk does not answer does no harm: the next
    /// attempt removes it.
    fn drop(&mut self) {
        let open = self.open.take().map(|open| open.hidden);
        let rolled = std::mem::take(&mut self.rolled)
            .into_iter()
            .map(|closed| closed.hidden);
        for hidden in rolled.chain(open) {
            if let Err(error) = remove(&self.directory, &self.names.hidden(hidden)) {
                tracing::debug!(%error, "an unprepared output file stays");
            }
        }
    }
}
