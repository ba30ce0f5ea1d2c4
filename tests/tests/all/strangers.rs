//! A process that has no part in the cluster knocks at its doors.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, ensure};
use tidemill_tests::{Cluster, ClusterOptions};

use crate::command_line::{shown, text, tidemill_alone};
use crate::common::{REACTION_LIMIT, finish_untouched, word_count};

/// A process beside the cluster's own, which ends with this value.
struct Stranger {
    child: Child,
    log: PathBuf,
}

impl Stranger {
    /// A TaskManager with this cluster's configuration and another one's certificates.
    fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let directory = cluster.directory().join("stranger");
        fs::create_dir_all(&directory)?;
        let certificates = directory.join("tls");
        let path = certificates.to_str().context("a path in UTF-8")?;
        let certs = ["certs", "--out", path];
        let issued = tidemill_alone()?.args(certs).output()?;
        ensure!(issued.status.success(), "{}", text(&issued));
        let log = directory.join("stranger.log");
        let mut command = tidemill_alone()?;
        command
            .args(["taskmanager", "--config"])
            .arg(cluster.directory().join("tidemill.toml"));
        for setting in [
            "taskmanager.id=stranger".to_owned(),
            format!("taskmanager.data_dir={}", directory.display()),
            format!("taskmanager.jobmanagers={}", cluster.quic_address()),
            format!("tls.dir={path}"),
        ] {
            command.args(["--set", &setting]);
        }
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()?;
        Ok(Self { child, log })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_taskmanager_of_another_cluster_is_refused_and_both_say_so() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let healthy = word_count(&cluster, "healthy", 4)?;
    let mut stranger = Stranger::start(&cluster)?;
    let remedy = "give every process of a cluster a certificate of the same CA";
    cluster.wait_for("the stranger to say so", REACTION_LIMIT, |_| {
        Ok(stranger.log().contains(remedy).then_some(()))
    })?;
    cluster.wait_for("the JobManager to say so", REACTION_LIMIT, |cluster| {
        Ok(cluster.jobmanager().log().contains(remedy).then_some(()))
    })?;
    ensure!(
        stranger.child.try_wait()?.is_none(),
        "it goes on trying: {}",
        stranger.log()
    );
    let nodes = shown(&cluster, &["nodes"])?;
    ensure!(!nodes.contains("stranger"), "{nodes}");
    finish_untouched(&healthy, &mut cluster)?;
    cluster.shut_down()
}
