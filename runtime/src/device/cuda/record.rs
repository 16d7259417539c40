//! Where a kernel says which of its assertions did not hold.
//!
//! The word is in the host's memory: a failed assertion ends the context, and nothing on the device can be read after that.

use cudarc::driver::{DriverError, result, sys};
use std::ffi::c_void;
use std::ptr::{self, NonNull};

/// A word that host and device see; it stays as long as the process, as kernels do.
pub(super) struct Record {
    host: NonNull<u32>,
    device: u64,
}

// SAFETY: the word is only read on the host, and only as a whole; the driver keeps it where it is.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

impl Record {
    /// A record that says nothing, in the current context.
    pub(super) fn new() -> Result<Record, DriverError> {
        // SAFETY: the size is not zero; the memory is never freed.
        let memory = unsafe { result::malloc_host(size_of::<u32>(), sys::CU_MEMHOSTALLOC_DEVICEMAP) }?.cast::<u32>();
        let host = NonNull::new(memory).ok_or(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY))?;
        let mut device = 0;
        // SAFETY: the word was just allocated, mapped to the device, and is aligned as all such memory is.
        unsafe {
            ptr::write_volatile(host.as_ptr(), 0);
            sys::cuMemHostGetDevicePointer_v2(&mut device, memory.cast::<c_void>(), 0).result()?;
        }
        Ok(Record { host, device })
    }

    /// Its address on the device.
    pub(super) fn address(&self) -> u64 {
        self.device
    }

    /// The number that was recorded; 0 for none.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: the word is never freed; the device writes it as a whole, before the launch ends.
        unsafe { ptr::read_volatile(self.host.as_ptr()) }
    }
}
