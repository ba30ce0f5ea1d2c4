//! The end of savepoints: of one that its user deletes, and of what was left of those that were never completed. The object
//! `savepoint` goes first, so that there is never a part of a savepoint that looks like a whole one. It deletes nothing
//! that has no savepoint object's name.

use std::time::SystemTime;

use super::place::Place;
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
        for found in self.savepoint_directories(prefix).await? {
            if found.newest < untouched_since && found.place.savepoint().await?.is_none() {
                found.place.delete_all().await?;
                deleted.push(found.place.name().into());
            }
        }
        let stale = self.delete_cut_off_uploads(prefix, Some(untouched_since));
        stale.await.map_err(|error| error.cleaning(prefix))?;
        Ok(deleted)
    }
}

impl Place {
    /// Deletes the objects of a savepoint: first what makes it exist, and last what says that there was one.
    async fn delete_all(&self) -> Result<(), SavepointError> {
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
            fault_point("delete.between-objects");
        }
        let inside = self.inside()?;
        for below in [keys::SAVEPOINT_SEGMENTS, ""] {
            let removed = inside.delete_empty_directory(below).await;
            removed.map_err(|error| error.cleaning(self.name()))?;
        }
        fault_point("delete.done");
        Ok(())
    }

    async fn delete_cut_off_uploads(&self) -> Result<(), SavepointError> {
        let deleted = self.inside()?;
        let deleted = deleted.delete_cut_off_uploads("", None).await;
        Ok(deleted.map_err(|error| error.cleaning(self.name()))?)
    }
}
