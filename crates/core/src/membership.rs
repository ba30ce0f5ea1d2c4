//! Which TaskManagers there are: registered, suspected, lost. The leader's own connections decide; nothing else does. It
//! never knows what runs on them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;
use tidemill_protocol::control::Registration;
use tidemill_protocol::{Incarnation, TaskManagerId};

use crate::time::Time;

/// How many lost TaskManagers are remembered, for people.
const LOST_REMEMBERED_MAX: usize = 32;

/// A control connection, numbered by whoever accepts them. Never used twice in a leader's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// How a connection to a TaskManager was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowLost {
    /// The liveness connection ended: the process is gone.
    ProcessEnded,
    /// Nothing was heard for the idle timeout.
    Silent,
    /// The control stream broke, and the process may well live: it has a moment to come back.
    StreamBroken,
}

/// A registered TaskManager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it said of itself. `running` and `warm` are emptied.
    pub registration: Registration,
    /// Its control connection.
    pub connection: ConnectionId,
    /// When it registered.
    pub registered_at: Time,
    /// When it said something last.
    pub heard_at: Time,
    /// Until when it may come back, while its control stream is broken.
    pub suspected_until: Option<Time>,
    /// It was told that nothing there is needed any more: its end is no loss.
    pub drained: bool,
}

impl Member {
    /// Whether tasks may run on it.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.suspected_until.is_none() && !self.drained
    }

    /// Whether it wants to go: tasks may stay for a while, and nothing new is placed there.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.registration.draining
    }
}

/// A TaskManager that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostMember {
    /// What it had said of itself.
    pub registration: Registration,
    /// When it was found lost.
    pub at: Time,
    /// When it had said something last.
    pub heard_at: Time,
    /// Why, for people.
    pub reason: String,
}

/// What a registration changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It is new.
    New,
    /// The same life came back on a new connection.
    Again {
        /// The connection that is of no further use.
        old: ConnectionId,
    },
    /// A new life replaces an old one, which is thereby lost.
    Superseded {
        /// The old life's connection.
        old: ConnectionId,
        /// The old life.
        incarnation: Incarnation,
    },
}

/// A registration that is refused, with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its cluster configuration differs.
    #[error(
        "the [cluster] configuration of TaskManager {id} (hash {theirs:016x}) is not the JobManager's ({ours:016x}): give both the same, and start it again"
    )]
    Configuration {
        /// Who.
        id: TaskManagerId,
        /// Its hash.
        theirs: u64,
        /// The leader's.
        ours: u64,
    },
    /// It has no slots.
    #[error("TaskManager {id} offers no slots: set `taskmanager.slots` to at least 1")]
    NoSlots {
        /// Who.
        id: TaskManagerId,
    },
    /// Its name or address is empty.
    #[error("a TaskManager must have a name and a data address: it said `{id}` and `{address}`")]
    Nameless {
        /// What it said.
        id: TaskManagerId,
        /// What it said.
        address: String,
    },
}

/// The TaskManagers that a leader knows.
#[derive(Clone, Debug)]
pub struct Membership {
    cluster_config_hash: u64,
    suspicion: Duration,
    members: BTreeMap<TaskManagerId, Member>,
    lost: Vec<LostMember>,
}

impl Membership {
    /// Nobody yet. Members must have this configuration hash; a broken control stream may be mended within `suspicion`.
    #[must_use]
    pub fn new(cluster_config_hash: u64, suspicion: Duration) -> Self {
        Self {
            cluster_config_hash,
            suspicion,
            members: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    /// A TaskManager registers.
    ///
    /// # Errors
    /// When it does not fit the cluster; it is not a member then.
    pub fn register(
        &mut self,
        now: Time,
        connection: ConnectionId,
        mut registration: Registration,
    ) -> Result<Registered, Refusal> {
        self.check(&registration)?;
        registration.running.clear();
        registration.warm.clear();
        let id = registration.id.clone();
        let incarnation = registration.incarnation;
        let member = Member {
            registration,
            connection,
            registered_at: now,
            heard_at: now,
            suspected_until: None,
            drained: false,
        };
        let Some(old) = self.members.insert(id.clone(), member) else {
            return Ok(Registered::New);
        };
        if old.registration.incarnation == incarnation {
            // Whoever wants to go does so until the end of this life.
            if old.registration.draining {
                self.drain(&id);
            }
            return Ok(Registered::Again {
                old: old.connection,
            });
        }
        let superseded = Registered::Superseded {
            old: old.connection,
            incarnation: old.registration.incarnation,
        };
        self.remember(now, old, format!("{id} was started again"));
        Ok(superseded)
    }

    /// A member says something. Says who, when it is one.
    pub fn heard(&mut self, now: Time, connection: ConnectionId) -> Option<TaskManagerId> {
        let mut members = self.members.values_mut();
        let member = members.find(|member| member.connection == connection)?;
        member.heard_at = now;
        Some(member.registration.id.clone())
    }

    /// A connection ended. Says who is lost by it; nobody, when the connection was replaced before or may come back.
    pub fn connection_lost(
        &mut self,
        now: Time,
        connection: ConnectionId,
        how: HowLost,
        reason: &str,
    ) -> Option<TaskManagerId> {
        let member = self
            .members
            .values_mut()
            .find(|member| member.connection == connection)?;
        let id = member.registration.id.clone();
        if how == HowLost::StreamBroken && !member.drained {
            member.suspected_until = Some(now + self.suspicion);
            return None;
        }
        self.lose(now, &id, reason);
        Some(id)
    }

    /// A TaskManager wants to go.
    pub fn drain(&mut self, id: &TaskManagerId) {
        if let Some(member) = self.members.get_mut(id) {
            member.registration.draining = true;
        }
    }

    /// A TaskManager that wants to go is told that nothing there is needed any more.
    pub fn drained(&mut self, id: &TaskManagerId) {
        if let Some(member) = self.members.get_mut(id) {
            member.drained = true;
        }
    }

    /// The suspected TaskManager that has not come back in time, if there is one.
    pub fn overdue(&mut self, now: Time) -> Option<TaskManagerId> {
        let overdue = |member: &&Member| member.suspected_until.is_some_and(|until| until <= now);
        let id = self.members.values().find(overdue)?.registration.id.clone();
        let after = self.suspicion;
        self.lose(
            now,
            &id,
            &format!("its control stream broke and it did not come back in {after:?}"),
        );
        Some(id)
    }

    /// When [`Membership::overdue`] has something to say.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        self.members
            .values()
            .filter_map(|member| member.suspected_until)
            .min()
    }

    /// A member.
    #[must_use]
    pub fn member(&self, id: &TaskManagerId) -> Option<&Member> {
        self.members.get(id)
    }

    /// The member at the other end of a connection.
    #[must_use]
    pub fn at(&self, connection: ConnectionId) -> Option<&Member> {
        self.members
            .values()
            .find(|member| member.connection == connection)
    }

    /// Every member, in order of the names.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The members lost last, oldest first.
    #[must_use]
    pub fn lost(&self) -> &[LostMember] {
        &self.lost
    }

    fn check(&self, registration: &Registration) -> Result<(), Refusal> {
        let id = registration.id.clone();
        if registration.cluster_config_hash != self.cluster_config_hash {
            let (theirs, ours) = (registration.cluster_config_hash, self.cluster_config_hash);
            return Err(Refusal::Configuration { id, theirs, ours });
        }
        if id.0.is_empty() || registration.data_address.is_empty() {
            return Err(Refusal::Nameless {
                id,
                address: registration.data_address.clone(),
            });
        }
        if registration.slots == 0 {
            return Err(Refusal::NoSlots { id });
        }
        Ok(())
    }

    fn lose(&mut self, now: Time, id: &TaskManagerId, reason: &str) {
        if let Some(member) = self.members.remove(id) {
            self.remember(now, member, reason.to_string());
        }
    }

    /// The end of one that had nothing left to do is not worth it.
    fn remember(&mut self, at: Time, member: Member, reason: String) {
        if member.drained {
            return;
        }
        if self.lost.len() == LOST_REMEMBERED_MAX {
            self.lost.remove(0);
        }
        self.lost.push(LostMember {
            registration: member.registration,
            at,
            heard_at: member.heard_at,
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::ZERO;

    fn membership() -> Membership {
        Membership::new(7, Duration::from_secs(2))
    }

    fn registration(name: &str, incarnation: u64) -> Registration {
        Registration {
            id: TaskManagerId(name.into()),
            incarnation: Incarnation(incarnation),
            data_address: "127.0.0.1:1".into(),
            slots: 2,
            cluster_config_hash: 7,
            version: String::new(),
            draining: false,
            running: Vec::new(),
            warm: Vec::new(),
        }
    }

    #[test]
    fn a_new_life_supersedes_the_old_one() {
        let mut membership = membership();
        let first = membership.register(NOW, ConnectionId(1), registration("a", 1));
        assert_eq!(first, Ok(Registered::New));
        let second = membership.register(NOW, ConnectionId(2), registration("a", 2));
        let old = ConnectionId(1);
        assert_eq!(
            second,
            Ok(Registered::Superseded {
                old,
                incarnation: Incarnation(1)
            })
        );
        let late = membership.connection_lost(NOW, old, HowLost::ProcessEnded, "end of file");
        assert_eq!(
            late, None,
            "the old connection's end says nothing of the new life"
        );
        assert_eq!(membership.members().count(), 1);
        assert_eq!(membership.lost().len(), 1);
    }

    #[test]
    fn a_broken_stream_may_be_mended_in_time() {
        let mut membership = membership();
        let lost = |membership: &mut Membership, connection, how| {
            membership.connection_lost(NOW, ConnectionId(connection), how, "test")
        };
        let _new = membership.register(NOW, ConnectionId(1), registration("a", 1));
        assert_eq!(lost(&mut membership, 1, HowLost::StreamBroken), None);
        assert!(
            !membership
                .at(ConnectionId(1))
                .expect("still a member")
                .is_usable()
        );
        let again = membership.register(NOW, ConnectionId(2), registration("a", 1));
        assert_eq!(
            again,
            Ok(Registered::Again {
                old: ConnectionId(1)
            })
        );
        assert_eq!(membership.next_timeout(), None);

        assert_eq!(lost(&mut membership, 2, HowLost::StreamBroken), None);
        let late = NOW + Duration::from_secs(2);
        assert_eq!(membership.next_timeout(), Some(late));
        assert_eq!(membership.overdue(late), Some(TaskManagerId("a".into())));
        assert_eq!(membership.overdue(late), None);
    }

    #[test]
    fn the_end_of_a_process_is_a_loss_at_once() {
        let mut membership = membership();
        let _new = membership.register(NOW, ConnectionId(1), registration("a", 1));
        let lost = membership.connection_lost(NOW, ConnectionId(1), HowLost::ProcessEnded, "eof");
        assert_eq!(lost, Some(TaskManagerId("a".into())));
        assert_eq!(membership.lost()[0].reason, "eof");
    }

    #[test]
    fn what_does_not_fit_the_cluster_is_refused_with_the_remedy() {
        let mut membership = membership();
        let mut refused = |change: fn(&mut Registration)| {
            let mut registration = registration("a", 1);
            change(&mut registration);
            membership
                .register(NOW, ConnectionId(1), registration)
                .expect_err("it does not fit")
        };
        let other = refused(|registration| registration.cluster_config_hash = 8);
        assert!(matches!(
            other,
            Refusal::Configuration {
                theirs: 8,
                ours: 7,
                ..
            }
        ));
        assert!(other.to_string().contains("[cluster]"));
        assert!(matches!(
            refused(|registration| registration.slots = 0),
            Refusal::NoSlots { .. }
        ));
        let nameless = refused(|registration| registration.id = TaskManagerId(String::new()));
        assert!(matches!(nameless, Refusal::Nameless { .. }));
        assert_eq!(membership.members().count(), 0);
    }

    #[test]
    fn only_the_last_losses_are_remembered() {
        let mut membership = membership();
        for life in 0..100 {
            let _registered = membership.register(NOW, ConnectionId(life), registration("a", life));
        }
        assert_eq!(membership.lost().len(), LOST_REMEMBERED_MAX);
    }
}
