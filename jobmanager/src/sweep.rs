//! What earlier leaders left in the store and no job's own clean-up finds: objects of jobs whose record they did not come to
//! write, or had removed, savepoints that they did not complete, and uploads that were cut off. Once for each leadership. It
//! touches nothing of a job that has a record.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tidemill_protocol::JobId;
use tracing::{info, warn};

use crate::error_chain;
use crate::perform::Hands;

/// What nobody has written to for so long is not being written.
const UNTOUCHED: Duration = Duration::from_secs(24 * 60 * 60);

/// Deletes it all, and lets submissions begin as soon as none of theirs can be taken for what is left of another.
pub(crate) async fn sweep(hands: Hands, savepoint_dir: String) {
    let swept = delete_unrecorded(&hands).await;
    hands.swept.cancel();
    if let Err(reason) = swept {
        warn!("what is left in the store of jobs that have no record stays for now: {reason}");
    }
    let since = SystemTime::now() - UNTOUCHED;
    match hands
        .store
        .delete_incomplete_savepoints(&savepoint_dir, since)
        .await
    {
        Ok(deleted) if deleted.is_empty() => {}
        Ok(deleted) => info!(?deleted, "savepoints that were never completed are deleted"),
        Err(error) => warn!(
            "incomplete savepoints stay for now: {}",
            error_chain(&error)
        ),
    }
    if let Err(error) = hands.store.delete_stale_uploads(since).await {
        warn!(
            "uploads that were cut off stay for now: {}",
            error_chain(&error)
        );
    }
}

async fn delete_unrecorded(hands: &Hands) -> Result<(), String> {
    let records = hands.registry.jobs().await;
    let records = records.map_err(|error| error_chain(&error))?;
    let recorded: BTreeSet<JobId> = records
        .into_iter()
        .map(|record| match record {
            Ok(record) => record.id,
            Err(damaged) => damaged.job,
        })
        .collect();
    let epoch = hands.leading.epoch();
    let deleted = hands.store.delete_unrecorded(&recorded, epoch).await;
    let deleted = deleted.map_err(|error| error_chain(&error))?;
    if !deleted.is_empty() {
        info!(?deleted, "objects of jobs that have no record are deleted");
    }
    Ok(())
}
