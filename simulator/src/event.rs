//! Everything that can happen, and when: a queue ordered by virtual time, then by the order in which events were made.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::rc::Rc;

use tidemill_protocol::JobId;

use crate::faults::Fault;
use crate::images::Chain;
use crate::node::Node;
use crate::savepoints::{Copying, Question};
use crate::store::{StoreAnswer, StoreRequest};
use crate::task::{Frame, TaskImage, TaskKey};
use crate::user::Answer;
use crate::zookeeper::{Operation, Outcome, Purpose, Snapshot};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Who opened it.
    Opener,
    /// Who accepted it.
    Acceptor,
}

impl Side {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Opener => Self::Acceptor,
            Self::Acceptor => Self::Opener,
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Opener => 0,
            Self::Acceptor => 1,
        }
    }
}

/// Something that happens in the world.
#[derive(Debug)]
pub(crate) enum Event {
    /// Something happens to one life of a process. While it is frozen it waits.
    Process { node: Node, life: u64, input: Input },
    /// The first undelivered message of a direction reaches its end.
    MessageArrives { connection: u64, to: Side },
    /// The word that the other side has closed the connection arrives.
    CloseArrives { connection: u64, to: Side },
    /// The kernel's word that the process at the other end has ended arrives.
    EndOfFileArrives { connection: u64, to: Side },
    /// A frame reaches the other end of its channel.
    FrameArrives { stream: usize },
    /// A request reaches ZooKeeper.
    RequestArrives {
        node: Node,
        generation: u64,
        id: u64,
        operation: Box<Operation>,
    },
    /// An answer of ZooKeeper's reaches its client.
    AnswerArrives {
        node: Node,
        generation: u64,
        id: u64,
        outcome: Box<Outcome>,
    },
    /// A watch tells a client who is there.
    WatchFires { node: Node, generation: u64 },
    /// ZooKeeper looks for sessions that have expired.
    SessionTick,
    /// A request reaches the store.
    StoreRequestArrives {
        node: Node,
        life: u64,
        request: Box<StoreRequest>,
    },
    /// A clean-up comes to an object that was found to be an orphan, if the process that makes it still lives.
    StoreDeletes {
        node: Node,
        life: u64,
        job: JobId,
        key: String,
    },
    /// A savepoint's next object is copied, if the process that copies still lives.
    StoreCopies {
        node: Node,
        life: u64,
        copying: Box<Copying>,
    },
    /// A user does what comes next.
    User { user: usize, turn: u64 },
    /// A user hears something.
    UserHears {
        user: usize,
        turn: u64,
        answer: Answer,
    },
    /// A fault begins.
    Fault,
    /// A fault ends.
    FaultEnds(Fault),
}

/// Something that happens to a process.
#[derive(Debug)]
pub(crate) enum Input {
    /// A timer of its machines is due.
    Wake { at_us: u64 },
    /// A message arrives on a control connection.
    Message {
        connection: u64,
        message: Box<crate::connection::Message>,
    },
    /// A connection may have been silent for too long.
    Silence {
        connection: u64,
        side: Side,
        since_us: u64,
    },
    /// The other side closed a connection.
    Closed { connection: u64, side: Side },
    /// The process at the other end has ended.
    EndOfFile { connection: u64, side: Side },
    /// Its session is to be kept, or a new one to be made.
    SessionTick,
    /// An answer of ZooKeeper's.
    Registry {
        operation: Box<Operation>,
        purpose: Purpose,
        outcome: Box<Outcome>,
    },
    /// Who is there.
    Watch { snapshot: Snapshot },
    /// The store answers.
    Store { answer: Box<StoreAnswer> },
    /// A user submits a job.
    Submit { user: usize, turn: u64, job: JobId },
    /// A user asks for a job's end.
    Cancel { user: usize, turn: u64, job: JobId },
    /// A user asks about savepoints.
    Ask {
        user: usize,
        turn: u64,
        job: JobId,
        question: Question,
    },
    /// The link to the leader has waited long enough.
    LinkTimer { turn: u64 },
    /// A frame arrives for a task.
    Frame { stream: usize, frame: Frame },
    /// Whatever a task needs is fetched.
    Prepared {
        task: TaskKey,
        image: Option<(Rc<TaskImage>, Chain)>,
        failure: Option<Preparation>,
    },
    /// A source may emit again, a sink has done its work, or barriers are late.
    TaskDue { task: TaskKey },
    /// A channel of a task has room again.
    Room { task: TaskKey },
    /// What is not known to have been heard is said again.
    Repeat,
    /// Pages that a running task has not touched yet cannot be read.
    FillFails { task: TaskKey },
    /// User code fails.
    TaskPanics { task: TaskKey },
    /// It is asked to end.
    Terminate,
    /// It has waited long enough for the word that it may leave.
    DrainTimeout,
}

/// Why a task cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preparation {
    /// Its image is missing or damaged.
    Lost,
    /// What it needs could not be read now.
    Unavailable,
}

#[derive(Debug)]
struct Entry {
    at_us: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.sequence).cmp(&(other.at_us, other.sequence))
    }
}

/// What will happen, the earliest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at_us: u64, event: Event) {
        self.sequence += 1;
        self.entries.push(Reverse(Entry {
            at_us,
            sequence: self.sequence,
            event,
        }));
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        self.entries
            .pop()
            .map(|Reverse(entry)| (entry.at_us, entry.event))
    }

    pub(crate) fn next_us(&self) -> Option<u64> {
        self.entries.peek().map(|Reverse(entry)| entry.at_us)
    }
}
