//! Every kind of fault the GPU simulator must find, each in a small kernel that has it, beside the kernel that does not.

mod sim_support;

use sim_support::{module_text, only, run, run_clean, run_with};
use zellige_runtime::sim::{FaultKind, LaunchDims, Memory, ParamBlock, Report, SimOptions};

const HEAD: &str = ".reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .pred %p<4>; .reg .b16 %h<4>; .shared .align 16 .b8 s[1024];
    ld.param.u64 %rd0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, s; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2; mul.wide.u32 %rd1, %r0, 4; add.s64 %rd2, %rd0, %rd1;";

/// Runs a body over 256 initialised bytes `buf`.
fn body(threads: u32, body: &str) -> Report {
    let mut m = Memory::new();
    let p = m.alloc_init("buf", &[0; 256]);
    run(&text(body), LaunchDims::linear(1, threads), &ParamBlock::new().u64(p), &mut m)
}

fn text(body: &str) -> String {
    module_text("sm_90", ".param .u64 p", &format!("{HEAD}\n{body}\nret;"))
}

fn clean(threads: u32, code: &str) {
    let r = body(threads, code);
    assert!(r.faults.is_empty(), "{}", r.describe());
}

#[test]
fn out_of_bounds() {
    let r = body(65, "ld.global.u32 %r4, [%rd2]; // gemm.rs:17:9 load of the tail");
    let f = only(&r, FaultKind::OutOfBounds);
    assert_eq!((f.thread, f.block, f.count, f.line), ([64, 0, 0], [0, 0, 0], 1, 8));
    assert_eq!(f.source.as_ref().map(ToString::to_string).as_deref(), Some("gemm.rs:17:9"));
    assert!(f.buffer.as_deref().is_some_and(|b| b.contains("buf")));
    assert_eq!((f.kernel.as_str(), f.opcode.as_str()), ("k", "ld.global.u32"));
    only(&body(1, "st.global.u32 [%rd2+-4], %r0;"), FaultKind::OutOfBounds);
    only(&body(1, "mov.u64 %rd3, 0; ld.global.u32 %r4, [%rd3];"), FaultKind::OutOfBounds);
    only(&body(1, "st.shared.u32 [%r3+1024], %r0;"), FaultKind::OutOfBounds);
    only(&body(1, ".local .b8 l[8]; mov.u32 %r5, l; st.local.u32 [%r5+8], %r0;"), FaultKind::OutOfBounds);
    clean(64, "ld.global.u32 %r4, [%rd2];");
}

#[test]
fn misaligned() {
    let f = body(1, "ld.global.v2.u32 {%r4, %r5}, [%rd0+4];");
    assert_eq!(only(&f, FaultKind::Misaligned).address.map(|a| a % 8), Some(4));
    only(&body(1, "st.shared.u32 [%r1+2], %r0;"), FaultKind::Misaligned);
    only(&body(1, "red.global.add.u32 [%rd0+1], 1;"), FaultKind::Misaligned);
}

#[test]
fn uninitialised_reads() {
    only(&body(1, "ld.shared.u32 %r4, [%r3];"), FaultKind::UninitialisedRead);
    only(&body(1, "mov.u16 %h0, 1; st.shared.u16 [%r3], %h0; ld.shared.u32 %r4, [%r3];"), FaultKind::UninitialisedRead);
    only(&body(1, ".local .align 4 .b8 l[8]; ld.local.u32 %r4, [l];"), FaultKind::UninitialisedRead);
    let mut m = Memory::new();
    let p = m.alloc("fresh", 256);
    let r = run(&text("ld.global.u32 %r4, [%rd2];"), LaunchDims::linear(1, 1), &ParamBlock::new().u64(p), &mut m);
    only(&r, FaultKind::UninitialisedRead);
    clean(1, "st.shared.u32 [%r3], 1; ld.shared.u32 %r4, [%r3];");
}

#[test]
fn missing_barrier_between_warps() {
    let without = "st.shared.u32 [%r3], %r0; xor.b32 %r4, %r2, 128; add.u32 %r5, %r1, %r4; ld.shared.u32 %r6, [%r5];";
    let with =
        "st.shared.u32 [%r3], %r0; bar.sync 0; xor.b32 %r4, %r2, 128; add.u32 %r5, %r1, %r4; ld.shared.u32 %r6, [%r5];";
    let r = body(64, without);
    assert!(r.faults.iter().any(|f| f.kind == FaultKind::SharedRace), "{}", r.describe());
    clean(64, with);
}

#[test]
fn missing_barrier_before_overwriting() {
    let code = |barrier: &str| {
        format!(
            "st.shared.u32 [%r3], %r0; bar.sync 0; xor.b32 %r4, %r2, 128; add.u32 %r5, %r1, %r4; ld.shared.u32 %r6, [%r5]; {barrier} st.shared.u32 [%r3], %r6;"
        )
    };
    let r = body(64, &code(""));
    let f = only(&r, FaultKind::SharedRace);
    // Whichever warp the schedule lets run ahead, both sides of the race are named.
    assert!(f.message.contains("at PTX line 8") && f.line == 8, "{}", f.message);
    clean(64, &code("bar.sync 0;"));
}

#[test]
fn missing_warp_sync_between_lanes() {
    let code = |sync: &str| {
        format!(
            "st.shared.u32 [%r3], %r0; {sync} xor.b32 %r4, %r2, 4; add.u32 %r5, %r1, %r4; ld.shared.u32 %r6, [%r5];"
        )
    };
    only(&body(32, &code("")), FaultKind::SharedRace);
    clean(32, &code("bar.warp.sync 0xffffffff;"));
}

#[test]
fn lanes_that_store_different_values_to_one_place() {
    only(&body(32, "st.shared.u32 [%r1], %r0;"), FaultKind::SharedRace);
    clean(32, "st.shared.u32 [%r1], 7;");
}

#[test]
fn atomics_race_with_plain_accesses_only() {
    let init = "setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [%r1], 0; bar.sync 0;";
    clean(64, &format!("{init} red.shared.add.u32 [%r1], 1;"));
    only(&body(64, &format!("{init} red.shared.add.u32 [%r1], 1; ld.shared.u32 %r4, [%r1];")), FaultKind::SharedRace);
}

#[test]
fn blocks_that_write_the_same_global_words() {
    let go = |code: &str| {
        let mut m = Memory::new();
        let p = m.alloc_init("buf", &[0; 256]);
        run(&text(code), LaunchDims::linear(2, 32), &ParamBlock::new().u64(p), &mut m)
    };
    only(&go("st.global.u32 [%rd2], %r0;"), FaultKind::GlobalRace);
    let own = "mov.u32 %r4, %ctaid.x; mul.wide.u32 %rd3, %r4, 128; add.s64 %rd4, %rd2, %rd3;";
    assert!(go(&format!("{own} st.global.u32 [%rd4], %r0;")).faults.is_empty());
    assert!(go("red.global.add.u32 [%rd2], 1;").faults.is_empty());
    // Reading what another block wrote needs more than luck.
    let read = "setp.eq.u32 %p0, %r4, 0; @%p0 st.global.u32 [%rd2], %r0; @!%p0 ld.global.u32 %r5, [%rd2];";
    only(&go(&format!("{own} {read}")), FaultKind::GlobalRace);
}

#[test]
fn last_block_reduction_needs_its_fences() {
    let code = |release: &str, acquire: &str| {
        format!(
            "mov.u32 %r4, %ctaid.x; mul.wide.u32 %rd3, %r4, 4; add.s64 %rd4, %rd0, %rd3; mov.u32 %r5, 1;
             st.global.u32 [%rd4], %r5; {release} atom.global.add.u32 %r6, [%rd0+128], 1; setp.ne.u32 %p0, %r6, 1; @%p0 bra END;
             {acquire} ld.global.u32 %r7, [%rd0]; ld.global.u32 %r8, [%rd0+4]; END:"
        )
    };
    let go = |release: &str, acquire: &str| {
        let mut m = Memory::new();
        let p = m.alloc_init("buf", &[0; 256]);
        run(&text(&code(release, acquire)), LaunchDims::linear(2, 1), &ParamBlock::new().u64(p), &mut m)
    };
    let fence = "membar.gl;";
    assert!(go(fence, fence).faults.is_empty());
    for (release, acquire) in [("", ""), (fence, ""), ("", fence)] {
        only(&go(release, acquire), FaultKind::GlobalRace);
    }
}

#[test]
fn deadlocks_say_who_waits_where() {
    let r = body(64, "setp.lt.u32 %p0, %r0, 32; @%p0 bar.sync 1, 64; @!%p0 bar.sync 2, 64;");
    let f = only(&r, FaultKind::Deadlock);
    assert!(f.message.contains("barrier 1 (32 of 64") && f.message.contains("barrier 2 (32 of 64"), "{}", f.message);
}

#[test]
fn divergent_barriers() {
    let r = body(32, "setp.lt.u32 %p0, %r0, 16; @%p0 bra A; bra B; A: bar.sync 0; B: add.u32 %r5, %r5, 1;");
    assert!(r.faults.iter().any(|f| f.kind == FaultKind::BarrierMisuse), "{}", r.describe());
    let r = body(64, "setp.lt.u32 %p0, %r0, 32; @%p0 bar.sync 1, 64; @!%p0 bar.sync 1, 96;");
    assert!(r.faults.iter().any(|f| f.kind == FaultKind::BarrierMisuse), "{}", r.describe());
}

#[test]
fn shuffles_with_absent_lanes() {
    let r = body(32, "setp.lt.u32 %p0, %r0, 16; @%p0 shfl.sync.bfly.b32 %r4, %r0, 1, 31, 0xffffffff;");
    only(&r, FaultKind::WarpMask);
    clean(32, "setp.lt.u32 %p0, %r0, 16; @%p0 shfl.sync.bfly.b32 %r4, %r0, 1, 31, 0xffff;");
}

#[test]
fn endless_loops_run_out_of_budget() {
    let mut m = Memory::new();
    let p = m.alloc_init("buf", &[0; 256]);
    let options = SimOptions { budget: 10_000, ..SimOptions::default() };
    let r = run_with(
        &text("L: ld.volatile.global.u32 %r4, [%rd0]; setp.eq.u32 %p0, %r4, 0; @%p0 bra L;"),
        LaunchDims::linear(1, 1),
        &ParamBlock::new().u64(p),
        &mut m,
        &options,
    );
    only(&r, FaultKind::Budget);
}

#[test]
fn traps_and_assertions() {
    only(&body(32, "setp.eq.u32 %p0, %r0, 5; @%p0 trap;"), FaultKind::Trap);
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n\
        .extern .func __assertfail (.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 c);\n\
        .global .align 1 .b8 msg[4] = {120, 62, 48, 0};\n.global .align 1 .b8 file[5] = {97, 46, 114, 115, 0};\n\
        .visible .entry k() { .reg .b32 %r<4>; .reg .b64 %rd<6>;\n\
        mov.u64 %rd0, msg; cvta.global.u64 %rd1, %rd0; mov.u64 %rd2, file; cvta.global.u64 %rd3, %rd2; mov.u32 %r0, 12; mov.u64 %rd4, 1;\n\
        { .param .b64 p0; st.param.b64 [p0], %rd1; .param .b64 p1; st.param.b64 [p1], %rd3; .param .b32 p2; st.param.b32 [p2], %r0;\n\
          .param .b64 p3; st.param.b64 [p3], %rd3; .param .b64 p4; st.param.b64 [p4], %rd4; call.uni __assertfail, (p0, p1, p2, p3, p4); }\n ret; }";
    let mut m = Memory::new();
    let r = run(text, LaunchDims::linear(1, 1), &ParamBlock::new(), &mut m);
    assert!(only(&r, FaultKind::Assertion).message.contains("`x>0` failed at a.rs:12"));
}

#[test]
fn repeated_faults_are_counted_not_listed() {
    let r = body(64, "ld.global.u32 %r4, [%rd2+256];");
    assert_eq!(only(&r, FaultKind::OutOfBounds).count, 64);
    assert_eq!(r.faults.len(), 1);
}

#[test]
fn checks_can_be_switched_off() {
    let mut m = Memory::new();
    let p = m.alloc_init("buf", &[0; 256]);
    let code = text(
        "st.shared.u32 [%r3], %r0; xor.b32 %r4, %r2, 128; add.u32 %r5, %r1, %r4; ld.shared.u32 %r6, [%r5]; st.global.u32 [%rd2], %r6;",
    );
    let r = run_with(&code, LaunchDims::linear(2, 64), &ParamBlock::new().u64(p), &mut m, &SimOptions::fast());
    assert!(r.faults.is_empty(), "{}", r.describe());
    run_clean(&text("bar.sync 0;"), LaunchDims::linear(2, 64), &ParamBlock::new().u64(p), &mut m);
}
