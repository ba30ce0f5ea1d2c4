//! How a job ends, and how what the registry holds of it is kept up to date: one write at a time, and nothing is acted on
//! before it is stored.

use tidemill_protocol::record::JobState;

use super::{Action, Job, Note, Phase, RETRY, RegionState, Timer};
use crate::checkpoint;
use crate::time::Time;

impl Job {
    pub(super) fn cancel(&mut self, now: Time) {
        if self.phase.is_active() {
            self.record.state = JobState::Cancelling;
            self.become_phase(now, Phase::Cancelling);
            self.timers.stop(Timer::Restart);
            self.timers.stop(Timer::Adoption);
            self.store_record();
        } else if self.phase == Phase::Cancelling && self.record_in_flight.is_none() {
            self.store_record();
        }
    }

    /// How the job ended is decided: stops everything, stores that, and cleans up once it is stored.
    pub(super) fn end(&mut self, now: Time, state: JobState) {
        if let JobState::Failed { reason } = &state {
            let reason = reason.clone();
            self.note(now, Note::Failed { reason });
        }
        self.record.state = state;
        self.record.ended_at_ms = Some(self.reign.wall_ms(now));
        self.become_phase(now, Phase::Ending);
        self.timers.stop_all();
        self.coordinator.end();
        let reason = "the job has ended".into();
        self.coordinator
            .handle(now, checkpoint::Event::TasksLost { reason });
        for region in 0..self.regions.len() {
            self.stop_region(region);
            self.regions[region].state = RegionState::Pending;
        }
        for report in core::mem::take(&mut self.reports) {
            self.stop(&report.1.from, report.1.attempt, report.0);
        }
        self.placements.clear();
        self.shortfall = None;
        self.moving = None;
        self.store_record();
    }

    pub(super) fn store_record(&mut self) {
        self.timers.stop(Timer::StoreAgain);
        self.record_changed = self.record_in_flight.is_some();
        if self.record_in_flight.is_none() {
            self.record_in_flight = Some(self.record.state.clone());
            self.actions
                .push_back(Action::StoreRecord(self.record.clone()));
        }
    }

    pub(super) fn record_failed(&mut self, now: Time, reason: &str) {
        self.record_in_flight = None;
        let what = alloc::format!("the job's record could not be stored: {reason}");
        self.note(now, Note::Retrying { what });
        self.timers.set(Timer::StoreAgain, now + RETRY);
    }

    /// The checkpoint that was kept when it ended is not wanted any more.
    pub(super) fn drop_kept(&mut self) {
        self.cleaned &= self.kept_checkpoint().is_none();
        self.kept_dropped = true;
    }

    pub(super) fn record_stored(&mut self, now: Time) {
        let Some(stored) = self.record_in_flight.take() else {
            return;
        };
        if self.record_changed {
            self.store_record();
        }
        if stored == JobState::Cancelling && self.phase == Phase::Cancelling {
            self.actions.push_back(Action::CancelStored);
            self.end(now, JobState::Cancelled);
        } else if stored.is_terminal() && self.phase == Phase::Ending {
            self.ended_at = Some(now);
            self.become_phase(now, terminal_phase(&stored));
        }
    }
}

/// The phase of a job whose record says how it ended.
pub(super) fn terminal_phase(state: &JobState) -> Phase {
    match state {
        JobState::Cancelled => Phase::Cancelled,
        JobState::Failed { .. } => Phase::Failed,
        JobState::Finished | JobState::Active | JobState::Cancelling => Phase::Finished,
    }
}
