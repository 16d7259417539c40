//! What the casts share: which elements have a scale factor in common, how it is computed, how it lies in memory.
//!
//! For a group of elements with largest magnitude `amax` (floored, so that zeros have a scale factor) and a format with
//! largest value `max`: `s = amax / max`, or the power of two at or above it; a code is
//! `nearest_even(clamp(x / s, -max, max))`. NaN and infinite elements are outside the contract: nothing is promised for
//! their group. The sign of zero is kept.

use crate::choice::choices;
use zellige::prelude::*;

choices! {
    /// How the scale factors of a row-wise cast lie in memory. Those of blocks and channels are always row-major.
    ScaleLayout {
        /// `[rows, groups]`, as f32 or e8m0.
        RowMajor,
        /// `[groups, rows rounded up to 4]`, as f32 or e8m0: what TMA wants. Padding is zero.
        ColumnMajor,
        /// `[ceil(groups / 4), rows rounded up to 4]` of i32: the exponents of four consecutive groups, the first in the
        /// lowest byte. Padding is zero.
        Packed,
    }
}

/// A format that elements are cast to.
pub trait Code: Element {
    /// Largest finite value.
    const MAX: f32;
    /// The usual floor on amax.
    const AMAX_FLOOR: f32;
}

impl Code for f8e4m3 {
    const MAX: f32 = 448.0;
    const AMAX_FLOOR: f32 = 1e-4;
}

impl Code for f4e2m1 {
    const MAX: f32 = 6.0;
    const AMAX_FLOOR: f32 = 6.0 * f32::MIN_POSITIVE;
}

/// How scale factors are rounded and used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scaling {
    /// `s = amax / max`, elements are divided by it.
    Divide,
    /// `s = amax / max`, elements are multiplied by `max / amax`. May differ from `Divide` in the last bit.
    Reciprocal,
    /// `s` is rounded up to a power of two (UE8M0): the two ways agree.
    PowerOfTwo,
}

impl Scaling {
    /// From the two switches that configs have.
    pub fn new(ue8m0: bool, reciprocal: bool) -> Scaling {
        match (ue8m0, reciprocal) {
            (true, _) => Scaling::PowerOfTwo,
            (false, true) => Scaling::Reciprocal,
            (false, false) => Scaling::Divide,
        }
    }
}

/// Which elements of a tile share a scale factor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// Each row has one.
    Row,
    /// Each column has one.
    Column,
    /// The whole tile has one.
    Tile,
}

/// A number for each group of elements that share a scale factor.
#[derive(Clone, Copy, Debug)]
pub enum PerGroup {
    Rows(Fragment<f32, 1>),
    /// In memory: rows of a column lie in several warps, and what all find out about it need not be computed by each.
    Columns(Shared<f32, 1>),
    Tile(Fragment<f32, 0>),
}

impl PerGroup {
    /// For a tile of that shape; contents undefined.
    #[track_caller]
    pub fn new(t: T, sharing: Sharing, [rows, cols]: [usize; 2]) -> PerGroup {
        match sharing {
            Sharing::Row => PerGroup::Rows(t.fragment([rows])),
            Sharing::Column => PerGroup::Columns(t.shared([cols])),
            Sharing::Tile => PerGroup::Tile(t.fragment([])),
        }
    }

    fn like(self, t: T) -> PerGroup {
        match self {
            PerGroup::Rows(v) => PerGroup::Rows(t.fragment(v.shape())),
            PerGroup::Columns(v) => PerGroup::Columns(t.shared(v.shape())),
            PerGroup::Tile(_) => PerGroup::Tile(t.fragment([])),
        }
    }

    /// The number that element `(i, j)` shares.
    #[track_caller]
    pub fn at(self, i: Idx, j: Idx) -> Expr<f32> {
        match self {
            PerGroup::Rows(v) => v[i],
            PerGroup::Columns(v) => v[j],
            PerGroup::Tile(v) => v[[]],
        }
    }

    /// Sets all to zero.
    #[track_caller]
    pub fn clear(self, t: T) {
        match self {
            PerGroup::Rows(v) => t.clear(v),
            PerGroup::Columns(v) => t.clear(v),
            PerGroup::Tile(v) => t.clear(v),
        }
    }

    /// `max |x|` over the elements of each group.
    #[track_caller]
    pub fn absmax(self, t: T, x: Fragment<f32, 2>) {
        match self {
            PerGroup::Rows(v) => t.reduce_absmax(x, v, 1),
            PerGroup::Columns(v) => t.reduce_absmax(x, v, 0),
            PerGroup::Tile(v) => {
                let [_, cols] = x.shape();
                let columns = t.fragment::<f32, 1>([cols]);
                t.reduce_absmax(x, columns, 0);
                t.reduce_absmax(columns, v, 0);
            }
        }
    }

    /// `max(self, |x|)` over the elements of each group.
    #[track_caller]
    pub fn absmax_into(self, t: T, x: Fragment<f32, 2>) {
        match self {
            PerGroup::Rows(v) => t.reduce_absmax_into(x, v, 1),
            PerGroup::Columns(v) => t.reduce_absmax_into(x, v, 0),
            PerGroup::Tile(v) => {
                let [_, cols] = x.shape();
                let columns = t.fragment::<f32, 1>([cols]);
                t.reduce_absmax(x, columns, 0);
                t.reduce_absmax_into(columns, v, 0);
            }
        }
    }

    /// `f` of each number.
    #[track_caller]
    pub fn map(self, t: T, f: impl Fn(Expr<f32>) -> Expr<f32>) -> PerGroup {
        let out = self.like(t);
        match (self, out) {
            (PerGroup::Rows(x), PerGroup::Rows(y)) => {
                for i in t.parallel(x.shape()[0]) {
                    y.store(i, f(x[i]));
                }
            }
            (PerGroup::Columns(x), PerGroup::Columns(y)) => {
                for j in t.parallel(x.shape()[0]) {
                    y.store(j, f(x[j]));
                }
            }
            (PerGroup::Tile(x), PerGroup::Tile(y)) => y.store([], f(x[[]])),
            (PerGroup::Rows(_) | PerGroup::Columns(_) | PerGroup::Tile(_), _) => unreachable!("`like` keeps the kind"),
        }
        out
    }
}

/// The scale factors of groups with these largest magnitudes, and what [`divide`] needs.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// What is stored beside the codes.
    pub factor: PerGroup,
    /// Elements are divided by it, or multiplied if `multiply`.
    by: PerGroup,
    multiply: bool,
}

/// Scale factors for codes of type `Q` from the largest magnitudes of the groups.
#[track_caller]
pub fn scales<Q: Code>(t: T, amax: PerGroup, floor: Expr<f32>, scaling: Scaling) -> Scales {
    let floored = amax.map(t, |a| a.max(floor));
    match scaling {
        Scaling::Divide => {
            let factor = floored.map(t, |a| a / Q::MAX);
            Scales { factor, by: factor, multiply: false }
        }
        Scaling::Reciprocal => Scales {
            factor: floored.map(t, |a| a / Q::MAX),
            by: floored.map(t, |a| lit::<f32>(Q::MAX) / a),
            multiply: true,
        },
        Scaling::PowerOfTwo => Scales {
            factor: floored.map(t, |a| power(power_exponent(a, Q::MAX))),
            by: floored.map(t, |a| power(254 - power_exponent(a, Q::MAX))),
            multiply: true,
        },
    }
}

/// Exponent, with a bias of 127, of the power of two at or above `amax / max`; at least that of the smallest normal number.
///
/// That is amax's exponent less max's, and one more where amax has the larger mantissa: the rounded quotient lies on the
/// same side of the power of two. A division would cost a branch for its special cases.
#[track_caller]
pub fn power_exponent(amax: Expr<f32>, max: f32) -> Expr<i32> {
    let (exponent, mantissa) = (max.to_bits() >> 23, max.to_bits() & 0x7f_ffff);
    (((amax.bitcast::<i32>() + (0x7f_ffff - mantissa as i32)) >> 23) - (exponent as i32 - 127)).max(1)
}

/// The power of two of an exponent with a bias of 127, of 1 to 254.
#[track_caller]
pub fn power(exponent: Expr<i32>) -> Expr<f32> {
    (exponent << 23).bitcast()
}

/// Scale factors that were computed elsewhere; elements are multiplied by their reciprocals.
#[track_caller]
pub fn given(t: T, factor: PerGroup) -> Scales {
    Scales { factor, by: factor.map(t, |s| s.recip()), multiply: true }
}

/// Brings the elements of a tile into the range of the codes.
#[track_caller]
pub fn divide(t: T, x: Fragment<f32, 2>, scales: &Scales) {
    let [rows, cols] = x.shape();
    // Each thread reads those of its columns once.
    let of_columns = match scales.by {
        PerGroup::Columns(v) => {
            let own = t.fragment::<f32, 1>([cols]);
            t.copy(v, own);
            Some(own)
        }
        PerGroup::Rows(_) | PerGroup::Tile(_) => None,
    };
    for (i, j) in t.parallel((rows, cols)) {
        let by = of_columns.map_or_else(|| scales.by.at(i, j), |own| own[j]);
        x.store((i, j), if scales.multiply { x[(i, j)] * by } else { x[(i, j)] / by });
    }
}

/// Where the scale factors of a tile lie in a tensor of them.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// First element row of the tile.
    pub row: Idx,
    /// First element column of the tile.
    pub col: Idx,
    /// Row of the tile among groups of rows.
    pub group_row: Idx,
    /// Column of the tile among groups of columns.
    pub group_col: Idx,
    /// Element rows in all.
    pub rows: Idx,
}

/// Stores the scale factors of a tile, of any layout but [`ScaleLayout::Packed`].
#[tile]
pub fn store_scales<S: Element>(t: T, scales: PerGroup, sf: &Tensor<S, 2>, layout: ScaleLayout, at: Place) {
    match (scales, layout) {
        (PerGroup::Rows(s), ScaleLayout::ColumnMajor) => {
            for i in t.parallel(s.shape()[0]) {
                let inside = at.row + i < at.rows;
                sf[(at.group_col, at.row + i)] = select(inside, s[i], 0.0).cast::<S>();
            }
        }
        (PerGroup::Rows(s), ScaleLayout::RowMajor | ScaleLayout::Packed) => {
            for i in t.parallel(s.shape()[0]) {
                sf[(at.row + i, at.group_col)] = s[i].cast::<S>();
            }
        }
        (PerGroup::Columns(s), _) => {
            for j in t.parallel(s.shape()[0]) {
                sf[(at.group_row, at.col + j)] = s[j].cast::<S>();
            }
        }
        (PerGroup::Tile(s), _) => sf[(at.group_row, at.group_col)] = s[[]].cast::<S>(),
    }
}

/// Reads the scale factors of a tile, of any layout but [`ScaleLayout::Packed`].
#[tile]
pub fn load_scales<S: Element>(t: T, scales: PerGroup, sf: &Tensor<S, 2>, layout: ScaleLayout, at: Place) {
    match (scales, layout) {
        (PerGroup::Rows(s), ScaleLayout::ColumnMajor) => {
            for i in t.parallel(s.shape()[0]) {
                s[i] = sf[(at.group_col, at.row + i)].cast::<f32>();
            }
        }
        (PerGroup::Rows(s), ScaleLayout::RowMajor | ScaleLayout::Packed) => {
            for i in t.parallel(s.shape()[0]) {
                s[i] = sf[(at.row + i, at.group_col)].cast::<f32>();
            }
        }
        (PerGroup::Columns(s), _) => {
            for j in t.parallel(s.shape()[0]) {
                s[j] = sf[(at.group_row, at.col + j)].cast::<f32>();
            }
        }
        (PerGroup::Tile(s), _) => s[[]] = sf[(at.group_row, at.group_col)].cast::<f32>(),
    }
}

/// Exponents of up to four consecutive groups of each row, being collected for [`ScaleLayout::Packed`].
#[derive(Clone, Copy, Debug)]
pub struct PackedScales(Fragment<i32, 1>);

impl PackedScales {
    #[track_caller]
    pub fn new(t: T, rows: usize) -> PackedScales {
        let words = t.fragment([rows]);
        t.clear(words);
        PackedScales(words)
    }

    /// Puts the exponents of scale factors, one for each row, into byte `j`, unless `inside` is false.
    #[track_caller]
    pub fn put(self, t: T, scales: PerGroup, j: usize, inside: Expr<bool>) {
        let PerGroup::Rows(s) = scales else { return };
        for i in t.parallel(s.shape()[0]) {
            let exponent = s[i].cast::<e8m0>().bitcast::<u8>().cast::<i32>() << (8 * j as i32);
            self.0.store(i, self.0[i] | select(inside, exponent, 0));
        }
    }
}

/// Stores a word of exponents for each row.
#[tile]
pub fn store_packed<S: Element>(t: T, words: PackedScales, sf: &Tensor<S, 2>, word: Idx, row: Idx, rows: Idx) {
    for i in t.parallel(words.0.shape()[0]) {
        sf[(word, row + i)] = select(row + i < rows, words.0[i], 0).cast::<S>();
    }
}
