//! What goes wrong inside a job: each failure is told by name with its remedy, and the processes and the other jobs go on
//! as if nothing had happened.

use std::process::Output;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::{Cluster, ClusterOptions, module};

use crate::command_line::{owned, says, shown, text};
use crate::common::{counting, finish_untouched, word_count};

/// The exit codes of `tidemill run` for a job that fails and one that is refused.
const FAILED: Option<i32> = Some(1);
const REFUSED: Option<i32> = Some(5);

/// The job `faulty`, one task in each stage, run to its end by the command line.
fn run_faulty(cluster: &Cluster, name: &str, fault: &str, more: &[&str]) -> anyhow::Result<Output> {
    let output = cluster.directory().join(name);
    let mut all = owned(&[
        "run",
        module("faulty")?.to_str().context("a path in UTF-8")?,
    ]);
    all.extend(owned(&[
        "--name",
        name,
        "--param",
        &format!("fault={fault}"),
    ]));
    all.extend(owned(&["--param", &format!("output={}", output.display())]));
    all.extend(owned(more));
    cluster.run(&all)
}

/// What [`run_faulty`] says of a job that ends in this way.
fn fails(
    cluster: &Cluster,
    code: Option<i32>,
    name: &str,
    fault: &str,
    more: &[&str],
) -> anyhow::Result<String> {
    let output = run_faulty(cluster, name, fault, more)?;
    let said = text(&output);
    let ended = output.status;
    ensure!(ended.code() == code, "{name} ended with {ended}: {said}");
    Ok(said)
}

#[test]
fn a_panic_fails_its_own_job_with_message_and_place() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let healthy = word_count(&cluster, "healthy", 6)?;
    let panic = [
        "(generator → misbehave)",
        "panicked at examples-wasm/faulty/src/lib.rs:",
        "record 1000 was never expected",
    ];

    let said = fails(&cluster, FAILED, "once", "panic", &["--restart", "none"])?;
    says(&said, &panic)?;
    let more = [
        "once failed",
        "task 0/0",
        "its restart strategy is `none`",
        "faulty::complain",
        "tidemill::rt::process",
        "`tidemill info",
        "`tidemill logs",
    ];
    says(&said, &more)?;
    let info = shown(&cluster, &["info", "once"])?;
    says(&info, &panic)?;
    says(&info, &["failed (", "faulty::complain"])?;
    let log = shown(&cluster, &["logs", "once", "--task", "0/0"])?;
    says(&log, &["panic", panic[1], panic[2]])?;

    let twice = [
        "--restart",
        "fixed-delay",
        "--set",
        "restart.fixed_delay_attempts=2",
        "--set",
        "restart.fixed_delay_ms=0",
    ];
    let said = fails(&cluster, FAILED, "again", "panic", &twice)?;
    says(&said, &panic)?;
    says(&said, &["its 2 restarts are used up"])?;
    let info = shown(&cluster, &["info", "again", "--output", "json"])?;
    let detail: Value = serde_json::from_str(&info)?;
    ensure!(
        detail["status"] == "failed" && detail["restarts"] == 2,
        "{detail}"
    );
    let recoveries = detail["recoveries"].as_array().map(Vec::len);
    ensure!(recoveries == Some(2), "each restart is told: {detail}");

    finish_untouched(&healthy, &mut cluster)?;
    cluster.shut_down()
}

#[test]
fn an_operator_without_bounds_is_stopped_at_its_limit() -> anyhow::Result<()> {
    let options = ClusterOptions::default()
        .set("taskmanager.memory_max_bytes", 32 << 20)
        .set("taskmanager.call_deadline_ms", 2_000)
        .set("taskmanager.call_output_max_bytes", 1 << 20);
    let mut cluster = Cluster::start(options)?;
    let healthy = word_count(&cluster, "healthy", 10)?;
    let raise = "or raise the limit";
    let faults: [(&str, [&str; 4]); 4] = [
        (
            "allocate",
            [
                "and may have 33554432",
                "memory_max_bytes",
                raise,
                "faulty::hoard",
            ],
        ),
        (
            "loop",
            ["longer than 2s", "call_deadline_ms", raise, "faulty::spin"],
        ),
        (
            "recurse",
            [
                "overflowed the stack (",
                " bytes)",
                "recurse less",
                "faulty::recurse",
            ],
        ),
        (
            "emit",
            [
                "more than 1048576 bytes",
                "call_output_max_bytes",
                raise,
                "Context::emit",
            ],
        ),
    ];
    for (fault, words) in faults {
        let said = fails(&cluster, FAILED, fault, fault, &["--restart", "none"])?;
        let failed = format!("{fault} failed");
        let everywhere = ["task 0/0 (generator → misbehave)", "tidemill_process"];
        says(&said, &[&failed])?;
        let info = shown(&cluster, &["info", fault])?;
        for told in [&said, &info] {
            says(told, &words)?;
            says(told, &everywhere)?;
        }
        says(&shown(&cluster, &["logs", fault])?, &words[..3])?;
    }
    finish_untouched(&healthy, &mut cluster)?;
    cluster.shut_down()
}

#[test]
fn a_job_function_that_gives_no_graph_is_refused() -> anyhow::Result<()> {
    let options = ClusterOptions::default()
        .set("jobmanager.describe_deadline_ms", 1_000)
        .set("jobmanager.describe_memory_max_bytes", 32 << 20);
    let mut cluster = Cluster::start(options)?;
    let healthy = word_count(&cluster, "healthy", 8)?;
    let faults: [(&str, &[&str]); 4] = [
        (
            "describe-panic",
            &[
                "panicked at examples-wasm/faulty/src/lib.rs:",
                "this graph was never meant to be",
                "faulty::faulty",
            ],
        ),
        (
            "describe-allocate",
            &["and may have 33554432", "memory_max_bytes", "faulty::hoard"],
        ),
        (
            "describe-loop",
            &["longer than 1s", "must only describe", "faulty::spin"],
        ),
        (
            "describe-address",
            &["does not describe the same graph each time", "addresses"],
        ),
    ];
    for (fault, words) in faults {
        let said = fails(&cluster, REFUSED, fault, fault, &[])?;
        says(&said, words).with_context(|| fault)?;
    }
    let jobs = shown(&cluster, &["list", "--output", "json"])?;
    let jobs: Value = serde_json::from_str(&jobs)?;
    let only = jobs.as_array().or_else(|| jobs["jobs"].as_array());
    let only = only.with_context(|| format!("a list of jobs: {jobs}"))?;
    ensure!(only.len() == 1, "what is refused is no job: {jobs}");
    finish_untouched(&healthy, &mut cluster)?;
    cluster.shut_down()
}

#[test]
fn a_deployment_that_needs_too_much_exchange_memory_is_told_the_sum() -> anyhow::Result<()> {
    let (queue_bytes, memory_bytes) = (64_u64 << 10, 512_u64 << 10);
    let options = ClusterOptions {
        task_managers: 1,
        slots: 6,
        ..ClusterOptions::default()
    };
    let options = options
        .set("taskmanager.channel_queue_max_bytes", queue_bytes)
        .set("taskmanager.exchange_memory_max_bytes", memory_bytes);
    let mut cluster = Cluster::start(options)?;
    let wide = ["--restart", "none", "--parallelism", "4"];
    let said = fails(&cluster, FAILED, "wide", "none", &wide)?;
    // Each of four tasks that count hears each of four that generate.
    let channels = 4 * 4;
    let sum = [
        format!("{channels} channels"),
        format!("{} bytes", channels * queue_bytes),
        queue_bytes.to_string(),
        format!("taskmanager.exchange_memory_max_bytes = {memory_bytes}"),
        "lower the parallelism".to_owned(),
        "raise the limit".to_owned(),
    ];
    let sum: Vec<&str> = sum.iter().map(String::as_str).collect();
    says(&said, &sum)?;
    says(&shown(&cluster, &["info", "wide"])?, &sum)?;
    counting(&cluster, "narrow", 10_000, &[], &[])?.finish(&mut cluster)?;
    cluster.shut_down()
}
