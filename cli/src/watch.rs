//! Waits for a job's end, shows how it gets on, and outlives a JobManager that is away for a while.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tidemill_jobmanager::views::{EventView, JobDetail};

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::print;
use crate::progress::{Progress, Rates};
use crate::verbs::logs::{Tail, rendered};

/// Short jobs are seen to end soon, long ones do not keep the JobManager busy.
const LOOK_INTERVAL_FIRST: Duration = Duration::from_millis(50);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a JobManager may be away: time to start it again.
pub(crate) const AWAY_MAX: Duration = Duration::from_secs(300);
const LOG_LINES_FIRST: u32 = 1_000;

/// How the waiting ended.
pub(crate) enum Ending {
    /// The job has ended; this is its last view.
    Job(Box<JobDetail>),
    /// The user does not want to wait any more.
    Interrupted,
}

/// What is watched, and how.
pub(crate) struct Watch<'a> {
    pub(crate) client: &'a Client,
    pub(crate) job: String,
    pub(crate) show_logs: bool,
    pub(crate) progress: Progress,
    pub(crate) interrupts: Receiver<()>,
    pub(crate) seen: Seen,
}

/// What was shown already, so that waiting on after an interrupt repeats nothing.
#[derive(Default)]
pub(crate) struct Seen {
    rates: Rates,
    events: Events,
}

impl Watch<'_> {
    /// Waits for the job's end or the user's wish.
    pub(crate) fn until_end(&mut self) -> Result<Ending, Failure> {
        let ending = self.look_until_end();
        self.progress.finish();
        ending
    }

    fn look_until_end(&mut self) -> Result<Ending, Failure> {
        let mut tail = self
            .show_logs
            .then(|| Tail::new(self.client, self.job.clone(), None, LOG_LINES_FIRST));
        let mut interval = LOOK_INTERVAL_FIRST;
        let mut away_since: Option<Instant> = None;
        loop {
            match self.client.job(&self.job) {
                Ok(job) => {
                    if away_since.take().is_some() {
                        self.progress.note("a JobManager leads again");
                    }
                    self.seen.rates.update(&job, Instant::now());
                    self.seen
                        .events
                        .new_ones(&job.events)
                        .iter()
                        .for_each(|event| self.progress.note(&event.text));
                    self.progress.show(&job, &self.seen.rates);
                    self.show_logs(tail.as_mut())?;
                    if job.summary.status.is_terminal() {
                        return Ok(Ending::Job(Box::new(job)));
                    }
                }
                Err(failure) if failure.exit == Exit::Unreachable => {
                    let since = *away_since.get_or_insert_with(|| {
                        self.progress.note(&format!(
                            "{}; the job runs on without it, and this waits",
                            failure.message()
                        ));
                        Instant::now()
                    });
                    if since.elapsed() > AWAY_MAX {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
            match self.interrupts.recv_timeout(interval) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(Ending::Interrupted),
            }
            interval = (interval * 2).min(LOOK_INTERVAL);
        }
    }

    fn show_logs(&self, tail: Option<&mut Tail<'_>>) -> Result<(), Failure> {
        let Some(tail) = tail else {
            return Ok(());
        };
        match tail.page() {
            Ok(page) => page
                .lines
                .iter()
                .try_for_each(|line| print::text(&rendered(line))),
            // The next look tells whether it is away.
            Err(failure) if failure.exit == Exit::Unreachable => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

/// Which of a job's events were shown already; the list that a view holds is bounded at its beginning.
#[derive(Default)]
struct Events {
    last: Option<EventView>,
}

impl Events {
    fn new_ones<'e>(&mut self, events: &'e [EventView]) -> &'e [EventView] {
        let is_last = |event: &EventView| self.last.as_ref() == Some(event);
        let shown = events
            .iter()
            .rposition(is_last)
            .map_or(0, |index| index + 1);
        let new = &events[shown..];
        if let Some(last) = new.last() {
            self.last = Some(last.clone());
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_shown_once_even_when_old_ones_are_forgotten() {
        let event = |at_ms| EventView {
            at_ms,
            text: format!("event {at_ms}"),
        };
        let mut events = Events::default();
        assert_eq!(events.new_ones(&[event(1), event(2)]).len(), 2);
        assert!(events.new_ones(&[event(1), event(2)]).is_empty());
        assert_eq!(events.new_ones(&[event(2), event(3)]), [event(3)]);
        assert_eq!(events.new_ones(&[event(7), event(8)]), [event(7), event(8)]);
    }
}
