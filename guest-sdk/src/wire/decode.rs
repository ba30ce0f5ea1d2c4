//! Decoding off the front of a batch. Bytes that are no encoding of the type are an error; it never reads past the batch.

use serde::de::value::U32Deserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::{VARINT_16_BYTES, VARINT_32_BYTES, VARINT_64_BYTES, VARINT_128_BYTES, WireError};

/// Reads one value after the other.
pub(crate) struct Decoder<'de> {
    rest: &'de [u8],
}

fn cut_short() -> WireError {
    WireError::wrong("its bytes are cut short")
}

fn no_number() -> WireError {
    WireError::wrong("its bytes hold a number that is too large")
}

/// What a format that does not describe itself cannot know.
fn unknown_type() -> WireError {
    WireError::wrong("its type leaves to the bytes what they hold, and postcard's do not say it")
}

impl<'de> Decoder<'de> {
    pub(crate) fn new(batch: &'de [u8]) -> Self {
        Self { rest: batch }
    }

    /// What was not read yet.
    #[inline]
    pub(crate) fn rest(&self) -> &'de [u8] {
        self.rest
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, WireError> {
        let (first, rest) = self.rest.split_first().ok_or_else(cut_short)?;
        self.rest = rest;
        Ok(*first)
    }

    #[inline]
    fn bytes(&mut self, len: usize) -> Result<&'de [u8], WireError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or_else(cut_short)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or_else(cut_short)?;
        self.rest = rest;
        Ok(*bytes)
    }

    #[inline(always)]
    fn varint<const BYTES: usize>(&mut self) -> Result<u64, WireError> {
        if let Some((first, rest)) = self.rest.split_first()
            && *first < 0x80
        {
            self.rest = rest;
            return Ok((*first).into());
        }
        // One load whatever the length, except for the largest numbers and the last few of a batch.
        let word = self
            .rest
            .first_chunk()
            .map(|word| u64::from_le_bytes(*word));
        let ends = word.map(|word| !word & 0x8080_8080_8080_8080);
        let (n, len) = match (word, ends) {
            (Some(word), Some(ends @ 1..)) => {
                let len = ends.trailing_zeros() as usize / 8 + 1;
                (gather(word & (ends ^ (ends - 1))), len)
            }
            _ => rare_varint(self.rest)?,
        };
        if len > BYTES {
            return Err(no_number());
        }
        self.rest = &self.rest[len..];
        Ok(n)
    }

    fn varint_128(&mut self) -> Result<u128, WireError> {
        let (n, len) = long_varint(self.rest)?;
        self.rest = &self.rest[len..];
        Ok(n)
    }

    #[inline]
    fn unsigned<N: TryFrom<u64>, const BYTES: usize>(&mut self) -> Result<N, WireError> {
        N::try_from(self.varint::<BYTES>()?).map_err(|_| no_number())
    }

    #[inline]
    fn signed<N: TryFrom<i64>, const BYTES: usize>(&mut self) -> Result<N, WireError> {
        let n = self.varint::<BYTES>()?;
        let n = (n >> 1).cast_signed() ^ -(n & 1).cast_signed();
        N::try_from(n).map_err(|_| no_number())
    }

    /// A length, most of which are short.
    #[inline(always)]
    fn length(&mut self) -> Result<usize, WireError> {
        match self.rest.split_first() {
            Some((first, rest)) if *first < 0x80 => {
                self.rest = rest;
                Ok((*first).into())
            }
            _ => {
                let (n, len) = rare_varint(self.rest)?;
                self.rest = &self.rest[len..];
                usize::try_from(n).map_err(|_| no_number())
            }
        }
    }

    #[inline]
    fn text(&mut self) -> Result<&'de str, WireError> {
        let len = self.length()?;
        let bytes = self.bytes(len)?;
        core::str::from_utf8(bytes).map_err(|_| WireError::wrong("its text is no UTF-8"))
    }
}

/// A number and how many bytes it has. It is given the bytes and not the decoder, which then can stay in registers.
#[inline(never)]
fn rare_varint(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    let (n, len) = long_varint(bytes)?;
    let n = u64::try_from(n).ok().filter(|_| len <= VARINT_64_BYTES);
    Ok((n.ok_or_else(no_number)?, len))
}

fn long_varint(bytes: &[u8]) -> Result<(u128, usize), WireError> {
    let mut n = 0;
    for (place, byte) in bytes.iter().enumerate().take(VARINT_128_BYTES) {
        n |= u128::from(byte & 0x7f) << (7 * place);
        if *byte < 0x80 {
            // Of the last byte two bits are left.
            let fits = place + 1 < VARINT_128_BYTES || *byte <= 3;
            return fits.then_some((n, place + 1)).ok_or_else(no_number);
        }
    }
    Err(if bytes.len() < VARINT_128_BYTES {
        cut_short()
    } else {
        no_number()
    })
}

/// Joins the low seven bits of each byte to one number, the first byte lowest: in halves, without a branch.
#[inline]
fn gather(word: u64) -> u64 {
    let n = word & 0x007f_007f_007f_007f | (word & 0x7f00_7f00_7f00_7f00) >> 1;
    let n = n & 0x0000_3fff_0000_3fff | (n & 0x3fff_0000_3fff_0000) >> 2;
    n & 0x0fff_ffff | (n & 0x0fff_ffff_0000_0000) >> 4
}

impl<'de> Deserializer<'de> for &mut Decoder<'de> {
    type Error = WireError;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, WireError> {
        Err(unknown_type())
    }

    #[inline]
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        match self.byte()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            _ => Err(WireError::wrong("a byte that means yes or no is neither")),
        }
    }

    #[inline]
    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_i8(self.byte()?.cast_signed())
    }

    #[inline]
    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_i16(self.signed::<_, VARINT_16_BYTES>()?)
    }

    #[inline]
    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_i32(self.signed::<_, VARINT_32_BYTES>()?)
    }

    #[inline]
    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_i64(self.signed::<_, VARINT_64_BYTES>()?)
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        let n = self.varint_128()?;
        visitor.visit_i128((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }

    #[inline]
    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_u8(self.byte()?)
    }

    #[inline]
    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_u16(self.unsigned::<_, VARINT_16_BYTES>()?)
    }

    #[inline]
    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_u32(self.unsigned::<_, VARINT_32_BYTES>()?)
    }

    #[inline]
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_u64(self.varint::<VARINT_64_BYTES>()?)
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_u128(self.varint_128()?)
    }

    #[inline]
    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_f32(f32::from_le_bytes(self.array()?))
    }

    #[inline]
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_f64(f64::from_le_bytes(self.array()?))
    }

    #[inline]
    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        let text = self.text()?;
        match text.chars().next().filter(|_| text.len() <= 4) {
            Some(character) => visitor.visit_char(character),
            None => Err(WireError::wrong("a character is none")),
        }
    }

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        self.deserialize_str(visitor)
    }

    #[inline]
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        let len = self.length()?;
        visitor.visit_borrowed_bytes(self.bytes(len)?)
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        self.deserialize_bytes(visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        match self.byte()? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(self),
            _ => Err(WireError::wrong(
                "a byte that means none or some is neither",
            )),
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, WireError> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, WireError> {
        visitor.visit_newtype_struct(self)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        let left = self.length()?;
        visitor.visit_seq(Elements {
            decoder: self,
            left,
        })
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, WireError> {
        visitor.visit_seq(Elements {
            decoder: self,
            left: len,
        })
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, WireError> {
        self.deserialize_tuple(len, visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        let left = self.length()?;
        visitor.visit_map(Elements {
            decoder: self,
            left,
        })
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WireError> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WireError> {
        visitor.visit_enum(self)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, WireError> {
        Err(unknown_type())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, WireError> {
        Err(unknown_type())
    }
}

/// The elements of a sequence, or the entries of a map.
struct Elements<'a, 'de> {
    decoder: &'a mut Decoder<'de>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = WireError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, WireError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.decoder).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Elements<'_, 'de> {
    type Error = WireError;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, WireError> {
        self.next_element_seed(seed)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, WireError> {
        seed.deserialize(&mut *self.decoder)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> EnumAccess<'de> for &mut Decoder<'de> {
    type Error = WireError;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), WireError> {
        let index: u32 = self.unsigned::<_, VARINT_32_BYTES>()?;
        let index: U32Deserializer<WireError> = index.into_deserializer();
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Decoder<'de> {
    type Error = WireError;

    #[inline]
    fn unit_variant(self) -> Result<(), WireError> {
        Ok(())
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, WireError> {
        seed.deserialize(self)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, WireError> {
        self.deserialize_tuple(len, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WireError> {
        self.deserialize_tuple(fields.len(), visitor)
    }
}
