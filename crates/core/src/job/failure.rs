//! What a job does about failures: which regions go down, whether the restart strategy lets them start again, and when.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use tidemill_protocol::control::{Blame, DeployTimings, TaskFailure};
use tidemill_protocol::record::JobState;
use tidemill_protocol::{AttemptId, CheckpointId, TaskId, TaskManagerId};

use super::{
    DEPLOY_TIMEOUT, Job, LastFailure, Note, Recovery, Region, RegionState, TaskStatus, Timer,
};
use crate::recovery::failed_regions;
use crate::restart::Decision;
use crate::time::{Duration, Time};

impl Job {
    pub(super) fn task_failed(
        &mut self,
        now: Time,
        on: &TaskManagerId,
        task: TaskId,
        failure: TaskFailure,
    ) {
        let cause = self.note_failure(now, on, task, failure);
        self.fail(now, &[task].into(), &cause, 0);
    }

    /// A task's failure is remembered. Says what happened, for people.
    pub(super) fn note_failure(
        &mut self,
        now: Time,
        on: &TaskManagerId,
        task: TaskId,
        failure: TaskFailure,
    ) -> String {
        let stage = self.graph.stage(task);
        let stage = stage.map_or_else(String::new, |stage| stage.name.clone());
        let cause = format!("task {task} ({stage}) failed on {on}: {}", failure.message);
        if let Some(task) = self.tasks.get_mut(&task) {
            task.status = TaskStatus::Failed;
        }
        let task_manager = on.clone();
        self.note(
            now,
            Note::TaskFailed {
                task,
                stage,
                task_manager,
                failure: failure.clone(),
            },
        );
        self.last_failure = Some(LastFailure {
            at: now,
            task: Some(task),
            failure,
        });
        cause
    }

    /// A task was stopped, and not by its leader.
    pub(super) fn task_gone(&mut self, now: Time, on: &TaskManagerId, task: TaskId) {
        let cause = format!("task {task} is gone from {on}");
        self.blame_cluster(now, &cause);
        self.fail(now, &[task].into(), &cause, 0);
    }

    pub(super) fn task_manager_lost(
        &mut self,
        now: Time,
        id: &TaskManagerId,
        reason: &str,
        silent_for: Option<Duration>,
    ) {
        self.suspected.remove(id);
        self.keeper_lost(id);
        self.module_holders.forget(id);
        let there = self.placements.iter().filter(|(_, place)| *place == id);
        let lost: BTreeSet<TaskId> = there.map(|(task, _)| *task).collect();
        self.placements.retain(|_, place| place != id);
        for task in &lost {
            let region = self.region_of(*task);
            let recovery = region.and_then(|region| self.history.open(region));
            if let Some(recovery) = recovery.filter(|recovery| recovery.planned_at.is_none()) {
                recovery.tasks_lost += 1;
            }
        }
        // Who has confirmed the last commit is not missed.
        let missed: BTreeSet<TaskId> = lost
            .into_iter()
            .filter(|task| !self.coordinator.is_done(*task))
            .collect();
        let cause = format!("TaskManager {id} is lost: {reason}");
        let hit = failed_regions(&self.region_tasks, &missed);
        if self.phase.is_active() && hit.iter().any(|region| self.regions[*region].is_live()) {
            self.blame_cluster(now, &cause);
            self.fail(now, &missed, &cause, missed.len());
            self.history.was_silent(now, silent_for);
        }
        self.reporter_lost(now, id);
    }

    pub(super) fn suspect(&mut self, now: Time, id: TaskManagerId) {
        // Nothing is in flight while commits are confirmed; whoever comes back is asked again.
        let affected = self.placements.values().any(|place| *place == id);
        if affected && !self.coordinator.is_committing() {
            let reason = format!("the control stream of TaskManager {id} broke");
            self.tasks_lost(now, reason);
        }
        self.suspected.insert(id);
    }

    pub(super) fn channel_broken(&mut self, now: Time, attempt: AttemptId, cause: &str) {
        let of = |region: &Region| region.is_live() && region.attempt == Some(attempt);
        if let Some(region) = self
            .regions
            .iter()
            .position(of)
            .filter(|_| self.phase.is_active())
        {
            self.blame_cluster(now, cause);
            let tasks = self.region_tasks[region].clone();
            self.fail(now, &tasks, cause, 0);
        }
    }

    /// Regions that were deployed too long ago and do not run are started again.
    pub(super) fn deployments_overdue(&mut self, now: Time) {
        let overdue = |region: &Region| {
            region.state == RegionState::Deploying
                && now.since(region.deployed_at) >= DEPLOY_TIMEOUT
        };
        let waits = |task: &TaskId| self.tasks[task].status == TaskStatus::Deploying;
        let regions = self.regions.iter().zip(&self.region_tasks);
        let late: BTreeSet<TaskId> = regions
            .filter(|(region, _)| overdue(region))
            .flat_map(|(_, tasks)| tasks.iter().copied().filter(waits))
            .collect();
        if let Some(first) = late.first() {
            let count = late.len();
            let cause = format!(
                "{count} tasks, {first} among them, did not run {DEPLOY_TIMEOUT:?} after their deployment"
            );
            self.blame_cluster(now, &cause);
            self.fail(now, &late, &cause, 0);
        }
    }

    /// More checkpoints failed in a row than is tolerable.
    pub(super) fn checkpoints_failed(&mut self, now: Time, reason: &str) {
        if self.phase.is_active() {
            let cause = format!("too many checkpoints failed in a row; the last: {reason}");
            self.blame_cluster(now, &cause);
            let tasks = self.tasks.keys().copied().collect();
            self.fail(now, &tasks, &cause, 0);
        }
    }

    /// A task's image is damaged: its region goes back to the checkpoint before, which is no failure of the job's.
    pub(super) fn unrestorable(&mut self, now: Time, region: usize, reason: String) {
        let Some(checkpoint) = self.regions[region].restored else {
            let cause = format!("a task could not be started: {reason}");
            self.blame_cluster(now, &cause);
            let tasks = self.region_tasks[region].clone();
            self.fail(now, &tasks, &cause, 0);
            return;
        };
        if self.regions[region].state == RegionState::Running {
            self.image_lost(now, region, &reason);
        } else {
            self.stop_region(region);
            self.regions[region].state = RegionState::Pending;
        }
        self.checkpoint_damaged(now, checkpoint, reason);
    }

    /// The image of a task that runs already, and has been filled since, turned out to be damaged. Whatever has been
    /// captured of it since is made of it too.
    fn image_lost(&mut self, now: Time, region: usize, reason: &str) {
        let cause = format!("a task that runs could not be restored to the end: {reason}");
        self.blame_cluster(now, &cause);
        let live = |region: &usize| self.regions[*region].is_live();
        let hit: BTreeSet<usize> = if self.coordinator.is_committing() {
            (0..self.regions.len()).filter(live).collect()
        } else {
            [region].into()
        };
        self.tasks_lost(now, cause.clone());
        let restarted = hit.iter().map(|hit| self.region_tasks[*hit].len()).sum();
        for region in &hit {
            self.stop_region(*region);
            self.regions[*region].state = RegionState::Pending;
        }
        self.begin_recovery(now, hit, cause.clone(), 0, restarted, Duration::ZERO);
        let delay = Duration::ZERO;
        self.note(
            now,
            Note::RecoveryBegun {
                cause,
                restarted,
                delay,
            },
        );
    }

    pub(super) fn checkpoint_damaged(
        &mut self,
        now: Time,
        checkpoint: CheckpointId,
        reason: String,
    ) {
        self.loading = self.loading.filter(|loading| *loading != checkpoint);
        if !self
            .coordinator
            .retained()
            .any(|retained| retained.checkpoint == checkpoint)
        {
            return;
        }
        self.note(
            now,
            Note::CheckpointDamaged {
                checkpoint,
                reason: reason.clone(),
            },
        );
        // Tasks that run, or may be found running, need none of them.
        let down = |region: &Region| !region.is_live() && region.state != RegionState::Adopting;
        let some_down = self.regions.iter().any(down);
        if !self.coordinator.damaged(checkpoint) && self.phase.is_active() && some_down {
            let reason = format!(
                "no completed checkpoint is usable, and beginning anew would repeat what is committed; the last: {reason}"
            );
            self.end(now, JobState::Failed { reason });
        }
    }

    fn blame_cluster(&mut self, now: Time, message: &str) {
        let failure = TaskFailure {
            blame: Blame::Cluster,
            message: message.to_string(),
            backtrace: Vec::new(),
            last_log_lines: Vec::new(),
            batch_preview: String::new(),
        };
        self.last_failure = Some(LastFailure {
            at: now,
            task: None,
            failure,
        });
    }

    /// Takes down the live regions of these tasks. Regions that are down already are not failed again: one machine's
    /// death is one failure, however many ways it is heard of.
    fn fail(&mut self, now: Time, tasks: &BTreeSet<TaskId>, cause: &str, lost: usize) {
        // Tasks that had confirmed the last commit may be gone by now, and the next final checkpoint needs them all.
        let everyone: BTreeSet<TaskId> = self.tasks.keys().copied().collect();
        let tasks = if self.coordinator.is_committing() {
            &everyone
        } else {
            tasks
        };
        let hit: BTreeSet<usize> = failed_regions(&self.region_tasks, tasks)
            .into_iter()
            .filter(|region| self.regions[*region].is_live())
            .collect();
        if hit.is_empty() || !self.phase.is_active() {
            return;
        }
        self.tasks_lost(now, cause.to_string());
        match self.restarts.failed(now, lost > 0) {
            Decision::GiveUp { reason } => {
                let reason = format!("{cause}; {reason}");
                self.end(now, JobState::Failed { reason });
            }
            Decision::Restart { after } => self.restart(now, hit, cause, lost, after),
        }
    }

    fn restart(
        &mut self,
        now: Time,
        hit: BTreeSet<usize>,
        cause: &str,
        lost: usize,
        after: Duration,
    ) {
        let restarted = hit
            .iter()
            .map(|region| self.region_tasks[*region].len())
            .sum();
        let state = if after.is_zero() {
            RegionState::Pending
        } else {
            self.timers.set(Timer::Restart, now + after);
            RegionState::Delayed
        };
        for region in &hit {
            self.stop_region(*region);
            self.regions[*region].state = state;
        }
        self.record.restarts = self.restarts.count();
        self.store_record();
        let cause = cause.to_string();
        self.begin_recovery(now, hit, cause.clone(), lost, restarted, after);
        self.note(
            now,
            Note::RecoveryBegun {
                cause,
                restarted,
                delay: after,
            },
        );
    }

    pub(super) fn begin_recovery(
        &mut self,
        now: Time,
        open: BTreeSet<usize>,
        cause: String,
        tasks_lost: usize,
        tasks_restarted: usize,
        delay: Duration,
    ) {
        for region in &open {
            // A recovery that is overtaken by the next failure is never seen to end.
            if let Some(overtaken) = self.history.open(*region) {
                overtaken.open.clear();
            }
        }
        self.history.begin(Recovery {
            cause,
            detected_at: now,
            detected_within: None,
            delay,
            planned_at: None,
            running_at: None,
            attempt: None,
            checkpoint: None,
            tasks_lost,
            tasks_restarted,
            timings: DeployTimings::default(),
            sources: BTreeMap::new(),
            open,
        });
    }

    pub(super) fn delay_over(&mut self) {
        for region in &mut self.regions {
            if region.state == RegionState::Delayed {
                region.state = RegionState::Pending;
            }
        }
    }
}
