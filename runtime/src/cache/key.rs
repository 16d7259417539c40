//! What identifies a compiled kernel.

use std::fmt;

/// Version of this build of the compiler: the package's version and a hash of its sources.
pub const COMPILER_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("ZELLIGE_SOURCE_HASH"));

/// Hash (BLAKE3, 256 bits) of everything that decides a kernel's code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a kernel compiled by this build.
    ///
    /// `ir` is the canonical text after specialisation (it holds dtypes, static dims and config), `target` the machine
    /// (`sm_90a`, a CPU's features), `options` whatever else changes the code.
    pub fn new(ir: &str, target: &str, options: &str) -> Key {
        Key::with_version(ir, target, options, COMPILER_VERSION)
    }

    /// [`Key::new`] for an explicit compiler version.
    pub fn with_version(ir: &str, target: &str, options: &str, compiler: &str) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key("zellige kernel cache key, version 1");
        for part in [ir, target, options, compiler] {
            // The lengths keep ("ab", "c") and ("a", "bc") apart.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Key(*hasher.finalize().as_bytes())
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key spelled by 64 hexadecimal digits, as [`fmt::Display`] writes it.
    pub fn from_hex(text: &str) -> Option<Key> {
        let canonical = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let hash = blake3::Hash::from_hex(text).ok()?;
        canonical.then_some(Key(*hash.as_bytes()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_parts_do_not_run_together() {
        let base = Key::with_version("ab", "c", "d", "e");
        for other in [
            Key::with_version("a", "bc", "d", "e"),
            Key::with_version("ab", "cd", "", "e"),
            Key::with_version("ab", "c", "de", ""),
            Key::with_version("ab", "c", "d", "f"),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(base, Key::with_version("ab", "c", "d", "e"));
        assert_eq!(Key::new("a", "b", "c"), Key::with_version("a", "b", "c", COMPILER_VERSION));
    }

    #[test]
    fn hex_round_trips() {
        let key = Key::new("ir", "target", "");
        let text = key.to_string();
        assert_eq!(Key::from_hex(&text), Some(key));
        assert_eq!(Key::from_hex(&text.to_uppercase()), None);
        assert_eq!(Key::from_hex(&text[1..]), None);
        assert_eq!(Key::from_hex(""), None);
    }
}
