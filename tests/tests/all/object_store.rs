//! A cluster that keeps its checkpoints in a bucket instead of a directory.

use anyhow::ensure;
use tidemill_object_server::{Fault, ObjectServer};
use tidemill_tests::{Cluster, ClusterOptions};

use crate::common::{JOB_LIMIT, REACTION_LIMIT, keyed_count};

#[test]
fn a_job_whose_checkpoints_are_in_a_bucket_is_restored_from_there() -> anyhow::Result<()> {
    let server = ObjectServer::start()?;
    let options = ClusterOptions {
        environment: server.environment(),
        ..ClusterOptions::default()
    };
    let options = options.set("cluster.checkpoint_store_url", server.url("a/cluster"));
    let mut cluster = Cluster::start(options)?;
    let running = keyed_count(&cluster, "output", 6)?;
    running
        .job
        .wait_for_checkpoints(&mut cluster, 2, JOB_LIMIT)?;

    // The bucket is busy while the job recovers from it, and loses some answers.
    let faults = server.faults();
    faults.next(3, "GET ", Fault::Status(503));
    faults.next(3, "PUT ", Fault::LostReply);
    cluster.taskmanagers()[0].kill()?;
    running.finish(&mut cluster)?;
    ensure!(
        faults.seen("PUT /tidemill-tests/a/cluster/checkpoints/") > 0,
        "the checkpoints went into the bucket"
    );
    cluster.wait_for("the checkpoints to be deleted", REACTION_LIMIT, |_| {
        let keys = server.keys()?;
        let left = keys.iter().any(|key| key.contains("/checkpoints/"));
        Ok((!left).then_some(()))
    })?;
    ensure!(server.parts_left()? == 0);
    cluster.shut_down()
}
