//! The REST API from the other side: each question has a method, and answers become views or failures. It is the only way
//! in which this program reaches a cluster.

mod asking;
#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use tidemill_jobmanager::rest::{
    CancelAccepted, JobList, JobManagerList, NodeList, Problem, SavepointDeleted, SavepointList,
};
use tidemill_jobmanager::views::{
    CheckpointDetail, CheckpointsView, JobDetail, JobManagerView, JobSummary, LogPage, NodeView,
    SavepointRequestView, SavepointView, SubmittedView,
};
use ureq::Body;
use ureq::http::Response;

use crate::failure::{Exit, Failure};
use asking::{Asking, Method, Question};

pub(crate) use asking::Patience;

const ANSWER_MAX_BYTES: u64 = 256 << 20;

/// A cluster, by its JobManagers.
pub(crate) struct Client {
    asking: Asking,
}

impl Client {
    /// A client that asks each JobManager once and does not wait for a leader.
    pub(crate) fn new(urls: &[String], token: Option<&str>) -> Result<Self, Failure> {
        let asking = Asking::new(urls, token)?;
        Ok(Self { asking })
    }

    /// The same, but for how long it waits for a leader.
    pub(crate) fn with(&self, patience: Patience) -> Self {
        let asking = self.asking.with(patience);
        Self { asking }
    }

    pub(crate) fn jobs(&self) -> Result<Vec<JobSummary>, Failure> {
        let JobList { jobs } = self.get("/v1/jobs", &[])?;
        Ok(jobs)
    }

    pub(crate) fn job(&self, id: &str) -> Result<JobDetail, Failure> {
        self.get(&format!("/v1/jobs/{id}"), &[])
    }

    pub(crate) fn cancel(&self, id: &str) -> Result<CancelAccepted, Failure> {
        self.ask(&Question {
            method: Method::Post,
            path: &format!("/v1/jobs/{id}/cancel"),
            query: &[],
        })
    }

    /// Asks for a savepoint under an id that the caller has chosen, so that it is taken once however often this is sent.
    pub(crate) fn trigger_savepoint(
        &self,
        job: &str,
        request: &str,
        directory: Option<&str>,
        stop: bool,
    ) -> Result<SavepointRequestView, Failure> {
        let mut query = vec![pair("id", request), pair("stop", stop)];
        query.extend(directory.map(|directory| pair("directory", directory)));
        self.ask(&Question {
            method: Method::Post,
            path: &format!("/v1/jobs/{job}/savepoints"),
            query: &query,
        })
    }

    pub(crate) fn savepoint_status(
        &self,
        job: &str,
        request: &str,
    ) -> Result<SavepointRequestView, Failure> {
        self.get(&format!("/v1/jobs/{job}/savepoints/{request}"), &[])
    }

    pub(crate) fn savepoints(&self) -> Result<SavepointList, Failure> {
        self.ask(&Question {
            method: Method::Search,
            path: "/v1/savepoints",
            query: &[],
        })
    }

    pub(crate) fn savepoint(&self, path: &str) -> Result<SavepointView, Failure> {
        self.ask(&Question {
            method: Method::Search,
            path: &format!("/v1/savepoints/{}", segment(path)),
            query: &[],
        })
    }

    pub(crate) fn verify_savepoint(&self, path: &str) -> Result<SavepointView, Failure> {
        self.ask(&Question {
            method: Method::Verify,
            path: &format!("/v1/savepoints/{}/verify", segment(path)),
            query: &[],
        })
    }

    pub(crate) fn delete_savepoint(&self, path: &str) -> Result<SavepointDeleted, Failure> {
        self.ask(&Question {
            method: Method::Delete,
            path: &format!("/v1/savepoints/{}", segment(path)),
            query: &[],
        })
    }

    pub(crate) fn checkpoints(&self, id: &str) -> Result<CheckpointsView, Failure> {
        self.get(&format!("/v1/jobs/{id}/checkpoints"), &[])
    }

    pub(crate) fn checkpoint(
        &self,
        id: &str,
        checkpoint: &str,
    ) -> Result<CheckpointDetail, Failure> {
        let checkpoint = segment(checkpoint);
        self.get(&format!("/v1/jobs/{id}/checkpoints/{checkpoint}"), &[])
    }

    pub(crate) fn logs(&self, id: &str, query: &[(String, String)]) -> Result<LogPage, Failure> {
        self.get(&format!("/v1/jobs/{id}/logs"), query)
    }

    pub(crate) fn nodes(&self) -> Result<Vec<NodeView>, Failure> {
        let NodeList { nodes } = self.get("/v1/nodes", &[])?;
        Ok(nodes)
    }

    pub(crate) fn jobmanagers(&self) -> Result<Vec<JobManagerView>, Failure> {
        let JobManagerList { jobmanagers } = self.get("/v1/jobmanagers", &[])?;
        Ok(jobmanagers)
    }

    /// Submits a job under an id of its own, so that it runs once however often this is sent.
    pub(crate) fn submit(
        &self,
        wasm: &[u8],
        query: &[(String, String)],
    ) -> Result<SubmittedView, Failure> {
        let id: u128 = rand::random();
        let mut query = query.to_vec();
        query.push(pair("id", format!("{id:032x}")));
        self.ask(&Question {
            method: Method::Upload(wasm),
            path: "/v1/jobs",
            query: &query,
        })
    }

    /// The job that a user means by an id, the beginning of one, or a name.
    pub(crate) fn resolve(&self, text: &str) -> Result<JobSummary, Failure> {
        choose(self.jobs()?, text)
    }

    fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(String, String)],
    ) -> Result<T, Failure> {
        self.ask(&Question {
            method: Method::Get,
            path,
            query,
        })
    }

    fn ask<T: DeserializeOwned>(&self, question: &Question<'_>) -> Result<T, Failure> {
        let (response, base) = self.asking.answer(question)?;
        read(response, &base)
    }
}

fn read<T: DeserializeOwned>(mut response: Response<Body>, base: &str) -> Result<T, Failure> {
    let status = response.status();
    if status.is_success() {
        let body = response.body_mut().with_config().limit(ANSWER_MAX_BYTES);
        return body.read_json().map_err(|error| {
            Failure::because(
                Exit::Failed,
                format!("the answer of {base} cannot be understood"),
                &error,
            )
            .help("is it a Tidemill JobManager, and of this program's release?")
        });
    }
    match response.body_mut().read_json() {
        Ok(Problem { error }) => {
            let failure = Failure::new(Exit::Refused, error.message).with_code(error.code);
            Err(match error.help {
                Some(help) => failure.help(help),
                None => failure,
            })
        }
        Err(_) => Err(
            Failure::new(Exit::Failed, format!("{base}: it answers {status}"))
                .help("is it a Tidemill JobManager, and of this program's release?"),
        ),
    }
}

/// The one job that `text` can mean. Of several with one name, the only one that has not ended is meant.
fn choose(jobs: Vec<JobSummary>, text: &str) -> Result<JobSummary, Failure> {
    let tests: [fn(&JobSummary, &str) -> bool; 4] = [
        |job, text| job.id == text,
        |job, text| job.name == text && !job.status.is_terminal(),
        |job, text| job.name == text,
        |job, text| !text.is_empty() && job.id.starts_with(text),
    ];
    for is_meant in tests {
        let candidates: Vec<&JobSummary> = jobs.iter().filter(|job| is_meant(job, text)).collect();
        match candidates.as_slice() {
            [] => {}
            [job] => return Ok((*job).clone()),
            several => {
                let list = several
                    .iter()
                    .map(|job| format!("{} ({})", job.id, job.name));
                let list = list.collect::<Vec<_>>().join(", ");
                let message = format!("`{text}` can mean {} jobs: {list}", several.len());
                return Err(Failure::new(Exit::Usage, message).help("give more of the id"));
            }
        }
    }
    let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    let failure = Failure::new(Exit::Refused, format!("there is no job `{text}`"));
    Err(match tidemill_config::nearest(text, names) {
        Some(name) => failure.help(format!(
            "did you mean `{name}`? `tidemill list` shows every job"
        )),
        None => failure.help("`tidemill list` shows every job"),
    })
}

/// Any text as one segment of an address.
fn segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                segment.push(char::from(byte));
            }
            _ => segment.push_str(&format!("%{byte:02X}")),
        }
    }
    segment
}

/// The pair of a query.
pub(crate) fn pair(key: impl Into<String>, value: impl ToString) -> (String, String) {
    (key.into(), value.to_string())
}
