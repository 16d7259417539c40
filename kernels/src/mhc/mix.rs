//! The projection of the state to mixes, before its norm: a skinny GEMM with the sum of squares on the side.

use super::problem::{Entry, SLABS, Shape, at, check, problem, tokens, total};
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::codec::tf32_round_half_away;
use crate::reference::metrics::Tolerance;
use zellige::GemmPrecision;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of the kernels that multiply by phi and their precision.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct MixConfig {
    /// Tokens of a tile.
    #[tune(32, 64, 128)]
    pub bt: usize,
    /// Depth of a step of the sum.
    #[tune(32, 64, 128)]
    pub bk: usize,
    #[tune(2..=5)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// Round phi to tf32, half away from zero, as V4 does; else multiply in f32.
    pub tf32: bool,
}

/// Extent of a tensor-core tile along the mixes.
pub(super) const MMA_N: usize = 8;

impl MixConfig {
    /// How the products are formed. bf16 states are exact in tf32.
    pub(super) fn gemm(self) -> Gemm {
        Gemm { precision: if self.tf32 { GemmPrecision::Tf32 } else { GemmPrecision::Exact }, ..Gemm::default() }
    }

    /// f32 operands as they take part in products.
    pub(super) fn rounded(self, mut x: Vec<f32>) -> Vec<f32> {
        if self.tf32 {
            x.iter_mut().for_each(|v| *v = tf32_round_half_away(*v));
        }
        x
    }
}

/// `raw[s, t, o] = sum_k X[t, k] phi[o, k]` and `square_sum[s, t] = sum_k X[t, k]^2`, k running over slab s: the k axis is
/// cut into as many slabs as `raw` has, each a whole number of tiles, to be added in order by whoever reads them. `x` is
/// the state with its streams side by side, [T, n d].
#[kernel(static_dims(slabs, outputs, k))]
pub fn mhc_mix(
    t: T,
    #[dims(tokens, k)] x: &Tensor<bf16, 2>,
    #[dims(outputs, k)] phi: &Tensor<f32, 2>,
    #[dims(slabs, tokens, outputs)] raw: &mut Tensor<f32, 3>,
    #[dims(slabs, tokens)] square_sum: &mut Tensor<f32, 2>,
    #[comptime] cfg: MixConfig,
) {
    let MixConfig { bt, bk, .. } = cfg;
    let (slabs, outputs, k) = (raw.static_dim(0), phi.static_dim(0), phi.static_dim(1));
    let tiles = k.div_ceil(bk).div_ceil(slabs);
    let [slab, b] = t.grid((slabs, x.dim(0).ceil_div(bt)), cfg.threads);
    let first = b * bt;
    let bn = outputs.next_multiple_of(MMA_N);
    let (x_s, phi_s) = (t.shared::<bf16, 2>([bt, bk]), t.shared::<f32, 2>([bn, bk]));
    let (x_f, square) = (t.fragment::<f32, 2>([bt, bk]), t.fragment::<f32, 2>([bt, bk]));
    let (acc, squares) = (t.fragment::<f32, 2>([bt, bn]), t.fragment::<f32, 1>([bt]));
    t.clear(acc);
    t.clear(square);
    for tile in t.pipelined(tiles, cfg.stages) {
        let depth = (slab * tiles + tile) * bk;
        t.copy(x.at((first, depth)), x_s);
        t.copy(phi.at((0, depth)), phi_s);
        t.cast(x_s, x_f);
        t.gemm_with(x_f, phi_s.t(), acc, cfg.gemm());
        for (i, c) in t.parallel((bt, bk)) {
            square[(i, c)] = x_f[(i, c)].mul_add(x_f[(i, c)], square[(i, c)]);
        }
    }
    t.reduce_sum(square, squares, 1);
    t.copy(acc, raw.at((slab, first, 0)));
    t.copy(squares, square_sum.at((slab, first)));
}

fn mix_problem(s: Shape, cfg: MixConfig) -> Result<Problem, ProblemError> {
    let (width, outputs) = (s.width(), s.mixes());
    let mut inputs = Inputs::new(1);
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, width], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[outputs, width], 2.0 / (width as f64).sqrt())?),
        Value::Tensor(output(DType::F32, &[SLABS, s.tokens, outputs])?),
        Value::Tensor(output(DType::F32, &[SLABS, s.tokens])?),
    ];
    let flops = 2.0 * (s.tokens * width * outputs) as f64;
    let mut problem = problem(MhcMix::new(cfg), args, move |args| {
        let sample = s.sample();
        let (x, phi) = (tokens(&args[0], &sample), cfg.rounded(args[1].f32s()));
        let want = s.mhc().project(&x, &phi, sample.len(), outputs);
        let sums = |slabs: &[f32], n: usize| slabs.chunks(SLABS * n).flat_map(|s| total(s, n)).collect::<Vec<_>>();
        let raw = sums(&at(&args[2], 1, &sample), outputs);
        let square_sum = sums(&at(&args[3], 1, &sample), 1);
        vec![
            check("raw", &raw, &want.raw, Tolerance::CalcDiff(1e-8)),
            check("square_sum", &square_sum, &want.square_sum, Tolerance::CalcDiff(1e-8)),
        ]
    });
    problem.work = problem.work.flops(flops);
    Ok(problem)
}

/// Tile sizes for V4's shapes.
pub(super) const DEFAULT: MixConfig = MixConfig { bt: 128, bk: 64, stages: 4, threads: 128, tf32: true };
pub(super) const SMALL: MixConfig = MixConfig { bt: 16, bk: 32, stages: 2, threads: 128, tf32: true };

/// The library's entry.
pub const ENTRY: Entry<MixConfig> = Entry {
    info: Info {
        name: "mhc_mix",
        family: Family::Mhc,
        summary: "projection of the mHC state to mixes, split along the sum, with the sum of squares",
        equation: "raw[s,t,o] = sum_{k in slab s} X[t,k] tf32(phi[o,k]);  square_sum[s,t] = sum_{k in slab s} X[t,k]^2",
        tolerance: "calc_diff < 1e-8 of the slabs' sums",
        source: "V4 specification 2.1 step 1, 2.2; DeepGEMM tf32_hc_prenorm_gemm",
    },
    config: DEFAULT,
    small: &[SMALL, MixConfig { tf32: false, ..SMALL }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcMix::new(cfg)),
    problem: mix_problem,
};
