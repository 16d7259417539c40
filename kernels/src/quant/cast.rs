//! Casts to e4m3 and packed e2m1 with a scale factor per group of a row (per token), per square block, or per group of a
//! column (per channel); plain, transposed, and from gathered or already quantised rows.

use super::scale::{
    Code, PackedScales, PerGroup, Place, ScaleLayout, Scaling, Sharing, divide, given, load_scales, scales,
    store_packed, store_scales,
};
use crate::choice::choices;
use zellige::prelude::*;

choices! {
    /// What a cast writes.
    CastMode {
        /// Codes and scale factors.
        Full,
        /// Scale factors only.
        ScalesOnly,
        /// Codes only, under the scale factors given in `sf`.
        GivenScales,
    }
}

/// Which elements share a scale factor, how it is computed and laid out, and the tile sizes.
///
/// Exactly one of `block_rows` and `block_cols` may be 1. Per token is `1 x group`, per channel `group x 1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = block_rows > 0 && !(block_rows == 1 && block_cols == 1))]
#[tune(constraint = layout == ScaleLayout::RowMajor || block_rows == 1)]
#[tune(constraint = layout != ScaleLayout::Packed || (ue8m0 && mode != CastMode::GivenScales))]
#[tune(constraint = block_cols == 1 || block_cols.is_multiple_of(2))]
#[tune(constraint = block_cols <= bn || block_cols.is_multiple_of(bn))]
#[tune(constraint = bm.is_multiple_of(4) && bn.is_multiple_of(2))]
pub struct CastConfig {
    /// Rows that share a scale factor.
    pub block_rows: usize,
    /// Columns that share a scale factor; 0 for the whole row.
    pub block_cols: usize,
    /// Round scale factors up to a power of two.
    pub ue8m0: bool,
    /// Multiply by `max / amax` instead of dividing by the scale factor.
    pub reciprocal: bool,
    pub layout: ScaleLayout,
    pub mode: CastMode,
    /// Columns that share a scale factor of the input; 0 if the input is not quantised.
    pub input_group: usize,
    /// Rows of the input are chosen by `pos_to_token`.
    pub gathered: bool,
    /// Rows of a tile, where a scale factor belongs to one row.
    #[tune(8, 16, 32, 64)]
    pub bm: usize,
    /// Columns of a tile, where a scale factor belongs to one column or a long row.
    #[tune(128, 256, 512, 1024)]
    pub bn: usize,
    /// Groups of columns that a block handles, at most; [`ScaleLayout::Packed`] takes four, for whole words.
    #[tune(1, 2, 4)]
    pub steps: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for CastConfig {
    /// Per token in groups of 128 with f32 scale factors.
    fn default() -> CastConfig {
        CastConfig::per_token(128)
    }
}

impl CastConfig {
    /// Per token in groups of so many elements, or whole rows if 0, with f32 scale factors: few elements of each thread, so that many
    /// threads are there to wait for memory.
    pub fn per_token(group: usize) -> CastConfig {
        CastConfig {
            block_rows: 1,
            block_cols: group,
            ue8m0: false,
            reciprocal: false,
            layout: ScaleLayout::RowMajor,
            mode: CastMode::Full,
            input_group: 0,
            gathered: false,
            bm: 1024usize.checked_div(group).map_or(32, |rows| (rows / 4 * 4).clamp(8, 64)),
            bn: 512,
            steps: 1,
            threads: 128,
        }
    }

    fn scaling(&self) -> Scaling {
        Scaling::new(self.ue8m0, self.reciprocal)
    }

    fn sharing(&self) -> Sharing {
        match (self.block_rows, self.block_cols) {
            (1, _) => Sharing::Row,
            (_, 1) => Sharing::Column,
            (_, _) => Sharing::Tile,
        }
    }

    /// Columns that share a scale factor in a matrix of `cols` columns.
    pub fn group(&self, cols: usize) -> usize {
        match self.block_cols {
            0 => cols.max(1),
            group => group,
        }
    }

    /// Extents of a tile, and over how many of them a scale factor stretches.
    pub fn tile(&self, cols: usize) -> ([usize; 2], usize) {
        let group = self.group(cols);
        match self.sharing() {
            Sharing::Row if group > self.bn => ([self.bm, self.bn], group.div_ceil(self.bn)),
            Sharing::Row => ([self.bm, group.next_multiple_of(2)], 1),
            Sharing::Column => ([self.block_rows, self.bn], 1),
            Sharing::Tile => ([self.block_rows, group], 1),
        }
    }
}

/// Groups in a word of packed exponents.
pub const PACKED_STEPS: usize = 4;

/// Casts an `m` x `cols` matrix that `load` reads tile by tile, in f32, from a row and column on. `store` writes the scaled
/// elements of a tile. `floor` is the smallest amax. Declares the grid.
#[tile]
pub fn cast_tiles<Q: Code, S: Element>(
    t: T,
    (m, cols): (Idx, usize),
    load: impl Fn(Idx, Idx, Fragment<f32, 2>),
    store: impl Fn(Idx, Idx, Fragment<f32, 2>),
    sf: &Tensor<S, 2>,
    floor: Expr<f32>,
    cfg: CastConfig,
) {
    let ([rows, width], pieces) = cfg.tile(cols);
    let groups = cols.div_ceil(width * pieces);
    let steps = if cfg.layout == ScaleLayout::Packed { PACKED_STEPS } else { cfg.steps };
    let steps = steps.min(groups.max(1));
    let [bx, by] = t.grid((groups.div_ceil(steps), m.ceil_div(rows)), cfg.threads);
    let x = t.fragment::<f32, 2>([rows, width]);
    let amax = PerGroup::new(t, cfg.sharing(), [rows, width]);
    let words = PackedScales::new(t, rows);
    let cast_group = |step: Idx, byte: Option<usize>| {
        let (row, group) = (by * rows, bx * steps + step);
        let col = group * (width * pieces);
        let place = Place { row, col, group_row: by, group_col: group, rows: m };
        let scales = if cfg.mode == CastMode::GivenScales {
            load_scales(t, amax, sf, cfg.layout, place);
            given(t, amax)
        } else {
            if pieces == 1 {
                load(row, col, x);
                amax.absmax(t, x);
            } else {
                amax.clear(t);
                for piece in t.serial(pieces) {
                    load(row, col + piece * width, x);
                    amax.absmax_into(t, x);
                }
            }
            scales::<Q>(t, amax, floor, cfg.scaling())
        };
        match (cfg.mode, byte) {
            (CastMode::GivenScales, _) => {}
            (_, Some(byte)) => words.put(t, scales.factor, byte, group < groups),
            (_, None) => store_scales(t, scales.factor, sf, cfg.layout, place),
        }
        if cfg.mode != CastMode::ScalesOnly {
            for piece in t.serial(pieces) {
                if cfg.mode == CastMode::GivenScales || pieces > 1 {
                    load(row, col + piece * width, x);
                }
                divide(t, x, &scales);
                store(row, col + piece * width, x);
            }
        }
    };
    if cfg.layout == ScaleLayout::Packed {
        // A group's place in the word is part of the code.
        for byte in 0..steps {
            cast_group(byte.into(), Some(byte));
        }
        store_packed(t, words, sf, bx, by * rows, m);
    } else {
        for step in t.serial(steps) {
            cast_group(step, None);
        }
    }
}

/// Casts `x` [m, k] to `codes` [m, k] with scale factors `sf` as [`CastConfig`] says.
#[kernel(static_dims(k))]
pub fn quant_cast<X: Element, Q: Code, S: Element>(
    t: T,
    #[strided]
    #[dims(m, k)]
    x: &Tensor<X, 2>,
    #[dims(m, k)] codes: &mut Tensor<Q, 2>,
    #[dims(sf_rows, sf_cols)] sf: &mut Tensor<S, 2>,
    #[comptime] cfg: CastConfig,
) {
    let load = |row: Idx, col: Idx, tile: Fragment<f32, 2>| t.cast(x.at((row, col)), tile);
    let store = |row: Idx, col: Idx, tile: Fragment<f32, 2>| t.cast(tile, codes.at((row, col)));
    cast_tiles::<Q, S>(t, (x.dim(0), x.static_dim(1)), load, store, sf, lit(Q::AMAX_FLOOR), cfg);
}

/// Casts `x` [m, k] to `codes` [k, m], transposed, with scale factors `sf` of the untransposed matrix.
#[kernel(static_dims(k))]
pub fn quant_cast_transposed<X: Element, Q: Code, S: Element>(
    t: T,
    #[strided]
    #[dims(m, k)]
    x: &Tensor<X, 2>,
    #[dims(k, m)] codes: &mut Tensor<Q, 2>,
    #[dims(sf_rows, sf_cols)] sf: &mut Tensor<S, 2>,
    #[comptime] cfg: CastConfig,
) {
    let load = |row: Idx, col: Idx, tile: Fragment<f32, 2>| t.cast(x.at((row, col)), tile);
    let store = |row: Idx, col: Idx, tile: Fragment<f32, 2>| t.cast(tile.t(), codes.at((col, row)));
    cast_tiles::<Q, S>(t, (x.dim(0), x.static_dim(1)), load, store, sf, lit(Q::AMAX_FLOOR), cfg);
}

/// Casts rows of `x` [tokens, k] to `codes` [m, k]. With `cfg.gathered` row `p` is row `pos_to_token[p]` of `x`, zeros where
/// that is negative, else row `p`. With `cfg.input_group` elements of `x` are first multiplied by the scale factors
/// `input_sf` [tokens, ceil(k / input_group)], in f32 and without rounding to a narrower type.
#[kernel(static_dims(k))]
pub fn requant_cast<X: Element, Q: Code, S: Element>(
    t: T,
    #[strided]
    #[dims(tokens, k)]
    x: &Tensor<X, 2>,
    #[dims(input_rows, input_groups)] input_sf: &Tensor<f32, 2>,
    #[dims(positions)] pos_to_token: &Tensor<i32, 1>,
    #[dims(m, k)] codes: &mut Tensor<Q, 2>,
    #[dims(sf_rows, sf_cols)] sf: &mut Tensor<S, 2>,
    #[comptime] cfg: CastConfig,
) {
    let cols = x.static_dim(1);
    let ([rows, width], _) = cfg.tile(cols);
    let load = |row: Idx, col: Idx, tile: Fragment<f32, 2>| {
        // Every thread looks up its own rows: nobody waits for anybody.
        let (source, factor) = (t.fragment::<i32, 1>([rows]), t.fragment::<f32, 1>([rows]));
        // Where a row of the tile lies in one group of the input, its factor is read once.
        let per_row = cfg.input_group > 0 && cfg.input_group.is_multiple_of(width);
        for i in t.parallel(rows) {
            let p = row + i;
            let token = if cfg.gathered { select(p < codes.dim(0), pos_to_token[p], -1) } else { p.cast::<i32>() };
            source[i] = token;
            if per_row {
                factor[i] = input_sf[(token.to_index(), col / cfg.input_group)];
            }
        }
        for (i, j) in t.parallel((rows, width)) {
            // No row has a negative number: its elements read as zero.
            let token = source[i].to_index();
            let v = x[(token, col + j)].cast::<f32>();
            tile[(i, j)] = match cfg.input_group {
                0 => v,
                _ if per_row => v * factor[i],
                group => v * input_sf[(token, (col + j) / group)],
            };
        }
    };
    let store = |row: Idx, col: Idx, tile: Fragment<f32, 2>| t.cast(tile, codes.at((row, col)));
    cast_tiles::<Q, S>(t, (codes.dim(0), cols), load, store, sf, lit(Q::AMAX_FLOOR), cfg);
}
