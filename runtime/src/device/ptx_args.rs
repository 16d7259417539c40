//! What the PTX devices share: the parameter values of a launch, its grid, and the choice among the variants of a kernel:
//! with and without tensor maps, for rows that are more and less aligned.

use super::{Launch, store};
use crate::launch::{Arg, LaunchError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use zellige_codegen::ptx::{ALIGNED, DIM_LIMIT, GridPlan, MapSpec, ParamSlot, PtxKernel, PtxOptions, alignable};
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

/// A kernel loaded on its device for launches in which all rows are aligned. Variants stand by for launches in which they
/// are not, for tensors that no tensor map can describe, and for launches that overlap; they are compiled when one is needed.
pub(super) struct Loaded<K> {
    first: Arc<K>,
    from_cache: bool,
    func: Func,
    options: PtxOptions,
    /// Does the first kernel copy with tensor maps?
    maps: bool,
    others: Mutex<HashMap<PtxOptions, Arc<K>>>,
}

impl<K> Loaded<K> {
    /// Compiles `func`, or takes it from the cache, and loads it with `load`.
    ///
    /// # Errors
    /// If it does not compile or load.
    pub(super) fn new(
        func: &Func,
        options: &PtxOptions,
        load: impl FnOnce(PtxKernel) -> Result<K, String>,
    ) -> Result<Loaded<K>, String> {
        let options = options.aligned(alignable(func));
        let (kernel, from_cache) = store::ptx(func, &options)?;
        let maps = kernel.params.iter().any(|p| matches!(p, ParamSlot::TensorMap { .. }));
        let first = Arc::new(load(kernel)?);
        Ok(Loaded { first, from_cache, func: func.clone(), options, maps, others: Mutex::default() })
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
    /// If a variant is needed and does not compile or load.
    pub(super) fn pick(
        &self,
        launch: &Launch<'_>,
        overlapped: bool,
        kernel: impl Fn(&K) -> &PtxKernel,
        load: impl Fn(PtxKernel) -> Result<K, String>,
    ) -> Result<Arc<K>, String> {
        let first = kernel(&self.first);
        let options = PtxOptions {
            overlapped,
            tensor_maps: self.options.tensor_maps && (!self.maps || maps_fit(first, launch)),
            ..self.options.aligned(aligned(&first.params, self.options.aligned, launch))
        };
        if options == self.options {
            return Ok(Arc::clone(&self.first));
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = others.get(&options) {
            return Ok(Arc::clone(k));
        }
        let k = Arc::new(load(store::ptx(&self.func, &options)?.0)?);
        others.insert(options, Arc::clone(&k));
        Ok(k)
    }
}

/// Which of the parameters `wanted`, given as bits of their positions, are multiples of [`ALIGNED`] in a launch.
fn aligned(params: &[ParamSlot], wanted: u64, launch: &Launch<'_>) -> u64 {
    let is_aligned = |slot: &ParamSlot| match slot {
        ParamSlot::Dim { dim, .. } => (launch.dims[*dim as usize] as u64).is_multiple_of(ALIGNED),
        ParamSlot::Stride { param, axis, .. } => {
            let tensor = launch.args[*param as usize].tensor().expect("the signature says this is a tensor");
            (tensor.strides()[*axis as usize] as u64).is_multiple_of(ALIGNED)
        }
        ParamSlot::Base { .. }
        | ParamSlot::Scalar { .. }
        | ParamSlot::TensorMap { .. }
        | ParamSlot::Counter { .. }
        | ParamSlot::Failure { .. } => false,
    };
    let slots = params.iter().take(u64::BITS as usize).enumerate();
    slots.filter(|&(i, slot)| wanted >> i & 1 == 1 && is_aligned(slot)).fold(0, |bits, (i, _)| bits | 1 << i)
}

/// The tensor behind a map, at `address`.
fn map_tensor(param: u32, launch: &Launch<'_>, address: u64) -> Option<MapTensor> {
    let tensor = launch.args[param as usize].tensor()?;
    let bits = tensor.dtype().bits() as u64;
    let mut size: Vec<u64> = tensor.shape().iter().rev().map(|&n| n as u64).collect();
    // Elements narrower than a byte are counted in bytes; a last half byte is no part of any map.
    if let Some(inner) = size.first_mut().filter(|_| bits < 8) {
        *inner = if (*inner * bits).is_multiple_of(8) { *inner * bits / 8 } else { 0 };
    }
    let stride = tensor.strides().iter().rev().skip(1).map(|&s| s as u64 * bits / 8).collect();
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
            ParamSlot::Base { .. }
            | ParamSlot::Stride { .. }
            | ParamSlot::Dim { .. }
            | ParamSlot::Scalar { .. }
            | ParamSlot::Counter { .. }
            | ParamSlot::Failure { .. } => true,
        })
}

/// The values of the kernel's parameters; `base` gives the device address of the tensor argument at a position, `encode` the
/// device's form of a tensor map, `counter` the device address of a 32-bit zero that no other launch uses meanwhile, `failure`
/// that of the record of an assertion that does not hold.
///
/// # Errors
/// If a dim is larger than compiled index arithmetic allows, or the device refuses a tensor map.
pub(super) fn values(
    kernel: &PtxKernel,
    launch: &Launch<'_>,
    device: &str,
    base: impl Fn(usize) -> u64,
    counter: impl Fn() -> u64,
    failure: impl Fn() -> u64,
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
                ParamSlot::Counter { .. } => ParamBytes::word(counter()),
                ParamSlot::Failure { .. } => ParamBytes::word(failure()),
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
    let (blocks, cluster) = (launch.grid.iter().product::<usize>(), kernel.cluster as usize);
    match kernel.grid {
        GridPlan::AsWritten => {}
        GridPlan::Persistent => {
            return Ok((blocks.min(resident.max(1)).next_multiple_of(cluster) as u32, 1, 1));
        }
        GridPlan::Spread => return Ok(((blocks.min((resident / cluster).max(1)) * cluster) as u32, 1, 1)),
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
