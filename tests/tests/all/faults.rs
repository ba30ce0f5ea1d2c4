//! What goes wrong inside a job, beneath the store, and between strangers: each failure is told by name with its remedy,
//! and the processes and the other jobs go on as if nothing had happened.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tidemill_tests::oracle::{RollingCounts, records};
use tidemill_tests::{Cluster, ClusterOptions, Job, module, tidemill};

use crate::common::{JOB_LIMIT, Running, files_below, word_count};

/// How long a cluster may take to notice something and act on it.
const REACTION_LIMIT: Duration = Duration::from_secs(30);

/// The exit codes of `tidemill run` for a job that fails and one that is refused.
const FAILED: Option<i32> = Some(1);
const REFUSED: Option<i32> = Some(5);

fn text(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    format!("{}{stderr}", String::from_utf8_lossy(&output.stdout))
}

fn says(said: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(said.contains(word), "`{word}` is not said:\n{said}");
    }
    Ok(())
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What a verb of the command line shows of a job.
fn shown(cluster: &Cluster, words: &[&str]) -> anyhow::Result<String> {
    let output = cluster.run(&owned(words))?;
    let said = text(&output);
    ensure!(output.status.success(), "{words:?} failed: {said}");
    Ok(said)
}

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

/// The job `faulty` without a fault but with these parameters, running.
fn counting(
    cluster: &Cluster,
    name: &str,
    count: u64,
    parameters: &[(&str, u64)],
    more: &[&str],
) -> anyhow::Result<Running> {
    let keys = 10;
    let output = cluster.directory().join(name);
    let mut all = owned(&["--name", name, "--parallelism", "1"]);
    all.extend(owned(&["--param", &format!("output={}", output.display())]));
    for (name, value) in [("count", count), ("keys", keys)].iter().chain(parameters) {
        all.extend(owned(&["--param", &format!("{name}={value}")]));
    }
    all.extend(owned(more));
    Ok(Running {
        job: cluster.submit(&module("faulty")?, &all)?,
        output,
        truth: RollingCounts::of_numbers(count, keys),
    })
}

/// Waits for the end of a job that no failure has touched.
fn finish_untouched(running: &Running, cluster: &mut Cluster) -> anyhow::Result<()> {
    let detail = running.finish(cluster)?;
    ensure!(
        detail["restarts"] == 0,
        "another job's failure is none of its own: {detail}"
    );
    Ok(())
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

/// A disk of a few MiB over a directory, as only root can make one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).ok()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(path.to_owned()));
        }
        eprintln!("skipped: a small disk can only be mounted by root");
        None
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all room that is left.
    fn fill(&self) -> anyhow::Result<()> {
        let mut filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.filler())?;
        loop {
            match filler.write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

#[test]
fn a_full_store_fails_checkpoints_by_name_until_there_is_room() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    // Beneath the running processes, which reach the store by its path.
    let Some(disk) = SmallDisk::mount(&cluster.directory().join("store"), "48m") else {
        return cluster.shut_down();
    };
    let parameters = [("rate", 3_000), ("ballast_bytes", 2 << 20)];
    let tolerate = |number: u32| format!("checkpoints.tolerable_failed={number}");
    let (patient, impatient) = (tolerate(1_000_000), tolerate(2));
    let survivor = counting(
        &cluster,
        "survivor",
        45_000,
        &parameters,
        &["--set", &patient],
    )?;
    let strict = ["--restart", "none", "--set", &impatient];
    let victim = counting(&cluster, "victim", 3_000_000, &parameters, &strict)?;
    for running in [&survivor, &victim] {
        running
            .job
            .wait_for_checkpoints(&mut cluster, 1, JOB_LIMIT)?;
    }

    let no_space = [
        "no space is left in the object store to write `checkpoints/",
        "free some, or move the store to a larger disk",
    ];
    let what = "the job that tolerates two failed checkpoints to fail";
    let detail = cluster.wait_for(what, JOB_LIMIT, |_| {
        disk.fill()?;
        let detail = victim.job.detail()?;
        Ok((detail["status"] == "failed").then_some(detail))
    })?;
    let message = detail["message"].as_str().unwrap_or_default();
    says(message, &["too many checkpoints failed in a row"])?;
    says(message, &no_space)?;
    ensure!(
        message.matches("os error 28").count() == 1,
        "the system's words are told once: {message}"
    );

    // Its objects are deleted now, which makes room for a checkpoint or two of the other.
    cluster.wait_for("a failed checkpoint of the other job", JOB_LIMIT, |_| {
        disk.fill()?;
        let failed = survivor.job.checkpoints()?["failed"].as_u64();
        Ok(failed.is_some_and(|failed| failed > 2).then_some(()))
    })?;
    says(&shown(&cluster, &["checkpoints", "survivor"])?, &no_space)?;
    says(&shown(&cluster, &["info", "survivor"])?, &no_space)?;
    let records_in = || -> anyhow::Result<u64> {
        let detail = survivor.job.detail()?;
        ensure!(detail["status"] == "running", "it goes on: {detail}");
        Ok(detail["records_in"].as_u64().unwrap_or(0))
    };
    let before = records_in()?;
    cluster.wait_for("records without checkpoints", REACTION_LIMIT, |_| {
        Ok((records_in()? > before).then_some(()))
    })?;
    disk.free()?;
    finish_untouched(&survivor, &mut cluster)?;
    let log = cluster.jobmanager().log();
    ensure!(
        !log.contains("stay for now"),
        "what is obsolete is deleted, and no clean-up gets in the way of another"
    );

    let checkpoints = cluster.directory().join("store/checkpoints");
    let what = "the ended jobs' checkpoints to be deleted";
    cluster.wait_for(what, REACTION_LIMIT, |_| {
        Ok((files_below(&checkpoints)? == 0).then_some(()))
    })?;
    disk.fill()?;
    let Err(refused) = word_count(&cluster, "late", 0) else {
        bail!("a job is acknowledged that could not be stored");
    };
    says(&format!("{refused:#}"), &["no space is left", "free some"])?;
    disk.free()?;
    word_count(&cluster, "late", 0)?.finish(&mut cluster)?;
    drop(disk);
    cluster.shut_down()
}

/// What happens to a stored object.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut,
    Flipped,
    Missing,
}

impl Damage {
    fn inflict(self, object: &Path) -> anyhow::Result<()> {
        let mut bytes = fs::read(object)?;
        let middle = bytes.len() / 2;
        match self {
            Self::Missing => return Ok(fs::remove_file(object)?),
            Self::Cut => bytes.truncate(middle),
            Self::Flipped => bytes[middle] ^= 0x10,
        }
        Ok(fs::write(object, bytes)?)
    }

    /// How it is told.
    fn words(self) -> &'static str {
        match self {
            Self::Cut => "it was cut or overwritten",
            Self::Flipped => "is damaged (",
            Self::Missing => "is missing from the object store",
        }
    }
}

/// The objects of a kind that a checkpoint, `epoch.counter`, has in the store.
pub(crate) fn objects(
    cluster: &Cluster,
    job: &Job,
    checkpoint: &str,
    kind: &str,
) -> anyhow::Result<Vec<PathBuf>> {
    let (epoch, counter) = checkpoint.split_once('.').context("epoch.counter")?;
    let directory = cluster
        .directory()
        .join("store/checkpoints")
        .join(job.id())
        .join(format!("{epoch:0>20}-{counter:0>20}"));
    let mut objects = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(kind) {
            objects.push(path);
        }
    }
    ensure!(!objects.is_empty(), "{checkpoint} has no {kind}");
    Ok(objects)
}

/// Checks that every key was counted through, each number at least once.
fn nothing_lost(running: &Running, count: u64, keys: u64) -> anyhow::Result<()> {
    let mut counted: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for record in records(&running.output)? {
        let number = |field: &str| {
            let number = record[field].as_u64();
            number.with_context(|| format!("{record} has no {field}"))
        };
        counted
            .entry(number("key")?)
            .or_default()
            .insert(number("count")?);
    }
    let truth = (0..keys).map(|key| (key, (1..=(count - key).div_ceil(keys)).collect()));
    ensure!(counted == truth.collect(), "the counts are not the truth");
    Ok(())
}

/// Ends every process at once, and returns the checkpoints that each job can go back to, oldest first.
fn kill_everything(cluster: &mut Cluster, jobs: &[&Running]) -> anyhow::Result<Vec<Vec<String>>> {
    for process in cluster.taskmanagers() {
        process.kill()?;
    }
    // Once nothing runs, no checkpoint is under way: what is retained then is what a new JobManager finds.
    let retained = |running: &&Running| -> anyhow::Result<Option<Vec<String>>> {
        let checkpoints = running.job.checkpoints()?;
        let under_way = |checkpoint: &Value| checkpoint["status"] == "in-progress";
        let history = checkpoints["history"].as_array().context("a history")?;
        if running.job.status()? != "waiting" || history.iter().any(under_way) {
            return Ok(None);
        }
        Ok(Some(serde_json::from_value(
            checkpoints["retained"].clone(),
        )?))
    };
    let all = cluster.wait_for("every job to wait", REACTION_LIMIT, |_| {
        jobs.iter()
            .map(retained)
            .collect::<anyhow::Result<Option<Vec<_>>>>()
    })?;
    cluster.jobmanager().kill()?;
    Ok(all)
}

#[test]
fn a_damaged_checkpoint_sends_its_job_back_to_the_one_before() -> anyhow::Result<()> {
    let options = ClusterOptions {
        slots: 4,
        ..ClusterOptions::default()
    };
    let options = options
        .set("checkpoints.interval_ms", 400)
        .set("cluster.adoption_timeout_ms", 500);
    let mut cluster = Cluster::start(options)?;
    let count = 12_000;
    let start = |name: &str| counting(&cluster, name, count, &[("rate", 1_000)], &[]);
    let mut damaged = Vec::new();
    for kind in [".segment", ".manifest", "metadata"] {
        for damage in [Damage::Cut, Damage::Flipped, Damage::Missing] {
            let running = start(&format!("{damage:?}-{}", kind.trim_matches('.')))?;
            damaged.push((running, kind, damage));
        }
    }
    let (untouched, ruined) = (start("untouched")?, start("ruined")?);
    let jobs: Vec<&Running> = damaged
        .iter()
        .map(|(running, _, _)| running)
        .chain([&untouched, &ruined])
        .collect();
    for running in &jobs {
        running
            .job
            .wait_for_checkpoints(&mut cluster, 3, JOB_LIMIT)?;
    }
    let retained = kill_everything(&mut cluster, &jobs)?;
    ensure!(
        retained.iter().all(|checkpoints| checkpoints.len() == 2),
        "two checkpoints are kept of each job: {retained:?}"
    );

    for ((running, kind, damage), checkpoints) in damaged.iter().zip(&retained) {
        let object = &objects(&cluster, &running.job, &checkpoints[1], kind)?[0];
        damage.inflict(object)?;
    }
    for checkpoint in &retained[jobs.len() - 1] {
        for object in objects(&cluster, &ruined.job, checkpoint, ".manifest")? {
            Damage::Flipped.inflict(&object)?;
        }
    }
    cluster.restart_jobmanager()?;
    cluster.restart_taskmanagers()?;

    for ((running, kind, damage), checkpoints) in damaged.iter().zip(&retained) {
        let detail = running
            .job
            .wait_until(&mut cluster, "finished", JOB_LIMIT)?;
        let told = format!(
            "checkpoint {} cannot be used, so the one before is",
            checkpoints[1]
        );
        let again = format!("start from checkpoint {}", checkpoints[0]);
        let events = detail["events"].to_string();
        says(&events, &[&told, damage.words(), kind, &again])
            .with_context(|| format!("{damage:?} {kind}"))?;
        nothing_lost(running, count, 10).with_context(|| format!("{damage:?} {kind}"))?;
    }
    let info = shown(&cluster, &["info", "Missing-metadata"])?;
    says(&info, &["cannot be used", "may appear again"])?;

    let end = cluster.wait_for("the ruined job's end", JOB_LIMIT, |_| {
        let detail = ruined.job.detail()?;
        Ok((detail["status"] == "failed").then_some(detail))
    })?;
    let message = end["message"].as_str().unwrap_or_default();
    says(message, &["no completed checkpoint is usable", ".manifest"])?;
    untouched.finish(&mut cluster)?;
    cluster.shut_down()
}

/// `tidemill` without the variables of a developer's own cluster.
fn tidemill_alone() -> anyhow::Result<Command> {
    let mut command = Command::new(tidemill()?);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEMILL_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// A process beside the cluster's own, which ends with this value.
struct Stranger {
    child: Child,
    log: PathBuf,
}

impl Stranger {
    /// A TaskManager with this cluster's configuration and another one's certificates.
    fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let directory = cluster.directory().join("stranger");
        fs::create_dir_all(&directory)?;
        let certificates = directory.join("tls");
        let path = certificates.to_str().context("a path in UTF-8")?;
        let certs = ["certs", "--out", path];
        let issued = tidemill_alone()?.args(certs).output()?;
        ensure!(issued.status.success(), "{}", text(&issued));
        let log = directory.join("stranger.log");
        let mut command = tidemill_alone()?;
        command
            .args(["taskmanager", "--config"])
            .arg(cluster.directory().join("tidemill.toml"));
        for setting in [
            "taskmanager.id=stranger".to_owned(),
            format!("taskmanager.data_dir={}", directory.display()),
            format!("taskmanager.jobmanagers={}", cluster.quic_address()),
            format!("tls.dir={path}"),
        ] {
            command.args(["--set", &setting]);
        }
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()?;
        Ok(Self { child, log })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_taskmanager_of_another_cluster_is_refused_and_both_say_so() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let healthy = word_count(&cluster, "healthy", 4)?;
    let mut stranger = Stranger::start(&cluster)?;
    let remedy = "give every process of a cluster a certificate of the same CA";
    cluster.wait_for("the stranger to say so", REACTION_LIMIT, |_| {
        Ok(stranger.log().contains(remedy).then_some(()))
    })?;
    cluster.wait_for("the JobManager to say so", REACTION_LIMIT, |cluster| {
        Ok(cluster.jobmanager().log().contains(remedy).then_some(()))
    })?;
    ensure!(
        stranger.child.try_wait()?.is_none(),
        "it goes on trying: {}",
        stranger.log()
    );
    let nodes = shown(&cluster, &["nodes"])?;
    ensure!(!nodes.contains("stranger"), "{nodes}");
    finish_untouched(&healthy, &mut cluster)?;
    cluster.shut_down()
}
