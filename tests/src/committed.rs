//! When the output directory of a transactional sink showed something new: the moments at which its visible files got
//! their names. It looks at nothing inside the files, and only after the fact.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context;

/// The moments at which files appeared in a directory, in milliseconds since the Unix epoch, in order. A file appears by
/// being renamed, and its status changes at no other time after it was written; so that change tells the moment.
///
/// # Errors
/// When the directory cannot be read.
pub fn commits_ms(directory: &Path) -> anyhow::Result<Vec<u64>> {
    let mut moments = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Gone again if it was renamed meanwhile.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let ms = metadata.ctime() * 1000 + metadata.ctime_nsec() / 1_000_000;
        moments.push(u64::try_from(ms).unwrap_or(0));
    }
    moments.sort_unstable();
    Ok(moments)
}

/// When output appeared for the first time from a moment on. `None` if nothing appeared any more.
#[must_use]
pub fn first_commit_ms(commits_ms: &[u64], from_ms: u64) -> Option<u64> {
    let index = commits_ms.partition_point(|ms| *ms < from_ms);
    commits_ms.get(index).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{unix_ms, wait_for};

    #[test]
    fn a_file_appears_when_it_is_renamed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at(".part"), "text").expect("a small file");
        let written = unix_ms();
        let before = commits_ms(directory.path()).expect("it is there");
        assert!(before.is_empty(), "{before:?}");
        // File systems cut the time to their clock's tick.
        wait_for("some time to pass", Duration::from_secs(5), || {
            Ok((unix_ms() > written + 30).then_some(()))
        })
        .expect("it passes");
        fs::rename(at(".part"), at("part")).expect("the name is free");
        let moments = commits_ms(directory.path()).expect("it is there");
        assert!(moments.len() == 1 && moments[0] > written, "{moments:?}");
    }

    #[test]
    fn the_first_commit_from_a_moment_on_is_found() {
        let commits = [100, 200, 200, 2_000];
        assert_eq!(first_commit_ms(&commits, 0), Some(100));
        assert_eq!(first_commit_ms(&commits, 200), Some(200));
        assert_eq!(first_commit_ms(&commits, 201), Some(2_000));
        assert_eq!(first_commit_ms(&commits, 2_001), None);
    }
}
