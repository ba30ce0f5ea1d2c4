//! How a job under a new leader takes over what TaskManagers run: a region whose tasks have all been reported under one
//! attempt is adopted at once, anything else that is reported is stopped, and what is missing when the time is over
//! starts again. The same judgement meets a TaskManager whose control stream broke and came back.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use tidemill_protocol::control::{Command, DeployTimings, RunningTask, TaskState};
use tidemill_protocol::{AttemptId, TaskId, TaskManagerId};

use super::{Job, Note, RegionState, TaskStatus};
use crate::time::{Duration, Time};

/// What a TaskManager said of a task that may be adopted.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) from: TaskManagerId,
    pub(super) attempt: AttemptId,
    state: TaskState,
}

impl Job {
    pub(super) fn registered(
        &mut self,
        now: Time,
        from: &TaskManagerId,
        running: Vec<RunningTask>,
    ) {
        self.suspected.remove(from);
        let reported: BTreeSet<(TaskId, AttemptId)> = running
            .iter()
            .map(|task| (task.task, task.attempt))
            .collect();
        for task in running {
            match self.region_of(task.task) {
                Some(_) => self.task_state(now, from, task.attempt, task.task, task.state),
                None => self.stop(from, task.attempt, task.task),
            }
        }
        let missing = self.placements.iter().find(|(task, place)| {
            let region = self.region_of(**task).map(|region| &self.regions[region]);
            let live = region.filter(|region| region.is_live());
            let attempt = live.and_then(|region| region.attempt);
            *place == from
                && attempt.is_some_and(|attempt| !reported.contains(&(**task, attempt)))
                && !self.coordinator.is_done(**task)
        });
        if let Some((task, _)) = missing {
            self.task_gone(now, from, *task);
        }
        self.repeat_completion(from);
    }

    /// One task that may be adopted.
    pub(super) fn report(&mut self, now: Time, from: &TaskManagerId, running: RunningTask) {
        let RunningTask {
            attempt,
            task,
            state,
            ..
        } = running;
        let gone = matches!(
            state,
            TaskState::Failed(_) | TaskState::Unrestorable { .. } | TaskState::Cancelled
        );
        let newer = self
            .reports
            .get(&task)
            .is_none_or(|known| known.attempt <= attempt);
        if gone || !newer {
            if self
                .reports
                .get(&task)
                .is_some_and(|known| known.attempt == attempt)
            {
                self.reports.remove(&task);
                self.placements.remove(&task);
            }
            self.stop(from, attempt, task);
            return;
        }
        let report = Report {
            from: from.clone(),
            attempt,
            state,
        };
        if let Some(old) = self.reports.insert(task, report)
            && old.attempt < attempt
        {
            self.stop(&old.from, old.attempt, task);
        }
        // Its slot is taken from now on, and it stays there when it has to start again.
        self.placements.insert(task, from.clone());
        if let Some(region) = self.region_of(task) {
            self.adopt(now, region, attempt);
        }
    }

    fn adopt(&mut self, now: Time, region: usize, attempt: AttemptId) {
        let tasks = self.region_tasks[region].clone();
        let complete = tasks.iter().all(|task| {
            self.reports
                .get(task)
                .is_some_and(|report| report.attempt == attempt)
        });
        if !complete {
            return;
        }
        self.regions[region].attempt = Some(attempt);
        self.regions[region].state = RegionState::Deploying;
        self.note(
            now,
            Note::Adopted {
                tasks: tasks.len(),
                attempt,
            },
        );
        for task in tasks {
            let Some(report) = self.reports.remove(&task) else {
                continue;
            };
            let (status, timings) = match report.state {
                TaskState::Running { timings } => (TaskStatus::Running, timings),
                TaskState::Finished => (TaskStatus::Finished, DeployTimings::default()),
                _ => (TaskStatus::Deploying, DeployTimings::default()),
            };
            self.task_runs(task, status, timings);
        }
        for host in self.hosts(region).into_keys() {
            self.repeat_completion(&host);
        }
    }

    /// Repeats that the last checkpoint is published, in case the word of it was lost with a leader or a stream.
    /// Committing again does no harm.
    fn repeat_completion(&mut self, to: &TaskManagerId) {
        let Some(checkpoint) = self.coordinator.last().map(|last| last.checkpoint) else {
            return;
        };
        for region in 0..self.regions.len() {
            let Some(attempt) = self.regions[region].attempt else {
                continue;
            };
            let there = self.region_tasks[region]
                .iter()
                .any(|task| self.placements.get(task) == Some(to));
            // A region that went back to an older checkpoint, or has not begun, holds nothing of this one.
            let restored = self.regions[region].restored;
            let holds = restored.is_none_or(|restored| restored <= checkpoint);
            if there && holds && self.regions[region].is_live() && self.phase.is_active() {
                let job = self.record.id;
                self.send(
                    to,
                    Command::CompleteCheckpoint {
                        job,
                        attempt,
                        checkpoint,
                    },
                );
            }
        }
    }

    pub(super) fn adoption_over(&mut self, now: Time) {
        let left: BTreeSet<usize> = (0..self.regions.len())
            .filter(|region| self.regions[*region].state == RegionState::Adopting)
            .collect();
        if left.is_empty() {
            return;
        }
        let tasks: Vec<TaskId> = left
            .iter()
            .flat_map(|region| self.region_tasks[*region].iter().copied())
            .collect();
        let reports = core::mem::take(&mut self.reports);
        let missing = tasks
            .iter()
            .filter(|task| !reports.contains_key(task))
            .count();
        for (task, report) in reports {
            self.stop(&report.from, report.attempt, task);
        }
        for region in &left {
            self.regions[*region].state = RegionState::Pending;
        }
        let cause = format!("{missing} tasks were not reported after the JobManager's restart");
        let (restarted, delay) = (tasks.len(), Duration::ZERO);
        self.begin_recovery(now, left, cause.clone(), missing, restarted, delay);
        self.note(
            now,
            Note::RecoveryBegun {
                cause,
                restarted,
                delay,
            },
        );
    }
}
