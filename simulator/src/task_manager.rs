//! The shell of a TaskManager: the real worker with a link to the leader, tasks and streams. It does what the real process
//! does around the worker, and decides nothing for it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tidemill_core::worker::{Worker, WorkerAction};
use tidemill_protocol::control::{
    Blame, Command, Deployment, FromLeader, Registration, TaskFailure, TaskState, ToLeader,
    WarmTask,
};
use tidemill_protocol::{AttemptId, Epoch, Incarnation, JobId, TaskId, TaskManagerId};

use crate::connection::{HowEnded, Kind, Message};
use crate::event::{Event, Input, Preparation, Side};
use crate::exchange::{Header, Incoming};
use crate::node::{JOB_MANAGERS, Node};
use crate::store::{StoreAnswer, StoreRequest};
use crate::task::{Task, TaskKey};
use crate::time::{MILLISECOND, SECOND};
use crate::world::World;
use crate::zookeeper::short;

/// The first wait after a failed connection; it doubles.
const RECONNECT_FIRST_US: u64 = 20 * MILLISECOND;
/// The longest.
const RECONNECT_MAX_US: u64 = SECOND;
/// How long a leader may take to answer.
const REGISTRATION_TIMEOUT_US: u64 = 5 * SECOND;
/// Messages that are remembered to be heard once more.
const HEARD_MAX: usize = 40;
/// What all of them must have in common.
pub(crate) const CONFIGURATION_HASH: u64 = 7;
/// Slots of each.
pub(crate) const SLOTS: u32 = 3;

/// How far the link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Closed,
    Greeting,
    Registering,
    Connected,
}

/// The link to the leader.
#[derive(Debug, Default)]
struct Link {
    stage: Stage,
    connection: Option<u64>,
    /// The leader that it goes to.
    epoch: Option<Epoch>,
    turn: u64,
    wait_us: u64,
}

/// One TaskManager.
#[derive(Debug, Default)]
pub(crate) struct TaskManager {
    worker: Worker,
    link: Link,
    pub(crate) tasks: BTreeMap<(JobId, TaskId), Task>,
    pub(crate) incoming: BTreeMap<Header, Incoming>,
    pub(crate) retired: BTreeSet<(JobId, AttemptId)>,
    draining: bool,
    /// The images that it keeps for tasks elsewhere.
    pub(crate) warm: Vec<WarmTask>,
    /// Broken channels of attempts that run here: said again and again, since a leader may not have heard.
    pub(crate) broken: BTreeSet<(JobId, AttemptId, Node)>,
    /// What leaders said lately, when it may be heard once more.
    pub(crate) heard: Vec<FromLeader>,
}

impl TaskManager {
    /// What must not be obeyed when it is heard once more.
    pub(crate) fn late_messages(&self) -> Vec<FromLeader> {
        let runs = |deployment: &Deployment| {
            deployment
                .tasks
                .iter()
                .any(|one| self.tasks.contains_key(&(deployment.job, one.task)))
        };
        let is_late = |message: &&FromLeader| {
            let newest = message.epoch == self.worker.epoch();
            !newest || matches!(&message.command, Command::Deploy(deployment) if runs(deployment))
        };
        self.heard.iter().filter(is_late).cloned().collect()
    }
}

impl World {
    pub(crate) fn start_task_manager(&mut self, node: Node) {
        self.task_managers[node.worker()] = TaskManager::default();
        self.link_waits(node, 1);
    }

    pub(crate) fn task_manager_input(&mut self, node: Node, input: Input) {
        match input {
            Input::Message {
                connection,
                message,
            } => self.link_message(node, connection, *message),
            Input::Silence {
                connection,
                side,
                since_us,
            } => {
                let over = self.was_silent(connection, side, since_us);
                self.connection_over_if(over, node, connection, side);
            }
            Input::Closed { connection, side } => {
                let over = self.end_is_over(connection, side);
                self.connection_over_if(over, node, connection, side);
            }
            Input::EndOfFile { connection, side } => {
                if self.task_managers[node.worker()].link.connection == Some(connection) {
                    self.close(connection, side);
                    self.link_lost(node);
                }
            }
            Input::SessionTick => self.keep_session(node),
            Input::Watch { snapshot } => {
                self.zookeeper.clients[node.0].seen = snapshot;
                self.leader_seen(node);
            }
            Input::LinkTimer { turn } => self.link_timer(node, turn),
            Input::Frame { stream, frame } => self.frame_comes(node, stream, frame),
            Input::Prepared {
                task,
                image,
                failure,
            } => match failure {
                None => self.start_task(node, task, image),
                Some(failure) => self.preparation_failed(node, task, failure),
            },
            Input::TaskDue { task } | Input::Room { task } => self.run_task(node, task),
            Input::Repeat => self.repeat_broken(node),
            Input::FillFails { task } => self.preparation_failed(node, task, Preparation::Lost),
            Input::TaskPanics { task } => {
                self.task_fails(node, task, Blame::Job, "it panicked at record 1000");
            }
            Input::Store { answer } => match *answer {
                StoreAnswer::SegmentWritten { segment, upload } => {
                    self.segment_written(node, segment, upload);
                }
                StoreAnswer::ManifestWritten {
                    task,
                    checkpoint,
                    manifest,
                    finished,
                } => self.uploaded(node, task, checkpoint, manifest, finished),
                _ => {}
            },
            Input::Terminate => self.drain(node),
            Input::DrainTimeout => self.end_process(node, HowEnded::InOrder),
            Input::Wake { .. }
            | Input::Registry { .. }
            | Input::Submit { .. }
            | Input::Cancel { .. }
            | Input::Ask { .. } => {}
        }
    }

    fn connection_over_if(&mut self, over: bool, node: Node, connection: u64, side: Side) {
        if !over {
            return;
        }
        let kind = self.connections.get(&connection).map(|found| found.kind);
        if kind == Some(Kind::Data) {
            self.data_connection_over(node, connection, side);
        } else if self.task_managers[node.worker()].link.connection == Some(connection) {
            self.link_lost(node);
        }
    }

    /// Says something to the leader, if there is one: a leader met later hears of everything that still counts.
    pub(crate) fn say(&mut self, node: Node, message: ToLeader) {
        let link = &self.task_managers[node.worker()].link;
        let speaks = matches!(link.stage, Stage::Registering | Stage::Connected);
        if let Some(connection) = link.connection.filter(|_| speaks) {
            self.send(connection, Side::Opener, Message::ToLeader(message));
        }
    }

    /// Says which channels of running attempts are broken, and that again after a while.
    pub(crate) fn repeat_broken(&mut self, node: Node) {
        let task_manager = &mut self.task_managers[node.worker()];
        let tasks = &task_manager.tasks;
        task_manager.broken.retain(|(job, attempt, _)| {
            tasks
                .values()
                .any(|task| (task.key.job, task.key.attempt) == (*job, *attempt))
        });
        let broken: Vec<_> = task_manager.broken.iter().copied().collect();
        if broken.is_empty() {
            return;
        }
        for (job, attempt, peer) in broken {
            let (peer, reason) = (
                TaskManagerId(peer.to_string()),
                "the connection is over".to_owned(),
            );
            self.say(
                node,
                ToLeader::ChannelBroken {
                    job,
                    attempt,
                    peer,
                    reason,
                },
            );
        }
        let life = self.processes[node.0].life;
        self.after(
            SECOND,
            Event::Process {
                node,
                life,
                input: Input::Repeat,
            },
        );
    }

    fn link_waits(&mut self, node: Node, wait_us: u64) {
        let link = &mut self.task_managers[node.worker()].link;
        link.turn += 1;
        let (turn, life) = (link.turn, self.processes[node.0].life);
        self.after(
            wait_us,
            Event::Process {
                node,
                life,
                input: Input::LinkTimer { turn },
            },
        );
    }

    fn link_lost(&mut self, node: Node) {
        let link = &mut self.task_managers[node.worker()].link;
        (link.stage, link.connection, link.epoch) = (Stage::Closed, None, None);
        let wait_us = link.wait_us.max(RECONNECT_FIRST_US);
        link.wait_us = (wait_us * 2).min(RECONNECT_MAX_US);
        self.log(|| format!("{node}: has no leader"));
        self.link_waits(node, wait_us);
    }

    fn link_timer(&mut self, node: Node, turn: u64) {
        let link = &self.task_managers[node.worker()].link;
        if link.turn != turn || link.stage == Stage::Connected {
            return;
        }
        if let Some(connection) = link.connection {
            // Nobody answered in time.
            self.close(connection, Side::Opener);
            return self.link_lost(node);
        }
        let client = &self.zookeeper.clients[node.0];
        let known = client
            .seen
            .leader
            .map(|(epoch, leader, _)| (Some(epoch), leader));
        let (epoch, leader) = match known {
            Some(known) if client.is_connected() || self.random.chance(500) => known,
            None if client.is_connected() => return self.link_waits(node, RECONNECT_MAX_US),
            // The registry is out of reach, and perhaps the leader that was known last: the others are asked as well.
            _ => (None, Node(self.random.below(JOB_MANAGERS as u64) as usize)),
        };
        let connection = self.open_connection(Kind::Control, node, leader);
        let link = &mut self.task_managers[node.worker()].link;
        (link.stage, link.connection, link.epoch) = (Stage::Greeting, Some(connection), epoch);
        self.link_waits(node, REGISTRATION_TIMEOUT_US);
    }

    /// Another leader than the one that the link goes to: it is met at once.
    fn leader_seen(&mut self, node: Node) {
        let seen = self.zookeeper.clients[node.0]
            .seen
            .leader
            .map(|(epoch, ..)| epoch);
        let link = &mut self.task_managers[node.worker()].link;
        if seen.is_none() || seen <= link.epoch {
            return;
        }
        link.wait_us = RECONNECT_FIRST_US;
        if let Some(connection) = link.connection.take() {
            (link.stage, link.epoch) = (Stage::Closed, None);
            self.close(connection, Side::Opener);
        }
        self.link_waits(node, 1);
    }

    fn link_message(&mut self, node: Node, connection: u64, message: Message) {
        let link = &self.task_managers[node.worker()].link;
        if link.connection != Some(connection) {
            return;
        }
        match (link.stage, message) {
            (Stage::Greeting, Message::Welcome) => {
                let registration = self.registration(node);
                self.task_managers[node.worker()].link.stage = Stage::Registering;
                self.send(
                    connection,
                    Side::Opener,
                    Message::ToLeader(ToLeader::Register(registration)),
                );
            }
            (Stage::Registering, Message::FromLeader(message)) => match message.command {
                Command::Registered { .. }
                    if self.task_managers[node.worker()]
                        .worker
                        .met(message.epoch)
                        .is_ok() =>
                {
                    let link = &mut self.task_managers[node.worker()].link;
                    (link.stage, link.wait_us) = (Stage::Connected, RECONNECT_FIRST_US);
                    link.epoch = link.epoch.max(Some(message.epoch));
                    self.log(|| format!("{node}: registered, epoch {}", message.epoch));
                    self.obey(node, message);
                }
                _ => {
                    self.close(connection, Side::Opener);
                    self.link_lost(node);
                }
            },
            (Stage::Connected, Message::FromLeader(message)) => {
                self.remember(node, &message);
                self.obey(node, message);
            }
            _ => {}
        }
    }

    fn registration(&self, node: Node) -> Registration {
        let task_manager = &self.task_managers[node.worker()];
        Registration {
            id: TaskManagerId(node.to_string()),
            incarnation: Incarnation(self.processes[node.0].life),
            data_address: node.to_string(),
            slots: SLOTS,
            cluster_config_hash: CONFIGURATION_HASH,
            version: String::new(),
            draining: task_manager.draining,
            running: task_manager.worker.running(),
            warm: task_manager.warm.clone(),
        }
    }

    /// Remembers a message that may be heard once more.
    fn remember(&mut self, node: Node, message: &FromLeader) {
        if self
            .options
            .faults
            .iter()
            .any(|(kind, _)| *kind == crate::faults::Kind::ReplayMessage)
        {
            let heard = &mut self.task_managers[node.worker()].heard;
            if heard.len() == HEARD_MAX {
                heard.remove(0);
            }
            heard.push(message.clone());
        }
    }

    pub(crate) fn obey(&mut self, node: Node, message: FromLeader) {
        let epoch = message.epoch;
        let obeyed = self.task_managers[node.worker()].worker.handle(message);
        let Ok(actions) = obeyed else {
            // A leader that has been succeeded, or an attempt that is not newer.
            self.counts.disobeyed += 1;
            return self.log(|| format!("{node}: does not obey epoch {epoch}"));
        };
        let judged = self
            .checkers
            .obeyed(node, self.processes[node.0].life, epoch);
        self.judge(judged);
        for action in actions {
            match action {
                WorkerAction::Stop { job, task, attempt } => {
                    self.stop_task(node, TaskKey { job, task, attempt });
                }
                WorkerAction::Start(deployment) => self.deploy(node, deployment),
                WorkerAction::Checkpoint {
                    job,
                    task,
                    attempt,
                    checkpoint,
                    word,
                } => {
                    self.tell_task(node, TaskKey { job, task, attempt }, checkpoint, word);
                }
                WorkerAction::KeepWarm(images) => self.keep_warm(node, &images),
                WorkerAction::Drained => {
                    if self.task_managers[node.worker()].draining {
                        self.log(|| format!("{node}: is drained and leaves"));
                        return self.end_process(node, HowEnded::InOrder);
                    }
                }
                WorkerAction::PrepareModule(_) | WorkerAction::FetchLogs { .. } => {}
            }
        }
    }

    fn stop_task(&mut self, node: Node, key: TaskKey) {
        self.log(|| format!("{node}: stops task {} of attempt {}", key.task, key.attempt));
        let task_manager = &mut self.task_managers[node.worker()];
        task_manager.tasks.retain(|_, task| task.key != key);
        task_manager.retired.insert((key.job, key.attempt));
        task_manager
            .incoming
            .retain(|header, _| (header.job, header.attempt) != (key.job, key.attempt));
    }

    fn deploy(&mut self, node: Node, deployment: Deployment) {
        let (job, attempt) = (deployment.job, deployment.attempt);
        self.log(|| {
            let tasks: Vec<String> = deployment
                .tasks
                .iter()
                .map(|one| one.task.to_string())
                .collect();
            format!(
                "{node}: deploys {} of job {}, attempt {attempt}, from {:?}",
                tasks.join(" "),
                short(job),
                deployment.restore
            )
        });
        let Some(spec) = self.users.spec(job) else {
            return;
        };
        let graph = Rc::new(deployment.graph);
        let locate = |task: TaskId| {
            let place = deployment
                .locations
                .iter()
                .find(|place| place.task == task)?;
            Node::named(&place.task_manager.0)
        };
        for one in deployment.tasks {
            let key = TaskKey {
                job,
                task: one.task,
                attempt,
            };
            let judged = self
                .checkers
                .started(node, self.processes[node.0].life, key);
            self.judge(judged);
            let mut task = Task::new(key, Rc::clone(&graph), Rc::clone(&spec), deployment.restore);
            self.open_streams(node, &mut task, locate);
            self.task_managers[node.worker()]
                .tasks
                .insert((job, one.task), task);
            match one.image {
                Some(manifest) => self.ask_store(
                    node,
                    StoreRequest::ReadImage {
                        task: key,
                        manifest,
                    },
                ),
                None => {
                    let delay_us = self.random.between(2, 100) * MILLISECOND;
                    let input = Input::Prepared {
                        task: key,
                        image: None,
                        failure: None,
                    };
                    let life = self.processes[node.0].life;
                    self.after(delay_us, Event::Process { node, life, input });
                }
            }
        }
    }

    fn preparation_failed(&mut self, node: Node, key: TaskKey, failure: Preparation) {
        match failure {
            Preparation::Unavailable => {
                self.task_fails(node, key, Blame::Cluster, "its image cannot be read now");
            }
            Preparation::Lost => {
                if self.take_task(node, key).is_some() {
                    let reason = "its image is damaged".to_owned();
                    self.task_changed(node, key, TaskState::Unrestorable { reason });
                }
            }
        }
    }

    fn task_fails(&mut self, node: Node, key: TaskKey, blame: Blame, message: &str) {
        if self.take_task(node, key).is_none() {
            return;
        }
        self.log(|| {
            format!(
                "{node}: task {} of attempt {} fails: {message}",
                key.task, key.attempt
            )
        });
        let failure = TaskFailure {
            blame,
            message: message.to_owned(),
            backtrace: Vec::new(),
            last_log_lines: Vec::new(),
            batch_preview: String::new(),
        };
        self.task_changed(node, key, TaskState::Failed(failure));
    }

    /// News of a task goes to the leader, if it is of the attempt that counts.
    pub(crate) fn task_changed(&mut self, node: Node, key: TaskKey, state: TaskState) {
        let TaskKey { job, task, attempt } = key;
        let worker = &mut self.task_managers[node.worker()].worker;
        if worker.changed(job, task, attempt, state.clone()) {
            self.say(
                node,
                ToLeader::TaskState {
                    job,
                    attempt,
                    task,
                    state,
                },
            );
        }
    }

    /// Takes a task out of its TaskManager while it works.
    pub(crate) fn take_task(&mut self, node: Node, key: TaskKey) -> Option<Task> {
        let tasks = &mut self.task_managers[node.worker()].tasks;
        let place = (key.job, key.task);
        if tasks.get(&place).is_some_and(|task| task.key == key) {
            tasks.remove(&place)
        } else {
            None
        }
    }

    pub(crate) fn put_task(&mut self, node: Node, task: Task) {
        let place = (task.key.job, task.key.task);
        self.task_managers[node.worker()].tasks.insert(place, task);
    }

    /// It is asked to end: its tasks are to go on elsewhere first.
    fn drain(&mut self, node: Node) {
        self.task_managers[node.worker()].draining = true;
        self.say(node, ToLeader::Draining);
        let life = self.processes[node.0].life;
        self.after(
            self.options.drain_timeout_us,
            Event::Process {
                node,
                life,
                input: Input::DrainTimeout,
            },
        );
    }
}
