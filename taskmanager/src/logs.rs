//! Task logs: the last lines of every task, kept in memory in one numbered sequence, and passed on to the process's log.
//! A job that logs without end pushes out its own old lines only: each task keeps its own share.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tidemill_abi::LogLevel;
use tidemill_protocol::control::LogLine;
use tidemill_protocol::{AttemptId, JobId, TaskId};

/// A longer line is cut here, in bytes.
const LINE_MAX_BYTES: usize = 16 << 10;

/// Logs of jobs that ended are kept for this many tasks.
const TASKS_MAX: usize = 4096;

#[derive(Default)]
struct State {
    next_number: u64,
    tasks: HashMap<(JobId, TaskId), VecDeque<LogLine>>,
    /// In order of their first line, so that the oldest task's log goes first.
    order: VecDeque<(JobId, TaskId)>,
}

/// Every task's last lines.
#[derive(Clone)]
pub(crate) struct Logs {
    state: Arc<Mutex<State>>,
    lines_max: usize,
}

/// Now, in milliseconds since the Unix epoch.
pub(crate) fn wall_clock_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

impl Logs {
    /// Keeps the last `lines_max` lines of each task.
    pub(crate) fn new(lines_max: usize) -> Self {
        Self {
            state: Arc::default(),
            lines_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest `limit` lines after number `after`, in order.
    pub(crate) fn fetch(
        &self,
        job: JobId,
        task: Option<TaskId>,
        after: u64,
        limit: u32,
    ) -> Vec<LogLine> {
        let state = self.lock();
        let wanted = |key: &(JobId, TaskId)| key.0 == job && task.is_none_or(|task| task == key.1);
        let mut lines: Vec<LogLine> = state
            .tasks
            .iter()
            .filter(|(key, _)| wanted(key))
            .flat_map(|(_, lines)| lines.iter().filter(|line| line.number > after).cloned())
            .collect();
        lines.sort_by_key(|line| line.number);
        let surplus = lines.len().saturating_sub(limit as usize);
        lines.drain(..surplus);
        lines
    }

    /// The log of one execution of a task.
    pub(crate) fn task(&self, job: JobId, task: TaskId, attempt: AttemptId) -> TaskLog {
        TaskLog {
            logs: self.clone(),
            job,
            task,
            attempt,
        }
    }

    fn push(&self, job: JobId, line: LogLine) {
        let mut state = self.lock();
        state.next_number += 1;
        let number = state.next_number;
        let key = (job, line.task);
        if !state.tasks.contains_key(&key) {
            state.order.push_back(key);
            if state.order.len() > TASKS_MAX
                && let Some(oldest) = state.order.pop_front()
            {
                state.tasks.remove(&oldest);
            }
        }
        let lines = state.tasks.entry(key).or_default();
        if lines.len() == self.lines_max {
            lines.pop_front();
        }
        lines.push_back(LogLine { number, ..line });
    }
}

/// Where one execution of a task writes its lines.
#[derive(Clone)]
pub(crate) struct TaskLog {
    logs: Logs,
    job: JobId,
    task: TaskId,
    attempt: AttemptId,
}

impl TaskLog {
    /// A line written by the guest.
    pub(crate) fn guest(&self, level: LogLevel, line: &str) {
        let source = match level {
            LogLevel::Out => "out",
            LogLevel::Err => "err",
            LogLevel::Panic => "panic",
        };
        tracing::debug!(job = %self.job, task = %self.task, source, "{line}");
        self.push(source, line);
    }

    /// A line about the task, written by the TaskManager.
    pub(crate) fn host(&self, line: &str) {
        self.push("host", line);
    }

    fn push(&self, source: &str, line: &str) {
        for text in line.lines() {
            let text = &text[..text.floor_char_boundary(LINE_MAX_BYTES)];
            let line = LogLine {
                number: 0,
                time_ms: wall_clock_ms(),
                task: self.task,
                attempt: self.attempt,
                source: source.to_owned(),
                text: text.to_owned(),
            };
            self.logs.push(self.job, line);
        }
    }

    /// The execution's last lines, oldest first.
    pub(crate) fn last(&self, limit: u32) -> Vec<String> {
        let lines = self.logs.fetch(self.job, Some(self.task), 0, limit);
        lines
            .into_iter()
            .filter(|line| line.attempt == self.attempt)
            .map(|line| line.text)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::Epoch;

    use super::*;

    #[test]
    fn a_task_keeps_its_last_lines_and_a_reader_can_follow() {
        let logs = Logs::new(3);
        let (job, attempt) = (JobId([1; 16]), AttemptId::new(Epoch(1), 1));
        let (chatty, quiet) = (TaskId::new(0, 0), TaskId::new(0, 1));
        logs.task(job, quiet, attempt).guest(LogLevel::Out, "first");
        for n in 0..10 {
            logs.task(job, chatty, attempt)
                .guest(LogLevel::Err, &format!("line {n}\n"));
        }
        let texts =
            |lines: Vec<LogLine>| lines.into_iter().map(|line| line.text).collect::<Vec<_>>();
        assert_eq!(
            texts(logs.fetch(job, None, 0, 100)),
            ["first", "line 7", "line 8", "line 9"]
        );
        let last = logs.fetch(job, Some(chatty), 0, 1);
        assert_eq!(logs.fetch(job, None, last[0].number, 100), []);
        assert_eq!(logs.fetch(JobId([2; 16]), None, 0, 100), []);
    }
}
