//! The paths under `/v1/jobs`.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tidemill_protocol::{CheckpointId, JobId, TaskId};
use utoipa::ToSchema;

use super::problem::Refusal;
use super::query::{NoOptions, Pairs};
use super::savepoints::check_path;
use super::{Api, Problem};
use crate::views::{
    CheckpointDetail, CheckpointsView, JobDetail, JobSummary, LogPage, SubmittedView,
};
use crate::{LogQuery, SubmitError, SubmitOptions};

/// What a module's upload is called.
const WASM_CONTENT_TYPE: &str = "application/wasm";
/// Log lines in a page, unless the request says otherwise, and at most.
const LOG_LINES_DEFAULT: u32 = 1_000;
const LOG_LINES_MAX: u32 = 10_000;

/// Every known job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// Newest first.
    pub jobs: Vec<JobSummary>,
}

/// The wish for a job's end is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CancelAccepted {
    /// Which job.
    pub id: String,
}

/// The job that the address of the request names, which need not be known.
pub(super) struct JobAt(pub(super) JobId);

impl<S: Send + Sync> FromRequestParts<S> for JobAt {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let job = Path::<String>::from_request_parts(parts, state).await;
        let Path(job) = job.map_err(|error| Refusal::bad_request("bad-job-id", error))?;
        Ok(Self(job_id(&job)?))
    }
}

/// Submits a job: the body is the module that `tidemill build` made. The job runs on when this answers.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs",
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    params(
        ("id" = Option<String>, Query, description = "The new job's id, 32 random hexadecimal digits: a submission that is sent again with the same one is answered again and not carried out twice"),
        ("name" = Option<String>, Query, description = "Instead of the job's own name"),
        ("parallelism" = Option<u32>, Query, description = "Tasks of each stage that does not fix its own number"),
        ("max_parallelism" = Option<u32>, Query, description = "Number of key groups, and the largest parallelism"),
        ("param" = Option<Vec<String>>, Query, description = "A parameter of the job as `name=value`; may be repeated. `param.name=value` does the same"),
        ("checkpoint_interval_ms" = Option<u64>, Query, description = "Short for checkpoints.interval_ms"),
        ("checkpoints.interval_ms" = Option<u64>, Query, description = "And every other key of the configuration's section [checkpoints]"),
        ("aligned_timeout_ms" = Option<u64>, Query, description = "Short for checkpoints.aligned_timeout_ms"),
        ("retain_on_cancel" = Option<bool>, Query, description = "Short for checkpoints.retain_on_cancel"),
        ("standby" = Option<bool>, Query, description = "Short for recovery.standby, the one key of the section [recovery]"),
        ("from_savepoint" = Option<String>, Query, description = "The savepoint or retained checkpoint to begin from: its path in the cluster's store, or its URL"),
        ("restart" = Option<String>, Query, description = "Short for restart.strategy"),
        ("restart.strategy" = Option<String>, Query, description = "And every other key of the configuration's section [restart]"),
    ),
    responses(
        (status = 201, description = "The job is stored and will run", body = SubmittedView),
        (status = 400, description = "An option is unknown or cannot be", body = Problem),
        (status = 401, description = "The token is missing or wrong", body = Problem),
        (status = 409, description = "Another job writes to the same place", body = Problem),
        (status = 413, description = "The module is too large", body = Problem),
        (status = 415, description = "The body is not called application/wasm", body = Problem),
        (status = 422, description = "The module, its graph, its connectors or what it is to begin from are refused", body = Problem),
        (status = 503, description = "The store or the JobManager does not answer", body = Problem),
    )
)]
pub(super) async fn submit(State(api): State<Api>, request: Request) -> Result<Response, Refusal> {
    let options = submit_options(&api, request.uri()).map_err(Refusal::closing)?;
    check_upload(&api, request.headers()).map_err(Refusal::closing)?;
    let _turn = api
        .uploads
        .acquire()
        .await
        .map_err(|_| crate::Unavailable)?;
    let max = api.config.jobmanager.module_bytes_max;
    let wasm = Bytes::from_request(request, &())
        .await
        .map_err(|rejection| unreadable_body(&rejection, max).closing())?;
    let submitted = api.cluster.submit(wasm, options).await?;
    let location = [(header::LOCATION, format!("/v1/jobs/{}", submitted.id))];
    Ok((StatusCode::CREATED, location, Json(submitted)).into_response())
}

/// Refuses what the headers alone condemn, before the body is asked for.
fn check_upload(api: &Api, headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &header::HeaderValue| value.to_str().ok())
    };
    let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some(WASM_CONTENT_TYPE) {
        let message = match content_type {
            "" => "the body has no content type".to_owned(),
            other => format!("the body is called `{other}`"),
        };
        return Err(
            Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-wasm", message).help(format!(
                "send the module itself with `Content-Type: {WASM_CONTENT_TYPE}`"
            )),
        );
    }
    let max = api.config.jobmanager.module_bytes_max;
    match text(header::CONTENT_LENGTH).and_then(|len| len.parse().ok()) {
        Some(len) if len > max => Err(SubmitError::TooLarge { len, max }.into()),
        _ => Ok(()),
    }
}

fn unreadable_body(rejection: &BytesRejection, max: u64) -> Refusal {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message =
            format!("the module has more than {max} bytes, which is what this cluster accepts");
        return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "module-too-large", message)
            .help("build it in release mode, strip debug information, or raise jobmanager.module_bytes_max");
    }
    Refusal::bad_request(
        "unreadable-body",
        format!("the upload broke off: {}", rejection.body_text()),
    )
}

/// Short names of keys of the configuration.
const SHORT_KEYS: [(&str, &str); 5] = [
    ("checkpoint_interval_ms", "checkpoints.interval_ms"),
    ("aligned_timeout_ms", "checkpoints.aligned_timeout_ms"),
    ("retain_on_cancel", "checkpoints.retain_on_cancel"),
    ("standby", "recovery.standby"),
    ("restart", "restart.strategy"),
];

fn submit_options(api: &Api, uri: &Uri) -> Result<SubmitOptions, Refusal> {
    let mut pairs = Pairs::of(uri)?;
    let id = match pairs.text("id")? {
        Some(text) => Some(job_id(&text)?),
        None => None,
    };
    let name = pairs.text("name")?;
    let parallelism = pairs.parsed("parallelism", "a whole number from 1")?;
    let max_parallelism = pairs.parsed("max_parallelism", "a whole number from 1")?;
    let from = pairs.text("from_savepoint")?;
    if let Some(from) = &from {
        check_path(from)?;
    }
    let parameters = parameters(&mut pairs)?;
    let settings = settings(&mut pairs)?;
    let mut known = vec![
        "id",
        "name",
        "parallelism",
        "max_parallelism",
        "param",
        "from_savepoint",
    ];
    known.extend(SHORT_KEYS.iter().flat_map(|(short, key)| [*short, *key]));
    pairs.finish(&known)?;
    let config = api
        .config
        .for_job(settings)
        .map_err(|error| Refusal::bad_request("bad-option", error))?;
    let checkpoints = config.checkpoints;
    Ok(SubmitOptions {
        id,
        name,
        parameters,
        parallelism,
        max_parallelism,
        checkpoint_interval_ms: Some(checkpoints.interval_ms),
        checkpoint_timeout_ms: Some(checkpoints.timeout_ms),
        tolerable_failed_checkpoints: Some(checkpoints.tolerable_failed),
        retained_checkpoints: Some(checkpoints.retained),
        restart: Some(config.restart.strategy()),
        aligned_checkpoint_timeout_ms: Some(checkpoints.aligned_timeout_ms),
        retain_on_cancel: Some(checkpoints.retain_on_cancel),
        standby: Some(config.recovery.standby),
        from,
    })
}

/// Keys of the configuration that a job may choose, with their values.
fn settings(pairs: &mut Pairs) -> Result<Vec<(String, String)>, Refusal> {
    let mut settings = Vec::new();
    for (short, key) in SHORT_KEYS {
        settings.extend(pairs.text(short)?.map(|value| (key.to_owned(), value)));
    }
    for section in ["checkpoints.", "recovery.", "restart."] {
        let keys = pairs.with_prefix(section)?;
        settings.extend(
            keys.into_iter()
                .map(|(key, value)| (format!("{section}{key}"), value)),
        );
    }
    Ok(settings)
}

fn parameters(pairs: &mut Pairs) -> Result<BTreeMap<String, String>, Refusal> {
    let mut given = pairs.with_prefix("param.")?;
    for text in pairs.all("param") {
        let Some((name, value)) = text.split_once('=') else {
            let message = format!("`param={text}` is not of the form param=name=value");
            return Err(Refusal::bad_request("bad-query", message));
        };
        given.push((name.to_owned(), value.to_owned()));
    }
    let mut parameters = BTreeMap::new();
    for (name, value) in given {
        if parameters.insert(name.clone(), value).is_some() {
            let message = format!("the parameter `{name}` is given twice");
            return Err(Refusal::bad_request("bad-query", message));
        }
    }
    Ok(parameters)
}

/// Every known job.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs",
    responses((status = 200, body = JobList), (status = 503, body = Problem))
)]
pub(super) async fn list(State(api): State<Api>, _: NoOptions) -> Result<Json<JobList>, Refusal> {
    let jobs = api.cluster.jobs().await?;
    Ok(Json(JobList { jobs }))
}

/// Everything about one job.
#[utoipa::path(
    get, path = "/v1/jobs/{job}", tag = "jobs",
    params(("job" = String, Path, description = "The job's id")),
    responses((status = 200, body = JobDetail), (status = 404, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn info(
    State(api): State<Api>,
    JobAt(job): JobAt,
    _: NoOptions,
) -> Result<Json<JobDetail>, Refusal> {
    Ok(Json(api.cluster.job(job).await?))
}

/// Asks for a job's end, which comes soon after. Repeating it does no harm.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/cancel", tag = "jobs",
    params(("job" = String, Path, description = "The job's id")),
    responses(
        (status = 202, description = "The wish is stored", body = CancelAccepted),
        (status = 404, body = Problem),
        (status = 409, description = "The job has ended already", body = Problem),
        (status = 503, body = Problem),
    )
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    JobAt(job): JobAt,
    _: NoOptions,
) -> Result<(StatusCode, Json<CancelAccepted>), Refusal> {
    api.cluster.cancel(job).await?;
    let id = job.to_string();
    Ok((StatusCode::ACCEPTED, Json(CancelAccepted { id })))
}

/// A job's checkpoints.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/checkpoints", tag = "jobs",
    params(("job" = String, Path, description = "The job's id")),
    responses((status = 200, body = CheckpointsView), (status = 404, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn checkpoints(
    State(api): State<Api>,
    JobAt(job): JobAt,
    _: NoOptions,
) -> Result<Json<CheckpointsView>, Refusal> {
    Ok(Json(api.cluster.checkpoints(job).await?))
}

/// One of a job's last checkpoints, task by task.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/checkpoints/{checkpoint}", tag = "jobs",
    params(
        ("job" = String, Path, description = "The job's id"),
        ("checkpoint" = String, Path, description = "The checkpoint's id, `epoch.counter`"),
    ),
    responses((status = 200, body = CheckpointDetail), (status = 400, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn checkpoint(
    State(api): State<Api>,
    Path((job, checkpoint)): Path<(String, String)>,
    _: NoOptions,
) -> Result<Json<CheckpointDetail>, Refusal> {
    let job = job_id(&job)?;
    let checkpoint: CheckpointId = checkpoint.parse().map_err(|error| {
        Refusal::bad_request("bad-checkpoint-id", error)
            .help(format!("GET /v1/jobs/{job}/checkpoints lists them"))
    })?;
    Ok(Json(api.cluster.checkpoint(job, checkpoint).await?))
}

/// What a job's tasks have written, with what their TaskManagers say about them.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/logs", tag = "jobs",
    params(
        ("job" = String, Path, description = "The job's id"),
        ("task" = Option<String>, Query, description = "One task, `stage/subtask`"),
        ("after" = Option<String>, Query, description = "The `next` of an earlier page: only what came after it"),
        ("limit" = Option<u32>, Query, description = "At most this many lines of each TaskManager, the newest; 1000 unless given, at most 10000"),
    ),
    responses((status = 200, body = LogPage), (status = 400, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn logs(
    State(api): State<Api>,
    JobAt(job): JobAt,
    mut pairs: Pairs,
) -> Result<Json<LogPage>, Refusal> {
    let task: Option<TaskId> = pairs.parsed("task", "of the form stage/subtask, such as 1/0")?;
    let after = pairs.text("after")?;
    let limit = pairs
        .parsed("limit", "a whole number")?
        .unwrap_or(LOG_LINES_DEFAULT);
    pairs.finish(&["task", "after", "limit"])?;
    let query = LogQuery {
        task,
        after,
        limit: limit.min(LOG_LINES_MAX),
    };
    Ok(Json(api.cluster.logs(job, query).await?))
}

pub(super) fn job_id(text: &str) -> Result<JobId, Refusal> {
    text.parse().map_err(|error| {
        Refusal::bad_request("bad-job-id", error).help("GET /v1/jobs lists every job with its id")
    })
}
