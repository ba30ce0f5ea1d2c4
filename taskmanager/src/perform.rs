//! Intentions out: a function per action of the [`Worker`](tidemill_core::worker::Worker), and the table of running
//! tasks that they act on. Nothing is decided here.

use std::collections::HashMap;
use std::sync::Arc;

use tidemill_core::worker::CheckpointWord;
use tidemill_protocol::control::{
    Blame, Deployment, Report, TaskDeployment, TaskFailure, TaskState, WarmImages, WarmTask,
};
use tidemill_protocol::split::SplitRequest;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, ModuleHash, TaskId};
use tidemill_runtime::InstanceLimits;
use tidemill_transport::{DataPlane, Endpoint};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error_chain;
use crate::exchange::wiring::{QueueLimits, RemoteChannel, Wiring, wire};
use crate::exchange::{Incoming, send_channel};
use crate::logs::Logs;
use crate::prepare::Sources;
use crate::survivors::Survivors;
use crate::task::{
    Execution, Prepared, TaskCommand, TaskEvent, TaskHandle, TaskSetup, failure, spawn,
};

/// What tasks are made with.
pub(crate) struct Resources {
    pub(crate) sources: Sources,
    pub(crate) plane: DataPlane,
    pub(crate) endpoint: Endpoint,
    pub(crate) incoming: Incoming,
    pub(crate) logs: Logs,
    pub(crate) limits: InstanceLimits,
    pub(crate) channel_queue_bytes: u64,
    pub(crate) channel_window_bytes: u64,
    pub(crate) exchange_memory_max_bytes: u64,
}

struct Entry {
    handle: TaskHandle,
    execution: Execution,
    deployment: Arc<Deployment>,
    /// Its share of what the deployment's channels may hold.
    channel_bytes: u64,
}

/// Carries out what was decided.
pub(crate) struct Performer {
    resources: Resources,
    tasks: HashMap<(JobId, TaskId), Entry>,
    survivors: Survivors,
}

impl Performer {
    pub(crate) fn new(resources: Resources) -> Self {
        Self {
            survivors: Survivors::new(resources.sources.runtime.clone()),
            resources,
            tasks: HashMap::new(),
        }
    }

    pub(crate) fn logs(&self) -> &Logs {
        &self.resources.logs
    }

    /// Stops a task and refuses its attempt's streams from now on.
    pub(crate) fn stop(&mut self, execution: Execution) {
        let key = (execution.job, execution.task);
        if self
            .tasks
            .get(&key)
            .is_some_and(|entry| entry.execution == execution)
            && let Some(entry) = self.tasks.remove(&key)
        {
            let remains = entry.handle.stop();
            self.survivors.keep(execution.job, execution.task, remains);
            self.resources.sources.images.stopped(execution);
        }
        self.resources
            .incoming
            .retire(execution.job, execution.attempt);
    }

    /// Stops every task.
    pub(crate) fn stop_all(&mut self) {
        for (_, entry) in self.tasks.drain() {
            drop(entry.handle.stop());
        }
    }

    /// Runs the tasks of a deployment.
    pub(crate) fn start(&mut self, deployment: Deployment) {
        let deployment = Arc::new(deployment);
        self.survivors.make_room(deployment.job);
        let tasks: Vec<TaskId> = deployment.tasks.iter().map(|task| task.task).collect();
        info!(job = %deployment.job, attempt = %deployment.attempt, tasks = tasks.len(), "deploying");
        if let Err(reason) = self.try_start(&deployment) {
            for task in tasks {
                let execution = Execution {
                    job: deployment.job,
                    task,
                    attempt: deployment.attempt,
                };
                self.send(TaskEvent::State {
                    execution,
                    state: TaskState::Failed(reason.clone()),
                });
            }
        }
    }

    fn try_start(&mut self, deployment: &Arc<Deployment>) -> Result<(), TaskFailure> {
        let Wiring {
            mut wires,
            remote,
            bytes,
        } = wire(deployment, self.queue_limits(), &self.resources.incoming)
            .map_err(|error| failure(Blame::Job, error.to_string()))?;
        let channel_bytes = bytes / (deployment.tasks.len().max(1) as u64);
        let mut stops: HashMap<TaskId, CancellationToken> = HashMap::new();
        for task in &deployment.tasks {
            let stop = CancellationToken::new();
            stops.insert(task.task, stop.clone());
            let wires = wires.remove(&task.task).unwrap_or_default();
            let execution = Execution {
                job: deployment.job,
                task: task.task,
                attempt: deployment.attempt,
            };
            let setup = TaskSetup {
                deployment: Arc::clone(deployment),
                task: task.task,
                limits: self.resources.limits,
                wires,
                log: self
                    .resources
                    .logs
                    .task(execution.job, execution.task, execution.attempt),
                store: self.resources.sources.store.clone(),
                images: self.resources.sources.images.clone(),
                events: self.resources.sources.events.clone(),
                runtime: self.resources.sources.runtime.clone(),
                stop: stop.clone(),
            };
            let (when_prepared, prepared) = oneshot::channel();
            self.prepare(deployment, task, stop, when_prepared);
            let handle = spawn(setup, prepared).map_err(|error| {
                failure(
                    Blame::Cluster,
                    format!("the system gives no thread for a task: {error}"),
                )
            })?;
            let entry = Entry {
                handle,
                execution,
                deployment: Arc::clone(deployment),
                channel_bytes,
            };
            self.tasks.insert((execution.job, execution.task), entry);
        }
        for channel in remote {
            let stop = stops.get(&channel.from).cloned().unwrap_or_default();
            self.pump(channel, stop);
        }
        Ok(())
    }

    fn queue_limits(&self) -> QueueLimits {
        QueueLimits {
            queue_bytes: self.resources.channel_queue_bytes,
            window_bytes: self.resources.channel_window_bytes,
            memory_max_bytes: self.resources.exchange_memory_max_bytes,
            held_bytes: self.tasks.values().map(|entry| entry.channel_bytes).sum(),
        }
    }

    fn prepare(
        &mut self,
        deployment: &Arc<Deployment>,
        task: &TaskDeployment,
        stop: CancellationToken,
        done: oneshot::Sender<Result<Prepared, TaskState>>,
    ) {
        let survivor = self.survivors.take(deployment.job, task.task);
        let sources = self.resources.sources.clone();
        let (deployment, task) = (Arc::clone(deployment), task.clone());
        self.resources.sources.runtime.spawn(async move {
            let prepared = tokio::select! {
                prepared = sources.prepare(&deployment, &task, survivor) => prepared,
                () = stop.cancelled() => return,
            };
            // A task that was stopped meanwhile does not listen.
            let _ = done.send(prepared);
        });
    }

    fn pump(&self, channel: RemoteChannel, stop: CancellationToken) {
        let (plane, events) = (
            self.resources.plane.clone(),
            self.resources.sources.events.clone(),
        );
        let endpoint = self.resources.endpoint.clone();
        self.resources.sources.runtime.spawn(async move {
            let RemoteChannel {
                header, to, queue, ..
            } = channel;
            let result = match endpoint.resolve(&to.address).await {
                Ok(address) => send_channel(plane, address, header, queue, stop)
                    .await
                    .map_err(|error| error_chain(&error)),
                Err(error) => Err(error_chain(&error)),
            };
            if let Err(reason) = result {
                let (job, attempt, peer) = (header.job, header.attempt, to.task_manager);
                let _ = events.send(TaskEvent::ChannelBroken {
                    job,
                    attempt,
                    peer,
                    reason,
                });
            }
        });
    }

    /// Tells a task the leader's word about a checkpoint.
    pub(crate) fn word(
        &self,
        execution: Execution,
        checkpoint: CheckpointId,
        word: CheckpointWord,
    ) {
        if let Some(entry) = self.tasks.get(&(execution.job, execution.task))
            && entry.execution == execution
        {
            entry.handle.tell(TaskCommand::Checkpoint(checkpoint, word));
        }
    }

    /// A leader has been met: checkpoints of those before it are over, whatever barriers of them are still on their way.
    pub(crate) fn leader_met(&self, epoch: Epoch) {
        let before_all_of_its_own = CheckpointId::new(epoch, 0);
        for entry in self.tasks.values() {
            let over = TaskCommand::Checkpoint(before_all_of_its_own, CheckpointWord::Abort);
            entry.handle.tell(over);
        }
    }

    /// The leader is lost, and with it the checkpoint that is under way.
    pub(crate) fn leader_lost(&self) {
        for entry in self.tasks.values() {
            entry.handle.tell(TaskCommand::LeaderLost);
        }
    }

    /// Brings a request for splits to its enumerator, here or elsewhere.
    pub(crate) fn split_wanted(&self, request: SplitRequest) {
        if self.hint(request) {
            return;
        }
        let of_attempt = |entry: &&Entry| {
            entry.execution.job == request.job && entry.execution.attempt == request.attempt
        };
        let Some(entry) = self.tasks.values().find(of_attempt) else {
            return;
        };
        let location = entry
            .deployment
            .locations
            .iter()
            .find(|location| location.task == request.enumerator);
        if let Some(address) = location.map(|location| location.address.clone()) {
            let (plane, endpoint) = (
                self.resources.plane.clone(),
                self.resources.endpoint.clone(),
            );
            self.resources.sources.runtime.spawn(async move {
                if let Ok(address) = endpoint.resolve(&address).await {
                    plane.send_hint(address, &request);
                }
            });
        }
    }

    /// Hands a request for splits to an enumerator that runs here; `false` when it does not.
    pub(crate) fn hint(&self, request: SplitRequest) -> bool {
        let entry = self.tasks.get(&(request.job, request.enumerator));
        let here = entry.filter(|entry| entry.execution.attempt == request.attempt);
        if let Some(entry) = here {
            entry.handle.tell(TaskCommand::Split(request));
        }
        here.is_some()
    }

    /// Whether a task of this attempt runs here.
    pub(crate) fn runs(&self, job: JobId, attempt: AttemptId) -> bool {
        let of = |entry: &Entry| (entry.execution.job, entry.execution.attempt) == (job, attempt);
        self.tasks.values().any(of)
    }

    /// Compiles a module ahead.
    pub(crate) fn prepare_module(&self, module: ModuleHash) {
        let modules = Arc::clone(&self.resources.sources.modules);
        self.resources.sources.runtime.spawn(async move {
            if let Err(error) = modules.get(module).await {
                warn!(%module, "a module was not compiled ahead, and is tried again when a task needs it: {}", error_chain(&error));
            }
        });
    }

    /// Keeps images of a job's tasks that run elsewhere, and what else they need there.
    pub(crate) fn keep_warm(&mut self, images: WarmImages) {
        if images.images.is_empty() {
            self.survivors.forget(images.job);
        } else {
            self.prepare_module(images.module);
        }
        self.resources.sources.images.keep_warm(images);
    }

    /// The images that are here for tasks that run elsewhere.
    pub(crate) fn warm(&self) -> Vec<WarmTask> {
        self.resources.sources.images.warm()
    }

    /// Gives up what stopped tasks have left and nobody has come for.
    pub(crate) fn expire(&mut self) {
        self.survivors.expire();
    }

    /// What every task has done so far.
    pub(crate) fn report(&self) -> Report {
        Report {
            tasks: self
                .tasks
                .values()
                .map(|entry| entry.handle.progress(entry.execution))
                .collect(),
        }
    }

    fn send(&self, event: TaskEvent) {
        if self.resources.sources.events.send(event).is_err() {
            warn!("the driver is gone");
        }
    }
}
