//! What the PTX devices share: the parameter values of a launch.

use super::Launch;
use crate::launch::{Arg, LaunchError};
use zellige_codegen::ptx::{DIM_LIMIT, ParamSlot, PtxKernel};

/// A parameter as it lies in the kernel's parameter memory: little-endian, as wide as it is aligned.
pub(super) type ParamBytes = [u8; 8];

/// The values of the kernel's parameters; `base` gives the device address of the tensor argument at a position.
///
/// # Errors
/// If a dim is larger than compiled index arithmetic allows.
pub(super) fn values(
    kernel: &PtxKernel,
    launch: &Launch<'_>,
    device: &str,
    base: impl Fn(usize) -> u64,
) -> Result<Vec<ParamBytes>, LaunchError> {
    let too_large = |name: &str, n: usize| LaunchError::Device {
        kernel: launch.kernel,
        device: device.to_owned(),
        cause: format!("dim `{name}` is {n}; kernels on this device take at most {DIM_LIMIT}"),
    };
    kernel
        .params
        .iter()
        .map(|slot| {
            Ok(match slot {
                ParamSlot::Base { param, .. } => base(*param as usize).to_le_bytes(),
                ParamSlot::Stride { param, axis, .. } => {
                    let tensor = launch.args[*param as usize].tensor().expect("the signature says this is a tensor");
                    (tensor.strides()[*axis as usize] as u64).to_le_bytes()
                }
                ParamSlot::Dim { dim, name } => {
                    let n = launch.dims[*dim as usize];
                    if n as u64 > DIM_LIMIT as u64 {
                        return Err(too_large(name, n));
                    }
                    (n as u64).to_le_bytes()
                }
                ParamSlot::Scalar { param, .. } => match &launch.args[*param as usize] {
                    Arg::Scalar(c) => c.bits().to_le_bytes(),
                    Arg::Read(_) | Arg::Write(_) => unreachable!("the signature says this is a scalar"),
                },
            })
        })
        .collect()
}

/// The grid as the device counts it.
///
/// # Errors
/// If an axis is longer than a launch allows.
pub(super) fn grid(launch: &Launch<'_>, device: &str) -> Result<(u32, u32, u32), LaunchError> {
    const LIMITS: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
    let mut out = [1u32; 3];
    for (axis, (&n, limit)) in launch.grid.iter().zip(LIMITS).enumerate() {
        if n > limit {
            return Err(LaunchError::Grid {
                kernel: launch.kernel,
                cause: format!("axis {axis} has {n} blocks; {device} takes at most {limit} there"),
            });
        }
        out[axis] = n as u32;
    }
    Ok((out[0], out[1], out[2]))
}
