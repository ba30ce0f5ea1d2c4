//! Whether this JobManager leads: standing for election, taking over, leading while that is confirmed, stepping down. It
//! never decides anything for jobs, and never trusts that a session lives because nobody said that it ended.
//!
//! # Until when a leader may act
//!
//! A leader may act until 2/3 of the session timeout `T` after it *sent* the last confirmation that succeeded, and a
//! confirmation counts only when it succeeds before the one before has run out. So the session outlives every action:
//!
//! - A server that is not the ensemble's leader reports the sessions it has heard of each half tick, and a tick is at most
//!   half the least timeout: what was sent at `s` counts at the latest at `s + T/4`, and from then on the session lives
//!   until `s + T` at least (its expiry is rounded up).
//! - Until it counts, the confirmation before, sent at `p`, keeps the session: until `p + T`. Since `s < p + 2/3 T`, it
//!   counts before `p + 2/3 T + T/4 = p + 11/12 T`. The twelfth that is left is for clocks that run at different speeds.
//! - An action begun at the last moment has `T/3` to take effect before anybody else is elected. What takes longer is
//!   refused by the fence in the registry and by the epoch at the TaskManagers.
//!
//! Deadlines are compared with the `now` that is handed in, so a process that was stopped and goes on performs nothing of
//! what it had decided before.

mod event;

use alloc::collections::VecDeque;
use alloc::string::String;
use core::time::Duration;
use tidemill_protocol::Epoch;

pub use self::event::{Action, Event, Reach, StepDownReason};
use crate::mutation::{self, Mutation};
use crate::time::{Time, Timers};

/// Before a candidature that failed is tried again, and before a JobManager stands again whose take-over failed once.
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause before a JobManager stands again.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// How long a process that is to end waits for its resignation to be known.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(3);
/// Confirmations in one session timeout.
const CONFIRMATIONS: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The leadership is not confirmed any more.
    Deadline,
    /// The next confirmation is due.
    Confirm,
    /// Too few TaskManagers were reached for too long.
    Reach,
    /// The pause is over.
    Stand,
    /// The resignation is tried again.
    ResignAgain,
    /// The end does not wait any longer.
    Stop,
}

/// What a JobManager is with respect to the leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It stands for election, or pauses before it does.
    Following,
    /// It was elected and loads what the registry holds.
    TakingOver {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// It leads.
    Leading {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// It does not lead any more, and its lock is being given up.
    SteppingDown {
        /// Which was held under this epoch.
        epoch: Epoch,
    },
    /// It never stands again.
    Stopped,
}

/// The leadership of one JobManager.
#[derive(Clone, Debug)]
pub struct Leadership {
    reach_grace: Duration,
    phase: Phase,
    /// The greatest epoch it was elected under.
    newest: Option<Epoch>,
    session_timeout: Option<Duration>,
    /// When the last confirmation that succeeded was sent.
    confirmed_at: Time,
    /// A confirmation is under way.
    confirming: bool,
    reach: Reach,
    /// Before it stands again, when it steps down because others may do better.
    pause: Pause,
    /// How long [`Phase::SteppingDown`] is followed by a pause.
    stand_after: Duration,
    /// It pauses so that others may lead.
    gives_way: bool,
    stopping: bool,
    timers: Timers<Timer>,
    actions: VecDeque<Action>,
}

/// Pauses that grow from one failure to the next.
#[derive(Clone, Copy, Debug)]
struct Pause {
    first: Duration,
    next: Duration,
}

impl Pause {
    fn take(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }

    fn reset(&mut self) {
        self.next = self.first;
    }
}

impl Leadership {
    /// A JobManager that stands for election at once. A leader that reaches fewer than half of the announced TaskManagers
    /// for `reach_grace` (and for longer than TaskManagers that died stay announced) gives way to other candidates.
    #[must_use]
    pub fn new(reach_grace: Duration) -> Self {
        let first = reach_grace.max(RETRY).min(PAUSE_MAX);
        Self {
            reach_grace,
            phase: Phase::Following,
            newest: None,
            session_timeout: None,
            confirmed_at: Time::ZERO,
            confirming: false,
            reach: Reach::default(),
            pause: Pause { first, next: first },
            stand_after: Duration::ZERO,
            gives_way: false,
            stopping: false,
            timers: Timers::default(),
            actions: [Action::Stand].into(),
        }
    }

    /// Takes a fact. Whether the leadership has run out is looked at first.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.check_deadline(now);
        match event {
            Event::Elected {
                epoch,
                confirmed_at,
                session_timeout,
            } => self.elected(now, epoch, confirmed_at, session_timeout),
            Event::StandFailed { .. } => {
                if self.phase == Phase::Following {
                    self.timers.set(Timer::Stand, now + RETRY);
                }
            }
            Event::Confirmed { epoch, sent_at } => self.confirmed(now, epoch, sent_at),
            Event::ConfirmFailed { epoch } => self.confirm_failed(now, epoch),
            Event::Lost { epoch } => self.gone(now, epoch, StepDownReason::Lost),
            Event::Fenced { epoch } => self.gone(now, epoch, StepDownReason::Fenced),
            Event::TakenOver { epoch } => self.taken_over(now, epoch),
            Event::TakeOverFailed { epoch, reason } => self.take_over_failed(now, epoch, reason),
            Event::Resigned { epoch } => self.resigned(now, epoch),
            Event::ResignFailed { epoch } => self.resign_failed(now, epoch),
            Event::Reach(reach) => self.reached(now, reach),
            Event::StopRequested => self.stop(now),
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Leadership::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next_timeout()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.check_deadline(now);
        while let Some(timer) = self.timers.take_expired(now) {
            match timer {
                // Looked at before anything else.
                Timer::Deadline => {}
                Timer::Confirm => self.confirm(),
                Timer::Reach => self.out_of_reach(now),
                Timer::Stand => self.stand(),
                Timer::ResignAgain => {
                    if let Phase::SteppingDown { epoch } = self.phase {
                        self.actions.push_back(Action::Resign { epoch });
                    }
                }
                Timer::Stop => self.stopped(),
            }
        }
    }

    /// What it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The epoch under which it leads or takes over.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        match self.phase {
            Phase::TakingOver { epoch } | Phase::Leading { epoch } => Some(epoch),
            Phase::Following | Phase::SteppingDown { .. } | Phase::Stopped => None,
        }
    }

    /// Whether something that the [`Leader`](crate::leader::Leader) wants may be done now. Asked before each of its
    /// actions, with a fresh `now`.
    #[must_use]
    pub fn may_lead(&self, now: Time) -> bool {
        matches!(self.phase, Phase::Leading { .. })
            && self.deadline().is_none_or(|deadline| now < deadline)
    }

    /// From when on it may not act, unless it is confirmed again.
    fn deadline(&self) -> Option<Time> {
        let timeout = self.session_timeout?;
        if mutation::is(Mutation::DeadlineIgnored) {
            return None;
        }
        Some(self.confirmed_at + timeout * 2 / 3)
    }

    fn check_deadline(&mut self, now: Time) {
        if let Some(epoch) = self.epoch()
            && self.deadline().is_some_and(|deadline| deadline <= now)
        {
            let since = now.since(self.confirmed_at);
            self.step_down(now, StepDownReason::NotConfirmed { since }, Duration::ZERO);
            self.resign(now, epoch);
        }
    }

    fn elected(
        &mut self,
        now: Time,
        epoch: Epoch,
        confirmed_at: Time,
        session_timeout: Option<Duration>,
    ) {
        if self.phase != Phase::Following {
            return;
        }
        self.timers.stop(Timer::Stand);
        // A number that is not greater fences nothing.
        let grows = self.newest.is_none_or(|newest| newest < epoch);
        self.newest = self.newest.max(Some(epoch));
        self.session_timeout = session_timeout;
        self.confirmed_at = confirmed_at.min(now);
        self.confirming = false;
        let in_time = self.deadline().is_none_or(|deadline| now < deadline);
        if !grows || !in_time {
            self.stand_after = if grows { Duration::ZERO } else { RETRY };
            return self.resign(now, epoch);
        }
        self.phase = Phase::TakingOver { epoch };
        self.actions.push_back(Action::TakeOver { epoch });
        self.schedule_confirmation(now);
    }

    /// The deadline of the last confirmation, and when the next is due.
    fn schedule_confirmation(&mut self, now: Time) {
        let Some(timeout) = self.session_timeout else {
            return;
        };
        if let Some(deadline) = self.deadline() {
            self.timers.set(Timer::Deadline, deadline);
        }
        let due = self.confirmed_at + timeout / CONFIRMATIONS;
        self.timers.set(Timer::Confirm, due.max(now));
    }

    fn confirm(&mut self) {
        if let Some(epoch) = self.epoch().filter(|_| !self.confirming) {
            self.confirming = true;
            self.actions.push_back(Action::Confirm { epoch });
        }
    }

    fn confirmed(&mut self, now: Time, epoch: Epoch, sent_at: Time) {
        if self.epoch() != Some(epoch) {
            return;
        }
        self.confirming = false;
        self.confirmed_at = self.confirmed_at.max(sent_at.min(now));
        self.schedule_confirmation(now);
    }

    fn confirm_failed(&mut self, now: Time, epoch: Epoch) {
        if self.epoch() != Some(epoch) {
            return;
        }
        self.confirming = false;
        if let Some(timeout) = self.session_timeout {
            let pause = timeout / (2 * CONFIRMATIONS);
            self.timers.set(Timer::Confirm, now + pause);
        }
    }

    fn taken_over(&mut self, now: Time, epoch: Epoch) {
        if self.phase != (Phase::TakingOver { epoch }) {
            return;
        }
        self.phase = Phase::Leading { epoch };
        self.actions.push_back(Action::Lead { epoch });
        self.watch_reach(now);
    }

    fn take_over_failed(&mut self, now: Time, epoch: Epoch, reason: String) {
        if self.phase == (Phase::TakingOver { epoch }) {
            let pause = self.pause.take();
            self.step_down(now, StepDownReason::TakeOverFailed { reason }, pause);
            self.resign(now, epoch);
        }
    }

    /// The lock is gone: there is nothing to resign.
    fn gone(&mut self, now: Time, epoch: Epoch, reason: StepDownReason) {
        if self.epoch() == Some(epoch) {
            self.step_down(now, reason, Duration::ZERO);
            self.follow(now);
        } else {
            self.resigned(now, epoch);
        }
    }

    /// Nothing is done any more from here on. What was to be done and has not been handed out is not done either.
    fn step_down(&mut self, now: Time, reason: StepDownReason, stand_after: Duration) {
        let Some(epoch) = self.epoch() else { return };
        self.timers.stop_all();
        self.confirming = false;
        self.stand_after = stand_after;
        self.phase = Phase::SteppingDown { epoch };
        self.actions.retain(|action| {
            !matches!(
                action,
                Action::TakeOver { .. } | Action::Lead { .. } | Action::Confirm { .. }
            )
        });
        self.actions.push_back(Action::StepDown { epoch, reason });
        if self.stopping {
            self.timers.set(Timer::Stop, now + RESIGN_TIMEOUT);
        }
    }

    fn resign(&mut self, now: Time, epoch: Epoch) {
        self.phase = Phase::SteppingDown { epoch };
        self.actions.push_back(Action::Resign { epoch });
        if self.stopping {
            self.timers.set(Timer::Stop, now + RESIGN_TIMEOUT);
        }
    }

    fn resigned(&mut self, now: Time, epoch: Epoch) {
        if self.phase == (Phase::SteppingDown { epoch }) {
            self.follow(now);
        }
    }

    /// As long as the lock node may be there, standing again would be to wait for oneself.
    fn resign_failed(&mut self, now: Time, epoch: Epoch) {
        if self.phase != (Phase::SteppingDown { epoch }) {
            return;
        }
        if self.stopping {
            // The lock goes with the session, which the end of the process ends.
            self.stopped();
        } else {
            self.timers.set(Timer::ResignAgain, now + RETRY);
        }
    }

    fn follow(&mut self, now: Time) {
        self.timers.stop_all();
        if self.stopping {
            return self.stopped();
        }
        self.phase = Phase::Following;
        let after = core::mem::take(&mut self.stand_after);
        if after.is_zero() {
            self.stand();
        } else if self.reach.other_candidates == 0 {
            self.timers.set(Timer::Stand, now + after.min(RETRY));
        } else {
            self.gives_way = true;
            self.timers.set(Timer::Stand, now + after);
        }
    }

    fn stand(&mut self) {
        self.timers.stop(Timer::Stand);
        self.gives_way = false;
        if self.phase == Phase::Following {
            self.actions.push_back(Action::Stand);
        }
    }

    fn reached(&mut self, now: Time, reach: Reach) {
        self.reach = reach;
        self.watch_reach(now);
        if self.gives_way && reach.other_candidates == 0 {
            self.stand();
        }
    }

    fn watch_reach(&mut self, now: Time) {
        if !matches!(self.phase, Phase::Leading { .. }) {
            return;
        }
        let reach = self.reach;
        if reach.suffices() && reach.task_managers_connected > 0 {
            self.pause.reset();
        }
        if reach.suffices() || reach.other_candidates == 0 {
            self.timers.stop(Timer::Reach);
        } else if !self.timers.is_set(Timer::Reach) {
            // TaskManagers that died stay announced until their sessions have expired.
            let announced = self.session_timeout.unwrap_or_default() * 3 / 2;
            let grace = self.reach_grace.max(announced);
            self.timers.set(Timer::Reach, now + grace);
        }
    }

    fn out_of_reach(&mut self, now: Time) {
        let Phase::Leading { epoch } = self.phase else {
            return;
        };
        let reason = StepDownReason::OutOfReach {
            announced: self.reach.task_managers_announced,
            connected: self.reach.task_managers_connected,
        };
        let pause = self.pause.take();
        self.step_down(now, reason, pause);
        self.resign(now, epoch);
    }

    fn stop(&mut self, now: Time) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        match self.phase {
            Phase::TakingOver { epoch } | Phase::Leading { epoch } => {
                self.step_down(now, StepDownReason::Stopping, Duration::ZERO);
                self.resign(now, epoch);
            }
            Phase::SteppingDown { .. } => self.timers.set(Timer::Stop, now + RESIGN_TIMEOUT),
            Phase::Following | Phase::Stopped => self.stopped(),
        }
    }

    fn stopped(&mut self) {
        if self.phase != Phase::Stopped {
            self.timers.stop_all();
            self.gives_way = false;
            self.actions.retain(|action| *action != Action::Stand);
            self.phase = Phase::Stopped;
            self.actions.push_back(Action::Stopped);
        }
    }
}

#[cfg(test)]
#[path = "leadership/tests.rs"]
mod tests;
