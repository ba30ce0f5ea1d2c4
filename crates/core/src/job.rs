//! One job under one leader: its life cycle, composed of the checkpoint coordinator, the restart strategy and recovery
//! plans. It addresses TaskManagers by name and never knows whether a message arrives.
//!
//! Its regions fail and restart each on its own; attempts are counted over the job. What the registry holds of the job is
//! written before the job acts on it: an end is stored before anything is cleaned up.

mod adoption;
mod deploy;
mod failure;
mod history;
mod phase;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::control::{
    Command, DeployTimings, RunningTask, TaskFailure, TaskProgress, TaskState,
};
use tidemill_protocol::manifest::CheckpointMetadata;
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers, JobRecord, JobState};
use tidemill_protocol::{
    AttemptId, CheckpointId, Epoch, ExecutionGraph, JobId, TaskId, TaskManagerId,
};

pub use self::deploy::Resources;
pub use self::history::{JobHistory, NOTES_MAX, Note, RECOVERIES_MAX, Recovery};
pub use self::phase::Phase;
use crate::checkpoint::{self, Coordinator};
use crate::graph::regions;
use crate::restart::Restarts;
use crate::scheduler::{self, Placements, Shortfall};
use crate::time::{Duration, Time, Timers};

/// Before a failed write to the registry or read from the store is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a job is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A task changed state.
    TaskState {
        /// Who says so.
        from: TaskManagerId,
        /// The attempt that speaks.
        attempt: AttemptId,
        /// Which task.
        task: TaskId,
        /// Its state.
        state: TaskState,
    },
    /// Something happened to a checkpoint; acknowledgements and commits among it.
    Checkpoint(checkpoint::Event),
    /// What a task has done so far.
    Progress(TaskProgress),
    /// A TaskManager registered, and runs these tasks of the job.
    Registered {
        /// Who.
        from: TaskManagerId,
        /// This job's tasks on it.
        running: Vec<RunningTask>,
    },
    /// A TaskManager's control stream broke; it may come back with everything that it runs.
    Suspected(TaskManagerId),
    /// A TaskManager is gone with everything on it.
    TaskManagerLost {
        /// Which.
        id: TaskManagerId,
        /// Why, for people.
        reason: String,
    },
    /// The data connection between two TaskManagers broke under an attempt, and both live.
    ChannelBroken {
        /// Which attempt.
        attempt: AttemptId,
        /// What happened, for people.
        cause: String,
    },
    /// A user asks for the job's end.
    Cancel,
    /// The last record given out is stored.
    RecordStored,
    /// The last record given out may not be stored.
    RecordFailed {
        /// Why.
        reason: String,
    },
    /// The metadata of a completed checkpoint was read.
    MetadataLoaded(CheckpointMetadata),
    /// The metadata of a completed checkpoint is missing or damaged.
    MetadataDamaged {
        /// Which.
        checkpoint: CheckpointId,
        /// What is wrong with it.
        reason: String,
    },
    /// The store did not answer; the metadata may well be there.
    MetadataUnavailable {
        /// Which.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
}

/// What a job wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say this to a TaskManager.
    Send {
        /// To whom.
        to: TaskManagerId,
        /// What.
        command: Command,
    },
    /// Store the record. One at a time.
    StoreRecord(JobRecord),
    /// Store a checkpoint's metadata object.
    WriteMetadata(CheckpointMetadata),
    /// Write the pointers, under the leader's fence.
    PublishPointers {
        /// The new one among them.
        checkpoint: CheckpointId,
        /// All that are to be there.
        pointers: CheckpointPointers,
    },
    /// Read the pointers: a reply was lost.
    ReadPointers {
        /// The one in doubt.
        checkpoint: CheckpointId,
    },
    /// Read a completed checkpoint's metadata object.
    LoadMetadata(CheckpointPointer),
    /// Delete what only the obsolete checkpoints name.
    DeleteCheckpoints {
        /// No pointer names them any more.
        obsolete: Vec<CheckpointPointer>,
        /// Whatever these name stays.
        retained: Vec<CheckpointPointer>,
    },
    /// The job has ended and that is stored: delete its checkpoints and their pointers.
    DeleteJobObjects,
    /// The wish to cancel is stored.
    CancelStored,
    /// For logs.
    Note(Note),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The restart strategy's delay is over.
    Restart,
    /// Whoever has not been reported by now is not adopted.
    Adoption,
    /// The record is stored again.
    StoreAgain,
    /// The metadata is read again.
    LoadAgain,
}

/// How one region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RegionState {
    /// TaskManagers may report it.
    Adopting,
    /// It failed; the restart strategy's delay is running.
    Delayed,
    /// It is to be deployed as soon as there are slots.
    Pending,
    /// Deployed; not every task runs.
    Deploying,
    /// Every task runs or has finished.
    Running,
}

#[derive(Clone, Debug)]
struct Region {
    state: RegionState,
    attempt: Option<AttemptId>,
    /// What that attempt went back to.
    restored: Option<CheckpointId>,
}

impl Region {
    fn is_live(&self) -> bool {
        matches!(self.state, RegionState::Deploying | RegionState::Running)
    }
}

/// How a task is, as far as its leader knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskStatus {
    /// Nowhere.
    #[default]
    Idle,
    /// Being started.
    Deploying,
    /// Processing records.
    Running,
    /// It has said its last word.
    Finished,
    /// Failed and gone.
    Failed,
    /// Stopped and gone.
    Cancelled,
}

/// One task, as far as its leader knows.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// How it is.
    pub status: TaskStatus,
    /// How long its last deployment took.
    pub timings: DeployTimings,
    /// What it said last of its progress, in its current attempt.
    pub progress: Option<TaskProgress>,
}

/// The last failure of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// When the leader learned of it.
    pub at: Time,
    /// Which task, if it was one task's.
    pub task: Option<TaskId>,
    /// What happened.
    pub failure: TaskFailure,
}

/// One job under one leader.
#[derive(Clone, Debug)]
pub struct Job {
    record: JobRecord,
    graph: ExecutionGraph,
    epoch: Epoch,
    attempts: u64,
    phase: Phase,
    regions: Vec<Region>,
    region_tasks: Vec<BTreeSet<TaskId>>,
    region_index: BTreeMap<TaskId, usize>,
    tasks: BTreeMap<TaskId, Task>,
    /// Where tasks run, or ran as long as that TaskManager lives.
    placements: Placements,
    /// TaskManagers whose control stream is broken.
    suspected: BTreeSet<TaskManagerId>,
    /// What was reported of regions that may be adopted.
    reports: BTreeMap<TaskId, adoption::Report>,
    coordinator: Coordinator,
    restarts: Restarts,
    /// Slots are missing since the last try.
    shortfall: Option<Shortfall>,
    /// The metadata that is being read.
    loading: Option<CheckpointId>,
    /// There have been completed checkpoints: beginning anew would repeat what is committed.
    has_completed: bool,
    record_in_flight: Option<JobState>,
    record_changed: bool,
    cleaned: bool,
    ended_at: Option<Time>,
    last_failure: Option<LastFailure>,
    history: JobHistory,
    timers: Timers<Timer>,
    actions: VecDeque<Action>,
}

impl Job {
    /// A job whose record has just been stored.
    #[must_use]
    pub fn submitted(epoch: Epoch, record: JobRecord, graph: ExecutionGraph) -> Self {
        let pointers = CheckpointPointers::default();
        Self::new(epoch, record, graph, pointers, RegionState::Pending)
    }

    /// A job that an earlier leader ran; TaskManagers may report its tasks for so long.
    #[must_use]
    pub fn loaded(
        now: Time,
        epoch: Epoch,
        record: JobRecord,
        graph: ExecutionGraph,
        pointers: CheckpointPointers,
        adoption_timeout: Duration,
    ) -> Self {
        let mut job = Self::new(epoch, record, graph, pointers, RegionState::Adopting);
        match job.record.state.clone() {
            JobState::Active => job.timers.set(Timer::Adoption, now + adoption_timeout),
            JobState::Cancelling => {
                job.phase = Phase::Cancelling;
                job.end(now, JobState::Cancelled);
            }
            ended => {
                job.phase = terminal_phase(&ended);
                job.settle(now);
            }
        }
        job
    }

    /// A job whose stored graph cannot be read: it fails, and what is left of it stays where it is.
    #[must_use]
    pub fn unreadable(now: Time, epoch: Epoch, record: JobRecord, reason: String) -> Self {
        let graph = ExecutionGraph {
            stages: Vec::new(),
            edges: Vec::new(),
            max_parallelism: record.options.max_parallelism,
            job_graph_hash: record.graph_hash,
        };
        let pointers = CheckpointPointers::default();
        let mut job = Self::new(epoch, record, graph, pointers, RegionState::Adopting);
        job.cleaned = true;
        if job.record.state.is_terminal() {
            job.phase = terminal_phase(&job.record.state);
        } else {
            job.end(now, JobState::Failed { reason });
        }
        job
    }

    fn new(
        epoch: Epoch,
        record: JobRecord,
        graph: ExecutionGraph,
        pointers: CheckpointPointers,
        state: RegionState,
    ) -> Self {
        let region_tasks = regions(&graph);
        let of_region = |(index, tasks): (usize, &BTreeSet<TaskId>)| {
            tasks.iter().map(|task| (*task, index)).collect::<Vec<_>>()
        };
        let region = Region {
            state,
            attempt: None,
            restored: None,
        };
        let adopting = state == RegionState::Adopting;
        Self {
            phase: if adopting {
                Phase::Adopting
            } else {
                Phase::Waiting
            },
            regions: region_tasks.iter().map(|_| region.clone()).collect(),
            region_index: region_tasks
                .iter()
                .enumerate()
                .flat_map(of_region)
                .collect(),
            region_tasks,
            tasks: graph.tasks().map(|task| (task, Task::default())).collect(),
            placements: Placements::new(),
            suspected: BTreeSet::new(),
            reports: BTreeMap::new(),
            restarts: Restarts::new(record.options.restart.clone(), record.restarts),
            shortfall: None,
            loading: None,
            has_completed: !pointers.completed.is_empty(),
            coordinator: Coordinator::new(epoch, &record, pointers),
            record_in_flight: None,
            record_changed: false,
            cleaned: false,
            ended_at: None,
            last_failure: None,
            history: JobHistory::default(),
            timers: Timers::default(),
            actions: VecDeque::new(),
            attempts: 0,
            record,
            graph,
            epoch,
        }
    }

    /// Takes a fact. Facts of old attempts, and of tasks that do not exist, change nothing.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::TaskState {
                from,
                attempt,
                task,
                state,
            } => {
                self.task_state(now, &from, attempt, task, state);
            }
            Event::Checkpoint(event) => self.coordinator.handle(now, event),
            Event::Progress(progress) => self.progress(progress),
            Event::Registered { from, running } => self.registered(now, &from, running),
            Event::Suspected(id) => self.suspect(now, id),
            Event::TaskManagerLost { id, reason } => self.task_manager_lost(now, &id, &reason),
            Event::ChannelBroken { attempt, cause } => self.channel_broken(now, attempt, &cause),
            Event::Cancel => self.cancel(now),
            Event::RecordStored => self.record_stored(now),
            Event::RecordFailed { reason } => {
                self.record_in_flight = None;
                let what = format!("the job's record could not be stored: {reason}");
                self.note(now, Note::Retrying { what });
                self.timers.set(Timer::StoreAgain, now + RETRY);
            }
            Event::MetadataLoaded(metadata) => {
                self.loading = self
                    .loading
                    .filter(|loading| *loading != metadata.checkpoint);
                self.coordinator.metadata_loaded(metadata);
            }
            Event::MetadataDamaged { checkpoint, reason } => {
                self.checkpoint_damaged(now, checkpoint, reason);
            }
            Event::MetadataUnavailable { checkpoint, reason } => {
                if self.loading == Some(checkpoint) {
                    let what = format!("checkpoint {checkpoint} could not be read: {reason}");
                    self.note(now, Note::Retrying { what });
                    self.timers.set(Timer::LoadAgain, now + RETRY);
                }
            }
        }
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Job::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        [self.timers.next_timeout(), self.coordinator.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(timer) = self.timers.take_expired(now) {
            match timer {
                Timer::Restart => self.delay_over(),
                Timer::Adoption => self.adoption_over(now),
                Timer::StoreAgain => self.store_record(),
                Timer::LoadAgain => self.loading = None,
            }
        }
        self.coordinator.handle_timeout(now);
        self.settle(now);
    }

    /// Which job.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.record.id
    }

    /// What the registry holds of it, or is about to.
    #[must_use]
    pub fn record(&self) -> &JobRecord {
        &self.record
    }

    /// What runs.
    #[must_use]
    pub fn graph(&self) -> &ExecutionGraph {
        &self.graph
    }

    /// What it is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Every task.
    #[must_use]
    pub fn tasks(&self) -> &BTreeMap<TaskId, Task> {
        &self.tasks
    }

    /// Where tasks run, or ran as long as that TaskManager lives.
    #[must_use]
    pub fn placements(&self) -> &Placements {
        &self.placements
    }

    /// A task's current attempt, if its region was ever deployed.
    #[must_use]
    pub fn attempt(&self, task: TaskId) -> Option<AttemptId> {
        self.regions[self.region_of(task)?].attempt
    }

    /// The slots that are missing, while it waits for them.
    #[must_use]
    pub fn shortfall(&self) -> Option<Shortfall> {
        self.shortfall
    }

    /// The checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> &Coordinator {
        &self.coordinator
    }

    /// What happened.
    #[must_use]
    pub fn history(&self) -> &JobHistory {
        &self.history
    }

    /// The last failure.
    #[must_use]
    pub fn last_failure(&self) -> Option<&LastFailure> {
        self.last_failure.as_ref()
    }

    /// When it ended, if this leader saw it.
    #[must_use]
    pub fn ended_at(&self) -> Option<Time> {
        self.ended_at
    }

    /// The slots that it takes on each TaskManager. While it waits for slots, its waiting regions take none.
    #[must_use]
    pub fn slots_used(&self) -> BTreeMap<TaskManagerId, u32> {
        let holds = |task: &TaskId| {
            let state = self
                .region_of(*task)
                .map(|region| self.regions[region].state);
            state != Some(RegionState::Pending) || self.shortfall.is_none()
        };
        let held: Placements = self
            .placements
            .iter()
            .filter(|(task, _)| holds(task))
            .map(|(task, place)| (*task, place.clone()))
            .collect();
        scheduler::slots_used(&held)
    }

    fn region_of(&self, task: TaskId) -> Option<usize> {
        self.region_index.get(&task).copied()
    }

    fn note(&mut self, now: Time, note: Note) {
        self.history.note(now, &note);
        self.actions.push_back(Action::Note(note));
    }

    fn send(&mut self, to: &TaskManagerId, command: Command) {
        self.actions.push_back(Action::Send {
            to: to.clone(),
            command,
        });
    }

    /// The tasks of a region by the TaskManager where they are placed.
    fn hosts(&self, region: usize) -> BTreeMap<TaskManagerId, Vec<TaskId>> {
        let mut hosts: BTreeMap<TaskManagerId, Vec<TaskId>> = BTreeMap::new();
        for task in &self.region_tasks[region] {
            if let Some(host) = self.placements.get(task) {
                hosts.entry(host.clone()).or_default().push(*task);
            }
        }
        hosts
    }

    /// Says something about a checkpoint to every live region, each under its own attempt.
    fn announce(&mut self, command: impl Fn(JobId, AttemptId) -> Command) {
        for region in 0..self.regions.len() {
            let Some(attempt) = self.regions[region].attempt else {
                continue;
            };
            if self.regions[region].is_live() {
                for host in self.hosts(region).into_keys() {
                    let command = command(self.record.id, attempt);
                    self.send(&host, command);
                }
            }
        }
    }

    fn task_state(
        &mut self,
        now: Time,
        from: &TaskManagerId,
        attempt: AttemptId,
        task: TaskId,
        state: TaskState,
    ) {
        let Some(region) = self.region_of(task) else {
            return;
        };
        if self.regions[region].state == RegionState::Adopting && self.phase.is_active() {
            let running = RunningTask {
                job: self.record.id,
                attempt,
                task,
                state,
            };
            self.report(now, from, running);
            return;
        }
        let current = self.regions[region].attempt == Some(attempt)
            && self.regions[region].is_live()
            && self.placements.get(&task) == Some(from)
            && self.phase.is_active();
        if !current {
            // What should not be there is stopped again; its first cancellation may have been lost. A late word of a
            // job that has ended well is not worth an answer.
            if !matches!(state, TaskState::Cancelled) && self.phase != Phase::Cancelling {
                self.stop(from, attempt, task);
            }
            return;
        }
        if self.coordinator.is_done(task) {
            return;
        }
        match state {
            TaskState::Deploying => {}
            TaskState::Running { timings } => self.task_runs(task, TaskStatus::Running, timings),
            TaskState::Finished => {
                let timings = self.tasks[&task].timings;
                self.task_runs(task, TaskStatus::Finished, timings);
            }
            TaskState::Failed(failure) => self.task_failed(now, from, task, failure),
            TaskState::Unrestorable { reason } => self.unrestorable(now, region, reason),
            TaskState::Cancelled => self.task_gone(now, from, task),
        }
    }

    /// Stops one task of one attempt.
    fn stop(&mut self, on: &TaskManagerId, attempt: AttemptId, task: TaskId) {
        let job = self.record.id;
        self.send(
            on,
            Command::Cancel {
                job,
                attempt,
                tasks: [task].into(),
            },
        );
    }

    fn task_runs(&mut self, id: TaskId, status: TaskStatus, timings: DeployTimings) {
        if let Some(task) = self.tasks.get_mut(&id)
            && task.status < status
        {
            task.status = status;
            task.timings = timings;
        }
    }

    fn progress(&mut self, progress: TaskProgress) {
        if self.attempt(progress.task) == Some(progress.attempt)
            && let Some(task) = self.tasks.get_mut(&progress.task)
        {
            task.progress = Some(progress);
        }
    }

    fn cancel(&mut self, now: Time) {
        if self.phase.is_active() {
            self.record.state = JobState::Cancelling;
            self.become_phase(now, Phase::Cancelling);
            self.timers.stop(Timer::Restart);
            self.timers.stop(Timer::Adoption);
            self.store_record();
        } else if self.phase == Phase::Cancelling && self.record_in_flight.is_none() {
            self.store_record();
        }
    }

    /// How the job ended is decided: stops everything, stores that, and cleans up once it is stored.
    fn end(&mut self, now: Time, state: JobState) {
        if let JobState::Failed { reason } = &state {
            let reason = reason.clone();
            self.note(now, Note::Failed { reason });
        }
        self.record.state = state;
        self.become_phase(now, Phase::Ending);
        self.timers.stop_all();
        let reason = "the job has ended".into();
        self.coordinator
            .handle(now, checkpoint::Event::TasksLost { reason });
        for region in 0..self.regions.len() {
            self.stop_region(region);
            self.regions[region].state = RegionState::Pending;
        }
        for report in core::mem::take(&mut self.reports) {
            self.stop(&report.1.from, report.1.attempt, report.0);
        }
        self.placements.clear();
        self.shortfall = None;
        self.store_record();
    }

    /// Stops the tasks of a region's attempt, wherever they are.
    fn stop_region(&mut self, region: usize) {
        let Some(attempt) = self.regions[region].attempt else {
            return;
        };
        let job = self.record.id;
        for (host, tasks) in self.hosts(region) {
            self.send(
                &host,
                Command::Cancel {
                    job,
                    attempt,
                    tasks,
                },
            );
        }
        for task in &self.region_tasks[region] {
            let task = self
                .tasks
                .get_mut(task)
                .expect("every task of a region is the job's");
            let ends_well = task.status == TaskStatus::Finished && self.phase == Phase::Ending;
            if task.status != TaskStatus::Failed && !ends_well {
                task.status = match self.phase {
                    Phase::Ending => TaskStatus::Cancelled,
                    _ => TaskStatus::Idle,
                };
            }
        }
    }

    fn store_record(&mut self) {
        self.timers.stop(Timer::StoreAgain);
        self.record_changed = self.record_in_flight.is_some();
        if self.record_in_flight.is_none() {
            self.record_in_flight = Some(self.record.state.clone());
            self.actions
                .push_back(Action::StoreRecord(self.record.clone()));
        }
    }

    fn record_stored(&mut self, now: Time) {
        let Some(stored) = self.record_in_flight.take() else {
            return;
        };
        if self.record_changed {
            self.store_record();
        }
        if stored == JobState::Cancelling && self.phase == Phase::Cancelling {
            self.actions.push_back(Action::CancelStored);
            self.end(now, JobState::Cancelled);
        } else if stored.is_terminal() && self.phase == Phase::Ending {
            self.ended_at = Some(now);
            self.become_phase(now, terminal_phase(&stored));
        }
    }

    fn become_phase(&mut self, now: Time, to: Phase) {
        let from = self.phase;
        if from != to {
            debug_assert!(
                from.may_become(to),
                "{from:?} → {to:?} is no step of a job's life"
            );
            self.phase = to;
            self.note(now, Note::Phase { from, to });
        }
    }

    /// After every fact: what the coordinator wants is done, and the phase is what the regions say.
    fn settle(&mut self, now: Time) {
        self.drain_coordinator(now);
        for region in 0..self.regions.len() {
            self.settle_region(now, region);
        }
        self.settle_phase(now);
        self.settle_readiness(now);
        self.drain_coordinator(now);
        self.settle_phase(now);
        if self.phase.is_terminal() && !self.cleaned && !self.coordinator.is_publication_pending() {
            self.cleaned = true;
            self.actions.push_back(Action::DeleteJobObjects);
        }
    }

    fn settle_phase(&mut self, now: Time) {
        if !self.phase.is_active() {
            return;
        }
        let any = |state| self.regions.iter().any(|region| region.state == state);
        let has_run = self.regions.iter().any(|region| region.attempt.is_some());
        let finished = |task: &Task| task.status == TaskStatus::Finished;
        let phase = if any(RegionState::Adopting) {
            Phase::Adopting
        } else if any(RegionState::Delayed) {
            Phase::Restarting
        } else if any(RegionState::Pending) {
            if self.shortfall.is_some() || !has_run {
                Phase::Waiting
            } else {
                Phase::Restarting
            }
        } else if any(RegionState::Deploying) {
            Phase::Deploying
        } else if self.tasks.values().all(finished) {
            Phase::Finishing
        } else {
            Phase::Running
        };
        self.become_phase(now, phase);
    }

    /// Tells the coordinator when checkpoints may begin.
    fn settle_readiness(&mut self, now: Time) {
        let reachable = !self
            .placements
            .values()
            .any(|place| self.suspected.contains(place));
        if !matches!(self.phase, Phase::Running | Phase::Finishing) || !reachable {
            return;
        }
        if !self.coordinator.is_ready() {
            let attempt = |task: &TaskId| Some((*task, self.attempt(*task)?));
            let participants = self.tasks.keys().filter_map(attempt).collect();
            self.coordinator
                .handle(now, checkpoint::Event::TasksReady { participants });
        }
        if self.phase == Phase::Finishing && !self.coordinator.is_finishing() {
            self.coordinator.handle(now, checkpoint::Event::AllFinished);
        }
    }

    fn drain_coordinator(&mut self, now: Time) {
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                checkpoint::Action::Trigger(checkpoint) => {
                    self.announce(|job, attempt| Command::TriggerCheckpoint {
                        job,
                        attempt,
                        checkpoint,
                    })
                }
                checkpoint::Action::Abort(checkpoint) => {
                    self.announce(|job, attempt| Command::AbortCheckpoint {
                        job,
                        attempt,
                        checkpoint,
                    })
                }
                checkpoint::Action::Complete(checkpoint) => {
                    self.announce(|job, attempt| Command::CompleteCheckpoint {
                        job,
                        attempt,
                        checkpoint,
                    })
                }
                checkpoint::Action::WriteMetadata(metadata) => {
                    self.actions.push_back(Action::WriteMetadata(metadata));
                }
                checkpoint::Action::Publish {
                    checkpoint,
                    pointers,
                } => {
                    self.actions.push_back(Action::PublishPointers {
                        checkpoint,
                        pointers,
                    });
                }
                checkpoint::Action::ReadPointers { checkpoint } => {
                    self.actions.push_back(Action::ReadPointers { checkpoint });
                }
                checkpoint::Action::Delete { obsolete, retained } => {
                    self.actions
                        .push_back(Action::DeleteCheckpoints { obsolete, retained });
                }
                checkpoint::Action::Completed(record) => {
                    self.has_completed = true;
                    self.note(now, Note::Checkpoint(record));
                }
                checkpoint::Action::Failed(record) => self.note(now, Note::Checkpoint(record)),
                checkpoint::Action::FailJob { reason } => {
                    self.checkpoints_failed(now, &reason);
                }
                checkpoint::Action::Finished => {
                    if self.phase.is_active() {
                        self.end(now, JobState::Finished);
                    }
                }
            }
        }
    }
}

fn terminal_phase(state: &JobState) -> Phase {
    match state {
        JobState::Cancelled => Phase::Cancelled,
        JobState::Failed { .. } => Phase::Failed,
        JobState::Finished | JobState::Active | JobState::Cancelling => Phase::Finished,
    }
}
