//! A task that is deployed again where its last attempt ran: the memory that the attempt left is put back, however the
//! attempt ended; and where it leaves nothing, the image comes from elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tidemill_abi::StageInput;
use tidemill_core::worker::CheckpointWord;
use tidemill_protocol::control::{
    DeployTimings, Deployment, ImageSource, TaskDeployment, TaskState,
};
use tidemill_protocol::image::{PageRun, StoredCapture};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::split::SplitRequest;
use tidemill_protocol::{
    AttemptId, CheckpointId, Epoch, ExecutionGraph, ExecutionStage, Image, ModuleHash, StageKind,
    TaskId,
};
use tidemill_runtime::{Engine, EngineOptions, InstanceLimits, Module, ModuleLimits};
use tidemill_storage::{CaptureId, ImageChain, Store};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::super::outputs::Outputs;
use super::super::{
    Execution, Prepared, Restorable, TaskCommand, TaskEvent, TaskHandle, TaskSetup, spawn,
};
use super::{FOREVER, JOB};
use crate::exchange::wiring::Wires;
use crate::images::{Images, ImagesOptions, Peers};
use crate::logs::Logs;
use crate::prepare::ImageSources;
use crate::survivors::Survivors;

pub(super) const TASK: TaskId = TaskId::new(0, 0);

/// Each poll, of which there is one at the start and one for each poke, changes 40 of 768 pages and says so. Poll number
/// `trap_at` then traps, and number `hang_at` never returns.
pub(super) fn module(trap_at: u32, hang_at: u32) -> Module {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let text = format!(
        r#"(module
  (import "tidemill" "emit" (func (param i32 i32 i32 i32)))
  (import "tidemill" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 64)
  (global $polls (mut i32) (i32.const 0))
  (global $written (mut i32) (i32.const 0))
  (data (i32.const 8192) "\00\07")
  (data (i32.const 8200) "polled")
  (func (export "tidemill_abi_version") (result i32) i32.const 1)
  (func (export "tidemill_allocate") (param i32) (result i32) i32.const 4096)
  (func (export "tidemill_describe") (param i32 i32) (result i64) i64.const 0)
  (func (export "tidemill_open") (param i32 i32) (result i64) (i64.const {opened}))
  (func (export "tidemill_process") (param i32 i64 i32 i32 i64) (result i64) i64.const 0)
  (func (export "tidemill_resume") (param i64) (result i64) i64.const 0)
  (func (export "tidemill_poll") (param i64) (result i64)
    (global.set $polls (i32.add (global.get $polls) (i32.const 1)))
    (loop $again
      (global.set $written (i32.add (global.get $written) (i32.const 1)))
      (i32.store
        (i32.add (i32.const 65536)
          (i32.mul (i32.rem_u (global.get $written) (i32.const 768)) (i32.const 4096)))
        (global.get $written))
      (br_if $again (i32.rem_u (global.get $written) (i32.const 40))))
    (call $log (i32.const 0) (i32.const 8200) (i32.const 6))
    (if (i32.eq (global.get $polls) (i32.const {trap_at})) (then unreachable))
    (if (i32.eq (global.get $polls) (i32.const {hang_at})) (then (loop $for_ever (br $for_ever))))
    i64.const 0)
  (func (export "tidemill_watermark") (param i32 i64 i64) (result i64) i64.const 0)
  (func (export "tidemill_timer") (param i64) (result i64) i64.const 0)
  (func (export "tidemill_finish") (param i64) (result i64) i64.const 0)
  (func (export "tidemill_flush")))"#,
        opened = 8192_u64 << 32 | 2,
    );
    let wasm = wat::parse_str(&text).expect("a module");
    let prepared = tidemill_runtime::prepare(&wasm, &ModuleLimits::default()).expect("acceptable");
    let engine = ENGINE
        .get_or_init(|| Engine::new(EngineOptions::default()).expect("a machine that runs Wasm"));
    engine.compile(&prepared.bytes, None).expect("compiled")
}

pub(super) struct World {
    pub(super) runtime: Runtime,
    pub(super) store: Store,
    images: Images,
    pub(super) peers: Peers,
    survivors: Survivors,
    module: Module,
    logs: Logs,
    _directory: tempfile::TempDir,
}

/// An attempt that runs.
pub(super) struct Attempt {
    pub(super) handle: TaskHandle,
    events: UnboundedReceiver<TaskEvent>,
    pub(super) timings: DeployTimings,
}

fn deployment(counter: u64, restore: Option<CheckpointId>) -> Deployment {
    Deployment {
        job: JOB,
        job_name: String::new(),
        attempt: AttemptId::new(Epoch(1), counter),
        module: ModuleHash([0; 32]),
        parameters: BTreeMap::new(),
        graph: ExecutionGraph {
            stages: vec![ExecutionStage {
                name: "source".to_owned(),
                kind: StageKind::Wasm {
                    input: StageInput::Guest,
                    ports: 0,
                    outputs: Vec::new(),
                },
                parallelism: 1,
            }],
            edges: Vec::new(),
            max_parallelism: 128,
            job_graph_hash: 7,
        },
        tasks: Vec::new(),
        locations: Vec::new(),
        restore,
        aligned_checkpoint_timeout_ms: 0,
    }
}

impl World {
    fn new(module: Module, keeps_images: bool) -> Self {
        let store = Store::open("memory://").expect("a store in memory");
        Self::over(store, module, keeps_images)
    }

    pub(super) fn over(store: Store, module: Module, keeps_images: bool) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let options = ImagesOptions {
            directory: directory.path().to_owned(),
            max_bytes: if keeps_images { 1 << 30 } else { 0 },
        };
        let images = Images::start(
            options,
            store.clone(),
            runtime.handle().clone(),
            unbounded_channel().0,
        );
        Self {
            survivors: Survivors::new(runtime.handle().clone()),
            images: images.expect("a thread"),
            peers: Peers::none(),
            runtime,
            store,
            module,
            logs: Logs::new(1000),
            _directory: directory,
        }
    }

    pub(super) fn start(
        &self,
        counter: u64,
        image: Option<Restorable>,
        restore: Option<CheckpointId>,
    ) -> Attempt {
        let (events, mut received) = unbounded_channel();
        let setup = TaskSetup {
            deployment: Arc::new(deployment(counter, restore)),
            task: TASK,
            limits: InstanceLimits::default(),
            wires: Wires::default(),
            log: self.logs.task(JOB, TASK, AttemptId::new(Epoch(1), counter)),
            store: self.store.clone(),
            images: self.images.clone(),
            events,
            runtime: self.runtime.handle().clone(),
            stop: CancellationToken::new(),
        };
        let (when_prepared, prepared) = oneshot::channel();
        let source = image.as_ref().map_or(ImageSource::None, Restorable::source);
        let sent = when_prepared.send(Ok(Prepared {
            module: Some(self.module.clone()),
            image,
            timings: DeployTimings {
                source,
                ..DeployTimings::default()
            },
        }));
        assert!(sent.is_ok(), "it listens");
        let handle = spawn(setup, prepared).expect("a thread");
        let timings = match self.next(&mut received) {
            TaskEvent::State {
                state: TaskState::Running { timings },
                ..
            } => timings,
            other => panic!("not running, but {other:?}"),
        };
        Attempt {
            handle,
            events: received,
            timings,
        }
    }

    pub(super) fn next(&self, events: &mut UnboundedReceiver<TaskEvent>) -> TaskEvent {
        let next = async { tokio::time::timeout(FOREVER, events.recv()).await };
        self.runtime
            .block_on(next)
            .expect("in time")
            .expect("it lives")
    }

    /// Has the guest polled once more, all attempts together for the `polls`th time.
    pub(super) fn poke(&self, attempt: &Attempt, polls: usize) {
        let request = SplitRequest {
            job: JOB,
            attempt: AttemptId::new(Epoch(1), 1),
            enumerator: TASK,
            subtask: 0,
            wanted_total: 0,
        };
        self.polled(polls - 1);
        attempt.handle.tell(TaskCommand::Split(request));
        self.polled(polls);
    }

    /// Waits until the guest has been polled as often.
    pub(super) fn polled(&self, polls: usize) {
        let began = Instant::now();
        loop {
            let lines = self.logs.fetch(JOB, Some(TASK), 0, 1000);
            if lines.iter().filter(|line| line.text == "polled").count() >= polls {
                return;
            }
            assert!(began.elapsed() < FOREVER, "the guest is polled");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has a checkpoint stored.
    pub(super) fn checkpoint(
        &self,
        attempt: &mut Attempt,
        counter: u64,
    ) -> (CheckpointId, ObjectRef) {
        let checkpoint = CheckpointId::new(Epoch(1), counter);
        let word = CheckpointWord::Announce { then_pause: false };
        attempt
            .handle
            .tell(TaskCommand::Checkpoint(checkpoint, word));
        match self.next(&mut attempt.events) {
            TaskEvent::Acknowledged(part) => (checkpoint, part.manifest),
            other => panic!("not acknowledged, but {other:?}"),
        }
    }

    pub(super) fn complete(&self, attempt: &mut Attempt, checkpoint: CheckpointId) {
        let word = TaskCommand::Checkpoint(checkpoint, CheckpointWord::Complete);
        attempt.handle.tell(word);
        match self.next(&mut attempt.events) {
            TaskEvent::Committed { .. } => {}
            other => panic!("not committed, but {other:?}"),
        }
    }

    fn stop(&mut self, attempt: Attempt, counter: u64) {
        let remains = attempt.handle.stop();
        self.survivors.keep(JOB, TASK, remains);
        self.images.stopped(execution(counter));
    }

    /// What attempt `counter` goes on from.
    fn restorable(&mut self, counter: u64, checkpoint: &(CheckpointId, ObjectRef)) -> Restorable {
        self.restorable_at(counter, checkpoint, Vec::new())
    }

    /// The same, where others are said to have the image too.
    pub(super) fn restorable_at(
        &mut self,
        counter: u64,
        (checkpoint, manifest): &(CheckpointId, ObjectRef),
        warm_at: Vec<String>,
    ) -> Restorable {
        let survivor = self.survivors.take(JOB, TASK);
        let task = TaskDeployment {
            task: TASK,
            image: Some(manifest.clone()),
            warm_at,
        };
        let deployment = deployment(counter, Some(*checkpoint));
        let sources = ImageSources {
            store: &self.store,
            images: &self.images,
            peers: &self.peers,
            runtime: self.runtime.handle(),
        };
        let image = sources.image_of(
            unbounded_channel().0,
            &deployment,
            &task,
            manifest,
            survivor,
        );
        let image = self.runtime.block_on(image);
        image.unwrap_or_else(|end| panic!("restorable, and not {end:?}"))
    }

    /// Checks that what is restored is what was stored.
    pub(super) fn assert_is(&self, image: Restorable, manifest: &ObjectRef) {
        let restored = self.restored(image);
        let stored = self.store.read_image(JOB, TASK, manifest);
        let (stored, _) = self.runtime.block_on(stored).expect("stored");
        assert!(restored.memory == stored.memory, "the memory");
        assert_eq!(
            (restored.globals, restored.tables),
            (stored.globals, stored.tables)
        );
    }

    /// What an image has become once its memory is full.
    pub(super) fn restored(&self, image: Restorable) -> Image {
        let log = Logs::new(10).task(JOB, TASK, AttemptId::new(Epoch(1), 9));
        let outputs = Outputs::new(Vec::new(), log);
        let restored = image.restore(&self.module, InstanceLimits::default(), outputs);
        let (mut instance, _) = restored.unwrap_or_else(|failure| panic!("{}", failure.message));
        while let Some(filling) = instance.filling() {
            assert_eq!(filling.error, None);
            std::thread::yield_now();
        }
        instance.capture().expect("it is between two calls")
    }
}

fn execution(counter: u64) -> Execution {
    Execution {
        job: JOB,
        task: TASK,
        attempt: AttemptId::new(Epoch(1), counter),
    }
}

#[test]
fn a_stopped_task_goes_on_in_its_own_memory() {
    for keeps_images in [true, false] {
        let mut world = World::new(module(0, 0), keeps_images);
        let mut attempt = world.start(1, None, None);
        world.polled(1);
        let first = world.checkpoint(&mut attempt, 1);
        world.poke(&attempt, 2);
        let second = world.checkpoint(&mut attempt, 2);
        world.complete(&mut attempt, second.0);
        world.poke(&attempt, 3);
        // A third one is stored and never completes.
        world.checkpoint(&mut attempt, 3);
        world.poke(&attempt, 4);
        world.stop(attempt, 1);
        let image = world.restorable(2, &second);
        assert_eq!(image.source(), ImageSource::Memory);
        let mut attempt = world.start(2, Some(image), Some(second.0));
        assert_eq!(attempt.timings.source, ImageSource::Memory);
        let restored_bytes = attempt.timings.restored_bytes;
        assert!(
            (80 << 12..100 << 12).contains(&restored_bytes),
            "{restored_bytes}"
        );
        world.poke(&attempt, 6);
        // What it stores now builds on the checkpoint that it went back to.
        let fourth = world.checkpoint(&mut attempt, 4);
        world.complete(&mut attempt, fourth.0);
        world.poke(&attempt, 7);
        world.stop(attempt, 2);
        let image = world.restorable(3, &fourth);
        assert_eq!(image.source(), ImageSource::Memory);
        world.assert_is(image, &fourth.1);
        // Nothing is left of it now, nor of what was before: an older checkpoint comes from the store.
        let image = world.restorable(4, &first);
        assert_eq!(image.source(), ImageSource::Store);
        world.assert_is(image, &first.1);
    }
}

#[test]
fn a_task_that_trapped_goes_on_in_its_own_memory() {
    let mut world = World::new(module(2, 0), true);
    let mut attempt = world.start(1, None, None);
    let first = world.checkpoint(&mut attempt, 1);
    world.complete(&mut attempt, first.0);
    world.poke(&attempt, 2);
    match world.next(&mut attempt.events) {
        TaskEvent::State {
            state: TaskState::Failed(_),
            ..
        } => {}
        other => panic!("it traps, and does not say {other:?}"),
    }
    world.stop(attempt, 1);
    let image = world.restorable(2, &first);
    assert_eq!(image.source(), ImageSource::Memory);
    world.assert_is(image, &first.1);
}

#[test]
fn a_task_whose_thread_is_in_a_long_call_is_not_waited_for() {
    for (keeps_images, source) in [(true, ImageSource::Local), (false, ImageSource::Store)] {
        let mut world = World::new(module(0, 2), keeps_images);
        let mut attempt = world.start(1, None, None);
        let first = world.checkpoint(&mut attempt, 1);
        world.complete(&mut attempt, first.0);
        world.poke(&attempt, 2);
        world.stop(attempt, 1);
        let image = world.restorable(2, &first);
        assert_eq!(image.source(), source);
        world.assert_is(image, &first.1);
    }
}

#[test]
fn an_image_that_turns_out_to_be_damaged_says_so_once_and_names_the_object() {
    let runtime = Runtime::new().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path().to_str().expect("a path")).expect("a store");
    let checkpoint = CheckpointId::new(Epoch(1), 1);
    let id = CaptureId {
        job: JOB,
        task: TASK,
        attempt: execution(1).attempt,
        checkpoint,
    };
    let run = PageRun {
        first: 0,
        pages: 64,
        zero: false,
    };
    let capture = Arc::new(StoredCapture {
        memory_bytes: 64 << 12,
        runs: vec![run],
        bytes: vec![7; 64 << 12],
        ..StoredCapture::default()
    });
    let mut chain = ImageChain::new();
    let written = runtime.block_on(store.write_capture(id, &capture, &mut chain));
    let manifest = written.expect("stored").manifest;
    let opened = store.open_image(JOB, TASK, &manifest);
    let opened = runtime.block_on(opened).expect("its manifest is whole");
    // The segment goes while the manifest stays.
    let segment = tidemill_storage::keys::segment(JOB, TASK, id.attempt, checkpoint);
    std::fs::remove_file(directory.path().join(&segment)).expect("it was there");
    let (events, mut received) = unbounded_channel();
    let source = crate::images::StoredSource::new(
        opened,
        runtime.handle().clone(),
        Box::new(move |state| {
            events.send(state).expect("the test listens");
        }),
    );
    for _ in 0..2 {
        let read = source.read_runs(&[run], &mut |_, _| {});
        assert!(read.is_err_and(|reason| reason.contains(&segment)));
    }
    assert!(source.has_failed());
    let said = received.try_recv().expect("it is said");
    assert!(
        matches!(&said, TaskState::Unrestorable { reason } if reason.contains(&segment)),
        "{said:?}"
    );
    assert!(received.try_recv().is_err(), "once");
}
