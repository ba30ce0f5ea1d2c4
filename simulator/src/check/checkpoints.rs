//! Checkpoints: published once and in order, whole when they are, by one attempt of each region, and never deleted while a
//! pointer leads to them. Restores go back to the last published one.

use std::collections::BTreeSet;
use std::rc::Rc;

use tidemill_core::graph::regions;
use tidemill_protocol::control::Deployment;
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobState};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId};

use super::{Checkers, Facts, Judged};
use crate::store::Store;
use crate::zookeeper::short;

impl Checkers {
    /// The registry holds these pointers from now on.
    pub(crate) fn pointers_written(
        &mut self,
        epoch: Epoch,
        job: JobId,
        pointers: &CheckpointPointers,
        store: &Store,
    ) -> Judged {
        self.written_under(epoch)?;
        let number = short(job);
        let facts = self.facts(job);
        let ids: Vec<CheckpointId> = pointers
            .completed
            .iter()
            .map(|one| one.checkpoint)
            .collect();
        if ids.is_empty() && !facts.state.as_ref().is_some_and(JobState::is_terminal) {
            return Err(format!(
                "the pointers of job {number} are cleared though it has not ended"
            ));
        }
        if !ids.is_sorted_by(|one, next| one < next) {
            return Err(format!(
                "the pointers of job {number} are out of order: {ids:?}"
            ));
        }
        let newest = facts.published.last().copied();
        let new: Vec<&CheckpointPointer> = pointers
            .completed
            .iter()
            .filter(|one| !facts.pointers.contains(&one.checkpoint))
            .collect();
        let is_new = !new.is_empty();
        for pointer in new {
            let id = pointer.checkpoint;
            if newest.is_some_and(|newest| id <= newest) {
                return Err(format!(
                    "checkpoint {id} of job {number} is published after {newest:?}"
                ));
            }
            if id.epoch != epoch {
                return Err(format!(
                    "checkpoint {id} of job {number} is published by epoch {epoch}"
                ));
            }
            facts
                .publish(pointer, store)
                .map_err(|what| format!("checkpoint {id} of job {number} {what}"))?;
        }
        if ids.last().copied() < newest && !ids.is_empty() {
            return Err(format!(
                "the pointers of job {number} go back from {newest:?} to {:?}",
                ids.last()
            ));
        }
        facts.pointers = ids;
        facts.references = references(pointers, store);
        self.published += u64::from(is_new);
        Ok(())
    }

    /// The leader tells tasks that a checkpoint is published.
    pub(crate) fn completed(&mut self, job: JobId, checkpoint: CheckpointId) -> Judged {
        if self.facts(job).published.contains(&checkpoint) {
            return Ok(());
        }
        Err(format!(
            "checkpoint {checkpoint} of job {} is called complete and was never published",
            short(job)
        ))
    }

    /// The leader deploys tasks on one TaskManager; `undisturbed` when all of their region run and nothing had happened
    /// to them.
    pub(crate) fn deployed(&mut self, deployment: &Deployment, undisturbed: bool) -> Judged {
        let (job, attempt) = (deployment.job, deployment.attempt);
        let number = short(job);
        let facts = self.facts(job);
        if facts.state.as_ref().is_some_and(JobState::is_terminal) {
            return Err(format!("job {number} has ended and is deployed again"));
        }
        if undisturbed {
            return Err(format!(
                "job {number} is started again as attempt {attempt} though all its tasks run"
            ));
        }
        let last = facts.pointers.last().copied();
        if deployment.restore != last && !facts.excused {
            let to = deployment.restore;
            return Err(format!(
                "attempt {attempt} of job {number} goes back to {to:?}, and {last:?} is published"
            ));
        }
        for task in &deployment.tasks {
            let before = facts.deployed.insert(task.task, attempt);
            if before.is_some_and(|before| before >= attempt) {
                return Err(format!(
                    "task {} of job {number} is deployed as {attempt} after {before:?}",
                    task.task
                ));
            }
        }
        Ok(())
    }

    /// The store has deleted an object.
    pub(crate) fn deleted(&mut self, job: JobId, key: &str) -> Judged {
        if self.facts(job).references.contains(key) {
            return Err(format!(
                "{key} is deleted, and a pointer of job {} leads to it",
                short(job)
            ));
        }
        Ok(())
    }
}

impl Facts {
    /// A checkpoint exists from now on: it must be whole.
    fn publish(&mut self, pointer: &CheckpointPointer, store: &Store) -> Judged {
        let metadata = store.metadata(&pointer.metadata.key);
        let metadata = metadata.ok_or_else(|| "is published without its metadata".to_owned())?;
        if metadata.checkpoint != pointer.checkpoint {
            return Err(format!("leads to the metadata of {}", metadata.checkpoint));
        }
        self.check_regions(metadata)?;
        for part in &metadata.tasks {
            let image = store.image(&part.manifest.key);
            let image = image.ok_or_else(|| format!("lacks the image of task {}", part.task))?;
            let parts = store.parts(&part.manifest.key, true);
            if !parts.is_some_and(|parts| parts.iter().all(|key| store.has(key))) {
                return Err(format!(
                    "lacks something that the image of task {} is made of",
                    part.task
                ));
            }
            for transaction in &image.pending {
                let records = &transaction.records;
                self.covered
                    .entry(transaction.id)
                    .or_insert_with(|| (pointer.checkpoint, Rc::clone(records)));
            }
            // A later leader may find an older attempt whole, and nothing committed by the one that was to replace it.
            let deployed = self
                .deployed
                .get(&part.task)
                .filter(|by| by.epoch == pointer.checkpoint.epoch);
            if let Some(newer) = deployed.filter(|newer| **newer != part.attempt) {
                return Err(format!(
                    "holds task {} of attempt {}, and its leader has deployed {newer} since",
                    part.task, part.attempt
                ));
            }
            if pointer.checkpoint.counter == 0 {
                // It is what the job begins from: another job's attempt has captured it.
                continue;
            }
            let before = self.captured_by.insert(part.task, part.attempt);
            // Where the last checkpoint is lost, an older attempt that still runs does no worse than going back further.
            if before.is_some_and(|before| before > part.attempt) && !self.excused {
                return Err(format!(
                    "holds task {} of attempt {} after {before:?}",
                    part.task, part.attempt
                ));
            }
        }
        self.published.insert(pointer.checkpoint);
        Ok(())
    }

    /// Every task is there, and those of one region were captured by one attempt.
    fn check_regions(&self, metadata: &CheckpointMetadata) -> Judged {
        let Some(spec) = &self.spec else {
            return Err("belongs to a job that nobody submitted".to_owned());
        };
        for region in regions(&spec.graph()) {
            let parts = metadata
                .tasks
                .iter()
                .filter(|part| region.contains(&part.task));
            let attempts: Vec<AttemptId> = parts.map(|part| part.attempt).collect();
            if attempts.len() != region.len() {
                return Err(format!(
                    "holds {} of {} tasks of a region",
                    attempts.len(),
                    region.len()
                ));
            }
            let different: BTreeSet<AttemptId> = attempts.into_iter().collect();
            if different.len() != 1 {
                return Err(format!("mixes the attempts {different:?} of one region"));
            }
        }
        Ok(())
    }
}

/// Every object that pointers lead to.
fn references(pointers: &CheckpointPointers, store: &Store) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for pointer in &pointers.completed {
        keys.insert(pointer.metadata.key.clone());
        let metadata = store.metadata(&pointer.metadata.key);
        let parts = metadata.into_iter().flat_map(|metadata| &metadata.tasks);
        for part in parts {
            keys.extend(store.parts(&part.manifest.key, true).unwrap_or_default());
        }
    }
    keys
}
