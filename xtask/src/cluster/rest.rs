//! Questions to a JobManager's REST API: as much of HTTP as that takes.
//!
//! It never sends anything but GET; jobs are submitted with the `tidemill` command, as users do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The REST API at one address.
#[derive(Clone, Debug)]
pub(crate) struct Rest {
    address: String,
}

impl Rest {
    /// The API that listens on `address`, `host:port`.
    pub(crate) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
        }
    }

    /// For `--jobmanager`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The JSON at `path`.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(path)
            .with_context(|| format!("cannot get {}{path}", self.url()))
    }

    fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        // Of version 1.0, so that the body's end is the connection's.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            bail!("the answer has no end of headers: {answer}");
        };
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        if status != "200" {
            bail!("status {status}: {body}");
        }
        serde_json::from_str(body).context("the answer is not JSON")
    }
}

/// A whole number of an answer; its absence is a change of the API that this program does not know.
pub(crate) fn number(object: &Value, field: &str) -> anyhow::Result<u64> {
    object[field]
        .as_u64()
        .with_context(|| format!("there is no number `{field}` in {object}"))
}

/// A text of an answer.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    object[field]
        .as_str()
        .with_context(|| format!("there is no text `{field}` in {object}"))
}

/// A list of an answer.
pub(crate) fn list<'a>(object: &'a Value, field: &str) -> anyhow::Result<&'a [Value]> {
    object[field]
        .as_array()
        .map(Vec::as_slice)
        .with_context(|| format!("there is no list `{field}` in {object}"))
}
