//! The `tidemill` binary as users call it, without a cluster.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn tidemill(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command.current_dir(directory).args(arguments);
    command
        .env_remove("TIDEMILL_JOBMANAGER")
        .env_remove("TIDEMILL_TOKEN");
    // Kept from one run of the tests to the next.
    command
        .env("CARGO_TARGET_DIR", env!("CARGO_TARGET_TMPDIR"))
        .env("CARGO_NET_OFFLINE", "true");
    command.output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn failure(output: &Output) -> (Option<i32>, String) {
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_new_job_passes_its_test_builds_and_can_be_inspected() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let said = stdout(&tidemill(directory.path(), &["new", "fresh-job"]));
    assert!(said.contains("cd fresh-job"), "{said}");
    let job = directory.path().join("fresh-job");
    let mut tests = Command::new(env!("CARGO"));
    tests.args(["test", "--offline"]).current_dir(&job);
    tests
        .env("CARGO_TARGET_DIR", env!("CARGO_TARGET_TMPDIR"))
        .env_remove("RUSTFLAGS");
    let tested = stdout(&tests.output().expect("cargo runs"));
    assert!(tested.contains("1 passed"), "{tested}");

    let built = stdout(&tidemill(&job, &["build", "--profile", "dev"]));
    assert!(built.trim().ends_with("fresh_job.wasm"), "{built}");
    let inspected = stdout(&tidemill(
        &job,
        &["inspect", built.trim(), "--output", "json"],
    ));
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected["graph"]["name"], "fresh-job");
    assert_eq!(inspected["graph"]["parameters"][0]["name"], "input");
    assert_eq!(inspected["module"]["abi_version"], 1);
    let text = stdout(&tidemill(&job, &["inspect", built.trim()]));
    assert!(text.contains("by the hash of the key"), "{text}");

    let again = failure(&tidemill(directory.path(), &["new", "fresh-job"]));
    assert!(
        again.0 == Some(1) && again.1.contains("exists already"),
        "{again:?}"
    );
}

#[test]
fn what_is_no_module_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("page.html"), "<html>").expect("a writable directory");
    let (code, error) = failure(&tidemill(directory.path(), &["inspect", "page.html"]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains("page.html") && error.contains("not a WebAssembly module"),
        "{error}"
    );
    let (code, error) = failure(&tidemill(directory.path(), &["run", "missing.wasm"]));
    assert_eq!(code, Some(2));
    assert!(
        error.contains("missing.wasm") && error.contains("tidemill build"),
        "{error}"
    );
}

#[test]
fn errors_have_their_exit_codes_and_json() {
    let here = Path::new(".");
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port");
    let (code, error) = failure(&tidemill(
        here,
        &[
            "list",
            "--jobmanager",
            &free.to_string(),
            "--output",
            "json",
        ],
    ));
    assert_eq!(code, Some(4));
    let error: Value = serde_json::from_str(&error).expect("JSON");
    assert!(
        error["error"]["message"]
            .as_str()
            .is_some_and(|message| message.contains(&free.to_string()))
    );
    let (code, error) = failure(&tidemill(
        here,
        &["jobmanager", "--set", "jobmanager.rest_adress=x"],
    ));
    assert_eq!(code, Some(2));
    assert!(
        error.contains("did you mean `jobmanager.rest_address`"),
        "{error}"
    );
    let (code, error) = failure(&tidemill(
        here,
        &["taskmanager", "--set", "tls.dir=/nowhere"],
    ));
    assert_eq!(code, Some(1));
    assert!(error.contains("tidemill certs --out"), "{error}");
    let (code, error) = failure(&tidemill(
        here,
        &["nodes", "--jobmanager", "https://somewhere"],
    ));
    assert_eq!(code, Some(2));
    assert!(error.contains("only http"), "{error}");
    let (code, error) = failure(&tidemill(
        here,
        &["taskmanager", "--jobmanager", "somewhere:7420"],
    ));
    assert_eq!(code, Some(2));
    assert!(error.contains("taskmanager.jobmanagers"), "{error}");
}

#[test]
fn completions_know_every_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&tidemill(Path::new("."), &["completions", shell]));
        assert!(
            script.contains("checkpoints") && script.contains("parallelism"),
            "{shell}"
        );
    }
}
