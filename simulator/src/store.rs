//! The object store: writes that fail, or succeed without an answer, or take long; objects that are damaged; clean-ups that
//! list first and delete later. It never deletes what it was not asked to.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tidemill_core::job::SavepointRequestId;
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef};
use tidemill_protocol::record::CheckpointPointer;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId};

use crate::event::{Event, Input, Preparation};
use crate::images::{Manifest, Pages, Unreadable, Upload};
use crate::node::{Node, ProcessState, STORE};
use crate::savepoints::{Refusal, Savepoint, SavepointRequest};
use crate::task::TaskKey;
use crate::time::{MILLISECOND, SECOND};
use crate::world::World;
use crate::zookeeper::short;

/// After this time without an answer a request has failed.
const REQUEST_TIMEOUT_US: u64 = 5 * SECOND;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) enum StoreRequest {
    WriteSegment {
        upload: Upload,
    },
    WriteManifest {
        task: TaskKey,
        checkpoint: CheckpointId,
        finished: bool,
        manifest: Manifest,
    },
    ReadImage {
        task: TaskKey,
        manifest: ObjectRef,
    },
    WriteMetadata {
        epoch: Epoch,
        metadata: CheckpointMetadata,
    },
    ReadMetadata {
        epoch: Epoch,
        job: JobId,
        pointer: CheckpointPointer,
    },
    WriteGraph {
        user: usize,
        turn: u64,
        job: JobId,
    },
    ReadGraphs {
        epoch: Epoch,
    },
    Savepoint(SavepointRequest),
    CleanUp {
        job: JobId,
        retained: Vec<CheckpointPointer>,
        scope: Scope,
    },
}

/// What may go that no retained checkpoint needs.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    /// Whatever is no newer.
    UpTo(CheckpointId),
    /// What is older than the newest retained checkpoint, and what these attempts, or none, wrote up to `over`.
    Orphans {
        over: CheckpointId,
        ended: BTreeSet<AttemptId>,
    },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum StoreAnswer {
    SegmentWritten {
        segment: Option<String>,
        upload: Upload,
    },
    ManifestWritten {
        task: TaskKey,
        checkpoint: CheckpointId,
        manifest: Option<ObjectRef>,
        finished: bool,
    },
    MetadataWritten {
        epoch: Epoch,
        job: JobId,
        checkpoint: CheckpointId,
        object: Option<ObjectRef>,
    },
    MetadataRead {
        epoch: Epoch,
        job: JobId,
        checkpoint: CheckpointId,
        read: Result<CheckpointMetadata, Preparation>,
    },
    GraphWritten {
        user: usize,
        turn: u64,
        job: JobId,
        succeeded: bool,
    },
    GraphsRead {
        epoch: Epoch,
        succeeded: bool,
    },
    Imported {
        user: usize,
        turn: u64,
        job: JobId,
        result: Result<CheckpointPointer, Refusal>,
    },
    SavepointCopied {
        epoch: Epoch,
        job: JobId,
        id: SavepointRequestId,
        result: Result<u64, String>,
    },
    SavepointDeleted {
        user: usize,
        turn: u64,
        succeeded: bool,
    },
    CleanedUp {
        job: JobId,
    },
}

#[derive(Debug)]
pub(crate) enum Content {
    Segment(Rc<Pages>),
    Manifest(Manifest),
    Metadata(CheckpointMetadata),
}

#[derive(Debug)]
struct Object {
    checkpoint: CheckpointId,
    /// The attempt that wrote it, unless a leader did.
    by: Option<AttemptId>,
    content: Content,
    damaged: bool,
}

/// Everything that is stored.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) is_away: bool,
    /// The savepoints that are complete, by their directories.
    pub(crate) savepoints: BTreeMap<String, Savepoint>,
    objects: BTreeMap<String, Object>,
}

fn prefix(job: JobId) -> String {
    format!("{:05}/", short(job))
}

fn image_name(of: TaskKey, checkpoint: CheckpointId) -> String {
    let TaskKey { task, attempt, .. } = of;
    format!("{checkpoint}/{task}/{attempt}")
}

fn reference(key: String) -> ObjectRef {
    ObjectRef {
        len: key.len() as u64,
        key,
        hash: [0; 32],
    }
}

impl Store {
    /// A checkpoint's metadata, damaged or not: for checkers.
    pub(crate) fn metadata(&self, key: &str) -> Option<&CheckpointMetadata> {
        match &self.objects.get(key)?.content {
            Content::Metadata(metadata) => Some(metadata),
            Content::Segment(_) | Content::Manifest(_) => None,
        }
    }

    /// An object; one that is damaged only when that does.
    pub(crate) fn content(&self, key: &str, damaged: bool) -> Option<&Content> {
        let object = self.objects.get(key)?;
        (damaged || !object.damaged).then_some(&object.content)
    }

    fn read_metadata(&self, key: &str) -> Result<CheckpointMetadata, Preparation> {
        match self.content(key, false) {
            Some(Content::Metadata(metadata)) => Ok(metadata.clone()),
            _ => Err(Preparation::Lost),
        }
    }

    /// The keys that nothing retained needs and that may go; none when a retained checkpoint cannot be read.
    fn orphans(&self, job: JobId, retained: &[CheckpointPointer], scope: &Scope) -> Vec<String> {
        let newest = retained.iter().map(|pointer| pointer.checkpoint).max();
        let may_go = |object: &Object| match scope {
            Scope::UpTo(up_to) => object.checkpoint <= *up_to,
            Scope::Orphans { over, ended } => {
                let abandoned = object.by.is_none_or(|by| ended.contains(&by));
                Some(object.checkpoint) <= newest || object.checkpoint <= *over && abandoned
            }
        };
        let mut needed = BTreeSet::new();
        for pointer in retained {
            let Ok(metadata) = self.read_metadata(&pointer.metadata.key) else {
                return Vec::new();
            };
            for part in &metadata.tasks {
                let Some(parts) = self.parts(&part.manifest.key, false) else {
                    return Vec::new();
                };
                needed.extend(parts);
            }
            needed.insert(pointer.metadata.key.clone());
        }
        let prefix = prefix(job);
        let of_job = self
            .objects
            .range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix));
        of_job
            .filter(|(key, object)| may_go(object) && !needed.contains(*key))
            .map(|(key, _)| key.clone())
            .collect()
    }
}

impl World {
    /// Asks the store; the answer comes as an input.
    pub(crate) fn ask_store(&mut self, node: Node, request: StoreRequest) {
        let options = self.options.store;
        let mut after_us = self.random.between(MILLISECOND, options.latency_max_us);
        if self.random.chance(options.slow_per_mille) {
            after_us += self.random.below(options.slow_max_us);
        }
        let life = self.processes[node.0].life;
        let request = Box::new(request);
        self.after(
            after_us,
            Event::StoreRequestArrives {
                node,
                life,
                request,
            },
        );
    }

    pub(crate) fn store_request_arrives(&mut self, node: Node, life: u64, request: StoreRequest) {
        let options = self.options.store;
        let reaches = !self.store.is_away && self.network.round_trips(node, STORE);
        if !reaches {
            let answer = self.refused(node, request);
            return self.after(
                REQUEST_TIMEOUT_US,
                Event::Process {
                    node,
                    life,
                    input: answer,
                },
            );
        }
        let answer_us = self.random.between(100, 2 * MILLISECOND);
        if self.random.chance(options.fails_per_mille) {
            self.counts.store_failures += 1;
            let answer = self.refused(node, request);
            return self.after(
                answer_us,
                Event::Process {
                    node,
                    life,
                    input: answer,
                },
            );
        }
        let lost = self.random.chance(options.lost_replies_per_mille);
        let failed = lost.then(|| self.refused(node, request.clone()));
        let answer = self.served(node, request);
        let input = failed.unwrap_or(answer);
        self.after(answer_us, Event::Process { node, life, input });
    }

    /// The answer of a request that failed.
    fn refused(&mut self, node: Node, request: StoreRequest) -> Input {
        self.log(|| format!("store: fails a request of {node}: {}", name(&request)));
        let answer = match request {
            StoreRequest::WriteSegment { upload } => StoreAnswer::SegmentWritten {
                segment: None,
                upload,
            },
            StoreRequest::WriteManifest {
                task,
                checkpoint,
                finished,
                ..
            } => StoreAnswer::ManifestWritten {
                task,
                checkpoint,
                manifest: None,
                finished,
            },
            StoreRequest::ReadImage { task, .. } => {
                return Input::Prepared {
                    task,
                    image: None,
                    failure: Some(Preparation::Unavailable),
                };
            }
            StoreRequest::WriteMetadata { epoch, metadata } => {
                let (job, checkpoint) = (metadata.job, metadata.checkpoint);
                StoreAnswer::MetadataWritten {
                    epoch,
                    job,
                    checkpoint,
                    object: None,
                }
            }
            StoreRequest::ReadMetadata {
                epoch,
                job,
                pointer,
            } => {
                let read = Err(Preparation::Unavailable);
                StoreAnswer::MetadataRead {
                    epoch,
                    job,
                    checkpoint: pointer.checkpoint,
                    read,
                }
            }
            StoreRequest::WriteGraph { user, turn, job } => StoreAnswer::GraphWritten {
                user,
                turn,
                job,
                succeeded: false,
            },
            StoreRequest::ReadGraphs { epoch } => StoreAnswer::GraphsRead {
                epoch,
                succeeded: false,
            },
            StoreRequest::Savepoint(request) => request.refused(),
            StoreRequest::CleanUp { job, .. } => StoreAnswer::CleanedUp { job },
        };
        Input::Store {
            answer: Box::new(answer),
        }
    }

    /// Carries a request out.
    fn served(&mut self, node: Node, request: StoreRequest) -> Input {
        let answer = match request {
            StoreRequest::WriteSegment { upload } => self.keep_segment(upload),
            StoreRequest::WriteManifest {
                task,
                checkpoint,
                finished,
                manifest,
            } => {
                let name = format!("{}.manifest", image_name(task, checkpoint));
                let content = Content::Manifest(manifest);
                let by = Some(task.attempt);
                let manifest = Some(self.keep(task.job, checkpoint, by, &name, content));
                StoreAnswer::ManifestWritten {
                    task,
                    checkpoint,
                    manifest,
                    finished,
                }
            }
            StoreRequest::ReadImage { task, manifest } => {
                return self.image_read(node, task, &manifest);
            }
            StoreRequest::WriteMetadata { epoch, metadata } => {
                let (job, checkpoint) = (metadata.job, metadata.checkpoint);
                let name = format!("{checkpoint}/metadata");
                let content = Content::Metadata(metadata);
                let object = Some(self.keep(job, checkpoint, None, &name, content));
                StoreAnswer::MetadataWritten {
                    epoch,
                    job,
                    checkpoint,
                    object,
                }
            }
            StoreRequest::ReadMetadata {
                epoch,
                job,
                pointer,
            } => {
                let read = self.store.read_metadata(&pointer.metadata.key);
                StoreAnswer::MetadataRead {
                    epoch,
                    job,
                    checkpoint: pointer.checkpoint,
                    read,
                }
            }
            StoreRequest::WriteGraph { user, turn, job } => StoreAnswer::GraphWritten {
                user,
                turn,
                job,
                succeeded: true,
            },
            StoreRequest::ReadGraphs { epoch } => StoreAnswer::GraphsRead {
                epoch,
                succeeded: true,
            },
            StoreRequest::Savepoint(request) => self.serve_savepoint(request),
            StoreRequest::CleanUp {
                job,
                retained,
                scope,
            } => self.clean(node, job, &retained, &scope),
        };
        Input::Store {
            answer: Box::new(answer),
        }
    }

    fn keep_segment(&mut self, upload: Upload) -> StoreAnswer {
        let (task, checkpoint) = (upload.task, upload.checkpoint);
        let name = format!("{}.segment", image_name(task, checkpoint));
        let content = Content::Segment(Rc::clone(&upload.pages));
        let by = Some(task.attempt);
        let segment = Some(self.keep(task.job, checkpoint, by, &name, content).key);
        StoreAnswer::SegmentWritten { segment, upload }
    }

    fn image_read(&mut self, node: Node, task: TaskKey, manifest: &ObjectRef) -> Input {
        let image = match self.store.read_image(&manifest.key) {
            Ok(image) => Some(image),
            Err(Unreadable::PagesLost(image, chain)) if self.random.chance(500) => {
                self.fill_fails(node, task);
                Some((image, chain))
            }
            Err(Unreadable::Lost | Unreadable::PagesLost(..)) => None,
            Err(Unreadable::Different) => {
                let key = &manifest.key;
                self.judge(Err(format!("{key} reads back other than it was captured")));
                None
            }
        };
        let failure = image.is_none().then_some(Preparation::Lost);
        Input::Prepared {
            task,
            image,
            failure,
        }
    }

    /// Lists what is to go, which goes a little later, one object after the other.
    fn clean(
        &mut self,
        node: Node,
        job: JobId,
        retained: &[CheckpointPointer],
        scope: &Scope,
    ) -> StoreAnswer {
        self.counts.orphan_scans += u64::from(matches!(scope, Scope::Orphans { .. }));
        let keys = self.store.orphans(job, retained, scope);
        let life = self.processes[node.0].life;
        let mut after_us = 0;
        for key in keys {
            after_us += self.random.between(0, self.options.store.latency_max_us) / 8;
            self.after(
                after_us,
                Event::StoreDeletes {
                    node,
                    life,
                    job,
                    key,
                },
            );
        }
        StoreAnswer::CleanedUp { job }
    }

    /// Stores an object of a job under this name.
    pub(crate) fn keep(
        &mut self,
        job: JobId,
        checkpoint: CheckpointId,
        by: Option<AttemptId>,
        name: &str,
        content: Content,
    ) -> ObjectRef {
        let key = format!("{}{name}", prefix(job));
        let rate = u64::from(self.options.store.damaged_per_ten_thousand);
        let damaged = rate > 0 && self.random.below(10_000) < rate;
        if damaged {
            self.counts.damaged += 1;
            self.checkers.excuse(job);
            self.log(|| format!("store: damages {key}"));
        }
        self.store.objects.insert(
            key.clone(),
            Object {
                checkpoint,
                by,
                content,
                damaged,
            },
        );
        reference(key)
    }

    pub(crate) fn store_deletes(&mut self, node: Node, life: u64, job: JobId, key: &str) {
        if self.processes[node.0].life != life || self.processes[node.0].state == ProcessState::Dead
        {
            return;
        }
        if self.store.objects.remove(key).is_some() {
            let judged = self.checkers.deleted(job, key);
            self.judge(judged);
            self.log(|| format!("store: deletes {key} of job {}", short(job)));
        }
    }
}

fn name(request: &StoreRequest) -> &'static str {
    match request {
        StoreRequest::WriteSegment { .. } => "write a segment",
        StoreRequest::WriteManifest { .. } => "write a manifest",
        StoreRequest::ReadImage { .. } => "read an image",
        StoreRequest::WriteMetadata { .. } => "write metadata",
        StoreRequest::ReadMetadata { .. } => "read metadata",
        StoreRequest::WriteGraph { .. } => "write a graph",
        StoreRequest::ReadGraphs { .. } => "read graphs",
        StoreRequest::Savepoint(SavepointRequest::Import { .. }) => "import",
        StoreRequest::Savepoint(SavepointRequest::Delete { .. }) => "delete a savepoint",
        StoreRequest::CleanUp { .. } => "clean up",
    }
}
