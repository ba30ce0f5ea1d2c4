//! Keyed state: a map from key to state whose hasher is fixed, so that the same records in the same order give
//! the same memory. Bounded by serde, because portable state will be written per key group through this type.
//! It never expires a key by itself.

use core::hash::{BuildHasher, Hash, Hasher};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::hash_map::IntoIter;
use std::collections::{BTreeMap, HashMap};

/// What can be a key: compared, hashed for the map, and encoded for its key group.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a key",
    note = "a key needs `Hash`, `Eq`, `Clone`, `serde::Serialize` and `serde::Deserialize`, and must own its data"
)]
pub trait Key: Hash + Eq + Clone + Serialize + DeserializeOwned + 'static {}

impl<K: Hash + Eq + Clone + Serialize + DeserializeOwned + 'static> Key for K {}

/// What can be kept per key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be kept as state",
    note = "state kept per key needs `serde::Serialize` and `serde::Deserialize`, and must own its data"
)]
pub trait State: Serialize + DeserializeOwned + 'static {}

impl<S: Serialize + DeserializeOwned + 'static> State for S {}

/// The state of each key of one operator.
#[derive(Debug)]
pub struct KeyedState<K, S> {
    entries: HashMap<K, S, FixedHasher>,
}

impl<K: Key, S: State> Default for KeyedState<K, S> {
    fn default() -> Self {
        Self {
            entries: HashMap::default(),
        }
    }
}

impl<K: Key, S: State> KeyedState<K, S> {
    /// The state of a key, made by `create` when there is none. The key is cloned only then.
    #[inline]
    pub fn get_or_create(&mut self, key: &K, create: impl FnOnce() -> S) -> &mut S {
        // A key without drop glue owns no memory, and copying it is cheaper than a second look-up.
        if !core::mem::needs_drop::<K>() {
            return self.entries.entry(key.clone()).or_insert_with(create);
        }
        if !self.entries.contains_key(key) {
            self.entries.insert(key.clone(), create());
        }
        self.entries.get_mut(key).expect("just inserted")
    }

    /// The state of a key, if it has any.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut S> {
        self.entries.get_mut(key)
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: &K) -> Option<S> {
        self.entries.remove(key)
    }

    /// How many keys have state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key has state.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes everything out, as an iterator that may be kept between calls.
    pub(crate) fn drain(&mut self) -> IntoIter<K, S> {
        core::mem::take(&mut self.entries).into_iter()
    }
}

/// Processing-time timers, at most one for each key.
#[derive(Debug)]
pub(crate) struct KeyTimers<K> {
    by_key: HashMap<K, (u64, u64), FixedHasher>,
    // The second number only tells equal times apart, in the order in which they were set.
    queue: BTreeMap<(u64, u64), K>,
    set: u64,
}

impl<K: Key> Default for KeyTimers<K> {
    fn default() -> Self {
        Self {
            by_key: HashMap::default(),
            queue: BTreeMap::new(),
            set: 0,
        }
    }
}

impl<K: Key> KeyTimers<K> {
    /// Sets the key's timer, instead of an earlier one.
    pub(crate) fn set(&mut self, key: &K, at_ms: u64) {
        self.set += 1;
        let place = (at_ms, self.set);
        if let Some(earlier) = self.by_key.insert(key.clone(), place) {
            self.queue.remove(&earlier);
        }
        self.queue.insert(place, key.clone());
    }

    /// Forgets the key's timer.
    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(place) = self.by_key.remove(key) {
            self.queue.remove(&place);
        }
    }

    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    /// Takes out the key whose timer came first, if it is due.
    pub(crate) fn pop_due(&mut self, now_ms: u64) -> Option<K> {
        let entry = self.queue.first_entry()?;
        if entry.key().0 > now_ms {
            return None;
        }
        let key = entry.remove();
        self.by_key.remove(&key);
        Some(key)
    }
}

/// A fast hasher without a seed: words xored in, multiplied and folded, as the ABI's key hash does.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedHasher;

impl BuildHasher for FixedHasher {
    type Hasher = WordHasher;

    #[inline]
    fn build_hasher(&self) -> WordHasher {
        WordHasher {
            state: 0x9E37_79B9_7F4A_7C15,
        }
    }
}

/// The running state of a [`FixedHasher`].
#[derive(Clone, Copy, Debug)]
pub struct WordHasher {
    state: u64,
}

impl WordHasher {
    #[inline]
    fn word(&mut self, word: u64) {
        let mixed = (self.state ^ word).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        self.state = mixed ^ mixed >> 32;
    }
}

impl Hasher for WordHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((word, tail)) = rest.split_first_chunk::<8>() {
            self.word(u64::from_le_bytes(*word));
            rest = tail;
        }
        if !rest.is_empty() {
            let last = rest
                .iter()
                .rev()
                .fold(0u64, |word, byte| word << 8 | u64::from(*byte));
            // The length tells a short tail from one padded with zeros.
            self.word(last ^ (rest.len() as u64) << 56);
        }
    }

    #[inline]
    fn write_u8(&mut self, n: u8) {
        self.word(u64::from(n));
    }

    #[inline]
    fn write_u16(&mut self, n: u16) {
        self.word(u64::from(n));
    }

    #[inline]
    fn write_u32(&mut self, n: u32) {
        self.word(u64::from(n));
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.word(n);
    }

    #[inline]
    fn write_usize(&mut self, n: usize) {
        self.word(n as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        // The map takes its tag from the top bits and its place from the bottom ones: mix both ways once more.
        self.state.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.state >> 29
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_made_once_for_each_key() {
        let mut counts = KeyedState::<String, u64>::default();
        for word in ["to", "be", "or", "not", "to", "be"] {
            *counts.get_or_create(&word.to_owned(), || 0) += 1;
        }
        let mut all: Vec<_> = counts.drain().collect();
        all.sort();
        let expected =
            [("be", 2), ("not", 1), ("or", 1), ("to", 2)].map(|(word, n)| (word.to_owned(), n));
        assert_eq!(all, expected);
        assert!(counts.is_empty());
    }

    #[test]
    fn a_later_timer_replaces_an_earlier_one_of_the_same_key() {
        let mut timers = KeyTimers::<u32>::default();
        timers.set(&1, 100);
        timers.set(&2, 50);
        timers.set(&1, 70);
        assert_eq!(timers.next_deadline_ms(), Some(50));
        assert_eq!(timers.pop_due(49), None);
        assert_eq!(
            (
                timers.pop_due(100),
                timers.pop_due(100),
                timers.pop_due(100)
            ),
            (Some(2), Some(1), None)
        );
    }

    #[test]
    fn hashes_of_consecutive_numbers_spread_over_top_and_bottom_bits() {
        let mut top = std::collections::BTreeSet::new();
        let mut bottom = std::collections::BTreeSet::new();
        for n in 0u64..1024 {
            let hash = FixedHasher.hash_one(n);
            top.insert(hash >> 57);
            bottom.insert(hash & 1023);
        }
        assert!(
            top.len() == 128 && bottom.len() > 550,
            "{} {}",
            top.len(),
            bottom.len()
        );
    }
}
