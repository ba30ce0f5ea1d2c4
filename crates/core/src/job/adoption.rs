//! How a job under a new leader takes over what TaskManagers run: a region whose tasks have all been reported under one
//! attempt is adopted at once, one whose reports do not fit together starts again at once, and what is missing when the
//! time is over starts again then. The same judgement meets a TaskManager whose control stream broke and came back.
//!
//! Nothing is adopted before the last checkpoint's metadata is known: an attempt that is older than the one which made it
//! was replaced while its TaskManagers were out of reach, and what it goes on to commit is committed already.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::control::{Command, DeployTimings, RunningTask, TaskFailure, TaskState};
use tidemill_protocol::record::JobState;
use tidemill_protocol::{AttemptId, TaskId, TaskManagerId};

use super::{Action, DEPLOY_TIMEOUT, Job, Note, Phase, RETRY, RegionState, TaskStatus, Timer};
use crate::mutation::{self, Mutation};
use crate::restart::Decision;
use crate::time::{Duration, Time};

/// What is known of a task that may be adopted.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) from: TaskManagerId,
    pub(super) attempt: AttemptId,
    found: Found,
}

#[derive(Clone, Debug)]
enum Found {
    /// It is there.
    Lives(TaskState),
    /// It failed meanwhile.
    Failed(TaskFailure),
    /// It is gone without a word of its own, or its TaskManager is.
    Gone,
}

impl Found {
    fn of(state: TaskState) -> Self {
        match state {
            TaskState::Failed(failure) => Self::Failed(failure),
            TaskState::Unrestorable { .. } | TaskState::Cancelled => Self::Gone,
            TaskState::Deploying | TaskState::Running { .. } | TaskState::Finished => {
                Self::Lives(state)
            }
        }
    }

    fn lives(&self) -> bool {
        matches!(self, Self::Lives(_))
    }
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
        self.catch_up(from);
    }

    /// One task that may be adopted.
    pub(super) fn report(&mut self, now: Time, from: &TaskManagerId, running: RunningTask) {
        let RunningTask {
            attempt,
            task,
            state,
            ..
        } = running;
        let found = Found::of(state);
        self.leaves_remains(from);
        if self.knows_last_checkpoint() && self.is_outdated(task, attempt) {
            return self.stop(from, attempt, task);
        }
        if let Some(known) = self.reports.get(&task) {
            let elsewhere = known.from != *from && known.found.lives();
            if known.attempt > attempt || (known.attempt == attempt && elsewhere) {
                return self.stop(from, attempt, task);
            }
            if known.attempt < attempt && known.found.lives() {
                let (on, old) = (known.from.clone(), known.attempt);
                self.stop(&on, old, task);
            }
        }
        if found.lives() {
            // Its slot is taken from now on, and it stays there when it has to start again.
            self.placements.insert(task, from.clone());
        } else {
            self.placements.remove(&task);
            // Whoever runs it need not remember it any more.
            self.stop(from, attempt, task);
        }
        let report = Report {
            from: from.clone(),
            attempt,
            found,
        };
        self.reports.insert(task, report);
        if let Some(region) = self.region_of(task) {
            self.judge(now, region);
        }
    }

    /// A TaskManager is gone: what it reported is not there any more, which is certain.
    pub(super) fn reporter_lost(&mut self, now: Time, id: &TaskManagerId) {
        let mut touched = BTreeSet::new();
        for (task, report) in &mut self.reports {
            if report.from == *id && report.found.lives() {
                report.found = Found::Gone;
                touched.extend(self.region_index.get(task).copied());
            }
        }
        for region in touched {
            self.judge(now, region);
        }
    }

    /// The last checkpoint's metadata is known now, or that it cannot be.
    pub(super) fn judge_all(&mut self, now: Time) {
        for region in 0..self.regions.len() {
            self.judge(now, region);
        }
    }

    /// Decides about a region as soon as something is known of each of its tasks.
    fn judge(&mut self, now: Time, region: usize) {
        let state = self.regions[region].state;
        if state != RegionState::Adopting || !self.phase.is_active() {
            return;
        }
        let tasks = &self.region_tasks[region];
        if !tasks.iter().all(|task| self.reports.contains_key(task)) {
            return;
        }
        if !self.knows_last_checkpoint() {
            return self.load_last_checkpoint();
        }
        let attempts: BTreeSet<AttemptId> = tasks
            .iter()
            .map(|task| self.reports[task].attempt)
            .collect();
        let newest = attempts.last().copied();
        let whole = attempts.len() == 1 || mutation::is(Mutation::MixedAttemptsAdopted);
        match newest.filter(|_| whole) {
            Some(attempt) if !tasks.iter().any(|task| self.is_outdated(*task, attempt)) => {
                self.adopt(now, region, attempt);
            }
            Some(_) => self.drop_outdated(region),
            None => {
                let count = attempts.len();
                let cause = format!("its tasks were found under {count} different attempts");
                self.give_up_adoption(now, [region].into(), cause, 0);
            }
        }
    }

    fn knows_last_checkpoint(&self) -> bool {
        let last = self.coordinator.last();
        last.is_none_or(|last| self.coordinator.metadata(last.checkpoint).is_some())
    }

    /// Has the last checkpoint's metadata read, unless it is known or on its way.
    pub(super) fn load_last_checkpoint(&mut self) {
        let Some(last) = self.coordinator.last().cloned() else {
            return;
        };
        if self.loading.is_none() && self.coordinator.metadata(last.checkpoint).is_none() {
            self.loading = Some(last.checkpoint);
            self.actions.push_back(Action::LoadMetadata(last));
        }
    }

    /// Whether the last checkpoint is none of this attempt's, neither made by it nor the one that it went back to: then
    /// it was replaced, or never was what its leader took it for, and what it goes on from is not what is committed.
    ///
    /// What an attempt went back to need not be asked. A leader deploys from its last checkpoint, and whatever it publishes
    /// afterwards is made by that attempt or a later one. So an attempt that did not make the last checkpoint went back
    /// to it, or is older than the one that made it, or is of a leader before the one that published it.
    fn is_outdated(&self, task: TaskId, attempt: AttemptId) -> bool {
        let Some(last) = self.coordinator.last().map(|last| last.checkpoint) else {
            return false;
        };
        if last.counter == 0 {
            // The job began from it: another job's attempts made it, and every one of its own went back to it.
            return false;
        }
        let metadata = self.coordinator.metadata(last);
        let mut parts = metadata.iter().flat_map(|metadata| &metadata.tasks);
        let part = parts.find(|part| part.task == task);
        let other = part.filter(|part| part.attempt != attempt);
        let replaced =
            other.is_some_and(|part| part.attempt > attempt || attempt.epoch < last.epoch);
        replaced && !mutation::is(Mutation::OutdatedAttemptAdopted)
    }

    /// What was found of a region had been replaced before: it is stopped, and its successor may still be reported.
    fn drop_outdated(&mut self, region: usize) {
        for task in self.region_tasks[region].clone() {
            self.placements.remove(&task);
            if let Some(report) = self.reports.remove(&task).filter(|one| one.found.lives()) {
                self.stop(&report.from, report.attempt, task);
            }
        }
    }

    /// Takes a region over as it is. What failed in it meanwhile fails now.
    fn adopt(&mut self, now: Time, region: usize, attempt: AttemptId) {
        self.regions[region].attempt = Some(attempt);
        self.regions[region].state = RegionState::Deploying;
        self.regions[region].deployed_at = now;
        let tasks = self.region_tasks[region].clone();
        let count = tasks.len();
        let mut gone = Vec::new();
        for task in tasks {
            let Some(report) = self.reports.remove(&task) else {
                continue;
            };
            match report.found {
                Found::Lives(TaskState::Running { timings }) => {
                    self.task_runs(task, TaskStatus::Running, timings);
                }
                Found::Lives(TaskState::Finished) => {
                    self.task_runs(task, TaskStatus::Finished, DeployTimings::default());
                }
                Found::Lives(_) => {
                    self.task_runs(task, TaskStatus::Deploying, DeployTimings::default());
                    self.timers.set(Timer::Deploy, now + DEPLOY_TIMEOUT);
                }
                Found::Failed(failure) => gone.push((task, report.from, Some(failure))),
                Found::Gone => gone.push((task, report.from, None)),
            }
        }
        if gone.is_empty() {
            let tasks = count;
            self.note(now, Note::Adopted { tasks, attempt });
            for host in self.hosts(region).into_keys() {
                self.catch_up(&host);
            }
        }
        // The first takes the region down; the others are only remembered.
        for (task, from, failure) in gone {
            match failure {
                Some(failure) => self.task_failed(now, &from, task, failure),
                None => self.task_gone(now, &from, task),
            }
        }
    }

    /// Repeats what was said last about checkpoints, in case the word of it was lost with a leader or a stream: that the
    /// last one is published (committing again does no harm), and that all up to it are over, so that no channel waits
    /// for the barrier of one.
    fn catch_up(&mut self, to: &TaskManagerId) {
        if !self.phase.is_active() {
            return;
        }
        let (last, over) = (self.coordinator.last().cloned(), self.coordinator.over());
        let job = self.record.id;
        for region in 0..self.regions.len() {
            let there = self.region_tasks[region]
                .iter()
                .any(|task| self.placements.get(task) == Some(to));
            let Some(attempt) = self.regions[region].attempt else {
                continue;
            };
            if !there || !self.regions[region].is_live() {
                continue;
            }
            // A region that went back to an older checkpoint, or has not begun, holds nothing of this one.
            let restored = self.regions[region].restored;
            if let Some(checkpoint) = last.as_ref().map(|last| last.checkpoint)
                && restored.is_none_or(|restored| restored <= checkpoint)
            {
                let complete = Command::CompleteCheckpoint {
                    job,
                    attempt,
                    checkpoint,
                };
                self.send(to, complete);
            }
            let abort = Command::AbortCheckpoint {
                job,
                attempt,
                checkpoint: over,
            };
            self.send(to, abort);
        }
    }

    /// Whether nobody has reported anything of it since the leader took over.
    #[must_use]
    pub fn is_unreported(&self) -> bool {
        let adopting = |region: &super::Region| region.state == RegionState::Adopting;
        self.phase == Phase::Adopting
            && self.reports.is_empty()
            && self.regions.iter().all(adopting)
    }

    /// Nobody will report anything more: what is missing starts again now.
    pub fn end_adoption(&mut self, now: Time) {
        self.adoption_over(now);
        self.settle(now);
    }

    pub(super) fn adoption_over(&mut self, now: Time) {
        let left: BTreeSet<usize> = (0..self.regions.len())
            .filter(|region| self.regions[*region].state == RegionState::Adopting)
            .collect();
        if left.is_empty() || !self.phase.is_active() {
            return;
        }
        if !self.reports.is_empty() && !self.knows_last_checkpoint() {
            // Whole regions are among them, perhaps; and without it nothing can start again either.
            self.load_last_checkpoint();
            return self.timers.set(Timer::Adoption, now + RETRY);
        }
        self.timers.stop(Timer::Adoption);
        if self.is_unreported() && !self.has_completed {
            // It had not begun, as far as anybody can tell.
            for region in left {
                self.regions[region].state = RegionState::Pending;
            }
            return;
        }
        let reported = |task: &&TaskId| self.reports.contains_key(task);
        let tasks = left.iter().flat_map(|region| &self.region_tasks[*region]);
        let missing = tasks.filter(|task| !reported(task)).count();
        let cause = format!("{missing} tasks were not reported after the change of the JobManager");
        self.give_up_adoption(now, left, cause, missing);
    }

    /// Regions start again: what was reported of them is stopped.
    fn give_up_adoption(
        &mut self,
        now: Time,
        left: BTreeSet<usize>,
        cause: String,
        missing: usize,
    ) {
        let tasks: Vec<TaskId> = left
            .iter()
            .flat_map(|region| self.region_tasks[*region].iter().copied())
            .collect();
        let mut failed = None;
        for task in &tasks {
            match self.reports.remove(task) {
                Some(Report {
                    from,
                    attempt,
                    found: Found::Lives(_),
                }) => self.stop(&from, attempt, *task),
                Some(Report {
                    from,
                    found: Found::Failed(failure),
                    ..
                }) => failed = failed.or(Some((*task, from, failure))),
                Some(_) | None => {}
            }
        }
        let mut delay = Duration::ZERO;
        if let Some((task, from, failure)) = failed {
            // The change of a leader is not counted against a job, but this is.
            let cause = self.note_failure(now, &from, task, failure);
            match self.restarts.failed(now, false) {
                Decision::GiveUp { reason } => {
                    let reason = format!("{cause}; {reason}");
                    return self.end(now, JobState::Failed { reason });
                }
                Decision::Restart { after } => delay = after,
            }
            self.record.restarts = self.restarts.count();
            self.store_record();
            self.timers.set(Timer::Restart, now + delay);
        }
        let state = if delay.is_zero() {
            RegionState::Pending
        } else {
            RegionState::Delayed
        };
        for region in &left {
            self.regions[*region].state = state;
        }
        let restarted = tasks.len();
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
