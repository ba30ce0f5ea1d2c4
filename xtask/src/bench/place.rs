//! Where a benchmark's files lie, and what is left of memory and disk.
//!
//! It never changes anything but one file of its own, which it removes again.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};

const MIB: usize = 1 << 20;

/// How much is written to see how fast the disk is.
const TRIAL_MIB: usize = 256;

/// A directory, its disk, and how fast that takes a large file.
pub(super) struct Place {
    directory: PathBuf,
    disk: String,
    mib_per_s: f64,
}

impl Place {
    /// Looks at the disk below a directory, and writes a file to it.
    pub(super) fn of(directory: &Path) -> anyhow::Result<Self> {
        let directory = directory.canonicalize()?;
        let mounts = fs::read_to_string("/proc/mounts")?;
        Ok(Self {
            disk: disk(&mounts, &directory),
            mib_per_s: try_out(&directory)?,
            directory,
        })
    }

    /// What is free on that disk.
    pub(super) fn free_bytes(&self) -> anyhow::Result<u64> {
        let path = CString::new(self.directory.as_os_str().as_bytes())?;
        // SAFETY: all fields of the C struct may be zero, and both pointers live as long as the call.
        let (status, figures) = unsafe {
            let mut figures: libc::statvfs = std::mem::zeroed();
            (libc::statvfs(path.as_ptr(), &raw mut figures), figures)
        };
        ensure!(
            status == 0,
            "cannot ask how much is free below {}: {}",
            self.directory.display(),
            std::io::Error::last_os_error()
        );
        Ok(figures.f_bavail * figures.f_frsize)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Store: file://{} on {}, which takes {:.0} MiB/s in one synced file.",
            self.directory.display(),
            self.disk,
            self.mib_per_s
        )
    }
}

/// The device and file system of the innermost mount above a directory.
fn disk(mounts: &str, directory: &Path) -> String {
    let innermost = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .filter(|(_, at, _)| directory.starts_with(at))
        .max_by_key(|(_, at, _)| at.len());
    match innermost {
        Some((device, _, kind)) => format!("{device} ({kind})"),
        None => "an unknown disk".to_owned(),
    }
}

fn try_out(directory: &Path) -> anyhow::Result<f64> {
    let path = directory.join("trial");
    let block: Vec<u8> = (0..MIB)
        .map(|byte| (byte.wrapping_mul(0x9E37_79B9) >> 13) as u8)
        .collect();
    let began = Instant::now();
    let mut file =
        File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    for _ in 0..TRIAL_MIB {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let seconds = began.elapsed().as_secs_f64();
    fs::remove_file(&path)?;
    Ok(TRIAL_MIB as f64 / seconds)
}

/// What the machine can give without swapping.
pub(super) fn available_memory_bytes() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("/proc/meminfo has no MemAvailable")? << 10)
}

/// Now, in milliseconds since the Unix epoch, as JobManagers tell the time.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts =
            "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmpfs xfs rw 0 0\n";
        assert_eq!(disk(mounts, Path::new("/home/x")), "/dev/vda (ext4)");
        assert_eq!(disk(mounts, Path::new("/tmp/x")), "tmpfs (tmpfs)");
        assert_eq!(disk("", Path::new("/tmp")), "an unknown disk");
    }

    #[test]
    fn a_place_knows_what_is_left() {
        let here = Place {
            directory: std::env::temp_dir(),
            disk: String::new(),
            mib_per_s: 0.0,
        };
        assert!(here.free_bytes().expect("it is there") > 0);
        assert!(available_memory_bytes().expect("Linux tells") > 0);
    }
}
