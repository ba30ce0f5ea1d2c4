//! Checkpoints that are damaged in the store, by single bits and more roughly: it is noticed wherever it is, said, and the
//! checkpoint before is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_tests::oracle::records;
use tidemill_tests::{Cluster, ClusterOptions, Job};

use crate::command_line::{says, shown};
use crate::common::{JOB_LIMIT, REACTION_LIMIT, Running, StateOptions, Stateful, counting};

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

/// How long the jobs take that lose a bit: all are submitted, and have checkpoints, before the first has ended.
const JOB_SECONDS: u64 = 14;

/// The checkpoints that each job can go back to, oldest first, once no TaskManager runs: nothing becomes a checkpoint any
/// more then, and what is retained is what a restart finds.
fn retained_at_rest(cluster: &mut Cluster, jobs: &[&Job]) -> anyhow::Result<Vec<Vec<String>>> {
    let retained = |job: &&Job| -> anyhow::Result<Option<Vec<String>>> {
        let checkpoints = job.checkpoints()?;
        let under_way = |checkpoint: &Value| checkpoint["status"] == "in-progress";
        let history = checkpoints["history"].as_array().context("a history")?;
        if job.status()? != "waiting" || history.iter().any(under_way) {
            return Ok(None);
        }
        Ok(Some(serde_json::from_value(
            checkpoints["retained"].clone(),
        )?))
    };
    let all = cluster.wait_for("every job to wait", REACTION_LIMIT, |_| {
        jobs.iter()
            .map(retained)
            .collect::<anyhow::Result<Option<Vec<_>>>>()
    })?;
    ensure!(
        all.iter().all(|checkpoints| checkpoints.len() == 2),
        "two checkpoints are kept of each job: {all:?}"
    );
    Ok(all)
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
                    writes: 500,
                    seconds: JOB_SECONDS,
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
    cluster.taskmanagers()[0].kill()?;
    let known: Vec<&Job> = jobs.iter().map(|job| &job.job).collect();
    let all_retained = retained_at_rest(&mut cluster, &known)?;
    for ((job, retained), (kind, thousandths, bit)) in jobs.iter().zip(&all_retained).zip(FLIPS) {
        let object = &objects(&cluster, &job.job, &retained[1], kind)?[0];
        let mut bytes = fs::read(object)?;
        let at = (bytes.len() - 1) * thousandths / 1000;
        bytes[at] ^= 1 << bit;
        fs::write(object, bytes)?;
    }
    cluster.restart_taskmanagers()?;
    for ((job, retained), flip) in jobs.iter().zip(&all_retained).zip(FLIPS) {
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

/// What happens to a stored object.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut,
    Flipped,
    Missing,
}

impl Damage {
    fn inflict(self, object: &Path) -> anyhow::Result<()> {
        let mut bytes = fs::read(object)?;
        let middle = bytes.len() / 2;
        match self {
            Self::Missing => return Ok(fs::remove_file(object)?),
            Self::Cut => bytes.truncate(middle),
            Self::Flipped => bytes[middle] ^= 0x10,
        }
        Ok(fs::write(object, bytes)?)
    }

    /// How it is told.
    fn words(self) -> &'static str {
        match self {
            Self::Cut => "it was cut or overwritten",
            Self::Flipped => "is damaged (",
            Self::Missing => "is missing from the object store",
        }
    }
}

/// The objects of a kind that a checkpoint, `epoch.counter`, has in the store.
fn objects(
    cluster: &Cluster,
    job: &Job,
    checkpoint: &str,
    kind: &str,
) -> anyhow::Result<Vec<PathBuf>> {
    let (epoch, counter) = checkpoint.split_once('.').context("epoch.counter")?;
    let directory = cluster
        .directory()
        .join("store/checkpoints")
        .join(job.id())
        .join(format!("{epoch:0>20}-{counter:0>20}"));
    let mut objects = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(kind) {
            objects.push(path);
        }
    }
    ensure!(!objects.is_empty(), "{checkpoint} has no {kind}");
    Ok(objects)
}

/// Checks that every key was counted through, each number at least once.
fn nothing_lost(running: &Running, count: u64, keys: u64) -> anyhow::Result<()> {
    let mut counted: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for record in records(&running.output)? {
        let number = |field: &str| {
            let number = record[field].as_u64();
            number.with_context(|| format!("{record} has no {field}"))
        };
        counted
            .entry(number("key")?)
            .or_default()
            .insert(number("count")?);
    }
    let truth = (0..keys).map(|key| (key, (1..=(count - key).div_ceil(keys)).collect()));
    ensure!(counted == truth.collect(), "the counts are not the truth");
    Ok(())
}

#[test]
fn a_damaged_checkpoint_sends_its_job_back_to_the_one_before() -> anyhow::Result<()> {
    let options = ClusterOptions {
        slots: 4,
        ..ClusterOptions::default()
    };
    let options = options
        .set("checkpoints.interval_ms", 400)
        .set("cluster.adoption_timeout_ms", 500);
    let mut cluster = Cluster::start(options)?;
    // At this rate the first still runs when the last of all has its checkpoints.
    let count = 16_000;
    let start = |name: &str| counting(&cluster, name, count, &[("rate", 1_000)], &[]);
    let mut damaged = Vec::new();
    for kind in [".segment", ".manifest", "metadata"] {
        for damage in [Damage::Cut, Damage::Flipped, Damage::Missing] {
            let running = start(&format!("{damage:?}-{}", kind.trim_matches('.')))?;
            damaged.push((running, kind, damage));
        }
    }
    let (untouched, ruined) = (start("untouched")?, start("ruined")?);
    let jobs: Vec<&Running> = damaged
        .iter()
        .map(|(running, _, _)| running)
        .chain([&untouched, &ruined])
        .collect();
    for running in &jobs {
        running
            .job
            .wait_for_checkpoints(&mut cluster, 3, JOB_LIMIT)?;
    }
    for process in cluster.taskmanagers() {
        process.kill()?;
    }
    let known: Vec<&Job> = jobs.iter().map(|running| &running.job).collect();
    let retained = retained_at_rest(&mut cluster, &known)?;
    cluster.jobmanager().kill()?;

    for ((running, kind, damage), checkpoints) in damaged.iter().zip(&retained) {
        let object = &objects(&cluster, &running.job, &checkpoints[1], kind)?[0];
        damage.inflict(object)?;
    }
    for checkpoint in &retained[jobs.len() - 1] {
        for object in objects(&cluster, &ruined.job, checkpoint, ".manifest")? {
            Damage::Flipped.inflict(&object)?;
        }
    }
    cluster.restart_jobmanager()?;
    cluster.restart_taskmanagers()?;

    for ((running, kind, damage), checkpoints) in damaged.iter().zip(&retained) {
        let detail = running
            .job
            .wait_until(&mut cluster, "finished", JOB_LIMIT)?;
        let told = format!(
            "checkpoint {} cannot be used, so the one before is",
            checkpoints[1]
        );
        let again = format!("start from checkpoint {}", checkpoints[0]);
        let events = detail["events"].to_string();
        says(&events, &[&told, damage.words(), kind, &again])
            .with_context(|| format!("{damage:?} {kind}"))?;
        nothing_lost(running, count, 10).with_context(|| format!("{damage:?} {kind}"))?;
    }
    let info = shown(&cluster, &["info", "Missing-metadata"])?;
    says(&info, &["cannot be used", "may appear again"])?;

    let end = cluster.wait_for("the ruined job's end", JOB_LIMIT, |_| {
        let detail = ruined.job.detail()?;
        Ok((detail["status"] == "failed").then_some(detail))
    })?;
    let message = end["message"].as_str().unwrap_or_default();
    says(message, &["no completed checkpoint is usable", ".manifest"])?;
    untouched.finish(&mut cluster)?;
    cluster.shut_down()
}
