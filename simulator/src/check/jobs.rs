//! No acknowledged job is lost, no ended job returns, and a job ends as it may.

use std::rc::Rc;

use tidemill_protocol::record::{JobRecord, JobState};
use tidemill_protocol::{Epoch, JobId};

use super::{Checkers, Judged};
use crate::workload::JobSpec;
use crate::zookeeper::short;

impl Checkers {
    /// A user tries to submit a job.
    pub(crate) fn submitted(&mut self, job: JobId, spec: &Rc<JobSpec>) {
        self.facts(job).spec = Some(Rc::clone(spec));
    }

    /// A user is told that his job survives.
    pub(crate) fn acknowledged(&mut self, job: JobId) {
        self.facts(job).acknowledged = true;
    }

    /// A user asks for a job's end.
    pub(crate) fn cancel_asked(&mut self, job: JobId) {
        self.facts(job).cancel_asked = true;
    }

    /// A user is told that the job will be cancelled.
    pub(crate) fn cancel_acknowledged(&mut self, job: JobId) {
        self.facts(job).cancel_acknowledged = true;
    }

    /// The registry holds this record from now on.
    pub(crate) fn record_written(&mut self, epoch: Epoch, record: &JobRecord) -> Judged {
        self.written_under(epoch)?;
        let number = short(record.id);
        let facts = self.facts(record.id);
        let before = facts.state.replace(record.state.clone());
        if let Some(before) = before {
            let goes_back = before == JobState::Cancelling && record.state == JobState::Active;
            if goes_back || before.is_terminal() && before != record.state {
                return Err(format!(
                    "job {number} was {before:?} and becomes {:?}",
                    record.state
                ));
            }
        }
        let visible = std::mem::take(&mut self.visible);
        let facts = self.facts(record.id);
        let judged = match &record.state {
            JobState::Finished => facts.check_complete(number, &visible),
            JobState::Cancelled | JobState::Cancelling if !facts.cancel_asked => Err(format!(
                "job {number} is cancelled, and nobody asked for it"
            )),
            JobState::Failed { reason } => {
                let may = facts.excused || facts.spec.as_ref().is_some_and(|spec| spec.may_fail());
                // What it was to begin from had not become its own when its leader was lost.
                let may = may || facts.began && facts.published.is_empty();
                if may {
                    Ok(())
                } else {
                    Err(format!("job {number} fails, which it must not: {reason}"))
                }
            }
            _ => Ok(()),
        };
        self.visible = visible;
        judged
    }

    /// The registry holds nothing of a job any more.
    pub(crate) fn job_removed(&mut self, epoch: Epoch, job: JobId) -> Judged {
        self.written_under(epoch)?;
        let facts = self.facts(job);
        facts.pointers.clear();
        facts.references.clear();
        let has_not_begun = facts.began && facts.published.is_empty();
        match &facts.state {
            Some(state) if has_not_begun && !state.is_terminal() => {
                facts.state = None;
                Ok(())
            }
            Some(state) if !state.is_terminal() => {
                Err(format!("job {} is removed as {state:?}", short(job)))
            }
            _ => Ok(()),
        }
    }

    /// The world is calm and everything has come to an end.
    pub(crate) fn at_the_end(&self) -> Judged {
        for (job, facts) in &self.jobs {
            let number = short(*job);
            match &facts.state {
                None if facts.acknowledged => {
                    return Err(format!(
                        "job {number} was acknowledged, and the registry never held it"
                    ));
                }
                Some(state) if !state.is_terminal() => {
                    return Err(format!(
                        "job {number} is {state:?} and the registry does not hold it any more"
                    ));
                }
                Some(state) if facts.cancel_acknowledged && *state != JobState::Cancelled => {
                    return Err(format!(
                        "job {number} was to be cancelled, and is {state:?}"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
