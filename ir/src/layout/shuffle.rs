//! Exchanging a tile's elements between the lanes of each warp: plans of `shfl.sync` rounds. Depends on `fragment`.
//!
//! # The plan
//! In one round, every lane offers one 32-bit word, names a lane to read from, and puts what it reads into one of its
//! registers. Which registers are offered and filled may differ from lane to lane, at the price of select instructions.
//!
//! # Finding it
//! Both layouts are linear, so there is a linear map `M` from places of the target (r, l, w) to places of the source
//! (s, m, w) that hold the same element. Split by registers and lanes it reads
//! ```text
//! s = a r + b l + e w          m = c r + d l + f w
//! ```
//! Let lane l fill register `r = D l + k` in round k. Then it reads from lane `m = (c D + d) l + f w + c k`. For all lanes
//! to be served at once, lane m must know which register to offer from m alone: `s` must be a function of `m`. That
//! holds when `c D + d` is invertible, or at least when its kernel does not change s (several lanes read one word).
//! If `d` is invertible, `D = 0` does. Otherwise D must repair its kernel: each vector v of a kernel basis gets a register
//! vector `D v = u` such that `c u` adds a new direction to the image, which exists when all lanes have something to
//! send. The number of rounds is then the number of registers to fill, which is optimal for 32-bit elements: each round
//! fills one register per lane. Narrow elements that travel together share a word.
//!
//! The idea of planning exchanges by linear algebra over GF(2) is that of Zhou et al., "Linear Layouts" (arXiv
//! 2505.23819); this formulation by kernel repair is our own.

use super::fragment::{FragmentLayout, LANE, REGISTER, WARP, WARP_DIM};
use super::gf2::{Echelon, multiply};
use super::linear::LinearLayout;
use super::space::Space;
use crate::DType;

const LANE_BITS: usize = WARP.trailing_zeros() as usize;

/// A register chosen by the thread: `registers[i]`, where bit `j` of `i` is the parity of `thread & parities[j]`.
///
/// No parities: one register for all threads. Each further parity is one level of selects.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RegisterChoice {
    /// Masks over the thread index (lane in the low five bits, warp above).
    pub parities: Vec<usize>,
    /// 2^parities registers.
    pub registers: Vec<usize>,
}

impl RegisterChoice {
    /// The register chosen by `thread`.
    pub fn of(&self, thread: usize) -> usize {
        self.registers[parity_index(&self.parities, thread)]
    }

    /// The register, when all threads choose the same.
    pub fn uniform(&self) -> Option<usize> {
        self.parities.is_empty().then(|| self.registers[0])
    }
}

fn parity_index(parities: &[usize], thread: usize) -> usize {
    parities.iter().enumerate().fold(0, |i, (j, &mask)| i | ((thread & mask).count_ones() as usize & 1) << j)
}

/// The lane to read from: `base` XOR the columns of the set bits of the thread index.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LaneMap {
    /// The lane that thread 0 reads from.
    pub base: usize,
    /// One entry per bit of the thread index (lane in the low five bits, warp above).
    pub columns: Vec<usize>,
}

impl LaneMap {
    /// The lane that `thread` reads from.
    pub fn of(&self, thread: usize) -> usize {
        self.columns
            .iter()
            .enumerate()
            .fold(self.base, |lane, (i, &c)| if thread >> i & 1 == 1 { lane ^ c } else { lane })
    }

    /// `Some(x)` when every thread reads from its own lane XOR `x`, the butterfly form; `x = 0` needs no shuffle.
    pub fn as_xor(&self) -> Option<usize> {
        let own = self.columns.iter().enumerate().all(|(i, &c)| c == if i < LANE_BITS { 1 << i } else { 0 });
        own.then_some(self.base)
    }
}

/// One exchange: elements `send[i]` of the lane `from` go to `receive[i]`, for all `i` in one 32-bit word.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ShuffleRound {
    /// Registers of the source layout, chosen by the sending thread.
    pub send: Vec<RegisterChoice>,
    /// The sending lane, chosen by the receiving thread. XOR 0: the value stays in its lane.
    pub from: LaneMap,
    /// Registers of the target layout, chosen by the receiving thread.
    pub receive: Vec<RegisterChoice>,
}

/// A conversion inside each warp.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ShufflePlan {
    /// Rounds in any order; they fill different registers.
    pub rounds: Vec<ShuffleRound>,
    /// After the rounds: register `.0` of the target is a copy of its register `.1`.
    pub copies: Vec<(usize, usize)>,
}

impl ShufflePlan {
    /// Shuffle instructions per warp for elements of up to 32 bits.
    pub fn shuffles(&self) -> usize {
        self.rounds.iter().filter(|r| r.from.as_xor() != Some(0)).count()
    }

    /// The source register of each target register, when the plan only renames registers.
    pub fn as_renaming(&self, registers: usize) -> Option<Vec<usize>> {
        let mut source = vec![0; registers];
        for round in &self.rounds {
            if round.from.as_xor() != Some(0) {
                return None;
            }
            for (s, r) in round.send.iter().zip(&round.receive) {
                source[r.uniform()?] = s.uniform()?;
            }
        }
        for &(to, from) in &self.copies {
            source[to] = source[from];
        }
        Some(source)
    }
}

/// The plan, or `None` when values must change warps or the digits of the layouts do not allow a linear plan.
pub(super) fn plan_shuffles(source: &FragmentLayout, target: &FragmentLayout, dtype: DType) -> Option<ShufflePlan> {
    let a = source.map();
    let b = target.map().with_output_digits(a.output()).ok()?;
    let a = a.with_output_digits(b.output()).ok()?;
    let b = b.with_output_digits(a.output()).ok()?;
    let m = PlaceMap::new(&a, &b)?;
    m.plan(32 / dtype.bits().min(32))
}

/// The map `M` of the module documentation. Vectors over places number the bits of the register first, then the lane's,
/// then the warp's, as [`Space::bits`] does.
struct PlaceMap<'a> {
    source: &'a Space,
    target: &'a Space,
    /// Images in source places of the target's register bits, lane bits and warp bits.
    registers: Vec<u64>,
    lanes: Vec<u64>,
    warps: Vec<u64>,
    /// For each odd source digit the odd target digit that it equals.
    odd: Vec<Option<usize>>,
}

impl<'a> PlaceMap<'a> {
    fn new(a: &'a LinearLayout, b: &'a LinearLayout) -> Option<PlaceMap<'a>> {
        let (source, target) = (a.input(), b.input());
        let (na, nb) = (register_bits(source), register_bits(target));
        let warp_bits = source.bits().len() - na - LANE_BITS;
        if target.bits().len() - nb - LANE_BITS != warp_bits {
            return None;
        }
        // Registers come first among the columns, so solutions use registers where they can, then lanes.
        let by_register = Echelon::new(&a.columns[..na]);
        let by_lane = Echelon::new(&a.columns[..na + LANE_BITS]);
        let solve = |t: u64| by_register.solve(t).or_else(|| by_lane.solve(t));
        // A target bit of lane or warp is served from the same lane and warp if registers can make up the difference.
        let stay = |own: usize, t: u64| by_register.solve(t ^ a.columns[own]).map(|x| x ^ 1 << own);
        let registers = b.columns[..nb].iter().map(|&t| solve(t)).collect::<Option<Vec<_>>>()?;
        let lanes = (0..LANE_BITS)
            .map(|i| stay(na + i, b.columns[nb + i]).or_else(|| solve(b.columns[nb + i])))
            .collect::<Option<Vec<_>>>()?;
        let warps = (0..warp_bits)
            .map(|i| {
                let (own, t) = (na + LANE_BITS + i, b.columns[nb + LANE_BITS + i]);
                stay(own, t).or_else(|| by_lane.solve(t ^ a.columns[own]).map(|x| x ^ 1 << own))
            })
            .collect::<Option<Vec<_>>>()?;

        let odd = (0..source.odds().len()).map(|j| {
            let digit = source.odds()[j];
            let same =
                target.odds().iter().position(|d| d.dim == 2 && d.stride == digit.stride && d.radix == digit.radix);
            let wanted = a.sources.iter().position(|s| *s == Some(j)).map(|o| b.sources[o]);
            match (digit.dim, wanted) {
                // A warp digit must be the thread's own; one that replicates may be.
                (2, Some(w)) if w == same && w.is_some() => Some(w),
                (2, None) => same.map(Some),
                (0, Some(Some(i))) if target.odds()[i].dim == 0 => Some(Some(i)),
                (0, None) => Some(None),
                _ => None,
            }
        });
        Some(PlaceMap { source, target, registers, lanes, warps, odd: odd.collect::<Option<Vec<_>>>()? })
    }

    fn plan(&self, per_word: usize) -> Option<ShufflePlan> {
        let na = register_bits(self.source);
        let reg_mask = (1u64 << na) - 1;
        let lane_mask = ((1u64 << LANE_BITS) - 1) << na;
        let n = self.registers.len();

        // Registers: replicas of others (image zero), those that share a word, and one round for each of the rest.
        let replicas: Vec<u64> = Echelon::new(&self.registers).kernel().to_vec();
        let stays = |r: u64| self.registers[r.trailing_zeros() as usize] & lane_mask == 0;
        let mut chosen = replicas.clone();
        let mut word: Vec<u64> = Vec::new();
        for i in 0..n {
            let candidate = 1u64 << i;
            if 2 << word.len() <= per_word && stays(candidate) && Echelon::new(&chosen).solve(candidate).is_none() {
                word.push(candidate);
                chosen.push(candidate);
            }
        }
        let mut rounds_by: Vec<u64> = Vec::new();
        for i in 0..n {
            if Echelon::new(&chosen).solve(1 << i).is_none() {
                rounds_by.push(1 << i);
                chosen.push(1 << i);
            }
        }

        // D may stay out of the replicas, which change no image: then every lane fills the same set of registers.
        let basis = Echelon::new(&chosen);
        let fresh = |d: u64| {
            let parts = basis.solve(d)? >> replicas.len() << replicas.len();
            Some(multiply(&chosen, parts))
        };
        let repair = self.repair(lane_mask)?.into_iter().map(fresh).collect::<Option<Vec<_>>>()?;
        // E = cD + d and S = aD + b, as columns by lane bit: where lane l reads from, and which register.
        let at: Vec<u64> = (0..LANE_BITS).map(|i| self.lanes[i] ^ multiply(&self.registers, repair[i])).collect();
        let e: Vec<u64> = at.iter().map(|x| (x & lane_mask) >> na).collect();
        let s: Vec<u64> = at.iter().map(|x| x & reg_mask).collect();
        let from_lane = Echelon::new(&e);
        // Lanes that read one word must want one register.
        if from_lane.kernel().iter().any(|&v| multiply(&s, v) != 0) {
            return None;
        }
        let p = from_lane.section(LANE_BITS);
        // The sender's register as a function of its thread index: S P m, and what its warp adds.
        let mut sender: Vec<u64> = (0..LANE_BITS).map(|i| multiply(&s, p[i])).collect();
        for &w in &self.warps {
            let shift = multiply(&p, (w & lane_mask) >> na);
            sender.push((w & reg_mask) ^ multiply(&s, shift));
        }
        let mut receiver = repair.clone();
        receiver.resize(LANE_BITS + self.warps.len(), 0);
        let mut from: Vec<usize> = e.iter().map(|&x| x as usize).collect();
        from.extend(self.warps.iter().map(|w| ((w & lane_mask) >> na) as usize));

        let word = span(&word);
        // Odd digits of a target register select rounds; those the target ignores are replicas.
        let used: Vec<usize> = self.odd.iter().flatten().copied().collect();
        let odds = odd_values(self.target, |i| used.contains(&i));
        let unused = odd_values(self.target, |i| !used.contains(&i));
        let mut plan = ShufflePlan { rounds: Vec::new(), copies: Vec::new() };
        for odd in &odds {
            for k in span(&rounds_by) {
                let image = multiply(&self.registers, k);
                let lane_shift = (image & lane_mask) >> na;
                // l = P(m + c k), so the sender's constant has S P c k in it as well.
                let constant = (image & reg_mask) ^ multiply(&s, multiply(&p, lane_shift));
                let source_odd: Vec<usize> = self.odd.iter().map(|d| d.map_or(0, |i| odd[i])).collect();
                let send = word.iter().map(|&v| {
                    let c = constant ^ (multiply(&self.registers, v) & reg_mask);
                    choice(self.source, &sender, c, &source_odd)
                });
                let receive = word.iter().map(|&v| choice(self.target, &receiver, k ^ v, odd));
                plan.rounds.push(ShuffleRound {
                    send: send.collect(),
                    from: LaneMap { base: lane_shift as usize, columns: from.clone() },
                    receive: receive.collect(),
                });
                for v in &word {
                    for z in span(&replicas) {
                        for u in &unused {
                            if z == 0 && u.iter().all(|&x| x == 0) {
                                continue;
                            }
                            let sum: Vec<usize> = odd.iter().zip(u).map(|(a, b)| a + b).collect();
                            plan.copies
                                .push((register(self.target, k ^ v ^ z, &sum), register(self.target, k ^ v, odd)));
                        }
                    }
                }
            }
        }
        Some(plan)
    }

    /// Columns of `D` by lane bit: the register vector to add so that reading lanes do not collide.
    fn repair(&self, lane_mask: u64) -> Option<Vec<u64>> {
        let n = self.registers.len();
        let d: Vec<u64> = self.lanes.iter().map(|x| x & lane_mask).collect();
        let kernel = Echelon::new(&d);
        if kernel.kernel().is_empty() {
            return Some(vec![0; LANE_BITS]);
        }
        // Kernel vectors v that some register vector u cancels altogether, M(u, v) = 0, may collide: all want one word.
        let mut columns = self.registers.clone();
        columns.extend(kernel.kernel().iter().map(|&v| multiply(&self.lanes, v)));
        let with_registers = Echelon::new(&columns);
        let reg_mask = (1u64 << n) - 1;
        let mut vectors: Vec<(u64, u64)> = Vec::new();
        for &combo in with_registers.kernel() {
            let v = multiply(kernel.kernel(), combo >> n);
            if v != 0 {
                vectors.push((v, combo & reg_mask));
            }
        }
        // The others each need a direction of their own.
        let mut image = d.clone();
        for (i, &v) in kernel.kernel().iter().enumerate() {
            if with_registers.free() >> (n + i) & 1 == 1 {
                continue;
            }
            let u = (0..n).find(|&j| {
                let direction = self.registers[j] & lane_mask;
                direction != 0 && Echelon::new(&image).solve(direction).is_none()
            })?;
            image.push(self.registers[u] & lane_mask);
            vectors.push((v, 1 << u));
        }
        // D is zero on the pivots of d; with the kernel vectors they are a basis of lane space.
        let mut basis = vectors.clone();
        basis.extend((0..LANE_BITS).filter(|i| kernel.free() >> i & 1 == 0).map(|i| (1u64 << i, 0)));
        let lanes = Echelon::new(&basis.iter().map(|b| b.0).collect::<Vec<_>>());
        let values: Vec<u64> = basis.iter().map(|b| b.1).collect();
        (0..LANE_BITS).map(|i| Some(multiply(&values, lanes.solve(1 << i)?))).collect()
    }
}

fn register_bits(space: &Space) -> usize {
    debug_assert!(space.dims().iter().map(|d| d.name()).eq([REGISTER, LANE, WARP_DIM]));
    space.bits().iter().filter(|d| d.dim == 0).count()
}

/// All sums of `basis`.
fn span(basis: &[u64]) -> Vec<u64> {
    let mut out = vec![0];
    for &b in basis {
        for i in 0..out.len() {
            out.push(out[i] ^ b);
        }
    }
    out
}

/// All values of the odd register digits that `keep` selects, the other digits zero.
fn odd_values(space: &Space, keep: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
    let mut out = vec![vec![0; space.odds().len()]];
    for (i, d) in space.odds().iter().enumerate() {
        if d.dim == 0 && keep(i) {
            for j in 0..out.len() {
                for v in 1..d.radix {
                    let mut next = out[j].clone();
                    next[i] = v;
                    out.push(next);
                }
            }
        }
    }
    out
}

/// The register with the given bits and odd digits; digits of lane and warp are left out.
fn register(space: &Space, bits: u64, odds: &[usize]) -> usize {
    let mask = (1u64 << register_bits(space)) - 1;
    space.join(bits & mask, odds.iter().copied())[0]
}

/// Register bits `constant` plus the `columns` of the thread's bits, with odd digits `odds`.
fn choice(space: &Space, columns: &[u64], constant: u64, odds: &[usize]) -> RegisterChoice {
    // A basis of the columns' span tells how many parities matter; the coordinate of each is one parity.
    let echelon = Echelon::new(columns);
    let pivots: Vec<usize> = (0..columns.len()).filter(|i| echelon.free() >> i & 1 == 0).collect();
    let coordinates: Vec<u64> = columns.iter().map(|&c| echelon.solve(c).unwrap_or(0)).collect();
    let parities = pivots.iter().map(|&p| {
        coordinates.iter().enumerate().fold(0usize, |m, (i, c)| if c >> p & 1 == 1 { m | 1 << i } else { m })
    });
    let values: Vec<u64> = span(&pivots.iter().map(|&p| columns[p]).collect::<Vec<_>>());
    RegisterChoice {
        parities: parities.collect(),
        registers: values.iter().map(|v| register(space, constant ^ v, odds)).collect(),
    }
}
