//! Loads, stores, address spaces and atomics of the GPU simulator.

mod sim_support;

use half::bf16;
use sim_support::{bytes32, floats, module_text, run_clean, words};
use zellige_runtime::sim::{LaunchDims, Memory, ParamBlock};

const HEAD: &str = ".reg .b32 %r<32>; .reg .b16 %h<16>; .reg .b64 %rd<16>; .reg .pred %p<4>; .reg .f32 %f<16>;
    ld.param.u64 %rd0, [in]; ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;";

/// Runs a body with `in` (given words) and `out` (zeroed), returns `out`.
fn io(dims: LaunchDims, input: &[u32], out_words: usize, body: &str) -> Vec<u32> {
    let text = module_text("sm_90", ".param .u64 in, .param .u64 out", &format!("{HEAD}\n{body}\nret;"));
    // Vector reductions came with ISA 8.1.
    let text = text.replace(".version 8.0", ".version 8.1");
    let mut m = Memory::new();
    let i = m.alloc_init("in", &bytes32(input));
    let o = m.alloc_init("out", &vec![0; out_words * 4]);
    run_clean(&text, dims, &ParamBlock::new().u64(i).u64(o), &mut m);
    words(&m.read(o, out_words * 4).expect("read"))
}

#[test]
fn vector_loads_and_stores_of_every_width() {
    let input: Vec<u32> = (0..128).map(|k| k * 0x0101_0101).collect();
    for (load, store) in [
        ("ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd3];", "st.global.v4.u32 [%rd4], {%r4, %r5, %r6, %r7};"),
        ("ld.global.nc.v2.b64 {%rd5, %rd6}, [%rd3];", "st.global.cg.v2.b64 [%rd4], {%rd5, %rd6};"),
        (
            "ld.global.v4.u16 {%h0, %h1, %h2, %h3}, [%rd3]; ld.global.v4.u16 {%h4, %h5, %h6, %h7}, [%rd3+8];",
            "st.global.v4.u16 [%rd4], {%h0, %h1, %h2, %h3}; st.global.v4.u16 [%rd4+8], {%h4, %h5, %h6, %h7};",
        ),
        (
            "ld.global.L1::no_allocate.v2.f32 {%f0, %f1}, [%rd3]; ld.global.v2.f32 {%f2, %f3}, [%rd3+8];",
            "st.global.v2.f32 [%rd4], {%f0, %f1}; st.global.v2.f32 [%rd4+8], {%f2, %f3};",
        ),
        (
            "ld.global.v4.u8 {%r4, %r5, %r6, %r7}, [%rd3]; ld.global.b64 %rd5, [%rd3+8]; ld.global.u16 %r8, [%rd3+4]; ld.global.u8 %r9, [%rd3+6]; ld.global.u8 %r10, [%rd3+7];",
            "st.global.v4.u8 [%rd4], {%r4, %r5, %r6, %r7}; st.global.b64 [%rd4+8], %rd5; st.global.u16 [%rd4+4], %r8; st.global.u8 [%rd4+6], %r9; st.global.u8 [%rd4+7], %r10;",
        ),
    ] {
        let body =
            format!("mul.wide.u32 %rd2, %r0, 16; add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2; {load} {store}");
        assert_eq!(io(LaunchDims::linear(1, 32), &input, 128, &body), input, "{load}");
    }
}

#[test]
fn signed_narrow_loads_extend() {
    let out = io(
        LaunchDims::linear(1, 1),
        &[0x8081_FF7F],
        4,
        "ld.global.s8 %r4, [%rd0+1]; ld.global.u8 %r5, [%rd0+1]; ld.global.s16 %r6, [%rd0+2]; ld.global.s8 %rd5, [%rd0+3];
         shr.u64 %rd6, %rd5, 32; cvt.u32.u64 %r7, %rd6; st.global.v4.u32 [%rd1], {%r4, %r5, %r6, %r7};",
    );
    assert_eq!(out, [u32::MAX, 0xFF, 0xFFFF_8081, u32::MAX]);
}

#[test]
fn shared_memory_reverses_a_block() {
    let input: Vec<u32> = (100..164).collect();
    let out = io(
        LaunchDims::linear(1, 64),
        &input,
        64,
        ".shared .align 16 .b8 buf[256]; mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd0, %rd2; ld.global.u32 %r4, [%rd3];
         mov.u32 %r5, buf; shl.b32 %r6, %r0, 2; add.u32 %r7, %r5, %r6; st.shared.u32 [%r7], %r4;
         bar.sync 0;
         sub.u32 %r8, %r5, %r6; ld.shared.u32 %r9, [%r8+252]; add.s64 %rd4, %rd1, %rd2; st.global.u32 [%rd4], %r9;",
    );
    assert_eq!(out, input.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn generic_addresses_reach_every_space() {
    // Local, shared and global memory through one generic pointer each.
    let out = io(
        LaunchDims::linear(1, 32),
        &(0..32).collect::<Vec<u32>>(),
        32,
        ".shared .align 4 .b8 s[128]; .local .align 4 .b8 l[16];
         mov.u64 %rd2, s; cvta.shared.u64 %rd3, %rd2; mov.u64 %rd4, l; cvta.local.u64 %rd5, %rd4;
         mul.wide.u32 %rd6, %r0, 4; add.s64 %rd7, %rd0, %rd6; cvta.global.u64 %rd8, %rd7; ld.u32 %r4, [%rd8];
         add.u32 %r5, %r4, 1; st.u32 [%rd5+8], %r5; ld.local.u32 %r6, [l+8];
         add.s64 %rd9, %rd3, %rd6; st.u32 [%rd9], %r6; cvta.to.shared.u64 %rd10, %rd9; ld.shared.u32 %r7, [%rd10];
         isspacep.shared %p1, %rd9; selp.u32 %r8, 1000, 0, %p1; add.u32 %r9, %r7, %r8;
         add.s64 %rd11, %rd1, %rd6; st.global.u32 [%rd11], %r9;",
    );
    assert_eq!(out, (1001..1033).collect::<Vec<u32>>());
}

#[test]
fn constants_and_module_variables() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n\
        .const .align 4 .b32 table[4] = {10, 20, 30, 40};\n.global .align 4 .u32 counter = 5;\n\
        .visible .entry k(.param .u64 out) { .reg .b32 %r<6>; .reg .b64 %rd<6>;\n\
        ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; mov.u64 %rd1, table; mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd1, %rd2;\n\
        ld.const.u32 %r1, [%rd3]; atom.global.add.u32 %r2, [counter], 1; add.u32 %r3, %r1, %r2;\n\
        add.s64 %rd4, %rd0, %rd2; st.global.u32 [%rd4], %r3; ret; }";
    let mut m = Memory::new();
    let o = m.alloc("out", 16);
    run_clean(text, LaunchDims::linear(1, 4), &ParamBlock::new().u64(o), &mut m);
    assert_eq!(words(&m.read(o, 16).expect("read")), [15, 26, 37, 48]);
}

#[test]
fn parameters_of_every_size() {
    let text = module_text(
        "sm_80",
        ".param .u64 out, .param .u32 a, .param .f32 b, .param .u16 c, .param .align 16 .b8 d[16]",
        ".reg .b32 %r<8>; .reg .b64 %rd<2>; .reg .f32 %f<2>; .reg .b16 %h<2>;
         ld.param.u64 %rd0, [out]; ld.param.u32 %r0, [a]; ld.param.f32 %f0, [b]; ld.param.u16 %h0, [c]; ld.param.v2.u32 {%r2, %r3}, [d+8];
         cvt.u32.u16 %r4, %h0; st.global.u32 [%rd0], %r0; st.global.f32 [%rd0+4], %f0; st.global.u32 [%rd0+8], %r4;
         st.global.v2.u32 [%rd0+16], {%r2, %r3}; ret;",
    );
    let mut m = Memory::new();
    let o = m.alloc_init("out", &[0; 24]);
    let p = ParamBlock::new().u64(o).u32(7).f32(1.5).bytes(2, &[9, 1]).bytes(16, &bytes32(&[1, 2, 3, 4]));
    run_clean(&text, LaunchDims::linear(1, 1), &p, &mut m);
    assert_eq!(words(&m.read(o, 24).expect("read")), [7, 1.5f32.to_bits(), 265, 0, 3, 4]);
}

#[test]
fn atomics_add_up() {
    let sum: u32 = (0..256).sum();
    let out = io(
        LaunchDims::linear(4, 64),
        &[0],
        8,
        "mad.lo.u32 %r3, %r1, %r2, %r0; cvt.rn.f32.u32 %f0, %r3;
         red.global.add.u32 [%rd1], %r3; atom.global.max.s32 %r4, [%rd1+4], %r3; red.global.add.f32 [%rd1+8], %f0;
         cvt.rn.bf16x2.f32 %r5, 0f40000000, 0f3F800000; red.global.add.noftz.bf16x2 [%rd1+12], %r5;
         atom.global.inc.u32 %r6, [%rd1+16], 99; red.global.xor.b32 [%rd1+20], %r3;",
    );
    assert_eq!(out[0], sum);
    assert_eq!(out[1], 255);
    assert_eq!(f32::from_bits(out[2]), sum as f32);
    assert_eq!(bf16::from_bits(out[3] as u16).to_f32(), 256.0);
    assert_eq!(bf16::from_bits((out[3] >> 16) as u16).to_f32(), 512.0);
    assert_eq!(out[4], 256 % 100);
    assert_eq!(out[5], (0..256).fold(0, |a, b| a ^ b));
}

#[test]
fn compare_and_swap_makes_a_lock_free_maximum() {
    let input: Vec<u32> = (0..64).map(|k: u32| k.wrapping_mul(2_654_435_761) >> 8).collect();
    let out = io(
        LaunchDims::linear(1, 64),
        &input,
        1,
        "mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd0, %rd2; ld.global.u32 %r4, [%rd3]; mov.u32 %r5, 0;
         AGAIN: max.u32 %r6, %r5, %r4; atom.global.cas.b32 %r7, [%rd1], %r5, %r6; setp.ne.u32 %p0, %r7, %r5; mov.u32 %r5, %r7;
         @%p0 bra AGAIN;",
    );
    assert_eq!(out[0], *input.iter().max().expect("not empty"));
}

#[test]
fn shared_histogram() {
    let input: Vec<u32> = (0..128).map(|k| k * 7 % 16).collect();
    let out = io(
        LaunchDims::linear(1, 128),
        &input,
        16,
        ".shared .align 4 .b32 h[16]; mov.u32 %r3, h; shl.b32 %r4, %r0, 2; add.u32 %r5, %r3, %r4; setp.lt.u32 %p0, %r0, 16;
         @%p0 st.shared.u32 [%r5], 0; bar.sync 0;
         mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd0, %rd2; ld.global.u32 %r6, [%rd3]; shl.b32 %r7, %r6, 2; add.u32 %r8, %r3, %r7;
         red.shared.add.u32 [%r8], 1; bar.sync 0;
         add.s64 %rd4, %rd1, %rd2; @%p0 ld.shared.u32 %r9, [%r5]; @%p0 st.global.u32 [%rd4], %r9;",
    );
    assert_eq!(out, [8; 16]);
}

#[test]
fn vector_reductions() {
    let out = io(
        LaunchDims::linear(1, 32),
        &[0],
        4,
        "mov.f32 %f0, 0f3F800000; mov.f32 %f1, 0f40000000; red.global.add.v4.f32 [%rd1], {%f0, %f1, %f0, %f1};",
    );
    assert_eq!(floats(&bytes32(&out)), [32.0, 64.0, 32.0, 64.0]);
}

#[test]
fn statistics_tell_good_access_from_bad() {
    let text = |stride: u32| {
        module_text(
            "sm_80",
            ".param .u64 p",
            &format!(
                ".reg .b32 %r<8>; .reg .b64 %rd<4>; .shared .align 4 .b8 s[4096];
                 ld.param.u64 %rd0, [p]; mov.u32 %r0, %tid.x; mul.lo.u32 %r1, %r0, {stride}; cvt.u64.u32 %rd1, %r1; add.s64 %rd2, %rd0, %rd1;
                 ld.global.u32 %r2, [%rd2]; mov.u32 %r3, s; add.u32 %r4, %r3, %r1; st.shared.u32 [%r4], %r2; ret;"
            ),
        )
    };
    let run = |stride| {
        let mut m = Memory::new();
        let p = m.alloc_init("p", &[0; 4096]);
        run_clean(&text(stride), LaunchDims::linear(1, 32), &ParamBlock::new().u64(p), &mut m).stats
    };
    let good = run(4);
    assert_eq!((good.sectors, good.ideal_sectors, good.bank_conflicts), (4, 4, 0));
    let bad = run(128);
    assert_eq!((bad.sectors, bad.ideal_sectors, bad.bank_conflicts), (32, 4, 31));
    assert_eq!(bad.by_instruction.len(), 2);
    assert_eq!(good.thread_instructions, good.warp_instructions * 32);
}
