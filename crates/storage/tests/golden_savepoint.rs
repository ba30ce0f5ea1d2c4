//! A savepoint as the first release wrote it, byte for byte. Every later release must begin from it, on every machine:
//! nothing in it depends on the processor, the byte order, the page size or the paths of the one that wrote it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{ATTEMPT, CHECKPOINT, JOB, TASK, all_files, files, hex, record, segment, unhex};
use tidemill_protocol::image::GlobalValue;
use tidemill_protocol::manifest::{
    BlockRef, CheckpointMetadata, Manifest, Savepoint, TaskImageRef,
};
use tidemill_protocol::record::JobRecord;
use tidemill_protocol::{CheckpointId, Epoch, Image, JobId, TaskId, codec};
use tidemill_storage::{SavepointOf, Store, keys};

/// A line for each object: its name below the savepoint's directory, and its bytes in hexadecimal digits.
const GOLDEN: &str = include_str!("fixtures/savepoint-1.txt");

const NATIVE: TaskId = TaskId::new(2, 0);

fn images() -> BTreeMap<TaskId, Image> {
    let mut memory = vec![0; 3 * 65_536];
    memory[65_536..2 * 65_536].fill(b't');
    let wasm = Image {
        memory,
        globals: vec![
            GlobalValue::I32(-2),
            GlobalValue::I64(3),
            GlobalValue::F32(0x7fc0_0000),
            GlobalValue::F64(1),
            GlobalValue::V128(1 << 127),
        ],
        tables: vec![vec![None, Some(300)]],
        host_state: b"host".to_vec(),
        channel_state: b"frames".to_vec(),
    };
    let native = Image {
        host_state: b"native".to_vec(),
        ..Image::default()
    };
    BTreeMap::from([(TASK, wasm), (NATIVE, native)])
}

/// The checkpoint of which the savepoint is a copy.
async fn checkpoint(store: &Store) -> (JobRecord, CheckpointMetadata) {
    let module = store.put_module(&b"\0asm\x01\0\0\0"[..]).await.unwrap();
    let graph = store.put_graph(JOB, &b"graph"[..]).await.unwrap();
    let bytes = segment();
    let block = BlockRef {
        first_page: 16,
        pages: 16,
        segment: 0,
        offset: 0,
        len: bytes.len() as u32,
        checksum: crc32fast::hash(&[b't'; 65_536]),
    };
    let key = keys::segment(JOB, TASK, ATTEMPT, CHECKPOINT);
    let segment = store.put_object(&key, bytes).await.unwrap();
    let mut tasks = Vec::new();
    for (task, image) in images() {
        let is_wasm = task == TASK;
        let manifest = Manifest {
            job: JOB,
            task,
            checkpoint: CHECKPOINT,
            base: None,
            memory_bytes: image.memory.len() as u64,
            segments: Vec::from_iter(is_wasm.then(|| segment.clone())),
            blocks: Vec::from_iter(is_wasm.then_some(block)),
            globals: image.globals,
            tables: image.tables,
            host_state: image.host_state,
            channel_state: image.channel_state,
        };
        let key = keys::manifest(JOB, task, ATTEMPT, CHECKPOINT);
        let manifest = store.put_object(&key, codec::encode(&manifest)).await;
        tasks.push(TaskImageRef {
            task,
            attempt: ATTEMPT,
            manifest: manifest.unwrap(),
            finished: !is_wasm,
        });
    }
    let metadata = CheckpointMetadata {
        job: JOB,
        checkpoint: CHECKPOINT,
        module,
        job_graph_hash: 0x0123_4567_89ab_cdef,
        tasks,
    };
    (record(&metadata, graph), metadata)
}

/// The lines of the savepoint in this directory. The release that wrote it is left out.
fn lines(directory: &Path) -> String {
    let mut lines = String::new();
    for path in all_files(directory) {
        let name = path.strip_prefix(directory).unwrap().to_str().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        if name == "savepoint" {
            let body = &bytes[..bytes.len() - 32];
            let mut savepoint: Savepoint = codec::decode(body).unwrap();
            savepoint.version = "golden".into();
            bytes = codec::encode(&savepoint);
            let hash = blake3::hash(&bytes);
            bytes.extend_from_slice(hash.as_bytes());
        }
        lines += &format!("{name} {}\n", hex(&bytes));
    }
    lines
}

#[tokio::test]
async fn a_savepoint_that_is_written_today_has_these_bytes() {
    let (directory, store) = files();
    let (record, metadata) = checkpoint(&store).await;
    let of = SavepointOf {
        record: &record,
        metadata: &metadata,
        created_at_ms: 1_700_000_000_000,
    };
    store.write_savepoint("s", of, |_, _| {}).await.unwrap();
    let written = lines(&directory.path().join("s"));
    if written != GOLDEN {
        let actual = Path::new(env!("CARGO_TARGET_TMPDIR")).join("savepoint.txt");
        fs::write(&actual, written).unwrap();
        panic!(
            "the format has changed, which needs a new version and a reader for the old one; what was written is in {}",
            actual.display()
        );
    }
}

#[tokio::test]
async fn a_savepoint_of_the_first_release_is_begun_from() {
    let directory = tempfile::tempdir().unwrap();
    for line in GOLDEN.lines() {
        let (name, bytes) = line.split_once(' ').unwrap();
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, unhex(bytes)).unwrap();
    }
    let store = Store::open("memory://").unwrap();
    let name = directory.path().to_str().unwrap();
    let verified = store.verify_savepoint(name).await.unwrap();
    assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
    let told = store.read_savepoint(name).await.unwrap().savepoint;
    assert_eq!((told.job, told.job_name.as_str()), (JOB, "totals"));
    assert_eq!((told.parallelism, told.max_parallelism), (2, 128));
    assert_eq!(told.metadata.job_graph_hash, 0x0123_4567_89ab_cdef);

    let (job, first) = (JobId([1; 16]), CheckpointId::new(Epoch(1), 0));
    let (_, metadata) = store.import_savepoint(name, job, first).await.unwrap();
    let mut images = images();
    for task in metadata.tasks {
        assert_eq!(task.finished, task.task == NATIVE);
        let (image, _) = store
            .read_image(job, task.task, &task.manifest)
            .await
            .unwrap();
        assert!(images.remove(&task.task) == Some(image), "{}", task.task);
    }
    assert!(images.is_empty());
}
