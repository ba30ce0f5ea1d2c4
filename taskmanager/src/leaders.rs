//! Where the leader may be: a list of addresses that are tried in turn, or what the registry says, which also says at
//! once when there is another. It never connects to anybody.

use std::future::pending;

use tidemill_coordination::{Connection, KnownLeader, Registry};
use tidemill_protocol::Epoch;
use tidemill_protocol::record::JobManagerRecord;
use tokio::sync::watch;

/// A source of addresses.
#[derive(Debug)]
pub(crate) enum Leaders {
    /// These JobManagers, each `host:port`; whichever accepts a registration leads.
    Fixed(Vec<String>),
    /// Whoever the registry names.
    Named(Named),
}

/// What the registry says.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) leader: watch::Receiver<Option<KnownLeader>>,
    /// Everybody who leads or may come to lead.
    pub(crate) job_managers: watch::Receiver<Vec<JobManagerRecord>>,
    pub(crate) connection: watch::Receiver<Connection>,
}

/// A JobManager that may lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// `host:port`.
    pub(crate) address: String,
    /// It leads under this epoch or a greater one, if it leads.
    pub(crate) epoch: Epoch,
    /// The registry names it as the leader.
    pub(crate) is_named: bool,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_named {
            write!(f, "the leader of epoch {} at {}", self.epoch, self.address)
        } else {
            write!(f, "the JobManager at {}", self.address)
        }
    }
}

impl Named {
    pub(crate) fn of(registry: &impl Registry) -> Self {
        Self {
            leader: registry.leader(),
            job_managers: registry.job_managers(),
            connection: registry.connection(),
        }
    }

    /// The leader. While the registry is out of reach of this process it may have named another, which is one of those
    /// that it knew of.
    fn candidates(&mut self) -> Vec<Candidate> {
        let leader = self.leader.borrow_and_update().clone();
        let mut candidates: Vec<Candidate> = leader
            .iter()
            .map(|leader| Candidate {
                address: leader.record.control_address.clone(),
                epoch: leader.epoch,
                is_named: true,
            })
            .collect();
        if *self.connection.borrow() != Connection::Connected {
            let named = leader.as_ref().map(|leader| &leader.record.control_address);
            let job_managers = self.job_managers.borrow();
            let others = job_managers.iter().map(|record| &record.control_address);
            candidates.extend(
                others
                    .filter(|address| Some(*address) != named)
                    .map(|address| Candidate {
                        address: address.clone(),
                        epoch: leader
                            .as_ref()
                            .map_or(Epoch::default(), |leader| leader.epoch),
                        is_named: false,
                    }),
            );
        }
        candidates
    }
}

impl Leaders {
    /// Who is to be tried now, in this order.
    pub(crate) fn candidates(&mut self) -> Vec<Candidate> {
        match self {
            Self::Fixed(addresses) => addresses
                .iter()
                .map(|address| Candidate {
                    address: address.clone(),
                    epoch: Epoch::default(),
                    is_named: false,
                })
                .collect(),
            Self::Named(named) => named.candidates(),
        }
    }

    /// Resolves when there may be somebody else to try than the last time.
    pub(crate) async fn changed(&mut self) {
        let gone = match self {
            Self::Fixed(_) => true,
            Self::Named(named) => named.leader.changed().await.is_err(),
        };
        if gone {
            pending().await
        }
    }

    /// Resolves with the epoch of a leader that has succeeded the one of `epoch`.
    pub(crate) async fn successor_of(&self, epoch: Epoch) -> Epoch {
        let Self::Named(named) = self else {
            return pending().await;
        };
        // A clone of its own, so that the change is not taken for seen.
        let mut known = named.leader.clone();
        let newer = |leader: &Option<KnownLeader>| {
            leader.as_ref().is_some_and(|leader| leader.epoch > epoch)
        };
        match known.wait_for(newer).await.map(|leader| leader.clone()) {
            Ok(Some(leader)) => leader.epoch,
            Ok(None) | Err(_) => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tidemill_protocol::Incarnation;
    use tidemill_protocol::record::JobManagerRecord;

    use super::*;

    fn record(address: &str) -> JobManagerRecord {
        JobManagerRecord {
            id: address.to_owned(),
            incarnation: Incarnation(1),
            control_address: address.to_owned(),
            rest_url: String::new(),
        }
    }

    fn leader(epoch: u64, address: &str) -> Option<KnownLeader> {
        let (epoch, record) = (Epoch(epoch), record(address));
        Some(KnownLeader { epoch, record })
    }

    /// A registry's three voices.
    struct Voices {
        leader: watch::Sender<Option<KnownLeader>>,
        job_managers: watch::Sender<Vec<JobManagerRecord>>,
        connection: watch::Sender<Connection>,
    }

    fn registry(known: Option<KnownLeader>) -> (Voices, Leaders) {
        let voices = Voices {
            leader: watch::Sender::new(known),
            job_managers: watch::Sender::new(Vec::new()),
            connection: watch::Sender::new(Connection::Connected),
        };
        let named = Named {
            leader: voices.leader.subscribe(),
            job_managers: voices.job_managers.subscribe(),
            connection: voices.connection.subscribe(),
        };
        (voices, Leaders::Named(named))
    }

    #[test]
    fn only_a_greater_epoch_is_a_successor() {
        let (Voices { leader: tell, .. }, leaders) = registry(leader(7, "a:1"));
        assert_eq!(leaders.successor_of(Epoch(7)).now_or_never(), None);
        tell.send_replace(None);
        assert_eq!(leaders.successor_of(Epoch(7)).now_or_never(), None);
        tell.send_replace(leader(6, "b:1"));
        assert_eq!(leaders.successor_of(Epoch(7)).now_or_never(), None);
        tell.send_replace(leader(9, "c:1"));
        let successor = leaders.successor_of(Epoch(7)).now_or_never();
        assert_eq!(successor, Some(Epoch(9)));
    }

    #[test]
    fn a_change_that_a_successor_brought_is_still_news_for_the_next_attempt() {
        let (Voices { leader: tell, .. }, mut leaders) = registry(None);
        assert_eq!(leaders.candidates(), []);
        assert_eq!(leaders.changed().now_or_never(), None);
        tell.send_replace(leader(3, "a:1"));
        assert_eq!(
            leaders.successor_of(Epoch(2)).now_or_never(),
            Some(Epoch(3))
        );
        assert_eq!(leaders.changed().now_or_never(), Some(()));
        let found = leaders.candidates();
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            format!("the leader of epoch {} at a:1", Epoch(3))
        );
        assert_eq!(leaders.changed().now_or_never(), None, "it is known");
    }

    #[test]
    fn others_are_asked_only_while_the_registry_is_out_of_reach() {
        let (voices, mut leaders) = registry(leader(4, "a:1"));
        let both = vec![record("a:1"), record("b:1")];
        voices.job_managers.send_replace(both);
        let tried = |leaders: &mut Leaders| -> Vec<String> {
            let candidates = leaders.candidates();
            assert!(candidates.iter().all(|one| one.epoch == Epoch(4)));
            candidates.iter().map(Candidate::to_string).collect()
        };
        let named = "the leader of epoch 4 at a:1";
        assert_eq!(tried(&mut leaders), [named]);
        voices.connection.send_replace(Connection::Suspended);
        assert_eq!(tried(&mut leaders), [named, "the JobManager at b:1"]);
        voices.connection.send_replace(Connection::Connected);
        assert_eq!(tried(&mut leaders), [named]);
    }

    #[test]
    fn fixed_addresses_are_all_tried_and_never_change() {
        let mut leaders = Leaders::Fixed(vec!["a:1".to_owned(), "b:1".to_owned()]);
        let addresses: Vec<String> = leaders
            .candidates()
            .into_iter()
            .map(|candidate| candidate.address)
            .collect();
        assert_eq!(addresses, ["a:1", "b:1"]);
        assert_eq!(leaders.changed().now_or_never(), None);
        assert_eq!(leaders.successor_of(Epoch(0)).now_or_never(), None);
    }
}
