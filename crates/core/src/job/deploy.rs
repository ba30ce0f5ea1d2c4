//! How a job's waiting regions are started: the plan is made when there are slots and the checkpoint is at hand, and
//! executing it involves no choice.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use tidemill_protocol::control::{
    Command, DeployTimings, Deployment, TaskDeployment, TaskLocation,
};
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef};
use tidemill_protocol::record::JobState;
use tidemill_protocol::{AttemptId, CheckpointId, TaskId, TaskManagerId};

use super::{DEPLOY_TIMEOUT, Job, Note, RegionState, Task, TaskStatus, Timer};
use crate::mutation::{self, Mutation};
use crate::recovery::{self, NoPlan, RecoveryPlan, RegionPlan, Situation};
use crate::scheduler::Pair;
use crate::time::Time;

/// Where there is room.
#[derive(Clone, Debug)]
pub struct Resources {
    /// For each usable TaskManager, the slots that other jobs leave.
    pub capacity: BTreeMap<TaskManagerId, u32>,
    /// For each usable TaskManager, its data address.
    pub addresses: BTreeMap<TaskManagerId, String>,
    /// For each TaskManager that wants to go, the slots that other jobs leave: what is there may stay when it fits
    /// nowhere else, and nothing new is placed there.
    pub leaving: BTreeMap<TaskManagerId, u32>,
    /// Pairs that should not both run one job.
    pub keep_apart: BTreeSet<Pair>,
}

impl Job {
    /// Whether regions wait to be started.
    #[must_use]
    pub fn wants_slots(&self) -> bool {
        self.phase.is_active()
            && (!self.coordinator.is_publication_pending()
                || mutation::is(Mutation::RecoveryOvertakesPublication))
            && self
                .regions
                .iter()
                .any(|region| region.state == RegionState::Pending)
    }

    /// Whether tasks of it have run before: such a job comes first.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.has_completed || self.regions.iter().any(|region| region.attempt.is_some())
    }

    /// Starts the waiting regions if there is room for all of them.
    pub fn deploy(&mut self, now: Time, resources: &Resources) {
        if !self.wants_slots() {
            return;
        }
        let Some(last) = self.coordinator.restart_point().cloned() else {
            if self.has_completed {
                let reason = "no completed checkpoint is usable".into();
                self.end(now, JobState::Failed { reason });
                self.settle(now);
            } else {
                self.deploy_from(now, resources, None);
            }
            return;
        };
        if self.coordinator.metadata(last.checkpoint).is_some() {
            self.deploy_from(now, resources, Some(last.checkpoint));
        } else {
            self.load_last_checkpoint();
        }
    }

    fn deploy_from(&mut self, now: Time, resources: &Resources, checkpoint: Option<CheckpointId>) {
        let waiting: Vec<usize> = (0..self.regions.len())
            .filter(|region| self.regions[*region].state == RegionState::Pending)
            .collect();
        let metadata = checkpoint.and_then(|checkpoint| self.coordinator.metadata(checkpoint));
        let plan = self.plan_anywhere(&waiting, resources, metadata);
        self.moving = None;
        match plan {
            Ok(plan) => {
                let images = metadata.map(|metadata| {
                    let images = metadata.tasks.iter();
                    images
                        .map(|part| (part.task, part.manifest.clone()))
                        .collect()
                });
                let images: BTreeMap<TaskId, ObjectRef> = images.unwrap_or_default();
                self.shortfall = None;
                self.stay = None;
                for (region, plan) in waiting.into_iter().zip(plan.regions) {
                    self.start(now, region, plan, checkpoint, &images, resources);
                }
            }
            Err(NoPlan::Slots(shortfall)) => {
                if self.shortfall.replace(shortfall) != Some(shortfall) {
                    self.note(now, Note::WaitingForSlots(shortfall));
                }
            }
            Err(NoPlan::NoImage { task }) => {
                let reason = format!("it holds no image of task {task}");
                if let Some(checkpoint) = checkpoint {
                    self.checkpoint_damaged(now, checkpoint, reason);
                }
            }
        }
        self.settle(now);
    }

    /// Without the TaskManagers that want to go; or else with those that are not being left right now; or with all.
    fn plan_anywhere(
        &self,
        regions: &[usize],
        resources: &Resources,
        checkpoint: Option<&CheckpointMetadata>,
    ) -> Result<RecoveryPlan, NoPlan> {
        let nobody = BTreeMap::new();
        let mut others = resources.leaving.clone();
        if let Some(moving) = &self.moving {
            others.retain(|id, _| !moving.from.contains(id));
        }
        let mut plan = self.plan(regions, resources, &nobody, checkpoint);
        for leaving in [&others, &resources.leaving] {
            if matches!(plan, Err(NoPlan::Slots(_))) && !leaving.is_empty() {
                plan = self.plan(regions, resources, leaving, checkpoint).or(plan);
            }
        }
        plan
    }

    /// Where the tasks of these regions go. Those on one of `leaving` may stay there.
    pub(super) fn plan(
        &self,
        regions: &[usize],
        resources: &Resources,
        leaving: &BTreeMap<TaskManagerId, u32>,
        checkpoint: Option<&CheckpointMetadata>,
    ) -> Result<RecoveryPlan, NoPlan> {
        let tasks: Vec<&BTreeSet<TaskId>> = regions
            .iter()
            .map(|region| &self.region_tasks[*region])
            .collect();
        let warmth = self.warmth();
        recovery::plan(&Situation {
            graph: &self.graph,
            regions: &tasks,
            placements: &self.placements,
            capacity: &resources.capacity,
            leaving,
            keep_apart: &resources.keep_apart,
            warmth: &warmth,
            checkpoint,
        })
    }

    /// How many tasks of a region that ran before get another place. Those of a lost TaskManager have none any more.
    fn moved(&self, plan: &RegionPlan) -> usize {
        let moves =
            |(task, place): &(&TaskId, &TaskManagerId)| self.placements.get(task) != Some(*place);
        plan.placements.iter().filter(moves).count()
    }

    fn start(
        &mut self,
        now: Time,
        region: usize,
        plan: RegionPlan,
        restore: Option<CheckpointId>,
        images: &BTreeMap<TaskId, ObjectRef>,
        resources: &Resources,
    ) {
        self.attempts += 1;
        let attempt = AttemptId::new(self.reign.epoch, self.attempts);
        let state = &mut self.regions[region];
        let runs_again = state.attempt.is_some();
        state.attempt = Some(attempt);
        state.state = RegionState::Deploying;
        state.restored = restore;
        state.deployed_at = now;
        self.timers.set(Timer::Deploy, now + DEPLOY_TIMEOUT);
        let locations = plan.placements.iter().map(|(task, place)| TaskLocation {
            task: *task,
            task_manager: place.clone(),
            address: resources.addresses.get(place).cloned().unwrap_or_default(),
        });
        let locations: Vec<TaskLocation> = locations.collect();
        let moved = if runs_again { self.moved(&plan) } else { 0 };
        let tasks = plan.placements.len();
        for task in plan.placements.keys() {
            let deploying = Task {
                status: TaskStatus::Deploying,
                ..Task::default()
            };
            self.tasks.insert(*task, deploying);
        }
        self.placements.extend(plan.placements);
        for (host, tasks) in self.hosts(region) {
            let image = |task| TaskDeployment {
                task,
                image: images.get(&task).cloned(),
                warm_at: self.warm_at(task, restore, &host, resources),
            };
            let deployment = Deployment {
                job: self.record.id,
                job_name: self.record.name.to_string(),
                attempt,
                module: self.record.module,
                parameters: self.record.parameters.clone(),
                graph: self.graph.clone(),
                tasks: tasks.into_iter().map(image).collect(),
                locations: locations.clone(),
                restore,
                aligned_checkpoint_timeout_ms: self.record.options.aligned_checkpoint_timeout_ms,
            };
            self.deploys_to(&host);
            self.send(&host, Command::Deploy(deployment));
        }
        if let Some(recovery) = self.history.open(region) {
            recovery.planned_at = recovery.planned_at.or(Some(now));
            recovery.attempt = Some(attempt);
            recovery.checkpoint = restore;
        }
        self.note(
            now,
            Note::Deployed {
                attempt,
                tasks,
                moved,
                checkpoint: restore,
            },
        );
    }

    /// From then on a TaskManager has the module, and what tasks leave behind.
    fn deploys_to(&mut self, host: &TaskManagerId) {
        self.leaves_remains(host);
        self.module_holders.is_told(host);
    }

    /// Where others are reached that keep what a task goes back to.
    fn warm_at(
        &self,
        task: TaskId,
        restore: Option<CheckpointId>,
        host: &TaskManagerId,
        resources: &Resources,
    ) -> Vec<String> {
        let keepers = restore.into_iter();
        let keepers = keepers.flat_map(|restore| self.warm_elsewhere(task, restore, host));
        let addresses = keepers.filter_map(|keeper| resources.addresses.get(keeper));
        addresses.cloned().collect()
    }

    /// A deployed region whose tasks all run or have finished runs.
    pub(super) fn settle_region(&mut self, now: Time, region: usize) {
        let runs = |task| {
            matches!(
                self.tasks[task].status,
                TaskStatus::Running | TaskStatus::Finished
            )
        };
        if self.regions[region].state != RegionState::Deploying
            || !self.region_tasks[region].iter().all(runs)
        {
            return;
        }
        self.regions[region].state = RegionState::Running;
        let Some(attempt) = self.regions[region].attempt else {
            return;
        };
        let longest = self.region_tasks[region]
            .iter()
            .map(|task| self.tasks[task].timings);
        let longest = longest.fold(DeployTimings::default(), |longest, task| DeployTimings {
            module_us: longest.module_us.max(task.module_us),
            fetch_us: longest.fetch_us.max(task.fetch_us),
            restore_us: longest.restore_us.max(task.restore_us),
            source: longest.source.max(task.source),
            restored_bytes: longest.restored_bytes.max(task.restored_bytes),
        });
        let timings = self.region_tasks[region].iter();
        let timings = timings.map(|task| &self.tasks[task].timings);
        self.history.restored_from(region, timings);
        let Some(recovery) = self.history.open(region) else {
            return;
        };
        recovery.open.remove(&region);
        let all = &mut recovery.timings;
        all.module_us = all.module_us.max(longest.module_us);
        all.fetch_us = all.fetch_us.max(longest.fetch_us);
        all.restore_us = all.restore_us.max(longest.restore_us);
        all.source = all.source.max(longest.source);
        all.restored_bytes = all.restored_bytes.max(longest.restored_bytes);
        if recovery.open.is_empty() {
            recovery.running_at = Some(now);
            let (after, timings) = (now.since(recovery.detected_at), recovery.timings);
            self.note(
                now,
                Note::Recovered {
                    attempt,
                    after,
                    timings,
                },
            );
        }
    }
}
