//! Submissions that are sent again, whoever leads by then, and what becomes of a job that had not begun.

use std::time::Instant;

use bytes::Bytes;
use tidemill_abi::{DescribeResponse, JobGraph, Stage, StageInput};
use tidemill_protocol::control::Command;
use tidemill_protocol::manifest::{CheckpointMetadata, TaskImageRef};
use tidemill_protocol::{AttemptId, TaskId};

use super::*;

const OTHER: JobId = JobId([8; 16]);

/// One source that is written in the guest.
fn graph() -> JobGraph {
    JobGraph {
        name: "ticks".into(),
        stages: vec![Stage {
            name: "source".into(),
            input: StageInput::Guest,
            ports: 0,
            outputs: Vec::new(),
            parallelism: Some(1),
            operators: Vec::new(),
        }],
        parameters: Vec::new(),
    }
}

/// A module that describes this graph, and can do nothing else.
fn module() -> Bytes {
    let answer: DescribeResponse = Ok(graph());
    let answer = postcard::to_allocvec(&answer).expect("it encodes");
    let packed = 1024_u64 << 32 | answer.len() as u64;
    let escaped: String = answer.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let text = format!(
        r#"(module
            (import "tidemill" "emit" (func (param i32 i32 i32 i32)))
            (import "tidemill" "log" (func (param i32 i32 i32)))
            (memory (export "memory") 2)
            (data (i32.const 1024) "{escaped}")
            (func (export "tidemill_abi_version") (result i32) i32.const 1)
            (func (export "tidemill_allocate") (param i32) (result i32) i32.const 4096)
            (func (export "tidemill_describe") (param i32 i32) (result i64) i64.const {packed})
            (func (export "tidemill_open") (param i32 i32) (result i64) i64.const 0)
            (func (export "tidemill_process") (param i32 i64 i32 i32 i64) (result i64) i64.const 0)
            (func (export "tidemill_resume") (param i64) (result i64) i64.const 0)
            (func (export "tidemill_poll") (param i64) (result i64) i64.const 0)
            (func (export "tidemill_watermark") (param i32 i64 i64) (result i64) i64.const 0)
            (func (export "tidemill_timer") (param i64) (result i64) i64.const 0)
            (func (export "tidemill_finish") (param i64) (result i64) i64.const 0)
            (func (export "tidemill_flush")))"#
    );
    let wasm = wat::parse_str(&text).expect("the test's own module is right");
    wasm.into()
}

fn options(id: JobId) -> SubmitOptions {
    SubmitOptions {
        id: Some(id),
        ..SubmitOptions::default()
    }
}

#[tokio::test]
async fn a_submission_that_is_sent_again_is_answered_alike_by_every_reign_and_makes_one_job() {
    let mut bench = Bench::start(troubled(None));
    bench.until(Role::Leader, Some(1)).await;
    let cluster = bench.cluster.clone();
    let submit = |id| cluster.submit(module(), options(id));
    let (first, at_once) = tokio::join!(submit(JOB), submit(JOB));
    let first = first.expect("it is stored");
    assert_eq!(first.id, JOB.to_string());
    assert_eq!(at_once.expect("it is the same"), first);
    assert_eq!(submit(JOB).await.expect("it is there"), first);

    // Another JobManager leads, and this one again, when the next job is about to be stored.
    bench.registry.expect(&[Trouble::Fenced]);
    let lost = submit(OTHER).await;
    assert!(lost.is_err(), "it was not stored: {lost:?}");
    bench.until(Role::Leader, Some(2)).await;
    assert_eq!(submit(JOB).await.expect("it was kept"), first);
    let jobs = bench.cluster.jobs().await.expect("it leads");
    let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(ids, [first.id.as_str()]);

    submit(OTHER).await.expect("it is stored this time");
    let stored = bench.registry.embedded.jobs().await.expect("readable");
    let stored = stored.into_iter().map(|job| job.expect("whole").id);
    assert_eq!(stored.collect::<Vec<_>>(), [JOB, OTHER]);
}

#[tokio::test]
async fn an_id_that_is_taken_is_refused_with_other_parameters() {
    let mut bench = Bench::start(troubled(None));
    bench.until(Role::Leader, Some(1)).await;
    let first = bench.cluster.submit(module(), options(JOB)).await;
    first.expect("it is stored");
    let other = SubmitOptions {
        parameters: [("speed".to_owned(), "2".to_owned())].into(),
        ..options(JOB)
    };
    let refused = bench.cluster.submit(module(), other).await;
    assert!(
        matches!(&refused, Err(SubmitError::Option(reason)) if reason.contains("choose another id")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_job_that_had_not_begun_begins_when_every_announced_task_manager_has_registered() {
    let store = Store::open("memory://").expect("memory is there");
    let encoded = postcard::to_allocvec(&graph()).expect("it encodes");
    let graph = store.put_graph(JOB, encoded).await.expect("it has room");
    let (registry, directory) = with_record(JobRecord {
        graph,
        ..lost_job()
    })
    .await;
    let task_manager = TaskManagerRecord {
        id: TaskManagerId("a".into()),
        // The first that registers.
        incarnation: Incarnation(1),
        data_address: "127.0.0.1:9".into(),
        slots: 1,
    };
    registry.task_managers.send_replace(vec![task_manager]);
    let mut bench = Bench::start_with(registry, directory, store);
    bench.until(Role::Leader, Some(2)).await;
    let leading = Instant::now();
    let (_, mut outbox) = bench.accepted("a").await;
    let deployed = async {
        while let Some(message) = outbox.recv().await {
            if let Command::Deploy(deployment) = message.command {
                return deployment.job;
            }
        }
        panic!("the JobManager has let it go");
    };
    assert_eq!(deployed.await, JOB);
    let adoption = Duration::from_millis(bench.config.cluster.adoption_timeout_ms);
    assert!(leading.elapsed() < adoption, "{:?}", leading.elapsed());
}

#[tokio::test]
async fn a_task_manager_that_leaves_is_shown_so() {
    let mut bench = Bench::start(troubled(None));
    bench.until(Role::Leader, Some(1)).await;
    let (_, mut outbox) = bench.accepted("a").await;
    let wish = SessionEvent::Message {
        connection: ConnectionId(1),
        message: tidemill_protocol::control::ToLeader::Draining,
    };
    assert!(bench.sessions.send(wish).await.is_ok(), "the driver runs");
    while outbox.recv().await.expect("it leads").command != Command::Drained {}
    let nodes = bench.cluster.nodes().await.expect("it leads");
    assert_eq!(nodes[0].status, NodeStatus::Draining);
}

/// Metadata of a checkpoint that holds nothing, as it is stored.
async fn empty_checkpoint(store: &Store, checkpoint: CheckpointId) -> CheckpointPointer {
    let metadata = CheckpointMetadata {
        job: JOB,
        checkpoint,
        module: ModuleHash([0; 32]),
        job_graph_hash: 0,
        tasks: Vec::new(),
    };
    CheckpointPointer {
        checkpoint,
        metadata: store.write_metadata(&metadata).await.expect("it has room"),
    }
}

#[tokio::test]
async fn a_kept_checkpoint_is_begun_from_only_as_its_pointer_says_that_it_is() {
    let id = |counter| CheckpointId::new(Epoch(1), counter);
    let store = Store::open("memory://").expect("memory is there");
    let (whole, mut other) = (
        empty_checkpoint(&store, id(2)).await,
        empty_checkpoint(&store, id(3)).await,
    );
    empty_checkpoint(&store, id(4)).await;
    other.metadata.hash[0] ^= 1;
    let (registry, directory) = with_record(JobRecord {
        state: JobState::Cancelled,
        ..lost_job()
    })
    .await;
    let before = registry.embedded.lead(&record(9)).await;
    let before = before.expect("nobody leads");
    let completed = vec![whole, other];
    let pointers = CheckpointPointers { completed };
    let written = registry.embedded.put_pointers(&before, JOB, &pointers);
    written.await.expect("a leader may write");
    registry.embedded.resign(&before).await.expect("it leads");

    let mut bench = Bench::start_with(registry, directory, store.clone());
    bench.until(Role::Leader, Some(3)).await;
    let refused = async |checkpoint: &str| {
        let options = SubmitOptions {
            from: Some(format!("checkpoints/{checkpoint}")),
            ..options(OTHER)
        };
        match bench.cluster.submit(module(), options).await {
            Err(SubmitError::From { reason, .. }) => reason,
            outcome => panic!("it is refused: {outcome:?}"),
        }
    };
    let whole = refused(&format!("{JOB}/1-2")).await;
    assert!(
        whole.contains("of module"),
        "all but the module is right: {whole}"
    );
    let damaged = refused(&format!("{JOB}/1-3")).await;
    assert!(damaged.contains("damaged"), "{damaged}");
    let never = refused(&format!("{JOB}/1-4")).await;
    assert!(
        never.contains("never completed") && never.contains("1.2, 1.3"),
        "{never}"
    );
    let nobody = JobId([0x0f; 16]);
    let nothing = refused(&format!("{nobody}/1-1")).await;
    assert!(nothing.contains("there is no savepoint"), "{nothing}");
}

#[tokio::test]
async fn a_checkpoint_of_another_graph_is_refused_with_what_differs() {
    let store = Store::open("memory://").expect("memory is there");
    let (registry, directory) = troubled(None);
    let mut bench = Bench::start_with(registry, directory, store.clone());
    bench.until(Role::Leader, Some(1)).await;
    let first = bench.cluster.submit(module(), options(JOB)).await;
    first.expect("it is stored");
    let records = bench.registry.embedded.jobs().await.expect("readable");
    let module_hash = records[0].as_ref().expect("whole").module;

    // What a job of the same module left in another cluster, whose parameters made another graph of it.
    let old = JobId([0x0f; 16]);
    let mut theirs = graph();
    theirs.stages[0].parallelism = None;
    theirs.stages[0].name = "clock".into();
    let encoded = postcard::to_allocvec(&theirs).expect("it encodes");
    let image = store.put_graph(old, encoded).await.expect("it has room");
    let task = TaskImageRef {
        task: TaskId::new(0, 0),
        attempt: AttemptId::new(Epoch(1), 1),
        manifest: image,
        finished: false,
    };
    let metadata = CheckpointMetadata {
        job: old,
        checkpoint: CheckpointId::new(Epoch(1), 1),
        module: module_hash,
        job_graph_hash: tidemill_abi::graph_hash(&theirs),
        tasks: vec![task],
    };
    store.write_metadata(&metadata).await.expect("it has room");
    let options = SubmitOptions {
        from: Some(format!("checkpoints/{old}/1-1")),
        ..options(OTHER)
    };
    let refused = match bench.cluster.submit(module(), options).await {
        Err(SubmitError::From { reason, .. }) => reason,
        outcome => panic!("it is refused: {outcome:?}"),
    };
    for part in [
        "stage 0 (source): it was called `clock`",
        "its parallelism was none of its own, and is 1",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
}
