//! Where the disk store lies.

use std::ffi::OsString;
use std::path::PathBuf;

/// `$ZELLIGE_CACHE_DIR` if set, else `zellige` in the user's cache directory; `None` if there is no home either.
pub fn default_dir() -> Option<PathBuf> {
    dir_from(|name| std::env::var_os(name))
}

fn dir_from(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("ZELLIGE_CACHE_DIR") {
        return Some(dir);
    }
    let base = if cfg!(windows) {
        var("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        var("HOME").map(|home| home.join("Library/Caches"))
    } else {
        // The XDG base directory specification has relative paths ignored.
        var("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()).or_else(|| var("HOME").map(|home| home.join(".cache")))
    };
    base.map(|base| base.join("zellige"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(vars: &[(&str, &str)]) -> Option<PathBuf> {
        dir_from(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
    }

    #[test]
    fn the_override_wins_and_empty_counts_as_unset() {
        assert_eq!(dir(&[("ZELLIGE_CACHE_DIR", "/x"), ("HOME", "/h")]), Some("/x".into()));
        assert_eq!(dir(&[]), None);
        assert_eq!(dir(&[("HOME", "")]), None);
    }

    #[cfg(all(unix, not(target_os = "macos")))]
    #[test]
    fn xdg_then_home() {
        assert_eq!(dir(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]), Some("/c/zellige".into()));
        assert_eq!(dir(&[("XDG_CACHE_HOME", "c"), ("HOME", "/h")]), Some("/h/.cache/zellige".into()));
        assert_eq!(dir(&[("ZELLIGE_CACHE_DIR", ""), ("HOME", "/h")]), Some("/h/.cache/zellige".into()));
    }
}
