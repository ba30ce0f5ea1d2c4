//! The two laws of the exchange, on random graphs with real threads, queues, alignment and captures: nothing ever waits
//! for ever, whatever the shape, the rates and the bounds while barriers are in flight; and every checkpoint is a
//! consistent cut (what a sender had sent when it was captured is what the receiver had received).

mod captures;
mod hand_over;
mod peers;
mod revert;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tidemill_abi::{Output, Partitioning, StageInput, Status, Step, TARGET_ALL};
use tidemill_core::worker::CheckpointWord;
use tidemill_protocol::codec::{self, Versioned};
use tidemill_protocol::control::{
    DeployTimings, Deployment, TaskDeployment, TaskFailure, TaskLocation, TaskState,
};
use tidemill_protocol::image::StoredCapture;
use tidemill_protocol::split::SplitRequest;
use tidemill_protocol::{
    AttemptId, Channel, CheckpointId, Epoch, ExecutionEdge, ExecutionGraph, ExecutionStage,
    FrameBody, JobId, ModuleHash, Routing, StageKind, TaskId, TaskManagerId,
};
use tidemill_runtime::{CaptureRoom, GuestHost, InstanceLimits};
use tidemill_storage::{ImageChain, Store};
use tidemill_transport::{Credentials, DataPlane, Endpoint, TransportOptions};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::body::{Body, Call, Records};
use super::build::{Seat, lanes, run};
use super::capture::Change;
use super::mailbox::mailbox;
use super::outputs::Outputs;
use super::recorded::Recorded;
use super::runner::Feed;
use super::state::HostState;
use super::{Execution, TaskCommand, TaskEvent, TaskHandle, TaskSetup, counters::Counters};
use crate::exchange::wiring::{QueueLimits, Wires, Wiring, wire};
use crate::exchange::{Incoming, OnBroken, send_channel};
use crate::images::Images;
use crate::logs::Logs;

const JOB: JobId = JobId([7; 16]);
const ATTEMPT: AttemptId = AttemptId::new(Epoch(1), 1);

/// Nothing in these graphs takes more than milliseconds; a wait this long is for ever.
const FOREVER: Duration = Duration::from_secs(60);

/// One batch: who sent it and which of that sender's batches to this receiver it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Stamp {
    edge: u32,
    from: u32,
    number: u64,
}

/// How many batches a task has sent to and received from each of its channels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    sent: BTreeMap<(u32, u32), u64>,
    received: BTreeMap<(u32, u32), u64>,
}

impl Versioned for Counts {
    const KIND: [u8; 2] = *b"TC";
    const VERSION: u16 = 1;
    const NAME: &'static str = "test counts";
}

impl Counts {
    /// Receives a batch, which must be the next one.
    fn receive_one(&mut self, batch: &[u8], task: TaskId) {
        let stamp = stamp_of(batch);
        let next = self.received.entry((stamp.edge, stamp.from)).or_default();
        assert_eq!(*next, stamp.number, "task {task} lost or reordered a batch");
        *next += 1;
    }

    /// Receives what was recorded of channels.
    fn receive(&mut self, channels: impl Iterator<Item = Channel>, recorded: &Recorded) {
        for channel in channels {
            for frame in recorded.frames(channel.id) {
                if let FrameBody::Data(batch) = frame.body {
                    self.receive_one(&batch, channel.to);
                }
            }
        }
    }
}

/// Relays each batch to a few targets; a source makes `polls_left` of them. Checks order and completeness as it goes.
struct Relay {
    task: TaskId,
    /// For each output: its edge, routing, number of targets.
    edges: Vec<(u32, Routing, u32)>,
    outputs: Outputs,
    counts: Counts,
    polls_left: u32,
    batch_bytes: usize,
    state: u64,
}

impl Relay {
    fn draw(&mut self, bound: u32) -> u32 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % u64::from(bound)) as u32
    }

    fn send(&mut self, output: usize, target: u32) {
        let (edge, _, _) = self.edges[output];
        let number = self.counts.sent.entry((edge, target)).or_default();
        let stamp = Stamp {
            edge,
            from: self.task.subtask,
            number: *number,
        };
        *number += 1;
        let mut batch = serde_bytes_of(stamp);
        batch.resize(batch.len().max(self.batch_bytes), 0);
        self.outputs.emit(
            output as u32,
            if self.edges[output].1 == Routing::Forward {
                0
            } else {
                target
            },
            &batch,
        );
    }

    fn relay(&mut self) {
        for output in 0..self.edges.len() {
            let (_, routing, targets) = self.edges[output];
            match routing {
                Routing::Forward => self.send(output, self.task.subtask),
                _ => {
                    let target = self.draw(targets);
                    self.send(output, target);
                }
            }
        }
    }
}

fn serde_bytes_of(stamp: Stamp) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&stamp.edge.to_le_bytes());
    bytes.extend_from_slice(&stamp.from.to_le_bytes());
    bytes.extend_from_slice(&stamp.number.to_le_bytes());
    bytes
}

fn stamp_of(batch: &[u8]) -> Stamp {
    let part = |at: usize| u32::from_le_bytes(batch[at..at + 4].try_into().expect("four bytes"));
    let number = u64::from_le_bytes(batch[8..16].try_into().expect("eight bytes"));
    Stamp {
        edge: part(0),
        from: part(4),
        number,
    }
}

impl Body for Relay {
    fn call(&mut self, call: Call<'_>, _now_ms: u64) -> Result<Step, TaskFailure> {
        match call {
            Call::Process { batch, .. } => {
                self.counts.receive_one(batch, self.task);
                self.relay();
                Ok(Step::DONE)
            }
            Call::Poll if self.polls_left == 0 => Ok(Step {
                status: Status::Ended,
                deadline_ms: None,
            }),
            Call::Poll => {
                self.polls_left -= 1;
                self.relay();
                Ok(Step {
                    status: Status::More,
                    deadline_ms: None,
                })
            }
            _ => Ok(Step::DONE),
        }
    }

    fn flush(&mut self) -> Result<(), TaskFailure> {
        self.outputs.take_failure()
    }

    fn hint(&mut self, _request: &SplitRequest) {}

    fn capture(&mut self, _: Vec<Range<u32>>, _: CaptureRoom) -> Result<Change, TaskFailure> {
        Ok(Change {
            capture: StoredCapture::default(),
            whole: true,
        })
    }

    fn native_state(&self) -> Vec<u8> {
        codec::encode(&self.counts)
    }

    fn records(&mut self) -> Records {
        Records::default()
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn outputs(&mut self) -> &mut Outputs {
        &mut self.outputs
    }
}

/// A random graph: parallelism of each stage, edges from lower to higher stages, and the load on it.
#[derive(Clone, Debug)]
struct Scenario {
    parallelism: Vec<u32>,
    edges: Vec<(usize, usize, bool)>,
    polls: u32,
    batch_bytes: usize,
    queue_bytes: u64,
    /// TaskManagers that the tasks are spread over, joined by real QUIC connections.
    nodes: u32,
    /// The flow-control window of each remote channel.
    window_bytes: u32,
    /// How long barriers are waited for, in milliseconds; 0 for ever.
    aligned_timeout_ms: u64,
    seed: u64,
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let shape = (2usize..6).prop_flat_map(|stages| {
        let edge = (0..stages - 1, 0..stages, any::<bool>());
        (
            proptest::collection::vec(1u32..4, stages),
            proptest::collection::vec(edge, 0..6),
        )
    });
    let load = (1u32..60, 16usize..400, 1u64..2000);
    let spread = (
        1u32..3,
        64u32..4096,
        prop_oneof![Just(0u64), Just(1), Just(3)],
    );
    (shape, load, spread, any::<u64>()).prop_map(
        |((parallelism, extra), (polls, batch_bytes, queue_bytes), spread, seed)| {
            let (nodes, window_bytes, aligned_timeout_ms) = spread;
            // Every stage but the first has an input from some stage before it; more edges come at random.
            let mut edges: BTreeSet<(usize, usize, bool)> = (1..parallelism.len())
                .map(|to| (seed as usize % to, to, true))
                .collect();
            edges.extend(extra.into_iter().filter(|(from, to, _)| from < to));
            let edges = edges.into_iter().collect();
            Scenario {
                parallelism,
                edges,
                polls,
                batch_bytes,
                queue_bytes,
                nodes,
                window_bytes,
                aligned_timeout_ms,
                seed,
            }
        },
    )
}

impl Scenario {
    fn graph(&self) -> ExecutionGraph {
        let mut edges = Vec::new();
        let mut stages: Vec<ExecutionStage> = Vec::new();
        for (index, parallelism) in self.parallelism.iter().enumerate() {
            let mut outputs = Vec::new();
            for (from, to, all) in self.edges.iter().filter(|(from, _, _)| *from == index) {
                let routing = if *all || self.parallelism[*from] != self.parallelism[*to] {
                    Routing::AllToAll
                } else {
                    Routing::Forward
                };
                edges.push(ExecutionEdge {
                    from: *from as u32,
                    from_output: outputs.len() as u32,
                    to: *to as u32,
                    to_port: 0,
                    routing,
                });
                outputs.push(Output::Edge {
                    to: *to as u32,
                    port: 0,
                    partitioning: Partitioning::Rebalance,
                });
            }
            let source = !self.edges.iter().any(|(_, to, _)| *to == index);
            let input = if source {
                StageInput::Guest
            } else {
                StageInput::Edges
            };
            let kind = StageKind::Wasm {
                input,
                ports: u32::from(!source),
                outputs,
            };
            stages.push(ExecutionStage {
                name: format!("stage {index}"),
                kind,
                parallelism: *parallelism,
            });
        }
        ExecutionGraph {
            stages,
            edges,
            max_parallelism: 128,
            job_graph_hash: 0,
        }
    }
}

struct Job {
    handles: BTreeMap<TaskId, TaskHandle>,
    threads: Vec<std::thread::JoinHandle<()>>,
    events: mpsc::UnboundedReceiver<TaskEvent>,
    store: Store,
    /// Dropped before the runtime that drives them.
    nodes: Vec<Node>,
    runtime: Runtime,
    graph: ExecutionGraph,
}

/// One TaskManager's share of the exchange.
struct Node {
    id: TaskManagerId,
    endpoint: Endpoint,
    plane: DataPlane,
    incoming: Incoming,
}

fn node(index: u32, credentials: &Credentials, window_bytes: u32) -> Node {
    let options = TransportOptions {
        channel_window_bytes: window_bytes,
        ..TransportOptions::default()
    };
    let local = "127.0.0.1:0".parse().expect("an address");
    let endpoint = Endpoint::bind(local, credentials, options).expect("a free port");
    let plane = DataPlane::new(endpoint.clone());
    let broken: OnBroken = Arc::new(|header, _, error| panic!("{} broke: {error}", header.channel));
    let incoming = Incoming::new(tokio::runtime::Handle::current(), broken);
    tokio::spawn(crate::accept_connections(endpoint.clone(), plane.clone()));
    tokio::spawn(crate::accept_channels(plane.clone(), incoming.clone()));
    Node {
        id: TaskManagerId(format!("node {index}")),
        endpoint,
        plane,
        incoming,
    }
}

/// Every task's wires, with pumps between the nodes.
fn wire_all(
    graph: &ExecutionGraph,
    nodes: &[Node],
    scenario: &Scenario,
) -> (BTreeMap<TaskId, Wires>, Arc<Deployment>) {
    let node_of = |task: TaskId| &nodes[(task.stage + task.subtask) as usize % nodes.len()];
    let locations = graph.tasks().map(|task| TaskLocation {
        task,
        task_manager: node_of(task).id.clone(),
        address: node_of(task).endpoint.local_address().to_string(),
    });
    let whole = Deployment {
        job: JOB,
        job_name: "law".to_owned(),
        attempt: ATTEMPT,
        module: ModuleHash([0; 32]),
        parameters: BTreeMap::new(),
        graph: graph.clone(),
        tasks: Vec::new(),
        locations: locations.collect(),
        restore: None,
        aligned_checkpoint_timeout_ms: scenario.aligned_timeout_ms,
    };
    let limits = QueueLimits {
        queue_bytes: scenario.queue_bytes,
        window_bytes: 0,
        memory_max_bytes: u64::MAX,
        held_bytes: 0,
    };
    let mut wires = BTreeMap::new();
    for node in nodes {
        let here = graph.tasks().filter(|task| node_of(*task).id == node.id);
        let tasks = here
            .map(|task| TaskDeployment {
                task,
                image: None,
                warm_at: Vec::new(),
            })
            .collect();
        let share = Deployment {
            tasks,
            ..whole.clone()
        };
        let Wiring {
            wires: ends,
            remote,
            ..
        } = wire(&share, limits, &node.incoming).expect("everything has a location");
        wires.extend(ends);
        for channel in remote {
            let (plane, stop) = (node.plane.clone(), CancellationToken::new());
            let address = channel.to.address.parse().expect("an address");
            tokio::spawn(async move {
                let sent = send_channel(plane, address, channel.header, channel.queue, stop).await;
                sent.expect("nothing breaks a connection here");
            });
        }
    }
    (wires, Arc::new(whole))
}

fn start(scenario: &Scenario) -> Job {
    let graph = scenario.graph();
    let runtime = Runtime::new().expect("a runtime");
    let entered = runtime.enter();
    let store = Store::open("memory://").expect("a store in memory");
    let credentials = Credentials::ephemeral().expect("certificates");
    let nodes: Vec<Node> = (0..scenario.nodes)
        .map(|index| node(index, &credentials, scenario.window_bytes))
        .collect();
    let (mut wires, deployment) = wire_all(&graph, &nodes, scenario);
    let (events, received) = mpsc::unbounded_channel();
    let (mut handles, mut threads) = (BTreeMap::new(), Vec::new());
    for task in graph.tasks() {
        let mut setup = TaskSetup {
            deployment: Arc::clone(&deployment),
            task,
            limits: InstanceLimits::default(),
            wires: wires.remove(&task).expect("wired"),
            log: Logs::new(10).task(JOB, task, ATTEMPT),
            store: store.clone(),
            images: Images::none(),
            events: events.clone(),
            runtime: runtime.handle().clone(),
            stop: CancellationToken::new(),
        };
        let (commands, mailbox) = mailbox();
        let counters = Arc::new(Counters::default());
        let (stop, shared) = (setup.stop.clone(), Arc::clone(&counters));
        let scenario = scenario.clone();
        let thread = std::thread::spawn(move || {
            let deployment = Arc::clone(&setup.deployment);
            let stage = deployment.graph.stage(task).expect("a stage");
            let lanes = lanes(&mut setup, stage, None).expect("no sinks");
            let edges = (0u32..)
                .zip(&deployment.graph.edges)
                .filter(|(_, edge)| edge.from == task.stage);
            let edges = edges.map(|(index, edge)| {
                (
                    index,
                    edge.routing,
                    deployment.graph.stages[edge.to as usize].parallelism,
                )
            });
            let is_source = matches!(
                &stage.kind,
                StageKind::Wasm {
                    input: StageInput::Guest,
                    ..
                }
            );
            let body = Relay {
                task,
                edges: edges.collect(),
                outputs: Outputs::new(lanes, setup.log.clone()),
                counts: Counts::default(),
                polls_left: scenario.polls,
                batch_bytes: scenario.batch_bytes,
                state: scenario.seed ^ u64::from(task.stage * 31 + task.subtask),
            };
            let feed = if is_source { Feed::Polled } else { Feed::None };
            let (began, timings) = (Instant::now(), DeployTimings::default());
            let execution = Execution {
                job: JOB,
                task,
                attempt: ATTEMPT,
            };
            let seat = Seat {
                execution,
                mailbox,
                counters,
                began,
                timings,
                chain: ImageChain::new(),
                hand_over: None,
            };
            run(setup, seat, body, feed, None).expect("a relay never fails");
        });
        let handle = TaskHandle {
            commands,
            thread: thread.thread().clone(),
            stop,
            counters: shared,
            remains: tokio::sync::oneshot::channel().1,
        };
        handles.insert(task, handle);
        threads.push(thread);
    }
    drop(entered);
    Job {
        nodes,
        handles,
        threads,
        events: received,
        store,
        runtime,
        graph,
    }
}

impl Job {
    fn next_event(&mut self) -> TaskEvent {
        let wait = async { tokio::time::timeout(FOREVER, self.events.recv()).await };
        self.runtime
            .block_on(wait)
            .expect("deadlock: no task has said anything for a minute")
            .expect("tasks live")
    }

    /// Takes checkpoints one after the other until every task has finished; returns each checkpoint's counts.
    fn drive(&mut self) -> Vec<BTreeMap<TaskId, Counts>> {
        let mut cuts = Vec::new();
        let mut finished = BTreeSet::new();
        let tasks = self.handles.len();
        for counter in 1.. {
            let all_had_finished = finished.len() == tasks;
            let checkpoint = CheckpointId::new(Epoch(1), counter);
            for handle in self.handles.values() {
                handle.tell(TaskCommand::Checkpoint(
                    checkpoint,
                    CheckpointWord::Announce { then_pause: false },
                ));
            }
            let mut cut = BTreeMap::new();
            while cut.len() < tasks {
                match self.next_event() {
                    TaskEvent::Acknowledged(ack) => {
                        assert_eq!(ack.checkpoint, checkpoint);
                        let (image, _) = self
                            .runtime
                            .block_on(self.store.read_image(JOB, ack.task, &ack.manifest))
                            .expect("stored");
                        let host: HostState = codec::decode(&image.host_state).expect("own state");
                        let mut counts: Counts = codec::decode(&host.body).expect("own counts");
                        let recorded = Recorded::decode(&image.channel_state);
                        let recorded = recorded.expect("own frames");
                        counts.receive(self.graph.incoming(ack.task), &recorded);
                        cut.insert(ack.task, counts);
                    }
                    TaskEvent::State {
                        execution,
                        state: TaskState::Finished,
                    } => {
                        finished.insert(execution.task);
                    }
                    TaskEvent::State { .. } => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
            cuts.push(cut);
            if all_had_finished {
                break;
            }
        }
        cuts
    }

    fn stop(self) {
        for handle in self.handles.into_values() {
            handle.stop();
        }
        for thread in self.threads {
            thread.join().expect("no task panics");
        }
        drop(self.nodes);
        self.runtime.shutdown_background();
    }
}

fn assert_consistent(graph: &ExecutionGraph, cut: &BTreeMap<TaskId, Counts>) {
    for channel in graph.channels() {
        let sent = cut[&channel.from]
            .sent
            .get(&(channel.id.edge, channel.id.to))
            .copied()
            .unwrap_or(0);
        let received = cut[&channel.to]
            .received
            .get(&(channel.id.edge, channel.id.from))
            .copied()
            .unwrap_or(0);
        assert_eq!(sent, received, "{} is cut in two", channel.id);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn no_graph_deadlocks_and_every_checkpoint_is_a_consistent_cut(scenario in scenarios()) {
        let mut job = start(&scenario);
        let cuts = job.drive();
        for cut in &cuts {
            assert_consistent(&job.graph, cut);
        }
        job.stop();
    }
}

#[test]
fn a_broadcast_reaches_every_target_once() {
    let (producers, consumers): (Vec<_>, Vec<_>) =
        (0..3).map(|_| crate::exchange::queue::queue(1000)).unzip();
    let channels = producers
        .into_iter()
        .map(super::outputs::OutputChannel::new)
        .collect();
    let log = Logs::new(1).task(JOB, TaskId::new(0, 0), ATTEMPT);
    let mut outputs = Outputs::new(vec![super::outputs::Lane::Channels(channels)], log);
    outputs.emit(0, TARGET_ALL, b"all");
    outputs.emit(0, 3, b"nobody");
    assert!(
        outputs
            .take_failure()
            .is_err_and(|failure| failure.message.contains("target 3"))
    );
    for consumer in consumers {
        assert!(consumer.pop().is_some() && consumer.pop().is_none());
    }
}
