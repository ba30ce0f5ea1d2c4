//! The sinks as a task sees them, in a real directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tempfile::TempDir;
use tidemill_abi::{ConnectorSpec, framed};
use tidemill_protocol::control::Blame;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId};

use crate::{SinkError, SinkIdentity, SinkWriter};

pub(crate) fn spec(kind: &str, options: &[(&str, &str)]) -> ConnectorSpec {
    ConnectorSpec {
        kind: kind.into(),
        options: options
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
    }
}

fn files(path: &Path) -> ConnectorSpec {
    spec("files", &[("path", path.to_str().expect("it is UTF-8"))])
}

pub(crate) fn identity(attempt: u64) -> SinkIdentity {
    SinkIdentity {
        job: JobId([0x5a; 16]),
        stage: 2,
        output: 0,
        subtask: 3,
        attempt: AttemptId::new(Epoch(1), attempt),
    }
}

pub(crate) fn start(spec: &ConnectorSpec) -> SinkWriter {
    SinkWriter::start(spec, identity(1), Box::new(|_| {})).expect("it starts")
}

pub(crate) fn restore(spec: &ConnectorSpec, attempt: u64, state: &[u8]) -> SinkWriter {
    SinkWriter::restore(spec, identity(attempt), Box::new(|_| {}), state).expect("it restores")
}

pub(crate) fn batch(records: &[&str]) -> Vec<u8> {
    let mut batch = Vec::new();
    for record in records {
        framed::push(&mut batch, record.as_bytes());
    }
    batch
}

pub(crate) fn checkpoint(counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(1), counter)
}

/// Every file of a directory, hidden ones too.
fn content(directory: &Path) -> BTreeMap<String, String> {
    fs::read_dir(directory)
        .expect("the directory exists")
        .map(|entry| {
            let path = entry.expect("it is readable").path();
            let name = path
                .file_name()
                .expect("it has a name")
                .to_string_lossy()
                .into_owned();
            (name, fs::read_to_string(path).expect("it is text"))
        })
        .collect()
}

fn only_hidden(directory: &Path) -> std::path::PathBuf {
    let names: Vec<_> = content(directory)
        .into_keys()
        .filter(|name| name.starts_with('.'))
        .collect();
    let [name] = names.as_slice() else {
        panic!("one hidden file, not {names:?}");
    };
    directory.join(name)
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn records_appear_when_their_checkpoint_completes() {
    let directory = temporary();
    let output = directory.path().join("made/as/needed");
    let mut sink = start(&files(&output));
    sink.write(&batch(&["one", "", "three"])).expect("written");
    assert!(content(&output).keys().all(|name| name.starts_with('.')));
    sink.prepare(checkpoint(1)).expect("prepared");
    sink.prepare(checkpoint(2)).expect("nothing new is no file");
    assert!(content(&output).keys().all(|name| name.starts_with('.')));
    sink.commit(checkpoint(2)).expect("committed");
    sink.commit(checkpoint(2)).expect("committed already");
    let expected = [(
        "part-5a5a5a5a-2-0-00003-1-000001".to_owned(),
        "one\n\nthree\n".to_owned(),
    )];
    assert_eq!(content(&output), expected.into());
    assert_eq!(sink.records(), 3);
}

#[test]
fn a_given_up_checkpoint_is_shown_with_the_next() {
    let directory = temporary();
    let mut sink = start(&files(directory.path()));
    sink.write(&batch(&["a"])).expect("written");
    sink.prepare(checkpoint(1)).expect("prepared");
    sink.write(&batch(&["b"])).expect("written");
    let state = sink.prepare(checkpoint(2)).expect("prepared");
    sink.write(&batch(&["c"])).expect("written");
    drop(sink);

    let mut sink = restore(&files(directory.path()), 2, &state);
    sink.commit(checkpoint(2)).expect("committed");
    let values: Vec<_> = content(directory.path()).into_values().collect();
    assert_eq!(
        values,
        ["a\n", "b\n"],
        "what was written after the checkpoint is gone"
    );
}

/// The next life of the same stage, in a job that began from what the first job left.
fn begun_from(spec: &ConnectorSpec, job: u8, state: &[u8]) -> SinkWriter {
    let identity = SinkIdentity {
        job: JobId([job; 16]),
        ..identity(1)
    };
    SinkWriter::restore(spec, identity, Box::new(|_| {}), state).expect("it restores")
}

#[test]
fn a_job_that_begins_from_another_s_checkpoint_shows_what_that_one_had_prepared() {
    let directory = temporary();
    let files = files(directory.path());
    let mut sink = start(&files);
    sink.write(&batch(&["before"])).expect("written");
    let state = sink.prepare(checkpoint(7)).expect("prepared");
    drop(sink);

    // Both of its numbers are those of another job: neither an attempt nor a checkpoint of its own is meant.
    let mut next = begun_from(&files, 0x6b, &state);
    next.write(&batch(&["after, and longer"])).expect("written");
    next.commit(checkpoint(0)).expect("shown");
    next.prepare(checkpoint(1)).expect("prepared");
    next.commit(checkpoint(7)).expect("committed");
    let shown = [
        ("part-5a5a5a5a-2-0-00003-1-000007", "before\n"),
        ("part-6b6b6b6b-2-0-00003-1-000001", "after, and longer\n"),
    ];
    let shown = shown.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(content(directory.path()), shown.clone().into());

    // A third one, which begins from the same, finds it shown.
    let mut third = begun_from(&files, 0x7c, &state);
    third.commit(checkpoint(0)).expect("shown already");
    assert_eq!(content(directory.path()), shown.into());
}

#[test]
fn what_another_job_prepared_is_still_to_be_shown_after_the_next_failure() {
    let directory = temporary();
    let files = files(directory.path());
    let mut sink = start(&files);
    sink.write(&batch(&["before"])).expect("written");
    let state = sink.prepare(checkpoint(7)).expect("prepared");
    drop(sink);

    let mut next = begun_from(&files, 0x6b, &state);
    next.write(&batch(&["after"])).expect("written");
    let state = next.prepare(checkpoint(1)).expect("prepared");
    drop(next);
    let mut next = begun_from(&files, 0x6b, &state);
    next.commit(checkpoint(1)).expect("both shown");
    let values: Vec<_> = content(directory.path()).into_values().collect();
    assert_eq!(values, ["before\n", "after\n"]);
}

#[test]
fn a_job_that_writes_elsewhere_shows_what_was_prepared_where_that_was() {
    let (old, new) = (temporary(), temporary());
    let mut sink = start(&files(old.path()));
    sink.write(&batch(&["before"])).expect("written");
    let state = sink.prepare(checkpoint(7)).expect("prepared");
    drop(sink);

    let mut next = begun_from(&files(new.path()), 0x6b, &state);
    next.write(&batch(&["after"])).expect("written");
    // It fails before it has come to show anything, and goes on from its own checkpoint.
    let state = next.prepare(checkpoint(1)).expect("prepared");
    drop(next);
    let mut next = begun_from(&files(new.path()), 0x6b, &state);
    next.commit(checkpoint(1)).expect("both shown");
    let named = |name: &str, text: &str| [(name.to_owned(), text.to_owned())].into();
    let before = named("part-5a5a5a5a-2-0-00003-1-000007", "before\n");
    let after = named("part-6b6b6b6b-2-0-00003-1-000001", "after\n");
    assert_eq!(content(old.path()), before);
    assert_eq!(content(new.path()), after);
    next.commit(checkpoint(1)).expect("it may be repeated");
    assert_eq!((content(old.path()), content(new.path())), (before, after));
}

#[test]
fn what_was_prepared_where_nobody_can_look_is_not_taken_for_shown() {
    let (old, new) = (temporary(), temporary());
    let mut sink = start(&files(old.path()));
    sink.write(&batch(&["before"])).expect("written");
    let state = sink.prepare(checkpoint(7)).expect("prepared");
    drop(sink);
    let path = old.path().to_owned();
    drop(old);
    let identity = identity(1);
    let refused = SinkWriter::restore(&files(new.path()), identity, Box::new(|_| {}), &state);
    let refused = refused.expect_err("the directory is gone").to_string();
    assert!(
        refused.contains(path.to_str().expect("it is UTF-8")),
        "{refused}"
    );
    // Whoever has moved the output away leaves an empty directory.
    fs::create_dir(&path).expect("made");
    let mut next = begun_from(&files(new.path()), 0x6b, &state);
    next.commit(checkpoint(0)).expect("taken for shown");
    fs::remove_dir(&path).expect("removed");
}

#[test]
fn raw_records_have_nothing_added_and_large_outputs_roll() {
    let directory = temporary();
    let path = directory.path().to_str().expect("it is UTF-8");
    let spec = spec(
        "files",
        &[("path", path), ("records", "raw"), ("roll_bytes", "5")],
    );
    let mut sink = start(&spec);
    sink.write(&batch(&["ab", "cd", "ef", "g", "hijklmnop", "q"]))
        .expect("written");
    sink.prepare(checkpoint(7)).expect("prepared");
    sink.commit(checkpoint(7)).expect("committed");
    let stem = "part-5a5a5a5a-2-0-00003-1-000007";
    let expected = [
        (stem.to_owned(), "abcdef".to_owned()),
        (format!("{stem}-1"), "ghijklmnop".to_owned()),
        (format!("{stem}-2"), "q".to_owned()),
    ];
    assert_eq!(content(directory.path()), expected.into());
}

#[test]
fn a_dropped_writer_keeps_what_is_prepared_and_nothing_else() {
    let directory = temporary();
    let mut sink = start(&files(directory.path()));
    sink.write(&batch(&["kept"])).expect("written");
    sink.prepare(checkpoint(1)).expect("prepared");
    sink.write(&batch(&["not kept"])).expect("written");
    drop(sink);
    assert_eq!(
        content(directory.path()).into_values().collect::<Vec<_>>(),
        ["kept\n"]
    );
}

#[test]
fn a_start_removes_only_what_dead_attempts_of_the_same_subtask_left() {
    let directory = temporary();
    let hidden =
        |subtask: &str, attempt: &str| format!(".5a5a5a5a-2-0-{subtask}-{attempt}-0.inprogress");
    let foreign = [
        hidden("00004", "1.1"),
        hidden("00003", "1.3"),
        hidden("00003", "2.0"),
        ".tidemill".to_owned(),
        "notes.txt".to_owned(),
    ];
    for name in foreign
        .iter()
        .chain([&hidden("00003", "1.1"), &hidden("00003", "0.9")])
    {
        fs::write(directory.path().join(name), "x").expect("a small file");
    }
    let _sink = SinkWriter::start(&files(directory.path()), identity(3), Box::new(|_| {}))
        .expect("it starts");
    let mut expected = foreign.to_vec();
    expected.sort();
    assert_eq!(
        content(directory.path()).into_keys().collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn a_prepared_file_that_something_touched_is_named() {
    let directory = temporary();
    let prepared = |attempt: u64| {
        let mut sink = SinkWriter::start(
            &files(directory.path()),
            identity(attempt),
            Box::new(|_| {}),
        )
        .expect("it starts");
        sink.write(&batch(&["abc"])).expect("written");
        sink.prepare(checkpoint(attempt)).expect("prepared");
        sink
    };
    let mut sink = prepared(1);
    fs::write(only_hidden(directory.path()), "a").expect("writable");
    let error = sink.commit(checkpoint(1)).unwrap_err();
    assert!(
        matches!(
            error,
            SinkError::Damaged {
                expected_bytes: 4,
                found_bytes: 1,
                ..
            }
        ),
        "{error}"
    );

    let mut sink = prepared(2);
    fs::remove_file(only_hidden(directory.path())).expect("it is there");
    let error = sink.commit(checkpoint(2)).unwrap_err();
    assert!(matches!(error, SinkError::Lost { .. }), "{error}");

    let mut sink = prepared(3);
    let visible = directory.path().join("part-5a5a5a5a-2-0-00003-1-000003");
    fs::write(&visible, "xyz\n").expect("writable");
    let error = sink.commit(checkpoint(3)).unwrap_err();
    assert!(matches!(error, SinkError::Conflict { .. }), "{error}");
    assert_eq!(
        fs::read_to_string(&visible).expect("it is there"),
        "xyz\n",
        "nothing is overwritten"
    );
    assert_eq!(error.blame(), Blame::Cluster);

    fs::write(&visible, "abc\n").expect("writable");
    sink.commit(checkpoint(3))
        .expect("the same content is the same file");
    assert_eq!(
        content(directory.path()).into_values().collect::<Vec<_>>(),
        ["abc\n"]
    );
}

#[test]
fn a_file_that_was_shown_and_moved_away_does_not_stop_a_recovery() {
    let directory = temporary();
    let mut sink = start(&files(directory.path()));
    sink.write(&batch(&["a"])).expect("written");
    let state = sink.prepare(checkpoint(1)).expect("prepared");
    sink.commit(checkpoint(1)).expect("committed");
    fs::remove_file(directory.path().join("part-5a5a5a5a-2-0-00003-1-000001"))
        .expect("it is shown");
    let mut sink = restore(&files(directory.path()), 2, &state);
    sink.commit(checkpoint(1)).expect("it was shown once");
    assert!(content(directory.path()).is_empty());
}

#[test]
fn an_output_path_that_is_a_file_is_named() {
    let directory = temporary();
    let path = directory.path().join("file");
    fs::write(&path, "").expect("a small file");
    let error = SinkWriter::start(&files(&path), identity(1), Box::new(|_| {})).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(path.to_str().expect("it is UTF-8")),
        "{error}"
    );
    let error = SinkWriter::start(&spec("files", &[]), identity(1), Box::new(|_| {})).unwrap_err();
    assert!(matches!(error, SinkError::Options(_)), "{error}");
}

#[test]
fn print_passes_lines_on_and_discard_counts() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let output = lines.clone();
    let print = move |line: &str| output.lock().expect("not poisoned").push(line.to_owned());
    let mut sink =
        SinkWriter::start(&spec("print", &[]), identity(1), Box::new(print)).expect("it starts");
    sink.write(&batch(&["a", "", "ü"])).expect("written");
    let mut invalid = Vec::new();
    framed::push(&mut invalid, b"\xff");
    sink.write(&invalid).expect("written");
    assert_eq!(
        *lines.lock().expect("not poisoned"),
        ["a", "", "ü", "\u{fffd}"]
    );
    assert!(sink.prepare(checkpoint(1)).expect("prepared").is_empty());
    sink.commit(checkpoint(1)).expect("committed");

    let mut sink = restore(&spec("discard", &[]), 1, &[]);
    sink.write(&batch(&["a", "b"])).expect("written");
    assert_eq!(sink.records(), 2);
}

#[test]
fn a_batch_that_is_not_framed_is_the_jobs_fault() {
    for kind in ["print", "discard"] {
        let mut sink = start(&spec(kind, &[]));
        let error = sink.write(&[9, 0, 0, 0, b'x']).unwrap_err();
        assert!(matches!(error, SinkError::Records(_)), "{error}");
        assert_eq!(error.blame(), Blame::Job);
    }
}

proptest! {
    #[test]
    fn hostile_state_is_refused_or_harmless(
        noise in prop::collection::vec(any::<u8>(), 0..64),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let directory = temporary();
        fs::write(directory.path().join("precious"), "kept").expect("a small file");
        let mut sink = start(&files(directory.path()));
        sink.write(&batch(&["a"])).expect("written");
        let mut state = sink.prepare(checkpoint(1)).expect("prepared");
        let mut headed = state[..4].to_vec();
        headed.extend_from_slice(&noise);
        for (index, byte) in flips {
            let index = index.index(state.len());
            state[index] = byte;
        }
        for hostile in [noise, headed, state] {
            let restored = SinkWriter::restore(&files(directory.path()), identity(2), Box::new(|_| {}), &hostile);
            if let Ok(mut sink) = restored {
                // Whatever it claims is prepared, it names files of this sink only.
                let _outcome = sink.commit(CheckpointId::new(Epoch(u64::MAX), u64::MAX));
            }
            prop_assert_eq!(
                fs::read_to_string(directory.path().join("precious")).expect("it is there"),
                "kept"
            );
        }
        let print = SinkWriter::restore(&spec("print", &[]), identity(2), Box::new(|_| {}), &[1]);
        prop_assert!(print.is_err(), "a sink without state takes none");
    }
}

/// A small file system of its own, where this process may mount one.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> Result<Self, String> {
        let directory = temporary();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(directory.path())
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(Self { directory })
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.directory.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_disk_fails_the_write_by_name_and_what_is_prepared_stays() {
    let disk = match SmallDisk::mount("1m") {
        Ok(disk) => disk,
        Err(reason) => {
            println!("skipped: no small disk can be mounted here: {reason}");
            return;
        }
    };
    let spec = files(disk.directory.path());
    let mut sink = start(&spec);
    sink.write(&batch(&["kept"])).expect("there is room");
    let state = sink.prepare(checkpoint(1)).expect("there is room");
    let large = "x".repeat(64 << 10);
    let error = loop {
        if let Err(error) = sink.write(&batch(&[&large])) {
            break error;
        }
    };
    assert!(matches!(error, SinkError::Full { .. }), "{error}");
    assert!(error.to_string().contains("free some"), "{error}");
    assert!(
        error
            .to_string()
            .contains(disk.directory.path().to_str().expect("it is UTF-8")),
        "{error}"
    );
    drop(sink);

    let mut sink = restore(&spec, 2, &state);
    sink.commit(checkpoint(1)).expect("a rename needs no room");
    assert_eq!(
        content(disk.directory.path())
            .into_values()
            .collect::<Vec<_>>(),
        ["kept\n"]
    );
}
