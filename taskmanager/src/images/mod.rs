//! Local images: for each task a flat file on this machine's disk that is the task's memory at its last completed
//! checkpoint. A task that goes back to that checkpoint here reads, or maps, the file instead of the object store.
//!
//! One thread keeps them, so that whatever is said of an image happens in the order in which it was said; no task ever
//! waits for it but one that is being restored. They are a convenience: whatever goes wrong with one, it is dropped.

mod build;
mod entry;
mod file;
mod source;
mod table;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidemill_protocol::control::{WarmImages, WarmTask};
use tidemill_protocol::image::StoredCapture;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{CheckpointId, JobId};
use tidemill_runtime::CaptureRoom;
use tidemill_storage::Store;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tracing::warn;

use crate::task::{Execution, TaskEvent};

pub(crate) use file::read_runs;
pub(crate) use source::{StoredSource, unreadable};
use table::{Built, Table};

/// How often it is looked for images that nobody needs any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long a task that is restored waits for the thread that keeps images.
const CLAIM_PATIENCE: Duration = Duration::from_millis(250);

/// Where the buffers of a capture go when they are not needed any more: its task uses them again.
pub(crate) type Room = Arc<Mutex<CaptureRoom>>;

/// A capture that is stored.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) manifest: ObjectRef,
    /// `None` when it is not at hand any more.
    pub(crate) capture: Option<StoredCapture>,
    pub(crate) whole: bool,
    pub(crate) room: Room,
}

/// What the thread is told.
#[derive(Debug)]
enum Command {
    Stored(Execution, Box<Stored>),
    Completed(Execution, CheckpointId),
    Claim(Claim),
    Stopped(Execution),
    KeepWarm(WarmImages),
    Built(Built),
}

/// A new attempt of a task goes back to an image.
#[derive(Debug)]
struct Claim {
    execution: Execution,
    manifest: ObjectRef,
    /// It maps the file, which must not change from then on.
    is_mapped: bool,
    answer: oneshot::Sender<Option<Arc<File>>>,
}

/// The local images of this TaskManager. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// `None` keeps none.
    commands: Option<Sender<Command>>,
    warm: Arc<Mutex<Vec<WarmTask>>>,
}

/// Where images are and how much room they may take.
#[derive(Clone, Debug)]
pub(crate) struct ImagesOptions {
    /// Files are made in it, without names.
    pub(crate) directory: PathBuf,
    /// What all of them may take of the disk, in bytes; 0 keeps none.
    pub(crate) max_bytes: u64,
}

impl Images {
    /// Keeps none.
    pub(crate) fn none() -> Self {
        Self {
            commands: None,
            warm: Arc::default(),
        }
    }

    /// Starts the thread. It ends soon after the last clone.
    ///
    /// # Errors
    /// When the directory cannot be made, or the system gives no thread.
    pub(crate) fn start(
        options: ImagesOptions,
        store: Store,
        runtime: Handle,
        events: UnboundedSender<TaskEvent>,
    ) -> std::io::Result<Self> {
        if options.max_bytes == 0 {
            return Ok(Self::none());
        }
        std::fs::create_dir_all(&options.directory)?;
        let (commands, received) = channel();
        let images = Self {
            commands: Some(commands.clone()),
            warm: Arc::default(),
        };
        let done = move |built| {
            // Nobody listens when the thread has ended.
            let _ = commands.send(Command::Built(built));
        };
        let builder = build::Builder::new(options.directory.clone(), store, runtime, done);
        let (warm, mut table) = (Arc::clone(&images.warm), Table::new(options, builder));
        std::thread::Builder::new()
            .name("images".to_owned())
            .spawn(move || {
                // The table can be told things as well, so it is the clones that are counted.
                while Arc::strong_count(&warm) > 1 {
                    let said = match received.recv_timeout(SWEEP_INTERVAL) {
                        Ok(command) => table.handle(command),
                        Err(RecvTimeoutError::Timeout) => {
                            table.sweep();
                            None
                        }
                        Err(RecvTimeoutError::Disconnected) => return,
                    };
                    *warm.lock().unwrap_or_else(PoisonError::into_inner) = table.warm();
                    if let Some(warm) = said {
                        // The driver outlives every task; when it is gone the process ends.
                        let _ = events.send(TaskEvent::Warm(warm));
                    }
                }
            })?;
        Ok(images)
    }

    fn tell(&self, command: Command) {
        if let Some(commands) = &self.commands
            && commands.send(command).is_err()
        {
            warn!("the thread that keeps local images is gone");
        }
    }

    /// A capture is stored: the next image is made of it when its checkpoint, or a later one, is complete.
    pub(crate) fn stored(&self, execution: Execution, stored: Stored) {
        match (&self.commands, stored.capture) {
            (None, Some(capture)) => give_back(&stored.room, capture),
            (None, None) => {}
            (Some(_), capture) => {
                let stored = Stored { capture, ..stored };
                self.tell(Command::Stored(execution, Box::new(stored)));
            }
        }
    }

    /// A checkpoint is complete.
    pub(crate) fn completed(&self, execution: Execution, checkpoint: CheckpointId) {
        self.tell(Command::Completed(execution, checkpoint));
    }

    /// The image file of the task, if it is exactly this image. What is kept of the task's attempts before is over.
    /// The file does not change until a checkpoint of the new attempt is complete, and never if it is to be mapped.
    pub(crate) async fn claim(
        &self,
        execution: Execution,
        manifest: &ObjectRef,
        is_mapped: bool,
    ) -> Option<Arc<File>> {
        self.commands.as_ref()?;
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Claim(Claim {
            execution,
            manifest: manifest.clone(),
            is_mapped,
            answer,
        }));
        let answered = tokio::time::timeout(CLAIM_PATIENCE, answered).await;
        answered.ok()?.ok()?
    }

    /// The attempt does not run here any more.
    pub(crate) fn stopped(&self, execution: Execution) {
        self.tell(Command::Stopped(execution));
    }

    /// Keeps images of tasks that run elsewhere: these of the job, and no others of it.
    pub(crate) fn keep_warm(&self, images: WarmImages) {
        self.tell(Command::KeepWarm(images));
    }

    /// The images that are here whole for tasks that run elsewhere.
    pub(crate) fn warm(&self) -> Vec<WarmTask> {
        self.warm
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Buffers larger than this are not kept for the next capture, in bytes.
pub(crate) const ROOM_KEPT_MAX_BYTES: usize = 256 << 20;

/// Lets the task use a capture's buffers again.
pub(crate) fn give_back(room: &Room, capture: StoredCapture) {
    if capture.bytes.capacity() <= ROOM_KEPT_MAX_BYTES {
        *room.lock().unwrap_or_else(PoisonError::into_inner) = CaptureRoom::from(capture);
    }
}

/// Which task of which job.
type Key = (JobId, tidemill_protocol::TaskId);

fn key(execution: Execution) -> Key {
    (execution.job, execution.task)
}
