//! Every key of the store is built here and nowhere else. Numbers are padded with zeros, so that the order of keys is
//! the order of what they name. It never touches the store.

use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, ModuleHash, TaskId};

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
    format!("{}/metadata", checkpoint(job, id))
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
        }
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
