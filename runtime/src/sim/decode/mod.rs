//! From parsed PTX to the compact instruction array that the warps execute.
//!
//! Every operand becomes a slot number: registers, constants and special registers all live in the same register files, so
//! executing an instruction never asks what kind of operand it has. May depend on `parse` and `error` only.

mod alu;
mod async_copy;
mod builder;
mod cfg;
mod cvt;
mod hopper;
mod matrix;
mod mem;
pub mod op;
pub mod roles;
mod slots;
mod special;
mod sync;
mod types;

use std::collections::HashMap;

pub use async_copy::bulk_slot;
pub use special::Special;

use self::builder::Builder;
use self::op::{Class, Inst};
use super::error::{SimError, SourceRef};
use super::parse::ast::{Ast, Entry, Instr, ParamDecl, VarSpace};

/// First byte of shared memory a kernel may use; the bytes below belong to the system on sm_90, and 0 stays an invalid address.
pub const SHARED_BASE: u32 = 1024;

/// A slot that holds a constant for the whole launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConstSlot {
    pub class: Class,
    pub slot: u32,
    pub value: u64,
}

/// A slot that holds a special register or a block-relative address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialSlot {
    pub class: Class,
    pub slot: u32,
    pub what: Special,
}

/// A decoded kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub name: String,
    pub params: Vec<ParamDecl>,
    /// Size of the parameter block in bytes.
    pub param_bytes: usize,
    pub code: Vec<Inst>,
    /// Slot lists of instructions with many operands.
    pub pool: Vec<u32>,
    /// PTX line of each instruction.
    pub lines: Vec<u32>,
    /// Author's line of each instruction.
    pub sources: Vec<Option<SourceRef>>,
    /// Opcode of each instruction as written, for messages.
    pub opcodes: Vec<String>,
    /// Register-file sizes: predicates, 32-bit, 64-bit.
    pub slots: [u32; 3],
    pub consts: Vec<ConstSlot>,
    pub specials: Vec<SpecialSlot>,
    /// End of the statically sized shared memory, from `SHARED_BASE`.
    pub shared_static: u32,
    /// Where dynamic shared memory begins.
    pub shared_dynamic: u32,
    pub local_bytes: u32,
    pub required_threads: Option<[u32; 3]>,
    pub max_threads: Option<[u32; 3]>,
    pub required_cluster: Option<[u32; 3]>,
    /// Uses atomics on global memory, whose order between blocks can show in the result.
    pub global_atomics: bool,
    /// One of several launches that overlap: it has `griddepcontrol`. Each must wait, even if all it does is to let the next
    /// one begin: the end of a launch stands for the ends of all before it.
    pub overlapped: bool,
    /// 32-bit slots of `wgmma` operands that every other instruction reads and writes; empty unless the kernel has `wgmma`.
    pub touched: Vec<(Vec<u32>, Vec<u32>)>,
}

/// Initial contents of module-level `.global` and `.const` variables.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub globals: Vec<u8>,
    /// Which bytes of `globals` have an initialiser.
    pub globals_set: Vec<bool>,
    pub consts: Vec<u8>,
    /// Offset of each variable in its part of the image.
    pub symbols: HashMap<String, (VarSpace, u32)>,
}

/// Lays out the module's own variables.
pub fn image(ast: &Ast) -> Image {
    let mut im = Image::default();
    for v in &ast.vars {
        let part = match v.space {
            VarSpace::Global => &mut im.globals,
            VarSpace::Const => &mut im.consts,
            VarSpace::Shared | VarSpace::Local | VarSpace::CallParam => continue,
        };
        let at = part.len().next_multiple_of(v.align.max(1) as usize);
        part.resize(at + v.bytes as usize, 0);
        part[at..at + v.init.len()].copy_from_slice(&v.init);
        if v.space == VarSpace::Global {
            im.globals_set.resize(at + v.bytes as usize, false);
            im.globals_set[at..].fill(!v.init.is_empty());
        }
        im.symbols.insert(v.name.clone(), (v.space, at as u32));
    }
    im
}

/// Decodes one kernel.
///
/// # Errors
/// [`SimError::NotSimulated`] for what the simulator does not know, [`SimError::Invalid`] for operands that do not fit.
pub fn kernel(ast: &Ast, image: &Image, entry: &Entry, text: &[&str]) -> Result<Kernel, SimError> {
    let mut b = Builder::new(ast, image, entry, text)?;
    for (at, i) in entry.instrs.iter().enumerate() {
        let mut inst = b.instruction(i)?;
        if let Some((reg, negated)) = i.guard {
            inst.guard = ((b.register(reg, Class::Pred, i)? << 1) | u32::from(negated)) + 1;
        }
        debug_assert_eq!(b.code.len(), at);
        b.code.push(inst);
    }
    // Running off the end of a body is a return.
    b.code.push(Inst { op: op::Op::Exit, guard: 0, d: 0, a: 0, b: 0, c: 0, e: 0, imm: 0 });
    cfg::set_reconvergence(&mut b.code);
    b.finish(entry)
}

impl Builder<'_> {
    fn instruction(&mut self, i: &Instr) -> Result<Inst, SimError> {
        match i.name.as_str() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "and" | "or"
            | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "bfe" | "bfi" | "bfind" | "popc"
            | "clz" | "brev" | "sad" | "dp4a" | "mul24" | "mad24" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2"
            | "sin" | "cos" | "tanh" | "copysign" => self.alu(i),
            "setp" | "set" | "selp" | "slct" | "mov" => self.select(i),
            "cvt" => self.cvt(i),
            "cvta" | "isspacep" | "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "discard"
            | "applypriority" | "createpolicy" => self.memory(i),
            "bra" | "ret" | "exit" | "trap" | "brkpt" | "call" | "nanosleep" | "shfl" | "vote" | "match"
            | "activemask" | "redux" | "elect" | "bar" | "barrier" | "membar" | "fence" | "setmaxnreg"
            | "griddepcontrol" => self.sync(i),
            "ldmatrix" | "stmatrix" | "mma" | "movmatrix" => self.matrix(i),
            "cp" => self.async_copy(i),
            "mbarrier" | "mapa" | "getctarank" | "wgmma" | "tensormap" => self.hopper(i),
            _ => Err(self.unsupported(i)),
        }
    }
}
