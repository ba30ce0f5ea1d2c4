//! Savepoints and what begins from them: copies that are made object by object and end with their process, and the import of
//! a savepoint, or of a checkpoint that an ended job left, as another job's first checkpoint. It never looks at what a
//! savepoint was made of once it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tidemill_core::job::{self, SavepointRequestId};
use tidemill_core::leader;
use tidemill_protocol::manifest::{CheckpointMetadata, ObjectRef, TaskImageRef};
use tidemill_protocol::record::{CheckpointPointer, CheckpointPointers};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId, TaskId};

use crate::event::{Event, Input};
use crate::images::{Layout, Pages, Unfit};
use crate::node::{Node, ProcessState, STORE};
use crate::store::{Content, StoreAnswer, StoreRequest};
use crate::task::TaskImage;
use crate::time::{MILLISECOND, SECOND};
use crate::user::Answer;
use crate::world::World;
use crate::zookeeper::short;

/// How long a frozen process's copy waits before it is looked at again.
const FROZEN_US: u64 = 100 * MILLISECOND;

/// What a job begins from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) of: JobId,
    pub(crate) checkpoint: CheckpointId,
    pub(crate) place: Place,
    /// The wish that made it, if one did.
    pub(crate) wish: u128,
}

/// Where that is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A savepoint.
    Directory(String),
    /// The checkpoint that an ended job left: its metadata.
    Kept(ObjectRef),
}

/// Images with everything that they are made of.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    images: BTreeMap<TaskId, (TaskImageRef, Rc<TaskImage>, Layout)>,
    segments: BTreeMap<String, Rc<Pages>>,
}

/// A complete savepoint.
#[derive(Debug)]
pub(crate) struct Savepoint {
    pub(crate) of: JobId,
    pub(crate) checkpoint: CheckpointId,
    metadata: CheckpointMetadata,
    copied: Copied,
}

/// A savepoint that is being written.
#[derive(Debug)]
pub(crate) struct Copying {
    epoch: Epoch,
    id: SavepointRequestId,
    directory: String,
    metadata: CheckpointMetadata,
    copied: Copied,
    /// The segments that are not there yet, once they are known.
    left: Option<Vec<String>>,
    /// The longest that one of them takes: segments may be large.
    object_max_us: u64,
}

/// Why nothing begins from an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The store did not answer.
    Unavailable,
    /// It is not there, or damaged.
    Lost,
}

/// What the store is asked about savepoints.
#[derive(Clone, Debug)]
pub(crate) enum SavepointRequest {
    /// Make what a submitted job begins from its first checkpoint.
    Import {
        user: usize,
        turn: u64,
        job: JobId,
        epoch: Epoch,
        origin: Origin,
    },
    Delete {
        user: usize,
        turn: u64,
        directory: String,
    },
}

impl SavepointRequest {
    /// The answer when it fails.
    pub(crate) fn refused(self) -> StoreAnswer {
        match self {
            Self::Import {
                user, turn, job, ..
            } => StoreAnswer::Imported {
                user,
                turn,
                job,
                result: Err(Refusal::Unavailable),
            },
            Self::Delete { user, turn, .. } => StoreAnswer::SavepointDeleted {
                user,
                turn,
                succeeded: false,
            },
        }
    }
}

/// What a user asks about savepoints.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    /// For a savepoint.
    Wish { id: u128, stop: bool },
    /// How that stands.
    Status { id: u128 },
    /// For the checkpoint that the ended job left.
    Kept,
    /// That this goes.
    DropKept,
    /// That a savepoint goes.
    Delete { id: u128 },
}

/// Where a savepoint is, by its wish.
pub(crate) fn directory(id: u128) -> String {
    format!("savepoints/{id}")
}

impl Copied {
    /// Whether every page is what it was when it was captured.
    fn is_right(&self) -> bool {
        let page = |(page, segment): (&u32, &String)| {
            let pages = self.segments.get(segment)?;
            Some((*page, *pages.get(page)?))
        };
        self.images.values().all(|(_, image, layout)| {
            let pages: Option<Pages> = layout.iter().map(page).collect();
            pages.as_ref() == Some(&image.counts)
        })
    }

    /// Takes note of an image; says which segments it is made of.
    fn add(&mut self, part: &TaskImageRef, image: Rc<TaskImage>, layout: Layout) -> Vec<String> {
        let segments: BTreeSet<String> = layout.values().cloned().collect();
        self.images.insert(part.task, (part.clone(), image, layout));
        segments.into_iter().collect()
    }
}

impl World {
    /// The leader wants a checkpoint copied.
    pub(crate) fn write_savepoint(
        &mut self,
        node: Node,
        id: SavepointRequestId,
        directory: String,
        metadata: CheckpointMetadata,
    ) {
        let Some(epoch) = self.job_managers[node.0].leads() else {
            return;
        };
        let copying = Copying {
            epoch,
            id,
            directory,
            metadata,
            copied: Copied::default(),
            left: None,
            object_max_us: self.random.between(MILLISECOND, 2 * SECOND),
        };
        let life = self.processes[node.0].life;
        self.copy_on(node, life, copying);
    }

    fn copy_on(&mut self, node: Node, life: u64, copying: Copying) {
        let options = self.options.store;
        let mut after_us = self.random.between(MILLISECOND, copying.object_max_us);
        if self.random.chance(options.slow_per_mille) {
            after_us += self.random.below(options.slow_max_us);
        }
        let copying = Box::new(copying);
        self.after(
            after_us,
            Event::StoreCopies {
                node,
                life,
                copying,
            },
        );
    }

    /// The next object of a savepoint is copied, if whoever copies still may.
    pub(crate) fn store_copies(&mut self, node: Node, life: u64, mut copying: Copying) {
        let process = &self.processes[node.0];
        if process.life != life || process.state == ProcessState::Dead {
            return;
        }
        if process.state == ProcessState::Frozen {
            let copying = Box::new(copying);
            return self.after(
                FROZEN_US,
                Event::StoreCopies {
                    node,
                    life,
                    copying,
                },
            );
        }
        if self.job_managers[node.0].leads() != Some(copying.epoch) {
            return;
        }
        let fails = self.random.chance(self.options.store.fails_per_mille);
        let reaches = !self.store.is_away && self.network.round_trips(node, STORE);
        if fails || !reaches {
            self.counts.store_failures += 1;
            return self.savepoint_copied(node, life, &copying, Err("the store".to_owned()));
        }
        match self.copy_step(&mut copying) {
            Ok(false) => self.copy_on(node, life, copying),
            Ok(true) => self.complete_savepoint(node, life, copying),
            Err(reason) => self.savepoint_copied(node, life, &copying, Err(reason)),
        }
    }

    /// Copies the next object; whether that was the last.
    fn copy_step(&mut self, copying: &mut Copying) -> Result<bool, String> {
        let job = copying.metadata.job;
        let Some(left) = &mut copying.left else {
            let mut left = BTreeSet::new();
            for part in &copying.metadata.tasks {
                match self.store.layout(&part.manifest.key) {
                    Ok((image, layout)) => left.extend(copying.copied.add(part, image, layout)),
                    Err(unfit) => return Err(self.cannot_be_copied(job, copying.epoch, &unfit)),
                }
            }
            copying.left = Some(left.into_iter().collect());
            return Ok(false);
        };
        let Some(key) = left.pop() else {
            return Ok(true);
        };
        match self.store.segment(&key) {
            Ok(pages) => {
                let pages = Rc::clone(pages);
                copying.copied.segments.insert(key, pages);
                Ok(false)
            }
            Err(unfit) => Err(self.cannot_be_copied(job, copying.epoch, &unfit)),
        }
    }

    /// What is being copied stays, as long as its leader is not succeeded.
    fn cannot_be_copied(&mut self, job: JobId, epoch: Epoch, unfit: &Unfit) -> String {
        match unfit {
            Unfit::Missing(key) => {
                let judged = self.checkers.missed_by_copy(job, epoch, key);
                self.judge(judged);
                format!("{key} is missing")
            }
            Unfit::Damaged(key) => format!("{key} is damaged"),
        }
    }

    fn complete_savepoint(&mut self, node: Node, life: u64, copying: Copying) {
        let (of, checkpoint) = (copying.metadata.job, copying.metadata.checkpoint);
        let mut judged = self.checkers.saved(of, checkpoint);
        if !copying.copied.is_right() {
            judged = Err(format!(
                "the savepoint of checkpoint {checkpoint} of job {} holds something else",
                short(of)
            ));
        }
        self.judge(judged);
        let there = self.store.savepoints.get(&copying.directory);
        if there.is_some_and(|there| there.checkpoint != checkpoint) {
            let taken = Err("there is another one".to_owned());
            return self.savepoint_copied(node, life, &copying, taken);
        }
        self.counts.savepoints += 1;
        let directory = copying.directory.clone();
        self.log(|| format!("store: {directory} of job {} is complete", short(of)));
        let lost = self
            .random
            .chance(self.options.store.lost_replies_per_mille);
        let result = if lost {
            Err("the store".to_owned())
        } else {
            Ok(1)
        };
        self.savepoint_copied(node, life, &copying, result);
        let Copying {
            metadata, copied, ..
        } = copying;
        let savepoint = Savepoint {
            of,
            checkpoint,
            metadata,
            copied,
        };
        self.store.savepoints.insert(directory, savepoint);
    }

    fn savepoint_copied(
        &mut self,
        node: Node,
        life: u64,
        copying: &Copying,
        result: Result<u64, String>,
    ) {
        let answer = Box::new(StoreAnswer::SavepointCopied {
            epoch: copying.epoch,
            job: copying.metadata.job,
            id: copying.id,
            result,
        });
        let input = Input::Store { answer };
        self.after(MILLISECOND, Event::Process { node, life, input });
    }

    /// Carries a request out.
    pub(crate) fn serve_savepoint(&mut self, request: SavepointRequest) -> StoreAnswer {
        match request {
            SavepointRequest::Import {
                user,
                turn,
                job,
                epoch,
                origin,
            } => StoreAnswer::Imported {
                user,
                turn,
                job,
                result: self.import(job, epoch, &origin),
            },
            SavepointRequest::Delete {
                user,
                turn,
                directory,
            } => {
                self.store.savepoints.remove(&directory);
                StoreAnswer::SavepointDeleted {
                    user,
                    turn,
                    succeeded: true,
                }
            }
        }
    }

    /// Makes what a job begins from its own.
    fn import(
        &mut self,
        job: JobId,
        epoch: Epoch,
        origin: &Origin,
    ) -> Result<CheckpointPointer, Refusal> {
        let (metadata, copied) = match &origin.place {
            Place::Directory(directory) => {
                let savepoint = self.store.savepoints.get(directory);
                let savepoint = savepoint.ok_or(Refusal::Lost)?;
                if !savepoint.copied.is_right() {
                    let what = format!("{directory} cannot be read any more");
                    self.judge(Err(what));
                    return Err(Refusal::Lost);
                }
                (savepoint.metadata.clone(), savepoint.copied.clone_all())
            }
            Place::Kept(metadata) => self.kept(metadata)?,
        };
        let (checkpoint, attempt) = (CheckpointId::new(epoch, 0), AttemptId::new(epoch, 0));
        let mut own = BTreeMap::new();
        for (number, (key, pages)) in (0..).zip(&copied.segments) {
            let content = Content::Segment(Rc::clone(pages));
            let name = format!("{checkpoint}/{number}.segment");
            let kept = self.keep(job, checkpoint, Some(attempt), &name, content);
            own.insert(key.clone(), kept.key);
        }
        let mut tasks = Vec::new();
        for (task, (part, image, layout)) in &copied.images {
            let segment = |key: &String| copied.segments.get(key).map_or(0, |pages| pages.len());
            let places = layout.iter().map(|(page, key)| (*page, own[key].clone()));
            let written = own.iter().map(|(key, own)| (own.clone(), segment(key)));
            let manifest = crate::images::Manifest::whole(
                places.collect(),
                written.collect(),
                Rc::clone(image),
            );
            let name = format!("{checkpoint}/{task}.manifest");
            let content = Content::Manifest(manifest);
            tasks.push(TaskImageRef {
                manifest: self.keep(job, checkpoint, Some(attempt), &name, content),
                ..part.clone()
            });
        }
        let metadata = CheckpointMetadata {
            job,
            checkpoint,
            tasks,
            ..metadata
        };
        let name = format!("{checkpoint}/metadata");
        let content = Content::Metadata(metadata);
        Ok(CheckpointPointer {
            checkpoint,
            metadata: self.keep(job, checkpoint, None, &name, content),
        })
    }

    /// What an ended job left.
    fn kept(&self, metadata: &ObjectRef) -> Result<(CheckpointMetadata, Copied), Refusal> {
        let Some(Content::Metadata(metadata)) = self.store.content(&metadata.key, false) else {
            return Err(Refusal::Lost);
        };
        let mut copied = Copied::default();
        for part in &metadata.tasks {
            let (image, layout) = self
                .store
                .layout(&part.manifest.key)
                .map_err(|_| Refusal::Lost)?;
            for key in copied.add(part, image, layout) {
                let pages = self.store.segment(&key).map_err(|_| Refusal::Lost)?;
                copied.segments.insert(key, Rc::clone(pages));
            }
        }
        Ok((metadata.clone(), copied))
    }

    /// What a submission's job begins from is there, or not.
    pub(crate) fn imported(
        &mut self,
        node: Node,
        (user, turn, job): (usize, u64, JobId),
        result: Result<CheckpointPointer, Refusal>,
    ) {
        match result {
            Err(Refusal::Unavailable) => self.answer_user(user, turn, Answer::Rejected),
            Err(Refusal::Lost) => self.answer_user(user, turn, Answer::Refused),
            Ok(pointer) if self.job_managers[node.0].leads() == Some(pointer.checkpoint.epoch) => {
                let completed = vec![pointer];
                self.submit(node, user, turn, job, CheckpointPointers { completed });
            }
            Ok(_) => self.redirect(node, user, turn),
        }
    }

    /// A user asks about savepoints.
    pub(crate) fn asked(
        &mut self,
        node: Node,
        (user, turn, job): (usize, u64, JobId),
        question: Question,
    ) {
        let Some(leader) = &self.job_managers[node.0].leader else {
            return self.redirect(node, user, turn);
        };
        let known = leader.job(job);
        let answer = match question {
            Question::Wish { id, stop } => {
                if known.is_none_or(|known| known.phase().is_terminal()) {
                    return self.answer_user(user, turn, Answer::Ended);
                }
                let wish = leader::Event::SavepointRequested {
                    job,
                    id: SavepointRequestId(id),
                    directory: directory(id),
                    stop,
                };
                self.tell_leader(node, wish);
                return self.asked(node, (user, turn, job), Question::Status { id });
            }
            Question::Status { id } => {
                let status = known.and_then(|known| known.savepoint(SavepointRequestId(id)));
                Answer::Savepoint(status)
            }
            Question::Kept => match known {
                None => Answer::Ended,
                Some(known) if !known.phase().is_terminal() => Answer::Rejected,
                Some(known) => Answer::Kept(known.kept_checkpoint().cloned()),
            },
            Question::DropKept => {
                self.tell_leader(node, leader::Event::KeptDropped { job });
                Answer::Deleted
            }
            Question::Delete { id } => {
                let directory = directory(id);
                let request = SavepointRequest::Delete {
                    user,
                    turn,
                    directory,
                };
                return self.ask_store(node, StoreRequest::Savepoint(request));
            }
        };
        self.answer_user(user, turn, answer);
    }

    /// A copy is over.
    pub(crate) fn tell_copied(
        &mut self,
        node: Node,
        (epoch, job): (Epoch, JobId),
        id: SavepointRequestId,
        result: Result<u64, String>,
    ) {
        if self.job_managers[node.0].leads() == Some(epoch) {
            let result = job::Event::SavepointCopied { id, result };
            self.tell_leader(node, leader::Event::Performed { job, result });
        }
    }
}

impl Copied {
    fn clone_all(&self) -> Self {
        Self {
            images: self.images.clone(),
            segments: self.segments.clone(),
        }
    }
}
