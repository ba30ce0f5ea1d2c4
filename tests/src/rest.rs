//! Questions to the REST APIs of a cluster's JobManagers, as any HTTP client would put them. Where there are several, the
//! leader's answer counts: followers, and those that are gone, are passed over. Redirections are shown, not followed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use ureq::Agent;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long one JobManager of several may be silent before the next is asked.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);

/// The REST API of a cluster.
#[derive(Clone, Debug)]
pub struct Rest {
    agent: Agent,
    urls: Arc<[String]>,
    /// Index of the JobManager that answered as the leader last.
    leader: Arc<AtomicUsize>,
    token: Option<String>,
}

/// An answer, a refusal included.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Where a redirection leads to; empty if it is none.
    pub location: String,
    /// The body, or null if it is not JSON.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

impl Answer {
    /// The code of a refusal.
    #[must_use]
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    /// A refusal's message and help.
    #[must_use]
    pub fn refusal(&self) -> String {
        let error = &self.body["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("message"), text("help"))
    }

    /// Whether only a leader answers like this: a follower redirects, or has none to redirect to.
    fn is_a_leaders(&self) -> bool {
        !(300..400).contains(&self.status)
            && self.status != 503
            && self.body.get("leading") != Some(&Value::Bool(false))
    }
}

impl Rest {
    /// The API that listens on `address`, `host:port`.
    #[must_use]
    pub fn new(address: &str) -> Self {
        Self::of(&[address.to_owned()], None)
    }

    /// The API of a cluster whose JobManagers listen on these addresses, and ask for this token.
    #[must_use]
    pub fn of(addresses: &[String], token: Option<&str>) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            // A connection that outlives a killed JobManager would fail the first question to its successor.
            .max_idle_connections(0)
            .build();
        Self {
            agent: config.into(),
            urls: addresses.iter().map(|it| format!("http://{it}")).collect(),
            leader: Arc::default(),
            token: token.map(str::to_owned),
        }
    }

    /// The API of one JobManager alone, whatever it is.
    #[must_use]
    pub fn at(&self, index: usize) -> Self {
        Self {
            agent: self.agent.clone(),
            urls: [self.urls[index].clone()].into(),
            leader: Arc::default(),
            token: self.token.clone(),
        }
    }

    /// For `--jobmanager`: that of the leader, as far as is known.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.urls[self.leader.load(Ordering::Relaxed)]
    }

    /// For `--token`.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The JSON at `path`.
    ///
    /// # Errors
    /// When nobody answers, or with anything but success and JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.ask(path)?;
        ensure!(
            answer.status == 200,
            "GET {path}: {} {}",
            answer.status,
            answer.text
        );
        Ok(answer.body)
    }

    /// The leader's answer at `path`, or, if none leads, somebody's.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn ask(&self, path: &str) -> anyhow::Result<Answer> {
        let several = self.urls.len() > 1;
        self.leaders(|url| {
            let url = format!("{url}{path}");
            let mut request = self.agent.get(&url);
            if let Some(token) = &self.token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let timeout = if several { QUESTION_TIMEOUT } else { TIMEOUT };
            let request = request.config().timeout_global(Some(timeout)).build();
            answer(request.call()).with_context(|| format!("GET {url}"))
        })
    }

    /// Posts a body to the leader.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> anyhow::Result<Answer> {
        self.leaders(|url| {
            let url = format!("{url}{path}");
            let mut request = self.agent.post(&url).header("Content-Type", content_type);
            if let Some(token) = &self.token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            answer(request.send(body)).with_context(|| format!("POST {url}"))
        })
    }

    /// Puts a question to one after the other, beginning with the last known leader, until a leader answers.
    fn leaders(&self, question: impl Fn(&str) -> anyhow::Result<Answer>) -> anyhow::Result<Answer> {
        let first = self.leader.load(Ordering::Relaxed);
        let mut refused = None;
        let mut failed = None;
        for offset in 0..self.urls.len() {
            let index = (first + offset) % self.urls.len();
            match question(&self.urls[index]) {
                Ok(answer) if answer.is_a_leaders() => {
                    self.leader.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(answer) => refused = Some(answer),
                Err(error) => failed = Some(error),
            }
        }
        match (refused, failed) {
            (Some(answer), _) => Ok(answer),
            (None, Some(error)) => Err(error),
            (None, None) => anyhow::bail!("the cluster has no JobManager"),
        }
    }
}

fn answer(
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> anyhow::Result<Answer> {
    let mut response = response?;
    let location = response.headers().get("location");
    let location = location.and_then(|it| it.to_str().ok()).unwrap_or_default();
    let location = location.to_owned();
    let text = response.body_mut().read_to_string()?;
    Ok(Answer {
        status: response.status().as_u16(),
        location,
        body: serde_json::from_str(&text).unwrap_or(Value::Null),
        text,
    })
}
