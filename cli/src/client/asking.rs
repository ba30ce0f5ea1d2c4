//! Finds the JobManager that leads and asks it: each address in turn, redirects followed with the token, and waiting while
//! a cluster is between two leaders. Every question may be asked again when its answer was lost: views change nothing, to
//! cancel or delete twice is to do so once, and submissions and requests for savepoints carry ids.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tidemill_jobmanager::rest::Problem;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use crate::failure::{Exit, Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A process that was frozen still takes requests; another may lead by the time this is over.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A submission is answered when the module is checked, compiled, described and stored.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(300);
/// An object store is asked for each savepoint, and to delete every object of one.
const STORE_TIMEOUT: Duration = Duration::from_secs(120);
/// Every byte of a savepoint is read.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
const REDIRECTS_MAX: usize = 5;
/// The pause between two rounds of asking grows from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(500);

/// The codes of answers that say that nothing was done, and that this passes.
const NOTHING_DONE: [&str; 3] = ["no-leader", "unavailable", "registry-away"];
/// The code of an answer that waiting for a leader does not change.
const STORAGE_FAILED: &str = "storage-failed";
const PROBLEM_MAX_BYTES: u64 = 1 << 20;

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) method: Method<'a>,
    pub(super) path: &'a str,
    pub(super) query: &'a [(String, String)],
}

/// How it is asked.
#[derive(Clone, Copy)]
pub(super) enum Method<'a> {
    Get,
    /// What takes a look at the object store.
    Search,
    Post,
    /// A look at all of a savepoint.
    Verify,
    Delete,
    Upload(&'a [u8]),
}

impl Method<'_> {
    /// Whether it only looks, so that nothing is in doubt when its answer is lost.
    fn only_looks(&self) -> bool {
        matches!(self, Self::Get | Self::Search | Self::Verify)
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Get => ANSWER_TIMEOUT,
            Self::Post => CHANGE_TIMEOUT,
            Self::Search | Self::Delete => STORE_TIMEOUT,
            Self::Verify => VERIFY_TIMEOUT,
            Self::Upload(_) => SUBMIT_TIMEOUT,
        }
    }
}

/// How long a cluster without a leader is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// For how long.
    pub(crate) limit: Duration,
    /// Whether also when there is no sign of a cluster at any address.
    pub(crate) with_nobody: bool,
    /// Whether the user is told.
    pub(crate) is_told: bool,
}

impl Patience {
    /// One look at each address.
    pub(crate) const NONE: Self = Self {
        limit: Duration::ZERO,
        with_nobody: false,
        is_told: false,
    };
}

/// Asks the leader of one cluster.
pub(super) struct Asking {
    bases: Vec<String>,
    token: Option<String>,
    agent: Agent,
    pub(super) patience: Patience,
    /// Who answered last: asked first.
    leader: Mutex<Option<String>>,
}

/// What one JobManager answered, or why it did not.
enum Outcome {
    Answer(Response<Body>),
    /// It was not reached: another may be.
    Silent(String),
    /// It does not lead: another may, now or soon.
    NotLeading(String),
    /// It took the request, and whether it was carried out is not known.
    InDoubt(String),
}

/// Why nobody answered in one round.
#[derive(Default)]
struct Nobody {
    reasons: Vec<String>,
    /// At least one JobManager was there and did not lead.
    is_cluster: bool,
    /// A change may have been made.
    is_in_doubt: bool,
}

impl Asking {
    pub(super) fn new(urls: &[String], token: Option<&str>) -> Result<Self, Failure> {
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
            patience: Patience::NONE,
            leader: Mutex::new(None),
        })
    }

    /// The same cluster, asked with another patience.
    pub(super) fn with(&self, patience: Patience) -> Self {
        Self {
            bases: self.bases.clone(),
            token: self.token.clone(),
            agent: self.agent.clone(),
            patience,
            leader: Mutex::new(self.known_leader()),
        }
    }

    /// The leader's answer, and where it came from.
    pub(super) fn answer(
        &self,
        question: &Question<'_>,
    ) -> Result<(Response<Body>, String), Failure> {
        let begun = Instant::now();
        let mut pause = PAUSE_FIRST;
        let mut told = String::new();
        let mut is_in_doubt = false;
        loop {
            let mut nobody = match self.round(question) {
                Ok(answer) => return Ok(answer),
                Err(nobody) => nobody,
            };
            is_in_doubt |= nobody.is_in_doubt;
            nobody.is_in_doubt = is_in_doubt;
            let is_worth_it = nobody.is_cluster || self.patience.with_nobody;
            if !is_worth_it || begun.elapsed() + pause > self.patience.limit {
                return Err(nobody.into_failure(begun.elapsed()));
            }
            let words = format!("waiting: {}", nobody.reasons.join("; "));
            if self.patience.is_told && words != told {
                eprintln!("{words}");
                told = words;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// Asks every JobManager in turn until one answers, beginning with who led last.
    fn round(&self, question: &Question<'_>) -> Result<(Response<Body>, String), Nobody> {
        let mut nobody = Nobody::default();
        let mut silent: Vec<String> = Vec::new();
        let known = self.known_leader();
        let others = self
            .bases
            .iter()
            .filter(|base| Some(*base) != known.as_ref());
        for first in known.iter().chain(others) {
            let mut base = first.clone();
            for hop in 0..=REDIRECTS_MAX {
                if silent.contains(&base) {
                    break;
                }
                // Somebody who was redirected to is known to a cluster.
                nobody.is_cluster |= hop > 0;
                let response = match self.ask_one(question, &base) {
                    Outcome::Answer(response) => response,
                    Outcome::NotLeading(reason) => {
                        nobody.is_cluster = true;
                        nobody.reasons.push(format!("{base}: {reason}"));
                        break;
                    }
                    Outcome::InDoubt(reason) => {
                        nobody.is_cluster = true;
                        nobody.is_in_doubt |= !question.method.only_looks();
                        nobody.reasons.push(format!("{base}: {reason}"));
                        silent.push(base);
                        break;
                    }
                    Outcome::Silent(reason) => {
                        nobody.reasons.push(format!("{base}: {reason}"));
                        silent.push(base);
                        break;
                    }
                };
                if !response.status().is_redirection() {
                    self.remember(Some(base.clone()));
                    return Ok((response, base));
                }
                nobody.is_cluster = true;
                match redirected(&response) {
                    Some(next) if hop < REDIRECTS_MAX => base = next,
                    Some(_) => nobody
                        .reasons
                        .push(format!("{base}: the JobManagers redirect in circles")),
                    None => {
                        nobody
                            .reasons
                            .push(format!("{base}: it redirects to nowhere"));
                        break;
                    }
                }
            }
        }
        self.remember(None);
        Err(nobody)
    }

    fn ask_one(&self, question: &Question<'_>, base: &str) -> Outcome {
        let response = match self.send(question, base) {
            Ok(response) => response,
            Err(error) if was_not_sent(&error) => return Outcome::Silent(error.to_string()),
            Err(error) => return Outcome::InDoubt(error.to_string()),
        };
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Outcome::Answer(response);
        }
        let (parts, mut body) = response.into_parts();
        let read = body.with_config().limit(PROBLEM_MAX_BYTES).read_to_vec();
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => return Outcome::InDoubt(error.to_string()),
        };
        let (code, message) = match serde_json::from_slice(&bytes) {
            Ok(Problem { error }) => (error.code, error.message),
            Err(_) => (String::new(), "it answers 503".to_owned()),
        };
        if NOTHING_DONE.contains(&code.as_str()) {
            Outcome::NotLeading(message)
        } else if code == STORAGE_FAILED {
            Outcome::Answer(Response::from_parts(parts, Body::builder().data(bytes)))
        } else {
            Outcome::InDoubt(message)
        }
    }

    fn send(&self, question: &Question<'_>, base: &str) -> Result<Response<Body>, ureq::Error> {
        let url = format!("{base}{}", question.path);
        let pairs = question.query.iter();
        let pairs = pairs.map(|(key, value)| (key.as_str(), value.as_str()));
        let token = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let timeout = Some(question.method.timeout());
        if matches!(
            question.method,
            Method::Get | Method::Search | Method::Delete
        ) {
            let request = match question.method {
                Method::Delete => self.agent.delete(url),
                _ => self.agent.get(url),
            };
            let request = request.query_pairs(pairs);
            let mut request = request.config().timeout_global(timeout).build();
            if let Some(token) = &token {
                request = request.header(header::AUTHORIZATION, token);
            }
            return request.call();
        }
        let request = self.agent.post(url).query_pairs(pairs);
        let mut request = request.config().timeout_global(timeout).build();
        if let Some(token) = &token {
            request = request.header(header::AUTHORIZATION, token);
        }
        match question.method {
            // The answer to an upload that is refused by its headers then comes instead of a broken pipe.
            Method::Upload(wasm) => request
                .content_type("application/wasm")
                .header(header::EXPECT, "100-continue")
                .send(wasm),
            _ => request.send_empty(),
        }
    }

    fn known_leader(&self) -> Option<String> {
        let leader = self.leader.lock();
        leader.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, leader: Option<String>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }
}

impl Nobody {
    fn into_failure(self, waited: Duration) -> Failure {
        let reasons = self.reasons.join("; ");
        if !self.is_cluster {
            return Failure::new(Exit::Unreachable, format!("no JobManager answers ({reasons})"))
                .help("start a cluster with `tidemill local`, or say where one is with --jobmanager URL or TIDEMILL_JOBMANAGER");
        }
        let after = match waited.as_secs() {
            0 => String::new(),
            seconds => format!(", after {seconds} s"),
        };
        Failure::new(
            Exit::Unreachable,
            format!("no JobManager leads{after} ({reasons})"),
        )
        .help(match self.is_in_doubt {
            true => "whether the request was carried out is not known; `tidemill list` tells",
            false => "jobs run on without one; --timeout SECONDS waits longer, and the JobManagers' logs say why none is elected",
        })
    }
}

/// Scheme, host and port of a URL; a bare `host:port` is taken for HTTP.
pub(super) fn base_of(url: &str) -> Result<String, Failure> {
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

fn redirected(response: &Response<Body>) -> Option<String> {
    let location = response.headers().get(header::LOCATION)?;
    base_of(location.to_str().ok()?).ok()
}

/// Whether the request never left this machine, so that it cannot have been carried out.
fn was_not_sent(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(timeout) => {
            matches!(timeout, ureq::Timeout::Connect | ureq::Timeout::Resolve)
        }
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}
