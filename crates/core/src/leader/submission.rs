//! Jobs whose record is being stored, and with it what they begin from: nobody has been told of them, and nothing of them
//! runs. A record without what the job begins from is never taken for one of a job that begins anew: whoever loads it
//! fails the job.

use tidemill_protocol::record::{CheckpointPointers, JobRecord};
use tidemill_protocol::{CheckpointId, ExecutionGraph, JobId};

use super::{Action, Leader};
use crate::checkpoint;
use crate::job::{self, Job};
use crate::time::{Duration, Time};

/// Before the pointers are read back again.
const RETRY: Duration = Duration::from_millis(500);

/// A job that is being stored.
#[derive(Clone, Debug)]
pub(super) struct Submission {
    pub(super) record: JobRecord,
    pub(super) graph: ExecutionGraph,
    pointers: CheckpointPointers,
    /// When the pointers are read back again.
    read_back_at: Option<Time>,
}

impl Submission {
    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.read_back_at
    }

    /// What it begins from.
    fn checkpoint(&self) -> Option<CheckpointId> {
        let last = self.pointers.completed.last()?;
        Some(last.checkpoint)
    }
}

impl Leader {
    pub(super) fn submitted(
        &mut self,
        record: JobRecord,
        graph: ExecutionGraph,
        pointers: CheckpointPointers,
    ) {
        self.actions
            .push_back(Action::StoreJobRecord(record.clone()));
        let job = record.id;
        let submission = Submission {
            record,
            graph,
            pointers,
            read_back_at: None,
        };
        self.submissions.insert(job, submission);
    }

    /// What came of an action.
    pub(super) fn performed(&mut self, now: Time, job: JobId, result: job::Event) {
        let Some(submission) = self.submissions.get(&job) else {
            return self.tell(now, job, result);
        };
        let checkpoint = submission.checkpoint();
        match (result, checkpoint) {
            (job::Event::RecordFailed { reason }, _) => self.reject(job, reason),
            (job::Event::RecordStored, Some(_)) => self.publish_beginning(job),
            (job::Event::RecordStored, None) => self.begin(now, job),
            (job::Event::Checkpoint(event), Some(checkpoint)) => {
                self.beginning_published(now, job, checkpoint, event);
            }
            _ => {}
        }
    }

    fn beginning_published(
        &mut self,
        now: Time,
        job: JobId,
        checkpoint: CheckpointId,
        event: checkpoint::Event,
    ) {
        match event {
            checkpoint::Event::Published { .. } => self.begin(now, job),
            checkpoint::Event::PublishRefused { reason, .. } => {
                self.reject(job, reason);
                // Its record is there, and it is not to be.
                self.actions.push_back(Action::ForgetJob { job });
            }
            checkpoint::Event::PublishUnknown { .. } => {
                self.actions
                    .push_back(Action::ReadPointers { job, checkpoint });
            }
            checkpoint::Event::PointersRead { pointers, .. } => {
                let mut completed = pointers.completed.iter();
                if completed.any(|found| found.checkpoint == checkpoint) {
                    self.begin(now, job);
                } else {
                    self.publish_beginning(job);
                }
            }
            checkpoint::Event::PointersUnreadable { .. } => {
                if let Some(submission) = self.submissions.get_mut(&job) {
                    submission.read_back_at = Some(now + RETRY);
                }
            }
            _ => {}
        }
    }

    /// Reads the pointers back again where that is due.
    pub(super) fn read_back(&mut self, now: Time) {
        for (job, submission) in &mut self.submissions {
            let due = submission.read_back_at.is_some_and(|at| at <= now);
            if let Some(checkpoint) = submission.checkpoint().filter(|_| due) {
                submission.read_back_at = None;
                let job = *job;
                self.actions
                    .push_back(Action::ReadPointers { job, checkpoint });
            }
        }
    }

    fn publish_beginning(&mut self, job: JobId) {
        let Some(submission) = self.submissions.get(&job) else {
            return;
        };
        if let Some(checkpoint) = submission.checkpoint() {
            self.actions.push_back(Action::PublishPointers {
                job,
                checkpoint,
                pointers: submission.pointers.clone(),
            });
        }
    }

    fn reject(&mut self, job: JobId, reason: alloc::string::String) {
        self.submissions.remove(&job);
        self.actions
            .push_back(Action::SubmissionRejected { job, reason });
    }

    fn begin(&mut self, now: Time, id: JobId) {
        let Some(submission) = self.submissions.remove(&id) else {
            return;
        };
        let Submission {
            record,
            graph,
            pointers,
            ..
        } = submission;
        let mut job = Job::submitted(self.config.reign(), record, graph, pointers);
        job.handle_timeout(now);
        self.jobs.insert(id, job);
        self.actions.push_back(Action::SubmissionStored { job: id });
    }
}
