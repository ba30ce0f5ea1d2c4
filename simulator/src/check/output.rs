//! Exactly-once output: every record's effect is committed once, and only what a published checkpoint holds is committed
//! at all. So no two attempts of a task can both commit.

use std::collections::BTreeSet;

use tidemill_protocol::JobId;

use super::{Checkers, Facts, Judged};
use crate::node::Node;
use crate::task::{TaskKey, Transaction};
use crate::workload::JobSpec;
use crate::zookeeper::short;

impl Checkers {
    /// A sink makes visible what it had prepared. Doing it again changes nothing.
    pub(crate) fn committed(
        &mut self,
        by: TaskKey,
        transaction: &Transaction,
        spec: &JobSpec,
    ) -> Judged {
        let number = short(by.job);
        let facts = self.facts(by.job);
        let checkpoint = transaction.checkpoint;
        if !facts.covered.contains_key(&transaction.id) {
            return Err(format!(
                "task {} of job {number}, attempt {}, commits what it prepared at {checkpoint}, which no published checkpoint holds",
                by.task, by.attempt
            ));
        }
        let is_new = facts.committed.insert(transaction.id);
        self.visible.insert(transaction.id);
        if !is_new {
            return Ok(());
        }
        let facts = self.facts(by.job);
        for (record, count) in transaction.records.iter() {
            let fresh =
                facts.seen.insert(*record) & facts.counted.insert((spec.key_of(*record), *count));
            if !fresh && !facts.excused {
                return Err(format!(
                    "record {record} of job {number} (count {count} of its key) is in the output twice: task {}, attempt {}, {checkpoint}",
                    by.task, by.attempt
                ));
            }
        }
        Ok(())
    }

    /// A TaskManager starts a task: never one that it has started before, or an older attempt.
    pub(crate) fn started(&mut self, node: Node, life: u64, key: TaskKey) -> Judged {
        let TaskKey { job, task, attempt } = key;
        let before = self.started.insert((node, life, job, task), attempt);
        match before.filter(|before| *before >= attempt) {
            Some(before) => Err(format!(
                "{node} starts task {task} of job {} as {attempt} after {before}",
                short(job)
            )),
            None => Ok(()),
        }
    }

    /// Something of a job was damaged on purpose: its output may be repeated, and it may fail.
    pub(crate) fn excuse(&mut self, job: JobId) {
        self.facts(job).excused = true;
    }
}

impl Facts {
    /// The output of a job that has finished holds every record once, and every count of every key; that of one that was
    /// stopped, all that a checkpoint holds.
    pub(super) fn check_complete(&self, number: u16, visible: &BTreeSet<u64>) -> Judged {
        let Some(spec) = &self.spec else {
            return Ok(());
        };
        let hidden = self.covered.keys().find(|id| !visible.contains(id));
        if let Some(hidden) = hidden.filter(|_| !self.excused) {
            return Err(format!(
                "job {number} is finished, and transaction {hidden} was never committed"
            ));
        }
        let last = self.published.last();
        let was_stopped = self.stop_asked && last.is_some_and(|last| self.saved.contains(last));
        if was_stopped && self.seen.len() < spec.records as usize {
            return Ok(());
        }
        if let Some(missing) = (0..spec.records).find(|record| !self.seen.contains(record)) {
            let there = self.seen.len();
            return Err(format!(
                "job {number} is finished, and record {missing} is not in the output ({there} of {} are)",
                spec.records
            ));
        }
        if self.counted.len() != spec.records as usize && !self.excused {
            return Err(format!(
                "job {number} is finished with {} counts",
                self.counted.len()
            ));
        }
        Ok(())
    }
}
