//! Savepoints: made of what is published and not deleted meanwhile; a job that was stopped with one, and one that begins
//! from it, have every record in their output once between them.

use tidemill_protocol::record::JobState;
use tidemill_protocol::{CheckpointId, Epoch, JobId};

use super::{Checkers, Judged};
use crate::zookeeper::short;

/// Before every checkpoint.
const BEFORE_ALL: CheckpointId = CheckpointId::new(Epoch(0), 0);

impl Checkers {
    /// A job is to begin from a checkpoint of another: what that one's output holds up to there is not to come again.
    pub(crate) fn begins(&mut self, job: JobId, of: JobId, checkpoint: CheckpointId) {
        let origin = self.facts(of);
        let excused = origin.excused;
        let up_to = origin
            .covered
            .iter()
            .filter(|(_, (at, _))| *at <= checkpoint);
        let inherited: Vec<_> = up_to
            .map(|(id, (_, records))| (*id, records.clone()))
            .collect();
        let facts = self.facts(job);
        facts.began = true;
        facts.excused |= excused;
        let Some(spec) = facts.spec.clone() else {
            return;
        };
        for (id, records) in inherited {
            facts.committed.insert(id);
            for (record, count) in records.iter() {
                facts.seen.insert(*record);
                facts.counted.insert((spec.key_of(*record), *count));
            }
            facts.covered.insert(id, (BEFORE_ALL, records));
        }
    }

    /// A user wishes that a job stops with a savepoint.
    pub(crate) fn stop_asked(&mut self, job: JobId) {
        self.facts(job).stop_asked = true;
    }

    /// A savepoint of this checkpoint is complete.
    pub(crate) fn saved(&mut self, job: JobId, checkpoint: CheckpointId) -> Judged {
        let facts = self.facts(job);
        facts.saved.insert(checkpoint);
        if facts.published.contains(&checkpoint) {
            return Ok(());
        }
        Err(format!(
            "there is a savepoint of checkpoint {checkpoint} of job {}, which was never published",
            short(job)
        ))
    }

    /// A user is told that the job has stopped with a savepoint of this checkpoint.
    pub(crate) fn stopped(&mut self, job: JobId, checkpoint: CheckpointId) -> Judged {
        let number = short(job);
        let facts = self.facts(job);
        let last = facts.published.last().copied();
        if last != Some(checkpoint) {
            return Err(format!(
                "job {number} was stopped at {checkpoint}, and {last:?} was published"
            ));
        }
        match &facts.state {
            Some(JobState::Finished) => Ok(()),
            state => Err(format!(
                "job {number} is called stopped, and the registry says {state:?}"
            )),
        }
    }

    /// A copy misses an object of the checkpoint that it copies.
    pub(crate) fn missed_by_copy(&mut self, job: JobId, epoch: Epoch, key: &str) -> Judged {
        let succeeded = self.elected.last_key_value();
        let is_old = succeeded.is_some_and(|(newest, _)| *newest > epoch);
        if is_old || self.facts(job).excused {
            return Ok(());
        }
        Err(format!(
            "{key} of job {} is deleted while it is copied to a savepoint",
            short(job)
        ))
    }
}
