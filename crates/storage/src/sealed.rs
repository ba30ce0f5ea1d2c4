//! Objects that prove themselves: those that people name, so that nothing else tells their hash, end with it. It never
//! returns a value whose bytes it has not verified.

use tidemill_protocol::codec::{self, DecodeError, Versioned};

use crate::ReadError;
use crate::store::WRONG_HASH;

/// The length of the hash at the end.
const HASH_BYTES: usize = 32;

/// The bytes of such an object.
pub(crate) fn seal<T: Versioned>(value: &T) -> Vec<u8> {
    let mut bytes = codec::encode(value);
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

/// What the bytes of such an object say.
///
/// # Errors
/// When they are damaged, or another release's.
pub(crate) fn unseal<T: Versioned>(bytes: &[u8], key: &str) -> Result<T, ReadError> {
    let Some((body, hash)) = bytes.split_last_chunk::<HASH_BYTES>() else {
        let reason = format!("it is too short for a {}", T::NAME);
        return Err(ReadError::damaged(key, reason));
    };
    let decoded = codec::decode(body);
    // What a newer release writes, or is another thing, may end otherwise; so that is looked at first.
    let is_other = matches!(
        decoded,
        Err(DecodeError::Version { .. } | DecodeError::Kind { .. })
    );
    if !is_other && blake3::hash(body).as_bytes() != hash {
        return Err(ReadError::damaged(key, WRONG_HASH));
    }
    decoded.map_err(|error| ReadError::undecodable(key, &error))
}
