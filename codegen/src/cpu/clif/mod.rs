//! Loop IR to Cranelift IR to machine code.
//!
//! A straight translation: what is shared, hoisted or kept in a register was decided in loop IR.

mod isa;
mod translate;

pub use isa::{host, host_fingerprint};

use crate::cpu::CodegenError;
use crate::cpu::loopir::LoopFunc;
use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::TargetIsa;

/// Cranelift IR as text.
///
/// # Errors
/// If the host is not supported.
pub fn clif_text(func: &LoopFunc) -> Result<String, CodegenError> {
    let isa = host()?;
    Ok(translate::translate(func, &*isa).display().to_string())
}

/// Machine code as bytes, and its disassembly if asked for.
///
/// # Errors
/// If the host is not supported or Cranelift rejects the function.
pub fn machine_code(func: &LoopFunc, want_asm: bool) -> Result<(Vec<u8>, Option<String>), CodegenError> {
    let isa = host()?;
    compile(func, &*isa, want_asm)
}

fn compile(func: &LoopFunc, isa: &dyn TargetIsa, want_asm: bool) -> Result<(Vec<u8>, Option<String>), CodegenError> {
    let mut ctx = Context::for_function(translate::translate(func, isa));
    ctx.set_disasm(want_asm);
    let code = ctx
        .compile(isa, &mut ControlPlane::default())
        .map_err(|e| CodegenError::Cranelift { kernel: func.name.clone(), reason: format!("{:?}", e.inner) })?;
    if let Some(reloc) = code.buffer.relocs().first() {
        return Err(CodegenError::Cranelift {
            kernel: func.name.clone(),
            reason: format!("machine code needs a relocation: {reloc:?}"),
        });
    }
    Ok((code.code_buffer().to_vec(), code.vcode.clone()))
}
