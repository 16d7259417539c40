//! Control flow, divergence, warp exchange and barriers of the GPU simulator.

mod sim_support;

use sim_support::{bytes32, module_text, run_clean, run_with, words};
use zellige_runtime::sim::{LaunchDims, Memory, Module, ParamBlock, SimError, SimOptions};

/// One output word per thread, from `%r9` at the end of the body (`%r0` is the thread index in the block).
fn per_thread(threads: u32, body: &str) -> Vec<u32> {
    let text = module_text(
        "sm_90",
        ".param .u64 out",
        &format!(
            ".reg .b32 %r<32>; .reg .b64 %rd<8>; .reg .pred %p<8>;
             ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x;
             {body}
             mul.wide.u32 %rd1, %r0, 4; add.s64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], %r9; ret;"
        ),
    );
    let mut m = Memory::new();
    let o = m.alloc("out", threads as usize * 4);
    run_clean(&text, LaunchDims::linear(1, threads), &ParamBlock::new().u64(o), &mut m);
    words(&m.read(o, threads as usize * 4).expect("read"))
}

fn want(threads: u32, f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..threads).map(f).collect()
}

#[test]
fn loops_with_a_different_count_per_lane() {
    let out = per_thread(
        64,
        "mov.u32 %r9, 0; mov.u32 %r1, 0;
         LOOP: setp.ge.u32 %p0, %r1, %r0; @%p0 bra DONE; add.u32 %r9, %r9, %r1; add.u32 %r1, %r1, 1; bra LOOP;
         DONE:",
    );
    assert_eq!(out, want(64, |t| t * t.wrapping_sub(1) / 2));
}

#[test]
fn nested_divergence_meets_again() {
    // After the nest, a ballot must see the whole warp.
    let out = per_thread(
        32,
        "and.b32 %r1, %r0, 1; and.b32 %r2, %r0, 2; setp.ne.u32 %p0, %r1, 0; setp.ne.u32 %p1, %r2, 0;
         @%p0 bra ODD;
           @%p1 bra EVEN2; mov.u32 %r3, 10; bra JOIN_E; EVEN2: mov.u32 %r3, 20; JOIN_E:
           bra JOIN;
         ODD:
           @%p1 bra ODD2; mov.u32 %r3, 30; bra JOIN; ODD2: mov.u32 %r3, 40;
         JOIN: vote.sync.ballot.b32 %r4, %p0, 0xffffffff; setp.eq.u32 %p2, %r4, 0xAAAAAAAA; selp.u32 %r5, 1, 0, %p2; add.u32 %r9, %r3, %r5;",
    );
    assert_eq!(out, want(32, |t| [11, 31, 21, 41][t as usize % 4]));
}

#[test]
fn early_return_leaves_the_others_running() {
    let text = module_text(
        "sm_80",
        ".param .u64 out",
        ".reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .pred %p;
         ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; setp.ge.u32 %p, %r0, 40; @%p bra END;
         bar.sync 0; mul.wide.u32 %rd1, %r0, 4; add.s64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], %r0; END: ret;",
    );
    let mut m = Memory::new();
    let o = m.alloc("out", 160);
    run_clean(&text, LaunchDims::linear(1, 96), &ParamBlock::new().u64(o), &mut m);
    assert_eq!(words(&m.read(o, 160).expect("read")), want(40, |t| t));
}

#[test]
fn shuffles() {
    type Case = (&'static str, fn(u32) -> u32);
    let cases: [Case; 6] = [
        ("shfl.sync.bfly.b32 %r9, %r0, 3, 31, -1;", |t| t ^ 3),
        ("shfl.sync.idx.b32 %r9, %r0, 5, 31, -1;", |_| 5),
        ("shfl.sync.up.b32 %r9, %r0, 4, 0, -1;", |t| if t < 4 { t } else { t - 4 }),
        ("shfl.sync.down.b32 %r9, %r0, 4, 31, -1;", |t| if t > 27 { t } else { t + 4 }),
        // Segments of eight lanes.
        ("shfl.sync.down.b32 %r9, %r0, 4, 0x181f, -1;", |t| if t % 8 > 3 { t } else { t + 4 }),
        ("shfl.sync.idx.b32 %r9|%p0, %r0, 9, 0x181f, -1; selp.u32 %r1, 100, 0, %p0; add.u32 %r9, %r9, %r1;", |t| {
            t / 8 * 8 + 1 + 100
        }),
    ];
    for (code, f) in cases {
        assert_eq!(per_thread(32, code), want(32, f), "{code}");
    }
}

#[test]
fn butterfly_sum() {
    let mut code = "mov.u32 %r9, %r0;".to_string();
    for d in [16, 8, 4, 2, 1] {
        code += &format!("shfl.sync.bfly.b32 %r1, %r9, {d}, 31, -1; add.u32 %r9, %r9, %r1;");
    }
    assert_eq!(per_thread(32, &code), [496; 32]);
}

#[test]
fn votes_matches_and_reductions() {
    let odd = "and.b32 %r1, %r0, 1; setp.ne.u32 %p0, %r1, 0;";
    assert_eq!(per_thread(32, &format!("{odd} vote.sync.ballot.b32 %r9, !%p0, -1;")), [0x5555_5555; 32]);
    assert_eq!(per_thread(32, &format!("{odd} vote.sync.any.pred %p1, %p0, -1; selp.u32 %r9, 1, 0, %p1;")), [1; 32]);
    assert_eq!(per_thread(32, &format!("{odd} vote.sync.all.pred %p1, %p0, -1; selp.u32 %r9, 1, 0, %p1;")), [0; 32]);
    assert_eq!(
        per_thread(32, "shr.u32 %r1, %r0, 3; match.any.sync.b32 %r9, %r1, -1;"),
        want(32, |t| 0xFF << (t / 8 * 8))
    );
    assert_eq!(
        per_thread(32, "mov.u32 %r1, 7; match.all.sync.b32 %r9|%p0, %r1, -1; @!%p0 mov.u32 %r9, 1;"),
        [u32::MAX; 32]
    );
    assert_eq!(per_thread(32, "redux.sync.add.s32 %r9, %r0, -1;"), [496; 32]);
    assert_eq!(per_thread(32, "sub.s32 %r1, %r0, 40; redux.sync.max.s32 %r9, %r1, -1;"), [-9i32 as u32; 32]);
    assert_eq!(per_thread(32, "redux.sync.min.u32 %r9, %r0, -1;"), [0; 32]);
    assert_eq!(per_thread(32, "elect.sync %r1|%p0, -1; selp.u32 %r9, 1, 0, %p0;"), want(32, |t| u32::from(t == 0)));
    assert_eq!(per_thread(32, "activemask.b32 %r9;"), [u32::MAX; 32]);
}

#[test]
fn special_registers() {
    let text = module_text(
        "sm_80",
        ".param .u64 out",
        ".reg .b32 %r<16>; .reg .b64 %rd<4>;
         ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %ntid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ctaid.y;
         mov.u32 %r5, %nctaid.x; mad.lo.u32 %r6, %r1, %r2, %r0; mad.lo.u32 %r7, %r4, %r5, %r3; mad.lo.u32 %r8, %r7, 64, %r6;
         mov.u32 %r9, %laneid; mov.u32 %r10, %warpid; mov.u32 %r11, %lanemask_lt; popc.b32 %r12, %r11; mad.lo.u32 %r13, %r10, 32, %r12;
         mul.wide.u32 %rd1, %r8, 4; add.s64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], %r13; ret;",
    );
    let mut m = Memory::new();
    let o = m.alloc("out", 6 * 64 * 4);
    let dims = LaunchDims { grid: [3, 2, 1], block: [16, 4, 1], ..LaunchDims::linear(1, 1) };
    run_clean(&text, dims, &ParamBlock::new().u64(o), &mut m);
    assert_eq!(words(&m.read(o, 6 * 64 * 4).expect("read")), want(6 * 64, |t| t % 64));
}

#[test]
fn named_barriers_pass_data_from_producer_to_consumer() {
    // Warp 0 produces into shared memory for warp 1, twice, over two barriers of 64 threads.
    let text = module_text(
        "sm_80",
        ".param .u64 out",
        ".reg .b32 %r<16>; .reg .b64 %rd<4>; .reg .pred %p<4>; .shared .align 4 .b32 buf[32];
         ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; and.b32 %r1, %r0, 31; shl.b32 %r2, %r1, 2; mov.u32 %r3, buf; add.u32 %r4, %r3, %r2;
         setp.lt.u32 %p0, %r0, 32; mov.u32 %r5, 0; mov.u32 %r9, 0; @!%p0 bra CONSUMER;
         PRODUCER: mad.lo.u32 %r6, %r5, 100, %r1; st.shared.u32 [%r4], %r6; bar.arrive 1, 64; bar.sync 2, 64; add.u32 %r5, %r5, 1;
           setp.lt.u32 %p1, %r5, 3; @%p1 bra PRODUCER; bra END;
         CONSUMER: bar.sync 1, 64; ld.shared.u32 %r7, [%r4]; add.u32 %r9, %r9, %r7; bar.arrive 2, 64; add.u32 %r5, %r5, 1;
           setp.lt.u32 %p1, %r5, 3; @%p1 bra CONSUMER;
           mul.wide.u32 %rd1, %r1, 4; add.s64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], %r9;
         END: ret;",
    );
    for shuffle in [None, Some(1), Some(2), Some(3)] {
        let mut m = Memory::new();
        let o = m.alloc("out", 128);
        let options = SimOptions { shuffle, ..SimOptions::default() };
        let r = run_with(&text, LaunchDims::linear(1, 64), &ParamBlock::new().u64(o), &mut m, &options);
        assert!(r.faults.is_empty(), "{}", r.describe());
        assert_eq!(words(&m.read(o, 128).expect("read")), want(32, |t| 300 + 3 * t));
    }
}

#[test]
fn barrier_reductions() {
    assert_eq!(per_thread(96, "setp.lt.u32 %p0, %r0, 50; bar.red.popc.u32 %r9, 0, %p0;"), [50; 96]);
    assert_eq!(
        per_thread(
            96,
            "setp.lt.u32 %p0, %r0, 50; bar.red.and.pred %p1, 0, %p0; bar.red.or.pred %p2, 1, %p0; selp.u32 %r1, 1, 0, %p1; selp.u32 %r2, 2, 0, %p2; add.u32 %r9, %r1, %r2;"
        ),
        [2; 96]
    );
}

#[test]
fn random_interleavings_agree() {
    let text = module_text(
        "sm_80",
        ".param .u64 out",
        ".reg .b32 %r<16>; .reg .b64 %rd<4>; .reg .pred %p<4>; .shared .align 4 .b32 s[256];
         ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, s; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2; st.shared.u32 [%r3], %r0; mov.u32 %r4, 128;
         STEP: bar.sync 0; setp.lt.u32 %p0, %r0, %r4; shl.b32 %r5, %r4, 2; add.u32 %r6, %r3, %r5;
         @%p0 ld.shared.u32 %r7, [%r6]; @%p0 ld.shared.u32 %r8, [%r3]; @%p0 add.u32 %r8, %r8, %r7; @%p0 st.shared.u32 [%r3], %r8;
         shr.u32 %r4, %r4, 1; setp.ne.u32 %p1, %r4, 0; @%p1 bra STEP;
         setp.eq.u32 %p2, %r0, 0; @%p2 ld.shared.u32 %r9, [s]; @%p2 st.global.u32 [%rd0], %r9; ret;",
    );
    for seed in 0..10 {
        let mut m = Memory::new();
        let o = m.alloc("out", 4);
        let options = SimOptions { shuffle: Some(seed), ..SimOptions::default() };
        let r = run_with(&text, LaunchDims::linear(1, 256), &ParamBlock::new().u64(o), &mut m, &options);
        assert!(r.faults.is_empty(), "{}", r.describe());
        assert_eq!(words(&m.read(o, 4).expect("read")), [255 * 128]);
    }
}

#[test]
fn printf_prints() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 a);\n\
        .global .align 1 .b8 fmt[14] = {116, 61, 37, 100, 32, 120, 61, 37, 46, 50, 102, 33, 10, 0};\n\
        .visible .entry k() { .reg .b32 %r<4>; .reg .b64 %rd<6>; .reg .f64 %fd<2>; .local .align 8 .b8 args[16];\n\
        mov.u32 %r0, %tid.x; mov.u64 %rd0, args; cvta.local.u64 %rd1, %rd0; st.local.u32 [args], %r0; cvt.rn.f64.u32 %fd0, %r0; st.local.f64 [args+8], %fd0;\n\
        mov.u64 %rd2, fmt; cvta.global.u64 %rd3, %rd2;\n\
        { .param .b64 p0; st.param.b64 [p0+0], %rd3; .param .b64 p1; st.param.b64 [p1+0], %rd1; .param .b32 ret0;\n\
          call.uni (ret0), vprintf, (p0, p1); ld.param.b32 %r1, [ret0+0]; }\n ret; }";
    let mut m = Memory::new();
    let r = run_clean(text, LaunchDims::linear(1, 2), &ParamBlock::new(), &mut m);
    assert_eq!(r.stats.printed, ["t=0 x=0.00!\n", "t=1 x=1.00!\n"]);
}

#[test]
fn unknown_instructions_are_refused_at_load() {
    let text = module_text(
        "sm_90",
        "",
        ".reg .b32 %r<4>; .reg .f32 %f<4>;\n tex.1d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [t, {%r0}]; ret;",
    );
    match Module::parse(&text) {
        Err(SimError::NotSimulated { what, line, .. }) => assert_eq!((what.as_str(), line), ("tex.1d.v4.f32.s32", 7)),
        other => panic!("{other:?}"),
    }
    let text = module_text("sm_90", "", ".reg .b32 %r<4>;\n add.cc.u32 %r0, %r1, %r2; ret;");
    assert!(Module::parse(&text).expect_err("refused").to_string().contains("not simulated: add.cc.u32"));
    let text = module_text("sm_90", "", ".reg .b32 %r<4>; .reg .b64 %rd<2>;\n add.u32 %r0, %rd1, %r2; ret;");
    assert!(Module::parse(&text).expect_err("refused").to_string().contains("%rd1"));
}

#[test]
fn launches_are_checked() {
    use zellige_runtime::sim::launch;
    let module = Module::parse(&module_text("sm_80", ".param .u64 p", "ret;")).expect("loads");
    let mut m = Memory::new();
    let go = |m: &mut Memory, name: &str, dims, params: &[u8]| {
        launch(&module, name, dims, params, m, &SimOptions::default())
    };
    assert!(matches!(go(&mut m, "nope", LaunchDims::linear(1, 1), &[0; 8]), Err(SimError::UnknownKernel { .. })));
    assert!(matches!(
        go(&mut m, "k", LaunchDims::linear(1, 1), &[0; 4]),
        Err(SimError::Params { expected: 8, got: 4, .. })
    ));
    assert!(matches!(go(&mut m, "k", LaunchDims::linear(1, 2048), &[0; 8]), Err(SimError::Launch { .. })));
    assert!(matches!(
        go(&mut m, "k", LaunchDims::linear(1, 32).with_shared(300_000), &[0; 8]),
        Err(SimError::Launch { .. })
    ));
    assert_eq!(bytes32(&[1]).len(), 4);
}
