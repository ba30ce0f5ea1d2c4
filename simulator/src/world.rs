//! The world: processes, links, services, users and checkers, and the one loop that lets the next thing happen. Everything
//! that it does follows from its seed.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_core::Time;
use tidemill_protocol::{AttemptId, JobId};

use crate::check::Checkers;
use crate::connection::{Connection, HowEnded};
use crate::event::{Event, Input, Queue};
use crate::exchange::Stream;
use crate::faults::Kind;
use crate::job_manager::JobManager;
use crate::network::Network;
use crate::node::{JOB_MANAGERS, Node, PROCESSES, Process, ProcessState, TASK_MANAGERS};
use crate::options::Options;
use crate::random::Random;
use crate::store::Store;
use crate::task_manager::TaskManager;
use crate::time::{Clock, SECOND};
use crate::user::{Plan, Users};
use crate::workload::JobSpec;
use crate::zookeeper::ZooKeeper;

/// More events than any run needs: whatever makes more never comes to rest.
const EVENTS_MAX: u64 = 4_000_000;

/// What is wrong with a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A machine panicked.
    Crash(String),
    /// The world was calm and something did not come to an end.
    Liveness(String),
    /// A checker saw what must never be.
    Correctness(String),
}

impl Failure {
    /// The process's exit code: crash 127, liveness 128, correctness 129.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Crash(_) => 127,
            Self::Liveness(_) => 128,
            Self::Correctness(_) => 129,
        }
    }
}

/// How often what happened.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Faults, by kind.
    pub faults: BTreeMap<Kind, u64>,
    /// JobManagers that were first in the queue for the lock.
    pub elections: u64,
    /// Of these, the ones that came to lead.
    pub take_overs: u64,
    /// Leaders that stepped down.
    pub step_downs: u64,
    /// Regions that a new leader found running and left alone.
    pub adoptions: u64,
    /// Failures of regions.
    pub recoveries: u64,
    /// Deployments to one TaskManager.
    pub deployments: u64,
    /// Checkpoints published.
    pub checkpoints: u64,
    /// Tasks that were captured before every barrier had come.
    pub late_captures: u64,
    /// Jobs that finished, were cancelled, or failed as they may.
    pub jobs_ended: u64,
    /// Sessions that ended without the process.
    pub sessions_lost: u64,
    /// Writes refused by the fence.
    pub fenced: u64,
    /// Messages of older epochs that a TaskManager did not obey.
    pub disobeyed: u64,
    /// Answers of ZooKeeper that were lost.
    pub lost_replies: u64,
    /// Requests that the store failed.
    pub store_failures: u64,
    /// Objects that the store damaged.
    pub damaged: u64,
    /// Images that TaskManagers said they keep for tasks elsewhere.
    pub warm_images: u64,
    /// Scans of the store for what running jobs have in it for nothing.
    pub orphan_scans: u64,
    /// Savepoints that were written.
    pub savepoints: u64,
    /// Jobs that began from a savepoint, or from what another one left.
    pub begun_from: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.faults {
            *self.faults.entry(*kind).or_default() += count;
        }
        self.elections += other.elections;
        self.take_overs += other.take_overs;
        self.step_downs += other.step_downs;
        self.adoptions += other.adoptions;
        self.recoveries += other.recoveries;
        self.deployments += other.deployments;
        self.checkpoints += other.checkpoints;
        self.late_captures += other.late_captures;
        self.jobs_ended += other.jobs_ended;
        self.sessions_lost += other.sessions_lost;
        self.fenced += other.fenced;
        self.disobeyed += other.disobeyed;
        self.lost_replies += other.lost_replies;
        self.store_failures += other.store_failures;
        self.damaged += other.damaged;
        self.warm_images += other.warm_images;
        self.orphan_scans += other.orphan_scans;
        self.savepoints += other.savepoints;
        self.begun_from += other.begun_from;
    }
}

/// One dense line per event, when somebody wants them.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Option<Vec<String>>,
}

impl Log {
    pub(crate) fn is_on(&self) -> bool {
        self.lines.is_some()
    }
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    pub(crate) now_us: u64,
    pub(crate) random: Random,
    pub(crate) options: Options,
    queue: Queue,
    pub(crate) processes: Vec<Process>,
    pub(crate) job_managers: Vec<JobManager>,
    pub(crate) task_managers: Vec<TaskManager>,
    pub(crate) network: Network,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) last_connection: u64,
    pub(crate) data_connections: BTreeMap<(Node, Node), u64>,
    pub(crate) broken_attempts: BTreeMap<u64, BTreeSet<(JobId, AttemptId)>>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) held_streams: BTreeSet<usize>,
    pub(crate) last_transaction: u64,
    pub(crate) zookeeper: ZooKeeper,
    pub(crate) store: Store,
    pub(crate) users: Users,
    pub(crate) checkers: Checkers,
    pub(crate) counts: Counts,
    pub(crate) log: Log,
    failure: Option<Failure>,
    events: u64,
    is_calm: bool,
}

impl World {
    /// A world in which every process has just started.
    #[must_use]
    pub fn new(seed: u64, options: Options, logs: bool) -> Self {
        let mut random = Random::new(seed ^ 0x7469_6465_6D69_6C6C);
        let mut clock = || {
            let drift =
                random.between(0, 2 * options.drift_max_ppm) as i64 - options.drift_max_ppm as i64;
            Clock {
                offset_us: random.below(1_000 * SECOND),
                drift_ppm: drift,
            }
        };
        let process = |clock| Process {
            life: 0,
            state: ProcessState::Dead,
            deferred: Vec::new(),
            clock,
            wake_at_us: None,
            stopping: false,
        };
        let processes = (0..PROCESSES).map(|_| process(clock())).collect();
        let mut world = Self {
            now_us: 0,
            network: Network::new(options.network),
            random,
            queue: Queue::default(),
            processes,
            job_managers: (0..JOB_MANAGERS)
                .map(|_| JobManager::new(options.reach_grace_us))
                .collect(),
            task_managers: (0..TASK_MANAGERS).map(|_| TaskManager::default()).collect(),
            connections: BTreeMap::new(),
            last_connection: 0,
            data_connections: BTreeMap::new(),
            broken_attempts: BTreeMap::new(),
            streams: Vec::new(),
            held_streams: BTreeSet::new(),
            last_transaction: 0,
            zookeeper: ZooKeeper::new(PROCESSES),
            store: Store::default(),
            users: Users::default(),
            checkers: Checkers::default(),
            counts: Counts::default(),
            log: Log {
                lines: logs.then(Vec::new),
            },
            failure: None,
            events: 0,
            is_calm: false,
            options,
        };
        for node in Node::job_managers().chain(Node::task_managers()) {
            world.start_process(node);
        }
        world.expire_sessions();
        world
    }

    /// Users and faults as the options say.
    pub fn populate(&mut self) {
        for _ in 0..self.options.jobs.count {
            let mut spec = JobSpec::draw(&self.options, &mut self.random);
            let after_us = self.random.between(1, 15) * SECOND;
            let plan = Plan::draw(self.options.jobs, &mut spec.options, &mut self.random);
            self.add_user(spec, after_us, plan);
        }
        self.schedule(self.options.faults_from_us, Event::Fault);
    }

    /// Runs until every job has ended, everything is mended, or something is wrong.
    pub fn run(&mut self) -> Option<Failure> {
        let until_us = self.options.faults_until_us + self.options.calm_max_us;
        while self.failure.is_none() {
            if !self.is_calm
                && self
                    .queue
                    .next_us()
                    .is_some_and(|next| next >= self.options.faults_until_us)
            {
                self.is_calm = true;
                self.now_us = self.now_us.max(self.options.faults_until_us);
                self.calm();
            }
            if self.is_calm && self.events.is_multiple_of(64) && self.is_done() {
                let judged = self.checkers.at_the_end();
                self.judge(judged);
                break;
            }
            if self.now_us > until_us {
                self.fail_liveness("jobs do not end though nothing goes wrong any more");
            }
            self.step();
        }
        self.counts.jobs_ended = self.checkers.ended();
        self.counts.checkpoints = self.checkers.published();
        self.failure.clone()
    }

    /// Nothing is left to be done.
    pub(crate) fn is_done(&self) -> bool {
        self.users.are_content()
            && self
                .zookeeper
                .jobs
                .values()
                .all(|record| record.state.is_terminal())
            && self
                .task_managers
                .iter()
                .all(|task_manager| task_manager.tasks.is_empty())
    }

    /// Lets the next thing happen.
    pub(crate) fn step(&mut self) {
        self.events += 1;
        if self.events > EVENTS_MAX {
            return self.fail_liveness("the world never comes to rest");
        }
        let Some((at_us, event)) = self.queue.pop() else {
            return self.fail_liveness("nothing happens any more");
        };
        self.now_us = self.now_us.max(at_us);
        match event {
            Event::Process { node, life, input } => self.happen(node, life, input),
            Event::MessageArrives { connection, to } => self.message_arrives(connection, to),
            Event::CloseArrives { connection, to } => self.close_arrives(connection, to),
            Event::EndOfFileArrives { connection, to } => self.end_of_file_arrives(connection, to),
            Event::FrameArrives { stream } => self.frame_arrives(stream),
            Event::RequestArrives {
                node,
                generation,
                id,
                operation,
            } => {
                self.request_arrives(node, generation, id, *operation);
            }
            Event::AnswerArrives {
                node,
                generation,
                id,
                outcome,
            } => {
                self.answer_arrives(node, generation, id, outcome);
            }
            Event::WatchFires { node, generation } => self.watch_fires(node, generation),
            Event::SessionTick => self.expire_sessions(),
            Event::StoreRequestArrives {
                node,
                life,
                request,
            } => {
                self.store_request_arrives(node, life, *request);
            }
            Event::StoreDeletes {
                node,
                life,
                job,
                key,
            } => self.store_deletes(node, life, job, &key),
            Event::StoreCopies {
                node,
                life,
                copying,
            } => self.store_copies(node, life, *copying),
            Event::User { user, turn } => self.user_acts(user, turn),
            Event::UserHears { user, turn, answer } => self.user_hears(user, turn, answer),
            Event::Fault => self.inject(),
            Event::FaultEnds(fault) => self.fault_ends(fault),
        }
    }

    pub(crate) fn schedule(&mut self, at_us: u64, event: Event) {
        self.queue.push(at_us.max(self.now_us), event);
    }

    pub(crate) fn after(&mut self, delay_us: u64, event: Event) {
        self.queue.push(self.now_us + delay_us, event);
    }

    /// Something happens to one life of a process: now, or when it goes on.
    pub(crate) fn happen(&mut self, node: Node, life: u64, input: Input) {
        let process = &mut self.processes[node.0];
        if process.life != life || process.state == ProcessState::Dead {
            return;
        }
        if process.state == ProcessState::Frozen {
            return process.deferred.push(input);
        }
        if let Input::Wake { at_us } = input
            && process.wake_at_us == Some(at_us)
        {
            process.wake_at_us = None;
        }
        if node.is_job_manager() {
            self.job_manager_input(node, input);
        } else {
            self.task_manager_input(node, input);
        }
    }

    /// What a process's own clock shows.
    pub(crate) fn local(&self, node: Node) -> Time {
        self.processes[node.0].clock.local(self.now_us)
    }

    /// Starts a process that does not run.
    pub(crate) fn start_process(&mut self, node: Node) {
        let process = &mut self.processes[node.0];
        if process.state != ProcessState::Dead {
            return;
        }
        process.life += 1;
        process.state = ProcessState::Running;
        process.stopping = false;
        process.deferred.clear();
        process.wake_at_us = None;
        let life = process.life;
        self.log(|| format!("{node}: starts, life {life}"));
        self.reset_client(node);
        let delay_us = self.random.between(1_000, 200_000);
        self.after(
            delay_us,
            Event::Process {
                node,
                life,
                input: Input::SessionTick,
            },
        );
        self.reset_connections(node);
        if node.is_job_manager() {
            self.start_job_manager(node);
        } else {
            self.start_task_manager(node);
        }
        self.reachability_changed();
    }

    /// A process is no more.
    pub(crate) fn end_process(&mut self, node: Node, how: HowEnded) {
        if self.processes[node.0].state == ProcessState::Dead {
            return;
        }
        self.log(|| format!("{node}: ends ({how:?})"));
        self.end_connections(node, how);
        let process = &mut self.processes[node.0];
        process.state = ProcessState::Dead;
        process.deferred.clear();
        if node.is_job_manager() {
            self.job_managers[node.0] = JobManager::new(self.options.reach_grace_us);
        } else {
            self.task_managers[node.worker()] = TaskManager::default();
        }
        if how == HowEnded::InOrder {
            if self.zookeeper.is_up && self.network.passes(node, crate::node::ZOOKEEPER) {
                self.zookeeper.expire(node);
                self.tell_watchers();
            }
            let away_us = self.random.between(1, 4) * SECOND;
            self.after(away_us, Event::FaultEnds(crate::faults::Fault::Dead(node)));
        }
        self.reachability_changed();
    }

    pub(crate) fn freeze(&mut self, node: Node) {
        if self.processes[node.0].runs() {
            self.log(|| format!("{node}: is frozen"));
            self.processes[node.0].state = ProcessState::Frozen;
            self.reachability_changed();
        }
    }

    /// A frozen process goes on: what had happened to it reaches it now, timers and sockets in any order.
    pub(crate) fn thaw(&mut self, node: Node) {
        if self.processes[node.0].state != ProcessState::Frozen {
            return;
        }
        self.log(|| format!("{node}: goes on"));
        self.processes[node.0].state = ProcessState::Running;
        let life = self.processes[node.0].life;
        let mut classes: [Vec<Input>; 3] = Default::default();
        for input in std::mem::take(&mut self.processes[node.0].deferred) {
            let class = match input {
                Input::Wake { .. } | Input::Silence { .. } | Input::LinkTimer { .. } => 0,
                Input::Registry { .. } | Input::Watch { .. } | Input::SessionTick => 1,
                _ => 2,
            };
            classes[class].push(input);
        }
        // All of it before anything new: what comes on one stream stays in order.
        classes.rotate_left(self.random.below(3) as usize);
        if self.random.chance(500) {
            classes.swap(0, 1);
        }
        for input in classes.into_iter().flatten() {
            self.happen(node, life, input);
        }
        self.reachability_changed();
    }

    pub(crate) fn block(&mut self, links: &[(Node, Node)]) {
        for (from, to) in links {
            self.network.block(*from, *to);
        }
        self.log(|| describe_links("cut", links));
        self.reachability_changed();
    }

    pub(crate) fn unblock(&mut self, links: &[(Node, Node)]) {
        for (from, to) in links {
            self.network.unblock(*from, *to);
        }
        self.log(|| describe_links("mended", links));
        self.reachability_changed();
    }

    /// Writes a line, if anybody reads them.
    pub(crate) fn log(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.log.lines {
            lines.push(format!("{:>12.6} {}", self.now_us as f64 / 1e6, line()));
        }
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        self.log.lines.as_deref().unwrap_or_default()
    }

    /// How often what happened.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// What is wrong, if anything is.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// A checker has seen something.
    pub(crate) fn judge(&mut self, judged: Result<(), String>) {
        if let Err(what) = judged {
            self.log(|| format!("WRONG: {what}"));
            let _first = self.failure.get_or_insert(Failure::Correctness(what));
        }
    }

    pub(crate) fn fail_liveness(&mut self, what: &str) {
        let jobs = self
            .zookeeper
            .jobs
            .values()
            .filter(|record| !record.state.is_terminal());
        let jobs: Vec<String> = jobs.map(|record| record.name.clone()).collect();
        let left = self
            .task_managers
            .iter()
            .flat_map(|task_manager| task_manager.tasks.values());
        let left: Vec<String> = left
            .map(|task| format!("{} of {}", task.key.task, task.key.attempt))
            .collect();
        let content = self.users.are_content();
        let what = format!(
            "{what}; not ended: [{}], left: [{}], users content: {content}",
            jobs.join(" "),
            left.join(", ")
        );
        self.log(|| format!("WRONG: {what}"));
        let _first = self.failure.get_or_insert(Failure::Liveness(what));
    }
}

fn describe_links(what: &str, links: &[(Node, Node)]) -> String {
    let named: Vec<String> = links
        .iter()
        .take(6)
        .map(|(from, to)| format!("{from}→{to}"))
        .collect();
    format!("{what}: {} of {} directions", named.join(" "), links.len())
}
