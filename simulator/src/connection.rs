//! Connections as QUIC and the idle TCP connection beside it give them to processes: messages arrive in order or not at
//! all, silence ends a connection on the side that hears nothing, and the end of a process is seen by the kernel's word.

use std::collections::VecDeque;

use tidemill_protocol::control::{FromLeader, ToLeader};

use crate::event::{Event, Input, Side};
use crate::node::{Node, ProcessState};
use crate::time::SECOND;
use crate::world::World;

/// What goes over a control connection.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// The handshake.
    Hello,
    /// The handshake's answer.
    Welcome,
    ToLeader(ToLeader),
    FromLeader(FromLeader),
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From a TaskManager to a JobManager.
    Control,
    /// Between TaskManagers; what it carries is in the streams.
    Data,
}

/// One side of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) node: Node,
    pub(crate) life: u64,
    pub(crate) open: bool,
    /// Since when nothing arrives here.
    silent_since_us: Option<u64>,
}

/// Messages on their way to one side.
#[derive(Debug, Default)]
struct Pipe {
    queue: VecDeque<Message>,
    last_us: u64,
    /// So many arrivals wait for the direction to be open again.
    held: usize,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) kind: Kind,
    /// The opener's and the acceptor's.
    pub(crate) ends: [End; 2],
    /// To the opener and to the acceptor.
    pipes: [Pipe; 2],
}

impl Connection {
    pub(crate) fn end(&self, side: Side) -> &End {
        &self.ends[side.index()]
    }

    /// The side of this life of a process.
    pub(crate) fn side_of(&self, node: Node) -> Side {
        if self.ends[0].node == node {
            Side::Opener
        } else {
            Side::Acceptor
        }
    }
}

impl World {
    /// Begins to connect; the opener may send at once.
    pub(crate) fn open_connection(&mut self, kind: Kind, opener: Node, acceptor: Node) -> u64 {
        self.last_connection += 1;
        let id = self.last_connection;
        let end = |world: &Self, node: Node| End {
            node,
            life: world.processes[node.0].life,
            open: true,
            silent_since_us: None,
        };
        let ends = [end(self, opener), end(self, acceptor)];
        let pipes = [Pipe::default(), Pipe::default()];
        self.connections
            .insert(id, Connection { kind, ends, pipes });
        self.listen_for_silence(id);
        if kind == Kind::Control && !self.network.loses_attempt(&mut self.random) {
            self.send(id, Side::Opener, Message::Hello);
        }
        id
    }

    /// Sends after everything sent before. On a closed connection it is lost.
    pub(crate) fn send(&mut self, connection: u64, from: Side, message: Message) {
        let delay_us = self.network.delay_us(&mut self.random);
        let now_us = self.now_us;
        let Some(found) = self.connections.get_mut(&connection) else {
            return;
        };
        if !found.ends[from.index()].open {
            return;
        }
        let pipe = &mut found.pipes[from.other().index()];
        pipe.queue.push_back(message);
        pipe.last_us = pipe.last_us.max(now_us + delay_us);
        let at_us = pipe.last_us;
        self.schedule(
            at_us,
            Event::MessageArrives {
                connection,
                to: from.other(),
            },
        );
    }

    pub(crate) fn message_arrives(&mut self, connection: u64, to: Side) {
        let Some(found) = self.connections.get_mut(&connection) else {
            return;
        };
        let (from_end, to_end) = (found.ends[to.other().index()], found.ends[to.index()]);
        let pipe = &mut found.pipes[to.index()];
        if pipe.held > 0 || !self.network.passes(from_end.node, to_end.node) {
            pipe.held += 1;
            return;
        }
        let Some(message) = pipe.queue.pop_front().filter(|_| to_end.open) else {
            return;
        };
        let input = Input::Message {
            connection,
            message: Box::new(message),
        };
        self.happen(to_end.node, to_end.life, input);
    }

    /// One side closes it: the other hears of it if it can, and what is on its way is lost.
    pub(crate) fn close(&mut self, connection: u64, side: Side) {
        let Some(found) = self.connections.get_mut(&connection) else {
            return;
        };
        let end = &mut found.ends[side.index()];
        if !std::mem::take(&mut end.open) {
            return;
        }
        let (from, to) = (
            found.ends[side.index()].node,
            found.ends[side.other().index()].node,
        );
        if self.network.passes(from, to) {
            let delay_us = self.network.delay_us(&mut self.random);
            self.after(
                delay_us,
                Event::CloseArrives {
                    connection,
                    to: side.other(),
                },
            );
        }
        self.listen_for_silence(connection);
    }

    pub(crate) fn close_arrives(&mut self, connection: u64, to: Side) {
        let Some(found) = self.connections.get(&connection) else {
            return;
        };
        let (from, end) = (found.end(to.other()).node, *found.end(to));
        if end.open && self.network.passes(from, end.node) {
            self.happen(
                end.node,
                end.life,
                Input::Closed {
                    connection,
                    side: to,
                },
            );
        }
    }

    /// The connection is over on this side, if it was not before.
    pub(crate) fn end_is_over(&mut self, connection: u64, side: Side) -> bool {
        let found = self.connections.get_mut(&connection);
        found.is_some_and(|found| std::mem::take(&mut found.ends[side.index()].open))
    }

    pub(crate) fn end_of_file_arrives(&mut self, connection: u64, to: Side) {
        let Some(found) = self.connections.get(&connection) else {
            return;
        };
        let (from, end) = (found.end(to.other()).node, *found.end(to));
        if self.network.passes(from, end.node) {
            self.happen(
                end.node,
                end.life,
                Input::EndOfFile {
                    connection,
                    side: to,
                },
            );
        } else {
            // The kernel of the dead process's machine sends its last segment again.
            self.after(SECOND, Event::EndOfFileArrives { connection, to });
        }
    }

    /// Nothing arrives on this side: the other does not speak, or its words are lost.
    fn is_silent(&self, connection: &Connection, side: Side) -> bool {
        let (here, there) = (connection.end(side), connection.end(side.other()));
        let other = &self.processes[there.node.0];
        let speaks = other.life == there.life && other.state == ProcessState::Running && there.open;
        !speaks || !self.network.passes(there.node, here.node)
    }

    fn listen_for_silence(&mut self, id: u64) {
        for side in [Side::Opener, Side::Acceptor] {
            let Some(connection) = self.connections.get(&id) else {
                return;
            };
            let end = *connection.end(side);
            if !end.open {
                continue;
            }
            let silent = self.is_silent(connection, side);
            if silent == end.silent_since_us.is_some() {
                continue;
            }
            let since_us = self.now_us;
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.ends[side.index()].silent_since_us = silent.then_some(since_us);
            }
            if silent {
                let input = Input::Silence {
                    connection: id,
                    side,
                    since_us,
                };
                let (node, life) = (end.node, end.life);
                self.after(
                    self.options.idle_timeout_us,
                    Event::Process { node, life, input },
                );
            }
        }
    }

    /// The idle timer of one side fires: whether that side gives the connection up.
    pub(crate) fn was_silent(&mut self, connection: u64, side: Side, since_us: u64) -> bool {
        let end = self
            .connections
            .get(&connection)
            .map(|found| *found.end(side));
        let silent = end.is_some_and(|end| end.open && end.silent_since_us == Some(since_us));
        if silent {
            self.close(connection, side);
        }
        silent
    }

    /// A process or a link changed: who hears nothing from now on, and what arrives after all.
    pub(crate) fn reachability_changed(&mut self) {
        let processes = &self.processes;
        self.connections.retain(|_, connection| {
            connection
                .ends
                .iter()
                .any(|end| end.open && processes[end.node.0].life == end.life)
        });
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            self.listen_for_silence(id);
            for to in [Side::Opener, Side::Acceptor] {
                self.release(id, to);
            }
        }
        self.release_streams();
    }

    fn release(&mut self, connection: u64, to: Side) {
        let Some(found) = self.connections.get(&connection) else {
            return;
        };
        let (from, end) = (*found.end(to.other()), *found.end(to));
        let sender = &self.processes[from.node.0];
        let repeats = sender.life == from.life && sender.runs();
        if found.pipes[to.index()].held == 0
            || !repeats
            || !self.network.passes(from.node, end.node)
        {
            return;
        }
        let delay_us = self.network.delay_us(&mut self.random);
        let at_us = self.now_us + delay_us;
        let Some(found) = self.connections.get_mut(&connection) else {
            return;
        };
        let pipe = &mut found.pipes[to.index()];
        let held = std::mem::take(&mut pipe.held);
        pipe.last_us = pipe.last_us.max(at_us);
        for _ in 0..held {
            self.schedule(at_us, Event::MessageArrives { connection, to });
        }
    }

    /// A process has ended. The kernel tells the peers of its control connections, unless the machine is gone as well;
    /// when it ends in order it closes what it has first.
    pub(crate) fn end_connections(&mut self, node: Node, how: HowEnded) {
        let ids: Vec<(u64, Side, Kind)> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.ends.iter().any(|end| end.node == node))
            .map(|(id, connection)| (*id, connection.side_of(node), connection.kind))
            .collect();
        for (id, side, kind) in ids {
            if how == HowEnded::InOrder {
                self.close(id, side);
            } else if let Some(connection) = self.connections.get_mut(&id) {
                connection.ends[side.index()].open = false;
            }
            if how != HowEnded::MachineGone && kind == Kind::Control {
                let delay_us = self.random.between(100, self.options.end_of_file_max_us);
                self.after(
                    delay_us,
                    Event::EndOfFileArrives {
                        connection: id,
                        to: side.other(),
                    },
                );
            }
        }
    }

    /// A new life recognises nobody: whoever still speaks to the old one is told that it is over.
    pub(crate) fn reset_connections(&mut self, node: Node) {
        let ids: Vec<(u64, Side)> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.ends.iter().any(|end| end.node == node))
            .map(|(id, connection)| (*id, connection.side_of(node)))
            .collect();
        for (connection, side) in ids {
            let delay_us = self.random.between(1_000, 400_000);
            self.after(
                delay_us,
                Event::CloseArrives {
                    connection,
                    to: side.other(),
                },
            );
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HowEnded {
    /// It was asked to.
    InOrder,
    /// `kill -9`.
    Killed,
    /// Its machine lost power: nobody says anything.
    MachineGone,
}
