//! Jobs that every test knows how to submit and to judge.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::oracle::{RollingCounts, records};
use tidemill_tests::table::Tables;
use tidemill_tests::{Cluster, Job, Receiver, data, module};

use crate::command_line::owned;

/// How long a job of these tests may take, failures and a busy machine included.
pub(crate) const JOB_LIMIT: Duration = Duration::from_secs(90);

/// How long a cluster may take to notice something and act on it.
pub(crate) const REACTION_LIMIT: Duration = Duration::from_secs(30);

/// The session with ZooKeeper of every process: short, so that tests are, and long enough for a busy machine.
pub(crate) const SESSION: Duration = Duration::from_secs(3);

/// Records a second of [`watched_count`].
pub(crate) const RATE: u64 = 2_000;

/// The tasks of each stage.
pub(crate) const PARALLELISM: u32 = 4;

/// A job that runs, and what it must put out.
pub(crate) struct Running {
    pub(crate) job: Job,
    pub(crate) output: PathBuf,
    pub(crate) truth: RollingCounts,
}

impl Running {
    /// Waits until it has finished and compares its output with the truth.
    pub(crate) fn finish(&self, cluster: &mut Cluster) -> anyhow::Result<Value> {
        let detail = self.job.wait_until(cluster, "finished", JOB_LIMIT)?;
        self.truth.check(&self.output)?;
        let hidden = tidemill_tests::oracle::hidden_files(&self.output)?;
        anyhow::ensure!(
            hidden.is_empty(),
            "a finished job leaves nothing hidden: {hidden:?}"
        );
        Ok(detail)
    }
}

/// `--param name=value` for each, and the parallelism.
pub(crate) fn arguments(parameters: &[(&str, String)]) -> Vec<String> {
    let mut arguments = vec!["--parallelism".to_owned(), PARALLELISM.to_string()];
    for (name, value) in parameters {
        arguments.extend(["--param".to_owned(), format!("{name}={value}")]);
    }
    arguments
}

/// Counts the words of Shakespeare, slowed so that it takes about so many seconds; 0: as fast as it goes.
pub(crate) fn word_count(cluster: &Cluster, name: &str, seconds: u64) -> anyhow::Result<Running> {
    let input = data("shakespeare.txt");
    let text = fs::read_to_string(&input)?;
    let lines = text.lines().count() as u64;
    let rate = if seconds == 0 {
        0
    } else {
        lines.div_ceil(seconds * u64::from(PARALLELISM))
    };
    let output = cluster.directory().join(name);
    let parameters = [
        ("input", input.to_string_lossy().into_owned()),
        ("output", output.to_string_lossy().into_owned()),
        ("rate", rate.to_string()),
    ];
    Ok(Running {
        job: cluster.submit(&module("wordcount")?, &arguments(&parameters))?,
        output,
        truth: RollingCounts::of_words(&text),
    })
}

/// Counts generated numbers by key, slowed so that it takes about so many seconds; 0: as fast as it goes.
pub(crate) fn keyed_count(cluster: &Cluster, name: &str, seconds: u64) -> anyhow::Result<Running> {
    keyed_count_with(cluster, name, seconds, &[])
}

/// The same with more arguments of `tidemill run`.
pub(crate) fn keyed_count_with(
    cluster: &Cluster,
    name: &str,
    seconds: u64,
    more: &[&str],
) -> anyhow::Result<Running> {
    let (count, keys) = (60_000u64, 97);
    let rate = count.checked_div(seconds).unwrap_or(0);
    let output = cluster.directory().join(name);
    let parameters = [
        ("count", count.to_string()),
        ("keys", keys.to_string()),
        ("rate", rate.to_string()),
        ("output", output.to_string_lossy().into_owned()),
    ];
    let mut arguments = arguments(&parameters);
    arguments.extend(more.iter().map(|word| (*word).to_owned()));
    Ok(Running {
        job: cluster.submit(&module("keyed-count")?, &arguments)?,
        output,
        truth: RollingCounts::of_numbers(count, keys),
    })
}

/// The job `faulty` without a fault but with these parameters, running.
pub(crate) fn counting(
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
pub(crate) fn finish_untouched(running: &Running, cluster: &mut Cluster) -> anyhow::Result<()> {
    let detail = running.finish(cluster)?;
    ensure!(
        detail["restarts"] == 0,
        "another job's failure is none of its own: {detail}"
    );
    Ok(())
}

/// A job with two outputs: one that shows records with their checkpoint, and one that shows them at once.
pub(crate) struct Watched {
    pub(crate) running: Running,
    pub(crate) receiver: Receiver,
}

/// Counts generated numbers by key for about so many seconds.
pub(crate) fn watched_count(
    cluster: &Cluster,
    name: &str,
    seconds: u64,
    host: &str,
) -> anyhow::Result<Watched> {
    let (count, keys) = (RATE * seconds, 97);
    let receiver = Receiver::listen(host)?;
    let output = cluster.directory().join(name);
    let parameters = [
        ("count", count.to_string()),
        ("keys", keys.to_string()),
        ("rate", RATE.to_string()),
        ("output", output.to_string_lossy().into_owned()),
        ("socket", receiver.address().to_owned()),
    ];
    Ok(Watched {
        running: Running {
            job: cluster.submit(&module("keyed-count")?, &arguments(&parameters))?,
            output,
            truth: RollingCounts::of_numbers(count, keys),
        },
        receiver,
    })
}

impl Watched {
    /// Waits until every task runs and some checkpoints are complete.
    pub(crate) fn settle(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let job = &self.running.job;
        job.wait_until(cluster, "running", REACTION_LIMIT)?;
        job.wait_for_checkpoints(cluster, 2, REACTION_LIMIT)
    }

    /// The attempt of each task, and on which TaskManager it runs.
    pub(crate) fn attempts(&self) -> anyhow::Result<Vec<String>> {
        let detail = self.running.job.detail()?;
        let tasks = detail["tasks_detail"]
            .as_array()
            .context("a job has tasks")?;
        let text = |task: &Value, key: &str| task[key].as_str().unwrap_or("-").to_owned();
        let row = |task: &Value| {
            ["id", "attempt", "task_manager"]
                .map(|key| text(task, key))
                .join(" ")
        };
        Ok(tasks.iter().map(row).collect())
    }

    /// Fails if a task is not what it was.
    pub(crate) fn nothing_moved(&self, before: &[String], when: &str) -> anyhow::Result<()> {
        let now = self.attempts()?;
        ensure!(
            now == before,
            "{when}: the tasks were {before:?} and are {now:?}"
        );
        Ok(())
    }

    /// Waits until so many more records have arrived where they are shown at once.
    pub(crate) fn wait_for_arrivals(
        &self,
        cluster: &mut Cluster,
        number: usize,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let goal = self.receiver.lines() + number;
        cluster.wait_for("records to arrive", limit, |_| {
            Ok((self.receiver.lines() >= goal).then_some(()))
        })
    }

    /// Whether its source has records for so many seconds more, and not only by a hair's breadth.
    pub(crate) fn lasts_for(&self, seconds: u64) -> bool {
        self.receiver.lines() as u64 + RATE * seconds < self.running.truth.records()
    }

    /// Waits until a checkpoint is complete that began in this epoch or later, after `after_ms` of the Unix epoch, and
    /// returns when it was complete.
    pub(crate) fn wait_for_checkpoint(
        &self,
        cluster: &mut Cluster,
        epoch: u64,
        after_ms: u64,
        limit: Duration,
    ) -> anyhow::Result<u64> {
        cluster.wait_for("a checkpoint", limit, |_| {
            let checkpoints = self.running.job.checkpoints()?;
            let history = checkpoints["history"].as_array().context("a history")?;
            let completed = |checkpoint: &Value| {
                let (of, _) = checkpoint["id"].as_str()?.split_once('.')?;
                let started = checkpoint["started_at_ms"].as_u64()?;
                let is_new = of.parse::<u64>().ok()? >= epoch && started >= after_ms;
                let done = started + checkpoint["duration_us"].as_u64()? / 1000;
                (is_new && checkpoint["status"] == "completed").then_some(done)
            };
            Ok(history.iter().filter_map(completed).min())
        })
    }

    /// Waits until the job has finished; both outputs must be the truth.
    pub(crate) fn finish(&self, cluster: &mut Cluster) -> anyhow::Result<Value> {
        let detail = self.running.finish(cluster)?;
        let truth = &self.running.truth;
        let all = usize::try_from(truth.records())?;
        cluster.wait_for("the last records", REACTION_LIMIT, |_| {
            Ok((self.receiver.lines() >= all).then_some(()))
        })?;
        truth
            .check_records(&self.receiver.records()?)
            .context("what was shown at once")?;
        Ok(detail)
    }
}

/// A job whose tasks have tables, which check themselves, and what it must put out.
pub(crate) struct Stateful {
    pub(crate) job: Job,
    pub(crate) output: PathBuf,
    pub(crate) tables: Tables,
}

/// How the job `state` is run: besides this, 500 pages of each table are written each second.
pub(crate) struct StateOptions<'a> {
    pub(crate) name: &'a str,
    pub(crate) mib: u64,
    /// Tasks with a table.
    pub(crate) tasks: u64,
    /// Pages that each writes in a second.
    pub(crate) writes: u64,
    /// About how long it runs; its tasks make 1000 records in a second.
    pub(crate) seconds: u64,
    /// Whether the rows go through an exchange, so that all tasks are one region.
    pub(crate) has_exchange: bool,
    /// More arguments of `tidemill run`.
    pub(crate) more: &'a [&'a str],
}

impl Stateful {
    pub(crate) fn submit(cluster: &Cluster, options: &StateOptions<'_>) -> anyhow::Result<Self> {
        let output = cluster.directory().join(options.name);
        let count = options.seconds * 1000;
        let exchange = if options.has_exchange { "yes" } else { "no" };
        let mut arguments = vec!["--parallelism".to_owned(), options.tasks.to_string()];
        for (name, value) in [
            ("job", "state".to_owned()),
            ("mib", options.mib.to_string()),
            ("writes", options.writes.to_string()),
            ("rate", "1000".to_owned()),
            ("count", count.to_string()),
            ("exchange", exchange.to_owned()),
            ("output", output.to_string_lossy().into_owned()),
        ] {
            arguments.extend(["--param".to_owned(), format!("{name}={value}")]);
        }
        arguments.extend(options.more.iter().map(|word| (*word).to_owned()));
        Ok(Self {
            job: cluster.submit(&module("bench")?, &arguments)?,
            output,
            tables: Tables {
                tasks: options.tasks,
                mib: options.mib,
                count,
            },
        })
    }

    /// Which of the TaskManagers a task with a table runs on, by its place in the cluster's list.
    pub(crate) fn host(&self, cluster: &mut Cluster, subtask: u64) -> anyhow::Result<usize> {
        let detail = self.job.detail()?;
        let tasks = detail["tasks_detail"].as_array();
        let task = tasks.into_iter().flatten().find(|task| {
            task["stage"].as_u64() == Some(0) && task["subtask"].as_u64() == Some(subtask)
        });
        let host = task.and_then(|task| task["task_manager"].as_str());
        let all = cluster.taskmanagers().iter();
        let place = all
            .map(|process| process.name())
            .position(|name| Some(name) == host);
        place.with_context(|| format!("task 0/{subtask} runs nowhere: {detail}"))
    }

    /// Waits until it has finished; every row must have come out exactly once.
    pub(crate) fn finish(&self, cluster: &mut Cluster) -> anyhow::Result<Value> {
        let detail = self.job.wait_until(cluster, "finished", JOB_LIMIT)?;
        self.tables.check(&records(&self.output)?)?;
        Ok(detail)
    }

    /// The same where rows may have come out again.
    pub(crate) fn finish_without_loss(&self, cluster: &mut Cluster) -> anyhow::Result<Value> {
        let detail = self.job.wait_until(cluster, "finished", JOB_LIMIT)?;
        self.tables.check_all(&records(&self.output)?)?;
        Ok(detail)
    }
}

/// How many files lie in a directory and below it.
pub(crate) fn files_below(directory: &Path) -> anyhow::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        files += match entry.file_type()?.is_dir() {
            true => files_below(&entry.path())?,
            false => 1,
        };
    }
    Ok(files)
}

/// Waits until a job that has ended has left nothing of its checkpoints in the store.
pub(crate) fn wait_for_no_leftovers(cluster: &mut Cluster, job: &Job) -> anyhow::Result<()> {
    let checkpoints = cluster.directory().join("store/checkpoints").join(job.id());
    let what = "the ended job's checkpoints to be deleted";
    cluster.wait_for(what, REACTION_LIMIT, |_| {
        Ok((!checkpoints.exists() || files_below(&checkpoints)? == 0).then_some(()))
    })
}
