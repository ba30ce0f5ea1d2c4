//! Where a process has its image files: a directory of its own, which is locked for as long as the process lives, so that
//! the next process with the same data directory can tell what one that was killed has left there.
//!
//! It never touches what another living process keeps.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tracing::warn;

/// The file that is locked.
const LOCK: &str = "lock";

/// How often a new directory is made, while others that clean up take it away before it is locked.
const ATTEMPTS_MAX: usize = 8;

/// A directory for one process; it is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    directory: TempDir,
    _lock: File,
}

impl Place {
    /// Makes a directory in `images`, and begins to remove those of processes that are gone.
    ///
    /// # Errors
    /// When directories cannot be made there, or files cannot be locked.
    pub(super) fn take(images: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(images)?;
        let place = Self::make(images)?;
        let (images, own) = (images.to_owned(), place.path().to_owned());
        // Files of many GiB take the file system a while.
        std::thread::Builder::new()
            .name("images-left".to_owned())
            .spawn(move || remove_left(&images, &own))?;
        Ok(place)
    }

    fn make(images: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS_MAX {
            let directory = tempfile::Builder::new()
                .prefix("process-")
                .tempdir_in(images)?;
            let path = directory.path().join(LOCK);
            let locked = File::create(&path).and_then(|lock| lock.lock().map(|()| lock));
            match locked {
                // A process that cleans up may have found it before it was locked.
                Ok(lock) if path.exists() => {
                    return Ok(Self {
                        directory,
                        _lock: lock,
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!(
            "each new directory in {} is removed at once",
            images.display()
        )))
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes what processes have left that are gone.
fn remove_left(images: &Path, own: &Path) {
    if let Err(error) = try_remove_left(images, own) {
        let place = images.display();
        warn!("what an earlier process has left in {place} cannot be removed: {error}");
    }
}

fn try_remove_left(images: &Path, own: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(images)? {
        let path = entry?.path();
        if path != own && path.is_dir() && !is_held(&path)? {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Whether a living process keeps its images there.
fn is_held(directory: &Path) -> io::Result<bool> {
    let lock = match File::open(directory.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match lock.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Another process may be doing the same.
fn remove(directory: &PathBuf) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_left_is_removed_and_what_one_keeps_is_not() {
        let images = tempfile::tempdir().expect("a directory");
        let left = images.path().join("process-gone");
        std::fs::create_dir(&left).expect("made");
        std::fs::write(left.join("image"), [7; 4096]).expect("written");
        std::fs::write(left.join(LOCK), []).expect("written");
        let living = Place::make(images.path()).expect("a place");
        std::fs::write(living.path().join("image"), [7; 4096]).expect("written");

        let own = Place::make(images.path()).expect("a place");
        try_remove_left(images.path(), own.path()).expect("it can be removed");
        assert!(!left.exists());
        assert!(living.path().join("image").exists());
        assert!(own.path().exists());

        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
