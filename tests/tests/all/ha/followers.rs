//! Whoever asks a follower is sent to the leader: programs by redirection, people without noticing.

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::{Cluster, ClusterOptions, module};

use crate::command_line::{owned, text};
use crate::common::{JOB_LIMIT, REACTION_LIMIT, SESSION};

#[test]
fn a_follower_sends_everybody_to_the_leader() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let leaders_url = cluster.rest().at(leader.index).url().to_owned();
    let follower = cluster.rest().at((leader.index + 1) % 3);
    let answer = cluster.wait_for("a redirection", REACTION_LIMIT, |_| {
        let answer = follower.ask("/v1/jobs?limit=3")?;
        Ok((answer.status == 307).then_some(answer))
    })?;
    ensure!(
        answer.location == format!("{leaders_url}/v1/jobs?limit=3"),
        "it names the leader and keeps the question: {answer:?}"
    );
    let health = follower.ask("/health")?;
    ensure!(
        health.status == 200 && health.body["role"] == "follower",
        "a follower is well: {health:?}"
    );
    ensure!(
        health.body["leader"]["epoch"] == leader.epoch,
        "and knows who leads: {health:?}"
    );

    let output = cluster.directory().join("output");
    let submit = cluster
        .command(
            follower.url(),
            &owned(&[
                "run",
                &module("keyed-count")?.to_string_lossy(),
                "--detach",
                "--output",
                "json",
                "--param",
                "count=1000",
                "--param",
                &format!("output={}", output.display()),
            ]),
        )
        .output()?;
    let printed = String::from_utf8_lossy(&submit.stdout);
    ensure!(submit.status.success(), "{submit:?}");
    let submitted: Value = serde_json::from_str(&printed)?;
    let id = submitted["id"].as_str().context("an id")?;
    let job = cluster.job(id);
    job.wait_until(&mut cluster, "finished", JOB_LIMIT)?;
    for verb in [vec!["list"], vec!["info", id], vec!["nodes"]] {
        let shown = cluster.command(follower.url(), &owned(&verb)).output()?;
        ensure!(shown.status.success(), "{verb:?}: {shown:?}");
    }
    cluster.shut_down()
}

/// The command line waits while nobody leads, and goes on with whoever leads then.
#[test]
fn the_command_line_follows_a_job_over_a_change_of_leaders() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let follower = cluster.rest().at((leader.index + 1) % 3);
    let output = cluster.directory().join("output");
    let mut client = cluster
        .command(
            follower.url(),
            &owned(&[
                "run",
                &module("keyed-count")?.to_string_lossy(),
                "--param",
                "count=16000",
                "--param",
                "rate=2000",
                "--param",
                &format!("output={}", output.display()),
            ]),
        )
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    cluster.wait_for("the job to run", REACTION_LIMIT, |cluster| {
        let jobs = cluster.rest().get("/v1/jobs")?.to_string();
        Ok(jobs.contains("\"running\"").then_some(()))
    })?;
    cluster.jobmanager_at(leader.index).kill()?;
    let ended = cluster.wait_for("the command to end", JOB_LIMIT, |_| Ok(client.try_wait()?))?;
    let said = client.wait_with_output()?;
    let said = text(&said);
    ensure!(ended.success(), "it saw the job finish: {ended} {said}");
    ensure!(said.contains("finished"), "and says so: {said}");
    cluster.shut_down()
}
