//! Local paths of sources and sinks: parsing, listing what a source's path names, and the one spelling of a sink's
//! directory by which two jobs can be told to share it. It reads names and sizes, never a file's bytes.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::SourceError;

/// A file of the input, as it was when it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InputFile {
    pub(crate) path: PathBuf,
    pub(crate) length_bytes: u64,
}

/// The path in an option's value; `None` when it is empty or names another scheme.
pub(crate) fn parse_path(text: &str) -> Option<PathBuf> {
    let path = text.strip_prefix("file://").unwrap_or(text);
    let other_scheme = path.contains("://");
    (!path.is_empty() && !path.contains('\0') && !other_scheme).then(|| PathBuf::from(path))
}

/// The files that a path names: itself, the files of the directory that it is, or those that match the pattern that it
/// is. In the order of their names, so that every listing of the same input is the same.
pub(crate) fn list_input(path: &Path) -> Result<Vec<InputFile>, SourceError> {
    let path = absolute(path);
    let mut files = match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => list_directory(&path)?,
        Ok(metadata) => vec![InputFile {
            length_bytes: metadata.len(),
            path,
        }],
        Err(error) if is_absent(&error) => match path.to_str() {
            Some(text) if text.contains(['*', '?', '[']) => list_pattern(text)?,
            _ => return Err(SourceError::Missing { path }),
        },
        Err(source) => return Err(io_error("look at", path, source)),
    };
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Whether a path that cannot be looked at just does not exist.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn list_directory(directory: &Path) -> Result<Vec<InputFile>, SourceError> {
    let failed = |source| io_error("list", directory.to_owned(), source);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !is_hidden(path.file_name()) {
            files.extend(regular_file(path)?);
        }
    }
    Ok(files)
}

fn list_pattern(pattern: &str) -> Result<Vec<InputFile>, SourceError> {
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let matches = glob::glob_with(pattern, options).map_err(|error| SourceError::Pattern {
        pattern: pattern.into(),
        reason: error.to_string(),
    })?;
    let mut files = Vec::new();
    for found in matches {
        let path = found.map_err(|error| {
            let path = error.path().to_owned();
            io_error("list", path, error.into())
        })?;
        files.extend(regular_file(path)?);
    }
    if files.is_empty() {
        return Err(SourceError::NoMatch {
            pattern: pattern.into(),
        });
    }
    Ok(files)
}

fn regular_file(path: PathBuf) -> Result<Option<InputFile>, SourceError> {
    match fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(InputFile {
            path,
            length_bytes: metadata.len(),
        })),
        Err(source) => Err(io_error("look at", path, source)),
    }
}

fn is_hidden(name: Option<&OsStr>) -> bool {
    name.is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn io_error(action: &'static str, path: PathBuf, source: io::Error) -> SourceError {
    SourceError::Io {
        action,
        path,
        source,
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The absolute spelling of a directory that may not exist yet: links are followed as far as it exists, and `..` is
/// resolved beyond.
pub(crate) fn canonical_directory(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in absolute(path).components() {
        match component {
            Component::ParentDir => {
                resolved.pop();
            }
            Component::CurDir => {}
            other => {
                resolved.push(other);
                if let Ok(canonical) = fs::canonicalize(&resolved) {
                    resolved = canonical;
                }
            }
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        list_input(path)
            .expect("the input exists")
            .iter()
            .map(|file| {
                file.path
                    .file_name()
                    .expect("files have names")
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }

    #[test]
    fn a_path_is_a_file_a_directory_or_a_pattern() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        for name in ["b.txt", "a.txt", "c.csv", ".hidden.txt", "[x].txt"] {
            fs::write(root.join(name), name).expect("a small file");
        }
        fs::create_dir(root.join("nested")).expect("a directory");
        fs::write(root.join("nested/d.txt"), "d").expect("a small file");

        assert_eq!(names(root), ["[x].txt", "a.txt", "b.txt", "c.csv"]);
        assert_eq!(names(&root.join("a.txt")), ["a.txt"]);
        assert_eq!(names(&root.join("?.txt")), ["a.txt", "b.txt"]);
        assert_eq!(names(&root.join("*/*.txt")), ["d.txt"]);
        assert_eq!(
            names(&root.join("[x].txt")),
            ["[x].txt"],
            "a literal name comes before a pattern"
        );
        assert_eq!(
            list_input(&root.join("a.txt")).expect("it exists")[0].length_bytes,
            5
        );
    }

    #[test]
    fn a_path_that_names_nothing_is_an_error_with_the_path() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        fs::write(root.join("a.txt"), "").expect("a small file");
        let message = |name: &str| list_input(&root.join(name)).unwrap_err().to_string();
        assert!(message("none").contains(root.join("none").to_str().expect("it is UTF-8")));
        assert!(message("none").contains("every TaskManager"));
        assert!(message("a.txt/b").contains("does not exist"));
        assert!(message("*.csv").starts_with("no file matches"));
        assert!(message("[a").contains("not a valid pattern"));
    }

    #[test]
    fn a_directory_has_one_spelling_whether_or_not_it_exists() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = fs::canonicalize(directory.path()).expect("it exists");
        fs::create_dir(root.join("real")).expect("a directory");
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).expect("a link");
        let expected = root.join("real/new/out");
        for spelling in [
            "real/new/out",
            "link/new/out/",
            "real/./new/x/../out",
            "real/../link/new/out",
        ] {
            assert_eq!(
                canonical_directory(&root.join(spelling)),
                expected,
                "{spelling}"
            );
        }
    }
}
