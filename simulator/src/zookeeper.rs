//! ZooKeeper as its clients see it: sessions that expire, ephemeral nodes of candidates and TaskManagers, records whose
//! writes are fenced by the lock node of the writer, and watches. All writes are in one order.

use std::collections::BTreeMap;

use tidemill_core::Time;
use tidemill_protocol::record::{CheckpointPointers, JobRecord};
use tidemill_protocol::{CheckpointId, Epoch, JobId};

use crate::event::Event;
use crate::node::{Node, ZOOKEEPER};
use crate::registry_client::{AGAIN_US, Client};
use crate::time::MILLISECOND;
use crate::world::World;

/// Between two looks for expired sessions.
const TICK_US: u64 = 250 * MILLISECOND;

/// What a client asks for.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Make a candidate's node, unless this session has one; a node of the same process under an older session goes.
    Stand,
    /// A fenced write that changes nothing.
    Confirm(Epoch),
    /// Delete the own lock node.
    Resign(Epoch),
    /// Make a TaskManager's node.
    Announce,
    /// Read every job with its pointers.
    ReadJobs,
    PutJob(Epoch, Box<JobRecord>),
    RemoveJob(Epoch, JobId),
    PutPointers(Epoch, JobId, CheckpointPointers),
    ReadPointers(JobId),
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Done,
    /// The lock node is not there any more; nothing was written.
    Fenced,
    /// The job has no record; nothing was written.
    UnknownJob,
    /// Nothing was written.
    Failed,
    /// It was written or it was not.
    Unknown,
    Jobs(Vec<(JobRecord, CheckpointPointers)>),
    Pointers(CheckpointPointers),
}

/// Why a process asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Stand,
    /// The confirmation that follows an election.
    Elected {
        epoch: Epoch,
        sent_at: Time,
    },
    Confirm {
        epoch: Epoch,
        sent_at: Time,
    },
    Resign {
        epoch: Epoch,
    },
    TakeOver {
        epoch: Epoch,
    },
    StoreRecord {
        epoch: Epoch,
        job: JobId,
    },
    Publish {
        epoch: Epoch,
        job: JobId,
        checkpoint: CheckpointId,
    },
    ReadBack {
        epoch: Epoch,
        job: JobId,
        checkpoint: CheckpointId,
    },
    /// Of an ended job, before its objects are deleted.
    ClearPointers {
        epoch: Epoch,
        job: JobId,
    },
    RemoveJob {
        epoch: Epoch,
        job: JobId,
    },
    /// Nobody waits for the answer.
    Aside,
}

/// Who is there, as a watch tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The first candidate: its epoch, and which life of which JobManager.
    pub(crate) leader: Option<(Epoch, Node, u64)>,
    pub(crate) candidates: usize,
    /// A bit for each TaskManager.
    pub(crate) announced: u16,
}

#[derive(Debug)]
struct Session {
    node: Node,
    heard_us: u64,
}

#[derive(Debug)]
struct Candidate {
    session: u64,
    node: Node,
    life: u64,
}

/// The ensemble, and its clients.
#[derive(Debug)]
pub(crate) struct ZooKeeper {
    pub(crate) is_up: bool,
    transaction: u64,
    last_session: u64,
    sessions: BTreeMap<u64, Session>,
    candidates: BTreeMap<u64, Candidate>,
    announced: BTreeMap<Node, u64>,
    pub(crate) jobs: BTreeMap<JobId, JobRecord>,
    pub(crate) pointers: BTreeMap<JobId, CheckpointPointers>,
    told: Snapshot,
    pub(crate) clients: Vec<Client>,
    /// The next so many answers to writes of pointers are lost, with their connections.
    pub(crate) lose_pointer_replies: u32,
}

impl ZooKeeper {
    pub(crate) fn new(clients: usize) -> Self {
        Self {
            is_up: true,
            transaction: 100,
            last_session: 0,
            sessions: BTreeMap::new(),
            candidates: BTreeMap::new(),
            announced: BTreeMap::new(),
            jobs: BTreeMap::new(),
            pointers: BTreeMap::new(),
            told: Snapshot::default(),
            clients: (0..clients).map(|_| Client::default()).collect(),
            lose_pointer_replies: 0,
        }
    }

    pub(crate) fn begin_session(&mut self, node: Node, now_us: u64) -> u64 {
        self.last_session += 1;
        self.sessions.insert(
            self.last_session,
            Session {
                node,
                heard_us: now_us,
            },
        );
        self.last_session
    }

    /// The session is heard of; whether it lives.
    pub(crate) fn touch(&mut self, session: u64, now_us: u64) -> bool {
        let session = self.sessions.get_mut(&session);
        session.is_some_and(|session| {
            session.heard_us = now_us;
            true
        })
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let first = self.candidates.first_key_value();
        Snapshot {
            leader: first.map(|(number, one)| (Epoch(*number), one.node, one.life)),
            candidates: self.candidates.len(),
            announced: self
                .announced
                .keys()
                .fold(0, |bits, node| bits | 1 << node.worker()),
        }
    }

    /// Who leads now, whatever anybody has heard.
    pub(crate) fn leader(&self) -> Option<(Epoch, Node)> {
        self.snapshot().leader.map(|(epoch, node, _)| (epoch, node))
    }

    fn end_session(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.candidates
            .retain(|_, candidate| candidate.session != session);
        self.announced.retain(|_, of| *of != session);
    }

    /// Ends the session of a process, if it has one.
    pub(crate) fn expire(&mut self, node: Node) {
        let of_node = self
            .sessions
            .iter()
            .filter(|(_, session)| session.node == node);
        let ids: Vec<u64> = of_node.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.end_session(id));
    }

    /// After the ensemble was away every session begins its timeout anew.
    pub(crate) fn comes_back(&mut self, now_us: u64) {
        self.is_up = true;
        self.sessions
            .values_mut()
            .for_each(|session| session.heard_us = now_us);
    }
}

impl World {
    /// Looks for sessions that have expired.
    pub(crate) fn expire_sessions(&mut self) {
        self.after(TICK_US, Event::SessionTick);
        if !self.zookeeper.is_up {
            return;
        }
        let options = self.options.zookeeper;
        let lives_us = options.session_timeout_us - options.session_lag_us;
        let overdue = |session: &Session| self.now_us >= session.heard_us + lives_us;
        let sessions = self.zookeeper.sessions.iter();
        let expired: Vec<(u64, Node)> = sessions
            .filter(|(_, session)| overdue(session))
            .map(|(id, session)| (*id, session.node))
            .collect();
        for (id, node) in expired {
            self.log(|| format!("ZooKeeper: the session of {node} expires"));
            self.zookeeper.end_session(id);
        }
        self.tell_watchers();
    }

    /// Tells every client that is connected who is there, if that has changed.
    pub(crate) fn tell_watchers(&mut self) {
        let snapshot = self.zookeeper.snapshot();
        if snapshot == self.zookeeper.told {
            return;
        }
        if snapshot.leader != self.zookeeper.told.leader
            && let Some((epoch, node, life)) = snapshot.leader
        {
            self.log(|| format!("ZooKeeper: {node} is first, epoch {epoch}"));
            self.counts.elections += 1;
            let judged = self.checkers.elected(epoch, node, life);
            self.judge(judged);
        }
        self.zookeeper.told = snapshot;
        for index in 0..self.zookeeper.clients.len() {
            let delay_us = self
                .random
                .between(100, self.options.zookeeper.watch_delay_max_us);
            let at_us = self.now_us + delay_us;
            let client = &mut self.zookeeper.clients[index];
            if client.is_connected() {
                client.last_watch_us = client.last_watch_us.max(at_us);
                let (at_us, generation) = (client.last_watch_us, client.generation);
                self.schedule(
                    at_us,
                    Event::WatchFires {
                        node: Node(index),
                        generation,
                    },
                );
            }
        }
    }

    /// A request reaches the ensemble, unless its connection is gone.
    pub(crate) fn request_arrives(
        &mut self,
        node: Node,
        generation: u64,
        id: u64,
        operation: Operation,
    ) {
        let reaches = self.zookeeper.is_up && self.network.passes(node, ZOOKEEPER);
        let client = &mut self.zookeeper.clients[node.0];
        let Some(session) = client.session.filter(|_| client.generation == generation) else {
            return;
        };
        if !reaches || client.served + 1 != id {
            // What was sent before comes first. A client that is told meanwhile that its connection is suspended sends
            // nothing again, but this may still arrive.
            let operation = Box::new(operation);
            return self.after(
                AGAIN_US,
                Event::RequestArrives {
                    node,
                    generation,
                    id,
                    operation,
                },
            );
        }
        client.served = id;
        // Whose session has expired learns it when it pings next.
        if !self.zookeeper.touch(session, self.now_us) {
            return;
        }
        let is_pointer = matches!(operation, Operation::PutPointers(..));
        let outcome = self.carry_out(node, session, operation);
        self.tell_watchers();
        let scripted = is_pointer && self.zookeeper.lose_pointer_replies > 0;
        if scripted {
            self.zookeeper.lose_pointer_replies -= 1;
        }
        if scripted
            || self
                .random
                .chance(self.options.zookeeper.lost_replies_per_mille)
        {
            self.log(|| format!("{node}: the connection to ZooKeeper breaks before an answer"));
            self.counts.lost_replies += 1;
            return self.suspend(node);
        }
        let delay_us = self.network.delay_us(&mut self.random);
        let client = &mut self.zookeeper.clients[node.0];
        client.last_answer_us = client.last_answer_us.max(self.now_us + delay_us);
        let at_us = client.last_answer_us;
        let outcome = Box::new(outcome);
        self.schedule(
            at_us,
            Event::AnswerArrives {
                node,
                generation,
                id,
                outcome,
            },
        );
    }

    fn carry_out(&mut self, node: Node, session: u64, operation: Operation) -> Outcome {
        let life = self.processes[node.0].life;
        let zookeeper = &mut self.zookeeper;
        match operation {
            Operation::Stand => {
                let stale = |one: &Candidate| {
                    one.node == node && one.life == life && one.session != session
                };
                zookeeper
                    .candidates
                    .retain(|_, candidate| !stale(candidate));
                if !zookeeper
                    .candidates
                    .values()
                    .any(|candidate| candidate.session == session)
                {
                    zookeeper.transaction += 1;
                    let candidate = Candidate {
                        session,
                        node,
                        life,
                    };
                    zookeeper
                        .candidates
                        .insert(zookeeper.transaction, candidate);
                }
                Outcome::Done
            }
            Operation::Resign(epoch) => {
                zookeeper.candidates.remove(&epoch.0);
                Outcome::Done
            }
            Operation::Announce => {
                zookeeper.announced.insert(node, session);
                Outcome::Done
            }
            Operation::ReadJobs => {
                let pointers = |job| zookeeper.pointers.get(job).cloned().unwrap_or_default();
                let jobs = zookeeper.jobs.iter();
                Outcome::Jobs(
                    jobs.map(|(id, record)| (record.clone(), pointers(id)))
                        .collect(),
                )
            }
            Operation::ReadPointers(job) => {
                Outcome::Pointers(zookeeper.pointers.get(&job).cloned().unwrap_or_default())
            }
            Operation::Confirm(epoch)
            | Operation::PutJob(epoch, _)
            | Operation::RemoveJob(epoch, _)
            | Operation::PutPointers(epoch, ..)
                if !zookeeper.candidates.contains_key(&epoch.0) =>
            {
                self.counts.fenced += 1;
                self.log(|| format!("ZooKeeper: a write of {node} under epoch {epoch} is refused"));
                Outcome::Fenced
            }
            Operation::Confirm(_) => Outcome::Done,
            write => self.write(node, write),
        }
    }

    /// A write that has passed the fence.
    fn write(&mut self, node: Node, operation: Operation) -> Outcome {
        self.zookeeper.transaction += 1;
        let zookeeper = &mut self.zookeeper;
        let judged = match operation {
            Operation::PutJob(epoch, record) => {
                let judged = self.checkers.record_written(epoch, &record);
                let (id, state) = (record.id, record.state.clone());
                zookeeper.jobs.insert(id, *record);
                self.log(|| {
                    format!(
                        "{node}: stores job {} as {state:?}, epoch {epoch}",
                        short(id)
                    )
                });
                judged
            }
            Operation::RemoveJob(epoch, job) => {
                zookeeper.jobs.remove(&job);
                zookeeper.pointers.remove(&job);
                self.checkers.job_removed(epoch, job)
            }
            Operation::PutPointers(epoch, job, pointers) => {
                if !zookeeper.jobs.contains_key(&job) {
                    return Outcome::UnknownJob;
                }
                let judged = self
                    .checkers
                    .pointers_written(epoch, job, &pointers, &self.store);
                zookeeper.pointers.insert(job, pointers.clone());
                self.log(|| {
                    let ids: Vec<String> = pointers
                        .completed
                        .iter()
                        .map(|one| one.checkpoint.to_string())
                        .collect();
                    format!(
                        "{node}: publishes [{}] of job {}, epoch {epoch}",
                        ids.join(" "),
                        short(job)
                    )
                });
                judged
            }
            _ => Ok(()),
        };
        self.judge(judged);
        Outcome::Done
    }
}

/// A job's number in this world: its identifier is long.
pub(crate) fn short(job: JobId) -> u16 {
    u16::from_be_bytes([job.0[0], job.0[1]])
}
