//! Instances that continue where an image was captured: at once, while their memory is still being read, or over a
//! file that is mapped.
//!
//! It never runs guest code.

use std::fs::File;

use tidemill_protocol::image::GlobalValue;
use tidemill_protocol::{Image, ImageHead};

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
            MemoryImage::Lazy(source) => instance.fill_from(&*source, initial_bytes)?,
            MemoryImage::File(file) => instance.map(&file, initial_bytes)?,
        }
        instance.lay_outside(&head.globals, &head.tables)?;
        Ok(instance)
    }

    /// How far the memory's pages have come; `None` when all are there.
    #[must_use]
    pub fn filling(&self) -> Option<Filling> {
        None
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

    fn fill_from(
        &mut self,
        source: &dyn PageSource,
        initial_bytes: usize,
    ) -> Result<(), InstanceError> {
        let memory = self.guest.memory.data_mut(&mut self.guest.store);
        memory[..initial_bytes].fill(0);
        source::read_all(source, memory).map_err(|reason| InstanceError::Memory { reason })
    }

    fn map(&mut self, file: &File, initial_bytes: usize) -> Result<(), InstanceError> {
        use std::os::unix::fs::FileExt;
        let memory = self.guest.memory.data_mut(&mut self.guest.store);
        memory[..initial_bytes].fill(0);
        let mut at = 0;
        while at < memory.len() {
            let read = file
                .read_at(&mut memory[at..], at as u64)
                .map_err(|error| InstanceError::Memory {
                    reason: error.to_string(),
                })?;
            if read == 0 {
                break;
            }
            at += read;
        }
        Ok(())
    }
}
