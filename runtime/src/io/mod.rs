//! Tensors in files: safetensors (any number of named tensors, every element type) and npy (one tensor, NumPy's types).
//!
//! Readers take nothing on trust: sizes are checked against the file's length before anything is allocated, and every
//! defect is a one-line [`FileError`] naming file and cause. Writers are atomic: the target holds the old content or
//! the new, never a part. Depends on `tensor`.

mod atomic;
mod error;
mod npy;
mod safetensors;

pub(crate) use atomic::write_atomic;
pub use error::{FileCause, FileError};
pub use npy::{load_npy, save_npy};
pub use safetensors::TensorFile;

// Both formats are little-endian, and tensors are read and written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "big-endian hosts would need a byte swap in `io`");
