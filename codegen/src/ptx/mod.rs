//! The PTX backend: tile IR -> SIMT IR -> PTX text.
//!
//! [`compile`] runs the whole path: the tile IR's passes come first (rolling, so that recorded repetitions do not fill the
//! instruction cache, and [`zellige_ir::passes::pipeline`]), layouts are inferred and every tile op becomes what a thread
//! does ([`lower`]), shared memory is planned and barriers are inserted ([`pipeline`]), dead code goes ([`passes`]), and
//! text comes out ([`emit`]).
//! Nothing here launches anything or needs a GPU, a driver or an assembler.
//!
//! Depends on `zellige_ir` alone. Feature levels: sm_80, 8-bit floats from sm_89 on, and on sm_90a tensor copies, mbarriers,
//! `wgmma` and warps with roles for the loops that fit them ([`lower`]'s `hopper`).

pub mod emit;
mod error;
pub mod lower;
pub mod passes;
pub mod pipeline;
pub mod simt;
mod target;

pub use error::CodegenError;
pub use lower::{Layouts, TileLayout, layouts};
pub use simt::{Assertion, GridPlan, MapSpec, ParamSlot};
pub use target::{Arch, Target};

use pipeline::{barrier, shared};
use serde::{Deserialize, Serialize};
use zellige_ir::Func;
use zellige_ir::passes::pipeline as tile_passes;

/// Largest extent of a named dim. The launcher checks it; index arithmetic relies on it.
pub const DIM_LIMIT: i64 = 1 << 30;

/// What an aligned dim or stride is a multiple of, in elements: with it rows of 8-bit elements start at whole 16 bytes.
pub const ALIGNED: u64 = 16;

/// How to compile.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PtxOptions {
    pub target: Target,
    /// Parameters that the launcher vouches are multiples of [`ALIGNED`], by bit; of those that [`alignable`] names.
    pub aligned: u64,
    /// Put the author's places into the PTX, for profilers and debuggers.
    pub line_info: bool,
    /// The launcher can build tensor maps: kernels for Hopper may copy with them.
    pub tensor_maps: bool,
    /// The kernel may be launched before the launch ahead of it has ended, and lets the one behind it be: see
    /// [`Arch::overlaps_launches`]. It waits before it touches memory.
    pub overlapped: bool,
}

impl PtxOptions {
    pub fn new(arch: Arch) -> PtxOptions {
        PtxOptions { target: Target::new(arch), aligned: 0, line_info: true, tensor_maps: true, overlapped: false }
    }

    /// The same for launches where these parameters are multiples of [`ALIGNED`].
    #[must_use]
    pub fn aligned(self, aligned: u64) -> PtxOptions {
        PtxOptions { aligned, ..self }
    }
}

/// Parameters whose divisibility decides how wide a kernel's accesses are, as bits of their positions: strides, and the
/// dims that rows are long.
pub fn alignable(func: &Func) -> u64 {
    lower::alignable(func)
}

/// A compiled kernel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PtxKernel {
    /// The module.
    pub ptx: String,
    /// Name of its entry.
    pub entry: String,
    /// Dynamic shared memory that a launch must ask for, in bytes.
    pub shared_bytes: u32,
    /// Threads in a block.
    pub threads: u32,
    /// What to pass, in order.
    pub params: Vec<ParamSlot>,
    /// What it asserts; the number that it records of one that does not hold is its position plus 1.
    pub assertions: Vec<Assertion>,
    /// How many blocks to launch.
    pub grid: GridPlan,
    /// Blocks of a cluster: the grid's first extent must be a multiple.
    pub cluster: u32,
    /// Decisions: layouts, staging, pipelining, shared memory, every barrier with its reason.
    pub explain: Vec<String>,
    pub metadata: Metadata,
}

/// Facts about a compiled kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Metadata {
    /// SIMT ops after all passes, loop bodies counted once.
    pub ops: usize,
    /// Barriers in the text.
    pub barriers: usize,
}

/// Compiles a verified function to PTX.
///
/// # Errors
/// If the kernel needs what the target does not have: more shared memory, a type without arithmetic, a block of odd size.
pub fn compile(func: &Func, opts: &PtxOptions) -> Result<PtxKernel, CodegenError> {
    let (kernel, explain) = simt_kernel(func, opts)?;
    let ptx = emit::emit(&kernel, opts.target, opts.line_info);
    let (mut ops, mut barriers) = (0, 0);
    kernel.walk(kernel.body, &mut |_, data| {
        ops += 1;
        barriers += usize::from(matches!(data.op, simt::SimtOp::Bar {} | simt::SimtOp::BarPart { .. }));
    });
    Ok(PtxKernel {
        ptx,
        entry: emit::identifier(&kernel.name),
        shared_bytes: kernel.shared_bytes,
        threads: kernel.threads,
        params: kernel.params,
        assertions: kernel.assertions,
        grid: kernel.grid,
        cluster: kernel.cluster,
        explain,
        metadata: Metadata { ops, barriers },
    })
}

/// The kernel's final SIMT IR and the decisions on the way to it.
///
/// # Errors
/// As [`compile`].
pub fn simt_kernel(func: &Func, opts: &PtxOptions) -> Result<(simt::Kernel, Vec<String>), CodegenError> {
    let mut func = func.clone();
    tile_passes::run_with(&mut func, &[tile_passes::ROLL], &mut |_, _, _| {});
    tile_passes::run(&mut func);
    let have = opts.target.arch.max_shared_bytes();
    let mut shallower = Vec::new();
    let (mut kernel, mut explain) = loop {
        let lower::Lowered { mut kernel, mut explain } = lower::lower(&func, opts)?;
        passes::combine::run(&mut kernel);
        passes::dce::run(&mut kernel);
        passes::overlap::run(&mut kernel, &mut explain);
        passes::waits::run(&mut kernel);
        shared::plan(&mut kernel, &mut explain);
        let need = kernel.shared_bytes;
        if need <= have {
            shallower.append(&mut explain);
            break (kernel, shallower);
        }
        let Some((span, stages)) = pipeline::depth::reduce(&mut func) else {
            return Err(CodegenError::SharedMemory {
                span: func.span.clone(),
                need,
                have,
                arch: opts.target.arch.name(),
            });
        };
        shallower.push(format!(
            "pipeline: the loop at {span} has {stages} stages instead of {}, which need {need} bytes of shared memory of {have}",
            stages + 1
        ));
    };
    barrier::insert(&mut kernel, &mut explain);
    simt::verify(&kernel)?;
    Ok((kernel, explain))
}
