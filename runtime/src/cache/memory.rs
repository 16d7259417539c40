//! Compiled kernels of this process.

use super::{Artifact, CacheWarning, KernelStore, Key};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A store that lasts as long as the process. Unbounded: a process compiles a bounded number of kernels, of some tens of
/// kilobytes each.
#[derive(Debug, Default)]
pub struct MemoryStore {
    artifacts: Mutex<HashMap<Key, Arc<Artifact>>>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of kernels kept.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Artifact>>> {
        // Every operation on the map is a single call: a panic elsewhere cannot leave it half done.
        self.artifacts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KernelStore for MemoryStore {
    fn get(&self, key: &Key) -> Option<Arc<Artifact>> {
        self.lock().get(key).cloned()
    }

    fn put(&self, key: &Key, artifact: &Arc<Artifact>) -> Result<(), CacheWarning> {
        self.lock().insert(*key, Arc::clone(artifact));
        Ok(())
    }
}
