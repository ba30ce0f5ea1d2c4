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
use crate::store::{Length, path};
use crate::{ReadError, Store, WriteError};

/// How much of an object is sent at once. Object stores want parts of at least 5 MiB.
pub(crate) const PART_BYTES: usize = 8 << 20;

/// How many parts of one object are sent at the same time.
const PARTS_IN_FLIGHT: usize = 4;

/// How an object came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// By this call.
    New,
    /// Before it, with the same bytes.
    Same,
}

impl Store {
    /// Stores an object whole where there is none of this key. One with the very same bytes counts as this one: so a
    /// writer whose answer was lost, or that crashed, may ask again.
    ///
    /// The store itself sees to it that of several writers one alone creates it. A service that does not know
    /// `If-None-Match` and says nothing lets the last one win; what has been there for longer stays with such a one, too.
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
        self.create(&object, bytes).await.map(|_| object)
    }

    /// As [`Self::put_new`]; says whether it was there before.
    pub(crate) async fn create(
        &self,
        object: &ObjectRef,
        bytes: Bytes,
    ) -> Result<Created, WriteError> {
        let key = &object.key;
        if let Some(there) = self.there_before(object, &bytes).await? {
            return Ok(there);
        }
        let path = path(key).map_err(|error| RequestError::Store(error).writing(key))?;
        let create = self
            .objects()
            .put_opts(&path, bytes.clone().into(), PutMode::Create.into());
        let Err(error) = self.request(create).await else {
            return Ok(Created::New);
        };
        match self.there_before(object, &bytes).await {
            Ok(Some(there)) => Ok(there),
            Err(taken @ WriteError::AlreadyExists { .. }) => Err(taken),
            // Two that create it at once may both be refused; then there is none, and another try is called for.
            _ => Err(error.writing(key)),
        }
    }

    /// Whether these bytes are there already; another object in their place is an error.
    async fn there_before(
        &self,
        object: &ObjectRef,
        bytes: &Bytes,
    ) -> Result<Option<Created>, WriteError> {
        let key = &object.key;
        match self.get(key, Length::Exactly(object.len)).await {
            Ok(found) if found == bytes => Ok(Some(Created::Same)),
            Err(ReadError::Missing { .. }) => Ok(None),
            Err(error) if !error.is_lost() => Err(WriteError::Failed {
                key: key.clone(),
                source: error.into(),
            }),
            _ => Err(WriteError::AlreadyExists { key: key.clone() }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mortal::Mortal;

    #[tokio::test]
    async fn what_has_been_there_stays_also_where_the_service_would_overwrite_it() {
        let store = Mortal::careless().store();
        let mine = store.put_new("savepoints/x", "mine").await.unwrap();
        assert_eq!(store.put_new("savepoints/x", "mine").await.unwrap(), mine);
        for other in ["other", "more", ""] {
            let error = store.put_new("savepoints/x", other).await.unwrap_err();
            assert!(
                matches!(error, WriteError::AlreadyExists { .. }),
                "{error:?}"
            );
        }
        assert_eq!(store.get_object(&mine).await.unwrap(), "mine");
    }
}
