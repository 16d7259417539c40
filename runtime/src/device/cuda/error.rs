//! The driver's errors and versions, and what becomes of a device whose context is lost.

use crate::launch::LaunchError;
use cudarc::driver::DriverError;
use std::sync::{Mutex, PoisonError};

/// The driver's words for an error.
pub(super) fn describe(e: DriverError) -> String {
    let text =
        |s: Result<&std::ffi::CStr, DriverError>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{} ({})", text(e.error_string()), text(e.error_name()))
}

/// `12.4` for 12040, as the driver counts versions of CUDA.
pub(super) fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The version of CUDA, as the driver counts, that brought a version of the PTX language ("Release Notes" of the PTX ISA).
pub(super) fn cuda_of_isa(isa: (u8, u8)) -> i32 {
    let (major, minor) = (i32::from(isa.0), i32::from(isa.1));
    match (major, minor) {
        (..=7, _) => 11_000 + 10 * minor,
        (8, ..=5) => 12_000 + 10 * minor,
        // CUDA 12.6 brought no new version.
        (8, _) => 12_000 + 10 * (minor + 1),
        (9.., _) => 13_000 + 10 * minor,
    }
}

/// The first failure that stuck, if there was one.
#[derive(Debug, Default)]
pub(super) struct Loss(Mutex<Option<First>>);

#[derive(Clone, Debug)]
struct First {
    kernel: &'static str,
    cause: String,
}

impl Loss {
    fn get(&self) -> Option<First> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Marks the context as lost through `kernel`, unless it was before.
    pub(super) fn record(&self, kernel: &'static str, cause: &str) {
        let first = First { kernel, cause: cause.to_owned() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(first);
    }

    /// Refuses to run `kernel` if the context is lost.
    pub(super) fn check(&self, kernel: &'static str, device: &str) -> Result<(), LaunchError> {
        match self.get() {
            None => Ok(()),
            Some(First { kernel: first, cause }) => {
                Err(LaunchError::DeviceLost { kernel, device: device.to_owned(), first, cause })
            }
        }
    }

    /// Why nothing can be loaded any more, if the context is lost.
    pub(super) fn cause(&self) -> Option<String> {
        self.get().map(|f| format!("the device is lost since kernel `{}` failed ({})", f.kernel, f.cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_the_one_that_is_told() {
        let loss = Loss::default();
        assert!(loss.check("a", "cuda:0").is_ok() && loss.cause().is_none());
        loss.record("a", "illegal address");
        loss.record("b", "unspecified launch failure");
        let error = loss.check("c", "cuda:0").unwrap_err().to_string();
        assert_eq!(
            error,
            "kernel `c` was not run: cuda:0 is lost since kernel `a` failed (illegal address), and refuses all work of \
             this process: start it anew"
        );
        assert_eq!(loss.cause().as_deref(), Some("the device is lost since kernel `a` failed (illegal address)"));
    }

    #[test]
    fn versions_of_ptx_and_cuda() {
        for (isa, cuda) in [((7, 8), "11.8"), ((8, 0), "12.0"), ((8, 4), "12.4"), ((8, 5), "12.5")] {
            assert_eq!(version_text(cuda_of_isa(isa)), cuda);
        }
        for (isa, cuda) in [((8, 6), "12.7"), ((8, 7), "12.8"), ((8, 8), "12.9"), ((9, 0), "13.0")] {
            assert_eq!(version_text(cuda_of_isa(isa)), cuda);
        }
    }
}
