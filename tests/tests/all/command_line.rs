//! What `tidemill` is told by a user and says to him.

use std::env;
use std::process::{Command, Output};

use anyhow::ensure;
use tidemill_tests::{Cluster, tidemill};

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

/// `tidemill` without the variables of a developer's own cluster.
pub(crate) fn tidemill_alone() -> anyhow::Result<Command> {
    let mut command = Command::new(tidemill()?);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEMILL_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}
