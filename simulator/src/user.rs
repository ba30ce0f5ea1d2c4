//! The users: they submit jobs to whichever JobManager they know, follow redirections, try again when nobody answers, and
//! cancel some. Nobody else knows what a user was told.

use std::collections::BTreeMap;
use std::rc::Rc;

use tidemill_protocol::JobId;

use crate::event::{Event, Input};
use crate::node::{JOB_MANAGERS, Node};
use crate::time::{MILLISECOND, SECOND};
use crate::workload::JobSpec;
use crate::world::World;
use crate::zookeeper::short;

/// After this time without an answer a user asks again.
const PATIENCE_US: u64 = 5 * SECOND;

/// What a user is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// The job survives from now on.
    Stored(JobId),
    /// Try again.
    Rejected,
    /// Somebody else leads, perhaps this one.
    NotLeading(Option<Node>),
    /// The wish to cancel is stored.
    CancelStored,
    /// The job has ended, or is not known.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Submitting,
    Acknowledged(JobId),
    Cancelling(JobId),
    Done,
}

#[derive(Debug)]
struct User {
    /// Chosen by himself, so that to submit it again is to submit it once.
    job: JobId,
    state: State,
    /// Counts what he does: answers to what was before are not waited for any more.
    turn: u64,
    asks: Node,
    cancels_after_us: Option<u64>,
}

/// Everybody who submits jobs.
#[derive(Debug, Default)]
pub(crate) struct Users {
    users: Vec<User>,
    specs: BTreeMap<JobId, Rc<JobSpec>>,
}

impl Users {
    /// What a job is like.
    pub(crate) fn spec(&self, job: JobId) -> Option<Rc<JobSpec>> {
        self.specs.get(&job).cloned()
    }

    /// Nobody wants anything more.
    pub(crate) fn are_content(&self) -> bool {
        self.users.iter().all(|user| user.state == State::Done)
    }

    /// The last job that was tried to be submitted.
    pub(crate) fn last_job(&self) -> Option<JobId> {
        self.specs.last_key_value().map(|(job, _)| *job)
    }
}

impl World {
    /// A new user submits a job after some time.
    pub(crate) fn add_user(
        &mut self,
        spec: JobSpec,
        after_us: u64,
        cancels_after_us: Option<u64>,
    ) -> usize {
        let asks = Node(self.random.below(JOB_MANAGERS as u64) as usize);
        let spec = Rc::new(spec);
        let user = self.users.users.len();
        let mut id = [0; 16];
        id[..2].copy_from_slice(&(user as u16 + 1).to_be_bytes());
        let job = JobId(id);
        self.checkers.submitted(job, &spec);
        self.users.specs.insert(job, spec);
        self.users.users.push(User {
            job,
            state: State::Submitting,
            turn: 0,
            asks,
            cancels_after_us,
        });
        self.after(after_us, Event::User { user, turn: 0 });
        user
    }

    /// A user does what comes next, or again.
    pub(crate) fn user_acts(&mut self, user: usize, turn: u64) {
        if self.users.users[user].turn != turn {
            return;
        }
        let one = &mut self.users.users[user];
        one.turn += 1;
        let (turn, asks, state) = (one.turn, one.asks, one.state);
        let input = match state {
            State::Submitting => {
                let job = self.users.users[user].job;
                self.log(|| format!("user {user}: submits job {} to {asks}", short(job)));
                Input::Submit { user, turn, job }
            }
            State::Acknowledged(job) | State::Cancelling(job) => {
                self.users.users[user].state = State::Cancelling(job);
                self.checkers.cancel_asked(job);
                self.log(|| format!("user {user}: cancels job {} at {asks}", short(job)));
                Input::Cancel { user, turn, job }
            }
            State::Done => return,
        };
        let delay_us = self.random.between(1, 20) * MILLISECOND;
        let life = self.processes[asks.0].life;
        self.after(
            delay_us,
            Event::Process {
                node: asks,
                life,
                input,
            },
        );
        // Whoever does not answer in time is given up for another.
        self.users.users[user].asks = Node((asks.0 + 1) % JOB_MANAGERS);
        self.after(PATIENCE_US, Event::User { user, turn });
    }

    pub(crate) fn user_hears(&mut self, user: usize, turn: u64, answer: Answer) {
        if self.users.users[user].turn != turn {
            return;
        }
        self.log(|| format!("user {user}: hears {answer:?}"));
        let one = &mut self.users.users[user];
        one.turn += 1;
        let turn = one.turn;
        let again_us = match answer {
            Answer::Stored(job) => {
                self.checkers.acknowledged(job);
                let cancels = one.cancels_after_us;
                one.state = if cancels.is_some() {
                    State::Acknowledged(job)
                } else {
                    State::Done
                };
                cancels
            }
            Answer::Rejected => Some(500 * MILLISECOND),
            Answer::NotLeading(hint) => {
                one.asks = hint.unwrap_or(one.asks);
                Some(if hint.is_some() {
                    MILLISECOND
                } else {
                    300 * MILLISECOND
                })
            }
            Answer::CancelStored => {
                if let State::Cancelling(job) = one.state {
                    self.checkers.cancel_acknowledged(job);
                }
                one.state = State::Done;
                None
            }
            Answer::Ended => {
                one.state = State::Done;
                None
            }
        };
        if let Some(again_us) = again_us {
            self.after(again_us, Event::User { user, turn });
        }
    }
}
