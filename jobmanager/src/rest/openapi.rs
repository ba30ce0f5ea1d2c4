//! The description of the API, made from the handlers and the views themselves.

use axum::Json;
use utoipa::OpenApi;

use super::{Problem, cluster, jobs, metrics, savepoints};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidemill",
        description = "Submit jobs to a Tidemill cluster and watch them. Every answer that is not a success has a Problem as its body. Every JobManager answers /health, /metrics and this path; all others only the leader, to which the others redirect (307). Where the cluster has a token, every path but /health and this one asks for it as `Authorization: Bearer TOKEN`.",
    ),
    paths(
        jobs::submit,
        jobs::list,
        jobs::info,
        jobs::cancel,
        jobs::checkpoints,
        jobs::checkpoint,
        jobs::logs,
        savepoints::trigger,
        savepoints::status,
        savepoints::list,
        savepoints::show,
        savepoints::verify,
        savepoints::delete,
        cluster::nodes,
        cluster::job_managers,
        cluster::health,
        metrics::metrics,
    ),
    components(schemas(Problem)),
    tags(
        (name = "jobs", description = "Jobs, their checkpoints and their logs"),
        (name = "savepoints", description = "Savepoints: asking for them, and those that are stored"),
        (name = "cluster", description = "The processes of the cluster"),
    )
)]
pub(super) struct Description;

/// The answer to `GET /v1/openapi.json`.
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}
