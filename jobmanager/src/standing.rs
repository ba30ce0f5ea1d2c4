//! What this JobManager is to its cluster at a moment, in the words that others are told: its role, who leads, and
//! whether the registry is in reach. It decides nothing.

use std::time::Instant;

use tidemill_config::Coordination;
use tidemill_coordination::{Connection, KnownLeader};
use tidemill_core::leadership::Phase;
use tidemill_protocol::Epoch;
use tidemill_protocol::record::JobManagerRecord;

use crate::views::{
    ClusterView, HealthView, JobManagerView, LeaderView, RegistryConnection, RegistryView, Role,
};

/// What a JobManager is to its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) me: JobManagerRecord,
    pub(crate) role: Role,
    /// Under which it leads or takes over.
    pub(crate) epoch: Option<Epoch>,
    /// Who leads, by the registry.
    pub(crate) leader: Option<KnownLeader>,
    /// Everybody who leads or stands for election, by the registry.
    pub(crate) candidates: Vec<JobManagerRecord>,
    pub(crate) registry: RegistryState,
}

/// How the registry is reached from this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegistryState {
    pub(crate) kind: Coordination,
    pub(crate) connection: Connection,
    pub(crate) since: Instant,
}

impl RegistryState {
    pub(crate) fn is_connected(&self) -> bool {
        self.connection == Connection::Connected
    }
}

impl Standing {
    /// Before anything is known.
    pub(crate) fn beginning(
        me: JobManagerRecord,
        kind: Coordination,
        connection: Connection,
    ) -> Self {
        Self {
            me,
            role: Role::Follower,
            epoch: None,
            leader: None,
            candidates: Vec::new(),
            registry: RegistryState {
                kind,
                connection,
                since: Instant::now(),
            },
        }
    }

    /// Another JobManager that leads.
    pub(crate) fn other_leader(&self) -> Option<&KnownLeader> {
        self.leader
            .as_ref()
            .filter(|leader| leader.record.incarnation != self.me.incarnation)
    }

    /// Why a request cannot be answered here, in one sentence.
    pub(crate) fn why_not_here(&self) -> String {
        if let Some(leader) = self.other_leader() {
            let JobManagerRecord { id, rest_url, .. } = &leader.record;
            return format!("this JobManager follows: the leader is {id} at {rest_url}");
        }
        let away = if self.registry.is_connected() {
            String::new()
        } else {
            let seconds = self.registry.since.elapsed().as_secs();
            format!("; ZooKeeper has not been reachable from here for {seconds} s")
        };
        let candidates: Vec<String> = self
            .candidates
            .iter()
            .map(|candidate| format!("{} at {}", candidate.id, candidate.rest_url))
            .collect();
        let candidates = match (self.role, candidates.is_empty()) {
            (Role::TakingOver, _) => "; this JobManager is taking over".to_owned(),
            (Role::SteppingDown, true) => "; this JobManager is giving its place up".to_owned(),
            (_, true) => "; no candidate is known".to_owned(),
            (_, false) => format!("; candidates are {}", candidates.join(", ")),
        };
        format!("no JobManager leads now{candidates}{away}")
    }

    /// For `/health`.
    pub(crate) fn health(&self, cluster: Option<ClusterView>) -> HealthView {
        let leader = self.leader.as_ref().map(|leader| LeaderView {
            id: leader.record.id.clone(),
            epoch: leader.epoch.0,
            rest_url: leader.record.rest_url.clone(),
        });
        HealthView {
            id: self.me.id.clone(),
            role: self.role,
            leading: self.role == Role::Leader,
            epoch: self.epoch.map(|epoch| epoch.0),
            leader,
            registry: self.registry_view(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster,
        }
    }

    fn registry_view(&self) -> RegistryView {
        let kind = match self.registry.kind {
            Coordination::Embedded => "embedded",
            Coordination::ZooKeeper => "zookeeper",
        };
        let connection = match self.registry.connection {
            Connection::Connecting => RegistryConnection::Connecting,
            Connection::Connected => RegistryConnection::Connected,
            Connection::Suspended => RegistryConnection::Suspended,
        };
        let since = self.registry.since.elapsed().as_millis();
        RegistryView {
            kind: kind.to_owned(),
            connection,
            since_ms: u64::try_from(since).unwrap_or(u64::MAX),
        }
    }

    /// For `/v1/jobmanagers`.
    pub(crate) fn job_managers(&self) -> Vec<JobManagerView> {
        let view = |record: &JobManagerRecord| {
            let leader = self
                .leader
                .as_ref()
                .filter(|leader| leader.record.incarnation == record.incarnation);
            JobManagerView {
                id: record.id.clone(),
                incarnation: record.incarnation.to_string(),
                role: leader.map_or(Role::Follower, |_| Role::Leader),
                epoch: leader.map(|leader| leader.epoch.0),
                control_address: record.control_address.clone(),
                rest_url: record.rest_url.clone(),
            }
        };
        self.candidates.iter().map(view).collect()
    }
}

/// The role that a phase of the leadership is.
pub(crate) const fn role(phase: Phase) -> Role {
    match phase {
        Phase::Following => Role::Follower,
        Phase::TakingOver { .. } => Role::TakingOver,
        Phase::Leading { .. } => Role::Leader,
        Phase::SteppingDown { .. } | Phase::Stopped => Role::SteppingDown,
    }
}
