//! The shell of a JobManager around the real leadership: it stands for election, confirms, takes over, and lets TaskManagers
//! and users in while it leads. It does what the real process does, and decides nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tidemill_core::leader::{self, Leader, LeaderConfig, LoadedJob};
use tidemill_core::leadership::{Action, Event as Told, Leadership, Reach};
use tidemill_core::membership::{ConnectionId, HowLost};
use tidemill_protocol::control::ToLeader;
use tidemill_protocol::{Epoch, JobId};

use crate::connection::{HowEnded, Message};
use crate::event::{Event, Input, Side};
use crate::node::Node;
use crate::store::{StoreAnswer, StoreRequest};
use crate::task_manager::CONFIGURATION_HASH;
use crate::user::Answer;
use crate::world::World;
use crate::zookeeper::{Operation, Outcome, Purpose, Snapshot};

/// One JobManager.
#[derive(Debug)]
pub(crate) struct JobManager {
    pub(crate) leadership: Leadership,
    pub(crate) leader: Option<Leader>,
    /// It wants a candidate's node, in whatever session.
    pub(crate) standing: bool,
    /// The epoch of the lock node that it holds, as far as it knows.
    pub(crate) lock: Option<Epoch>,
    /// An election is being confirmed.
    confirming_election: Option<Epoch>,
    loaded: Vec<LoadedJob>,
    /// Control connections that were let in.
    pub(crate) connections: BTreeSet<u64>,
    /// Who submitted what.
    pub(crate) submitters: BTreeMap<JobId, Vec<(usize, u64)>>,
    pub(crate) cancellers: BTreeMap<JobId, Vec<(usize, u64)>>,
    /// Clean-ups of each job, the first of which is under way.
    pub(crate) clean_ups: BTreeMap<JobId, VecDeque<StoreRequest>>,
    told_reach: Option<Reach>,
}

impl JobManager {
    pub(crate) fn new(reach_grace_us: u64) -> Self {
        Self {
            leadership: Leadership::new(Duration::from_micros(reach_grace_us)),
            leader: None,
            standing: false,
            lock: None,
            confirming_election: None,
            loaded: Vec::new(),
            connections: BTreeSet::new(),
            submitters: BTreeMap::new(),
            cancellers: BTreeMap::new(),
            clean_ups: BTreeMap::new(),
            told_reach: None,
        }
    }

    /// The TaskManagers that are registered with it and not suspected.
    pub(crate) fn members(&self) -> Vec<Node> {
        let members = self
            .leader
            .iter()
            .flat_map(|leader| leader.membership().members());
        members
            .filter(|member| member.suspected_until.is_none())
            .filter_map(|member| Node::named(&member.registration.id.0))
            .collect()
    }

    /// The epoch under which its leader decides.
    pub(crate) fn leads(&self) -> Option<Epoch> {
        self.leader.as_ref().map(Leader::epoch)
    }
}

impl World {
    pub(crate) fn start_job_manager(&mut self, node: Node) {
        self.job_managers[node.0] = JobManager::new(self.options.reach_grace_us);
        self.drive(node);
    }

    pub(crate) fn job_manager_input(&mut self, node: Node, input: Input) {
        // What has run out is looked at before anything new.
        self.wake_machines(node);
        match input {
            Input::Wake { .. } => {}
            Input::Message {
                connection,
                message,
            } => self.leader_message(node, connection, *message),
            Input::Silence {
                connection,
                side,
                since_us,
            } => {
                let over = self.was_silent(connection, side, since_us);
                self.control_over_if(over, node, connection);
            }
            Input::Closed { connection, side } => {
                let over = self.end_is_over(connection, side);
                self.control_over_if(over, node, connection);
            }
            Input::EndOfFile { connection, side } => {
                self.close(connection, side);
                self.control_over(node, connection, HowLost::ProcessEnded);
            }
            Input::SessionTick => self.keep_session(node),
            Input::Watch { snapshot } => self.watched(node, snapshot),
            Input::Registry {
                operation,
                purpose,
                outcome,
            } => {
                self.registry_answers(node, *operation, purpose, *outcome);
            }
            Input::Store { answer } => self.store_answers(node, *answer),
            Input::Submit { user, turn, job } => self.submitted(node, user, turn, job),
            Input::Cancel { user, turn, job } => self.cancel_asked(node, user, turn, job),
            Input::Ask {
                user,
                turn,
                job,
                question,
            } => self.asked(node, (user, turn, job), question),
            Input::Terminate => self.tell_leadership(node, Told::StopRequested),
            _ => {}
        }
        self.drive(node);
    }

    fn wake_machines(&mut self, node: Node) {
        let now = self.local(node);
        let job_manager = &mut self.job_managers[node.0];
        if job_manager
            .leadership
            .poll_timeout()
            .is_some_and(|due| due <= now)
        {
            job_manager.leadership.handle_timeout(now);
            self.perform_leadership(node);
        }
        if let Some(leader) = &mut self.job_managers[node.0].leader
            && leader.poll_timeout().is_some_and(|due| due <= now)
        {
            leader.handle_timeout(now);
        }
    }

    pub(crate) fn tell_leadership(&mut self, node: Node, event: Told) {
        let now = self.local(node);
        self.job_managers[node.0].leadership.handle(now, event);
        self.perform_leadership(node);
    }

    pub(crate) fn tell_leader(&mut self, node: Node, event: leader::Event) {
        let now = self.local(node);
        if let Some(leader) = &mut self.job_managers[node.0].leader {
            leader.handle(now, event);
        }
    }

    /// Carries out whatever the machines want, as long as it may lead, and sets the timer.
    fn drive(&mut self, node: Node) {
        loop {
            if !self.processes[node.0].runs() {
                return;
            }
            self.perform_leadership(node);
            let now = self.local(node);
            let job_manager = &mut self.job_managers[node.0];
            if !job_manager.leadership.may_lead(now) {
                break;
            }
            let action = job_manager.leader.as_mut().and_then(Leader::poll_action);
            let Some(action) = action else { break };
            self.perform(node, action);
        }
        self.tell_reach(node);
        self.set_timer(node);
    }

    fn set_timer(&mut self, node: Node) {
        let job_manager = &self.job_managers[node.0];
        let leader = job_manager.leader.as_ref().and_then(Leader::poll_timeout);
        let due = [job_manager.leadership.poll_timeout(), leader]
            .into_iter()
            .flatten()
            .min();
        let process = &mut self.processes[node.0];
        let at_us = due.map(|due| process.clock.world_us(due).max(self.now_us));
        let Some(at_us) = at_us.filter(|at_us| process.wake_at_us.is_none_or(|wake| *at_us < wake))
        else {
            return;
        };
        process.wake_at_us = Some(at_us);
        let life = process.life;
        self.schedule(
            at_us,
            Event::Process {
                node,
                life,
                input: Input::Wake { at_us },
            },
        );
    }

    fn perform_leadership(&mut self, node: Node) {
        while let Some(action) = self.job_managers[node.0].leadership.poll_action() {
            let sent_at = self.local(node);
            match action {
                Action::Stand => {
                    self.job_managers[node.0].standing = true;
                    self.ask(node, Operation::Stand, Purpose::Stand);
                }
                Action::TakeOver { epoch } => {
                    self.log(|| format!("{node}: takes over, epoch {epoch}"));
                    self.ask(node, Operation::ReadJobs, Purpose::TakeOver { epoch });
                }
                Action::Lead { epoch } => self.lead(node, epoch),
                Action::Confirm { epoch } => {
                    self.ask(
                        node,
                        Operation::Confirm(epoch),
                        Purpose::Confirm { epoch, sent_at },
                    );
                }
                Action::StepDown { epoch, reason } => {
                    self.log(|| format!("{node}: steps down from epoch {epoch}: {reason}"));
                    self.counts.step_downs += 1;
                    self.step_down(node);
                }
                Action::Resign { epoch } => {
                    self.job_managers[node.0].standing = false;
                    self.ask(node, Operation::Resign(epoch), Purpose::Resign { epoch });
                }
                Action::Stopped => {
                    self.log(|| format!("{node}: has stopped"));
                    self.end_process(node, HowEnded::InOrder);
                }
            }
        }
    }

    fn lead(&mut self, node: Node, epoch: Epoch) {
        let options = &self.options;
        let config = LeaderConfig {
            epoch,
            wall_start_ms: 0,
            cluster_config_hash: CONFIGURATION_HASH,
            adoption_timeout: Duration::from_micros(options.adoption_timeout_us),
            suspicion_timeout: Duration::from_micros(options.idle_timeout_us),
            ended_jobs_max: 3,
        };
        let now = self.local(node);
        let job_manager = &mut self.job_managers[node.0];
        let loaded = std::mem::take(&mut job_manager.loaded);
        let jobs = loaded.len();
        job_manager.leader = Some(Leader::new(now, config, loaded));
        self.counts.take_overs += 1;
        self.log(|| format!("{node}: leads with {jobs} jobs, epoch {epoch}"));
    }

    fn step_down(&mut self, node: Node) {
        let job_manager = &mut self.job_managers[node.0];
        job_manager.leader = None;
        job_manager.loaded.clear();
        job_manager.clean_ups.clear();
        job_manager.told_reach = None;
        let submitters = std::mem::take(&mut job_manager.submitters);
        let cancellers = std::mem::take(&mut job_manager.cancellers);
        for connection in std::mem::take(&mut self.job_managers[node.0].connections) {
            self.close(connection, Side::Acceptor);
        }
        let waiting = submitters
            .into_values()
            .chain(cancellers.into_values())
            .flatten();
        for (user, turn) in waiting.collect::<Vec<_>>() {
            self.answer_user(user, turn, Answer::NotLeading(None));
        }
    }

    /// The session that held the lock or the candidature is gone for certain.
    pub(crate) fn job_manager_lost_session(&mut self, node: Node) {
        let job_manager = &mut self.job_managers[node.0];
        job_manager.confirming_election = None;
        if let Some(epoch) = job_manager.lock.take() {
            job_manager.standing = false;
            self.tell_leadership(node, Told::Lost { epoch });
        }
    }

    fn watched(&mut self, node: Node, snapshot: Snapshot) {
        self.zookeeper.clients[node.0].seen = snapshot;
        let life = self.processes[node.0].life;
        let job_manager = &mut self.job_managers[node.0];
        if let Some((epoch, first, of)) = snapshot.leader
            && (first, of) == (node, life)
            && job_manager.standing
            && job_manager.lock != Some(epoch)
            && job_manager.confirming_election != Some(epoch)
        {
            job_manager.confirming_election = Some(epoch);
            let sent_at = self.local(node);
            self.ask(
                node,
                Operation::Confirm(epoch),
                Purpose::Elected { epoch, sent_at },
            );
        }
    }

    fn tell_reach(&mut self, node: Node) {
        let seen = self.zookeeper.clients[node.0].seen;
        let is_there = |index: usize| seen.announced & 1 << index != 0;
        let members = self.job_managers[node.0].members();
        let connected = members.iter().filter(|member| is_there(member.worker()));
        let reach = Reach {
            task_managers_announced: seen.announced.count_ones() as usize,
            task_managers_connected: connected.count(),
            other_candidates: seen.candidates.saturating_sub(1),
        };
        if self.job_managers[node.0].told_reach != Some(reach) {
            self.job_managers[node.0].told_reach = Some(reach);
            self.tell_leadership(node, Told::Reach(reach));
        }
    }

    fn registry_answers(
        &mut self,
        node: Node,
        operation: Operation,
        purpose: Purpose,
        outcome: Outcome,
    ) {
        let succeeded = matches!(outcome, Outcome::Done);
        match purpose {
            // Whether the node was made is seen by the watch; without a session it is made again with the next.
            Purpose::Stand => {
                if !succeeded && self.job_managers[node.0].standing {
                    self.ask(node, Operation::Stand, Purpose::Stand);
                }
            }
            Purpose::Elected { epoch, sent_at } => {
                self.election_confirmed(node, epoch, sent_at, &outcome)
            }
            Purpose::Confirm { epoch, sent_at } => self.tell_leadership(
                node,
                match outcome {
                    Outcome::Done => Told::Confirmed { epoch, sent_at },
                    Outcome::Fenced => Told::Fenced { epoch },
                    _ => Told::ConfirmFailed { epoch },
                },
            ),
            Purpose::Resign { epoch } => {
                if succeeded {
                    self.job_managers[node.0].lock = None;
                    self.tell_leadership(node, Told::Resigned { epoch });
                } else if self.job_managers[node.0].lock == Some(epoch) {
                    self.tell_leadership(node, Told::ResignFailed { epoch });
                } else {
                    self.tell_leadership(node, Told::Lost { epoch });
                }
            }
            Purpose::TakeOver { epoch } => self.jobs_read(node, epoch, outcome),
            _ => self.written(node, operation, purpose, &outcome),
        }
    }

    fn election_confirmed(
        &mut self,
        node: Node,
        epoch: Epoch,
        sent_at: tidemill_core::Time,
        outcome: &Outcome,
    ) {
        let session_timeout = Duration::from_micros(self.options.zookeeper.session_timeout_us);
        let job_manager = &mut self.job_managers[node.0];
        if job_manager.confirming_election != Some(epoch) {
            return;
        }
        job_manager.confirming_election = None;
        match outcome {
            Outcome::Done => {
                job_manager.lock = Some(epoch);
                job_manager.standing = false;
                let session_timeout = Some(session_timeout);
                let event = Told::Elected {
                    epoch,
                    confirmed_at: sent_at,
                    session_timeout,
                };
                self.tell_leadership(node, event);
            }
            // The node is gone, and with it the candidature: it stands anew.
            Outcome::Fenced => self.ask(node, Operation::Stand, Purpose::Stand),
            _ => {
                let seen = self.zookeeper.clients[node.0].seen;
                self.watched(node, seen);
            }
        }
    }

    fn jobs_read(&mut self, node: Node, epoch: Epoch, outcome: Outcome) {
        let Outcome::Jobs(jobs) = outcome else {
            let reason = "the registry cannot be read".to_owned();
            return self.tell_leadership(node, Told::TakeOverFailed { epoch, reason });
        };
        let loaded = jobs.into_iter().filter_map(|(record, pointers)| {
            let graph = Ok(self.users.spec(record.id)?.graph());
            Some(LoadedJob {
                record,
                graph,
                pointers,
            })
        });
        let loaded = loaded.collect();
        if self.job_managers[node.0].leadership.epoch() == Some(epoch) {
            self.job_managers[node.0].loaded = loaded;
            self.ask_store(node, StoreRequest::ReadGraphs { epoch });
        }
    }

    fn store_answers(&mut self, node: Node, answer: StoreAnswer) {
        match answer {
            StoreAnswer::GraphsRead {
                epoch,
                succeeded: true,
            } => {
                self.tell_leadership(node, Told::TakenOver { epoch });
            }
            StoreAnswer::GraphsRead {
                epoch,
                succeeded: false,
            } => {
                let reason = "a job's graph cannot be read".to_owned();
                self.tell_leadership(node, Told::TakeOverFailed { epoch, reason });
            }
            StoreAnswer::GraphWritten {
                user,
                turn,
                job,
                succeeded,
            } => {
                self.graph_written(node, user, turn, job, succeeded);
            }
            StoreAnswer::Imported {
                user,
                turn,
                job,
                result,
            } => self.imported(node, (user, turn, job), result),
            StoreAnswer::SavepointCopied {
                epoch,
                job,
                id,
                result,
            } => self.tell_copied(node, (epoch, job), id, result),
            StoreAnswer::SavepointDeleted {
                user,
                turn,
                succeeded,
            } => {
                let answer = if succeeded {
                    Answer::Deleted
                } else {
                    Answer::Rejected
                };
                self.answer_user(user, turn, answer);
            }
            other => self.stored(node, other),
        }
    }

    fn leader_message(&mut self, node: Node, connection: u64, message: Message) {
        let id = ConnectionId(connection);
        match message {
            Message::Hello if self.job_managers[node.0].leads().is_some() => {
                self.job_managers[node.0].connections.insert(connection);
                self.send(connection, Side::Acceptor, Message::Welcome);
            }
            Message::Hello => self.close(connection, Side::Acceptor),
            Message::ToLeader(message)
                if self.job_managers[node.0].connections.contains(&connection) =>
            {
                let event = match message {
                    ToLeader::Register(registration) => leader::Event::Registering {
                        connection: id,
                        registration,
                    },
                    message => leader::Event::Message {
                        connection: id,
                        message,
                    },
                };
                self.tell_leader(node, event);
            }
            _ => {}
        }
    }

    fn control_over_if(&mut self, over: bool, node: Node, connection: u64) {
        if over {
            self.control_over(node, connection, HowLost::StreamBroken);
        }
    }

    fn control_over(&mut self, node: Node, connection: u64, how: HowLost) {
        self.job_managers[node.0].connections.remove(&connection);
        let reason = format!("{how:?}");
        self.tell_leader(
            node,
            leader::Event::ConnectionLost {
                connection: ConnectionId(connection),
                how,
                reason,
            },
        );
    }
}
