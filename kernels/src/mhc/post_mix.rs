//! The state after a sub-layer and the projection for the next one, in one pass over the state.

use super::mix::{MMA_N, MixConfig, SMALL};
use super::problem::{Entry, SLABS, Shape, abs, at, check, check_bf16, problem, tokens, total};
use super::token::next_state;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// [`mhc_post`](super::post::mhc_post), then [`mhc_mix`](super::mix::mhc_mix) of the rounded result: `y` has the bits of the
/// former; a slab of `raw` and `square_sum` covers the same columns of every stream. `bk` counts columns of a stream.
#[kernel(static_dims(slabs, outputs, n, d))]
pub fn mhc_post_mix(
    t: T,
    #[dims(tokens, d)] f: &Tensor<bf16, 2>,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(tokens, n)] post: &Tensor<f32, 2>,
    #[dims(tokens, n, n)] comb: &Tensor<f32, 3>,
    #[dims(outputs, n, d)] phi: &Tensor<f32, 3>,
    #[dims(tokens, n, d)] y: &mut Tensor<bf16, 3>,
    #[dims(slabs, tokens, outputs)] raw: &mut Tensor<f32, 3>,
    #[dims(slabs, tokens)] square_sum: &mut Tensor<f32, 2>,
    #[comptime] cfg: MixConfig,
) {
    let MixConfig { bt, bk, .. } = cfg;
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let (slabs, outputs) = (raw.static_dim(0), phi.static_dim(0));
    let tiles = d.div_ceil(bk).div_ceil(slabs);
    let [slab, b] = t.grid((slabs, x.dim(0).ceil_div(bt)), cfg.threads);
    let first = b * bt;
    let bn = outputs.next_multiple_of(MMA_N);
    // C with the source streams last, side by side as a stream's sum reads them.
    let (post_s, comb_s) = (t.shared::<f32, 2>([bt, n]), t.shared::<f32, 3>([bt, n, n]));
    let phi_s: Vec<_> = (0..n).map(|_| t.shared::<f32, 2>([bn, bk])).collect();
    let f_s = t.shared::<bf16, 2>([bt, bk]);
    let x_s: Vec<_> = (0..n).map(|_| t.shared::<bf16, 2>([bt, bk])).collect();
    // A thread reads 16 bytes at once; two rows of such a swizzle lie in different banks.
    x_s.iter().chain([&f_s]).for_each(|&s| t.swizzle(s, 64));
    let (state, square) = (t.fragment::<f32, 2>([bt, bk]), t.fragment::<f32, 2>([bt, bk]));
    let (acc, squares) = (t.fragment::<f32, 2>([bt, bn]), t.fragment::<f32, 1>([bt]));
    t.copy(post.at((first, 0)), post_s);
    t.copy(comb.at((first, 0, 0)).axes([0, 2, 1]), comb_s);
    t.clear(acc);
    t.clear(square);
    for tile in t.pipelined(tiles, cfg.stages) {
        let column = (slab * tiles + tile) * bk;
        for k in 0..n {
            t.copy(phi.at((0, k, column)).axes([0, 2]), phi_s[k]);
        }
        t.copy(f.at((first, column)), f_s);
        for j in 0..n {
            t.copy(x.at((first, j, column)).axes([0, 2]), x_s[j]);
        }
        for k in 0..n {
            for (i, c) in t.parallel((bt, bk)) {
                let streams: Vec<_> = (0..n).map(|j| x_s[j][(i, c)].cast()).collect();
                let next =
                    next_state(post_s[(i, k)], f_s[(i, c)].cast(), |j| comb_s[(i, k, j)], &streams).cast::<bf16>();
                y[(first + i, k, column + c)] = next;
                state[(i, c)] = next.cast();
            }
            t.gemm_with(state, phi_s[k].t(), acc, cfg.gemm());
            for (i, c) in t.parallel((bt, bk)) {
                square[(i, c)] = state[(i, c)].mul_add(state[(i, c)], square[(i, c)]);
            }
        }
    }
    t.reduce_sum(square, squares, 1);
    t.copy(acc, raw.at((slab, first, 0)));
    t.copy(squares, square_sum.at((slab, first)));
}

fn post_mix_problem(s: Shape, cfg: MixConfig) -> Result<Problem, ProblemError> {
    let (n, d, outputs, width) = (s.streams, s.dim, s.mixes(), s.width());
    let mut inputs = Inputs::new(22);
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, d], 1.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, n, d], 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[s.tokens, n], 0.0, 2.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[s.tokens, n, n], 0.0, 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[outputs, n, d], 2.0 / (width as f64).sqrt())?),
        Value::Tensor(output(DType::BF16, &[s.tokens, n, d])?),
        Value::Tensor(output(DType::F32, &[SLABS, s.tokens, outputs])?),
        Value::Tensor(output(DType::F32, &[SLABS, s.tokens])?),
    ];
    let flops = 2.0 * (s.tokens * width * outputs) as f64;
    let mut problem = problem(MhcPostMix::new(cfg), args, move |args| {
        let sample = s.sample();
        let [f, x, post, comb] = [0, 1, 2, 3].map(|i| tokens(&args[i], &sample));
        let y = tokens(&args[5], &sample);
        // The projection is that of the state as it was written.
        let want = s.mhc().project(&y, &cfg.rounded(args[4].f32s()), sample.len(), outputs);
        let sums = |slabs: &[f32], n: usize| slabs.chunks(SLABS * n).flat_map(|s| total(s, n)).collect::<Vec<_>>();
        let raw = sums(&at(&args[6], 1, &sample), outputs);
        let square_sum = sums(&at(&args[7], 1, &sample), 1);
        let state = s.mhc().post(&f, &x, &post, &comb, sample.len());
        let sizes = s.mhc().post(&abs(&f), &abs(&x), &post, &comb, sample.len());
        vec![
            check_bf16("y", &y, &state, &sizes),
            check("raw", &raw, &want.raw, Tolerance::CalcDiff(1e-8)),
            check("square_sum", &square_sum, &want.square_sum, Tolerance::CalcDiff(1e-8)),
        ]
    });
    problem.work = problem.work.flops(flops);
    Ok(problem)
}

/// The library's entry.
pub const ENTRY: Entry<MixConfig> = Entry {
    info: Info {
        name: "mhc_post_mix",
        family: Family::Mhc,
        summary: "state after a sub-layer and its projection for the next one",
        equation: "X' = post(F, X);  raw[s,t,o] = sum_{(k,c) in slab s} X'[t,k,c] tf32(phi[o,k,c]);  square_sum likewise",
        tolerance: "X' bf16 of a value within 2^-16 of its terms; raw and square_sum calc_diff < 1e-8 of the slabs' sums",
        source: "V4 specification 2.2 (further fusions: post + next pre)",
    },
    config: MixConfig { bt: 64, bk: 32, stages: 2, threads: 128, tf32: true },
    small: &[SMALL, MixConfig { tf32: false, ..SMALL }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcPostMix::new(cfg)),
    problem: post_mix_problem,
};
