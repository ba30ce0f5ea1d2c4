//! The encoding is postcard's, both ways, whatever the value and whatever the bytes.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Decoder, Encoder, WireError};
use crate::{ByteArray, Bytes};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle(f64),
    Box(i16, u128),
    Label { text: String, at: (i64, char) },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Marker;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Wrapped(u16);

type Numbers = ((i8, u8, i32, u32, u64, i128), (f32, bool, usize));

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    numbers: Numbers,
    shapes: Vec<Shape>,
    entries: BTreeMap<String, Option<Wrapped>>,
    raw: (Bytes, ByteArray<5>, Marker, ()),
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just(Shape::Point),
        (-1e9..1e9).prop_map(Shape::Circle),
        any::<(i16, u128)>().prop_map(|(a, b)| Shape::Box(a, b)),
        (".{0,70}", any::<(i64, char)>()).prop_map(|(text, at)| Shape::Label { text, at }),
    ]
}

fn everything() -> impl Strategy<Value = Everything> {
    let scalars = (any::<bool>(), any::<usize>(), -1e9f32..1e9);
    let raw = (vec(any::<u8>(), 0..200), any::<[u8; 5]>());
    let entry = proptest::option::of(any::<u16>().prop_map(Wrapped));
    (
        (any::<(i8, u8, i32, u32, u64, i128)>(), scalars),
        vec(shape(), 0..4),
        btree_map(".{0,5}", entry, 0..4),
        raw,
    )
        .prop_map(
            |((whole, (flag, size, real)), shapes, entries, (raw, array))| Everything {
                numbers: (whole, (real, flag, size)),
                shapes,
                entries,
                raw: (Bytes(raw), ByteArray(array), Marker, ()),
            },
        )
}

fn encode<T: Serialize>(value: &T, room: usize) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![0; room];
    let mut encoder = Encoder::new(&mut bytes);
    value.serialize(&mut encoder)?;
    let written = encoder.written();
    bytes.truncate(written);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    let mut decoder = Decoder::new(bytes);
    let value = T::deserialize(&mut decoder)?;
    Ok((value, decoder.rest()))
}

proptest! {
    #[test]
    fn the_bytes_are_postcards(value in everything(), behind in vec(any::<u8>(), 0..12)) {
        let mut bytes = postcard::to_allocvec(&value).expect("encodes");
        prop_assert_eq!(&encode(&value, bytes.len() + 10).expect("fits"), &bytes);
        bytes.extend_from_slice(&behind);
        let (read, rest) = decode::<Everything>(&bytes).expect("decodes");
        prop_assert_eq!((read, rest), (value, &behind[..]));
    }

    #[test]
    fn without_room_nothing_is_lost_but_the_attempt(value in everything()) {
        let len = postcard::to_allocvec(&value).expect("encodes").len();
        for room in [0, len / 2, len - 1] {
            prop_assert!(encode(&value, room).is_err_and(|error| error.is_full()));
        }
    }

    #[test]
    fn bytes_of_nobody_are_read_as_postcard_reads_them(bytes in vec(any::<u8>(), 0..60)) {
        let theirs = postcard::take_from_bytes::<Everything>(&bytes).ok();
        let ours = decode::<Everything>(&bytes).ok();
        // Not a number is not equal to itself; its bytes are.
        let again = |read: Option<(Everything, &[u8])>| {
            read.map(|(value, rest)| (postcard::to_allocvec(&value).expect("encodes"), rest.to_vec()))
        };
        prop_assert_eq!(again(ours), again(theirs));
    }

    #[test]
    fn numbers_at_the_end_of_a_batch_are_read(bytes in vec(prop_oneof![Just(0xffu8), Just(0x80), any::<u8>()], 0..12)) {
        let theirs = postcard::take_from_bytes::<u64>(&bytes).ok();
        prop_assert_eq!(decode::<u64>(&bytes).ok(), theirs);
        let theirs = postcard::take_from_bytes::<i64>(&bytes).ok();
        prop_assert_eq!(decode::<i64>(&bytes).ok(), theirs);
    }
}

#[test]
fn numbers_of_every_length_are_postcards() {
    for bits in 0..64 {
        for n in [(1u64 << bits) - 1, 1 << bits, u64::MAX >> bits] {
            let bytes = postcard::to_allocvec(&n).expect("encodes");
            assert_eq!(encode(&n, 16).expect("fits"), bytes);
            // With and without bytes behind it.
            for behind in [0, 1, 9] {
                let batch = [&bytes[..], &[0xff; 9][..behind]].concat();
                let (read, rest) = decode::<u64>(&batch).expect("decodes");
                assert_eq!((read, rest.len()), (n, behind));
            }
        }
    }
}

#[test]
fn what_postcard_cannot_do_is_told_in_words() {
    let told = |error: WireError| error.to_string();
    let refused = decode::<serde::de::IgnoredAny>(&[0]).expect_err("nobody knows the type");
    assert!(told(refused).contains("do not say it"));
    assert!(told(decode::<bool>(&[2]).expect_err("neither")).contains("neither"));
    assert!(told(decode::<String>(&[1, 0xff]).expect_err("no text")).contains("UTF-8"));
    assert!(told(decode::<ByteArray<3>>(&[2, 1, 1]).expect_err("too short")).contains("3 bytes"));
}
