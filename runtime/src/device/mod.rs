//! Devices and streams.
//!
//! A [`Device`] compiles kernels, keeps the compiled ones, and runs them on [`Stream`]s. What is particular to
//! one kind of device is behind `Backend` and `Executable`.

mod cpu;
mod cuda;
mod interp;
mod ptx_args;
mod resources;
mod sim;
mod store;

pub use resources::Resources;
pub use sim::{Recordings, simulated_map};

use crate::launch::{Arg, LaunchError, ParamSpec, Recordable, Sizes, bind, hold};
use crate::tensor::Hold;
use smallvec::SmallVec;
use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use zellige_codegen::ptx::Arch;
use zellige_ir::prelude::{PreludeError, eval_grid};
use zellige_ir::{Const, Dim, EntityId, Func};

/// One kind of device.
pub(crate) trait Backend: Send + Sync {
    /// What the user calls the device.
    fn name(&self) -> String;

    /// Do other programs take part of the device's time?
    fn is_shared(&self) -> bool {
        true
    }

    /// How fast the device copies its own memory, in bytes read and written a second; `None` if that says nothing about
    /// its kernels.
    fn copy_rate(&self) -> Result<Option<f64>, String> {
        Ok(None)
    }

    /// How long a copy takes that reads and writes `bytes` in all, timed as a launch is; `None` as with
    /// [`copy_rate`](Self::copy_rate).
    fn copy_time(&self, _bytes: usize) -> Result<Option<Duration>, String> {
        Ok(None)
    }

    /// Gets a list of launches ready to be run with one call, in order, on tensors that they share. `overlapped`: each may
    /// begin before the one ahead of it has ended, where the device can.
    fn capture<'a>(&self, _calls: Vec<Ready<'a>>, _overlapped: bool) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        Err(LaunchError::NoGraphs { device: self.name() })
    }

    /// Compiles a verified kernel, or loads it from the cache.
    fn load(&self, func: &Func) -> Result<Arc<dyn Executable>, String>;
}

/// A compiled kernel on its device.
pub(crate) trait Executable: Any + Send + Sync {
    /// Gets everything ready that a launch on these arguments needs.
    fn bind<'a>(self: Arc<Self>, launch: Launch<'a>) -> Result<Box<dyn Bound + 'a>, LaunchError>;

    /// Did the code come from the disk cache?
    fn is_from_cache(&self) -> bool;

    /// How long the vendor's own compiler worked on the code.
    fn driver_time(&self) -> Duration {
        Duration::ZERO
    }

    /// What the kernel takes of the device; `None` if the device does not count it.
    fn resources(&self) -> Option<Resources> {
        None
    }
}

/// A compiled kernel with its arguments in place.
pub(crate) trait Bound {
    /// Runs the kernel once.
    fn run(&mut self) -> Result<(), LaunchError>;

    /// Runs the kernel `repeats` times and returns how long each took, as precisely as the device can tell.
    fn time(&mut self, repeats: usize) -> Result<Vec<Duration>, LaunchError> {
        (0..repeats)
            .map(|_| {
                let start = Instant::now();
                self.run()?;
                Ok(start.elapsed())
            })
            .collect()
    }

    /// Makes the outputs visible in the host's tensors.
    fn finish(&mut self) -> Result<(), LaunchError> {
        Ok(())
    }
}

/// A kernel and a launch that fits it.
pub(crate) type Ready<'a> = (Arc<dyn Executable>, Launch<'a>);

/// A launch whose arguments have been checked.
pub(crate) struct Launch<'a> {
    pub kernel: &'static str,
    /// One for each parameter of the function.
    pub args: &'a [Arg<'a>],
    /// Extents by position in `Func::dims`.
    pub dims: Vec<usize>,
    /// Extents of the grid; none is zero.
    pub grid: SmallVec<[usize; 3]>,
}

/// A kernel with arguments that have been checked and moved to where the device wants them, or a captured list of such
/// kernels: it can be run, and timed, again and again. Outputs appear in the host's tensors with [`finish`](Self::finish).
pub struct BoundLaunch<'a> {
    /// `None` if the grid is empty.
    bound: Option<Box<dyn Bound + 'a>>,
    _holds: Vec<Hold>,
}

impl BoundLaunch<'_> {
    /// Runs the kernel once.
    ///
    /// # Errors
    /// If the device fails or an assertion of the kernel does not hold.
    pub fn run(&mut self) -> Result<(), LaunchError> {
        self.bound.as_mut().map_or(Ok(()), |b| b.run())
    }

    /// Runs the kernel `repeats` times and returns how long each took. On a GPU the time is the device's own, with a cold
    /// L2 cache.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn time(&mut self, repeats: usize) -> Result<Vec<Duration>, LaunchError> {
        self.bound.as_mut().map_or(Ok(vec![Duration::ZERO; repeats]), |b| b.time(repeats))
    }

    /// Makes the outputs visible in the host's tensors.
    ///
    /// # Errors
    /// If the device failed.
    pub fn finish(&mut self) -> Result<(), LaunchError> {
        self.bound.as_mut().map_or(Ok(()), |b| b.finish())
    }
}

/// What it took to make a kernel ready, and what it takes to run it.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuildTimes {
    /// Running the kernel's Rust body and verifying what it recorded.
    pub record: Duration,
    /// Tile IR to machine code, or loading it from the cache.
    pub compile: Duration,
    /// Of that, what the vendor's own compiler took, in the driver.
    pub driver: Duration,
    /// Did the machine code come from the disk cache?
    pub from_cache: bool,
    /// What the kernel takes of a GPU; `None` on other devices.
    pub resources: Option<Resources>,
}

/// A kernel that is ready to run.
pub(crate) struct Loaded {
    func: Func,
    executable: Arc<dyn Executable>,
    times: BuildTimes,
}

type Slot = Arc<OnceLock<Result<Arc<Loaded>, LaunchError>>>;

struct Inner {
    backend: Box<dyn Backend>,
    /// Kernels by identity and extents of the static dims.
    kernels: Mutex<HashMap<(String, Vec<usize>), Slot>>,
}

/// A place where kernels run.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

impl Device {
    fn new(backend: Box<dyn Backend>) -> Device {
        Device(Arc::new(Inner { backend, kernels: Mutex::default() }))
    }

    /// This machine's CPU: blocks of a kernel run on all cores.
    pub fn cpu() -> Device {
        static CPU: OnceLock<Device> = OnceLock::new();
        CPU.get_or_init(|| Device::new(Box::new(cpu::Cpu::new()))).clone()
    }

    /// The interpreter: for small tensors, to find out-of-bounds accesses, uninitialised reads and races.
    pub fn interp() -> Device {
        static INTERP: OnceLock<Device> = OnceLock::new();
        INTERP.get_or_init(|| Device::new(Box::new(interp::Interp))).clone()
    }

    /// The simulated GPU: runs the PTX that a GPU would get, and reports races, bad accesses and deadlocks.
    pub fn sim() -> Device {
        static SIM: OnceLock<Device> = OnceLock::new();
        SIM.get_or_init(|| Device::new(Box::new(sim::Sim::new()))).clone()
    }

    /// A simulated GPU of this architecture that keeps every launch in `recordings`, those that fail included.
    pub fn sim_recording(arch: Arch, recordings: Recordings) -> Device {
        Device::new(Box::new(sim::Sim::recording(arch, recordings)))
    }

    /// The NVIDIA GPU with this number.
    ///
    /// # Errors
    /// If there is no driver, no such GPU, or one that is too old.
    pub fn cuda(ordinal: usize) -> Result<Device, LaunchError> {
        static OPEN: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, device)) = open.iter().find(|(n, _)| *n == ordinal) {
            return Ok(device.clone());
        }
        let device = Device::new(Box::new(cuda::Cuda::open(ordinal)?));
        open.push((ordinal, device.clone()));
        Ok(device)
    }

    /// The device called `name`: `cpu`, `interp`, `sim`, `cuda` or `cuda:N`.
    ///
    /// # Errors
    /// If there is no such device; the message lists those that exist.
    pub fn from_name(name: &str) -> Result<Device, LaunchError> {
        let unknown = || LaunchError::NoDevice {
            name: name.to_owned(),
            cause: "the devices are: cpu, interp, sim, cuda, cuda:N".to_owned(),
        };
        match name {
            "cpu" => Ok(Device::cpu()),
            "interp" => Ok(Device::interp()),
            "sim" => Ok(Device::sim()),
            "cuda" => Device::cuda(0),
            _ => match name.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(n)) => Device::cuda(n),
                Some(Err(_)) | None => Err(unknown()),
            },
        }
    }

    /// What the user calls the device.
    pub fn name(&self) -> String {
        self.0.backend.name()
    }

    /// Do other programs take part of the device's time? Then only its fastest launch says how fast a kernel is.
    pub fn is_shared(&self) -> bool {
        self.0.backend.is_shared()
    }

    /// Measures how fast the device copies memory, in bytes read and written a second: what a kernel that does little
    /// arithmetic can reach at best. `None` on devices that only imitate hardware.
    ///
    /// # Errors
    /// If the device fails.
    pub fn copy_rate(&self) -> Result<Option<f64>, LaunchError> {
        self.0.backend.copy_rate().map_err(|cause| LaunchError::Device { kernel: "copy", device: self.name(), cause })
    }

    /// Measures how long the device takes to copy memory, `bytes` read and written in all, with the median of launches timed as
    /// those of kernels are: what a kernel that moves as much can reach at best, the start and the cold cache included.
    /// `None` on devices where only one rate matters, or none.
    ///
    /// # Errors
    /// If the device fails.
    pub fn copy_time(&self, bytes: usize) -> Result<Option<Duration>, LaunchError> {
        let time = self.0.backend.copy_time(bytes);
        time.map_err(|cause| LaunchError::Device { kernel: "copy", device: self.name(), cause })
    }

    /// A queue of launches on this device.
    pub fn stream(&self) -> Stream {
        Stream { device: self.clone() }
    }

    /// Makes a kernel ready for these extents of its static dims, and says what that took.
    ///
    /// # Errors
    /// If the kernel has mistakes or cannot be compiled.
    pub fn prepare(&self, kernel: &Recordable<'_>, sizes: &Sizes) -> Result<BuildTimes, LaunchError> {
        self.loaded(kernel, sizes).map(|k| k.times)
    }

    /// One thread builds a kernel, however many ask for it.
    fn loaded(&self, kernel: &Recordable<'_>, sizes: &Sizes) -> Result<Arc<Loaded>, LaunchError> {
        let extents = kernel.signature.static_dims.iter().map(|d| sizes.get(d).unwrap_or_default()).collect();
        let slot = {
            let mut kernels = self.0.kernels.lock().unwrap_or_else(PoisonError::into_inner);
            kernels.entry((kernel.key.to_owned(), extents)).or_default().clone()
        };
        slot.get_or_init(|| self.build(kernel, sizes).map(Arc::new)).clone()
    }

    fn build(&self, kernel: &Recordable<'_>, sizes: &Sizes) -> Result<Loaded, LaunchError> {
        let start = Instant::now();
        let func = (kernel.record)(sizes)?;
        let record = start.elapsed();
        let start = Instant::now();
        let executable = self.0.backend.load(&func).map_err(|cause| LaunchError::Compile {
            kernel: kernel.signature.kernel,
            device: self.name(),
            cause,
        })?;
        let times = BuildTimes {
            record,
            compile: start.elapsed(),
            driver: executable.driver_time(),
            from_cache: executable.is_from_cache(),
            resources: executable.resources(),
        };
        Ok(Loaded { func, executable, times })
    }
}

/// A queue of launches: they run in order.
#[derive(Clone, Debug)]
pub struct Stream {
    device: Device,
}

impl Stream {
    /// The device the launches run on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Checks the arguments, builds the kernel if this is its first launch, runs it and waits for it. A grid with an
    /// empty axis runs nothing.
    ///
    /// # Errors
    /// If an argument does not fit, the kernel cannot be built, or the device fails.
    pub fn launch(&self, kernel: &Recordable<'_>, args: &[Arg<'_>]) -> Result<(), LaunchError> {
        let mut bound = self.bind(kernel, args)?;
        bound.run()?;
        bound.finish()
    }

    /// Checks the arguments, builds the kernel if it is not ready, and puts the arguments where the device wants them.
    /// The tensors are in use until the result is dropped.
    ///
    /// # Errors
    /// If an argument does not fit, the kernel cannot be built, or the device has no room.
    pub fn bind<'a>(&self, kernel: &Recordable<'_>, args: &'a [Arg<'a>]) -> Result<BoundLaunch<'a>, LaunchError> {
        let Some((executable, launch)) = self.checked(kernel, args)? else {
            return Ok(BoundLaunch { bound: None, _holds: Vec::new() });
        };
        let holds = hold([(kernel.signature, args)])?;
        Ok(BoundLaunch { bound: Some(executable.bind(launch)?), _holds: holds })
    }

    /// Records a list of launches, to be run in order with one call as often as wanted. A tensor that several of them use
    /// is one on the device: what a kernel writes the next ones read. The tensors are in use until the result is dropped.
    ///
    /// # Errors
    /// [`LaunchError::NoGraphs`] on devices that cannot; as [`bind`](Self::bind) for each launch; and on a GPU if two
    /// tensors overlap without being the same.
    pub fn capture<'a>(&self, launches: &[(Recordable<'_>, &'a [Arg<'a>])]) -> Result<BoundLaunch<'a>, LaunchError> {
        self.captured(launches, false)
    }

    /// As [`capture`](Self::capture), with launches that overlap: the blocks of the next are put in place while the last of
    /// the one before run, and wait for its end before they touch memory. The results are the same; what it saves is the time
    /// between short launches. Devices before Hopper run the launches one after the other.
    ///
    /// # Errors
    /// As [`capture`](Self::capture).
    pub fn capture_overlapped<'a>(
        &self,
        launches: &[(Recordable<'_>, &'a [Arg<'a>])],
    ) -> Result<BoundLaunch<'a>, LaunchError> {
        self.captured(launches, true)
    }

    fn captured<'a>(
        &self,
        launches: &[(Recordable<'_>, &'a [Arg<'a>])],
        overlapped: bool,
    ) -> Result<BoundLaunch<'a>, LaunchError> {
        let mut calls = Vec::new();
        for (kernel, args) in launches {
            calls.extend(self.checked(kernel, args)?);
        }
        let holds = hold(launches.iter().map(|(k, args)| (k.signature, *args)))?;
        Ok(BoundLaunch { bound: Some(self.device.0.backend.capture(calls, overlapped)?), _holds: holds })
    }

    /// A kernel that is ready and a launch that fits it; `None` if the grid is empty.
    fn checked<'a>(&self, kernel: &Recordable<'_>, args: &'a [Arg<'a>]) -> Result<Option<Ready<'a>>, LaunchError> {
        let name = kernel.signature.kernel;
        let sizes = bind(kernel.signature, args)?;
        let loaded = self.device.loaded(kernel, &sizes)?;
        let func = &loaded.func;
        let dims: Vec<usize> = func
            .dims
            .iter()
            .map(|(_, d)| sizes.get(&d.name).expect("every dim of a kernel is in its signature"))
            .collect();
        let scalars: Vec<Const> = args
            .iter()
            .zip(&kernel.signature.params)
            .filter_map(|(a, p)| match (a, p) {
                (Arg::Scalar(c), ParamSpec::Scalar { .. }) => Some(*c),
                _ => None,
            })
            .collect();
        let by_dim: Vec<(Dim, usize)> = dims.iter().enumerate().map(|(i, &n)| (Dim::from_index(i), n)).collect();
        let grid = eval_grid(func, &by_dim, &scalars).map_err(|e| match e {
            PreludeError::Assert { span, message } => {
                LaunchError::AssertFailed { kernel: name, place: span.to_string(), message }
            }
            other => LaunchError::Grid { kernel: name, cause: other.to_string() },
        })?;
        if grid.contains(&0) {
            return Ok(None);
        }
        Ok(Some((Arc::clone(&loaded.executable), Launch { kernel: name, args, dims, grid })))
    }
}
