//! Which jobs have TaskManagers compile their modules ahead. It never waits for one that does.

use alloc::vec::Vec;
use tidemill_protocol::JobId;

use super::Leader;
use crate::job::Job;

impl Leader {
    /// Has jobs tell TaskManagers of their modules that may not know them.
    pub(super) fn tell_modules(&mut self) {
        let wanting = self.jobs.values().filter(|job| job.wants_module_told());
        let wanting: Vec<JobId> = wanting.map(Job::id).collect();
        for id in wanting {
            let resources = self.resources(id);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.tell_module(&resources);
            }
        }
        self.drain_jobs();
    }
}
