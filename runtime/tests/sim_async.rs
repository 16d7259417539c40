//! `cp.async` pipelines of the GPU simulator: results, and the waits that must not be forgotten.

mod sim_support;

use sim_support::{bytes32, module_text, run, run_clean, run_with, words};
use zellige_runtime::sim::{FaultKind, LaunchDims, Memory, ParamBlock, Report, SimOptions};

const THREADS: u32 = 64;
const TILES: u32 = 8;

/// Copies `TILES` tiles of one 16-byte chunk per thread through a ring of `stages` buffers. `wait` and `barrier` stand before
/// the tile is read, `reuse` before its buffer is filled again. Each thread reads its neighbour's chunk.
fn pipeline(stages: u32, wait: &str, barrier: &str, reuse: &str) -> String {
    pipeline_ahead(stages, stages - 1, wait, barrier, reuse)
}

/// The same with `ahead` copies in flight.
fn pipeline_ahead(stages: u32, ahead: u32, wait: &str, barrier: &str, reuse: &str) -> String {
    let mut code = ".reg .b32 %r<24>; .reg .b64 %rd<12>; .reg .pred %p<4>;
         ld.param.u64 %rd0, [in]; ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2;
         mul.wide.u32 %rd2, %r0, 16; add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2; xor.b32 %r4, %r2, 512; add.u32 %r5, %r1, %r4;\n".to_string();
    let tile = THREADS * 16;
    for s in 0..ahead {
        code +=
            &format!("cp.async.cg.shared.global [%r3+{}], [%rd3+{}], 16; cp.async.commit_group;\n", s * tile, s * tile);
    }
    for t in 0..TILES {
        code += &format!("{wait}\n{barrier}\n");
        let slot = t % stages;
        code += &format!("ld.shared.v4.b32 {{%r8, %r9, %r10, %r11}}, [%r5+{}];\n", slot * tile);
        code += &format!("st.global.v4.b32 [%rd4+{}], {{%r8, %r9, %r10, %r11}};\n{reuse}\n", t * tile);
        let next = t + ahead;
        if next < TILES {
            code += &format!("cp.async.cg.shared.global [%r3+{}], [%rd3+{}], 16;\n", next % stages * tile, next * tile);
        }
        code += "cp.async.commit_group;\n";
    }
    code + "cp.async.wait_all; ret;"
}

fn go(code: &str, stages: u32) -> (Report, bool) {
    let text = module_text("sm_80", ".param .u64 in, .param .u64 out", code);
    let n = THREADS * 4 * TILES;
    let input: Vec<u32> = (0..n).map(|k| k * 3 + 1).collect();
    let mut m = Memory::new();
    let i = m.alloc_init("in", &bytes32(&input));
    let o = m.alloc("out", n as usize * 4);
    let dims = LaunchDims::linear(1, THREADS).with_shared(stages * THREADS * 16);
    let r = run(&text, dims, &ParamBlock::new().u64(i).u64(o), &mut m);
    let out = words(&m.read(o, n as usize * 4).expect("read"));
    let right = (0..n as usize).all(|k| {
        let (tile, thread, w) = (k / 256, k / 4 % 64, k % 4);
        out[k] == input[tile * 256 + (thread ^ 32) * 4 + w]
    });
    (r, right)
}

#[test]
fn a_ring_of_stages_copies_everything() {
    for stages in [2, 3, 4] {
        let (r, right) = go(
            &pipeline(stages, &format!("cp.async.wait_group {};", stages - 2), "bar.sync 0;", "bar.sync 0;"),
            stages,
        );
        assert!(r.faults.is_empty(), "{}", r.describe());
        assert!(right);
    }
}

#[test]
fn a_missing_wait_is_found_and_gives_old_data() {
    let (r, right) = go(&pipeline(3, "", "bar.sync 0;", "bar.sync 0;"), 3);
    assert!(r.faults.iter().any(|f| f.kind == FaultKind::AsyncCopyPending), "{}", r.describe());
    assert!(!right, "the data must not be there before the wait");
}

#[test]
fn waiting_for_too_few_groups_is_found() {
    let (r, _) = go(&pipeline(3, "cp.async.wait_group 2;", "bar.sync 0;", "bar.sync 0;"), 3);
    assert!(r.faults.iter().any(|f| f.kind == FaultKind::AsyncCopyPending), "{}", r.describe());
}

#[test]
fn a_missing_barrier_after_the_wait_is_found() {
    let (r, _) = go(&pipeline(3, "cp.async.wait_group 1;", "", "bar.sync 0;"), 3);
    assert!(r.faults.iter().any(|f| f.kind == FaultKind::SharedRace), "{}", r.describe());
}

#[test]
fn refilling_a_buffer_that_is_still_read_is_found() {
    let code = pipeline(3, "cp.async.wait_group 1;", "bar.sync 0;", "");
    // With three stages the buffer read now is refilled two tiles later: the barrier of the next tile protects it.
    let (r, right) = go(&code, 3);
    assert!(r.faults.is_empty() && right, "{}", r.describe());
    // With a copy more in flight it is refilled at once.
    let eager = |reuse: &str| go(&pipeline_ahead(3, 3, "cp.async.wait_group 2;", "bar.sync 0;", reuse), 3);
    let r = eager("").0;
    assert!(
        r.faults.iter().any(|f| f.kind == FaultKind::SharedRace && f.message.contains("read at PTX line")),
        "{}",
        r.describe()
    );
    assert!(eager("bar.sync 0;").0.faults.is_empty());
}

#[test]
fn short_sources_are_filled_with_zeros() {
    let code = ".reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .pred %p<2>; .shared .align 16 .b8 s[512];
        ld.param.u64 %rd0, [in]; ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, s; shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2;
        mul.wide.u32 %rd2, %r0, 16; add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2;
        min.u32 %r4, %r0, 16; cp.async.ca.shared.global [%r3], [%rd3], 16, %r4; cp.async.wait_all;
        ld.shared.v4.b32 {%r8, %r9, %r10, %r11}, [%r3]; st.global.v4.b32 [%rd4], {%r8, %r9, %r10, %r11}; ret;";
    let text = module_text("sm_80", ".param .u64 in, .param .u64 out", code);
    let mut m = Memory::new();
    let i = m.alloc_init("in", &[0xFF; 512]);
    let o = m.alloc("out", 512);
    run_clean(&text, LaunchDims::linear(1, 32), &ParamBlock::new().u64(i).u64(o), &mut m);
    let out = m.read(o, 512).expect("read");
    for t in 0..32 {
        let full = t.min(16);
        assert!((0..16).all(|b| out[t * 16 + b] == if b < full { 0xFF } else { 0 }), "thread {t}");
    }
}

#[test]
fn a_source_of_size_zero_may_be_anywhere() {
    let code = ".reg .b32 %r<8>; .reg .b64 %rd<4>; .shared .align 16 .b8 s[16]; mov.u32 %r0, s; mov.u64 %rd0, 64; mov.u32 %r1, 0;
        cp.async.cg.shared.global.L2::128B [%r0], [%rd0], 16, %r1; cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %r2, [%r0]; ret;";
    run_clean(&module_text("sm_80", "", code), LaunchDims::linear(1, 1), &ParamBlock::new(), &mut Memory::new());
}

#[test]
fn random_schedules_agree() {
    let text = module_text(
        "sm_80",
        ".param .u64 in, .param .u64 out",
        &pipeline(3, "cp.async.wait_group 1;", "bar.sync 0;", "bar.sync 0;"),
    );
    for seed in 0..8 {
        let mut m = Memory::new();
        let i = m.alloc_init("in", &bytes32(&(0..THREADS * 4 * TILES).collect::<Vec<_>>()));
        let o = m.alloc("out", (THREADS * 16 * TILES) as usize);
        let options = SimOptions { shuffle: Some(seed), ..SimOptions::default() };
        let dims = LaunchDims::linear(1, THREADS).with_shared(3 * THREADS * 16);
        let r = run_with(&text, dims, &ParamBlock::new().u64(i).u64(o), &mut m, &options);
        assert!(r.faults.is_empty(), "{}", r.describe());
        assert_eq!(words(&m.read(o, 4).expect("read")), [32 * 4]);
    }
}
