//! The paths of savepoints: of requests for them, below a job, and of those that are stored. A stored one is named by its
//! path in the store or its URL, as one segment of the address (`%2F` for each slash).

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::jobs::{JobAt, job_id};
use super::problem::Refusal;
use super::query::{NoOptions, Pairs};
use super::{Api, Problem};
use crate::handle::SavepointRequestId;
use crate::views::{SavepointRequestView, SavepointView, UnusableSavepointView};

/// The longest path or URL of a savepoint.
const PATH_MAX_BYTES: usize = 4096;

/// Every stored savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SavepointList {
    /// Newest first; after them the checkpoints that ended jobs have left.
    pub savepoints: Vec<SavepointView>,
    /// What is there besides that no job can be started from: most often what was left of a savepoint.
    #[serde(default)]
    pub unusable: Vec<UnusableSavepointView>,
}

/// A savepoint that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SavepointDeleted {
    /// Where it was.
    pub path: String,
}

/// Where a stored savepoint is, by the address of the request.
pub(super) struct StoredAt(String);

impl<S: Send + Sync> FromRequestParts<S> for StoredAt {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(path) = path.map_err(|error| Refusal::bad_request("bad-path", error))?;
        check_path(&path)?;
        Ok(Self(path))
    }
}

/// Asks for a savepoint, and with `stop` for the job's end once it is written. What becomes of it is asked for with the
/// request's id, at `Location`. Asking again with the same id changes nothing.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/savepoints", tag = "savepoints",
    params(
        ("job" = String, Path, description = "The job's id"),
        ("id" = Option<String>, Query, description = "The request's id, 32 random hexadecimal digits: sent again with the same one it is the same request; chosen here unless given"),
        ("directory" = Option<String>, Query, description = "Where to write it: a path in the cluster's store, or a URL; below checkpoints.savepoint_dir unless given"),
        ("stop" = Option<bool>, Query, description = "Whether the job is to stop at the savepoint: nothing is processed after it"),
    ),
    responses(
        (status = 202, description = "It is being taken", body = SavepointRequestView),
        (status = 400, description = "An option is unknown or cannot be", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "There can be none now", body = Problem),
        (status = 503, body = Problem),
    )
)]
pub(super) async fn trigger(
    State(api): State<Api>,
    JobAt(job): JobAt,
    mut pairs: Pairs,
) -> Result<Response, Refusal> {
    let id = pairs.parsed("id", "32 hexadecimal digits")?;
    let directory = pairs.text("directory")?;
    let stop = pairs.parsed("stop", "true or false")?.unwrap_or(false);
    pairs.finish(&["id", "directory", "stop"])?;
    if let Some(directory) = &directory {
        check_path(directory)?;
    }
    let id = id.unwrap_or_else(|| SavepointRequestId(rand::random()));
    let status = api
        .cluster
        .trigger_savepoint(job, id, directory, stop)
        .await?;
    let location = [(header::LOCATION, format!("/v1/jobs/{job}/savepoints/{id}"))];
    let view = SavepointRequestView::new(job, id, status);
    Ok((StatusCode::ACCEPTED, location, Json(view)).into_response())
}

/// How a request for a savepoint stands.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/savepoints/{request}", tag = "savepoints",
    params(
        ("job" = String, Path, description = "The job's id"),
        ("request" = String, Path, description = "The request's id"),
    ),
    responses(
        (status = 200, body = SavepointRequestView),
        (status = 404, description = "There is no such job, or this leader knows no such request: those of an earlier leader are dropped", body = Problem),
        (status = 503, body = Problem),
    )
)]
pub(super) async fn status(
    State(api): State<Api>,
    Path((job, request)): Path<(String, String)>,
    _: NoOptions,
) -> Result<Json<SavepointRequestView>, Refusal> {
    let job = job_id(&job)?;
    let id: SavepointRequestId = request
        .parse()
        .map_err(|error| Refusal::bad_request("bad-request-id", error))?;
    let status = api.cluster.savepoint_status(job, id).await?;
    Ok(Json(SavepointRequestView::new(job, id, status)))
}

/// Every savepoint below `checkpoints.savepoint_dir` in the cluster's store, and the checkpoints that ended jobs have left.
#[utoipa::path(
    get, path = "/v1/savepoints", tag = "savepoints",
    responses((status = 200, body = SavepointList), (status = 503, body = Problem))
)]
pub(super) async fn list(
    State(api): State<Api>,
    _: NoOptions,
) -> Result<Json<SavepointList>, Refusal> {
    let listing = api.cluster.savepoints().await?;
    let (savepoints, unusable) = (listing.savepoints, listing.unusable);
    Ok(Json(SavepointList {
        savepoints: savepoints.into_iter().map(Into::into).collect(),
        unusable: unusable.into_iter().map(Into::into).collect(),
    }))
}

/// One savepoint, or a checkpoint that an ended job has left.
#[utoipa::path(
    get, path = "/v1/savepoints/{path}", tag = "savepoints",
    params(("path" = String, Path, description = "Where it is, as one segment: `%2F` for each slash")),
    responses(
        (status = 200, body = SavepointView),
        (status = 404, body = Problem),
        (status = 422, description = "It is damaged, or of a newer release", body = Problem),
        (status = 503, body = Problem),
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    StoredAt(path): StoredAt,
    _: NoOptions,
) -> Result<Json<SavepointView>, Refusal> {
    Ok(Json(api.cluster.savepoint(path).await?.into()))
}

/// Reads every object of a savepoint and checks it, which takes as long as that takes.
#[utoipa::path(
    post, path = "/v1/savepoints/{path}/verify", tag = "savepoints",
    params(("path" = String, Path, description = "Where it is, as one segment: `%2F` for each slash")),
    responses(
        (status = 200, description = "It is whole", body = SavepointView),
        (status = 404, body = Problem),
        (status = 422, description = "It is damaged, or of a newer release", body = Problem),
        (status = 503, body = Problem),
    )
)]
pub(super) async fn verify(
    State(api): State<Api>,
    StoredAt(path): StoredAt,
    _: NoOptions,
) -> Result<Json<SavepointView>, Refusal> {
    Ok(Json(api.cluster.verify_savepoint(path).await?.into()))
}

/// Deletes a savepoint, or a checkpoint that an ended job has left.
#[utoipa::path(
    delete, path = "/v1/savepoints/{path}", tag = "savepoints",
    params(("path" = String, Path, description = "Where it is, as one segment: `%2F` for each slash")),
    responses(
        (status = 200, description = "It is gone", body = SavepointDeleted),
        (status = 404, body = Problem),
        (status = 409, description = "It belongs to a job that has not ended", body = Problem),
        (status = 503, body = Problem),
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    StoredAt(path): StoredAt,
    _: NoOptions,
) -> Result<Json<SavepointDeleted>, Refusal> {
    api.cluster.delete_savepoint(path.clone()).await?;
    Ok(Json(SavepointDeleted { path }))
}

/// Refuses what can be no place, before anybody looks there.
pub(super) fn check_path(path: &str) -> Result<(), Refusal> {
    let in_store = path.split_once("://").map_or(path, |(_, rest)| rest);
    let mut segments = in_store.split('/');
    let reason = if in_store.trim_matches('/').is_empty() {
        "it names no place"
    } else if path.len() > PATH_MAX_BYTES {
        "it is too long"
    } else if path.chars().any(char::is_control) {
        "it has control characters"
    } else if segments.any(|segment| segment == ".." || segment == ".") {
        "it has `.` or `..` for a part"
    } else {
        return Ok(());
    };
    let shown: String = path.escape_debug().take(100).collect();
    let message = format!("`{shown}` can be no savepoint's path: {reason}");
    Err(Refusal::bad_request("bad-path", message)
        .help("name a path in the cluster's store, such as savepoints/before-upgrade, or a URL"))
}
