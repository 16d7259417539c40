//! The PTX spelling of each SIMT op that is not control flow.

use super::names::Names;
use super::{ARENA, Emitter, local_name};
use crate::ptx::simt::{
    Addr, AtomOp, Bin, Cmp, MemTy, Num, ObjKind, Packed, Roles, Round, ShflMode, SimtOp, Ty, Un, Val, VoteMode,
};
use smallvec::SmallVec;
use zellige_ir::EntityId;

/// Named barrier of the threads that run the kernel where others feed them.
const CONSUMER_BARRIER: u32 = 1;

/// Type suffix of bitwise instructions.
fn bit_type(num: Num) -> &'static str {
    num.ty().name()
}

/// Parts of an opcode, which dots stand between.
type Opcode = SmallVec<[&'static str; 3]>;

fn dotted(parts: &[&'static str]) -> Opcode {
    parts.into()
}

fn un_name(op: Un, num: Num) -> Opcode {
    match op {
        Un::Not => dotted(&["not", bit_type(num)]),
        Un::Popc | Un::Clz => dotted(&[op.name(), bit_type(num)]),
        Un::Neg | Un::Abs => match num {
            Num::U8 | Num::S8 | Num::U16 | Num::S16 | Num::U32 | Num::S32 | Num::B32 => dotted(&[op.name(), "s32"]),
            Num::U64 | Num::S64 | Num::B64 => dotted(&[op.name(), "s64"]),
            Num::Pred | Num::B16 | Num::F16 | Num::BF16 | Num::F32 | Num::F64 => dotted(&[op.name(), num.name()]),
        },
        Un::Sqrt | Un::Rcp => dotted(&[op.name(), num.name()]),
        Un::Ex2Approx | Un::Lg2Approx | Un::RcpApprox | Un::RsqrtApprox => dotted(&[op.name(), "ftz", num.name()]),
        Un::TanhApprox => dotted(&[op.name(), num.name()]),
    }
}

fn bin_name(op: Bin, num: Num) -> Opcode {
    match op {
        Bin::Add | Bin::Sub if num.is_float() => dotted(&[op.name(), "rn", num.name()]),
        Bin::Mul if num.is_float() => dotted(&["mul.rn", num.name()]),
        Bin::Div if num.is_float() => dotted(&["div.rn", num.name()]),
        Bin::Add | Bin::Sub | Bin::Div | Bin::Rem | Bin::Min | Bin::Max => dotted(&[op.name(), arith(num)]),
        Bin::Mul => dotted(&["mul.lo", arith(num)]),
        Bin::MulHi | Bin::MulWide => dotted(&[op.name(), arith(num)]),
        Bin::And | Bin::Or | Bin::Xor | Bin::Shl => dotted(&[op.name(), bit_type(num)]),
        Bin::Shr => dotted(&["shr", arith(num)]),
    }
}

/// Arithmetic type of an integer in its register: small integers are kept extended.
fn arith(num: Num) -> &'static str {
    match num {
        Num::U8 | Num::U16 | Num::U32 | Num::B32 => "u32",
        Num::S8 | Num::S16 | Num::S32 => "s32",
        Num::U64 | Num::B64 => "u64",
        Num::S64 => "s64",
        Num::B16 | Num::Pred | Num::F16 | Num::BF16 | Num::F32 | Num::F64 => num.name(),
    }
}

fn setp_name(op: Cmp, num: Num) -> Opcode {
    let ty = match (num, op) {
        (Num::B32 | Num::B64 | Num::B16, _) => num.name(),
        _ => arith(num),
    };
    let op = if op == Cmp::Neu && !num.is_float() { Cmp::Ne } else { op };
    dotted(&["setp", op.name(), ty])
}

fn vector(count: usize) -> &'static str {
    match count {
        1 => "",
        2 => ".v2",
        _ => ".v4",
    }
}

fn braces(regs: &[String]) -> String {
    match regs {
        [one] => one.clone(),
        many => format!("{{{}}}", many.join(", ")),
    }
}

impl Emitter<'_> {
    pub(super) fn addr(&mut self, a: &Addr) -> String {
        let base = self.reg(a.base);
        match a.offset {
            0 => format!("[{base}]"),
            // The grammar has no subtraction: a negative offset is added.
            n => format!("[{base}+{n}]"),
        }
    }

    pub(super) fn guard(&mut self, g: Option<Val>) -> String {
        match g {
            Some(g) => format!("@{} ", self.reg(g)),
            None => String::new(),
        }
    }

    pub(super) fn regs(&mut self, vals: &[Val]) -> Vec<String> {
        vals.iter().map(|&v| self.reg(v)).collect()
    }

    fn set_to(&mut self, opcode: &[&str], out: Val, operands: &[Val]) {
        self.indent();
        for (i, part) in opcode.iter().enumerate() {
            self.out.push_str(if i == 0 { "" } else { "." });
            self.out.push_str(part);
        }
        self.out.push(' ');
        self.write_opnd(out);
        for &v in operands {
            self.out.push_str(", ");
            self.write_opnd(v);
        }
        self.out.push_str(";\n");
    }

    pub(super) fn op(&mut self, op: &SimtOp) {
        let k = self.k;
        match op {
            SimtOp::Get { out, var } => {
                if !self.names.is_alias(out.0) {
                    let var = self.names.var(k, *var);
                    self.write_line(format_args!("mov.{} {}, {var};", k.ty(out.0), self.opnd(out.0)));
                }
            }
            SimtOp::Set { var, x } => {
                if k.ty(*x) == Ty::Pred && k.as_const(*x).is_some() {
                    let (var, x) = (self.names.var(k, *var), self.reg(*x));
                    self.write_line(format_args!("mov.pred {var}, {x};"));
                } else if !self.names.is_alias_of(*x, *var) {
                    self.indent();
                    self.out.push_str("mov.");
                    self.out.push_str(k.ty(*x).name());
                    self.out.push(' ');
                    self.names.write_var(k, *var, &mut self.out);
                    self.out.push_str(", ");
                    self.write_opnd(*x);
                    self.out.push_str(";\n");
                }
            }
            SimtOp::Special { out, reg } => self.write_line(format_args!("mov.u32 {}, {reg};", self.opnd(out.0))),
            SimtOp::Param { out, slot } => {
                let (name, bytes) = (self.param_name(*slot as usize), k.params[*slot as usize].bytes());
                let ty = match (k.ty(out.0), bytes) {
                    (Ty::B32, 1) => "u8".to_string(),
                    (Ty::B32, 2) => "u16".to_string(),
                    (ty, _) => ty.to_string(),
                };
                self.write_line(format_args!("ld.param.{ty} {}, [{name}];", self.opnd(out.0)));
            }
            SimtOp::SharedAddr { out, obj } => {
                let at = match k.objs[*obj].kind {
                    ObjKind::Shared { offset, .. } => offset.unwrap_or(0),
                    ObjKind::Global { .. } | ObjKind::Local { .. } => 0,
                };
                let at = if at == 0 { String::new() } else { format!("+{at}") };
                self.write_line(format_args!("mov.u32 {}, {ARENA}{at};", self.opnd(out.0)));
            }
            SimtOp::LocalAddr { out, obj } => {
                self.write_line(format_args!("mov.u32 {}, {};", self.opnd(out.0), local_name(obj.index())));
            }
            SimtOp::Un { out, op, num, x } => self.set_to(&un_name(*op, *num), out.0, &[*x]),
            SimtOp::Bin { out, op, num, x, y } => {
                if num.ty() == Ty::Pred && [x, y].iter().any(|&&v| k.as_const(v).is_some()) {
                    let operands = self.regs(&[*x, *y]);
                    self.write_line(format_args!("{op}.pred {}, {};", self.opnd(out.0), operands.join(", ")));
                } else if num.ty() == Ty::Pred {
                    self.set_to(&[op.name(), "pred"], out.0, &[*x, *y]);
                } else {
                    self.set_to(&bin_name(*op, *num), out.0, &[*x, *y]);
                }
            }
            SimtOp::Mad { out, num, x, y, z } => {
                let opcode = if num.is_float() { ["fma.rn", num.name()] } else { ["mad.lo", arith(*num)] };
                self.set_to(&opcode, out.0, &[*x, *y, *z]);
            }
            SimtOp::MadWide { out, num, x, y, z } => {
                self.set_to(&["mad.wide", arith(*num)], out.0, &[*x, *y, *z]);
            }
            SimtOp::Setp { out, op, num, x, y } => self.set_to(&setp_name(*op, *num), out.0, &[*x, *y]),
            SimtOp::Selp { out, cond, x, y } => {
                let p = self.reg(*cond);
                self.indent();
                self.out.push_str("selp.");
                self.out.push_str(k.ty(*x).name());
                for (before, v) in [(" ", out.0), (", ", *x), (", ", *y)] {
                    self.out.push_str(before);
                    self.write_opnd(v);
                }
                self.out.push_str(", ");
                self.out.push_str(&p);
                self.out.push_str(";\n");
            }
            SimtOp::Cvt { out, to, from, round, x } => {
                let x = self.reg(*x);
                let round = match round {
                    Round::Exact => String::new(),
                    r => format!(".{r}"),
                };
                self.write_line(format_args!("cvt{round}.{to}.{from} {}, {x};", self.opnd(out.0)));
            }
            SimtOp::CvtPack { out, to, hi, lo } => {
                let operands = self.regs(&[*hi, *lo]);
                let sat = if matches!(to, Packed::E4M3x2 | Packed::E5M2x2) { ".satfinite" } else { "" };
                self.write_line(format_args!("cvt.rn{sat}.{to}.f32 {}, {};", self.opnd(out.0), operands.join(", ")));
            }
            SimtOp::CvtUnpack { out, from, x } => {
                let x = self.reg(*x);
                self.write_line(format_args!("cvt.rn.f16x2.{from} {}, {x};", self.opnd(out.0)));
            }
            SimtOp::CvtTf32 { out, x } => {
                let x = self.reg(*x);
                self.write_line(format_args!("cvt.rna.tf32.f32 {}, {x};", self.opnd(out.0)));
            }
            SimtOp::Bits { out, x } => {
                let x_text = self.reg(*x);
                self.write_line(format_args!("mov.b{} {}, {x_text};", k.ty(*x).bits(), self.opnd(out.0)));
            }
            SimtOp::Pack { out, lo, hi } => {
                let halves = self.regs(&[*lo, *hi]);
                self.write_line(format_args!("mov.b{} {}, {};", k.ty(out.0).bits(), self.opnd(out.0), braces(&halves)));
            }
            SimtOp::Unpack { lo, hi, x } => {
                let x_text = self.reg(*x);
                let halves = [self.opnd(lo.0), self.opnd(hi.0)];
                self.write_line(format_args!("mov.b{} {}, {x_text};", k.ty(*x).bits(), braces(&halves)));
            }
            SimtOp::Prmt { out, x, y, sel } => {
                let (x, y) = (self.opnd(*x), self.opnd(*y));
                self.write_line(format_args!("prmt.b32 {}, {x}, {y}, 0x{sel:04x};", self.opnd(out.0)));
            }
            SimtOp::PrmtBy { out, x, y, sel } => {
                let (x, y, sel) = (self.opnd(*x), self.opnd(*y), self.opnd(*sel));
                self.write_line(format_args!("prmt.b32 {}, {x}, {y}, {sel};", self.opnd(out.0)));
            }
            SimtOp::Bfe { out, x, pos, len } => {
                let x = self.opnd(*x);
                self.write_line(format_args!("bfe.u32 {}, {x}, {pos}, {len};", self.opnd(out.0)));
            }
            SimtOp::Bfi { out, x, y, pos, len } => {
                let (x, y) = (self.opnd(*x), self.opnd(*y));
                self.write_line(format_args!("bfi.b32 {}, {x}, {y}, {pos}, {len};", self.opnd(out.0)));
            }
            SimtOp::Ld { outs, space, mem, cache, addr, guard } => {
                let regs: Vec<String> = outs.iter().map(|d| self.opnd(d.0)).collect();
                let (addr, guard_text) = (self.addr(addr), self.guard(*guard));
                if guard.is_some() {
                    for (r, d) in regs.iter().zip(outs) {
                        let ty = k.ty(d.0);
                        self.write_line(format_args!("mov.{ty} {r}, {};", super::immediate(ty, 0)));
                    }
                }
                let cache = match cache.name() {
                    "" => String::new(),
                    c => format!(".{c}"),
                };
                self.write_line(format_args!(
                    "{guard_text}ld.{space}{cache}{}.{mem} {}, {addr};",
                    vector(outs.len()),
                    braces(&regs)
                ));
            }
            SimtOp::St { space, mem, addr, vals, guard } => {
                let regs = self.regs(vals);
                let (addr, guard) = (self.addr(addr), self.guard(*guard));
                let mem = if *mem == MemTy::S8 { MemTy::U8 } else { *mem };
                self.write_line(format_args!(
                    "{guard}st.{space}{}.{mem} {addr}, {};",
                    vector(vals.len()),
                    braces(&regs)
                ));
            }
            SimtOp::CpAsync { dst, src, bytes, size, guard } => {
                let (dst, src, guard) = (self.addr(dst), self.addr(src), self.guard(*guard));
                let path = if *bytes == 16 { "cg" } else { "ca" };
                let size = size.map_or(String::new(), |s| format!(", {}", self.opnd(s)));
                self.write_line(format_args!("{guard}cp.async.{path}.shared.global {dst}, {src}, {bytes}{size};"));
            }
            SimtOp::CpAsyncCommit {} => self.line("cp.async.commit_group;"),
            SimtOp::CpAsyncWait { pending } => self.write_line(format_args!("cp.async.wait_group {pending};")),
            SimtOp::LdMatrix { outs, trans, addr } => {
                let regs: Vec<String> = outs.iter().map(|d| self.opnd(d.0)).collect();
                let addr = self.addr(addr);
                let trans = if *trans { ".trans" } else { "" };
                self.write_line(format_args!(
                    "ldmatrix.sync.aligned.m8n8.x{}{trans}.shared.b16 {{{}}}, {addr};",
                    outs.len(),
                    regs.join(", ")
                ));
            }
            SimtOp::Mma { outs, kind, a, b, c } => {
                let outs: Vec<String> = outs.iter().map(|d| self.opnd(d.0)).collect();
                let parts: Vec<String> =
                    [a, b, c].into_iter().map(|v| format!("{{{}}}", self.regs(v).join(", "))).collect();
                self.write_line(format_args!("mma.sync.aligned.{kind} {{{}}}, {};", outs.join(", "), parts.join(", ")));
            }
            SimtOp::Shfl { out, mode, x, lane, clamp } => {
                let x = self.reg(*x);
                let lane = self.opnd(*lane);
                let mode = match mode {
                    ShflMode::Bfly | ShflMode::Up | ShflMode::Down | ShflMode::Idx => mode.name(),
                };
                self.write_line(format_args!("shfl.sync.{mode}.b32 {}, {x}, {lane}, {clamp}, -1;", self.opnd(out.0)));
            }
            SimtOp::Vote { out, mode, x } => {
                let x = self.reg(*x);
                let ty = if *mode == VoteMode::Ballot { "b32" } else { "pred" };
                self.write_line(format_args!("vote.sync.{mode}.{ty} {}, {x}, -1;", self.opnd(out.0)));
            }
            SimtOp::Redux { out, op, num, x } => {
                let x = self.reg(*x);
                let ty = match op {
                    Bin::And | Bin::Or | Bin::Xor => "b32",
                    _ => arith(*num),
                };
                self.write_line(format_args!("redux.sync.{op}.{ty} {}, {x}, -1;", self.opnd(out.0)));
            }
            SimtOp::Atom { out, op, num, space, addr, x, guard } => {
                let (addr, x, guard) = (self.addr(addr), self.reg(*x), self.guard(*guard));
                let ty = match op {
                    AtomOp::Exch | AtomOp::And | AtomOp::Or | AtomOp::Xor => bit_type(*num),
                    // Wrapping addition does not care for the sign, and PTX has no s64 form.
                    AtomOp::Add if *num == Num::S64 => "u64",
                    AtomOp::Add | AtomOp::Min | AtomOp::Max => arith(*num),
                };
                match out {
                    Some(out) => {
                        let r = self.opnd(out.0);
                        if !guard.is_empty() {
                            let ty = k.ty(out.0);
                            self.write_line(format_args!("mov.{ty} {r}, {};", super::immediate(ty, 0)));
                        }
                        self.write_line(format_args!("{guard}atom.{space}.{op}.{ty} {r}, {addr}, {x};"));
                    }
                    None => self.write_line(format_args!("{guard}red.{space}.{op}.{ty} {addr}, {x};")),
                }
            }
            SimtOp::Phase { id } => self.write_line(format_args!("// phase: {}", k.phases[*id].what)),
            SimtOp::Bar {} => match k.roles {
                Roles::Uniform => self.line("bar.sync 0;"),
                Roles::Specialised { consumers } => {
                    self.write_line(format_args!("bar.sync {CONSUMER_BARRIER}, {consumers};"))
                }
            },
            SimtOp::BarPart { id, threads } => {
                let id = self.opnd(*id);
                self.write_line(format_args!("bar.sync {id}, {threads};"));
            }
            SimtOp::BarArrive { id, threads } => {
                let id = self.opnd(*id);
                self.write_line(format_args!("bar.arrive {id}, {threads};"));
            }
            SimtOp::ParamAddr { .. }
            | SimtOp::MapPrefetch { .. }
            | SimtOp::MbarInit { .. }
            | SimtOp::MbarFence {}
            | SimtOp::MbarExpect { .. }
            | SimtOp::MbarArrive { .. }
            | SimtOp::MbarArriveAt { .. }
            | SimtOp::MbarReleaseAt { .. }
            | SimtOp::BulkSend { .. }
            | SimtOp::ClusterSync {}
            | SimtOp::MbarWait { .. }
            | SimtOp::TmaLoad { .. }
            | SimtOp::TmaStore { .. }
            | SimtOp::BulkCommit {}
            | SimtOp::BulkWait { .. }
            | SimtOp::AsyncFence {}
            | SimtOp::WgmmaFence {}
            | SimtOp::Wgmma { .. }
            | SimtOp::WgmmaRegs { .. }
            | SimtOp::WgmmaCommit {}
            | SimtOp::WgmmaWait { .. }
            | SimtOp::SetRegs { .. }
            | SimtOp::StMatrix { .. } => self.hopper(op),
            SimtOp::BarWarp {} => self.line("bar.warp.sync -1;"),
            SimtOp::Fence {} => self.line("fence.acq_rel.gpu;"),
            SimtOp::GridWait {} => self.line("griddepcontrol.wait;"),
            SimtOp::GridTrigger {} => self.line("griddepcontrol.launch_dependents;"),
            SimtOp::Fail { record, number } => {
                let record = self.reg(*record);
                let p = Names::register(Ty::Pred, self.names.fresh(Ty::Pred));
                self.write_line(format_args!("setp.ne.b64 {p}, {record}, 0;"));
                self.write_line(format_args!("@{p} st.relaxed.sys.global.u32 [{record}], {number};"));
                // The record has arrived before the launch ends.
                self.line("fence.acq_rel.sys;");
                self.line("trap;");
            }
            SimtOp::Print { format, args } => self.print(format, args),
            SimtOp::For { .. } | SimtOp::If { .. } | SimtOp::While { .. } => self.control(op),
        }
    }
}
