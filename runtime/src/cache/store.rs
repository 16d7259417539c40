//! The interface of a store, and two stores as one.

use super::{Artifact, EntryError, Key};
use std::path::PathBuf;
use std::sync::Arc;

/// Why something was not kept, or a cache directory is not used. Kernels run all the same, so this is for the user to
/// see, not for a caller to handle.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheWarning {
    #[error("kernel cache {}: {cause}; compiled kernels are kept in memory only", path.display())]
    Unwritable { path: PathBuf, cause: String },
    #[error("kernel cache {}: other users may write to it, so its code is not trusted; fix with `chmod o-w`", path.display())]
    Exposed { path: PathBuf },
    #[error("kernel cache: a compiled kernel of {bytes} bytes exceeds the cache's limit of {limit} and is not kept")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("kernel cache {}: {error}; the kernel is compiled anew", path.display())]
    Damaged { path: PathBuf, error: EntryError },
    #[error("kernel cache: no home directory; set ZELLIGE_CACHE_DIR to keep compiled kernels between runs")]
    NoDirectory,
}

/// Something that keeps compiled kernels. All methods may be called from any number of threads.
pub trait KernelStore: Send + Sync {
    /// The artifact kept under `key`, unaltered. Anything wrong with it counts as absent.
    fn get(&self, key: &Key) -> Option<Arc<Artifact>>;

    /// What is wrong with that which is kept under `key`, if something is there and cannot be served.
    fn flaw(&self, _key: &Key) -> Option<CacheWarning> {
        None
    }

    /// Keeps `artifact` under `key`, in place of whatever is there. What is kept may be dropped at any time later.
    fn put(&self, key: &Key, artifact: &Arc<Artifact>) -> Result<(), CacheWarning>;
}

/// A fast store in front of a lasting one.
#[derive(Debug)]
pub struct Layered<F, B> {
    front: F,
    back: B,
}

impl<F: KernelStore, B: KernelStore> Layered<F, B> {
    pub fn new(front: F, back: B) -> Self {
        Layered { front, back }
    }
}

impl<F: KernelStore, B: KernelStore> KernelStore for Layered<F, B> {
    /// What only the back store has is copied to the front.
    fn get(&self, key: &Key) -> Option<Arc<Artifact>> {
        if let Some(artifact) = self.front.get(key) {
            return Some(artifact);
        }
        let artifact = self.back.get(key)?;
        // The artifact is at hand and lasts in the back: nobody needs to hear that the front cannot take it.
        let _ = self.front.put(key, &artifact);
        Some(artifact)
    }

    fn flaw(&self, key: &Key) -> Option<CacheWarning> {
        self.front.flaw(key).or_else(|| self.back.flaw(key))
    }

    /// Both stores are tried, whatever becomes of the other.
    fn put(&self, key: &Key, artifact: &Arc<Artifact>) -> Result<(), CacheWarning> {
        let front = self.front.put(key, artifact);
        self.back.put(key, artifact).and(front)
    }
}
