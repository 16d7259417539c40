//! From PTX to a function that the GPU can run.

use super::Shared;
use super::error::describe;
use super::launch::BoundCuda;
use super::record::Record;
use crate::device::ptx_args::Loaded;
use crate::device::{Bound, Executable, Launch, Resources};
use crate::launch::LaunchError;
use cudarc::driver::sys::{self, CUfunction_attribute_enum, CUjit_option};
use cudarc::driver::{DriverError, result};
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zellige_codegen::ptx::{PtxKernel, PtxOptions};
use zellige_ir::Func;

/// Room for what the driver's compiler says about a module.
const LOG_BYTES: usize = 16 << 10;

/// Bytes of dynamic shared memory that a kernel has without asking for more.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// A compiled kernel with its variants.
pub(super) struct CudaExecutable {
    pub(super) shared: Arc<Shared>,
    kernels: Loaded<Function>,
    /// What the driver's compiler took for the first of them.
    driver: Duration,
}

/// A kernel in the driver.
pub(super) struct Function {
    pub(super) kernel: PtxKernel,
    pub(super) handle: sys::CUfunction,
    pub(super) resources: Resources,
    /// Where the kernel says which of its assertions did not hold, if it has any.
    pub(super) failure: Option<Record>,
    /// Blocks that the device runs at a time.
    pub(super) resident: usize,
}

// SAFETY: a function handle may be used from any thread that has its context current.
unsafe impl Send for Function {}
// SAFETY: as above; the driver synchronises calls.
unsafe impl Sync for Function {}

impl Function {
    /// Hands the PTX to the driver's compiler.
    ///
    /// # Errors
    /// With the compiler's words, if it refuses the text.
    fn load(shared: &Shared, kernel: PtxKernel) -> Result<Function, String> {
        shared.context.bind_to_thread().map_err(describe)?;
        let handle = load_function(&kernel)?;
        let resources = resources(shared, &kernel, handle).map_err(describe)?;
        let resident = resident(shared, &kernel, handle, &resources).map_err(describe)?;
        let failure = (!kernel.assertions.is_empty()).then(Record::new).transpose().map_err(describe)?;
        Ok(Function { kernel, handle, resources, failure, resident })
    }
}

impl CudaExecutable {
    /// Compiles a kernel and loads it.
    ///
    /// # Errors
    /// If it does not compile or load.
    pub(super) fn load(shared: &Arc<Shared>, func: &Func, options: &PtxOptions) -> Result<CudaExecutable, String> {
        let mut driver = Duration::ZERO;
        let kernels = Loaded::new(func, options, |kernel| {
            let start = Instant::now();
            let function = Function::load(shared, kernel);
            driver = start.elapsed();
            function
        })?;
        Ok(CudaExecutable { shared: Arc::clone(shared), kernels, driver })
    }

    /// The kernel that launches get if they can.
    pub(super) fn first(&self) -> &PtxKernel {
        &self.kernels.first().kernel
    }

    /// The kernel for a launch, one that launches beside it may overlap if `overlapped`.
    ///
    /// # Errors
    /// If a variant is needed and does not compile or load.
    pub(super) fn pick(&self, launch: &Launch<'_>, overlapped: bool) -> Result<Arc<Function>, LaunchError> {
        let picked =
            self.kernels.pick(launch, overlapped, |f| &f.kernel, |kernel| Function::load(&self.shared, kernel));
        let device = &self.shared.name;
        picked.map_err(|cause| LaunchError::Device { kernel: launch.kernel, device: device.clone(), cause })
    }
}

/// Compiles the PTX in the driver.
fn load_function(kernel: &PtxKernel) -> Result<sys::CUfunction, String> {
    let text = CString::new(kernel.ptx.as_str()).map_err(|e| format!("the PTX text is broken: {e}"))?;
    let mut log = vec![0u8; LOG_BYTES];
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut::<c_void>(LOG_BYTES)];
    let mut module = ptr::null_mut();
    // SAFETY: the text ends with a zero, the options match their values, and the log outlives the call.
    let status = unsafe {
        sys::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    status.result().map_err(|e| {
        let said = String::from_utf8_lossy(&log);
        format!("the driver refuses the PTX: {}: {}", describe(e), said.trim_end_matches('\0').trim())
    })?;
    let entry = CString::new(kernel.entry.as_str()).map_err(|e| format!("the kernel's name is broken: {e}"))?;
    // SAFETY: the module was just loaded and is never unloaded: kernels live as long as their device.
    let function = unsafe { result::module::get_function(module, entry) }.map_err(describe)?;
    if kernel.shared_bytes > DEFAULT_SHARED {
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is valid.
        unsafe { result::function::set_function_attribute(function, attribute, kernel.shared_bytes as i32) }
            .map_err(|e| format!("{} bytes of shared memory: {}", kernel.shared_bytes, describe(e)))?;
    }
    Ok(function)
}

/// Asks the driver how many blocks it runs at a time: blocks of a cluster share a part of the device.
fn resident(
    shared: &Shared,
    kernel: &PtxKernel,
    function: sys::CUfunction,
    resources: &Resources,
) -> Result<usize, DriverError> {
    if kernel.cluster == 1 {
        return Ok(shared.multiprocessors * resources.blocks_per_sm.max(1) as usize);
    }
    let config = sys::CUlaunchConfig {
        gridDimX: kernel.cluster,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: kernel.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: kernel.shared_bytes,
        hStream: shared.stream.cu_stream(),
        attrs: ptr::null_mut(),
        numAttrs: 0,
    };
    let mut clusters = 0;
    // SAFETY: the function is valid, and the configuration outlives the call; the size of a cluster is the kernel's own.
    unsafe { sys::cuOccupancyMaxActiveClusters(&mut clusters, function, &config) }.result()?;
    Ok(usize::try_from(clusters).unwrap_or(0).max(1) * kernel.cluster as usize)
}

/// Asks the driver what the kernel takes.
fn resources(shared: &Shared, kernel: &PtxKernel, function: sys::CUfunction) -> Result<Resources, DriverError> {
    let attribute = |which| {
        // SAFETY: the function is valid.
        unsafe { result::function::get_function_attribute(function, which) }.map(|n| u32::try_from(n).unwrap_or(0))
    };
    let dynamic = kernel.shared_bytes;
    // SAFETY: the function is valid.
    let blocks = unsafe {
        result::occupancy::max_active_block_per_multiprocessor(function, kernel.threads as i32, dynamic as usize)
    }?;
    let blocks_per_sm = u32::try_from(blocks).unwrap_or(0);
    let most = shared.context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?;
    Ok(Resources {
        registers: attribute(CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        local_bytes: attribute(CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        shared_bytes: attribute(CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? + dynamic,
        threads: kernel.threads,
        blocks_per_sm,
        occupancy: f64::from(blocks_per_sm * kernel.threads) / f64::from(most.max(1)),
    })
}

impl Executable for CudaExecutable {
    fn is_from_cache(&self) -> bool {
        self.kernels.is_from_cache()
    }

    fn driver_time(&self) -> Duration {
        self.driver
    }

    fn resources(&self) -> Option<Resources> {
        Some(self.kernels.first().resources)
    }

    fn bind<'a>(self: Arc<Self>, launch: Launch<'a>) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        Ok(Box::new(BoundCuda::new(self, launch)?))
    }
}
