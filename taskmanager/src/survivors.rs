//! What tasks leave behind when they are stopped, kept for a moment: a failed region's tasks are stopped first and
//! deployed again when there is a plan, and those that stay where they were go on in the memory that they had.
//!
//! It never decides whether something is of use; whoever is given it looks at what is in it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidemill_protocol::{JobId, TaskId};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::task::Remains;

/// How long something is kept for an attempt that may never come.
const KEPT: Duration = Duration::from_secs(10);

/// How long a new attempt waits for the old one's thread, which may be in the middle of a call.
const THREAD_PATIENCE: Duration = Duration::from_millis(250);

/// What one stopped task leaves; it may still be on its way.
pub(crate) struct Survivor {
    remains: oneshot::Receiver<Remains>,
    stopped_at: Instant,
}

/// What stopped tasks have left.
pub(crate) struct Survivors {
    kept: HashMap<(JobId, TaskId), Survivor>,
    runtime: Handle,
}

impl Survivor {
    /// Waits for the old thread, but not long. `None` when it is not done, or has nothing to leave.
    pub(crate) async fn remains(self) -> Option<Remains> {
        tokio::time::timeout(THREAD_PATIENCE, self.remains)
            .await
            .ok()?
            .ok()
    }
}

impl Survivors {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            kept: HashMap::new(),
            runtime,
        }
    }

    /// A task was stopped.
    pub(crate) fn keep(&mut self, job: JobId, task: TaskId, remains: oneshot::Receiver<Remains>) {
        let survivor = Survivor {
            remains,
            stopped_at: Instant::now(),
        };
        let before = self.kept.insert((job, task), survivor);
        self.give_back(before.into_iter().collect());
    }

    /// What the task's last attempt here has left.
    pub(crate) fn take(&mut self, job: JobId, task: TaskId) -> Option<Survivor> {
        self.kept.remove(&(job, task))
    }

    /// A job is deployed that has left nothing here: the memory is for it.
    pub(crate) fn make_room(&mut self, job: JobId) {
        if !self.kept.keys().any(|(of, _)| *of == job) {
            self.give_up(|_, _| true);
        }
    }

    /// The job needs nothing here any more.
    pub(crate) fn forget(&mut self, job: JobId) {
        self.give_up(|of, _| of == job);
    }

    /// Gives up what nobody has come for.
    pub(crate) fn expire(&mut self) {
        self.give_up(|_, survivor| survivor.stopped_at.elapsed() > KEPT);
    }

    fn give_up(&mut self, which: impl Fn(JobId, &Survivor) -> bool) {
        let given_up = self
            .kept
            .extract_if(|(job, _), survivor| which(*job, survivor));
        let given_up: Vec<_> = given_up.map(|(_, survivor)| survivor).collect();
        self.give_back(given_up);
    }

    /// The system takes a tenth of a second to take a GiB back, so that is done where nobody waits.
    fn give_back(&self, survivors: Vec<Survivor>) {
        if !survivors.is_empty() {
            self.runtime.spawn_blocking(move || drop(survivors));
        }
    }
}
