//! The default CPU backend: tile IR to loop IR to machine code through Cranelift.
//!
//! The passes of [`zellige_ir::passes::pipeline`], rolling and forwarding come first. A block of the grid runs on one thread; its tiles live in
//! a per-thread arena; tile ops become vector loops over 128-bit registers, gemm a register-blocked micro-kernel.
//! Depends on `zellige-ir` and Cranelift only.

pub mod abi;
mod clif;
pub mod exec;
mod gemm;
mod helpers;
pub mod loopir;
mod lower;
mod plan;
pub mod run;

pub use abi::{ArgSlot, CpuKernel, Failure, FailureKind, FailureSite, HelperTable, LaunchContext, PrintSite};
pub use clif::host_fingerprint;

use loopir::VerifyError;
use zellige_ir::Func;
use zellige_ir::passes::pipeline;

/// What the author of a launch may choose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CpuOptions {
    /// Also checks accesses to shared, fragment and local buffers, and leaves with a [`FailureSite`] where one is outside.
    pub check_bounds: bool,
}

/// Why a kernel could not be compiled for this CPU.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CodegenError {
    #[error("this CPU lacks {feature}, which compiled kernels need; use the interpreter device instead")]
    MissingFeature { feature: &'static str },
    #[error("Cranelift does not support this machine: {reason}")]
    Host { reason: String },
    #[error("kernel `{kernel}` could not be compiled to machine code: {reason}")]
    Cranelift { kernel: String, reason: String },
    #[error("kernel `{kernel}`: {what} at {span} has no CPU lowering; {way_out}")]
    Unsupported { kernel: String, what: String, span: String, way_out: &'static str },
    #[error(transparent)]
    Malformed(#[from] VerifyError),
}

/// A stage whose text [`emit`] can show.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// Loop IR.
    Loop,
    /// Cranelift IR.
    Clif,
    /// Machine code, disassembled by Cranelift.
    Asm,
}

/// Compiles a verified kernel for this machine.
///
/// # Errors
/// If this CPU is not supported or an op has no lowering for its operands.
pub fn compile(func: &Func, opts: &CpuOptions) -> Result<CpuKernel, CodegenError> {
    let lowered = lowered(func, opts)?;
    let (code, _) = clif::machine_code(&lowered.func, false)?;
    Ok(CpuKernel { code, ..lowered.kernel })
}

/// The text of a stage of the lowering.
///
/// # Errors
/// As [`compile`].
pub fn emit(func: &Func, opts: &CpuOptions, stage: Stage) -> Result<String, CodegenError> {
    let lowered = lowered(func, opts)?;
    match stage {
        Stage::Loop => Ok(lowered.func.to_string()),
        Stage::Clif => clif::clif_text(&lowered.func),
        Stage::Asm => Ok(clif::machine_code(&lowered.func, true)?.1.unwrap_or_default()),
    }
}

/// A kernel after the passes over tile IR, in loop IR.
fn lowered(func: &Func, opts: &CpuOptions) -> Result<lower::Lowered, CodegenError> {
    let mut func = func.clone();
    pipeline::run_with(&mut func, &[pipeline::ROLL], &mut |_, _, _| {});
    pipeline::run(&mut func);
    pipeline::run_with(&mut func, &[pipeline::FORWARD], &mut |_, _, _| {});
    let lowered = lower::lower(&func, opts)?;
    if cfg!(debug_assertions) {
        loopir::verify(&lowered.func)?;
    }
    Ok(lowered)
}
