//! Single bits of the newest checkpoint flip on the disk, then the TaskManager dies: it is noticed wherever they are, said,
//! and the checkpoint before is used.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::{Cluster, ClusterOptions};

use crate::common::{REACTION_LIMIT, StateOptions, Stateful};
use crate::faults::objects;

/// Where a bit flips: in which kind of object, how far into it in thousandths of its length, and which bit of that byte.
const FLIPS: [(&str, usize, u8); 12] = [
    (".segment", 0, 0),
    (".segment", 1, 7),
    (".segment", 125, 3),
    (".segment", 250, 1),
    (".segment", 499, 6),
    (".segment", 500, 2),
    (".segment", 750, 5),
    (".segment", 998, 4),
    (".segment", 1000, 7),
    (".manifest", 10, 0),
    (".manifest", 500, 4),
    (".manifest", 1000, 7),
];

/// The checkpoints that a job can go back to, once none is about to become one.
fn settled(job: &Stateful) -> anyhow::Result<Option<Vec<String>>> {
    let checkpoints = job.job.checkpoints()?;
    let history = checkpoints["history"].as_array().context("a history")?;
    let is_published_soon = |checkpoint: &Value| {
        checkpoint["status"] == "in-progress"
            && checkpoint["tasks_acknowledged"] == checkpoint["tasks"]
    };
    if history.iter().any(is_published_soon) {
        return Ok(None);
    }
    Ok(Some(serde_json::from_value(
        checkpoints["retained"].clone(),
    )?))
}

#[test]
fn a_flipped_bit_anywhere_sends_the_job_back_to_the_checkpoint_before() -> anyhow::Result<()> {
    let options = ClusterOptions {
        task_managers: 1,
        slots: FLIPS.len() as u32,
        ..ClusterOptions::default()
    };
    // What the TaskManager keeps itself would be as good as the store, and nothing would have to be read from there.
    let options = options
        .set("checkpoints.interval_ms", 600)
        .set("taskmanager.local_image_max_bytes", 0);
    let mut cluster = Cluster::start(options)?;
    // Every page is written twice in a second, so that a checkpoint holds the whole MiB.
    let jobs = (0..FLIPS.len())
        .map(|number| {
            Stateful::submit(
                &cluster,
                &StateOptions {
                    name: &format!("flip-{number}"),
                    mib: 1,
                    tasks: 1,
                    seconds: 9,
                    has_exchange: false,
                    more: &[],
                },
            )
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    for job in &jobs {
        job.job
            .wait_for_checkpoints(&mut cluster, 3, REACTION_LIMIT)?;
    }
    // Nothing becomes a checkpoint any more, so that the damaged one stays the newest.
    cluster.taskmanagers()[0].freeze()?;
    let mut newest = Vec::new();
    for (job, (kind, thousandths, bit)) in jobs.iter().zip(FLIPS) {
        let retained =
            cluster.wait_for("the last checkpoints", REACTION_LIMIT, |_| settled(job))?;
        ensure!(retained.len() == 2, "two are kept: {retained:?}");
        let object = &objects(&cluster, &job.job, &retained[1], kind)?[0];
        let mut bytes = fs::read(object)?;
        let at = (bytes.len() - 1) * thousandths / 1000;
        bytes[at] ^= 1 << bit;
        fs::write(object, bytes)?;
        newest.push(retained);
    }
    cluster.taskmanagers()[0].kill()?;
    cluster.restart_taskmanagers()?;
    for ((job, retained), flip) in jobs.iter().zip(&newest).zip(FLIPS) {
        let detail = job
            .finish_without_loss(&mut cluster)
            .with_context(|| format!("{flip:?}"))?;
        let events = detail["events"].to_string();
        for word in [
            &*format!("checkpoint {} cannot be used", retained[1]),
            "is damaged (",
            flip.0,
            &format!("start from checkpoint {}", retained[0]),
        ] {
            ensure!(events.contains(word), "{flip:?}: no `{word}` in {events}");
        }
    }
    cluster.shut_down()
}
