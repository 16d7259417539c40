//! NVIDIA GPUs through the driver, which is loaded at run time: nothing of CUDA is needed to build or to start.
//!
//! The driver's own compiler turns our PTX into machine code. Tensors are uploaded when a launch is bound and the written
//! ones downloaded when it is finished; in between a kernel runs, and is timed with events, on resident data.

use super::{Backend, Bound, Executable, Launch, Resources, ptx_args};
use crate::launch::{Arg, LaunchError};
use cudarc::driver::sys::{self, CUfunction_attribute_enum, CUjit_option};
use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, DriverError, result};
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use zellige_codegen::ptx::{Arch, PtxKernel, PtxOptions, compile};
use zellige_ir::Func;

/// Written between two timed launches, larger than the L2 cache of any GPU so far.
const FLUSH_BYTES: usize = 256 << 20;

/// Copied to measure memory bandwidth, so much more than the L2 cache that the cache does not matter.
const COPY_BYTES: usize = 1 << 30;

/// Room for what the driver's compiler says about a module.
const LOG_BYTES: usize = 16 << 10;

pub(super) struct Cuda {
    shared: Arc<Shared>,
}

/// What the device and its kernels share.
struct Shared {
    name: String,
    arch: Arch,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Why the context is unusable: after a failed launch the driver refuses everything in this process.
    lost: Mutex<Option<String>>,
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
        let stream = context.new_stream().map_err(driver)?;
        Ok(Cuda { shared: Arc::new(Shared { name, arch, context, stream, lost: Mutex::new(None) }) })
    }
}

/// The driver's words for an error.
fn describe(e: DriverError) -> String {
    let text =
        |s: Result<&std::ffi::CStr, DriverError>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{} ({})", text(e.error_string()), text(e.error_name()))
}

impl Shared {
    /// Turns a driver error of a launch into ours; the context is given up if the error is one that sticks.
    fn failed(&self, kernel: &'static str, e: DriverError) -> LaunchError {
        let cause = match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                "the GPU has no memory left for the tensors: use smaller ones, or free others".to_owned()
            }
            _ => describe(e),
        };
        if self.context.synchronize().is_err() {
            let lost = format!(
                "kernel `{kernel}` failed earlier ({cause}), after which the driver refuses all work; start the process anew"
            );
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(lost);
        }
        LaunchError::Device { kernel, device: self.name.clone(), cause }
    }

    /// Refuses work on a context that was lost.
    fn usable(&self, kernel: &'static str) -> Result<(), LaunchError> {
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(cause) => Err(LaunchError::Device { kernel, device: self.name.clone(), cause: cause.clone() }),
        }
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
        copy_rate(&self.shared).map(Some).map_err(describe)
    }

    fn load(&self, func: &Func) -> Result<Arc<dyn Executable>, String> {
        let kernel = compile(func, &PtxOptions::new(self.shared.arch)).map_err(|e| e.to_string())?;
        self.shared.context.bind_to_thread().map_err(describe)?;
        let function = load_function(&kernel)?;
        let resources = resources(&self.shared, &kernel, function).map_err(describe)?;
        Ok(Arc::new(CudaExecutable { shared: Arc::clone(&self.shared), kernel, function, resources }))
    }
}

/// The median of a few copies between two buffers that no cache holds, in bytes read and written a second.
fn copy_rate(shared: &Shared) -> Result<f64, DriverError> {
    const COPIES: usize = 11;
    let (free, _) = shared.context.mem_get_info()?;
    let bytes = COPY_BYTES.min(free / 4);
    let stream = &shared.stream;
    let source = stream.alloc_zeros::<u8>(bytes)?;
    let mut target = stream.alloc_zeros::<u8>(bytes)?;
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let mut events = Vec::new();
    // The first is a warm-up.
    for _ in 0..=COPIES {
        let start = stream.record_event(flags)?;
        stream.memcpy_dtod(&source, &mut target)?;
        events.push((start, stream.record_event(flags)?));
    }
    stream.synchronize()?;
    let times: Result<Vec<f32>, DriverError> = events[1..].iter().map(|(a, b)| a.elapsed_ms(b)).collect();
    let mut times = times?;
    times.sort_by(f32::total_cmp);
    Ok(2.0 * bytes as f64 / (f64::from(times[COPIES / 2]) / 1e3))
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
    if kernel.shared_bytes > 48 * 1024 {
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is valid.
        unsafe { result::function::set_function_attribute(function, attribute, kernel.shared_bytes as i32) }
            .map_err(|e| format!("{} bytes of shared memory: {}", kernel.shared_bytes, describe(e)))?;
    }
    Ok(function)
}

struct CudaExecutable {
    shared: Arc<Shared>,
    kernel: PtxKernel,
    function: sys::CUfunction,
    resources: Resources,
}

// SAFETY: a function handle may be used from any thread that has its context current.
unsafe impl Send for CudaExecutable {}
// SAFETY: as above; the driver synchronises calls.
unsafe impl Sync for CudaExecutable {}

impl Executable for CudaExecutable {
    fn is_from_cache(&self) -> bool {
        false
    }

    fn resources(&self) -> Option<Resources> {
        Some(self.resources)
    }

    fn bind<'a>(self: Arc<Self>, launch: Launch<'a>) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        let shared = &self.shared;
        shared.usable(launch.kernel)?;
        let failed = |e| shared.failed(launch.kernel, e);
        shared.context.bind_to_thread().map_err(failed)?;
        let mut buffers = Vec::new();
        for arg in launch.args {
            buffers.push(match arg.tensor() {
                None => None,
                Some(t) => {
                    let n = t.byte_range().len();
                    // SAFETY: the launch holds the tensor's storage, and its bytes span this range.
                    let bytes = unsafe { std::slice::from_raw_parts(t.as_ptr(), n) };
                    // Whole words, since kernels update packed elements of the last one in place, and at least one, so that
                    // an empty tensor has an address.
                    let mut buffer = shared.stream.alloc_zeros::<u8>(n.next_multiple_of(16).max(16)).map_err(failed)?;
                    shared.stream.memcpy_htod(bytes, &mut buffer.slice_mut(..n)).map_err(failed)?;
                    Some(buffer)
                }
            });
        }
        let address = |i: usize| buffers[i].as_ref().map_or(0, |b: &CudaSlice<u8>| b.device_ptr(&shared.stream).0);
        let params = ptx_args::values(&self.kernel, &launch, &shared.name, address)?;
        let grid = ptx_args::grid(&launch, &shared.name)?;
        Ok(Box::new(BoundCuda { executable: Arc::clone(&self), launch, buffers, params, grid }))
    }
}

struct BoundCuda<'a> {
    executable: Arc<CudaExecutable>,
    launch: Launch<'a>,
    /// The tensors on the device, one for each argument.
    buffers: Vec<Option<CudaSlice<u8>>>,
    params: Vec<ptx_args::ParamBytes>,
    grid: (u32, u32, u32),
}

impl BoundCuda<'_> {
    /// Queues the kernel.
    fn enqueue(&mut self) -> Result<(), DriverError> {
        let kernel = &self.executable.kernel;
        let mut pointers: Vec<*mut c_void> = self.params.iter_mut().map(|p| p.as_mut_ptr().cast()).collect();
        // SAFETY: one pointer for each parameter of the kernel, each to a value at least as wide; the tensors they
        // name stay allocated while `self` lives, and the launch was checked against the kernel's signature.
        unsafe {
            result::launch_kernel(
                self.executable.function,
                self.grid,
                (kernel.threads, 1, 1),
                kernel.shared_bytes,
                self.executable.shared.stream.cu_stream(),
                &mut pointers,
            )
        }
    }

    fn timed(&mut self, repeats: usize) -> Result<Vec<Duration>, DriverError> {
        let shared = Arc::clone(&self.executable.shared);
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let mut flush = shared.stream.alloc_zeros::<u8>(FLUSH_BYTES)?;
        let mut events: Vec<(CudaEvent, CudaEvent)> = Vec::new();
        for _ in 0..repeats {
            shared.stream.memset_zeros(&mut flush)?;
            let start = shared.stream.record_event(flags)?;
            self.enqueue()?;
            events.push((start, shared.stream.record_event(flags)?));
        }
        shared.stream.synchronize()?;
        events.iter().map(|(a, b)| Ok(Duration::from_secs_f32(a.elapsed_ms(b)? / 1e3))).collect()
    }
}

impl Bound for BoundCuda<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        let shared = Arc::clone(&self.executable.shared);
        shared.usable(self.launch.kernel)?;
        self.enqueue().and_then(|()| shared.stream.synchronize()).map_err(|e| shared.failed(self.launch.kernel, e))
    }

    fn time(&mut self, repeats: usize) -> Result<Vec<Duration>, LaunchError> {
        let shared = Arc::clone(&self.executable.shared);
        shared.usable(self.launch.kernel)?;
        self.timed(repeats).map_err(|e| shared.failed(self.launch.kernel, e))
    }

    fn finish(&mut self) -> Result<(), LaunchError> {
        let shared = &self.executable.shared;
        for (arg, buffer) in self.launch.args.iter().zip(&self.buffers) {
            if let (Arg::Write(t), Some(buffer)) = (arg, buffer) {
                let n = t.byte_range().len();
                let bytes = shared.stream.clone_dtoh(buffer).map_err(|e| shared.failed(self.launch.kernel, e))?;
                // SAFETY: the launch holds the tensor's storage exclusively, and its bytes span this range.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), t.as_ptr(), n) };
            }
        }
        Ok(())
    }
}
