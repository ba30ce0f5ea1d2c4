//! The API over real HTTP, in front of a driver that answers from fixed views.

mod access;
mod fixtures;
mod savepoints;
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};
use tidemill_config::{Config, Coordination};
use tidemill_coordination::{Connection, KnownLeader};
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef, Savepoint};
use tidemill_protocol::record::{JobManagerRecord, RestartStrategy};
use tidemill_protocol::{CheckpointId, Epoch, Incarnation, JobId, ModuleHash, TaskId};
use tokio::sync::{mpsc, oneshot, watch};
use utoipa::OpenApi;

use super::openapi::Description;
use super::{BindError, bind, metrics, serve};
use crate::handle::Request;
use crate::standing::{RegistryState, Standing};
use crate::views::*;
use crate::{
    CancelError, ClusterHandle, LogQuery, QueryError, SavepointError, SavepointInfo,
    SavepointListing, SavepointRequestId, SavepointStatus, SavepointStep, StoredSavepointError,
    SubmitError, SubmitOptions, UnusableSavepoint,
};

use fixtures::*;
use server::*;

/// Compares with the checked-in JSON; `UPDATE_GOLDEN=1` writes it instead.
fn check_golden(name: &str, found: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/rest/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let text = serde_json::to_string_pretty(found).expect("JSON") + "\n";
        fs::write(&path, text).expect("a writable source tree");
    }
    let expected =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let expected: Value = serde_json::from_str(&expected).expect("golden files are JSON");
    assert_eq!(
        found, &expected,
        "{name} has changed: if that is meant, run again with UPDATE_GOLDEN=1"
    );
}

#[test]
fn every_answer_has_the_documented_shape() {
    let server = Server::start(&[]);
    let paths = [
        ("jobs.json", "/v1/jobs".to_owned()),
        ("job.json", format!("/v1/jobs/{KNOWN}")),
        ("checkpoints.json", format!("/v1/jobs/{KNOWN}/checkpoints")),
        (
            "checkpoint.json",
            format!("/v1/jobs/{KNOWN}/checkpoints/3.17"),
        ),
        (
            "savepoint_request.json",
            format!("/v1/jobs/{KNOWN}/savepoints/{}", request_id()),
        ),
        ("savepoints.json", "/v1/savepoints".to_owned()),
        (
            "savepoint.json",
            "/v1/savepoints/savepoints%2Fbefore".to_owned(),
        ),
        ("logs.json", format!("/v1/jobs/{KNOWN}/logs")),
        ("nodes.json", "/v1/nodes".to_owned()),
        ("jobmanagers.json", "/v1/jobmanagers".to_owned()),
        ("health.json", "/health".to_owned()),
    ];
    for (golden, path) in paths {
        let answer = server.get(&path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        check_golden(golden, &answer.json());
    }
    let answer = server.upload("", b"\0asm");
    assert_eq!(answer.status, 201);
    assert_eq!(
        answer.headers["location"],
        format!("/v1/jobs/{KNOWN}").as_str()
    );
    check_golden("submitted.json", &answer.json());
    let answer = server.post(&format!("/v1/jobs/{KNOWN}/cancel"), None, b"");
    assert_eq!(answer.status, 202);
    check_golden("cancelled.json", &answer.json());
    check_golden(
        "problem.json",
        &server.get(&format!("/v1/jobs/{UNKNOWN}")).json(),
    );
}

#[test]
fn metrics_are_prometheus_text() {
    let server = Server::start(&[]);
    let answer = server.get("/metrics");
    assert_eq!(
        (answer.status, answer.headers["content-type"].to_str().ok()),
        (200, Some("text/plain; version=0.0.4; charset=utf-8"))
    );
    assert_eq!(answer.body, metrics::exposition(&metrics_view()));
    let has = |line: &str| {
        assert!(
            answer.body.lines().any(|found| found == line),
            "{line}\n{}",
            answer.body
        )
    };
    has("tidemill_slots_free 1");
    has("tidemill_jobmanager_role{role=\"leader\"} 1");
    has("tidemill_jobmanager_role{role=\"follower\"} 0");
    has("tidemill_registry_connected{kind=\"zookeeper\"} 1");
    has("tidemill_take_over_seconds{step=\"total\"} 0.03");
    has(&format!(
        "tidemill_job_restarts_total{{job=\"{KNOWN}\",job_name=\"word \\\"count\\\"\"}} 2"
    ));
    has(&format!(
        "tidemill_job_last_recovery_seconds{{job=\"{KNOWN}\",job_name=\"word \\\"count\\\"\",step=\"running\"}} 0.14"
    ));
    let job = format!("job=\"{KNOWN}\",job_name=\"word \\\"count\\\"\"");
    has(&format!(
        "tidemill_job_last_recovery_seconds{{{job},step=\"resume\"}} 0.0148"
    ));
    has(&format!(
        "tidemill_job_last_recovery_seconds{{{job},step=\"detect\"}} 0.3"
    ));
    has(&format!(
        "tidemill_job_tasks_restored_total{{{job},source=\"memory\"}} 6"
    ));
    has(&format!(
        "tidemill_job_checkpoints_unaligned_total{{{job}}} 2"
    ));
    has(&format!(
        "tidemill_job_last_checkpoint_dirty_bytes{{{job}}} 131072"
    ));
    // Every sample belongs to the family announced last, and no family is announced twice.
    let mut announced: Vec<&str> = Vec::new();
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap_or_default();
            assert!(!announced.contains(&name), "{name} twice");
            announced.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            assert_eq!(announced.last(), Some(&name), "{line}");
            let value = line.rsplit(' ').next().unwrap_or_default();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn a_submission_carries_its_options() {
    let server = Server::start(&["checkpoints.retained=5"]);
    let query = "?id=0102030405060708090a0b0c0d0e0f10&name=n&parallelism=4&max_parallelism=64&param=input=/a=b&param.output=%2Fout%20x\
                 &checkpoint_interval_ms=250&restart=fixed-delay&restart.fixed_delay_attempts=7\
                 &aligned_timeout_ms=0&retain_on_cancel=true&standby=true&from_savepoint=file:///sp/x";
    assert_eq!(server.upload(query, b"\0asm").status, 201);
    let options = server.submitted.lock().expect("no test panics here")[0].clone();
    let parameters = [("input", "/a=b"), ("output", "/out x")];
    let id: [u8; 16] = std::array::from_fn(|index| index as u8 + 1);
    let expected = SubmitOptions {
        id: Some(JobId(id)),
        name: Some("n".into()),
        parameters: parameters
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        parallelism: Some(4),
        max_parallelism: Some(64),
        checkpoint_interval_ms: Some(250),
        checkpoint_timeout_ms: Some(60_000),
        tolerable_failed_checkpoints: Some(10),
        retained_checkpoints: Some(5),
        restart: Some(RestartStrategy::FixedDelay {
            attempts: 7,
            delay_ms: 1000,
        }),
        aligned_checkpoint_timeout_ms: Some(0),
        retain_on_cancel: Some(true),
        standby: Some(true),
        from: Some("file:///sp/x".into()),
    };
    assert_eq!(options, expected);
}

#[test]
fn bad_options_are_named_and_nothing_is_submitted() {
    let server = Server::start(&[]);
    let refused = [
        (
            "?paralelism=4",
            "unknown-option",
            "did you mean `parallelism`",
        ),
        (
            "?colour=red",
            "unknown-option",
            "the options are id, name, parallelism",
        ),
        (
            "?parallelism=four",
            "bad-query",
            "`parallelism` must be a whole number",
        ),
        ("?parallelism=-1", "bad-query", "`-1`"),
        ("?parallelism=1&parallelism=2", "bad-query", "given 2 times"),
        ("?param=input", "bad-query", "param=name=value"),
        ("?param=a=1&param.a=2", "bad-query", "`a` is given twice"),
        (
            "?checkpoints.intervall_ms=1",
            "bad-option",
            "did you mean `checkpoints.interval_ms`",
        ),
        ("?checkpoints.retained=0", "bad-option", "at least 1"),
        ("?restart=sometimes", "bad-option", "exponential-delay"),
        ("?standby=maybe", "bad-option", "recovery.standby"),
        (
            "?checkpoints.savepoint_dir=x",
            "bad-option",
            "no setting `checkpoints.savepoint_dir`",
        ),
        ("?from_savepoint=", "bad-path", "names no place"),
        ("?from_savepoint=a/../b", "bad-path", "`..`"),
    ];
    for (query, code, words) in refused {
        let (status, found, message) = server.upload(query, b"\0asm").problem();
        assert_eq!((status, found.as_str()), (400, code), "{query}");
        assert!(message.contains(words), "{query}: {message}");
    }
    assert!(
        server
            .submitted
            .lock()
            .expect("no test panics here")
            .is_empty()
    );
}

#[test]
fn a_bad_upload_says_what_is_wrong_with_it() {
    let server = Server::start(&["jobmanager.module_bytes_max=16"]);
    let (status, code, message) = server.upload("", &[0; 17]).problem();
    assert_eq!((status, code.as_str()), (413, "module-too-large"));
    assert!(
        message.contains("17 bytes") && message.contains("16"),
        "{message}"
    );
    let (status, code, message) = server.post("/v1/jobs", Some("text/html"), b"<p>").problem();
    assert_eq!((status, code.as_str()), (415, "not-wasm"));
    assert!(
        message.contains("text/html") && message.contains("application/wasm"),
        "{message}"
    );
    assert_eq!(server.post("/v1/jobs", None, b"\0asm").problem().0, 415);
    assert_eq!(server.upload("", b"not a module").problem().0, 422);
    let (status, code, message) = server.upload("", b"same output").problem();
    assert_eq!((status, code.as_str()), (409, "output-in-use"));
    assert!(
        message.contains("/out") && message.contains(ENDED),
        "{message}"
    );
    assert_eq!(server.upload("", &[0; 16]).status, 201);
}

#[test]
fn an_upload_of_unknown_length_is_cut_at_the_limit() {
    let server = Server::start(&["jobmanager.module_bytes_max=16"]);
    let request = server
        .agent
        .post(format!("{}/v1/jobs", server.base))
        .content_type("application/wasm");
    let mut body: &[u8] = &[0; 17];
    let reader: &mut dyn std::io::Read = &mut body;
    let answer = read(
        request
            .send(ureq::SendBody::from_reader(reader))
            .expect("an answer"),
    );
    assert_eq!(answer.problem().1, "module-too-large");
}

#[test]
fn what_is_not_there_is_said_with_the_right_status() {
    let server = Server::start(&[]);
    let check = |answer: Answer, status, code: &str| {
        let (found_status, found, message) = answer.problem();
        assert_eq!((found_status, found.as_str()), (status, code), "{message}");
    };
    check(
        server.get(&format!("/v1/jobs/{UNKNOWN}")),
        404,
        "unknown-job",
    );
    check(
        server.get(&format!("/v1/jobs/{UNKNOWN}/checkpoints")),
        404,
        "unknown-job",
    );
    check(server.get("/v1/jobs/nonsense"), 400, "bad-job-id");
    check(
        server.get(&format!("/v1/jobs/{KNOWN}/checkpoints/9.9")),
        404,
        "unknown-checkpoint",
    );
    check(
        server.get(&format!("/v1/jobs/{KNOWN}/checkpoints/last")),
        400,
        "bad-checkpoint-id",
    );
    check(
        server.get(&format!("/v1/jobs/{KNOWN}/logs?task=9/9")),
        404,
        "unknown-task",
    );
    check(
        server.get(&format!("/v1/jobs/{KNOWN}/logs?task=nine")),
        400,
        "bad-query",
    );
    check(
        server.get(&format!("/v1/jobs/{KNOWN}?verbose=1")),
        400,
        "unknown-option",
    );
    check(server.get("/v2"), 404, "no-such-path");
    check(server.post("/v1/nodes", None, b""), 405, "no-such-method");
    check(
        server.post(&format!("/v1/jobs/{ENDED}/cancel"), None, b""),
        409,
        "job-ended",
    );
    check(
        server.post(&format!("/v1/jobs/{UNKNOWN}/cancel"), None, b""),
        404,
        "unknown-job",
    );
}

#[test]
fn log_queries_reach_the_driver_within_bounds() {
    let server = Server::start(&[]);
    assert_eq!(
        server
            .get(&format!(
                "/v1/jobs/{KNOWN}/logs?task=1/0&after=x&limit=99999999"
            ))
            .status,
        200
    );
    assert_eq!(server.get(&format!("/v1/jobs/{KNOWN}/logs")).status, 200);
    let asked = server.asked.lock().expect("no test panics here").clone();
    assert_eq!(
        asked,
        [
            format!("logs {:?} Some(\"x\") 10000", Some(TaskId::new(1, 0))),
            "logs None None 1000".into()
        ]
    );
}

#[test]
fn the_api_stops_when_told() {
    let mut server = Server::start(&[]);
    assert_eq!(server.get("/health").status, 200);
    drop(server.stop.take());
    let served = server.served.take().expect("served once");
    server
        .runtime
        .block_on(served)
        .expect("no panic")
        .expect("a clean end");
}

#[test]
fn the_description_covers_every_path_and_resolves_its_references() {
    let server = Server::start(&[]);
    let description = server.get("/v1/openapi.json").json();
    assert_eq!(
        description,
        serde_json::to_value(Description::openapi()).expect("JSON")
    );
    let paths = description["paths"].as_object().expect("paths");
    let found: Vec<&str> = paths.keys().map(String::as_str).collect();
    let expected = [
        "/health",
        "/metrics",
        "/v1/jobmanagers",
        "/v1/jobs",
        "/v1/jobs/{job}",
        "/v1/jobs/{job}/cancel",
        "/v1/jobs/{job}/checkpoints",
        "/v1/jobs/{job}/checkpoints/{checkpoint}",
        "/v1/jobs/{job}/logs",
        "/v1/jobs/{job}/savepoints",
        "/v1/jobs/{job}/savepoints/{request}",
        "/v1/nodes",
        "/v1/savepoints",
        "/v1/savepoints/{path}",
        "/v1/savepoints/{path}/verify",
    ];
    assert_eq!(found, expected);
    assert!(paths["/v1/jobs"]["post"]["requestBody"]["content"]["application/wasm"].is_object());
    let mut references = Vec::new();
    collect_references(&description, &mut references);
    assert!(references.contains(&"#/components/schemas/JobDetail".to_owned()));
    for reference in references {
        let pointer = reference.trim_start_matches('#');
        assert!(
            description.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(
                fields
                    .get("$ref")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            fields
                .values()
                .for_each(|value| collect_references(value, found));
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_references(item, found)),
        _ => {}
    }
}

#[test]
fn views_survive_their_json() {
    let text = serde_json::to_string(&detail()).expect("JSON");
    assert_eq!(
        serde_json::from_str::<JobDetail>(&text).expect("its own JSON"),
        detail()
    );
    assert_eq!(
        json!({ "status": JobStatus::Waiting }),
        json!({ "status": "waiting" })
    );
}
