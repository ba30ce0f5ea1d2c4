//! Faults that can be put into the machines, to prove that whoever checks them would notice. Without the feature
//! `mutations` none can: [`is`] is the constant `false` and there is no `set`. With it, the machines are right until
//! a fault is set.
//!
//! | Mutation | What is broken | What keeps it right otherwise |
//! |---|---|---|
//! | [`Mutation::OldEpochObeyed`] | a TaskManager obeys a leader that has been succeeded | [`Worker::met`](crate::worker::Worker::met) |
//! | [`Mutation::OldAttemptDeployed`] | a TaskManager deploys an attempt although a newer one runs there | [`Worker::handle`](crate::worker::Worker::handle) |
//! | [`Mutation::DeadlineIgnored`] | a leader that is not confirmed goes on | [`Leadership::may_lead`](crate::leadership::Leadership::may_lead) |
//! | [`Mutation::UnknownMeansPublished`] | a lost reply to the pointer's write is taken for a success | the pointer is read back |
//! | [`Mutation::CompletedBeforePublished`] | tasks commit before the pointer is written | the order of a publication |
//! | [`Mutation::AcknowledgementMissing`] | a checkpoint completes without the last task | all acknowledge |
//! | [`Mutation::BarrierNotAwaited`] | a channel that is at the barrier is read on | [`Alignment::is_blocked`](crate::Alignment::is_blocked) |
//! | [`Mutation::MixedAttemptsAdopted`] | a region is adopted though its tasks are of different attempts | the judgement of a new leader |
//! | [`Mutation::OutdatedAttemptAdopted`] | a region is adopted though a later attempt has made the last checkpoint | the judgement of a new leader |
//! | [`Mutation::EndedJobLoaded`] | a job that has ended runs again under the next leader | its stored state |
//! | [`Mutation::OlderCheckpointRestored`] | a recovery goes back to the checkpoint before the last | the last one counts |
//! | [`Mutation::RecoveryOvertakesPublication`] | a recovery starts while a pointer's write is in doubt | it waits for the outcome |
//! | [`Mutation::LateBarrierForgotten`] | a recording ends with the first late barrier | it waits for each |
//! | [`Mutation::RecordedFramesLost`] | what was recorded of channels is not brought back with the image | it comes first on its channels |
//! | [`Mutation::RetainedNotSpared`] | a clean-up spares all but the oldest retained checkpoint | whatever a retained one names stays |
//! | [`Mutation::LiveAttemptsSwept`] | what running attempts stored for checkpoints that were given up is deleted | their next captures build on it |
//! | [`Mutation::CopiedNotPinned`] | a checkpoint is deleted while it is copied to a savepoint | it is pinned meanwhile |

#[cfg(feature = "mutations")]
use core::sync::atomic::{AtomicU8, Ordering};

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Mutation {
    /// A TaskManager obeys a leader that has been succeeded.
    OldEpochObeyed = 1,
    /// A TaskManager deploys an attempt although a newer one runs there.
    OldAttemptDeployed,
    /// A leader that is not confirmed goes on.
    DeadlineIgnored,
    /// A lost reply to the pointer's write is taken for a success.
    UnknownMeansPublished,
    /// Tasks commit before the pointer is written.
    CompletedBeforePublished,
    /// A checkpoint completes without the last task.
    AcknowledgementMissing,
    /// A channel that is at the barrier is read on.
    BarrierNotAwaited,
    /// A region is adopted though its tasks are of different attempts.
    MixedAttemptsAdopted,
    /// A region is adopted though a later attempt has made the last checkpoint.
    OutdatedAttemptAdopted,
    /// A job that has ended runs again under the next leader.
    EndedJobLoaded,
    /// A recovery goes back to the checkpoint before the last.
    OlderCheckpointRestored,
    /// A recovery starts while a pointer's write is in doubt.
    RecoveryOvertakesPublication,
    /// A recording ends with the first late barrier.
    LateBarrierForgotten,
    /// What was recorded of channels is not brought back with the image.
    RecordedFramesLost,
    /// A clean-up spares all but the oldest retained checkpoint.
    RetainedNotSpared,
    /// What running attempts stored for checkpoints that were given up is deleted.
    LiveAttemptsSwept,
    /// A checkpoint is deleted while it is copied to a savepoint.
    CopiedNotPinned,
}

impl Mutation {
    /// Every one.
    pub const ALL: [Self; 17] = [
        Self::OldEpochObeyed,
        Self::OldAttemptDeployed,
        Self::DeadlineIgnored,
        Self::UnknownMeansPublished,
        Self::CompletedBeforePublished,
        Self::AcknowledgementMissing,
        Self::BarrierNotAwaited,
        Self::MixedAttemptsAdopted,
        Self::OutdatedAttemptAdopted,
        Self::EndedJobLoaded,
        Self::OlderCheckpointRestored,
        Self::RecoveryOvertakesPublication,
        Self::LateBarrierForgotten,
        Self::RecordedFramesLost,
        Self::RetainedNotSpared,
        Self::LiveAttemptsSwept,
        Self::CopiedNotPinned,
    ];
}

/// The one that is set; 0 for none. One for the whole process.
#[cfg(feature = "mutations")]
static SET: AtomicU8 = AtomicU8::new(0);

/// Breaks one thing in every machine of this process, or nothing any more.
#[cfg(feature = "mutations")]
pub fn set(mutation: Option<Mutation>) {
    SET.store(
        mutation.map_or(0, |mutation| mutation as u8),
        Ordering::Relaxed,
    );
}

/// Whether this is broken.
#[cfg(feature = "mutations")]
#[must_use]
pub fn is(mutation: Mutation) -> bool {
    SET.load(Ordering::Relaxed) == mutation as u8
}

/// Whether this is broken, which nothing can be without the feature `mutations`.
#[cfg(not(feature = "mutations"))]
#[must_use]
pub const fn is(_: Mutation) -> bool {
    false
}
