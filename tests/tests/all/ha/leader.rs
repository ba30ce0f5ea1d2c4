//! The leader dies, or stops and comes back: no task notices.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidemill_tests::{
    Cluster, ClusterOptions, TakeoverTable, commits_ms, first_commit_ms, seeds, unix_ms,
};

use crate::common::{REACTION_LIMIT, SESSION, Watched, watched_count};

const KILLS: usize = 20;

/// How long the job lives that sees all kills, most of which cost it less than a second of its leader. On a machine that is
/// slower than that it sees fewer.
const JOB_SECONDS: u64 = 65;

/// What a kill may need at worst of that.
const KILL_SECONDS: u64 = 6;

/// What the promise allows beyond the session timeout until committed output goes on.
const RESUME_SLACK: Duration = Duration::from_secs(1);

/// A pause between records that a machine of two busy cores makes by itself now and then.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// What a kill was followed by.
struct Kill {
    at: Instant,
    at_ms: u64,
    elected_after_ms: Option<u64>,
    leads_after_ms: u64,
    adopted_after_ms: u64,
    checkpoint_after_ms: u64,
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// When a JobManager was elected in this epoch, by its own log, in milliseconds of the Unix epoch.
fn elected_at_ms(cluster: &mut Cluster, index: usize, epoch: u64) -> Option<u64> {
    let log = cluster.jobmanager_at(index).log();
    let epoch = epoch.to_string();
    log.lines().rev().find_map(|line| {
        let record: serde_json::Value = serde_json::from_str(line).ok()?;
        let fields = &record["fields"];
        let is_election = fields["message"].as_str()?.contains("elected");
        let of = fields["epoch"].to_string();
        (is_election && of.trim_matches('"') == epoch)
            .then(|| tidemill_tests::parse_utc_ms(record["timestamp"].as_str()?))
            .flatten()
    })
}

/// Kills the leader, starts it again at once, and waits until the job is in its successor's hands.
fn kill_the_leader(cluster: &mut Cluster, watched: &Watched) -> anyhow::Result<Kill> {
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let before = watched.attempts()?;
    let (at, at_ms) = (Instant::now(), unix_ms());
    cluster.jobmanager_at(leader.index).kill()?;
    cluster.restart_jobmanager_at(leader.index)?;
    let next = cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
    let leads_after_ms = milliseconds(at.elapsed()).saturating_sub(next.leading_for_ms);
    let adopted_after_ms = cluster.wait_for("the job to be adopted", REACTION_LIMIT, |_| {
        let detail = watched.running.job.detail()?;
        let is_adopted =
            detail["status"] == "running" && detail["tasks_running"] == detail["tasks"];
        Ok(is_adopted.then(|| milliseconds(at.elapsed())))
    })?;
    let checkpoint_ms = watched.wait_for_checkpoint(cluster, next.epoch, 0, REACTION_LIMIT)?;
    watched.nothing_moved(&before, "after a hand-over")?;
    let elected_ms = elected_at_ms(cluster, next.index, next.epoch);
    Ok(Kill {
        at,
        at_ms,
        elected_after_ms: elected_ms.map(|ms| ms.saturating_sub(at_ms)),
        leads_after_ms,
        adopted_after_ms,
        checkpoint_after_ms: checkpoint_ms.saturating_sub(at_ms),
    })
}

/// A row for each kill, and the longest pause between arrivals while leaders changed.
fn table(kills: &[Kill], watched: &Watched) -> anyhow::Result<(TakeoverTable, Duration)> {
    let commits = commits_ms(&watched.running.output)?;
    let mut table = TakeoverTable::new(&[
        "elected",
        "leads",
        "adopted",
        "checkpoint",
        "committed",
        "arrival gap",
        "late",
    ]);
    let mut longest = Duration::ZERO;
    for (number, kill) in (1..).zip(kills) {
        // The time of a file is that of the kernel's last tick.
        let published_ms = kill.at_ms + kill.checkpoint_after_ms - 10;
        let committed = first_commit_ms(&commits, published_ms);
        let committed_after_ms = committed.map(|ms| ms.saturating_sub(kill.at_ms));
        let until = kill.at + Duration::from_millis(kill.checkpoint_after_ms);
        let gap = watched.receiver.gaps(kill.at, until).longest;
        longest = longest.max(gap);
        table.add(
            format!("kill {number}"),
            &[
                kill.elected_after_ms,
                Some(kill.leads_after_ms),
                Some(kill.adopted_after_ms),
                Some(kill.checkpoint_after_ms),
                committed_after_ms,
                Some(milliseconds(gap)),
                // While nothing at all arrived, the machine itself stood still.
                committed_after_ms.map(|ms| ms.saturating_sub(milliseconds(gap))),
            ],
        );
    }
    Ok((table, longest))
}

/// Twenty kills in one life of a job. The longest pause between records that are shown at once is compared with that of
/// the same job left alone, before the first kill and after the last.
#[test]
fn the_leader_is_killed_twenty_times_and_no_task_notices() -> anyhow::Result<()> {
    for seed in seeds(1) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
        let watched = watched_count(&cluster, "output", JOB_SECONDS, "127.0.0.1")?;
        watched.settle(&mut cluster)?;
        let before = watched.attempts()?;

        let calm_from = Instant::now();
        watched.wait_for_arrivals(&mut cluster, 20_000, REACTION_LIMIT)?;
        let calm = watched.receiver.gaps(calm_from, Instant::now());
        let mut kills = Vec::new();
        for number in 1..=KILLS {
            if !watched.lasts_for(KILL_SECONDS) {
                println!("this machine has time for {} kills", kills.len());
                break;
            }
            let records = random.random_range(1..2_000);
            watched.wait_for_arrivals(&mut cluster, records, REACTION_LIMIT)?;
            let kill = kill_the_leader(&mut cluster, &watched);
            kills.push(kill.with_context(|| format!("seed {seed}, kill {number}"))?);
        }
        watched.nothing_moved(&before, "after all kills")?;
        let calm_again_from = Instant::now();
        let detail = watched.finish(&mut cluster)?;
        let end = watched.receiver.last_arrival().context("records arrived")?;
        let calm_again = watched.receiver.gaps(calm_again_from, end);
        ensure!(
            detail["restarts"] == 0 && detail["recoveries"].as_array().is_none_or(Vec::is_empty),
            "nothing was restarted: {detail}"
        );

        let (table, longest) = table(&kills, &watched)?;
        println!("session timeout {SESSION:?}\nbefore the kills: {calm}\nafter them: {calm_again}");
        println!("longest pause while leaders changed: {longest:?}\n{table}");
        let normal = calm.longest.max(calm_again.longest);
        ensure!(
            kills.len() >= KILLS / 2,
            "only {} kills in {JOB_SECONDS} s",
            kills.len()
        );
        // What else the machine does stalls a sink now and then, with kills or without. A task that waited for a leader
        // would do so each time.
        let usual = milliseconds(normal.max(PAUSE_MAX));
        let gaps = table.column("arrival gap");
        let usually = gaps[gaps.len() / 2];
        ensure!(
            usually <= usual,
            "records paused for {longest:?}, half the times for {usually} ms and longer; left alone for {normal:?}"
        );
        let allowed = milliseconds(SESSION + RESUME_SLACK);
        let late = table.column("late");
        ensure!(late.len() == kills.len(), "output was committed after each");
        let usually = late[late.len() / 2];
        ensure!(
            usually <= allowed,
            "committed output went on after {usually} ms and longer half the times, and {allowed} ms are promised"
        );
        cluster.shut_down()?;
    }
    Ok(())
}

/// A leader that was stopped for longer than its session believes, when it goes on, that no time has passed.
#[test]
fn leader_frozen() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    let watched = watched_count(&cluster, "output", 16, "127.0.0.1")?;
    watched.settle(&mut cluster)?;
    let before = watched.attempts()?;
    let old = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    cluster.jobmanager_at(old.index).freeze()?;
    let new = cluster.wait_for_leader(old.epoch, REACTION_LIMIT)?;
    watched.wait_for_checkpoint(&mut cluster, new.epoch, 0, REACTION_LIMIT)?;

    let thawed_ms = unix_ms();
    cluster.jobmanager_at(old.index).thaw()?;
    let alone = cluster.rest().at(old.index);
    let health = cluster.wait_for("the old leader to answer", REACTION_LIMIT, |_| {
        Ok(Some(alone.ask("/health")?.body))
    })?;
    ensure!(
        health["leading"] != true,
        "it does not lead any more, and knows: {health}"
    );
    cluster.wait_for("the old leader to follow", REACTION_LIMIT, |_| {
        let health = alone.ask("/health")?.body;
        let follows = health["role"] == "follower" && health["leader"]["epoch"] == new.epoch;
        Ok(follows.then_some(()))
    })?;
    watched.wait_for_checkpoint(&mut cluster, new.epoch, thawed_ms, REACTION_LIMIT)?;
    let present = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    ensure!(
        (present.index, present.epoch) == (new.index, new.epoch),
        "the new leader goes on leading: {present:?}, {new:?}"
    );
    watched.nothing_moved(&before, "after the old leader came back")?;
    let detail = watched.finish(&mut cluster)?;
    ensure!(detail["restarts"] == 0, "nothing was restarted: {detail}");
    cluster.shut_down()
}

/// A TaskManager that was stopped for longer than its session: its tasks run elsewhere when it goes on.
#[test]
fn task_manager_frozen() -> anyhow::Result<()> {
    let options = ClusterOptions::highly_available(SESSION)
        .set("cluster.heartbeat_interval_ms", 200)
        .set("cluster.heartbeat_timeout_ms", 1_000);
    let mut cluster = Cluster::start(options)?;
    let watched = watched_count(&cluster, "output", 12, "127.0.0.1")?;
    watched.settle(&mut cluster)?;
    let at = Instant::now();
    cluster.taskmanagers()[0].freeze()?;
    cluster.wait_for("the tasks to run elsewhere", REACTION_LIMIT, |_| {
        let detail = watched.running.job.detail()?;
        Ok(detail["recoveries"][0]["running_after_us"]
            .is_u64()
            .then_some(()))
    })?;
    cluster.wait_for("its session to be over", REACTION_LIMIT, |cluster| {
        let nodes = cluster.rest().get("/v1/nodes")?.to_string();
        let is_over = at.elapsed() > SESSION * 2;
        ensure!(
            nodes.contains("tm-1") || is_over,
            "it is shown as lost for a while"
        );
        Ok(is_over.then_some(()))
    })?;
    cluster.taskmanagers()[0].thaw()?;
    cluster.wait_for_registration()?;
    // What it sent while its place was taken already is not what is counted: only the other output is exact.
    watched.running.finish(&mut cluster)?;
    cluster.shut_down()
}

/// The job waits until there are slots again, and goes on from its last checkpoint.
#[test]
fn leader_and_two_task_managers_killed() -> anyhow::Result<()> {
    // The new leader waits so long for those that do not come.
    let adoption_timeout = Duration::from_secs(3);
    let options = ClusterOptions::highly_available(SESSION)
        .set("cluster.adoption_timeout_ms", adoption_timeout.as_millis());
    let mut cluster = Cluster::start(options)?;
    let watched = watched_count(&cluster, "output", 10, "127.0.0.1")?;
    watched.settle(&mut cluster)?;
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let (at, at_ms) = (Instant::now(), unix_ms());
    cluster.jobmanager_at(leader.index).kill()?;
    cluster.taskmanagers()[0].kill()?;
    cluster.taskmanagers()[1].kill()?;
    let next = cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
    let leads_ms = milliseconds(at.elapsed()).saturating_sub(next.leading_for_ms);
    cluster.wait_for("the job to wait for slots", REACTION_LIMIT, |_| {
        let status = watched.running.job.status()?;
        Ok(["waiting", "recovering"]
            .contains(&status.as_str())
            .then_some(()))
    })?;
    let returned = Instant::now();
    cluster.restart_taskmanagers()?;
    cluster.restart_jobmanager_at(leader.index)?;
    watched.wait_for_checkpoint(&mut cluster, next.epoch, 0, REACTION_LIMIT)?;
    println!(
        "leader and two of three TaskManagers killed: a leader after {leads_ms} ms, a checkpoint {} ms after the \
         TaskManagers' return",
        milliseconds(returned.elapsed())
    );
    let detail = watched.running.finish(&mut cluster)?;
    let commits = commits_ms(&watched.running.output)?;
    ensure!(
        commits.iter().any(|ms| *ms < at_ms) && commits.iter().any(|ms| *ms > at_ms),
        "there was output before and after"
    );
    let from = detail["recoveries"][0]["checkpoint"].as_str();
    ensure!(from.is_some(), "it did not begin anew: {detail}");
    cluster.shut_down()
}

/// Each kill comes while a checkpoint is under way: it is completed or given up, and never half of it shown.
#[test]
fn leader_killed_while_checkpoint_completes() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    let watched = watched_count(&cluster, "output", 20, "127.0.0.1")?;
    watched.settle(&mut cluster)?;
    for number in 1..=5 {
        cluster.wait_for("a checkpoint under way", REACTION_LIMIT, |_| {
            let history = watched.running.job.checkpoints()?["history"].to_string();
            Ok(history.contains("\"in-progress\"").then_some(()))
        })?;
        let kill = kill_the_leader(&mut cluster, &watched);
        let kill = kill.with_context(|| format!("kill {number}"))?;
        println!(
            "a checkpoint {} ms after kill {number}",
            kill.checkpoint_after_ms
        );
    }
    let detail = watched.finish(&mut cluster)?;
    ensure!(detail["restarts"] == 0, "nothing was restarted: {detail}");
    cluster.shut_down()
}

/// The third leads, whoever was to be the next; then it dies too, and tasks go on without any, until all are back.
#[test]
fn one_job_manager_after_the_other_is_killed_and_none_comes_back() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    let watched = watched_count(&cluster, "output", 25, "127.0.0.1")?;
    watched.settle(&mut cluster)?;
    let before = watched.attempts()?;
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let at = Instant::now();
    let (next, last) = ((leader.index + 1) % 3, (leader.index + 2) % 3);
    cluster.jobmanager_at(leader.index).kill()?;
    cluster.jobmanager_at(next).kill()?;
    let third = cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
    ensure!(third.index == last, "who is left leads: {third:?}");
    let leads_ms = milliseconds(at.elapsed()).saturating_sub(third.leading_for_ms);
    watched.wait_for_checkpoint(&mut cluster, third.epoch, 0, REACTION_LIMIT)?;
    watched.nothing_moved(&before, "with one JobManager left")?;

    let alone_from = Instant::now();
    cluster.jobmanager_at(last).kill()?;
    watched.wait_for_arrivals(&mut cluster, 6_000, REACTION_LIMIT)?;
    let alone = watched.receiver.gaps(alone_from, Instant::now());
    for index in [next, leader.index, last] {
        cluster.restart_jobmanager_at(index)?;
    }
    let fourth = cluster.wait_for_leader(third.epoch, REACTION_LIMIT)?;
    watched.wait_for_checkpoint(&mut cluster, fourth.epoch, 0, REACTION_LIMIT)?;
    watched.nothing_moved(&before, "after a time without any JobManager")?;
    println!(
        "two of three JobManagers killed: the third leads after {leads_ms} ms; without any for {:?}: {alone}",
        alone_from.elapsed()
    );
    let detail = watched.finish(&mut cluster)?;
    ensure!(detail["restarts"] == 0, "nothing was restarted: {detail}");
    cluster.shut_down()
}
