//! One job under one leader: its life cycle, composed of the checkpoint coordinator, the restart strategy and recovery
//! plans. It addresses TaskManagers by name and never knows whether a message arrives.
//!
//! Its regions fail and restart each on its own; attempts are counted over the job. What the registry holds of the job is
//! written before the job acts on it: an end is stored before anything is cleaned up.

mod adoption;
mod deploy;
mod drain;
mod ending;
mod event;
mod failure;
mod history;
mod module;
mod orphans;
mod phase;
mod request_id;
mod savepoint;
mod settle;
mod standby;
mod tasks;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::control::{Command, DeployTimings, TaskFailure, TaskProgress};
use tidemill_protocol::record::{CheckpointPointers, JobRecord, JobState};
use tidemill_protocol::{
    AttemptId, CheckpointId, Epoch, ExecutionGraph, JobId, TaskId, TaskManagerId,
};

pub use self::deploy::Resources;
use self::ending::terminal_phase;
pub use self::event::{Action, Event};
pub use self::history::{JobHistory, NOTES_MAX, Note, RECOVERIES_MAX, Recovery, Restored};
pub use self::phase::Phase;
pub use self::request_id::{ParseRequestIdError, SavepointRequestId, SavepointStep};
pub use self::savepoint::{SAVEPOINTS_MAX, SavepointStatus};
use crate::checkpoint::Coordinator;
use crate::graph::regions;
use crate::mutation::{self, Mutation};
use crate::restart::Restarts;
use crate::scheduler::{self, Placements, Shortfall};
use crate::time::{Duration, Time, Timers};

/// Before a failed write to the registry or read from the store is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a deployed task may take to run: fetching and compiling its module, reading its image. Something hangs when
/// it takes longer.
const DEPLOY_TIMEOUT: Duration = Duration::from_secs(600);

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
    /// Tasks that were deployed long ago should run by now.
    Deploy,
    /// A checkpoint that a savepoint waits for should have begun by now.
    Savepoint,
    /// The store may be looked over again.
    Orphans,
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
    /// When that attempt was sent out.
    deployed_at: Time,
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

/// What a job must know of its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// The fencing number.
    pub epoch: Epoch,
    /// What the wall clock says at [`Time::ZERO`], in milliseconds since the Unix epoch.
    pub wall_start_ms: u64,
}

impl Reign {
    fn wall_ms(&self, now: Time) -> u64 {
        self.wall_start_ms.saturating_add(now.as_micros() / 1000)
    }
}

/// One job under one leader.
#[derive(Clone, Debug)]
pub struct Job {
    record: JobRecord,
    graph: ExecutionGraph,
    reign: Reign,
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
    /// Tasks are leaving TaskManagers that want to go.
    moving: Option<drain::Move>,
    /// Tasks cannot leave such TaskManagers, since they fit nowhere else.
    stay: Option<drain::Stay>,
    /// The metadata that is being read.
    loading: Option<CheckpointId>,
    savepoints: savepoint::Savepoints,
    standby: standby::Standby,
    module_holders: module::ModuleHolders,
    orphans: orphans::Orphans,
    /// The checkpoint that it left at its end is not to stay any longer.
    kept_dropped: bool,
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
    /// A job whose record has just been stored; `pointers` are of what it begins from.
    #[must_use]
    pub fn submitted(
        reign: Reign,
        record: JobRecord,
        graph: ExecutionGraph,
        pointers: CheckpointPointers,
    ) -> Self {
        Self::new(reign, record, graph, pointers, RegionState::Pending)
    }

    /// A job that an earlier leader ran; TaskManagers may report its tasks for so long.
    #[must_use]
    pub fn loaded(
        now: Time,
        reign: Reign,
        record: JobRecord,
        graph: ExecutionGraph,
        pointers: CheckpointPointers,
        adoption_timeout: Duration,
    ) -> Self {
        let mut job = Self::new(reign, record, graph, pointers, RegionState::Adopting);
        match job.record.state.clone() {
            JobState::Active if job.has_lost_its_beginning() => {
                let reason = "its submission was interrupted before the savepoint that it begins from had been imported: submit it again".into();
                job.end(now, JobState::Failed { reason });
            }
            state if state == JobState::Active || mutation::is(Mutation::EndedJobLoaded) => {
                job.timers.set(Timer::Adoption, now + adoption_timeout);
                job.coordinator.taken_over();
                job.orphans_are_due();
                job.load_last_checkpoint();
            }
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
    pub fn unreadable(now: Time, reign: Reign, record: JobRecord, reason: String) -> Self {
        let graph = ExecutionGraph {
            stages: Vec::new(),
            edges: Vec::new(),
            max_parallelism: record.options.max_parallelism,
            job_graph_hash: record.graph_hash,
        };
        let pointers = CheckpointPointers::default();
        let mut job = Self::new(reign, record, graph, pointers, RegionState::Adopting);
        job.cleaned = true;
        if job.record.state.is_terminal() {
            job.phase = terminal_phase(&job.record.state);
        } else {
            job.end(now, JobState::Failed { reason });
        }
        job
    }

    fn new(
        reign: Reign,
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
            deployed_at: Time::ZERO,
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
            moving: None,
            stay: None,
            loading: None,
            savepoints: savepoint::Savepoints::default(),
            standby: standby::Standby::default(),
            module_holders: module::ModuleHolders::default(),
            orphans: orphans::Orphans::default(),
            kept_dropped: false,
            has_completed: !pointers.completed.is_empty(),
            coordinator: Coordinator::new(reign.epoch, &record, pointers),
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
            reign,
        }
    }

    /// It was to begin from a savepoint, of which there is nothing: beginning without it is not what was wished.
    fn has_lost_its_beginning(&self) -> bool {
        self.record.began_from.is_some() && !self.has_completed
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
            Event::Registered {
                from,
                running,
                warm,
            } => {
                self.keeper_registered(&from, warm);
                self.module_holders.forget(&from);
                self.registered(now, &from, running);
            }
            Event::Warm { from, tasks } => self.kept_warm(from, tasks),
            Event::Suspected(id) => self.suspect(now, id),
            Event::TaskManagerLost {
                id,
                reason,
                silent_for,
            } => self.task_manager_lost(now, &id, &reason, silent_for),
            Event::ChannelBroken { attempt, cause } => self.channel_broken(now, attempt, &cause),
            Event::Cancel => self.cancel(now),
            Event::Savepoint {
                id,
                directory,
                stop,
            } => self.savepoint_wished(now, id, directory, stop),
            Event::SavepointProgress {
                id,
                done_bytes,
                total_bytes,
            } => self.savepoint_progressed(id, done_bytes, total_bytes),
            Event::SavepointCopied { id, result } => self.savepoint_copied(now, id, result),
            Event::DropKept => self.drop_kept(),
            Event::RecordStored => self.record_stored(now),
            Event::RecordFailed { reason } => self.record_failed(now, &reason),
            Event::MetadataLoaded(metadata) => {
                let loaded = metadata.checkpoint;
                self.loading = self.loading.filter(|loading| *loading != loaded);
                self.coordinator.metadata_loaded(metadata);
                self.keepers_want_news();
                self.judge_all(now);
            }
            Event::MetadataDamaged { checkpoint, reason } => {
                self.checkpoint_damaged(now, checkpoint, reason);
                self.judge_all(now);
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
                Timer::LoadAgain => {
                    self.loading = None;
                    self.judge_all(now);
                }
                Timer::Deploy => self.deployments_overdue(now),
                // What they were set for is seen to below.
                Timer::Savepoint | Timer::Orphans => {}
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

    /// Whether a region runs, or is being started, under this attempt.
    #[must_use]
    pub fn runs_attempt(&self, attempt: AttemptId) -> bool {
        let mut regions = self.regions.iter();
        regions.any(|region| region.attempt == Some(attempt) && region.is_live())
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

    /// The slots that it takes on each TaskManager, and those that it is about to take in a move. While it waits for
    /// slots, its waiting regions take none.
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
        let mut used = scheduler::slots_used(&held);
        for (id, slots) in self.moving.iter().flat_map(|moving| &moving.reserved) {
            let most = used.entry(id.clone()).or_default();
            *most = (*most).max(*slots);
        }
        used
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
}
