//! The small world: one leader, TaskManagers by name, a registry and a store. Messages arrive at once and in order;
//! time jumps from one deadline to the next. After each step it is checked what must always hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tidemill_core::Time;
use tidemill_core::checkpoint;
use tidemill_core::job::{self, Job, Phase, SavepointRequestId, SavepointStatus};
use tidemill_core::leader::{Action, Event, Leader, LeaderConfig, LoadedJob, Note};
use tidemill_core::membership::{ConnectionId, HowLost, Member};
use tidemill_protocol::control::{Command, FromLeader, TaskDeployment, ToLeader};
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef};
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobRecord, JobState};
use tidemill_protocol::{
    AttemptId, CheckpointId, Epoch, ExecutionGraph, Incarnation, JobId, TaskId, TaskManagerId,
};

use crate::task_manager::{Behaviour, TaskManager, image};

/// How a reply of the registry gets lost, or a write fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Publishing {
    #[default]
    Works,
    /// The write lands and its reply does not arrive.
    ReplyLost,
    /// Neither the write nor the reply arrives.
    WriteLost,
    /// Nothing is answered for now: the writes wait in [`Cluster::publications`].
    Hangs,
}

pub(crate) struct Cluster {
    pub(crate) leader: Leader,
    pub(crate) now: Time,
    pub(crate) task_managers: BTreeMap<String, TaskManager>,
    pub(crate) behaviour: Behaviour,
    pub(crate) publishing: Publishing,
    pub(crate) records_fail: bool,
    pub(crate) metadata_fails: bool,
    /// Metadata objects that are damaged.
    pub(crate) metadata_damaged: BTreeSet<CheckpointId>,
    /// Jobs whose metadata objects are gone.
    pub(crate) metadata_lost: BTreeSet<JobId>,
    /// Jobs whose graphs are gone.
    pub(crate) graphs_lost: BTreeSet<JobId>,
    /// The store does not answer when metadata is read.
    pub(crate) metadata_unavailable: bool,
    pub(crate) records: BTreeMap<JobId, JobRecord>,
    pub(crate) graphs: BTreeMap<JobId, ExecutionGraph>,
    pub(crate) pointers: BTreeMap<JobId, CheckpointPointers>,
    pub(crate) publications: Vec<(JobId, CheckpointId, CheckpointPointers)>,
    pub(crate) stored: BTreeSet<JobId>,
    pub(crate) rejected: BTreeSet<JobId>,
    pub(crate) cleaned: BTreeSet<JobId>,
    /// Savepoints are not copied until [`Cluster::copies_end`].
    pub(crate) copies_hang: bool,
    pub(crate) copies: Vec<(JobId, SavepointRequestId, CheckpointId)>,
    wishes: BTreeSet<(JobId, u128)>,
    /// The savepoints that were written.
    pub(crate) savepoints: BTreeMap<SavepointRequestId, CheckpointId>,
    /// The scans for orphans of running jobs: what was over, and which attempts.
    pub(crate) scans: Vec<(CheckpointId, BTreeSet<AttemptId>)>,
    /// Checkpoints whose objects were deleted.
    deleted: BTreeSet<(JobId, CheckpointId)>,
    pub(crate) refused: Vec<String>,
    pub(crate) notes: Vec<String>,
    /// Checkpoints that were damaged: only then an older one is gone back to.
    pub(crate) fallbacks: u32,
    /// TaskManagers that nothing reaches that is said to them.
    pub(crate) deaf: BTreeSet<String>,
    /// The JobManager does so many more things and then hangs, until it is restarted.
    pub(crate) halt_after: Option<u32>,
    /// A leader that has been succeeded and does not know it.
    deposed: Option<Leader>,
    /// Where tasks have ever been placed.
    placed: BTreeSet<(JobId, TaskId, TaskManagerId)>,
    metadata: BTreeMap<(JobId, CheckpointId), CheckpointMetadata>,
    epoch: u64,
    connections: u64,
    to_leader: VecDeque<(ConnectionId, ToLeader)>,
    results: VecDeque<(JobId, job::Event)>,
    deployed: BTreeMap<(JobId, TaskId), AttemptId>,
    published: BTreeMap<JobId, CheckpointId>,
    /// Every checkpoint that was ever published.
    all_published: BTreeSet<(JobId, CheckpointId)>,
    /// What each task's part of a checkpoint goes on from: the checkpoints in the past of the attempt that captured it.
    pasts: BTreeMap<(JobId, CheckpointId, TaskId), Vec<CheckpointId>>,
}

/// What the wall clock says when the world begins.
pub(crate) const WALL_START_MS: u64 = 1_700_000_000_000;

fn config(epoch: u64) -> LeaderConfig {
    LeaderConfig {
        epoch: Epoch(epoch),
        wall_start_ms: WALL_START_MS,
        cluster_config_hash: 7,
        adoption_timeout: Duration::from_secs(3),
        suspicion_timeout: Duration::from_secs(2),
        ended_jobs_max: 10,
    }
}

fn object(job: JobId, checkpoint: CheckpointId) -> ObjectRef {
    ObjectRef {
        key: format!("{job}/{checkpoint}"),
        len: 1,
        hash: [0; 32],
    }
}

impl Cluster {
    /// A leader and TaskManagers of two slots each.
    pub(crate) fn new(names: &[&str]) -> Self {
        let mut cluster = Self {
            leader: Leader::new(Time::ZERO, config(1), vec![]),
            now: Time::ZERO,
            task_managers: BTreeMap::new(),
            behaviour: Behaviour::default(),
            publishing: Publishing::Works,
            records_fail: false,
            metadata_fails: false,
            metadata_damaged: BTreeSet::new(),
            metadata_lost: BTreeSet::new(),
            graphs_lost: BTreeSet::new(),
            metadata_unavailable: false,
            records: BTreeMap::new(),
            graphs: BTreeMap::new(),
            pointers: BTreeMap::new(),
            publications: vec![],
            stored: BTreeSet::new(),
            rejected: BTreeSet::new(),
            cleaned: BTreeSet::new(),
            copies_hang: false,
            copies: vec![],
            wishes: BTreeSet::new(),
            savepoints: BTreeMap::new(),
            scans: vec![],
            deleted: BTreeSet::new(),
            refused: vec![],
            notes: vec![],
            fallbacks: 0,
            deaf: BTreeSet::new(),
            halt_after: None,
            deposed: None,
            placed: BTreeSet::new(),
            metadata: BTreeMap::new(),
            epoch: 1,
            connections: 0,
            to_leader: VecDeque::new(),
            results: VecDeque::new(),
            deployed: BTreeMap::new(),
            published: BTreeMap::new(),
            all_published: BTreeSet::new(),
            pasts: BTreeMap::new(),
        };
        for name in names {
            cluster.join(name, 2);
        }
        cluster
    }

    pub(crate) fn join(&mut self, name: &str, slots: u32) {
        let incarnation = self.connections + 1;
        self.task_managers
            .insert(name.to_owned(), TaskManager::new(name, incarnation, slots));
        self.connect(name);
    }

    /// A living TaskManager opens a connection and registers.
    pub(crate) fn connect(&mut self, name: &str) {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        let task_manager = self.task_managers.get_mut(name).expect("it lives");
        task_manager.connection = Some(connection);
        task_manager.old_connection = None;
        let registration = task_manager.registration();
        self.tell(Event::Registering {
            connection,
            registration,
        });
    }

    /// `kill -9`: the kernel closes its liveness connection.
    pub(crate) fn kill(&mut self, name: &str) {
        let task_manager = self.task_managers.remove(name).expect("it lives");
        self.lose(task_manager.connection, HowLost::ProcessEnded);
    }

    /// Its control stream breaks; the process lives.
    pub(crate) fn break_stream(&mut self, name: &str) {
        let connection = self
            .task_managers
            .get_mut(name)
            .expect("it lives")
            .connection
            .take();
        self.lose(connection, HowLost::StreamBroken);
    }

    /// The leader hears nothing of it any more; the process lives, and so do its tasks.
    pub(crate) fn isolate(&mut self, name: &str) {
        let connection = self
            .task_managers
            .get_mut(name)
            .expect("it lives")
            .connection
            .take();
        self.lose(connection, HowLost::Silent);
    }

    /// It is asked to leave (SIGTERM).
    pub(crate) fn drain(&mut self, name: &str) {
        let task_manager = self.task_managers.get_mut(name).expect("it lives");
        task_manager.draining = true;
        if task_manager.connection.is_some() {
            self.say(name, ToLeader::Draining);
        }
    }

    /// Whoever may leave does.
    pub(crate) fn drained_leave(&mut self) -> Vec<String> {
        let drained = |(name, one): (&String, &TaskManager)| one.drained.then(|| name.clone());
        let names: Vec<String> = self.task_managers.iter().filter_map(drained).collect();
        for name in &names {
            self.kill(name);
        }
        names
    }

    fn lose(&mut self, connection: Option<ConnectionId>, how: HowLost) {
        if let Some(connection) = connection {
            self.to_leader.retain(|(from, _)| *from != connection);
            self.tell(Event::ConnectionLost {
                connection,
                how,
                reason: "end of file".to_owned(),
            });
        }
    }

    pub(crate) fn submit(&mut self, record: JobRecord, graph: ExecutionGraph) {
        self.graphs.insert(record.id, graph.clone());
        self.tell(Event::JobSubmitted {
            record: Box::new(record),
            graph,
            pointers: CheckpointPointers::default(),
        });
    }

    /// A user submits a job that begins from a checkpoint of another, whose objects have been imported for it.
    pub(crate) fn submit_from(&mut self, mut record: JobRecord, from: JobId) {
        let newest = self
            .metadata
            .iter()
            .rev()
            .find(|((job, _), _)| *job == from);
        let mut metadata = newest.expect("there is a checkpoint").1.clone();
        let (job, checkpoint) = (record.id, CheckpointId::new(Epoch(self.epoch), 0));
        (metadata.job, metadata.checkpoint) = (job, checkpoint);
        for part in &mut metadata.tasks {
            part.manifest = image(job, part.task, checkpoint);
            self.pasts.insert((job, checkpoint, part.task), Vec::new());
        }
        self.metadata.insert((job, checkpoint), metadata);
        let graph = self.graphs[&from].clone();
        self.graphs.insert(job, graph.clone());
        record.began_from = Some(format!("savepoints/{from}"));
        let metadata = object(job, checkpoint);
        let pointer = CheckpointPointer {
            checkpoint,
            metadata,
        };
        let pointers = CheckpointPointers {
            completed: [pointer].into(),
        };
        self.tell(Event::JobSubmitted {
            record: Box::new(record),
            graph,
            pointers,
        });
    }

    /// A user wishes for a savepoint.
    pub(crate) fn savepoint(&mut self, job: JobId, id: u128, stop: bool) {
        self.wishes.insert((job, id));
        self.tell(Event::SavepointRequested {
            job,
            id: SavepointRequestId(id),
            directory: format!("savepoints/{id}"),
            stop,
        });
    }

    /// The wishes for savepoints of a job that the leader knows.
    pub(crate) fn wishes(&self, job: JobId) -> Vec<u128> {
        let of_job = self.wishes.iter().filter(|(of, _)| *of == job);
        let ids = of_job.map(|(_, id)| *id);
        let known = |id: &u128| self.job(job).savepoint(SavepointRequestId(*id)).is_some();
        ids.filter(known).collect()
    }

    /// How that stands.
    pub(crate) fn savepoint_status(&self, job: JobId, id: u128) -> SavepointStatus {
        let status = self.job(job).savepoint(SavepointRequestId(id));
        status.expect("the leader knows the wish")
    }

    /// The copies that hung are made, or not.
    pub(crate) fn copies_end(&mut self, result: &Result<u64, String>) {
        self.copies_hang = false;
        for (job, id, checkpoint) in std::mem::take(&mut self.copies) {
            self.copied(job, id, checkpoint, result.clone());
        }
        self.run();
    }

    fn copied(
        &mut self,
        job: JobId,
        id: SavepointRequestId,
        checkpoint: CheckpointId,
        result: Result<u64, String>,
    ) {
        assert!(
            !self.deleted.contains(&(job, checkpoint)) && !self.cleaned.contains(&job),
            "what is being copied stays"
        );
        if result.is_ok() {
            self.savepoints.insert(id, checkpoint);
        }
        self.answer(job, job::Event::SavepointCopied { id, result });
    }

    pub(crate) fn cancel(&mut self, job: JobId) {
        self.tell(Event::CancelRequested { job });
    }

    /// The JobManager dies and is started again; TaskManagers have not met it yet.
    pub(crate) fn restart_jobmanager(&mut self) {
        self.epoch += 1;
        self.halt_after = None;
        self.to_leader.clear();
        self.results.clear();
        self.publications.clear();
        self.copies.clear();
        for task_manager in self.task_managers.values_mut() {
            task_manager.connection = None;
        }
        let loaded = self.records.values().map(|record| LoadedJob {
            record: record.clone(),
            graph: if self.graphs_lost.contains(&record.id) {
                Err("the object that holds its graph is missing".to_owned())
            } else {
                Ok(self.graphs[&record.id].clone())
            },
            pointers: self.pointers.get(&record.id).cloned().unwrap_or_default(),
        });
        self.leader = Leader::new(self.now, config(self.epoch), loaded.collect());
        self.run();
    }

    /// The registry says who has announced himself.
    pub(crate) fn announce(&mut self) {
        let life = |one: &TaskManager| (one.id.clone(), Incarnation(one.incarnation));
        let task_managers = self.task_managers.values().map(life).collect();
        self.tell(Event::Announced { task_managers });
    }

    /// Another JobManager is elected while the leader is frozen: it goes on later with those who have not met the other.
    pub(crate) fn depose(&mut self) {
        let connections: Vec<_> = self
            .task_managers
            .iter()
            .map(|(name, one)| (name.clone(), one.connection))
            .collect();
        let leader = self.leader.clone();
        self.restart_jobmanager();
        self.deposed = Some(leader);
        for (name, connection) in connections {
            let task_manager = self.task_managers.get_mut(&name).expect("it lives");
            task_manager.old_connection = connection;
        }
    }

    /// The leader that was succeeded goes on: it loses sight of one TaskManager, and time has passed for it.
    pub(crate) fn deposed_acts(&mut self, loses: &str) {
        let Some(mut leader) = self.deposed.take() else {
            return;
        };
        if let Some(connection) = self.task_managers[loses].old_connection {
            let (how, reason) = (HowLost::Silent, "idle timeout".to_owned());
            leader.handle(
                self.now,
                Event::ConnectionLost {
                    connection,
                    how,
                    reason,
                },
            );
        }
        for _ in 0..2 {
            leader.handle_timeout(self.now);
            while let Some(action) = leader.poll_action() {
                // Whatever it writes is refused by the fence, and it hears nothing of that.
                let Action::Send {
                    connection,
                    message,
                } = action
                else {
                    continue;
                };
                let mut all = self.task_managers.values_mut();
                let listens = all.find(|one| one.old_connection == Some(connection));
                if let (Some(one), Command::Deploy(deployment)) = (&listens, &message.command) {
                    let place = |part: &TaskDeployment| (deployment.job, part.task, one.id.clone());
                    self.placed.extend(deployment.tasks.iter().map(place));
                }
                let answers = listens.and_then(|one| one.obey(message, &self.behaviour).ok());
                for message in answers.into_iter().flatten() {
                    leader.handle(
                        self.now,
                        Event::Message {
                            connection,
                            message,
                        },
                    );
                }
            }
        }
        self.deposed = Some(leader);
    }

    /// Every living TaskManager meets the new leader.
    pub(crate) fn connect_all(&mut self) {
        let names: Vec<String> = self.task_managers.keys().cloned().collect();
        for name in names {
            self.connect(&name);
        }
    }

    /// Every task of the job that some TaskManager runs does something.
    pub(crate) fn all_tasks(
        &mut self,
        job: JobId,
        act: impl Fn(&mut TaskManager, JobId, TaskId) -> Option<ToLeader>,
    ) {
        for task_manager in self.task_managers.values_mut() {
            let tasks: Vec<TaskId> = task_manager
                .tasks
                .keys()
                .filter(|(of, _)| *of == job)
                .map(|key| key.1)
                .collect();
            for task in tasks {
                let message = act(task_manager, job, task);
                let said = task_manager.connection.zip(message);
                self.to_leader.extend(said);
            }
        }
        self.run();
    }

    /// One task of the job does something, wherever it runs.
    pub(crate) fn one_task(
        &mut self,
        job: JobId,
        task: TaskId,
        act: impl Fn(&mut TaskManager, JobId, TaskId) -> Option<ToLeader>,
    ) {
        self.all_tasks(job, |task_manager, job, other| {
            if other == task {
                act(task_manager, job, task)
            } else {
                None
            }
        });
    }

    pub(crate) fn say(&mut self, name: &str, message: ToLeader) {
        let connection = self.task_managers[name]
            .connection
            .expect("it is connected");
        self.to_leader.push_back((connection, message));
        self.run();
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.leader.handle(self.now, event);
        self.run();
    }

    /// Lets time pass, stopping at every deadline on the way.
    pub(crate) fn advance(&mut self, time: Duration) {
        let until = self.now + time;
        let mut steps = 0;
        while let Some(due) = self.leader.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.leader.handle_timeout(self.now);
            self.run();
            steps += 1;
            assert!(steps < 10_000, "the leader's timers never come to rest");
        }
        self.now = until;
    }

    pub(crate) fn seconds(&mut self, seconds: u64) {
        self.advance(Duration::from_secs(seconds));
    }

    /// Carries everything out until nothing is left to do at this time.
    pub(crate) fn run(&mut self) {
        let mut steps = 0;
        loop {
            if let Some(left) = &mut self.halt_after {
                if *left == 0 {
                    return;
                }
                *left -= 1;
            }
            if let Some(action) = self.leader.poll_action() {
                self.perform(action);
            } else if let Some((connection, message)) = self.to_leader.pop_front() {
                self.leader.handle(
                    self.now,
                    Event::Message {
                        connection,
                        message,
                    },
                );
            } else if let Some((job, result)) = self.results.pop_front() {
                self.leader
                    .handle(self.now, Event::Performed { job, result });
            } else {
                break;
            }
            steps += 1;
            assert!(steps < 100_000, "the cluster never comes to rest");
        }
        self.check();
    }

    fn answer(&mut self, job: JobId, result: job::Event) {
        self.results.push_back((job, result));
    }

    fn answer_checkpoint(&mut self, job: JobId, event: checkpoint::Event) {
        self.answer(job, job::Event::Checkpoint(event));
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::AcceptTaskManager { connection } => {
                let mut all = self.task_managers.values_mut();
                if let Some(one) = all.find(|one| one.connection == Some(connection)) {
                    one.met(Epoch(self.epoch));
                }
            }
            Action::CloseTaskManager { .. } => {}
            Action::RefuseTaskManager { reason, .. } => self.refused.push(reason),
            Action::Send {
                connection,
                message,
            } => self.deliver(connection, message),
            Action::StoreJobRecord(record) => self.store_record(record),
            Action::SubmissionStored { job } => {
                assert!(
                    self.records.contains_key(&job),
                    "stored before it is acknowledged"
                );
                self.stored.insert(job);
            }
            Action::SubmissionRejected { job, .. } => {
                self.rejected.insert(job);
            }
            Action::CancelStored { job } => {
                assert_ne!(self.records[&job].state, JobState::Active);
            }
            Action::WriteMetadata(metadata) => self.write_metadata(metadata),
            Action::PublishPointers {
                job,
                checkpoint,
                pointers,
            } => {
                self.publish(job, checkpoint, pointers);
            }
            Action::ReadPointers { job, checkpoint } => {
                let pointers = self.pointers.get(&job).cloned().unwrap_or_default();
                let event = checkpoint::Event::PointersRead {
                    checkpoint,
                    pointers,
                };
                self.answer_checkpoint(job, event);
            }
            Action::LoadMetadata { job, pointer } => self.load_metadata(job, pointer.checkpoint),
            Action::DeleteCheckpoints {
                job,
                obsolete,
                retained,
            } => {
                let named = &self.pointers[&job].completed;
                assert!(obsolete.iter().all(|pointer| !named.contains(pointer)));
                let gone = obsolete.iter().map(|pointer| (job, pointer.checkpoint));
                self.deleted.extend(gone);
                assert!(named.iter().all(|pointer| retained.contains(pointer)));
            }
            Action::DeleteOrphans {
                job,
                retained,
                over,
                ended,
            } => {
                let named = self.pointers.get(&job).map(|named| named.completed.clone());
                let named = named.unwrap_or_default();
                assert!(named.iter().all(|pointer| retained.contains(pointer)));
                let copied = |(of, _, id): &(JobId, SavepointRequestId, CheckpointId)| {
                    *of != job || retained.iter().any(|pointer| pointer.checkpoint == *id)
                };
                assert!(self.copies.iter().all(copied), "what is being copied stays");
                let runs = |attempt: &AttemptId| self.job(job).runs_attempt(*attempt);
                assert!(!ended.iter().any(runs), "{ended:?} of {job} go on");
                self.scans.push((over, ended));
            }
            Action::WriteSavepoint {
                id,
                record,
                metadata,
                ..
            } => {
                assert!(
                    self.all_published
                        .contains(&(record.id, metadata.checkpoint))
                );
                if self.copies_hang {
                    self.copies.push((record.id, id, metadata.checkpoint));
                } else {
                    self.copied(record.id, id, metadata.checkpoint, Ok(1000));
                }
            }
            Action::DeleteJobObjects { job, kept } => {
                assert!(
                    self.records[&job].state.is_terminal(),
                    "stored before clean-up"
                );
                let copied = self.copies.iter().any(|(of, ..)| *of == job);
                assert!(!copied, "what is being copied stays");
                self.pointers.remove(&job);
                if let Some(kept) = kept {
                    let completed = [kept].into();
                    self.pointers.insert(job, CheckpointPointers { completed });
                }
                self.cleaned.insert(job);
            }
            Action::ForgetJob { job } => {
                self.records.remove(&job);
            }
            Action::Note(note) => self.note(&note),
        }
    }

    fn note(&mut self, note: &Note) {
        if let Note::Job {
            note: job::Note::CheckpointDamaged { .. },
            ..
        } = note
        {
            self.fallbacks += 1;
        }
        self.notes.push(note.to_string());
    }

    fn load_metadata(&mut self, job: JobId, checkpoint: CheckpointId) {
        let lost = self.metadata_lost.contains(&job);
        let result = if self.metadata_unavailable {
            let reason = "timed out".to_owned();
            job::Event::MetadataUnavailable { checkpoint, reason }
        } else if lost || self.metadata_damaged.contains(&checkpoint) {
            let reason = "checksum".to_owned();
            job::Event::MetadataDamaged { checkpoint, reason }
        } else {
            job::Event::MetadataLoaded(self.metadata[&(job, checkpoint)].clone())
        };
        self.answer(job, result);
    }

    fn store_record(&mut self, record: JobRecord) {
        let job = record.id;
        if self.records_fail {
            let reason = "the disk is full".to_owned();
            return self.answer(job, job::Event::RecordFailed { reason });
        }
        if let Some(old) = self.records.insert(job, record) {
            assert!(!old.state.is_terminal(), "an ended job never changes");
        }
        self.answer(job, job::Event::RecordStored);
    }

    fn write_metadata(&mut self, metadata: CheckpointMetadata) {
        let (job, checkpoint) = (metadata.job, metadata.checkpoint);
        if self.metadata_fails {
            let reason = "the disk is full".to_owned();
            let event = checkpoint::Event::MetadataFailed { checkpoint, reason };
            return self.answer_checkpoint(job, event);
        }
        self.metadata.insert((job, checkpoint), metadata);
        let object = object(job, checkpoint);
        self.answer_checkpoint(
            job,
            checkpoint::Event::MetadataWritten { checkpoint, object },
        );
    }

    fn publish(&mut self, job: JobId, checkpoint: CheckpointId, pointers: CheckpointPointers) {
        let ids: Vec<_> = pointers
            .completed
            .iter()
            .map(|pointer| pointer.checkpoint)
            .collect();
        assert!(
            ids.windows(2).all(|pair| pair[0] < pair[1]),
            "pointers are in order"
        );
        assert_eq!(ids.last(), Some(&checkpoint));
        assert!(ids.len() <= 2, "no more than are retained");
        match self.publishing {
            Publishing::Works => {
                self.land(job, checkpoint, pointers);
                self.answer_checkpoint(job, checkpoint::Event::Published { checkpoint });
            }
            Publishing::ReplyLost => {
                self.land(job, checkpoint, pointers);
                self.answer_checkpoint(job, checkpoint::Event::PublishUnknown { checkpoint });
                self.publishing = Publishing::Works;
            }
            Publishing::WriteLost => {
                self.answer_checkpoint(job, checkpoint::Event::PublishUnknown { checkpoint });
                self.publishing = Publishing::Works;
            }
            Publishing::Hangs => self.publications.push((job, checkpoint, pointers)),
        }
    }

    fn land(&mut self, job: JobId, checkpoint: CheckpointId, pointers: CheckpointPointers) {
        self.pointers.insert(job, pointers);
        self.check_past(job, checkpoint);
        let before = self.published.insert(job, checkpoint);
        assert!(
            before.is_none_or(|before| before <= checkpoint),
            "published ids never go back"
        );
    }

    /// Output is exactly once when each task's part of a checkpoint goes on from its part of the one published before:
    /// what lies between is committed now, and nothing else ever is.
    fn check_past(&mut self, job: JobId, checkpoint: CheckpointId) {
        if !self.all_published.insert((job, checkpoint)) || self.fallbacks > 0 {
            return;
        }
        let before = self.published.get(&job).copied();
        for part in &self.metadata[&(job, checkpoint)].tasks {
            let past = &self.pasts[&(job, checkpoint, part.task)];
            let published = |id: &&CheckpointId| self.all_published.contains(&(job, **id));
            let goes_on_from = past.iter().filter(published).max().copied();
            let (task, attempt) = (part.task, part.attempt);
            assert_eq!(
                goes_on_from, before,
                "task {task} of attempt {attempt} commits in {checkpoint} what follows another checkpoint than the last"
            );
        }
    }

    /// The writes that hung land, and are answered.
    pub(crate) fn publications_land(&mut self) {
        self.publishing = Publishing::Works;
        for (job, checkpoint, pointers) in std::mem::take(&mut self.publications) {
            self.publish(job, checkpoint, pointers);
        }
        self.run();
    }

    fn deliver(&mut self, connection: ConnectionId, message: FromLeader) {
        let connected =
            |task_manager: &&mut TaskManager| task_manager.connection == Some(connection);
        let Some(task_manager) = self.task_managers.values_mut().find(connected) else {
            return;
        };
        if self.deaf.contains(&task_manager.id.0) {
            return;
        }
        match &message.command {
            Command::Deploy(deployment) => {
                let member = self.leader.membership().at(connection);
                let last = self.published.get(&deployment.job).copied();
                let last = last.filter(|_| self.pointers.contains_key(&deployment.job));
                if self.fallbacks == 0 {
                    assert_eq!(
                        deployment.restore, last,
                        "back to the last published checkpoint"
                    );
                }
                for task in &deployment.tasks {
                    let key = (deployment.job, task.task);
                    let before = self.deployed.insert(key, deployment.attempt);
                    assert!(before.is_none_or(|before| before < deployment.attempt));
                    let place = task_manager.id.clone();
                    let stays = !self.placed.insert((key.0, key.1, place.clone()));
                    assert!(
                        stays || !member.is_some_and(Member::is_draining),
                        "nothing new is placed on {place}, which leaves"
                    );
                }
            }
            Command::CompleteCheckpoint {
                job, checkpoint, ..
            } => {
                let published = self.pointers.get(job).map(|pointers| &pointers.completed);
                let named = |pointers: &Vec<_>| {
                    pointers
                        .iter()
                        .any(|pointer: &CheckpointPointer| pointer.checkpoint == *checkpoint)
                };
                assert!(
                    published.is_some_and(named),
                    "only the published is complete"
                );
            }
            _ => {}
        }
        let answers = task_manager.hear(message, &self.behaviour);
        for answer in &answers {
            if let ToLeader::CheckpointAcknowledged(part) = answer {
                let past = &task_manager.tasks[&(part.job, part.task)].past;
                let past = past.iter().filter(|id| **id != part.checkpoint).copied();
                let key = (part.job, part.checkpoint, part.task);
                self.pasts.insert(key, past.collect());
            }
        }
        self.to_leader
            .extend(answers.into_iter().map(|answer| (connection, answer)));
    }

    /// What must hold whenever nothing is on its way.
    fn check(&self) {
        let mut live: BTreeMap<(JobId, TaskId), (AttemptId, &TaskManagerId)> = BTreeMap::new();
        for task_manager in self.task_managers.values() {
            let met = task_manager.connection.and_then(|connection| {
                self.leader
                    .membership()
                    .at(connection)
                    .filter(|member| member.is_usable())
            });
            if met.is_none() || self.deaf.contains(&task_manager.id.0) {
                continue;
            }
            for (key, execution) in &task_manager.tasks {
                if execution.paused.is_some() {
                    self.check_paused(*key, execution.attempt);
                }
                let (attempt, id) = (execution.attempt, &task_manager.id);
                if let Some(other) = live.insert(*key, (attempt, id)) {
                    panic!("{key:?} runs twice: {attempt} on {id}, and {other:?}");
                }
            }
        }
        for (key, (attempt, id)) in live {
            let job = self.leader.job(key.0);
            // What is being cancelled goes on until that is stored, adopted or not.
            let unadopted = [Phase::Adopting, Phase::Cancelling];
            let adopting = job.is_some_and(|job| unadopted.contains(&job.phase()));
            let current = job.and_then(|job| job.attempt(key.1));
            assert!(
                adopting || current == Some(attempt),
                "{key:?} runs as {attempt} on {id}, and the leader means {current:?}"
            );
        }
        for (member, used) in self.leader.slots() {
            assert!(
                used <= member.registration.slots,
                "{} is overfull",
                member.registration.id
            );
        }
    }

    /// Nobody pauses but for a stop that is still wished, or one of which it is not known how it was published.
    fn check_paused(&self, (job, task): (JobId, TaskId), attempt: AttemptId) {
        let Some(known) = self.leader.job(job) else {
            return;
        };
        let current = known.attempt(task) == Some(attempt) && known.phase() == Phase::Running;
        let may = known.is_to_stop() || known.checkpoints().is_publication_pending();
        assert!(!current || may, "{task} of {job} is paused for ever");
    }

    pub(crate) fn job(&self, job: JobId) -> &Job {
        self.leader.job(job).expect("the leader knows it")
    }

    pub(crate) fn phase(&self, job: JobId) -> Phase {
        self.job(job).phase()
    }

    pub(crate) fn completed(&self, job: JobId) -> u64 {
        self.job(job).checkpoints().history().completed()
    }

    /// The checkpoints that a restart can go back to, as the registry holds them.
    pub(crate) fn published(&self, job: JobId) -> Vec<CheckpointId> {
        let pointers = self.pointers.get(&job).into_iter();
        let completed = pointers.flat_map(|pointers| &pointers.completed);
        completed.map(|pointer| pointer.checkpoint).collect()
    }

    /// The attempts that run, wherever they do.
    pub(crate) fn attempts(&self, job: JobId) -> BTreeSet<AttemptId> {
        let tasks = self
            .task_managers
            .values()
            .flat_map(|task_manager| &task_manager.tasks);
        tasks
            .filter(|((of, _), _)| *of == job)
            .map(|(_, execution)| execution.attempt)
            .collect()
    }

    pub(crate) fn noted(&self, part: &str) -> bool {
        self.notes.iter().any(|note| note.contains(part))
    }
}
