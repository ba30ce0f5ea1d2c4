//! `tidemill savepoint JOB` and `tidemill stop JOB`: asks for a savepoint and waits until it is written. The one that is
//! asked for has an id of its own, so that a request which is sent again, or come back to later, is the same one.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tidemill_jobmanager::views::{
    JobStatus, JobSummary, SavepointKind, SavepointRequestStatus, SavepointRequestView,
    SavepointView,
};

use super::Session;
use super::savepoints;
use crate::arguments::{Savepoint, SavepointWaiting, Stop};
use crate::client::{Client, Patience};
use crate::failure::{Exit, Failure};
use crate::print;
use crate::process::{interrupts, runtime};
use crate::progress::SavepointProgress;
use crate::units;
use crate::watch::AWAY_MAX;

const LOOK_INTERVAL_FIRST: Duration = Duration::from_millis(50);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The code of the answer of a leader that has not heard of a request: an earlier one took it.
const UNKNOWN_REQUEST: &str = "unknown-request";

/// The codes of answers about a place at which none has been written to its end.
const NOT_WRITTEN: [&str; 2] = ["unknown-savepoint", "savepoint-damaged"];

pub(crate) fn savepoint(session: &Session, options: &Savepoint) -> Result<Exit, Failure> {
    if let Some(stored) = &options.stored {
        return savepoints::stored(session, stored).map(|()| Exit::Success);
    }
    let job = options.job.as_deref().unwrap_or_default();
    take(
        session,
        job,
        options.path.as_deref(),
        false,
        &options.waiting,
    )
}

pub(crate) fn stop(session: &Session, options: &Stop) -> Result<Exit, Failure> {
    let path = options.savepoint.as_ref().and_then(Option::as_deref);
    take(session, &options.job.job, path, true, &options.waiting)
}

fn take(
    session: &Session,
    job: &str,
    directory: Option<&str>,
    stop: bool,
    waiting: &SavepointWaiting,
) -> Result<Exit, Failure> {
    let client = session.client()?;
    let job = client.resolve(job)?;
    let (id, first) = match &waiting.request {
        Some(id) => (id.clone(), client.savepoint_status(&job.id, id)),
        None => {
            let id = format!("{:032x}", rand::random::<u128>());
            let asked = client.trigger_savepoint(&job.id, &id, directory, stop)?;
            (id, Ok(asked))
        }
    };
    if waiting.detach {
        return announce(session, &first?);
    }
    let runtime = runtime()?;
    let mut following = Following {
        session,
        // This waits by itself, and shows it.
        client: client.with(Patience::NONE),
        progress: SavepointProgress::new(session.is_json(), &job.name),
        job,
        id,
        directory: directory.map(str::to_owned),
        stop,
    };
    let ended = match first {
        Ok(first) => following.until_end(first, &interrupts(&runtime)?),
        Err(failure) => following.told(failure),
    };
    following.progress.finish();
    match ended? {
        Ending::Written(view) => following.written(&view),
        Ending::Interrupted => Ok(following.interrupted()),
    }
}

fn announce(session: &Session, request: &SavepointRequestView) -> Result<Exit, Failure> {
    match session.is_json() {
        true => print::json(request)?,
        false => print::text(&request.id)?,
    }
    Ok(Exit::Success)
}

/// How the waiting ended, if not by a failure.
enum Ending {
    Written(SavepointRequestView),
    Interrupted,
}

/// A request that is waited for.
struct Following<'a> {
    session: &'a Session,
    client: Client,
    progress: SavepointProgress,
    /// As it was when the savepoint was asked for.
    job: JobSummary,
    id: String,
    directory: Option<String>,
    stop: bool,
}

impl Following<'_> {
    fn until_end(
        &mut self,
        first: SavepointRequestView,
        interrupts: &Receiver<()>,
    ) -> Result<Ending, Failure> {
        let mut view = first;
        let mut interval = LOOK_INTERVAL_FIRST;
        let mut away_since: Option<Instant> = None;
        loop {
            self.progress.show(&view);
            match view.status {
                SavepointRequestStatus::InProgress => {}
                SavepointRequestStatus::Completed => return Ok(Ending::Written(view)),
                SavepointRequestStatus::Failed => return Err(self.failed(&view)),
            }
            match interrupts.recv_timeout(interval) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(Ending::Interrupted),
            }
            match self.client.savepoint_status(&self.job.id, &self.id) {
                Ok(next) => {
                    if away_since.take().is_some() {
                        self.progress.note("a JobManager leads again");
                    }
                    view = next;
                }
                Err(failure) if failure.exit == Exit::Unreachable => {
                    let since = *away_since.get_or_insert_with(|| {
                        let message = failure.message();
                        self.progress
                            .note(&format!("{message}; this waits for one"));
                        Instant::now()
                    });
                    if since.elapsed() > AWAY_MAX {
                        return Err(failure);
                    }
                }
                Err(failure) => return self.told(failure),
            }
            interval = (interval * 2).min(LOOK_INTERVAL);
        }
    }

    fn failed(&self, view: &SavepointRequestView) -> Failure {
        let reason = view.failure.as_deref().unwrap_or("no reason is known");
        let name = &self.job.name;
        let message = format!("no savepoint of {name} was written: {reason}");
        Failure::new(Exit::Failed, message)
            .help("the job goes on as if none had been asked for; it can be asked for again")
    }

    /// What is to be said of an answer that is a failure. A leader does not know what was asked of the one before it, but
    /// a savepoint that this one has written is in the store.
    fn told(&self, failure: Failure) -> Result<Ending, Failure> {
        if failure.code() != Some(UNKNOWN_REQUEST) {
            return Err(failure);
        }
        let written = self.written_by_now()?;
        let found = newer(&written, &self.job);
        let (name, verb) = match self.stop {
            true => (&self.job.name, "stop"),
            false => (&self.job.name, "savepoint"),
        };
        let Some(found) = found else {
            let message = format!(
                "the JobManager that was to write the savepoint of {name} does not lead any more, and none was written: the one that leads knows nothing of request {}",
                self.id
            );
            return Err(Failure::new(Exit::Failed, message)
                .with_code(UNKNOWN_REQUEST.to_owned())
                .help(format!(
                    "the job runs on; ask again: `tidemill {verb} {name}`"
                )));
        };
        if self.stop && !self.client.job(&self.job.id)?.summary.status.is_terminal() {
            let message = format!(
                "the savepoint of {name} was written to {}, but the JobManager that was to stop the job then does not lead any more, and the job runs on",
                found.path
            );
            return Err(Failure::new(Exit::Failed, message)
                .with_code(UNKNOWN_REQUEST.to_owned())
                .help(format!(
                    "what it does from now on is not in that savepoint: `tidemill stop {name}` takes another"
                )));
        }
        self.progress
            .note("the JobManager that wrote the savepoint does not lead any more");
        Ok(Ending::Written(self.completed(found)))
    }

    /// The savepoints that may be the one which was asked for.
    fn written_by_now(&self) -> Result<Vec<SavepointView>, Failure> {
        let Some(directory) = &self.directory else {
            return self.client.savepoints();
        };
        match self.client.savepoint(directory) {
            Ok(savepoint) => Ok(vec![savepoint]),
            Err(failure)
                if failure
                    .code()
                    .is_some_and(|code| NOT_WRITTEN.contains(&code)) =>
            {
                Ok(Vec::new())
            }
            Err(failure) => Err(failure),
        }
    }

    /// As the leader would have said that wrote it.
    fn completed(&self, found: &SavepointView) -> SavepointRequestView {
        SavepointRequestView {
            id: self.id.clone(),
            job: self.job.id.clone(),
            status: SavepointRequestStatus::Completed,
            step: None,
            done_bytes: found.bytes,
            total_bytes: found.bytes,
            path: Some(found.path.clone()),
            checkpoint: Some(found.checkpoint.clone()),
            failure: None,
        }
    }

    fn written(&self, view: &SavepointRequestView) -> Result<Exit, Failure> {
        if self.session.is_json() {
            print::json(view)?;
            return Ok(Exit::Success);
        }
        let path = view.path.as_deref().unwrap_or_default();
        let (name, id) = (&self.job.name, &self.job.id);
        let stopped = match self.stop {
            true => "; it has stopped",
            false => "",
        };
        eprintln!(
            "savepoint of {name} ({id}) at checkpoint {}, {}{stopped}\n`tidemill run JOB.wasm --from-savepoint {path}` goes on from it",
            view.checkpoint.as_deref().unwrap_or("-"),
            units::bytes(view.total_bytes),
        );
        print::text(path)?;
        Ok(Exit::Success)
    }

    fn interrupted(&self) -> Exit {
        let verb = match self.stop {
            true => "stop",
            false => "savepoint",
        };
        let and_stops = match self.stop {
            true => ", and the job stops then",
            false => "",
        };
        eprintln!(
            "the savepoint goes on{and_stops}: `tidemill {verb} {} --request {}` comes back to it, and `tidemill savepoint list` shows when it is written",
            self.job.id, self.id
        );
        Exit::Interrupted
    }
}

/// The savepoint of a job that was taken after the job was in this state.
fn newer<'s>(written: &'s [SavepointView], job: &JobSummary) -> Option<&'s SavepointView> {
    let before = job.last_checkpoint.as_deref().and_then(epoch_and_counter);
    // A job that has stopped by now was last seen at the savepoint's own checkpoint.
    let has_ended = job.status == JobStatus::Finished;
    let is_meant = |savepoint: &&SavepointView| {
        let taken = epoch_and_counter(&savepoint.checkpoint);
        let is_newer = taken > before || (has_ended && taken == before);
        savepoint.kind == SavepointKind::Savepoint && savepoint.job == job.id && is_newer
    };
    let key = |savepoint: &&SavepointView| epoch_and_counter(&savepoint.checkpoint);
    written.iter().filter(is_meant).max_by_key(key)
}

/// `epoch.counter` in the order of numbers.
fn epoch_and_counter(id: &str) -> Option<(u64, u64)> {
    let (epoch, counter) = id.split_once('.')?;
    Some((epoch.parse().ok()?, counter.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn job(last_checkpoint: Option<&str>, status: JobStatus) -> JobSummary {
        JobSummary {
            id: "0a".into(),
            name: "count".into(),
            status,
            message: None,
            submitted_at_ms: 0,
            ended_at_ms: None,
            parallelism: 1,
            tasks: 1,
            tasks_running: 0,
            tasks_finished: 0,
            restarts: 0,
            checkpoints_completed: 0,
            last_checkpoint: last_checkpoint.map(str::to_owned),
            records_in: 0,
            records_out: 0,
        }
    }

    fn stored(path: &str, job: &str, checkpoint: &str) -> SavepointView {
        SavepointView {
            path: path.into(),
            kind: SavepointKind::Savepoint,
            bytes: 1,
            job: job.into(),
            job_name: "count".into(),
            parameters: BTreeMap::new(),
            parallelism: 1,
            max_parallelism: 128,
            module: String::new(),
            checkpoint: checkpoint.into(),
            tasks: 1,
            created_at_ms: 0,
            version: String::new(),
        }
    }

    #[test]
    fn what_an_earlier_leader_wrote_is_told_from_older_and_other_savepoints() {
        let running = job(Some("3.9"), JobStatus::Running);
        let written = [
            stored("sp/old", "0a", "3.9"),
            stored("sp/other", "0b", "3.11"),
            stored("sp/mine", "0a", "3.10"),
        ];
        let found =
            |job: &JobSummary| newer(&written, job).map(|savepoint| savepoint.path.as_str());
        assert_eq!(found(&running), Some("sp/mine"));
        assert_eq!(found(&job(Some("4.1"), JobStatus::Running)), None);
        assert_eq!(found(&job(Some("3.10"), JobStatus::Running)), None);
        assert_eq!(
            found(&job(Some("3.10"), JobStatus::Finished)),
            Some("sp/mine")
        );
        assert_eq!(found(&job(None, JobStatus::Running)), Some("sp/mine"));
    }
}
