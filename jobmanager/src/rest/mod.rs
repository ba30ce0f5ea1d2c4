//! The REST API: the only door through which users, the command line among them, reach a cluster.
//!
//! It turns requests into calls of a [`ClusterHandle`] and views into JSON, on the leader; on every other JobManager it
//! names the leader. It never looks at a module, a graph or a machine's state, and decides nothing but who may ask.
//!
//! Nouns: a [`Problem`] (every error's body), [`router`] (every path), [`serve`].

mod access;
mod cluster;
mod jobs;
mod metrics;
mod openapi;
mod problem;
mod query;
mod redirect;
mod savepoints;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tidemill_config::Config;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::ClusterHandle;

pub use cluster::{JobManagerList, NodeList};
pub use jobs::{CancelAccepted, JobList};
pub use problem::{Problem, ProblemBody};
pub use savepoints::{SavepointDeleted, SavepointList};

/// Uploads that are held in memory at once; more wait for their turn.
const UPLOADS_MAX: usize = 4;

/// Why the REST API could not start to listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Anybody could run code.
    #[error(
        "the REST API may not listen on {address} without a token, since whoever reaches it can run code: set jobmanager.rest_token, or let jobmanager.rest_address be a loopback address"
    )]
    Unprotected {
        /// The address.
        address: SocketAddr,
    },
    /// The address is taken, not this machine's, or not allowed.
    #[error(
        "the REST API cannot listen on {address}: stop what uses it, or set jobmanager.rest_address to another address (port 0: any free one)"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens the socket of the REST API, so that a taken port is an error before anything else starts.
///
/// # Errors
/// When the address is open to others and no token is set, or cannot be bound.
pub async fn bind(config: &Config) -> Result<TcpListener, BindError> {
    let address = config.jobmanager.rest_address;
    if !address.ip().is_loopback() && config.jobmanager.rest_token.is_none() {
        return Err(BindError::Unprotected { address });
    }
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError::Bind { address, source })
}

/// Answers requests until `shutdown` completes, then lets those under way end.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    cluster: ClusterHandle,
    config: Arc<Config>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(cluster, config))
        .with_graceful_shutdown(shutdown)
        .await
}

/// What every handler can reach.
#[derive(Clone)]
struct Api {
    cluster: ClusterHandle,
    config: Arc<Config>,
    uploads: Arc<Semaphore>,
}

/// Every path of the API.
pub fn router(cluster: ClusterHandle, config: Arc<Config>) -> Router {
    let bytes_max = usize::try_from(config.jobmanager.module_bytes_max).unwrap_or(usize::MAX);
    let api = Api {
        cluster,
        config,
        uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
    };
    Router::new()
        .route("/v1/jobs", post(jobs::submit).get(jobs::list))
        .route("/v1/jobs/{job}", get(jobs::info))
        .route("/v1/jobs/{job}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{job}/checkpoints", get(jobs::checkpoints))
        .route(
            "/v1/jobs/{job}/checkpoints/{checkpoint}",
            get(jobs::checkpoint),
        )
        .route("/v1/jobs/{job}/savepoints", post(savepoints::trigger))
        .route(
            "/v1/jobs/{job}/savepoints/{request}",
            get(savepoints::status),
        )
        .route("/v1/savepoints", get(savepoints::list))
        .route(
            "/v1/savepoints/{path}",
            get(savepoints::show).delete(savepoints::delete),
        )
        .route("/v1/savepoints/{path}/verify", post(savepoints::verify))
        .route("/v1/jobs/{job}/logs", get(jobs::logs))
        .route("/v1/nodes", get(cluster::nodes))
        .route("/v1/jobmanagers", get(cluster::job_managers))
        .route("/metrics", get(metrics::metrics))
        .route("/health", get(cluster::health))
        .route("/v1/openapi.json", get(openapi::openapi))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(bytes_max))
        .layer(from_fn_with_state(api.clone(), redirect::to_leader))
        .layer(from_fn_with_state(api.clone(), access::check))
        .with_state(api)
}
