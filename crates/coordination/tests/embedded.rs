//! What only the embedded registry promises: its lock, and how it takes damage, a full disk and a kill.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{job, job_id, job_manager, pointers};
use redb::{Database, TableDefinition};
use tidemill_coordination::{Embedded, OpenError, ReadError, Registry, WriteError};
use tidemill_protocol::record::JobRecord;

/// Where a child process is to open its registry.
const CHILD_DIRECTORY: &str = "TIDEMILL_TEST_REGISTRY";

/// Runs [`child_writes_until_it_is_killed`] in a process of its own, on `directory`.
fn spawn_writer(directory: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_writes_until_it_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD_DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// The number in the child's next line `acknowledged N`; `None` when it is dead.
fn next_acknowledged(output: &mut BufReader<ChildStdout>) -> Option<u64> {
    loop {
        let mut line = String::new();
        if output.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        // A line that the kill cut short was not acknowledged.
        if let Some(number) = line.strip_prefix("acknowledged ")
            && line.ends_with('\n')
        {
            return Some(number.trim().parse().unwrap());
        }
    }
}

#[tokio::test]
#[ignore = "not a test of its own: it runs until another test kills its process"]
async fn child_writes_until_it_is_killed() {
    let directory = std::env::var_os(CHILD_DIRECTORY).expect("the parent names the directory");
    let registry = Embedded::open(Path::new(&directory)).unwrap();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    registry.put_job(&leading, &job(1)).await.unwrap();
    let found = registry.pointers(job_id(1)).await.unwrap();
    let first = found
        .completed
        .last()
        .map_or(0, |last| last.checkpoint.counter);
    for counter in first + 1.. {
        registry
            .put_pointers(&leading, job_id(1), &pointers(counter))
            .await
            .unwrap();
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "\nacknowledged {counter}").unwrap();
        stdout.flush().unwrap();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..20_u64 {
        let (mut child, mut output) = spawn_writer(directory.path());
        // The kill falls somewhere into the writes after these.
        for _ in 0..=(round * 7) % 13 {
            last = next_acknowledged(&mut output).expect("the child writes");
        }
        child.kill().unwrap();
        while let Some(number) = next_acknowledged(&mut output) {
            last = number;
        }
        child.wait().unwrap();

        let registry = Embedded::open(directory.path()).unwrap();
        let found = registry.pointers(job_id(1)).await.unwrap();
        let counter = found.completed[1].checkpoint.counter;
        assert!(
            counter == last || counter == last + 1,
            "round {round}: {last} was acknowledged, {counter} is there"
        );
        assert_eq!(found, pointers(counter));
        assert_eq!(registry.jobs().await.unwrap(), [Ok(job(1))]);
        assert_eq!(
            registry.lead(&job_manager(1)).await.unwrap().epoch().0,
            2 * round + 2
        );
    }
}

#[test]
fn a_second_process_is_refused_and_told_who_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, mut output) = spawn_writer(directory.path());
    next_acknowledged(&mut output).expect("the child writes");

    let error = Embedded::open(directory.path()).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains(&format!("the process {}", child.id())),
        "{message}"
    );
    assert!(
        message.contains(directory.path().to_str().unwrap()),
        "{message}"
    );
    Embedded::open(directory.path()).unwrap();
}

#[test]
fn a_second_registry_in_one_process_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let first = Embedded::open(directory.path()).unwrap();
    let error = Embedded::open(directory.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    drop(first);
    Embedded::open(directory.path()).unwrap();
}

#[test]
fn a_place_that_cannot_be_a_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Embedded::open(&file).unwrap_err();
    assert!(matches!(error, OpenError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains(file.to_str().unwrap()));
}

/// Puts raw bytes where a record belongs.
fn overwrite(directory: &Path, table: &str, number: u8, bytes: &[u8]) {
    let table: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new(table);
    let database = Database::open(directory.join("registry.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(table)
        .unwrap()
        .insert(&job_id(number).0, bytes)
        .unwrap();
    transaction.commit().unwrap();
}

#[tokio::test]
async fn a_damaged_record_does_not_hold_up_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Embedded::open(directory.path()).unwrap();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    for number in 1..=4 {
        registry.put_job(&leading, &job(number)).await.unwrap();
        registry
            .put_pointers(&leading, job_id(number), &pointers(1))
            .await
            .unwrap();
    }
    drop(registry);
    overwrite(directory.path(), "jobs", 2, b"garbage");
    overwrite(
        directory.path(),
        "jobs",
        3,
        &tidemill_protocol::codec::encode(&job(4)),
    );
    overwrite(directory.path(), "checkpoints", 4, b"CP\x02\x00later");

    let registry = Embedded::open(directory.path()).unwrap();
    let jobs = registry.jobs().await.unwrap();
    assert_eq!(jobs[0], Ok(job(1)));
    for number in [2, 3] {
        let damaged = jobs[number - 1].as_ref().unwrap_err();
        assert_eq!(damaged.job, job_id(number as u8));
    }
    assert_eq!(jobs[3], Ok(job(4)));
    assert_eq!(registry.pointers(job_id(1)).await.unwrap(), pointers(1));
    let error = registry.pointers(job_id(4)).await.unwrap_err();
    assert!(matches!(error, ReadError::DamagedPointers { job, .. } if job == job_id(4)));

    // A damaged job can still be removed.
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    registry.remove_job(&leading, job_id(2)).await.unwrap();
    assert_eq!(registry.jobs().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_file_with_flipped_bits_is_refused_or_read_right_but_never_believed() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Embedded::open(directory.path()).unwrap();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    for number in 0..20 {
        registry.put_job(&leading, &job(number)).await.unwrap();
    }
    drop(registry);
    let file = directory.path().join("registry.redb");
    let whole = fs::read(&file).unwrap();
    let truth: Vec<Result<JobRecord, _>> = (0..20).map(|number| Ok(job(number))).collect();

    let used: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] != 0).collect();
    let mut refused = 0;
    for (round, &at) in used.iter().step_by(used.len() / 150).enumerate() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (round % 8);
        fs::write(&file, &damaged).unwrap();
        match Embedded::open(directory.path()) {
            Err(error) => {
                assert!(
                    matches!(error, OpenError::Damaged { .. }),
                    "{at}: {error:?}"
                );
                refused += 1;
            }
            Ok(registry) => assert_eq!(registry.jobs().await.unwrap(), truth, "{at}"),
        }
    }
    assert!(refused > 0);

    for length in [0, 1, 100, 4096, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        match Embedded::open(directory.path()) {
            Err(error) => assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}"),
            Ok(registry) => {
                let jobs = registry.jobs().await.unwrap();
                assert!(length == 0 && jobs.is_empty() || jobs == truth, "{length}");
            }
        }
    }
}

#[tokio::test]
async fn a_full_disk_fails_writes_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let Some(_mount) = SmallDisk::mount(directory.path(), "8m") else {
        return;
    };
    let place = directory.path().join("registry");
    let registry = Embedded::open(&place).unwrap();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    registry.put_job(&leading, &job(1)).await.unwrap();
    let filler = directory.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);

    let mut large = job(2);
    large.name = "x".repeat(4 << 20);
    let error = registry.put_job(&leading, &large).await.unwrap_err();
    assert!(
        matches!(
            error,
            WriteError::Failed { .. } | WriteError::Unknown { .. }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains(place.to_str().unwrap()));

    // What is there can be read back at once, and with room the same registry goes on.
    assert_eq!(registry.jobs().await.unwrap(), [Ok(job(1))]);
    fs::remove_file(&filler).unwrap();
    registry.put_job(&leading, &job(3)).await.unwrap();
    assert_eq!(registry.jobs().await.unwrap(), [Ok(job(1)), Ok(job(3))]);
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
