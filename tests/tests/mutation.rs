//! The simulated GPU's checks, put to the test: every barrier, fence, wait, count and predicate of a kernel that matters is
//! missed when it is not there. What may be missing is on the list beside this file, with the reason.
//!
//! The whole library: `cargo test -p zellige-tests --test mutation -- --ignored --nocapture`, ten minutes of processor time on two
//! threads; `ZELLIGE_MUTANTS=gemm,norm` limits it to kernels with these words in their names. Barriers alone are a minute, so
//! every kernel's are judged every day.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use zellige::TuneValue;
use zellige_codegen::ptx::Arch;
use zellige_kernels::library::{Case, LibraryKernel, Scale, all, find};
use zellige_tests::mutation::{Aim, Excuses, Mutation, Subject, Survivor, Verdict, judge, subjects};

/// Why the survivors survive.
const LIST: &str = include_str!("mutation_survivors.txt");

/// Mutants of one text that are judged every day; more are thinned out evenly.
const DAILY: usize = 60;

/// One instruction of a kernel's texts: kernel, level of features, what was done to it, author's place, and its number among
/// those of its kind at that place. Texts for different problems have it in common.
type Spot = (&'static str, Arch, String, String, usize);

/// What happened to the mutants of some texts.
#[derive(Default)]
struct Outcome {
    /// Mutants by verdict.
    tally: BTreeMap<String, usize>,
    /// Mutants that were flagged or noticed, by what was done.
    seen: BTreeMap<String, usize>,
    /// Where what orders accesses was missed.
    missed: HashSet<Spot>,
    survivors: Vec<(Option<Spot>, Survivor)>,
}

impl Outcome {
    /// Judges at most `most` of a text's mutants that are wanted.
    fn add(&mut self, subject: &Subject, most: usize, which: fn(&Mutation) -> bool) {
        let mutations: Vec<Mutation> = subject.mutations().into_iter().filter(which).collect();
        let step = mutations.len().div_ceil(most).max(1);
        let mut at_place: HashMap<(&str, &str), usize> = HashMap::new();
        for (i, m) in mutations.iter().enumerate() {
            let nth = at_place.entry((m.what.as_str(), m.place.as_str())).or_default();
            *nth += 1;
            if i % step != 0 {
                continue;
            }
            let spot = (subject.kernel, subject.arch, m.what.clone(), m.place.clone(), *nth);
            let spot = (m.aim == Aim::Order).then_some(spot);
            let verdict = judge(subject, m).unwrap_or_else(|e| panic!("{} for {}: {e}", subject.kernel, subject.arch));
            *self.tally.entry(format!("{verdict:?}")).or_default() += 1;
            match verdict {
                Verdict::Flagged(_) | Verdict::Noticed => {
                    *self.seen.entry(m.what.clone()).or_default() += 1;
                    self.missed.extend(spot);
                }
                Verdict::Idle => {}
                Verdict::Survives => {
                    let place = format!("{} line {}, {}, {}", subject.arch, m.line, m.place, subject.cases.join("; "));
                    self.survivors.push((spot, Survivor { kernel: subject.kernel, what: m.what.clone(), place }));
                }
            }
        }
    }

    /// What nobody missed in any problem: a barrier that one problem can do without may be there for another.
    fn survivors(&self) -> Vec<Survivor> {
        let elsewhere = |spot: &Option<Spot>| spot.as_ref().is_some_and(|s| self.missed.contains(s));
        self.survivors.iter().filter(|(spot, _)| !elsewhere(spot)).map(|(_, s)| s.clone()).collect()
    }

    fn check(&self) {
        let left = Excuses::read(LIST).unexplained(&self.survivors());
        assert!(left.is_empty(), "{} survivors without an excuse:\n{}", left.len(), left.join("\n"));
    }
}

/// The small problems of a kernel whose names begin so.
fn cases(kernel: &dyn LibraryKernel, prefix: &str) -> Vec<Case> {
    kernel.cases(Scale::Small).into_iter().filter(|c| c.name.starts_with(prefix)).collect()
}

/// A tile of `gemm` that makes a small problem deep: the ring of copies goes round, and a block has several tiles.
const DEEP: [(&str, TuneValue); 5] =
    [("bm", int(64)), ("bn", int(64)), ("bk", int(32)), ("stages", int(2)), ("threads", int(128))];

/// The same for two warpgroups that take turns.
const TEAMS: [(&str, TuneValue); 6] =
    [DEEP[0], DEEP[1], DEEP[2], DEEP[3], DEEP[4], ("ping_pong", TuneValue::Bool(true))];

/// Tiles of several boxes on their way out, and several such tiles for a block.
const WIDE: [(&str, TuneValue); 5] =
    [("bm", int(64)), ("bn", int(128)), ("bk", int(32)), ("stages", int(2)), ("threads", int(128))];

/// The same for two warpgroups and a cluster of two blocks.
const CLUSTER: [(&str, TuneValue); 5] =
    [("bm", int(128)), ("bn", int(64)), ("bk", int(32)), ("stages", int(2)), ("threads", int(256))];

/// Steps so short that a small problem has several.
const SHALLOW: [(&str, TuneValue); 2] = [("bk", int(16)), ("stages", int(2))];

/// Several blocks of several warps that count together.
const BLOCKS: [(&str, TuneValue); 2] = [("chunk", int(16)), ("threads", int(128))];

/// Configs besides those of the small problems, which are too shallow for some rings and too small for several blocks: kernel,
/// level of features, config, problems.
const DEEPER: [(&str, Arch, Settings, &str); 13] = [
    ("block_scaled_gemm", Arch::Sm90a, &[("bk", int(64)), ("stages", int(2))], "m=33 n=72 k=160 f8e4m3xf4e2m1"),
    (
        "attention_dkv",
        Arch::Sm90a,
        &[("bm", int(16)), ("bn", int(64)), ("stages", int(2)), ("threads", int(128))],
        "h=6/2",
    ),
    (
        "attention_dq",
        Arch::Sm90a,
        &[("bm", int(64)), ("bn", int(16)), ("stages", int(2)), ("threads", int(128))],
        "h=6/2",
    ),
    ("aux_fi", Arch::Sm80, &BLOCKS, "t=67"),
    ("aux_fi", Arch::Sm90a, &BLOCKS, "t=67"),
    ("gemm", Arch::Sm90a, &DEEP, "m=136"),
    ("gemm", Arch::Sm90a, &WIDE, "m=136"),
    ("gemm", Arch::Sm90a, &CLUSTER, "m=136"),
    ("gemm", Arch::Sm90a, &TEAMS, "m=136"),
    ("group_count", Arch::Sm80, &BLOCKS, "t=67"),
    ("group_count", Arch::Sm90a, &BLOCKS, "t=67"),
    ("k_grouped_gemm", Arch::Sm90a, &DEEP, ""),
    ("k_grouped_scaled_gemm", Arch::Sm80, &[("bk", int(32)), ("stages", int(2))], "rows=[20,33]"),
];

/// Changes to a kernel's config.
type Settings = &'static [(&'static str, TuneValue)];

const fn int(n: i64) -> TuneValue {
    TuneValue::Int(n)
}

fn settings(of: Settings) -> Vec<(String, TuneValue)> {
    of.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

/// A pipelined product on either kind of unit, attention, a reduction, a cast through shared memory, a sort.
#[test]
fn the_simulator_misses_what_is_missing() {
    let chosen: [(&str, &str, Settings, Arch); 10] = [
        ("gemm", "m=65 n=72 k=40 bf16->bf16 nn", &SHALLOW, Arch::Sm80),
        ("gemm", "m=136 n=264", &DEEP, Arch::Sm90a),
        ("gemm", "m=136 n=264", &CLUSTER, Arch::Sm90a),
        ("gemm", "m=136 n=264", &TEAMS, Arch::Sm90a),
        ("flash_attention", "", &[], Arch::Sm80),
        ("flash_attention", "", &[], Arch::Sm90a),
        ("rmsnorm", "", &[], Arch::Sm90a),
        ("per_channel_cast_and_transpose", "", &[], Arch::Sm90a),
        ("sampling_topk", "", &[], Arch::Sm90a),
        ("token_order", "", &[], Arch::Sm90a),
    ];
    let mut outcome = Outcome::default();
    for (name, prefix, changes, arch) in chosen {
        let kernel = find(name).unwrap_or_else(|| panic!("no kernel `{name}`"));
        let found = subjects(kernel, cases(kernel, prefix), &settings(changes), arch).unwrap_or_else(|e| panic!("{e}"));
        assert!(!found.is_empty(), "`{name}` has no problem `{prefix}`");
        for subject in found.iter().take(2) {
            outcome.add(subject, DAILY, |_| true);
        }
    }
    println!("{:?}", outcome.tally);
    outcome.check();
    // Each detector has had its chance.
    let seen = |what: &str| outcome.seen.keys().any(|k| k.starts_with(what));
    for what in [
        "drop bar.sync",
        "drop cp.async.wait_group",
        "wait for one group less in cp.async.wait_group",
        "drop guard of st.global",
        "drop mbarrier.init",
        "drop mbarrier.try_wait",
        "drop mbarrier.arrive",
        "expect nothing in mbarrier.arrive.expect_tx",
        "drop fence.mbarrier_init",
        "drop fence.proxy.async",
        "drop wgmma.fence",
        "drop wgmma.wait_group",
        "drop barrier.cluster",
    ] {
        assert!(seen(what), "no mutant `{what}` was flagged: {:?}", outcome.seen);
    }
}

/// Every barrier of every kernel of the library is there because without it some small problem goes wrong.
#[test]
fn no_barrier_is_redundant() {
    over_the_library(|m| m.what.starts_with("drop bar.")).check();
}

#[test]
#[ignore = "takes ten minutes of processor time"]
fn the_whole_library() {
    let outcome = over_the_library(|_| true);
    for (reason, n) in Excuses::read(LIST).by_reason(&outcome.survivors()) {
        println!("{n:6} {reason}");
    }
    outcome.check();
}

/// Judges the mutants of the library that are wanted.
fn over_the_library(which: fn(&Mutation) -> bool) -> Outcome {
    let words = std::env::var("ZELLIGE_MUTANTS").unwrap_or_default();
    let wanted = |name: &str| words.split(',').any(|word| name.contains(word));
    let queue: Mutex<Vec<_>> = Mutex::new(all().iter().filter(|k| wanted(k.info().name)).collect());
    let outcome = Mutex::new(Outcome::default());
    let work = || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(kernel) = next else { break };
            let mut own = Outcome::default();
            let name = kernel.info().name;
            let deep = DEEPER.iter().filter(|(k, ..)| *k == name).map(|&(_, arch, set, prefix)| (arch, set, prefix));
            let plain: Settings = &[];
            let variants = [(Arch::Sm80, plain, ""), (Arch::Sm90a, plain, "")].into_iter().chain(deep);
            for (arch, changes, prefix) in variants {
                let found = subjects(*kernel, cases(*kernel, prefix), &settings(changes), arch)
                    .unwrap_or_else(|e| panic!("{e}"));
                found.iter().for_each(|s| own.add(s, usize::MAX, which));
            }
            println!("{name}: {:?}", own.tally);
            for s in own.survivors() {
                println!("  survives: {} | {} | {}", s.kernel, s.what, s.place);
            }
            let mut all = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            own.tally.into_iter().for_each(|(k, n)| *all.tally.entry(k).or_default() += n);
            all.missed.extend(own.missed);
            all.survivors.extend(own.survivors);
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("all: {:?}", outcome.tally);
    outcome
}
