//! Encoding into memory that is there already. A record that does not fit is an error, and the caller's to try again.

use core::fmt::{Display, Write};

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::WireError;
use super::copy::copy;

/// Writes at the beginning of a slice, which should be large enough.
pub(crate) struct Encoder<'a> {
    room: &'a mut [u8],
    written: usize,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(room: &'a mut [u8]) -> Self {
        Self { room, written: 0 }
    }

    /// Bytes written so far.
    #[inline]
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    #[inline]
    fn byte(&mut self, byte: u8) -> Result<(), WireError> {
        let place = self
            .room
            .get_mut(self.written)
            .ok_or_else(WireError::full)?;
        *place = byte;
        self.written += 1;
        Ok(())
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let end = self.written + bytes.len();
        let place = self.room.get_mut(self.written..end);
        copy(place.ok_or_else(WireError::full)?, bytes);
        self.written = end;
        Ok(())
    }

    #[inline(always)]
    fn varint(&mut self, n: u64) -> Result<(), WireError> {
        if n < 0x80 {
            return self.byte(n as u8);
        }
        if n >= 1 << 56 {
            self.written += rare_varint(self.room.get_mut(self.written..), n.into())?;
            return Ok(());
        }
        let groups = spread(n);
        let len = (70 - (n.leading_zeros() as usize)) / 7;
        let more = 0x8080_8080_8080_8080 & !(u64::MAX << (8 * (len - 1)));
        // One store whatever the length; near the end of the room it asks for more than it needs.
        let rest = self.room.get_mut(self.written..);
        let place = rest.and_then(|rest| rest.first_chunk_mut());
        *place.ok_or_else(WireError::full)? = (groups | more).to_le_bytes();
        self.written += len;
        Ok(())
    }

    fn varint_128(&mut self, n: u128) -> Result<(), WireError> {
        self.written += rare_varint(self.room.get_mut(self.written..), n)?;
        Ok(())
    }

    /// A length, most of which are short.
    /// A length, most of which are short.
    #[inline(always)]
    fn length(&mut self, len: usize) -> Result<(), WireError> {
        if len < 0x80 {
            return self.byte(len as u8);
        }
        self.written += rare_varint(self.room.get_mut(self.written..), len as u128)?;
        Ok(())
    }
}

/// Writes a number; answers how many bytes it has. It is given the room and not the encoder, which then can stay in
/// registers.
#[inline(never)]
fn rare_varint(room: Option<&mut [u8]>, mut n: u128) -> Result<usize, WireError> {
    for (place, byte) in room.into_iter().flatten().enumerate() {
        if n < 0x80 {
            *byte = n as u8;
            return Ok(place + 1);
        }
        *byte = n as u8 | 0x80;
        n >>= 7;
    }
    Err(WireError::full())
}

/// The length of a sequence or map, which postcard writes before it.
fn known(len: Option<usize>) -> Result<usize, WireError> {
    len.ok_or_else(|| {
        WireError::wrong("a sequence or map must know its length before it is written")
    })
}

/// Puts each seven bits of a number of 56 into a byte of their own, the lowest first: in halves, without a branch.
#[inline]
fn spread(n: u64) -> u64 {
    let n = n & 0x0fff_ffff | n << 4 & 0x0fff_ffff_0000_0000;
    let n = n & 0x0000_3fff_0000_3fff | n << 2 & 0x3fff_0000_3fff_0000;
    n & 0x007f_007f_007f_007f | n << 1 & 0x7f00_7f00_7f00_7f00
}

/// Small numbers of either sign are small numbers.
#[inline]
fn zigzag(n: i64) -> u64 {
    (n << 1 ^ n >> 63) as u64
}

impl Serializer for &mut Encoder<'_> {
    type Ok = ();
    type Error = WireError;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), WireError> {
        self.byte(value.into())
    }

    #[inline]
    fn serialize_i8(self, value: i8) -> Result<(), WireError> {
        self.byte(value.cast_unsigned())
    }

    #[inline]
    fn serialize_i16(self, value: i16) -> Result<(), WireError> {
        self.varint(zigzag(value.into()))
    }

    #[inline]
    fn serialize_i32(self, value: i32) -> Result<(), WireError> {
        self.varint(zigzag(value.into()))
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result<(), WireError> {
        self.varint(zigzag(value))
    }

    fn serialize_i128(self, value: i128) -> Result<(), WireError> {
        self.varint_128((value << 1 ^ value >> 127).cast_unsigned())
    }

    #[inline]
    fn serialize_u8(self, value: u8) -> Result<(), WireError> {
        self.byte(value)
    }

    #[inline]
    fn serialize_u16(self, value: u16) -> Result<(), WireError> {
        self.varint(value.into())
    }

    #[inline]
    fn serialize_u32(self, value: u32) -> Result<(), WireError> {
        self.varint(value.into())
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result<(), WireError> {
        self.varint(value)
    }

    fn serialize_u128(self, value: u128) -> Result<(), WireError> {
        self.varint_128(value)
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<(), WireError> {
        self.bytes(&value.to_le_bytes())
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<(), WireError> {
        self.bytes(&value.to_le_bytes())
    }

    #[inline]
    fn serialize_char(self, value: char) -> Result<(), WireError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), WireError> {
        self.serialize_bytes(value.as_bytes())
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), WireError> {
        self.length(value.len())?;
        self.bytes(value)
    }

    #[inline]
    fn serialize_none(self) -> Result<(), WireError> {
        self.byte(0)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), WireError> {
        self.byte(1)?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), WireError> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), WireError> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
    ) -> Result<(), WireError> {
        self.varint(index.into())
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), WireError> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        value: &T,
    ) -> Result<(), WireError> {
        self.varint(index.into())?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self, WireError> {
        self.length(known(len)?)?;
        Ok(self)
    }

    #[inline]
    fn serialize_tuple(self, _len: usize) -> Result<Self, WireError> {
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<Self, WireError> {
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self, WireError> {
        self.varint(index.into())?;
        Ok(self)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Self, WireError> {
        self.length(known(len)?)?;
        Ok(self)
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Self, WireError> {
        Ok(self)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self, WireError> {
        self.varint(index.into())?;
        Ok(self)
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), WireError> {
        let mut text = String::new();
        write!(text, "{value}")
            .map_err(|_| WireError::wrong("a value that is written as text refused to be"))?;
        self.serialize_str(&text)
    }
}

impl SerializeSeq for &mut Encoder<'_> {
    type Ok = ();
    type Error = WireError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Result<(), WireError> {
        Ok(())
    }
}

impl SerializeTuple for &mut Encoder<'_> {
    type Ok = ();
    type Error = WireError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Result<(), WireError> {
        Ok(())
    }
}

impl SerializeTupleStruct for &mut Encoder<'_> {
    type Ok = ();
    type Error = WireError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Result<(), WireError> {
        Ok(())
    }
}

impl SerializeTupleVariant for &mut Encoder<'_> {
    type Ok = ();
    type Error = WireError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Result<(), WireError> {
        Ok(())
    }
}

impl SerializeMap for &mut Encoder<'_> {
    type Ok = ();
    type Error = WireError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), WireError> {
        key.serialize(&mut **self)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Result<(), WireError> {
        Ok(())
    }
}

impl SerializeStruct for &mut Encoder<'_> {
    type Ok = ();
    type Error = WireError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), WireError> {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Result<(), WireError> {
        Ok(())
    }
}

impl SerializeStructVariant for &mut Encoder<'_> {
    type Ok = ();
    type Error = WireError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), WireError> {
        value.serialize(&mut **self)
    }

    #[inline]
    fn end(self) -> Result<(), WireError> {
        Ok(())
    }
}
