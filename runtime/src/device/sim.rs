//! The simulated GPU as a device: runs the PTX that a GPU would get, and fails a launch that does anything wrong.

use super::ptx_args::{self, Loaded, MapTensor};
use super::{Backend, Bound, Executable, Launch};
use crate::launch::{Arg, LaunchError};
use crate::sim::{LaunchDims, Memory, Module, ParamBlock, SimOptions, Swizzle, TensorElem, TensorMap, launch};
use std::sync::Arc;
use zellige_codegen::ptx::{Arch, MapSpec, PtxKernel, PtxOptions};
use zellige_ir::{DType, Func};

const NAME: &str = "sim";

/// Bytes that device memory is handed out in, at least.
const WORD: usize = 4;

/// Few, so that the blocks of small problems share them.
const MULTIPROCESSORS: usize = 3;

/// Compiles for the newest architecture that the simulator and the compiler know.
pub(super) struct Sim;

impl Backend for Sim {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn load(&self, func: &Func) -> Result<Arc<dyn Executable>, String> {
        Ok(Arc::new(Executables(Loaded::new(func, &PtxOptions::new(Arch::Sm90a), Simulated::load)?)))
    }
}

struct Executables(Loaded<Simulated>);

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
        self.0.is_from_cache()
    }

    fn bind<'a>(self: Arc<Self>, launch: Launch<'a>) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        Ok(Box::new(BoundSimulated { kernels: self, launch }))
    }
}

/// The simulator's form of a tensor map.
fn encode(spec: &MapSpec, tensor: &MapTensor) -> Result<[u8; 128], String> {
    let elem = match spec.dtype {
        DType::BF16 => TensorElem::Bf16,
        DType::F16 => TensorElem::F16,
        DType::F32 => TensorElem::F32,
        dtype => return Err(format!("no tensor map of {dtype}")),
    };
    let swizzle = match spec.swizzle {
        0 => Swizzle::None,
        32 => Swizzle::B32,
        64 => Swizzle::B64,
        128 => Swizzle::B128,
        bytes => return Err(format!("no swizzle of {bytes} bytes")),
    };
    let map = TensorMap {
        elem,
        address: tensor.address,
        size: tensor.size.clone(),
        stride: tensor.stride.clone(),
        tile: spec.tile.clone(),
        swizzle,
        nan_fill: false,
    };
    map.encode()
}

struct BoundSimulated<'a> {
    kernels: Arc<Executables>,
    launch: Launch<'a>,
}

impl Bound for BoundSimulated<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        let call = &self.launch;
        let fail = |cause: String| LaunchError::Device { kernel: call.kernel, device: NAME.to_owned(), cause };
        let simulated = self.kernels.0.pick(call, |k| &k.kernel, Simulated::load).map_err(fail)?;
        let kernel = &simulated.kernel;
        let mut memory = Memory::new();
        let mut addresses = vec![0; call.args.len()];
        for (i, arg) in call.args.iter().enumerate() {
            if let Some(t) = arg.tensor() {
                let n = t.byte_range().len();
                // SAFETY: the launch holds the tensor's storage, and its bytes span this range.
                let mut bytes = unsafe { std::slice::from_raw_parts(t.as_ptr(), n) }.to_vec();
                // Device memory comes in whole words: kernels update packed elements of the last one in place.
                bytes.resize(n.next_multiple_of(WORD), 0);
                addresses[i] = memory.alloc_init(&format!("argument {i}"), &bytes);
            }
        }
        let counter = memory.alloc_init("counter of blocks", &[0; WORD]);
        let values = ptx_args::values(kernel, call, NAME, |i| addresses[i], || counter, encode)?;
        let params = kernel
            .params
            .iter()
            .zip(&values)
            .fold(ParamBlock::new(), |block, (slot, v)| block.bytes(slot.align(), &v.0[..slot.bytes()]));
        let dims = LaunchDims {
            grid: ptx_args::grid(kernel, call, NAME, MULTIPROCESSORS)?.into(),
            block: [kernel.threads, 1, 1],
            cluster: [kernel.cluster, 1, 1],
            ..LaunchDims::linear(1, kernel.threads)
        }
        .with_shared(kernel.shared_bytes);
        let options = SimOptions::default();
        let report = launch(&simulated.module, &kernel.entry, dims, params.as_bytes(), &mut memory, &options)
            .map_err(|e| fail(e.to_string()))?;
        if !report.faults.is_empty() {
            return Err(fail(report.describe()));
        }
        if memory.read(counter, WORD).map_err(|e| fail(e.to_string()))? != [0; WORD] {
            return Err(fail("the kernel leaves its counter of blocks at another value than 0".to_owned()));
        }
        for (arg, address) in call.args.iter().zip(&addresses) {
            if let Arg::Write(t) = arg {
                let n = t.byte_range().len();
                let bytes = memory.read(*address, n).map_err(|e| fail(e.to_string()))?;
                // SAFETY: the launch holds the tensor's storage exclusively, and its bytes span this range.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), t.as_ptr(), n) };
            }
        }
        Ok(())
    }
}
