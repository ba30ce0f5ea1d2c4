//! Which jobs choose keepers for their tasks' images, and what TaskManagers say that they keep.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use tidemill_protocol::control::{Command, WarmImages, WarmTask};
use tidemill_protocol::{CheckpointId, JobId, ModuleHash, TaskId, TaskManagerId};

use super::Leader;
use crate::job::{self, Job};
use crate::membership::ConnectionId;
use crate::time::Time;

/// Of each job, the tasks whose images are kept, with their checkpoints.
pub(super) type Warm = BTreeMap<JobId, Vec<(TaskId, CheckpointId)>>;

pub(super) fn by_job(warm: &[WarmTask]) -> Warm {
    let mut jobs = Warm::new();
    for task in warm {
        let of_job = jobs.entry(task.job).or_default();
        of_job.push((task.task, task.checkpoint));
    }
    jobs
}

impl Leader {
    /// A TaskManager says what it keeps.
    pub(super) fn warm(
        &mut self,
        now: Time,
        connection: ConnectionId,
        from: &TaskManagerId,
        warm: &[WarmTask],
    ) {
        for (job, tasks) in by_job(warm) {
            if self.jobs.contains_key(&job) {
                let from = from.clone();
                self.tell(now, job, job::Event::Warm { from, tasks });
            } else {
                self.forget_images(connection, job);
            }
        }
    }

    /// Has everything dropped that is kept of a job which this leader does not know.
    pub(super) fn forget_images(&mut self, connection: ConnectionId, job: JobId) {
        let command = Command::KeepWarm(WarmImages {
            job,
            // Where nothing is kept there is no module to compile.
            module: ModuleHash([0; 32]),
            checkpoint: CheckpointId::new(self.config.epoch, 0),
            images: Vec::new(),
        });
        self.send(connection, command);
    }

    /// Has jobs choose keepers again where something has changed.
    pub(super) fn choose_keepers(&mut self) {
        // Right after a take-over, those that keep something may not have registered yet.
        if self.everybody_at.is_some() {
            return;
        }
        let wanting = self.jobs.values().filter(|job| job.wants_keepers());
        let wanting: Vec<JobId> = wanting.map(Job::id).collect();
        for id in wanting {
            let resources = self.resources(id);
            let others = self.jobs.values().filter(|job| job.id() != id);
            let mut load: BTreeMap<TaskManagerId, usize> = BTreeMap::new();
            for keeper in others.flat_map(|job| job.keepers().values()) {
                *load.entry(keeper.clone()).or_default() += 1;
            }
            if let Some(job) = self.jobs.get_mut(&id) {
                job.choose_keepers(&resources, &load);
            }
        }
        self.drain_jobs();
    }
}
