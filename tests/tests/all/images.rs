//! Where tasks get their memory from when they go back: what they have, before what lies near, before what must be read.

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_object_server::ObjectServer;
use tidemill_tests::{Cluster, ClusterOptions};

use crate::common::{JOB_LIMIT, REACTION_LIMIT, StateOptions, Stateful};

/// So many tasks were restored from this source in the job's last recovery.
fn restored(detail: &Value, source: &str) -> anyhow::Result<u64> {
    let recoveries = detail["recoveries"].as_array();
    let last = recoveries.and_then(|all| all.last());
    let restored = last.with_context(|| format!("there was a recovery: {detail}"))?["restored"]
        .as_array()
        .context("recoveries tell what was restored")?;
    let of_source = restored.iter().filter(|it| it["source"] == source);
    Ok(of_source.filter_map(|it| it["tasks"].as_u64()).sum())
}

/// A job of two tasks with tables on TaskManagers of their own, a third being free.
fn lose_a_table(options: ClusterOptions, seconds: u64) -> anyhow::Result<(Cluster, Stateful)> {
    let options = ClusterOptions {
        slots: 1,
        ..options
    };
    let mut cluster = Cluster::start(options)?;
    let state = Stateful::submit(
        &cluster,
        &StateOptions {
            name: "rows",
            mib: 16,
            tasks: 2,
            writes: 500,
            seconds,
            has_exchange: true,
            more: &[],
        },
    )?;
    state
        .job
        .wait_for_checkpoints(&mut cluster, 3, REACTION_LIMIT)?;
    Ok((cluster, state))
}

#[test]
fn survivors_go_back_in_their_own_memory() -> anyhow::Result<()> {
    let (mut cluster, state) = lose_a_table(ClusterOptions::default(), 8)?;
    cluster.wait_for(
        "the module, compiled where no task runs as well",
        REACTION_LIMIT,
        |cluster| {
            let directory = cluster.directory().to_owned();
            let all = cluster.taskmanagers().iter().all(|process| {
                let compiled = directory.join(process.name()).join("compiled");
                std::fs::read_dir(compiled).is_ok_and(|mut files| files.next().is_some())
            });
            Ok(all.then_some(()))
        },
    )?;
    let lost = state.host(&mut cluster, 0)?;
    cluster.taskmanagers()[lost].kill()?;
    let detail = state.finish(&mut cluster)?;
    ensure!(
        restored(&detail, "memory")? > 0,
        "the table that was not lost was in memory: {}",
        detail["recoveries"]
    );
    ensure!(
        restored(&detail, "store")? > 0,
        "the lost table was in the store only: {}",
        detail["recoveries"]
    );
    cluster.shut_down()
}

/// What the tasks of the last checkpoint had copied before their barriers came, and what all of them captured.
fn copied_ahead(state: &Stateful) -> anyhow::Result<(u64, u64)> {
    let last = state.job.detail()?["last_checkpoint"].clone();
    let last = last.as_str().context("a checkpoint is complete")?;
    let detail = state.job.checkpoint(last)?;
    let captures = detail["captures"].as_array();
    let captures = captures.context("it is remembered task by task")?;
    let sum = |field| captures.iter().filter_map(|it| it[field].as_u64()).sum();
    Ok((sum("ahead_bytes"), sum("dirty_bytes")))
}

#[test]
fn what_changes_much_is_copied_before_its_barriers_and_comes_back_exactly() -> anyhow::Result<()> {
    let options = ClusterOptions::default().set("checkpoints.interval_ms", 1000);
    let mut cluster = Cluster::start(options)?;
    let options = StateOptions {
        name: "rows",
        mib: 64,
        tasks: 1,
        // Half of the table, and twice as much as a capture copies in its pause.
        writes: 8192,
        seconds: 12,
        has_exchange: true,
        more: &[],
    };
    let state = Stateful::submit(&cluster, &options)?;
    let (ahead, dirty) = cluster.wait_for("pages copied ahead", REACTION_LIMIT, |_| {
        if state.job.detail()?["last_checkpoint"].is_null() {
            return Ok(None);
        }
        Ok(Some(copied_ahead(&state)?).filter(|(ahead, _)| *ahead > 0))
    })?;
    ensure!(
        dirty >= 16 << 20,
        "{ahead} bytes were copied ahead of only {dirty}"
    );
    let lost = state.host(&mut cluster, 0)?;
    cluster.taskmanagers()[lost].kill()?;
    state.finish(&mut cluster)?;
    cluster.shut_down()
}

/// The TaskManagers whose tasks' images are all kept warm, of the last checkpoint, by others.
fn kept_elsewhere(detail: &Value) -> anyhow::Result<Vec<String>> {
    let tasks = detail["tasks_detail"].as_array().context("tasks")?;
    let last = &detail["last_checkpoint"];
    let is_kept = |task: &&Value| last.is_string() && task["standby"]["checkpoint"] == *last;
    let hosts = tasks
        .iter()
        .filter_map(|task| task["task_manager"].as_str());
    let kept = hosts.filter(|host| {
        let mut on_it = tasks.iter().filter(|task| task["task_manager"] == **host);
        on_it.all(|task| is_kept(&task))
    });
    Ok(kept.map(str::to_owned).collect())
}

/// Whether a TaskManager keeps images of another one's tasks.
fn keeps_for(detail: &Value, keeper: &str, host: &str) -> bool {
    let tasks = detail["tasks_detail"].as_array();
    let mut tasks = tasks.into_iter().flatten();
    tasks.any(|task| task["task_manager"] == host && task["standby"]["task_manager"] == keeper)
}

/// Waits until all images of a TaskManager that `fits` are kept warm of a checkpoint that has just become complete, and
/// kills it: there is most of an interval until the next one, which would be kept a little later.
fn kill_when_kept(
    cluster: &mut Cluster,
    state: &Stateful,
    fits: impl Fn(&Value, &str) -> bool,
) -> anyhow::Result<()> {
    let before = state.job.detail()?["last_checkpoint"].clone();
    let lost = cluster.wait_for("warm images", REACTION_LIMIT, |_| {
        let detail = state.job.detail()?;
        if detail["last_checkpoint"] == before {
            return Ok(None);
        }
        let kept = kept_elsewhere(&detail)?;
        Ok(kept.into_iter().find(|host| fits(&detail, host)))
    })?;
    let mut all = cluster.taskmanagers().iter_mut();
    let lost = all.find(|it| it.name() == lost);
    lost.context("tasks run on TaskManagers")?.kill()
}

#[test]
fn a_lost_task_goes_on_where_its_image_stands_by() -> anyhow::Result<()> {
    let options = ClusterOptions::default()
        .set("checkpoints.interval_ms", 1000)
        .set("recovery.standby", true);
    let (mut cluster, state) = lose_a_table(options, 10)?;
    let hosts = [state.host(&mut cluster, 0)?, state.host(&mut cluster, 1)?];
    let free = (0..3).find(|index| !hosts.contains(index));
    let free = cluster.taskmanagers()[free.context("one of three")?]
        .name()
        .to_owned();
    kill_when_kept(&mut cluster, &state, |detail, host| {
        keeps_for(detail, &free, host)
    })?;
    let detail = state.finish(&mut cluster)?;
    ensure!(
        restored(&detail, "local")? > 0 && restored(&detail, "store")? == 0,
        "what was lost was kept on other TaskManagers: {}",
        detail["recoveries"]
    );
    cluster.shut_down()
}

#[test]
fn a_lost_task_reads_its_image_from_another_taskmanager_that_has_no_room_for_it()
-> anyhow::Result<()> {
    let server = ObjectServer::start()?;
    let options = ClusterOptions {
        task_managers: 4,
        slots: 1,
        environment: server.environment(),
        ..ClusterOptions::default()
    };
    // Long enough that what is kept warm is of the last checkpoint for most of the time.
    let options = options
        .set("cluster.checkpoint_store_url", server.url("cluster"))
        .set("checkpoints.interval_ms", 2000)
        .set("recovery.standby", true);
    let mut cluster = Cluster::start(options)?;
    // One is away until the slots of the others are taken.
    let newcomer = cluster.taskmanagers()[3].name().to_owned();
    cluster.taskmanagers()[3].kill()?;
    cluster.wait_for_registration()?;
    let tables = StateOptions {
        name: "rows",
        mib: 16,
        tasks: 2,
        writes: 500,
        seconds: 20,
        has_exchange: true,
        more: &[],
    };
    let state = Stateful::submit(&cluster, &tables)?;
    state.job.wait_until(&mut cluster, "running", JOB_LIMIT)?;
    let filler = StateOptions {
        name: "filler",
        mib: 1,
        tasks: 1,
        writes: 500,
        ..tables
    };
    let filler = Stateful::submit(&cluster, &filler)?;
    filler.job.wait_until(&mut cluster, "running", JOB_LIMIT)?;
    cluster.restart_taskmanagers()?;
    kill_when_kept(&mut cluster, &state, |detail, host| {
        !keeps_for(detail, &newcomer, host)
    })?;

    let detail = state.finish(&mut cluster)?;
    ensure!(
        restored(&detail, "peer")? > 0 && restored(&detail, "store")? == 0,
        "the lost table came from the TaskManager that kept it warm: {}",
        detail["recoveries"]
    );
    let output = cluster.run(&["info".to_owned(), state.job.id().to_owned()])?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(printed.contains("another TaskManager"), "{printed}");
    filler.finish(&mut cluster)?;
    cluster.shut_down()
}
