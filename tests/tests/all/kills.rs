//! Processes die by SIGKILL at random moments of a job, and the output equals the truth each time. A failing seed is
//! repeated alone with `TIDEMILL_TESTS_SEEDS`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use tidemill_tests::{Cluster, ClusterOptions, RecoveryTable, seeds, unix_ms};

use crate::common::{JOB_LIMIT, REACTION_LIMIT, Running, keyed_count, word_count};

/// How long a job without failures takes, by the rate of its source.
const JOB_SECONDS: u64 = 3;

/// One of the two jobs, by the seed; begins without waiting for its tasks.
fn submit(cluster: &Cluster, seed: u64) -> anyhow::Result<Running> {
    // A seed may be named more than once, to see whether it fails each time.
    static ROUND: AtomicU32 = AtomicU32::new(0);
    let name = format!("output-{seed}-{}", ROUND.fetch_add(1, Ordering::Relaxed));
    if seed.is_multiple_of(2) {
        word_count(cluster, &name, JOB_SECONDS)
    } else {
        keyed_count(cluster, &name, JOB_SECONDS)
    }
}

/// Lets a random part of the job's life pass, from its deployment to shortly after its end.
fn any_moment(random: &mut StdRng) {
    // Nothing is waited for: that the moment has no relation to anything is the point.
    thread::sleep(Duration::from_millis(
        random.random_range(0..JOB_SECONDS * 1000 + 500),
    ));
}

/// Runs `round` for each seed on one cluster, and prints the table, of what was done so far if one fails.
fn for_each_seed(
    count: u64,
    options: ClusterOptions,
    mut round: impl FnMut(&mut Cluster, u64, &mut StdRng, &mut RecoveryTable) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(options)?;
    let mut table = RecoveryTable::default();
    let outcome = seeds(count).into_iter().try_for_each(|seed| {
        let mut random = StdRng::seed_from_u64(seed);
        round(&mut cluster, seed, &mut random, &mut table)
            .with_context(|| format!("seed {seed}"))?;
        cluster
            .restart_taskmanagers()
            .with_context(|| format!("after seed {seed}"))
    });
    println!("{table}");
    outcome?;
    cluster.shut_down()
}

/// Kills TaskManagers at one moment, and returns which and when.
fn kill_taskmanagers(
    cluster: &mut Cluster,
    random: &mut StdRng,
    number: usize,
) -> anyhow::Result<(String, u64)> {
    let all = cluster.taskmanagers().len();
    let at_ms = unix_ms();
    let mut names = Vec::new();
    for index in index::sample(random, all, number) {
        let process = &mut cluster.taskmanagers()[index];
        process.kill()?;
        names.push(process.name().to_owned());
    }
    Ok((names.join(","), at_ms))
}

#[test]
fn a_taskmanager_dies_at_any_moment() -> anyhow::Result<()> {
    for_each_seed(
        20,
        ClusterOptions::default(),
        |cluster, seed, random, table| {
            let running = submit(cluster, seed)?;
            any_moment(random);
            let (name, at_ms) = kill_taskmanagers(cluster, random, 1)?;
            if random.random() {
                // A process of the same name comes back while the job recovers.
                cluster.restart_taskmanagers()?;
            }
            let detail = running
                .finish(cluster)
                .with_context(|| format!("{name} was killed"))?;
            table.add(&format!("seed {seed} {name}"), at_ms, &detail);
            Ok(())
        },
    )
}

#[test]
fn two_taskmanagers_die_at_once() -> anyhow::Result<()> {
    let options = ClusterOptions {
        slots: 4,
        ..ClusterOptions::default()
    };
    for_each_seed(20, options, |cluster, seed, random, table| {
        let running = submit(cluster, seed)?;
        any_moment(random);
        let (names, at_ms) = kill_taskmanagers(cluster, random, 2)?;
        let detail = running
            .finish(cluster)
            .with_context(|| format!("{names} were killed"))?;
        table.add(&format!("seed {seed} both"), at_ms, &detail);
        Ok(())
    })
}

#[test]
fn a_taskmanager_dies_again_while_the_job_recovers() -> anyhow::Result<()> {
    for_each_seed(
        5,
        ClusterOptions {
            slots: 4,
            ..ClusterOptions::default()
        },
        |cluster, seed, random, table| {
            let running = submit(cluster, seed)?;
            running.job.wait_for_checkpoints(cluster, 1, JOB_LIMIT)?;
            let at_ms = unix_ms();
            let order = index::sample(random, 3, 2);
            cluster.taskmanagers()[order.index(0)].kill()?;
            // Somewhere between detection and the restored tasks' first records.
            thread::sleep(Duration::from_millis(random.random_range(0..150)));
            cluster.taskmanagers()[order.index(1)].kill()?;
            let detail = running.finish(cluster)?;
            table.add(&format!("seed {seed}"), at_ms, &detail);
            Ok(())
        },
    )
}

#[test]
fn the_jobmanager_dies_at_any_moment_and_comes_back() -> anyhow::Result<()> {
    for_each_seed(
        20,
        ClusterOptions::default(),
        |cluster, seed, random, table| {
            let running = submit(cluster, seed)?;
            any_moment(random);
            let before = running.job.detail()?;
            let at_ms = unix_ms();
            cluster.jobmanager().kill()?;
            thread::sleep(Duration::from_millis(random.random_range(0..1500)));
            cluster.restart_jobmanager()?;
            let restarted = Instant::now();
            let adopted =
                cluster.wait_for("the job to be known and to go on", REACTION_LIMIT, |_| {
                    let detail = running.job.detail()?;
                    let goes_on = ["running", "finishing", "finished"]
                        .iter()
                        .any(|status| detail["status"] == *status);
                    Ok(goes_on.then_some(restarted.elapsed()))
                })?;
            let after = running.finish(cluster)?;
            let label = format!("seed {seed}");
            if before["status"] == "running" {
                anyhow::ensure!(
                    after["recoveries"].as_array().is_none_or(Vec::is_empty),
                    "tasks that ran all the while were started again: {}",
                    after["recoveries"]
                );
                table.note(&label, format!("adopted {adopted:?} after its start"));
            } else {
                table.add(&format!("{label} {}", before["status"]), at_ms, &after);
            }
            Ok(())
        },
    )
}

#[test]
fn a_taskmanager_dies_while_there_is_no_jobmanager() -> anyhow::Result<()> {
    let options = ClusterOptions::default().set("cluster.adoption_timeout_ms", 1500);
    for_each_seed(5, options, |cluster, seed, random, table| {
        let running = submit(cluster, seed)?;
        running.job.wait_for_checkpoints(cluster, 1, JOB_LIMIT)?;
        cluster.jobmanager().kill()?;
        let (name, at_ms) = kill_taskmanagers(cluster, random, 1)?;
        cluster.restart_jobmanager()?;
        let detail = running.finish(cluster)?;
        table.add(&format!("seed {seed} {name}"), at_ms, &detail);
        Ok(())
    })
}

#[test]
fn everything_dies_and_the_job_goes_on_from_its_last_checkpoint() -> anyhow::Result<()> {
    let options = ClusterOptions::default().set("cluster.adoption_timeout_ms", 1500);
    for_each_seed(3, options, |cluster, seed, random, table| {
        let running = submit(cluster, seed)?;
        running.job.wait_for_checkpoints(cluster, 2, JOB_LIMIT)?;
        cluster.jobmanager().kill()?;
        let (_, at_ms) = kill_taskmanagers(cluster, random, 3)?;
        cluster.restart_jobmanager()?;
        cluster.restart_taskmanagers()?;
        let detail = running.finish(cluster)?;
        table.add(&format!("seed {seed}"), at_ms, &detail);
        // A machine may be so busy that the job has ended before the kill.
        let ended_at_ms = detail["ended_at_ms"].as_u64().context("it has ended")?;
        anyhow::ensure!(
            ended_at_ms <= at_ms || detail["recoveries"][0]["checkpoint"].is_string(),
            "the job began anew: {detail}"
        );
        Ok(())
    })
}

#[test]
fn without_a_free_slot_the_job_waits_and_says_so() -> anyhow::Result<()> {
    let options = ClusterOptions {
        task_managers: 2,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start(options)?;
    let running = word_count(&cluster, "output", JOB_SECONDS)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 1, JOB_LIMIT)?;
    cluster.taskmanagers()[1].kill()?;
    let waiting = running
        .job
        .wait_until(&mut cluster, "waiting", REACTION_LIMIT)?;
    let message = waiting["message"].as_str().unwrap_or_default();
    anyhow::ensure!(
        message.contains("slot"),
        "it says what it waits for: {message:?}"
    );
    cluster.restart_taskmanagers()?;
    running.finish(&mut cluster)?;
    cluster.shut_down()
}

/// A process that is stopped keeps its connections and answers nothing: only silence tells.
#[test]
fn a_frozen_taskmanager_is_replaced_and_does_no_harm_when_it_thaws() -> anyhow::Result<()> {
    let options = ClusterOptions::default()
        .set("cluster.heartbeat_interval_ms", 200)
        .set("cluster.heartbeat_timeout_ms", 1000);
    let mut cluster = Cluster::start(options)?;
    let running = word_count(&cluster, "output", 6)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 1, JOB_LIMIT)?;
    let at_ms = unix_ms();
    cluster.taskmanagers()[0].freeze()?;
    cluster.wait_for("the silence to be noticed", REACTION_LIMIT, |_| {
        let detail = running.job.detail()?;
        Ok(detail["recoveries"][0]["running_after_us"]
            .is_u64()
            .then_some(()))
    })?;
    // It believes that its tasks still run, until somebody tells it.
    cluster.taskmanagers()[0].thaw()?;
    let detail = running.finish(&mut cluster)?;
    cluster.wait_for_registration()?;
    let mut table = RecoveryTable::default();
    table.add("frozen", at_ms, &detail);
    println!("{table}");
    cluster.shut_down()
}
