//! What crashes leave where objects are files: uploads that were cut off, which are files named `…#1` that listing does not
//! show, and empty directories. Object stores proper have neither; what was uploaded in part to them goes by the rule that
//! their owner sets. It never deletes an object.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use tokio::sync::oneshot;

use crate::error::RequestError;
use crate::{CleanupError, Store, keys};

impl Store {
    /// Deletes uploads of modules and graphs that were cut off, if nobody has written to them since then. Those of
    /// checkpoints go with their checkpoint, and those of savepoints with [`Store::delete_incomplete_savepoints`].
    ///
    /// # Errors
    /// When the store fails; it may be repeated.
    pub async fn delete_stale_uploads(
        &self,
        untouched_since: SystemTime,
    ) -> Result<(), CleanupError> {
        for prefix in [keys::MODULES, keys::JOBS] {
            let deleted = self.delete_cut_off_uploads(prefix, Some(untouched_since));
            deleted.await.map_err(|error| error.cleaning(prefix))?;
        }
        Ok(())
    }

    /// Deletes every upload below a prefix that was cut off; only those that are old enough, if a time is given.
    pub(crate) async fn delete_cut_off_uploads(
        &self,
        prefix: &str,
        untouched_since: Option<SystemTime>,
    ) -> Result<(), RequestError> {
        self.delete_uploads_of(prefix, untouched_since, |_| true)
            .await
    }

    /// The same for the objects that these are; they are asked for by their keys, relative to the prefix.
    pub(crate) async fn delete_uploads_of(
        &self,
        prefix: &str,
        untouched_since: Option<SystemTime>,
        is_of_these: fn(&str) -> bool,
    ) -> Result<(), RequestError> {
        self.on_disk(prefix, move |directory| {
            for path in files_below(&directory)? {
                let object = path.strip_prefix(&directory).ok().and_then(uploaded);
                if object.is_some_and(is_of_these) && is_older(&path, untouched_since)? {
                    absent_is_fine(fs::remove_file(path))?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Lets what was created, linked and deleted in a directory survive a loss of power.
    pub(crate) async fn sync_directory(&self, prefix: &str) -> Result<(), RequestError> {
        self.on_disk(prefix, |directory| {
            absent_is_fine(File::open(directory).and_then(|directory| directory.sync_all()))
        })
        .await
    }

    /// Whether an object is a file of its own, and not a link to one that may go or change; true in every object store proper.
    pub(crate) async fn is_plain_file(&self, key: &str) -> Result<bool, RequestError> {
        let (told, plain) = oneshot::channel();
        self.on_disk(key, move |path| {
            // Whoever asked may have gone.
            let _ = told.send(fs::symlink_metadata(path)?.is_file());
            Ok(())
        })
        .await?;
        Ok(plain.await.unwrap_or(true))
    }

    /// Deletes a directory if there is nothing in it.
    pub(crate) async fn delete_empty_directory(&self, prefix: &str) -> Result<(), RequestError> {
        self.on_disk(prefix, |directory| match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            outcome => absent_is_fine(outcome),
        })
        .await
    }

    /// Deletes a directory with all that is in it.
    pub(crate) async fn delete_directory(&self, prefix: &str) -> Result<(), RequestError> {
        self.on_disk(prefix, |directory| {
            absent_is_fine(fs::remove_dir_all(directory))
        })
        .await
    }

    /// Does something with the directory of a prefix, where there are directories.
    async fn on_disk(
        &self,
        prefix: &str,
        work: impl FnOnce(PathBuf) -> io::Result<()> + Send + 'static,
    ) -> Result<(), RequestError> {
        let Some(directory) = self.directory().map(|root| root.join(prefix)) else {
            return Ok(());
        };
        let done = tokio::task::spawn_blocking(move || work(directory));
        self.request(async {
            done.await?.map_err(|source| object_store::Error::Generic {
                store: "directory",
                source: source.into(),
            })
        })
        .await
    }
}

/// Every file below a directory. What disappears meanwhile is left out.
fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// The key of the object that is being uploaded to a file of this name: the object's, `#` and a number.
fn uploaded(path: &Path) -> Option<&str> {
    let (key, number) = path.to_str()?.rsplit_once('#')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(key)
}

fn is_older(path: &Path, than: Option<SystemTime>) -> io::Result<bool> {
    let Some(than) = than else {
        return Ok(true);
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        metadata => Ok(metadata?.modified()? < than),
    }
}

fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
