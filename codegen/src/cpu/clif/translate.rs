//! One Cranelift function for one loop IR function.

use crate::cpu::abi::{HELPER_TABLE_OFFSET, STATUS_BLOCK_SHIFT, STATUS_OK, USER_OFFSET, exit_status};
use crate::cpu::loopir::{BinOp, Block, FloatCc, Helper, IntCc, LoopFunc, Mem, Node, Rmw, Stmt, Ty, UnOp, Val};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::{Ieee32, Ieee64, V128Imm};
use cranelift_codegen::ir::{
    AbiParam, AtomicRmwOp, BlockArg, Endianness, Function, InstBuilder, MemFlagsData, SigRef, Signature, Type,
    UserFuncName, Value, types,
};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use std::collections::HashMap;

/// Translates a verified function.
pub(super) fn translate(func: &LoopFunc, isa: &dyn TargetIsa) -> Function {
    let mut sig = Signature::new(isa.default_call_conv());
    sig.params = vec![AbiParam::new(types::I64); 4];
    sig.returns = vec![AbiParam::new(types::I64)];
    let mut out = Function::with_name_signature(UserFuncName::default(), sig);
    let mut ctx = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut out, &mut ctx);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    b.seal_block(entry);
    let mut t = Translator { func, isa, values: vec![None; func.types.len()], sigs: HashMap::new(), b };
    for (i, p) in func.params.iter().enumerate() {
        t.values[p.index()] = Some(t.b.block_params(entry)[i]);
    }
    t.block(&func.body);
    let ok = t.b.ins().iconst(types::I64, STATUS_OK as i64);
    t.b.ins().return_(&[ok]);
    t.b.seal_all_blocks();
    t.b.finalize(isa.frontend_config());
    out
}

fn clif_type(ty: Ty) -> Type {
    match ty {
        Ty::I8 => types::I8,
        Ty::I16 => types::I16,
        Ty::I32 => types::I32,
        Ty::I64 => types::I64,
        Ty::F32 => types::F32,
        Ty::F64 => types::F64,
        Ty::I8x16 => types::I8X16,
        Ty::I16x8 => types::I16X8,
        Ty::I32x4 => types::I32X4,
        Ty::I64x2 => types::I64X2,
        Ty::F32x4 => types::F32X4,
        Ty::F64x2 => types::F64X2,
    }
}

/// Element loads and stores: addresses were checked by guards in the code, so they do not trap.
fn mem() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

fn atomic_mem() -> MemFlagsData {
    MemFlagsData::trusted()
}

struct Translator<'a, 'f> {
    func: &'a LoopFunc,
    isa: &'a dyn TargetIsa,
    values: Vec<Option<Value>>,
    sigs: HashMap<Helper, SigRef>,
    b: FunctionBuilder<'f>,
}

impl Translator<'_, '_> {
    fn get(&self, v: Val) -> Value {
        self.values[v.index()].expect("loop IR is verified before translation")
    }

    fn set(&mut self, v: Val, value: Value) {
        self.values[v.index()] = Some(value);
    }

    fn block(&mut self, block: &Block) {
        for stmt in block {
            self.stmt(stmt);
        }
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Let(v, node) => {
                let value = self.node(self.func.ty(*v), node);
                self.set(*v, value);
            }
            Stmt::Load { out, mem: kind, addr, offset } => {
                let (ty, p) = (clif_type(self.func.ty(*out)), self.get(*addr));
                let value = match kind {
                    Mem::Plain => self.b.ins().load(ty, mem(), p, *offset),
                    Mem::ZExt16x4 => self.b.ins().uload16x4(mem(), p, *offset),
                    Mem::SExt16x4 => self.b.ins().sload16x4(mem(), p, *offset),
                };
                self.set(*out, value);
            }
            Stmt::Store { value, addr, offset } => {
                let (x, p) = (self.get(*value), self.get(*addr));
                self.b.ins().store(mem(), x, p, *offset);
            }
            Stmt::Atomic { out, op, addr, value } => {
                let op = match op {
                    Rmw::Add => AtomicRmwOp::Add,
                    Rmw::And => AtomicRmwOp::And,
                    Rmw::Or => AtomicRmwOp::Or,
                    Rmw::SMin => AtomicRmwOp::Smin,
                    Rmw::SMax => AtomicRmwOp::Smax,
                    Rmw::UMin => AtomicRmwOp::Umin,
                    Rmw::UMax => AtomicRmwOp::Umax,
                    Rmw::Xchg => AtomicRmwOp::Xchg,
                };
                let (p, x) = (self.get(*addr), self.get(*value));
                let ty = clif_type(self.func.ty(*out));
                let old = self.b.ins().atomic_rmw(ty, atomic_mem(), op, p, x);
                self.set(*out, old);
            }
            Stmt::Cas { out, addr, expected, value } => {
                let (p, e, x) = (self.get(*addr), self.get(*expected), self.get(*value));
                let old = self.b.ins().atomic_cas(atomic_mem(), p, e, x);
                self.set(*out, old);
            }
            Stmt::Call { out, helper, args } => self.call(*out, *helper, args),
            Stmt::ExitIf { cond, site, block } => {
                let (leave, stay) = (self.b.create_block(), self.b.create_block());
                self.b.set_cold_block(leave);
                let c = self.get(*cond);
                self.b.ins().brif(c, leave, &[], stay, &[]);
                self.b.switch_to_block(leave);
                let site = self.b.ins().iconst(types::I64, exit_status(*site, 0) as i64);
                let block = self.get(*block);
                let block = self.b.ins().ishl_imm_u(block, i64::from(STATUS_BLOCK_SHIFT));
                let status = self.b.ins().bor(site, block);
                self.b.ins().return_(&[status]);
                self.b.switch_to_block(stay);
            }
            Stmt::For { iv, lo, hi, step, carried, body } => {
                let (head, exit) = (self.b.create_block(), self.b.create_block());
                let (lo, hi) = (self.get(*lo), self.get(*hi));
                let mut args = vec![BlockArg::Value(lo)];
                let iv_param = self.b.append_block_param(head, types::I64);
                self.set(*iv, iv_param);
                let mut out_args = Vec::new();
                for c in carried {
                    let ty = clif_type(self.func.ty(c.param));
                    let p = self.b.append_block_param(head, ty);
                    self.set(c.param, p);
                    let r = self.b.append_block_param(exit, ty);
                    self.set(c.result, r);
                    args.push(BlockArg::Value(self.get(c.init)));
                    out_args.push(BlockArg::Value(self.get(c.init)));
                }
                // The test is at the bottom: one branch an iteration.
                let enter = self.b.ins().icmp(IntCC::SignedLessThan, lo, hi);
                self.b.ins().brif(enter, head, &args, exit, &out_args);
                self.b.switch_to_block(head);
                self.block(body);
                let step = self.b.ins().iconst(types::I64, *step);
                let next = self.b.ins().iadd(iv_param, step);
                let again = self.b.ins().icmp(IntCC::SignedLessThan, next, hi);
                let nexts: Vec<BlockArg> = carried.iter().map(|c| BlockArg::Value(self.get(c.next))).collect();
                let args: Vec<BlockArg> = [BlockArg::Value(next)].into_iter().chain(nexts.iter().copied()).collect();
                self.b.ins().brif(again, head, &args, exit, &nexts);
                self.b.switch_to_block(exit);
            }
            Stmt::If { cond, then, otherwise, merges } => {
                let (yes, no, join) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
                let c = self.get(*cond);
                self.b.ins().brif(c, yes, &[], no, &[]);
                for m in merges {
                    let r = self.b.append_block_param(join, clif_type(self.func.ty(m.result)));
                    self.set(m.result, r);
                }
                self.b.switch_to_block(yes);
                self.block(then);
                let args: Vec<BlockArg> = merges.iter().map(|m| BlockArg::Value(self.get(m.then))).collect();
                self.b.ins().jump(join, &args);
                self.b.switch_to_block(no);
                self.block(otherwise);
                let args: Vec<BlockArg> = merges.iter().map(|m| BlockArg::Value(self.get(m.otherwise))).collect();
                self.b.ins().jump(join, &args);
                self.b.switch_to_block(join);
            }
            Stmt::While { before, cond, body } => {
                let (head, inner, exit) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
                self.b.ins().jump(head, &[]);
                self.b.switch_to_block(head);
                self.block(before);
                let c = self.get(*cond);
                self.b.ins().brif(c, inner, &[], exit, &[]);
                self.b.switch_to_block(inner);
                self.block(body);
                self.b.ins().jump(head, &[]);
                self.b.switch_to_block(exit);
            }
        }
    }

    /// Calls through the table in the launch context; the context's user pointer comes first.
    fn call(&mut self, out: Option<Val>, helper: Helper, args: &[Val]) {
        let n = helper.arity();
        let isa = self.isa;
        let b = &mut self.b;
        let sig = *self.sigs.entry(helper).or_insert_with(|| {
            let mut sig = Signature::new(isa.default_call_conv());
            sig.params = vec![AbiParam::new(types::I64); n];
            sig.returns = vec![AbiParam::new(types::I64); usize::from(helper.has_result())];
            b.import_signature(sig)
        });
        let ctx = self.get(self.func.params[0]);
        let table = self.b.ins().load(types::I64, mem(), ctx, HELPER_TABLE_OFFSET);
        let position = Helper::ALL.iter().position(|h| *h == helper).expect("every helper has a slot");
        let callee = self.b.ins().load(types::I64, mem(), table, position as i32 * 8);
        let mut values: Vec<Value> = args.iter().map(|a| self.get(*a)).collect();
        if helper == Helper::Print {
            values[0] = self.b.ins().load(types::I64, mem(), ctx, USER_OFFSET);
        }
        let call = self.b.ins().call_indirect(sig, callee, &values);
        if let Some(out) = out {
            let result = self.b.inst_results(call)[0];
            self.set(out, result);
        }
    }

    fn node(&mut self, ty: Ty, node: &Node) -> Value {
        let t = clif_type(ty);
        match *node {
            Node::Const(c) => match ty {
                Ty::F32 => self.b.ins().f32const(Ieee32::with_bits(c as u32)),
                Ty::F64 => self.b.ins().f64const(Ieee64::with_bits(c)),
                _ => {
                    let shift = 64 - 8 * ty.bytes() as u32;
                    self.b.ins().iconst(t, ((c << shift) as i64) >> shift)
                }
            },
            Node::VConst(bytes) => {
                let c = self.b.func.dfg.constants.insert(V128Imm(bytes).0.to_vec().into());
                self.b.ins().vconst(t, c)
            }
            Node::Unary(op, x) => self.unary(ty, op, x),
            Node::Binary(op, x, y) => {
                let (x, y) = (self.get(x), self.get(y));
                self.binary(op, x, y)
            }
            Node::Fma(x, y, z) => {
                let (x, y, z) = (self.get(x), self.get(y), self.get(z));
                self.b.ins().fma(x, y, z)
            }
            Node::ICmp(cc, x, y) => {
                let cc = match cc {
                    IntCc::Eq => IntCC::Equal,
                    IntCc::Ne => IntCC::NotEqual,
                    IntCc::Slt => IntCC::SignedLessThan,
                    IntCc::Sle => IntCC::SignedLessThanOrEqual,
                    IntCc::Sgt => IntCC::SignedGreaterThan,
                    IntCc::Sge => IntCC::SignedGreaterThanOrEqual,
                    IntCc::Ult => IntCC::UnsignedLessThan,
                    IntCc::Ule => IntCC::UnsignedLessThanOrEqual,
                    IntCc::Ugt => IntCC::UnsignedGreaterThan,
                    IntCc::Uge => IntCC::UnsignedGreaterThanOrEqual,
                };
                let (x, y) = (self.get(x), self.get(y));
                self.b.ins().icmp(cc, x, y)
            }
            Node::FCmp(cc, x, y) => {
                let cc = match cc {
                    FloatCc::Eq => FloatCC::Equal,
                    FloatCc::Ne => FloatCC::NotEqual,
                    FloatCc::Lt => FloatCC::LessThan,
                    FloatCc::Le => FloatCC::LessThanOrEqual,
                    FloatCc::Gt => FloatCC::GreaterThan,
                    FloatCc::Ge => FloatCC::GreaterThanOrEqual,
                    FloatCc::Uno => FloatCC::Unordered,
                };
                let (x, y) = (self.get(x), self.get(y));
                self.b.ins().fcmp(cc, x, y)
            }
            Node::Select(c, x, y) => {
                let (c, x, y) = (self.get(c), self.get(x), self.get(y));
                self.b.ins().select(c, x, y)
            }
            Node::BitSelect(c, x, y) => {
                let (c, x, y) = (self.get(c), self.get(x), self.get(y));
                let c = if ty.is_float() { self.bitcast(t, c) } else { c };
                self.b.ins().bitselect(c, x, y)
            }
            Node::Extract(x, lane) => {
                let x = self.get(x);
                self.b.ins().extractlane(x, lane)
            }
            Node::Insert(x, y, lane) => {
                let (x, y) = (self.get(x), self.get(y));
                self.b.ins().insertlane(x, y, lane)
            }
            Node::Shuffle(x, y, bytes) => {
                let (x, y) = (self.get(x), self.get(y));
                let (x, y) = (self.bitcast(types::I8X16, x), self.bitcast(types::I8X16, y));
                let mask = self.b.func.dfg.immediates.push(bytes.to_vec().into());
                let r = self.b.ins().shuffle(x, y, mask);
                self.bitcast(t, r)
            }
        }
    }

    fn bitcast(&mut self, ty: Type, x: Value) -> Value {
        if self.b.func.dfg.value_type(x) == ty {
            return x;
        }
        let flags = MemFlagsData::new().with_endianness(Endianness::Little);
        self.b.ins().bitcast(ty, flags, x)
    }

    fn unary(&mut self, ty: Ty, op: UnOp, x: Val) -> Value {
        let (t, from) = (clif_type(ty), self.func.ty(x));
        let x = self.get(x);
        match op {
            UnOp::Not => self.b.ins().bnot(x),
            UnOp::Popcnt => self.b.ins().popcnt(x),
            UnOp::Clz => self.b.ins().clz(x),
            UnOp::FNeg => self.b.ins().fneg(x),
            UnOp::FAbs => self.b.ins().fabs(x),
            UnOp::Sqrt => self.b.ins().sqrt(x),
            UnOp::Floor => self.b.ins().floor(x),
            UnOp::Ceil => self.b.ins().ceil(x),
            UnOp::Trunc => self.b.ins().trunc(x),
            UnOp::Nearest => self.b.ins().nearest(x),
            UnOp::SExt if from.is_vector() => self.b.ins().swiden_low(x),
            UnOp::SExt => self.b.ins().sextend(t, x),
            UnOp::ZExt if from.is_vector() => self.b.ins().uwiden_low(x),
            UnOp::ZExt => self.b.ins().uextend(t, x),
            UnOp::SExtHigh => self.b.ins().swiden_high(x),
            UnOp::ZExtHigh => self.b.ins().uwiden_high(x),
            UnOp::Reduce => self.b.ins().ireduce(t, x),
            UnOp::SToF => self.b.ins().fcvt_from_sint(t, x),
            UnOp::UToF => self.b.ins().fcvt_from_uint(t, x),
            UnOp::FToS => self.b.ins().fcvt_to_sint_sat(t, x),
            UnOp::FToU => self.b.ins().fcvt_to_uint_sat(t, x),
            UnOp::Promote => self.b.ins().fpromote(t, x),
            UnOp::Demote => self.b.ins().fdemote(t, x),
            UnOp::Bitcast => self.bitcast(t, x),
            UnOp::Splat => self.b.ins().splat(t, x),
            UnOp::ToVector => self.b.ins().scalar_to_vector(t, x),
            UnOp::AnyTrue => self.b.ins().vany_true(x),
            UnOp::AllTrue => self.b.ins().vall_true(x),
            UnOp::SignBits => self.b.ins().vhigh_bits(t, x),
        }
    }

    fn binary(&mut self, op: BinOp, x: Value, y: Value) -> Value {
        let ins = self.b.ins();
        match op {
            BinOp::Add => ins.iadd(x, y),
            BinOp::Sub => ins.isub(x, y),
            BinOp::Mul => ins.imul(x, y),
            BinOp::UMulHi => ins.umulhi(x, y),
            BinOp::SDiv => ins.sdiv(x, y),
            BinOp::UDiv => ins.udiv(x, y),
            BinOp::SRem => ins.srem(x, y),
            BinOp::URem => ins.urem(x, y),
            BinOp::And => ins.band(x, y),
            BinOp::Or => ins.bor(x, y),
            BinOp::Xor => ins.bxor(x, y),
            BinOp::Shl => ins.ishl(x, y),
            BinOp::UShr => ins.ushr(x, y),
            BinOp::SShr => ins.sshr(x, y),
            BinOp::SMin => ins.smin(x, y),
            BinOp::SMax => ins.smax(x, y),
            BinOp::UMin => ins.umin(x, y),
            BinOp::UMax => ins.umax(x, y),
            BinOp::FAdd => ins.fadd(x, y),
            BinOp::FSub => ins.fsub(x, y),
            BinOp::FMul => ins.fmul(x, y),
            BinOp::FDiv => ins.fdiv(x, y),
            BinOp::SNarrow => ins.snarrow(x, y),
            BinOp::UNarrow => ins.unarrow(x, y),
        }
    }
}
