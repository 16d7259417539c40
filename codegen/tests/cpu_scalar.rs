//! Scalar ops and conversions as machine code against the interpreter, in vector and in scalar form.

mod common;

use common::{Rng, check};
use zellige_ir::interp::{Arg, TensorArg};
use zellige_ir::*;

/// `y[i] = f(x0[i], x1[i], ..)` over `n` elements, in a loop of the given kind.
fn map_kernel(
    kind: LoopKind,
    inputs: &[DType],
    out: DType,
    n: usize,
    f: impl Fn(&mut FuncBuilder, &[Value]) -> Value,
) -> Func {
    let mut b = FuncBuilder::new("map", Span::unknown());
    let xs: Vec<Buffer> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| b.tensor(&format!("x{i}"), *t, vec![Extent::Static(n)], Access::Read))
        .collect();
    let y = b.tensor("y", out, vec![Extent::Static(n)], Access::Write);
    let one = b.index(1);
    b.grid(&[one], 32);
    let count = b.index(n as i64);
    let i = b.begin_for(kind, &[count])[0];
    let values: Vec<Value> = xs.iter().map(|x| b.load(*x, &[i])).collect();
    let r = f(&mut b, &values);
    b.store(y, &[i], r);
    b.close();
    b.finish()
}

fn run_map(inputs: Vec<TensorArg>, out: DType, f: impl Fn(&mut FuncBuilder, &[Value]) -> Value) {
    let n = inputs[0].len();
    let types: Vec<DType> = inputs.iter().map(|t| t.dtype).collect();
    let mut args: Vec<Arg> = inputs.into_iter().map(Arg::from).collect();
    args.push(TensorArg::zeros(out, &[n]).into());
    for kind in [LoopKind::Parallel, LoopKind::Serial] {
        check(&map_kernel(kind, &types, out, n, &f), &args);
    }
}

const MEMORY: [DType; 17] = [
    DType::Bool,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
    DType::F8E4M3,
    DType::F8E5M2,
    DType::F4E2M1,
    DType::E8M0,
];

/// All values of a narrow type; of a wide one, edge cases and arbitrary bits.
fn samples(ty: DType, rng: &mut Rng) -> TensorArg {
    if ty == DType::Bool {
        return TensorArg::from_f64(ty, &[7], &[0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
    }
    if ty.bits() <= 16 {
        let n = 1usize << ty.bits();
        let mut t = TensorArg::zeros(ty, &[n]);
        for i in 0..n {
            match ty.bits() {
                4 => t.bytes[i / 2] |= (i as u8) << (4 * (i % 2)),
                8 => t.bytes[i] = i as u8,
                _ => t.bytes[2 * i..2 * i + 2].copy_from_slice(&(i as u16).to_le_bytes()),
            }
        }
        return t;
    }
    let n = 4099;
    let mut t = rng.bits(ty, &[n]);
    let size = ty.bits() / 8;
    let mut put = |i: usize, bits: u64| t.bytes[i * size..(i + 1) * size].copy_from_slice(&bits.to_le_bytes()[..size]);
    for i in 0..2000 {
        let narrow = Const::from_bits(DType::BF16, rng.next());
        // Around every kind of rounding boundary of the narrow formats, and small integers of both signs.
        let near = cast(narrow, ty).bits().wrapping_add(rng.below(3)).wrapping_sub(1);
        put(i, if i % 4 == 0 { Const::from_i64(ty, rng.below(600) as i64 - 300).bits() } else { near });
    }
    for (i, v) in [0.0, -0.0, 1.0, -1.0, 0.5, 448.0, 464.0, 65504.0, 65520.0, 1e-8, 57344.0, 61440.0, 3.4e38, 2.5, 5.0]
        .into_iter()
        .chain([f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 127.5, -128.5, 255.5, 2147483648.0, -2147483649.0, 9.3e18])
        .enumerate()
    {
        put(2000 + i, Const::from_f64(ty, v).bits());
    }
    t
}

use zellige_ir::numerics::cast;

#[test]
fn every_cast() {
    let mut rng = Rng(1);
    for from in MEMORY {
        for to in MEMORY {
            if from != to {
                let x = samples(from, &mut rng);
                run_map(vec![x], to, |b, v| b.cast(v[0], to));
            }
        }
    }
}

#[test]
fn every_bitcast() {
    let mut rng = Rng(2);
    for from in MEMORY {
        for to in MEMORY {
            if from != to && from.bits() == to.bits() && from != DType::Bool && to != DType::Bool {
                let x = samples(from, &mut rng);
                run_map(vec![x], to, |b, v| b.bitcast(v[0], to));
            }
        }
    }
}

#[test]
fn moves_keep_every_bit() {
    let mut rng = Rng(3);
    for ty in MEMORY {
        run_map(vec![samples(ty, &mut rng)], ty, |_, v| v[0]);
    }
}

fn unary_types(op: UnaryOp) -> Vec<DType> {
    use UnaryOp::*;
    MEMORY
        .into_iter()
        .filter(|t| match op {
            Not => *t == DType::Bool || t.is_int(),
            Popcount | Clz => t.is_int(),
            Neg | Abs => t.is_arithmetic(),
            _ => t.is_float() && t.is_arithmetic(),
        })
        .collect()
}

#[test]
fn every_unary_op() {
    let mut rng = Rng(4);
    for &op in UnaryOp::ALL {
        for ty in unary_types(op) {
            let out = if matches!(op, UnaryOp::IsNan | UnaryOp::IsFinite) { DType::Bool } else { ty };
            run_map(vec![samples(ty, &mut rng)], out, |b, v| b.unary(op, v[0]));
        }
    }
}

fn binary_types(op: BinaryOp) -> Vec<DType> {
    use BinaryOp::*;
    MEMORY
        .into_iter()
        .filter(|t| match op {
            Add | Sub | Mul | Div | Min | Max => t.is_arithmetic(),
            Rem | Shl | Shr => t.is_int(),
            And | Or | Xor => *t == DType::Bool || t.is_int(),
            MulHi => *t == DType::U32,
            Pow => *t == DType::F32,
            CopySign => t.is_float() && t.is_arithmetic(),
            CeilDiv => false,
        })
        .collect()
}

#[test]
fn every_binary_op() {
    let mut rng = Rng(5);
    for &op in BinaryOp::ALL {
        for ty in binary_types(op) {
            let x = samples(ty, &mut rng);
            let n = x.len();
            let mut y = rng.bits(ty, &[n]);
            if ty.is_int() && matches!(op, BinaryOp::Div | BinaryOp::Rem) {
                // No zero divisors, but some -1.
                let size = ty.bits() / 8;
                for (i, bytes) in y.bytes.chunks_mut(size).enumerate() {
                    if bytes.iter().all(|b| *b == 0) {
                        bytes[0] = 1;
                    }
                    if i % 7 == 0 {
                        bytes.fill(0xff);
                    }
                }
            } else if ty.is_float() {
                // Equal operands and zeros of both signs too.
                let size = ty.bits() / 8;
                for i in (0..n).step_by(5) {
                    y.bytes[i * size..(i + 1) * size].copy_from_slice(&x.bytes[i * size..(i + 1) * size]);
                    y.bytes[(i + 1) * size - 1] ^= 0x80 * (i as u8 & 1);
                }
            }
            run_map(vec![x, y], ty, |b, v| b.binary(op, v[0], v[1]));
        }
    }
}

#[test]
fn every_comparison_and_select() {
    let mut rng = Rng(6);
    for &op in CmpOp::ALL {
        for ty in MEMORY.into_iter().filter(|t| !t.is_storage_only()) {
            let x = samples(ty, &mut rng);
            let mut y = rng.bits(ty, &[x.len()]);
            let half = y.bytes.len() / 2;
            y.bytes[..half].copy_from_slice(&x.bytes[..half]);
            run_map(vec![x.clone(), y.clone()], DType::Bool, |b, v| b.cmp(op, v[0], v[1]));
            run_map(vec![x, y], ty, |b, v| {
                let c = b.cmp(op, v[0], v[1]);
                b.select(c, v[0], v[1])
            });
        }
    }
}

#[test]
fn fma_rounds_once() {
    let mut rng = Rng(7);
    for ty in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        let x = samples(ty, &mut rng);
        let n = x.len();
        run_map(vec![x, rng.bits(ty, &[n]), rng.bits(ty, &[n])], ty, |b, v| b.fma(v[0], v[1], v[2]));
    }
}

#[test]
fn index_arithmetic() {
    let mut b = FuncBuilder::new("index", Span::unknown());
    let n = 37;
    let ops = [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div, BinaryOp::Rem, BinaryOp::CeilDiv];
    let divisors = [-5, -1, 1, 2, 3, 4, 8, 12, 64];
    let ys: Vec<Buffer> = (0..ops.len() * divisors.len())
        .map(|i| b.tensor(&format!("y{i}"), DType::I64, vec![Extent::Static(n)], Access::Write))
        .collect();
    let s = b.func_mut().add_scalar("s", DType::Index);
    let one = b.index(1);
    b.grid(&[one], 32);
    let count = b.index(n as i64);
    let i = b.begin_for(LoopKind::Parallel, &[count])[0];
    for (k, y) in ys.iter().enumerate() {
        let d = b.index(divisors[k % divisors.len()]);
        // Linear, and shifted by a runtime value to either side of zero.
        let x = if k % 2 == 0 { i } else { b.sub(i, s) };
        let r = b.binary(ops[k / divisors.len()], x, d);
        let r = b.cast(r, DType::I64);
        b.store(*y, &[i], r);
    }
    b.close();
    let func = b.finish();
    let mut args: Vec<Arg> = ys.iter().map(|_| TensorArg::zeros(DType::I64, &[n]).into()).collect();
    args.push(Const::index(17).into());
    check(&func, &args);
}

#[test]
fn division_by_zero_leaves_with_its_place() {
    use zellige_codegen::cpu::{
        CpuOptions, FailureKind,
        run::{RunError, run},
    };
    let func = map_kernel(LoopKind::Parallel, &[DType::I32, DType::I32], DType::I32, 9, |b, v| {
        b.set_span(Span { file: "k.rs".into(), line: 7, col: 3 });
        b.binary(BinaryOp::Div, v[0], v[1])
    });
    let mut ys = [1.0; 9];
    ys[6] = 0.0;
    let mut args = [
        TensorArg::from_f64(DType::I32, &[9], &[5.0; 9]).into(),
        TensorArg::from_f64(DType::I32, &[9], &ys).into(),
        TensorArg::zeros(DType::I32, &[9]).into(),
    ];
    let Err(RunError::Failed(failure)) = run(&func, &CpuOptions::default(), &mut args) else {
        panic!("the division by zero was not noticed");
    };
    assert_eq!(failure.site.kind, FailureKind::DivisionByZero);
    assert_eq!((failure.site.place.line, failure.block), (7, 0));
}
