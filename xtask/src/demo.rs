//! `cargo xtask demo`: a job on three TaskManagers, one of which is killed in mid-run, and a result that is exact; or, with
//! `--leader`, a JobManager that is killed.
//!
//! It never takes a short cut: the processes, the command line, the REST API and the certificates are those of a user.
//! It never leaves a process behind.

mod leader;
mod recording;
mod screen;
mod truth;

use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::cluster::rest::{list, number, text};
use crate::workspace::Workspace;
use crate::{binary, build_wasm, interrupt, setup};
use screen::{Screen, Tone, counted, thousands};
use truth::{Output, Truth};

/// The text whose words are counted.
const INPUT: &str = "examples-wasm/data/shakespeare.txt";

/// Any two of the TaskManagers have slots for the whole job.
const TASKMANAGERS: u32 = 3;
const SLOTS: u32 = 2;
const PARALLELISM: u64 = 4;

/// How long the job is made to take, by slowing its source.
const RUN_SECONDS: u64 = 16;

/// How much of the text has been read when the TaskManager dies, in percent.
const KILL_AT_PERCENT: u64 = 40;

/// After this the demo has failed.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// How often the state is asked for, and how often it is shown.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// How the demo runs.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kill the leader of three JobManagers instead of a TaskManager.
    #[arg(long)]
    leader: bool,

    /// Keep the directory with the output, the checkpoints and the logs.
    #[arg(long)]
    keep: bool,

    /// Write what the demo showed to this file, as an animated SVG.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// Builds what is needed and runs the demo.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.leader {
        setup::ensure_zookeeper()?;
    }
    let modules = build_wasm::build(workspace, &["wordcount".to_owned()])?;
    let module = modules.first().context("no module was built")?;
    let tidemill = binary::build(workspace)?;
    let input = workspace.root().join(INPUT);

    interrupt::watch();
    let directory = scratch_directory()?;
    let mut screen = Screen::new();
    let play = if arguments.leader { leader::play } else { play };
    let result = play(&mut screen, &tidemill, module, &input, &directory);
    match result {
        Ok(()) if arguments.keep => println!("kept: {}", directory.display()),
        Ok(()) => fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?,
        Err(error) => {
            return Err(error.context(format!(
                "the demo failed; logs, output and checkpoints are in {}",
                directory.display()
            )));
        }
    }
    if let Some(path) = &arguments.record {
        let command = match arguments.leader {
            true => "cargo xtask demo --leader",
            false => "cargo xtask demo",
        };
        let svg = recording::svg(command, screen.shown());
        fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A new directory that only this user can read, since private keys will be in it.
fn scratch_directory() -> anyhow::Result<PathBuf> {
    let path = env::temp_dir().join(format!("tidemill-demo-{}", process::id()));
    DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

fn play(
    screen: &mut Screen,
    tidemill: &Path,
    module: &Path,
    input: &Path,
    directory: &Path,
) -> anyhow::Result<()> {
    let text = fs::read_to_string(input)
        .with_context(|| format!("cannot read the text, {}", input.display()))?;
    let lines = text.lines().count() as u64;
    let output = directory.join("output");

    let mut cluster = start(screen, tidemill, directory)?;
    let job = submit(screen, &cluster, module, input, &output, lines)?;
    let mut show = Show {
        screen,
        lines,
        next: Instant::now(),
        begun: false,
    };
    let detail = show.watch(&mut cluster, &job, |detail| {
        let read = number(detail, "records_in")?;
        let checkpoints = number(detail, "checkpoints_completed")?;
        Ok(read * 100 >= lines * KILL_AT_PERCENT && checkpoints >= 2)
    })?;
    let killed_at_ms = kill(show.screen, &mut cluster, &detail)?;
    let detail = show.watch(&mut cluster, &job, |detail| {
        let recoveries = list(detail, "recoveries")?;
        Ok(recoveries
            .last()
            .is_some_and(|recovery| recovery["running_after_us"].is_u64()))
    })?;
    tell_recovery(show.screen, &detail, killed_at_ms)?;
    // Until every TaskManager has reported what its new tasks have read.
    show.next = Instant::now() + SHOW_EVERY;
    show.watch(&mut cluster, &job, |detail| {
        Ok(text_is(detail, "status", "finished"))
    })?;
    judge(screen, &text, &output)?;
    ensure!(
        screen.elapsed() < RUN_LIMIT,
        "the result is right, but took longer than {} s",
        RUN_LIMIT.as_secs()
    );
    Ok(())
}

fn start(screen: &mut Screen, tidemill: &Path, directory: &Path) -> anyhow::Result<Cluster> {
    screen.line(
        Tone::Strong,
        "Word count on three TaskManagers, one of which is about to be killed",
    );
    screen.line(Tone::Plain, "");
    let mut cluster = Cluster::start(tidemill, directory, &[])?;
    screen.event(
        Tone::Plain,
        "started",
        format!(
            "JobManager        process {:<8} {}",
            cluster.jobmanager().id(),
            cluster.rest().url()
        ),
    );
    for number in 1..=TASKMANAGERS {
        let process = cluster.start_taskmanager(&format!("tm-{number}"), SLOTS)?;
        let what = format!(
            "TaskManager {}  process {:<8} {SLOTS} slots",
            process.name(),
            process.id()
        );
        screen.event(Tone::Plain, "started", what);
    }
    cluster.wait_for_taskmanagers()?;
    screen.event(
        Tone::Plain,
        "ready",
        "all have registered, with certificates made for this run",
    );
    Ok(cluster)
}

/// Submits the job, slowed so that it takes [`RUN_SECONDS`], and returns its id.
fn submit(
    screen: &mut Screen,
    cluster: &Cluster,
    module: &Path,
    input: &Path,
    output: &Path,
    lines: u64,
) -> anyhow::Result<String> {
    let rate = lines.div_ceil(PARALLELISM * RUN_SECONDS);
    let parallelism = PARALLELISM.to_string();
    let [input, output, rate] = [
        format!("input={}", input.display()),
        format!("output={}", output.display()),
        format!("rate={rate}"),
    ];
    let arguments = [
        "--parallelism",
        &parallelism,
        "--param",
        &input,
        "--param",
        &output,
        "--param",
        &rate,
    ];
    let id = cluster.submit(module, &arguments)?;
    let kib = fs::metadata(module)?.len().div_ceil(1024);
    screen.event(
        Tone::Plain,
        "submitted",
        format!("wordcount.wasm, {kib} KiB, at parallelism {PARALLELISM}; job {id}"),
    );
    Ok(id)
}

/// Kills the TaskManager that runs the most tasks and returns when, in milliseconds since the Unix epoch.
fn kill(screen: &mut Screen, cluster: &mut Cluster, detail: &Value) -> anyhow::Result<u64> {
    let mut victim = (0, String::new());
    for process in cluster.taskmanagers() {
        let tasks = list(detail, "tasks_detail")?.iter().filter(|task| {
            text_is(task, "task_manager", process.name()) && text_is(task, "status", "running")
        });
        victim = victim.max((tasks.count() as u64, process.name().to_owned()));
    }
    let (tasks, id) = victim;
    ensure!(tasks > 0, "no TaskManager runs a task: {detail}");
    let at_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    cluster.kill_taskmanager(&id)?;
    screen.event(
        Tone::Bad,
        "KILLED",
        format!(
            "TaskManager {id} by SIGKILL, with {} running on it",
            counted(tasks, "task")
        ),
    );
    Ok(u64::try_from(at_ms.as_millis())?)
}

fn tell_recovery(screen: &mut Screen, detail: &Value, killed_at_ms: u64) -> anyhow::Result<()> {
    let recoveries = list(detail, "recoveries")?;
    let recovery = recoveries.last().context("there is no recovery")?;
    let noticed_ms = number(recovery, "detected_at_ms")?.saturating_sub(killed_at_ms);
    let delay_ms = number(recovery, "delay_us")? / 1000;
    let running_ms = number(recovery, "running_after_us")? / 1000;
    let restore_ms = number(&recovery["timings_max"], "restore_us")? / 1000;
    let fetch_ms = number(&recovery["timings_max"], "fetch_us")? / 1000;
    screen.event(
        Tone::Good,
        "noticed",
        format!("after {noticed_ms} ms; {}", text(recovery, "cause")?),
    );
    let from = match recovery["checkpoint"].as_str() {
        Some(checkpoint) => format!("checkpoint {checkpoint}"),
        None => "the beginning".to_owned(),
    };
    screen.event(
        Tone::Good,
        "recovered",
        format!(
            "after {running_ms} ms more: {} back at {from}, {} of them on another TaskManager",
            counted(number(recovery, "tasks_restarted")?, "task"),
            number(recovery, "tasks_lost")?
        ),
    );
    screen.line(
        Tone::Plain,
        format!(
            "{:22}(restart delay {delay_ms} ms, fetching images {fetch_ms} ms, restoring {restore_ms} ms)",
            ""
        ),
    );
    Ok(())
}

/// Compares the output with the text.
fn judge(screen: &mut Screen, text: &str, output: &Path) -> anyhow::Result<()> {
    let output = Output::read(output)?;
    let truth = Truth::of(text);
    screen.event(
        Tone::Plain,
        "finished",
        format!(
            "{} committed in {}",
            counted(output.records, "record"),
            counted(output.files, "file")
        ),
    );
    let most = output.most_frequent(10);
    let scale = most.first().map_or(1, |(_, count)| *count).max(1);
    screen.line(Tone::Plain, "");
    for (word, count) in most {
        let bar = usize::try_from(count * 40 / scale).unwrap_or(0);
        screen.line(
            Tone::Plain,
            format!("{word:>12} {:>8}  {}", thousands(count), "█".repeat(bar)),
        );
    }
    screen.line(Tone::Plain, "");
    let differences = truth.differences(&output);
    if !differences.is_empty() {
        bail!(
            "the output is not what the text says, in {}:\n  {}",
            counted(differences.len() as u64, "word"),
            truth::list(&differences)
        );
    }
    screen.line(
        Tone::Good,
        format!(
            "Exactly once: each of {} words has the counts 1 to n of a direct count of the text,",
            thousands(truth.words())
        ),
    );
    screen.line(
        Tone::Good,
        format!(
            "{} in all; none is lost, none is there twice.",
            counted(truth.occurrences(), "record")
        ),
    );
    Ok(())
}

/// Shows the job's progress.
struct Show<'a> {
    screen: &'a mut Screen,
    lines: u64,
    next: Instant,
    /// A task has reported what it read.
    begun: bool,
}

impl Show<'_> {
    /// Shows progress until `reached`, and returns the job's state at that time.
    fn watch(
        &mut self,
        cluster: &mut Cluster,
        job: &str,
        reached: impl Fn(&Value) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Value> {
        loop {
            cluster.check()?;
            let detail = cluster.job(job)?;
            if reached(&detail)? {
                return Ok(detail);
            }
            let status = text(&detail, "status")?;
            if matches!(status, "finished" | "failed" | "cancelled") {
                let message = detail["message"].as_str().unwrap_or("no reason is given");
                bail!("the job is {status} before its time: {message}");
            }
            if self.screen.elapsed() > RUN_LIMIT {
                bail!(
                    "the job is {status} after {} s: {detail}",
                    RUN_LIMIT.as_secs()
                );
            }
            // New attempts have not reported yet when nothing seems to be read any more.
            let read = number(&detail, "records_in")?;
            if Instant::now() >= self.next && (read > 0 || !self.begun) {
                self.begun |= read > 0;
                self.next = Instant::now() + SHOW_EVERY;
                self.progress(cluster, job, &detail)?;
            }
            interrupt::pause(LOOK_EVERY)?;
        }
    }

    fn progress(&mut self, cluster: &Cluster, job: &str, detail: &Value) -> anyhow::Result<()> {
        let checkpoints = cluster.checkpoints(job)?;
        let last = list(&checkpoints, "history")?
            .iter()
            .rfind(|checkpoint| text_is(checkpoint, "status", "completed"));
        let checkpoint = match last {
            Some(last) => format!(
                "checkpoint {}, {} ms",
                text(last, "id")?,
                number(last, "duration_us")?.div_ceil(1000)
            ),
            None => "no checkpoint yet".to_owned(),
        };
        let read = number(detail, "records_in")?;
        let percent = (read * 100).checked_div(self.lines).unwrap_or(0);
        self.screen.event(
            Tone::Faint,
            text(detail, "status")?,
            format!(
                "{:>6} of {} lines read ({percent:>2} %)   {checkpoint}",
                thousands(read),
                thousands(self.lines)
            ),
        );
        Ok(())
    }
}

fn text_is(object: &Value, field: &str, expected: &str) -> bool {
    object[field].as_str() == Some(expected)
}
