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

/// The longest variable-length integers of 16, 32, 64 and 128 bits: seven bits a byte.
const VARINT_16_BYTES: usize = 3;
const VARINT_32_BYTES: usize = 5;
const VARINT_64_BYTES: usize = 10;
const VARINT_128_BYTES: usize = 19;

/// Why a record could not be encoded or decoded. As small as a pointer, because the loops carry it about.
#[derive(Debug)]
pub(crate) struct WireError(Box<Reason>);

#[derive(Debug)]
enum Reason {
    Full,
    Wrong(&'static str),
    Custom(String),
}

impl WireError {
    /// The buffer has no room for it.
    #[cold]
    fn full() -> Self {
        Self(Box::new(Reason::Full))
    }

    /// What postcard does not support, or bytes that are no encoding of the type.
    #[cold]
    fn wrong(what: &'static str) -> Self {
        Self(Box::new(Reason::Wrong(what)))
    }

    /// Whether more room is all that is missing.
    pub(crate) fn is_full(&self) -> bool {
        matches!(*self.0, Reason::Full)
    }
}

impl Display for WireError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match &*self.0 {
            Reason::Full => f.write_str("there is no room for it"),
            Reason::Wrong(what) => f.write_str(what),
            Reason::Custom(what) => f.write_str(what),
        }
    }
}

impl core::error::Error for WireError {}

impl serde::ser::Error for WireError {
    #[cold]
    fn custom<T: Display>(message: T) -> Self {
        Self(Box::new(Reason::Custom(message.to_string())))
    }
}

impl serde::de::Error for WireError {
    #[cold]
    fn custom<T: Display>(message: T) -> Self {
        Self(Box::new(Reason::Custom(message.to_string())))
    }
}
