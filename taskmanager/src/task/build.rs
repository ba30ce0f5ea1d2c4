//! Builds a task on its own thread: makes or restores its body and everything around it, then runs it. Whatever goes
//! wrong, including a panic, becomes the task's failure and nobody else's.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_abi::{LogLevel, OpenRequest, Output, StageInput};
use tidemill_connectors::{Enumerator, LineOutput, SinkIdentity, SinkWriter, SourceReader};
use tidemill_core::Alignment;
use tidemill_protocol::codec;
use tidemill_protocol::control::{Blame, DeployTimings, Deployment, TaskFailure, TaskState};
use tidemill_protocol::split::SplitRequest;
use tidemill_protocol::{ExecutionStage, Routing, StageKind, TaskId};
use tidemill_runtime::{GUEST_STACK_BYTES, Instance, InstanceLimits, Module};
use tidemill_storage::{ImageChain, Store};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::ahead::Ahead;
use super::body::{Body, EnumeratorBody, WasmBody, call_failure};
use super::capture::Capturing;
use super::counters::{Counters, micros};
use super::inputs::{Input, InputRole, Inputs};
use super::mailbox::{Mailbox, mailbox};
use super::outputs::{Lane, OutputChannel, Outputs};
use super::recorded::Recorded;
use super::runner::{Feed, Runner};
use super::splits::SplitRequests;
use super::state::HostState;
use super::watermarks::Watermarks;
use super::{Execution, Remains, Restorable, TaskEvent, TaskHandle, failure};
use crate::error_chain;
use crate::exchange::wiring::Wires;
use crate::images::Images;
use crate::logs::TaskLog;

/// The host's own need of stack, beyond the guest's.
const HOST_STACK_BYTES: usize = 1 << 20;

/// Log lines that a failure carries.
const LAST_LINES: u32 = 20;

/// Everything a task is made of.
pub(crate) struct TaskSetup {
    pub(crate) deployment: Arc<Deployment>,
    pub(crate) task: TaskId,
    pub(crate) limits: InstanceLimits,
    pub(crate) wires: Wires,
    pub(crate) log: TaskLog,
    pub(crate) store: Store,
    pub(crate) images: Images,
    pub(crate) events: UnboundedSender<TaskEvent>,
    pub(crate) runtime: Handle,
    pub(crate) stop: CancellationToken,
}

/// What a task waits for before it can be built: whatever had to be fetched.
pub(crate) struct Prepared {
    /// `None` for native tasks.
    pub(crate) module: Option<Module>,
    /// What to go on from; `None` begins anew.
    pub(crate) image: Option<Restorable>,
    pub(crate) timings: DeployTimings,
}

/// Comes when everything is fetched; a sender that is dropped means that the task is not wanted any more. An error is
/// the state in which the task ends.
pub(crate) type WhenPrepared = oneshot::Receiver<Result<Prepared, TaskState>>;

/// Starts a task's thread, which first waits for what is being fetched.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn spawn(setup: TaskSetup, prepared: WhenPrepared) -> std::io::Result<TaskHandle> {
    let (commands, mailbox) = mailbox();
    let (hand_over, remains) = oneshot::channel();
    let counters = Arc::new(Counters::default());
    let execution = Execution {
        job: setup.deployment.job,
        task: setup.task,
        attempt: setup.deployment.attempt,
    };
    let stop = setup.stop.clone();
    let thread = {
        let counters = Arc::clone(&counters);
        std::thread::Builder::new()
            .name(format!("task {}", execution.task))
            .stack_size(GUEST_STACK_BYTES + HOST_STACK_BYTES)
            .spawn(move || {
                let seat = Seat {
                    execution,
                    mailbox,
                    counters,
                    began: Instant::now(),
                    timings: DeployTimings::default(),
                    chain: ImageChain::new(),
                    hand_over: Some(hand_over),
                };
                thread_main(setup, prepared, seat);
            })?
    };
    Ok(TaskHandle {
        commands,
        thread: thread.thread().clone(),
        stop,
        counters,
        remains,
    })
}

fn thread_main(setup: TaskSetup, prepared: WhenPrepared, seat: Seat) {
    let (events, log, stop) = (setup.events.clone(), setup.log.clone(), setup.stop.clone());
    let execution = seat.execution;
    let end = match prepared.blocking_recv() {
        Err(_) => return,
        Ok(Err(end)) => Some(end),
        Ok(Ok(prepared)) => {
            let seat = Seat {
                began: Instant::now(),
                ..seat
            };
            let stored = prepared.image.as_ref().and_then(Restorable::stored);
            let run = || build_and_run(setup, prepared, seat);
            let result =
                catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(panicked(&*panic)));
            // Where the image could not be read, that was the reason, and it has been said.
            let is_said = stored.is_some_and(|stored| stored.has_failed());
            result.err().filter(|_| !is_said).map(TaskState::Failed)
        }
    };
    let Some(end) = end.filter(|_| !stop.is_cancelled()) else {
        return;
    };
    let state = match end {
        TaskState::Failed(failure) => {
            // Read first: the failure's own words are told beside them.
            let last_log_lines = log.last(LAST_LINES);
            log.host(&failure.message);
            TaskState::Failed(TaskFailure {
                last_log_lines,
                ..failure
            })
        }
        other => other,
    };
    // The driver outlives every task; when it is gone the process ends.
    let _ = events.send(TaskEvent::State { execution, state });
    stop.cancel();
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> TaskFailure {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    failure(
        Blame::Bug,
        format!(
            "the task's thread panicked: {}",
            text.unwrap_or("no message")
        ),
    )
}

fn build_and_run(mut setup: TaskSetup, prepared: Prepared, seat: Seat) -> Result<(), TaskFailure> {
    let Prepared {
        module,
        image,
        timings,
    } = prepared;
    let chain = image.as_ref().map(|image| image.chain.clone());
    let seat = Seat {
        timings,
        chain: chain.unwrap_or_default(),
        ..seat
    };
    let host = image
        .as_ref()
        .map(|image| codec::decode::<HostState>(&image.head.host_state))
        .transpose();
    let host = host.map_err(|error| failure(Blame::Cluster, error_chain(&error)))?;
    if let Some(image) = &image {
        bring_back(&setup.wires, &image.head.channel_state)?;
    }
    let (deployment, task) = (Arc::clone(&setup.deployment), setup.task);
    let no_task = || failure(Blame::Bug, format!("the graph has no task {task}"));
    let stage = deployment.graph.stage(task).ok_or_else(no_task)?;
    let outputs = Outputs::new(lanes(&mut setup, stage, host.as_ref())?, setup.log.clone());
    match &stage.kind {
        StageKind::Enumerator { connector } => {
            let enumerator = match &host {
                None => Enumerator::start(connector, enumerated_subtasks(&deployment, task)),
                Some(host) => Enumerator::restore(connector, &host.body),
            };
            let enumerator =
                enumerator.map_err(|error| failure(Blame::Job, error_chain(&error)))?;
            run(
                setup,
                seat,
                EnumeratorBody::new(enumerator, outputs),
                Feed::Polled,
                host,
            )
        }
        StageKind::Wasm { input, .. } => {
            let feed = feed(input, &setup, stage, host.as_ref())?;
            let no_module = || failure(Blame::Bug, "a Wasm task has no module".to_owned());
            let module = module.ok_or_else(no_module)?;
            let (instance, restored_bytes) = match image {
                Some(image) => image.restore(&module, setup.limits, outputs)?,
                None => (open(&module, &setup, stage, outputs)?, 0),
            };
            let timings = DeployTimings {
                restored_bytes,
                ..seat.timings
            };
            let seat = Seat { timings, ..seat };
            run(setup, seat, WasmBody::new(instance), feed, host)
        }
    }
}

/// Where a task runs: what its thread was given when it started.
pub(super) struct Seat {
    pub(super) execution: Execution,
    pub(super) mailbox: Mailbox,
    pub(super) counters: Arc<Counters>,
    pub(super) began: Instant,
    pub(super) timings: DeployTimings,
    /// What is stored of the task.
    pub(super) chain: ImageChain,
    /// Takes what the task leaves when it ends.
    pub(super) hand_over: Option<oneshot::Sender<Remains>>,
}

pub(super) fn run<B: Body>(
    mut setup: TaskSetup,
    seat: Seat,
    mut body: B,
    feed: Feed,
    host: Option<HostState>,
) -> Result<(), TaskFailure> {
    let Seat {
        execution,
        mailbox,
        counters,
        began,
        timings,
        chain,
        hand_over,
    } = seat;
    if let (Some(checkpoint), Some(_)) = (setup.deployment.restore, &host) {
        // The checkpoint is published: what it prepared is committed, by this attempt if no earlier one came to it.
        body.outputs().commit(checkpoint)?;
    }
    let inputs = inputs(&mut setup);
    let alignment = alignment(&setup, &inputs, host.as_ref());
    let watermarks = watermarks(&inputs, &alignment, host.as_ref());
    let splits = split_requests(&inputs, &setup, execution);
    let capturing = Capturing::new(
        execution,
        setup.store,
        setup.runtime,
        setup.events,
        setup.stop,
        chain,
    );
    let restored = setup.deployment.restore.filter(|_| host.is_some());
    let capturing = capturing.keeping(restored, setup.images);
    let timings = DeployTimings {
        restore_us: micros(began.elapsed()),
        ..timings
    };
    capturing.report(TaskState::Running { timings });
    let host = host.unwrap_or_default();
    let now = Instant::now();
    let mut runner = Runner {
        body,
        feed,
        inputs: Inputs::new(inputs),
        alignment,
        watermarks,
        splits,
        mailbox,
        capturing,
        ahead: Ahead::default(),
        counters,
        started: now,
        phase: host.phase,
        unfinished_call: host.unfinished_call,
        source_ended: host.source_ended,
        timer_at_ms: host.timer_at_ms,
        poll_at_ms: None,
        now_ms: host.now_ms,
        unflushed: false,
        flushed_at: now,
        counted_at: now,
        batch: Vec::new(),
    };
    let ended = runner.run();
    if let Some(hand_over) = hand_over {
        leave(runner, hand_over);
    }
    ended
}

fn alignment(setup: &TaskSetup, inputs: &[Input], host: Option<&HostState>) -> Alignment {
    let ended_channels = host.map_or(&[][..], |host| &host.ended_channels);
    let ended = (0..)
        .zip(inputs)
        .filter(|(_, input)| ended_channels.contains(&input.channel))
        .map(|(index, _)| index);
    let timeout_ms = setup.deployment.aligned_checkpoint_timeout_ms;
    let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
    Alignment::new(inputs.len(), ended, timeout)
}

/// Leaves the instance to whoever comes next.
fn leave<B: Body>(runner: Runner<B>, hand_over: oneshot::Sender<Remains>) {
    let Runner {
        body, capturing, ..
    } = runner;
    if let Some(instance) = body.into_instance() {
        let changed = capturing.into_changed();
        // Nobody takes it when the task has been given up meanwhile.
        let _ = hand_over.send(Remains { instance, changed });
    }
}

/// The instance of a Wasm task that begins anew.
fn open(
    module: &Module,
    setup: &TaskSetup,
    stage: &ExecutionStage,
    outputs: Outputs,
) -> Result<Instance<Outputs>, TaskFailure> {
    let broken = |error: &dyn std::error::Error| failure(Blame::Job, error_chain(error));
    let mut instance =
        Instance::new(module, setup.limits, outputs).map_err(|error| broken(&error))?;
    let deployment = &setup.deployment;
    let output_parallelism = match &stage.kind {
        StageKind::Enumerator { .. } => Vec::new(),
        StageKind::Wasm { outputs, .. } => outputs
            .iter()
            .map(|output| match output {
                Output::Edge { to, .. } => deployment.graph.stages[*to as usize].parallelism,
                Output::Sink(_) => 1,
            })
            .collect(),
    };
    let request = OpenRequest {
        stage: setup.task.stage,
        subtask: setup.task.subtask,
        parallelism: stage.parallelism,
        max_parallelism: deployment.graph.max_parallelism,
        output_parallelism,
        parameters: deployment.parameters.clone(),
    };
    match instance.open(&request) {
        Err(error) => Err(call_failure(&error)),
        Ok(Err(reason)) => Err(failure(Blame::Job, format!("the module could not open: {reason}"))),
        Ok(Ok(hash)) if hash != deployment.graph.job_graph_hash => Err(failure(
            Blame::Job,
            "the module built another graph than the one that was stored at submission: its job function must depend on nothing but its parameters".to_owned(),
        )),
        Ok(Ok(_)) => Ok(instance),
    }
}

fn feed(
    input: &StageInput,
    setup: &TaskSetup,
    stage: &ExecutionStage,
    host: Option<&HostState>,
) -> Result<Feed, TaskFailure> {
    let connector = match input {
        StageInput::Edges => return Ok(Feed::None),
        StageInput::Guest => return Ok(Feed::Polled),
        StageInput::Connector(connector) => connector,
    };
    let subtask = setup.task.subtask;
    let reader = match host.and_then(|host| host.reader.as_deref()) {
        None => SourceReader::start(connector, subtask, stage.parallelism),
        Some(state) => SourceReader::restore(connector, subtask, stage.parallelism, state),
    };
    reader
        .map(|reader| Feed::Reader(Box::new(reader)))
        .map_err(|error| failure(Blame::Job, error_chain(&error)))
}

/// The outputs of the task, by the stage's own numbering.
pub(super) fn lanes(
    setup: &mut TaskSetup,
    stage: &ExecutionStage,
    host: Option<&HostState>,
) -> Result<Vec<Lane>, TaskFailure> {
    let mut by_output: BTreeMap<u32, Vec<OutputChannel>> = BTreeMap::new();
    for (channel, queue) in std::mem::take(&mut setup.wires.outgoing) {
        let output = setup.deployment.graph.edges[channel.id.edge as usize].from_output;
        by_output
            .entry(output)
            .or_default()
            .push(OutputChannel::new(queue));
    }
    let StageKind::Wasm { outputs, .. } = &stage.kind else {
        return Ok(vec![Lane::Channels(
            by_output.remove(&0).unwrap_or_default(),
        )]);
    };
    let mut lanes = Vec::with_capacity(outputs.len());
    for (index, output) in (0u32..).zip(outputs) {
        lanes.push(match output {
            Output::Edge { .. } => Lane::Channels(by_output.remove(&index).unwrap_or_default()),
            Output::Sink(connector) => {
                let state = host.and_then(|host| host.sinks.iter().find(|(of, _)| *of == index));
                let identity = SinkIdentity {
                    job: setup.deployment.job,
                    stage: setup.task.stage,
                    output: index,
                    subtask: setup.task.subtask,
                    attempt: setup.deployment.attempt,
                };
                let log = setup.log.clone();
                let lines: LineOutput = Box::new(move |line| log.guest(LogLevel::Out, line));
                let writer = match state {
                    None => SinkWriter::start(connector, identity, lines),
                    Some((_, state)) => SinkWriter::restore(connector, identity, lines, state),
                };
                Lane::Sink(Box::new(
                    writer.map_err(|error| failure(Blame::Cluster, error_chain(&error)))?,
                ))
            }
        });
    }
    Ok(lanes)
}

/// Frames that are part of the image come first on their channels.
fn bring_back(wires: &Wires, channel_state: &[u8]) -> Result<(), TaskFailure> {
    let recorded = Recorded::decode(channel_state)
        .map_err(|error| failure(Blame::Cluster, error_chain(&error)))?;
    for (channel, queue) in &wires.incoming {
        queue.put_first(recorded.frames(channel.id));
    }
    Ok(())
}

fn inputs(setup: &mut TaskSetup) -> Vec<Input> {
    let edges = &setup.deployment.graph.edges;
    std::mem::take(&mut setup.wires.incoming)
        .into_iter()
        .map(|(channel, queue)| {
            let edge = &edges[channel.id.edge as usize];
            let role = match edge.routing {
                Routing::Splits => InputRole::Splits,
                Routing::Forward | Routing::AllToAll => InputRole::Records { port: edge.to_port },
            };
            Input {
                channel: channel.id,
                role,
                queue,
            }
        })
        .collect()
}

fn watermarks(inputs: &[Input], alignment: &Alignment, host: Option<&HostState>) -> Watermarks {
    let mut watermarks = Watermarks::new(inputs.iter().map(|input| match input.role {
        InputRole::Records { port } => Some(port),
        InputRole::Splits => None,
    }));
    for (index, input) in inputs.iter().enumerate() {
        let saved = host.and_then(|host| {
            host.watermarks
                .iter()
                .find(|(channel, _)| *channel == input.channel)
        });
        if let Some((_, timestamp_ms)) = saved {
            watermarks.advance(index, *timestamp_ms);
        }
        if alignment.ended(index) {
            watermarks.end(index);
        }
    }
    watermarks
}

fn split_requests(
    inputs: &[Input],
    setup: &TaskSetup,
    execution: Execution,
) -> Option<SplitRequests> {
    let input = inputs
        .iter()
        .find(|input| input.role == InputRole::Splits)?;
    let edge = &setup.deployment.graph.edges[input.channel.edge as usize];
    let request = SplitRequest {
        job: execution.job,
        attempt: execution.attempt,
        enumerator: TaskId::new(edge.from, input.channel.from),
        subtask: execution.task.subtask,
        wanted_total: 0,
    };
    Some(SplitRequests::new(request, setup.events.clone()))
}

/// How many subtasks the enumerator serves.
fn enumerated_subtasks(deployment: &Deployment, enumerator: TaskId) -> u32 {
    let edge = deployment
        .graph
        .edges
        .iter()
        .find(|edge| edge.from == enumerator.stage);
    edge.map_or(0, |edge| {
        deployment.graph.stages[edge.to as usize].parallelism
    })
}
