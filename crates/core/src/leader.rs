//! The leader: composes membership, placement and jobs, and routes between them. Everything that a JobManager decides
//! is decided here; its shell only hands in facts and carries out intentions.
//!
//! A take-over is a new leader with the jobs that the registry holds. What runs where it learns from the TaskManagers.

mod drain;
mod event;
mod modules;
mod routing;
mod standby;
mod submission;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use tidemill_protocol::control::{Command, FromLeader};
use tidemill_protocol::record::{CheckpointPointers, JobRecord};
use tidemill_protocol::{AttemptId, Epoch, ExecutionGraph, Incarnation, JobId, TaskManagerId};

pub use self::event::{Action, Event, Note};
use self::submission::Submission;
use crate::job::{self, Job, Reign, Resources};
use crate::membership::{ConnectionId, LostMember, Member, Membership};
use crate::scheduler::Pair;
use crate::time::{Duration, Time};

/// How long a broken data connection may be a sign of a death that is about to be seen, before it is taken for what it
/// looks like: two TaskManagers that live and cannot reach each other.
const BROKEN_CHANNEL_GRACE: Duration = Duration::from_millis(500);
/// How long two TaskManagers that could not reach each other are kept apart.
const KEEP_APART: Duration = Duration::from_secs(300);

/// Which part of the adoption timeout passes at least, although every announced TaskManager has registered: one whose
/// session with the registry has just ended is not announced.
const ANNOUNCED_GRACE_PART: u32 = 4;

/// How a leader leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderConfig {
    /// Its fencing number.
    pub epoch: Epoch,
    /// What the wall clock says at [`Time::ZERO`], in milliseconds since the Unix epoch.
    pub wall_start_ms: u64,
    /// TaskManagers must have the same.
    pub cluster_config_hash: u64,
    /// How long TaskManagers may take to report what they run, after a take-over.
    pub adoption_timeout: Duration,
    /// How long a TaskManager whose control stream broke may take to come back.
    pub suspicion_timeout: Duration,
    /// How many ended jobs are remembered.
    pub ended_jobs_max: usize,
}

impl LeaderConfig {
    fn reign(&self) -> Reign {
        Reign {
            epoch: self.epoch,
            wall_start_ms: self.wall_start_ms,
        }
    }
}

/// A job that the registry holds at a take-over.
#[derive(Clone, Debug)]
pub struct LoadedJob {
    /// Its record.
    pub record: JobRecord,
    /// Its graph, resolved again, or why it cannot be read.
    pub graph: Result<ExecutionGraph, String>,
    /// Its completed checkpoints.
    pub pointers: CheckpointPointers,
}

/// A data connection that broke, and may be explained by a death within the grace.
#[derive(Clone, Debug)]
struct BrokenChannel {
    due: Time,
    job: JobId,
    attempt: AttemptId,
    ends: (TaskManagerId, TaskManagerId),
    /// Their lives when it broke.
    lives: (Incarnation, Incarnation),
    reason: String,
}

/// The leader of a cluster.
#[derive(Clone, Debug)]
pub struct Leader {
    config: LeaderConfig,
    membership: Membership,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs whose first record is being stored: nobody has been told of them.
    submissions: BTreeMap<JobId, Submission>,
    broken: Vec<BrokenChannel>,
    keep_apart: BTreeMap<Pair, Time>,
    /// Who has announced himself in the registry, and when TaskManagers that run something are expected to be there
    /// after a take-over, if they are well.
    announced: BTreeMap<TaskManagerId, Incarnation>,
    everybody_at: Option<Time>,
    actions: VecDeque<Action>,
}

impl Leader {
    /// Takes over with the jobs that the registry holds.
    #[must_use]
    pub fn new(now: Time, config: LeaderConfig, loaded: Vec<LoadedJob>) -> Self {
        let membership = Membership::new(config.cluster_config_hash, config.suspicion_timeout);
        let grace = config.adoption_timeout / ANNOUNCED_GRACE_PART;
        let job = |LoadedJob {
                       record,
                       graph,
                       pointers,
                   }: LoadedJob| {
            let job = match graph {
                Ok(graph) => Job::loaded(
                    now,
                    config.reign(),
                    record,
                    graph,
                    pointers,
                    config.adoption_timeout,
                ),
                Err(reason) => Job::unreadable(now, config.reign(), record, reason),
            };
            (job.id(), job)
        };
        let everybody_at = (!loaded.is_empty()).then(|| now + grace);
        let jobs = loaded.into_iter().map(job).collect();
        let mut leader = Self {
            config,
            membership,
            jobs,
            submissions: BTreeMap::new(),
            broken: Vec::new(),
            keep_apart: BTreeMap::new(),
            announced: BTreeMap::new(),
            everybody_at,
            actions: VecDeque::new(),
        };
        leader.settle(now);
        leader
    }

    /// Takes a fact.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::JobSubmitted {
                record,
                graph,
                pointers,
            } => self.submitted(*record, graph, pointers),
            Event::SavepointRequested {
                job,
                id,
                directory,
                stop,
            } => {
                let event = job::Event::Savepoint {
                    id,
                    directory,
                    stop,
                };
                self.tell(now, job, event);
            }
            Event::KeptDropped { job } => self.tell(now, job, job::Event::DropKept),
            Event::CancelRequested { job } => self.tell(now, job, job::Event::Cancel),
            Event::Registering {
                connection,
                registration,
            } => {
                self.registering(now, connection, registration);
            }
            Event::Announced { task_managers } => self.announced = task_managers,
            Event::Message {
                connection,
                message,
            } => self.message(now, connection, message),
            Event::ConnectionLost {
                connection,
                how,
                reason,
            } => {
                self.connection_lost(now, connection, how, &reason);
            }
            Event::Performed { job, result } => self.performed(now, job, result),
        }
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Leader::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let jobs = self.jobs.values().filter_map(Job::poll_timeout);
        let broken = self.broken.iter().map(|broken| broken.due);
        jobs.chain(broken)
            .chain(self.membership.next_timeout())
            .chain(self.everybody_at)
            .chain(
                self.submissions
                    .values()
                    .filter_map(Submission::next_timeout),
            )
            .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(id) = self.membership.overdue(now) {
            self.lost(
                now,
                &id,
                "its control stream broke and it did not come back",
                false,
            );
        }
        let (due, waiting) = core::mem::take(&mut self.broken)
            .into_iter()
            .partition(|broken: &BrokenChannel| broken.due <= now);
        self.broken = waiting;
        for broken in due {
            self.channel_broken(now, broken);
        }
        self.everybody_at = self.everybody_at.filter(|at| *at > now);
        self.read_back(now);
        for job in self.jobs.values_mut() {
            if job.poll_timeout().is_some_and(|due| due <= now) {
                job.handle_timeout(now);
            }
        }
        self.settle(now);
    }

    /// Its fencing number.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.config.epoch
    }

    /// Every job that it knows, in order of the id.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// A job.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// The submissions that are being stored.
    pub fn submissions(&self) -> impl Iterator<Item = (&JobRecord, &ExecutionGraph)> {
        self.submissions
            .values()
            .map(|submission| (&submission.record, &submission.graph))
    }

    /// The TaskManagers.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Every TaskManager with the slots that jobs take on it.
    pub fn slots(&self) -> impl Iterator<Item = (&Member, u32)> {
        let mut used: BTreeMap<TaskManagerId, u32> = BTreeMap::new();
        for (id, slots) in self.jobs.values().flat_map(Job::slots_used) {
            *used.entry(id).or_default() += slots;
        }
        self.membership.members().map(move |member| {
            let taken = used.get(&member.registration.id).copied().unwrap_or(0);
            (member, taken.min(member.registration.slots))
        })
    }

    /// The TaskManagers that were lost lately, oldest first.
    #[must_use]
    pub fn lost_members(&self) -> &[LostMember] {
        self.membership.lost()
    }

    fn tell(&mut self, now: Time, job: JobId, event: job::Event) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.handle(now, event);
        }
    }

    fn tell_all(&mut self, now: Time, event: &job::Event) {
        for job in self.jobs.values_mut() {
            job.handle(now, event.clone());
        }
    }

    fn send(&mut self, connection: ConnectionId, command: Command) {
        let message = FromLeader {
            epoch: self.config.epoch,
            command,
        };
        self.actions.push_back(Action::Send {
            connection,
            message,
        });
    }

    /// After every fact: what jobs want is passed on, and waiting ones are placed.
    fn settle(&mut self, now: Time) {
        self.end_adoptions(now);
        self.drain_jobs();
        self.place(now);
        self.drain_jobs();
        self.let_go(now);
        self.choose_keepers();
        self.tell_modules();
        self.forget_ended();
    }

    /// Jobs of which nothing was reported do not wait any longer once everybody has registered, unless one is left that
    /// has run and comes first.
    fn end_adoptions(&mut self, now: Time) {
        let registered = |(id, life): (&TaskManagerId, &Incarnation)| {
            let member = self.membership.member(id);
            member.is_some_and(|member| member.registration.incarnation == *life)
        };
        let everybody = !self.announced.is_empty() && self.announced.iter().all(registered);
        let has_run = |job: &Job| job.phase() == job::Phase::Adopting && job.has_run();
        if self.everybody_at.is_some() || !everybody || self.jobs.values().any(has_run) {
            return;
        }
        for job in self.jobs.values_mut().filter(|job| job.is_unreported()) {
            job.end_adoption(now);
        }
    }

    fn place(&mut self, now: Time) {
        let mut waiting: Vec<_> = self
            .jobs
            .values()
            .filter(|job| job.wants_slots())
            .map(|job| (!job.has_run(), job.record().submitted_at_ms, job.id()))
            .collect();
        if waiting.is_empty() {
            return;
        }
        // What had run goes on before anything new begins.
        waiting.sort_unstable();
        self.keep_apart.retain(|_, until| *until > now);
        for (_, _, id) in waiting {
            let resources = self.resources(id);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.deploy(now, &resources);
            }
        }
    }

    /// Where there is room for a job.
    fn resources(&self, id: JobId) -> Resources {
        let usable = || {
            self.membership
                .members()
                .filter(|member| member.is_usable())
        };
        let mut taken: BTreeMap<TaskManagerId, u32> = BTreeMap::new();
        for other in self.jobs.values().filter(|other| other.id() != id) {
            for (task_manager, used) in other.slots_used() {
                *taken.entry(task_manager).or_default() += used;
            }
        }
        let left = |member: &Member| {
            let id = &member.registration.id;
            let taken = taken.get(id).copied().unwrap_or(0);
            (id.clone(), member.registration.slots.saturating_sub(taken))
        };
        let address = |member: &Member| {
            let registration = &member.registration;
            (registration.id.clone(), registration.data_address.clone())
        };
        let (leaving, staying): (Vec<&Member>, Vec<&Member>) =
            usable().partition(|member| member.is_draining());
        Resources {
            capacity: staying.into_iter().map(left).collect(),
            leaving: leaving.into_iter().map(left).collect(),
            addresses: usable().map(address).collect(),
            keep_apart: self.keep_apart.keys().cloned().collect(),
        }
    }

    fn drain_jobs(&mut self) {
        for (id, job) in &mut self.jobs {
            let job_id = *id;
            while let Some(action) = job.poll_action() {
                let action = match action {
                    // Who is gone, or cut off, hears nothing; its registration brings it up to date.
                    job::Action::Send { to, command } => match self.membership.member(&to) {
                        Some(member) => said(member, self.config.epoch, command),
                        None => continue,
                    },
                    job::Action::StoreRecord(record) => Action::StoreJobRecord(record),
                    job::Action::WriteMetadata(metadata) => Action::WriteMetadata(metadata),
                    job::Action::PublishPointers {
                        checkpoint,
                        pointers,
                    } => Action::PublishPointers {
                        job: job_id,
                        checkpoint,
                        pointers,
                    },
                    job::Action::ReadPointers { checkpoint } => Action::ReadPointers {
                        job: job_id,
                        checkpoint,
                    },
                    job::Action::LoadMetadata(pointer) => Action::LoadMetadata {
                        job: job_id,
                        pointer,
                    },
                    job::Action::DeleteCheckpoints { obsolete, retained } => {
                        Action::DeleteCheckpoints {
                            job: job_id,
                            obsolete,
                            retained,
                        }
                    }
                    job::Action::DeleteOrphans {
                        retained,
                        over,
                        ended,
                    } => Action::DeleteOrphans {
                        job: job_id,
                        retained,
                        over,
                        ended,
                    },
                    job::Action::WriteSavepoint {
                        id,
                        directory,
                        record,
                        metadata,
                    } => Action::WriteSavepoint {
                        id,
                        directory,
                        record,
                        metadata,
                    },
                    job::Action::DeleteJobObjects { kept } => {
                        Action::DeleteJobObjects { job: job_id, kept }
                    }
                    job::Action::CancelStored => Action::CancelStored { job: job_id },
                    job::Action::Note(note) => Action::Note(Note::Job {
                        job: job_id,
                        name: job.record().name.clone(),
                        note,
                    }),
                };
                self.actions.push_back(action);
            }
        }
    }

    /// Ended jobs are remembered up to a bound; the oldest go first. One that left a checkpoint is remembered as long as
    /// that is there: nothing else says that it is.
    fn forget_ended(&mut self) {
        let mut ended: Vec<_> = self
            .jobs
            .values()
            .filter(|job| job.may_be_forgotten())
            .map(|job| (job.record().submitted_at_ms, job.id()))
            .collect();
        if ended.len() <= self.config.ended_jobs_max {
            return;
        }
        ended.sort_unstable();
        let surplus = ended.len() - self.config.ended_jobs_max;
        for (_, id) in ended.into_iter().take(surplus) {
            self.jobs.remove(&id);
            self.actions.push_back(Action::ForgetJob { job: id });
        }
    }
}

/// A command to a TaskManager, on its connection.
fn said(member: &Member, epoch: Epoch, command: Command) -> Action {
    Action::Send {
        connection: member.connection,
        message: FromLeader { epoch, command },
    }
}
