//! Arithmetic of the GPU simulator, one instruction at a time, against results computed in Rust.

mod sim_support;

use half::{bf16, f16};
use sim_support::{bytes32, bytes64, load, module_text, words};
use zellige_runtime::sim::{LaunchDims, Memory, ParamBlock, SimOptions, launch};

/// Interesting 32-bit patterns: integers at their edges, and floats of every kind.
const BITS: [u32; 32] = [
    0,
    1,
    2,
    3,
    31,
    32,
    33,
    255,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x1_0000,
    0x00FF_FFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0x8000_0001,
    0xFFFF_FFFF,
    0xFFFF_FF80,
    0x3F80_0000,
    0xBF80_0000,
    0x4049_0FDB,
    0xC2F6_E979,
    0x0040_0000,
    0x8000_0100,
    0x7F80_0000,
    0xFF80_0000,
    0x3DCC_CCCD,
    0x4B80_0001,
    0x7F7F_FFFF,
    0x0080_0000,
    0x5555_AAAA,
    0x1234_5678,
];

/// Runs `code` (reading %a, %b, %c, writing %d, all .b32; scratch %t0.. .b32, %h0.. .b16, %l0.. .b64, %p0.. predicates) on
/// all combinations of a shifted operand list and returns (a, b, c, d) rows.
fn run32(arch: &str, code: &str) -> Vec<(u32, u32, u32, u32)> {
    let body = format!(
        ".reg .b32 %a, %b, %c, %d, %i, %o, %t<8>; .reg .b16 %h<8>; .reg .b64 %g<6>, %l<8>; .reg .pred %p<4>;
         ld.param.u64 %g0, [in]; ld.param.u64 %g1, [out];
         mov.u32 %i, %tid.x; mov.u32 %t0, %ctaid.x; mad.lo.u32 %i, %t0, 32, %i;
         mul.wide.u32 %g2, %i, 12; add.s64 %g3, %g0, %g2;
         ld.global.b32 %a, [%g3]; ld.global.b32 %b, [%g3+4]; ld.global.b32 %c, [%g3+8];
         {code}
         mul.wide.u32 %g4, %i, 4; add.s64 %g5, %g1, %g4; st.global.b32 [%g5], %d; ret;"
    );
    let text = module_text(arch, ".param .u64 in, .param .u64 out", &body);
    let mut rows = Vec::new();
    for shift_b in 0..32 {
        for shift_c in [0, 7, 19] {
            for l in 0..32 {
                rows.push((BITS[l], BITS[(l + shift_b) % 32], BITS[(l * 5 + shift_c) % 32]));
            }
        }
    }
    let mut m = Memory::new();
    let input: Vec<u32> = rows.iter().flat_map(|(a, b, c)| [*a, *b, *c]).collect();
    let i = m.alloc_init("in", &bytes32(&input));
    let o = m.alloc("out", rows.len() * 4);
    let dims = LaunchDims::linear(rows.len() as u32 / 32, 32);
    let params = ParamBlock::new().u64(i).u64(o);
    let r = launch(&load(&text), "k", dims, params.as_bytes(), &mut m, &SimOptions::default()).expect("launches");
    assert!(r.faults.is_empty(), "{code}\n{}", r.describe());
    let out = words(&m.read(o, rows.len() * 4).expect("read"));
    rows.into_iter().zip(out).map(|((a, b, c), d)| (a, b, c, d)).collect()
}

fn check(code: &str, want: impl Fn(u32, u32, u32) -> u32) {
    check_on("sm_90", code, want);
}

fn check_on(arch: &str, code: &str, want: impl Fn(u32, u32, u32) -> u32) {
    for (a, b, c, d) in run32(arch, code) {
        assert_eq!(d, want(a, b, c), "{code}: a={a:#x} b={b:#x} c={c:#x} gives {d:#x}, want {:#x}", want(a, b, c));
    }
}

fn s(v: u32) -> i32 {
    v as i32
}

fn f(v: u32) -> f32 {
    f32::from_bits(v)
}

/// Bits with the canonical NaN, as the GPU returns it.
fn fb(v: f32) -> u32 {
    if v.is_nan() { 0x7FFF_FFFF } else { v.to_bits() }
}

#[test]
fn integer_arithmetic() {
    check("add.s32 %d, %a, %b;", |a, b, _| a.wrapping_add(b));
    check("sub.u32 %d, %a, %b;", |a, b, _| a.wrapping_sub(b));
    check("mul.lo.s32 %d, %a, %b;", |a, b, _| a.wrapping_mul(b));
    check("mul.hi.u32 %d, %a, %b;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check("mul.hi.s32 %d, %a, %b;", |a, b, _| ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32);
    check("mad.lo.u32 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check("add.sat.s32 %d, %a, %b;", |a, b, _| s(a).saturating_add(s(b)) as u32);
    check("div.s32 %d, %a, %b;", |a, b, _| if b == 0 { u32::MAX } else { s(a).wrapping_div(s(b)) as u32 });
    check("div.u32 %d, %a, %b;", |a, b, _| a.checked_div(b).unwrap_or(u32::MAX));
    check("rem.s32 %d, %a, %b;", |a, b, _| if b == 0 { a } else { s(a).wrapping_rem(s(b)) as u32 });
    check("rem.u32 %d, %a, %b;", |a, b, _| a.checked_rem(b).unwrap_or(a));
    check("min.s32 %d, %a, %b;", |a, b, _| s(a).min(s(b)) as u32);
    check("max.u32 %d, %a, %b;", |a, b, _| a.max(b));
    check("abs.s32 %d, %a;", |a, _, _| s(a).wrapping_abs() as u32);
    check("neg.s32 %d, %a;", |a, _, _| a.wrapping_neg());
    check("sad.s32 %d, %a, %b, %c;", |a, b, c| s(a).abs_diff(s(b)).wrapping_add(c));
    check("mul.wide.s32 %l0, %a, %b; mov.b64 {%t0, %d}, %l0;", |a, b, _| {
        ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32
    });
    check("cvt.u64.u32 %l1, %c; mad.wide.u32 %l0, %a, %b, %l1; mov.b64 {%d, %t1}, %l0;", |a, b, c| {
        (u64::from(a) * u64::from(b) + u64::from(c)) as u32
    });
}

#[test]
fn integer_logic_and_bits() {
    check("and.b32 %d, %a, %b;", |a, b, _| a & b);
    check("or.b32 %d, %a, %b;", |a, b, _| a | b);
    check("xor.b32 %d, %a, %b;", |a, b, _| a ^ b);
    check("not.b32 %d, %a;", |a, _, _| !a);
    check("cnot.b32 %d, %a;", |a, _, _| u32::from(a == 0));
    check("shl.b32 %d, %a, %b;", |a, b, _| a.checked_shl(b).unwrap_or(0));
    check("shr.u32 %d, %a, %b;", |a, b, _| a.checked_shr(b).unwrap_or(0));
    check("shr.s32 %d, %a, %b;", |a, b, _| (s(a) >> b.min(31)) as u32);
    check("popc.b32 %d, %a;", |a, _, _| a.count_ones());
    check("clz.b32 %d, %a;", |a, _, _| a.leading_zeros());
    check("brev.b32 %d, %a;", |a, _, _| a.reverse_bits());
    check("bfind.u32 %d, %a;", |a, _, _| 31u32.wrapping_sub(a.leading_zeros()));
    check("bfind.s32 %d, %a;", |a, _, _| 31u32.wrapping_sub((if s(a) < 0 { !a } else { a }).leading_zeros()));
    check("lop3.b32 %d, %a, %b, %c, 0x96;", |a, b, c| a ^ b ^ c);
    check("lop3.b32 %d, %a, %b, %c, 0xE8;", |a, b, c| (a & b) | (a & c) | (b & c));
    check("lop3.b32 %d, %a, %b, %c, 0xCA;", |a, b, c| (a & b) | (!a & c));
    check("prmt.b32 %d, %a, %b, 0x3276;", |a, b, _| {
        let x = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
        u32::from_le_bytes([x[6], x[7], x[2], x[3]])
    });
    check("shf.l.wrap.b32 %d, %a, %b, 8;", |a, b, _| b << 8 | a >> 24);
    check("shf.r.wrap.b32 %d, %a, %b, %c;", |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32);
    check("shf.r.clamp.b32 %d, %a, %b, %c;", |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32);
    check("bfe.u32 %d, %a, 4, 9;", |a, _, _| a >> 4 & 0x1FF);
    check("bfe.s32 %d, %a, 28, 8;", |a, _, _| (s(a) >> 28) as u32);
    check("bfi.b32 %d, %a, %b, 5, 7;", |a, b, _| b & !(0x7F << 5) | (a & 0x7F) << 5);
    check("dp4a.s32.u32 %d, %a, %b, %c;", |a, b, c| {
        let dot: i32 =
            a.to_le_bytes().iter().zip(b.to_le_bytes()).map(|(x, y)| i32::from(*x as i8) * i32::from(y)).sum();
        c.wrapping_add(dot as u32)
    });
}

#[test]
fn sixteen_bit_integers() {
    let lo = |a: u32| a as u16;
    check("cvt.u16.u32 %h0, %a; cvt.u16.u32 %h1, %b; add.u16 %h2, %h0, %h1; cvt.u32.u16 %d, %h2;", |a, b, _| {
        u32::from(lo(a).wrapping_add(lo(b)))
    });
    check("cvt.u16.u32 %h0, %a; cvt.u16.u32 %h1, %b; max.s16 %h2, %h0, %h1; cvt.s32.s16 %d, %h2;", |a, b, _| {
        i32::from((lo(a) as i16).max(lo(b) as i16)) as u32
    });
    check("cvt.u16.u32 %h0, %a; cvt.u16.u32 %h1, %b; mul.wide.u16 %d, %h0, %h1;", |a, b, _| {
        u32::from(lo(a)) * u32::from(lo(b))
    });
    check("mov.b32 {%h0, %h1}, %a; shr.s16 %h2, %h1, 3; mov.b32 %d, {%h2, %h0};", |a, _, _| {
        u32::from(((a >> 16) as i16 >> 3) as u16) | a << 16
    });
}

#[test]
fn sixty_four_bit_integers() {
    let pair = "mov.b64 %l0, {%a, %b}; mov.b64 %l1, {%b, %c};";
    let v = |lo: u32, hi: u32| u64::from(hi) << 32 | u64::from(lo);
    let fold = "mov.b64 {%t1, %t2}, %l2; xor.b32 %d, %t1, %t2;";
    let folded = |x: u64| (x >> 32) as u32 ^ x as u32;
    type Case = (&'static str, Box<dyn Fn(u64, u64) -> u64>);
    let cases: Vec<Case> = vec![
        ("add.s64 %l2, %l0, %l1;", Box::new(|a, b| a.wrapping_add(b))),
        ("mul.lo.u64 %l2, %l0, %l1;", Box::new(|a, b| a.wrapping_mul(b))),
        ("mul.hi.u64 %l2, %l0, %l1;", Box::new(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64)),
        ("mul.hi.s64 %l2, %l0, %l1;", Box::new(|a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64)),
        ("div.u64 %l2, %l0, %l1;", Box::new(|a, b| a.checked_div(b).unwrap_or(u64::MAX))),
        ("min.s64 %l2, %l0, %l1;", Box::new(|a, b| (a as i64).min(b as i64) as u64)),
        ("shl.b64 %l2, %l0, 13;", Box::new(|a, _| a << 13)),
        ("shr.s64 %l2, %l0, 13;", Box::new(|a, _| ((a as i64) >> 13) as u64)),
        ("bfe.u64 %l2, %l0, 13, 30;", Box::new(|a, _| a >> 13 & ((1 << 30) - 1))),
        ("xor.b64 %l2, %l0, %l1;", Box::new(|a, b| a ^ b)),
    ];
    for (code, want) in cases {
        check(&format!("{pair} {code} {fold}"), |a, b, c| folded(want(v(a, b), v(b, c))));
    }
    check("mov.b64 %l0, {%a, %b}; popc.b64 %d, %l0;", |a, b, _| v(a, b).count_ones());
    check("mov.b64 %l0, {%a, %b}; clz.b64 %d, %l0;", |a, b, _| v(a, b).leading_zeros());
}

#[test]
fn single_precision_is_exact() {
    check("add.rn.f32 %d, %a, %b;", |a, b, _| fb(f(a) + f(b)));
    check("sub.f32 %d, %a, %b;", |a, b, _| fb(f(a) - f(b)));
    check("mul.f32 %d, %a, %b;", |a, b, _| fb(f(a) * f(b)));
    check("fma.rn.f32 %d, %a, %b, %c;", |a, b, c| fb(f(a).mul_add(f(b), f(c))));
    check("div.rn.f32 %d, %a, %b;", |a, b, _| fb(f(a) / f(b)));
    check("sqrt.rn.f32 %d, %a;", |a, _, _| fb(f(a).sqrt()));
    check("rcp.rn.f32 %d, %a;", |a, _, _| fb(1.0 / f(a)));
    check("neg.f32 %d, %a;", |a, _, _| fb(-f(a)));
    check("abs.f32 %d, %a;", |a, _, _| fb(f(a).abs()));
    check("copysign.f32 %d, %a, %b;", |a, b, _| fb(f(b).copysign(f(a))));
    check("add.sat.f32 %d, %a, %b;", |a, b, _| {
        let v = f(a) + f(b);
        fb(if v > 0.0 { v.min(1.0) } else { 0.0 })
    });
    let ftz = |v: f32| if v.is_subnormal() { 0.0f32.copysign(v) } else { v };
    check("mul.rn.ftz.f32 %d, %a, %b;", |a, b, _| fb(ftz(ftz(f(a)) * ftz(f(b)))));
}

#[test]
fn directed_rounding_brackets() {
    for (op, exact) in [("add", (|a, b| a + b) as fn(f64, f64) -> f64), ("mul", |a, b| a * b)] {
        let down = run32("sm_90", &format!("{op}.rm.f32 %d, %a, %b;"));
        let up = run32("sm_90", &format!("{op}.rp.f32 %d, %a, %b;"));
        let zero = run32("sm_90", &format!("{op}.rz.f32 %d, %a, %b;"));
        for (((a, b, _, lo), (.., hi)), (.., tz)) in down.into_iter().zip(up).zip(zero) {
            let (x, y) = (f64::from(f(a)), f64::from(f(b)));
            if !x.is_finite() || !y.is_finite() {
                continue;
            }
            // The f64 result is exact for products, and rounded inside the bracket for sums.
            let e = exact(x, y);
            let (lo, hi, tz) = (f(lo), f(hi), f(tz));
            assert!(f64::from(lo) <= e && e <= f64::from(hi), "{op} {x:e} {y:e}: {lo:e} {hi:e}");
            assert!(
                lo == hi || lo.next_up() == hi || (lo == f32::MAX && hi.is_infinite()),
                "{op} {x:e} {y:e}: {lo:e} {hi:e}"
            );
            assert_eq!(tz, if e > 0.0 { lo } else { hi }, "{op} {x:e} {y:e}");
        }
    }
}

#[test]
fn minimum_and_maximum_treat_nan_as_the_isa_says() {
    let nan = f32::NAN.to_bits();
    let code = format!("mov.b32 %t0, {nan:#x}; setp.eq.u32 %p0, %c, 0; selp.b32 %t1, %t0, %b, %p0;");
    check(&format!("{code} max.f32 %d, %a, %t1;"), |a, b, c| {
        let y = if c == 0 { f32::NAN } else { f(b) };
        match (f(a).is_nan(), y.is_nan()) {
            (true, true) => 0x7FFF_FFFF,
            (true, false) => y.to_bits(),
            (false, true) => a,
            (false, false) if f(a) == y => {
                if f(a).is_sign_positive() {
                    a
                } else {
                    y.to_bits()
                }
            }
            (false, false) => f(a).max(y).to_bits(),
        }
    });
    check(&format!("{code} min.NaN.f32 %d, %a, %t1;"), |a, b, c| {
        let y = if c == 0 { f32::NAN } else { f(b) };
        if f(a).is_nan() || y.is_nan() {
            0x7FFF_FFFF
        } else if f(a) == y {
            if f(a).is_sign_negative() { a } else { y.to_bits() }
        } else {
            f(a).min(y).to_bits()
        }
    });
}

#[test]
fn approximations_stay_within_their_documented_error() {
    // Relative bounds from the ISA manual; lg2 and tanh as relative to the result's size.
    type Case = (&'static str, fn(f64) -> f64, f64);
    let cases: [Case; 7] = [
        ("ex2.approx.f32", f64::exp2, 2.5e-7),
        ("rcp.approx.f32", |x| 1.0 / x, 1.2e-7),
        ("sqrt.approx.f32", f64::sqrt, 2.5e-7),
        ("rsqrt.approx.f32", |x| 1.0 / x.sqrt(), 2.5e-7),
        ("lg2.approx.f32", f64::log2, 5e-7),
        ("tanh.approx.f32", f64::tanh, 5e-4),
        ("sin.approx.f32", f64::sin, 5e-7),
    ];
    for (op, exact, bound) in cases {
        for (a, _, _, d) in run32("sm_90", &format!("{op} %d, %a;")) {
            let want = exact(f64::from(f(a)));
            let got = f64::from(f(d));
            if !want.is_finite() || want.abs() < 1e-37 || want.abs() > 3e38 {
                continue;
            }
            assert!((got - want).abs() <= bound * want.abs().max(1e-30), "{op} of {:e}: {got:e}, want {want:e}", f(a));
        }
    }
    check("ex2.approx.ftz.f32 %d, %a;", |a, _, _| {
        let v = f(a).exp2();
        fb(if v.is_subnormal() { 0.0 } else { v })
    });
}

#[test]
fn packed_halves() {
    let h = |v: u32, k: u32| f16::from_bits((v >> (16 * k)) as u16);
    let b = |v: u32, k: u32| bf16::from_bits((v >> (16 * k)) as u16);
    let n16 = |v: f16| if v.is_nan() { 0x7FFF } else { u32::from(v.to_bits()) };
    let nb16 = |v: bf16| if v.is_nan() { 0x7FFF } else { u32::from(v.to_bits()) };
    let both = |g: &dyn Fn(u32) -> u32| g(0) | g(1) << 16;
    check("add.rn.f16x2 %d, %a, %b;", |x, y, _| both(&|k| n16(f16::from_f32(h(x, k).to_f32() + h(y, k).to_f32()))));
    check("mul.rn.bf16x2 %d, %a, %b;", |x, y, _| both(&|k| nb16(bf16::from_f32(b(x, k).to_f32() * b(y, k).to_f32()))));
    check("fma.rn.bf16x2 %d, %a, %b, %c;", |x, y, z| {
        both(&|k| nb16(bf16::from_f64(b(x, k).to_f64().mul_add(b(y, k).to_f64(), b(z, k).to_f64()))))
    });
    check("max.bf16x2 %d, %a, %b;", |x, y, _| {
        both(&|k| {
            let (p, q) = (b(x, k), b(y, k));
            match (p.is_nan(), q.is_nan()) {
                (true, true) => 0x7FFF,
                (true, false) => u32::from(q.to_bits()),
                (false, true) => u32::from(p.to_bits()),
                (false, false) if p == q => u32::from(if p.is_sign_positive() { p } else { q }.to_bits()),
                (false, false) => u32::from(if p > q { p } else { q }.to_bits()),
            }
        })
    });
    check("neg.bf16x2 %d, %a;", |x, _, _| both(&|k| nb16(-b(x, k))));
}

#[test]
fn conversions() {
    check("cvt.rni.s32.f32 %d, %a;", |a, _, _| f(a).round_ties_even() as i32 as u32);
    check("cvt.rzi.u32.f32 %d, %a;", |a, _, _| f(a) as u32);
    check("cvt.rmi.s32.f32 %d, %a;", |a, _, _| f(a).floor() as i32 as u32);
    check("cvt.rn.f32.s32 %d, %a;", |a, _, _| (s(a) as f32).to_bits());
    check("cvt.rn.f32.u32 %d, %a;", |a, _, _| (a as f32).to_bits());
    check("cvt.rpi.f32.f32 %d, %a;", |a, _, _| fb(f(a).ceil()));
    check("cvt.rn.f16.f32 %h0, %a; cvt.u32.u16 %d, %h0;", |a, _, _| {
        if f(a).is_nan() { 0x7FFF } else { u32::from(f16::from_f32(f(a)).to_bits()) }
    });
    check("cvt.rn.bf16x2.f32 %d, %a, %b;", |a, b, _| {
        let one = |v: f32| if v.is_nan() { 0x7FFF } else { u32::from(bf16::from_f32(v).to_bits()) };
        one(f(a)) << 16 | one(f(b))
    });
    check("mov.b32 {%h0, %h1}, %a; cvt.f32.bf16 %d, %h1;", |a, _, _| fb(f(a & 0xFFFF_0000)));
    check("mov.b32 {%h0, %h1}, %a; cvt.f32.f16 %d, %h0;", |a, _, _| fb(f16::from_bits(a as u16).to_f32()));
    check("cvt.rna.tf32.f32 %d, %a;", |a, _, _| {
        if f(a).is_nan() {
            0x7FFF_E000
        } else if f(a).is_infinite() {
            a
        } else {
            (a + 0x1000) & 0xFFFF_E000
        }
    });
    check("cvt.s32.s8 %d, %a;", |a, _, _| i32::from(a as i8) as u32);
    check("cvt.sat.u8.s32 %d, %a;", |a, _, _| s(a).clamp(0, 255) as u32);
    check("cvt.f64.f32 %l0, %a; cvt.rz.f32.f64 %d, %l0;", |a, _, _| fb(f(a)));
}

#[test]
fn eight_bit_floats_round_trip() {
    check("cvt.rn.satfinite.e4m3x2.f32 %h0, %a, %b; cvt.rn.f16x2.e4m3x2 %d, %h0;", |a, b, _| {
        let one = |v: f32| {
            if v.is_nan() {
                return 0x7FFF;
            }
            // e4m3: 3 mantissa bits, smallest step 2^-9, largest 448.
            let x = f64::from(v).abs().min(448.0);
            let step = 2f64.powi((x.log2().floor() as i32).max(-6) - 3);
            let r = (x / step).round_ties_even() * step;
            u32::from(f16::from_f64(r.min(448.0).copysign(f64::from(v))).to_bits())
        };
        one(f(a)) << 16 | one(f(b))
    });
}

#[test]
fn comparisons_and_selection() {
    check("setp.lt.s32 %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", |a, b, _| u32::from(s(a) < s(b)));
    check("setp.hs.u32 %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", |a, b, _| u32::from(a >= b));
    check("setp.ltu.f32 %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", |a, b, _| {
        u32::from(f(a) < f(b) || f(a).is_nan() || f(b).is_nan())
    });
    check("setp.ne.f32 %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", |a, b, _| {
        u32::from(f(a) != f(b) && !f(a).is_nan() && !f(b).is_nan())
    });
    check(
        "setp.eq.u32 %p1, %c, 0; setp.gt.and.s32 %p0|%p2, %a, %b, !%p1; selp.u32 %t0, 1, 0, %p0; selp.u32 %t1, 2, 0, %p2; or.b32 %d, %t0, %t1;",
        |a, b, c| {
            let z = c != 0;
            u32::from(s(a) > s(b) && z) | u32::from(s(a) <= s(b) && z) << 1
        },
    );
    check("set.gt.u32.s32 %d, %a, %b;", |a, b, _| if s(a) > s(b) { u32::MAX } else { 0 });
    check("set.ge.f32.s32 %d, %a, %b;", |a, b, _| if s(a) >= s(b) { 0x3F80_0000 } else { 0 });
    check("slct.b32.s32 %d, %a, %b, %c;", |a, b, c| if s(c) >= 0 { a } else { b });
    check(
        "setp.lt.s32 %p0, %a, 0; setp.lt.s32 %p1, %b, 0; xor.pred %p2, %p0, %p1; not.pred %p3, %p2; selp.u32 %d, 1, 0, %p3;",
        |a, b, _| u32::from((s(a) < 0) == (s(b) < 0)),
    );
    check("mov.u32 %d, 7; setp.eq.u32 %p0, %a, %b; @%p0 add.u32 %d, %d, 1; @!%p0 sub.u32 %d, %d, 1;", |a, b, _| {
        if a == b { 8 } else { 6 }
    });
}

#[test]
fn double_precision() {
    type Case = (&'static str, fn(f64, f64) -> f64);
    let ops: [Case; 4] = [
        ("add.rn.f64 %l2, %l0, %l1;", |a, b| a + b),
        ("mul.rn.f64 %l2, %l0, %l1;", |a, b| a * b),
        ("div.rn.f64 %l2, %l0, %l1;", |a, b| a / b),
        ("fma.rn.f64 %l2, %l0, %l1, %l0;", |a, b| a.mul_add(b, a)),
    ];
    for (op, want) in ops {
        let code = format!("cvt.f64.f32 %l0, %a; cvt.f64.f32 %l1, %b; {op} cvt.rn.f32.f64 %d, %l2;");
        check(&code, |a, b, _| fb(want(f64::from(f(a)), f64::from(f(b))) as f32));
    }
    // -0 is less than +0, whichever comes first.
    for (op, want) in [("min", 0x8000_0000), ("max", 0)] {
        for [x, y] in [["0d8000000000000000", "0d0000000000000000"], ["0d0000000000000000", "0d8000000000000000"]] {
            let code = format!("mov.f64 %l0, {x}; mov.f64 %l1, {y}; {op}.f64 %l2, %l0, %l1;");
            check(&format!("{code} cvt.rn.f32.f64 %d, %l2;"), |_, _, _| want);
        }
    }
    // Literals keep all their bits.
    check("mov.f64 %l0, 0d3FF0000000000001; mov.b64 {%d, %t0}, %l0;", |_, _, _| 1);
    assert_eq!(bytes64(&[1]).len(), 8);
}
