//! Where a savepoint is, by the name that a user gives it: a path in the cluster's store, a URL of that store with a path,
//! or a URL of another one. It never reads an object.

use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::prefix::PrefixStore;
use tidemill_protocol::manifest::ObjectRef;

use crate::error::SavepointError;
use crate::location::Location;
use crate::store::path;
use crate::{Store, keys};

/// A directory in a store; the whole store, when its path is empty.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) store: Store,
    directory: String,
    /// What a user calls it.
    name: String,
}

/// An object below a place.
#[derive(Debug)]
pub(super) struct Listed {
    /// Relative to the place.
    pub(super) key: String,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
}

impl Place {
    /// The whole of a store.
    pub(super) fn whole(store: &Store) -> Self {
        Self {
            store: store.clone(),
            directory: String::new(),
            name: store.url().into(),
        }
    }

    /// The place of something that is there, or not.
    pub(super) fn to_read(own: &Store, name: &str) -> Result<Self, SavepointError> {
        Self::of_name(own, name, false)
    }

    /// The place of a new savepoint.
    pub(super) fn to_write(own: &Store, name: &str) -> Result<Self, SavepointError> {
        let place = Self::of_name(own, name, true)?;
        if place.is_reserved() {
            return Err(SavepointError::Reserved { path: place.name });
        }
        Ok(place)
    }

    /// Whether it is among the cluster's own objects.
    pub(super) fn is_reserved(&self) -> bool {
        let first = self.directory.split('/').next();
        first.is_some_and(keys::is_reserved)
    }

    fn of_name(own: &Store, name: &str, is_new: bool) -> Result<Self, SavepointError> {
        let trimmed = name.trim_end_matches('/');
        let within = match is_place(trimmed) {
            false => Some(trimmed.to_owned()),
            true => path_within(own, trimmed),
        };
        if let Some(directory) = within {
            return Self::within(own, &directory, name);
        }
        // Another store: a retained checkpoint's keys are relative to the store that it is in, all else to itself.
        let (root, directory) = match checkpoint_path(trimmed) {
            Some((root, directory)) => (root, directory),
            None => (trimmed, String::new()),
        };
        if let Ok(Location::Directory(root)) = Location::parse(root) {
            // Opening a directory makes it, which looking into one should not.
            if !is_new && !root.is_dir() {
                return Err(SavepointError::NotThere { path: name.into() });
            }
        }
        Ok(Self {
            store: Store::open(root)?,
            directory,
            name: trimmed.into(),
        })
    }

    fn within(own: &Store, directory: &str, name: &str) -> Result<Self, SavepointError> {
        let malformed = |reason: String| SavepointError::Malformed {
            path: name.into(),
            reason,
        };
        let directory = match checkpoint_path(&format!("/{directory}")) {
            Some(("", padded)) => padded,
            _ => directory.to_owned(),
        };
        let directory = path(&directory).map_err(|error| malformed(error.to_string()))?;
        let directory = String::from(directory);
        if directory.is_empty() {
            return Err(malformed("it names the store and nothing in it".into()));
        }
        Ok(Self {
            store: own.clone(),
            name: directory.clone(),
            directory,
        })
    }

    /// A directory below it.
    pub(super) fn child(&self, relative: &str) -> Self {
        Self {
            store: self.store.clone(),
            directory: self.key(relative),
            name: format!("{}/{relative}", self.name),
        }
    }

    /// What a user calls it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// An object's key in the store.
    pub(super) fn key(&self, relative: &str) -> String {
        if self.directory.is_empty() {
            relative.into()
        } else {
            format!("{}/{relative}", self.directory)
        }
    }

    /// The store whose keys are relative to this place.
    pub(super) fn inside(&self) -> Result<Store, SavepointError> {
        if self.directory.is_empty() {
            return Ok(self.store.clone());
        }
        let prefix = path(&self.directory).map_err(|error| SavepointError::Malformed {
            path: self.name.clone(),
            reason: error.to_string(),
        })?;
        let objects = PrefixStore::new(Arc::clone(self.store.objects()), prefix);
        let directory = self.store.directory();
        let directory: Option<PathBuf> = directory.map(|root| root.join(&self.directory));
        Ok(self.store.view(Arc::new(objects), directory))
    }

    /// If this is where a checkpoint may be retained: its store, and the key of its metadata.
    pub(super) fn as_checkpoint(&self) -> Option<(Self, String)> {
        let name = format!("/{}", self.directory);
        let (root, _) = checkpoint_path(&name)?;
        root.is_empty().then(|| {
            let root = Self {
                store: self.store.clone(),
                directory: String::new(),
                name: self.name.clone(),
            };
            (root, self.key(keys::METADATA))
        })
    }

    /// Every object below this place.
    pub(super) async fn list(&self) -> Result<Vec<Listed>, SavepointError> {
        let prefix = path(&self.directory).map_err(|error| SavepointError::Malformed {
            path: self.name.clone(),
            reason: error.to_string(),
        })?;
        let listed = self.store.list_below(&prefix).await;
        let listed = listed.map_err(|error| error.cleaning(&self.directory))?;
        let objects = listed.into_iter().filter_map(|object| {
            let written_ms = u64::try_from(object.last_modified.timestamp_millis());
            let since = Duration::from_millis(written_ms.unwrap_or(0));
            Some(Listed {
                key: self.relative(object.location.as_ref())?.into(),
                bytes: object.size,
                modified: SystemTime::UNIX_EPOCH + since,
            })
        });
        Ok(objects.collect())
    }

    fn relative<'a>(&self, key: &'a str) -> Option<&'a str> {
        if self.directory.is_empty() {
            return Some(key);
        }
        key.strip_prefix(&self.directory)?.strip_prefix('/')
    }

    /// The same object, by its key in the store.
    pub(super) fn in_store(&self, object: &ObjectRef) -> ObjectRef {
        ObjectRef {
            key: self.key(&object.key),
            ..object.clone()
        }
    }

    /// Whether the store can copy from here to there by itself.
    pub(super) fn shares_store(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.store.objects(), other.store.objects())
    }
}

/// Whether a name says which store it means.
fn is_place(name: &str) -> bool {
    name.contains("://") || name.starts_with('/')
}

/// The path in this store of a URL or a file, if it is in this store.
fn path_within(own: &Store, name: &str) -> Option<String> {
    match (
        Location::parse(own.url()).ok()?,
        Location::parse(name).ok()?,
    ) {
        (Location::Directory(_), Location::Directory(path)) => {
            let root = own.directory()?;
            let relative = match path.strip_prefix(root) {
                Ok(relative) => relative.to_owned(),
                // A directory may have several names, by symbolic links.
                Err(_) => resolved(&path)
                    .strip_prefix(resolved(root))
                    .ok()?
                    .to_owned(),
            };
            relative.to_str().map(Into::into)
        }
        (Location::Bucket(own), Location::Bucket(other)) => {
            let same = (own.service, &own.name) == (other.service, &other.name);
            let relative = other.prefix.prefix_match(&own.prefix)?;
            let relative: Vec<String> = relative.map(|part| part.as_ref().into()).collect();
            same.then(|| relative.join("/"))
        }
        _ => None,
    }
}

/// A path without symbolic links, as far as it exists.
fn resolved(path: &FilePath) -> PathBuf {
    let mut beyond = Vec::new();
    let mut there = path;
    loop {
        if let Ok(real) = fs::canonicalize(there) {
            return beyond.iter().rev().fold(real, |real, name| real.join(name));
        }
        let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else {
            return path.to_owned();
        };
        beyond.push(name);
        there = parent;
    }
}

/// Splits a name that ends as a retained checkpoint's does into the store's and the checkpoint's, whose numbers need not
/// be padded.
fn checkpoint_path(name: &str) -> Option<(&str, String)> {
    let (root, id) = name.rsplit_once("/checkpoints/")?;
    let (job, id) = id.split_once('/')?;
    let (epoch, counter) = id.split_once('-')?;
    let id = format!("{epoch}.{counter}").parse().ok()?;
    Some((root, keys::checkpoint(job.parse().ok()?, id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

    #[test]
    fn a_name_is_a_path_in_the_store_or_says_which_store_it_means() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("own").display().to_string();
        let own = Store::open(&format!("file://{root}")).unwrap();
        for (name, path) in [
            ("savepoints/a", "savepoints/a"),
            ("savepoints/a/", "savepoints/a"),
            (&format!("{root}/savepoints/a"), "savepoints/a"),
            (&format!("file://{root}/savepoints/a"), "savepoints/a"),
            (
                &format!("checkpoints/{JOB}/3-17"),
                &format!("checkpoints/{JOB}/00000000000000000003-00000000000000000017"),
            ),
        ] {
            let place = Place::to_read(&own, name).unwrap();
            assert_eq!(place.directory, path, "{name}");
            assert!(place.shares_store(&Place::whole(&own)), "{name}");
        }
        let elsewhere = directory.path().join("other").display().to_string();
        let new = Place::to_write(&own, &format!("file://{elsewhere}/s")).unwrap();
        assert!(!new.shares_store(&Place::whole(&own)));
        assert_eq!(new.key("savepoint"), "savepoint");
        let retained = format!("{elsewhere}/checkpoints/{JOB}/3-17");
        let place = Place::to_read(&own, &retained).unwrap();
        let (_, metadata) = place.as_checkpoint().unwrap();
        assert!(metadata.ends_with("-00000000000000000017/metadata"));
        assert!(metadata.starts_with("checkpoints/"), "{metadata}");
    }

    #[test]
    fn a_name_that_is_no_place_is_refused_and_makes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let own = Store::open(directory.path().to_str().unwrap()).unwrap();
        for name in ["", "/", "a/../b", "../b", "a//b"] {
            let error = Place::to_read(&own, name).unwrap_err();
            assert!(!error.to_string().is_empty(), "{name}");
        }
        for name in ["checkpoints/x", "jobs", "modules/x"] {
            let error = Place::to_write(&own, name).unwrap_err();
            assert!(matches!(error, SavepointError::Reserved { .. }), "{error}");
        }
        let nowhere = directory.path().with_extension("nowhere");
        let error = Place::to_read(&own, nowhere.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, SavepointError::NotThere { .. }), "{error}");
        assert!(!nowhere.exists());
    }
}
