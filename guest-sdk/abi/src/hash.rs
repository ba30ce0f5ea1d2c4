//! The ABI's fixed hash and the map from keys to key groups to tasks. Changing either is a new ABI version: state is
//! addressed by key group. It never depends on the platform's word size, byte order or a random seed.

use crate::graph::JobGraph;

/// The number of key groups of a job that does not set `max_parallelism`.
pub const KEY_GROUP_DEFAULT_MAX: u32 = 128;

const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
const MULTIPLIER: u64 = 0xD6E8_FEB8_6659_FD93;

/// Hashes the bytes of a key's encoding: eight little-endian bytes at a time, each word xored in, multiplied and folded,
/// the last word padded with zeros, the length mixed in at the end. 64-bit multiplications only: wider ones are slow in Wasm.
///
/// The bytes may arrive in any pieces: only their concatenation counts.
#[derive(Clone, Debug)]
pub struct KeyHasher {
    state: u64,
    word: u64,
    filled: u32,
    len: u64,
}

impl Default for KeyHasher {
    fn default() -> Self {
        Self {
            state: SEED,
            word: 0,
            filled: 0,
            len: 0,
        }
    }
}

impl KeyHasher {
    /// Adds one byte.
    #[inline]
    pub fn byte(&mut self, byte: u8) {
        self.word |= u64::from(byte) << (8 * self.filled);
        self.filled += 1;
        self.len += 1;
        if self.filled == 8 {
            self.state = fold(self.state, self.word);
            self.word = 0;
            self.filled = 0;
        }
    }

    /// Adds bytes.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.filled != 0 {
            let Some((first, tail)) = rest.split_first() else {
                return;
            };
            self.byte(*first);
            rest = tail;
        }
        while let Some((word, tail)) = rest.split_first_chunk::<8>() {
            self.state = fold(self.state, u64::from_le_bytes(*word));
            self.len += 8;
            rest = tail;
        }
        // Fewer than eight are left, and no word is begun: no need to ask after each whether it is full.
        for (place, byte) in (0u32..8).zip(rest) {
            self.word |= u64::from(*byte) << (8 * place);
        }
        self.filled = rest.len() as u32;
        self.len += rest.len() as u64;
    }

    /// The hash of everything added.
    #[inline]
    #[must_use]
    pub fn finish(&self) -> u64 {
        let mut hash = fold(self.state, self.word);
        hash = fold(hash, self.len);
        hash ^= hash >> 29;
        hash = hash.wrapping_mul(SEED);
        hash ^ hash >> 32
    }
}

#[inline]
fn fold(state: u64, word: u64) -> u64 {
    let mixed = (state ^ word).wrapping_mul(MULTIPLIER);
    mixed ^ mixed >> 32
}

/// The hash of one byte string.
#[inline]
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = KeyHasher::default();
    hasher.bytes(bytes);
    hasher.finish()
}

/// The key group of a key's hash, in `0..max_parallelism`.
#[inline]
#[must_use]
pub fn key_group(hash: u64, max_parallelism: u32) -> u32 {
    // The high half scaled: a multiplication where a remainder would divide.
    (((hash >> 32) * u64::from(max_parallelism)) >> 32) as u32
}

/// The subtask that owns a key group, as Flink maps them: `group * parallelism / max_parallelism`.
#[inline]
#[must_use]
pub fn task_of_key_group(group: u32, parallelism: u32, max_parallelism: u32) -> u32 {
    (u64::from(group) * u64::from(parallelism) / u64::from(max_parallelism)) as u32
}

/// The hash that ties an instance to the graph that was stored at submission: of the graph's postcard encoding.
///
/// # Panics
/// Never: a graph always encodes.
#[must_use]
pub fn graph_hash(graph: &JobGraph) -> u64 {
    hash_bytes(&postcard::to_allocvec(graph).expect("a graph always encodes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn the_hash_is_fixed_and_independent_of_the_pieces() {
        let bytes: Vec<u8> = (0..=200).collect();
        let whole = hash_bytes(&bytes);
        for cut in 0..bytes.len() {
            let mut hasher = KeyHasher::default();
            hasher.bytes(&bytes[..cut]);
            hasher.bytes(&bytes[cut..]);
            assert_eq!(hasher.finish(), whole);
        }
        assert_ne!(hash_bytes(b"a"), hash_bytes(b"a\0"), "the length counts");
    }

    #[test]
    fn key_groups_cover_every_task_evenly() {
        let mut counts = [0u32; 3];
        for n in 0u64..30_000 {
            let group = key_group(hash_bytes(&n.to_le_bytes()), KEY_GROUP_DEFAULT_MAX);
            counts[task_of_key_group(group, 3, KEY_GROUP_DEFAULT_MAX) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (9_000..11_000).contains(count)),
            "{counts:?}"
        );
    }
}
