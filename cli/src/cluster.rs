//! A whole cluster in this process, with certificates that exist only in memory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tidemill_config::Config;
use tidemill_jobmanager::JobManagerHandle;
use tidemill_taskmanager::TaskManagerHandle;
use tidemill_transport::{CertificateError, ClusterCa, Credentials};

use crate::failure::{Exit, Failure};
use crate::process::write_addresses;

/// What a cluster in this process is made of.
pub(crate) struct Plan {
    /// The configuration of all its processes; directories and inner addresses are overruled.
    pub(crate) config: Config,
    /// How many TaskManagers.
    pub(crate) taskmanagers: u32,
    /// Where everything is kept.
    pub(crate) data_dir: PathBuf,
}

/// A running cluster.
pub(crate) struct LocalCluster {
    jobmanager: JobManagerHandle,
    taskmanagers: Vec<TaskManagerHandle>,
}

impl LocalCluster {
    /// Starts the JobManager, then the TaskManagers.
    pub(crate) async fn start(plan: &Plan) -> Result<Self, Failure> {
        let data_dir = std::path::absolute(&plan.data_dir).map_err(|error| {
            Failure::because(
                Exit::Failed,
                "the data directory has no absolute path",
                &error,
            )
        })?;
        let failed = |error: CertificateError| Failure::of(Exit::Failed, &error);
        let authority = ClusterCa::generate().map_err(failed)?;
        let credentials = |name: &str| {
            let identity = authority.issue(name)?;
            Credentials::new(&authority, &identity)
        };
        let config = jobmanager_config(&plan.config, &data_dir);
        let jobmanager =
            tidemill_jobmanager::start(&config, credentials("jobmanager").map_err(failed)?)
                .await
                .map_err(|error| Failure::of(Exit::Failed, &error))?;
        write_addresses(&config.jobmanager.data_dir, &Addresses::of(&jobmanager))?;
        let mut taskmanagers = Vec::new();
        for number in 1..=plan.taskmanagers {
            let name = format!("taskmanager-{number}");
            let config = taskmanager_config(&config, &data_dir, &name, jobmanager.quic_address());
            let started =
                tidemill_taskmanager::start(&config, credentials(&name).map_err(failed)?).await;
            taskmanagers.push(started.map_err(|error| Failure::of(Exit::Failed, &error))?);
        }
        Ok(Self {
            jobmanager,
            taskmanagers,
        })
    }

    /// Where its REST API is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.jobmanager.rest_address())
    }

    /// Waits until the JobManager has ended by itself, which it does only when it cannot go on.
    pub(crate) async fn ended(&mut self) {
        self.jobmanager.stopped().await;
    }

    /// Ends everything: TaskManagers last, so that none of them is taken for lost.
    pub(crate) async fn stop(mut self) {
        self.jobmanager.shutdown();
        self.jobmanager.stopped().await;
        for taskmanager in &mut self.taskmanagers {
            // There is nowhere for its tasks to go.
            taskmanager.stop();
            taskmanager.stopped().await;
        }
    }
}

/// What `addresses.json` of a JobManager holds.
#[derive(serde::Serialize)]
pub(crate) struct Addresses {
    pid: u32,
    rest_address: SocketAddr,
    quic_address: SocketAddr,
}

impl Addresses {
    pub(crate) fn of(jobmanager: &JobManagerHandle) -> Self {
        Self {
            pid: std::process::id(),
            rest_address: jobmanager.rest_address(),
            quic_address: jobmanager.quic_address(),
        }
    }
}

fn jobmanager_config(config: &Config, data_dir: &Path) -> Config {
    let mut config = config.clone();
    config.cluster.checkpoint_store_url = format!("file://{}", data_dir.join("store").display());
    config.jobmanager.data_dir = data_dir.join("jobmanager");
    config.jobmanager.quic_address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.jobmanager.liveness_port = 0;
    config
}

fn taskmanager_config(config: &Config, data_dir: &Path, name: &str, leader: SocketAddr) -> Config {
    let mut config = config.clone();
    config.taskmanager.id = Some(name.to_owned());
    config.taskmanager.data_dir = data_dir.join(name);
    config.taskmanager.data_address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.taskmanager.advertised_host = None;
    // They would all be given the same.
    config.taskmanager.metrics_address = None;
    config.taskmanager.jobmanagers = vec![leader.to_string()];
    config
}
