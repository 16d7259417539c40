//! NVIDIA GPUs through the driver, which is loaded at run time: nothing of CUDA is needed to build or to start.
//!
//! The driver's own compiler turns our PTX into machine code ([`module`]). Tensors are uploaded when a launch is bound and
//! the written ones downloaded when it is finished ([`memory`]); in between a kernel ([`launch`]) or a captured list of
//! kernels ([`graph`]) runs, and is timed with events, on resident data.

mod error;
mod graph;
mod launch;
mod memory;
mod module;
mod record;
mod tensor_map;
mod time;

use super::{Backend, Bound, Executable, Ready};
use crate::launch::LaunchError;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result, sys};
use error::{Loss, cuda_of_isa, describe, version_text};
use launch::Call;
use module::CudaExecutable;
use std::sync::Arc;
use std::time::Duration;
use zellige_codegen::ptx::{Arch, Assertion, PtxOptions};
use zellige_ir::Func;

/// The oldest driver that has what this module calls: stream-ordered allocation.
const OLDEST_DRIVER: i32 = 11_020;

pub(super) struct Cuda {
    shared: Arc<Shared>,
}

/// What the device and its kernels share.
struct Shared {
    name: String,
    arch: Arch,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// A zero for kernels that deal out their blocks; they leave it so. All launches are on one stream, graphs too, hence one
    /// after the other.
    counter: CudaSlice<u32>,
    multiprocessors: usize,
    /// Set once the context is unusable: after a failed launch the driver refuses everything in this process.
    loss: Loss,
}

impl Cuda {
    /// Opens the GPU with this number.
    ///
    /// # Errors
    /// If there is no driver, no such GPU, or one that is too old.
    pub(super) fn open(ordinal: usize) -> Result<Cuda, LaunchError> {
        let name = format!("cuda:{ordinal}");
        let none = |cause: String| LaunchError::NoDevice { name: name.clone(), cause };
        // SAFETY: looks for the library, calls nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(none("no NVIDIA driver was found (libcuda.so.1); use the device `cpu`".to_owned()));
        }
        let driver = |e: DriverError| none(format!("the driver says: {}", describe(e)));
        let mut version = 0;
        // SAFETY: writes one number; needs no initialisation.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(driver)?;
        let new_enough = |need: i32, what: &str| {
            if version >= need {
                return Ok(());
            }
            let (have, need) = (version_text(version), version_text(need));
            Err(none(format!("its driver is of CUDA {have}, {what} CUDA {need} or later: update the NVIDIA driver")))
        };
        new_enough(OLDEST_DRIVER, "zellige needs")?;
        let count = result::init().and_then(|()| result::device::get_count()).map_err(driver)?;
        if ordinal >= usize::try_from(count).unwrap_or(0) {
            return Err(none(format!("the driver sees {count} GPU(s), numbered from 0")));
        }
        let context = CudaContext::new(ordinal).map_err(driver)?;
        let (major, minor) = context.compute_capability().map_err(driver)?;
        let arch = match (major, minor) {
            (9, 0) => Arch::Sm90a,
            (9.., _) | (8, 9) => Arch::Sm89,
            (8, _) => Arch::Sm80,
            _ => return Err(none(format!("its compute capability is {major}.{minor}, kernels need 8.0 or later"))),
        };
        new_enough(cuda_of_isa(PtxOptions::new(arch).target.ptx_isa), &format!("kernels for {arch} need"))?;
        memory::keep_freed(&context).map_err(driver)?;
        let stream = context.new_stream().map_err(driver)?;
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = usize::try_from(context.attribute(count).map_err(driver)?).unwrap_or(1);
        let counter = stream.alloc_zeros(1).map_err(driver)?;
        let loss = Loss::default();
        Ok(Cuda { shared: Arc::new(Shared { name, arch, context, stream, counter, multiprocessors, loss }) })
    }
}

impl Shared {
    /// Turns a driver error of a launch into ours; the context is given up if the error is one that sticks.
    fn failed(&self, kernel: &'static str, e: DriverError) -> LaunchError {
        let cause = describe(e);
        self.give_up(kernel, &cause);
        LaunchError::Device { kernel, device: self.name.clone(), cause }
    }

    /// As [`failed`](Self::failed); an assertion that did not hold is the cause if there is one.
    fn failed_call(&self, kernel: &'static str, call: &Call, e: DriverError) -> LaunchError {
        let Some(Assertion { place, message }) = call.broken().cloned() else { return self.failed(kernel, e) };
        self.give_up(kernel, &format!("assertion failed at {place}: {message}"));
        LaunchError::AssertFailed { kernel, place, message }
    }

    /// Marks the context as lost if the driver's last error sticks.
    fn give_up(&self, kernel: &'static str, cause: &str) {
        if self.context.synchronize().is_err() {
            self.loss.record(kernel, cause);
        }
    }

    /// Address of the counter of blocks.
    fn counter(&self) -> u64 {
        self.counter.device_ptr(&self.stream).0
    }

    /// Refuses work on a context that was lost.
    fn usable(&self, kernel: &'static str) -> Result<(), LaunchError> {
        self.loss.check(kernel, &self.name)
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        self.shared.name.clone()
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn copy_rate(&self) -> Result<Option<f64>, String> {
        self.shared.usable("copy").map_err(|e| e.to_string())?;
        time::copy_rate(&self.shared).map(Some).map_err(describe)
    }

    fn copy_time(&self, bytes: usize) -> Result<Option<Duration>, String> {
        self.shared.usable("copy").map_err(|e| e.to_string())?;
        time::copy_time(&self.shared, bytes).map(Some).map_err(describe)
    }

    fn load(&self, func: &Func) -> Result<Arc<dyn Executable>, String> {
        self.shared.loss.cause().map_or(Ok(()), Err)?;
        Ok(Arc::new(CudaExecutable::load(&self.shared, func, &PtxOptions::new(self.shared.arch))?))
    }

    fn capture<'a>(&self, calls: Vec<Ready<'a>>, overlapped: bool) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        graph::capture(&self.shared, calls, overlapped && self.shared.arch.overlaps_launches())
    }
}
