//! A task's counters, written by its thread and read by reports. They decide nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidemill_protocol::control::TaskProgress;
use tidemill_protocol::{AttemptId, JobId, TaskId};

/// Counted from the beginning of an attempt.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) records_in: AtomicU64,
    pub(crate) records_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) busy_us: AtomicU64,
    pub(crate) backpressured_us: AtomicU64,
    pub(crate) memory_bytes: AtomicU64,
}

/// Adds a time to a counter of microseconds.
pub(crate) fn add_time(counter: &AtomicU64, time: Duration) {
    counter.fetch_add(micros(time), Ordering::Relaxed);
}

/// A time in whole microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Counters {
    /// The counters as a report carries them.
    pub(crate) fn progress(&self, job: JobId, attempt: AttemptId, task: TaskId) -> TaskProgress {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TaskProgress {
            job,
            attempt,
            task,
            records_in: read(&self.records_in),
            records_out: read(&self.records_out),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
            busy_us: read(&self.busy_us),
            backpressured_us: read(&self.backpressured_us),
            memory_bytes: read(&self.memory_bytes),
        }
    }
}
