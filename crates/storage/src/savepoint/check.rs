//! Whether what a savepoint or a checkpoint says of itself makes sense. Its bytes may be anyone's: a directory that somebody
//! has put together, or has damaged. It reads nothing.

use std::collections::BTreeSet;

use tidemill_protocol::manifest::{CheckpointMetadata, Savepoint};

use crate::{ReadError, keys};

/// Whether it names objects of a savepoint alone, which are all below its directory, and the module that its tasks ran.
pub(super) fn check_savepoint(savepoint: &Savepoint, key: &str) -> Result<(), ReadError> {
    let tasks = savepoint.metadata.tasks.iter();
    let named = tasks
        .map(|task| &task.manifest)
        .chain([&savepoint.module, &savepoint.graph]);
    for object in named {
        if !keys::is_of_savepoint(&object.key) {
            let reason = format!("it names {:?}, which is no part of a savepoint", object.key);
            return Err(ReadError::damaged(key, reason));
        }
    }
    if savepoint.module.hash != savepoint.metadata.module.0 {
        let reason = "its module is another one than its tasks ran";
        return Err(ReadError::damaged(key, reason));
    }
    check_metadata(&savepoint.metadata, key)
}

/// Whether each task has one part.
pub(super) fn check_metadata(metadata: &CheckpointMetadata, key: &str) -> Result<(), ReadError> {
    let mut known = BTreeSet::new();
    match metadata.tasks.iter().find(|part| !known.insert(part.task)) {
        None => Ok(()),
        Some(part) => Err(ReadError::damaged(
            key,
            format!("it has two images of task {}", part.task),
        )),
    }
}

/// Whether a checkpoint is the one that its key says.
pub(super) fn check_place(metadata: &CheckpointMetadata, key: &str) -> Result<(), ReadError> {
    let (job, checkpoint) = (metadata.job, metadata.checkpoint);
    if keys::job_and_checkpoint_of(key) == Some((job, checkpoint)) {
        return Ok(());
    }
    let reason = format!("it is of checkpoint {checkpoint} of job {job}");
    Err(ReadError::damaged(key, reason))
}
