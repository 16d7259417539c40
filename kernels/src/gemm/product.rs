//! What the block-scaled and grouped products share: the loop over the inner extent, with two levels of accumulation
//! where the operands carry scale factors.
//!
//! A kernel says where its tiles lie; the order in which the products of an element are added depends on the config alone,
//! so the bits of a row do not depend on the rows around it.

use zellige::At;
use zellige::prelude::*;

/// Tile sizes of a product, and which elements of its operands share a scale factor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = bm * bn <= 128 * 256)]
#[tune(constraint = a_group > 0 && b_rows > 0 && b_group > 0)]
#[tune(constraint = !scaled || a_group.is_multiple_of(b_group) || b_group.is_multiple_of(a_group))]
#[tune(constraint = !scaled || (bk.is_multiple_of(a_group.min(b_group))))]
pub struct ProductConfig {
    /// Rows of a tile. Where rows are grouped it divides the alignment of the groups.
    #[tune(16, 32, 64, 128)]
    pub bm: usize,
    #[tune(64, 128, 256)]
    pub bn: usize,
    #[tune(64, 128, 256)]
    pub bk: usize,
    #[tune(2..=8)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// The operands have scale factors; otherwise `a_sf` and `b_sf` are not read and may have any extents.
    pub scaled: bool,
    /// Columns of `a` that share a scale factor.
    pub a_group: usize,
    /// Rows of `b` that share a scale factor.
    pub b_rows: usize,
    /// Columns of `b` that share a scale factor.
    pub b_group: usize,
    /// The scale factors of `a` lie as `[groups, rows rounded up to 4]`; otherwise as `[rows, groups]`.
    pub column_major: bool,
    /// The rows of `b` are those of the matrix units' tiles, of which there must be 64 for a warpgroup, and the rows of `a` their
    /// columns: few of these are worth a tile then.
    pub turned: bool,
    /// Rows that belong to no group are written as zeros; otherwise they hold nothing in particular. Not for dense products.
    pub zero_padding: bool,
}

impl Default for ProductConfig {
    /// FP8: `a` in groups of 1 x 128, `b` in blocks of 128 x 128.
    fn default() -> ProductConfig {
        ProductConfig {
            bm: 128,
            bn: 128,
            bk: 256,
            stages: 3,
            threads: 256,
            scaled: true,
            a_group: 128,
            b_rows: 128,
            b_group: 128,
            column_major: false,
            turned: false,
            zero_padding: false,
        }
    }
}

impl ProductConfig {
    /// Operands without scale factors.
    pub fn unscaled() -> ProductConfig {
        ProductConfig { bn: 256, bk: 64, stages: 4, scaled: false, ..ProductConfig::default() }
    }

    /// `b` in MXFP4: groups of 1 x 32.
    pub fn mxfp4() -> ProductConfig {
        ProductConfig { bk: 128, stages: 4, b_rows: 1, b_group: 32, turned: true, ..ProductConfig::default() }
    }
}

/// Registers of a thread for sums: of two warpgroups, and of three.
const SUMS: [usize; 2] = [192, 96];

/// An element type of `b`, and the type that it is multiplied as: each value is exact in it.
pub trait Weight: Element {
    type Wide: Element;
}

impl Weight for bf16 {
    type Wide = bf16;
}

impl Weight for f8e4m3 {
    type Wide = f8e4m3;
}

impl Weight for f4e2m1 {
    type Wide = f8e4m3;
}

/// A tile of `A B^T`, `cfg.bm` x `cfg.bn`, over an inner extent of `k`. `a` and `b` are the places of the operands' tiles that
/// start at a column; `a_sf` and `b_sf` give the scale factor of a row of the tile and a group of columns.
///
/// Scaled operands: the products of as many columns as share both scale factors (128, or 32 for MXFP4) are summed by the
/// matrix units, and that sum times the product of the factors is added to the result by a fused multiply-add in f32.
#[tile]
pub fn multiply<A: Element, B: Weight, S: Element, const NA: usize, const NB: usize>(
    t: T,
    k: Idx,
    a: impl Fn(Idx) -> At<A, NA>,
    b: impl Fn(Idx) -> At<B, NB>,
    a_sf: impl Fn(Idx, Idx) -> Expr<f32>,
    b_sf: impl Fn(Idx, Idx) -> Expr<S>,
    cfg: ProductConfig,
) -> Fragment<f32, 2> {
    let ProductConfig { bm, bn, bk, a_group, b_group, .. } = cfg;
    let (a_s, b_s) = (t.shared::<A, 2>([bm, bk]), t.shared::<B::Wide, 2>([bn, bk]));
    // Narrow elements travel as they are, and are widened where they are multiplied.
    let narrow = (B::DTYPE != B::Wide::DTYPE).then(|| t.shared::<B, 2>([bn, bk]));
    let acc = t.fragment::<f32, 2>([bm, bn]);
    t.clear(acc);
    let step = a_group.min(b_group);
    let steps = if cfg.scaled { bk / step } else { 0 };
    // Two sums take turns, so that the next one can begin while one is promoted.
    let part: Vec<_> = (0..steps.min(2)).map(|_| t.fragment::<f32, 2>([bm, bn])).collect();
    // Factors are fetched ahead and converted when they are wanted, so that no product waits for them: by a step, or by a tile
    // where columns have their own. Behind the last column there are none, which reads as zero.
    let (of_a, scale) = (t.fragment::<f32, 1>([bm]), t.fragment::<f32, 1>([bm]));
    let of_tile = t.local::<S, 1>([1]);
    let columns = (cfg.scaled && !cfg.b_rows.is_multiple_of(bn))
        .then(|| (t.fragment::<S, 2>([bn, steps]), t.shared::<f32, 2>([steps, bn])));
    // The factors from a column on, which is `from` columns behind a multiple of `bk`.
    let fetch = |column: Idx, from: usize| {
        let begins = |group: usize| !bk.is_multiple_of(group) || from.is_multiple_of(group);
        if begins(a_group) {
            for i in t.parallel(bm) {
                of_a[i] = a_sf(i, column / a_group);
            }
        }
        if columns.is_none() && begins(b_group) {
            of_tile[0] = b_sf(Idx::from(0usize), column / b_group);
        }
    };
    let fetch_columns = |next: Fragment<S, 2>, depth: Idx| {
        for (j, s) in t.parallel((bn, steps)) {
            next[(j, s)] = b_sf(j, depth / b_group + s * step / b_group);
        }
    };
    if cfg.scaled {
        fetch(Idx::from(0usize), 0);
    }
    if let Some((next, _)) = columns {
        fetch_columns(next, Idx::from(0usize));
    }
    for ko in t.pipelined(k.ceil_div(bk), cfg.stages) {
        let depth = ko * bk;
        t.copy(a(depth), a_s);
        match narrow {
            Some(narrow) => {
                t.copy(b(depth), narrow);
                t.cast(narrow, b_s);
            }
            None => t.cast(b(depth), b_s),
        }
        if !cfg.scaled {
            t.gemm(a_s, b_s.t(), acc);
        }
        if let Some((next, of_b)) = columns {
            for (j, s) in t.parallel((bn, steps)) {
                of_b[(s, j)] = next[(j, s)].cast::<f32>();
            }
            fetch_columns(next, depth + bk);
        }
        for s in 0..steps {
            let (part, column) = (part[s % part.len()], depth + s * step);
            let (left, right) = (a_s.sub((0, s * step), [bm, step]), b_s.sub((0, s * step), [bn, step]));
            t.gemm_with(left, right.t(), part, Gemm { clear: true, ..Gemm::default() });
            for i in t.parallel(bm) {
                scale[i] = if columns.is_some() { of_a[i] } else { of_a[i] * of_tile[0].cast::<f32>() };
            }
            fetch(column + step, (s + 1) * step);
            for (i, j) in t.parallel((bm, bn)) {
                let scale = columns.map_or(scale[i], |(_, of_b)| scale[i] * of_b[(s, j)]);
                acc[(i, j)] = part[(i, j)].mul_add(scale, acc[(i, j)]);
            }
        }
    }
    acc
}

/// As [`multiply`], of `B A^T`: `cfg.bn` x `cfg.bm`. Sums of narrow groups of `b` times their factors are added up as far as columns
/// share a factor of `a`, and then multiplied by that.
#[tile]
pub fn multiply_turned<A: Element, B: Weight, S: Element, const NA: usize, const NB: usize>(
    t: T,
    k: Idx,
    a: impl Fn(Idx) -> At<A, NA>,
    b: impl Fn(Idx) -> At<B, NB>,
    a_sf: impl Fn(Idx, Idx) -> Expr<f32>,
    b_sf: impl Fn(Idx, Idx) -> Expr<S>,
    cfg: ProductConfig,
) -> Fragment<f32, 2> {
    let ProductConfig { bm, bn, bk, a_group, b_group, .. } = cfg;
    let (a_s, b_s) = (t.shared::<A, 2>([bm, bk]), t.shared::<B::Wide, 2>([bn, bk]));
    let narrow = (B::DTYPE != B::Wide::DTYPE).then(|| t.shared::<B, 2>([bn, bk]));
    let acc = t.fragment::<f32, 2>([bn, bm]);
    t.clear(acc);
    let step = a_group.min(b_group);
    let steps = if cfg.scaled { bk / step } else { 0 };
    let wide = if bk.is_multiple_of(a_group) { a_group } else { bk };
    // As many sums under way as there are registers for, beside their total and the result.
    let registers = SUMS[usize::from(cfg.threads > 256)];
    let turns = (registers / (bm * bn / cfg.threads).max(1)).saturating_sub(1 + usize::from(wide > step)).clamp(1, 4);
    let part: Vec<_> = (0..steps.min(turns)).map(|_| t.fragment::<f32, 2>([bn, bm])).collect();
    let sum = (wide > step).then(|| t.fragment::<f32, 2>([bn, bm]));
    // Factors are fetched a tile ahead. Behind the last column there are none, which reads as zero.
    let factors = cfg.scaled.then(|| {
        let (groups_a, groups_b) = (bk / wide, bk.div_ceil(b_group));
        let next = (t.fragment::<f32, 2>([bm, groups_a]), t.fragment::<S, 2>([bn, groups_b]));
        (next, t.shared::<f32, 2>([groups_a, bm]), t.shared::<f32, 2>([groups_b, bn]))
    });
    let fetch = |depth: Idx| {
        if let Some(((next_a, next_b), of_a, of_b)) = factors {
            for (i, g) in t.parallel((bm, of_a.shape()[0])) {
                next_a[(i, g)] = a_sf(i, (depth + g * wide) / a_group);
            }
            for (j, g) in t.parallel((bn, of_b.shape()[0])) {
                next_b[(j, g)] = b_sf(j, depth / b_group + g);
            }
        }
    };
    fetch(Idx::from(0usize));
    for ko in t.pipelined(k.ceil_div(bk), cfg.stages) {
        let depth = ko * bk;
        t.copy(a(depth), a_s);
        if let Some(((next_a, next_b), of_a, of_b)) = factors {
            for (i, g) in t.parallel((bm, of_a.shape()[0])) {
                of_a[(g, i)] = next_a[(i, g)];
            }
            for (j, g) in t.parallel((bn, of_b.shape()[0])) {
                of_b[(g, j)] = next_b[(j, g)].cast::<f32>();
            }
            // Early: the fence before the products waits for them.
            fetch(depth + bk);
        }
        match narrow {
            Some(narrow) => {
                t.copy(b(depth), narrow);
                t.cast(narrow, b_s);
            }
            None => t.cast(b(depth), b_s),
        }
        if !cfg.scaled {
            t.gemm(b_s, a_s.t(), acc);
        }
        if let Some((_, of_a, of_b)) = factors {
            for s in 0..steps {
                let part = part[s % part.len()];
                let (left, right) = (b_s.sub((0, s * step), [bn, step]), a_s.sub((0, s * step), [bm, step]));
                t.gemm_with(left, right.t(), part, Gemm { clear: true, ..Gemm::default() });
                let (first, last) = (s * step % wide == 0, (s + 1) * step % wide == 0);
                for (j, i) in t.parallel((bn, bm)) {
                    let (of_b, of_a) = (of_b[(s * step / b_group, j)], of_a[(s * step / wide, i)]);
                    match sum {
                        None => acc[(j, i)] = part[(j, i)].mul_add(of_b * of_a, acc[(j, i)]),
                        Some(sum) => {
                            let all = if first { part[(j, i)] * of_b } else { part[(j, i)].mul_add(of_b, sum[(j, i)]) };
                            if last {
                                acc[(j, i)] = all.mul_add(of_a, acc[(j, i)]);
                            } else {
                                sum[(j, i)] = all;
                            }
                        }
                    }
                }
            }
        }
    }
    acc
}
