//! Requests that only the leader can answer: any other JobManager sends them there, or says why it cannot. It never
//! answers from what it knows itself.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::problem::Refusal;
use crate::standing::Standing;
use crate::views::Role;

/// What every JobManager answers itself.
const LOCAL_PATHS: [&str; 3] = ["/health", "/metrics", "/v1/openapi.json"];

/// How long a request waits for a take-over that is under way.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(5);

/// Lets a request through to the leader that this is, or sends it to the one that it is not.
pub(super) async fn to_leader(State(api): State<Api>, request: Request, next: Next) -> Response {
    if LOCAL_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let mut standing = api.cluster.standing();
    let settled = standing.wait_for(|standing| standing.role != Role::TakingOver);
    // Whatever it is then, it is said below.
    let _ = tokio::time::timeout(TAKE_OVER_PATIENCE, settled).await;
    let standing = standing.borrow().clone();
    if standing.role == Role::Leader {
        return next.run(request).await;
    }
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    elsewhere(&standing, path)
}

fn elsewhere(standing: &Standing, path: &str) -> Response {
    let why = standing.why_not_here();
    let Some(leader) = standing.other_leader() else {
        return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no-leader", why)
            .help("ask again soon: running tasks go on without a leader")
            .closing()
            .into_response();
    };
    let mut response = Refusal::new(StatusCode::TEMPORARY_REDIRECT, "not-the-leader", why)
        .help("follow the redirect")
        .closing()
        .into_response();
    let location = format!("{}{path}", leader.record.rest_url);
    // An address that is no header's value could only come from a registry that somebody wrote to.
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
