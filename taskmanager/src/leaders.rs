//! Where the leader may be: a list of addresses that are tried in turn, or what the registry says, which also says at
//! once when there is another. It never connects to anybody.

use std::future::pending;

use tidemill_coordination::KnownLeader;
use tidemill_protocol::Epoch;
use tokio::sync::watch;

/// A source of addresses.
#[derive(Debug)]
pub(crate) enum Leaders {
    /// These JobManagers, each `host:port`; whichever accepts a registration leads.
    Fixed(Vec<String>),
    /// Whoever the registry names.
    Watched(watch::Receiver<Option<KnownLeader>>),
}

/// A JobManager that may lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// `host:port`.
    pub(crate) address: String,
    /// Under which epoch it leads, where that is known.
    pub(crate) epoch: Epoch,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.epoch == Epoch::default() {
            write!(f, "the JobManager at {}", self.address)
        } else {
            write!(f, "the leader of epoch {} at {}", self.epoch, self.address)
        }
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
                })
                .collect(),
            Self::Watched(known) => known
                .borrow_and_update()
                .iter()
                .map(|leader| Candidate {
                    address: leader.record.control_address.clone(),
                    epoch: leader.epoch,
                })
                .collect(),
        }
    }

    /// Resolves when there may be somebody else to try than the last time.
    pub(crate) async fn changed(&mut self) {
        let gone = match self {
            Self::Fixed(_) => true,
            Self::Watched(known) => known.changed().await.is_err(),
        };
        if gone {
            pending().await
        }
    }

    /// Resolves with the epoch of a leader that has succeeded the one of `epoch`.
    pub(crate) async fn successor_of(&self, epoch: Epoch) -> Epoch {
        let Self::Watched(known) = self else {
            return pending().await;
        };
        // A clone of its own, so that the change is not taken for seen.
        let mut known = known.clone();
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

    fn leader(epoch: u64, address: &str) -> Option<KnownLeader> {
        let record = JobManagerRecord {
            id: address.to_owned(),
            incarnation: Incarnation(1),
            control_address: address.to_owned(),
            rest_url: String::new(),
        };
        let epoch = Epoch(epoch);
        Some(KnownLeader { epoch, record })
    }

    #[test]
    fn only_a_greater_epoch_is_a_successor() {
        let (tell, known) = watch::channel(leader(7, "a:1"));
        let leaders = Leaders::Watched(known);
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
        let (tell, known) = watch::channel(None);
        let mut leaders = Leaders::Watched(known);
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
