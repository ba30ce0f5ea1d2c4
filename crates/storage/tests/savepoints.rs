//! Savepoints from their writing to their end: what is written, moved, listed, damaged, begun from and deleted.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::{
    ATTEMPT, BLOCK, JOB, TASK, all_files, files, id_of, image, noise, record, write_full,
};
use tidemill_object_server::{Fault, ObjectServer};
use tidemill_protocol::image::{PAGE_BYTES, PageRun, StoredCapture};
use tidemill_protocol::manifest::{CheckpointMetadata, Savepoint, TaskImageRef};
use tidemill_protocol::record::JobRecord;
use tidemill_protocol::{CheckpointId, Epoch, Image, JobId, TaskId};
use tidemill_storage::{CaptureId, ReadError, SavepointError, SavepointOf, Store, keys};

const OTHER_TASK: TaskId = TaskId::new(2, 0);
const NEW_JOB: JobId = JobId([0x0c; 16]);
const FIRST: CheckpointId = CheckpointId::new(Epoch(9), 0);

/// What a module begins with.
const WASM: &[u8] = b"\0asm";

/// A job with a completed checkpoint of two tasks; that of [`TASK`] is a delta on an earlier one.
struct Job {
    record: JobRecord,
    metadata: CheckpointMetadata,
    images: BTreeMap<TaskId, Image>,
}

impl Job {
    async fn with_a_checkpoint(store: &Store) -> Self {
        let module = [WASM, &noise(77, 100_000)].concat();
        let module = store.put_module(module).await.unwrap();
        let graph = store.put_graph(JOB, "graph").await.unwrap();
        let mut whole = image(&[Some(1), None, Some(2), Some(3)]);
        let base = CheckpointId::new(Epoch(3), 16);
        let first = write_full(store, id_of(base), &whole).await.unwrap();
        let (_, mut chain) = store.read_image(JOB, TASK, &first.manifest).await.unwrap();
        let run = PageRun {
            first: 3,
            pages: 9,
            zero: false,
        };
        whole.memory[run.memory_range()].copy_from_slice(&noise(9, 9 * PAGE_BYTES));
        whole.host_state = b"offset 43".to_vec();
        let delta = Arc::new(StoredCapture {
            memory_bytes: whole.memory.len() as u64,
            runs: vec![run],
            bytes: whole.memory[run.memory_range()].to_vec(),
            globals: whole.globals.clone(),
            tables: whole.tables.clone(),
            host_state: whole.host_state.clone(),
            channel_state: whole.channel_state.clone(),
        });
        let checkpoint = common::CHECKPOINT;
        let written = store.write_capture(id_of(checkpoint), &delta, &mut chain);
        let delta = written.await.unwrap().manifest;
        let native = Image {
            host_state: b"native".to_vec(),
            ..Image::default()
        };
        let id = CaptureId {
            task: OTHER_TASK,
            ..id_of(checkpoint)
        };
        let other = write_full(store, id, &native).await.unwrap().manifest;
        let tasks = [(TASK, delta), (OTHER_TASK, other)];
        let tasks = tasks.map(|(task, manifest)| TaskImageRef {
            task,
            attempt: ATTEMPT,
            manifest,
            finished: task == OTHER_TASK,
        });
        let metadata = CheckpointMetadata {
            job: JOB,
            checkpoint,
            module,
            job_graph_hash: 0x77,
            tasks: tasks.into(),
        };
        let record = record(&metadata, graph);
        Self {
            record,
            metadata,
            images: BTreeMap::from([(TASK, whole), (OTHER_TASK, native)]),
        }
    }

    fn savepoint(&self) -> SavepointOf<'_> {
        SavepointOf {
            record: &self.record,
            metadata: &self.metadata,
            created_at_ms: 1_700_000_000_000,
        }
    }

    async fn write(&self, store: &Store, name: &str) -> Savepoint {
        let written = store.write_savepoint(name, self.savepoint(), |_, _| {});
        written.await.unwrap().savepoint
    }

    /// Whether a job that begins from there is what this one was.
    async fn is_begun_from(&self, store: &Store, name: &str) {
        let imported = store.import_savepoint(name, NEW_JOB, FIRST).await;
        let (object, metadata) = imported.unwrap();
        assert_eq!(object.key, keys::metadata(NEW_JOB, FIRST));
        assert_eq!(store.read_metadata(&object).await.unwrap(), metadata);
        assert_eq!((metadata.job, metadata.checkpoint), (NEW_JOB, FIRST));
        let same = |metadata: &CheckpointMetadata| (metadata.module, metadata.job_graph_hash);
        assert_eq!(same(&metadata), same(&self.metadata));
        assert_eq!(metadata.tasks.len(), self.images.len());
        for task in &metadata.tasks {
            assert_eq!(task.finished, task.task == OTHER_TASK);
            let read = store.read_image(NEW_JOB, task.task, &task.manifest).await;
            assert!(read.unwrap().0 == self.images[&task.task], "{}", task.task);
        }
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_savepoint_outlives_its_job() {
    for (_directory, store) in common_stores() {
        let job = Job::with_a_checkpoint(&store).await;
        let progress = Mutex::new(Vec::new());
        let written = store
            .write_savepoint("savepoints/a", job.savepoint(), |done, total| {
                progress.lock().unwrap().push((done, total));
            })
            .await
            .unwrap();
        let progress = progress.into_inner().unwrap();
        assert!(progress.is_sorted() && progress.len() == 3, "{progress:?}");
        let (done, total) = progress[2];
        assert_eq!(done, total);
        assert!(written.bytes > total, "manifests, and the savepoint itself");
        assert_eq!(written.path, "savepoints/a");
        let told = &written.savepoint;
        assert_eq!((told.job, told.job_name.as_str()), (JOB, "totals"));
        assert_eq!(told.parameters, job.record.parameters);
        assert_eq!((told.parallelism, told.max_parallelism), (2, 128));
        assert_eq!(told.created_at_ms, 1_700_000_000_000);
        assert_eq!(told.metadata.checkpoint, job.metadata.checkpoint);

        store.delete_job(JOB).await.unwrap();
        assert_eq!(store.read_savepoint("savepoints/a").await.unwrap(), written);
        let verified = store.verify_savepoint("savepoints/a").await.unwrap();
        assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
        assert_eq!(
            verified.objects, 6,
            "module, graph, two manifests, two segments"
        );
        assert!(verified.bytes < written.bytes && verified.bytes > total);
        job.is_begun_from(&store, "savepoints/a").await;

        // And the new job needs nothing of it.
        store.delete_savepoint("savepoints/a").await.unwrap();
        for (task, image) in &job.images {
            let key = keys::manifest(NEW_JOB, *task, ATTEMPT, FIRST);
            let (_, metadata) = store
                .import_savepoint(&keys::checkpoint(NEW_JOB, FIRST), JobId([1; 16]), FIRST)
                .await
                .unwrap();
            let part = metadata
                .tasks
                .iter()
                .find(|part| part.task == *task)
                .unwrap();
            let read = store
                .read_image(JobId([1; 16]), *task, &part.manifest)
                .await;
            assert!(read.unwrap().0 == *image, "{key}");
        }
    }
}

fn common_stores() -> [(Option<tempfile::TempDir>, Store); 2] {
    let (directory, store) = files();
    [
        (Some(directory), store),
        (None, Store::open("memory://").unwrap()),
    ]
}

#[tokio::test]
async fn savepoints_are_worked_on_by_whatever_thread_is_free() {
    let (_directory, store) = files();
    let job = Job::with_a_checkpoint(&store).await;
    let work = async move {
        let name = "savepoints/a";
        job.write(&store, name).await;
        store.import_savepoint(name, NEW_JOB, FIRST).await.unwrap();
        store.list_savepoints("savepoints").await.unwrap();
        store.verify_savepoint(name).await.unwrap();
        store.delete_savepoint(name).await.unwrap();
        let since = SystemTime::now();
        store
            .delete_incomplete_savepoints("", since)
            .await
            .unwrap_err();
    };
    tokio::spawn(work).await.unwrap();
}

#[tokio::test]
async fn a_savepoint_can_be_copied_elsewhere_and_begun_from_by_its_url() {
    let (directory, store) = files();
    let job = Job::with_a_checkpoint(&store).await;
    let named = job.write(&store, "savepoints/a").await;
    let outside = tempfile::tempdir().unwrap();
    let moved = outside.path().join("moved/here");
    copy_directory(&directory.path().join("savepoints/a"), &moved);
    let url = format!("file://{}", moved.display());
    assert_eq!(store.read_savepoint(&url).await.unwrap().savepoint, named);

    // Another cluster, with another store, which never heard of the first.
    drop(directory);
    let (_other_directory, other) = files();
    let verified = other.verify_savepoint(&url).await.unwrap();
    assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
    job.is_begun_from(&other, &url).await;
    job.is_begun_from(&other, &moved.display().to_string())
        .await;
}

#[tokio::test]
async fn a_savepoint_can_be_written_to_another_store() {
    let (_directory, store) = files();
    let mut job = Job::with_a_checkpoint(&store).await;
    // A segment of several parts.
    let mut large = image(&[]);
    large.memory = noise(5, 20 << 20);
    let written = write_full(&store, id_of(CheckpointId::new(Epoch(3), 18)), &large).await;
    job.metadata.checkpoint = CheckpointId::new(Epoch(3), 18);
    job.metadata.tasks[0].manifest = written.unwrap().manifest;
    job.images.insert(TASK, large);
    let outside = tempfile::tempdir().unwrap();
    let url = format!("file://{}/x", outside.path().display());
    let written = store
        .write_savepoint(&url, job.savepoint(), |_, _| {})
        .await;
    assert_eq!(written.unwrap().path, url);
    let memory = Store::open("memory://").unwrap();
    job.is_begun_from(&memory, &url).await;
}

#[tokio::test]
async fn a_retained_checkpoint_is_begun_from_as_a_savepoint_is() {
    let (directory, store) = files();
    let job = Job::with_a_checkpoint(&store).await;
    store.write_metadata(&job.metadata).await.unwrap();
    let name = format!("checkpoints/{JOB}/3-17");
    let there = store.checkpoint_at(&name).await.unwrap();
    assert_eq!(there, job.metadata);
    job.is_begun_from(&store, &name).await;
    let url = format!("{}/{name}", store.url());
    job.is_begun_from(&store, &url).await;
    let other = Store::open("memory://").unwrap();
    job.is_begun_from(&other, &format!("{}/{name}", directory.path().display()))
        .await;
    let verified = store.verify_savepoint(&name).await.unwrap();
    assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);

    for refused in [
        store.read_savepoint(&name).await.unwrap_err(),
        store.delete_savepoint(&name).await.unwrap_err(),
    ] {
        assert!(
            matches!(refused, SavepointError::NotASavepoint { .. }),
            "{refused}"
        );
    }
    job.is_begun_from(&store, &name).await;
}

#[tokio::test]
async fn a_name_tells_which_checkpoint_of_this_store_it_means() {
    let (directory, store) = files();
    let id = CheckpointId::new(Epoch(3), 17);
    let name = format!("checkpoints/{JOB}/3-17");
    for name in [&name, &format!("{}/{name}", directory.path().display())] {
        let named = store.checkpoint_named(name).unwrap();
        assert_eq!(named, Some((JOB, id)), "{name}");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = format!("{}/{name}", elsewhere.path().display());
    for other in ["savepoints/a", "checkpoints", &elsewhere] {
        assert_eq!(store.checkpoint_named(other).unwrap(), None, "{other}");
    }
    assert!(store.checkpoint_named("../a").is_err());
}

#[tokio::test]
async fn metadata_that_was_put_elsewhere_is_not_begun_from() {
    let (_directory, store) = files();
    let job = Job::with_a_checkpoint(&store).await;
    let object = store.write_metadata(&job.metadata).await.unwrap();
    let bytes = store.get_object(&object).await.unwrap();
    let other = CheckpointId::new(Epoch(3), 18);
    store
        .put_object(&keys::metadata(JOB, other), bytes)
        .await
        .unwrap();
    let name = format!("checkpoints/{JOB}/3-18");
    let refused = store.checkpoint_at(&name).await.unwrap_err();
    assert!(
        refused.to_string().contains("is of checkpoint 3.17"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_savepoint_is_never_overwritten() {
    for (_directory, store) in common_stores() {
        let mut job = Job::with_a_checkpoint(&store).await;
        let first = job.write(&store, "savepoints/a").await;
        assert_eq!(
            job.write(&store, "savepoints/a/").await,
            first,
            "the same again"
        );
        job.metadata.checkpoint = CheckpointId::new(Epoch(3), 18);
        let error = store
            .write_savepoint("savepoints/a", job.savepoint(), |_, _| {})
            .await;
        let error = error.unwrap_err();
        assert!(matches!(error, SavepointError::Taken { .. }), "{error}");
        assert!(error.to_string().contains("`savepoints/a`"), "{error}");
        let there = store.read_savepoint("savepoints/a").await.unwrap();
        assert_eq!(there.savepoint, first);
        for own in ["checkpoints/x", "jobs/x", "modules"] {
            let error = store
                .write_savepoint(own, job.savepoint(), |_, _| {})
                .await
                .unwrap_err();
            assert!(matches!(error, SavepointError::Reserved { .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn what_is_no_savepoint_is_told_from_what_is_damaged_or_of_a_newer_release() {
    let (directory, store) = files();
    let job = Job::with_a_checkpoint(&store).await;
    job.write(&store, "savepoints/a").await;
    for nothing in ["savepoints/b", "savepoints", "jobs/x", "checkpoints/x"] {
        for error in [
            store.read_savepoint(nothing).await.unwrap_err(),
            store.verify_savepoint(nothing).await.unwrap_err(),
            store.delete_savepoint(nothing).await.unwrap_err(),
            store
                .import_savepoint(nothing, NEW_JOB, FIRST)
                .await
                .unwrap_err(),
        ] {
            assert!(
                matches!(error, SavepointError::NotThere { .. }),
                "{error:?}"
            );
            assert!(error.to_string().contains(nothing), "{error}");
        }
    }
    let path = directory.path().join("savepoints/a/savepoint");
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &damaged).unwrap();
        let error = store.read_savepoint("savepoints/a").await.unwrap_err();
        let SavepointError::Read(error) = error else {
            panic!("{error:?}");
        };
        let version = (16..32).contains(&bit);
        assert_eq!(
            matches!(error, ReadError::Unsupported { .. }),
            version,
            "{error:?}"
        );
        assert_eq!(error.is_lost(), !version);
        let message = error.to_string();
        assert!(message.contains("`savepoints/a/savepoint`"), "{message}");
        assert!(
            !version || message.contains("use the release that wrote it"),
            "{message}"
        );
    }
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = store.read_savepoint("savepoints/a").await.unwrap_err();
        assert!(
            matches!(error, SavepointError::Read(ReadError::Damaged { .. })),
            "{error:?}"
        );
    }
    fs::remove_file(&path).unwrap();
    for error in [
        store.read_savepoint("savepoints/a").await.unwrap_err(),
        store.verify_savepoint("savepoints/a").await.unwrap_err(),
        store
            .import_savepoint("savepoints/a", NEW_JOB, FIRST)
            .await
            .unwrap_err(),
    ] {
        assert!(
            matches!(error, SavepointError::Incomplete { .. }),
            "{error:?}"
        );
    }
    // Written again, it is whole again; deleted, there is nothing left of it.
    job.write(&store, "savepoints/a").await;
    fs::remove_file(&path).unwrap();
    store.delete_savepoint("savepoints/a").await.unwrap();
    assert!(!directory.path().join("savepoints/a").exists());
}

#[tokio::test]
async fn verification_names_every_damaged_object() {
    let (directory, store) = files();
    let job = Job::with_a_checkpoint(&store).await;
    job.write(&store, "savepoints/a").await;
    let root = directory.path().join("savepoints/a");
    let objects = all_files(&root);
    assert_eq!(objects.len(), 7);
    for path in &objects {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
        if name == "savepoint" {
            continue;
        }
        let whole = fs::read(path).unwrap();
        for (bit, damaged) in (0..8)
            .cycle()
            .zip((0..whole.len()).step_by(whole.len() / 8 + 1))
        {
            let mut bytes = whole.clone();
            bytes[damaged] ^= 1 << bit;
            // Not in place: the file may be the checkpoint's, too.
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
            let verified = store.verify_savepoint("savepoints/a").await.unwrap();
            let told: Vec<_> = verified.damaged.iter().map(ToString::to_string).collect();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains(name), "{name}: {told:?}");
        }
        fs::remove_file(path).unwrap();
        let verified = store.verify_savepoint("savepoints/a").await.unwrap();
        assert!(
            matches!(verified.damaged[..], [ReadError::Missing { .. }]),
            "{verified:?}"
        );
        fs::write(path, whole).unwrap();
    }
    let verified = store.verify_savepoint("savepoints/a").await.unwrap();
    assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
}

#[tokio::test]
async fn savepoints_are_listed_with_what_was_left_of_others() {
    for (_directory, store) in common_stores() {
        assert!(
            store
                .list_savepoints("savepoints")
                .await
                .unwrap()
                .is_empty()
        );
        let job = Job::with_a_checkpoint(&store).await;
        for name in ["savepoints/b", "savepoints/deep/er/a", "elsewhere/c"] {
            job.write(&store, name).await;
        }
        store
            .put_object("savepoints/begun/module", WASM)
            .await
            .unwrap();
        store
            .put_object("savepoints/odd/savepoint", "not one")
            .await
            .unwrap();
        store.put_object("savepoints/notes", "mine").await.unwrap();
        let listed = store.list_savepoints("savepoints").await.unwrap();
        let told: Vec<_> = listed
            .iter()
            .map(|found| (found.path.as_str(), found.savepoint.is_ok()))
            .collect();
        let expected = [
            ("savepoints/b", true),
            ("savepoints/begun", false),
            ("savepoints/deep/er/a", true),
            ("savepoints/odd", false),
        ];
        assert_eq!(told, expected);
        assert_eq!(
            listed[0].bytes,
            store.read_savepoint("savepoints/b").await.unwrap().bytes
        );
        assert!(matches!(
            listed[1].savepoint,
            Err(SavepointError::Incomplete { .. })
        ));
        let reserved = store.list_savepoints("checkpoints").await.unwrap_err();
        assert!(
            matches!(reserved, SavepointError::Reserved { .. }),
            "{reserved}"
        );
    }
}

#[tokio::test]
async fn what_was_left_of_savepoints_goes_when_it_is_old_and_the_savepoints_stay() {
    let (directory, store) = files();
    let job = Job::with_a_checkpoint(&store).await;
    for name in ["savepoints/whole", "savepoints/left"] {
        job.write(&store, name).await;
    }
    let left = directory.path().join("savepoints/left");
    fs::remove_file(left.join("savepoint")).unwrap();
    fs::write(left.join("graph#1"), "half of it").unwrap();
    fs::create_dir_all(directory.path().join("savepoints/begun")).unwrap();
    let upload = directory.path().join("savepoints/begun/module#1");
    fs::write(&upload, "half of it").unwrap();
    let day = Duration::from_secs(86_400);
    let cleaned = async |since: SystemTime| {
        let cleaned = store.delete_incomplete_savepoints("savepoints", since);
        cleaned.await.unwrap()
    };
    assert!(cleaned(SystemTime::now() - day).await.is_empty());
    assert!(left.exists() && upload.exists());
    assert_eq!(cleaned(SystemTime::now() + day).await, ["savepoints/left"]);
    assert!(!left.exists() && !upload.exists());
    job.is_begun_from(&store, "savepoints/whole").await;
}

#[tokio::test]
async fn a_savepoint_holds_nothing_that_its_checkpoint_does_not_need() {
    let (directory, store) = files();
    let job = Job::with_a_checkpoint(&store).await;
    // One more base, of which nothing is left.
    let later = CheckpointId::new(Epoch(3), 18);
    let mut image = job.images[&TASK].clone();
    image.memory[..BLOCK].fill(0);
    let manifest = write_full(&store, id_of(later), &image)
        .await
        .unwrap()
        .manifest;
    let mut job = job;
    job.metadata.tasks[0].manifest = manifest;
    job.metadata.checkpoint = later;
    job.images.insert(TASK, image);
    job.write(&store, "savepoints/a").await;
    let segments = all_files(&directory.path().join("savepoints/a/segments"));
    assert_eq!(segments.len(), 1, "{segments:?}");
    job.is_begun_from(&store, "savepoints/a").await;
}

#[tokio::test]
async fn a_savepoint_in_a_bucket_is_as_good_as_one_in_a_directory() {
    let server = ObjectServer::start().unwrap();
    let store = Store::open_with(&server.url("some/where"), &server.environment()).unwrap();
    let job = Job::with_a_checkpoint(&store).await;
    // The server does what it was asked for, and the answers are lost: of a copy, and of what makes the savepoint one.
    server.faults().next(1, "/segments/", Fault::LostReply);
    server
        .faults()
        .next(1, "/savepoints/one/savepoint ", Fault::LostReply);
    job.write(&store, "savepoints/one").await;
    assert_eq!(store.list_savepoints("savepoints").await.unwrap().len(), 1);
    store.verify_savepoint("savepoints/one").await.unwrap();
    store.delete_job(JOB).await.unwrap();
    job.is_begun_from(&store, "savepoints/one").await;
    store.delete_savepoint("savepoints/one").await.unwrap();
    assert_eq!(store.list_savepoints("savepoints").await.unwrap().len(), 0);
}
