//! The disk beneath the store: full, unusable, and writes that are cut off.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use common::{
    ATTEMPT, CHECKPOINT, ID, JOB, TASK, all_files, files, image, noise, read, write, write_full,
};
use tidemill_storage::{CaptureId, OpenError, Store, WriteError, keys};

#[test]
fn a_store_makes_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("a").join("b");
    let store = Store::open(place.to_str().unwrap()).unwrap();
    assert_eq!(store.url(), place.to_str().unwrap());
    assert!(place.is_dir());
}

#[test]
fn a_file_in_the_place_of_the_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("file");
    fs::write(&place, "").unwrap();
    let error = Store::open(place.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, OpenError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains(place.to_str().unwrap()));
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing_to_see() {
    let (_directory, store) = files();
    let mut large = image(&[]);
    large.memory = noise(1, 64 << 20);
    // Polled until parts are on their way, then dropped, as an aborted checkpoint drops it.
    for _ in 0..3 {
        let upload = write_full(&store, ID, &large);
        let begun = async {
            while store.list_checkpoints(JOB).await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = begun => {}
            _ = upload => panic!("64 MiB were written before the directory was seen"),
        }
        let key = keys::segment(JOB, TASK, ATTEMPT, CHECKPOINT);
        let seen = store
            .get_object(&tidemill_protocol::manifest::ObjectRef {
                key,
                len: 0,
                hash: [0; 32],
            })
            .await;
        assert!(
            matches!(seen, Err(tidemill_storage::ReadError::Missing { .. })),
            "{seen:?}"
        );
        store.delete_checkpoint(JOB, CHECKPOINT).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_write_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let Some(_mount) = SmallDisk::mount(directory.path(), "1m") else {
        return;
    };
    let store = Store::open(directory.path().to_str().unwrap()).unwrap();
    let mut image = image(&[Some(1)]);
    let kept = write(&store, CHECKPOINT, &image).await;

    // One that is sent whole, one that is sent in parts, and an object of another kind.
    for bytes in [2 << 20, 20 << 20] {
        image.memory = noise(2, bytes);
        let attempt = tidemill_protocol::AttemptId::new(ATTEMPT.epoch, bytes as u64);
        let key = keys::segment(JOB, TASK, attempt, CHECKPOINT);
        let written = write_full(&store, CaptureId { attempt, ..ID }, &image);
        let error = written.await.unwrap_err();
        assert!(matches!(error, WriteError::NoSpace { .. }), "{error:?}");
        assert!(error.to_string().contains(&key), "{error}");
    }
    let error = store.put_module(noise(3, 2 << 20)).await.unwrap_err();
    assert!(matches!(error, WriteError::NoSpace { .. }), "{error:?}");

    let objects = all_files(directory.path());
    assert_eq!(objects.len(), 2, "{objects:?}");
    read(&store, &kept.manifest).await.unwrap();

    // Full to the last byte, so that not even a directory can be made.
    let filler = directory.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 512]).is_ok() {}
    drop(file);
    let error = store.put_graph(JOB, noise(4, 8192)).await.unwrap_err();
    assert!(matches!(error, WriteError::NoSpace { .. }), "{error:?}");
    fs::remove_file(&filler).unwrap();
    store.put_graph(JOB, noise(4, 8192)).await.unwrap();
}

/// A tmpfs of a given size, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path, size: &str) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        eprintln!("skipped: a small disk can only be mounted by root");
        None
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}
