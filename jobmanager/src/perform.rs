//! Intentions out: a function per action of the [`Leader`](tidemill_core::leader::Leader). What comes of an action comes
//! back to the driver as an event. Nothing is decided here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidemill_coordination::{Connection, Leading, Registry, WriteError};
use tidemill_core::job::SavepointRequestId;
use tidemill_core::leader::{Action, Note};
use tidemill_core::membership::ConnectionId;
use tidemill_core::{checkpoint, job};
use tidemill_protocol::control::FromLeader;
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobRecord};
use tidemill_protocol::{AttemptId, CheckpointId, JobId};
use tidemill_storage::{CleanupError, SavepointOf, Store, fault_point};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::error_chain;
use crate::handle::{CancelError, Reply, SubmitError};
use crate::reign::Done;
use crate::roles::Fact;
use crate::sessions::Answer;
use crate::take_over::JOB_GRAPHS_LOCK;
use crate::views::SubmittedView;

/// Before the registry is asked again after it did not answer, although it seems to be in reach.
const RETRY: Duration = Duration::from_millis(200);
/// How long the removal of an ended job waits for a JobManager that loads graphs.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// What actions are carried out with.
#[derive(Clone)]
pub(crate) struct Hands {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) leading: Leading,
    pub(crate) store: Store,
    /// What came of actions.
    pub(crate) done: mpsc::UnboundedSender<Done>,
    /// What the leadership must hear of.
    pub(crate) facts: mpsc::UnboundedSender<Fact>,
    /// Cancelled when this leadership is over: what is under way is dropped.
    pub(crate) over: CancellationToken,
    /// Cancelled when nothing in the store can be taken any more for what an earlier leader left of a submission.
    pub(crate) swept: CancellationToken,
    pub(crate) report_interval_ms: u64,
}

/// What is told to those who wait for a submission, and who they are: whoever sent it, perhaps more than once.
type Submitters = (
    SubmittedView,
    Vec<Reply<Result<SubmittedView, SubmitError>>>,
);

/// Carries out what the leader decided.
pub(crate) struct Performer {
    hands: Hands,
    /// Registrations that have not been answered.
    registering: HashMap<ConnectionId, oneshot::Sender<Answer>>,
    outboxes: HashMap<ConnectionId, mpsc::UnboundedSender<FromLeader>>,
    submitters: HashMap<JobId, Submitters>,
    cancellers: HashMap<JobId, Vec<Reply<Result<(), CancelError>>>>,
    /// The last clean-up of each job that has begun one.
    clean_ups: HashMap<JobId, JoinHandle<Option<()>>>,
}

impl Performer {
    pub(crate) fn new(hands: Hands) -> Self {
        Self {
            hands,
            registering: HashMap::new(),
            outboxes: HashMap::new(),
            submitters: HashMap::new(),
            cancellers: HashMap::new(),
            clean_ups: HashMap::new(),
        }
    }

    /// Who waits for the answer to a registration.
    pub(crate) fn expect_answer(
        &mut self,
        connection: ConnectionId,
        answer: oneshot::Sender<Answer>,
    ) {
        self.registering.insert(connection, answer);
    }

    /// Who waits for a submission to be stored, and what to tell him then. One that was sent twice is waited for twice.
    pub(crate) fn expect_submission(
        &mut self,
        job: JobId,
        view: SubmittedView,
        reply: Reply<Result<SubmittedView, SubmitError>>,
    ) {
        let (_, replies) = self
            .submitters
            .entry(job)
            .or_insert_with(|| (view, Vec::new()));
        replies.push(reply);
    }

    /// Who waits for the wish to cancel a job to be stored.
    pub(crate) fn expect_cancel(&mut self, job: JobId, reply: Reply<Result<(), CancelError>>) {
        self.cancellers.entry(job).or_default().push(reply);
    }

    /// A connection is gone.
    pub(crate) fn forget_connection(&mut self, connection: ConnectionId) {
        self.registering.remove(&connection);
        self.outboxes.remove(&connection);
    }

    /// Says something to a TaskManager that is not an action of the leader's.
    pub(crate) fn say(&self, connection: ConnectionId, message: FromLeader) -> bool {
        self.outboxes
            .get(&connection)
            .is_some_and(|outbox| outbox.send(message).is_ok())
    }

    /// Carries out one action.
    pub(crate) fn perform(&mut self, action: Action) {
        match action {
            Action::AcceptTaskManager { connection } => self.accept(connection),
            Action::RefuseTaskManager { connection, reason } => self.refuse(connection, reason),
            Action::CloseTaskManager { connection, reason } => {
                debug!(
                    connection = connection.0,
                    reason, "closing a TaskManager's connection"
                );
                self.outboxes.remove(&connection);
            }
            // A connection that has just broken is reported by its own event.
            Action::Send {
                connection,
                message,
            } => drop(self.say(connection, message)),
            Action::StoreJobRecord(record) => self.store_record(record),
            Action::SubmissionStored { job } => {
                self.unmark_submission(job);
                if let Some((view, replies)) = self.submitters.remove(&job) {
                    for reply in replies {
                        // A submitter that has gone away finds the job in the list.
                        let _ = reply.send(Ok(view.clone()));
                    }
                }
            }
            Action::SubmissionRejected { job, reason } => {
                self.delete_submission(job);
                let (_, replies) = self.submitters.remove(&job).unzip();
                for reply in replies.unwrap_or_default() {
                    let reason = reason.clone();
                    let _ = reply.send(Err(SubmitError::Storage { reason }));
                }
            }
            Action::CancelStored { job } => {
                for reply in self.cancellers.remove(&job).unwrap_or_default() {
                    let _ = reply.send(Ok(()));
                }
            }
            Action::WriteMetadata(metadata) => self.write_metadata(metadata),
            Action::PublishPointers {
                job,
                checkpoint,
                pointers,
            } => self.publish(job, checkpoint, pointers),
            Action::ReadPointers { job, checkpoint } => self.read_pointers(job, checkpoint),
            Action::LoadMetadata { job, pointer } => self.load_metadata(job, pointer),
            Action::DeleteCheckpoints {
                job,
                obsolete,
                retained,
            } => self.delete(job, obsolete, retained),
            Action::DeleteOrphans {
                job,
                retained,
                over,
                ended,
            } => self.delete_orphans(job, retained, over, ended),
            Action::WriteSavepoint {
                id,
                directory,
                record,
                metadata,
            } => self.write_savepoint(id, directory, record, metadata),
            Action::DeleteJobObjects { job, kept } => self.delete_job_objects(job, kept),
            Action::ForgetJob { job } => self.forget_job(job),
            Action::Note(note) => log(&note),
        }
    }

    fn accept(&mut self, connection: ConnectionId) {
        let (outbox, queued) = mpsc::unbounded_channel();
        if let Some(answer) = self.registering.remove(&connection) {
            let epoch = self.hands.leading.epoch();
            let report_interval_ms = self.hands.report_interval_ms;
            // A session that has ended meanwhile is reported by its own event.
            let _ = answer.send(Answer::Accepted {
                epoch,
                report_interval_ms,
                outbox: queued,
            });
            self.outboxes.insert(connection, outbox);
        }
    }

    fn refuse(&mut self, connection: ConnectionId, reason: String) {
        warn!(reason, "a TaskManager is refused");
        if let Some(answer) = self.registering.remove(&connection) {
            let _ = answer.send(Answer::Refused {
                epoch: self.hands.leading.epoch(),
                reason,
            });
        }
    }

    fn store_record(&self, record: JobRecord) {
        let job = record.id;
        // Whoever submits wants to hear soon; what happens to a job that there is waits for the registry.
        let may_wait = !self.submitters.contains_key(&job);
        self.spawn(job, move |hands| async move {
            match hands.store_record(&record, may_wait).await {
                Ok(()) => Some(job::Event::RecordStored),
                Err(error) if hands.is_fenced(&error) => None,
                Err(error) => Some(job::Event::RecordFailed {
                    reason: error_chain(&error),
                }),
            }
        });
    }

    fn write_metadata(&self, metadata: CheckpointMetadata) {
        let (job, checkpoint) = (metadata.job, metadata.checkpoint);
        self.spawn(job, |hands| async move {
            fault_point("publish.before-metadata");
            let event = match hands.store.write_metadata(&metadata).await {
                Ok(object) => {
                    fault_point("publish.metadata-written");
                    checkpoint::Event::MetadataWritten { checkpoint, object }
                }
                Err(error) => checkpoint::Event::MetadataFailed {
                    checkpoint,
                    reason: error_chain(&error),
                },
            };
            Some(job::Event::Checkpoint(event))
        });
    }

    fn publish(&self, job: JobId, checkpoint: CheckpointId, pointers: CheckpointPointers) {
        self.spawn(job, |hands| async move {
            let written = hands.publish(job, checkpoint, &pointers).await;
            let event = match written {
                Ok(()) => {
                    fault_point("publish.pointer-written");
                    checkpoint::Event::Published { checkpoint }
                }
                Err(WriteError::Unknown { .. }) => checkpoint::Event::PublishUnknown { checkpoint },
                Err(error) if hands.is_fenced(&error) => return None,
                Err(error) => checkpoint::Event::PublishRefused {
                    checkpoint,
                    reason: error_chain(&error),
                },
            };
            Some(job::Event::Checkpoint(event))
        });
    }

    fn read_pointers(&self, job: JobId, checkpoint: CheckpointId) {
        self.spawn(job, |hands| async move {
            hands.connected().await;
            let event = match hands.registry.pointers(job).await {
                Ok(pointers) => checkpoint::Event::PointersRead { checkpoint, pointers },
                Err(error) => {
                    warn!(%job, %checkpoint, "the pointers cannot be read back: {}", error_chain(&error));
                    checkpoint::Event::PointersUnreadable { checkpoint }
                }
            };
            Some(job::Event::Checkpoint(event))
        });
    }

    fn load_metadata(&self, job: JobId, pointer: CheckpointPointer) {
        let checkpoint = pointer.checkpoint;
        self.spawn(job, |hands| async move {
            Some(match hands.store.read_metadata(&pointer.metadata).await {
                Ok(metadata) => job::Event::MetadataLoaded(metadata),
                Err(error) if error.is_lost() => job::Event::MetadataDamaged {
                    checkpoint,
                    reason: error_chain(&error),
                },
                Err(error) => job::Event::MetadataUnavailable {
                    checkpoint,
                    reason: error_chain(&error),
                },
            })
        });
    }

    fn write_savepoint(
        &self,
        id: SavepointRequestId,
        directory: String,
        record: JobRecord,
        metadata: CheckpointMetadata,
    ) {
        let job = record.id;
        self.spawn(job, move |hands| async move {
            let of = SavepointOf {
                record: &record,
                metadata: &metadata,
                created_at_ms: now_ms(),
            };
            let (done, told) = (hands.done.clone(), AtomicU64::new(0));
            let progress = move |done_bytes: u64, total_bytes: u64| {
                // Told a hundred times at most, however many objects there are.
                let percent = done_bytes.saturating_mul(100) / total_bytes.max(1);
                if told.fetch_max(percent, Ordering::Relaxed) < percent {
                    let result = job::Event::SavepointProgress {
                        id,
                        done_bytes,
                        total_bytes,
                    };
                    // A reign that is over hears nothing.
                    let _ = done.send(Done::performed(job, result));
                }
            };
            let written = hands.store.write_savepoint(&directory, of, progress).await;
            let result = written
                .map(|summary| summary.bytes)
                .map_err(|error| error_chain(&error));
            Some(job::Event::SavepointCopied { id, result })
        });
    }

    /// Its record is there: what is stored of it is a job's.
    fn unmark_submission(&mut self, job: JobId) {
        self.clean_up(job, |hands| async move {
            if let Err(error) = hands.store.unmark_unrecorded(job).await {
                // The next leader sees the record, and takes the mark off.
                debug!(%job, "a submission's mark stays: {}", error_chain(&error));
            }
        });
    }

    /// Deletes what was stored of a submission that was refused.
    pub(crate) fn delete_submission(&mut self, job: JobId) {
        self.clean_up(job, |hands| async move {
            if let Err(error) = hands.store.delete_job(job).await {
                warn!(%job, "what a refused submission stored stays: {}", error_chain(&error));
            }
        });
    }

    fn delete(
        &mut self,
        job: JobId,
        obsolete: Vec<CheckpointPointer>,
        retained: Vec<CheckpointPointer>,
    ) {
        self.clean_up(job, |hands| async move {
            if let Err(error) = hands.delete_up_to_the_newest(job, &retained).await {
                let left: Vec<String> = obsolete
                    .iter()
                    .map(|pointer| pointer.checkpoint.to_string())
                    .collect();
                warn!(%job, ?left, "obsolete checkpoints stay for now: {}", error_chain(&error));
            }
        });
    }

    fn delete_orphans(
        &mut self,
        job: JobId,
        retained: Vec<CheckpointPointer>,
        over: CheckpointId,
        ended: BTreeSet<AttemptId>,
    ) {
        self.clean_up(job, move |hands| async move {
            let deleted = async {
                hands.delete_up_to_the_newest(job, &retained).await?;
                let newest = retained.iter().map(|pointer| pointer.checkpoint).max();
                let store = &hands.store;
                store.delete_abandoned(job, newest, over, &ended).await
            };
            if let Err(error) = deleted.await {
                warn!(%job, "what checkpoints left for nothing stays for now: {}", error_chain(&error));
            }
        });
    }

    fn delete_job_objects(&mut self, job: JobId, kept: Option<CheckpointPointer>) {
        self.clean_up(job, |hands| async move {
            let kept = CheckpointPointers {
                completed: kept.into_iter().collect(),
            };
            // Objects go only when no pointer names them any more.
            match hands
                .registry
                .put_pointers(&hands.leading, job, &kept)
                .await
            {
                Ok(()) | Err(WriteError::UnknownJob { .. }) => {
                    let last = CheckpointId::new(hands.leading.epoch(), u64::MAX);
                    let kept = kept.completed;
                    let deleted = hands.store.delete_orphans(job, &kept, last).await;
                    if let Err(error) = deleted {
                        warn!(%job, "the ended job's checkpoints stay for now: {}", error_chain(&error));
                    }
                }
                Err(error) if hands.is_fenced(&error) => {}
                Err(error) => {
                    warn!(%job, "the ended job's checkpoints stay for now: {}", error_chain(&error));
                }
            }
        });
    }

    fn forget_job(&mut self, job: JobId) {
        self.clean_up(job, |hands| async move {
            // Nobody who takes over loads the graph while it is deleted.
            let lock = hands.registry.lock(JOB_GRAPHS_LOCK);
            let Ok(Ok(_lock)) = tokio::time::timeout(LOCK_TIMEOUT, lock).await else {
                return warn!(%job, "an ended job's record stays for now: the lock on job graphs is not to be had");
            };
            // Whoever takes over ends the deletion if this process does not.
            let marked = hands.store.mark_unrecorded(job, hands.leading.epoch());
            if let Err(error) = marked.await {
                return warn!(%job, "an ended job's record stays for now: {}", error_chain(&error));
            }
            match hands.registry.remove_job(&hands.leading, job).await {
                Ok(()) => {}
                Err(error) if hands.is_fenced(&error) => return,
                Err(error) => {
                    return warn!(%job, "an ended job's record stays for now: {}", error_chain(&error));
                }
            }
            if let Err(error) = hands.store.delete_job(job).await {
                warn!(%job, "an ended job's objects stay: {}", error_chain(&error));
            }
        });
        self.clean_ups.remove(&job);
    }

    /// Lets one clean-up of a job follow another: two at once would take for lost what the other has deleted.
    fn clean_up<R>(&mut self, job: JobId, work: impl FnOnce(Hands) -> R)
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let before = self.clean_ups.remove(&job);
        let work = work(self.hands.clone());
        let over = self.hands.over.clone();
        let handle = tokio::spawn(over.run_until_cancelled_owned(async move {
            if let Some(before) = before {
                // However it ended, it deletes nothing any more.
                let _ = before.await;
            }
            work.await;
        }));
        self.clean_ups.insert(job, handle);
    }

    /// Runs an action elsewhere and brings what came of it to the driver.
    fn spawn<R>(&self, job: JobId, action: impl FnOnce(Hands) -> R)
    where
        R: Future<Output = Option<job::Event>> + Send + 'static,
    {
        let done = self.hands.done.clone();
        let result = action(self.hands.clone());
        let over = self.hands.over.clone();
        tokio::spawn(over.run_until_cancelled_owned(async move {
            if let Some(result) = result.await {
                // A reign that is over hears nothing.
                let _ = done.send(Done::performed(job, result));
            }
        }));
    }

    /// Lets go of everything but the connections, which are closed when the value is dropped.
    pub(crate) fn into_connections(self) -> Connections {
        Connections {
            _outboxes: self.outboxes,
        }
    }
}

/// The connections of the TaskManagers, open until this is dropped.
pub(crate) struct Connections {
    _outboxes: HashMap<ConnectionId, mpsc::UnboundedSender<FromLeader>>,
}

impl Hands {
    /// A write that was fenced off means that there is another leader: the leadership hears of it, nobody else needs to.
    fn is_fenced(&self, error: &WriteError) -> bool {
        let fenced = matches!(error, WriteError::Fenced { .. });
        if fenced {
            // A driver that is gone does not lead.
            let _ = self.facts.send(Fact::Fenced {
                epoch: self.leading.epoch(),
            });
        }
        fenced
    }

    fn is_away(&self) -> bool {
        *self.registry.connection().borrow() != Connection::Connected
    }

    /// Waits until the registry is in reach.
    async fn connected(&self) {
        let mut connection = self.registry.connection();
        let connected = |connection: &Connection| *connection == Connection::Connected;
        // One that tells nothing any more is asked, and answers with an error.
        let _ = connection.wait_for(connected).await;
    }

    /// Writes a record until it is certain that it is there or that it is not.
    async fn store_record(&self, record: &JobRecord, may_wait: bool) -> Result<(), WriteError> {
        loop {
            match self.registry.put_job(&self.leading, record).await {
                Err(WriteError::Unknown { .. }) => {
                    debug!(job = %record.id, "a record's write was not confirmed: it is read back");
                    if self.is_stored(record).await {
                        return Ok(());
                    }
                    tokio::time::sleep(RETRY).await;
                }
                Err(WriteError::Failed { .. }) if may_wait && self.is_away() => {
                    self.connected().await;
                }
                result => return result,
            }
        }
    }

    /// Whether exactly this record is in the registry; asks until there is an answer.
    async fn is_stored(&self, record: &JobRecord) -> bool {
        loop {
            self.connected().await;
            if let Ok(jobs) = self.registry.jobs().await {
                return jobs.iter().flatten().any(|stored| stored == record);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Writes the pointers; a registry that is out of reach is waited for.
    async fn publish(
        &self,
        job: JobId,
        checkpoint: CheckpointId,
        pointers: &CheckpointPointers,
    ) -> Result<(), WriteError> {
        loop {
            let written = self.registry.put_pointers(&self.leading, job, pointers);
            match written.await {
                Err(WriteError::Failed { .. }) if self.is_away() => {
                    info!(%job, %checkpoint, "a checkpoint waits for the registry to be published");
                    self.connected().await;
                }
                result => return result,
            }
        }
    }

    /// Deletes every checkpoint older than the newest retained one that is not retained itself: the obsolete, and what
    /// was given up. Later ones may be in flight, or begin while this runs.
    async fn delete_up_to_the_newest(
        &self,
        job: JobId,
        retained: &[CheckpointPointer],
    ) -> Result<(), CleanupError> {
        if let Some(newest) = retained.iter().map(|pointer| pointer.checkpoint).max() {
            let deleted = self.store.delete_orphans(job, retained, newest).await?;
            debug!(%job, ?deleted, "cleaned up");
        }
        Ok(())
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn log(note: &Note) {
    if note.is_alarming() {
        warn!("{note}");
    } else {
        info!("{note}");
    }
}
