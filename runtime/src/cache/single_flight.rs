//! Getting a kernel: from a store, or from the compiler once for all who ask.

use super::{Artifact, CacheWarning, DiskStore, KernelStore, Key, Layered, MemoryStore, default_dir};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Where an artifact came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The store had it, or another thread's compilation that this one waited for.
    Store,
    /// Compiled by this call.
    Compiled,
}

/// The result of [`KernelCache::get_or_compile`].
#[derive(Clone, Debug)]
pub struct Fetched {
    pub artifact: Arc<Artifact>,
    pub source: Source,
    /// Set if what was kept could not be used, or what was freshly compiled could not be kept everywhere.
    pub warning: Option<CacheWarning>,
}

/// The cache of compiled kernels, to be shared by all threads.
pub struct KernelCache {
    store: Box<dyn KernelStore>,
    /// A lock for every key that is being looked for.
    flights: Mutex<HashMap<Key, Arc<Mutex<()>>>>,
}

impl fmt::Debug for KernelCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelCache").finish_non_exhaustive()
    }
}

impl KernelCache {
    pub fn new(store: impl KernelStore + 'static) -> KernelCache {
        KernelCache { store: Box::new(store), flights: Mutex::default() }
    }

    /// Memory in front of the default directory ([`default_dir`]); memory alone, and the reason, if that is unusable.
    pub fn open_default() -> (KernelCache, Option<CacheWarning>) {
        match default_dir().ok_or(CacheWarning::NoDirectory).and_then(DiskStore::open) {
            Ok(disk) => (KernelCache::new(Layered::new(MemoryStore::new(), disk)), None),
            Err(warning) => (KernelCache::new(MemoryStore::new()), Some(warning)),
        }
    }

    /// The artifact kept under `key`.
    pub fn get(&self, key: &Key) -> Option<Arc<Artifact>> {
        self.store.get(key)
    }

    /// The artifact kept under `key`; failing that, the one that `compile` makes, which is then kept.
    ///
    /// While one thread compiles, others that ask for the same key wait for it. Should it fail or panic, each of them
    /// tries for itself and gets its own error. `compile` must not ask this cache for the same key.
    pub fn get_or_compile<E>(&self, key: Key, compile: impl FnOnce() -> Result<Artifact, E>) -> Result<Fetched, E> {
        let ticket = Ticket::new(self, key);
        // Poisoned by a panic of another's `compile`: the lock guards no data, so go ahead.
        let _turn = ticket.flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(artifact) = self.store.get(&key) {
            return Ok(Fetched { artifact, source: Source::Store, warning: None });
        }
        let flaw = self.store.flaw(&key);
        let artifact = Arc::new(compile()?);
        let warning = self.store.put(&key, &artifact).err().or(flaw);
        Ok(Fetched { artifact, source: Source::Compiled, warning })
    }
}

/// A thread's interest in a key. The last one to go takes the key's lock with it.
struct Ticket<'a> {
    cache: &'a KernelCache,
    key: Key,
    flight: Arc<Mutex<()>>,
}

impl<'a> Ticket<'a> {
    fn new(cache: &'a KernelCache, key: Key) -> Self {
        let mut flights = cache.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let flight = Arc::clone(flights.entry(key).or_default());
        Ticket { cache, key, flight }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut flights = self.cache.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // Tickets come and go under the lock of the map only, so the count is exact.
        drop(std::mem::take(&mut self.flight));
        if flights.get(&self.key).is_some_and(|flight| Arc::strong_count(flight) == 1) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::ArtifactKind;
    use std::collections::BTreeMap;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const THREADS: usize = 16;

    fn artifact(code: &[u8]) -> Artifact {
        Artifact { kind: ArtifactKind::Ptx, code: code.to_vec(), metadata: BTreeMap::new() }
    }

    fn key(i: usize) -> Key {
        Key::new(&format!("kernel {i}"), "test", "")
    }

    /// Runs `f` on many threads at once.
    fn race<T: Send>(f: impl Fn(usize) -> T + Sync) -> Vec<std::thread::Result<T>> {
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|i| {
                    let (f, barrier) = (&f, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        f(i)
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join()).collect()
        })
    }

    #[test]
    fn each_key_is_compiled_once() {
        let cache = KernelCache::new(MemoryStore::new());
        let compilations: [AtomicUsize; 4] = Default::default();
        let results = race(|i| {
            let k = i % 4;
            cache.get_or_compile(key(k), || -> Result<Artifact, String> {
                compilations[k].fetch_add(1, Ordering::SeqCst);
                // Long enough for the others to arrive.
                std::thread::sleep(std::time::Duration::from_millis(20));
                Ok(artifact(&[k as u8]))
            })
        });
        let mut compiled = 0;
        for (i, result) in results.into_iter().enumerate() {
            let fetched = result.expect("no panic").expect("no error");
            assert_eq!(fetched.artifact.code, [(i % 4) as u8]);
            compiled += usize::from(fetched.source == Source::Compiled);
        }
        assert_eq!(compiled, 4);
        assert!(compilations.iter().all(|c| c.load(Ordering::SeqCst) == 1));
        assert!(cache.flights.lock().expect("not poisoned").is_empty());
    }

    #[test]
    fn a_failure_is_each_callers_own_and_the_next_success_is_shared() {
        let cache = KernelCache::new(MemoryStore::new());
        let attempts = AtomicUsize::new(0);
        let results = race(|_| {
            cache.get_or_compile(key(0), || match attempts.fetch_add(1, Ordering::SeqCst) {
                n @ 0..3 => Err(format!("attempt {n}")),
                _ => Ok(artifact(b"x")),
            })
        });
        let failed = results.iter().filter(|r| matches!(r, Ok(Err(_)))).count();
        assert_eq!((failed, attempts.load(Ordering::SeqCst)), (3, 4));
        assert!(cache.flights.lock().expect("not poisoned").is_empty());
    }

    #[test]
    fn a_panic_does_not_block_the_others() {
        let cache = KernelCache::new(MemoryStore::new());
        let attempts = AtomicUsize::new(0);
        let results = race(|_| {
            cache.get_or_compile(key(0), || -> Result<Artifact, String> {
                assert!(attempts.fetch_add(1, Ordering::SeqCst) > 0, "the first compilation panics");
                Ok(artifact(b"x"))
            })
        });
        assert_eq!(results.iter().filter(|r| r.is_err()).count(), 1);
        assert_eq!(attempts.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_damaged_entry_is_a_warning_and_is_replaced() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("c");
        let open = || DiskStore::open(&path).map(|disk| KernelCache::new(Layered::new(MemoryStore::new(), disk)));
        let compile = || -> Result<Artifact, String> { Ok(artifact(b"x")) };
        assert_eq!(open()?.get_or_compile(key(0), compile)?.warning, None);
        let file = std::fs::read_dir(&path)?.next().ok_or("an entry")??.path();
        let mut bytes = std::fs::read(&file)?;
        *bytes.last_mut().ok_or("bytes")? ^= 1;
        std::fs::write(&file, bytes)?;
        let fetched = open()?.get_or_compile(key(0), compile)?;
        assert_eq!((fetched.source, &fetched.artifact.code[..]), (Source::Compiled, &b"x"[..]));
        let warning = fetched.warning.ok_or("a warning")?.to_string();
        assert!(warning.ends_with("checksum mismatch; the kernel is compiled anew"), "{warning}");
        let fetched = open()?.get_or_compile(key(0), compile)?;
        assert_eq!((fetched.source, fetched.warning), (Source::Store, None));
        Ok(())
    }

    #[test]
    fn layers_fill_each_other_and_degrade_to_memory() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("c");
        let open = || DiskStore::open(&path).map(|disk| KernelCache::new(Layered::new(MemoryStore::new(), disk)));
        let compile = || -> Result<Artifact, String> { Ok(artifact(b"x")) };
        assert_eq!(open()?.get_or_compile(key(0), compile)?.source, Source::Compiled);
        let cache = open()?;
        assert_eq!(cache.get_or_compile(key(0), compile)?.source, Source::Store);
        // From here on the directory is a file: what memory has stays, what is new is kept there, with a warning.
        std::fs::remove_dir_all(&path)?;
        std::fs::write(&path, "")?;
        assert_eq!(cache.get_or_compile(key(0), compile)?.source, Source::Store);
        let fresh = cache.get_or_compile(key(1), compile)?;
        assert_eq!(fresh.source, Source::Compiled);
        assert!(matches!(fresh.warning, Some(CacheWarning::Unwritable { .. })));
        assert_eq!(cache.get_or_compile(key(1), compile)?.source, Source::Store);
        Ok(())
    }
}
