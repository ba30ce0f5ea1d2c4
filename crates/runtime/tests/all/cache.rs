//! The compile cache: what it saves, and what it must never load.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tidemill_runtime::{CompileError, Engine, Instance, ModuleError};

use crate::support::{Job, Recorder, elsewhere, engine, limits};

fn prepared() -> Vec<u8> {
    Job::default()
        .function(
            "tidemill_flush",
            "i32.const 0 i32.const 0 i32.const 0 i32.const 1 call $emit",
        )
        .prepare()
        .bytes
}

fn entry(directory: &Path) -> PathBuf {
    let mut entries = fs::read_dir(directory)
        .expect("the cache is there")
        .map(|entry| entry.expect("readable").path());
    let first = entries.next().expect("one entry");
    assert_eq!(entries.next(), None, "and only one");
    first
}

/// Compiles through the cache, and shows that the code works.
fn works(engine: &Engine, directory: &Path) {
    let module = engine
        .compile(&prepared(), Some(directory))
        .expect("it compiles");
    let mut instance = Instance::new(&module, limits(), Recorder::default()).expect("it starts");
    instance.flush().expect("it runs");
    assert_eq!(instance.host_mut().emitted, [(0, 0, vec![0])]);
}

#[test]
fn compiled_code_is_kept_and_used_by_engines_of_the_same_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("deep/er");
    works(engine(), &cache);
    let entry = entry(&cache);
    let mode = fs::metadata(&entry)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0, "nobody else may read or write it");
    let written = fs::metadata(&entry)
        .expect("it is there")
        .modified()
        .expect("a time");
    works(elsewhere(), &cache);
    assert_eq!(
        fs::metadata(&entry)
            .expect("it is there")
            .modified()
            .expect("a time"),
        written,
        "it was not written again"
    );
}

#[test]
fn damaged_entries_are_compiled_anew_and_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    works(engine(), directory.path());
    let entry = entry(directory.path());
    let sound = fs::read(&entry).expect("readable");
    let flipped = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        bytes
    };
    let damages = [
        Vec::new(),
        sound[..20].to_vec(),
        sound[..90].to_vec(),
        flipped(3),
        flipped(20),
        flipped(50),
        flipped(sound.len() / 2),
    ];
    for damage in damages {
        fs::write(&entry, &damage).expect("writable");
        works(engine(), directory.path());
        assert!(
            fs::read(&entry).expect("readable") != damage,
            "the damage was replaced"
        );
    }
}

#[test]
fn entries_that_others_could_have_written_are_not_loaded() {
    let directory = tempfile::tempdir().expect("a directory");
    works(engine(), directory.path());
    let entry = entry(directory.path());
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o666)).expect("our file");
    works(engine(), directory.path());
    let mode = fs::metadata(&entry)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "it was replaced");

    let elsewhere = directory.path().join("planted");
    fs::rename(&entry, &elsewhere).expect("our file");
    symlink(&elsewhere, &entry).expect("our directory");
    works(engine(), directory.path());
    assert!(
        fs::symlink_metadata(&entry).expect("it is there").is_file(),
        "the link was replaced"
    );
}

#[test]
fn a_cache_that_cannot_be_written_costs_only_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let blocked = directory.path().join("file");
    fs::write(&blocked, b"").expect("writable");
    works(engine(), &blocked.join("cache"));
}

#[test]
fn only_prepared_bytes_are_compiled() {
    let raw = Job::default()
        .with("(global (mut i32) (i32.const 0))")
        .wasm();
    assert_eq!(
        engine().compile(&raw, None).expect_err("not instrumented"),
        CompileError::NotPrepared
    );
    let error = engine().compile(b"nonsense", None).expect_err("not Wasm");
    assert!(
        matches!(error, CompileError::Refused(ModuleError::NotWasm { .. })),
        "{error}"
    );
}
