//! The store in a bucket of an S3-compatible server: all that it can do over `file://` it can do here, and through trouble
//! on the way that passes.

mod common;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{JOB, TASK, all_files, files, id_of, image, noise, publish, read, write, write_full};
use tidemill_object_server::{Fault, ObjectServer};
use tidemill_protocol::image::{PAGE_BYTES, PageRun, StoredCapture};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{CheckpointId, Epoch};
use tidemill_storage::{
    CleanupError, ImageChain, OpenError, ReadError, Store, WriteError, WrittenImage,
};

/// A server, and a store in it whose single tries take half a second at most.
fn bucket() -> (ObjectServer, Store) {
    let server = ObjectServer::start().unwrap();
    let store = open(&server, &[("AWS_TIMEOUT", "500ms")]).unwrap();
    assert!(store.is_bucket());
    (server, store)
}

/// The store of a server, by its environment with some variables changed; an empty one is taken away.
fn open(server: &ObjectServer, changed: &[(&str, &str)]) -> Result<Store, OpenError> {
    let mut variables = server.environment();
    variables.retain(|(name, _)| changed.iter().all(|(other, _)| other != name));
    let added = changed.iter().filter(|(_, value)| !value.is_empty());
    variables.extend(added.map(|(name, value)| ((*name).into(), (*value).into())));
    Store::open_with(&server.url("some/where"), &variables)
}

async fn refusal(opened: Result<Store, OpenError>) -> (OpenError, String) {
    let error = match opened {
        Ok(store) => store.probe().await.unwrap_err(),
        Err(error) => error,
    };
    let text = error.to_string();
    (error, text)
}

fn checkpoint(counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(1), counter)
}

/// A capture of these pages of a memory.
fn capture(memory: &[u8], pages: &[u32]) -> Arc<StoredCapture> {
    let mut capture = StoredCapture {
        memory_bytes: memory.len() as u64,
        host_state: b"position".to_vec(),
        ..StoredCapture::default()
    };
    for first in pages {
        capture.runs.push(PageRun {
            first: *first,
            pages: 1,
            zero: false,
        });
        let start = *first as usize * PAGE_BYTES;
        capture
            .bytes
            .extend_from_slice(&memory[start..start + PAGE_BYTES]);
    }
    Arc::new(capture)
}

async fn capture_pages(
    store: &Store,
    counter: u64,
    (memory, pages): (&[u8], &[u32]),
    chain: &mut ImageChain,
) -> WrittenImage {
    let written = store
        .write_capture(id_of(checkpoint(counter)), &capture(memory, pages), chain)
        .await
        .unwrap();
    assert!(read(store, &written.manifest).await.unwrap().memory == memory);
    written
}

/// A chain of captures, one of them by a restored task; returns the last two checkpoints.
async fn write_chain(store: &Store) -> Vec<CheckpointPointer> {
    let (mut memory, mut chain) = (noise(1, 64 * PAGE_BYTES), ImageChain::new());
    let every: Vec<u32> = (0..64).collect();
    let mut pointers = Vec::new();
    for counter in 1..=6 {
        let pages: Vec<u32> = match counter {
            1 => every.clone(),
            _ => (0..5).map(|n| (counter as u32 * 7 + n * 11) % 64).collect(),
        };
        for page in &pages {
            let bytes = match page % 3 {
                0 => vec![0; PAGE_BYTES],
                _ => noise(counter * 100 + u64::from(*page), PAGE_BYTES),
            };
            memory[*page as usize * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(&bytes);
        }
        let written = capture_pages(store, counter, (&memory, &pages), &mut chain).await;
        let opened = store
            .open_image(JOB, TASK, &written.manifest)
            .await
            .unwrap();
        let mut found = vec![0; memory.len()];
        for (run, bytes) in opened.read(0..opened.pieces().len()).await.unwrap() {
            found[run.first as usize * PAGE_BYTES..][..bytes.len()].copy_from_slice(&bytes);
        }
        assert!(found == memory, "by pieces, after capture {counter}");
        if counter == 3 {
            chain = opened.chain();
        }
        let metadata = publish(store, checkpoint(counter), &written.manifest).await;
        pointers.push(CheckpointPointer {
            checkpoint: checkpoint(counter),
            metadata,
        });
    }
    pointers.split_off(4)
}

/// All that a store is asked for in the life of a job; `keys` lists what is in it.
async fn life_of_a_job(store: &Store, keys: impl Fn() -> Vec<String>) -> Vec<Vec<String>> {
    let module = noise(7, 300_000);
    let hash = store.put_module(module.clone()).await.unwrap();
    assert_eq!(store.get_module(&hash).await.unwrap(), module);
    let graph = store.put_graph(JOB, "graph").await.unwrap();
    assert_eq!(store.get_object(&graph).await.unwrap(), "graph");
    assert_eq!(store.list_checkpoints(JOB).await.unwrap(), []);

    let retained = write_chain(store).await;
    let mut seen = vec![keys()];
    let gone = store
        .delete_orphans(JOB, &retained, checkpoint(6))
        .await
        .unwrap();
    assert!(!gone.contains(&checkpoint(1)), "the others build upon it");
    seen.push(keys());
    for pointer in &retained {
        let metadata = store.read_metadata(&pointer.metadata).await.unwrap();
        read(store, &metadata.tasks[0].manifest).await.unwrap();
    }
    let listed = store.list_checkpoints(JOB).await.unwrap();
    assert!(listed.contains(&checkpoint(1)) && listed.contains(&checkpoint(6)));

    store.delete_checkpoint(JOB, checkpoint(6)).await.unwrap();
    let lost = store
        .read_metadata(&retained[1].metadata)
        .await
        .unwrap_err();
    assert!(matches!(lost, ReadError::Missing { .. }), "{lost:?}");
    store.delete_job(JOB).await.unwrap();
    assert_eq!(store.list_checkpoints(JOB).await.unwrap(), []);
    assert_eq!(store.get_module(&hash).await.unwrap(), module);
    seen.push(keys());
    seen
}

#[tokio::test]
async fn a_bucket_serves_as_a_directory_does() {
    let (directory, in_files) = files();
    let of_files = life_of_a_job(&in_files, || {
        let relative = |path: &std::path::PathBuf| {
            let path = path.strip_prefix(directory.path()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        all_files(directory.path()).iter().map(relative).collect()
    });
    let (server, in_bucket) = bucket();
    let of_bucket = life_of_a_job(&in_bucket, || {
        let keys = server.keys().unwrap();
        let relative = |key: &String| key.strip_prefix("some/where/").unwrap().to_owned();
        keys.iter().map(relative).collect()
    });
    let (of_files, of_bucket) = tokio::join!(of_files, of_bucket);
    assert_eq!(of_files, of_bucket);
    assert_eq!(of_bucket[2].len(), 1, "the module is all that stays");
}

#[tokio::test]
async fn a_large_segment_and_a_large_object_are_sent_in_parts() {
    let (server, store) = bucket();
    let mut large = image(&[]);
    large.memory = noise(3, 20 << 20);
    let written = write(&store, checkpoint(1), &large).await;
    assert!(
        server.faults().seen("partNumber=3&") == 1,
        "20 MiB are three parts of 8"
    );
    assert!(read(&store, &written.manifest).await.unwrap() == large);

    let module = noise(4, (9 << 20) + 1);
    let hash = store.put_module(module.clone()).await.unwrap();
    assert!(store.get_module(&hash).await.unwrap() == module);
    assert_eq!(server.faults().seen("?uploads"), 2);
    assert_eq!(server.parts_left().unwrap(), 0);
}

#[tokio::test]
async fn an_upload_that_fails_leaves_no_parts_and_no_object() {
    let (server, store) = bucket();
    let mut large = image(&[]);
    large.memory = noise(3, 20 << 20);
    for key in ["modules/x", "checkpoints"] {
        server.faults().next(1, "partNumber=2&", Fault::Status(403));
        let failed = match key {
            "modules/x" => store.put_object(key, large.memory.clone()).await.map(drop),
            _ => write_full(&store, id_of(checkpoint(1)), &large)
                .await
                .map(drop),
        };
        let error = failed.unwrap_err();
        assert!(matches!(error, WriteError::Failed { .. }), "{error:?}");
        assert_eq!(server.parts_left().unwrap(), 0);
        assert_eq!(server.keys().unwrap(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn trouble_that_passes_is_not_noticed() {
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Hang,
        Fault::Cut,
        Fault::LostReply,
    ] {
        let (server, store) = bucket();
        let faults = server.faults();
        faults.next(2, "PUT ", fault);
        faults.next(2, "GET ", fault);
        // A deletion of many keys that is not answered at all is not repeated by the client, but by the next clean-up.
        if fault != Fault::Hang {
            faults.next(2, "POST ", fault);
        }
        let image = image(&[Some(1), None, Some(2)]);
        let written = write(&store, checkpoint(1), &image).await;
        assert_eq!(
            read(&store, &written.manifest).await.unwrap(),
            image,
            "{fault:?}"
        );
        store.delete_job(JOB).await.unwrap();
        assert_eq!(server.keys().unwrap(), Vec::<String>::new(), "{fault:?}");
        assert!(
            faults.seen("PUT ") >= 4,
            "{fault:?}: two failed and two did not"
        );
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_again() {
    let (server, store) = bucket();
    let object = store.put_object("jobs/x", noise(1, 1 << 20)).await.unwrap();
    server.faults().next(3, "GET ", Fault::HalfReply);
    assert_eq!(store.get_object(&object).await.unwrap(), noise(1, 1 << 20));
    assert_eq!(server.faults().seen("GET "), 4);
}

#[tokio::test]
async fn a_large_upload_survives_lost_answers_at_every_step() {
    for part in [
        "?uploads",
        "partNumber=2&",
        "POST /tidemill-tests/some/where/modules/x?uploadId=",
    ] {
        for fault in [Fault::Status(503), Fault::LostReply] {
            let (server, store) = bucket();
            server.faults().next(1, part, fault);
            let object = store
                .put_object("modules/x", noise(1, 12 << 20))
                .await
                .unwrap_or_else(|error| panic!("{part} {fault:?}: {error:?}"));
            assert!(store.get_object(&object).await.unwrap() == noise(1, 12 << 20));
            assert_eq!(server.keys().unwrap().len(), 1);
        }
    }
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let (server, store) = bucket();
    server.faults().next(5, "PUT ", Fault::Status(403));
    let error = store.put_object("jobs/x", "graph").await.unwrap_err();
    assert!(error.to_string().contains("`jobs/x`"), "{error}");
    assert_eq!(server.faults().seen("PUT "), 1);
}

#[tokio::test]
async fn what_exists_is_not_created_again_and_a_lost_answer_is_no_failure() {
    let (server, bucket) = bucket();
    let (_directory, files) = files();
    for store in [&bucket, &files, &Store::open("memory://").unwrap()] {
        let made = store.put_new("savepoints/x", "mine").await.unwrap();
        assert_eq!(store.put_new("savepoints/x", "mine").await.unwrap(), made);
        let error = store.put_new("savepoints/x", "other").await.unwrap_err();
        assert!(
            matches!(error, WriteError::AlreadyExists { .. }),
            "{error:?}"
        );
        assert_eq!(store.get_object(&made).await.unwrap(), "mine");
    }
    for fault in [
        Fault::LostReply,
        Fault::Hang,
        Fault::Cut,
        Fault::Status(503),
    ] {
        server.faults().next(1, "PUT ", fault);
        let key = format!("savepoints/{fault:?}");
        let outcome = bucket.put_new(&key, "mine").await;
        match fault {
            // Whether it was done cannot be known, so it is not tried again; nothing is there.
            Fault::Hang => assert!(
                matches!(outcome, Err(WriteError::Failed { .. })),
                "{outcome:?}"
            ),
            _ => assert_eq!(bucket.get_object(&outcome.unwrap()).await.unwrap(), "mine"),
        }
    }
}

#[tokio::test]
async fn more_keys_than_one_answer_holds_are_listed_and_deleted() {
    let server = ObjectServer::start().unwrap();
    // A thousand deletions are one request, which takes as long as the disk does.
    let store = open(&server, &[]).unwrap();
    let newest = write(&store, checkpoint(3000), &image(&[Some(1)])).await;
    let retained = CheckpointPointer {
        checkpoint: checkpoint(3000),
        metadata: publish(&store, checkpoint(3000), &newest.manifest).await,
    };
    let one = server.file(&format!("some/where/{}", newest.manifest.key));
    for counter in 0..2500 {
        let name = newest
            .manifest
            .key
            .replace(&format!("-{:020}/", 3000), &format!("-{counter:020}/"));
        assert_ne!(name, newest.manifest.key);
        let copy = server.file(&format!("some/where/{name}"));
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&one, copy).unwrap();
    }
    assert_eq!(store.list_checkpoints(JOB).await.unwrap().len(), 2501);
    store
        .delete_job(tidemill_protocol::JobId([0x0b; 16]))
        .await
        .unwrap();
    assert_eq!(server.keys().unwrap().len(), 2503);
    read(&store, &newest.manifest).await.unwrap();
    store.read_metadata(&retained.metadata).await.unwrap();
    store.delete_job(JOB).await.unwrap();
    assert_eq!(server.keys().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_says_why() {
    let server = ObjectServer::start().unwrap();
    open(&server, &[]).unwrap().probe().await.unwrap();

    let wrong_secret = open(&server, &[("AWS_SECRET_ACCESS_KEY", "wrong")]);
    let (error, text) = refusal(wrong_secret).await;
    assert!(matches!(error, OpenError::Denied { .. }), "{error:?}");
    assert!(text.contains("AWS_ACCESS_KEY_ID"), "{text}");
    assert!(
        !format!("{error:?}").contains("wrong"),
        "no secret is told: {error:?}"
    );

    let (error, text) = refusal(open(&server, &[("AWS_ACCESS_KEY_ID", "nobody")])).await;
    assert!(
        matches!(error, OpenError::Denied { .. }),
        "{text}: {error:?}"
    );

    let (error, text) = refusal(open(&server, &[("AWS_SECRET_ACCESS_KEY", "")])).await;
    assert!(
        matches!(error, OpenError::Settings { .. }),
        "{text}: {error:?}"
    );

    let (error, text) = refusal(open(&server, &[("AWS_ALLOW_HTTP", "")])).await;
    assert!(
        matches!(error, OpenError::PlainHttp { .. }),
        "{text}: {error:?}"
    );

    let nowhere = [("AWS_ENDPOINT_URL", ""), ("AWS_REGION", "")];
    let (error, text) = refusal(open(&server, &nowhere)).await;
    assert!(
        matches!(error, OpenError::NoRegion { .. }),
        "{text}: {error:?}"
    );

    let started = Instant::now();
    let (error, text) = refusal(open(&server, &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9")])).await;
    assert!(
        matches!(error, OpenError::Unreachable { .. }),
        "{text}: {error:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(60));

    let other = Store::open_with("s3://no-such-bucket/x", &server.environment());
    let (error, text) = refusal(other).await;
    assert!(matches!(error, OpenError::NoSuchBucket { .. }), "{error:?}");
    assert!(text.contains("`no-such-bucket`"), "{text}");
}

#[tokio::test]
async fn the_other_services_say_what_they_lack() {
    let (error, text) = refusal(Store::open_with("az://container/x", &[])).await;
    assert!(matches!(error, OpenError::Settings { .. }), "{error:?}");
    assert!(text.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{text}");

    let account = [("GOOGLE_SERVICE_ACCOUNT".into(), "/nowhere.json".into())];
    let (error, text) = refusal(Store::open_with("gs://bucket/x", &account)).await;
    assert!(matches!(error, OpenError::Settings { .. }), "{error:?}");
    assert!(text.contains("GOOGLE_SERVICE_ACCOUNT"), "{text}");
}

#[tokio::test]
async fn a_bucket_that_vanishes_does_not_make_its_objects_lost() {
    let (server, store) = bucket();
    let object: ObjectRef = store.put_object("jobs/x", "graph").await.unwrap();
    let (here, away) = (server.file(""), server.file("").with_file_name("away"));
    fs::rename(&here, &away).unwrap();
    let error = store.get_object(&object).await.unwrap_err();
    assert!(!error.is_lost(), "{error:?}");
    let error = store.delete_job(JOB).await.unwrap_err();
    assert!(matches!(error, CleanupError::Failed { .. }), "{error:?}");
    fs::rename(&away, &here).unwrap();
    assert_eq!(store.get_object(&object).await.unwrap(), "graph");
}
