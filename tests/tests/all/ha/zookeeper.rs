//! ZooKeeper servers die, stop and come back: nothing restarts, and what needs them waits.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidemill_tests::{Cluster, ClusterOptions, TakeoverTable, commits_ms, unix_ms};

use crate::common::{REACTION_LIMIT, SESSION, Watched, watched_count};

/// In turn of followers and of leaders of the ensemble, as many as the machine has time for while the job runs.
const KILLS: u32 = 10;
/// What a kill may need at worst of that time.
const KILL_SECONDS: u64 = 8;

#[test]
fn one_of_three_servers_is_killed_ten_times_and_nothing_restarts() -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(0);
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    let watched = watched_count(&cluster, "output", 35, "127.0.0.1")?;
    watched.settle(&mut cluster)?;
    let before = watched.attempts()?;
    let from = Instant::now();
    let mut table = TakeoverTable::new(&["checkpoint", "epochs", "arrival gap"]);
    let mut kills = 0;
    for number in 0..KILLS {
        if !watched.lasts_for(KILL_SECONDS) {
            break;
        }
        kills += 1;
        let records = random.random_range(1..1_000);
        watched.wait_for_arrivals(&mut cluster, records, REACTION_LIMIT)?;
        let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
        let lead_server = cluster.ensemble().wait_for_leader()?;
        let kills_its_leader = number % 2 == 1;
        let server = match kills_its_leader {
            true => lead_server,
            false => (lead_server + 1 + random.random_range(0..2)) % 3,
        };
        let (at, at_ms) = (Instant::now(), unix_ms());
        cluster.ensemble().kill(server)?;
        let done_ms = watched.wait_for_checkpoint(&mut cluster, 0, at_ms + 1, REACTION_LIMIT)?;
        cluster.ensemble().restart(server)?;
        watched
            .nothing_moved(&before, "after a server's end")
            .with_context(|| format!("kill {number}"))?;
        let present = cluster.wait_for_leader(0, REACTION_LIMIT)?;
        let gap = watched.receiver.gaps(at, Instant::now()).longest;
        table.add(
            if kills_its_leader {
                "its leader"
            } else {
                "a follower"
            },
            &[
                Some(done_ms.saturating_sub(at_ms)),
                Some(u64::from(present.epoch != leader.epoch)),
                Some(u64::try_from(gap.as_millis())?),
            ],
        );
        ensure!(
            kills_its_leader || present.epoch == leader.epoch,
            "a follower's end costs nobody a session: {leader:?}, {present:?}"
        );
    }
    println!("{}\n{table}", watched.receiver.gaps(from, Instant::now()));
    ensure!(kills >= KILLS / 2, "there was time for {kills} kills only");
    let detail = watched.finish(&mut cluster)?;
    ensure!(detail["restarts"] == 0, "nothing was restarted: {detail}");
    cluster.shut_down()
}

/// How all servers go away.
#[derive(Clone, Copy, Debug)]
enum Absence {
    Stopped,
    Killed,
}

fn away(
    cluster: &mut Cluster,
    watched: &Watched,
    absence: Absence,
    time: Duration,
) -> anyhow::Result<()> {
    let before = watched.attempts()?;
    let (from, from_ms) = (Instant::now(), unix_ms());
    for server in 0..3 {
        match absence {
            Absence::Stopped => cluster.ensemble().freeze(server)?,
            Absence::Killed => cluster.ensemble().kill(server)?,
        }
    }
    cluster.wait_for("the servers to be away for long", time * 2, |_| {
        Ok((from.elapsed() >= time).then_some(()))
    })?;
    let (back, back_ms) = (Instant::now(), unix_ms());
    for server in 0..3 {
        match absence {
            Absence::Stopped => cluster.ensemble().thaw(server)?,
            Absence::Killed => {}
        }
    }
    cluster.ensemble().start_all()?;
    let meanwhile = watched.receiver.gaps(from, back);
    ensure!(
        // A task that needed ZooKeeper would stand still for nearly all of the time.
        meanwhile.longest < time / 3,
        "tasks go on processing while ZooKeeper is away: {meanwhile}"
    );
    let leader = cluster.wait_for_leader(0, REACTION_LIMIT)?;
    let leads = back.elapsed();
    let done_ms = watched.wait_for_checkpoint(cluster, leader.epoch, back_ms, REACTION_LIMIT)?;
    watched.nothing_moved(&before, "after ZooKeeper came back")?;
    let commits = commits_ms(&watched.running.output)?;
    // What had been decided before is shown soon after, by a machine that is busy too.
    let paused = from_ms + u64::try_from((SESSION * 2).as_millis())?;
    let shown = commits.iter().filter(|ms| (paused..back_ms).contains(ms));
    ensure!(
        shown.count() == 0,
        "no checkpoint completes without ZooKeeper"
    );
    println!(
        "{absence:?} for {time:?}: {meanwhile}; a leader {} ms and a checkpoint {} ms after",
        leads.as_millis(),
        done_ms.saturating_sub(back_ms)
    );
    Ok(())
}

/// All servers are stopped, then killed and started again, for several sessions each.
#[test]
fn zookeeper_away() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::highly_available(SESSION))?;
    let watched = watched_count(&cluster, "output", 48, "127.0.0.1")?;
    watched.settle(&mut cluster)?;
    for (absence, seconds) in [(Absence::Stopped, 16), (Absence::Killed, 10)] {
        let time = Duration::from_secs(seconds);
        away(&mut cluster, &watched, absence, time).with_context(|| format!("{absence:?}"))?;
    }
    let detail = watched.finish(&mut cluster)?;
    ensure!(detail["restarts"] == 0, "nothing was restarted: {detail}");
    cluster.shut_down()
}
