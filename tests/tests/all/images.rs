//! Where tasks get their memory from when they go back: what they have, before what lies near, before what must be read.

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::{Cluster, ClusterOptions};

use crate::common::{REACTION_LIMIT, StateOptions, Stateful};

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

/// A job of two tasks with tables on TaskManagers of their own, a third being free; the first one's dies.
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

#[test]
fn a_lost_task_goes_on_where_its_image_stands_by() -> anyhow::Result<()> {
    let options = ClusterOptions::default().set("recovery.standby", true);
    let (mut cluster, state) = lose_a_table(options, 9)?;
    let lost = state.host(&mut cluster, 0)?;
    cluster.wait_for("the standby image", REACTION_LIMIT, |_| {
        let detail = state.job.detail()?;
        let tasks = detail["tasks_detail"].as_array().context("tasks")?;
        let tables = tasks.iter().filter(|task| task["stage"] == 0);
        let mut images = tables.map(|task| &task["standby"]["checkpoint"]);
        Ok(images.all(Value::is_string).then_some(()))
    })?;
    cluster.taskmanagers()[lost].kill()?;
    let detail = state.finish(&mut cluster)?;
    ensure!(
        restored(&detail, "local")? > 0 && restored(&detail, "store")? == 0,
        "the lost table was kept on another TaskManager: {}",
        detail["recoveries"]
    );
    cluster.shut_down()
}
