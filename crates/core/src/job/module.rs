//! Who has a job's module at hand: while the job runs, every TaskManager to which its tasks could be moved is told to
//! compile it ahead, so that a recovery does not wait for that.
//!
//! Whether it was compiled is never asked: a deployment names its module, and whoever lacks it fetches it then.

use alloc::collections::BTreeSet;
use tidemill_protocol::TaskManagerId;
use tidemill_protocol::control::Command;

use super::{Job, Phase, Resources};

/// The TaskManagers that have been told of a job's module.
#[derive(Clone, Debug, Default)]
pub(super) struct ModuleHolders {
    told: BTreeSet<TaskManagerId>,
    /// Others may be there, or the job may just have begun to run.
    is_outdated: bool,
}

impl ModuleHolders {
    /// Whoever is there may not have been told.
    pub(super) fn changed(&mut self) {
        self.is_outdated = true;
    }

    /// What this TaskManager was told is forgotten: it may be another process, which has nothing.
    pub(super) fn forget(&mut self, id: &TaskManagerId) {
        self.told.remove(id);
        self.is_outdated = true;
    }

    /// It is told with a deployment.
    pub(super) fn is_told(&mut self, id: &TaskManagerId) {
        self.told.insert(id.clone());
    }
}

impl Job {
    /// Whether TaskManagers are to be told of its module.
    #[must_use]
    pub fn wants_module_told(&self) -> bool {
        self.phase == Phase::Running && self.module_holders.is_outdated
    }

    /// Tells those of its module who could run its tasks and do not know it.
    pub fn tell_module(&mut self, resources: &Resources) {
        self.module_holders.is_outdated = false;
        for id in resources.capacity.keys() {
            if self.module_holders.told.insert(id.clone()) {
                self.send(id, Command::PrepareModule(self.record.module));
            }
        }
    }
}
