//! What a TaskManager obeys: the newest leader only, and the newest attempt of each task only. It remembers which
//! attempt of which task runs and turns commands into what the shell does with task threads.
//!
//! It never starts or stops anything itself, and never asks whether a task is healthy.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::mutation::{self, Mutation};
use tidemill_protocol::control::{
    Command, Deployment, FromLeader, RunningTask, TaskState, WarmImages,
};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, ModuleHash, TaskId};

/// Says which attempt of which task a TaskManager runs, under which leader.
#[derive(Debug, Default)]
pub struct Worker {
    epoch: Epoch,
    tasks: BTreeMap<(JobId, TaskId), Execution>,
}

#[derive(Debug)]
struct Execution {
    attempt: AttemptId,
    state: TaskState,
}

/// What the shell does next, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerAction {
    /// Stop a task at once and forget it.
    Stop {
        /// Whose task.
        job: JobId,
        /// Which.
        task: TaskId,
        /// Which execution of it.
        attempt: AttemptId,
    },
    /// Run the tasks of a deployment.
    Start(Deployment),
    /// Hand the word about a checkpoint to a task.
    Checkpoint {
        /// Whose task.
        job: JobId,
        /// Which.
        task: TaskId,
        /// Which execution of it.
        attempt: AttemptId,
        /// Which checkpoint.
        checkpoint: CheckpointId,
        /// What is said about it.
        word: CheckpointWord,
    },
    /// Keep exactly these images of a job warm.
    KeepWarm(WarmImages),
    /// Fetch and compile a module ahead, in case tasks of it come.
    PrepareModule(ModuleHash),
    /// Leave, if that was asked for: nothing here is needed any more.
    Drained,
    /// Answer a request for log lines.
    FetchLogs {
        /// Comes back in the answer.
        request: u64,
        /// Whose lines.
        job: JobId,
        /// One task's, or all.
        task: Option<TaskId>,
        /// Only later ones.
        after: u64,
        /// At most this many.
        limit: u32,
    },
}

/// What a leader says to a task about a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointWord {
    /// It has begun.
    Announce {
        /// Whoever is captured for it processes nothing more, until it is aborted or a later one begins.
        then_pause: bool,
    },
    /// It is published.
    Complete,
    /// It never will be.
    Abort,
}

/// A command that is not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disobeyed {
    /// It comes from a leader that has been succeeded.
    #[error(
        "a leader of epoch {theirs} speaks, but epoch {ours} has been seen: it has been succeeded"
    )]
    OldEpoch {
        /// The speaker's.
        theirs: Epoch,
        /// The newest seen.
        ours: Epoch,
    },
    /// It deploys an attempt that is not newer than one that runs, or ran, here.
    #[error(
        "attempt {theirs} is to be deployed, but attempt {ours} of the same task is known here"
    )]
    OldAttempt {
        /// The deployed one.
        theirs: AttemptId,
        /// The known one.
        ours: AttemptId,
    },
}

impl Worker {
    /// A leader of this epoch is met, or heard of: from now on none of a lesser one is obeyed.
    ///
    /// # Errors
    /// When a leader with a greater epoch has been met before.
    pub fn met(&mut self, epoch: Epoch) -> Result<(), Disobeyed> {
        if epoch < self.epoch && !mutation::is(Mutation::OldEpochObeyed) {
            return Err(Disobeyed::OldEpoch {
                theirs: epoch,
                ours: self.epoch,
            });
        }
        self.epoch = epoch;
        Ok(())
    }

    /// The greatest epoch that was met or heard of.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes a message from a leader and says what to do about it, in order.
    ///
    /// # Errors
    /// When the message must not be obeyed. Nothing has changed then.
    pub fn handle(&mut self, message: FromLeader) -> Result<Vec<WorkerAction>, Disobeyed> {
        self.met(message.epoch)?;
        let word = |job, attempt, checkpoint, word| (job, attempt, checkpoint, word);
        let (job, attempt, checkpoint, word) = match message.command {
            // The shell's link has used these already; they change nothing that runs.
            Command::Registered { .. } | Command::Refused { .. } => return Ok(Vec::new()),
            Command::Drained => return Ok(alloc::vec![WorkerAction::Drained]),
            Command::Deploy(deployment) => return self.deploy(deployment),
            Command::Cancel {
                job,
                attempt,
                tasks,
            } => return Ok(self.cancel(job, attempt, &tasks)),
            Command::FetchLogs {
                request,
                job,
                task,
                after,
                limit,
            } => {
                return Ok(alloc::vec![WorkerAction::FetchLogs {
                    request,
                    job,
                    task,
                    after,
                    limit
                }]);
            }
            Command::TriggerCheckpoint {
                job,
                attempt,
                checkpoint,
                then_pause,
            } => word(
                job,
                attempt,
                checkpoint,
                CheckpointWord::Announce { then_pause },
            ),
            Command::KeepWarm(images) => return Ok(alloc::vec![WorkerAction::KeepWarm(images)]),
            Command::PrepareModule(module) => {
                return Ok(alloc::vec![WorkerAction::PrepareModule(module)]);
            }
            Command::CompleteCheckpoint {
                job,
                attempt,
                checkpoint,
            } => word(job, attempt, checkpoint, CheckpointWord::Complete),
            Command::AbortCheckpoint {
                job,
                attempt,
                checkpoint,
            } => word(job, attempt, checkpoint, CheckpointWord::Abort),
        };
        let addressed = self
            .tasks
            .iter()
            .filter(|((of, _), execution)| *of == job && execution.attempt == attempt);
        Ok(addressed
            .map(|(&(job, task), _)| WorkerAction::Checkpoint {
                job,
                task,
                attempt,
                checkpoint,
                word,
            })
            .collect())
    }

    fn deploy(&mut self, deployment: Deployment) -> Result<Vec<WorkerAction>, Disobeyed> {
        let known = |task| self.tasks.get(&(deployment.job, task));
        for task in &deployment.tasks {
            if let Some(execution) = known(task.task)
                && execution.attempt >= deployment.attempt
                && !mutation::is(Mutation::OldAttemptDeployed)
            {
                return Err(Disobeyed::OldAttempt {
                    theirs: deployment.attempt,
                    ours: execution.attempt,
                });
            }
        }
        let mut actions = Vec::new();
        for task in &deployment.tasks {
            let execution = Execution {
                attempt: deployment.attempt,
                state: TaskState::Deploying,
            };
            if let Some(old) = self.tasks.insert((deployment.job, task.task), execution) {
                actions.push(WorkerAction::Stop {
                    job: deployment.job,
                    task: task.task,
                    attempt: old.attempt,
                });
            }
        }
        actions.push(WorkerAction::Start(deployment));
        Ok(actions)
    }

    fn cancel(&mut self, job: JobId, attempt: AttemptId, tasks: &[TaskId]) -> Vec<WorkerAction> {
        let mut actions = Vec::new();
        self.tasks.retain(|&(of, task), execution| {
            let meant = of == job
                && execution.attempt <= attempt
                && (tasks.is_empty() || tasks.contains(&task));
            if meant {
                actions.push(WorkerAction::Stop {
                    job,
                    task,
                    attempt: execution.attempt,
                });
            }
            !meant
        });
        actions
    }

    /// A task has changed state. Whether it is news of the attempt that counts; other news is for nobody.
    pub fn changed(
        &mut self,
        job: JobId,
        task: TaskId,
        attempt: AttemptId,
        state: TaskState,
    ) -> bool {
        match self.tasks.get_mut(&(job, task)) {
            Some(execution) if execution.attempt == attempt => {
                execution.state = state;
                true
            }
            _ => false,
        }
    }

    /// Everything a leader must hear when it is met: what runs here, and what failed without having been stopped.
    #[must_use]
    pub fn running(&self) -> Vec<RunningTask> {
        self.tasks
            .iter()
            .map(|(&(job, task), execution)| RunningTask {
                job,
                attempt: execution.attempt,
                task,
                state: execution.state.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;
    use alloc::string::String;
    use alloc::vec;
    use alloc::vec::Vec;

    use tidemill_protocol::control::{DeployTimings, TaskDeployment};
    use tidemill_protocol::{ExecutionGraph, ModuleHash};

    use super::*;

    const JOB: JobId = JobId([1; 16]);
    const TASK: TaskId = TaskId::new(0, 0);

    fn attempt(counter: u64) -> AttemptId {
        AttemptId::new(Epoch(1), counter)
    }

    fn say(epoch: u64, command: Command) -> FromLeader {
        FromLeader {
            epoch: Epoch(epoch),
            command,
        }
    }

    fn deploy(attempt: AttemptId) -> Command {
        Command::Deploy(Deployment {
            job: JOB,
            job_name: String::new(),
            attempt,
            module: ModuleHash([0; 32]),
            parameters: BTreeMap::new(),
            graph: ExecutionGraph {
                stages: vec![],
                edges: vec![],
                max_parallelism: 1,
                job_graph_hash: 0,
            },
            tasks: vec![TaskDeployment {
                task: TASK,
                image: None,
                warm_at: Vec::new(),
            }],
            locations: vec![],
            restore: None,
            aligned_checkpoint_timeout_ms: 0,
        })
    }

    fn stops(actions: &[WorkerAction]) -> Vec<AttemptId> {
        let stop = |action: &WorkerAction| match action {
            WorkerAction::Stop { attempt, .. } => Some(*attempt),
            _ => None,
        };
        actions.iter().filter_map(stop).collect()
    }

    #[test]
    fn a_new_attempt_stops_the_old_one_first_and_never_the_other_way_round() {
        let mut worker = Worker::default();
        assert_eq!(
            stops(&worker.handle(say(1, deploy(attempt(1)))).expect("obeyed")),
            []
        );
        let actions = worker.handle(say(1, deploy(attempt(2)))).expect("obeyed");
        assert_eq!(stops(&actions[..1]), [attempt(1)]);
        assert!(matches!(actions[1], WorkerAction::Start(_)));
        let late = worker.handle(say(1, deploy(attempt(1))));
        assert_eq!(
            late,
            Err(Disobeyed::OldAttempt {
                theirs: attempt(1),
                ours: attempt(2)
            })
        );
        let twice = worker.handle(say(1, deploy(attempt(2))));
        assert!(
            twice.is_err(),
            "the same deployment twice starts nothing twice"
        );
    }

    #[test]
    fn a_leader_that_has_been_succeeded_is_not_obeyed() {
        let mut worker = Worker::default();
        worker.handle(say(2, deploy(attempt(1)))).expect("obeyed");
        let cancel = Command::Cancel {
            job: JOB,
            attempt: attempt(9),
            tasks: vec![],
        };
        let answer = worker.handle(say(1, cancel));
        assert_eq!(
            answer,
            Err(Disobeyed::OldEpoch {
                theirs: Epoch(1),
                ours: Epoch(2)
            })
        );
        assert_eq!(worker.running().len(), 1);
    }

    #[test]
    fn a_leader_that_is_only_heard_of_ends_the_obedience_to_those_before() {
        let mut worker = Worker::default();
        worker.handle(say(2, deploy(attempt(1)))).expect("obeyed");
        assert_eq!(worker.met(Epoch(2)), Ok(()));
        assert_eq!(worker.met(Epoch(5)), Ok(()));
        let old = Disobeyed::OldEpoch {
            theirs: Epoch(2),
            ours: Epoch(5),
        };
        assert_eq!(worker.met(Epoch(2)), Err(old));
        assert_eq!(worker.handle(say(2, deploy(attempt(2)))), Err(old));
        assert_eq!(
            worker.handle(say(5, Command::Drained)),
            Ok(vec![WorkerAction::Drained])
        );
    }

    #[test]
    fn a_cancel_spares_newer_attempts_and_unnamed_tasks() {
        let mut worker = Worker::default();
        worker.handle(say(1, deploy(attempt(5)))).expect("obeyed");
        let older = Command::Cancel {
            job: JOB,
            attempt: attempt(4),
            tasks: vec![],
        };
        assert_eq!(worker.handle(say(1, older)), Ok(vec![]));
        let other = Command::Cancel {
            job: JOB,
            attempt: attempt(5),
            tasks: vec![TaskId::new(7, 7)],
        };
        assert_eq!(worker.handle(say(1, other)), Ok(vec![]));
        let this = Command::Cancel {
            job: JOB,
            attempt: attempt(5),
            tasks: vec![TASK],
        };
        assert_eq!(
            stops(&worker.handle(say(1, this)).expect("obeyed")),
            [attempt(5)]
        );
        assert_eq!(worker.running(), []);
    }

    #[test]
    fn news_of_a_stopped_attempt_is_for_nobody() {
        let mut worker = Worker::default();
        worker.handle(say(1, deploy(attempt(1)))).expect("obeyed");
        worker.handle(say(1, deploy(attempt(2)))).expect("obeyed");
        let running = TaskState::Running {
            timings: DeployTimings::default(),
        };
        assert!(!worker.changed(JOB, TASK, attempt(1), running.clone()));
        assert!(worker.changed(JOB, TASK, attempt(2), running.clone()));
        assert_eq!(worker.running()[0].state, running);
    }

    #[test]
    fn a_checkpoint_word_reaches_only_the_attempt_it_names() {
        let mut worker = Worker::default();
        worker.handle(say(1, deploy(attempt(2)))).expect("obeyed");
        let checkpoint = CheckpointId::new(Epoch(1), 1);
        let trigger = |attempt| Command::TriggerCheckpoint {
            job: JOB,
            attempt,
            checkpoint,
            then_pause: false,
        };
        assert_eq!(worker.handle(say(1, trigger(attempt(1)))), Ok(vec![]));
        assert_eq!(
            worker
                .handle(say(1, trigger(attempt(2))))
                .expect("obeyed")
                .len(),
            1
        );
    }
}
