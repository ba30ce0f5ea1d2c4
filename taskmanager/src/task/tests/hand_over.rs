//! One task between two leaders: what becomes of an alignment, an upload and prepared output when the checkpoint that
//! they belong to is abandoned, and what a task can do that wakes up after it has been replaced.

#[path = "late_barriers.rs"]
mod late_barriers;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;
use tidemill_abi::{ConnectorSpec, Output, StageInput, Step, framed};
use tidemill_core::worker::CheckpointWord;
use tidemill_protocol::control::{
    CheckpointAcknowledgement, DeployTimings, Deployment, TaskFailure,
};
use tidemill_protocol::image::StoredCapture;
use tidemill_protocol::split::SplitRequest;
use tidemill_protocol::{
    AttemptId, CheckpointId, Epoch, ExecutionEdge, ExecutionGraph, ExecutionStage, Frame,
    FrameBody, ModuleHash, Routing, StageKind, TaskId,
};
use tidemill_runtime::{CaptureRoom, GuestHost, InstanceLimits};
use tidemill_storage::{ImageChain, Store};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::body::{Body, Call, Records};
use super::super::build::{Seat, lanes, run};
use super::super::capture::{Captured, Capturing, Change};
use super::super::counters::Counters;
use super::super::mailbox::mailbox;
use super::super::outputs::Outputs;
use super::super::runner::Feed;
use super::super::{Execution, TaskCommand, TaskEvent, TaskHandle, TaskSetup};
use super::{FOREVER, JOB};
use crate::exchange::queue::{Producer, queue};
use crate::exchange::wiring::Wires;
use crate::images::Images;
use crate::logs::Logs;

const TASK: TaskId = TaskId::new(1, 0);

const fn checkpoint(epoch: u64, counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(epoch), counter)
}

/// Writes every record to its sink.
struct Copying {
    outputs: Outputs,
    records: u64,
}

impl Body for Copying {
    fn call(&mut self, call: Call<'_>, _now_ms: u64) -> Result<Step, TaskFailure> {
        if let Call::Process { batch, .. } = call {
            self.records += 1;
            self.outputs.emit(0, 0, batch);
        }
        Ok(Step::DONE)
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
        Vec::new()
    }

    fn records(&mut self) -> Records {
        Records {
            input: self.records,
            output: self.records,
        }
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn outputs(&mut self) -> &mut Outputs {
        &mut self.outputs
    }
}

/// Two senders and one task with a file sink, whose senders are the test.
fn graph(directory: &Path) -> ExecutionGraph {
    let sink = ConnectorSpec {
        kind: "files".to_owned(),
        options: BTreeMap::from([("path".to_owned(), directory.display().to_string())]),
    };
    let stage = |name: &str, parallelism, input, ports, outputs| ExecutionStage {
        name: name.to_owned(),
        kind: StageKind::Wasm {
            input,
            ports,
            outputs,
        },
        parallelism,
    };
    ExecutionGraph {
        stages: vec![
            stage("senders", 2, StageInput::Guest, 0, Vec::new()),
            stage("sink", 1, StageInput::Edges, 1, vec![Output::Sink(sink)]),
        ],
        edges: vec![ExecutionEdge {
            from: 0,
            from_output: 0,
            to: 1,
            to_port: 0,
            routing: Routing::AllToAll,
        }],
        max_parallelism: 128,
        job_graph_hash: 0,
    }
}

/// A running task whose inputs, leader and clock of failure are in the test's hands.
struct Subject {
    handle: TaskHandle,
    thread: std::thread::JoinHandle<Result<(), TaskFailure>>,
    channels: Vec<(Producer, u64)>,
    events: mpsc::UnboundedReceiver<TaskEvent>,
    counters: Arc<Counters>,
    told_bytes: u64,
    attempt: AttemptId,
}

struct World {
    directory: TempDir,
    store: Store,
    aligned_timeout_ms: u64,
    runtime: Runtime,
}

impl World {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            store: Store::open("memory://").expect("a store in memory"),
            aligned_timeout_ms: 0,
            runtime: Runtime::new().expect("a runtime"),
        }
    }

    /// The records of every file that is not hidden, in order of the names.
    fn visible(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).expect("the sink's directory");
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        let is_visible = |path: &&std::path::PathBuf| {
            let name = path.file_name().unwrap_or_default();
            !name.to_string_lossy().starts_with('.')
        };
        paths
            .iter()
            .filter(is_visible)
            .flat_map(|path| {
                let text = std::fs::read_to_string(path).expect("an output file");
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    }

    fn start(&self, attempt: AttemptId) -> Subject {
        let graph = graph(self.directory.path());
        let deployment = Deployment {
            job: JOB,
            job_name: "hand-over".to_owned(),
            attempt,
            module: ModuleHash([0; 32]),
            parameters: BTreeMap::new(),
            graph: graph.clone(),
            tasks: Vec::new(),
            locations: Vec::new(),
            restore: None,
            aligned_checkpoint_timeout_ms: self.aligned_timeout_ms,
        };
        let (producers, incoming): (Vec<_>, Vec<_>) = graph
            .channels()
            .map(|channel| {
                let (producer, consumer) = queue(1 << 20);
                ((producer, 0), (channel, consumer))
            })
            .unzip();
        let (events, received) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let mut setup = TaskSetup {
            deployment: Arc::new(deployment),
            task: TASK,
            limits: InstanceLimits::default(),
            wires: Wires {
                incoming,
                outgoing: Vec::new(),
            },
            log: Logs::new(10).task(JOB, TASK, attempt),
            store: self.store.clone(),
            images: Images::none(),
            events,
            runtime: self.runtime.handle().clone(),
            stop: stop.clone(),
        };
        let (commands, mailbox) = mailbox();
        let counters = Arc::new(Counters::default());
        let seat = Seat {
            execution: Execution {
                job: JOB,
                task: TASK,
                attempt,
            },
            mailbox,
            counters: Arc::clone(&counters),
            began: Instant::now(),
            timings: DeployTimings::default(),
            chain: ImageChain::new(),
            hand_over: None,
        };
        let thread = std::thread::spawn(move || {
            let deployment = Arc::clone(&setup.deployment);
            let stage = deployment.graph.stage(TASK).expect("the stage");
            let lanes = lanes(&mut setup, stage, None)?;
            let body = Copying {
                outputs: Outputs::new(lanes, setup.log.clone()),
                records: 0,
            };
            run(setup, seat, body, Feed::None, None)
        });
        let handle = TaskHandle {
            commands,
            thread: thread.thread().clone(),
            stop,
            counters: Arc::clone(&counters),
            remains: tokio::sync::oneshot::channel().1,
        };
        Subject {
            handle,
            thread,
            channels: producers,
            events: received,
            counters,
            told_bytes: 0,
            attempt,
        }
    }
}

impl Subject {
    fn push(&mut self, channel: usize, body: FrameBody) {
        let (producer, sequence) = &mut self.channels[channel];
        producer.push(Frame {
            sequence: *sequence,
            body,
        });
        *sequence += 1;
    }

    fn send(&mut self, channel: usize, record: &str) {
        let mut batch = Vec::new();
        framed::push(&mut batch, record.as_bytes());
        self.told_bytes += batch.len() as u64;
        self.push(channel, FrameBody::Data(Bytes::from(batch)));
    }

    fn barrier(&mut self, channel: usize, checkpoint: CheckpointId) {
        self.push(channel, FrameBody::Barrier(checkpoint));
    }

    fn barriers(&mut self, checkpoint: CheckpointId) {
        self.barrier(0, checkpoint);
        self.barrier(1, checkpoint);
    }

    fn word(&self, checkpoint: CheckpointId, word: CheckpointWord) {
        self.handle.tell(TaskCommand::Checkpoint(checkpoint, word));
    }

    /// Waits until the task has processed all but `held_back` of the bytes that it was sent.
    fn wait_processed(&self, held_back: u64) {
        let began = Instant::now();
        let processed = || {
            let counters = self.counters.progress(JOB, self.attempt, TASK);
            counters.bytes_in + held_back == self.told_bytes
        };
        while !processed() {
            assert!(began.elapsed() < FOREVER, "the task does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next thing the task says, other than that it runs.
    fn next(&mut self, world: &World) -> TaskEvent {
        loop {
            let wait = async { tokio::time::timeout(FOREVER, self.events.recv()).await };
            let event = world
                .runtime
                .block_on(wait)
                .expect("the task says something");
            match event.expect("the task lives") {
                TaskEvent::State { .. } => {}
                event => return event,
            }
        }
    }

    fn acknowledged(&mut self, world: &World) -> CheckpointAcknowledgement {
        match self.next(world) {
            TaskEvent::Acknowledged(acknowledgement) => acknowledgement,
            other => panic!("not acknowledged, but {other:?}"),
        }
    }

    fn declined(&mut self, world: &World) -> CheckpointId {
        match self.next(world) {
            TaskEvent::Declined { checkpoint, .. } => checkpoint,
            other => panic!("not declined, but {other:?}"),
        }
    }

    fn committed(&mut self, world: &World) -> CheckpointId {
        match self.next(world) {
            TaskEvent::Committed { checkpoint, .. } => checkpoint,
            other => panic!("not committed, but {other:?}"),
        }
    }

    fn stop(self) {
        self.handle.stop();
        let ended = self.thread.join().expect("no task panics");
        ended.expect("it was stopped");
    }
}

/// What `send` makes of a record.
fn framed_bytes(record: &str) -> u64 {
    let mut batch = Vec::new();
    framed::push(&mut batch, record.as_bytes());
    batch.len() as u64
}

#[test]
fn a_channel_that_waits_for_a_barrier_nobody_sends_goes_on_when_the_leader_is_lost() {
    let world = World::new();
    let mut task = world.start(AttemptId::new(Epoch(1), 1));
    // The leader died between telling one sender and telling the other.
    task.barrier(0, checkpoint(1, 5));
    task.send(0, "behind the barrier");
    task.send(1, "beside it");
    task.wait_processed(framed_bytes("behind the barrier"));
    task.handle.tell(TaskCommand::LeaderLost);
    assert_eq!(task.declined(&world), checkpoint(1, 5));
    task.wait_processed(0);
    // The other sender's barrier comes after all, and blocks nothing; the next leader's checkpoint is taken.
    task.barrier(1, checkpoint(1, 5));
    task.send(1, "late");
    task.wait_processed(0);
    task.barriers(checkpoint(2, 1));
    assert_eq!(task.acknowledged(&world).checkpoint, checkpoint(2, 1));
    task.stop();
}

#[test]
fn the_first_barrier_of_a_new_leader_takes_the_place_of_an_older_leaders_alignment() {
    let world = World::new();
    let mut task = world.start(AttemptId::new(Epoch(1), 1));
    task.barrier(0, checkpoint(1, 7));
    task.send(0, "behind the old barrier");
    task.barrier(1, checkpoint(2, 1));
    assert_eq!(task.declined(&world), checkpoint(1, 7));
    task.wait_processed(0);
    task.barrier(0, checkpoint(2, 1));
    assert_eq!(task.acknowledged(&world).checkpoint, checkpoint(2, 1));
    task.stop();
}

#[test]
fn barriers_of_a_leader_that_has_been_succeeded_block_nothing() {
    let world = World::new();
    let mut task = world.start(AttemptId::new(Epoch(1), 1));
    // What a TaskManager tells its tasks when it meets the leader of epoch 2.
    task.word(checkpoint(2, 0), CheckpointWord::Abort);
    // A frame makes the round through the loop certain: commands are taken before inputs.
    task.barrier(0, checkpoint(1, 9));
    task.send(0, "behind a barrier of the past");
    task.wait_processed(0);
    task.barriers(checkpoint(2, 1));
    assert_eq!(task.acknowledged(&world).checkpoint, checkpoint(2, 1));
    task.stop();
}

#[test]
fn output_of_an_abandoned_checkpoint_appears_with_the_next_completed_one_and_only_then() {
    let world = World::new();
    let mut task = world.start(AttemptId::new(Epoch(1), 1));
    task.send(0, "one");
    task.barriers(checkpoint(1, 1));
    assert_eq!(task.acknowledged(&world).checkpoint, checkpoint(1, 1));
    // The leader dies before it publishes; another one takes over.
    task.handle.tell(TaskCommand::LeaderLost);
    task.word(checkpoint(2, 0), CheckpointWord::Abort);
    task.send(1, "two");
    task.barriers(checkpoint(2, 1));
    assert_eq!(task.acknowledged(&world).checkpoint, checkpoint(2, 1));
    assert_eq!(world.visible(), [""; 0], "nothing is published yet");
    task.word(checkpoint(2, 1), CheckpointWord::Complete);
    assert_eq!(task.committed(&world), checkpoint(2, 1));
    assert_eq!(world.visible(), ["one", "two"]);
    // A leader that does not know whether the word arrived repeats it.
    task.word(checkpoint(2, 1), CheckpointWord::Complete);
    assert_eq!(task.committed(&world), checkpoint(2, 1));
    assert_eq!(world.visible(), ["one", "two"]);
    task.stop();
}

#[test]
fn the_word_of_a_checkpoint_that_the_dead_leader_published_commits_no_more_than_that() {
    let world = World::new();
    let mut task = world.start(AttemptId::new(Epoch(1), 1));
    task.send(0, "published");
    task.barriers(checkpoint(1, 1));
    task.acknowledged(&world);
    task.send(0, "not yet");
    task.barriers(checkpoint(2, 1));
    task.acknowledged(&world);
    task.word(checkpoint(1, 1), CheckpointWord::Complete);
    assert_eq!(task.committed(&world), checkpoint(1, 1));
    assert_eq!(world.visible(), ["published"]);
    task.stop();
}

#[test]
fn a_task_that_wakes_up_after_it_was_replaced_shows_nothing() {
    let world = World::new();
    let mut frozen = world.start(AttemptId::new(Epoch(1), 1));
    frozen.send(0, "prepared before the freeze");
    frozen.barriers(checkpoint(1, 1));
    let old_part = frozen.acknowledged(&world);
    frozen.send(0, "written before the freeze");
    frozen.wait_processed(0);

    // While it sleeps the region goes back to its beginning elsewhere, and a checkpoint there completes.
    let mut successor = world.start(AttemptId::new(Epoch(2), 1));
    successor.send(0, "one");
    successor.barriers(checkpoint(2, 1));
    let new_part = successor.acknowledged(&world);
    successor.word(checkpoint(2, 1), CheckpointWord::Complete);
    assert_eq!(successor.committed(&world), checkpoint(2, 1));
    assert_eq!(world.visible(), ["one"]);

    // It wakes and does what a task does: reads what its channels hold, and takes part in the checkpoint whose barrier
    // is among it, here even one with the successor's number.
    frozen.send(1, "after the freeze");
    frozen.barriers(checkpoint(2, 1));
    let late_part = frozen.acknowledged(&world);
    assert_eq!(world.visible(), ["one"]);
    assert_ne!(late_part.manifest.key, new_part.manifest.key);
    assert_ne!(late_part.manifest.key, old_part.manifest.key);
    let read = world.store.read_image(JOB, TASK, &new_part.manifest);
    world
        .runtime
        .block_on(read)
        .expect("the successor's image is untouched");

    // Then its TaskManager is told that it runs elsewhere.
    frozen.stop();
    successor.send(1, "two");
    successor.barriers(checkpoint(2, 2));
    successor.acknowledged(&world);
    successor.word(checkpoint(2, 2), CheckpointWord::Complete);
    assert_eq!(successor.committed(&world), checkpoint(2, 2));
    assert_eq!(world.visible(), ["one", "two"]);
    successor.stop();
}

#[test]
fn an_upload_that_hangs_does_not_hold_up_the_next_checkpoint() {
    // Uploads make progress only while this runtime is driven.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (events, mut received) = mpsc::unbounded_channel();
    let execution = Execution {
        job: JOB,
        task: TASK,
        attempt: AttemptId::new(Epoch(1), 1),
    };
    let store = Store::open("memory://").expect("a store in memory");
    let mut capturing = Capturing::new(
        execution,
        store,
        runtime.handle().clone(),
        events,
        CancellationToken::new(),
        ImageChain::new(),
    );
    let captured = |checkpoint| Captured {
        checkpoint,
        change: Change {
            capture: StoredCapture::default(),
            whole: true,
        },
        finished: false,
        alignment: Duration::ZERO,
        pause: Duration::ZERO,
        ahead_pages: 0,
        recorded: None,
    };
    capturing.upload(captured(checkpoint(1, 4)));
    capturing.upload(captured(checkpoint(2, 1)));
    // An abort of the older one, heard late, spares the newer one.
    capturing.abandon(checkpoint(2, 0));
    let next = async { tokio::time::timeout(FOREVER, received.recv()).await };
    match runtime.block_on(next).expect("in time") {
        Some(TaskEvent::Acknowledged(part)) => assert_eq!(part.checkpoint, checkpoint(2, 1)),
        other => panic!("unexpected {other:?}"),
    }
    capturing.upload(captured(checkpoint(2, 2)));
    capturing.abandon_all();
    drop(capturing);
    let rest = runtime.block_on(received.recv());
    assert!(rest.is_none(), "abandoned, it says nothing: {rest:?}");
}

#[test]
fn a_task_whose_channel_is_broken_waits_and_is_not_called() {
    let ((broken, consumer), (whole, _reader)) = (queue(1000), queue(1000));
    let channels = [broken, whole].map(super::super::outputs::OutputChannel::new);
    let lane = super::super::outputs::Lane::Channels(channels.into());
    let log = Logs::new(1).task(JOB, TASK, AttemptId::new(Epoch(1), 1));
    let mut outputs = Outputs::new(vec![lane], log);
    assert!(outputs.has_room());
    drop(consumer);
    assert!(!outputs.has_room());
    outputs.emit(0, 0, b"nobody reads this");
    assert!(!outputs.has_room());
    // A task that has said its last word has nothing to wait for.
    outputs.end();
    assert!(outputs.has_room());
}
