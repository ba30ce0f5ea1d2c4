//! The way of a capture from the task's thread to the store: the upload runs elsewhere, and its outcome is told to the
//! leader. One upload per task is in flight; a capture that comes sooner takes its place, since a checkpoint begins only
//! when the one before is over: what has not been acknowledged by then never counts.
//!
//! A capture holds what changed since the one before, so what was not stored must be captured again: it is remembered
//! here which pages those are.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidemill_protocol::CheckpointId;
use tidemill_protocol::control::{CaptureStats, CheckpointAcknowledgement, TaskState};
use tidemill_protocol::image::{PageRun, StoredCapture};
use tidemill_runtime::{CAPTURE_PAGE_BYTES, CaptureRoom};
use tidemill_storage::{CaptureId, ImageChain, Store};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::counters::micros;
use super::recorded::Recorded;
use super::remains::Changed;
use super::{Execution, TaskEvent};
use crate::images::{Images, ROOM_KEPT_MAX_BYTES, Room, Stored};

/// How many pages a capture holds at most for the sake of segments that are mostly dead: 4 MiB.
const REWRITTEN_PAGES_MAX: u32 = 1024;

/// What a body has become since its last capture.
pub(crate) struct Change {
    pub(crate) capture: StoredCapture,
    /// It does not build on the capture before: whatever it does not name is zero.
    pub(crate) whole: bool,
}

impl Change {
    /// How many pages changed since the capture before; none where nobody has looked.
    pub(crate) fn changed_pages(&self) -> u64 {
        let runs = self.capture.runs.iter().filter(|_| !self.whole);
        runs.map(|run| u64::from(run.pages)).sum()
    }
}

/// A capture on its way.
pub(crate) struct Captured {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) change: Change,
    pub(crate) finished: bool,
    pub(crate) alignment: Duration,
    pub(crate) pause: Duration,
    /// Pages that were copied before the pause.
    pub(crate) ahead_pages: u64,
    /// Comes when the channels whose barriers were late have been recorded; `None` when none were.
    pub(crate) recorded: Option<oneshot::Receiver<Recorded>>,
}

/// What a task needs in order to hand captures and news to the outside.
pub(crate) struct Capturing {
    execution: Execution,
    store: Store,
    runtime: Handle,
    events: UnboundedSender<TaskEvent>,
    stop: CancellationToken,
    upload: Option<Upload>,
    last: Option<Last>,
    shared: Arc<Shared>,
    changed: Changed,
}

/// The capture that was made last.
struct Last {
    runs: Vec<PageRun>,
    whole: bool,
    stored: Arc<AtomicBool>,
}

/// What one upload leaves to the next.
struct Shared {
    /// What is stored of the task; an upload holds it while it writes.
    chain: tokio::sync::Mutex<ImageChain>,
    /// Pages that are to be written again for the sake of mostly dead segments.
    rewritten: Mutex<Vec<Range<u32>>>,
    /// The buffers of a capture that nobody needs any more.
    room: Room,
    /// Keep the local image.
    images: Images,
    /// Cancelled when the task ends.
    over: CancellationToken,
}

/// The upload that was begun last; it may have ended.
struct Upload {
    checkpoint: CheckpointId,
    abandon: CancellationToken,
}

impl Capturing {
    pub(crate) fn new(
        execution: Execution,
        store: Store,
        runtime: Handle,
        events: UnboundedSender<TaskEvent>,
        stop: CancellationToken,
        chain: ImageChain,
    ) -> Self {
        Self {
            execution,
            store,
            runtime,
            events,
            stop: stop.clone(),
            upload: None,
            last: None,
            shared: Arc::new(Shared {
                chain: tokio::sync::Mutex::new(chain),
                rewritten: Mutex::default(),
                room: Room::default(),
                images: Images::none(),
                over: stop,
            }),
            changed: Changed::default(),
        }
    }

    /// Of a task that goes on from this checkpoint, if any, and whose local image is kept.
    pub(crate) fn keeping(mut self, restored: Option<CheckpointId>, images: Images) -> Self {
        self.changed = Changed::since_restore(restored);
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.images = images;
        }
        self
    }

    /// The body has been captured: from now on its pages count as unchanged, whatever becomes of the capture.
    pub(crate) fn captured(&mut self, checkpoint: CheckpointId, change: &Change) {
        self.changed.captured(checkpoint, change);
    }

    /// What the captures of this attempt held.
    pub(crate) fn into_changed(self) -> Changed {
        self.changed
    }

    /// The pages that the next capture has to hold even if they do not change: those of a capture that is not stored,
    /// and those that alone keep mostly dead segments alive.
    pub(crate) fn again(&self) -> Vec<Range<u32>> {
        let mut pages = take(&self.shared.rewritten);
        let not_stored = self.last.iter().filter(|last| !last.is_stored());
        let runs = not_stored.flat_map(|last| &last.runs);
        pages.extend(runs.map(|run| run.first..run.first + run.pages));
        pages
    }

    /// Buffers for the next capture.
    pub(crate) fn room(&self) -> CaptureRoom {
        take(&self.shared.room)
    }

    fn send(&self, event: TaskEvent) {
        // The driver outlives every task; when it is gone the process ends.
        let _ = self.events.send(event);
    }

    /// The task has changed state.
    pub(crate) fn report(&self, state: TaskState) {
        self.send(TaskEvent::State {
            execution: self.execution,
            state,
        });
    }

    /// Everything prepared up to the checkpoint is committed.
    pub(crate) fn committed(&mut self, checkpoint: CheckpointId) {
        self.changed.completed(checkpoint);
        self.shared.images.completed(self.execution, checkpoint);
        self.send(TaskEvent::Committed {
            execution: self.execution,
            checkpoint,
        });
    }

    /// The task takes no part in the checkpoint.
    pub(crate) fn decline(&self, checkpoint: CheckpointId, reason: &str) {
        self.send(TaskEvent::Declined {
            execution: self.execution,
            checkpoint,
            reason: reason.to_owned(),
        });
    }

    /// Stores a capture in the background and acknowledges it, or declines. An earlier one that is still under way is
    /// abandoned.
    pub(crate) fn upload(&mut self, mut captured: Captured) {
        let Captured {
            checkpoint, change, ..
        } = &mut captured;
        let checkpoint = *checkpoint;
        self.abandon(checkpoint);
        // What holds every page of a whole capture that is not stored, and whatever changed since, is whole itself.
        change.whole |= self
            .last
            .as_ref()
            .is_some_and(|last| last.whole && !last.is_stored());
        let stored = Arc::new(AtomicBool::new(false));
        self.last = Some(Last {
            runs: change.capture.runs.clone(),
            whole: change.whole,
            stored: Arc::clone(&stored),
        });
        let (execution, store, events) = (self.execution, self.store.clone(), self.events.clone());
        let shared = Arc::clone(&self.shared);
        let dirty_bytes = captured.first_stats().dirty_bytes;
        let abandon = self.stop.child_token();
        self.upload = Some(Upload {
            checkpoint,
            abandon: abandon.clone(),
        });
        self.runtime.spawn(async move {
            let event = tokio::select! {
                // Once abandoned it says nothing, even if it has just ended.
                biased;
                () = abandon.cancelled() => return,
                event = store_capture(&store, execution, captured, &shared, &stored) => event,
            };
            // The driver outlives every task; when it is gone the process ends.
            let _ = events.send(event);
            warm_room(&shared.room, dirty_bytes).await;
        });
    }

    /// Ends an upload for this checkpoint or a lesser one; it is not acknowledged.
    pub(crate) fn abandon(&mut self, up_to: CheckpointId) {
        if let Some(upload) = self.upload.take_if(|upload| upload.checkpoint <= up_to) {
            upload.abandon.cancel();
        }
    }

    /// Ends whatever upload is under way.
    pub(crate) fn abandon_all(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abandon.cancel();
        }
    }
}

impl Captured {
    /// What is known of its cost before it is stored.
    fn first_stats(&self) -> CaptureStats {
        CaptureStats {
            alignment_us: micros(self.alignment),
            pause_us: micros(self.pause),
            dirty_bytes: self.change.capture.bytes.len() as u64,
            ahead_bytes: self.ahead_pages * CAPTURE_PAGE_BYTES as u64,
            unaligned: self.recorded.is_some(),
            ..CaptureStats::default()
        }
    }
}

impl Last {
    fn is_stored(&self) -> bool {
        self.stored.load(Ordering::Acquire)
    }
}

/// What is in a slot; nobody panics while it is locked.
fn take<T: Default>(slot: &Mutex<T>) -> T {
    std::mem::take(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner))
}

fn put<T>(slot: &Mutex<T>, value: T) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

/// The next capture is likely as large as this one, whose buffers the local image holds until the checkpoint is complete.
/// Memory that the kernel has yet to find would make the task's pause several times as long.
async fn warm_room(room: &Room, dirty_bytes: u64) {
    let wanted = usize::try_from(dirty_bytes).unwrap_or(usize::MAX);
    let wanted = wanted.saturating_add(wanted / 4);
    if wanted > ROOM_KEPT_MAX_BYTES || wanted == 0 {
        return;
    }
    let room = Arc::clone(room);
    let warmed = tokio::task::spawn_blocking(move || {
        let mut warm = take(&room);
        warm.warm(wanted);
        let mut place = room.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have come back meanwhile.
        if place.capacity_bytes() < warm.capacity_bytes() {
            *place = warm;
        }
    });
    // Nothing in it panics; without it the next capture takes longer.
    let _ = warmed.await;
}

fn capture_id(execution: Execution, checkpoint: CheckpointId) -> CaptureId {
    let Execution { job, task, attempt } = execution;
    CaptureId {
        job,
        task,
        attempt,
        checkpoint,
    }
}

async fn store_capture(
    store: &Store,
    execution: Execution,
    captured: Captured,
    shared: &Shared,
    stored: &AtomicBool,
) -> TaskEvent {
    let mut stats = captured.first_stats();
    let Captured {
        checkpoint,
        change: Change { mut capture, whole },
        finished,
        recorded,
        ..
    } = captured;
    let Execution { job, task, attempt } = execution;
    let declined = |reason: String| TaskEvent::Declined {
        execution,
        checkpoint,
        reason,
    };
    if let Some(recorded) = recorded {
        let Ok(recorded) = recorded.await else {
            return declined("the frames before late barriers were not recorded".to_owned());
        };
        capture.channel_state = recorded.encode();
        stats.channel_bytes = recorded.bytes() as u64;
    }
    let began = Instant::now();
    // The upload before has ended or been abandoned; it lets go at once.
    let mut chain = shared.chain.lock().await;
    if whole {
        *chain = ImageChain::new();
    }
    let id = capture_id(execution, checkpoint);
    let capture = Arc::new(capture);
    let written = match store.write_capture(id, &capture, &mut chain).await {
        Ok(written) => written,
        Err(error) => return declined(crate::error_chain(&error)),
    };
    stored.store(true, Ordering::Release);
    put(
        &shared.rewritten,
        chain.pages_to_write_again(REWRITTEN_PAGES_MAX),
    );
    let image = Stored {
        checkpoint,
        manifest: written.manifest.clone(),
        capture: Arc::into_inner(capture),
        whole,
        room: Arc::clone(&shared.room),
        over: shared.over.clone(),
    };
    shared.images.stored(execution, image);
    stats.upload_us = micros(began.elapsed());
    stats.image_bytes = written.image_bytes;
    stats.written_bytes = written.written_bytes;
    TaskEvent::Acknowledged(CheckpointAcknowledgement {
        job,
        attempt,
        task,
        checkpoint,
        manifest: written.manifest,
        finished,
        stats,
    })
}
