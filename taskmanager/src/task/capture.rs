//! The way of a capture from the task's thread to the store: the upload runs elsewhere, and its outcome is told to the
//! leader. One upload per task is in flight; a capture that comes sooner is declined.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidemill_protocol::CheckpointId;
use tidemill_protocol::control::{CaptureStats, CheckpointAcknowledgement, TaskState};
use tidemill_protocol::image::Image;
use tidemill_storage::Store;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::counters::micros;
use super::{Execution, TaskEvent};

/// A capture on its way.
pub(crate) struct Captured {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) image: Image,
    pub(crate) finished: bool,
    pub(crate) alignment: Duration,
    pub(crate) pause: Duration,
}

/// What a task needs in order to hand captures and news to the outside.
pub(crate) struct Capturing {
    execution: Execution,
    store: Store,
    runtime: Handle,
    events: UnboundedSender<TaskEvent>,
    stop: CancellationToken,
    in_flight: Arc<AtomicBool>,
}

impl Capturing {
    pub(crate) fn new(
        execution: Execution,
        store: Store,
        runtime: Handle,
        events: UnboundedSender<TaskEvent>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            execution,
            store,
            runtime,
            events,
            stop,
            in_flight: Arc::default(),
        }
    }

    fn send(&self, event: TaskEvent) {
        // The driver outlives every task; when it is gone the process ends.
        let _ = self.events.send(event);
    }

    /// Whether no upload is under way.
    pub(crate) fn is_free(&self) -> bool {
        !self.in_flight.load(Ordering::Acquire)
    }

    /// The task has changed state.
    pub(crate) fn report(&self, state: TaskState) {
        self.send(TaskEvent::State {
            execution: self.execution,
            state,
        });
    }

    /// Everything prepared up to the checkpoint is committed.
    pub(crate) fn committed(&self, checkpoint: CheckpointId) {
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

    /// Stores a capture in the background and acknowledges it, or declines.
    pub(crate) fn upload(&self, captured: Captured) {
        self.in_flight.store(true, Ordering::Release);
        let (execution, store, events) = (self.execution, self.store.clone(), self.events.clone());
        let (stop, in_flight) = (self.stop.clone(), Arc::clone(&self.in_flight));
        self.runtime.spawn(async move {
            let event = tokio::select! {
                event = store_image(&store, execution, captured) => Some(event),
                () = stop.cancelled() => None,
            };
            in_flight.store(false, Ordering::Release);
            if let Some(event) = event {
                let _ = events.send(event);
            }
        });
    }
}

async fn store_image(store: &Store, execution: Execution, captured: Captured) -> TaskEvent {
    let Captured {
        checkpoint,
        image,
        finished,
        alignment,
        pause,
    } = captured;
    let Execution { job, task, attempt } = execution;
    let began = Instant::now();
    match store
        .write_image(job, task, attempt, checkpoint, &Arc::new(image))
        .await
    {
        Ok(written) => TaskEvent::Acknowledged(CheckpointAcknowledgement {
            job,
            attempt,
            task,
            checkpoint,
            manifest: written.manifest,
            finished,
            stats: CaptureStats {
                alignment_us: micros(alignment),
                pause_us: micros(pause),
                upload_us: micros(began.elapsed()),
                image_bytes: written.image_bytes,
                written_bytes: written.written_bytes,
            },
        }),
        Err(error) => TaskEvent::Declined {
            execution,
            checkpoint,
            reason: crate::error_chain(&error),
        },
    }
}
