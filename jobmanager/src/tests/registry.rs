//! An embedded registry that can be put into any trouble that ZooKeeper knows, at a word. What it answers when nothing
//! is wrong is the embedded registry's own.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use tidemill_coordination::{
    Answer, Connection, DamagedJob, Embedded, KnownLeader, LeadError, Leading, LockError,
    NamedLock, ReadError, Registry, WriteError,
};
use tidemill_protocol::JobId;
use tidemill_protocol::record::{
    CheckpointPointers, JobManagerRecord, JobRecord, TaskManagerRecord,
};
use tokio::sync::watch;

/// What happens to one write of a job or its pointers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    /// Another leads.
    Fenced,
    /// Nothing is written, and that is known.
    Failed,
    /// Nothing is written, and that is not known.
    LostBefore,
    /// It is written, and that is not known.
    LostAfter,
}

#[derive(Debug)]
pub(super) struct TroubledRegistry {
    pub(super) embedded: Embedded,
    pub(super) session_timeout: Option<Duration>,
    /// Who leads, as this process sees it.
    pub(super) leader: watch::Sender<Option<KnownLeader>>,
    pub(super) job_managers: watch::Sender<Vec<JobManagerRecord>>,
    pub(super) task_managers: watch::Sender<Vec<TaskManagerRecord>>,
    pub(super) connection: watch::Sender<Connection>,
    /// While it is false, candidates wait, confirmations and resignations are not answered.
    pub(super) answers: watch::Sender<bool>,
    /// For the next writes, in their order.
    pub(super) troubles: Mutex<VecDeque<Trouble>>,
    /// For the next reads of the list of jobs: that many fail.
    pub(super) unreadable: Mutex<u32>,
    /// What was asked for.
    pub(super) asked: watch::Sender<Vec<&'static str>>,
}

impl TroubledRegistry {
    pub(super) fn new(embedded: Embedded, session_timeout: Option<Duration>) -> Self {
        Self {
            embedded,
            session_timeout,
            leader: watch::Sender::new(None),
            job_managers: watch::Sender::new(Vec::new()),
            task_managers: watch::Sender::new(Vec::new()),
            connection: watch::Sender::new(Connection::Connected),
            answers: watch::Sender::new(true),
            troubles: Mutex::default(),
            unreadable: Mutex::new(0),
            asked: watch::Sender::default(),
        }
    }

    pub(super) fn expect(&self, troubles: &[Trouble]) {
        let mut expected = self.troubles.lock().expect("no test panics here");
        expected.extend(troubles);
    }

    /// Waits until this was asked for so many times.
    pub(super) async fn asked(&self, what: &str, times: usize) {
        let count = |asked: &Vec<&str>| asked.iter().filter(|one| **one == what).count() >= times;
        let mut asked = self.asked.subscribe();
        asked.wait_for(count).await.expect("the sender lives");
    }

    fn note(&self, what: &'static str) {
        self.asked.send_modify(|asked| asked.push(what));
    }

    async fn until_it_answers(&self) {
        let mut answers = self.answers.subscribe();
        answers.wait_for(|it| *it).await.expect("the sender lives");
    }

    fn write<'a>(
        &'a self,
        leading: &Leading,
        write: Answer<'a, (), WriteError>,
    ) -> Answer<'a, (), WriteError> {
        let trouble = self
            .troubles
            .lock()
            .expect("no test panics here")
            .pop_front();
        let (ours, place, what) = (leading.epoch(), String::new(), String::new());
        Box::pin(async move {
            let source = "trouble".into();
            match trouble {
                None => write.await,
                Some(Trouble::Fenced) => Err(WriteError::Fenced { ours, stored: None }),
                Some(Trouble::Failed) => Err(WriteError::Failed {
                    place,
                    what,
                    source,
                }),
                Some(trouble) => {
                    if let Trouble::LostAfter = trouble {
                        write.await?;
                    }
                    Err(WriteError::Unknown {
                        place,
                        what,
                        source,
                    })
                }
            }
        })
    }
}

impl Registry for TroubledRegistry {
    fn lead(&self, candidate: &JobManagerRecord) -> Answer<'_, Leading, LeadError> {
        self.note("lead");
        let candidate = candidate.clone();
        Box::pin(async move {
            self.until_it_answers().await;
            self.embedded.lead(&candidate).await
        })
    }

    fn confirm(&self, leading: &Leading) -> Answer<'_, (), WriteError> {
        let leading = leading.clone();
        Box::pin(async move {
            self.until_it_answers().await;
            self.embedded.confirm(&leading).await
        })
    }

    fn resign(&self, leading: &Leading) -> Answer<'_, (), WriteError> {
        self.note("resign");
        let leading = leading.clone();
        Box::pin(async move {
            self.until_it_answers().await;
            self.embedded.resign(&leading).await
        })
    }

    fn depose(&self, leader: &KnownLeader) -> Answer<'_, (), WriteError> {
        self.note("depose");
        self.embedded.depose(leader)
    }

    fn jobs(&self) -> Answer<'_, Vec<Result<JobRecord, DamagedJob>>, ReadError> {
        self.note("jobs");
        let mut unreadable = self.unreadable.lock().expect("no test panics here");
        if *unreadable == 0 {
            return self.embedded.jobs();
        }
        *unreadable -= 1;
        Box::pin(async {
            Err(ReadError::Unavailable {
                place: String::new(),
                source: "trouble".into(),
            })
        })
    }

    fn put_job(&self, leading: &Leading, job: &JobRecord) -> Answer<'_, (), WriteError> {
        self.note("put_job");
        self.write(leading, self.embedded.put_job(leading, job))
    }

    fn remove_job(&self, leading: &Leading, job: JobId) -> Answer<'_, (), WriteError> {
        self.embedded.remove_job(leading, job)
    }

    fn pointers(&self, job: JobId) -> Answer<'_, CheckpointPointers, ReadError> {
        self.embedded.pointers(job)
    }

    fn put_pointers(
        &self,
        leading: &Leading,
        job: JobId,
        pointers: &CheckpointPointers,
    ) -> Answer<'_, (), WriteError> {
        self.note("put_pointers");
        self.write(leading, self.embedded.put_pointers(leading, job, pointers))
    }

    fn lock(&self, name: &str) -> Answer<'_, NamedLock, LockError> {
        self.embedded.lock(name)
    }

    fn leader(&self) -> watch::Receiver<Option<KnownLeader>> {
        self.leader.subscribe()
    }

    fn job_managers(&self) -> watch::Receiver<Vec<JobManagerRecord>> {
        self.job_managers.subscribe()
    }

    fn task_managers(&self) -> watch::Receiver<Vec<TaskManagerRecord>> {
        self.task_managers.subscribe()
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    fn session_timeout(&self) -> Option<Duration> {
        self.session_timeout
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.note("settled");
        self.embedded.settled()
    }
}
