//! Who may ask: holders of the token where one is set; otherwise only programs on this machine, and no web page that
//! a browser on it shows.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::problem::Refusal;

/// Paths that tell nothing about jobs: load balancers and tools ask them without a token.
const OPEN_PATHS: [&str; 2] = ["/health", "/v1/openapi.json"];

/// Lets a request through or refuses it.
pub(super) async fn check(State(api): State<Api>, request: Request, next: Next) -> Response {
    let is_open = OPEN_PATHS.contains(&request.uri().path());
    let verdict = match &api.config.jobmanager.rest_token {
        _ if is_open => Ok(()),
        Some(token) => check_token(request.headers(), token),
        None => check_origin(request.headers()),
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.closing().into_response(),
    }
}

fn check_token(headers: &HeaderMap, token: &str) -> Result<(), Refusal> {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    if given.is_some_and(|given| equal_in_constant_time(given.trim(), token)) {
        return Ok(());
    }
    let message = match given {
        None => "this cluster asks for a token",
        Some(_) => "the token is not this cluster's",
    };
    Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", message).help(
        "send `Authorization: Bearer TOKEN`; on the command line, --token or the variable TIDEMILL_TOKEN",
    ))
}

/// Takes as long for a wrong token as for the right one, so that nobody learns it letter by letter.
fn equal_in_constant_time(given: &str, token: &str) -> bool {
    let (given, token) = (
        blake3::hash(given.as_bytes()),
        blake3::hash(token.as_bytes()),
    );
    given == token
}

/// Without a token, the loopback address is the only protection, and a browser on this machine would lend it to any
/// page: by a request across origins, or by a name of the page's own that resolves to 127.0.0.1.
fn check_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &header::HeaderValue| value.to_str().ok())
    };
    let host = text(header::HOST).unwrap_or_default();
    let has_port = !host.ends_with(']');
    let name = host
        .rsplit_once(':')
        .filter(|_| has_port)
        .map_or(host, |(name, _)| name);
    let is_local = name == "localhost"
        || name
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok();
    let origin_is_ours =
        text(header::ORIGIN).is_none_or(|origin| origin.strip_prefix("http://") == Some(host));
    if is_local && origin_is_ours {
        return Ok(());
    }
    let message =
        "without a token only programs on this machine may ask, under its address or `localhost`";
    Err(
        Refusal::new(StatusCode::FORBIDDEN, "foreign-origin", message)
            .help("set jobmanager.rest_token"),
    )
}
