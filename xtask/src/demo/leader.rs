//! `cargo xtask demo --leader`: three JobManagers of which the leading one is killed in mid-run, tasks that do not notice,
//! and a result that is exact.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_zookeeper_ensemble::{Ensemble, Options};

use super::screen::{Screen, Tone, counted, thousands};
use super::{
    KILL_AT_PERCENT, LOOK_EVERY, SHOW_EVERY, SLOTS, Show, TASKMANAGERS, judge, submit, text_is,
};
use crate::cluster::Cluster;
use crate::cluster::rest::{list, number, text};
use crate::interrupt;

const JOBMANAGERS: u32 = 3;

/// A killed leader is replaced when its session has ended.
const SESSION_TIMEOUT_MS: &str = "2000";
const CONNECTION_TIMEOUT_MS: &str = "600";

/// How long a new leader, and then its first checkpoint, may take.
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn play(
    screen: &mut Screen,
    tidemill: &Path,
    module: &Path,
    input: &Path,
    directory: &Path,
) -> anyhow::Result<()> {
    let truth = fs::read_to_string(input)
        .with_context(|| format!("cannot read the text, {}", input.display()))?;
    let lines = truth.lines().count() as u64;
    let output = directory.join("output");
    screen.line(
        Tone::Strong,
        "Word count under three JobManagers, the leading one of which is about to be killed",
    );
    screen.line(Tone::Plain, "");
    // Ends after everything that uses it.
    let zookeeper = Ensemble::start(Options::with_servers(1))?;
    screen.event(Tone::Plain, "started", "ZooKeeper");
    let mut cluster = start(screen, tidemill, directory, &zookeeper)?;
    let job = submit(screen, &cluster, module, input, &output, lines)?;
    let mut show = Show {
        screen,
        lines,
        next: Instant::now(),
        begun: false,
    };
    let before = show.watch(&mut cluster, &job, |detail| {
        let read = number(detail, "records_in")?;
        let checkpoints = number(detail, "checkpoints_completed")?;
        Ok(read * 100 >= lines * KILL_AT_PERCENT && checkpoints >= 2)
    })?;
    let attempts = attempts(&before)?;
    replace_leader(show.screen, &mut cluster, &job, &before)?;
    show.next = Instant::now() + SHOW_EVERY;
    let after = show.watch(&mut cluster, &job, |detail| {
        Ok(text_is(detail, "status", "finished"))
    })?;
    tell_attempts(show.screen, &attempts, &after)?;
    judge(screen, &truth, &output)
}

fn start(
    screen: &mut Screen,
    tidemill: &Path,
    directory: &Path,
    zookeeper: &Ensemble,
) -> anyhow::Result<Cluster> {
    let servers = Value::from(zookeeper.addresses()).to_string();
    let settings = [
        ("cluster.coordination", "zookeeper"),
        ("zookeeper.servers", servers.as_str()),
        ("zookeeper.session_timeout_ms", SESSION_TIMEOUT_MS),
        ("zookeeper.connection_timeout_ms", CONNECTION_TIMEOUT_MS),
    ];
    let ids: Vec<String> = (1..=JOBMANAGERS)
        .map(|number| format!("jm-{number}"))
        .collect();
    let mut cluster = Cluster::start_several(tidemill, directory, &settings, &ids)?;
    for process in cluster.jobmanagers() {
        let what = format!("JobManager  {}  process {}", process.name(), process.id());
        screen.event(Tone::Plain, "started", what);
    }
    for number in 1..=TASKMANAGERS {
        let process = cluster.start_taskmanager(&format!("tm-{number}"), SLOTS)?;
        let what = format!(
            "TaskManager {}  process {:<8} {SLOTS} slots",
            process.name(),
            process.id()
        );
        screen.event(Tone::Plain, "started", what);
    }
    let health = cluster.wait_for_leader(LIMIT)?;
    let epoch = number(&health, "epoch")?;
    screen.event(
        Tone::Plain,
        "elected",
        format!("{} leads in epoch {epoch}", cluster.leader()),
    );
    cluster.wait_for_taskmanagers()?;
    screen.event(Tone::Plain, "ready", "all TaskManagers have registered");
    Ok(cluster)
}

/// Kills the leader, and waits until the next one has published a checkpoint.
fn replace_leader(
    screen: &mut Screen,
    cluster: &mut Cluster,
    job: &str,
    before: &Value,
) -> anyhow::Result<()> {
    let name = cluster.kill_leader()?;
    let killed = Instant::now();
    let running = list(before, "tasks_detail")?
        .iter()
        .filter(|task| text_is(task, "status", "running"));
    let running = counted(running.count() as u64, "task");
    screen.event(
        Tone::Bad,
        "KILLED",
        format!("JobManager {name}, the leader, by SIGKILL, with {running} running"),
    );
    let health = cluster.wait_for_leader(LIMIT)?;
    let epoch = number(&health, "epoch")?;
    screen.event(
        Tone::Good,
        "took over",
        format!(
            "{} leads in epoch {epoch}, {} ms after the kill",
            cluster.leader(),
            killed.elapsed().as_millis()
        ),
    );
    let read_before = number(before, "records_in")?;
    let detail = look(cluster, job, "the tasks to report", |detail| {
        Ok(number(detail, "records_in")? > read_before)
    })?;
    screen.event(
        Tone::Good,
        "adopted",
        format!(
            "{} that had read {} lines more meanwhile",
            counted(list(&detail, "tasks_detail")?.len() as u64, "task"),
            thousands(number(&detail, "records_in")? - read_before)
        ),
    );
    let prefix = format!("{epoch}.");
    let detail = look(
        cluster,
        job,
        "the new leader's first checkpoint",
        |detail| {
            let last = detail["last_checkpoint"].as_str().unwrap_or_default();
            Ok(last.starts_with(&prefix))
        },
    )?;
    screen.event(
        Tone::Good,
        "committed",
        format!(
            "checkpoint {}, {} ms after the kill: its output is there",
            text(&detail, "last_checkpoint")?,
            killed.elapsed().as_millis()
        ),
    );
    Ok(())
}

/// Asks the leader about the job until `reached`.
fn look(
    cluster: &mut Cluster,
    job: &str,
    what: &str,
    reached: impl Fn(&Value) -> anyhow::Result<bool>,
) -> anyhow::Result<Value> {
    interrupt::wait_for(what, LIMIT, || {
        cluster.check()?;
        let detail = cluster.job(job)?;
        if reached(&detail)? {
            return Ok(Some(detail));
        }
        interrupt::pause(LOOK_EVERY)?;
        Ok(None)
    })
}

/// Which attempt of each task runs.
fn attempts(detail: &Value) -> anyhow::Result<BTreeMap<String, String>> {
    let tasks = list(detail, "tasks_detail")?.iter();
    tasks
        .map(|task| {
            Ok((
                text(task, "id")?.to_owned(),
                text(task, "attempt")?.to_owned(),
            ))
        })
        .collect()
}

fn tell_attempts(
    screen: &mut Screen,
    before: &BTreeMap<String, String>,
    detail: &Value,
) -> anyhow::Result<()> {
    let after = attempts(detail)?;
    ensure!(
        *before == after,
        "tasks were restarted: the attempts were {before:?} and are {after:?}"
    );
    let recoveries = list(detail, "recoveries")?.len();
    ensure!(recoveries == 0, "there were {recoveries} recoveries");
    screen.event(
        Tone::Good,
        "unbroken",
        format!(
            "each of {} ended in the attempt that it began with",
            counted(before.len() as u64, "task")
        ),
    );
    Ok(())
}
