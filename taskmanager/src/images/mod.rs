//! Local images: for each task a flat file on this machine's disk that is the task's memory at its last completed
//! checkpoint. A task that goes back to that checkpoint here reads, or maps, the file instead of the object store.
//!
//! Other TaskManagers may read them too, where a task is restored whose image is not there.
//!
//! One thread keeps them, so that whatever is said of an image happens in the order in which it was said; no task ever
//! waits for it but one that is being restored. They are a convenience: whatever goes wrong with one, it is dropped.

mod build;
mod discard;
mod entry;
mod file;
mod loan;
mod peer;
mod place;
mod source;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tidemill_protocol::control::{WarmImages, WarmTask};
use tidemill_protocol::image::StoredCapture;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{CheckpointId, JobId, TaskId};
use tidemill_runtime::CaptureRoom;
use tidemill_storage::Store;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::task::{Execution, TaskEvent};

use discard::Discard;
pub(crate) use file::read_runs;
use loan::Loan;
pub(crate) use peer::{PeerImage, Peers, serve_peers};
use place::Place;
pub(crate) use source::{StoredSource, unreadable};
use table::{Built, Table};

/// How often it is looked for images that nobody needs any more, or that have waited for others.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long a task whose memory is lost waits for the thread that keeps images, which may be writing one.
const CLAIM_PATIENCE: Duration = Duration::from_millis(250);

/// How long a task waits that has its memory still: what has changed in it since is mostly little, and in the store too.
const SURVIVOR_CLAIM_PATIENCE: Duration = Duration::from_millis(20);

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
    /// Cancelled when its attempt ends: writing a large one is of no use any more, and in the way of the next attempt.
    pub(crate) over: CancellationToken,
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
    shown: Arc<Mutex<Shown>>,
}

/// What the thread says of the images that are here whole.
#[derive(Debug, Default)]
struct Shown {
    /// Those for tasks that run elsewhere.
    warm: Vec<WarmTask>,
    /// All of them, for others to read.
    lent: HashMap<Key, (ObjectRef, Loan)>,
}

/// Where images are and how much room they may take.
#[derive(Clone, Debug)]
pub(crate) struct ImagesOptions {
    /// Files are made in a directory of this process in it.
    pub(crate) directory: PathBuf,
    /// What all of them may take of the disk, in bytes; 0 keeps none.
    pub(crate) max_bytes: u64,
}

impl Images {
    /// Keeps none.
    pub(crate) fn none() -> Self {
        Self {
            commands: None,
            shown: Arc::default(),
        }
    }

    /// Starts the thread. It ends soon after the last clone.
    ///
    /// # Errors
    /// When the directory cannot be made, or the system gives no thread.
    pub(crate) fn start(
        mut options: ImagesOptions,
        store: Store,
        runtime: Handle,
        events: UnboundedSender<TaskEvent>,
    ) -> std::io::Result<Self> {
        if options.max_bytes == 0 {
            return Ok(Self::none());
        }
        let place = Place::take(&options.directory)?;
        options.directory = place.path().to_owned();
        let (commands, received) = channel();
        let images = Self {
            commands: Some(commands.clone()),
            shown: Arc::default(),
        };
        let done = move |built| {
            // Nobody listens when the thread has ended.
            let _ = commands.send(Command::Built(built));
        };
        let builder = build::Builder::new(options.directory.clone(), store, runtime, done);
        let (shown, table) = (
            Arc::clone(&images.shown),
            Table::new(options, builder, Discard::start()?),
        );
        std::thread::Builder::new()
            .name("images".to_owned())
            .spawn(move || {
                keep(table, &received, &shown, &events);
                drop(place);
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
        let patience = match is_mapped {
            true => CLAIM_PATIENCE,
            false => SURVIVOR_CLAIM_PATIENCE,
        };
        let answered = tokio::time::timeout(patience, answered).await;
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
        lock(&self.shown).warm.clone()
    }

    /// Lends images to others, for as long as they are kept.
    pub(crate) fn lender(&self) -> Lender {
        Lender(Arc::downgrade(&self.shown))
    }
}

/// Lends what is kept here, and keeps nothing itself.
#[derive(Clone, Debug)]
pub(crate) struct Lender(Weak<Mutex<Shown>>);

impl Lender {
    /// The image of a task, if it is here whole and exactly this one.
    fn lend(&self, job: JobId, task: TaskId, manifest: &ObjectRef) -> Option<Loan> {
        let shown = self.0.upgrade()?;
        let shown = lock(&shown);
        let (of, loan) = shown.lent.get(&(job, task))?;
        (of == manifest).then(|| loan.clone())
    }
}

/// Nothing that runs under the lock can leave it half-changed.
fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread does that keeps images.
fn keep(
    mut table: Table,
    received: &Receiver<Command>,
    shown: &Arc<Mutex<Shown>>,
    events: &UnboundedSender<TaskEvent>,
) {
    let mut swept = Instant::now();
    // The table can be told things as well, so it is the clones that are counted.
    while Arc::strong_count(shown) > 1 {
        let said = match received.recv_timeout(SWEEP_INTERVAL.saturating_sub(swept.elapsed())) {
            Ok(command) => table.handle(command),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if swept.elapsed() >= SWEEP_INTERVAL {
            swept = Instant::now();
            table.sweep();
        }
        let (warm, lent) = (table.warm(), table.lent());
        *lock(shown) = Shown { warm, lent };
        if let Some(warm) = said {
            // The driver outlives every task; when it is gone the process ends.
            let _ = events.send(TaskEvent::Warm(warm));
        }
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
type Key = (JobId, TaskId);

fn key(execution: Execution) -> Key {
    (execution.job, execution.task)
}
