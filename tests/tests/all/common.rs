//! Jobs that every test knows how to submit and to judge.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tidemill_tests::oracle::RollingCounts;
use tidemill_tests::{Cluster, Job, data, module};

/// How long a job of these tests may take, failures and a busy machine included.
pub(crate) const JOB_LIMIT: Duration = Duration::from_secs(90);

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
    pub(crate) fn finish(&self, cluster: &mut Cluster) -> anyhow::Result<serde_json::Value> {
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
    let (count, keys) = (60_000u64, 97);
    let rate = count.checked_div(seconds).unwrap_or(0);
    let output = cluster.directory().join(name);
    let parameters = [
        ("count", count.to_string()),
        ("keys", keys.to_string()),
        ("rate", rate.to_string()),
        ("output", output.to_string_lossy().into_owned()),
    ];
    Ok(Running {
        job: cluster.submit(&module("keyed-count")?, &arguments(&parameters))?,
        output,
        truth: RollingCounts::of_numbers(count, keys),
    })
}
