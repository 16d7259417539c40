//! A simulated GPU that executes PTX text on the CPU, warp by warp, and reports what a kernel does wrong.
//!
//! It reads the PTX that would go to the driver, so it tests the emitter and not a twin of it. Besides results it reports
//! out-of-bounds, misaligned and uninitialised accesses, data races by happens-before, missing waits and proxy fences,
//! deadlocks, bank conflicts and uncoalesced accesses. Depends on no other module of the runtime.
//!
//! # What it assumes
//! - Blocks (clusters) run one after another in grid order, or in parallel when neither checks nor global atomics forbid it.
//!   A kernel whose block waits for a later one runs out of budget here.
//! - The warps of a block take turns at waits; [`SimOptions::shuffle`] interleaves them at random instead. Lanes of a warp
//!   run in lockstep and meet again at the immediate post-dominator of a branch.
//! - Asynchronous copies move their data at issue (bulk) or when waited for (`cp.async`); the race check, not the timing,
//!   finds missing waits. Bulk copies, `wgmma` and their proxy fences follow the ISA's memory model: a proxy fence counts
//!   wherever it stands on the path from the write to the asynchronous access.
//! - In shared memory, order comes from `bar`, `barrier.cluster`, `bar.warp.sync`, mbarriers and waits for asynchronous
//!   operations. Flags in shared memory polled with volatile or atomic accesses order nothing, and shuffles and votes do not
//!   order memory, as the ISA says. In global memory the same holds within a block; blocks are ordered by atomics behind fences.
//! - Approximate instructions return the correctly rounded result or one within an ulp of it. Matrix products add exact
//!   products in f32 by ascending k. Division of integers by zero gives all ones.
//! - An instruction or modifier that is not simulated is refused when the module is loaded, never skipped.
//!
//! # Speed
//! `cargo bench -p zellige-benches --bench sim_speed` simulates recorded launches with every check on and divides their
//! thread-instructions by the processor time of the one thread that runs them, which other work on the machine does not change.
//! On an AMD EPYC in November 2026 that gave, in millions a second: element-wise 135, reduction 276, `mma.sync` 59, `wgmma` 46,
//! where a `wgmma` counts as one instruction of each thread.
//!
//! # Example
//! ```
//! use zellige_runtime::sim::{LaunchDims, Memory, Module, SimOptions, launch};
//! let ptx = "
//! .version 8.0
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 p) {
//!     .reg .b64 %rd<4>; .reg .b32 %r<4>;
//!     ld.param.u64 %rd1, [p];
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd2, %r1, 4;
//!     add.s64 %rd3, %rd1, %rd2;
//!     ld.global.u32 %r2, [%rd3];
//!     add.u32 %r3, %r2, %r2;
//!     st.global.u32 [%rd3], %r3;
//!     ret;
//! }";
//! let module = Module::parse(ptx)?;
//! let mut memory = Memory::new();
//! let p = memory.alloc_init("x", &7u32.to_le_bytes().repeat(32));
//! let report = launch(&module, "twice", LaunchDims::linear(1, 32), &p.to_le_bytes(), &mut memory, &SimOptions::default())?;
//! assert!(report.faults.is_empty(), "{}", report.describe());
//! assert_eq!(memory.read(p, 4)?, 14u32.to_le_bytes());
//! # Ok::<(), zellige_runtime::sim::SimError>(())
//! ```

mod check;
mod decode;
mod error;
mod exec;
mod fault;
mod launch;
mod memory;
mod options;
mod params;
mod parse;
mod recording;
mod stats;

pub use decode::Kernel;
pub use error::{SimError, SourceRef};
pub use exec::tensormap::{Swizzle, TensorElem, TensorMap};
pub use fault::{Fault, FaultKind};
pub use launch::{Report, launch};
pub use memory::Memory;
pub use options::{LaunchDims, SimOptions};
pub use params::ParamBlock;
pub use parse::ast::ParamDecl;
pub use recording::{Recording, Replay};
pub use stats::{InstReport, InstStats, Stats};

/// A loaded module: decoded kernels and the initial contents of its variables.
#[derive(Debug, Clone)]
pub struct Module {
    kernels: Vec<Kernel>,
    image: decode::Image,
}

impl Module {
    /// Parses and decodes PTX text.
    ///
    /// # Errors
    /// [`SimError::Parse`] for what is not PTX, [`SimError::NotSimulated`] for what the simulator does not know,
    /// [`SimError::Invalid`] for operands that do not fit their instruction; each with the line and its text.
    pub fn parse(text: &str) -> Result<Module, SimError> {
        let ast = parse::parse(text)?;
        let lines: Vec<&str> = text.lines().collect();
        let image = decode::image(&ast);
        let kernels =
            ast.entries.iter().map(|e| decode::kernel(&ast, &image, e, &lines)).collect::<Result<Vec<_>, _>>()?;
        Ok(Module { kernels, image })
    }

    /// The kernel of that name.
    ///
    /// # Errors
    /// [`SimError::UnknownKernel`], listing those there are.
    pub fn kernel(&self, name: &str) -> Result<&Kernel, SimError> {
        self.kernels.iter().find(|k| k.name == name).ok_or_else(|| SimError::UnknownKernel {
            name: name.into(),
            available: self.kernels.iter().map(|k| k.name.clone()).collect(),
        })
    }

    /// All kernels, in the order of the text.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }
}
