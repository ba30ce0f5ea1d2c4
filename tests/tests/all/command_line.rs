//! What `tidemill` is told by a user and says to him.

use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, ensure};
use tidemill_tests::{Cluster, clean_environment, tidemill};
use tidemill_zookeeper_ensemble::signal;

use crate::common::JOB_LIMIT;

/// Words as arguments.
pub(crate) fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// All that a command has printed.
pub(crate) fn text(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    format!("{}{stderr}", String::from_utf8_lossy(&output.stdout))
}

/// Fails unless all of these words are said.
pub(crate) fn says(said: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(said.contains(word), "`{word}` is not said:\n{said}");
    }
    Ok(())
}

/// What a verb of the command line shows of a job.
pub(crate) fn shown(cluster: &Cluster, words: &[&str]) -> anyhow::Result<String> {
    let output = cluster.run(&owned(words))?;
    let said = text(&output);
    ensure!(output.status.success(), "{words:?} failed: {said}");
    Ok(said)
}

/// What a verb prints on standard output, which is for programs.
pub(crate) fn printed(cluster: &Cluster, words: &[&str]) -> anyhow::Result<String> {
    let output = cluster.run(&owned(words))?;
    ensure!(
        output.status.success(),
        "{words:?} failed: {}",
        text(&output)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What a verb that must fail says.
pub(crate) fn refused(cluster: &Cluster, words: &[&str]) -> anyhow::Result<String> {
    let output = cluster.run(&owned(words))?;
    let said = text(&output);
    ensure!(!output.status.success(), "{words:?} succeeded: {said}");
    Ok(said)
}

/// A verb that takes its time, while the test goes on. Killed when it is dropped before its end.
pub(crate) struct Background {
    child: Option<Child>,
}

impl Background {
    /// Starts it; it asks the JobManager at `url` first.
    pub(crate) fn start(cluster: &Cluster, url: &str, words: &[&str]) -> anyhow::Result<Self> {
        let mut command = cluster.command(url, &owned(words));
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{words:?}"))?;
        Ok(Self { child: Some(child) })
    }

    /// What Ctrl-C does.
    pub(crate) fn interrupt(&self) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("it was started")?;
        Ok(signal::send(child, libc::SIGINT)?)
    }

    /// Waits for its end. What it says meanwhile must fit into a pipe.
    pub(crate) fn wait(mut self, cluster: &mut Cluster) -> anyhow::Result<Output> {
        let mut child = self.child.take().context("it was started")?;
        let ended = cluster.wait_for("a command to end", JOB_LIMIT, |_| Ok(child.try_wait()?));
        if ended.is_err() {
            // Fails only if it has ended after all.
            let _ = child.kill();
        }
        let output = child.wait_with_output()?;
        ended.with_context(|| text(&output))?;
        Ok(output)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Fails only for one that has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `tidemill` without the variables of a developer's own cluster.
pub(crate) fn tidemill_alone() -> anyhow::Result<Command> {
    let mut command = Command::new(tidemill()?);
    clean_environment(&mut command);
    Ok(command)
}
