//! The gradient of the projection's norm.

use super::mix_norm::{MixNormConfig, Slabs, StagedSlabs, rstd};
use super::problem::{EPS, Entry, F32, SLABS, Shape, at, check, problem, scalar, tokens, total};
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use zellige::prelude::*;
use zellige_ir::DType;

/// From the gradient g of the normalised mixes to `draw = r g`, the gradient of the projection, and
/// `dsquare_sum = -1/2 r / (square_sum + eps width) sum_o g_o raw_o`; `raw` and `square_sum` are sums over slabs, `width` is
/// n d.
#[kernel(static_dims(slabs, outputs))]
pub fn mhc_mix_norm_backward(
    t: T,
    #[dims(tokens, outputs)] dmixes: &Tensor<f32, 2>,
    #[dims(slabs, tokens, outputs)] raw: &Tensor<f32, 3>,
    #[dims(slabs, tokens)] square_sum: &Tensor<f32, 2>,
    #[dims(tokens, outputs)] draw: &mut Tensor<f32, 2>,
    #[dims(tokens)] dsquare_sum: &mut Tensor<f32, 1>,
    width: Expr<f32>,
    eps: Expr<f32>,
    #[comptime] cfg: MixNormConfig,
) {
    let (bt, outputs) = (cfg.bt, raw.static_dim(2));
    let [b] = t.grid([raw.dim(1).ceil_div(bt)], cfg.threads);
    let slabs = StagedSlabs::new(t, Slabs { raw, square_sum }, b * bt, bt);
    let [r, squares, dots] = [(); 3].map(|()| t.shared::<f32, 1>([bt]));
    let products = t.fragment::<f32, 2>([bt, outputs]);
    for (i, o) in t.parallel((bt, outputs)) {
        let token = b * bt + i;
        let (g, projected, square_sum) = (dmixes[(token, o)], slabs.projected(i, o), slabs.square_sum(i));
        let rstd = rstd(square_sum, width, eps);
        draw[(token, o)] = rstd * g;
        products[(i, o)] = g * projected;
        if o == 0 {
            r[i] = rstd;
            squares[i] = square_sum;
        }
    }
    t.reduce_sum(products, dots, 1);
    for i in t.parallel(bt) {
        let biased = squares[i] + eps * width;
        dsquare_sum[b * bt + i] = -0.5 * r[i] / biased * dots[i];
    }
}

fn norm_backward_problem(s: Shape, cfg: MixNormConfig) -> Result<Problem, ProblemError> {
    let (width, outputs) = (s.width(), s.mixes());
    let mut inputs = Inputs::new(15);
    let mean = width as f64 / SLABS as f64;
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &[s.tokens, outputs], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[SLABS, s.tokens, outputs], 0.5 * (width as f64).sqrt())?),
        Value::Tensor(inputs.uniform(DType::F32, &[SLABS, s.tokens], 0.5 * mean, 1.5 * mean)?),
        Value::Tensor(output(DType::F32, &[s.tokens, outputs])?),
        Value::Tensor(output(DType::F32, &[s.tokens])?),
        scalar(width as f32),
        scalar(EPS),
    ];
    Ok(problem(MhcMixNormBackward::new(cfg), args, move |args| {
        let sample = s.sample();
        let sums = |slabs: &[f32], n: usize| slabs.chunks(SLABS * n).flat_map(|s| total(s, n)).collect::<Vec<_>>();
        let (raw, square_sum) = (sums(&at(&args[1], 1, &sample), outputs), sums(&at(&args[2], 1, &sample), 1));
        let dmixes = tokens(&args[0], &sample);
        // The state and phi only matter for the gradients that another kernel makes.
        let (x, phi) = (vec![0.0; sample.len() * width], vec![0.0; raw.len() / sample.len().max(1) * width]);
        let want = s.mhc().project_backward(&x, &phi, &raw, &square_sum, &dmixes);
        vec![
            check("draw", &tokens(&args[3], &sample), &want.draw, F32),
            check("dsquare_sum", &tokens(&args[4], &sample), &want.dsquare_sum, F32),
        ]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<MixNormConfig> = Entry {
    info: Info {
        name: "mhc_mix_norm_backward",
        family: Family::Mhc,
        summary: "gradients of the projection and of the sum of squares from that of the normalised mixes",
        equation: "draw = r g;  dsquare_sum = -1/2 r / (square_sum + eps n d) sum_o g raw",
        tolerance: "abs 1e-5 + rel 1.3e-6",
        source: "V4 specification 2.2 (pre_norm_fn bwd_norm)",
    },
    config: MixNormConfig::DEFAULT,
    small: &[MixNormConfig { bt: 8, threads: 32 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcMixNormBackward::new(cfg)),
    problem: norm_backward_problem,
};
