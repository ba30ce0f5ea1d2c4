//! Reading a task's image back whole. It returns an image only when every checksum holds, and never allocates what a
//! manifest claims before the system has agreed to it.

use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{Image, JobId, TaskId};

use crate::image_chain::ImageChain;
use crate::{ReadError, Store, StoredImage};

/// How many pieces are read together: at most 16 MiB.
const PIECES_AT_ONCE: usize = 256;

impl Store {
    /// Reads the image of a task by its manifest, and verifies all of it. With it comes what later captures of the task
    /// build upon.
    ///
    /// # Errors
    /// When the manifest, a base of it or a segment is missing, damaged or out of reach, or is another task's.
    pub async fn read_image(
        &self,
        job: JobId,
        task: TaskId,
        manifest: &ObjectRef,
    ) -> Result<(Image, ImageChain), ReadError> {
        let stored = self.open_image(job, task, manifest).await?;
        let memory = stored.read_memory().await?;
        let head = stored.head().clone();
        let image = Image {
            memory,
            globals: head.globals,
            tables: head.tables,
            host_state: head.host_state,
            channel_state: head.channel_state,
        };
        Ok((image, stored.chain()))
    }
}

impl StoredImage {
    async fn read_memory(&self) -> Result<Vec<u8>, ReadError> {
        let mut memory = allocate(&self.manifest().key, self.head().memory_bytes)?;
        let all = self.pieces().len();
        for start in (0..all).step_by(PIECES_AT_ONCE) {
            let end = all.min(start + PIECES_AT_ONCE);
            for (piece, bytes) in self.read(start..end).await? {
                memory[piece.memory_range()].copy_from_slice(&bytes);
            }
        }
        Ok(memory)
    }
}

/// Zeroed memory, if there is that much. Asking first matters: `vec!` ends the process when the system refuses.
fn allocate(key: &str, bytes: u64) -> Result<Vec<u8>, ReadError> {
    let refused = || ReadError::OutOfMemory {
        key: key.into(),
        bytes,
    };
    let len = usize::try_from(bytes).map_err(|_| refused())?;
    let mut asked = Vec::<u8>::new();
    asked.try_reserve_exact(len).map_err(|_| refused())?;
    drop(asked);
    Ok(vec![0; len])
}
