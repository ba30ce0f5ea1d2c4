//! What clean-up deletes and what it leaves alone.

mod common;

use std::fs;
use std::time::{Duration, SystemTime};

use common::{
    ATTEMPT, JOB, TASK, all_files, file, files, id_of, image, publish, read, write, write_full,
};
use tidemill_protocol::codec::{decode, encode};
use tidemill_protocol::manifest::Manifest;
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{CheckpointId, Epoch, JobId};
use tidemill_storage::{CaptureId, CleanupError, Store, keys};

fn id(epoch: u64, counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(epoch), counter)
}

/// Stores a whole checkpoint.
async fn complete(store: &Store, checkpoint: CheckpointId) -> CheckpointPointer {
    let written = write(store, checkpoint, &image(&[Some(checkpoint.counter + 1)])).await;
    CheckpointPointer {
        checkpoint,
        metadata: publish(store, checkpoint, &written.manifest).await,
    }
}

async fn stores() -> [(Option<tempfile::TempDir>, Store); 2] {
    let (directory, store) = files();
    [
        (Some(directory), store),
        (None, Store::open("memory://").unwrap()),
    ]
}

#[tokio::test]
async fn a_deleted_checkpoint_is_gone_and_the_others_stay() {
    for (directory, store) in stores().await {
        for counter in [10, 9, 11] {
            complete(&store, id(1, counter)).await;
        }
        assert_eq!(
            store.list_checkpoints(JOB).await.unwrap(),
            [id(1, 9), id(1, 10), id(1, 11)]
        );
        for _ in 0..2 {
            store.delete_checkpoint(JOB, id(1, 10)).await.unwrap();
            assert_eq!(
                store.list_checkpoints(JOB).await.unwrap(),
                [id(1, 9), id(1, 11)]
            );
        }
        if let Some(directory) = directory {
            assert_eq!(all_files(directory.path()).len(), 6);
        }
    }
}

#[tokio::test]
async fn a_deleted_job_leaves_its_module_and_the_other_jobs() {
    let (directory, store) = files();
    let module = store.put_module("module").await.unwrap();
    let other = JobId([0x0b; 16]);
    for job in [JOB, other] {
        store.put_graph(job, "graph").await.unwrap();
        let of_job = CaptureId {
            job,
            ..id_of(id(1, 1))
        };
        write_full(&store, of_job, &image(&[Some(1)]))
            .await
            .unwrap();
    }
    for _ in 0..2 {
        store.delete_job(JOB).await.unwrap();
        assert_eq!(store.list_checkpoints(JOB).await.unwrap(), []);
        assert_eq!(store.list_checkpoints(other).await.unwrap(), [id(1, 1)]);
    }
    assert_eq!(all_files(directory.path()).len(), 4);
    store.get_module(&module).await.unwrap();
}

#[tokio::test]
async fn an_orphan_scan_spares_what_is_retained_and_what_may_be_in_flight() {
    for (_directory, store) in stores().await {
        let retained = [
            complete(&store, id(1, 7)).await,
            complete(&store, id(2, 1)).await,
        ];
        for orphan in [id(1, 6), id(1, 8), id(2, 2), id(2, 3), id(3, 1)] {
            write(&store, orphan, &image(&[Some(5)])).await;
        }
        let deleted = store
            .delete_orphans(JOB, &retained, id(2, 2))
            .await
            .unwrap();
        assert_eq!(deleted, [id(1, 6), id(1, 8), id(2, 2)]);
        assert_eq!(
            store.list_checkpoints(JOB).await.unwrap(),
            [id(1, 7), id(2, 1), id(2, 3), id(3, 1)]
        );
        for pointer in &retained {
            let metadata = store.read_metadata(&pointer.metadata).await.unwrap();
            let manifest = &metadata.tasks[0].manifest;
            read(&store, manifest).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_orphan_scan_spares_what_a_retained_manifest_refers_to() {
    let (_directory, store) = files();
    let base = write(&store, id(1, 1), &image(&[Some(1)])).await.manifest;
    let aborted = write(&store, id(1, 2), &image(&[Some(2)])).await.manifest;
    let of_aborted: Manifest = decode(&store.get_object(&aborted).await.unwrap()).unwrap();
    let delta = Manifest {
        base: Some(base),
        checkpoint: id(1, 4),
        ..of_aborted
    };
    let key = keys::manifest(JOB, TASK, ATTEMPT, id(1, 4));
    let delta = store.put_object(&key, encode(&delta)).await.unwrap();
    let pointer = CheckpointPointer {
        checkpoint: id(1, 4),
        metadata: publish(&store, id(1, 4), &delta).await,
    };
    write(&store, id(1, 3), &image(&[Some(3)])).await;

    let deleted = store
        .delete_orphans(JOB, &[pointer], id(1, 9))
        .await
        .unwrap();
    assert_eq!(deleted, [id(1, 3)]);
    assert_eq!(read(&store, &delta).await.unwrap(), image(&[Some(2)]));
}

#[tokio::test]
async fn an_orphan_scan_that_cannot_read_what_is_retained_deletes_nothing() {
    let (directory, store) = files();
    let pointer = complete(&store, id(1, 2)).await;
    write(&store, id(1, 1), &image(&[Some(1)])).await;
    fs::write(file(&directory, &pointer.metadata.key), "damaged").unwrap();
    let error = store
        .delete_orphans(JOB, &[pointer], id(1, 9))
        .await
        .unwrap_err();
    assert!(
        matches!(error, CleanupError::RetainedUnreadable { .. }),
        "{error:?}"
    );
    assert_eq!(
        store.list_checkpoints(JOB).await.unwrap(),
        [id(1, 1), id(1, 2)]
    );
}

#[tokio::test]
async fn what_clean_up_does_not_know_it_leaves_alone() {
    let (directory, store) = files();
    complete(&store, id(1, 1)).await;
    let own = file(
        &directory,
        &format!("{}/notes/by-hand", keys::checkpoints(JOB)),
    );
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, "mine").unwrap();
    let deleted = store.delete_orphans(JOB, &[], id(1, 9)).await.unwrap();
    assert_eq!(deleted, [id(1, 1)]);
    assert_eq!(fs::read(&own).unwrap(), b"mine");
}

#[tokio::test]
async fn an_upload_that_a_crash_cut_off_is_invisible_and_goes_with_its_checkpoint() {
    let (directory, store) = files();
    let staged = file(
        &directory,
        &format!("{}#1", keys::segment(JOB, TASK, ATTEMPT, id(1, 1))),
    );
    fs::create_dir_all(staged.parent().unwrap()).unwrap();
    fs::write(&staged, "half of it").unwrap();
    // The same attempt may be uploading again: what is left over does not stand in its way.
    complete(&store, id(1, 1)).await;
    assert!(staged.exists());
    store.delete_checkpoint(JOB, id(1, 1)).await.unwrap();
    assert_eq!(all_files(directory.path()).len(), 0);

    fs::create_dir_all(staged.parent().unwrap()).unwrap();
    fs::write(&staged, "half of it").unwrap();
    let deleted = store.delete_orphans(JOB, &[], id(1, 9)).await.unwrap();
    assert_eq!(deleted, [id(1, 1)]);
    assert_eq!(all_files(directory.path()).len(), 0);
}

#[tokio::test]
async fn an_upload_that_was_cut_off_goes_also_where_a_checkpoint_is_still_needed() {
    let (directory, store) = files();
    let pointer = complete(&store, id(1, 1)).await;
    let cut_off = |checkpoint, name: &str| {
        let key = format!("{}/{name}", keys::checkpoint(JOB, checkpoint));
        let path = file(&directory, &key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "half of it").unwrap();
        path
    };
    let left = [
        cut_off(id(1, 1), "x.segment#1"),
        cut_off(id(1, 1), "x.manifest#12"),
    ];
    let own = cut_off(id(1, 1), "notes#by-hand");
    let in_flight = cut_off(id(1, 2), "x.segment#1");
    let retained = std::slice::from_ref(&pointer);
    let deleted = store.delete_orphans(JOB, retained, id(1, 1)).await;
    assert_eq!(deleted.unwrap(), []);
    assert!(left.iter().all(|path| !path.exists()));
    assert!(in_flight.exists());
    // An object whose name nobody but its owner knows is an orphan as any other.
    assert!(!own.exists());
    store.read_metadata(&pointer.metadata).await.unwrap();
}

#[tokio::test]
async fn uploads_of_modules_and_graphs_that_were_cut_off_go_when_they_are_old() {
    let (directory, store) = files();
    let module = store.put_module("module").await.unwrap();
    let graph = store.put_graph(JOB, "graph").await.unwrap();
    let left = [
        file(&directory, &format!("modules/{module}#1")),
        file(&directory, &format!("{}#2", graph.key)),
    ];
    for path in &left {
        fs::write(path, "half of it").unwrap();
    }
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    store.delete_stale_uploads(now - day).await.unwrap();
    assert!(left.iter().all(|path| path.exists()));
    store.delete_stale_uploads(now + day).await.unwrap();
    assert!(left.iter().all(|path| !path.exists()));
    store.get_module(&module).await.unwrap();
    store.get_object(&graph).await.unwrap();
}
