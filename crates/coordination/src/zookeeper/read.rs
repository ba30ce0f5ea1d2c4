//! Reads of the registry. Each begins with a `sync`, so that it sees every write that was answered before, whoever made
//! it, and the fate of one's own that was not answered. It never waits longer than a session may last.

use std::time::Duration;

use tidemill_protocol::JobId;
use tidemill_protocol::codec;
use tidemill_protocol::record::{CheckpointPointers, JobRecord};
use tokio::time;
use tracing::warn;
use zookeeper_client::{Client, Error};

use super::layout::{CHECKPOINTS, JOBS};
use super::session::Shared;
use crate::decode::decode_job;
use crate::error::Cause;
use crate::{DamagedJob, ReadError};

/// How many nodes are asked for before the first answer is waited for.
const READS_AT_ONCE: usize = 64;

/// Beyond the session's timeout, before a read is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Every job, in order of its id.
pub(super) async fn jobs(shared: &Shared) -> Result<Vec<Result<JobRecord, DamagedJob>>, ReadError> {
    persistently(shared, all_jobs).await
}

async fn all_jobs(client: Client) -> Result<Vec<Result<JobRecord, DamagedJob>>, Error> {
    let (synced, names) = (client.sync(JOBS), client.list_children(JOBS));
    synced.await?;
    let mut ids: Vec<JobId> = Vec::new();
    for name in names.await? {
        match name.parse() {
            Ok(id) => ids.push(id),
            Err(_) => warn!(name, "a node that is no job is passed over in {JOBS}"),
        }
    }
    ids.sort_unstable();
    let mut jobs = Vec::new();
    for some in ids.chunks(READS_AT_ONCE) {
        let asked: Vec<_> = some
            .iter()
            .map(|id| (*id, client.get_data(&format!("{JOBS}/{id}"))))
            .collect();
        for (id, asked) in asked {
            match asked.await {
                Ok((data, _)) => jobs.push(decode_job(id, &data)),
                // It was removed in between.
                Err(Error::NoNode) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(jobs)
}

/// A job's completed checkpoints.
pub(super) async fn pointers(shared: &Shared, job: JobId) -> Result<CheckpointPointers, ReadError> {
    let path = format!("{CHECKPOINTS}/{job}");
    let stored = persistently(shared, |client: Client| {
        let path = path.clone();
        async move {
            let (synced, stored) = (client.sync(&path), client.get_data(&path));
            synced.await?;
            match stored.await {
                Ok((data, _)) => Ok(Some(data)),
                Err(Error::NoNode) => Ok(None),
                Err(error) => Err(error),
            }
        }
    });
    match stored.await? {
        None => Ok(CheckpointPointers::default()),
        Some(data) => {
            codec::decode(&data).map_err(|source| ReadError::DamagedPointers { job, source })
        }
    }
}

/// Reads in whatever session there is, and again when it breaks off.
async fn persistently<T, Reading: Future<Output = Result<T, Error>>>(
    shared: &Shared,
    read: impl Fn(Client) -> Reading,
) -> Result<T, ReadError> {
    let unavailable = |source: Cause| ReadError::Unavailable {
        place: shared.place.clone(),
        source,
    };
    let attempts = async {
        loop {
            let session = shared
                .session()
                .await
                .map_err(|trouble| unavailable(trouble.into()))?;
            match read(session.client.clone()).await {
                Ok(result) => return Ok(result),
                Err(Error::ConnectionLoss) => {}
                // There will be another.
                Err(Error::SessionExpired | Error::ClientClosed | Error::SessionMoved) => {
                    session.ended().await;
                }
                Err(error) => return Err(unavailable(error.into())),
            }
        }
    };
    match time::timeout(shared.session_timeout() + PATIENCE, attempts).await {
        Ok(result) => result,
        Err(_) => Err(unavailable(match shared.trouble() {
            Some(trouble) => trouble.into(),
            None => "no server answers".into(),
        })),
    }
}
