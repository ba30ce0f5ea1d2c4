//! The local image of one task: the file, what it is of, and the captures that are stored but not complete.
//!
//! The file is always the image of one completed checkpoint, or it is not there.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tidemill_protocol::image::StoredCapture;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{AttemptId, CheckpointId};
use tidemill_storage::StoredImage;
use tokio_util::sync::CancellationToken;

use super::discard::Discard;
use super::file::ImageFile;
use super::{ROOM_KEPT_MAX_BYTES, Room, Stored, give_back};

/// So many captures wait for their checkpoint at most: with more of them none completes, and what they hold is let go.
const WAITING_MAX: usize = 16;

/// An image that is here whole.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) file: ImageFile,
    pub(super) checkpoint: CheckpointId,
    pub(super) manifest: ObjectRef,
    /// Its manifests, where they have been read here.
    pub(super) stored: Option<StoredImage>,
    /// An instance's memory is made of it: it must not change.
    pub(super) is_mapped: bool,
}

/// A capture that is stored, and whose checkpoint may become complete.
#[derive(Debug)]
struct Waiting {
    checkpoint: CheckpointId,
    manifest: ObjectRef,
    held: Held,
}

/// What is at hand of a capture.
#[derive(Debug)]
enum Held {
    /// What it changes.
    Change(Box<StoredCapture>, Room),
    /// It was whole, and is a file already.
    File(ImageFile),
    /// Nothing: there was no room for it.
    Nothing,
}

/// An image that is being made.
#[derive(Debug)]
pub(super) struct Building {
    /// Tells it from those that were given up.
    pub(super) number: u64,
    pub(super) manifest: ObjectRef,
    /// A new attempt that waits for it.
    pub(super) claim: Option<super::Claim>,
}

/// What is kept of one task.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The attempt whose captures are followed; none for a task that runs elsewhere.
    pub(super) attempt: Option<AttemptId>,
    pub(super) kept: Option<Kept>,
    waiting: Vec<Waiting>,
    /// The newest completed checkpoint of the attempt.
    pub(super) completed: Option<CheckpointId>,
    pub(super) building: Option<Building>,
    /// When the last image was begun to be read from the store.
    pub(super) built_at: Option<Instant>,
    /// It was dropped because there was no room for it: it is not read again.
    pub(super) is_too_much: bool,
    /// Since when the task does not run here.
    pub(super) idle_since: Option<Instant>,
    /// It is kept for a task that runs elsewhere: that image, and its checkpoint.
    pub(super) warm: Option<(CheckpointId, ObjectRef)>,
    /// The warm image that was begun to be read last.
    pub(super) tried: Option<ObjectRef>,
    /// When the file was made what it is, by the table's count.
    pub(super) changed: u64,
}

/// What an image has to be read from the store for.
pub(super) type Missing = (CheckpointId, ObjectRef);

impl Entry {
    /// Follows another attempt from now on.
    pub(super) fn follow(&mut self, attempt: AttemptId) {
        self.attempt = Some(attempt);
        self.let_go();
        self.completed = None;
        self.idle_since = None;
        self.warm = None;
        self.is_too_much = false;
    }

    /// Gives up all captures that wait.
    pub(super) fn let_go(&mut self) {
        for waiting in self.waiting.drain(..) {
            if let Held::Change(capture, room) = waiting.held {
                give_back(&room, *capture);
            }
        }
    }

    /// What the captures that wait take of the memory.
    pub(super) fn waiting_bytes(&self) -> usize {
        let held = self.waiting.iter().map(|waiting| match &waiting.held {
            Held::Change(capture, _) => capture.bytes.len(),
            Held::File(_) | Held::Nothing => 0,
        });
        held.sum()
    }

    /// A capture is stored. It is held if there are `room_bytes` for it.
    pub(super) fn stored(
        &mut self,
        stored: Stored,
        room_bytes: usize,
        directory: &Path,
        discard: &Discard,
    ) {
        let Stored {
            checkpoint,
            manifest,
            capture,
            whole,
            room,
            over,
        } = stored;
        if self.waiting.len() >= WAITING_MAX {
            self.let_go();
        }
        let held = match capture {
            None => Held::Nothing,
            Some(capture) if self.is_too_much => nothing(&room, capture, discard),
            // It needs nothing of the file there is, and may be too large to be held.
            Some(capture) if whole => {
                let held = whole_file(&capture, directory, &over, discard);
                part_with(&room, capture, discard);
                held
            }
            Some(capture) if capture.bytes.len() > room_bytes => nothing(&room, capture, discard),
            Some(capture) => Held::Change(Box::new(capture), room),
        };
        self.waiting.push(Waiting {
            checkpoint,
            manifest,
            held,
        });
    }

    /// Whether the capture of this manifest waits; its checkpoint is then complete.
    pub(super) fn complete(&mut self, manifest: &ObjectRef) {
        let waiting = self
            .waiting
            .iter()
            .find(|waiting| waiting.manifest == *manifest);
        if let Some(waiting) = waiting {
            self.completed = self.completed.max(Some(waiting.checkpoint));
        }
    }

    /// Whether captures have to be laid over a file that must not change.
    pub(super) fn needs_copy(&self) -> bool {
        let is_mapped = self.kept.as_ref().is_some_and(|kept| kept.is_mapped);
        is_mapped
            && self.next_completed().is_some_and(|last| {
                let mut captures = self.waiting[..=last].iter();
                !captures.any(|waiting| matches!(waiting.held, Held::File(_) | Held::Nothing))
            })
    }

    /// The last capture that waits and whose checkpoint is complete.
    fn next_completed(&self) -> Option<usize> {
        let completed = self.completed?;
        self.waiting
            .iter()
            .position(|waiting| waiting.checkpoint == completed)
    }

    /// Brings the file up to the newest completed checkpoint. Says what has to be read from the store when what is at hand
    /// is not enough. Whether something changed comes with it.
    pub(super) fn advance(&mut self) -> (bool, Option<Missing>) {
        let Some(last) = self.next_completed() else {
            return (false, None);
        };
        let captures: Vec<Waiting> = self.waiting.drain(..=last).collect();
        let of = |waiting: &Waiting| (waiting.checkpoint, waiting.manifest.clone());
        let Some((checkpoint, manifest)) = captures.last().map(of) else {
            return (false, None);
        };
        // While captures are too large to be held, an image that is read would be of no use with the next one.
        let is_read = !matches!(
            captures.last(),
            Some(Waiting {
                held: Held::Nothing,
                ..
            })
        );
        // Before the last one that begins anew, nothing matters.
        let begins = |waiting: &Waiting| !matches!(waiting.held, Held::Change(..));
        let first = captures.iter().rposition(begins).unwrap_or(0);
        let mut file = self.kept.take().map(|kept| kept.file);
        for (index, waiting) in captures.into_iter().enumerate() {
            match waiting.held {
                Held::File(whole) => file = Some(whole),
                Held::Nothing => file = None,
                Held::Change(capture, room) => {
                    if index >= first {
                        let laid = file.as_mut().map(|file| file.lay_over(&capture, &|| true));
                        file = file
                            .filter(|_| laid.is_some_and(|laid| laid.inspect_err(warned).is_ok()));
                    }
                    give_back(&room, *capture);
                }
            }
        }
        match file {
            Some(file) => {
                self.kept = Some(Kept {
                    file,
                    checkpoint,
                    manifest,
                    stored: None,
                    is_mapped: false,
                });
                (true, None)
            }
            None => (true, is_read.then_some((checkpoint, manifest))),
        }
    }

    /// An image was read or copied, of the state before the captures that wait; those of it are dropped.
    pub(super) fn built(&mut self, kept: Kept) {
        let older = self
            .waiting
            .iter()
            .position(|waiting| waiting.checkpoint > kept.checkpoint);
        let rest = self.waiting.split_off(older.unwrap_or(self.waiting.len()));
        self.let_go();
        self.waiting = rest;
        self.kept = Some(kept);
    }

    /// The file, if it is exactly this image.
    pub(super) fn give(&mut self, manifest: &ObjectRef, is_mapped: bool) -> Option<Arc<File>> {
        let kept = self.kept.as_mut()?;
        if kept.manifest != *manifest {
            return None;
        }
        kept.is_mapped |= is_mapped;
        Some(kept.file.share())
    }
}

fn nothing(room: &Room, capture: StoredCapture, discard: &Discard) -> Held {
    part_with(room, capture, discard);
    Held::Nothing
}

/// Lets the task use the buffers again, or has them dropped where they are too large to be kept.
fn part_with(room: &Room, capture: StoredCapture, discard: &Discard) {
    match capture.bytes.capacity() {
        0..=ROOM_KEPT_MAX_BYTES => give_back(room, capture),
        _ => discard.discard(capture),
    }
}

/// Writes the image, unless the attempt ends meanwhile.
fn whole_file(
    capture: &StoredCapture,
    directory: &Path,
    over: &CancellationToken,
    discard: &Discard,
) -> Held {
    let Ok(mut file) = ImageFile::create(directory, 0).inspect_err(warned) else {
        return Held::Nothing;
    };
    let Err(error) = file.lay_over(capture, &|| !over.is_cancelled()) else {
        return Held::File(file);
    };
    if !over.is_cancelled() {
        warned(&error);
    }
    discard.discard(file);
    Held::Nothing
}

/// A file that cannot be written is given up, and that is all.
pub(super) fn warned(error: &io::Error) {
    tracing::warn!(%error, "a local image could not be written; it is dropped");
}
