//! The simulated GPU as a device: runs the PTX that a GPU would get, and fails a launch that does anything wrong.

use super::ptx_args::{self, Loaded, MapTensor};
use super::{Backend, Bound, Executable, Launch, Ready};
use crate::launch::{Arg, LaunchError};
use crate::sim::{FaultKind, LaunchDims, Module, ParamBlock, Recording, SimOptions, Swizzle, TensorElem, TensorMap};
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use zellige_codegen::ptx::{Arch, Assertion, MapSpec, PtxKernel, PtxOptions};
use zellige_ir::{DType, Func};

const NAME: &str = "sim";

/// Bytes that device memory is handed out in, at least.
const WORD: usize = 4;

/// Few, so that the blocks of small problems share them.
const MULTIPROCESSORS: usize = 3;

/// The launches of a simulated GPU that keeps them.
pub type Recordings = Arc<Mutex<Vec<Recording>>>;

/// Compiles for one architecture.
pub(super) struct Sim {
    arch: Arch,
    recordings: Option<Recordings>,
}

impl Sim {
    /// The newest architecture that the simulator and the compiler know.
    pub fn new() -> Sim {
        Sim { arch: Arch::Sm90a, recordings: None }
    }

    /// A GPU that keeps its launches.
    pub fn recording(arch: Arch, recordings: Recordings) -> Sim {
        Sim { arch, recordings: Some(recordings) }
    }
}

impl Backend for Sim {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn load(&self, func: &Func) -> Result<Arc<dyn Executable>, String> {
        let loaded = Loaded::new(func, &PtxOptions::new(self.arch), Simulated::load)?;
        Ok(Arc::new(Executables { loaded, recordings: self.recordings.clone() }))
    }

    fn capture<'a>(&self, calls: Vec<Ready<'a>>, overlapped: bool) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        let overlapped = overlapped && self.arch.overlaps_launches();
        let bound = calls.into_iter().map(|(executable, launch)| {
            let any: Arc<dyn Any + Send + Sync> = executable;
            let Ok(kernels) = any.downcast::<Executables>() else {
                unreachable!("a device captures what it has loaded")
            };
            BoundSimulated { kernels, launch, overlapped }
        });
        Ok(Box::new(InTurn(bound.collect())))
    }
}

/// Captured launches. Those that may overlap run one after the other as well, under checks that they wait for each other.
struct InTurn<'a>(Vec<BoundSimulated<'a>>);

impl Bound for InTurn<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        self.0.iter_mut().try_for_each(Bound::run)
    }
}

struct Executables {
    loaded: Loaded<Simulated>,
    recordings: Option<Recordings>,
}

struct Simulated {
    kernel: PtxKernel,
    module: Module,
}

impl Simulated {
    fn load(kernel: PtxKernel) -> Result<Simulated, String> {
        let module = Module::parse(&kernel.ptx).map_err(|e| e.to_string())?;
        Ok(Simulated { kernel, module })
    }
}

impl Executable for Executables {
    fn is_from_cache(&self) -> bool {
        self.loaded.is_from_cache()
    }

    fn bind<'a>(self: Arc<Self>, launch: Launch<'a>) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        Ok(Box::new(BoundSimulated { kernels: self, launch, overlapped: false }))
    }
}

/// The simulator's form of a kernel's map of a tensor at `address`: its extents in elements, innermost first, and the bytes
/// from one index to the next along every axis but the innermost.
///
/// # Errors
/// If the simulator has no such map.
pub fn simulated_map(spec: &MapSpec, address: u64, size: Vec<u64>, stride: Vec<u64>) -> Result<TensorMap, String> {
    let elem = match spec.dtype {
        DType::BF16 => TensorElem::Bf16,
        DType::F16 => TensorElem::F16,
        DType::F32 if spec.tf32 => TensorElem::Tf32,
        DType::F32 => TensorElem::F32,
        DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 => TensorElem::U8,
        dtype => return Err(format!("no tensor map of {dtype}")),
    };
    let swizzle = match spec.swizzle {
        0 => Swizzle::None,
        32 => Swizzle::B32,
        64 => Swizzle::B64,
        128 => Swizzle::B128,
        bytes => return Err(format!("no swizzle of {bytes} bytes")),
    };
    Ok(TensorMap { elem, address, size, stride, tile: spec.tile.clone(), swizzle, nan_fill: false })
}

fn encode(spec: &MapSpec, tensor: &MapTensor) -> Result<[u8; 128], String> {
    simulated_map(spec, tensor.address, tensor.size.clone(), tensor.stride.clone())?.encode()
}

struct BoundSimulated<'a> {
    kernels: Arc<Executables>,
    launch: Launch<'a>,
    /// Launches beside this one may overlap it.
    overlapped: bool,
}

impl Bound for BoundSimulated<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        let call = &self.launch;
        let fail = |cause: String| LaunchError::Device { kernel: call.kernel, device: NAME.to_owned(), cause };
        let picked = self.kernels.loaded.pick(call, self.overlapped, |k| &k.kernel, Simulated::load);
        let simulated = picked.map_err(fail)?;
        let kernel = &simulated.kernel;
        let mut memory = Vec::new();
        let mut addresses = vec![0; call.args.len()];
        // Where the memory of an argument's tensor is.
        let mut places = Vec::new();
        for (i, arg) in call.args.iter().enumerate() {
            if let Some(t) = arg.tensor() {
                let n = t.byte_range().len();
                // SAFETY: the launch holds the tensor's storage, and its bytes span this range.
                let mut bytes = unsafe { std::slice::from_raw_parts(t.as_ptr(), n) }.to_vec();
                // Device memory comes in whole words: kernels update packed elements of the last one in place.
                bytes.resize(n.next_multiple_of(WORD), 0);
                addresses[i] = Recording::base(memory.len());
                places.push((arg, memory.len()));
                memory.push((format!("argument {i}"), bytes));
            }
        }
        let counter_place = memory.len();
        let counter = Recording::base(counter_place);
        memory.push(("counter of blocks".to_owned(), vec![0; WORD]));
        let failure_place = memory.len();
        let failure = Recording::base(failure_place);
        memory.push(("record of failures".to_owned(), vec![0; WORD]));
        let values = ptx_args::values(kernel, call, NAME, |i| addresses[i], || counter, || failure, encode)?;
        let params = kernel
            .params
            .iter()
            .zip(&values)
            .fold(ParamBlock::new(), |block, (slot, v)| block.bytes(slot.align(), &v.0[..slot.bytes()]));
        let dims = LaunchDims {
            grid: ptx_args::grid(kernel, call, NAME, MULTIPROCESSORS)?.into(),
            block: [kernel.threads, 1, 1],
            cluster: [kernel.cluster, 1, 1],
            dynamic_shared: kernel.shared_bytes,
        };
        let recording = Recording {
            ptx: kernel.ptx.clone(),
            entry: kernel.entry.clone(),
            dims,
            params: params.as_bytes().to_vec(),
            memory,
        };
        let replay = recording.replay(&simulated.module, &SimOptions::default()).map_err(|e| fail(e.to_string()))?;
        if let Some(recordings) = &self.kernels.recordings {
            recordings.lock().unwrap_or_else(PoisonError::into_inner).push(recording);
        }
        let number = u32::from_le_bytes(replay.memory[failure_place][..].try_into().unwrap_or_default());
        let broken = number.checked_sub(1).and_then(|at| kernel.assertions.get(at as usize));
        if let Some(Assertion { place, message }) = broken.cloned()
            && replay.report.faults.iter().all(|f| f.kind == FaultKind::Trap)
        {
            return Err(LaunchError::AssertFailed { kernel: call.kernel, place, message });
        }
        if !replay.report.faults.is_empty() {
            return Err(fail(replay.report.describe()));
        }
        if replay.memory[counter_place] != [0; WORD] {
            return Err(fail("the kernel leaves its counter of blocks at another value than 0".to_owned()));
        }
        for (arg, place) in places {
            if let Arg::Write(t) = arg {
                let n = t.byte_range().len();
                let bytes = &replay.memory[place][..n];
                // SAFETY: the launch holds the tensor's storage exclusively, and its bytes span this range.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), t.as_ptr(), n) };
            }
        }
        Ok(())
    }
}
