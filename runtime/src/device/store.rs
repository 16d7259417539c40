//! Compiled kernels as the devices of this process share them: one cache, in memory and on disk.

use crate::cache::{Artifact, ArtifactKind, Fetched, KernelCache, Key, Source};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use zellige_codegen::ptx::{PtxKernel, PtxOptions, compile};
use zellige_ir::Func;

/// The kernel kept under `key`, or else the one that `compile` makes. Whatever is wrong with the cache is said on standard
/// error and costs a compilation.
pub(super) fn fetch(key: Key, compile: impl FnOnce() -> Result<Artifact, String>) -> Result<Fetched, String> {
    static KERNELS: OnceLock<KernelCache> = OnceLock::new();
    let cache = KERNELS.get_or_init(|| {
        let (cache, warning) = KernelCache::open_default();
        if let Some(warning) = warning {
            eprintln!("zellige: kernels are not kept between runs: {warning}");
        }
        cache
    });
    let fetched = cache.get_or_compile(key, compile)?;
    if let Some(warning) = &fetched.warning {
        eprintln!("zellige: {warning}");
    }
    Ok(fetched)
}

/// A kernel's PTX, and whether it came from the cache.
pub(super) fn ptx(func: &Func, options: &PtxOptions) -> Result<(PtxKernel, bool), String> {
    // Places in the author's source are part of the code where it has line information.
    let text = if options.line_info { func.to_text() } else { func.canonical_text() };
    // The text numbers tiles; comments and explanations call them by name.
    let names: Vec<&str> = func.buffers.iter().map(|(_, b)| b.name.as_str()).collect();
    let key = Key::new(&text, &options.target.to_string(), &format!("{options:?} {names:?}"));
    let fetched = fetch(key, || {
        let kernel = compile(func, options).map_err(|e| e.to_string())?;
        let code = postcard::to_stdvec(&kernel).map_err(|e| format!("the kernel cannot be stored: {e}"))?;
        let metadata = BTreeMap::from([
            ("kernel".to_owned(), func.name.clone()),
            ("target".to_owned(), options.target.to_string()),
            ("shared_bytes".to_owned(), kernel.shared_bytes.to_string()),
        ]);
        Ok(Artifact { kind: ArtifactKind::Ptx, code, metadata })
    })?;
    match postcard::from_bytes::<PtxKernel>(&fetched.artifact.code) {
        Ok(kernel) => Ok((kernel, fetched.source == Source::Store)),
        // An entry that passed its checksum but does not decode was written by a broken compiler: compile afresh.
        Err(_) => compile(func, options).map(|kernel| (kernel, false)).map_err(|e| e.to_string()),
    }
}
