//! One kernel with its arguments on the device.

use super::memory::Resident;
use super::module::{CudaExecutable, Function};
use super::record::Record;
use super::{Shared, tensor_map, time};
use crate::device::{Bound, Launch, ptx_args};
use crate::launch::LaunchError;
use cudarc::driver::{DriverError, result, sys};
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;
use zellige_codegen::ptx::{Assertion, ParamSlot, PtxKernel};

/// A kernel, its grid, and the values of its parameters: all that the driver wants to know.
pub(super) struct Call {
    shared: Arc<Shared>,
    function: Arc<Function>,
    params: Vec<ptx_args::ParamBytes>,
    grid: (u32, u32, u32),
    order: Order,
}

/// When a launch begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// When the one ahead of it has ended.
    InTurn,
    /// As above; the one behind it may begin earlier.
    Leads,
    /// As soon as the one ahead of it lets it.
    Follows,
}

impl Call {
    /// A call on tensors that are on the device; `base` gives the address of the argument at a position.
    ///
    /// # Errors
    /// If a dim or the grid is larger than the device takes, or the kernel for these tensors cannot be loaded.
    pub(super) fn new(
        executable: &Arc<CudaExecutable>,
        launch: &Launch<'_>,
        order: Order,
        base: impl Fn(usize) -> u64,
    ) -> Result<Call, LaunchError> {
        let shared = &executable.shared;
        let function = executable.pick(launch, order != Order::InTurn)?;
        let (counter, failure) = (|| shared.counter(), || function.failure.as_ref().map_or(0, Record::address));
        let params =
            ptx_args::values(&function.kernel, launch, &shared.name, base, counter, failure, tensor_map::encode)?;
        let grid = ptx_args::grid(&function.kernel, launch, &shared.name, function.resident)?;
        Ok(Call { shared: Arc::clone(shared), function, params, grid, order })
    }

    /// The kernel's assertion that did not hold, if one did not.
    pub(super) fn broken(&self) -> Option<&Assertion> {
        let number = self.function.failure.as_ref()?.number() as usize;
        self.function.kernel.assertions.get(number.checked_sub(1)?)
    }

    /// Queues the kernel.
    pub(super) fn enqueue(&mut self) -> Result<(), DriverError> {
        let kernel = &self.function.kernel;
        let mut pointers: Vec<*mut c_void> = self.params.iter_mut().map(|p| p.0.as_mut_ptr().cast()).collect();
        if self.order == Order::Follows {
            return self.enqueue_early(&mut pointers);
        }
        // SAFETY: one pointer for each parameter of the kernel, each to a value at least as wide; whoever made the call
        // keeps the tensors that the values name, and the launch was checked against the kernel's signature.
        unsafe {
            result::launch_kernel(
                self.function.handle,
                self.grid,
                (kernel.threads, 1, 1),
                kernel.shared_bytes,
                self.shared.stream.cu_stream(),
                &mut pointers,
            )
        }
    }

    /// Queues the kernel to begin when the one ahead of it lets it.
    fn enqueue_early(&self, pointers: &mut [*mut c_void]) -> Result<(), DriverError> {
        let kernel = &self.function.kernel;
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid.0,
            gridDimY: self.grid.1,
            gridDimZ: self.grid.2,
            blockDimX: kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: kernel.shared_bytes,
            hStream: self.shared.stream.cu_stream(),
            attrs: &mut early,
            numAttrs: 1,
        };
        // SAFETY: as in `enqueue`; the configuration and its attribute outlive the call.
        unsafe { sys::cuLaunchKernelEx(&config, self.function.handle, pointers.as_mut_ptr(), ptr::null_mut()).result() }
    }
}

/// The author's name of the tensor argument at a position.
pub(super) fn argument_name(kernel: &PtxKernel, position: usize) -> &str {
    let named = kernel.params.iter().find_map(|p| match p {
        ParamSlot::Base { param, name } if *param as usize == position => Some(name.as_str()),
        ParamSlot::Base { .. }
        | ParamSlot::Stride { .. }
        | ParamSlot::Dim { .. }
        | ParamSlot::Scalar { .. }
        | ParamSlot::TensorMap { .. }
        | ParamSlot::Counter { .. }
        | ParamSlot::Failure { .. } => None,
    });
    named.unwrap_or("?")
}

/// A kernel whose tensors are on the device.
pub(super) struct BoundCuda<'a> {
    shared: Arc<Shared>,
    launch: Launch<'a>,
    /// The tensors on the device, one for each argument.
    tensors: Vec<Option<Resident>>,
    call: Call,
}

impl<'a> BoundCuda<'a> {
    /// Uploads the tensors.
    pub(super) fn new(executable: Arc<CudaExecutable>, launch: Launch<'a>) -> Result<BoundCuda<'a>, LaunchError> {
        let shared = Arc::clone(&executable.shared);
        shared.usable(launch.kernel)?;
        shared.context.bind_to_thread().map_err(|e| shared.failed(launch.kernel, e))?;
        let mut tensors = Vec::new();
        for (i, arg) in launch.args.iter().enumerate() {
            let name = argument_name(executable.first(), i);
            tensors.push(arg.tensor().map(|t| Resident::upload(&shared, launch.kernel, name, t)).transpose()?);
        }
        let address = |i: usize| tensors[i].as_ref().map_or(0, |t: &Resident| t.address(&shared));
        let call = Call::new(&executable, &launch, Order::InTurn, address)?;
        Ok(BoundCuda { shared, launch, tensors, call })
    }
}

impl Bound for BoundCuda<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        let (shared, kernel) = (&self.shared, self.launch.kernel);
        shared.usable(kernel)?;
        let done = self.call.enqueue().and_then(|()| shared.stream.synchronize());
        done.map_err(|e| shared.failed_call(kernel, &self.call, e))
    }

    fn time(&mut self, repeats: usize) -> Result<Vec<Duration>, LaunchError> {
        let (shared, kernel, call) = (&self.shared, self.launch.kernel, &mut self.call);
        shared.usable(kernel)?;
        let times = time::launches(shared, repeats, || call.enqueue());
        times.map_err(|e| shared.failed_call(kernel, call, e))
    }

    fn finish(&mut self) -> Result<(), LaunchError> {
        for (arg, tensor) in self.launch.args.iter().zip(&self.tensors) {
            if let Some(tensor) = tensor {
                tensor.download(&self.shared, self.launch.kernel, arg)?;
            }
        }
        Ok(())
    }
}
