//! What `tidemill` is told by a user and says to him.

use std::process::{Command, Output};

use anyhow::ensure;
use tidemill_tests::{Cluster, clean_environment, tidemill};

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

/// `tidemill` without the variables of a developer's own cluster.
pub(crate) fn tidemill_alone() -> anyhow::Result<Command> {
    let mut command = Command::new(tidemill()?);
    clean_environment(&mut command);
    Ok(command)
}
