//! The end of savepoints: of one that its user deletes, and of what was left of those that were never completed. The object
//! `savepoint` goes first, so that there is never a part of a savepoint that looks like a whole one. It deletes nothing
//! that has no savepoint object's name.

use std::time::SystemTime;

use super::place::{Listed, Place};
use crate::error::SavepointError;
use crate::fault::fault_point;
use crate::{Store, keys};

impl Store {
    /// Deletes a savepoint, or what was left of one. May be repeated until it says that there is none.
    ///
    /// # Errors
    /// When there is none, and when the store fails.
    pub async fn delete_savepoint(&self, name: &str) -> Result<(), SavepointError> {
        let place = Place::to_read(self, name)?;
        if place.is_begun().await? {
            return place.delete_all().await;
        }
        Err(match place.find().await {
            Ok(_) => SavepointError::NotASavepoint {
                path: place.name().into(),
            },
            Err(error) => error,
        })
    }

    /// Deletes what was left below a prefix of this store of savepoints that were begun, never completed (or deleted in
    /// part), and not touched since then; says of which.
    ///
    /// # Errors
    /// When the store fails; it may be repeated.
    pub async fn delete_incomplete_savepoints(
        &self,
        prefix: &str,
        untouched_since: SystemTime,
    ) -> Result<Vec<String>, SavepointError> {
        let mut deleted = Vec::new();
        let mut failed = Ok(());
        for found in self.savepoint_directories(prefix).await? {
            let is_marked = |object: &Listed| object.key == keys::SAVEPOINT;
            let newest = found.objects.iter().map(|object| object.modified).max();
            if found.objects.iter().any(is_marked) || newest >= Some(untouched_since) {
                continue;
            }
            // One that cannot be deleted does not keep the others.
            match found.place.delete_if_incomplete().await {
                Ok(true) => deleted.push(found.place.name().into()),
                Ok(false) => {}
                Err(error) => failed = Err(error),
            }
        }
        failed?;
        let all = Place::to_write(self, prefix)?.inside()?;
        let of_one = |key: &str| keys::in_savepoints(key).next().is_some();
        let stale = all.delete_uploads_of("", Some(untouched_since), of_one);
        stale.await.map_err(|error| error.cleaning(prefix))?;
        Ok(deleted)
    }
}

impl Place {
    /// Deletes what is left of a savepoint; `false` if it is complete by now, or never was one.
    async fn delete_if_incomplete(&self) -> Result<bool, SavepointError> {
        let mark = self.key(keys::SAVEPOINT);
        if self.store.len_if_there(&mark).await?.is_some() || !self.is_begun().await? {
            return Ok(false);
        }
        self.delete_all().await.map(|()| true)
    }

    /// Deletes the objects of a savepoint: first what makes it exist, and last what says that there was one. Also one that
    /// is completed meanwhile.
    async fn delete_all(&self) -> Result<(), SavepointError> {
        let mark = self.key(keys::SAVEPOINT);
        self.delete_listed().await?;
        // A writer that had everything in place when the first deletion began completes it once at most.
        if self.store.len_if_there(&mark).await?.is_some() {
            self.delete_listed().await?;
        }
        let inside = self.inside()?;
        for below in [keys::SAVEPOINT_SEGMENTS, ""] {
            let removed = inside.delete_empty_directory(below).await;
            removed.map_err(|error| error.cleaning(self.name()))?;
        }
        fault_point("delete.done");
        Ok(())
    }

    async fn delete_listed(&self) -> Result<(), SavepointError> {
        let mut objects = self.list().await?;
        objects.retain(|object| keys::is_of_savepoint(&object.key));
        objects.sort_by_key(|object| match object.key.as_str() {
            keys::SAVEPOINT => 0,
            keys::SAVEPOINT_MODULE => 2,
            _ => 1,
        });
        fault_point("delete.listed");
        for object in &objects {
            if object.key == keys::SAVEPOINT_MODULE {
                self.delete_cut_off_uploads().await?;
            }
            let deleted = self.store.delete_key(&self.key(&object.key)).await;
            deleted.map_err(|error| error.cleaning(self.name()))?;
            if object.key == keys::SAVEPOINT {
                // Nothing that it is made of may be gone after a loss of power while it is not.
                let synced = self.inside()?.sync_directory("").await;
                synced.map_err(|error| error.cleaning(self.name()))?;
            }
            fault_point("delete.between-objects");
        }
        Ok(())
    }

    async fn delete_cut_off_uploads(&self) -> Result<(), SavepointError> {
        let inside = self.inside()?;
        let deleted = inside.delete_uploads_of("", None, keys::is_of_savepoint);
        Ok(deleted.await.map_err(|error| error.cleaning(self.name()))?)
    }
}
