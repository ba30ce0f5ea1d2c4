//! A disk that is full beneath the running cluster: what cannot be stored is told by name with its remedy, and all goes on
//! when there is room.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure};
use tidemill_tests::{Cluster, ClusterOptions};

use crate::command_line::{says, shown};
use crate::common::{
    JOB_LIMIT, REACTION_LIMIT, counting, files_below, finish_untouched, word_count,
};

/// A disk of a few MiB over a directory, as only root can make one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).ok()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(path.to_owned()));
        }
        eprintln!("skipped: a small disk can only be mounted by root");
        None
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all room that is left.
    fn fill(&self) -> anyhow::Result<()> {
        let mut filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.filler())?;
        loop {
            match filler.write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

#[test]
fn a_full_store_fails_checkpoints_by_name_until_there_is_room() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    // Beneath the running processes, which reach the store by its path.
    let Some(disk) = SmallDisk::mount(&cluster.directory().join("store"), "48m") else {
        return cluster.shut_down();
    };
    let parameters = [("rate", 3_000), ("ballast_bytes", 2 << 20)];
    let tolerate = |number: u32| format!("checkpoints.tolerable_failed={number}");
    let (patient, impatient) = (tolerate(1_000_000), tolerate(2));
    let survivor = counting(
        &cluster,
        "survivor",
        45_000,
        &parameters,
        &["--set", &patient],
    )?;
    let strict = ["--restart", "none", "--set", &impatient];
    let victim = counting(&cluster, "victim", 3_000_000, &parameters, &strict)?;
    for running in [&survivor, &victim] {
        running
            .job
            .wait_for_checkpoints(&mut cluster, 1, JOB_LIMIT)?;
    }

    let no_space = [
        "no space is left in the object store to write `checkpoints/",
        "free some, or move the store to a larger disk",
    ];
    let what = "the job that tolerates two failed checkpoints to fail";
    let detail = cluster.wait_for(what, JOB_LIMIT, |_| {
        disk.fill()?;
        let detail = victim.job.detail()?;
        Ok((detail["status"] == "failed").then_some(detail))
    })?;
    let message = detail["message"].as_str().unwrap_or_default();
    says(message, &["too many checkpoints failed in a row"])?;
    says(message, &no_space)?;
    ensure!(
        message.matches("os error 28").count() == 1,
        "the system's words are told once: {message}"
    );

    // Its objects are deleted now, which makes room for a checkpoint or two of the other.
    cluster.wait_for("a failed checkpoint of the other job", JOB_LIMIT, |_| {
        disk.fill()?;
        let failed = survivor.job.checkpoints()?["failed"].as_u64();
        Ok(failed.is_some_and(|failed| failed > 2).then_some(()))
    })?;
    says(&shown(&cluster, &["checkpoints", "survivor"])?, &no_space)?;
    says(&shown(&cluster, &["info", "survivor"])?, &no_space)?;
    let records_in = || -> anyhow::Result<u64> {
        let detail = survivor.job.detail()?;
        ensure!(detail["status"] == "running", "it goes on: {detail}");
        Ok(detail["records_in"].as_u64().unwrap_or(0))
    };
    let before = records_in()?;
    cluster.wait_for("records without checkpoints", REACTION_LIMIT, |_| {
        Ok((records_in()? > before).then_some(()))
    })?;
    disk.free()?;
    finish_untouched(&survivor, &mut cluster)?;
    let log = cluster.jobmanager().log();
    ensure!(
        !log.contains("stay for now"),
        "what is obsolete is deleted, and no clean-up gets in the way of another"
    );

    let checkpoints = cluster.directory().join("store/checkpoints");
    let what = "the ended jobs' checkpoints to be deleted";
    cluster.wait_for(what, REACTION_LIMIT, |_| {
        Ok((files_below(&checkpoints)? == 0).then_some(()))
    })?;
    disk.fill()?;
    let Err(refused) = word_count(&cluster, "late", 0) else {
        bail!("a job is acknowledged that could not be stored");
    };
    says(&format!("{refused:#}"), &["no space is left", "free some"])?;
    disk.free()?;
    word_count(&cluster, "late", 0)?.finish(&mut cluster)?;
    drop(disk);
    cluster.shut_down()
}
