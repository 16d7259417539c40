//! Why a launch did not happen, or failed.

use std::sync::Arc;
use zellige_ir::DType;

/// An argument that does not fit, a kernel that cannot be built, or a device that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    #[error("kernel `{kernel}` takes {expected} arguments, {found} were given")]
    ArgumentCount { kernel: &'static str, expected: usize, found: usize },
    #[error("kernel `{kernel}`: argument `{arg}` is a {found}, expected a {expected}")]
    ArgumentKind { kernel: &'static str, arg: &'static str, expected: &'static str, found: &'static str },
    #[error(
        "kernel `{kernel}`: argument `{arg}` has element type {found}, expected {expected}: convert it, or use the launcher of that type"
    )]
    Dtype { kernel: &'static str, arg: &'static str, expected: DType, found: DType },
    #[error("kernel `{kernel}`: argument `{arg}` has rank {} (shape {found:?}), expected {expected}", found.len())]
    Rank { kernel: &'static str, arg: &'static str, expected: String, found: Vec<usize> },
    #[error("kernel `{kernel}`: argument `{arg}`: dim {axis} is {found}, the kernel is written for {expected}")]
    FixedDim { kernel: &'static str, arg: &'static str, axis: usize, expected: usize, found: usize },
    #[error("kernel `{kernel}`: argument `{arg}`: dim `{dim}` (axis {axis}) is {found}, but `{other}` says {expected}")]
    DimMismatch {
        kernel: &'static str,
        arg: &'static str,
        axis: usize,
        dim: String,
        found: usize,
        other: &'static str,
        expected: usize,
    },
    #[error(
        "kernel `{kernel}`: argument `{arg}` is not contiguous (shape {shape:?}, strides {strides:?}): pass `.contiguous()` of it"
    )]
    NotContiguous { kernel: &'static str, arg: &'static str, shape: Vec<usize>, strides: Vec<usize> },
    #[error(
        "kernel `{kernel}`: the last dim of argument `{arg}` has stride {stride}, expected 1: pass `.contiguous()` of it"
    )]
    LastStride { kernel: &'static str, arg: &'static str, stride: usize },
    #[error(
        "kernel `{kernel}`: output `{arg}` overlaps argument `{other}` in memory: give the output memory of its own"
    )]
    Overlap { kernel: &'static str, arg: &'static str, other: &'static str },
    #[error("kernel `{kernel}`: argument `{arg}` is in use: {cause}")]
    InUse { kernel: &'static str, arg: &'static str, cause: String },
    #[error("kernel `{kernel}`: the grid cannot be computed: {cause}")]
    Grid { kernel: &'static str, cause: String },
    /// The kernel's own mistakes, rendered.
    #[error("{0}")]
    Record(Arc<str>),
    #[error("kernel `{kernel}` cannot be compiled for {device}: {cause}")]
    Compile { kernel: &'static str, device: String, cause: String },
    #[error("kernel `{kernel}`: assertion failed at {place}: {message}")]
    AssertFailed { kernel: &'static str, place: String, message: String },
    #[error("kernel `{kernel}` failed on {device}: {cause}")]
    Device { kernel: &'static str, device: String, cause: String },
    #[error(
        "kernel `{kernel}`: {device} has no room for argument `{arg}`: {} asked, {} free: use smaller tensors, or free others",
        size(*.asked), size(*.free)
    )]
    OutOfMemory { kernel: &'static str, device: String, arg: String, asked: usize, free: usize },
    /// A failure of an earlier kernel made the device unusable for this process.
    #[error(
        "kernel `{kernel}` was not run: {device} is lost since kernel `{first}` failed ({cause}), and refuses all work of this process: start it anew"
    )]
    DeviceLost { kernel: &'static str, device: String, first: &'static str, cause: String },
    #[error("{device} cannot record launches for a replay: launch the kernels one by one")]
    NoGraphs { device: String },
    #[error(
        "kernel `{kernel}`: argument `{arg}` overlaps another tensor of the graph: pass the same tensor, or one with storage of its own"
    )]
    GraphView { kernel: &'static str, arg: String },
    #[error("no device `{name}`: {cause}")]
    NoDevice { name: String, cause: String },
}

/// Bytes in the unit that reads best.
fn size(bytes: usize) -> String {
    const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_tells_what_was_asked_and_what_is_left() {
        let (device, arg) = ("cuda:0".to_owned(), "x".to_owned());
        let e = LaunchError::OutOfMemory { kernel: "rmsnorm", device, arg, asked: 3 << 29, free: 700 };
        assert_eq!(
            e.to_string(),
            "kernel `rmsnorm`: cuda:0 has no room for argument `x`: 1.5 GiB asked, 700 bytes free: use smaller tensors, or \
             free others"
        );
    }
}
