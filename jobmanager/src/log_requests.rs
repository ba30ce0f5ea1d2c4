//! Requests for log lines: each is asked of every connected TaskManager, and answered when all have answered or the time
//! is over. It never keeps a line longer than that.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tidemill_core::leader::Leader;
use tidemill_core::membership::ConnectionId;
use tidemill_protocol::JobId;
use tidemill_protocol::control::{Command, FromLeader, LogLine};

use crate::handle::{LogQuery, QueryError, Reply};
use crate::perform::Performer;
use crate::views::{LogLineView, LogPage};

/// How long TaskManagers may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a reader is in each TaskManager's log: the number of the last line that he has seen.
type Cursor = BTreeMap<String, u64>;

struct Pending {
    due: Instant,
    /// Those that have not answered, with their names.
    waiting: HashMap<ConnectionId, String>,
    cursor: Cursor,
    page: LogPage,
    reply: Reply<Result<LogPage, QueryError>>,
}

/// Requests that wait for answers.
#[derive(Default)]
pub(crate) struct LogRequests {
    last: u64,
    pending: HashMap<u64, Pending>,
}

impl LogRequests {
    /// Asks every connected TaskManager: earlier attempts of a task may have run anywhere.
    pub(crate) fn ask(
        &mut self,
        leader: &Leader,
        performer: &Performer,
        job: JobId,
        query: &LogQuery,
        reply: Reply<Result<LogPage, QueryError>>,
    ) {
        let cursor: Cursor = match query.after.as_deref().map(serde_json::from_str).transpose() {
            Ok(cursor) => cursor.unwrap_or_default(),
            Err(_) => {
                let text = query.after.clone().unwrap_or_default();
                return drop(reply.send(Err(QueryError::BadCursor(text))));
            }
        };
        self.last += 1;
        let mut waiting = HashMap::new();
        for member in leader.membership().members() {
            let name = member.registration.id.to_string();
            let command = Command::FetchLogs {
                request: self.last,
                job,
                task: query.task,
                after: cursor.get(&name).copied().unwrap_or(0),
                limit: query.limit,
            };
            if performer.say(
                member.connection,
                FromLeader {
                    epoch: leader.epoch(),
                    command,
                },
            ) {
                waiting.insert(member.connection, name);
            }
        }
        let (due, page) = (Instant::now() + ANSWER_TIMEOUT, LogPage::default());
        self.pending.insert(
            self.last,
            Pending {
                due,
                waiting,
                cursor,
                page,
                reply,
            },
        );
        self.settle();
    }

    /// A TaskManager has answered.
    pub(crate) fn answered(&mut self, request: u64, from: ConnectionId, lines: Vec<LogLine>) {
        let Some(pending) = self.pending.get_mut(&request) else {
            return;
        };
        let Some(name) = pending.waiting.remove(&from) else {
            return;
        };
        if let Some(last) = lines.last() {
            pending.cursor.insert(name.clone(), last.number);
        }
        pending
            .page
            .lines
            .extend(lines.into_iter().map(|line| LogLineView {
                task_manager: name.clone(),
                number: line.number,
                time_ms: line.time_ms,
                task: line.task.to_string(),
                attempt: line.attempt.to_string(),
                source: line.source,
                text: line.text,
            }));
        self.settle();
    }

    /// A TaskManager will not answer any more.
    pub(crate) fn gone(&mut self, connection: ConnectionId) {
        for pending in self.pending.values_mut() {
            let name = pending.waiting.remove(&connection);
            pending.page.missing.extend(name);
        }
        self.settle();
    }

    /// When [`LogRequests::handle_timeout`] is to be called.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.due).min()
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for pending in self
            .pending
            .values_mut()
            .filter(|pending| pending.due <= now)
        {
            pending
                .page
                .missing
                .extend(pending.waiting.drain().map(|(_, name)| name));
        }
        self.settle();
    }

    fn settle(&mut self) {
        for (_, pending) in self
            .pending
            .extract_if(|_, pending| pending.waiting.is_empty())
        {
            let Pending {
                cursor,
                mut page,
                reply,
                ..
            } = pending;
            page.lines.sort_by(|a, b| {
                (a.time_ms, &a.task_manager, a.number).cmp(&(b.time_ms, &b.task_manager, b.number))
            });
            page.missing.sort_unstable();
            page.next =
                serde_json::to_string(&cursor).expect("a map of text to numbers has a JSON form");
            // Whoever asked may have gone.
            let _ = reply.send(Ok(page));
        }
    }
}
