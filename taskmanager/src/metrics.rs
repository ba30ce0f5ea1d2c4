//! `/metrics` of a TaskManager: what its tasks did and what became of its captures, in Prometheus' text format, version
//! 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>). Figures are those of the last report.
//!
//! It tells, and takes no orders: nothing that is asked here changes anything.

mod exposition;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use tidemill_protocol::control::{
    CaptureStats, CheckpointAcknowledgement, DeployTimings, ImageSource, TaskProgress, TaskState,
};
use tidemill_protocol::{JobId, TaskId};
use tokio::net::TcpListener;
use tracing::warn;

use crate::task::{Execution, TaskEvent};

use exposition::exposition;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How the TaskManager is.
pub(crate) struct Standing {
    pub(crate) slots: u32,
    pub(crate) has_leader: bool,
    pub(crate) is_draining: bool,
    /// Images kept for tasks elsewhere.
    pub(crate) warm: usize,
    /// Every task that runs here.
    pub(crate) tasks: Vec<TaskProgress>,
}

/// The figures so far. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    figures: Arc<Mutex<Figures>>,
}

#[derive(Default)]
struct Figures {
    standing: Option<Standing>,
    /// Of tasks that run here, and of those that have been started since the last report.
    tasks: BTreeMap<(JobId, TaskId), TaskFigures>,
    tasks_failed: u64,
    captures_declined: u64,
    channels_broken: u64,
    /// Tasks that ran, by where their image came from.
    started: BTreeMap<ImageSource, u64>,
}

/// Of one task, whichever its attempt.
#[derive(Clone, Copy, Default)]
struct TaskFigures {
    deployed: DeployTimings,
    captures: u64,
    unaligned: u64,
    dirty_bytes: u64,
    ahead_bytes: u64,
    written_bytes: u64,
    channel_bytes: u64,
    last: CaptureStats,
}

impl TaskFigures {
    fn captured(&mut self, stats: CaptureStats) {
        self.captures += 1;
        self.unaligned += u64::from(stats.unaligned);
        self.dirty_bytes = self.dirty_bytes.saturating_add(stats.dirty_bytes);
        self.ahead_bytes = self.ahead_bytes.saturating_add(stats.ahead_bytes);
        self.written_bytes = self.written_bytes.saturating_add(stats.written_bytes);
        self.channel_bytes = self.channel_bytes.saturating_add(stats.channel_bytes);
        self.last = stats;
    }
}

impl Metrics {
    /// Begins to serve them, and says where.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub(crate) async fn serve(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let router = Router::new()
            .route("/metrics", get(answer))
            .with_state(self.clone());
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                warn!(%error, "metrics are not served any more");
            }
        });
        Ok(bound)
    }

    /// Something happened to a task.
    pub(crate) fn happened(&self, event: &TaskEvent) {
        let mut figures = self.lock();
        match event {
            TaskEvent::State { execution, state } => figures.changed(*execution, state),
            TaskEvent::Acknowledged(CheckpointAcknowledgement {
                job, task, stats, ..
            }) => figures.task(*job, *task).captured(*stats),
            TaskEvent::Declined { .. } => figures.captures_declined += 1,
            TaskEvent::ChannelBroken { .. } => figures.channels_broken += 1,
            TaskEvent::Committed { .. } | TaskEvent::SplitWanted(_) | TaskEvent::Warm(_) => {}
        }
    }

    /// A report is due. What does not run here any more is forgotten.
    pub(crate) fn reported(&self, standing: Standing) {
        let mut figures = self.lock();
        figures.tasks.retain(|(job, task), _| {
            let runs = |progress: &TaskProgress| (progress.job, progress.task) == (*job, *task);
            standing.tasks.iter().any(runs)
        });
        figures.standing = Some(standing);
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        // Nothing that holds it leaves it half changed.
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Figures {
    fn task(&mut self, job: JobId, task: TaskId) -> &mut TaskFigures {
        self.tasks.entry((job, task)).or_default()
    }

    fn changed(&mut self, Execution { job, task, .. }: Execution, state: &TaskState) {
        match state {
            TaskState::Running { timings } => {
                self.task(job, task).deployed = *timings;
                *self.started.entry(timings.source).or_default() += 1;
            }
            TaskState::Failed(_) | TaskState::Unrestorable { .. } => self.tasks_failed += 1,
            TaskState::Deploying | TaskState::Finished | TaskState::Cancelled => {}
        }
    }
}

async fn answer(State(metrics): State<Metrics>) -> impl IntoResponse {
    let text = exposition(&metrics.lock());
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text)
}
