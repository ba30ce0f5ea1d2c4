//! Channels between tasks: a stream each, in order, over the one data connection of a pair of TaskManagers, or inside one.
//! Streams overtake each other. A stream that arrives before its task waits for it; one of an ended attempt is refused.

use std::collections::VecDeque;

use tidemill_protocol::{AttemptId, ChannelId, JobId, TaskId};

use crate::connection::Kind;
use crate::event::{Event, Input, Side};
use crate::node::Node;
use crate::task::{Frame, Task, TaskKey};
use crate::world::World;

/// Frames that a channel may hold before its sender is not called any more.
const FRAMES_MAX: usize = 8;

/// A channel of an attempt, as its stream's first words name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Header {
    pub(crate) job: JobId,
    pub(crate) attempt: AttemptId,
    pub(crate) channel: ChannelId,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    header: Header,
    from_task: TaskId,
    to_task: TaskId,
    from: Node,
    from_life: u64,
    to: Node,
    to_life: u64,
    /// `None` inside one TaskManager.
    connection: Option<u64>,
    frames: VecDeque<Frame>,
    last_us: u64,
    held: usize,
    /// Sent and not yet processed.
    unprocessed: usize,
    broken: bool,
}

/// What has arrived of a channel and is not processed.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// Each with its stream, unless it was put back or comes from an image.
    frames: VecDeque<(Option<usize>, Frame)>,
}

impl World {
    /// Opens the streams of a task's outputs.
    pub(crate) fn open_streams(
        &mut self,
        node: Node,
        task: &mut Task,
        locate: impl Fn(TaskId) -> Option<Node>,
    ) {
        let channels: Vec<_> = task.graph.outgoing(task.key.task).collect();
        for channel in channels {
            let Some(to) = locate(channel.to) else {
                continue;
            };
            let connection = (to != node).then(|| self.data_connection(node, to));
            let to_life = match connection.and_then(|id| self.connections.get(&id)) {
                Some(connection) => connection.end(connection.side_of(to)).life,
                None => self.processes[to.0].life,
            };
            task.outputs.push(self.streams.len());
            let TaskKey { job, attempt, .. } = task.key;
            self.streams.push(Stream {
                header: Header {
                    job,
                    attempt,
                    channel: channel.id,
                },
                from_task: channel.from,
                to_task: channel.to,
                from: node,
                from_life: self.processes[node.0].life,
                to,
                to_life,
                connection,
                frames: VecDeque::new(),
                last_us: 0,
                held: 0,
                unprocessed: 0,
                broken: false,
            });
        }
    }

    /// The connection of a pair, as far as this end knows it still holds; else a new one.
    fn data_connection(&mut self, from: Node, to: Node) -> u64 {
        let pair = (from.min(to), from.max(to));
        if let Some(id) = self.data_connections.get(&pair)
            && let Some(connection) = self.connections.get(id)
        {
            let end = connection.end(connection.side_of(from));
            if end.open && end.life == self.processes[from.0].life {
                return *id;
            }
        }
        let id = self.open_connection(Kind::Data, from, to);
        self.data_connections.insert(pair, id);
        id
    }

    pub(crate) fn has_room(&self, task: &Task) -> bool {
        task.outputs
            .iter()
            .all(|stream| self.streams[*stream].unprocessed < FRAMES_MAX)
    }

    pub(crate) fn send_frame(&mut self, node: Node, stream: usize, frame: Frame) {
        let is_local = self.streams[stream].to == node;
        let delay_us = if is_local {
            self.random.between(1, 100)
        } else {
            self.network.delay_us(&mut self.random)
        };
        let now_us = self.now_us;
        let sending = &mut self.streams[stream];
        sending.unprocessed += 1;
        if sending.broken {
            return;
        }
        sending.frames.push_back(frame);
        sending.last_us = sending.last_us.max(now_us + delay_us);
        let at_us = sending.last_us;
        self.schedule(at_us, Event::FrameArrives { stream });
    }

    pub(crate) fn frame_arrives(&mut self, stream: usize) {
        let arriving = &mut self.streams[stream];
        if arriving.broken {
            return;
        }
        if arriving.held > 0 || !self.network.passes(arriving.from, arriving.to) {
            arriving.held += 1;
            self.held_streams.insert(stream);
            return;
        }
        if let Some(frame) = arriving.frames.pop_front() {
            let (to, life) = (arriving.to, arriving.to_life);
            self.happen(to, life, Input::Frame { stream, frame });
        }
    }

    /// A link is open again, or a process goes on: what is sent again arrives.
    pub(crate) fn release_streams(&mut self) {
        let held: Vec<usize> = self.held_streams.iter().copied().collect();
        for stream in held {
            let waiting = &self.streams[stream];
            let (from, to) = (waiting.from, waiting.to);
            let sender = &self.processes[from.0];
            if waiting.broken || sender.life != waiting.from_life {
                self.held_streams.remove(&stream);
            } else if sender.runs() && self.network.passes(from, to) {
                self.held_streams.remove(&stream);
                let at_us = self.now_us + self.network.delay_us(&mut self.random);
                let waiting = &mut self.streams[stream];
                waiting.last_us = waiting.last_us.max(at_us);
                for _ in 0..std::mem::take(&mut waiting.held) {
                    self.schedule(at_us, Event::FrameArrives { stream });
                }
            }
        }
    }

    /// A frame is handed to the queue of its task.
    pub(crate) fn frame_comes(&mut self, node: Node, stream: usize, frame: Frame) {
        let (header, to_task) = (self.streams[stream].header, self.streams[stream].to_task);
        let task_manager = &mut self.task_managers[node.worker()];
        if task_manager.retired.contains(&(header.job, header.attempt)) {
            return;
        }
        task_manager
            .incoming
            .entry(header)
            .or_default()
            .frames
            .push_back((Some(stream), frame));
        let Header { job, attempt, .. } = header;
        self.run_task(
            node,
            TaskKey {
                job,
                task: to_task,
                attempt,
            },
        );
    }

    /// The next frame of one of a task's inputs; its sender may have room again.
    pub(crate) fn take_frame(&mut self, node: Node, task: &Task, index: usize) -> Option<Frame> {
        let TaskKey { job, attempt, .. } = task.key;
        let header = Header {
            job,
            attempt,
            channel: task.inputs[index],
        };
        let incoming = self.task_managers[node.worker()]
            .incoming
            .get_mut(&header)?;
        let (stream, frame) = incoming.frames.pop_front()?;
        let Some(stream) = stream else {
            return Some(frame);
        };
        let sender = &mut self.streams[stream];
        sender.unprocessed -= 1;
        if sender.unprocessed + 1 == FRAMES_MAX {
            let (from, life) = (sender.from, sender.from_life);
            let task = TaskKey {
                job,
                task: sender.from_task,
                attempt,
            };
            let delay_us = self.random.between(10, 500);
            let input = Input::Room { task };
            self.after(
                delay_us,
                Event::Process {
                    node: from,
                    life,
                    input,
                },
            );
        }
        Some(frame)
    }

    /// Puts frames in front of whatever else one of a task's inputs has, in this order. They take no room.
    pub(crate) fn put_first(
        &mut self,
        node: Node,
        task: &Task,
        index: usize,
        frames: impl DoubleEndedIterator<Item = Frame>,
    ) {
        let TaskKey { job, attempt, .. } = task.key;
        let header = Header {
            job,
            attempt,
            channel: task.inputs[index],
        };
        let task_manager = &mut self.task_managers[node.worker()];
        let incoming = task_manager.incoming.entry(header).or_default();
        for frame in frames.rev() {
            incoming.frames.push_front((None, frame));
        }
    }

    /// A data connection is over on this side: every attempt that used it is reported.
    pub(crate) fn data_connection_over(&mut self, node: Node, connection: u64, side: Side) {
        let Some(found) = self.connections.get(&connection) else {
            return;
        };
        let peer = found.end(side.other()).node;
        let mut attempts = std::collections::BTreeSet::new();
        for stream in &mut self.streams {
            if stream.connection == Some(connection) && !stream.broken {
                stream.broken = true;
                stream.frames.clear();
                attempts.insert((stream.header.job, stream.header.attempt));
            }
        }
        // The other side finds out by itself; its own streams are the same ones, so remember them for it.
        let known = self.broken_attempts.entry(connection).or_default();
        known.extend(attempts.iter().copied());
        let attempts = known.clone();
        let task_manager = &mut self.task_managers[node.worker()];
        let is_first = task_manager.broken.is_empty();
        task_manager
            .broken
            .extend(attempts.iter().map(|(job, attempt)| (*job, *attempt, peer)));
        self.log(|| {
            format!(
                "{node}: channels of {} attempts to {peer} are broken",
                attempts.len()
            )
        });
        if is_first {
            self.repeat_broken(node);
        }
    }
}
