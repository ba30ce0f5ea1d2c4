//! The users: they submit jobs to whichever JobManager they know, follow redirections, try again when nobody answers; they
//! cancel some, take savepoints, and begin other jobs from these or from what cancelled jobs left. Nobody else knows what a
//! user was told.

use std::collections::BTreeMap;
use std::rc::Rc;

use tidemill_core::job::SavepointStatus;
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{CheckpointId, JobId, record};

use crate::event::{Event, Input};
use crate::node::{JOB_MANAGERS, Node};
use crate::options::JobOptions;
use crate::random::Random;
use crate::savepoints::{Origin, Place, Question, directory};
use crate::time::{MILLISECOND, SECOND};
use crate::workload::JobSpec;
use crate::world::World;
use crate::zookeeper::short;

/// After this time without an answer a user asks again.
const PATIENCE_US: u64 = 5 * SECOND;
/// Before a user asks again how something stands.
const PAUSE_US: u64 = 500 * MILLISECOND;
/// How often a user wishes for a savepoint of one job.
const WISHES_MAX: u32 = 4;
/// A user's second job has a number by so much greater than his first.
const SECOND_JOB: u16 = 1_000;

/// What a user is told.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The job survives from now on.
    Stored(JobId),
    /// Try again.
    Rejected,
    /// There is no use in trying again.
    Refused,
    /// Somebody else leads, perhaps this one.
    NotLeading(Option<Node>),
    /// The wish to cancel is stored.
    CancelStored,
    /// The job has ended, or is not known.
    Ended,
    /// How a savepoint stands; nothing when the wish is not known.
    Savepoint(Option<SavepointStatus>),
    /// What an ended job left.
    Kept(Option<CheckpointPointer>),
    /// A savepoint, or what a job left, is gone or going.
    Deleted,
}

/// What a user wants of his job when it has been acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Plan {
    /// That it comes to its end.
    RunsOn,
    /// That it is cancelled after a time; and perhaps that another one goes on from there.
    Cancels { after_us: u64, begins_again: bool },
    /// A savepoint after a time; perhaps another job from it, and that it is deleted then.
    Saves {
        after_us: u64,
        stop: bool,
        begins_again: bool,
        deletes: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Submitting,
    /// What was planned comes next.
    Acknowledged,
    Cancelling,
    /// Waits for the end, and for what is left then.
    LookingForKept,
    /// Waits for a savepoint, once he has said that he wants one.
    Saving {
        said: bool,
    },
    /// Has what he began from deleted.
    Deleting,
    Done,
}

#[derive(Debug)]
struct User {
    /// Chosen by himself, so that to submit it again is to submit it once.
    job: JobId,
    spec: Rc<JobSpec>,
    state: State,
    /// Counts what he does: answers to what was before are not waited for any more.
    turn: u64,
    asks: Node,
    plan: Plan,
    /// How often he has wished for a savepoint.
    wishes: u32,
    /// What his second job begins from, with the job that left it.
    origin: Option<Origin>,
}

impl User {
    /// The name of the savepoint that he wishes for now.
    fn wish(&self) -> u128 {
        u128::from(short(self.job)) * 100 + u128::from(self.wishes)
    }
}

/// Everybody who submits jobs.
#[derive(Debug, Default)]
pub(crate) struct Users {
    users: Vec<User>,
    specs: BTreeMap<JobId, Rc<JobSpec>>,
    origins: BTreeMap<JobId, Origin>,
}

impl Plan {
    /// What a seed draws.
    pub(crate) fn draw(
        jobs: JobOptions,
        options: &mut record::JobOptions,
        random: &mut Random,
    ) -> Self {
        let cancelled = random.chance(jobs.cancelled_per_mille);
        let saved = random.chance(jobs.saved_per_mille);
        let after_us = random.between(0, 20) * SECOND;
        let begins_again = random.chance(600);
        if cancelled {
            options.retain_on_cancel = begins_again;
            return Self::Cancels {
                after_us,
                begins_again,
            };
        }
        if !saved {
            return Self::RunsOn;
        }
        Self::Saves {
            after_us,
            stop: random.chance(500),
            begins_again,
            deletes: random.chance(500),
        }
    }
}

fn job_id(number: u16) -> JobId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&number.to_be_bytes());
    JobId(id)
}

impl Users {
    /// What a job is like.
    pub(crate) fn spec(&self, job: JobId) -> Option<Rc<JobSpec>> {
        self.specs.get(&job).cloned()
    }

    /// What a job begins from.
    pub(crate) fn origin(&self, job: JobId) -> Option<Origin> {
        self.origins.get(&job).cloned()
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
    pub(crate) fn add_user(&mut self, spec: JobSpec, after_us: u64, plan: Plan) -> usize {
        let asks = Node(self.random.below(JOB_MANAGERS as u64) as usize);
        let spec = Rc::new(spec);
        let user = self.users.users.len();
        let job = job_id(user as u16 + 1);
        self.checkers.submitted(job, &spec);
        self.users.specs.insert(job, Rc::clone(&spec));
        self.users.users.push(User {
            job,
            spec,
            state: State::Submitting,
            turn: 0,
            asks,
            plan,
            wishes: 0,
            origin: None,
        });
        self.after(after_us, Event::User { user, turn: 0 });
        user
    }

    /// A user does what comes next, or again.
    pub(crate) fn user_acts(&mut self, user: usize, turn: u64) {
        if self.users.users[user].turn != turn {
            return;
        }
        self.users.users[user].turn += 1;
        if self.users.users[user].state == State::Acknowledged {
            self.begin_with_plan(user);
        }
        let one = &mut self.users.users[user];
        let (turn, asks, job) = (one.turn, one.asks, one.job);
        let ask = |job, question| Input::Ask {
            user,
            turn,
            job,
            question,
        };
        let id = one.wish();
        let input = match (&mut one.state, &one.origin) {
            (State::Submitting, _) => Input::Submit { user, turn, job },
            (State::Cancelling, _) => Input::Cancel { user, turn, job },
            (State::LookingForKept, _) => ask(job, Question::Kept),
            (State::Saving { said }, _) => {
                let stop = matches!(one.plan, Plan::Saves { stop: true, .. });
                let wishes = !std::mem::replace(said, true);
                let question = if wishes {
                    Question::Wish { id, stop }
                } else {
                    Question::Status { id }
                };
                ask(job, question)
            }
            (State::Deleting, Some(origin)) => match &origin.place {
                Place::Directory(_) => ask(origin.of, Question::Delete { id: origin.wish }),
                Place::Kept(_) => ask(origin.of, Question::DropKept),
            },
            (State::Acknowledged | State::Deleting | State::Done, _) => {
                one.state = State::Done;
                return;
            }
        };
        self.log(|| format!("user {user}: tells {asks}: {input:?}"));
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

    fn begin_with_plan(&mut self, user: usize) {
        let one = &mut self.users.users[user];
        match one.plan {
            Plan::RunsOn => one.state = State::Done,
            Plan::Cancels { .. } => {
                one.state = State::Cancelling;
                self.checkers.cancel_asked(one.job);
            }
            Plan::Saves { stop, .. } => {
                one.state = State::Saving { said: false };
                if stop {
                    self.checkers.stop_asked(one.job);
                }
            }
        }
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
                Some(self.has_submitted(user))
            }
            Answer::Rejected => Some(PAUSE_US),
            Answer::NotLeading(hint) => {
                one.asks = hint.unwrap_or(one.asks);
                if let State::Saving { said } = &mut one.state {
                    // It was not heard; to say it again is to say it once.
                    *said = false;
                }
                Some(if hint.is_some() {
                    MILLISECOND
                } else {
                    300 * MILLISECOND
                })
            }
            Answer::CancelStored => {
                self.checkers.cancel_acknowledged(one.job);
                let begins_again = matches!(
                    one.plan,
                    Plan::Cancels {
                        begins_again: true,
                        ..
                    }
                );
                one.state = State::LookingForKept;
                begins_again.then_some(PAUSE_US)
            }
            Answer::Savepoint(Some(SavepointStatus::InProgress { .. })) => Some(PAUSE_US),
            Answer::Savepoint(Some(SavepointStatus::Completed { checkpoint, .. })) => {
                self.told_of_savepoint(user, checkpoint)
            }
            Answer::Savepoint(_) => self.look_for_savepoint(user),
            Answer::Ended if matches!(one.state, State::Saving { .. }) => {
                one.wishes = one.wishes.max(WISHES_MAX - 1);
                self.look_for_savepoint(user)
            }
            Answer::Kept(Some(pointer)) => {
                let origin = Origin {
                    of: one.job,
                    checkpoint: pointer.checkpoint,
                    place: Place::Kept(pointer.metadata),
                    wish: 0,
                };
                Some(self.begin_again(user, origin))
            }
            Answer::Kept(None) | Answer::Ended | Answer::Refused | Answer::Deleted => None,
        };
        match again_us {
            Some(again_us) => self.after(again_us, Event::User { user, turn }),
            None => self.users.users[user].state = State::Done,
        }
    }

    /// His job is stored. Says after what time something comes next.
    fn has_submitted(&mut self, user: usize) -> u64 {
        let one = &mut self.users.users[user];
        if one.origin.is_some() {
            let deletes = match one.plan {
                Plan::Saves { deletes, .. } => deletes,
                Plan::RunsOn | Plan::Cancels { .. } => true,
            };
            self.counts.begun_from += 1;
            one.state = if deletes {
                State::Deleting
            } else {
                State::Done
            };
            return self.random.between(0, 3) * SECOND;
        }
        one.state = State::Acknowledged;
        match one.plan {
            Plan::RunsOn => 0,
            Plan::Cancels { after_us, .. } | Plan::Saves { after_us, .. } => after_us,
        }
    }

    /// He is told that his savepoint is there.
    fn told_of_savepoint(&mut self, user: usize, checkpoint: CheckpointId) -> Option<u64> {
        let one = &self.users.users[user];
        let (job, place) = (one.job, directory(one.wish()));
        let stop = matches!(one.plan, Plan::Saves { stop: true, .. });
        let there = self.store.savepoints.get(&place);
        let is_it = there.is_some_and(|there| (there.of, there.checkpoint) == (job, checkpoint));
        if !is_it {
            let what = format!("a user is told of {place} of {checkpoint}, which is not there");
            self.judge(Err(what));
        }
        if stop {
            let judged = self.checkers.stopped(job, checkpoint);
            self.judge(judged);
        }
        self.has_savepoint(user)
    }

    /// Nobody knows of his wish, or it came to nothing: the savepoint may be there all the same.
    fn look_for_savepoint(&mut self, user: usize) -> Option<u64> {
        let one = &mut self.users.users[user];
        let place = directory(one.wish());
        if self.store.savepoints.contains_key(&place) {
            return self.has_savepoint(user);
        }
        one.wishes += 1;
        one.state = State::Saving { said: false };
        (one.wishes < WISHES_MAX).then_some(2 * PAUSE_US)
    }

    /// His savepoint is there. Says after what time something comes next, if anything does.
    fn has_savepoint(&mut self, user: usize) -> Option<u64> {
        let one = &mut self.users.users[user];
        let wish = one.wish();
        let there = self.store.savepoints.get(&directory(wish))?;
        let origin = Origin {
            of: there.of,
            checkpoint: there.checkpoint,
            place: Place::Directory(directory(wish)),
            wish,
        };
        let Plan::Saves {
            begins_again,
            deletes,
            ..
        } = one.plan
        else {
            return None;
        };
        if begins_again {
            return Some(self.begin_again(user, origin));
        }
        one.origin = Some(origin);
        one.state = State::Deleting;
        deletes.then(|| self.random.between(0, 10) * SECOND)
    }

    /// He submits another job that goes on from there, after this time.
    fn begin_again(&mut self, user: usize, origin: Origin) -> u64 {
        let job = job_id(user as u16 + 1 + SECOND_JOB);
        let one = &mut self.users.users[user];
        let spec = Rc::clone(&one.spec);
        one.job = job;
        one.state = State::Submitting;
        one.origin = Some(origin.clone());
        self.checkers.submitted(job, &spec);
        self.checkers.begins(job, origin.of, origin.checkpoint);
        self.users.specs.insert(job, spec);
        self.users.origins.insert(job, origin);
        self.random.between(0, 8) * SECOND
    }
}
