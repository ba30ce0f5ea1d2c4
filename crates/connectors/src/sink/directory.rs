//! What a file sink needs of a directory, each operation one that a crash can come before or after. A local directory
//! is the one implementation outside tests; theirs loses what was not synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A flat directory of files.
pub(crate) trait OutputDirectory {
    /// A file being written.
    type File;

    /// Where it is.
    fn path(&self) -> &Path;
    /// Another directory, which is there already.
    fn elsewhere(&self, path: &Path) -> io::Result<Self>
    where
        Self: Sized;
    /// Creates an empty file under a name that is not taken.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Writes bytes at the file's end. They may be lost until they are synced.
    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file's bytes durable; not its name.
    fn sync(&self, file: &mut Self::File) -> io::Result<()>;
    /// Makes every name durable.
    fn sync_names(&self) -> io::Result<()>;
    /// A file's size, or `None` when there is none of this name.
    fn length(&self, name: &str) -> io::Result<Option<u64>>;
    /// Gives a file another name, atomically.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; one that is not there is removed already.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Every name.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Whether two files hold the same bytes.
    fn same_content(&self, a: &str, b: &str) -> io::Result<bool>;
}

/// A directory of this machine's file system.
#[derive(Debug)]
pub(crate) struct LocalDirectory {
    path: PathBuf,
}

impl LocalDirectory {
    /// The directory at a path; made, with its parents, and made durable when it is not there.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let is_new = !path.is_dir();
        fs::create_dir_all(&path)?;
        if is_new && let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self { path })
    }
}

impl OutputDirectory for LocalDirectory {
    type File = File;

    fn path(&self) -> &Path {
        &self.path
    }

    fn elsewhere(&self, path: &Path) -> io::Result<Self> {
        fs::read_dir(path)?;
        let path = path.to_owned();
        Ok(Self { path })
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(self.path.join(name))
    }

    fn append(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path.join(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // Names that are not UTF-8 are not a sink's.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn same_content(&self, a: &str, b: &str) -> io::Result<bool> {
        let mut a = File::open(self.path.join(a))?;
        let mut b = File::open(self.path.join(b))?;
        if a.metadata()?.len() != b.metadata()?.len() {
            return Ok(false);
        }
        let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        loop {
            let read = a.read(&mut left)?;
            if read == 0 {
                return Ok(true);
            }
            match b.read_exact(&mut right[..read]) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                other => other?,
            }
            if left[..read] != right[..read] {
                return Ok(false);
            }
        }
    }
}
