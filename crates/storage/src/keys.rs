//! Every key of the store is built here and nowhere else. Numbers are padded with zeros, so that the order of keys is
//! the order of what they name. It never touches the store.

use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, ModuleHash, TaskId};

/// The last part of [`metadata`].
pub(crate) const METADATA: &str = "metadata";

/// Below a savepoint's directory: what makes it exist. Written last, and deleted first.
pub(crate) const SAVEPOINT: &str = "savepoint";

/// Below a savepoint's directory: the module. Written first, and deleted last: where it is, a savepoint is, or was begun.
pub(crate) const SAVEPOINT_MODULE: &str = "module";

/// Below a savepoint's directory: the graph.
pub(crate) const SAVEPOINT_GRAPH: &str = "graph";

/// Below a savepoint's directory: the prefix of its segments.
pub(crate) const SAVEPOINT_SEGMENTS: &str = "segments";

/// The prefix of all modules.
pub(crate) const MODULES: &str = "modules";

/// What the name of the mark of a job without a record begins with.
const UNRECORDED: &str = "unrecorded-";

/// The prefix of all jobs.
pub(crate) const JOBS: &str = "jobs";

/// `modules/<hash>`: a prepared module, addressed by its content.
#[must_use]
pub fn module(hash: &ModuleHash) -> String {
    format!("modules/{hash}")
}

/// `jobs/<job>`: the prefix of what belongs to a job but to none of its checkpoints.
#[must_use]
pub fn job(job: JobId) -> String {
    format!("jobs/{job}")
}

/// `jobs/<job>/graph`: the graph that the module described at submission.
#[must_use]
pub fn graph(job: JobId) -> String {
    format!("jobs/{job}/graph")
}

/// `jobs/<job>/unrecorded-<epoch>`: the mark of a job without a record.
#[must_use]
pub(crate) fn unrecorded(id: JobId, epoch: Epoch) -> String {
    format!("{}/{UNRECORDED}{:020}", job(id), epoch.0)
}

/// Which job is marked by this key, and in which epoch; `None` for every key that is no mark.
#[must_use]
pub(crate) fn unrecorded_of(key: &str) -> Option<(JobId, Epoch)> {
    let (job, name) = key.strip_prefix(JOBS)?.strip_prefix('/')?.split_once('/')?;
    let epoch = name.strip_prefix(UNRECORDED)?.parse().ok()?;
    Some((job.parse().ok()?, Epoch(epoch)))
}

/// `checkpoints/<job>`: the prefix of all of a job's checkpoints.
#[must_use]
pub fn checkpoints(job: JobId) -> String {
    format!("checkpoints/{job}")
}

/// `checkpoints/<job>/<epoch>-<counter>`: the prefix of everything that one checkpoint wrote.
#[must_use]
pub fn checkpoint(job: JobId, checkpoint: CheckpointId) -> String {
    format!(
        "checkpoints/{job}/{:020}-{:020}",
        checkpoint.epoch.0, checkpoint.counter
    )
}

/// `checkpoints/<job>/<checkpoint>/metadata`: the object that the registry's pointer names.
#[must_use]
pub fn metadata(job: JobId, id: CheckpointId) -> String {
    format!("{}/{METADATA}", checkpoint(job, id))
}

/// `checkpoints/<job>/<checkpoint>/<stage>-<subtask>-<attempt>.segment`: the blocks of one capture.
#[must_use]
pub fn segment(job: JobId, task: TaskId, attempt: AttemptId, id: CheckpointId) -> String {
    task_object(job, task, attempt, id, "segment")
}

/// `checkpoints/<job>/<checkpoint>/<stage>-<subtask>-<attempt>.manifest`: how one task's image is put together.
#[must_use]
pub fn manifest(job: JobId, task: TaskId, attempt: AttemptId, id: CheckpointId) -> String {
    task_object(job, task, attempt, id, "manifest")
}

fn task_object(
    job: JobId,
    task: TaskId,
    attempt: AttemptId,
    id: CheckpointId,
    kind: &str,
) -> String {
    format!(
        "{}/{:010}-{:010}-{:020}-{:020}.{kind}",
        checkpoint(job, id),
        task.stage,
        task.subtask,
        attempt.epoch.0,
        attempt.counter,
    )
}

/// The attempt that wrote an object of a checkpoint; `None` for every object that is no task's.
#[must_use]
pub(crate) fn attempt_of(key: &str) -> Option<AttemptId> {
    let (_, name) = key.rsplit_once('/')?;
    let name = name
        .strip_suffix(".segment")
        .or_else(|| name.strip_suffix(".manifest"))?;
    let numbers: Vec<&str> = name.split('-').collect();
    let [stage, subtask, epoch, counter] = numbers[..] else {
        return None;
    };
    let number = |digits: &str, padded: usize| -> Option<u64> {
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        (digits.len() == padded && is_number).then(|| digits.parse().ok())?
    };
    number(stage, 10).and(number(subtask, 10))?;
    Some(AttemptId::new(
        Epoch(number(epoch, 20)?),
        number(counter, 20)?,
    ))
}

/// Whose checkpoint a key belongs to; `None` for every key that is not below `checkpoints/<job>/<checkpoint>`.
#[must_use]
pub fn checkpoint_of(job: JobId, key: &str) -> Option<CheckpointId> {
    let rest = key.strip_prefix(&checkpoints(job))?.strip_prefix('/')?;
    let (epoch, counter) = rest.split('/').next()?.split_once('-')?;
    let number = |digits: &str| -> Option<u64> {
        let padded = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        padded.then(|| digits.parse().ok())?
    };
    Some(CheckpointId::new(Epoch(number(epoch)?), number(counter)?))
}

/// The job and the checkpoint that a key belongs to; `None` for every key that is no checkpoint's.
#[must_use]
pub(crate) fn job_and_checkpoint_of(key: &str) -> Option<(JobId, CheckpointId)> {
    let job = key.strip_prefix("checkpoints/")?.split('/').next()?;
    let job = job.parse().ok()?;
    Some((job, checkpoint_of(job, key)?))
}

/// `checkpoints/<job>/<checkpoint>/<hash>.segment`: a segment that a job began with.
#[must_use]
pub(crate) fn imported_segment(job: JobId, id: CheckpointId, hash: &[u8; 32]) -> String {
    format!("{}/{}.segment", checkpoint(job, id), ModuleHash(*hash))
}

/// `segments/<hash>.segment`, below a savepoint's directory. Named by its content, so that copying it again changes nothing.
#[must_use]
pub(crate) fn savepoint_segment(hash: &[u8; 32]) -> String {
    format!("{SAVEPOINT_SEGMENTS}/{}.segment", ModuleHash(*hash))
}

/// `<stage>-<subtask>-<checkpoint>.manifest`, below a savepoint's directory.
#[must_use]
pub(crate) fn savepoint_manifest(task: TaskId, id: CheckpointId) -> String {
    format!(
        "{:010}-{:010}-{:020}-{:020}.manifest",
        task.stage, task.subtask, id.epoch.0, id.counter
    )
}

/// Whether a key below a savepoint's directory is one of a savepoint's.
#[must_use]
pub(crate) fn is_of_savepoint(relative: &str) -> bool {
    let is_segment = || {
        let name = relative.strip_prefix(SAVEPOINT_SEGMENTS)?;
        name.strip_prefix('/')?.strip_suffix(".segment")
    };
    matches!(relative, SAVEPOINT | SAVEPOINT_MODULE | SAVEPOINT_GRAPH)
        || relative.ends_with(".manifest") && !relative.contains('/')
        || is_segment().is_some_and(|name| !name.contains('/'))
}

/// The savepoints that an object with this key may be a part of: the directory of each, and the key relative to it.
pub(crate) fn in_savepoints(key: &str) -> impl Iterator<Item = (&str, &str)> {
    let parents = key.rmatch_indices('/').take(2);
    let splits = parents.map(|(end, _)| (&key[..end], &key[end + 1..]));
    splits.filter(|(_, relative)| is_of_savepoint(relative))
}

/// The directory of the savepoint that this object marks; `None` for every object that marks none.
#[must_use]
pub(crate) fn marked_savepoint(key: &str) -> Option<&str> {
    let (directory, name) = key.rsplit_once('/')?;
    matches!(name, SAVEPOINT | SAVEPOINT_MODULE).then_some(directory)
}

/// Whether everything below this first part of a key is the cluster's own.
#[must_use]
pub(crate) fn is_reserved(first: &str) -> bool {
    matches!(first, "checkpoints" | JOBS | MODULES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId([0x0a; 16]);

    #[test]
    fn keys_are_what_the_documentation_says() {
        let id = CheckpointId::new(Epoch(3), 17);
        let attempt = AttemptId::new(Epoch(2), 5);
        assert_eq!(
            segment(JOB, TaskId::new(1, 4), attempt, id),
            "checkpoints/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a/00000000000000000003-00000000000000000017/\
             0000000001-0000000004-00000000000000000002-00000000000000000005.segment"
        );
        assert_eq!(
            metadata(JOB, id),
            "checkpoints/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a/00000000000000000003-00000000000000000017/metadata"
        );
        assert_eq!(graph(JOB), "jobs/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a/graph");
    }

    #[test]
    fn the_order_of_keys_is_the_order_of_checkpoints() {
        let ids = [(1, 9), (1, 10), (2, 0), (9, 1), (10, 0), (u64::MAX, 0)]
            .map(|(epoch, counter)| CheckpointId::new(Epoch(epoch), counter));
        let keys = ids.map(|id| checkpoint(JOB, id));
        assert!(keys.is_sorted(), "{keys:?}");
        for id in ids {
            assert_eq!(checkpoint_of(JOB, &checkpoint(JOB, id)), Some(id));
            assert_eq!(checkpoint_of(JOB, &metadata(JOB, id)), Some(id));
            assert_eq!(job_and_checkpoint_of(&metadata(JOB, id)), Some((JOB, id)));
        }
    }

    #[test]
    fn a_task_s_objects_name_the_attempt_that_wrote_them() {
        let id = CheckpointId::new(Epoch(3), 17);
        let attempt = AttemptId::new(Epoch(2), u64::MAX);
        let task = TaskId::new(1, u32::MAX);
        for key in [
            segment(JOB, task, attempt, id),
            manifest(JOB, task, attempt, id),
        ] {
            assert_eq!(attempt_of(&key), Some(attempt), "{key}");
            assert_eq!(attempt_of(&format!("{key}#1")), None);
            assert_eq!(attempt_of(&key.replace("0000000001-", "1-")), None);
        }
        assert_eq!(attempt_of(&metadata(JOB, id)), None);
        assert_eq!(attempt_of(&imported_segment(JOB, id, &[7; 32])), None);
        assert_eq!(attempt_of(""), None);
    }

    #[test]
    fn a_key_that_is_not_a_checkpoints_is_nobodys() {
        let other = JobId([0x0b; 16]);
        let id = CheckpointId::new(Epoch(1), 1);
        assert_eq!(checkpoint_of(JOB, &metadata(other, id)), None);
        for key in ["", "checkpoints", "jobs/x", "checkpoints/x/1-1"] {
            assert_eq!(checkpoint_of(JOB, key), None, "{key}");
        }
        for tail in [
            "1-1/metadata",
            "backup/metadata",
            "",
            "+0000000000000000001-00000000000000000001",
        ] {
            assert_eq!(
                checkpoint_of(JOB, &format!("{}/{tail}", checkpoints(JOB))),
                None,
                "{tail}"
            );
        }
    }
}
