//! The way of a capture from the task's thread to the store: the upload runs elsewhere, and its outcome is told to the
//! leader. One upload per task is in flight; a capture that comes sooner takes its place, since a checkpoint begins only
//! when the one before is over: what has not been acknowledged by then never counts.

use std::sync::Arc;
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
    upload: Option<Upload>,
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
    ) -> Self {
        Self {
            execution,
            store,
            runtime,
            events,
            stop,
            upload: None,
        }
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

    /// Stores a capture in the background and acknowledges it, or declines. An earlier one that is still under way is
    /// abandoned.
    pub(crate) fn upload(&mut self, captured: Captured) {
        self.abandon(captured.checkpoint);
        let (execution, store, events) = (self.execution, self.store.clone(), self.events.clone());
        let abandon = self.stop.child_token();
        self.upload = Some(Upload {
            checkpoint: captured.checkpoint,
            abandon: abandon.clone(),
        });
        self.runtime.spawn(async move {
            let event = tokio::select! {
                // Once abandoned it says nothing, even if it has just ended.
                biased;
                () = abandon.cancelled() => return,
                event = store_image(&store, execution, captured) => event,
            };
            // The driver outlives every task; when it is gone the process ends.
            let _ = events.send(event);
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
