//! Matrix instructions of the GPU simulator against plain matrix products.

mod sim_support;

use half::{bf16, f16};
use sim_support::{Lcg, bytes32, floats, module_text, only, run, run_clean, words};
use zellige_runtime::sim::{FaultKind, LaunchDims, Memory, ParamBlock};

/// Fragment places from the ISA manual: register, lane, element to (row, column) of A (m x k), B (k x n) and C (m x n).
fn a_place(bits: usize, reg: usize, lane: usize, e: usize) -> (usize, usize) {
    let (g, t, per) = (lane / 4, lane % 4, 32 / bits);
    (g + if reg % 2 == 1 { 8 } else { 0 }, t * per + e + if reg >= 2 { 4 * per } else { 0 })
}

fn b_place(bits: usize, reg: usize, lane: usize, e: usize) -> (usize, usize) {
    let (g, t, per) = (lane / 4, lane % 4, 32 / bits);
    (t * per + e + reg * 4 * per, g)
}

fn c_place(v: usize, lane: usize) -> (usize, usize) {
    (lane / 4 + if v >= 2 { 8 } else { 0 }, lane % 4 * 2 + v % 2)
}

struct Case {
    op: &'static str,
    arch: &'static str,
    k: usize,
    bits: usize,
    a_regs: usize,
    b_regs: usize,
    /// A small integer value to its bits.
    encode: fn(f32) -> u32,
    int: bool,
}

fn run_mma(c: &Case) {
    let mut rng = Lcg(7);
    // Small integers are exact in every format, so sums are exact in any order.
    let mut ints = |n: usize| -> Vec<f32> { (0..n).map(|_| (rng.next() % 7) as f32 - 3.0).collect() };
    let (a, b, cc) = (ints(16 * c.k), ints(c.k * 8), ints(16 * 8));
    let (a, b): (Vec<f32>, Vec<f32>) = if c.op.contains("u8") {
        (a.iter().map(|v| v.abs()).collect(), b.iter().map(|v| v.abs()).collect())
    } else {
        (a, b)
    };
    let per = 32 / c.bits;
    let frag = |regs: usize, value: &dyn Fn(usize, usize, usize) -> f32| -> Vec<u32> {
        let mut out = Vec::new();
        for lane in 0..32 {
            for reg in 0..regs {
                let mut w = 0u32;
                for e in 0..per {
                    w |= (c.encode)(value(reg, lane, e)) << (e * c.bits);
                }
                out.push(w);
            }
        }
        out
    };
    let af = frag(c.a_regs, &|r, l, e| {
        let (i, j) = a_place(c.bits, r, l, e);
        a[i * c.k + j]
    });
    let bf = frag(c.b_regs, &|r, l, e| {
        let (i, j) = b_place(c.bits, r, l, e);
        b[i * 8 + j]
    });
    let mut cf = Vec::new();
    for lane in 0..32 {
        for v in 0..4 {
            let (i, j) = c_place(v, lane);
            cf.push(if c.int { cc[i * 8 + j] as i32 as u32 } else { cc[i * 8 + j].to_bits() });
        }
    }
    let list = |name: &str, n: usize| (0..n).map(|k| format!("%{name}{k}")).collect::<Vec<_>>().join(", ");
    let loads: String = [("a", c.a_regs, 0), ("b", c.b_regs, 1), ("c", 4, 2)]
        .iter()
        .flat_map(|(name, n, base)| {
            (0..*n).map(move |k| {
                format!("mad.lo.u32 %r1, %r0, {}, {}; mul.wide.u32 %rd4, %r1, 4; add.s64 %rd5, %rd{base}, %rd4; ld.global.b32 %{name}{k}, [%rd5];\n", n, k)
            })
        })
        .collect();
    let body = format!(
        ".reg .b32 %r<4>, %a<4>, %b<4>, %c<4>, %d<4>; .reg .b64 %rd<8>;
         ld.param.u64 %rd0, [a]; ld.param.u64 %rd1, [b]; ld.param.u64 %rd2, [c]; ld.param.u64 %rd3, [d]; mov.u32 %r0, %tid.x;
         {loads}
         {} {{{}}}, {{{}}}, {{{}}}, {{{}}};
         mul.wide.u32 %rd4, %r0, 16; add.s64 %rd5, %rd3, %rd4; st.global.v4.b32 [%rd5], {{%d0, %d1, %d2, %d3}}; ret;",
        c.op,
        list("d", 4),
        list("a", c.a_regs),
        list("b", c.b_regs),
        list("c", 4)
    );
    let text = module_text(c.arch, ".param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d", &body)
        .replace(".version 8.0", ".version 8.4");
    let mut m = Memory::new();
    let p = ParamBlock::new()
        .u64(m.alloc_init("a", &bytes32(&af)))
        .u64(m.alloc_init("b", &bytes32(&bf)))
        .u64(m.alloc_init("c", &bytes32(&cf)));
    let d = m.alloc("d", 512);
    run_clean(&text, LaunchDims::linear(1, 32), &p.u64(d), &mut m);
    let out = words(&m.read(d, 512).expect("read"));
    for lane in 0..32 {
        for v in 0..4 {
            let (i, j) = c_place(v, lane);
            let want = (0..c.k).fold(cc[i * 8 + j], |s, k| s + a[i * c.k + k] * b[k * 8 + j]);
            let got = out[lane * 4 + v];
            let got = if c.int { got as i32 as f32 } else { f32::from_bits(got) };
            assert_eq!(got, want, "{} row {i} column {j}", c.op);
        }
    }
}

fn e4m3(v: f32) -> u32 {
    // Exact for the integers -3..=3.
    let m = match v.abs() as u32 {
        0 => 0,
        1 => 0x38,
        2 => 0x40,
        _ => 0x44,
    };
    m | if v < 0.0 { 0x80 } else { 0 }
}

fn e5m2(v: f32) -> u32 {
    u32::from(f16::from_f32(v).to_bits() >> 8)
}

#[test]
fn every_shape_and_type() {
    let h: fn(f32) -> u32 = |v| f16::from_f32(v).to_bits().into();
    let b: fn(f32) -> u32 = |v| bf16::from_f32(v).to_bits().into();
    let cases = [
        Case {
            op: "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            arch: "sm_80",
            k: 16,
            bits: 16,
            a_regs: 4,
            b_regs: 2,
            encode: h,
            int: false,
        },
        Case {
            op: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
            arch: "sm_80",
            k: 16,
            bits: 16,
            a_regs: 4,
            b_regs: 2,
            encode: b,
            int: false,
        },
        Case {
            op: "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32",
            arch: "sm_80",
            k: 8,
            bits: 16,
            a_regs: 2,
            b_regs: 1,
            encode: h,
            int: false,
        },
        Case {
            op: "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32",
            arch: "sm_80",
            k: 8,
            bits: 16,
            a_regs: 2,
            b_regs: 1,
            encode: b,
            int: false,
        },
        Case {
            op: "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
            arch: "sm_80",
            k: 8,
            bits: 32,
            a_regs: 4,
            b_regs: 2,
            encode: |v| v.to_bits(),
            int: false,
        },
        Case {
            op: "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32",
            arch: "sm_80",
            k: 4,
            bits: 32,
            a_regs: 2,
            b_regs: 1,
            encode: |v| v.to_bits(),
            int: false,
        },
        Case {
            op: "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
            arch: "sm_89",
            k: 32,
            bits: 8,
            a_regs: 4,
            b_regs: 2,
            encode: e4m3,
            int: false,
        },
        Case {
            op: "mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32",
            arch: "sm_89",
            k: 32,
            bits: 8,
            a_regs: 4,
            b_regs: 2,
            encode: e5m2,
            int: false,
        },
        Case {
            op: "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
            arch: "sm_80",
            k: 32,
            bits: 8,
            a_regs: 4,
            b_regs: 2,
            encode: |v| u32::from(v as i8 as u8),
            int: true,
        },
        Case {
            op: "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32",
            arch: "sm_80",
            k: 32,
            bits: 8,
            a_regs: 4,
            b_regs: 2,
            encode: |v| v as u32,
            int: true,
        },
        Case {
            op: "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32",
            arch: "sm_80",
            k: 16,
            bits: 8,
            a_regs: 2,
            b_regs: 1,
            encode: |v| u32::from(v as i8 as u8),
            int: true,
        },
    ];
    for c in &cases {
        run_mma(c);
    }
}

/// Loads 4 tiles with `ldmatrix` (optionally transposed) from a 32 x 8 matrix of 16-bit row-major numbers.
#[test]
fn ldmatrix_and_stmatrix_move_the_tiles_of_the_manual() {
    for trans in ["", ".trans"] {
        let body = format!(
            ".reg .b32 %r<16>; .reg .b64 %rd<6>; .shared .align 16 .b8 s[512]; .shared .align 16 .b8 t[512];
             ld.param.u64 %rd0, [in]; ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 16; add.s64 %rd3, %rd0, %rd2;
             ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd3]; shl.b32 %r5, %r0, 4; mov.u32 %r6, s; add.u32 %r7, %r6, %r5;
             st.shared.v4.b32 [%r7], {{%r1, %r2, %r3, %r4}}; bar.warp.sync -1;
             ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r8, %r9, %r10, %r11}}, [%r7];
             add.s64 %rd4, %rd1, %rd2; st.global.v4.b32 [%rd4], {{%r8, %r9, %r10, %r11}};
             mov.u32 %r12, t; add.u32 %r13, %r12, %r5;
             stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r13], {{%r8, %r9, %r10, %r11}}; bar.warp.sync -1;
             ld.shared.v4.b32 {{%r1, %r2, %r3, %r4}}, [%r13]; st.global.v4.b32 [%rd4+512], {{%r1, %r2, %r3, %r4}}; ret;"
        );
        let text = module_text("sm_90", ".param .u64 in, .param .u64 out", &body);
        let input: Vec<u32> = (0..128).map(|w| (2 * w) | (2 * w + 1) << 16).collect();
        let mut m = Memory::new();
        let i = m.alloc_init("in", &bytes32(&input));
        let o = m.alloc("out", 1024);
        run_clean(&text, LaunchDims::linear(1, 32), &ParamBlock::new().u64(i).u64(o), &mut m);
        let out = words(&m.read(o, 1024).expect("read"));
        let at = |tile: u32, row: u32, col: u32| tile * 64 + row * 8 + col;
        for lane in 0..32u32 {
            for tile in 0..4 {
                let (g, t) = (lane / 4, lane % 4);
                let want = if trans.is_empty() {
                    at(tile, g, 2 * t) | at(tile, g, 2 * t + 1) << 16
                } else {
                    at(tile, 2 * t, g) | at(tile, 2 * t + 1, g) << 16
                };
                assert_eq!(out[(lane * 4 + tile) as usize], want, "lane {lane} tile {tile}{trans}");
            }
        }
        assert_eq!(out[128..], input, "stmatrix{trans} undoes ldmatrix{trans}");
    }
}

#[test]
fn matrix_instructions_need_the_whole_warp() {
    let body = ".reg .b32 %r<8>; .reg .pred %p; mov.u32 %r0, %tid.x; setp.lt.u32 %p, %r0, 16; .shared .align 16 .b8 s[512];
         mov.u32 %r1, s; shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2; st.shared.b64 [%r3], 0; st.shared.b64 [%r3+8], 0; bar.warp.sync -1;
         @%p ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3]; ret;";
    let r = run(&module_text("sm_80", "", body), LaunchDims::linear(1, 32), &ParamBlock::new(), &mut Memory::new());
    only(&r, FaultKind::WarpMask);
}

/// 64 x 64 x 64 bf16 product, four warps of 32 x 32, A and B through swizzle-free padded shared memory, `ldmatrix` and `mma`.
#[test]
fn tiled_gemm() {
    const PITCH: u32 = 144; // bytes per row of 64 elements, padded against bank conflicts
    let mut code = String::from(
        ".reg .b32 %r<64>, %a<8>, %b<4>; .reg .f32 %f<40>; .reg .b64 %rd<16>; .reg .pred %p<4>; .shared .align 16 .b8 as[9216]; .shared .align 16 .b8 bs[9216];
         ld.param.u64 %rd0, [a]; ld.param.u64 %rd1, [b]; ld.param.u64 %rd2, [c]; mov.u32 %r0, %tid.x;
         mov.u32 %r10, as; mov.u32 %r11, bs; and.b32 %r1, %r0, 31; shr.u32 %r2, %r0, 5; and.b32 %r3, %r2, 1; shr.u32 %r4, %r2, 1;
         mov.u32 %r5, 0;\n",
    );
    // Each thread copies 4 chunks of 16 bytes of both tiles: chunk = thread + 128 i, row = chunk / 8.
    for i in 0..4 {
        code += &format!(
            "add.u32 %r6, %r0, {}; shr.u32 %r7, %r6, 3; and.b32 %r8, %r6, 7; shl.b32 %r8, %r8, 4; mad.lo.u32 %r9, %r7, {PITCH}, %r8;
             mul.wide.u32 %rd3, %r6, 16; add.s64 %rd4, %rd0, %rd3; add.s64 %rd5, %rd1, %rd3;
             ld.global.v4.b32 {{%r12, %r13, %r14, %r15}}, [%rd4]; add.u32 %r16, %r10, %r9; st.shared.v4.b32 [%r16], {{%r12, %r13, %r14, %r15}};
             ld.global.v4.b32 {{%r12, %r13, %r14, %r15}}, [%rd5]; add.u32 %r16, %r11, %r9; st.shared.v4.b32 [%r16], {{%r12, %r13, %r14, %r15}};\n",
            128 * i
        );
    }
    code += "bar.sync 0;\n";
    for k in 0..32 {
        code += &format!("mov.f32 %f{k}, 0f00000000;\n");
    }
    // Rows of the warp's A tile: 32 * warp_m + 16 * i; ldmatrix lane l reads row l % 16, column half l / 16.
    code += &format!(
        "and.b32 %r20, %r1, 15; shr.u32 %r21, %r1, 4; shl.b32 %r22, %r3, 5; add.u32 %r23, %r22, %r20; shl.b32 %r24, %r21, 4; mad.lo.u32 %r25, %r23, {PITCH}, %r24; add.u32 %r26, %r10, %r25;
         and.b32 %r30, %r1, 7; shr.u32 %r31, %r1, 3; and.b32 %r32, %r31, 1; shr.u32 %r33, %r31, 1; shl.b32 %r34, %r33, 3; add.u32 %r35, %r34, %r30; shl.b32 %r36, %r4, 5; add.u32 %r37, %r36, %r35; shl.b32 %r38, %r32, 4; mad.lo.u32 %r39, %r37, {PITCH}, %r38; add.u32 %r40, %r11, %r39;
         LOOP:\n"
    );
    for i in 0..2 {
        code += &format!(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%a{}, %a{}, %a{}, %a{}}}, [%r26+{}];\n",
            4 * i,
            4 * i + 1,
            4 * i + 2,
            4 * i + 3,
            i * 16 * PITCH
        );
    }
    for jj in 0..2 {
        code +=
            &format!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%b0, %b1, %b2, %b3}}, [%r40+{}];\n", jj * 16 * PITCH);
        for half in 0..2 {
            for i in 0..2 {
                let d = (i * 4 + jj * 2 + half) * 4;
                let acc = format!("{{%f{}, %f{}, %f{}, %f{}}}", d, d + 1, d + 2, d + 3);
                code += &format!(
                    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {acc}, {{%a{}, %a{}, %a{}, %a{}}}, {{%b{}, %b{}}}, {acc};\n",
                    4 * i,
                    4 * i + 1,
                    4 * i + 2,
                    4 * i + 3,
                    2 * half,
                    2 * half + 1
                );
            }
        }
    }
    code += "add.u32 %r26, %r26, 32; add.u32 %r40, %r40, 32; add.u32 %r5, %r5, 1; setp.lt.u32 %p0, %r5, 4; @%p0 bra LOOP;
         shr.u32 %r50, %r1, 2; and.b32 %r51, %r1, 3; shl.b32 %r52, %r51, 1; add.u32 %r53, %r22, %r50; add.u32 %r54, %r36, %r52; mad.lo.u32 %r55, %r53, 64, %r54; mul.wide.u32 %rd6, %r55, 4; add.s64 %rd7, %rd2, %rd6;\n";
    for i in 0..2 {
        for j in 0..4 {
            let d = (i * 4 + j) * 4;
            let at = i * 16 * 256 + j * 32;
            code += &format!(
                "st.global.v2.f32 [%rd7+{at}], {{%f{d}, %f{}}}; st.global.v2.f32 [%rd7+{}], {{%f{}, %f{}}};\n",
                d + 1,
                at + 8 * 256,
                d + 2,
                d + 3
            );
        }
    }
    code += "ret;";
    let text = module_text("sm_80", ".param .u64 a, .param .u64 b, .param .u64 c", &code);

    let mut rng = Lcg(3);
    let mut random = || -> Vec<f32> { (0..64 * 64).map(|_| rng.small()).collect() };
    let (a, b) = (random(), random());
    let pack = |v: &[f32]| -> Vec<u8> { v.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect() };
    let mut m = Memory::new();
    let p = ParamBlock::new().u64(m.alloc_init("a", &pack(&a))).u64(m.alloc_init("b", &pack(&b)));
    let c = m.alloc("c", 64 * 64 * 4);
    let r = run_clean(&text, LaunchDims::linear(1, 128), &p.u64(c), &mut m);
    let out = floats(&m.read(c, 64 * 64 * 4).expect("read"));
    for i in 0..64 {
        for j in 0..64 {
            // B is stored by rows of n. The products are multiples of 2^-14, their sums exact in f32.
            let want: f64 = (0..64).map(|k| f64::from(a[i * 64 + k]) * f64::from(b[j * 64 + k])).sum();
            assert_eq!(f64::from(out[i * 64 + j]), want, "row {i} column {j}");
        }
    }
    let ld: u64 = r
        .stats
        .by_instruction
        .iter()
        .filter(|i| i.opcode.starts_with("ldmatrix"))
        .map(|i| i.stats.bank_conflicts)
        .sum();
    assert_eq!(ld, 0, "the padding avoids conflicts");
}
