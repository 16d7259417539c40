//! The simulated GPU as a device: runs the PTX that a GPU would get, and fails a launch that does anything wrong.

use super::{Backend, Bound, Executable, Launch, ptx_args, store};
use crate::launch::{Arg, LaunchError};
use crate::sim::{LaunchDims, Memory, Module, ParamBlock, SimOptions, launch};
use std::sync::Arc;
use zellige_codegen::ptx::{Arch, PtxKernel, PtxOptions};
use zellige_ir::Func;

const NAME: &str = "sim";

/// Bytes that device memory is handed out in, at least.
const WORD: usize = 4;

/// Compiles for the newest architecture that the simulator and the compiler know.
pub(super) struct Sim;

impl Backend for Sim {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn load(&self, func: &Func) -> Result<Arc<dyn Executable>, String> {
        let (kernel, from_cache) = store::ptx(func, &PtxOptions::new(Arch::Sm90a))?;
        let module = Module::parse(&kernel.ptx).map_err(|e| e.to_string())?;
        Ok(Arc::new(Simulated { kernel, module, from_cache }))
    }
}

struct Simulated {
    kernel: PtxKernel,
    module: Module,
    from_cache: bool,
}

impl Executable for Simulated {
    fn is_from_cache(&self) -> bool {
        self.from_cache
    }

    fn bind<'a>(self: Arc<Self>, launch: Launch<'a>) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        Ok(Box::new(BoundSimulated { kernel: self, launch }))
    }
}

struct BoundSimulated<'a> {
    kernel: Arc<Simulated>,
    launch: Launch<'a>,
}

impl Bound for BoundSimulated<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        let (kernel, call) = (&self.kernel.kernel, &self.launch);
        let fail = |cause: String| LaunchError::Device { kernel: call.kernel, device: NAME.to_owned(), cause };
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
        let values = ptx_args::values(kernel, call, NAME, |i| addresses[i])?;
        let params = kernel
            .params
            .iter()
            .zip(&values)
            .fold(ParamBlock::new(), |block, (slot, v)| block.bytes(slot.bytes(), &v[..slot.bytes()]));
        let dims = LaunchDims {
            grid: ptx_args::grid(call, NAME)?.into(),
            block: [kernel.threads, 1, 1],
            ..LaunchDims::linear(1, kernel.threads)
        }
        .with_shared(kernel.shared_bytes);
        let options = SimOptions::default();
        let report = launch(&self.kernel.module, &kernel.entry, dims, params.as_bytes(), &mut memory, &options)
            .map_err(|e| fail(e.to_string()))?;
        if !report.faults.is_empty() {
            return Err(fail(report.describe()));
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
