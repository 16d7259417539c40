//! Kernels by the names a user types.

use crate::library::{LibraryKernel, all};
use anyhow::{Result, anyhow};

/// The kernel called `name`.
///
/// # Errors
/// If there is none; the message offers the nearest name.
pub fn kernel(name: &str) -> Result<&'static dyn LibraryKernel> {
    crate::library::find(name).ok_or_else(|| {
        let nearest = nearest(name, all().iter().map(|k| k.info().name));
        anyhow!("no kernel `{name}`{nearest}; `zellige list` shows them all")
    })
}

/// `: did you mean ..?` for the candidate most like `name`, or nothing if none is like it.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    candidates
        .map(|c| (strsim::jaro_winkler(name, c), c))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.6)
        .map(|(_, c)| format!(": did you mean `{c}`?"))
        .unwrap_or_default()
}
