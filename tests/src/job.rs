//! One submitted job, seen through the REST API.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{Cluster, Rest};

/// A job of a cluster.
#[derive(Clone, Debug)]
pub struct Job {
    rest: Rest,
    id: String,
}

impl Job {
    pub(crate) fn new(rest: Rest, id: &str) -> Self {
        Self {
            rest,
            id: id.to_owned(),
        }
    }

    /// Its id, 32 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Everything about it.
    ///
    /// # Errors
    /// When the JobManager does not answer or does not know it.
    pub fn detail(&self) -> anyhow::Result<Value> {
        self.rest.get(&format!("/v1/jobs/{}", self.id))
    }

    /// Its checkpoints.
    ///
    /// # Errors
    /// When the JobManager does not answer or does not know it.
    pub fn checkpoints(&self) -> anyhow::Result<Value> {
        self.rest.get(&format!("/v1/jobs/{}/checkpoints", self.id))
    }

    /// One of its checkpoints, `epoch.counter`, task by task.
    ///
    /// # Errors
    /// When the JobManager does not answer or does not know either of them.
    pub fn checkpoint(&self, checkpoint: &str) -> anyhow::Result<Value> {
        let checkpoints = format!("/v1/jobs/{}/checkpoints", self.id);
        self.rest.get(&format!("{checkpoints}/{checkpoint}"))
    }

    /// What it is doing: `running`, `waiting`, …
    ///
    /// # Errors
    /// When the JobManager does not answer or does not know it.
    pub fn status(&self) -> anyhow::Result<String> {
        let detail = self.detail()?;
        Ok(detail["status"]
            .as_str()
            .context("a job has a status")?
            .to_owned())
    }

    /// Asks for its end.
    ///
    /// # Errors
    /// When the JobManager does not answer or refuses.
    pub fn cancel(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let output = cluster.run(&["cancel".to_owned(), self.id.clone()])?;
        match output.status.success() {
            true => Ok(()),
            false => bail!(
                "`tidemill cancel` failed: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    /// Waits until it has this status. A job that has come to another end is an error at once.
    ///
    /// # Errors
    /// See above, and when the limit has passed.
    pub fn wait_until(
        &self,
        cluster: &mut Cluster,
        status: &str,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let what = format!("the job to be {status}");
        let detail = cluster.wait_for(&what, limit, |_| {
            let detail = self.detail()?;
            let has_ended = ["finished", "failed", "cancelled"]
                .iter()
                .any(|end| detail["status"] == *end);
            Ok((has_ended || detail["status"] == status).then_some(detail))
        })?;
        if detail["status"] != status {
            bail!(
                "the job is {} instead of {status}: {} {}",
                detail["status"],
                detail["message"],
                detail["last_failure"]
            );
        }
        Ok(detail)
    }

    /// Waits until it has completed so many checkpoints, as far as the present JobManager knows.
    ///
    /// # Errors
    /// When the limit has passed.
    pub fn wait_for_checkpoints(
        &self,
        cluster: &mut Cluster,
        number: u64,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let what = format!("{number} checkpoints");
        cluster.wait_for(&what, limit, |_| {
            let completed = self.detail()?["checkpoints_completed"]
                .as_u64()
                .unwrap_or(0);
            Ok((completed >= number).then_some(()))
        })
    }
}
