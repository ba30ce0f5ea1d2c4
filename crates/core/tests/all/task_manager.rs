//! A TaskManager without threads: it obeys the real worker and does at once what tasks would do in time.

use std::collections::{BTreeMap, BTreeSet};
use tidemill_core::membership::ConnectionId;
use tidemill_core::worker::{CheckpointWord, Disobeyed, Worker, WorkerAction};
use tidemill_protocol::control::{
    Blame, CaptureStats, CheckpointAcknowledgement, DeployTimings, Deployment, FromLeader,
    Registration, TaskFailure, TaskState, ToLeader, WarmImages, WarmTask,
};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{
    AttemptId, CheckpointId, Epoch, Incarnation, JobId, ModuleHash, TaskId, TaskManagerId,
};

/// What every TaskManager of the world does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    /// Deployments never get to run.
    pub(crate) deployments_stall: bool,
    /// Checkpoints are not acknowledged.
    pub(crate) captures_stall: bool,
    /// Commits are not confirmed.
    pub(crate) commits_stall: bool,
    /// Images are not kept warm for others.
    pub(crate) warming_stalls: bool,
    /// Images that are damaged, by the checkpoint that they belong to.
    pub(crate) damaged: BTreeSet<CheckpointId>,
}

/// One attempt of one task.
#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) attempt: AttemptId,
    pub(crate) finished: bool,
    /// The checkpoint at which it has paused.
    pub(crate) paused: Option<CheckpointId>,
    pub(crate) restored: Option<CheckpointId>,
    /// The checkpoints that it has gone back to or taken part in.
    pub(crate) past: Vec<CheckpointId>,
}

#[derive(Debug)]
pub(crate) struct TaskManager {
    pub(crate) id: TaskManagerId,
    pub(crate) incarnation: u64,
    pub(crate) slots: u32,
    /// Its connection to the leader, while there is one.
    pub(crate) connection: Option<ConnectionId>,
    /// Its connection to a leader that has been succeeded, as long as it has not met the next one.
    pub(crate) old_connection: Option<ConnectionId>,
    pub(crate) tasks: BTreeMap<(JobId, TaskId), Execution>,
    /// The checkpoint and the finished tasks that each completed word was about, for the checks.
    pub(crate) completed: Vec<(JobId, CheckpointId)>,
    /// What it was told will never be published.
    pub(crate) aborted: Vec<(JobId, CheckpointId)>,
    /// The tasks that have left something here, or may when they are stopped.
    pub(crate) remains: BTreeSet<(JobId, TaskId)>,
    /// The images that it keeps for others.
    pub(crate) warm: BTreeMap<(JobId, TaskId), CheckpointId>,
    /// Where else the images of its tasks were said to be, when they were deployed.
    pub(crate) warm_at: BTreeMap<(JobId, TaskId), Vec<String>>,
    /// The modules that it was told to compile ahead.
    pub(crate) modules: Vec<ModuleHash>,
    /// At what it was told to pause.
    pub(crate) pauses: Vec<(JobId, CheckpointId)>,
    /// It was asked to leave.
    pub(crate) draining: bool,
    /// It was told that it may.
    pub(crate) drained: bool,
    worker: Worker,
}

pub(crate) fn image(job: JobId, task: TaskId, checkpoint: CheckpointId) -> ObjectRef {
    ObjectRef {
        key: format!("{job}/{checkpoint}/{task}"),
        len: 1,
        hash: [0; 32],
    }
}

impl TaskManager {
    pub(crate) fn new(name: &str, incarnation: u64, slots: u32) -> Self {
        Self {
            id: TaskManagerId(name.to_owned()),
            incarnation,
            slots,
            connection: None,
            old_connection: None,
            tasks: BTreeMap::new(),
            completed: Vec::new(),
            aborted: Vec::new(),
            remains: BTreeSet::new(),
            warm: BTreeMap::new(),
            warm_at: BTreeMap::new(),
            modules: Vec::new(),
            pauses: Vec::new(),
            draining: false,
            drained: false,
            worker: Worker::default(),
        }
    }

    pub(crate) fn registration(&self) -> Registration {
        Registration {
            id: self.id.clone(),
            incarnation: Incarnation(self.incarnation),
            data_address: format!("{}:1", self.id),
            slots: self.slots,
            cluster_config_hash: 7,
            version: String::new(),
            draining: self.draining,
            running: self.worker.running(),
            warm: self.warm_tasks(),
        }
    }

    fn warm_tasks(&self) -> Vec<WarmTask> {
        let warm = self.warm.iter().map(|((job, task), checkpoint)| WarmTask {
            job: *job,
            task: *task,
            checkpoint: *checkpoint,
        });
        warm.collect()
    }

    fn keep_warm(&mut self, images: &WarmImages, behaviour: &Behaviour) -> Option<ToLeader> {
        let (job, checkpoint) = (images.job, images.checkpoint);
        let tasks: BTreeSet<TaskId> = images.images.iter().map(|(task, _)| *task).collect();
        self.warm
            .retain(|(of, task), _| *of != job || tasks.contains(task));
        if tasks.is_empty() {
            let runs = &self.tasks;
            self.remains
                .retain(|key| key.0 != job || runs.contains_key(key));
        }
        if behaviour.warming_stalls || tasks.is_empty() {
            return None;
        }
        for (task, manifest) in &images.images {
            assert_eq!(*manifest, image(job, *task, checkpoint));
            let runs = self.tasks.contains_key(&(job, *task));
            assert!(!runs, "{task} is kept where it runs, on {}", self.id);
            self.warm.insert((job, *task), checkpoint);
        }
        Some(ToLeader::Warm(self.warm_tasks()))
    }

    /// Its registration is accepted.
    pub(crate) fn met(&mut self, epoch: Epoch) {
        self.worker.met(epoch).expect("the newest leader");
        for execution in self.tasks.values_mut() {
            execution.paused = None;
        }
    }

    /// Obeys, and answers.
    pub(crate) fn hear(&mut self, message: FromLeader, behaviour: &Behaviour) -> Vec<ToLeader> {
        self.obey(message, behaviour)
            .expect("the leader never says what is refused")
    }

    /// Obeys if it may, and answers.
    pub(crate) fn obey(
        &mut self,
        message: FromLeader,
        behaviour: &Behaviour,
    ) -> Result<Vec<ToLeader>, Disobeyed> {
        let mut answers = Vec::new();
        let actions = self.worker.handle(message)?;
        for action in actions {
            match action {
                WorkerAction::PrepareModule(module) => {
                    self.modules.push(module);
                }
                WorkerAction::KeepWarm(images) => {
                    answers.extend(self.keep_warm(&images, behaviour));
                }
                WorkerAction::Stop { job, task, .. } => {
                    self.tasks.remove(&(job, task));
                }
                WorkerAction::Start(deployment) => {
                    answers.extend(self.start(&deployment, behaviour));
                }
                WorkerAction::Checkpoint {
                    job,
                    task,
                    attempt,
                    checkpoint,
                    word,
                } => {
                    let answer = self.word(job, task, attempt, checkpoint, word, behaviour);
                    answers.extend(answer);
                }
                WorkerAction::FetchLogs { .. } => {}
                WorkerAction::Drained if self.old_connection.is_some() => {}
                WorkerAction::Drained => {
                    assert!(self.draining, "nobody is sent away");
                    assert!(self.tasks.is_empty(), "{:?} run here", self.tasks);
                    self.drained = true;
                }
            }
        }
        Ok(answers)
    }

    fn start(&mut self, deployment: &Deployment, behaviour: &Behaviour) -> Vec<ToLeader> {
        let (job, attempt) = (deployment.job, deployment.attempt);
        let mut answers = Vec::new();
        for task in &deployment.tasks {
            let expected = deployment
                .restore
                .map(|restore| image(job, task.task, restore));
            assert_eq!(
                task.image, expected,
                "the image is the task's in the restored checkpoint"
            );
            let id = task.task;
            let finished = false;
            let execution = Execution {
                attempt,
                finished,
                paused: None,
                restored: deployment.restore,
                past: deployment.restore.into_iter().collect(),
            };
            self.tasks.insert((job, id), execution);
            self.remains.insert((job, id));
            self.warm_at.insert((job, id), task.warm_at.clone());
            let damaged = deployment
                .restore
                .is_some_and(|id| behaviour.damaged.contains(&id));
            if damaged {
                self.tasks.remove(&(job, id));
                let state = TaskState::Unrestorable {
                    reason: "checksum".to_owned(),
                };
                answers.extend(self.changed(job, id, attempt, state));
            } else if !behaviour.deployments_stall {
                answers.extend(self.run(job, id));
            }
        }
        answers
    }

    /// A deployed task gets to run.
    pub(crate) fn run(&mut self, job: JobId, task: TaskId) -> Option<ToLeader> {
        let attempt = self.tasks.get(&(job, task))?.attempt;
        let timings = DeployTimings {
            module_us: 3,
            fetch_us: 2,
            restore_us: 1,
            ..DeployTimings::default()
        };
        self.changed(job, task, attempt, TaskState::Running { timings })
    }

    /// The rest of a running task's image turns out to be damaged.
    pub(crate) fn lose_image(&mut self, job: JobId, task: TaskId) -> Option<ToLeader> {
        let attempt = self.tasks.remove(&(job, task))?.attempt;
        let reason = "checksum".to_owned();
        self.changed(job, task, attempt, TaskState::Unrestorable { reason })
    }

    pub(crate) fn finish(&mut self, job: JobId, task: TaskId) -> Option<ToLeader> {
        let execution = self.tasks.get_mut(&(job, task))?;
        execution.finished = true;
        let attempt = execution.attempt;
        self.changed(job, task, attempt, TaskState::Finished)
    }

    pub(crate) fn fail(&mut self, job: JobId, task: TaskId) -> Option<ToLeader> {
        let attempt = self.tasks.remove(&(job, task))?.attempt;
        let failure = TaskFailure {
            blame: Blame::Job,
            message: "it panicked at record 1000".to_owned(),
            backtrace: vec![],
            last_log_lines: vec![],
            batch_preview: String::new(),
        };
        self.changed(job, task, attempt, TaskState::Failed(failure))
    }

    /// A commit that stalled is confirmed.
    pub(crate) fn commit(
        &mut self,
        job: JobId,
        task: TaskId,
        checkpoint: CheckpointId,
    ) -> Option<ToLeader> {
        let attempt = self.tasks.get(&(job, task))?.attempt;
        Some(ToLeader::Committed {
            job,
            attempt,
            task,
            checkpoint,
        })
    }

    fn changed(
        &mut self,
        job: JobId,
        task: TaskId,
        attempt: AttemptId,
        state: TaskState,
    ) -> Option<ToLeader> {
        self.worker
            .changed(job, task, attempt, state.clone())
            .then_some(ToLeader::TaskState {
                job,
                attempt,
                task,
                state,
            })
    }

    fn word(
        &mut self,
        job: JobId,
        task: TaskId,
        attempt: AttemptId,
        checkpoint: CheckpointId,
        word: CheckpointWord,
        behaviour: &Behaviour,
    ) -> Option<ToLeader> {
        let execution = self.tasks.get_mut(&(job, task))?;
        assert_eq!(execution.attempt, attempt);
        if let CheckpointWord::Announce { then_pause } = word {
            let pauses = then_pause && !behaviour.captures_stall;
            execution.paused = pauses.then_some(checkpoint);
            self.pauses.extend(then_pause.then_some((job, checkpoint)));
        } else if word == CheckpointWord::Abort {
            execution.paused = execution.paused.filter(|paused| *paused > checkpoint);
        }
        if matches!(word, CheckpointWord::Announce { .. }) && !behaviour.captures_stall {
            execution.past.push(checkpoint);
        }
        match word {
            CheckpointWord::Announce { .. } if !behaviour.captures_stall => Some(
                ToLeader::CheckpointAcknowledged(CheckpointAcknowledgement {
                    job,
                    attempt,
                    task,
                    checkpoint,
                    manifest: image(job, task, checkpoint),
                    finished: execution.finished,
                    stats: CaptureStats::default(),
                }),
            ),
            CheckpointWord::Complete => {
                let restored = execution.restored;
                assert!(
                    restored.is_none_or(|restored| restored <= checkpoint),
                    "a task never commits a checkpoint older than the one it went back to"
                );
                self.completed.push((job, checkpoint));
                let committed = ToLeader::Committed {
                    job,
                    attempt,
                    task,
                    checkpoint,
                };
                (!behaviour.commits_stall).then_some(committed)
            }
            CheckpointWord::Abort => {
                self.aborted.push((job, checkpoint));
                None
            }
            CheckpointWord::Announce { .. } => None,
        }
    }
}
