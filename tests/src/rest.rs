//! Questions to a JobManager's REST API, as any HTTP client would put them.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use ureq::Agent;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The REST API at one address.
#[derive(Clone, Debug)]
pub struct Rest {
    agent: Agent,
    url: String,
}

/// An answer, a refusal included.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
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
}

impl Rest {
    /// The API that listens on `address`, `host:port`.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // A connection that outlives a killed JobManager would fail the first question to its successor.
            .max_idle_connections(0)
            .build();
        Self {
            agent: config.into(),
            url: format!("http://{address}"),
        }
    }

    /// For `--jobmanager`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
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

    /// The answer at `path`, whatever it is.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn ask(&self, path: &str) -> anyhow::Result<Answer> {
        let url = format!("{}{path}", self.url);
        let response = self.agent.get(&url).call();
        answer(response).with_context(|| format!("GET {url}"))
    }

    /// Posts a body.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let url = format!("{}{path}", self.url);
        let response = self
            .agent
            .post(&url)
            .header("Content-Type", content_type)
            .send(body);
        answer(response).with_context(|| format!("POST {url}"))
    }
}

fn answer(
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> anyhow::Result<Answer> {
    let mut response = response?;
    let text = response.body_mut().read_to_string()?;
    Ok(Answer {
        status: response.status().as_u16(),
        body: serde_json::from_str(&text).unwrap_or(Value::Null),
        text,
    })
}
