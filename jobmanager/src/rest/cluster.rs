//! The paths that tell how the cluster is.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Refusal;
use super::query::NoOptions;
use super::{Api, Problem};
use crate::views::{HealthView, JobManagerView, NodeView};

/// Every TaskManager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// Those that are connected, those that have only announced themselves, and those lost lately.
    pub nodes: Vec<NodeView>,
}

/// Every JobManager that leads or stands by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobManagerList {
    /// In the order in which they would lead.
    pub jobmanagers: Vec<JobManagerView>,
}

/// Every TaskManager: connected, announced in ZooKeeper, or lost lately.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "cluster",
    responses(
        (status = 200, body = NodeList),
        (status = 307, description = "The leader answers, at `Location`", body = Problem),
        (status = 503, description = "There is no leader now", body = Problem),
    )
)]
pub(super) async fn nodes(State(api): State<Api>, _: NoOptions) -> Result<Json<NodeList>, Refusal> {
    let nodes = api.cluster.nodes().await?;
    Ok(Json(NodeList { nodes }))
}

/// Every JobManager that leads or stands by.
#[utoipa::path(
    get, path = "/v1/jobmanagers", tag = "cluster",
    responses(
        (status = 200, body = JobManagerList),
        (status = 307, description = "The leader answers, at `Location`", body = Problem),
        (status = 503, description = "There is no leader now", body = Problem),
    )
)]
pub(super) async fn job_managers(
    State(api): State<Api>,
    _: NoOptions,
) -> Result<Json<JobManagerList>, Refusal> {
    let jobmanagers = api.cluster.job_managers().await?;
    Ok(Json(JobManagerList { jobmanagers }))
}

/// How this JobManager is, whatever its role; a leader also says what it has to work with.
#[utoipa::path(
    get, path = "/health", tag = "cluster",
    responses((status = 200, body = HealthView), (status = 503, description = "It is shutting down", body = Problem))
)]
pub(super) async fn health(State(api): State<Api>) -> Result<Json<HealthView>, Refusal> {
    Ok(Json(api.cluster.health().await?))
}
