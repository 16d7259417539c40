//! Which tiles suit a product: [`GemmConfig::for_shape`], [`ProductConfig::for_rows`].
//!
//! The figures are those of an H200 with 132 multiprocessors and 16-bit operands (`benches/gpu/gemm.py`); other devices take
//! the same tiles. With few rows a product reads its weight once and is done: what counts is that all multiprocessors have a
//! tile, and as little to fetch as possible. With many the matrix units are busy, and the tiles should leave none of them
//! idle in the last round.

use super::dense::GemmConfig;
use super::product::ProductConfig;

/// Multiprocessors that want a tile each.
pub(super) const MULTIPROCESSORS: usize = 132;

/// Shared memory of a block, less what barriers take.
const SHARED_BYTES: usize = 232_448 - 1024;

/// Most slots of a ring: more help no product.
const MAX_STAGES: usize = 16;

/// Rows up to which a product is bound by what it fetches.
pub(super) const FEW_ROWS: usize = 128;

/// Columns up to which all of them make one tile.
const FEW_COLUMNS: usize = 64;

impl GemmConfig {
    /// The config for an [m, k] by [k, n] product of 16-bit elements. The order in which the products of an element are added
    /// up follows from `n` and `k` alone, so that a row has the same bits whatever the other rows are.
    pub fn for_shape(m: usize, n: usize, k: usize) -> GemmConfig {
        let runs = runs(n, k);
        match m {
            _ if m <= FEW_ROWS && runs > 1 => spread(m, n, runs),
            _ if m <= FEW_ROWS => few_rows(m, n, k),
            _ if n <= FEW_COLUMNS => {
                let bn = n.next_multiple_of(8).max(8);
                tile(64, bn, if bn > 32 { 64 } else { 128 }, runs, false)
            }
            _ => many_rows(m, n, runs),
        }
    }
}

impl ProductConfig {
    /// The tiles for groups of about `rows` rows each; operands, factors and layout are those of `self`. The order in which the
    /// products of an element are added up is the same whatever `rows` is.
    pub fn for_rows(self, rows: usize) -> ProductConfig {
        let low = rows.next_power_of_two().clamp(16, 128);
        let narrow = self.scaled && self.b_rows == 1;
        match low {
            // What a thread does with 192 weights' rows leaves three warpgroups little time to wait for one another.
            16 | 32 if narrow => ProductConfig { bm: low, bn: 192, bk: 256, stages: 3, threads: 384, ..self },
            64 if narrow => ProductConfig { bm: 64, bn: 128, bk: 256, stages: 3, threads: 256, ..self },
            16 | 32 if self.scaled => {
                ProductConfig { bm: low, bn: 64, bk: 256, stages: 8, threads: 128, turned: true, ..self }
            }
            64 if self.scaled => ProductConfig { bm: 64, bn: 64, bk: 256, stages: 6, threads: 128, ..self },
            16..=64 => ProductConfig { bm: 64, bn: 128, bk: 64, stages: 8, threads: 128, ..self },
            _ if self.scaled || rows > 128 => self,
            _ => ProductConfig { bn: 128, stages: 6, ..self },
        }
    }
}

/// Runs of K. Narrow and deep products of few rows have too few tiles to go round. Whether a product is one of them may not
/// depend on its rows; products of many rows lose some per cent by it.
fn runs(n: usize, k: usize) -> usize {
    let runs = match n {
        0..=FEW_COLUMNS if k >= 4096 => 8,
        0..=640 if k >= 4096 => 4,
        0..=1024 if k >= 6144 => 2,
        _ => 1,
    };
    if k.is_multiple_of(128 * runs) { runs } else { 1 }
}

/// Tiles whose runs are spread over clusters, which all run at once: fewer than multiprocessors suggest, as a cluster lies
/// within a part of the device.
fn spread(m: usize, n: usize, runs: usize) -> GemmConfig {
    let clusters = match runs {
        2 => 66,
        4 => 30,
        _ => 15,
    };
    let along_n = (clusters / m.div_ceil(64).max(1)).max(1);
    let bn = n.div_ceil(along_n).next_multiple_of(8).clamp(8, 256);
    let deep = tile(64, bn, 128, runs, true);
    if deep.stages >= 3 { deep } else { tile(64, bn, 64, runs, true) }
}

/// One round of tiles if they can be narrow enough for it. Neighbours do not wait for each other's part of a tile.
fn few_rows(m: usize, n: usize, k: usize) -> GemmConfig {
    let (bm, widest) = match (m, n) {
        (0..=64, _) => (64, 128),
        // Two low tiles fetch less than one that is as narrow as it would have to be.
        (_, ..7000) => (64, 256),
        (_, ..32_768) => (128, 64),
        (_, ..100_000) => (128, 128),
        _ => (128, 256),
    };
    let columns = MULTIPROCESSORS / m.div_ceil(bm).max(1);
    let rounds = n.div_ceil(columns * widest).max(1);
    let bn = n.div_ceil(columns * rounds).next_multiple_of(8).max(16);
    let bk = if bm + bn <= 128 && k > 64 { 128 } else { 64 };
    GemmConfig { cluster_n: 1, cluster_m: 1, ..tile(bm, bn, bk, 1, false) }
}

/// The tiles with the least rounds times the time of a step along K.
fn many_rows(m: usize, n: usize, runs: usize) -> GemmConfig {
    // Sums of earlier runs need as many registers again.
    let widest = if runs > 1 { 192 } else { 256 };
    let mut best = (f64::INFINITY, tile(128, 128, 64, runs, false));
    for (bm, bn) in (2..=widest / 16).rev().map(|i| (128, 16 * i)).chain([(64, 128), (64, 64)]) {
        let rounds = (m.div_ceil(bm) * n.div_ceil(bn)).div_ceil(MULTIPROCESSORS);
        let cost = rounds as f64 * step(bm, bn);
        if cost < best.0 {
            best = (cost, tile(bm, bn, 64, runs, false));
        }
    }
    best.1
}

/// Nanoseconds of 64 columns of K for a tile, while all multiprocessors have one.
fn step(bm: usize, bn: usize) -> f64 {
    let each = match bn {
        256 => 0.0207,
        128 => 0.0214,
        _ => 0.0220,
    };
    (each * (bm * bn) as f64 + 8.0).max(if bm == 64 { 265.0 } else { 290.0 })
}

/// A config of these tiles with as many stages as fit.
fn tile(bm: usize, bn: usize, bk: usize, runs: usize, spread: bool) -> GemmConfig {
    let threads = if bm >= 128 { 256 } else { 128 };
    let parts = if spread { (runs - 1) * bm * bn * 4 } else { 0 };
    let staging = threads / 128 * 2 * 64 * 128;
    let slot = (bm * bk * 2).next_multiple_of(1024) + (bn * bk * 2).next_multiple_of(1024);
    let stages = (SHARED_BYTES.saturating_sub(parts + staging) / slot).clamp(2, MAX_STAGES);
    GemmConfig { bm, bn, bk, stages, threads, runs, spread, ..GemmConfig::default() }
}
