//! Processes are stopped in order and started again, one by one, while jobs run: for an upgrade, or a new setting.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tidemill_tests::{Cluster, ClusterOptions, TakeoverTable, unix_ms};

use crate::common::{REACTION_LIMIT, watched_count};

/// The session of every process: long, so that a leadership that is handed over is told from one that has run out.
const LONG_SESSION: Duration = Duration::from_secs(12);

/// How long a process may take to end when its tasks must move first.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

fn milliseconds(duration: Duration) -> Option<u64> {
    u64::try_from(duration.as_millis()).ok()
}

/// JobManagers first, the leader among them, then TaskManagers.
#[test]
fn rolling_restart() -> anyhow::Result<()> {
    // Room for every task while one TaskManager is away; and a strategy that would not bear a failure.
    let options = ClusterOptions::highly_available(LONG_SESSION).set("restart.strategy", "none");
    let mut cluster = Cluster::start(options)?;
    let watched = watched_count(&cluster, "output", 30, "127.0.0.1")?;
    watched.settle(&mut cluster)?;
    let before = watched.attempts()?;
    let mut table = TakeoverTable::new(&["ended", "leads", "checkpoint", "arrival gap"]);

    for index in 0..3 {
        let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
        let (at, at_ms) = (Instant::now(), unix_ms());
        cluster.jobmanager_at(index).ask_to_end()?;
        let was_leader = leader.index == index;
        let leads = match was_leader {
            true => {
                let next = cluster.wait_for_leader(leader.epoch, REACTION_LIMIT)?;
                let leads = at
                    .elapsed()
                    .saturating_sub(Duration::from_millis(next.leading_for_ms));
                ensure!(
                    leads < LONG_SESSION / 2,
                    "leadership is handed over at once, not after {leads:?}"
                );
                milliseconds(leads)
            }
            false => None,
        };
        let status = cluster.jobmanager_at(index).wait(DRAIN_LIMIT)?;
        let ended = at.elapsed();
        ensure!(status.success(), "it ended with {status}");
        let done_ms = watched.wait_for_checkpoint(&mut cluster, 0, at_ms + 1, REACTION_LIMIT)?;
        watched.nothing_moved(&before, "after a JobManager's end")?;
        cluster.restart_jobmanager_at(index)?;
        let gap = watched.receiver.gaps(at, Instant::now()).longest;
        let checkpoint = Some(done_ms.saturating_sub(at_ms));
        let label = format!(
            "jm-{}{}",
            index + 1,
            if was_leader { " (leads)" } else { "" }
        );
        table.add(
            label,
            &[milliseconds(ended), leads, checkpoint, milliseconds(gap)],
        );
    }
    for index in 0..3 {
        let (at, at_ms) = (Instant::now(), unix_ms());
        let name = format!("tm-{}", index + 1);
        let works = |task: &String| task.ends_with(&name);
        ensure!(
            watched.attempts()?.iter().any(works),
            "there is something on {name} that must move"
        );
        let status = cluster.taskmanagers()[index]
            .terminate(DRAIN_LIMIT)
            .with_context(|| format!("{name} drains"))?;
        let ended = at.elapsed();
        ensure!(status.success(), "it ended with {status}");
        let done_ms = watched.wait_for_checkpoint(&mut cluster, 0, at_ms + 1, REACTION_LIMIT)?;
        ensure!(
            !watched.attempts()?.iter().any(|task| task.ends_with(&name)),
            "nothing is left on {name}"
        );
        cluster.restart_taskmanagers()?;
        let gap = watched.receiver.gaps(at, Instant::now()).longest;
        let checkpoint = Some(done_ms.saturating_sub(at_ms));
        table.add(
            name,
            &[milliseconds(ended), None, checkpoint, milliseconds(gap)],
        );
    }
    println!("{table}");
    let detail = watched.running.finish(&mut cluster)?;
    ensure!(
        detail["restarts"] == 0 && detail["last_failure"].is_null(),
        "no failure is counted: {detail}"
    );
    cluster.shut_down()
}
