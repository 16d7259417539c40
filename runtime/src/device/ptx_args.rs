//! What the PTX devices share: the parameter values of a launch, its grid, and the choice between a kernel that copies
//! with tensor maps and one that does without.

use super::{Launch, store};
use crate::launch::{Arg, LaunchError};
use std::sync::OnceLock;
use zellige_codegen::ptx::{DIM_LIMIT, GridPlan, MapSpec, ParamSlot, PtxKernel, PtxOptions};
use zellige_ir::Func;

/// A parameter as it lies in the kernel's parameter memory: little-endian, as far as the slot is wide.
#[derive(Clone)]
#[repr(C, align(128))]
pub(super) struct ParamBytes(pub [u8; 128]);

impl ParamBytes {
    fn word(bits: u64) -> ParamBytes {
        let mut bytes = [0; 128];
        bytes[..8].copy_from_slice(&bits.to_le_bytes());
        ParamBytes(bytes)
    }
}

/// A tensor as a tensor map sees it, innermost axis first.
pub(super) struct MapTensor {
    pub address: u64,
    /// Extents in elements.
    pub size: Vec<u64>,
    /// Bytes from one index to the next along every axis but the innermost.
    pub stride: Vec<u64>,
}

/// A kernel loaded on its device; if it copies with tensor maps, another without them stands by for tensors that no map
/// can describe.
pub(super) struct Loaded<K> {
    first: K,
    from_cache: bool,
    /// What the other kernel is compiled from, when it is first needed.
    source: Option<(Func, PtxOptions)>,
    plain: OnceLock<Result<K, String>>,
}

impl<K> Loaded<K> {
    /// Compiles `func`, or takes it from the cache, and loads it with `load`.
    ///
    /// # Errors
    /// If it does not compile or load.
    pub(super) fn new(
        func: &Func,
        options: &PtxOptions,
        load: impl Fn(PtxKernel) -> Result<K, String>,
    ) -> Result<Loaded<K>, String> {
        let (kernel, from_cache) = store::ptx(func, options)?;
        let maps = kernel.params.iter().any(|p| matches!(p, ParamSlot::TensorMap { .. }));
        let source = maps.then(|| (func.clone(), PtxOptions { tensor_maps: false, ..*options }));
        Ok(Loaded { first: load(kernel)?, from_cache, source, plain: OnceLock::new() })
    }

    /// The kernel that launches get if they can.
    pub(super) fn first(&self) -> &K {
        &self.first
    }

    /// Did that one come from the disk cache?
    pub(super) fn is_from_cache(&self) -> bool {
        self.from_cache
    }

    /// The kernel for a launch.
    ///
    /// # Errors
    /// If the one without tensor maps is needed and does not compile or load.
    pub(super) fn pick(
        &self,
        launch: &Launch<'_>,
        kernel: impl Fn(&K) -> &PtxKernel,
        load: impl Fn(PtxKernel) -> Result<K, String>,
    ) -> Result<&K, String> {
        let Some((func, options)) = &self.source else { return Ok(&self.first) };
        if maps_fit(kernel(&self.first), launch) {
            return Ok(&self.first);
        }
        let plain = self.plain.get_or_init(|| load(store::ptx(func, options)?.0));
        plain.as_ref().map_err(Clone::clone)
    }
}

/// The tensor behind a map, at `address`.
fn map_tensor(param: u32, launch: &Launch<'_>, address: u64) -> Option<MapTensor> {
    let tensor = launch.args[param as usize].tensor()?;
    let bytes = tensor.dtype().bits() as u64 / 8;
    let size = tensor.shape().iter().rev().map(|&n| n as u64).collect();
    let stride = tensor.strides().iter().rev().skip(1).map(|&s| s as u64 * bytes).collect();
    Some(MapTensor { address, size, stride })
}

/// True if the hardware can describe all tensors that the kernel wants maps of, and count its blocks.
fn maps_fit(kernel: &PtxKernel, launch: &Launch<'_>) -> bool {
    let blocks = launch.grid.iter().try_fold(1usize, |n, &g| n.checked_mul(g));
    let countable = kernel.grid == GridPlan::AsWritten || blocks.is_some_and(|n| n <= i32::MAX as usize / 2);
    countable
        && kernel.params.iter().all(|slot| match slot {
            ParamSlot::TensorMap { param, .. } => map_tensor(*param, launch, 0).is_some_and(|t| {
                let contiguous = launch.args[*param as usize].tensor().and_then(|t| t.strides().last().copied());
                contiguous == Some(1)
                    && t.size.iter().all(|&n| (1..=i32::MAX as u64).contains(&n))
                    && t.stride.iter().all(|&s| s % 16 == 0 && s < 1 << 40)
            }),
            ParamSlot::Base { .. } | ParamSlot::Stride { .. } | ParamSlot::Dim { .. } | ParamSlot::Scalar { .. } => {
                true
            }
        })
}

/// The values of the kernel's parameters; `base` gives the device address of the tensor argument at a position, `encode` the
/// device's form of a tensor map.
///
/// # Errors
/// If a dim is larger than compiled index arithmetic allows, or the device refuses a tensor map.
pub(super) fn values(
    kernel: &PtxKernel,
    launch: &Launch<'_>,
    device: &str,
    base: impl Fn(usize) -> u64,
    encode: impl Fn(&MapSpec, &MapTensor) -> Result<[u8; 128], String>,
) -> Result<Vec<ParamBytes>, LaunchError> {
    let fail = |cause: String| LaunchError::Device { kernel: launch.kernel, device: device.to_owned(), cause };
    kernel
        .params
        .iter()
        .map(|slot| {
            Ok(match slot {
                ParamSlot::Base { param, .. } => ParamBytes::word(base(*param as usize)),
                ParamSlot::Stride { param, axis, .. } => {
                    let tensor = launch.args[*param as usize].tensor().expect("the signature says this is a tensor");
                    ParamBytes::word(tensor.strides()[*axis as usize] as u64)
                }
                ParamSlot::Dim { dim, name } => {
                    let n = launch.dims[*dim as usize];
                    if n as u64 > DIM_LIMIT as u64 {
                        return Err(fail(format!(
                            "dim `{name}` is {n}; kernels on this device take at most {DIM_LIMIT}"
                        )));
                    }
                    ParamBytes::word(n as u64)
                }
                ParamSlot::Scalar { param, .. } => match &launch.args[*param as usize] {
                    Arg::Scalar(c) => ParamBytes::word(c.bits()),
                    Arg::Read(_) | Arg::Write(_) => unreachable!("the signature says this is a scalar"),
                },
                ParamSlot::TensorMap { param, name, map } => {
                    let tensor =
                        map_tensor(*param, launch, base(*param as usize)).expect("the signature says this is a tensor");
                    ParamBytes(encode(map, &tensor).map_err(|e| fail(format!("tensor map `{name}`: {e}")))?)
                }
            })
        })
        .collect()
}

/// The grid as the device counts it; a persistent one has as many blocks as are `resident` at once.
///
/// # Errors
/// If an axis is longer than a launch allows.
pub(super) fn grid(
    kernel: &PtxKernel,
    launch: &Launch<'_>,
    device: &str,
    resident: usize,
) -> Result<(u32, u32, u32), LaunchError> {
    const LIMITS: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
    if kernel.grid == GridPlan::Persistent {
        let blocks: usize = launch.grid.iter().product();
        let cluster = kernel.cluster as usize;
        return Ok((blocks.min(resident.max(1)).next_multiple_of(cluster) as u32, 1, 1));
    }
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
