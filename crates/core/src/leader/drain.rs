//! TaskManagers that want to go: nothing new is placed there, jobs move what they have there, and when nothing of any job
//! is left the TaskManager is told so.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use tidemill_protocol::control::Command;
use tidemill_protocol::{JobId, TaskManagerId};

use super::{Action, Leader, Note};
use crate::job::Job;
use crate::time::Time;

impl Leader {
    /// A TaskManager asks to be let go.
    pub(super) fn wants_to_go(&mut self, id: &TaskManagerId) {
        self.membership.drain(id);
        for job in self.jobs.values_mut() {
            job.keepers_changed();
        }
        let note = Note::TaskManagerDraining { id: id.clone() };
        self.actions.push_back(Action::Note(note));
    }

    /// Whether it was told that it may go.
    pub(super) fn has_left(&self, id: &TaskManagerId) -> bool {
        self.membership
            .member(id)
            .is_some_and(|member| member.drained)
    }

    /// Has jobs leave the TaskManagers that want to go, and lets those go where nothing is left.
    pub(super) fn let_go(&mut self, now: Time) {
        let members = self.membership.members();
        let draining: BTreeSet<TaskManagerId> = members
            .filter(|member| member.is_draining() && member.is_usable())
            .map(|member| member.registration.id.clone())
            .collect();
        if draining.is_empty() {
            return;
        }
        // Right after a take-over, room elsewhere may not have registered yet.
        let settled = self.everybody_at.is_none();
        let on_any = |job: &&Job| job.slots_used().keys().any(|id| draining.contains(id));
        let concerned = |job: &&Job| settled && job.may_leave() && on_any(job);
        let concerned: Vec<JobId> = self.jobs.values().filter(concerned).map(Job::id).collect();
        for id in concerned {
            let resources = self.resources(id);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.leave(now, &draining, &resources);
            }
        }
        self.drain_jobs();
        let used: BTreeSet<TaskManagerId> = self
            .jobs
            .values()
            .flat_map(|job| job.slots_used().into_keys())
            .collect();
        for id in draining.difference(&used) {
            let Some(connection) = self.membership.member(id).map(|member| member.connection)
            else {
                continue;
            };
            self.membership.drained(id);
            self.send(connection, Command::Drained);
            let note = Note::TaskManagerDrained { id: id.clone() };
            self.actions.push_back(Action::Note(note));
        }
    }
}
