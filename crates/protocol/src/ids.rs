//! Identifiers. Each orders, prints and parses; none is ever made here: counters and randomness come from outside.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// Text that is not an identifier of the asked kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind}: expected {expected}")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    expected: &'static str,
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex<const N: usize>(
    text: &str,
    kind: &'static str,
    expected: &'static str,
) -> Result<[u8; N], ParseIdError> {
    let error = || ParseIdError {
        text: text.into(),
        kind,
        expected,
    };
    if text.len() != 2 * N || !text.is_ascii() {
        return Err(error());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = core::str::from_utf8(pair).map_err(|_| error())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
    }
    Ok(bytes)
}

/// A job, for its whole life. Sixteen random bytes, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub [u8; 16]);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({self})")
    }
}

impl FromStr for JobId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_hex(text, "job id", "32 hexadecimal digits").map(Self)
    }
}

/// The BLAKE3 hash of a prepared (checked and instrumented) module: its address everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModuleHash(pub [u8; 32]);

impl fmt::Display for ModuleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for ModuleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModuleHash({self})")
    }
}

impl FromStr for ModuleHash {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_hex(text, "module hash", "64 hexadecimal digits").map(Self)
    }
}

/// The fencing number of an elected JobManager. Only ever grows; what an older epoch says is refused everywhere.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! epoch_and_counter {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name {
            /// The epoch of the leader that made it. Compared first.
            pub epoch: Epoch,
            /// Counts within the epoch.
            pub counter: u64,
        }

        impl $name {
            /// The identifier with these parts.
            #[must_use]
            pub const fn new(epoch: Epoch, counter: u64) -> Self {
                Self { epoch, counter }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}.{}", self.epoch.0, self.counter)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let parse = || {
                    let (epoch, counter) = text.split_once('.')?;
                    Some(Self::new(Epoch(epoch.parse().ok()?), counter.parse().ok()?))
                };
                parse().ok_or_else(|| ParseIdError { text: text.into(), kind: $kind, expected: "epoch.counter" })
            }
        }
    };
}

epoch_and_counter!(
    /// One execution of a region's tasks. A revert is a new attempt. Written `epoch.counter`.
    AttemptId,
    "attempt"
);
epoch_and_counter!(
    /// One checkpoint of a job. Written `epoch.counter`.
    CheckpointId,
    "checkpoint id"
);

/// One parallel subtask of a stage of a job's execution graph. Written `stage/subtask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// Index into [`crate::ExecutionGraph::stages`].
    pub stage: u32,
    /// In `0..parallelism`.
    pub subtask: u32,
}

impl TaskId {
    /// The task with these parts.
    #[must_use]
    pub const fn new(stage: u32, subtask: u32) -> Self {
        Self { stage, subtask }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stage, self.subtask)
    }
}

impl FromStr for TaskId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let parse = || {
            let (stage, subtask) = text.split_once('/')?;
            Some(Self::new(stage.parse().ok()?, subtask.parse().ok()?))
        };
        parse().ok_or_else(|| ParseIdError {
            text: text.into(),
            kind: "task id",
            expected: "stage/subtask",
        })
    }
}

/// A TaskManager's configured or generated name; stays the same over restarts when configured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskManagerId(pub String);

impl fmt::Display for TaskManagerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One life of a TaskManager process: random, so that a restarted process is told from the one it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn identifiers_survive_their_text() {
        let job = JobId([0xab; 16]);
        assert_eq!(job.to_string().parse(), Ok(job));
        let attempt = AttemptId::new(Epoch(3), 17);
        assert_eq!(attempt.to_string(), "3.17");
        assert_eq!("3.17".parse(), Ok(attempt));
        assert_eq!("2/5".parse(), Ok(TaskId::new(2, 5)));
        for bad in ["", "3", "3.", ".3", "3.x", "é.1"] {
            assert!(bad.parse::<CheckpointId>().is_err(), "{bad}");
        }
        assert!("zz".repeat(16).parse::<JobId>().is_err());
        assert!("é".repeat(16).parse::<JobId>().is_err());
    }

    #[test]
    fn a_later_epoch_is_greater_whatever_the_counter() {
        assert!(CheckpointId::new(Epoch(2), 0) > CheckpointId::new(Epoch(1), 99));
    }
}
