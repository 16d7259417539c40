//! Gives every build of the compiler its own identity.
//!
//! Compiled kernels are cached on disk under a key that contains the compiler's version. While the compiler is being
//! worked on, its version number stands still and its output does not: the sources' hash tells builds apart.

use std::fs;
use std::path::Path;

/// The crates whose code decides what a cached kernel contains and how it is called.
const SOURCES: [&str; 3] = ["../ir/src", "../codegen/src", "src"];

fn main() {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    for dir in SOURCES {
        // Absent when this crate is built from a registry, where the version number is enough.
        if Path::new(dir).is_dir() {
            println!("cargo::rerun-if-changed={dir}");
            add_dir(&mut hash, Path::new(dir));
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=ZELLIGE_SOURCE_HASH={:016x}", hash.0);
}

/// 64-bit FNV-1a.
struct Fnv(u64);

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Hashes names and contents, in order of name. What cannot be read is left out: `rustc` will say so.
fn add_dir(hash: &mut Fnv, dir: &Path) {
    let mut paths: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            add_dir(hash, &path);
        } else if let Ok(content) = fs::read(&path) {
            hash.add(path.to_string_lossy().as_bytes());
            hash.add(&(content.len() as u64).to_le_bytes());
            hash.add(&content);
        }
    }
}
