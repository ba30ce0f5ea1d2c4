//! The envelope around everything that is stored or said: two bytes of kind, two of version, then postcard.
//! A reader refuses a newer version by name instead of misreading it. It never guesses.

use alloc::vec::Vec;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A type with its own kind and version number in the envelope.
pub trait Versioned: Serialize + DeserializeOwned {
    /// Two letters that tell this type from every other.
    const KIND: [u8; 2];
    /// Raised with every change of the encoding.
    const VERSION: u16;
    /// For error messages.
    const NAME: &'static str;
}

/// Bytes that are not a value of the asked type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The envelope is of another kind, or there is none.
    #[error("these bytes are not a {expected}")]
    Kind {
        /// What was asked for.
        expected: &'static str,
    },
    /// The value was written by another version.
    #[error(
        "this {name} has version {found}, and this program reads version {supported}: use the release that wrote it, or newer"
    )]
    Version {
        /// What was asked for.
        name: &'static str,
        /// The version in the bytes.
        found: u16,
        /// The version this program reads.
        supported: u16,
    },
    /// The body does not decode, or bytes are left over.
    #[error("this {name} is damaged: {reason}")]
    Body {
        /// What was asked for.
        name: &'static str,
        /// The decoder's reason.
        reason: &'static str,
    },
}

/// Encodes a value with its envelope.
///
/// # Panics
/// When a type's serde implementation fails, which derived ones never do.
#[must_use]
pub fn encode<T: Versioned>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&T::KIND);
    bytes.extend_from_slice(&T::VERSION.to_le_bytes());
    postcard::to_extend(value, bytes).expect("derived serialisation into memory never fails")
}

/// Decodes a value from its envelope. Every byte must be used.
///
/// # Errors
/// When the bytes are of another kind or version, or do not decode.
pub fn decode<T: Versioned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let Some((head, body)) = bytes.split_first_chunk::<4>() else {
        return Err(DecodeError::Kind { expected: T::NAME });
    };
    if head[..2] != T::KIND {
        return Err(DecodeError::Kind { expected: T::NAME });
    }
    let found = u16::from_le_bytes([head[2], head[3]]);
    if found != T::VERSION {
        return Err(DecodeError::Version {
            name: T::NAME,
            found,
            supported: T::VERSION,
        });
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(DecodeError::Body {
            name: T::NAME,
            reason: "bytes are left over",
        }),
        Err(_) => Err(DecodeError::Body {
            name: T::NAME,
            reason: "it is cut short or not what it claims",
        }),
    }
}
