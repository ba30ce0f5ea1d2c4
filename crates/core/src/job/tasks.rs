//! What tasks say of themselves, and how they are stopped. Words of old attempts, and of tasks that do not run where they
//! should, change nothing but that whoever says them is told to stop.

use tidemill_protocol::control::{Command, DeployTimings, RunningTask, TaskProgress, TaskState};
use tidemill_protocol::{AttemptId, TaskId, TaskManagerId};

use super::{Job, Phase, RegionState, TaskStatus};
use crate::time::Time;

impl Job {
    pub(super) fn task_state(
        &mut self,
        now: Time,
        from: &TaskManagerId,
        attempt: AttemptId,
        task: TaskId,
        state: TaskState,
    ) {
        let Some(region) = self.region_of(task) else {
            return;
        };
        // While the wish to cancel is being stored, tasks go on, and whoever reports them is remembered to be stopped.
        let goes_on = self.phase.is_active() || self.phase == Phase::Cancelling;
        if self.regions[region].state == RegionState::Adopting && goes_on {
            let running = RunningTask {
                job: self.record.id,
                attempt,
                task,
                state,
            };
            self.report(now, from, running);
            return;
        }
        let current = self.regions[region].attempt == Some(attempt)
            && self.regions[region].is_live()
            && self.placements.get(&task) == Some(from);
        if !current || !self.phase.is_active() {
            // What should not be there is stopped again; its first cancellation may have been lost.
            let is_right = current && goes_on;
            if !is_right && !matches!(state, TaskState::Cancelled) {
                self.stop(from, attempt, task);
            }
            return;
        }
        self.attempt_speaks(from, task, attempt);
        if self.coordinator.is_done(task) {
            return;
        }
        match state {
            TaskState::Deploying => {}
            TaskState::Running { timings } => self.task_runs(task, TaskStatus::Running, timings),
            TaskState::Finished => {
                let timings = self.tasks[&task].timings;
                self.task_runs(task, TaskStatus::Finished, timings);
            }
            TaskState::Failed(failure) => {
                self.task_failed(now, from, task, failure);
                self.attempt_ended(attempt);
            }
            TaskState::Unrestorable { reason } => {
                self.unrestorable(now, region, reason);
                self.attempt_ended(attempt);
            }
            TaskState::Cancelled => {
                self.task_gone(now, from, task);
                self.attempt_ended(attempt);
            }
        }
    }

    /// Stops one task of one attempt.
    pub(super) fn stop(&mut self, on: &TaskManagerId, attempt: AttemptId, task: TaskId) {
        let job = self.record.id;
        self.send(
            on,
            Command::Cancel {
                job,
                attempt,
                tasks: [task].into(),
            },
        );
    }

    pub(super) fn task_runs(&mut self, id: TaskId, status: TaskStatus, timings: DeployTimings) {
        if let Some(task) = self.tasks.get_mut(&id)
            && task.status < status
        {
            task.status = status;
            task.timings = timings;
        }
    }

    pub(super) fn progress(&mut self, progress: TaskProgress) {
        if self.attempt(progress.task) == Some(progress.attempt)
            && let Some(task) = self.tasks.get_mut(&progress.task)
        {
            task.progress = Some(progress);
        }
    }

    /// Stops the tasks of a region's attempt, wherever they are.
    pub(super) fn stop_region(&mut self, region: usize) {
        let Some(attempt) = self.regions[region].attempt else {
            return;
        };
        self.attempt_stopped(region, attempt);
        let job = self.record.id;
        for (host, tasks) in self.hosts(region) {
            self.send(
                &host,
                Command::Cancel {
                    job,
                    attempt,
                    tasks,
                },
            );
        }
        for task in &self.region_tasks[region] {
            let task = self
                .tasks
                .get_mut(task)
                .expect("every task of a region is the job's");
            let ends_well = task.status == TaskStatus::Finished && self.phase == Phase::Ending;
            if task.status != TaskStatus::Failed && !ends_well {
                task.status = match self.phase {
                    Phase::Ending => TaskStatus::Cancelled,
                    _ => TaskStatus::Idle,
                };
            }
        }
    }
}
