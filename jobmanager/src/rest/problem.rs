//! What goes wrong, as users are told: one JSON shape with a code for programs and words for people.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    CancelError, QueryError, SavepointError, StoredSavepointError, SubmitError, Unavailable,
};

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What went wrong.
    pub error: ProblemBody,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    /// For programs: words joined by hyphens, which never change.
    pub code: String,
    /// For people: what, and where.
    pub message: String,
    /// What to do, when the message does not say it.
    pub help: Option<String>,
}

/// A [`Problem`] with the status to send it with.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    problem: Problem,
    closes: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, message: impl ToString) -> Self {
        let error = ProblemBody {
            code: code.to_owned(),
            message: message.to_string(),
            help: None,
        };
        Self {
            status,
            problem: Problem { error },
            closes: false,
        }
    }

    pub(super) fn bad_request(code: &str, message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// Ends the connection with the answer: the request's body was not read, so nothing can follow it.
    pub(super) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.problem.error.help = Some(help.into());
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        let headers = response.headers_mut();
        if self.closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

impl From<Unavailable> for Refusal {
    fn from(error: Unavailable) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error)
    }
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::UnknownJob(_) => Self::new(StatusCode::NOT_FOUND, "unknown-job", error),
            QueryError::UnknownTask { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown-task", error)
            }
            QueryError::UnknownCheckpoint { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown-checkpoint", error)
            }
            QueryError::BadCursor(_) => Self::bad_request("bad-cursor", error),
            QueryError::Unavailable(error) => error.into(),
        }
    }
}

impl From<CancelError> for Refusal {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::UnknownJob(_) => Self::new(StatusCode::NOT_FOUND, "unknown-job", error),
            CancelError::Ended { .. } => Self::new(StatusCode::CONFLICT, "job-ended", error),
            CancelError::InDoubt(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "in-doubt", error)
            }
            CancelError::Unavailable(error) => error.into(),
        }
    }
}

impl From<SavepointError> for Refusal {
    fn from(error: SavepointError) -> Self {
        match error {
            SavepointError::UnknownJob(_) => Self::new(StatusCode::NOT_FOUND, "unknown-job", error),
            SavepointError::UnknownRequest { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown-request", error)
            }
            SavepointError::Refused { .. } => {
                Self::new(StatusCode::CONFLICT, "savepoint-refused", error)
            }
            SavepointError::Unavailable(error) => error.into(),
        }
    }
}

impl From<StoredSavepointError> for Refusal {
    fn from(error: StoredSavepointError) -> Self {
        let new = |status, code, error| Self::new(status, code, error);
        match error {
            StoredSavepointError::Missing(_) => {
                new(StatusCode::NOT_FOUND, "unknown-savepoint", error)
            }
            StoredSavepointError::Damaged { .. } => {
                new(StatusCode::UNPROCESSABLE_ENTITY, "savepoint-damaged", error)
                    .help("a copy of it may be whole; jobs can be started from any other one")
            }
            StoredSavepointError::InUse { .. } => {
                new(StatusCode::CONFLICT, "savepoint-in-use", error)
            }
            StoredSavepointError::Store { .. } => {
                new(StatusCode::SERVICE_UNAVAILABLE, "storage-failed", error)
            }
            StoredSavepointError::Unavailable(error) => error.into(),
        }
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        let unprocessable = |code, error| Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, error);
        match error {
            SubmitError::Module { .. } => unprocessable("module-refused", error)
                .help("`tidemill inspect FILE` shows what a module contains"),
            SubmitError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "module-too-large", error)
            }
            SubmitError::Describe { .. } => unprocessable("describe-failed", error)
                .help("`tidemill inspect FILE` lists the parameters that the job reads"),
            SubmitError::Graph { .. } => unprocessable("graph-refused", error)
                .help("`tidemill inspect FILE` shows the job's graph"),
            SubmitError::Connector { .. } => unprocessable("connector-refused", error),
            SubmitError::Option(_) => Self::bad_request("bad-option", error),
            SubmitError::From { .. } => unprocessable("savepoint-refused", error)
                .help("`tidemill savepoint show PATH` tells what it was taken of; it fits the same module, parameters and parallelism"),
            SubmitError::OutputInUse { .. } => {
                Self::new(StatusCode::CONFLICT, "output-in-use", error)
            }
            SubmitError::Storage { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "storage-failed", error)
            }
            SubmitError::RegistryAway { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "registry-away", error)
            }
            SubmitError::InDoubt => Self::new(StatusCode::SERVICE_UNAVAILABLE, "in-doubt", error),
            SubmitError::Unavailable(error) => error.into(),
        }
    }
}

/// The answer on a path that is none.
pub(super) async fn no_such_path(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "no-such-path",
        format!("there is nothing at {}", uri.path()),
    )
    .help("GET /v1/openapi.json describes every path")
}

/// The answer to a method that a path does not have.
pub(super) async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} cannot be asked with {method}", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", message)
        .help("GET /v1/openapi.json describes every path")
}
