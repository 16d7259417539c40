//! Compiled kernels in a directory, one file each, shared by any number of processes.
//!
//! Files appear complete (temporary name, fsync, rename) and are never changed, so readers need no lock; two processes
//! that store the same key write the same thing. A file that is not a valid entry for its name is as good as absent and
//! is replaced by the next store. The modification time is the time of last use; beyond the size limit the least recently
//! used entries go first.

use super::entry::{self, EntryError};
use super::{Artifact, ArtifactKind, CacheWarning, KernelStore, Key};
use crate::io::write_atomic;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Default limit of the directory's size, in bytes.
const DEFAULT_LIMIT: u64 = 1 << 30;
const EXTENSION: &str = "zkernel";
/// Temporary files older than this were left by a crash.
const STALE: Duration = Duration::from_secs(3600);

/// A store in a directory.
#[derive(Debug)]
pub struct DiskStore {
    dir: PathBuf,
    limit: u64,
}

/// An entry, as `cache ls` shows it.
#[derive(Clone, Debug)]
pub struct EntryInfo {
    pub key: Key,
    pub kind: ArtifactKind,
    /// Size of the file.
    pub bytes: u64,
    pub last_used: SystemTime,
    pub metadata: BTreeMap<String, String>,
}

/// A file in the place of an entry that is none.
#[derive(Clone, Debug)]
pub struct BadEntry {
    pub path: PathBuf,
    pub error: EntryError,
}

/// What a look at every entry found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Good entries, the most recently used first.
    pub entries: Vec<EntryInfo>,
    pub bad: Vec<BadEntry>,
}

/// What was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    pub files: u64,
    pub bytes: u64,
}

/// A file of the store's, before its content is looked at.
struct Found {
    path: PathBuf,
    key: Key,
    bytes: u64,
    last_used: SystemTime,
}

impl DiskStore {
    /// The store in `dir`, which is created if need be (for its owner only).
    ///
    /// A directory that cannot be written still serves what it holds. Fails if there is none and it cannot be created,
    /// or if any user may write to it.
    pub fn open(dir: impl Into<PathBuf>) -> Result<DiskStore, CacheWarning> {
        let dir = dir.into();
        create_private(&dir).map_err(|e| CacheWarning::Unwritable { path: dir.clone(), cause: e.to_string() })?;
        if writable_by_anyone(&dir) {
            return Err(CacheWarning::Exposed { path: dir });
        }
        Ok(DiskStore { dir, limit: DEFAULT_LIMIT })
    }

    /// The same store with another size limit, in bytes.
    pub fn with_limit(self, limit: u64) -> DiskStore {
        DiskStore { limit, ..self }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{key}.{EXTENSION}"))
    }

    /// The store's files. Other files in the directory are none of its business.
    fn files(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for file in fs::read_dir(&self.dir)? {
            let path = file?.path();
            let is_entry = path.extension().is_some_and(|e| e == EXTENSION);
            let Some(key) = path.file_stem().and_then(|s| s.to_str()).and_then(Key::from_hex) else { continue };
            // A file that another process has just evicted has no metadata any more.
            let (true, Ok(metadata)) = (is_entry, fs::metadata(&path)) else { continue };
            let last_used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Found { path, key, bytes: metadata.len(), last_used });
        }
        Ok(found)
    }

    /// Reads and checks every entry.
    pub fn verify(&self) -> io::Result<VerifyReport> {
        let mut report = VerifyReport::default();
        for Found { path, key, bytes, last_used } in self.files()? {
            let content = match fs::read(&path) {
                Ok(content) => content,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            match entry::decode(&key, &content) {
                Ok(Artifact { kind, metadata, .. }) => {
                    report.entries.push(EntryInfo { key, kind, bytes, last_used, metadata });
                }
                Err(error) => report.bad.push(BadEntry { path, error }),
            }
        }
        report.entries.sort_by(|a, b| b.last_used.cmp(&a.last_used).then(a.key.cmp(&b.key)));
        report.bad.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(report)
    }

    /// The good entries, the most recently used first.
    pub fn ls(&self) -> io::Result<Vec<EntryInfo>> {
        Ok(self.verify()?.entries)
    }

    /// Deletes every entry, good or bad.
    pub fn clear(&self) -> io::Result<Removed> {
        let mut removed = Removed::default();
        for file in self.files()? {
            remove(&file, &mut removed)?;
        }
        Ok(removed)
    }

    /// Deletes the least recently used entries until the rest fits the limit with a tenth to spare (so that not every
    /// store has to delete), and temporary files that a crash has left.
    fn evict(&self) -> io::Result<Removed> {
        let mut removed = Removed::default();
        let mut files = self.files()?;
        let mut total: u64 = files.iter().map(|f| f.bytes).sum();
        if total <= self.limit {
            return Ok(removed);
        }
        self.remove_stale_temporaries()?;
        files.sort_by(|a, b| a.last_used.cmp(&b.last_used).then(a.key.cmp(&b.key)));
        for file in files {
            if total <= self.limit - self.limit / 10 {
                break;
            }
            remove(&file, &mut removed)?;
            total -= file.bytes;
        }
        Ok(removed)
    }

    fn remove_stale_temporaries(&self) -> io::Result<()> {
        for file in fs::read_dir(&self.dir)? {
            let file = file?;
            let ours = file.file_name().to_str().is_some_and(|name| name.starts_with(".tmp-"));
            let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if ours && age.is_some_and(|age| age > STALE) {
                ignore_missing(fs::remove_file(file.path()))?;
            }
        }
        Ok(())
    }
}

impl KernelStore for DiskStore {
    fn get(&self, key: &Key) -> Option<Arc<Artifact>> {
        let path = self.path(key);
        let content = fs::read(&path).ok()?;
        let artifact = entry::decode(key, &content).ok()?;
        // Marks the use. Failure (a read-only directory) costs only the order of eviction.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(Arc::new(artifact))
    }

    fn flaw(&self, key: &Key) -> Option<CacheWarning> {
        let path = self.path(key);
        let content = fs::read(&path).ok()?;
        entry::decode(key, &content).err().map(|error| CacheWarning::Damaged { path, error })
    }

    fn put(&self, key: &Key, artifact: &Arc<Artifact>) -> Result<(), CacheWarning> {
        let too_large = |bytes| CacheWarning::TooLarge { bytes, limit: self.limit };
        let Some(bytes) = entry::encode(key, artifact) else { return Err(too_large(u64::from(u32::MAX))) };
        let size = bytes.len() as u64;
        if size > self.limit {
            return Err(too_large(size));
        }
        let unwritable = |e: io::Error| CacheWarning::Unwritable { path: self.dir.clone(), cause: e.to_string() };
        // The directory may have been deleted since it was opened, to clear the cache.
        create_private(&self.dir).map_err(unwritable)?;
        write_atomic(&self.path(key), |w| w.write_all(&bytes)).map_err(unwritable)?;
        self.evict().map_err(unwritable)?;
        Ok(())
    }
}

fn remove(file: &Found, removed: &mut Removed) -> io::Result<()> {
    ignore_missing(fs::remove_file(&file.path))?;
    removed.files += 1;
    removed.bytes += file.bytes;
    Ok(())
}

/// Another process may have deleted the file first.
fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Creates the directory for its owner alone, and its parents, if it does not exist.
fn create_private(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

#[cfg(unix)]
fn writable_by_anyone(dir: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o002 != 0)
}

/// Elsewhere a user's cache directory is private by default, and modes do not exist.
#[cfg(not(unix))]
fn writable_by_anyone(_: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    fn artifact(code: &[u8]) -> Arc<Artifact> {
        let metadata = [("kernel".to_owned(), "test".to_owned())].into();
        Arc::new(Artifact { kind: ArtifactKind::CpuObject, code: code.to_vec(), metadata })
    }

    fn key(i: usize) -> Key {
        Key::new(&format!("kernel {i}"), "test", "")
    }

    /// Pretends that the entry was last used `seconds` ago.
    fn age(store: &DiskStore, key: &Key, seconds: u64) -> io::Result<()> {
        let file = File::options().write(true).open(store.path(key))?;
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_put_is_got_by_any_process() -> TestResult {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("a/b");
        let store = DiskStore::open(&path)?;
        assert!(store.get(&key(1)).is_none());
        store.put(&key(1), &artifact(b"code"))?;
        let other = DiskStore::open(&path)?;
        assert_eq!(other.get(&key(1)), Some(artifact(b"code")));
        assert!(other.get(&key(2)).is_none());
        let entries = other.ls()?;
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].key, entries[0].kind), (key(1), ArtifactKind::CpuObject));
        assert_eq!(entries[0].metadata["kernel"], "test");
        Ok(())
    }

    #[test]
    fn damaged_entries_are_absent_reported_and_replaced() -> TestResult {
        let dir = tempfile::tempdir()?;
        let store = DiskStore::open(dir.path().join("c"))?;
        store.put(&key(1), &artifact(b"good"))?;
        let good = fs::read(store.path(&key(1)))?;
        // Torn, foreign, empty, altered, and another key's entry under this name.
        let mut altered = good.clone();
        *altered.last_mut().ok_or("an entry has bytes")? ^= 1;
        for (bad, error) in [
            (good[..good.len() - 1].to_vec(), EntryError::Checksum),
            (b"\x7fELF, perhaps".to_vec(), EntryError::Foreign),
            (Vec::new(), EntryError::Truncated),
            (altered, EntryError::Checksum),
            (entry::encode(&key(2), &artifact(b"other")).ok_or("encodes")?, EntryError::WrongKey),
        ] {
            fs::write(store.path(&key(1)), bad)?;
            assert!(store.get(&key(1)).is_none());
            let report = store.verify()?;
            assert_eq!((report.entries.len(), report.bad.len()), (0, 1));
            assert_eq!(report.bad[0].error, error);
            store.put(&key(1), &artifact(b"good"))?;
            assert_eq!(store.get(&key(1)), Some(artifact(b"good")));
            assert!(store.verify()?.bad.is_empty());
        }
        Ok(())
    }

    #[test]
    fn the_least_recently_used_go_first() -> TestResult {
        let dir = tempfile::tempdir()?;
        let size = entry::encode(&key(0), &artifact(&[0; 1000])).ok_or("encodes")?.len() as u64;
        let store = DiskStore::open(dir.path().join("c"))?.with_limit(5 * size);
        for i in 0..5 {
            store.put(&key(i), &artifact(&[0; 1000]))?;
            age(&store, &key(i), 100 - i as u64)?;
        }
        // Using the oldest makes it the youngest.
        assert!(store.get(&key(0)).is_some());
        store.put(&key(5), &artifact(&[0; 1000]))?;
        // Six do not fit; room is made down to nine tenths, which is four.
        let kept: Vec<bool> = (0..6).map(|i| store.get(&key(i)).is_some()).collect();
        assert_eq!(kept, [true, false, false, true, true, true]);
        assert_eq!(
            store.with_limit(10).put(&key(6), &artifact(b"x")).map_err(|e| e.to_string().contains("limit of 10")),
            Err(true)
        );
        Ok(())
    }

    #[test]
    fn only_own_files_are_touched() -> TestResult {
        let dir = tempfile::tempdir()?;
        let store = DiskStore::open(dir.path().join("c"))?.with_limit(300);
        let precious = ["notes.txt", "short.zkernel", ".tmp-new"].map(|name| store.dir().join(name));
        for path in &precious {
            fs::write(path, [0; 1000])?;
        }
        let stale = store.dir().join(".tmp-old");
        File::create(&stale)?.set_modified(SystemTime::now() - 2 * STALE)?;
        for i in 0..4 {
            store.put(&key(i), &artifact(&[0; 100]))?;
        }
        assert!(!stale.exists());
        let removed = store.clear()?;
        assert!(removed.files >= 1 && removed.bytes > 0);
        assert!(store.ls()?.is_empty());
        assert!(precious.iter().all(|path| path.exists()));
        Ok(())
    }

    #[test]
    fn an_unusable_directory_is_a_warning() -> TestResult {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        fs::write(&file, "")?;
        let opened = DiskStore::open(file.join("c"));
        assert!(matches!(opened, Err(CacheWarning::Unwritable { .. })));
        // A directory that turns into something else after opening.
        let store = DiskStore::open(dir.path().join("c"))?;
        fs::remove_dir(store.dir())?;
        fs::write(store.dir(), "")?;
        assert!(matches!(store.put(&key(1), &artifact(b"x")), Err(CacheWarning::Unwritable { .. })));
        assert!(store.get(&key(1)).is_none());
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn permissions_of_the_directory() -> TestResult {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("c");
        let store = DiskStore::open(&path)?;
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o700);
        store.put(&key(1), &artifact(b"x"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555))?;
        assert_eq!(DiskStore::open(&path)?.get(&key(1)), Some(artifact(b"x")));
        // The superuser may write anywhere; everybody else gets a warning.
        let superuser = fs::write(path.join("probe"), "").is_ok();
        assert_eq!(store.put(&key(2), &artifact(b"y")).is_ok(), superuser);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        assert_eq!(DiskStore::open(&path).err(), Some(CacheWarning::Exposed { path: path.clone() }));
        Ok(())
    }

    #[test]
    fn many_writers_and_readers_of_one_directory() -> TestResult {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("c");
        // Room for about half of the keys, so that eviction is busy too.
        let code = |i: usize| vec![i as u8; 2000 + i];
        let hits = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|worker| {
                    let (path, hits) = (&path, &hits);
                    scope.spawn(move || -> Result<(), CacheWarning> {
                        let store = DiskStore::open(path)?.with_limit(20_000);
                        for round in 0..60 {
                            let i = (round * 7 + worker * 3) % 16;
                            match store.get(&key(i)) {
                                Some(got) => {
                                    assert_eq!(got.code, code(i));
                                    hits.fetch_add(1, Ordering::Relaxed);
                                }
                                None => store.put(&key(i), &artifact(&code(i)))?,
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|w| w.join().expect("no worker panics"))
        })?;
        assert!(hits.load(Ordering::Relaxed) > 0);
        assert!(DiskStore::open(&path)?.verify()?.bad.is_empty());
        Ok(())
    }
}
