//! Whole objects into the store: small ones by one request, large ones in parts, and some only where there is none yet.
//! It never leaves a part of an object to be seen, and leaves no parts behind unless the store is gone or this process is.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutMode};
use tidemill_protocol::manifest::ObjectRef;
use tokio::runtime::Handle;

use crate::error::RequestError;
use crate::store::path;
use crate::{ReadError, Store, WriteError};

/// How much of an object is sent at once. Object stores want parts of at least 5 MiB.
pub(crate) const PART_BYTES: usize = 8 << 20;

/// How many parts of one object are sent at the same time.
const PARTS_IN_FLIGHT: usize = 4;

impl Store {
    /// Stores an object whole where there is none of this key. One with the very same bytes counts as this one: so a
    /// writer whose answer was lost, or that crashed, may ask again.
    ///
    /// # Errors
    /// [`WriteError::AlreadyExists`] when there is another one, which stays as it is; and when it could not be written:
    /// then it may be there or not.
    pub async fn put_new(
        &self,
        key: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<ObjectRef, WriteError> {
        let bytes = bytes.into();
        let object = self.describe(key, &bytes).await?;
        let path = path(key).map_err(|error| RequestError::Store(error).writing(key))?;
        let create = self
            .objects()
            .put_opts(&path, bytes.clone().into(), PutMode::Create.into());
        let Err(error) = self.request(create).await else {
            return Ok(object);
        };
        let taken = matches!(
            error,
            RequestError::Store(object_store::Error::AlreadyExists { .. })
        );
        match self.get(key, None).await {
            Ok(found) if found == bytes => Ok(object),
            Ok(_) => Err(WriteError::AlreadyExists { key: key.into() }),
            // Two that create it at once may both be refused; then there is none, and another try is called for.
            Err(found) if taken && !matches!(found, ReadError::Missing { .. }) => {
                Err(WriteError::AlreadyExists { key: key.into() })
            }
            Err(_) => Err(error.writing(key)),
        }
    }

    pub(crate) async fn put(&self, key: &str, bytes: Bytes) -> Result<(), WriteError> {
        let put = async {
            let path = path(key)?;
            // A file is renamed into its place in one go, however large.
            if self.directory().is_some() || bytes.len() <= PART_BYTES {
                return self
                    .request(self.objects().put(&path, bytes.into()))
                    .await
                    .map(drop);
            }
            let mut upload = self.start_upload(&path).await?;
            let sent = self.send(&path, upload.as_mut(), bytes).await;
            if sent.is_err() {
                self.abort_upload(upload.as_mut()).await;
            }
            sent
        };
        put.await.map_err(|error: RequestError| error.writing(key))
    }

    /// Sends all parts of an object and completes it.
    async fn send(
        &self,
        path: &Path,
        upload: &mut dyn MultipartUpload,
        mut bytes: Bytes,
    ) -> Result<(), RequestError> {
        let total = bytes.len() as u64;
        while !bytes.is_empty() {
            let mut parts = Vec::new();
            while parts.len() < PARTS_IN_FLIGHT && !bytes.is_empty() {
                let part = bytes.split_to(bytes.len().min(PART_BYTES));
                parts.push(self.request(upload.put_part(part.into())));
            }
            // All of them are waited for, also after a failure: one that arrives after the upload was aborted would stay.
            for sent in join_all(parts).await {
                sent?;
            }
        }
        self.finish_upload(path, upload, total).await
    }

    pub(crate) async fn start_upload(
        &self,
        path: &Path,
    ) -> Result<Box<dyn MultipartUpload>, RequestError> {
        let objects = Arc::clone(self.objects());
        if self.directory().is_none() {
            return self.request(objects.put_multipart(path)).await;
        }
        let path = path.clone();
        let runtime = Handle::current();
        // For files, this makes and syncs directories on the calling thread, which must not be an async one.
        let started = tokio::task::spawn_blocking(move || {
            runtime.block_on(async { objects.put_multipart(&path).await })
        });
        self.request(async { started.await? }).await
    }

    /// Makes an object of the parts that were sent, of this many bytes together.
    pub(crate) async fn finish_upload(
        &self,
        path: &Path,
        upload: &mut dyn MultipartUpload,
        total: u64,
    ) -> Result<(), RequestError> {
        match self.request(upload.complete()).await {
            // Completed before, by a request whose answer was lost and that was repeated: nobody else ends the upload.
            Err(RequestError::Store(error @ object_store::Error::NotFound { .. })) => {
                let found = self.request(self.objects().head(path)).await;
                match found {
                    Ok(found) if found.size == total => Ok(()),
                    _ => Err(error.into()),
                }
            }
            other => other.map(drop),
        }
    }

    /// Ends an upload that failed. The failure is what is worth telling: parts that this cannot remove are invisible.
    pub(crate) async fn abort_upload(&self, upload: &mut dyn MultipartUpload) {
        let _ = self.request(upload.abort()).await;
    }
}
