//! The split of the source `files`: a byte range of one file. A line belongs to the split that holds its first byte.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemill_protocol::codec::{self, DecodeError, Versioned};

/// A byte range of a file. [`FileSplit::is_sound`] holds for every one that is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileSplit {
    /// As the operating system spells it.
    path: Vec<u8>,
    /// The file's size when the input was listed; bytes beyond are not part of the input.
    pub(crate) length_bytes: u64,
    /// Lines whose first byte is at or after this offset, and …
    pub(crate) start: u64,
    /// … before this one.
    pub(crate) end: u64,
}

impl Versioned for FileSplit {
    const KIND: [u8; 2] = *b"FS";
    const VERSION: u16 = 1;
    const NAME: &'static str = "split of a file";
}

impl FileSplit {
    pub(crate) fn new(path: &Path, length_bytes: u64, start: u64, end: u64) -> Self {
        Self {
            path: path.as_os_str().as_bytes().to_owned(),
            length_bytes,
            start,
            end,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        OsString::from_vec(self.path.clone()).into()
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.start < self.end && self.end <= self.length_bytes
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode::<Self>(bytes).and_then(|split| {
            if split.is_sound() {
                Ok(split)
            } else {
                Err(DecodeError::Body {
                    name: Self::NAME,
                    reason: "its range does not lie in its file",
                })
            }
        })
    }
}
