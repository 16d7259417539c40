//! Hopper instructions of the GPU simulator: mbarriers, bulk and tensor copies, `wgmma`, clusters; results and faults.

mod sim_support;

use half::{bf16, f16};
use sim_support::{Lcg, bytes32, floats, module_text, only, run, run_clean, run_with, words};
use zellige_runtime::sim::{
    FaultKind, LaunchDims, Memory, ParamBlock, Report, SimOptions, Swizzle, TensorElem, TensorMap,
};

fn has(r: &Report, kind: FaultKind) -> bool {
    r.faults.iter().any(|f| f.kind == kind)
}

/// A ring of two stages: warp 0's elected thread loads 256-byte tiles with bulk copies, warp 1 reads them and gives them back.
/// `wait_full` and `arrive_empty` are the consumer's synchronisation.
fn ring(wait_full: &str, arrive_empty: &str, expect: u32) -> String {
    format!(
        ".reg .b32 %r<32>; .reg .b64 %rd<12>, %st; .reg .pred %p<8>; .shared .align 8 .b64 bars[4];
         ld.param.u64 %rd0, [in]; ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; mov.u32 %r2, bars; and.b32 %r10, %r0, 31;
         setp.ne.u32 %p0, %r0, 0; @%p0 bra READY;
         mbarrier.init.shared::cta.b64 [%r2], 1; mbarrier.init.shared::cta.b64 [%r2+8], 1; mbarrier.init.shared::cta.b64 [%r2+16], 32; mbarrier.init.shared::cta.b64 [%r2+24], 32;
         fence.mbarrier_init.release.cluster;
         READY: bar.sync 0; mov.u32 %r3, 0; setp.ge.u32 %p1, %r0, 32; @%p1 bra CONSUMER;
         @%p0 bra END;
         PRODUCER: and.b32 %r4, %r3, 1; shl.b32 %r5, %r4, 3; add.u32 %r6, %r2, %r5; shl.b32 %r7, %r4, 8; add.u32 %r8, %r1, %r7; shr.u32 %r9, %r3, 1; and.b32 %r11, %r9, 1; xor.b32 %r12, %r11, 1;
           W0: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r6+16], %r12; @!%p2 bra W0;
           mbarrier.arrive.expect_tx.shared::cta.b64 %st, [%r6], {expect};
           cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%rd0], 256, [%r6];
           add.s64 %rd0, %rd0, 256; add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 8; @%p3 bra PRODUCER; bra END;
         CONSUMER: and.b32 %r4, %r3, 1; shl.b32 %r5, %r4, 3; add.u32 %r6, %r2, %r5; shl.b32 %r7, %r4, 8; add.u32 %r8, %r1, %r7; shr.u32 %r9, %r3, 1; and.b32 %r11, %r9, 1;
           {wait_full}
           shl.b32 %r13, %r10, 3; add.u32 %r14, %r8, %r13; ld.shared.v2.b32 {{%r15, %r16}}, [%r14];
           {arrive_empty}
           shl.b32 %r17, %r3, 8; add.u32 %r18, %r17, %r13; cvt.u64.u32 %rd2, %r18; add.s64 %rd3, %rd1, %rd2; st.global.v2.b32 [%rd3], {{%r15, %r16}};
           add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 8; @%p3 bra CONSUMER;
         END: ret;"
    )
}

const WAIT: &str = "W1: mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r6], %r11; @!%p4 bra W1;";
const ARRIVE: &str = "mbarrier.arrive.shared::cta.b64 %st, [%r6+16];";

fn run_ring(code: &str, shuffle: Option<u64>) -> (Report, bool) {
    let text = module_text("sm_90", ".param .u64 in, .param .u64 out", code);
    let input: Vec<u32> = (0..512).map(|k| k * 5 + 2).collect();
    let mut m = Memory::new();
    let i = m.alloc_init("in", &bytes32(&input));
    let o = m.alloc("out", 2048);
    let options = SimOptions { shuffle, ..SimOptions::default() };
    let dims = LaunchDims::linear(1, 64).with_shared(512);
    let r = run_with(&text, dims, &ParamBlock::new().u64(i).u64(o), &mut m, &options);
    let right = words(&m.read(o, 2048).expect("read")) == input;
    (r, right)
}

#[test]
fn mbarrier_ring_with_bulk_copies() {
    for shuffle in [None, Some(1), Some(2), Some(3)] {
        let (r, right) = run_ring(&ring(WAIT, ARRIVE, 256), shuffle);
        assert!(r.faults.is_empty() && right, "{}", r.describe());
    }
}

#[test]
fn reading_before_the_full_barrier_is_found() {
    let (r, _) = run_ring(&ring("", ARRIVE, 256), None);
    assert!(has(&r, FaultKind::SharedRace) || has(&r, FaultKind::UninitialisedRead), "{}", r.describe());
}

#[test]
fn giving_a_stage_back_before_reading_it_is_found() {
    let early = format!("{WAIT} {ARRIVE}");
    let found = (0..4).any(|seed| has(&run_ring(&ring(&early, "", 256), Some(seed)).0, FaultKind::SharedRace));
    assert!(found);
}

#[test]
fn a_stage_never_given_back_is_a_deadlock() {
    let (r, _) = run_ring(&ring(WAIT, "", 256), None);
    let f = only(&r, FaultKind::Deadlock);
    assert!(f.message.contains("32 arrivals and 0 bytes missing"), "{}", f.message);
}

#[test]
fn a_wrong_byte_count_never_completes() {
    let (r, _) = run_ring(&ring(WAIT, ARRIVE, 288), None);
    assert!(only(&r, FaultKind::Deadlock).message.contains("0 arrivals and 32 bytes missing"));
}

#[test]
fn mbarriers_must_be_initialised_and_published() {
    let code = |between: &str, init: &str| {
        format!(
            ".reg .b32 %r<4>; .reg .b64 %st; .reg .pred %p<2>; .shared .align 8 .b64 bar; mov.u32 %r0, %tid.x; mov.u32 %r1, bar;
             setp.eq.u32 %p0, %r0, 0; {init} {between} mbarrier.arrive.shared::cta.b64 %st, [%r1]; ret;"
        )
    };
    let init = "@%p0 mbarrier.init.shared::cta.b64 [%r1], 64;";
    let go =
        |c: &str| run(&module_text("sm_90", "", c), LaunchDims::linear(1, 64), &ParamBlock::new(), &mut Memory::new());
    assert!(go(&code("bar.sync 0;", init)).faults.is_empty());
    only(&go(&code("bar.sync 0;", "")), FaultKind::MbarrierMisuse);
    only(&go(&code("", init)), FaultKind::SharedRace);
    let few = init.replace("64;", "63;");
    assert!(go(&code("bar.sync 0;", &few)).faults.is_empty(), "63 + 1 arrivals start a second phase");
    let zero = init.replace("64;", "0;");
    only(&go(&code("bar.sync 0;", &zero)), FaultKind::MbarrierMisuse);
}

/// One thread loads a box with a tensor copy and all 32 threads store shared memory out as it lies.
fn tensor_load(map: &TensorMap, coords: &[i32], extra: &str) -> (Report, Vec<u8>) {
    let dims = coords.len();
    let list = coords.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let bytes = map.box_bytes();
    let code = format!(
        ".reg .b32 %r<16>; .reg .b64 %rd<8>, %st; .reg .pred %p<4>; .shared .align 8 .b64 bar;
         ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; mov.u32 %r2, bar; setp.ne.u32 %p0, %r0, 0; mov.b64 %rd2, map; cvta.param.u64 %rd3, %rd2;
         @%p0 bra WAIT; prefetch.tensormap [%rd3]; mbarrier.init.shared::cta.b64 [%r2], 1; fence.mbarrier_init.release.cluster;
         mbarrier.arrive.expect_tx.shared::cta.b64 %st, [%r2], {bytes};
         cp.async.bulk.tensor.{dims}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd3, {{{list}}}], [%r2];
         WAIT: bar.warp.sync -1; {extra}
         W1: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r2], 0; @!%p1 bra W1;
         shl.b32 %r3, %r0, 4; mov.u32 %r4, %r3;
         COPY: setp.ge.u32 %p2, %r4, {bytes}; @%p2 bra END; add.u32 %r5, %r1, %r4; ld.shared.v4.b32 {{%r6, %r7, %r8, %r9}}, [%r5];
         cvt.u64.u32 %rd4, %r4; add.s64 %rd5, %rd1, %rd4; st.global.v4.b32 [%rd5], {{%r6, %r7, %r8, %r9}}; add.u32 %r4, %r4, 512; bra COPY; END: ret;"
    );
    let text = module_text("sm_90", ".param .u64 out, .param .align 64 .b8 map[128]", &code);
    let mut m = Memory::new();
    let n: u64 = (0..map.size.len())
        .map(|d| if d == 0 { map.size[0] * u64::from(map.elem.bytes()) } else { (map.size[d] - 1) * map.stride[d - 1] })
        .sum();
    let data: Vec<u8> = (0..n).flat_map(|k| [(k % 251) as u8]).collect();
    let i = m.alloc_init("tensor", &data);
    let o = m.alloc_init("out", &vec![0; bytes as usize]);
    let map = TensorMap { address: i, ..map.clone() };
    let p = ParamBlock::new().u64(o).bytes(64, &map.encode().expect("a valid map"));
    let r = run(&text, LaunchDims::linear(1, 32).with_shared(bytes), &p, &mut m);
    let out = m.read(o, bytes as usize).expect("read");
    (r, out)
}

#[test]
fn tensor_copies_swizzle_and_fill() {
    for (swizzle, inner) in [(Swizzle::None, 24), (Swizzle::B32, 16), (Swizzle::B64, 32), (Swizzle::B128, 64)] {
        let map = TensorMap {
            elem: TensorElem::Bf16,
            address: 0,
            size: vec![100, 20],
            stride: vec![208],
            tile: vec![inner, 16],
            swizzle,
            nan_fill: false,
        };
        for coords in [[0, 0], [8, 3], [64, 10], [-3, -2], [97, 19], [300, 0]] {
            let (r, out) = tensor_load(&map, &coords, "");
            assert!(r.faults.is_empty(), "{}", r.describe());
            let row_bytes = inner as usize * 2;
            for row in 0..16usize {
                for b in 0..row_bytes {
                    let (x, y) = (coords[0] + (b / 2) as i32, coords[1] + row as i32);
                    let want = if (0..100).contains(&x) && (0..20).contains(&y) {
                        ((y as u64 * 208 + x as u64 * 2 + b as u64 % 2) % 251) as u8
                    } else {
                        0
                    };
                    let chunk = match swizzle {
                        Swizzle::None => b / 16,
                        Swizzle::B32 => (b / 16) ^ (row >> 2 & 1),
                        Swizzle::B64 => (b / 16) ^ (row >> 1 & 3),
                        Swizzle::B128 => (b / 16) ^ (row & 7),
                    };
                    assert_eq!(
                        out[row * row_bytes + chunk * 16 + b % 16],
                        want,
                        "{swizzle:?} {coords:?} row {row} byte {b}"
                    );
                }
            }
        }
    }
}

#[test]
fn tensor_copies_round_to_tf32() {
    let map = TensorMap {
        elem: TensorElem::Tf32,
        address: 0,
        size: vec![40, 20],
        stride: vec![176],
        tile: vec![32, 16],
        swizzle: Swizzle::None,
        nan_fill: false,
    };
    let (r, out) = tensor_load(&map, &[12, 3], "");
    assert!(r.faults.is_empty(), "{}", r.describe());
    let byte = |at: u32| at % 251;
    for (at, got) in words(&out).into_iter().enumerate() {
        let (x, y) = (12 + at as u32 % 32, 3 + at as u32 / 32);
        let first = 176 * y + 4 * x;
        let bits = (0..4).fold(0, |bits, i| bits | byte(first + i) << (8 * i));
        let above = bits & !0x1FFF;
        let up = (bits & 0x1FFF) > 0x1000 || (bits & 0x3FFF) == 0x3000;
        let finite = bits & 0x7F80_0000 != 0x7F80_0000;
        let want = match (x < 40, finite) {
            (false, _) => 0,
            (true, false) => bits,
            (true, true) => above + if up { 0x2000 } else { 0 },
        };
        assert_eq!(got, want, "({x}, {y}): {bits:#x}");
    }
}

#[test]
fn tensor_copies_of_one_to_five_dims() {
    for rank in 1..=5usize {
        let map = TensorMap {
            elem: TensorElem::F32,
            address: 0,
            size: vec![8, 3, 4, 3, 2][..rank].to_vec(),
            stride: vec![32, 96, 384, 1152][..rank - 1].to_vec(),
            tile: vec![4, 2, 2, 2, 2][..rank].to_vec(),
            swizzle: Swizzle::None,
            nan_fill: false,
        };
        let coords: Vec<i32> = vec![4, 1, 2, 1, 0][..rank].to_vec();
        let (r, out) = tensor_load(&map, &coords, "");
        assert!(r.faults.is_empty(), "{}", r.describe());
        for (k, got) in out.iter().enumerate() {
            let mut e = k / 4;
            let mut at = (k % 4) as u64;
            let strides = [4u64, 32, 96, 384, 1152];
            let mut inside = true;
            for d in 0..rank {
                let c = coords[d] as u64 + (e % map.tile[d] as usize) as u64;
                e /= map.tile[d] as usize;
                inside &= c < map.size[d];
                at += c * strides[d];
            }
            assert_eq!(*got, if inside { (at % 251) as u8 } else { 0 }, "rank {rank} byte {k}");
        }
    }
}

#[test]
fn generic_writes_need_a_proxy_fence_before_a_tensor_store() {
    let code = |fence: &str, wait: &str| {
        format!(
            ".reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .pred %p<4>; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; setp.ne.u32 %p0, %r0, 0; mov.b64 %rd2, map; cvta.param.u64 %rd3, %rd2;
             shl.b32 %r3, %r0, 4; add.u32 %r4, %r1, %r3; st.shared.v4.b32 [%r4], {{%r0, %r0, %r0, %r0}}; {fence} bar.sync 0; @%p0 bra END;
             cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd3, {{0, 6}}], [%r1]; cp.async.bulk.commit_group; {wait} END: ret;"
        )
    };
    let go = |code: &str| {
        let text = module_text("sm_90", ".param .align 64 .b8 map[128]", code);
        let mut m = Memory::new();
        let o = m.alloc_init("out", &[0xEE; 8 * 64]);
        let map = TensorMap {
            elem: TensorElem::U8,
            address: o,
            size: vec![64, 8],
            stride: vec![64],
            tile: vec![128, 8],
            swizzle: Swizzle::B128,
            nan_fill: false,
        };
        let p = ParamBlock::new().bytes(64, &map.encode().expect("valid"));
        let r = run(&text, LaunchDims::linear(1, 64).with_shared(1024), &p, &mut m);
        (r, m.read(o, 512).expect("read"))
    };
    let (fence, wait) = ("fence.proxy.async.shared::cta;", "cp.async.bulk.wait_group.read 0;");
    let (r, out) = go(&code(fence, wait));
    assert!(r.faults.is_empty(), "{}", r.describe());
    // Rows 6 and 7 come from rows 0 and 1 of the box, columns 64.. are clipped, the swizzle is undone.
    assert!(out[..384].iter().all(|b| *b == 0xEE));
    for row in 0..2usize {
        for c in 0..64usize {
            let thread = row * 8 + ((c / 16) ^ row);
            assert_eq!(out[(6 + row) * 64 + c], if c % 4 == 0 { thread as u8 } else { 0 });
        }
    }
    only(&go(&code("", wait)).0, FaultKind::MissingProxyFence);
    only(&go(&code(fence, "")).0, FaultKind::PendingAtExit);
}

#[test]
fn bulk_reductions_add() {
    let code = ".reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .f32 %f<2>; .reg .pred %p; ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
        cvt.rn.f32.u32 %f0, %r0; st.shared.f32 [%r3], %f0; fence.proxy.async; bar.sync 0; setp.ne.u32 %p, %r0, 0; @%p bra END;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd0], [%r1], 128; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END: ret;";
    let mut m = Memory::new();
    let o = m.alloc_init("out", &bytes32(&[1.0f32.to_bits(); 32]));
    run_clean(
        &module_text("sm_90", ".param .u64 out", code),
        LaunchDims::linear(3, 32).with_shared(128),
        &ParamBlock::new().u64(o),
        &mut m,
    );
    let want: Vec<f32> = (0..32).map(|k| 1.0 + 3.0 * k as f32).collect();
    assert_eq!(floats(&m.read(o, 128).expect("read")), want);
}

/// The `wgmma` flavours of the test below.
struct Wg {
    types: &'static str,
    k: usize,
    n: usize,
    bits: usize,
    encode: fn(f32) -> u32,
    /// Trailing immediates for SS and for RS.
    tail: (&'static str, &'static str),
}

fn descriptor_code(reg: &str, base: &str, leading: u32, stride: u32, mode: u64) -> String {
    let high = u64::from(leading >> 4) << 16 | u64::from(stride >> 4) << 32 | mode << 62;
    format!(
        "shr.u32 %r20, {base}, 4; and.b32 %r20, %r20, 0x3fff; cvt.u64.u32 {reg}, %r20; or.b64 {reg}, {reg}, {high:#x};\n"
    )
}

/// Layout of a tile in shared memory: byte offset of (row, k).
#[derive(Clone, Copy, Debug)]
enum Lay {
    /// K-major with the given swizzle atom (16: none).
    K(u32),
    /// MN-major, 128-byte swizzle, 16-bit elements.
    Mn,
}

fn place(lay: Lay, row: u32, k: u32, size: u32, rows: u32, cols: u32) -> (u32, u32, u32, u64) {
    let swz = |a: u32, atom: u32| match atom {
        128 => a ^ (a >> 7 & 7) << 4,
        64 => a ^ (a >> 7 & 3) << 4,
        32 => a ^ (a >> 7 & 1) << 4,
        _ => a,
    };
    let _ = rows;
    match lay {
        Lay::K(16) => {
            let kb = k * size;
            // Core matrices of 8 rows x 16 bytes: along k first, 128 bytes apart, then 8-row groups.
            let groups = cols * size / 16;
            (row / 8 * groups * 128 + kb / 16 * 128 + row % 8 * 16 + kb % 16, 128, groups * 128, 0)
        }
        Lay::K(atom) => {
            let mode = match atom {
                128 => 1,
                64 => 2,
                _ => 3,
            };
            (swz(row * atom + k * size, atom), 0, 8 * atom, mode)
        }
        Lay::Mn => {
            let mb = row * size;
            // Columns of 64 elements; 8 k per 1024-byte atom, `cols` k in all.
            (swz(mb / 128 * cols * 128 + k * 128 + mb % 128, 128), cols * 128, 1024, 1)
        }
    }
}

fn run_wgmma(w: &Wg, a_lay: Option<Lay>, b_lay: Lay) {
    let size = (w.bits / 8) as u32;
    let mut rng = Lcg(11);
    let mut ints = |n: usize| -> Vec<f32> { (0..n).map(|_| (rng.next() % 7) as f32 - 3.0).collect() };
    let (a, b) = (ints(64 * w.k), ints(w.n * w.k));
    let cols = w.k as u32;
    let image = |v: &[f32], rows: usize, lay: Lay| -> (Vec<u8>, u32, u32, u64) {
        let mut out = vec![0u8; rows.max(64) * w.k * size as usize * 4];
        let (mut lead, mut stride, mut mode) = (0, 0, 0);
        for r in 0..rows {
            for k in 0..w.k {
                let (at, l, s, m) = place(lay, r as u32, k as u32, size, rows as u32, cols);
                (lead, stride, mode) = (l, s, m);
                let bytes = (w.encode)(v[r * w.k + k]).to_le_bytes();
                out[at as usize..(at + size) as usize].copy_from_slice(&bytes[..size as usize]);
            }
        }
        out.resize(out.len().next_multiple_of(2048), 0);
        (out, lead, stride, mode)
    };
    let (b_img, bl, bs, bm) = image(&b, w.n, b_lay);
    let (a_img, al, as_, am) = image(&a, 64, a_lay.unwrap_or(Lay::K(16)));
    // Copy both images into shared memory.
    let total = a_img.len() + b_img.len();
    let acc = w.n / 2;
    let list = |name: &str, n: usize| (0..n).map(|k| format!("%{name}{k}")).collect::<Vec<_>>().join(", ");
    let trans = |l: Option<Lay>| if matches!(l, Some(Lay::Mn)) { "1" } else { "0" };
    let tail = match a_lay {
        Some(_) => w.tail.0.replace("TA", trans(a_lay)).replace("TB", trans(Some(b_lay))),
        None => w.tail.1.replace("TB", trans(Some(b_lay))),
    };
    let a_operand = if a_lay.is_some() { "%rd8".to_string() } else { format!("{{{}}}", list("a", 4)) };
    let mut code = format!(
        ".reg .b32 %r<32>, %a<4>; .reg .f32 %d<{acc}>; .reg .b64 %rd<16>; .reg .pred %p<4>, %s;
         ld.param.u64 %rd0, [in]; ld.param.u64 %rd1, [af]; ld.param.u64 %rd2, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; shl.b32 %r2, %r0, 4;
         COPY: setp.ge.u32 %p0, %r2, {total}; @%p0 bra COPIED; cvt.u64.u32 %rd3, %r2; add.s64 %rd4, %rd0, %rd3; ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd4];
         add.u32 %r3, %r1, %r2; st.shared.v4.b32 [%r3], {{%r4, %r5, %r6, %r7}}; add.u32 %r2, %r2, 2048; bra COPY;
         COPIED: fence.proxy.async.shared::cta; bar.sync 0; add.u32 %r8, %r1, {};
         mul.wide.u32 %rd5, %r0, 16; add.s64 %rd6, %rd1, %rd5; ld.global.v4.b32 {{{}}}, [%rd6];\n",
        a_img.len(),
        list("a", 4)
    );
    code += &descriptor_code("%rd8", "%r1", al, as_, am);
    code += &descriptor_code("%rd9", "%r8", bl, bs, bm);
    for k in 0..acc {
        code += &format!("mov.b32 %d{k}, 0f40400000;\n");
    }
    // The first product overwrites the 3.0 (scale-d false), the second adds.
    let op = format!(
        "wgmma.mma_async.sync.aligned.m64n{}k{}.{} {{{}}}, {a_operand}, %rd9",
        w.n,
        w.k,
        w.types,
        list("d", acc)
    );
    code += &format!(
        "wgmma.fence.sync.aligned; setp.ne.u32 %s, %r1, %r1; {op}, %s{tail}; setp.eq.u32 %s, %r1, %r1; {op}, %s{tail}; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
         mul.lo.u32 %r9, %r0, {}; cvt.u64.u32 %rd10, %r9; add.s64 %rd11, %rd2, %rd10;\n",
        acc * 4
    );
    for k in 0..acc {
        code += &format!("st.global.b32 [%rd11+{}], %d{k};\n", 4 * k);
    }
    code += "ret;";
    let text = module_text("sm_90a", ".param .u64 in, .param .u64 af, .param .u64 out", &code);
    // A fragments for the register form: warp w holds rows 16 w.
    let per = 32 / w.bits;
    let mut af = Vec::new();
    for t in 0..128usize {
        let (warp, lane) = (t / 32, t % 32);
        for reg in 0..4 {
            let mut word = 0u32;
            for e in 0..per {
                let row = 16 * warp + lane / 4 + 8 * (reg % 2);
                let col = lane % 4 * per + e + reg / 2 * 4 * per;
                word |= (w.encode)(a[row * w.k + col]) << (e * w.bits);
            }
            af.push(word);
        }
    }
    let mut m = Memory::new();
    let mut both = a_img;
    both.extend(b_img);
    let p = ParamBlock::new().u64(m.alloc_init("in", &both)).u64(m.alloc_init("af", &bytes32(&af)));
    let o = m.alloc("out", 128 * acc * 4);
    run_clean(&text, LaunchDims::linear(1, 128).with_shared(both.len() as u32), &p.u64(o), &mut m);
    let out = floats(&m.read(o, 128 * acc * 4).expect("read"));
    for t in 0..128usize {
        for v in 0..acc {
            let row = 16 * (t / 32) + t % 32 / 4 + 8 * (v / 2 % 2);
            let col = 8 * (v / 4) + 2 * (t % 4) + v % 2;
            let dot: f32 = (0..w.k).map(|k| a[row * w.k + k] * b[col * w.k + k]).sum();
            assert_eq!(out[t * acc + v], 2.0 * dot, "{} A {a_lay:?} B {b_lay:?} row {row} column {col}", w.types);
        }
    }
}

#[test]
fn wgmma_reads_every_layout() {
    let bf = Wg {
        types: "f32.bf16.bf16",
        k: 16,
        n: 64,
        bits: 16,
        encode: |v| bf16::from_f32(v).to_bits().into(),
        tail: (", 1, 1, TA, TB", ", 1, 1, TB"),
    };
    for a in [Some(Lay::K(16)), Some(Lay::K(32)), Some(Lay::K(64)), Some(Lay::K(128)), Some(Lay::Mn), None] {
        for b in [Lay::K(16), Lay::K(128), Lay::Mn] {
            run_wgmma(&bf, a, b);
        }
    }
    let f = Wg { types: "f32.f16.f16", encode: |v| f16::from_f32(v).to_bits().into(), n: 24, ..bf };
    run_wgmma(&f, Some(Lay::K(128)), Lay::K(64));
    let tf32 = Wg { types: "f32.tf32.tf32", k: 8, n: 16, bits: 32, encode: f32::to_bits, tail: (", 1, 1", ", 1, 1") };
    run_wgmma(&tf32, Some(Lay::K(128)), Lay::K(32));
    run_wgmma(&tf32, None, Lay::K(128));
    let e4m3 = Wg {
        types: "f32.e4m3.e4m3",
        k: 32,
        n: 128,
        bits: 8,
        encode: |v| {
            let m = match v.abs() as u32 {
                0 => 0,
                1 => 0x38,
                2 => 0x40,
                _ => 0x44,
            };
            m | if v < 0.0 { 0x80 } else { 0 }
        },
        tail: (", 1, 1", ", 1, 1"),
    };
    run_wgmma(&e4m3, Some(Lay::K(128)), Lay::K(128));
    run_wgmma(&e4m3, None, Lay::K(64));
}

/// A small kernel around one `wgmma`, with places to leave synchronisation out.
fn wgmma_sync(fence: &str, proxy: &str, wait: &str, refill: &str) -> Report {
    let d = "{%d0, %d1, %d2, %d3}";
    let code = format!(
        ".reg .b32 %r<32>; .reg .f32 %d<4>; .reg .b64 %rd<16>; .reg .pred %p<4>;
         ld.param.u64 %rd2, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; shl.b32 %r2, %r0, 5; add.u32 %r3, %r1, %r2; mov.b64 %rd3, 0;
         st.shared.v2.b64 [%r3], {{%rd3, %rd3}}; st.shared.v2.b64 [%r3+16], {{%rd3, %rd3}}; {proxy} bar.sync 0;
         {}
         mov.f32 %d0, 0f00000000; mov.f32 %d1, %d0; mov.f32 %d2, %d0; mov.f32 %d3, %d0; {fence}
         wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {d}, %rd8, %rd8, 1, 1, 1, 0, 0; wgmma.commit_group.sync.aligned; {wait}
         {refill} mul.wide.u32 %rd5, %r0, 16; add.s64 %rd6, %rd2, %rd5; st.global.v4.f32 [%rd6], {d}; ret;",
        descriptor_code("%rd8", "%r1", 128, 256, 0)
    );
    let mut m = Memory::new();
    let o = m.alloc("out", 2048);
    run(
        &module_text("sm_90a", ".param .u64 out", &code),
        LaunchDims::linear(1, 128).with_shared(4096),
        &ParamBlock::new().u64(o),
        &mut m,
    )
}

#[test]
fn wgmma_synchronisation_is_checked() {
    let (fence, proxy, wait) =
        ("wgmma.fence.sync.aligned;", "fence.proxy.async.shared::cta;", "wgmma.wait_group.sync.aligned 0;");
    let r = wgmma_sync(fence, proxy, wait, "");
    assert!(r.faults.is_empty(), "{}", r.describe());
    only(&wgmma_sync("", proxy, wait, ""), FaultKind::WgmmaHazard);
    only(&wgmma_sync(fence, "", wait, ""), FaultKind::MissingProxyFence);
    let r = wgmma_sync(fence, proxy, "", "");
    assert!(only(&r, FaultKind::WgmmaHazard).message.contains("reads the accumulator"));
    // Overwriting an operand tile before the wait races with the tensor cores; after it, a barrier is still needed.
    let refill = "st.shared.v2.b64 [%r3], {%rd3, %rd3};";
    assert!(has(&wgmma_sync(fence, proxy, refill, wait), FaultKind::SharedRace));
    assert!(has(&wgmma_sync(fence, proxy, wait, refill), FaultKind::SharedRace));
    let r = wgmma_sync(fence, proxy, wait, &format!("bar.sync 0; {refill}"));
    assert!(r.faults.is_empty(), "{}", r.describe());
}

#[test]
fn clusters_share_memory_and_barriers() {
    // Each block writes its rank into its own memory, then all read their right neighbour's through mapa.
    let code = |sync: &str, last: &str| {
        format!(
            ".reg .b32 %r<16>; .reg .b64 %rd<4>; ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
             mov.u32 %r4, %cluster_ctarank; mov.u32 %r5, %cluster_nctarank; mad.lo.u32 %r6, %r4, 1000, %r0; st.shared.u32 [%r3], %r6; {sync}
             add.u32 %r7, %r4, 1; rem.u32 %r7, %r7, %r5; mapa.shared::cluster.u32 %r8, %r3, %r7; ld.shared::cluster.u32 %r9, [%r8]; {last}
             mov.u32 %r10, %ctaid.x; mov.u32 %r11, %ntid.x; mad.lo.u32 %r12, %r10, %r11, %r0; mul.wide.u32 %rd1, %r12, 4; add.s64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], %r9; ret;"
        )
    };
    let barrier = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;";
    let dims = LaunchDims { cluster: [4, 1, 1], ..LaunchDims::linear(8, 64).with_shared(256) };
    let go = |code: &str| {
        let mut m = Memory::new();
        let o = m.alloc("out", 8 * 256);
        let r = run(&module_text("sm_90", ".param .u64 out", code), dims, &ParamBlock::new().u64(o), &mut m);
        (r, words(&m.read(o, 8 * 256).expect("read")))
    };
    let (r, out) = go(&code(barrier, barrier));
    assert!(r.faults.is_empty(), "{}", r.describe());
    for (k, v) in out.iter().enumerate() {
        let (rank, t) = (k / 64 % 4, k % 64);
        assert_eq!(*v as usize, (rank + 1) % 4 * 1000 + t);
    }
    let (r, _) = go(&code("bar.sync 0;", barrier));
    assert!(has(&r, FaultKind::SharedRace) || has(&r, FaultKind::UninitialisedRead), "{}", r.describe());
    // Without the last barrier a block may be gone when its neighbour reads.
    let (r, _) = go(&code(barrier, ""));
    assert!(r.faults.is_empty() || has(&r, FaultKind::OutOfBounds), "{}", r.describe());
}

#[test]
fn multicast_reaches_every_block_of_the_mask() {
    let code = ".reg .b32 %r<16>; .reg .b16 %h; .reg .b64 %rd<6>, %st; .reg .pred %p<4>; .shared .align 8 .b64 bar;
        ld.param.u64 %rd0, [in]; ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, dyn; mov.u32 %r2, bar; mov.u32 %r3, %cluster_ctarank; setp.ne.u32 %p0, %r0, 0; @%p0 bra GO;
        mbarrier.init.shared::cta.b64 [%r2], 1; fence.mbarrier_init.release.cluster; mbarrier.arrive.expect_tx.shared::cta.b64 %st, [%r2], 256;
        GO: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; @%p0 bra WAIT;
        shl.b32 %r4, %r3, 7; cvt.u64.u32 %rd2, %r4; add.s64 %rd3, %rd0, %rd2; add.u32 %r5, %r1, %r4; mov.u16 %h, 3;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r5], [%rd3], 128, [%r2], %h;
        WAIT: bar.warp.sync -1;
        W1: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r2], 0; @!%p1 bra W1;
        shl.b32 %r6, %r0, 3; add.u32 %r7, %r1, %r6; ld.shared.v2.b32 {%r8, %r9}, [%r7]; shl.b32 %r10, %r3, 8; add.u32 %r11, %r10, %r6; cvt.u64.u32 %rd4, %r11; add.s64 %rd5, %rd1, %rd4; st.global.v2.b32 [%rd5], {%r8, %r9};
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; ret;";
    let input: Vec<u32> = (0..64).map(|k| k + 7).collect();
    let mut m = Memory::new();
    let p = ParamBlock::new().u64(m.alloc_init("in", &bytes32(&input)));
    let o = m.alloc("out", 512);
    let dims = LaunchDims { cluster: [2, 1, 1], ..LaunchDims::linear(2, 32).with_shared(256) };
    run_clean(&module_text("sm_90", ".param .u64 in, .param .u64 out", code), dims, &p.u64(o), &mut m);
    let out = words(&m.read(o, 512).expect("read"));
    assert_eq!((&out[..64], &out[64..]), (&input[..], &input[..]));
}

#[test]
fn remote_arrivals_and_async_stores() {
    // Block 1 stores into block 0's memory with st.async; block 0 waits for the bytes and for a plain remote arrival.
    let code = ".reg .b32 %r<16>; .reg .b64 %rd<6>, %st; .reg .pred %p<4>; .shared .align 8 .b64 bar; .shared .align 16 .b8 s[128];
        ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, s; mov.u32 %r2, bar; mov.u32 %r3, %cluster_ctarank; setp.ne.u32 %p0, %r0, 0; @%p0 bra GO;
        mbarrier.init.shared::cta.b64 [%r2], 2; fence.mbarrier_init.release.cluster; mbarrier.arrive.expect_tx.shared::cta.b64 %st, [%r2], 128;
        GO: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; setp.eq.u32 %p1, %r3, 0; @%p1 bra READ;
        mapa.shared::cluster.u32 %r4, %r2, 0; mapa.shared::cluster.u32 %r5, %r1, 0; shl.b32 %r6, %r0, 2; add.u32 %r7, %r5, %r6; mad.lo.u32 %r8, %r0, 3, 1;
        st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r7], %r8, [%r4]; @!%p0 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r4];
        bra END;
        READ: W1: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r2], 0; @!%p2 bra W1;
        shl.b32 %r6, %r0, 2; add.u32 %r7, %r1, %r6; ld.shared.u32 %r9, [%r7]; mul.wide.u32 %rd2, %r0, 4; add.s64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r9;
        END: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; ret;";
    let mut m = Memory::new();
    let o = m.alloc("out", 128);
    let dims = LaunchDims { cluster: [2, 1, 1], ..LaunchDims::linear(2, 32) };
    let text = module_text("sm_90", ".param .u64 out", code).replace(".version 8.0", ".version 8.1");
    run_clean(&text, dims, &ParamBlock::new().u64(o), &mut m);
    assert_eq!(words(&m.read(o, 128).expect("read")), (0..32).map(|k| 3 * k + 1).collect::<Vec<u32>>());
}

#[test]
fn copies_that_arrive_on_an_mbarrier() {
    let code = |noinc: &str, wait: &str| {
        format!(
            ".reg .b32 %r<16>; .reg .b64 %rd<6>; .reg .pred %p<4>; .shared .align 8 .b64 bar; .shared .align 16 .b8 s[512];
             ld.param.u64 %rd0, [in]; ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, s; mov.u32 %r2, bar; setp.eq.u32 %p0, %r0, 0;
             @%p0 mbarrier.init.shared::cta.b64 [%r2], 32; bar.sync 0; setp.lt.u32 %p1, %r0, 32; and.b32 %r10, %r0, 31; shl.b32 %r3, %r10, 4; add.u32 %r4, %r1, %r3; mul.wide.u32 %rd2, %r10, 16; @!%p1 bra READ;
             add.s64 %rd3, %rd0, %rd2; cp.async.cg.shared.global [%r4], [%rd3], 16; cp.async.mbarrier.arrive{noinc}.shared.b64 [%r2]; bra END;
             READ: {wait}
             xor.b32 %r5, %r3, 16; add.u32 %r6, %r1, %r5; ld.shared.v4.b32 {{%r11, %r12, %r13, %r14}}, [%r6]; add.s64 %rd4, %rd1, %rd2; st.global.v4.b32 [%rd4], {{%r11, %r12, %r13, %r14}};
             END: ret;"
        )
    };
    let go = |code: &str| {
        let mut m = Memory::new();
        let p = ParamBlock::new().u64(m.alloc_init("in", &bytes32(&(0..128).collect::<Vec<_>>())));
        let o = m.alloc("out", 512);
        let r = run(
            &module_text("sm_90", ".param .u64 in, .param .u64 out", code),
            LaunchDims::linear(1, 64),
            &p.u64(o),
            &mut m,
        );
        (r, words(&m.read(o, 512).expect("read")))
    };
    let wait = "W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0; @!%p2 bra W;";
    let (r, out) = go(&code(".noinc", wait));
    assert!(r.faults.is_empty(), "{}", r.describe());
    assert!((0..128).all(|k| out[k as usize] == k ^ 4));
    // Without .noinc the arrivals cancel out and nobody ever completes the phase.
    only(&go(&code("", wait)).0, FaultKind::Deadlock);
    assert!(has(&go(&code(".noinc", "")).0, FaultKind::SharedRace));
}

#[test]
fn register_budgets_and_dependent_launches_are_accepted() {
    let code = ".reg .b32 %r<2>; setmaxnreg.dec.sync.aligned.u32 40; griddepcontrol.wait; griddepcontrol.launch_dependents; ret;";
    let text = module_text("sm_90a", "", code).replace("k()", "k() .maxntid 128, 1, 1");
    run_clean(&text, LaunchDims::linear(1, 128), &ParamBlock::new(), &mut Memory::new());
}
