//! What a JobManager's leadership is told and what it wants.

use alloc::string::String;
use core::fmt;
use core::time::Duration;
use tidemill_protocol::Epoch;

use crate::time::Time;

/// What a leadership is told. Facts about another epoch than the one that it is about change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The candidature won.
    Elected {
        /// The fencing number: greater than any before.
        epoch: Epoch,
        /// When the confirmation that followed the election was sent.
        confirmed_at: Time,
        /// The session's timeout, as it was negotiated; `None` when leadership never lapses by itself.
        session_timeout: Option<Duration>,
    },
    /// The candidature ended without an election: an error, not somebody else's victory. It is tried again.
    StandFailed {
        /// Why.
        reason: String,
    },
    /// [`Action::Confirm`] succeeded.
    Confirmed {
        /// Of which leadership.
        epoch: Epoch,
        /// When the request was sent.
        sent_at: Time,
    },
    /// [`Action::Confirm`] failed, or it is not known how it went. It is tried again as long as there is time.
    ConfirmFailed {
        /// Of which leadership.
        epoch: Epoch,
    },
    /// The lock node or its session is gone for certain. To be said after a [`Action::StepDown`] as well: whoever cannot
    /// reach the registry cannot resign either, and stands again only when its lock is gone.
    Lost {
        /// Of which leadership.
        epoch: Epoch,
    },
    /// A write was refused by the fence.
    Fenced {
        /// Of which leadership.
        epoch: Epoch,
    },
    /// [`Action::TakeOver`] succeeded.
    TakenOver {
        /// Of which leadership.
        epoch: Epoch,
    },
    /// [`Action::TakeOver`] failed.
    TakeOverFailed {
        /// Of which leadership.
        epoch: Epoch,
        /// Why, for people.
        reason: String,
    },
    /// [`Action::Resign`] succeeded.
    Resigned {
        /// Of which leadership.
        epoch: Epoch,
    },
    /// [`Action::Resign`] failed, or it is not known how it went: the lock node may still be there.
    ResignFailed {
        /// Of which leadership.
        epoch: Epoch,
    },
    /// Who is there and who is reached; said whenever it changes, also while another leads.
    Reach(Reach),
    /// The process is asked to end.
    StopRequested,
}

/// Who is there, by the registry, and who of them is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// TaskManagers that have announced themselves.
    pub task_managers_announced: usize,
    /// Those of them that are registered with this JobManager.
    pub task_managers_connected: usize,
    /// Other JobManagers that lead or stand for election.
    pub other_candidates: usize,
}

impl Reach {
    /// Whether at least half of the announced TaskManagers are reached.
    #[must_use]
    pub const fn suffices(&self) -> bool {
        self.task_managers_connected.saturating_mul(2) >= self.task_managers_announced
    }
}

/// What a leadership wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stand for election. Answer [`Event::Elected`] or [`Event::StandFailed`].
    Stand,
    /// Load what the registry holds. Answer [`Event::TakenOver`] or [`Event::TakeOverFailed`].
    TakeOver {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// Lead: let TaskManagers and users in, and perform what the [`Leader`](crate::leader::Leader) wants as long as
    /// [`Leadership::may_lead`](super::Leadership::may_lead).
    Lead {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// Ask a quorum whether this leadership still holds. Answer [`Event::Confirmed`] with the time at which the request
    /// was sent, [`Event::ConfirmFailed`] or [`Event::Fenced`]. One at a time.
    Confirm {
        /// Which leadership.
        epoch: Epoch,
    },
    /// Drop the [`Leader`](crate::leader::Leader), or the take-over, at once; everything that it wanted and that is not
    /// done yet is not done. Connections of TaskManagers are closed, so that they look for the next leader.
    StepDown {
        /// Which leadership.
        epoch: Epoch,
        /// Why.
        reason: StepDownReason,
    },
    /// Delete the lock node, so that the next candidate is elected at once. Answer [`Event::Resigned`] or
    /// [`Event::ResignFailed`].
    Resign {
        /// Which leadership.
        epoch: Epoch,
    },
    /// Nothing is led any more and a candidature, if there is one, may be dropped: the process may end.
    Stopped,
}

/// Why a leadership ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepDownReason {
    /// It could not be confirmed in time, so the session may be about to expire.
    NotConfirmed {
        /// How long ago the last confirmation that succeeded was sent.
        since: Duration,
    },
    /// The lock node or its session is gone.
    Lost,
    /// A write was refused: somebody else leads.
    Fenced,
    /// What the registry holds could not be loaded.
    TakeOverFailed {
        /// Why.
        reason: String,
    },
    /// Most TaskManagers are not reached from here, and another JobManager may do better.
    OutOfReach {
        /// TaskManagers that have announced themselves.
        announced: usize,
        /// Those that are registered.
        connected: usize,
    },
    /// The process ends.
    Stopping,
}

impl fmt::Display for StepDownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConfirmed { since } => write!(
                f,
                "it could not be confirmed for {since:?}: the registry is not reached, or this process did not run"
            ),
            Self::Lost => f.write_str("its lock, or the session that held it, is gone"),
            Self::Fenced => f.write_str("a write was refused: another JobManager leads"),
            Self::TakeOverFailed { reason } => write!(f, "the take-over failed: {reason}"),
            Self::OutOfReach {
                announced,
                connected,
            } => write!(
                f,
                "of {announced} announced TaskManagers {connected} are reached from here, and another JobManager may reach more"
            ),
            Self::Stopping => f.write_str("the JobManager is being stopped"),
        }
    }
}
