//! `tidemill logs`: what a job's tasks have written, and what they write.

use std::thread;
use std::time::{Duration, Instant};

use tidemill_jobmanager::views::{LogLineView, LogPage};

use super::Session;
use crate::arguments::Logs;
use crate::client::{Client, Patience, pair};
use crate::failure::{Exit, Failure};
use crate::print;
use crate::units;
use crate::watch::AWAY_MAX;

const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) fn logs(session: &Session, options: &Logs) -> Result<(), Failure> {
    let client = session.client()?;
    let job = client.resolve(&options.job.job)?;
    // Following waits by itself.
    let client = match options.follow {
        true => client.with(Patience::NONE),
        false => client,
    };
    let task = options.task.clone();
    let mut tail = Tail::new(&client, job.id.clone(), task, options.lines);
    let mut missing: Vec<String> = Vec::new();
    let mut away_since: Option<Instant> = None;
    loop {
        let looked = look(&client, &job.id, options.follow, &mut tail);
        let (page, has_ended) = match looked {
            Ok(looked) => looked,
            Err(failure) if options.follow && failure.exit == Exit::Unreachable => {
                let since = *away_since.get_or_insert_with(|| {
                    eprintln!("warning: {}; this waits for a leader", failure.message());
                    Instant::now()
                });
                if since.elapsed() > AWAY_MAX {
                    return Err(failure);
                }
                thread::sleep(FOLLOW_INTERVAL);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        away_since = None;
        show(session, &page.lines)?;
        for node in page.missing {
            if !missing.contains(&node) {
                eprintln!("warning: {node} does not answer, so its lines are missing");
                missing.push(node);
            }
        }
        if has_ended {
            return Ok(());
        }
        thread::sleep(FOLLOW_INTERVAL);
    }
}

/// The next page, and whether there will be no other.
fn look(
    client: &Client,
    job: &str,
    follow: bool,
    tail: &mut Tail<'_>,
) -> Result<(LogPage, bool), Failure> {
    // Asked first: what a job wrote before its end is then in the page.
    let has_ended = !follow || client.job(job)?.summary.status.is_terminal();
    Ok((tail.page()?, has_ended))
}

fn show(session: &Session, lines: &[LogLineView]) -> Result<(), Failure> {
    for line in lines {
        if session.is_json() {
            // One line each, so that a program can read them as they come.
            let json = serde_json::to_string(line).unwrap_or_default();
            print::text(&json)?;
        } else {
            print::text(&rendered(line))?;
        }
    }
    Ok(())
}

/// A log line as people read it.
pub(crate) fn rendered(line: &LogLineView) -> String {
    format!(
        "{} {} {} {:<5} {}",
        units::time(line.time_ms),
        line.task_manager,
        line.task,
        line.source,
        line.text
    )
}

/// Reads a log page by page.
pub(crate) struct Tail<'a> {
    client: &'a Client,
    job: String,
    task: Option<String>,
    lines: u32,
    after: Option<String>,
}

impl<'a> Tail<'a> {
    pub(crate) fn new(client: &'a Client, job: String, task: Option<String>, lines: u32) -> Self {
        Self {
            client,
            job,
            task,
            lines,
            after: None,
        }
    }

    /// What came since the last page.
    pub(crate) fn page(&mut self) -> Result<LogPage, Failure> {
        // Only the first page is cut to what was asked for; what comes after it is new.
        let mut query = match &self.after {
            None => vec![pair("limit", self.lines)],
            Some(after) => vec![pair("after", after), pair("limit", u32::MAX)],
        };
        query.extend(self.task.iter().map(|task| pair("task", task)));
        let page = self.client.logs(&self.job, &query)?;
        if !page.next.is_empty() {
            self.after = Some(page.next.clone());
        }
        Ok(page)
    }
}
