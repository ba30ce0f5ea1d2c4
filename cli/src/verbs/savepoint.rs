//! `tidemill savepoint JOB` and `tidemill stop JOB`: asks for a savepoint and waits until it is written. The one that is
//! asked for has an id of its own, so that a request which is sent again, or come back to later, is the same one.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tidemill_jobmanager::views::{
    JobSummary, SavepointKind, SavepointRequestStatus, SavepointRequestView, SavepointView,
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

/// How many of a request's last digits are in the path that a leader chooses for it.
const REQUEST_DIGITS: usize = 12;

/// The codes of answers about a place at which none has been written to its end.
const NOT_WRITTEN: [&str; 2] = ["unknown-savepoint", "savepoint-damaged"];

pub(crate) fn savepoint(session: &Session, options: &Savepoint) -> Result<Exit, Failure> {
    let job = match (&options.stored, &options.job) {
        (Some(stored), None) => {
            return savepoints::stored(session, stored).map(|()| Exit::Success);
        }
        (Some(_), Some(job)) => {
            let message = format!("`savepoint {job}` is followed by another verb of savepoints");
            return Err(Failure::new(Exit::Usage, message)
                .help("leave the job out to look at what is stored; a savepoint's path that is a verb's name needs a directory, as in savepoints/list"));
        }
        (None, job) => job.as_deref().unwrap_or_default(),
    };
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
    // From before it is asked for: there is no moment at which Ctrl-C would leave nobody with the request's id.
    let runtime = runtime()?;
    let interrupts = match waiting.detach {
        true => None,
        false => Some(interrupts(&runtime)?),
    };
    let (id, first) = match &waiting.request {
        Some(id) => (id.clone(), client.savepoint_status(&job.id, id)),
        None => {
            let id = format!("{:032x}", rand::random::<u128>());
            let asked = client.trigger_savepoint(&job.id, &id, directory, stop)?;
            (id, Ok(asked))
        }
    };
    let Some(interrupts) = interrupts else {
        return announce(session, &first?);
    };
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
        Ok(first) => following.until_end(first, &interrupts),
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
        let found = self.written_by_now()?;
        let (name, verb) = match self.stop {
            true => (&self.job.name, "stop"),
            false => (&self.job.name, "savepoint"),
        };
        let Some(found) = found else {
            let message = format!(
                "the JobManager that leads knows nothing of request {} for a savepoint of {name}, and none was written for it: what was asked of an earlier leader is dropped",
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
        Ok(Ending::Written(self.completed(&found)))
    }

    /// The savepoint that was asked for, if an earlier leader has written it.
    fn written_by_now(&self) -> Result<Option<SavepointView>, Failure> {
        let Some(directory) = &self.directory else {
            let mut all = self.client.savepoints()?.savepoints.into_iter();
            return Ok(all.find(|savepoint| is_named_for(savepoint, &self.job.id, &self.id)));
        };
        match self.client.savepoint(directory) {
            Ok(savepoint) => Ok(Some(savepoint).filter(|found| is_newer(found, &self.job))),
            Err(failure)
                if failure
                    .code()
                    .is_some_and(|code| NOT_WRITTEN.contains(&code)) =>
            {
                Ok(None)
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

/// Whether it is at the place that a leader chooses for a request.
fn is_named_for(savepoint: &SavepointView, job: &str, request: &str) -> bool {
    let end = request.get(request.len().saturating_sub(REQUEST_DIGITS)..);
    end.is_some_and(|end| savepoint.path.ends_with(&format!("/{job}-{end}")))
}

/// Whether it was taken after the job was in this state.
fn is_newer(savepoint: &SavepointView, job: &JobSummary) -> bool {
    let before = job.last_checkpoint.as_deref().and_then(epoch_and_counter);
    let taken = epoch_and_counter(&savepoint.checkpoint);
    let is_savepoint = savepoint.kind == SavepointKind::Savepoint;
    is_savepoint && savepoint.job == job.id && taken > before
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
    use tidemill_jobmanager::views::JobStatus;

    fn job(last_checkpoint: Option<&str>) -> JobSummary {
        JobSummary {
            id: "0a".into(),
            name: "count".into(),
            status: JobStatus::Running,
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
    fn what_was_at_a_named_place_before_is_not_what_was_asked_for() {
        let is_new = |last, savepoint: SavepointView| is_newer(&savepoint, &job(last));
        assert!(is_new(Some("3.9"), stored("sp/x", "0a", "3.10")));
        assert!(is_new(Some("3.9"), stored("sp/x", "0a", "4.1")));
        assert!(is_new(None, stored("sp/x", "0a", "3.1")));
        assert!(!is_new(Some("3.9"), stored("sp/x", "0a", "3.9")));
        assert!(!is_new(Some("3.9"), stored("sp/x", "0b", "3.10")));
        let kept = SavepointView {
            kind: SavepointKind::Checkpoint,
            ..stored("sp/x", "0a", "3.10")
        };
        assert!(!is_new(Some("3.9"), kept));
    }

    #[test]
    fn what_an_earlier_leader_wrote_at_a_chosen_place_is_told_by_its_name() {
        let request = "0123456789abcdef01230123456789ab";
        let is_it = |path: &str| is_named_for(&stored(path, "0a", "1.1"), "0a", request);
        assert!(is_it("savepoints/0a-0123456789ab"));
        assert!(is_it("other/place/0a-0123456789ab"));
        assert!(!is_it("savepoints/0b-0123456789ab"));
        assert!(!is_it("savepoints/0a-ffffffffffff"));
        assert!(!is_named_for(&stored("sp/0a-", "0a", "1.1"), "0a", "é"));
    }
}
