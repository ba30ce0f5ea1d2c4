//! What a wish for a savepoint is called, and what is being done about it. Whoever wishes chooses the name, so that a wish
//! which is sent again is not carried out twice. It is never made here.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

/// One wish for a savepoint. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SavepointRequestId(pub u128);

impl fmt::Display for SavepointRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What is being done for a savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SavepointStep {
    /// A checkpoint is awaited that begins after the wish.
    Checkpoint,
    /// The checkpoint is being copied.
    Copy,
    /// It is copied, and the job is about to stop: commits are confirmed, and its end is stored.
    Commit,
}

/// Text that is no [`SavepointRequestId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a request for a savepoint: expected 32 hexadecimal digits")]
pub struct ParseRequestIdError(String);

impl FromStr for SavepointRequestId {
    type Err = ParseRequestIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseRequestIdError(text.into());
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex {
            return Err(error());
        }
        u128::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_request_survives_its_text() {
        let id = SavepointRequestId(0xab);
        assert_eq!(id.to_string().len(), 32);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "ab",
            "+0000000000000000000000000000001",
            &"é".repeat(16),
        ] {
            assert!(bad.parse::<SavepointRequestId>().is_err(), "{bad}");
        }
    }
}
