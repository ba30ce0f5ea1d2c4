//! Asks an enumerator for splits. Requests are hints: one that is lost is repeated while the task starves.

use tidemill_protocol::split::SplitRequest;
use tokio::sync::mpsc::UnboundedSender;

use super::TaskEvent;

/// A starving task asks again after this time, in milliseconds.
const ASK_AGAIN_MS: u64 = 200;

/// The requests of one source task.
pub(crate) struct SplitRequests {
    request: SplitRequest,
    events: UnboundedSender<TaskEvent>,
    asked_at_ms: u64,
}

impl SplitRequests {
    /// Requests like this one, whose total is ignored.
    pub(crate) fn new(request: SplitRequest, events: UnboundedSender<TaskEvent>) -> Self {
        Self {
            request: SplitRequest {
                wanted_total: 0,
                ..request
            },
            events,
            asked_at_ms: 0,
        }
    }

    /// The task wants this many splits in all; `starved` when it has none left. Returns when a starving task asks again,
    /// in milliseconds since the Unix epoch.
    pub(crate) fn want(&mut self, wanted_total: u64, starved: bool, now_ms: u64) -> Option<u64> {
        let repeat = starved && now_ms >= self.asked_at_ms + ASK_AGAIN_MS;
        if wanted_total > self.request.wanted_total || repeat {
            self.request.wanted_total = wanted_total;
            self.asked_at_ms = now_ms;
            // The driver outlives every task; when it is gone the process ends.
            let _ = self.events.send(TaskEvent::SplitWanted(self.request));
        }
        starved.then_some(self.asked_at_ms + ASK_AGAIN_MS)
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::{AttemptId, Epoch, JobId, TaskId};

    use super::*;

    #[test]
    fn a_starving_task_repeats_itself_and_a_fed_one_does_not() {
        let (events, mut sent) = tokio::sync::mpsc::unbounded_channel();
        let request = SplitRequest {
            job: JobId([0; 16]),
            attempt: AttemptId::new(Epoch(1), 1),
            enumerator: TaskId::new(1, 0),
            subtask: 0,
            wanted_total: 0,
        };
        let mut requests = SplitRequests::new(request, events);
        let mut total = || match sent.try_recv() {
            Ok(TaskEvent::SplitWanted(request)) => Some(request.wanted_total),
            _ => None,
        };
        assert_eq!(requests.want(2, false, 1000), None);
        assert_eq!(total(), Some(2));
        requests.want(2, false, 9000);
        assert_eq!(total(), None, "nothing new is wanted");
        requests.want(2, true, 9000);
        assert_eq!(total(), Some(2), "the request or its answer was lost");
        assert_eq!(requests.want(2, true, 9100), Some(9200));
        assert_eq!(total(), None, "not before the time");
        requests.want(2, true, 9200);
        assert_eq!(total(), Some(2));
    }
}
