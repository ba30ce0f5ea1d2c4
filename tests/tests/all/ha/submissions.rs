//! What the cluster has acknowledged stays true over a change of leaders: a job that was accepted runs, one that has ended
//! does not come back, and one that cannot be recovered stands in nobody's way.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tidemill_tests::oracle::RollingCounts;
use tidemill_tests::{Answer, Cluster, ClusterOptions, Rest, module, seeds};

use crate::common::{JOB_LIMIT, REACTION_LIMIT, SESSION, keyed_count, watched_count};

const COUNT: u64 = 2_000;
const KEYS: u64 = 7;

fn wasm(name: &str) -> anyhow::Result<Vec<u8>> {
    let path = module(name)?;
    std::fs::read(&path).with_context(|| path.display().to_string())
}

/// Posts a short job to one JobManager alone, as a client does that knows no other.
fn post(rest: &Rest, name: &str, output: &str, module: &[u8]) -> anyhow::Result<Answer> {
    let query = format!(
        "/v1/jobs?name={name}&parallelism=2&param.count={COUNT}&param.keys={KEYS}&param.output={output}"
    );
    rest.post(&query, "application/wasm", module)
}

/// The jobs that are known, by name.
fn known(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, Value>> {
    let jobs = cluster.rest().get("/v1/jobs")?;
    let jobs = jobs["jobs"].as_array().or_else(|| jobs.as_array());
    let jobs = jobs.context("a list of jobs")?;
    let by_name = |job: &Value| {
        let name = job["name"].as_str().unwrap_or_default().to_owned();
        (name, job.clone())
    };
    Ok(jobs.iter().map(by_name).collect())
}

/// How long a submission takes that nothing disturbs.
fn undisturbed(cluster: &Cluster, module: &[u8]) -> anyhow::Result<Duration> {
    let output = cluster.directory().join("first");
    let at = Instant::now();
    let answer = post(cluster.rest(), "first", &output.to_string_lossy(), module)?;
    ensure!(answer.status == 201, "{}", answer.text);
    Ok(at.elapsed())
}

/// The leader dies somewhere within a submission, twenty times.
#[test]
fn a_job_submitted_just_before_the_crash_runs_or_was_never_acknowledged() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    let module = wasm("keyed-count")?;
    let mut usual = undisturbed(&cluster, &module)?;
    let truth = RollingCounts::of_numbers(COUNT, KEYS);
    let (mut acknowledged, mut unanswered) = (0, 0);
    let mut submitted: Vec<(String, PathBuf, bool)> = Vec::new();
    for seed in seeds(20) {
        let mut random = StdRng::seed_from_u64(seed);
        let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
        let name = format!("seed-{seed}");
        let output = cluster.directory().join(&name);
        let rest = cluster.rest().at(leader.index);
        let (job, text) = (name.clone(), output.to_string_lossy().into_owned());
        let bytes = module.clone();
        let client = thread::spawn(move || {
            let at = Instant::now();
            (post(&rest, &job, &text, &bytes), at.elapsed())
        });
        // The moment is the input of this test: from before the first byte to after the answer.
        thread::sleep(usual.mul_f64(random.random_range(0.0..1.3)));
        cluster.jobmanager_at(leader.index).kill()?;
        let (answer, took) = client
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?;
        let is_acknowledged = match answer {
            Ok(answer) if answer.status == 201 => {
                // The first was slower than most: nothing was warm.
                usual = took;
                true
            }
            Ok(answer) if answer.status == 503 => false,
            Ok(answer) => bail!("seed {seed}: {} {}", answer.status, answer.text),
            Err(_) => false,
        };
        *(if is_acknowledged {
            &mut acknowledged
        } else {
            &mut unanswered
        }) += 1;
        cluster.restart_jobmanager_at(leader.index)?;
        cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
        submitted.push((name, output, is_acknowledged));
    }
    let jobs = cluster.wait_for("every known job to end", JOB_LIMIT, |cluster| {
        let jobs = known(cluster)?;
        let has_ended = |job: &Value| {
            let status = job["status"].as_str().unwrap_or_default();
            ["finished", "failed", "cancelled"].contains(&status)
        };
        let all_ended = jobs.values().all(has_ended);
        Ok(all_ended.then_some(jobs))
    })?;
    let mut stored = 0;
    for (name, output, is_acknowledged) in submitted {
        let Some(job) = jobs.get(&name) else {
            ensure!(!is_acknowledged, "{name} was acknowledged and is not known");
            continue;
        };
        stored += 1;
        ensure!(job["status"] == "finished", "{name} ran: {job}");
        truth.check(&output).with_context(|| name)?;
    }
    println!(
        "a submission takes {usual:?}; of 20, {acknowledged} were acknowledged, {unanswered} were not, {stored} ran"
    );
    cluster.shut_down()
}

/// Ended in each way, then three changes of leaders.
#[test]
fn a_job_that_has_ended_never_comes_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    keyed_count(&cluster, "finished", 0)?.finish(&mut cluster)?;
    let cancelled = keyed_count(&cluster, "cancelled", 60)?;
    cancelled
        .job
        .wait_until(&mut cluster, "running", REACTION_LIMIT)?;
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    // As soon as the wish is acknowledged, the leader is gone.
    cancelled.job.cancel(&cluster)?;
    cluster.jobmanager_at(leader.index).kill()?;
    cluster.restart_jobmanager_at(leader.index)?;
    let mut leader = cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
    cancelled
        .job
        .wait_until(&mut cluster, "cancelled", REACTION_LIMIT)?;
    for _ in 0..2 {
        cluster.jobmanager_at(leader.index).kill()?;
        cluster.restart_jobmanager_at(leader.index)?;
        leader = cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
        cluster.wait_for_registration()?;
        let health = cluster.rest().get("/health")?;
        ensure!(
            health["jobs_active"] == 0 && health["slots"] == health["slots_free"],
            "nothing runs: {health}"
        );
        let jobs = cluster.rest().get("/v1/jobs")?.to_string();
        ensure!(
            !jobs.contains("\"running\"") && !jobs.contains("\"deploying\""),
            "nothing runs: {jobs}"
        );
    }
    cluster.shut_down()
}

/// The graph of one of two jobs is damaged in the store; the other's tasks never notice.
#[test]
fn a_job_that_cannot_be_recovered_does_not_hold_up_the_others() -> anyhow::Result<()> {
    let options = ClusterOptions {
        slots: 4,
        ..ClusterOptions::highly_available(SESSION)
    };
    let mut cluster = Cluster::start(options)?;
    let healthy = watched_count(&cluster, "healthy", 25, "127.0.0.1")?;
    let ruined = keyed_count(&cluster, "ruined", 60)?;
    healthy.settle(&mut cluster)?;
    ruined
        .job
        .wait_for_checkpoints(&mut cluster, 2, REACTION_LIMIT)?;
    let before = healthy.attempts()?;
    let damaged = damage_graph(&cluster, ruined.job.id())?;

    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    cluster.expect_error(ruined.job.id());
    cluster.jobmanager_at(leader.index).kill()?;
    cluster.restart_jobmanager_at(leader.index)?;
    let next = cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
    healthy.wait_for_checkpoint(&mut cluster, next.epoch, 0, REACTION_LIMIT)?;
    healthy.nothing_moved(&before, "after the hand-over")?;
    let told = cluster.wait_for("the damage to be told", REACTION_LIMIT, |_| {
        let detail = ruined.job.detail()?;
        let message = detail["message"].as_str().unwrap_or_default().to_owned();
        Ok((!message.is_empty()).then_some((detail["status"].clone(), message)))
    })?;
    println!("{} damaged: {told:?}", damaged.display());
    healthy.finish(&mut cluster)?;
    cluster.shut_down()
}

/// Overwrites the middle of a job's graph object.
fn damage_graph(cluster: &Cluster, job: &str) -> anyhow::Result<PathBuf> {
    let store = cluster.directory().join("store");
    let mut graphs = Vec::new();
    let mut directories = vec![store.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let text = path.to_string_lossy().into_owned();
            if path.is_dir() {
                directories.push(path);
            } else if text.contains(job) && !text.contains("/checkpoints/") {
                graphs.push(path);
            }
        }
    }
    ensure!(
        graphs.len() == 1,
        "one graph below {}: {graphs:?}",
        store.display()
    );
    let mut bytes = std::fs::read(&graphs[0])?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&graphs[0], bytes)?;
    Ok(graphs.remove(0))
}
