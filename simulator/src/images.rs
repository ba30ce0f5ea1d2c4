//! How captures are stored: the pages that changed in a segment, and a manifest that says where every page is, as a delta on
//! the manifest before. It follows the real store's scheme, with a key's count for a page and shorter chains, so that bases,
//! rewritten segments and their deletion come up in every run. It never decides what is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tidemill_protocol::CheckpointId;
use tidemill_protocol::control::{ToLeader, WarmImages, WarmTask};
use tidemill_protocol::manifest::ObjectRef;

use crate::event::{Event, Input};
use crate::node::Node;
use crate::store::{Content, Store, StoreRequest};
use crate::task::{Task, TaskImage, TaskKey};
use crate::time::{MILLISECOND, SECOND};
use crate::world::World;

/// After so many deltas a manifest lists everything again.
const DELTAS_MAX: u32 = 3;

/// What stands for a page: the key whose count it holds.
pub(crate) type Page = u32;

/// What is in pages.
pub(crate) type Pages = BTreeMap<Page, u32>;

/// The segment that each page is in.
pub(crate) type Layout = BTreeMap<Page, String>;

/// What later captures of a task build upon.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    newest: Option<String>,
    /// The segment that each page is in.
    places: BTreeMap<Page, String>,
    /// How many pages each segment was written with.
    written: BTreeMap<String, usize>,
    deltas: u32,
    /// There are places that no stored manifest lists.
    unlisted: bool,
}

/// What a manifest says.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    base: Option<String>,
    places: BTreeMap<Page, String>,
    written: BTreeMap<String, usize>,
    /// The host's part, and for checkers the pages as they were.
    image: Rc<TaskImage>,
}

/// What is on its way to the store.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) task: TaskKey,
    pub(crate) checkpoint: CheckpointId,
    pub(crate) finished: bool,
    image: Rc<TaskImage>,
    pub(crate) pages: Rc<Pages>,
}

/// Why an image cannot be read.
#[derive(Clone, Debug)]
pub(crate) enum Unreadable {
    /// A manifest is damaged or missing.
    Lost,
    /// A segment is: whoever reads pages when they are wanted finds out late.
    PagesLost(Rc<TaskImage>, Chain),
    /// Everything is there, and it is not what was captured.
    Different,
}

/// Why an object is of no use.
#[derive(Clone, Debug)]
pub(crate) enum Unfit {
    /// It is not there.
    Missing(String),
    /// It is damaged.
    Damaged(String),
}

impl Manifest {
    /// One that builds on no other.
    pub(crate) fn whole(
        places: Layout,
        written: BTreeMap<String, usize>,
        image: Rc<TaskImage>,
    ) -> Self {
        Self {
            base: None,
            places,
            written,
            image,
        }
    }
}

impl Chain {
    /// A segment with these pages is stored, or none was needed; says what the manifest is to list.
    fn extend(&mut self, segment: Option<String>, pages: &Pages) -> Manifest {
        let mut places = BTreeMap::new();
        let mut written = BTreeMap::new();
        if let Some(segment) = segment {
            places.extend(pages.keys().map(|page| (*page, segment.clone())));
            written.insert(segment, pages.len());
        }
        self.places.extend(places.clone());
        self.written.extend(written.clone());
        let base = self.newest.clone();
        let base = base.filter(|_| !self.unlisted && self.deltas < DELTAS_MAX);
        self.unlisted = true;
        if base.is_some() {
            self.deltas += 1;
        } else {
            self.deltas = 0;
            let live: BTreeSet<&String> = self.places.values().collect();
            self.written.retain(|segment, _| live.contains(segment));
            (places, written) = (self.places.clone(), self.written.clone());
        }
        Manifest {
            base,
            places,
            written,
            image: Rc::default(),
        }
    }

    /// The pages that alone keep mostly dead segments from being deleted.
    fn pages_to_write_again(&self) -> BTreeSet<Page> {
        let live = |segment: &String| self.places.values().filter(|one| *one == segment).count();
        let dead = |(segment, written): (&String, &usize)| {
            (live(segment) * 2 < *written).then(|| segment.clone())
        };
        let dead: BTreeSet<String> = self.written.iter().filter_map(dead).collect();
        let places = self.places.iter();
        places
            .filter(|(_, segment)| dead.contains(*segment))
            .map(|(page, _)| *page)
            .collect()
    }
}

impl Store {
    /// Every object that an image is made of: its manifest, that one's bases, and their segments. `None` when one of the
    /// manifests is missing, or is damaged and `damaged` ones do not do.
    pub(crate) fn parts(&self, manifest: &str, damaged: bool) -> Option<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        let mut next = Some(manifest.to_owned());
        while let Some(key) = next.take() {
            let manifest = self.manifest(&key, damaged)?;
            keys.extend(manifest.places.values().cloned());
            next.clone_from(&manifest.base);
            keys.insert(key);
        }
        Some(keys)
    }

    /// Whether an object is there, damaged or not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.content(key, true).is_some()
    }

    /// An object, or why it is of no use.
    fn object(&self, key: &str) -> Result<&Content, Unfit> {
        self.content(key, true)
            .ok_or_else(|| Unfit::Missing(key.to_owned()))?;
        self.content(key, false)
            .ok_or_else(|| Unfit::Damaged(key.to_owned()))
    }

    /// The pages of a segment.
    pub(crate) fn segment(&self, key: &str) -> Result<&Rc<Pages>, Unfit> {
        match self.object(key)? {
            Content::Segment(pages) => Ok(pages),
            _ => Err(Unfit::Damaged(key.to_owned())),
        }
    }

    /// An image, and where its pages are.
    pub(crate) fn layout(&self, newest: &str) -> Result<(Rc<TaskImage>, Layout), Unfit> {
        let mut layout = Layout::new();
        let mut image = None;
        let mut next = Some(newest.to_owned());
        while let Some(key) = next.take() {
            let Content::Manifest(manifest) = self.object(&key)? else {
                return Err(Unfit::Damaged(key));
            };
            for (page, segment) in &manifest.places {
                layout.entry(*page).or_insert_with(|| segment.clone());
            }
            image.get_or_insert_with(|| Rc::clone(&manifest.image));
            next.clone_from(&manifest.base);
        }
        let image = image.ok_or_else(|| Unfit::Missing(newest.to_owned()))?;
        Ok((image, layout))
    }

    fn manifest(&self, key: &str, damaged: bool) -> Option<&Manifest> {
        match self.content(key, damaged)? {
            Content::Manifest(manifest) => Some(manifest),
            Content::Segment(_) | Content::Metadata(_) => None,
        }
    }

    /// A task's image, damaged or not: for checkers.
    pub(crate) fn image(&self, key: &str) -> Option<&Rc<TaskImage>> {
        Some(&self.manifest(key, true)?.image)
    }

    /// Puts an image together, and what later captures build upon.
    pub(crate) fn read_image(&self, newest: &str) -> Result<(Rc<TaskImage>, Chain), Unreadable> {
        let mut manifests = Vec::new();
        let mut next = Some(newest.to_owned());
        while let Some(key) = next.take() {
            let manifest = self.manifest(&key, false).ok_or(Unreadable::Lost)?;
            next.clone_from(&manifest.base);
            manifests.push(manifest);
        }
        let mut chain = Chain {
            newest: Some(newest.to_owned()),
            deltas: manifests.len() as u32 - 1,
            ..Chain::default()
        };
        for manifest in manifests.iter().rev() {
            chain.places.extend(manifest.places.clone());
            chain.written.extend(manifest.written.clone());
        }
        let image = Rc::clone(&manifests[0].image);
        let mut counts = Pages::new();
        for (page, segment) in &chain.places {
            let Some(Content::Segment(pages)) = self.content(segment, false) else {
                return Err(Unreadable::PagesLost(image, chain));
            };
            counts.insert(*page, *pages.get(page).ok_or(Unreadable::Different)?);
        }
        if counts == image.counts {
            Ok((image, chain))
        } else {
            Err(Unreadable::Different)
        }
    }
}

impl World {
    /// Stores what has changed since the last capture, and what no capture before could store.
    pub(crate) fn upload(
        &mut self,
        node: Node,
        task: &mut Task,
        checkpoint: CheckpointId,
        image: TaskImage,
    ) {
        task.uploading = true;
        let mut wanted = std::mem::take(&mut task.again);
        wanted.extend(task.chain.pages_to_write_again());
        let changed = |(page, count): &(&Page, &u32)| {
            wanted.contains(page) || task.captured.get(page) != Some(count)
        };
        let pages: Pages = image
            .counts
            .iter()
            .filter(changed)
            .map(|(page, count)| (*page, *count))
            .collect();
        task.captured.clone_from(&image.counts);
        let upload = Upload {
            task: task.key,
            checkpoint,
            finished: image.finished,
            image: Rc::new(image),
            pages: Rc::new(pages),
        };
        if upload.pages.is_empty() {
            self.upload_manifest(node, task, None, upload);
        } else {
            self.ask_store(node, StoreRequest::WriteSegment { upload });
        }
    }

    /// A segment is stored, or not: then the next capture holds its pages again.
    pub(crate) fn segment_written(&mut self, node: Node, segment: Option<String>, upload: Upload) {
        let Some(mut task) = self.take_task(node, upload.task) else {
            return;
        };
        if segment.is_some() {
            self.upload_manifest(node, &mut task, segment, upload);
        } else {
            task.uploading = false;
            task.again.extend(upload.pages.keys().copied());
            self.decline(node, upload.task, upload.checkpoint);
        }
        self.put_task(node, task);
    }

    /// Pages of a task's image cannot be read, which it learns some time after it runs.
    pub(crate) fn fill_fails(&mut self, node: Node, task: TaskKey) {
        let after_us = self.random.between(MILLISECOND, 3 * SECOND);
        let life = self.processes[node.0].life;
        let input = Input::FillFails { task };
        self.after(after_us, Event::Process { node, life, input });
    }

    /// A leader wants these images of a job kept warm, and no others of it. Those that can be read are at once.
    pub(crate) fn keep_warm(&mut self, node: Node, images: &WarmImages) {
        let (job, checkpoint) = (images.job, images.checkpoint);
        let readable = |manifest: &ObjectRef| self.store.read_image(&manifest.key).is_ok();
        let kept = images.images.iter().filter(|(_, key)| readable(key));
        let kept: Vec<WarmTask> = kept
            .map(|(task, _)| WarmTask {
                job,
                task: *task,
                checkpoint,
            })
            .collect();
        let warm = &mut self.task_managers[node.worker()].warm;
        warm.retain(|one| one.job != job);
        warm.extend(kept);
        let warm = warm.clone();
        self.counts.warm_images += warm.len() as u64;
        self.say(node, ToLeader::Warm(warm));
    }

    fn upload_manifest(
        &mut self,
        node: Node,
        task: &mut Task,
        segment: Option<String>,
        upload: Upload,
    ) {
        let manifest = Manifest {
            image: Rc::clone(&upload.image),
            ..task.chain.extend(segment, &upload.pages)
        };
        self.ask_store(
            node,
            StoreRequest::WriteManifest {
                task: upload.task,
                checkpoint: upload.checkpoint,
                finished: upload.finished,
                manifest,
            },
        );
    }
}

impl Task {
    /// A manifest that lists everything so far is stored.
    pub(crate) fn manifest_stored(&mut self, manifest: &ObjectRef) {
        self.chain.newest = Some(manifest.key.clone());
        self.chain.unlisted = false;
    }
}
