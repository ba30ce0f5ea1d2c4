//! Savepoints and kept checkpoints, as a user takes, moves, checks, starts from and deletes them.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use tidemill_tests::oracle::records;
use tidemill_tests::{Cluster, ClusterOptions, module};

use crate::command_line::{Background, printed, refused, says, text};
use crate::common::{
    JOB_LIMIT, REACTION_LIMIT, Running, StateOptions, Stateful, keyed_count, keyed_count_with,
    wait_for_no_leftovers,
};

/// How long a job without a stop takes: long enough for a busy machine to ask for something while it runs.
const JOB_SECONDS: u64 = 6;

fn copy_directory(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_directory(&entry.path(), &to)?,
            false => drop(fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

/// Goes on with a job from a savepoint: its output must be what it would have been without a pause.
fn go_on(cluster: &mut Cluster, name: &str, path: &str) -> anyhow::Result<Running> {
    let running = keyed_count_with(cluster, name, JOB_SECONDS, &["--from-savepoint", path])?;
    let detail = running.finish(cluster)?;
    ensure!(
        detail["began_from"] == path,
        "it is told where it began: {detail}"
    );
    Ok(running)
}

#[test]
fn a_job_that_is_stopped_goes_on_from_its_savepoint_however_often_and_wherever_it_lies()
-> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let stopped = keyed_count(&cluster, "output", JOB_SECONDS)?;
    stopped
        .job
        .wait_for_checkpoints(&mut cluster, 2, REACTION_LIMIT)?;
    let path = printed(&cluster, &["stop", stopped.job.id(), "--savepoint"])?;
    stopped
        .job
        .wait_until(&mut cluster, "finished", REACTION_LIMIT)?;
    let before = records(&stopped.output)?.len() as u64;
    ensure!(
        (1..stopped.truth.records()).contains(&before),
        "it was stopped on its way: {before} records"
    );
    let aside = cluster.directory().join("aside");
    copy_directory(&stopped.output, &aside)?;

    printed(&cluster, &["savepoint", "verify", &path])?;
    for words in [&["savepoint", "list"][..], &["savepoint", "show", &path]] {
        let told = printed(&cluster, words)?;
        ensure!(told.contains(&path), "{words:?}: {told}");
    }
    go_on(&mut cluster, "output", &path)?;

    // It is whole wherever it lies, and the first one's deletion does not touch the copy.
    let store = cluster.directory().join("store");
    copy_directory(&store.join(&path), &store.join("moved/here"))?;
    printed(&cluster, &["savepoint", "delete", &path])?;
    refused(&cluster, &["savepoint", "show", &path])?;
    printed(&cluster, &["savepoint", "verify", "moved/here"])?;
    fs::remove_dir_all(&stopped.output)?;
    copy_directory(&aside, &stopped.output)?;
    go_on(&mut cluster, "output", "moved/here")?;
    go_on_elsewhere(&mut cluster, "moved/here", &aside)?;

    what_does_not_fit_is_refused(&cluster, &stopped, "moved/here")?;
    cluster.shut_down()
}

/// A job that writes to another directory puts there what the stopped one had not written.
fn go_on_elsewhere(cluster: &mut Cluster, path: &str, before: &Path) -> anyhow::Result<()> {
    let from = ["--from-savepoint", path];
    let running = keyed_count_with(cluster, "elsewhere", JOB_SECONDS, &from)?;
    running.job.wait_until(cluster, "finished", JOB_LIMIT)?;
    copy_directory(before, &running.output)?;
    running.truth.check(&running.output)
}

/// A job cannot begin from this savepoint with another module, from a damaged copy of it, or from nowhere.
fn what_does_not_fit_is_refused(
    cluster: &Cluster,
    stopped: &Running,
    path: &str,
) -> anyhow::Result<()> {
    // Inputs are looked at first.
    let input = cluster.directory().join("input");
    fs::write(&input, "words\n")?;
    let input = format!("input={}", input.display());
    let other = module("wordcount")?;
    let other = other.to_str().context("a path in UTF-8")?;
    let begin = |from: &str, words: &[&str]| {
        let run = ["run", other, "--from-savepoint", from, "--detach"];
        let more = ["--param", &input, "--param", "output=y"];
        let said = refused(cluster, &[&run[..], &more].concat())?;
        says(&said, words).with_context(|| from.to_owned())
    };
    let detail = stopped.job.detail()?;
    let hash = detail["module"].as_str().context("a hash")?;
    begin(path, &["module", hash])?;
    begin(
        "nowhere",
        &["no savepoint", "nowhere", "tidemill savepoint list"],
    )?;

    let store = cluster.directory().join("store");
    copy_directory(&store.join(path), &store.join("damaged/here"))?;
    let object = store.join("damaged/here/savepoint");
    let mut bytes = fs::read(&object)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&object, bytes)?;
    let damaged = ["damaged/here", "is damaged", "check the disk"];
    begin("damaged/here", &damaged)?;
    let said = refused(cluster, &["savepoint", "verify", "damaged/here"])?;
    says(&said, &damaged)?;

    let said = refused(cluster, &["savepoint", "no-such-job"])?;
    says(&said, &["no-such-job", "tidemill list"])?;
    let said = refused(cluster, &["savepoint", stopped.job.id()])?;
    says(&said, &[stopped.job.id(), "finished"])
}

#[test]
fn a_job_runs_on_while_a_savepoint_is_taken_of_it() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let state = StateOptions {
        name: "rows",
        mib: 4,
        tasks: 2,
        writes: 500,
        seconds: JOB_SECONDS,
        has_exchange: true,
        more: &[],
    };
    let original = Stateful::submit(&cluster, &state)?;
    original
        .job
        .wait_for_checkpoints(&mut cluster, 1, REACTION_LIMIT)?;
    let path = printed(
        &cluster,
        &["savepoint", original.job.id(), "kept/by-its-user"],
    )?;
    ensure!(path.ends_with("kept/by-its-user"), "{path}");
    let again = refused(&cluster, &["savepoint", original.job.id(), &path])?;
    // Nothing is overwritten.
    says(&again, &[&path, "another"])?;
    original.finish(&mut cluster)?;
    wait_for_no_leftovers(&mut cluster, &original.job)?;

    // Its tables go on from the savepoint, and end as all tables do.
    fs::remove_dir_all(&original.output)?;
    let more = ["--from-savepoint", &path];
    let later = StateOptions {
        more: &more,
        ..state
    };
    let later = Stateful::submit(&cluster, &later)?;
    later.job.wait_until(&mut cluster, "finished", JOB_LIMIT)?;
    let rows = records(&later.output)?;
    later.tables.check_ends(&rows)?;
    ensure!(
        (rows.len() as u64) < later.tables.rows(),
        "what was before the savepoint does not come again"
    );
    cluster.shut_down()
}

#[test]
fn a_cancelled_job_leaves_its_last_checkpoint_if_that_is_wished() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let keep = &["--retain-on-cancel"];
    let cancelled = keyed_count_with(&cluster, "output", JOB_SECONDS, keep)?;
    cancelled
        .job
        .wait_for_checkpoints(&mut cluster, 3, REACTION_LIMIT)?;
    cancelled.job.cancel(&cluster)?;
    let detail = cancelled
        .job
        .wait_until(&mut cluster, "cancelled", REACTION_LIMIT)?;
    let kept = detail["kept_checkpoint"].as_str();
    let kept = kept.with_context(|| format!("it is told where it is: {detail}"))?;
    printed(&cluster, &["savepoint", "verify", kept])?;
    let resumed = keyed_count_with(&cluster, "output", JOB_SECONDS, &["--from-savepoint", kept])?;
    resumed
        .job
        .wait_until(&mut cluster, "finished", JOB_LIMIT)?;
    resumed.truth.check(&resumed.output)?;
    printed(&cluster, &["savepoint", "delete", kept])?;
    wait_for_no_leftovers(&mut cluster, &cancelled.job)?;
    cluster.shut_down()
}

#[test]
fn ctrl_c_leaves_a_savepoint_going_and_tells_how_to_come_back_to_it() -> anyhow::Result<()> {
    // The one checkpoint is that of the savepoint, and a TaskManager that is frozen is waited for.
    let options = ClusterOptions::default()
        .set("checkpoints.interval_ms", 0)
        .set("cluster.heartbeat_timeout_ms", 60_000);
    let mut cluster = Cluster::start(options)?;
    let running = keyed_count(&cluster, "output", JOB_SECONDS)?;
    let id = running.job.id();
    running
        .job
        .wait_until(&mut cluster, "running", REACTION_LIMIT)?;
    cluster.taskmanagers()[0].freeze()?;
    let asking = Background::start(&cluster, cluster.rest().url(), &["savepoint", id])?;
    cluster.wait_for("the savepoint to be under way", REACTION_LIMIT, |_| {
        let history = running.job.checkpoints()?["history"].to_string();
        Ok(history.contains("\"in-progress\"").then_some(()))
    })?;
    asking.interrupt()?;
    let interrupted = asking.wait(&mut cluster)?;
    let said = text(&interrupted);
    ensure!(
        interrupted.status.code() == Some(130),
        "{}: {said}",
        interrupted.status
    );
    says(&said, &["the savepoint goes on", id])?;
    let request = said.split("--request ").nth(1);
    let request = request.and_then(|rest| rest.split('`').next());
    let request = request.with_context(|| format!("the request's id is told: {said}"))?;

    cluster.taskmanagers()[0].thaw()?;
    let path = printed(&cluster, &["savepoint", id, "--request", request])?;
    printed(&cluster, &["savepoint", "verify", &path])?;
    running.finish(&mut cluster)?;
    cluster.shut_down()
}
