//! Intentions out: a function per action of the [`Leader`](tidemill_core::leader::Leader). What comes of an action comes
//! back to the driver as an event. Nothing is decided here.

use std::collections::HashMap;
use std::sync::Arc;

use tidemill_coordination::{Leading, Registry, WriteError};
use tidemill_core::leader::{Action, Event, Note};
use tidemill_core::membership::ConnectionId;
use tidemill_core::{checkpoint, job};
use tidemill_protocol::control::FromLeader;
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobRecord};
use tidemill_protocol::{CheckpointId, JobId};
use tidemill_storage::{CleanupError, Store};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::error_chain;
use crate::handle::{CancelError, Reply, SubmitError};
use crate::sessions::Answer;
use crate::views::SubmittedView;

/// What actions are carried out with.
#[derive(Clone)]
pub(crate) struct Hands {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) leading: Leading,
    pub(crate) store: Store,
    /// What came of actions.
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// Cancelled when this process must not go on as a leader.
    pub(crate) stop: CancellationToken,
    pub(crate) report_interval_ms: u64,
}

/// Carries out what the leader decided.
pub(crate) struct Performer {
    hands: Hands,
    /// Registrations that have not been answered.
    registering: HashMap<ConnectionId, oneshot::Sender<Answer>>,
    outboxes: HashMap<ConnectionId, mpsc::UnboundedSender<FromLeader>>,
    submitters: HashMap<JobId, (SubmittedView, Reply<Result<SubmittedView, SubmitError>>)>,
    cancellers: HashMap<JobId, Vec<Reply<Result<(), CancelError>>>>,
    /// The last clean-up of each job that has begun one.
    clean_ups: HashMap<JobId, JoinHandle<()>>,
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

    /// Who waits for a submission to be stored, and what to tell him then.
    pub(crate) fn expect_submission(
        &mut self,
        job: JobId,
        view: SubmittedView,
        reply: Reply<Result<SubmittedView, SubmitError>>,
    ) {
        self.submitters.insert(job, (view, reply));
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
                if let Some((view, reply)) = self.submitters.remove(&job) {
                    // A submitter that has gone away finds the job in the list.
                    let _ = reply.send(Ok(view));
                }
            }
            Action::SubmissionRejected { job, reason } => {
                if let Some((_, reply)) = self.submitters.remove(&job) {
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
            Action::DeleteJobObjects { job } => self.delete_job_objects(job),
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
        self.spawn(job, |hands| async move {
            match hands.registry.put_job(&hands.leading, &record).await {
                Ok(()) => job::Event::RecordStored,
                Err(error) => {
                    hands.check_fence(&error);
                    job::Event::RecordFailed {
                        reason: error_chain(&error),
                    }
                }
            }
        });
    }

    fn write_metadata(&self, metadata: CheckpointMetadata) {
        let (job, checkpoint) = (metadata.job, metadata.checkpoint);
        self.spawn(job, |hands| async move {
            job::Event::Checkpoint(match hands.store.write_metadata(&metadata).await {
                Ok(object) => checkpoint::Event::MetadataWritten { checkpoint, object },
                Err(error) => checkpoint::Event::MetadataFailed {
                    checkpoint,
                    reason: error_chain(&error),
                },
            })
        });
    }

    fn publish(&self, job: JobId, checkpoint: CheckpointId, pointers: CheckpointPointers) {
        self.spawn(job, |hands| async move {
            let written = hands
                .registry
                .put_pointers(&hands.leading, job, &pointers)
                .await;
            job::Event::Checkpoint(match written {
                Ok(()) => checkpoint::Event::Published { checkpoint },
                Err(WriteError::Unknown { .. }) => checkpoint::Event::PublishUnknown { checkpoint },
                Err(error) => {
                    hands.check_fence(&error);
                    checkpoint::Event::PublishRefused {
                        checkpoint,
                        reason: error_chain(&error),
                    }
                }
            })
        });
    }

    fn read_pointers(&self, job: JobId, checkpoint: CheckpointId) {
        self.spawn(job, |hands| async move {
            job::Event::Checkpoint(match hands.registry.pointers(job).await {
                Ok(pointers) => checkpoint::Event::PointersRead { checkpoint, pointers },
                Err(error) => {
                    warn!(%job, %checkpoint, "the pointers cannot be read back: {}", error_chain(&error));
                    checkpoint::Event::PointersUnreadable { checkpoint }
                }
            })
        });
    }

    fn load_metadata(&self, job: JobId, pointer: CheckpointPointer) {
        let checkpoint = pointer.checkpoint;
        self.spawn(job, |hands| async move {
            match hands.store.read_metadata(&pointer.metadata).await {
                Ok(metadata) => job::Event::MetadataLoaded(metadata),
                Err(error) if error.is_lost() => job::Event::MetadataDamaged {
                    checkpoint,
                    reason: error_chain(&error),
                },
                Err(error) => job::Event::MetadataUnavailable {
                    checkpoint,
                    reason: error_chain(&error),
                },
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

    fn delete_job_objects(&mut self, job: JobId) {
        self.clean_up(job, |hands| async move {
            let nothing = CheckpointPointers::default();
            // Objects go only when no pointer names them any more.
            match hands
                .registry
                .put_pointers(&hands.leading, job, &nothing)
                .await
            {
                Ok(()) | Err(WriteError::UnknownJob { .. }) => {
                    let last = CheckpointId::new(hands.leading.epoch(), u64::MAX);
                    let deleted = hands.store.delete_orphans(job, &[], last).await;
                    if let Err(error) = deleted {
                        warn!(%job, "the ended job's checkpoints stay for now: {}", error_chain(&error));
                    }
                }
                Err(error) => {
                    hands.check_fence(&error);
                    warn!(%job, "the ended job's checkpoints stay for now: {}", error_chain(&error));
                }
            }
        });
    }

    fn forget_job(&mut self, job: JobId) {
        self.clean_up(job, |hands| async move {
            if let Err(error) = hands.registry.remove_job(&hands.leading, job).await {
                hands.check_fence(&error);
                return warn!(%job, "an ended job's record stays for now: {}", error_chain(&error));
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
        let handle = tokio::spawn(async move {
            if let Some(before) = before {
                // However it ended, it deletes nothing any more.
                let _ = before.await;
            }
            work.await;
        });
        self.clean_ups.insert(job, handle);
    }

    /// Runs an action elsewhere and brings what came of it to the driver.
    fn spawn<R>(&self, job: JobId, action: impl FnOnce(Hands) -> R)
    where
        R: Future<Output = job::Event> + Send + 'static,
    {
        let events = self.hands.events.clone();
        let result = action(self.hands.clone());
        tokio::spawn(async move {
            // A driver that is gone hears nothing; the process is ending.
            let _ = events.send(Event::Performed {
                job,
                result: result.await,
            });
        });
    }
}

impl Hands {
    /// A write that was fenced off means that there is another leader: this one must not go on.
    fn check_fence(&self, error: &WriteError) {
        if let WriteError::Fenced { .. } = error {
            error!("this JobManager does not lead any more and stops: {error}");
            self.stop.cancel();
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

fn log(note: &Note) {
    if note.is_alarming() {
        warn!("{note}");
    } else {
        info!("{note}");
    }
}
