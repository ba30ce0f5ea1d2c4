//! A process's connection to ZooKeeper: requests go out in order, what was asked when the connection broke may have
//! happened, a suspended connection is not a lost session, and a session that is over is replaced by a new one.

use std::collections::VecDeque;

use crate::event::{Event, Input};
use crate::node::{Node, ZOOKEEPER};
use crate::time::MILLISECOND;
use crate::world::World;
use crate::zookeeper::{Operation, Outcome, Purpose, Snapshot};

/// What does not get through is sent again after this time.
pub(crate) const AGAIN_US: u64 = 20 * MILLISECOND;

/// How a client is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// There is no session.
    #[default]
    Connecting,
    Connected,
    /// No server answers; the session may live.
    Suspended,
}

/// One process's client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    state: State,
    pub(crate) session: Option<u64>,
    /// Counts connections: what belongs to an earlier one arrives nowhere.
    pub(crate) generation: u64,
    heard_us: u64,
    last_id: u64,
    /// The last request of this connection that reached the ensemble.
    pub(crate) served: u64,
    last_request_us: u64,
    pub(crate) last_answer_us: u64,
    pub(crate) last_watch_us: u64,
    /// Sent and not answered.
    pending: VecDeque<(u64, Operation, Purpose)>,
    /// To be sent when there is a connection.
    waiting: VecDeque<(Operation, Purpose)>,
    /// What the last watch said.
    pub(crate) seen: Snapshot,
}

impl Client {
    pub(crate) fn is_connected(&self) -> bool {
        self.state == State::Connected
    }
}

const fn is_read(operation: &Operation) -> bool {
    matches!(operation, Operation::ReadJobs | Operation::ReadPointers(_))
}

impl World {
    /// A new life begins without a session.
    pub(crate) fn reset_client(&mut self, node: Node) {
        let client = &mut self.zookeeper.clients[node.0];
        let generation = client.generation + 1;
        *client = Client {
            generation,
            ..Client::default()
        };
    }

    /// Asks ZooKeeper; the answer comes as an input. While the connection is suspended, the request waits.
    pub(crate) fn ask(&mut self, node: Node, operation: Operation, purpose: Purpose) {
        if !self.zookeeper.clients[node.0].is_connected() {
            return self.zookeeper.clients[node.0]
                .waiting
                .push_back((operation, purpose));
        }
        let delay_us = self.network.delay_us(&mut self.random);
        let client = &mut self.zookeeper.clients[node.0];
        client.last_id += 1;
        client
            .pending
            .push_back((client.last_id, operation.clone(), purpose));
        client.last_request_us = client.last_request_us.max(self.now_us + delay_us);
        let (at_us, id, generation) = (client.last_request_us, client.last_id, client.generation);
        let operation = Box::new(operation);
        self.schedule(
            at_us,
            Event::RequestArrives {
                node,
                generation,
                id,
                operation,
            },
        );
    }

    /// An answer arrives, after those before it. What is cut off for a while is sent again.
    pub(crate) fn answer_arrives(
        &mut self,
        node: Node,
        generation: u64,
        id: u64,
        outcome: Box<Outcome>,
    ) {
        let now_us = self.now_us;
        let passes = self.network.passes(ZOOKEEPER, node);
        let client = &mut self.zookeeper.clients[node.0];
        if client.generation != generation || !client.is_connected() {
            return;
        }
        if !passes
            || client
                .pending
                .front()
                .is_some_and(|(first, ..)| *first < id)
        {
            return self.after(
                AGAIN_US,
                Event::AnswerArrives {
                    node,
                    generation,
                    id,
                    outcome,
                },
            );
        }
        client.heard_us = now_us;
        if let Some((_, operation, purpose)) = client.pending.pop_front() {
            self.happen_to(
                node,
                Input::Registry {
                    operation: Box::new(operation),
                    purpose,
                    outcome,
                },
            );
        }
    }

    /// A watch has fired: who is there is read again.
    pub(crate) fn watch_fires(&mut self, node: Node, generation: u64) {
        let client = &self.zookeeper.clients[node.0];
        if client.generation != generation || !client.is_connected() {
            return;
        }
        if !self.zookeeper.is_up || !self.network.round_trips(node, ZOOKEEPER) {
            return self.after(AGAIN_US, Event::WatchFires { node, generation });
        }
        let snapshot = self.zookeeper.snapshot();
        self.happen_to(node, Input::Watch { snapshot });
    }

    fn happen_to(&mut self, node: Node, input: Input) {
        let life = self.processes[node.0].life;
        self.happen(node, life, input);
    }

    /// What a client does again and again: pings, finds out that nobody answers, connects again.
    pub(crate) fn keep_session(&mut self, node: Node) {
        let timeout_us = self.options.zookeeper.session_timeout_us;
        let connected = self.zookeeper.clients[node.0].is_connected();
        let pause_us = if connected {
            timeout_us / 6
        } else {
            self.random.between(100, 500) * MILLISECOND
        };
        let life = self.processes[node.0].life;
        self.after(
            pause_us,
            Event::Process {
                node,
                life,
                input: Input::SessionTick,
            },
        );
        let is_up = self.zookeeper.is_up;
        let hears = is_up && self.network.passes(ZOOKEEPER, node);
        let speaks = is_up && self.network.passes(node, ZOOKEEPER);
        let client = &self.zookeeper.clients[node.0];
        let silent_us = self.now_us.saturating_sub(client.heard_us);
        match (client.state, client.session) {
            (State::Connected, Some(session)) => {
                if speaks && !self.zookeeper.touch(session, self.now_us) {
                    return self.session_ended(node, "it had expired");
                }
                if speaks && hears {
                    self.zookeeper.clients[node.0].heard_us = self.now_us;
                } else if silent_us > timeout_us * 2 / 3 {
                    self.suspend(node);
                }
            }
            (State::Suspended, Some(session)) if speaks && hears => {
                if self.zookeeper.touch(session, self.now_us) {
                    self.connected(node);
                } else {
                    self.session_ended(node, "it has expired");
                }
            }
            // The client library gives a session up by itself when no server answers for so long.
            (State::Suspended, Some(_)) if silent_us > timeout_us * 7 / 5 => {
                self.session_ended(node, "nobody has answered for too long");
            }
            _ if speaks && hears => {
                let session = self.zookeeper.begin_session(node, self.now_us);
                self.zookeeper.clients[node.0].session = Some(session);
                self.connected(node);
                self.session_begins(node);
            }
            _ => {}
        }
    }

    fn connected(&mut self, node: Node) {
        let now_us = self.now_us;
        let client = &mut self.zookeeper.clients[node.0];
        client.state = State::Connected;
        client.generation += 1;
        client.heard_us = now_us;
        (
            client.last_request_us,
            client.last_answer_us,
            client.last_watch_us,
        ) = (now_us, now_us, now_us);
        let generation = client.generation;
        client.served = client.last_id;
        let waiting = std::mem::take(&mut client.waiting);
        for (operation, purpose) in waiting {
            self.ask(node, operation, purpose);
        }
        // Watches are set again, which reads what there is.
        let delay_us = self.network.delay_us(&mut self.random);
        self.after(delay_us, Event::WatchFires { node, generation });
    }

    /// The connection breaks: whatever was asked may have happened.
    pub(crate) fn suspend(&mut self, node: Node) {
        let client = &mut self.zookeeper.clients[node.0];
        if !client.is_connected() {
            return;
        }
        client.state = State::Suspended;
        self.log(|| format!("{node}: the connection to ZooKeeper is suspended"));
        self.forget_pending(node);
    }

    fn forget_pending(&mut self, node: Node) {
        let pending = std::mem::take(&mut self.zookeeper.clients[node.0].pending);
        for (_, operation, purpose) in pending {
            let outcome = if is_read(&operation) {
                Outcome::Failed
            } else {
                Outcome::Unknown
            };
            self.tell_outcome(node, operation, purpose, outcome);
        }
    }

    fn tell_outcome(
        &mut self,
        node: Node,
        operation: Operation,
        purpose: Purpose,
        outcome: Outcome,
    ) {
        let (operation, outcome) = (Box::new(operation), Box::new(outcome));
        let life = self.processes[node.0].life;
        self.after(
            0,
            Event::Process {
                node,
                life,
                input: Input::Registry {
                    operation,
                    purpose,
                    outcome,
                },
            },
        );
    }

    /// The session is gone for certain, with every node that it had made.
    pub(crate) fn session_ended(&mut self, node: Node, why: &str) {
        self.log(|| format!("{node}: its session is over: {why}"));
        self.counts.sessions_lost += 1;
        self.forget_pending(node);
        let client = &mut self.zookeeper.clients[node.0];
        client.state = State::Connecting;
        client.session = None;
        client.generation += 1;
        let waiting = std::mem::take(&mut client.waiting);
        for (operation, purpose) in waiting {
            self.tell_outcome(node, operation, purpose, Outcome::Failed);
        }
        if node.is_job_manager() {
            self.job_manager_lost_session(node);
        }
    }

    /// There is a new session: what had been made in the old one is made again.
    fn session_begins(&mut self, node: Node) {
        if !node.is_job_manager() {
            self.ask(node, Operation::Announce, Purpose::Aside);
        } else if self.job_managers[node.0].standing {
            self.ask(node, Operation::Stand, Purpose::Stand);
        }
    }
}
