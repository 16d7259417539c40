//! The bytes of a cache entry on disk.
//!
//! ```text
//!  0  magic, 8 bytes
//!  8  format version, u32 little-endian
//! 12  key, 32 bytes
//! 44  BLAKE3 of the rest, keyed with the key, 32 bytes
//! 76  length of the description, u32 little-endian
//! 80  description: kind and metadata, postcard; then the code
//! ```

use super::{Artifact, ArtifactKind, Key};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MAGIC: [u8; 8] = *b"zellige\x1a";
/// Rises with every change of the layout above or of [`ArtifactKind`].
const VERSION: u32 = 1;
const CHECKED: usize = 76;
const BODY: usize = 80;

/// Why a file is not a usable entry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EntryError {
    #[error("not a cache entry")]
    Foreign,
    #[error("cut short")]
    Truncated,
    #[error("format version {0}, this build uses {current}", current = VERSION)]
    Version(u32),
    #[error("belongs to another key")]
    WrongKey,
    #[error("checksum mismatch")]
    Checksum,
    #[error("description unreadable")]
    Description,
}

#[derive(Serialize, Deserialize)]
struct Description {
    kind: ArtifactKind,
    metadata: BTreeMap<String, String>,
}

/// The bytes to store for `artifact` under `key`. `None` if the description does not fit its length field.
pub(super) fn encode(key: &Key, artifact: &Artifact) -> Option<Vec<u8>> {
    let description = Description { kind: artifact.kind, metadata: artifact.metadata.clone() };
    let description = postcard::to_stdvec(&description).ok()?;
    let mut bytes = Vec::with_capacity(BODY + description.len() + artifact.code.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(&[0; 32]);
    bytes.extend_from_slice(&u32::try_from(description.len()).ok()?.to_le_bytes());
    bytes.extend_from_slice(&description);
    bytes.extend_from_slice(&artifact.code);
    let checksum = blake3::keyed_hash(key.as_bytes(), &bytes[CHECKED..]);
    bytes[44..CHECKED].copy_from_slice(checksum.as_bytes());
    Some(bytes)
}

/// The artifact stored under `key`, if `bytes` are such an entry, complete and unaltered.
pub(super) fn decode(key: &Key, bytes: &[u8]) -> Result<Artifact, EntryError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(if MAGIC.starts_with(bytes) { EntryError::Truncated } else { EntryError::Foreign });
    }
    let field = |range: std::ops::Range<usize>| bytes.get(range).ok_or(EntryError::Truncated);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &b| (word << 8) | u32::from(b));
    let version = word(field(8..12)?);
    if version != VERSION {
        return Err(EntryError::Version(version));
    }
    if field(12..44)? != key.as_bytes() {
        return Err(EntryError::WrongKey);
    }
    let checksum: [u8; 32] = field(44..CHECKED)?.try_into().map_err(|_| EntryError::Truncated)?;
    // Compared as hashes, not slices.
    if blake3::keyed_hash(key.as_bytes(), &bytes[CHECKED..]) != blake3::Hash::from_bytes(checksum) {
        return Err(EntryError::Checksum);
    }
    let description_len = word(field(CHECKED..BODY)?) as usize;
    let (description, code) = bytes[BODY..].split_at_checked(description_len).ok_or(EntryError::Truncated)?;
    let Description { kind, metadata } = postcard::from_bytes(description).map_err(|_| EntryError::Description)?;
    Ok(Artifact { kind, code: code.to_vec(), metadata })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (Key, Artifact) {
        let metadata = [("registers".to_owned(), "168".to_owned()), ("kernel".to_owned(), "gemm".to_owned())];
        let code = (0..=255).collect();
        (Key::new("ir", "sm_90a", ""), Artifact { kind: ArtifactKind::Ptx, code, metadata: metadata.into() })
    }

    #[test]
    fn round_trip() {
        let (key, artifact) = sample();
        let bytes = encode(&key, &artifact).expect("a small description");
        assert_eq!(decode(&key, &bytes), Ok(artifact));
        assert_eq!(decode(&Key::new("other", "sm_90a", ""), &bytes), Err(EntryError::WrongKey));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let (key, artifact) = sample();
        let bytes = encode(&key, &artifact).expect("a small description");
        for len in 0..bytes.len() {
            let error = decode(&key, &bytes[..len]).expect_err("a truncated entry");
            assert!(matches!(error, EntryError::Truncated | EntryError::Checksum), "{len}: {error}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(decode(&key, &longer), Err(EntryError::Checksum));
    }

    #[test]
    fn every_single_bit_counts() {
        let (key, artifact) = sample();
        let bytes = encode(&key, &artifact).expect("a small description");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&key, &damaged).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused(mut bytes: Vec<u8>, keep in 0usize..80) {
            let (key, artifact) = sample();
            let good = encode(&key, &artifact).expect("a small description");
            let keep = keep.min(bytes.len());
            bytes[..keep].copy_from_slice(&good[..keep]);
            prop_assert!(decode(&key, &bytes).is_err());
        }
    }
}
