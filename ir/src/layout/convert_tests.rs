//! Conversion plans, checked by carrying them out.

use std::collections::BTreeMap;

use super::instances::{blocked, mma, wgmma};
use super::*;
use crate::DType;

/// Registers per thread, each holding the coordinate of its element; `None` where nothing has been written.
type Registers = Vec<Vec<Option<Coord>>>;

fn fill(f: &FragmentLayout) -> Registers {
    (0..f.threads()).map(|t| (0..f.regs_per_thread()).map(|r| f.coord(r, t)).collect()).collect()
}

/// What the machine would do.
fn carry_out(plan: &Conversion, source: &FragmentLayout, target: &FragmentLayout) -> Registers {
    let have = fill(source);
    let mut out: Registers = vec![vec![None; target.regs_per_thread()]; target.threads()];
    match plan {
        Conversion::Registers(from) => {
            for (out, have) in out.iter_mut().zip(&have) {
                *out = from.iter().map(|&r| have[r].clone()).collect();
            }
        }
        Conversion::Shuffles(plan) => {
            for round in &plan.rounds {
                for t in 0..target.threads() {
                    let sender = t / WARP * WARP + round.from.of(t % WARP + t / WARP * WARP);
                    for (s, r) in round.send.iter().zip(&round.receive) {
                        out[t][r.of(t)] = have[sender][s.of(sender)].clone();
                    }
                }
            }
            for out in &mut out {
                for &(to, from) in &plan.copies {
                    out[to] = out[from].clone();
                }
            }
        }
        Conversion::Shared(plan) => {
            let mut memory = BTreeMap::new();
            for (t, have) in have.iter().enumerate() {
                for g in &plan.store.groups {
                    let Some(first) = source.coord(g[0], t) else { continue };
                    let base = plan.scratch.offset(&first);
                    assert!(base.is_multiple_of(plan.store.elems));
                    for (i, &r) in g.iter().enumerate() {
                        memory.insert(base + i, have[r].clone());
                    }
                }
            }
            for (t, out) in out.iter_mut().enumerate() {
                for g in &plan.load.groups {
                    let Some(first) = target.coord(g[0], t) else { continue };
                    let base = plan.scratch.offset(&first);
                    for (i, &r) in g.iter().enumerate() {
                        out[r] = memory[&(base + i)].clone();
                    }
                }
                for &(to, from) in &plan.load.duplicates {
                    out[to] = out[from].clone();
                }
            }
        }
    }
    out
}

/// Plans, carries the plan out and checks that every live place got its element.
fn check(source: &FragmentLayout, target: &FragmentLayout, dtype: DType) -> Conversion {
    let plan = Conversion::plan(source, target, dtype).unwrap();
    let got = carry_out(&plan, source, target);
    for (t, got) in got.iter().enumerate() {
        for (r, got) in got.iter().enumerate() {
            if let Some(want) = target.coord(r, t) {
                assert_eq!(*got, Some(want), "register {r} of thread {t} by {plan:?}");
            }
        }
    }
    plan
}

fn fragment(rank: usize, digits: &[(&str, usize, Option<&str>)]) -> FragmentLayout {
    let b = digits.iter().fold(FragmentLayout::builder(rank), |b, &(input, n, output)| match output {
        Some(o) => b.tile(input, n, o),
        None => b.replicate(input, n),
    });
    FragmentLayout::exact(b.build().unwrap()).unwrap()
}

#[test]
fn accumulators_become_operand_a_without_moving() {
    // The softmax of attention: P leaves the first gemm as an accumulator and enters the second as operand A.
    let plan = check(&wgmma::accumulator(64).unwrap(), &wgmma::a_tile([64, 64], 16, [1, 1]).unwrap(), DType::BF16);
    assert_eq!(plan, Conversion::Registers((0..32).collect()));
    let c = mma::c_tile([32, 48], [2, 1]).unwrap();
    let plan = check(&c, &mma::a_tile([32, 48], 16, [2, 1]).unwrap(), DType::F16);
    assert!(matches!(plan, Conversion::Registers(_)));
}

#[test]
fn accumulators_become_8_bit_operands_by_shuffles() {
    let source = wgmma::accumulator(64).unwrap();
    let Conversion::Shuffles(plan) = check(&source, &wgmma::a_tile([64, 64], 8, [1, 1]).unwrap(), DType::F8E4M3) else {
        panic!("values stay in their warp");
    };
    // 32 elements of a byte: two travel together, as neighbours in the accumulator and in the operand.
    assert!(plan.shuffles() <= 16, "{}", plan.shuffles());
}

#[test]
fn renaming_and_replicas() {
    let x = fragment(1, &[("register", 2, Some("dim0")), ("register", 3, Some("dim0")), ("lane", 32, Some("dim0"))]);
    let y = fragment(
        1,
        &[
            ("register", 2, Some("dim0")),
            ("register", 3, Some("dim0")),
            ("register", 2, None),
            ("lane", 32, Some("dim0")),
        ],
    );
    assert_eq!(check(&x, &y, DType::F32), Conversion::Registers(vec![0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]));
    assert_eq!(check(&y, &x, DType::F32), Conversion::Registers(vec![0, 1, 2, 3, 4, 5]));
}

#[test]
fn a_transpose_inside_the_warp() {
    // 32 x 32: lanes along columns, registers along rows, and the other way round.
    let rows = fragment(2, &[("lane", 32, Some("dim1")), ("register", 32, Some("dim0"))]);
    let cols = fragment(2, &[("register", 32, Some("dim1")), ("lane", 32, Some("dim0"))]);
    let Conversion::Shuffles(plan) = check(&rows, &cols, DType::F32) else { panic!("one warp") };
    assert_eq!(plan.rounds.len(), 32);
    check(&cols, &rows, DType::BF16);
}

#[test]
fn broadcasts_inside_the_warp() {
    // Each lane holds one element, then every lane wants all of them, and back.
    let spread = fragment(1, &[("lane", 32, Some("dim0"))]);
    let all = fragment(1, &[("register", 32, Some("dim0")), ("lane", 32, None)]);
    let Conversion::Shuffles(plan) = check(&spread, &all, DType::F32) else { panic!("one warp") };
    assert_eq!(plan.shuffles(), 32);
    let Conversion::Shuffles(plan) = check(&all, &spread, DType::F32) else { panic!("one warp") };
    assert_eq!((plan.rounds.len(), plan.shuffles()), (1, 0), "each lane selects from its own registers");
}

#[test]
fn warps_meet_in_shared_memory() {
    let rows = blocked(&[64, 64], 128, 4).unwrap();
    let Conversion::Shared(plan) = check(&rows, &wgmma::accumulator(64).unwrap(), DType::F32) else {
        panic!("rows change warps");
    };
    assert_eq!(plan.store.elems, 4);
    assert_eq!(plan.load.elems, 2);
    // A replica per warp: everyone has everything, so nothing moves.
    let replicas = blocked(&[8], 128, 1).unwrap();
    assert!(matches!(check(&replicas, &replicas.clone(), DType::F32), Conversion::Registers(_)));
    // Odd warps: 96 threads.
    let x = blocked(&[6, 64], 96, 2).unwrap();
    let y = blocked(&[6, 64], 96, 1).unwrap();
    check(&x, &y, DType::F32);
    check(&y, &x, DType::F32);
}

#[test]
fn different_tiles_are_refused() {
    let e = Conversion::plan(&blocked(&[64], 32, 1).unwrap(), &blocked(&[32], 32, 1).unwrap(), DType::F32).unwrap_err();
    assert_eq!(
        e.to_string(),
        "spaces differ: ([64] over 32 threads) against ([32] over 32 threads); dimensions must agree in name, order and extent"
    );
}

mod random {
    use super::*;
    use proptest::prelude::*;

    /// One digit after another, each a bit of a lane (0 to 4), a warp (5, 6, as far as there are `warps`) or a register.
    fn permuted(order: &[usize], warps: usize, odd: usize, replicas: usize) -> FragmentLayout {
        let mut b = FragmentLayout::builder(2);
        for (i, &digit) in order.iter().enumerate() {
            let input = match digit {
                0..5 => "lane",
                5..7 if digit - 5 < warps => "warp",
                _ => "register",
            };
            b = b.tile(input, 2, if i % 2 == 0 { "dim0" } else { "dim1" });
        }
        b = b.tile("register", odd, "dim1");
        for _ in 0..replicas {
            b = b.replicate("register", 2);
        }
        FragmentLayout::exact(b.build().unwrap()).unwrap()
    }

    /// An arbitrary linear map of `columns` (five of them lanes, the last `warps` of them warps) onto 128 elements, if
    /// it is onto.
    fn arbitrary(columns: &[usize], warps: usize) -> Option<FragmentLayout> {
        let split = columns.len() - 5 - warps;
        let bits = |c: &[usize]| c.iter().map(|&x| Basis::bit(&[x])).collect::<Vec<_>>();
        let inputs = [
            ("register", bits(&columns[..split])),
            ("lane", bits(&columns[split..split + 5])),
            ("warp", bits(&columns[split + 5..])),
        ];
        let map = LinearLayout::from_bases(inputs, Space::tile(&[128]).unwrap()).unwrap();
        FragmentLayout::exact(map).ok()
    }

    proptest! {
        #[test]
        fn any_two_orders_of_digits_convert(
            p in Just((0..9).collect::<Vec<usize>>()).prop_shuffle(),
            q in Just((0..9).collect::<Vec<usize>>()).prop_shuffle(),
            warps in 0usize..3,
            odd in prop::sample::select(vec![1usize, 3]),
            replicas in 0usize..2,
            dtype in prop::sample::select(vec![DType::F32, DType::BF16, DType::F8E4M3, DType::F64]),
        ) {
            let x = permuted(&p, warps, odd, 0);
            let y = permuted(&q, warps, odd, replicas);
            check(&x, &y, dtype);
            check(&y, &x, dtype);
        }

        #[test]
        fn any_two_linear_maps_convert(
            x in prop::collection::vec(0usize..128, 7..12).prop_filter_map("onto", |c| arbitrary(&c, 0)),
            y in prop::collection::vec(0usize..128, 7..12).prop_filter_map("onto", |c| arbitrary(&c, 0)),
            dtype in prop::sample::select(vec![DType::F32, DType::BF16, DType::F8E4M3]),
        ) {
            check(&x, &y, dtype);
        }

        #[test]
        fn replicas_in_warps_convert(
            x in prop::collection::vec(0usize..128, 10..14).prop_filter_map("onto", |c| arbitrary(&c, 1)),
            y in prop::collection::vec(0usize..128, 10..14).prop_filter_map("onto", |c| arbitrary(&c, 1)),
        ) {
            check(&x, &y, DType::BF16);
        }
    }

    /// Conversions within a warp exist for all permutations of digits; through shared memory is for the rest.
    #[test]
    fn one_warp_never_needs_shared_memory() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let order = Just((0..8).collect::<Vec<usize>>()).prop_shuffle();
        runner
            .run(&(order.clone(), order), |(p, q)| {
                let plan = check(&permuted(&p, 0, 1, 0), &permuted(&q, 0, 1, 0), DType::F32);
                let rounds = match &plan {
                    Conversion::Registers(_) => 8,
                    Conversion::Shuffles(s) => s.rounds.len(),
                    Conversion::Shared(_) => usize::MAX,
                };
                prop_assert_eq!(rounds, 8);
                Ok(())
            })
            .unwrap();
    }
}
