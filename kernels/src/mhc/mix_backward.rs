//! The gradients of the projection by the state and by phi.

use super::mix::{MMA_N, MixConfig, SMALL};
use super::problem::{Entry, Shape, TOKEN_SLABS, abs, at, check, check_bf16, problem, tokens, total};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::gemm::{Gemm as Product, Op};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// `dX += draw phi + 2 dsquare_sum X`, added in f32 onto the bf16 buffer and rounded once, and
/// `dphi[s] = draw^T X` over the tokens of slab s.
///
/// A block owns a range of columns and goes over its tokens in order, so `dphi` needs no atomics; the token axis is cut into
/// as many slabs as `dphi` has, to be added in order ([`column_sum`](crate::norm::column_sum)).
#[kernel(static_dims(slabs, outputs, k))]
pub fn mhc_mix_backward(
    t: T,
    #[dims(tokens, k)] x: &Tensor<bf16, 2>,
    #[dims(outputs, k)] phi: &Tensor<f32, 2>,
    #[dims(tokens, outputs)] draw: &Tensor<f32, 2>,
    #[dims(tokens)] dsquare_sum: &Tensor<f32, 1>,
    #[dims(tokens, k)] dx: &mut Tensor<bf16, 2>,
    #[dims(slabs, outputs, k)] dphi: &mut Tensor<f32, 3>,
    #[comptime] cfg: MixConfig,
) {
    let MixConfig { bt, bk, .. } = cfg;
    let (slabs, outputs, k) = (dphi.static_dim(0), phi.static_dim(0), phi.static_dim(1));
    let [b, slab] = t.grid([k.div_ceil(bk), slabs], cfg.threads);
    let column = b * bk;
    let bn = outputs.next_multiple_of(MMA_N);
    let (phi_s, draw_s) = (t.shared::<f32, 2>([bn, bk]), t.shared::<f32, 2>([bt, bn]));
    let (x_s, dx_s) = (t.shared::<bf16, 2>([bt, bk]), t.shared::<bf16, 2>([bt, bk]));
    t.swizzle(dx_s, 128);
    let x_f = t.fragment::<f32, 2>([bt, bk]);
    // Columns first: then a thread has as neighbours what are neighbours in memory.
    let (product, weight) = (t.fragment::<f32, 2>([bk, bt]), t.fragment::<f32, 2>([bk, bn]));
    t.copy(phi.at((0, column)), phi_s);
    t.clear(weight);
    let tiles = x.dim(0).ceil_div(bt).ceil_div(slabs);
    for tile in t.pipelined(tiles, cfg.stages) {
        let first = (slab * tiles + tile) * bt;
        t.copy(x.at((first, column)), x_s);
        t.copy(dx.at((first, column)), dx_s);
        t.copy(draw.at((first, 0)), draw_s);
        t.cast(x_s, x_f);
        t.gemm_with(phi_s.t(), draw_s.t(), product, Gemm { clear: true, ..cfg.gemm() });
        t.gemm_with(x_f.t(), draw_s, weight, cfg.gemm());
        for (i, c) in t.parallel((bt, bk)) {
            let own = 2.0 * dsquare_sum[first + i] * x_f[(i, c)];
            dx[(first + i, column + c)] = (dx_s[(i, c)].cast::<f32>() + (product[(c, i)] + own)).cast();
        }
    }
    t.copy(weight.t(), dphi.at((slab, 0, column)));
}

/// Columns of a large `dphi` that are compared.
const SAMPLED_COLUMNS: usize = 96;

fn mix_backward_problem(s: Shape, cfg: MixConfig) -> Result<Problem, ProblemError> {
    let (width, outputs) = (s.width(), s.mixes());
    let mut inputs = Inputs::new(16);
    let before = inputs.normal(DType::BF16, &[s.tokens, width], 1.0)?;
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, width], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[outputs, width], 0.2)?),
        Value::Tensor(inputs.normal(DType::F32, &[s.tokens, outputs], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[s.tokens], 0.2)?),
        Value::Tensor(before.to_owned_tensor()?),
        Value::Tensor(output(DType::F32, &[TOKEN_SLABS, outputs, width])?),
    ];
    let before_bytes = before.byte_len() as f64;
    let before = Value::Tensor(before);
    let flops = 4.0 * (s.tokens * width * outputs) as f64;
    let mut problem = problem(MhcMixBackward::new(cfg), args, move |args| {
        let sample = s.sample();
        let (x, before) = (tokens(&args[0], &sample), tokens(&before, &sample));
        let (phi, draw) = (cfg.rounded(args[1].f32s()), cfg.rounded(args[2].f32s()));
        let dsquare_sum = tokens(&args[3], &sample);
        let a = &draw[..];
        let state = |before: &[f32], a: &[f32], phi: &[f32], dsquare_sum: &[f32], x: &[f32]| {
            let product =
                Product { m: s.tokens, n: width, k: outputs, alpha: 1.0, a, op_a: Op::N, b: phi, op_b: Op::N };
            let add = |(i, product): (usize, f64)| {
                (f64::from(before[i]) + product + 2.0 * f64::from(dsquare_sum[i / width]) * f64::from(x[i])) as f32
            };
            product.rows_f64(&sample).into_iter().enumerate().map(add).collect::<Vec<f32>>()
        };
        let dx = state(&before, a, &phi, &dsquare_sum, &x);
        let sizes = state(&abs(&before), &abs(a), &abs(&phi), &abs(&dsquare_sum), &abs(&x));

        let columns = sample_rows(width, SAMPLED_COLUMNS);
        let (n, k) = (columns.len(), s.tokens);
        let x = at(&args[0], 1, &columns);
        let weight = Product { m: n, n: outputs, k, alpha: 1.0, a: &x, op_a: Op::N, b: a, op_b: Op::N };
        let dphi = at(&args[5], 2, &columns);
        let dphi: Vec<f32> = dphi.chunks(TOKEN_SLABS * outputs).flat_map(|slabs| total(slabs, outputs)).collect();
        vec![
            check_bf16("dx", &tokens(&args[4], &sample), &dx, &sizes),
            check("dphi", &dphi, &weight.full(), Tolerance::AbsPlusRel { abs: 3e-2, rel: 1e-3 }),
        ]
    });
    // dX is read as well as written.
    problem.work.bytes += before_bytes;
    problem.work = problem.work.flops(flops);
    Ok(problem)
}

/// Tile sizes for V4's shapes.
pub(super) const DEFAULT: MixConfig = MixConfig { bt: 32, bk: 128, stages: 2, threads: 128, tf32: true };

/// The library's entry.
pub const ENTRY: Entry<MixConfig> = Entry {
    info: Info {
        name: "mhc_mix_backward",
        family: Family::Mhc,
        summary: "gradients of the projection by the state (added) and by phi (deterministic)",
        equation: "dX = bf16(dX + draw phi + 2 dsquare_sum X);  dphi[s,o,k] = sum_{t in slab s} draw[t,o] X[t,k]",
        tolerance: "dX bf16 of a value within 2^-16 of its terms; dphi abs 3e-2 + rel 1e-3",
        source: "V4 specification 2.2 (pre_norm_fn bwd_mul)",
    },
    config: DEFAULT,
    small: &[SMALL, MixConfig { bk: 64, threads: 64, ..SMALL }, MixConfig { tf32: false, ..SMALL }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcMixBackward::new(cfg)),
    problem: mix_backward_problem,
};
