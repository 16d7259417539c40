//! Hash tables of the compiler: keyed by ids and small ops, looked up several times for each op of a kernel.
//!
//! The standard library's hash resists chosen keys, which nobody chooses here, and costs a quarter of a compilation. This one
//! multiplies and rotates, as the hash of Firefox and rustc does ("FxHash"). Nothing may depend on the order of a table.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map with the quick hash; `FastMap::default()` is empty.
pub type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// A set with the quick hash; `FastSet::default()` is empty.
pub type FastSet<K> = HashSet<K, BuildHasherDefault<FastHasher>>;

/// Odd, with bits all over: the fractional part of the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes in one word after the other.
#[derive(Clone, Copy, Default, Debug)]
pub struct FastHasher(u64);

impl FastHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        // A product's high bits depend on all bits below; tables look at the low ones, too.
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, x: u8) {
        self.add(x.into());
    }

    fn write_u16(&mut self, x: u16) {
        self.add(x.into());
    }

    fn write_u32(&mut self, x: u32) {
        self.add(x.into());
    }

    fn write_u64(&mut self, x: u64) {
        self.add(x);
    }

    fn write_usize(&mut self, x: usize) {
        self.add(x as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasher, Hash};

    fn hash(x: impl Hash) -> u64 {
        BuildHasherDefault::<FastHasher>::default().hash_one(x)
    }

    #[test]
    fn neighbours_fall_apart() {
        let low: FastSet<u64> = (0..1024u32).map(|x| hash((x, 7u32)) % 1024).collect();
        let high: FastSet<u64> = (0..1024u32).map(|x| hash((7u8, x)) >> 57).collect();
        assert!(low.len() > 512, "{} of 1024 buckets", low.len());
        assert_eq!(high.len(), 128);
        assert_ne!(hash("ab"), hash("ba"));
        assert_ne!(hash([0u8; 3]), hash([0u8; 4]));
    }
}
