//! What a task goes on from, and how its instance is made of it: from its own memory, from a file on this machine, from
//! another TaskManager, or from the object store.
//!
//! It never runs guest code.

use std::fs::File;
use std::sync::Arc;

use tidemill_protocol::ImageHead;
use tidemill_protocol::control::{Blame, ImageSource, TaskFailure};
use tidemill_protocol::image::{PAGE_BYTES, PageRun};
use tidemill_runtime::{Instance, InstanceError, InstanceLimits, MemoryImage, Module};
use tidemill_storage::ImageChain;
use tracing::warn;

use super::failure;
use super::outputs::Outputs;
use crate::error_chain;
use crate::images::{StoredSource, read_runs};

/// An image that a task goes on from.
pub(crate) struct Restorable {
    pub(crate) head: ImageHead,
    pub(crate) chain: ImageChain,
    pub(crate) origin: Origin,
}

/// Where the pages of an image are, the nearest first.
pub(crate) enum Origin {
    /// Most of them in the memory of the attempt before; the others in a file that is kept here, or else in the store.
    Memory {
        instance: Box<Instance<Outputs>>,
        changed: Vec<PageRun>,
        local: Option<Arc<File>>,
        stored: Arc<StoredSource>,
    },
    /// In a file that does not change.
    Local(Arc<File>),
    /// In the store, and perhaps with another TaskManager as well.
    Store(Arc<StoredSource>),
}

impl Restorable {
    /// What is said of it.
    pub(crate) fn source(&self) -> ImageSource {
        match &self.origin {
            Origin::Memory { .. } => ImageSource::Memory,
            Origin::Local(_) => ImageSource::Local,
            Origin::Store(source) if source.has_peer() => ImageSource::Peer,
            Origin::Store(_) => ImageSource::Store,
        }
    }

    /// What is read from the store. It says so itself when that fails.
    pub(super) fn stored(&self) -> Option<Arc<StoredSource>> {
        match &self.origin {
            Origin::Memory { stored, .. } | Origin::Store(stored) => Some(Arc::clone(stored)),
            Origin::Local(_) => None,
        }
    }
}

impl Restorable {
    /// Makes the instance; says how many bytes of its memory had to be written for that.
    pub(super) fn restore(
        self,
        module: &Module,
        limits: InstanceLimits,
        outputs: Outputs,
    ) -> Result<(Instance<Outputs>, u64), TaskFailure> {
        let Self { head, origin, .. } = self;
        let mut written_bytes = 0;
        let restored = match origin {
            Origin::Memory {
                instance,
                changed,
                local,
                stored,
            } => instance.revert_from(limits, outputs, &head, 0, changed, &mut |wanted, lay| {
                let pages: u64 = wanted.iter().map(|run| u64::from(run.pages)).sum();
                written_bytes = pages * PAGE_BYTES as u64;
                read_pages(local.as_deref(), &stored, wanted, lay)
            }),
            Origin::Local(file) => follow(Instance::restore_from(
                module,
                limits,
                outputs,
                &head,
                MemoryImage::File(file),
            )),
            Origin::Store(source) => {
                let memory = MemoryImage::Lazy(source);
                let restored = Instance::restore_from(module, limits, outputs, &head, memory);
                let restored = restored.inspect(|instance| {
                    if instance.filling().is_none() {
                        written_bytes = head.memory_bytes;
                    }
                });
                follow(restored)
            }
        };
        let instance = restored.map_err(|error| {
            let blame = match &error {
                InstanceError::Memory { .. } => Blame::Cluster,
                _ => Blame::Job,
            };
            failure(blame, error_chain(&error))
        })?;
        Ok((instance, written_bytes))
    }
}

/// Reads pages from a file on this machine, or else from the store.
fn read_pages(
    local: Option<&File>,
    stored: &StoredSource,
    wanted: &[PageRun],
    lay: &mut dyn FnMut(PageRun, &[u8]),
) -> Result<(), String> {
    match local.map(|file| read_runs(file, wanted, lay)) {
        Some(Ok(())) => return Ok(()),
        Some(Err(reason)) => warn!(reason, "the pages are read from the object store instead"),
        None => {}
    }
    stored.read_runs(wanted, lay)
}

/// The image is the capture before the instance's first one.
fn follow<E>(restored: Result<Instance<Outputs>, E>) -> Result<Instance<Outputs>, E> {
    restored.map(|mut instance| {
        instance.follow(0);
        instance
    })
}
