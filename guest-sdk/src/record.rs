//! Records and how they cross an exchange: postcard, one after the other, with nothing between them. Raw bytes go
//! through [`Bytes`] and [`ByteArray`], which copy memory where a `Vec<u8>` would be written byte by byte.
//! It never frames records for native connectors; `tidemill_abi::framed` does.

use core::fmt;
use core::ops::{Deref, DerefMut};
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::wire::{Decoder, WireError};

/// What can travel between stages: any owned serde type.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot cross from one stage to another",
    note = "records that cross an exchange need `#[derive(serde::Serialize, serde::Deserialize)]` and must own their data"
)]
pub trait Record: Serialize + DeserializeOwned + 'static {}

impl<T: Serialize + DeserializeOwned + 'static> Record for T {}

/// Takes the first record off a batch.
#[inline]
pub(crate) fn decode<T: DeserializeOwned>(batch: &mut &[u8]) -> T {
    let mut decoder = Decoder::new(batch);
    match T::deserialize(&mut decoder) {
        Ok(record) => {
            *batch = decoder.rest();
            record
        }
        Err(error) => refuse::<T>("decoded", &error),
    }
}

/// Ends the task: a record type whose two serde halves disagree would otherwise give wrong results.
#[cold]
pub(crate) fn refuse<T>(verb: &str, error: &WireError) -> ! {
    panic!(
        "a record of type `{}` could not be {verb}: {error}",
        core::any::type_name::<T>()
    )
}

/// Raw bytes of any length, encoded by copying memory.
///
/// ```
/// use tidemill::Bytes;
/// let bytes = Bytes::from(vec![1, 2, 3]);
/// assert_eq!(&bytes[1..], [2, 3]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub Vec<u8>);

/// Raw bytes of a fixed length, encoded by copying memory and without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteArray<const N: usize>(pub [u8; N]);

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl Deref for Bytes {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<const N: usize> From<[u8; N]> for ByteArray<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> Default for ByteArray<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Deref for ByteArray<N> {
    type Target = [u8; N];

    fn deref(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> DerefMut for ByteArray<N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl<const N: usize> AsRef<[u8]> for ByteArray<N> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Bytes {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<const N: usize> Serialize for ByteArray<N> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}

impl<'de, const N: usize> Deserialize<'de> for ByteArray<N> {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(ArrayVisitor::<N>)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    #[inline]
    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes(bytes.to_vec()))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(Bytes(bytes))
    }

    // Text formats have no bytes and write a list of numbers.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bytes, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = list.next_element()? {
            bytes.push(byte);
        }
        Ok(Bytes(bytes))
    }
}

struct ArrayVisitor<const N: usize>;

impl<const N: usize> Visitor<'_> for ArrayVisitor<N> {
    type Value = ByteArray<N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes")
    }

    #[inline]
    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<ByteArray<N>, E> {
        bytes
            .try_into()
            .map(ByteArray)
            .map_err(|_| E::invalid_length(bytes.len(), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;

    #[test]
    fn records_are_read_back_in_order_until_the_batch_is_empty() {
        let mut batch = Batch::new();
        for n in [-5i64, 0, 1 << 40] {
            batch.push(&(n, Bytes(vec![7; 3]), ByteArray([9; 100])));
        }
        let mut rest = batch.take();
        for n in [-5i64, 0, 1 << 40] {
            let record: (i64, Bytes, ByteArray<100>) = decode(&mut rest);
            assert_eq!(record, (n, Bytes(vec![7; 3]), ByteArray([9; 100])));
        }
        assert!(rest.is_empty());
    }

    #[test]
    #[should_panic(expected = "could not be decoded")]
    fn a_batch_cut_short_ends_the_task() {
        let mut batch = Batch::new();
        batch.push(&String::from("whole"));
        let _: String = decode(&mut &batch.take()[..3]);
    }
}
