//! Jobs whose objects are there though the registry has no record of them: those that are being submitted, whose record
//! comes last, and those that are being forgotten, whose record goes first. A mark among their objects says so, for a
//! later leader to delete what a crash left. It never deletes the objects of a job without a mark: the registry may be
//! another one, or restored from a backup.

use std::collections::BTreeSet;

use tidemill_protocol::{Epoch, JobId};

use crate::store::path;
use crate::{CleanupError, Store, WriteError, keys};

impl Store {
    /// Marks a job that has no record yet, or soon none any more, in this leader's epoch.
    ///
    /// # Errors
    /// When the mark could not be written; the job's objects are then not to be written, nor its record removed.
    pub async fn mark_unrecorded(&self, job: JobId, epoch: Epoch) -> Result<(), WriteError> {
        let key = keys::unrecorded(job, epoch);
        self.put_object(&key, &b""[..]).await.map(drop)
    }

    /// Takes the marks off a job that has its record.
    ///
    /// # Errors
    /// When the store fails; a mark that stays does no harm to a job that has a record.
    pub async fn unmark_unrecorded(&self, job: JobId) -> Result<(), CleanupError> {
        let prefix = keys::job(job);
        for (marked, epoch) in self.unrecorded(&prefix).await? {
            let key = keys::unrecorded(marked, epoch);
            let deleted = self.delete_key(&key).await;
            deleted.map_err(|error| error.cleaning(&prefix))?;
        }
        Ok(())
    }

    /// Deletes all objects of jobs that were marked in an epoch before this one and have no record; returns which. The
    /// caller leads in this epoch, so that no earlier leader writes a record any more, and has read `recorded` since.
    ///
    /// # Errors
    /// When the store fails; it may be repeated.
    pub async fn delete_unrecorded(
        &self,
        recorded: &BTreeSet<JobId>,
        before: Epoch,
    ) -> Result<Vec<JobId>, CleanupError> {
        let mut deleted = Vec::new();
        for (job, epoch) in self.unrecorded(keys::JOBS).await? {
            if recorded.contains(&job) {
                self.unmark_unrecorded(job).await?;
            } else if epoch < before && !deleted.contains(&job) {
                self.delete_job(job).await?;
                deleted.push(job);
            }
        }
        Ok(deleted)
    }

    /// The marks below a prefix.
    async fn unrecorded(&self, prefix: &str) -> Result<Vec<(JobId, Epoch)>, CleanupError> {
        let listed = async { self.list_below(&path(prefix)?).await };
        let listed = listed.await.map_err(|error| error.cleaning(prefix))?;
        let marks = listed.iter();
        Ok(marks
            .filter_map(|object| keys::unrecorded_of(object.location.as_ref()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mortal::Mortal;
    use object_store::memory::InMemory;

    const JOBS: [JobId; 3] = [JobId([1; 16]), JobId([2; 16]), JobId([3; 16])];

    #[tokio::test]
    async fn only_what_was_marked_by_an_earlier_leader_and_has_no_record_goes() {
        let life = Mortal::new(&InMemory::new(), usize::MAX);
        let store = life.store();
        for job in JOBS {
            store.put_graph(job, "graph").await.unwrap();
        }
        let [recorded, marked, unmarked] = JOBS;
        store.mark_unrecorded(recorded, Epoch(3)).await.unwrap();
        store.mark_unrecorded(marked, Epoch(3)).await.unwrap();
        let records = BTreeSet::from([recorded]);
        let scan = async |epoch| store.delete_unrecorded(&records, Epoch(epoch)).await;
        assert_eq!(scan(3).await.unwrap(), [], "it may be under way");
        assert_eq!(scan(4).await.unwrap(), [marked]);
        assert_eq!(
            life.keys().await,
            [keys::graph(recorded), keys::graph(unmarked)]
        );
        assert_eq!(scan(4).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_deletion_that_dies_after_any_step_leaves_the_mark_until_the_end() {
        let [job, ..] = JOBS;
        let full = Mortal::new(&InMemory::new(), usize::MAX);
        let store = full.store();
        store.mark_unrecorded(job, Epoch(3)).await.unwrap();
        store.put_graph(job, "graph").await.unwrap();
        let own = format!("{}/x/y.segment", keys::checkpoints(job));
        store.put_object(&own, "pages").await.unwrap();
        let objects = full.into_objects();
        for step in 0..3 {
            let life = Mortal::new(&objects, step);
            life.store().delete_job(job).await.unwrap_err();
            let store = life.store_of_the_next_life();
            let deleted = store.delete_unrecorded(&BTreeSet::new(), Epoch(4)).await;
            assert_eq!(deleted.unwrap(), [job]);
            assert_eq!(life.keys().await, Vec::<String>::new());
        }
    }
}
