//! What stored manifests refer to, remembered: a manifest never changes, and clean-up asks for the same ones after every
//! checkpoint. It never remembers what no retained checkpoint refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use tidemill_protocol::manifest::{CheckpointMetadata, Manifest, ObjectRef};
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{JobId, TaskId};

use crate::manifest_chain::check_owner;
use crate::{ReadError, Store};

/// What each known object refers to, by job.
#[derive(Debug, Default)]
pub(crate) struct Links {
    jobs: Mutex<BTreeMap<JobId, BTreeMap<ObjectKey, Referred>>>,
}

/// An object's key with its hash, so that one that was replaced is read again.
type ObjectKey = (String, [u8; 32]);

/// What one object refers to.
#[derive(Clone, Debug)]
enum Referred {
    /// A checkpoint's metadata: the manifests of its tasks.
    Tasks(Vec<(TaskId, ObjectRef)>),
    /// A manifest: its base and its segments' keys.
    Image(Option<ObjectRef>, Vec<String>),
}

impl Links {
    fn known(&self, job: JobId, object: &ObjectRef) -> Option<Referred> {
        let jobs = self.jobs.lock().expect("no user of the lock panics");
        jobs.get(&job)?.get(&identity(object)).cloned()
    }

    fn replace(&self, job: JobId, links: BTreeMap<ObjectKey, Referred>) {
        let mut jobs = self.jobs.lock().expect("no user of the lock panics");
        if links.is_empty() {
            jobs.remove(&job);
        } else {
            jobs.insert(job, links);
        }
    }
}

fn identity(object: &ObjectRef) -> ObjectKey {
    (object.key.clone(), object.hash)
}

impl Store {
    /// The keys of every object that these checkpoints are made of.
    pub(crate) async fn keys_of_checkpoints(
        &self,
        job: JobId,
        checkpoints: &[CheckpointPointer],
    ) -> Result<BTreeSet<String>, ReadError> {
        let mut walk = Walk::default();
        for pointer in checkpoints {
            for (task, manifest) in self.tasks_of(job, &pointer.metadata, &mut walk).await? {
                let mut next = Some(manifest);
                while let Some(object) = next {
                    if walk.links.contains_key(&identity(&object)) {
                        break;
                    }
                    next = self.image_links(job, task, object, &mut walk).await?;
                }
            }
        }
        self.links().replace(job, walk.links);
        Ok(walk.keys)
    }

    async fn tasks_of(
        &self,
        job: JobId,
        object: &ObjectRef,
        walk: &mut Walk,
    ) -> Result<Vec<(TaskId, ObjectRef)>, ReadError> {
        let tasks = match self.links().known(job, object) {
            Some(Referred::Tasks(tasks)) => tasks,
            _ => {
                let metadata: CheckpointMetadata = self.read_metadata(object).await?;
                let tasks = metadata.tasks.into_iter();
                tasks.map(|task| (task.task, task.manifest)).collect()
            }
        };
        walk.note(object, Referred::Tasks(tasks.clone()), &[]);
        Ok(tasks)
    }

    /// Notes what a manifest refers to, and returns its base.
    async fn image_links(
        &self,
        job: JobId,
        task: TaskId,
        object: ObjectRef,
        walk: &mut Walk,
    ) -> Result<Option<ObjectRef>, ReadError> {
        let (base, segments) = match self.links().known(job, &object) {
            Some(Referred::Image(base, segments)) => (base, segments),
            _ => {
                let manifest: Manifest = self.read_versioned(&object).await?;
                check_owner(&manifest, job, task)
                    .map_err(|reason| ReadError::damaged(&object.key, reason))?;
                let segments = manifest.segments.into_iter();
                (manifest.base, segments.map(|segment| segment.key).collect())
            }
        };
        let referred = Referred::Image(base.clone(), segments.clone());
        walk.note(&object, referred, &segments);
        Ok(base)
    }
}

/// What has been found so far.
#[derive(Default)]
struct Walk {
    keys: BTreeSet<String>,
    links: BTreeMap<ObjectKey, Referred>,
}

impl Walk {
    fn note(&mut self, object: &ObjectRef, referred: Referred, segments: &[String]) {
        self.keys.insert(object.key.clone());
        self.keys.extend(segments.iter().cloned());
        self.links.insert(identity(object), referred);
    }
}
