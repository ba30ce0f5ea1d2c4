//! Proof that a savepoint can be restored: every object is read and compared with its hash, and every page is decoded. It
//! changes nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use tidemill_protocol::manifest::ObjectRef;

use super::Found;
use super::copy::{Parts, add_segments, segments_of_task};
use super::place::Place;
use crate::error::SavepointError;
use crate::{ReadError, Store, StoredImage};

/// How many pieces of an image are decoded together: at most 16 MiB.
const PIECES_AT_ONCE: usize = 256;

/// What came of reading all of a savepoint.
#[derive(Debug, Default)]
pub struct Verification {
    /// How many objects were read.
    pub objects: u64,
    /// Their size together.
    pub bytes: u64,
    /// Those that are missing or damaged, each named; with none, the savepoint restores.
    pub damaged: Vec<ReadError>,
}

impl Verification {
    /// Notes what came of reading an object. The error is the store's, which says nothing of the object.
    fn note<T>(&mut self, len: u64, read: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
        self.objects += 1;
        self.bytes += len;
        self.result(read)
    }

    fn result<T>(&mut self, read: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_lost() || matches!(error, ReadError::Unsupported { .. }) => {
                self.damaged.push(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Store {
    /// Reads every object of a savepoint or a retained checkpoint, and decodes every page.
    ///
    /// # Errors
    /// When there is neither at this place, and when the store fails. Damage is no error: the answer tells it.
    pub async fn verify_savepoint(&self, name: &str) -> Result<Verification, SavepointError> {
        let found = Place::to_read(self, name)?.find().await?;
        let inside = found.place().inside()?;
        let mut verification = Verification::default();
        match &found {
            Found::Savepoint(_, savepoint) => {
                for object in [&savepoint.module, &savepoint.graph] {
                    let read = inside.hash_object(object).await;
                    verification.note(object.len, read)?;
                }
            }
            Found::Checkpoint(_, metadata) => {
                let module = inside.get_module(&metadata.module).await;
                let len = module.as_ref().map_or(0, |module| module.len() as u64);
                verification.note(len, module)?;
            }
        }
        let metadata = found.metadata();
        let mut segments = BTreeMap::new();
        for task in &metadata.tasks {
            let listed = segments_of_task(&inside, metadata.job, task).await;
            if let Some(listed) = verification.note(task.manifest.len, listed)? {
                let added = add_segments(&mut segments, listed);
                verification.result(added)?;
            }
        }
        for segment in segments.values() {
            let read = inside.hash_object(segment).await;
            verification.note(segment.len, read)?;
        }
        // What is damaged is known by now; pages that do not decode though nothing is damaged were never right.
        if verification.damaged.is_empty() {
            // One image at a time: all of a large job's would take too much memory.
            for task in &metadata.tasks {
                let image = inside.open_image(metadata.job, task.task, &task.manifest);
                let decoded = async { decode_all(&image.await?).await };
                verification.result(decoded.await)?;
            }
        }
        Ok(verification)
    }

    /// Reads an object in parts and compares its hash.
    async fn hash_object(&self, object: &ObjectRef) -> Result<(), ReadError> {
        // An empty object is asked for, too: it may be missing.
        if object.len == 0 {
            return self.get_object(object).await.map(drop);
        }
        let mut parts = Parts::of(self, object);
        while parts.next().await?.is_some() {}
        Ok(())
    }
}

async fn decode_all(image: &StoredImage) -> Result<(), ReadError> {
    let all: Range<usize> = 0..image.pieces().len();
    for start in all.clone().step_by(PIECES_AT_ONCE) {
        image
            .read(start..all.end.min(start + PIECES_AT_ONCE))
            .await?;
    }
    Ok(())
}
