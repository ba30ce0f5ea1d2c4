//! Savepoints that somebody has put together by hand, or that were damaged on their way: whatever a directory holds, it is
//! refused by name, takes no more memory than it may, and touches nothing outside.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{ATTEMPT, CHECKPOINT, JOB, TASK, files, id_of, image, object, write_full};
use tempfile::TempDir;
use tidemill_protocol::codec;
use tidemill_protocol::manifest::{
    BlockRef, CheckpointMetadata, Manifest, Savepoint, TaskImageRef,
};
use tidemill_protocol::{CheckpointId, Epoch, JobId, ModuleHash, TaskId};
use tidemill_storage::{SavepointError, Store, keys};

const NEW_JOB: JobId = JobId([0x0c; 16]);
const FIRST: CheckpointId = CheckpointId::new(Epoch(9), 0);
const MODULE: &[u8] = b"\0asm module";

/// The directory of a savepoint, to be made by hand.
struct Forged {
    directory: TempDir,
    savepoint: Savepoint,
    manifest: Manifest,
}

impl Forged {
    /// One task, whose memory is one page of a segment.
    fn new() -> Self {
        let page = vec![7; 4096];
        let segment = lz4_flex::block::compress(&page);
        let segment_object = object("segments/x.segment", &segment);
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("segments")).unwrap();
        fs::write(directory.path().join("segments/x.segment"), &segment).unwrap();
        fs::write(directory.path().join("module"), MODULE).unwrap();
        fs::write(directory.path().join("graph"), "graph").unwrap();
        let manifest = Manifest {
            job: JOB,
            task: TASK,
            checkpoint: CHECKPOINT,
            base: None,
            memory_bytes: 65_536,
            blocks: vec![BlockRef {
                first_page: 1,
                pages: 1,
                segment: 0,
                offset: 0,
                len: u32::try_from(segment.len()).unwrap(),
                checksum: crc32fast::hash(&page),
            }],
            segments: vec![segment_object],
            globals: vec![],
            tables: vec![],
            host_state: vec![],
            channel_state: vec![],
        };
        let module = object("module", MODULE);
        let savepoint = Savepoint {
            job: JOB,
            job_name: "forged".into(),
            parameters: BTreeMap::new(),
            parallelism: 1,
            max_parallelism: 1,
            metadata: CheckpointMetadata {
                job: JOB,
                checkpoint: CHECKPOINT,
                module: ModuleHash(module.hash),
                job_graph_hash: 1,
                tasks: vec![],
            },
            module,
            graph: object("graph", b"graph"),
            created_at_ms: 0,
            version: "0".into(),
        };
        Self {
            directory,
            savepoint,
            manifest,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn name(&self) -> String {
        self.path().display().to_string()
    }

    /// Writes the manifest as it is now, and a part that names it.
    fn with_task(mut self, task: TaskId, key: &str) -> Self {
        let bytes = codec::encode(&self.manifest);
        if let Some(name) = key
            .strip_suffix(".manifest")
            .filter(|key| !key.contains('/'))
        {
            fs::write(self.path().join(format!("{name}.manifest")), &bytes).unwrap();
        }
        self.savepoint.metadata.tasks.push(TaskImageRef {
            task,
            attempt: ATTEMPT,
            manifest: object(key, &bytes),
            finished: false,
        });
        self
    }

    fn sealed(self) -> Self {
        let mut bytes = codec::encode(&self.savepoint);
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        fs::write(self.path().join("savepoint"), bytes).unwrap();
        self
    }

    async fn import(&self) -> Result<Vec<u8>, SavepointError> {
        let (_directory, store) = files();
        let imported = store.import_savepoint(&self.name(), NEW_JOB, FIRST).await?;
        let part = &imported.1.tasks[0];
        let read = store.read_image(NEW_JOB, part.task, &part.manifest).await;
        Ok(read?.0.memory)
    }

    /// What a job is told that is to begin from it.
    async fn refusal(self) -> String {
        let refused = self.sealed().import().await.expect_err("it is refused");
        refused.to_string()
    }
}

#[tokio::test]
async fn a_savepoint_that_is_right_is_taken_from_whoever_made_it() {
    let forged = Forged::new().with_task(TASK, "a.manifest").sealed();
    let memory = forged.import().await.unwrap();
    assert!(memory[4096..8192].iter().all(|byte| *byte == 7));
    assert!(memory[8192..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_savepoint_names_nothing_outside_its_directory() {
    for key in [
        "../a.manifest",
        "/etc/passwd",
        "segments/../../a.manifest",
        "deep/er/a.manifest",
        "./a.manifest",
        "a.manifest/../../b.manifest",
        "",
    ] {
        let told = Forged::new().with_task(TASK, key).refusal().await;
        assert!(told.contains("no part of a savepoint"), "{key}: {told}");
    }
    for outside in ["../x.segment", "segments/../../x.segment", "/etc/passwd"] {
        let mut forged = Forged::new();
        forged.manifest.segments[0].key = outside.into();
        let told = forged.with_task(TASK, "a.manifest").refusal().await;
        assert!(
            told.contains("passwd") || told.contains(".."),
            "{outside}: {told}"
        );
    }
}

#[tokio::test]
async fn a_savepoint_has_each_task_once_and_the_module_that_its_tasks_ran() {
    let twice = Forged::new()
        .with_task(TASK, "a.manifest")
        .with_task(TASK, "b.manifest");
    let told = twice.refusal().await;
    assert!(told.contains("two images of task"), "{told}");
    let mut other = Forged::new().with_task(TASK, "a.manifest");
    other.savepoint.metadata.module = ModuleHash([1; 32]);
    let told = other.refusal().await;
    assert!(told.contains("module"), "{told}");
    let mut two = Forged::new();
    let mut longer = two.manifest.segments[0].clone();
    longer.len += 1;
    two.manifest.segments.push(longer);
    two.manifest.blocks.push(BlockRef {
        first_page: 3,
        segment: 1,
        ..two.manifest.blocks[0]
    });
    let told = two.with_task(TASK, "a.manifest").refusal().await;
    assert!(told.contains("another length"), "{told}");
}

#[tokio::test]
async fn a_savepoint_of_absurd_size_is_not_read_into_memory() {
    let terabyte = 1 << 40;
    let enormous = |path: &Path| File::create(path).unwrap().set_len(terabyte).unwrap();
    let forged = Forged::new();
    enormous(&forged.path().join("savepoint"));
    let told = forged.import().await.unwrap_err().to_string();
    assert!(told.contains("1099511627776 bytes"), "{told}");

    let mut forged = Forged::new().with_task(TASK, "a.manifest");
    forged.savepoint.metadata.tasks[0].manifest.len = terabyte;
    enormous(&forged.path().join("a.manifest"));
    let told = forged.refusal().await;
    assert!(
        told.contains("a.manifest") && told.contains("nothing of its kind"),
        "{told}"
    );

    // Nor is it copied: a segment is no larger than a memory.
    let mut forged = Forged::new();
    forged.manifest.segments[0].len = terabyte;
    enormous(&forged.path().join("segments/x.segment"));
    let told = forged.with_task(TASK, "a.manifest").refusal().await;
    assert!(
        told.contains("x.segment") && told.contains("1099511627776 bytes"),
        "{told}"
    );
}

#[tokio::test]
async fn an_image_that_begins_a_job_is_a_file_of_its_own_and_no_link_to_the_savepoints() {
    let (directory, store) = files();
    let forged = Forged::new().with_task(TASK, "a.manifest").sealed();
    let inside = directory.path().join("savepoints/a");
    fs::create_dir_all(inside.join("segments")).unwrap();
    for name in ["savepoint", "module", "graph", "a.manifest"] {
        fs::copy(forged.path().join(name), inside.join(name)).unwrap();
    }
    let elsewhere = forged.path().join("segments/x.segment");
    symlink(&elsewhere, inside.join("segments/x.segment")).unwrap();
    let imported = store.import_savepoint("savepoints/a", NEW_JOB, FIRST).await;
    let part = imported.unwrap().1.tasks.remove(0);
    drop(forged);
    assert!(!elsewhere.exists());
    let image = store.read_image(NEW_JOB, part.task, &part.manifest).await;
    assert_eq!(image.unwrap().0.memory[4096], 7);
}

#[tokio::test]
async fn the_clusters_own_objects_are_its_own_under_every_name() {
    let (directory, store) = files();
    let other_name = tempfile::tempdir().unwrap();
    let link = other_name.path().join("link");
    symlink(directory.path(), &link).unwrap();
    let module = directory.path().join("checkpoints/x/module");
    fs::create_dir_all(module.parent().unwrap()).unwrap();
    fs::write(&module, MODULE).unwrap();
    for name in [
        format!("{}/checkpoints/x", link.display()),
        format!("file://{}/checkpoints/x/", link.display()),
        format!("{}/checkpoints/x", directory.path().display()),
        "checkpoints/x".into(),
        "/checkpoints/x".into(),
    ] {
        let error = store.delete_savepoint(&name).await.unwrap_err();
        assert!(matches!(error, SavepointError::NotThere { .. }), "{error}");
        assert!(module.exists(), "{name}");
    }
}

#[tokio::test]
async fn deleting_a_savepoint_takes_nothing_else_from_its_directory() {
    let (_directory, store) = files();
    let forged = Forged::new().with_task(TASK, "a.manifest").sealed();
    let mine = ["notes", "notes#1", "deep/er/module", "segments/readme"];
    for name in mine {
        let path = forged.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
    }
    fs::write(forged.path().join("a.manifest#7"), "cut off").unwrap();
    store.delete_savepoint(&forged.name()).await.unwrap();
    let mut left: Vec<_> = common::all_files(forged.path())
        .into_iter()
        .map(|path| path.strip_prefix(forged.path()).unwrap().to_owned())
        .collect();
    left.sort();
    let mut expected = mine.map(std::path::PathBuf::from);
    expected.sort();
    assert_eq!(left, expected);

    // A project that happens to have files of these names.
    let project = tempfile::tempdir().unwrap();
    for name in ["module", "graph", "a.manifest"] {
        fs::write(project.path().join(name), "mine").unwrap();
    }
    let name = project.path().display().to_string();
    let error = store.delete_savepoint(&name).await.unwrap_err();
    assert!(matches!(error, SavepointError::NotThere { .. }), "{error}");
    assert_eq!(common::all_files(project.path()).len(), 3);
}

#[tokio::test]
async fn a_savepoint_of_which_a_part_did_not_arrive_is_listed_with_what_is_missing() {
    let (directory, store) = files();
    let forged = Forged::new().with_task(TASK, "a.manifest").sealed();
    let copied = |name: &str, objects: &[&str]| {
        let place = directory.path().join("savepoints").join(name);
        fs::create_dir_all(&place).unwrap();
        for object in objects {
            fs::copy(forged.path().join(object), place.join(object)).unwrap();
        }
    };
    copied("begun", &["module"]);
    copied("half", &["module", "graph", "savepoint"]);
    copied("whole", &["module", "graph", "savepoint", "a.manifest"]);
    let listed = store.list_savepoints("savepoints").await.unwrap();
    let told: Vec<_> = listed
        .into_iter()
        .map(|one| match one.savepoint {
            Ok(_) => (one.path, vec![]),
            Err(SavepointError::Incomplete { missing, .. }) => (one.path, missing),
            Err(error) => panic!("{error}"),
        })
        .collect();
    let expected = [
        ("savepoints/begun", vec!["savepoint", "graph"]),
        ("savepoints/half", vec!["a.manifest"]),
        ("savepoints/whole", vec![]),
    ];
    let expected = expected.map(|(path, missing)| {
        let missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
        (path.to_owned(), missing)
    });
    assert_eq!(told, expected);
    for name in ["begun", "half", "whole"] {
        let name = format!("savepoints/{name}");
        store.delete_savepoint(&name).await.unwrap();
        assert!(!directory.path().join(name).exists());
    }
}

#[tokio::test]
async fn no_bit_of_a_retained_checkpoint_can_flip_unnoticed() {
    let (directory, store) = files();
    let id = CheckpointId::new(Epoch(3), 18);
    let manifest = write_full(&store, id_of(id), &image(&[Some(1)])).await;
    let metadata = CheckpointMetadata {
        job: JOB,
        checkpoint: id,
        module: store.put_module(MODULE).await.unwrap(),
        job_graph_hash: 1,
        tasks: vec![TaskImageRef {
            task: TASK,
            attempt: ATTEMPT,
            manifest: manifest.unwrap().manifest,
            finished: false,
        }],
    };
    let written = store.write_metadata(&metadata).await.unwrap();
    let other = Store::open("memory://").unwrap();
    let name = format!(
        "{}/{}",
        directory.path().display(),
        keys::checkpoint(JOB, id)
    );
    assert_eq!(other.checkpoint_at(&name).await.unwrap(), metadata);
    let path = directory.path().join(&written.key);
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).unwrap();
        other.checkpoint_at(&name).await.expect_err("it is damaged");
    }
}
