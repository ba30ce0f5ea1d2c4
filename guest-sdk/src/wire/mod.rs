//! The encoding of records between stages, byte for byte postcard's, written for the loop that a stage runs in: no
//! buffer that grows byte by byte, no read past one check per number, no copy of a few bytes by a library call.
//!
//! It never frames records: a batch is one encoding after the other.

mod copy;
mod decode;
mod encode;
#[cfg(test)]
mod tests;

use core::fmt::Display;

pub(crate) use decode::Decoder;
pub(crate) use encode::Encoder;

/// The longest variable-length integers of 16, 32 and 64 bits: seven bits a byte.
const VARINT_16_BYTES: usize = 3;
const VARINT_32_BYTES: usize = 5;
const VARINT_64_BYTES: usize = 10;

/// Why a record could not be encoded or decoded.
#[derive(Debug)]
pub(crate) enum WireError {
    /// The buffer has no room for it.
    Full,
    /// What postcard does not support, or bytes that are no encoding of the type.
    Wrong(&'static str),
    /// The record type's own words.
    Custom(Box<str>),
}

impl Display for WireError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Full => f.write_str("there is no room for it"),
            Self::Wrong(what) => f.write_str(what),
            Self::Custom(what) => f.write_str(what),
        }
    }
}

impl core::error::Error for WireError {}

impl serde::ser::Error for WireError {
    #[cold]
    fn custom<T: Display>(message: T) -> Self {
        Self::Custom(message.to_string().into())
    }
}

impl serde::de::Error for WireError {
    #[cold]
    fn custom<T: Display>(message: T) -> Self {
        Self::Custom(message.to_string().into())
    }
}
