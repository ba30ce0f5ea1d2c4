//! Instances that continue where an image was captured: at once, while their memory is still being read, or over a
//! file that is mapped.
//!
//! It never runs guest code.

use std::fs::File;
use std::sync::Arc;

use tidemill_protocol::image::GlobalValue;
use tidemill_protocol::{Image, ImageHead};

use crate::fill::{Fill, FillError};
use crate::host::GuestHost;
use crate::image::{self, ImageMismatch};
use crate::instance::{Instance, InstanceError};
use crate::limits::InstanceLimits;
use crate::module::Module;
use crate::source::{self, Filling, MemoryImage, PageSource};

impl<H: GuestHost> Instance<H> {
    /// Makes an instance that continues where `image` was captured. No guest code runs; `host_state` is the caller's.
    ///
    /// # Errors
    /// As [`Instance::new`], and when the image is not one of this module.
    pub fn restore(
        module: &Module,
        limits: InstanceLimits,
        host: H,
        image: &Image,
    ) -> Result<Self, InstanceError> {
        let mut instance = Self::new(module, limits, host)?;
        let initial_bytes = image::grow_to(&mut instance.guest, image.memory.len() as u64)?;
        instance.lay_bytes(initial_bytes, &image.memory)?;
        instance.lay_outside(&image.globals, &image.tables)?;
        Ok(instance)
    }

    /// The same, of an image whose memory is elsewhere. [`Instance::follow`] comes next where the image stands for a
    /// capture: what the memory is filled with afterwards does not count as changed.
    ///
    /// # Errors
    /// As [`Instance::restore`], and when the memory cannot be read or mapped.
    pub fn restore_from(
        module: &Module,
        limits: InstanceLimits,
        host: H,
        head: &ImageHead,
        memory: MemoryImage,
    ) -> Result<Self, InstanceError> {
        let mut instance = Self::new(module, limits, host)?;
        let initial_bytes = image::grow_to(&mut instance.guest, head.memory_bytes)?;
        match memory {
            MemoryImage::Whole(bytes) => instance.lay_bytes(initial_bytes, &bytes)?,
            MemoryImage::Lazy(source) => instance.fill_from(source)?,
            MemoryImage::File(file) => instance.map(&file)?,
        }
        instance.lay_outside(&head.globals, &head.tables)?;
        Ok(instance)
    }

    /// How far the memory's pages have come; `None` when all are there.
    #[must_use]
    pub fn filling(&self) -> Option<Filling> {
        self.guest.store.data().fill.as_ref()?.progress()
    }

    pub(crate) fn lay_outside(
        &mut self,
        globals: &[GlobalValue],
        tables: &[Vec<Option<u32>>],
    ) -> Result<(), InstanceError> {
        let reachable = self.module.reachable();
        image::lay_outside_memory(&mut self.guest, &self.wasmtime, reachable, globals, tables)
    }

    fn lay_bytes(&mut self, initial_bytes: usize, image: &[u8]) -> Result<(), InstanceError> {
        let memory = self.guest.memory.data_mut(&mut self.guest.store);
        if image.len() > memory.len() {
            return Err(InstanceError::Image(ImageMismatch::Memory {
                image_bytes: image.len() as u64,
                initial_bytes: initial_bytes as u64,
            }));
        }
        image::lay_memory(memory, initial_bytes, image);
        Ok(())
    }

    /// Lets the memory be filled while the guest runs, or reads all of it where that cannot be done.
    fn fill_from(&mut self, source: Arc<dyn PageSource>) -> Result<(), InstanceError> {
        let store = &mut self.guest.store;
        let memory = self.guest.memory.data_mut(&mut *store);
        // Where instantiation has placed the module's data segments.
        self.mapping
            .clear(memory)
            .map_err(InstanceError::no_memory)?;
        let lost = |reason| InstanceError::Memory { reason };
        if let Some(watch) = self.changes.watch(memory) {
            let prepared = Fill::prepare(Arc::clone(&source), watch, memory);
            let started = prepared.and_then(|(fill, faults)| {
                self.mapping.awaits(fill.missing());
                self.changes.are_elsewhere();
                self.changes.begin(memory);
                fill.start(faults)?;
                Ok(fill)
            });
            match started {
                Ok(fill) => {
                    store.data_mut().fill = Some(fill);
                    return Ok(());
                }
                Err(FillError::Source(reason)) => return Err(lost(reason)),
                Err(FillError::System(error)) => {
                    tracing::warn!(%error, "a memory is read as a whole before its guest runs");
                    self.mapping.forgets();
                    self.changes.cut(0);
                }
            }
        }
        source::read_all(&*source, memory).map_err(lost)
    }

    fn map(&mut self, file: &File) -> Result<(), InstanceError> {
        let memory = self.guest.memory.data_mut(&mut self.guest.store);
        let mapped = self
            .mapping
            .clear(memory)
            .and_then(|()| self.mapping.map_file(memory, file));
        mapped.map_err(|error| InstanceError::Memory {
            reason: format!("its file cannot be mapped: {error}"),
        })?;
        self.changes.are_elsewhere();
        Ok(())
    }
}
