//! Decoding off the front of a batch. Bytes that are no encoding of the type are an error; it never reads past the batch.

use serde::de::value::U32Deserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::{VARINT_16_BYTES, VARINT_32_BYTES, VARINT_64_BYTES, WireError};

/// Reads one value after the other.
pub(crate) struct Decoder<'de> {
    rest: &'de [u8],
}

const CUT_SHORT: WireError = WireError::Wrong("its bytes are cut short");
const NO_NUMBER: WireError = WireError::Wrong("its bytes hold a number that is too large");

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
        let (first, rest) = self.rest.split_first().ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(*first)
    }

    #[inline]
    fn bytes(&mut self, len: usize) -> Result<&'de [u8], WireError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(*bytes)
    }

    #[inline]
    fn varint<const BYTES: usize>(&mut self) -> Result<u64, WireError> {
        // One check for all bytes, except for the last few numbers of a batch.
        let Some(bytes) = self.rest.first_chunk::<BYTES>() else {
            return self.last_varint(BYTES);
        };
        let mut n = 0;
        for (place, byte) in bytes.iter().enumerate() {
            n |= u64::from(byte & 0x7f) << (7 * place);
            if *byte < 0x80 {
                // Of a tenth byte one bit is left.
                if place == 9 && *byte > 1 {
                    break;
                }
                self.rest = &self.rest[place + 1..];
                return Ok(n);
            }
        }
        Err(NO_NUMBER)
    }

    #[cold]
    fn last_varint(&mut self, bytes: usize) -> Result<u64, WireError> {
        let before = self.rest.len();
        let n = self.varint_128()?;
        let n = u64::try_from(n).map_err(|_| NO_NUMBER)?;
        let read = before - self.rest.len();
        if read > bytes { Err(NO_NUMBER) } else { Ok(n) }
    }

    fn varint_128(&mut self) -> Result<u128, WireError> {
        let mut n = 0;
        for place in 0..19 {
            let byte = self.byte()?;
            n |= u128::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                // Of the nineteenth byte two bits are left.
                return if place == 18 && byte > 3 { Err(NO_NUMBER) } else { Ok(n) };
            }
        }
        Err(NO_NUMBER)
    }

    #[inline]
    fn unsigned<N: TryFrom<u64>, const BYTES: usize>(&mut self) -> Result<N, WireError> {
        N::try_from(self.varint::<BYTES>()?).map_err(|_| NO_NUMBER)
    }

    #[inline]
    fn signed<N: TryFrom<i64>, const BYTES: usize>(&mut self) -> Result<N, WireError> {
        let n = self.varint::<BYTES>()?;
        let n = (n >> 1).cast_signed() ^ -(n & 1).cast_signed();
        N::try_from(n).map_err(|_| NO_NUMBER)
    }

    #[inline]
    fn length(&mut self) -> Result<usize, WireError> {
        self.unsigned::<_, VARINT_64_BYTES>()
    }

    #[inline]
    fn text(&mut self) -> Result<&'de str, WireError> {
        let len = self.length()?;
        let bytes = self.bytes(len)?;
        core::str::from_utf8(bytes).map_err(|_| WireError::Wrong("its text is no UTF-8"))
    }
}

/// What a format that does not describe itself cannot know.
const UNKNOWN_TYPE: WireError =
    WireError::Wrong("its type leaves to the bytes what they hold, and postcard's do not say it");

impl<'de> Deserializer<'de> for &mut Decoder<'de> {
    type Error = WireError;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, WireError> {
        Err(UNKNOWN_TYPE)
    }

    #[inline]
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        match self.byte()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            _ => Err(WireError::Wrong("a byte that means yes or no is neither")),
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
            None => Err(WireError::Wrong("a character is none")),
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
            _ => Err(WireError::Wrong("a byte that means none or some is neither")),
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
        visitor.visit_seq(Elements { decoder: self, left })
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
        visitor.visit_map(Elements { decoder: self, left })
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
        Err(UNKNOWN_TYPE)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, WireError> {
        Err(UNKNOWN_TYPE)
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
    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), WireError> {
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
