//! The paths that tell how the cluster is.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Refusal;
use super::query::Pairs;
use super::{Api, Problem};
use crate::views::{HealthView, NodeView};

/// Every TaskManager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// Those that are connected and those lost lately.
    pub nodes: Vec<NodeView>,
}

/// Every TaskManager, connected or lost lately.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "cluster",
    responses((status = 200, body = NodeList), (status = 503, body = Problem))
)]
pub(super) async fn nodes(State(api): State<Api>, uri: Uri) -> Result<Json<NodeList>, Refusal> {
    Pairs::of(&uri)?.finish(&[])?;
    let nodes = api.cluster.nodes().await?;
    Ok(Json(NodeList { nodes }))
}

/// Whether the JobManager answers, and what it has to work with.
#[utoipa::path(
    get, path = "/health", tag = "cluster",
    responses((status = 200, body = HealthView), (status = 503, description = "It is shutting down or does not lead", body = Problem))
)]
pub(super) async fn health(State(api): State<Api>) -> Result<Json<HealthView>, Refusal> {
    Ok(Json(api.cluster.health().await?))
}
