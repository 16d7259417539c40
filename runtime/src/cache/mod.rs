//! The store of compiled kernels.
//!
//! A kernel is found by a [`Key`], the hash of everything that decides its code, and kept as an [`Artifact`].
//! [`KernelCache::get_or_compile`] is the way in: memory first, then disk, then the compiler, once per key however many
//! threads ask. A store that fails is a [`CacheWarning`] beside the result, never an error: without any cache kernels
//! still run.
//!
//! Cached code is executed, so the disk store serves only entries whose header, key and checksum all match, from a
//! directory that other users cannot write. Depends on `io` for atomic file replacement; knows no device.

mod artifact;
mod dir;
mod disk;
mod entry;
mod key;
mod memory;
mod single_flight;
mod store;

pub use artifact::{Artifact, ArtifactKind};
pub use dir::default_dir;
pub use disk::{BadEntry, DiskStore, EntryInfo, Removed, VerifyReport};
pub use entry::EntryError;
pub use key::{COMPILER_VERSION, Key};
pub use memory::MemoryStore;
pub use single_flight::{Fetched, KernelCache, Source};
pub use store::{CacheWarning, KernelStore, Layered};
