//! What goes wrong, and when it is over: processes that die, stop and go on, links that fail in one direction or both,
//! services that are away.

use tidemill_protocol::JobId;

use crate::connection::HowEnded;
use crate::event::{Event, Input, Side};
use crate::node::{Node, PROCESSES, ProcessState, ZOOKEEPER};
use crate::task::TaskKey;
use crate::time::{MILLISECOND, SECOND};
use crate::world::World;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kill -9` of the leader.
    KillLeader,
    /// Of any JobManager.
    KillJobManager,
    /// Of any TaskManager.
    KillTaskManager,
    /// A TaskManager's machine loses power: no kernel says a last word.
    PowerLoss,
    /// The leader and two TaskManagers at once.
    KillLeaderAndTaskManagers,
    /// The leader is stopped by a signal, and continued.
    FreezeLeader,
    /// So is a TaskManager.
    FreezeTaskManager,
    /// A JobManager is asked to end, and started again.
    StopJobManager,
    /// A TaskManager is asked to end, and started again.
    StopTaskManager,
    /// The leader does not reach ZooKeeper, in one direction or both.
    CutLeaderFromZooKeeper,
    /// A TaskManager does not reach ZooKeeper.
    CutTaskManagerFromZooKeeper,
    /// The leader does not reach the TaskManagers, in one direction or both.
    CutLeaderFromTaskManagers,
    /// Two processes do not reach each other.
    CutPair,
    /// One does not reach another, which reaches it.
    CutOneWay,
    /// A TaskManager reaches nobody.
    CutTaskManagerOff,
    /// Nobody reaches ZooKeeper.
    ZooKeeperAway,
    /// A process's connection to ZooKeeper breaks and can be made again.
    BreakZooKeeperConnection,
    /// A JobManager's session ends.
    ExpireSession,
    /// The object store is out of reach.
    StoreAway,
    /// A TaskManager's control connection breaks and can be made again.
    BreakControlConnection,
    /// User code fails.
    TaskPanics,
    /// A TaskManager hears once more what a leader, perhaps an old one, had said to it.
    ReplayMessage,
    /// TaskManagers lose every JobManager until their tasks run elsewhere; then they are back, and the leader and whoever
    /// runs those tasks die.
    StrandAttempt,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::KillLeader,
        Self::KillJobManager,
        Self::KillTaskManager,
        Self::PowerLoss,
        Self::KillLeaderAndTaskManagers,
        Self::FreezeLeader,
        Self::FreezeTaskManager,
        Self::StopJobManager,
        Self::StopTaskManager,
        Self::CutLeaderFromZooKeeper,
        Self::CutTaskManagerFromZooKeeper,
        Self::CutLeaderFromTaskManagers,
        Self::CutPair,
        Self::CutOneWay,
        Self::CutTaskManagerOff,
        Self::ZooKeeperAway,
        Self::BreakZooKeeperConnection,
        Self::ExpireSession,
        Self::StoreAway,
        Self::BreakControlConnection,
        Self::TaskPanics,
        Self::ReplayMessage,
        Self::StrandAttempt,
    ];

    /// No task may notice it.
    #[must_use]
    pub const fn spares_tasks(self) -> bool {
        matches!(
            self,
            Self::KillLeader
                | Self::KillJobManager
                | Self::FreezeLeader
                | Self::StopJobManager
                | Self::CutLeaderFromZooKeeper
                | Self::ZooKeeperAway
                | Self::BreakZooKeeperConnection
                | Self::ExpireSession
        )
    }
}

/// A fault that will be over.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Dead(Node),
    Frozen(Node),
    Blocked(Vec<(Node, Node)>),
    ZooKeeperAway,
    StoreAway,
    /// Whose tasks run elsewhere by now.
    Stranded {
        job: JobId,
        hosts: Vec<Node>,
    },
}

impl World {
    /// The next random fault, and the time of the one after it.
    pub(crate) fn inject(&mut self) {
        if self.now_us >= self.options.faults_until_us || self.options.faults.is_empty() {
            return;
        }
        let mean_us = self.options.fault_interval_us;
        let pause_us = self.random.between(mean_us / 4, mean_us * 7 / 4);
        self.after(pause_us, Event::Fault);
        let total: u64 = self.options.faults.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.random.below(total);
        for index in 0..self.options.faults.len() {
            let (kind, weight) = self.options.faults[index];
            if drawn < weight {
                return self.begin(kind);
            }
            drawn -= weight;
        }
    }

    fn begin(&mut self, kind: Kind) {
        self.log(|| format!("fault: {kind:?}"));
        *self.counts.faults.entry(kind).or_default() += 1;
        let leader = self.leader().unwrap_or(Node(self.random.below(3) as usize));
        let task_manager = Node(3 + self.random.below(10) as usize);
        let any = Node(self.random.below(PROCESSES as u64) as usize);
        match kind {
            Kind::KillLeader => self.kill_for_a_while(leader, HowEnded::Killed),
            Kind::KillJobManager => self.kill_for_a_while(Node(any.0 % 3), HowEnded::Killed),
            Kind::KillTaskManager => self.kill_for_a_while(task_manager, HowEnded::Killed),
            Kind::PowerLoss => self.kill_for_a_while(task_manager, HowEnded::MachineGone),
            Kind::KillLeaderAndTaskManagers => {
                self.kill_for_a_while(leader, HowEnded::Killed);
                self.kill_for_a_while(task_manager, HowEnded::Killed);
                self.kill_for_a_while(Node(3 + (task_manager.0 + 4) % 10), HowEnded::Killed);
            }
            Kind::FreezeLeader => self.freeze_for_a_while(leader),
            Kind::FreezeTaskManager => self.freeze_for_a_while(task_manager),
            Kind::StopJobManager => self.terminate(Node(any.0 % 3)),
            Kind::StopTaskManager => self.terminate(task_manager),
            Kind::CutLeaderFromZooKeeper => self.cut(&[(leader, ZOOKEEPER)]),
            Kind::CutTaskManagerFromZooKeeper => self.cut(&[(task_manager, ZOOKEEPER)]),
            Kind::CutLeaderFromTaskManagers => {
                self.cut(
                    &Node::task_managers()
                        .map(|one| (leader, one))
                        .collect::<Vec<_>>(),
                );
            }
            Kind::CutPair | Kind::CutOneWay if any == task_manager => {}
            Kind::CutPair => self.block_for_a_while(vec![(any, task_manager), (task_manager, any)]),
            Kind::CutOneWay => {
                let pair = if self.random.chance(500) {
                    (any, task_manager)
                } else {
                    (task_manager, any)
                };
                self.block_for_a_while(vec![pair]);
            }
            Kind::CutTaskManagerOff => self.cut_off_for_a_while(task_manager),
            Kind::ZooKeeperAway => {
                self.zookeeper.is_up = false;
                let away_us = self.random.between(1, 25) * SECOND;
                self.after(away_us, Event::FaultEnds(Fault::ZooKeeperAway));
            }
            Kind::BreakZooKeeperConnection => self.suspend(any),
            Kind::ExpireSession => self.force_session_end(Node(any.0 % 3)),
            Kind::StoreAway => {
                self.store.is_away = true;
                let away_us = self.random.between(1, 15) * SECOND;
                self.after(away_us, Event::FaultEnds(Fault::StoreAway));
            }
            Kind::BreakControlConnection => self.break_control_connection(task_manager),
            Kind::TaskPanics => self.panic_task(task_manager),
            Kind::ReplayMessage => self.replay_message(task_manager),
            Kind::StrandAttempt => self.strand(task_manager),
        }
    }

    /// An administrator ends a session.
    pub(crate) fn force_session_end(&mut self, node: Node) {
        if let Some((epoch, _)) = self
            .zookeeper
            .leader()
            .filter(|(_, leader)| *leader == node)
        {
            self.checkers.forced(epoch);
        }
        self.zookeeper.expire(node);
        self.tell_watchers();
    }

    fn kill_for_a_while(&mut self, node: Node, how: HowEnded) {
        if self.processes[node.0].state != ProcessState::Dead {
            self.end_process(node, how);
            let away_us = self.random.between(200, 15_000) * MILLISECOND;
            self.after(away_us, Event::FaultEnds(Fault::Dead(node)));
        }
    }

    fn freeze_for_a_while(&mut self, node: Node) {
        if self.processes[node.0].runs() {
            self.freeze(node);
            let away_us = self.random.between(100, 20_000) * MILLISECOND;
            self.after(away_us, Event::FaultEnds(Fault::Frozen(node)));
        }
    }

    /// Asks a process to end; it is started again when it has.
    pub(crate) fn terminate(&mut self, node: Node) {
        let process = &mut self.processes[node.0];
        if process.runs() && !process.stopping {
            process.stopping = true;
            let life = process.life;
            self.log(|| format!("{node}: is asked to end"));
            self.happen(node, life, Input::Terminate);
        }
    }

    /// Cuts links in both directions, or only in one of them.
    fn cut(&mut self, links: &[(Node, Node)]) {
        let there = links.iter().copied();
        let back = links.iter().map(|(one, other)| (*other, *one));
        let blocked = match self.random.below(4) {
            0 => there.collect(),
            1 => back.collect(),
            _ => there.chain(back).collect(),
        };
        self.block_for_a_while(blocked);
    }

    fn cut_off_for_a_while(&mut self, node: Node) {
        let blocked = Self::all_links(node);
        self.block_for_a_while(blocked);
    }

    /// Every direction from and to a node.
    pub(crate) fn all_links(node: Node) -> Vec<(Node, Node)> {
        let others = (0..crate::node::NODES)
            .map(Node)
            .filter(move |other| *other != node);
        others
            .flat_map(|other| [(node, other), (other, node)])
            .collect()
    }

    fn block_for_a_while(&mut self, blocked: Vec<(Node, Node)>) {
        self.block(&blocked);
        let away_us = self.random.between(300, 20_000) * MILLISECOND;
        self.after(away_us, Event::FaultEnds(Fault::Blocked(blocked)));
    }

    fn break_control_connection(&mut self, node: Node) {
        let of_node = |connection: &crate::connection::Connection| {
            connection.kind == crate::connection::Kind::Control
                && connection.end(Side::Opener).node == node
        };
        let found = self
            .connections
            .iter()
            .find(|(_, one)| of_node(one) && one.end(Side::Opener).open);
        if let Some((&connection, one)) = found {
            let ends = [
                (Side::Opener, *one.end(Side::Opener)),
                (Side::Acceptor, *one.end(Side::Acceptor)),
            ];
            for (side, end) in ends {
                self.happen(end.node, end.life, Input::Closed { connection, side });
            }
        }
    }

    fn panic_task(&mut self, node: Node) {
        let tasks = &self.task_managers[node.worker()].tasks;
        let keys: Vec<TaskKey> = tasks.values().map(|task| task.key).collect();
        if let Some(task) = self.random.pick(&keys).copied() {
            let life = self.processes[node.0].life;
            self.happen(node, life, Input::TaskPanics { task });
        }
    }

    pub(crate) fn fault_ends(&mut self, fault: Fault) {
        match fault {
            Fault::Dead(node) => self.start_process(node),
            Fault::Frozen(node) => self.thaw(node),
            Fault::Blocked(links) => self.unblock(&links),
            Fault::ZooKeeperAway => self.zookeeper.comes_back(self.now_us),
            Fault::StoreAway => self.store.is_away = false,
            Fault::Stranded { job, hosts } => self.strands_meet(job, &hosts),
        }
    }

    /// A message of a leader that has been succeeded, or a deployment of what runs there, is heard once more.
    fn replay_message(&mut self, node: Node) {
        if !self.processes[node.0].runs() {
            return;
        }
        let late = self.task_managers[node.worker()].late_messages();
        if let Some(message) = self.random.pick(&late).cloned() {
            self.log(|| format!("{node}: hears epoch {} once more", message.epoch));
            self.obey(node, message);
        }
    }

    /// The directions between these and every JobManager.
    fn links_to_leaders(hosts: &[Node]) -> Vec<(Node, Node)> {
        let links = |host: &Node| Self::links(*host, Node::job_managers());
        hosts.iter().flat_map(links).collect()
    }

    fn strand(&mut self, node: Node) {
        let tasks = &self.task_managers[node.worker()].tasks;
        let Some(job) = tasks.values().next().map(|task| task.key.job) else {
            return;
        };
        let mut hosts = vec![node];
        if self.random.chance(700) {
            hosts.extend(self.places(job).into_values().filter(|host| *host != node));
            hosts.sort_unstable();
            hosts.dedup();
        }
        self.block(&Self::links_to_leaders(&hosts));
        let noticed_us = 2 * self.options.idle_timeout_us;
        let away_us = noticed_us + self.random.between(1_000, 8_000) * MILLISECOND;
        self.after(away_us, Event::FaultEnds(Fault::Stranded { job, hosts }));
    }

    fn strands_meet(&mut self, job: JobId, hosts: &[Node]) {
        let links = Self::links_to_leaders(hosts);
        self.unblock(&links);
        let stranded: Vec<_> = hosts
            .iter()
            .flat_map(|node| self.task_managers[node.worker()].tasks.values())
            .map(|task| task.key)
            .filter(|key| key.job == job)
            .collect();
        let succeeds = |newer: &TaskKey| {
            stranded.iter().any(|old| {
                (old.job, old.task) == (newer.job, newer.task) && old.attempt < newer.attempt
            })
        };
        let successors: Vec<Node> = Node::task_managers()
            .filter(|node| {
                let mut tasks = self.task_managers[node.worker()].tasks.values();
                tasks.any(|task| succeeds(&task.key))
            })
            .collect();
        let leader = self.leader();
        for node in leader.into_iter().chain(successors) {
            if self.random.chance(800) {
                self.kill_for_a_while(node, HowEnded::Killed);
            }
        }
    }

    /// Everything is mended, and nothing goes wrong any more.
    pub(crate) fn calm(&mut self) {
        self.log(|| "everything is mended".to_owned());
        let options = &mut self.options;
        options.faults.clear();
        options.zookeeper.lost_replies_per_mille = 0;
        options.store.fails_per_mille = 0;
        options.store.lost_replies_per_mille = 0;
        options.store.slow_per_mille = 0;
        options.store.damaged_per_ten_thousand = 0;
        self.zookeeper.comes_back(self.now_us);
        self.store.is_away = false;
        self.network.heal();
        for node in Node::job_managers().chain(Node::task_managers()) {
            self.thaw(node);
            self.start_process(node);
        }
        self.reachability_changed();
    }

    /// Who decides for the cluster now: the first candidate, if it runs a leader.
    #[must_use]
    pub(crate) fn leader(&self) -> Option<Node> {
        let (epoch, node) = self.zookeeper.leader()?;
        (self.job_managers[node.0].leads() == Some(epoch)).then_some(node)
    }

    /// Whether every task of these runs, under one attempt, on processes that run.
    pub(crate) fn runs_undisturbed(
        &self,
        job: JobId,
        locations: &[tidemill_protocol::control::TaskLocation],
    ) -> bool {
        let mut attempts = std::collections::BTreeSet::new();
        for location in locations {
            let running = Node::task_managers()
                .filter(|node| self.processes[node.0].runs())
                .find_map(|node| {
                    let task = self.task_managers[node.worker()]
                        .tasks
                        .get(&(job, location.task))?;
                    task.running.then_some(task.key.attempt)
                });
            let Some(attempt) = running else { return false };
            attempts.insert(attempt);
        }
        attempts.len() == 1
    }
}
