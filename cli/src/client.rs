//! The REST API from the other side: tries each JobManager in turn, follows a redirect to the leader, and turns answers
//! into views or failures. It is the only way in which this program reaches a cluster.

use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tidemill_jobmanager::rest::{CancelAccepted, JobList, NodeList, Problem};
use tidemill_jobmanager::views::{
    CheckpointsView, JobDetail, JobSummary, LogPage, NodeView, SubmittedView,
};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use crate::failure::{Exit, Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A submission is answered when the module is checked, compiled, described and stored.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(300);
const ANSWER_MAX_BYTES: u64 = 256 << 20;
const REDIRECTS_MAX: usize = 5;

/// A cluster, by its JobManagers.
pub(crate) struct Client {
    bases: Vec<String>,
    token: Option<String>,
    agent: Agent,
}

/// What one JobManager answered, or why it did not.
enum Outcome {
    Answer(Response<Body>),
    /// It was not reached, or does not lead: another may do.
    NotThis(String),
    /// The request was sent and the answer did not come.
    Lost(String),
}

/// What is asked.
#[derive(Clone, Copy)]
enum Ask<'a> {
    Get,
    Post(Option<&'a [u8]>),
}

impl Client {
    pub(crate) fn new(urls: &[String], token: Option<&str>) -> Result<Self, Failure> {
        let bases = urls
            .iter()
            .map(|url| base_of(url))
            .collect::<Result<_, _>>()?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .proxy(None)
            .user_agent(concat!("tidemill/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            bases,
            token: token.map(str::to_owned),
            agent,
        })
    }

    pub(crate) fn jobs(&self) -> Result<Vec<JobSummary>, Failure> {
        let JobList { jobs } = self.ask(Ask::Get, "/v1/jobs", &[])?;
        Ok(jobs)
    }

    pub(crate) fn job(&self, id: &str) -> Result<JobDetail, Failure> {
        self.ask(Ask::Get, &format!("/v1/jobs/{id}"), &[])
    }

    pub(crate) fn cancel(&self, id: &str) -> Result<CancelAccepted, Failure> {
        self.ask(Ask::Post(None), &format!("/v1/jobs/{id}/cancel"), &[])
    }

    pub(crate) fn checkpoints(&self, id: &str) -> Result<CheckpointsView, Failure> {
        self.ask(Ask::Get, &format!("/v1/jobs/{id}/checkpoints"), &[])
    }

    pub(crate) fn logs(&self, id: &str, query: &[(String, String)]) -> Result<LogPage, Failure> {
        self.ask(Ask::Get, &format!("/v1/jobs/{id}/logs"), query)
    }

    pub(crate) fn nodes(&self) -> Result<Vec<NodeView>, Failure> {
        let NodeList { nodes } = self.ask(Ask::Get, "/v1/nodes", &[])?;
        Ok(nodes)
    }

    pub(crate) fn submit(
        &self,
        wasm: &[u8],
        query: &[(String, String)],
    ) -> Result<SubmittedView, Failure> {
        self.ask(Ask::Post(Some(wasm)), "/v1/jobs", query)
    }

    /// The job that a user means by an id, the beginning of one, or a name.
    pub(crate) fn resolve(&self, text: &str) -> Result<JobSummary, Failure> {
        choose(self.jobs()?, text)
    }

    fn ask<T: DeserializeOwned>(
        &self,
        ask: Ask<'_>,
        path: &str,
        query: &[(String, String)],
    ) -> Result<T, Failure> {
        let mut reasons = Vec::new();
        for base in &self.bases {
            match self.ask_one(ask, base, path, query) {
                Outcome::Answer(response) => return read(response, base),
                Outcome::NotThis(reason) => reasons.push(format!("{base}: {reason}")),
                Outcome::Lost(reason) => return Err(lost(base, path, &reason)),
            }
        }
        Err(Failure::new(Exit::Unreachable, format!("no JobManager answers ({})", reasons.join("; ")))
            .help("start a cluster with `tidemill local`, or say where one is with --jobmanager URL or TIDEMILL_JOBMANAGER"))
    }

    /// Asks one JobManager, or the leader that it names.
    fn ask_one(&self, ask: Ask<'_>, base: &str, path: &str, query: &[(String, String)]) -> Outcome {
        let mut base = base.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let response = match self.send(ask, &base, path, query) {
                Ok(response) => response,
                Err(error) => return outcome_of(&error, ask),
            };
            if response.status() == StatusCode::SERVICE_UNAVAILABLE && matches!(ask, Ask::Get) {
                let reason = problem_of(response)
                    .map_or_else(|status| status, |problem| problem.error.message);
                return Outcome::NotThis(reason);
            }
            if !response.status().is_redirection() {
                return Outcome::Answer(response);
            }
            let location = response
                .headers()
                .get(header::LOCATION)
                .and_then(|value| value.to_str().ok());
            match location.map(base_of) {
                Some(Ok(leader)) => base = leader,
                _ => return Outcome::NotThis("it redirects to nowhere".to_owned()),
            }
        }
        Outcome::NotThis(
            "the JobManagers redirect to each other: there is no leader now".to_owned(),
        )
    }

    fn send(
        &self,
        ask: Ask<'_>,
        base: &str,
        path: &str,
        query: &[(String, String)],
    ) -> Result<Response<Body>, ureq::Error> {
        let url = format!("{base}{path}");
        let pairs = query
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let token = self.token.as_ref().map(|token| format!("Bearer {token}"));
        match ask {
            Ask::Get => {
                let request = self.agent.get(url).query_pairs(pairs);
                let request = request
                    .config()
                    .timeout_global(Some(ANSWER_TIMEOUT))
                    .build();
                match &token {
                    Some(token) => request.header(header::AUTHORIZATION, token).call(),
                    None => request.call(),
                }
            }
            Ask::Post(body) => {
                let timeout = if body.is_some() {
                    SUBMIT_TIMEOUT
                } else {
                    ANSWER_TIMEOUT
                };
                let request = self.agent.post(url).query_pairs(pairs);
                let mut request = request.config().timeout_global(Some(timeout)).build();
                if let Some(token) = &token {
                    request = request.header(header::AUTHORIZATION, token);
                }
                match body {
                    // The answer to an upload that is refused by its headers then comes instead of a broken pipe.
                    Some(wasm) => request
                        .content_type("application/wasm")
                        .header(header::EXPECT, "100-continue")
                        .send(wasm),
                    None => request.send_empty(),
                }
            }
        }
    }
}

/// Scheme, host and port of a URL; a bare `host:port` is taken for HTTP.
fn base_of(url: &str) -> Result<String, Failure> {
    let wrong = |reason: &str| {
        Failure::new(
            Exit::Usage,
            format!("`{url}` is not where a JobManager can be: {reason}"),
        )
        .help("give its REST address, such as http://127.0.0.1:7421")
    };
    let rest = match url.split_once("://") {
        None => url,
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(wrong(&format!("`{scheme}` is not spoken, only http"))),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.parse::<ureq::http::uri::Authority>() {
        Ok(authority) if !authority.host().is_empty() => Ok(format!("http://{authority}")),
        _ => Err(wrong("it names no host")),
    }
}

/// Whether another JobManager may be asked instead: always, when the request was not sent; and for questions also
/// when the answer did not come, since they change nothing.
fn outcome_of(error: &ureq::Error, ask: Ask<'_>) -> Outcome {
    let is_unsent = match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(timeout) => {
            matches!(timeout, ureq::Timeout::Connect | ureq::Timeout::Resolve)
        }
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    };
    if is_unsent || matches!(ask, Ask::Get) {
        Outcome::NotThis(error.to_string())
    } else {
        Outcome::Lost(error.to_string())
    }
}

fn lost(base: &str, path: &str, reason: &str) -> Failure {
    let message = format!("{base} took the request {path} and did not answer: {reason}");
    Failure::new(Exit::Unreachable, message)
        .help("whether it was carried out is not known; `tidemill list` tells")
}

fn problem_of(mut response: Response<Body>) -> Result<Problem, String> {
    let status = response.status();
    response
        .body_mut()
        .read_json()
        .map_err(|_| format!("it answers {status}"))
}

fn read<T: DeserializeOwned>(mut response: Response<Body>, base: &str) -> Result<T, Failure> {
    if response.status().is_success() {
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
    match problem_of(response) {
        Ok(Problem { error }) => {
            let failure = Failure::new(Exit::Refused, error.message);
            Err(match error.help {
                Some(help) => failure.help(help),
                None => failure,
            })
        }
        Err(status) => Err(Failure::new(Exit::Failed, format!("{base}: {status}"))
            .help("is it a Tidemill JobManager, and of this program's release?")),
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

/// The pair of a query.
pub(crate) fn pair(key: impl Into<String>, value: impl ToString) -> (String, String) {
    (key.into(), value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Output;
    use tidemill_jobmanager::views::JobStatus;

    fn job(id: &str, name: &str, status: JobStatus) -> JobSummary {
        JobSummary {
            id: id.into(),
            name: name.into(),
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
            last_checkpoint: None,
            records_in: 0,
            records_out: 0,
        }
    }

    #[test]
    fn a_job_is_found_by_id_prefix_or_name() {
        let jobs = vec![
            job("aa11", "count", JobStatus::Finished),
            job("aa22", "count", JobStatus::Running),
            job("bb33", "routes", JobStatus::Failed),
        ];
        let id = |text: &str| {
            choose(jobs.clone(), text)
                .map(|job| job.id)
                .map_err(|failure| failure.rendered(Output::Text))
        };
        assert_eq!(id("aa11").as_deref(), Ok("aa11"));
        assert_eq!(id("count").as_deref(), Ok("aa22"));
        assert_eq!(id("routes").as_deref(), Ok("bb33"));
        assert_eq!(id("b").as_deref(), Ok("bb33"));
        assert!(
            id("aa")
                .unwrap_err()
                .contains("can mean 2 jobs: aa11 (count), aa22 (count)")
        );
        assert!(id("rotues").unwrap_err().contains("did you mean `routes`"));
        assert!(id("").unwrap_err().contains("there is no job"));
    }

    #[test]
    fn addresses_are_read_leniently_and_refused_clearly() {
        let base = |url: &str| base_of(url).map_err(|failure| failure.rendered(Output::Text));
        assert_eq!(
            base("127.0.0.1:7421").as_deref(),
            Ok("http://127.0.0.1:7421")
        );
        assert_eq!(
            base("http://[::1]:7421/").as_deref(),
            Ok("http://[::1]:7421")
        );
        assert_eq!(
            base("http://leader:7421/v1/jobs?name=x").as_deref(),
            Ok("http://leader:7421")
        );
        assert!(base("https://leader").unwrap_err().contains("only http"));
        for bad in ["", "http://", "http:///v1", "a b:1"] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_there_is_said_with_every_address() {
        let closed: Vec<String> = (0..2)
            .map(|_| {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
                listener.local_addr().expect("a bound address").to_string()
            })
            .collect();
        let failure = Client::new(&closed, None)
            .expect("good addresses")
            .jobs()
            .unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        let text = failure.rendered(Output::Text);
        assert!(
            closed.iter().all(|address| text.contains(address)),
            "{text}"
        );
        assert!(text.contains("tidemill local"));
    }

    /// Answers connections one after the other, each with the next of `answers`, and returns what was asked.
    fn serve(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("a bound address"));
        let served = std::thread::spawn(move || {
            let answer_one = |answer: String| {
                let (stream, _) = listener.accept().expect("a connection");
                let mut head = String::new();
                let mut reader = io::BufReader::new(&stream);
                while !head.ends_with("\r\n\r\n") {
                    let read = io::BufRead::read_line(&mut reader, &mut head).expect("a request");
                    assert_ne!(read, 0, "the request broke off");
                }
                io::Write::write_all(&mut &stream, answer.as_bytes()).expect("a listening client");
                head
            };
            answers.into_iter().map(answer_one).collect()
        });
        (base, served)
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        let len = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n{headers}\r\n{body}"
        )
    }

    #[test]
    fn a_follower_s_redirect_and_an_absent_leader_are_followed_up() {
        let (leader, led) = serve(vec![answer("200 OK", "", r#"{"jobs":[]}"#)]);
        let (follower, followed) = serve(vec![answer(
            "307 Temporary Redirect",
            &format!("Location: {leader}/v1/jobs\r\n"),
            "",
        )]);
        let problem = r#"{"error":{"code":"unavailable","message":"shutting down","help":null}}"#;
        let (stopping, stopped) = serve(vec![answer("503 Service Unavailable", "", problem)]);
        let client = Client::new(&[stopping, follower], Some("secret")).expect("good addresses");
        assert_eq!(client.jobs().expect("the leader's answer"), []);
        for asked in [stopped, followed, led] {
            let head = asked.join().expect("no panic").concat();
            assert!(
                head.starts_with("GET /v1/jobs HTTP/1.1") && head.contains("Bearer secret"),
                "{head}"
            );
        }
    }

    #[test]
    fn a_refused_upload_is_told_with_its_help_and_never_sent_twice() {
        let problem = r#"{"error":{"code":"module-too-large","message":"17 bytes","help":"build it in release mode"}}"#;
        let (base, asked) = serve(vec![answer("413 Payload Too Large", "", problem)]);
        let client = Client::new(&[base, "127.0.0.1:1".to_owned()], None).expect("good addresses");
        let failure = client
            .submit(&[0; 1 << 22], &[pair("param.a", "b c&d")])
            .unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(
            failure.rendered(Output::Text),
            "error: 17 bytes\nhelp: build it in release mode"
        );
        let head = asked.join().expect("no panic").concat();
        assert!(
            head.starts_with("POST /v1/jobs?param.a=b%20c%26d HTTP/1.1"),
            "{head}"
        );
        assert!(
            head.to_lowercase().contains("expect: 100-continue"),
            "{head}"
        );
    }

    #[test]
    fn a_submission_whose_answer_is_lost_is_not_repeated() {
        let (base, asked) = serve(vec![String::new()]);
        let (other, _) = serve(Vec::new());
        let client = Client::new(&[base, other], None).expect("good addresses");
        let failure = client.submit(b"", &[]).unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(
            failure
                .rendered(Output::Text)
                .contains("`tidemill list` tells")
        );
        asked.join().expect("one request");
    }
}
