//! Every local image of this TaskManager, and what follows from what is said of them. It runs on one thread.
//!
//! It never waits for the store: what has to be read is read by the [`Builder`], which says when it has been.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidemill_protocol::JobId;
use tidemill_protocol::control::{WarmImages, WarmTask};
use tidemill_protocol::manifest::ObjectRef;
use tracing::debug;

use super::build::{Builder, From, Wanted};
use super::discard::Discard;
use super::entry::{Building, Entry, Kept, Missing};
use super::loan::Loan;
use super::{Claim, Command, ImagesOptions, Key, key};
use crate::task::Execution;

/// What captures take of the memory until their checkpoints are complete, all tasks together.
const WAITING_MAX_BYTES: usize = 256 << 20;

/// How long the image of a task is kept that does not run here any more.
const IDLE: Duration = Duration::from_secs(60);

/// A task whose captures are too large to be held has its image read from the store no more often than this.
const REBUILD_INTERVAL: Duration = Duration::from_secs(10);

/// While other warm images of a job are being made, it is said no more often than this which are there: where they change
/// much, one of them always is.
const SAY_INTERVAL: Duration = Duration::from_millis(100);

/// An image has been made, or could not be.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) key: Key,
    pub(super) number: u64,
    pub(super) kept: Option<Kept>,
}

/// Every local image.
pub(super) struct Table {
    options: ImagesOptions,
    builder: Builder,
    discard: Discard,
    entries: HashMap<Key, Entry>,
    /// When it was last said which images of a job are warm.
    said_at: HashMap<JobId, Instant>,
    /// Counts builds and changes.
    counter: u64,
}

impl Table {
    pub(super) fn new(options: ImagesOptions, builder: Builder, discard: Discard) -> Self {
        Self {
            options,
            builder,
            discard,
            entries: HashMap::new(),
            said_at: HashMap::new(),
            counter: 0,
        }
    }

    /// Does what follows from a command. Returns what the leader is to hear of warm images.
    pub(super) fn handle(&mut self, command: Command) -> Option<Vec<WarmTask>> {
        match command {
            Command::Stored(execution, stored) => {
                let waiting = self.entries.values().map(Entry::waiting_bytes).sum();
                let room_bytes = WAITING_MAX_BYTES.saturating_sub(waiting);
                if let Some(entry) = entry_of(&mut self.entries, execution) {
                    let directory = &self.options.directory;
                    entry.stored(*stored, room_bytes, directory, &self.discard);
                }
                None
            }
            Command::Completed(execution, checkpoint) => {
                if let Some(entry) = entry_of(&mut self.entries, execution) {
                    entry.completed = entry.completed.max(Some(checkpoint));
                    self.advance(key(execution));
                }
                None
            }
            Command::Claim(claim) => {
                self.claim(claim);
                None
            }
            Command::Stopped(execution) => {
                if let Some(entry) = self.entries.get_mut(&key(execution))
                    && entry.attempt == Some(execution.attempt)
                {
                    entry.idle_since = Some(Instant::now());
                }
                None
            }
            Command::KeepWarm(images) => self.keep_warm(images),
            Command::Built(built) => self.built(built),
        }
    }

    /// Brings a task's image up to its last completed checkpoint, as far as that can be done at once.
    fn advance(&mut self, key: Key) {
        let Some(entry) = self
            .entries
            .get_mut(&key)
            .filter(|entry| entry.building.is_none())
        else {
            return;
        };
        if entry.needs_copy() {
            self.copy(key);
            return;
        }
        let (changed, missing) = entry.advance();
        if let Some(missing) = missing {
            self.rebuild(key, missing);
        }
        if changed {
            self.changed(key);
        }
    }

    /// Makes a file that may change of one that is mapped.
    fn copy(&mut self, key: Key) {
        self.counter += 1;
        let number = self.counter;
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let Some(kept) = entry.kept.as_ref() else {
            return;
        };
        entry.building = Some(Building {
            number,
            manifest: kept.manifest.clone(),
            claim: None,
        });
        let wanted = Wanted {
            key,
            number,
            checkpoint: kept.checkpoint,
            manifest: kept.manifest.clone(),
            max_bytes: self.options.max_bytes,
        };
        self.builder.begin(wanted, From::Copy(kept.file.another()));
    }

    /// Has the image of a task that runs here read from the store, if it has not just been.
    fn rebuild(&mut self, key: Key, missing: Missing) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let is_due = entry
            .built_at
            .is_none_or(|at| at.elapsed() >= REBUILD_INTERVAL);
        if is_due && !entry.is_too_much {
            entry.built_at = Some(Instant::now());
            self.build(key, missing, From::Nothing);
        }
    }

    fn build(&mut self, key: Key, (checkpoint, manifest): Missing, from: From) {
        self.counter += 1;
        let number = self.counter;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.building = Some(Building {
                number,
                manifest: manifest.clone(),
                claim: None,
            });
            let wanted = Wanted {
                key,
                number,
                checkpoint,
                manifest,
                max_bytes: self.options.max_bytes,
            };
            self.builder.begin(wanted, from);
        }
    }

    fn claim(&mut self, claim: Claim) {
        let (key, execution) = (key(claim.execution), claim.execution);
        let entry = self.entries.entry(key).or_default();
        if entry
            .attempt
            .is_some_and(|attempt| attempt > execution.attempt)
        {
            let _ = claim.answer.send(None);
            return;
        }
        // The leader goes back to published checkpoints only.
        entry.complete(&claim.manifest);
        if let Some(building) = &mut entry.building
            && building.manifest == claim.manifest
            && !entry
                .kept
                .as_ref()
                .is_some_and(|kept| kept.manifest == claim.manifest)
        {
            building.claim = Some(claim);
            entry.follow(execution.attempt);
            return;
        }
        entry.building = None;
        if !entry.needs_copy() {
            entry.advance();
        }
        entry.follow(execution.attempt);
        self.answer(claim);
    }

    fn answer(&mut self, claim: Claim) {
        let Some(entry) = self.entries.get_mut(&key(claim.execution)) else {
            return;
        };
        let file = entry.give(&claim.manifest, claim.is_mapped);
        if file.is_none() {
            self.discard.discard(entry.kept.take());
        }
        // Whoever does not wait any more reads the image from elsewhere.
        let is_given = file.is_some();
        if claim.answer.send(file).is_err() && is_given {
            debug!(job = %claim.execution.job, task = %claim.execution.task, "a local image came too late");
        }
    }

    fn built(&mut self, built: Built) -> Option<Vec<WarmTask>> {
        let Built { key, number, kept } = built;
        let entry = self.entries.get_mut(&key)?;
        let building = entry
            .building
            .take_if(|building| building.number == number)?;
        match kept {
            Some(kept) => entry.built(kept),
            None => entry.kept = None,
        }
        let is_warm = entry.warm.is_some();
        if let Some(claim) = building.claim {
            self.answer(claim);
        }
        self.changed(key);
        self.advance(key);
        if !is_warm {
            return None;
        }
        // Before it is brought up to date again, since it may never be for long.
        let said_at = self.said_at.get(&key.0);
        let is_due = said_at.is_none_or(|at| at.elapsed() >= SAY_INTERVAL);
        let said = (is_due || !self.is_making_warm(key.0)).then(|| self.say_of(key.0));
        self.warm_up(key);
        said
    }

    /// A file has changed: those that have been as they are for the longest make room.
    fn changed(&mut self, key: Key) {
        self.counter += 1;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.changed = self.counter;
        }
        let allocated = |entry: &Entry| {
            let kept = entry.kept.as_ref();
            kept.and_then(|kept| kept.file.allocated_bytes().ok())
                .unwrap_or(0)
        };
        let mut total: u64 = self.entries.values().map(allocated).sum();
        while total > self.options.max_bytes {
            let oldest = self
                .entries
                .values_mut()
                .filter(|entry| entry.kept.is_some());
            let Some(oldest) = oldest.min_by_key(|entry| entry.changed) else {
                return;
            };
            total -= allocated(oldest);
            oldest.kept = None;
            oldest.is_too_much = true;
            oldest.let_go();
        }
    }

    /// Drops the images of tasks that have not run here for a while, and brings those up to date that others have read.
    pub(super) fn sweep(&mut self) {
        self.entries.retain(|_, entry| {
            let is_idle = entry
                .idle_since
                .is_some_and(|since| since.elapsed() >= IDLE);
            entry.warm.is_some() || !is_idle
        });
        let keys: Vec<Key> = self.entries.keys().copied().collect();
        for key in keys {
            self.warm_up(key);
        }
    }

    fn keep_warm(&mut self, images: WarmImages) -> Option<Vec<WarmTask>> {
        let WarmImages {
            job,
            checkpoint,
            images,
            ..
        } = images;
        for ((of, task), entry) in &mut self.entries {
            if *of == job && !images.iter().any(|(wanted, _)| wanted == task) {
                entry.warm = None;
            }
        }
        let over = images.is_empty();
        self.entries.retain(|(of, _), entry| {
            let runs = entry.attempt.is_some() && entry.idle_since.is_none();
            *of != job || runs || entry.warm.is_some() || !over && entry.attempt.is_some()
        });
        for (task, manifest) in images {
            let entry = self.entries.entry((job, task)).or_default();
            if entry.attempt.is_some() && entry.idle_since.is_none() {
                // It runs here.
                continue;
            }
            // One that there was no room for is not read again with each checkpoint.
            entry.is_too_much &= entry.warm.is_some();
            entry.warm = Some((checkpoint, manifest));
            self.warm_up((job, task));
        }
        if over {
            self.said_at.remove(&job);
        }
        // Otherwise it is said when they are made.
        (!self.is_making_warm(job)).then(|| self.say_of(job))
    }

    /// Brings a warm image up to date, unless that is under way, or others are reading it as it is.
    fn warm_up(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let Some(wanted) = entry.warm.clone().filter(|_| entry.building.is_none()) else {
            return;
        };
        let is_there = entry
            .kept
            .as_ref()
            .is_some_and(|kept| kept.manifest == wanted.1);
        let kept = entry.kept.as_ref();
        let is_in_use = kept.is_some_and(|kept| kept.file.is_in_use());
        // One that could not be read is tried again with the next checkpoint.
        let has_failed = entry.tried.as_ref() == Some(&wanted.1);
        if !is_there && !is_in_use && !has_failed && !entry.is_too_much {
            entry.tried = Some(wanted.1.clone());
            let older = entry.kept.take().filter(|kept| !kept.is_mapped);
            self.build(key, wanted, older.map_or(From::Nothing, From::Older));
        }
    }

    fn is_making_warm(&self, job: JobId) -> bool {
        let mut entries = self.entries.iter().filter(|((of, _), _)| *of == job);
        entries.any(|(_, entry)| entry.warm.is_some() && entry.building.is_some())
    }

    /// What is to be said of a job's warm images. Those that are being brought up to date are left out: what was said of
    /// them still counts.
    fn say_of(&mut self, job: JobId) -> Vec<WarmTask> {
        let warm: Vec<WarmTask> = self
            .warm()
            .into_iter()
            .filter(|warm| warm.job == job)
            .collect();
        if !warm.is_empty() {
            self.said_at.insert(job, Instant::now());
        }
        warm
    }

    /// The images that are here whole, for others to read.
    pub(super) fn lent(&self) -> HashMap<Key, (ObjectRef, Loan)> {
        let lent = self.entries.iter().filter_map(|(key, entry)| {
            let kept = entry.kept.as_ref()?;
            Some((*key, (kept.manifest.clone(), kept.file.lend())))
        });
        lent.collect()
    }

    /// The images that are here whole for tasks that run elsewhere.
    pub(super) fn warm(&self) -> Vec<WarmTask> {
        let warm = self.entries.iter().filter_map(|((job, task), entry)| {
            entry.warm.as_ref()?;
            Some(WarmTask {
                job: *job,
                task: *task,
                checkpoint: entry.kept.as_ref()?.checkpoint,
            })
        });
        let mut warm: Vec<WarmTask> = warm.collect();
        warm.sort_unstable_by_key(|warm| (warm.job, warm.task));
        warm
    }
}

/// What is kept of a task, if this attempt is the one that counts. One that is newer than all before it begins anew.
fn entry_of(entries: &mut HashMap<Key, Entry>, execution: Execution) -> Option<&mut Entry> {
    let entry = entries.entry(key(execution)).or_default();
    if entry.attempt < Some(execution.attempt) {
        entry.follow(execution.attempt);
        entry.kept = None;
        entry.building = None;
    }
    (entry.attempt == Some(execution.attempt)).then_some(entry)
}
