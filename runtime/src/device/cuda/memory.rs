//! Tensors in the memory of the GPU.

use super::Shared;
use crate::launch::{Arg, LaunchError};
use crate::tensor::DynTensor;
use cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DriverError, result, sys};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr;

/// The alignment of a tensor that kernels count on, and the unit in which memory is handed out.
const UNIT: usize = 16;

/// Has the driver keep memory that is freed for the next allocation, instead of giving it back at every synchronisation.
pub(super) fn keep_freed(context: &CudaContext) -> Result<(), DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    // SAFETY: the device of a live context; the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast::<c_void>())
    }
}

/// Bytes that could still be handed out: what the device has left, and what the driver keeps of freed memory.
fn free_bytes(context: &CudaContext) -> Result<usize, DriverError> {
    let (free, _) = context.mem_get_info()?;
    if !context.has_async_alloc() {
        return Ok(free);
    }
    let attribute = |which| {
        let mut bytes = 0u64;
        // SAFETY: the device of a live context; the attributes asked for are 64-bit numbers.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device())?;
            result::mem_pool::get_attribute(pool, which, (&raw mut bytes).cast::<c_void>())?;
        }
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    };
    let reserved = attribute(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = attribute(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(free + reserved.saturating_sub(used))
}

/// A tensor's bytes on the device, and where they came from.
pub(super) struct Resident {
    buffer: CudaSlice<u8>,
    storage: usize,
    range: Range<usize>,
}

impl Resident {
    /// Copies a tensor to the device. `name` is the argument's.
    ///
    /// # Errors
    /// If there is no room, or the driver fails.
    pub(super) fn upload(
        shared: &Shared,
        kernel: &'static str,
        name: &str,
        t: &DynTensor,
    ) -> Result<Resident, LaunchError> {
        let failed = |e| shared.failed(kernel, e);
        let n = t.byte_range().len();
        // SAFETY: the launch holds the tensor's storage, and its bytes span this range.
        let bytes = unsafe { std::slice::from_raw_parts(t.as_ptr(), n) };
        // Whole words, since kernels update packed elements of the last one in place, and at least one, so that an empty
        // tensor has an address.
        let whole = n.next_multiple_of(UNIT).max(UNIT);
        let mut buffer = allocate(shared, whole).map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = free_bytes(&shared.context).unwrap_or_default();
                let (device, arg) = (shared.name.clone(), name.to_owned());
                LaunchError::OutOfMemory { kernel, device, arg, asked: whole, free }
            }
            _ => failed(e),
        })?;
        shared.stream.memset_zeros(&mut buffer.slice_mut(n / UNIT * UNIT..)).map_err(failed)?;
        shared.stream.memcpy_htod(bytes, &mut buffer.slice_mut(..n)).map_err(failed)?;
        Ok(Resident { buffer, storage: t.storage_id(), range: t.byte_range() })
    }

    /// Copies the bytes back to the tensor they came from.
    pub(super) fn download(&self, shared: &Shared, kernel: &'static str, arg: &Arg<'_>) -> Result<(), LaunchError> {
        if let Arg::Write(t) = arg {
            let n = t.byte_range().len();
            let bytes = shared.stream.clone_dtoh(&self.buffer.slice(..n)).map_err(|e| shared.failed(kernel, e))?;
            // SAFETY: the launch holds the tensor's storage exclusively, and its bytes span this range.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), t.as_ptr(), n) };
        }
        Ok(())
    }

    /// The address on the device.
    pub(super) fn address(&self, shared: &Shared) -> u64 {
        self.buffer.device_ptr(&shared.stream).0
    }

    /// Does it hold exactly this tensor's bytes?
    pub(super) fn is_of(&self, t: &DynTensor) -> bool {
        self.storage == t.storage_id() && self.range == t.byte_range()
    }

    /// Does it hold some of this tensor's bytes?
    pub(super) fn overlaps(&self, t: &DynTensor) -> bool {
        let range = t.byte_range();
        self.storage == t.storage_id() && self.range.start < range.end && range.start < self.range.end
    }
}

/// Memory with whatever was in it; what the driver keeps is given back first if there is no room.
fn allocate(shared: &Shared, bytes: usize) -> Result<CudaSlice<u8>, DriverError> {
    // SAFETY: the caller writes all bytes before any are read.
    let attempt = || unsafe { shared.stream.alloc::<u8>(bytes) };
    attempt().or_else(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY if shared.context.has_async_alloc() => {
            shared.context.synchronize()?;
            // SAFETY: the device of a live context.
            unsafe {
                let pool = result::device::get_default_mem_pool(shared.context.cu_device())?;
                result::mem_pool::trim_to(pool, 0)?;
            }
            attempt()
        }
        _ => Err(e),
    })
}
