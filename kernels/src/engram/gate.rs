//! Engram: the gate, forward.

use super::GateConfig;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::engram as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Tiles of a block.
const TILES: usize = 8;
/// Tiles that are read ahead, and the one at hand.
const STAGES: usize = 3;

/// `y = x + gate v` (see [`engram`](super)), and for the backward pass `dot = sum x k weight`, the gate, `1 / rms(x)` and `1 / rms(k)` of every
/// token and stream. In fp32, `y` rounded once.
#[kernel(static_dims(streams, dim))]
pub fn engram_gate(
    t: T,
    #[dims(tokens, streams, dim)] x: &Tensor<bf16, 3>,
    #[dims(tokens, streams, dim)] k: &Tensor<bf16, 3>,
    #[dims(tokens, dim)] v: &Tensor<bf16, 2>,
    #[dims(streams, dim)] weight: &Tensor<f32, 2>,
    clamp: Expr<f32>,
    eps: Expr<f32>,
    #[dims(tokens, streams, dim)] y: &mut Tensor<bf16, 3>,
    #[dims(tokens, streams)] dot: &mut Tensor<f32, 2>,
    #[dims(tokens, streams)] gate: &mut Tensor<f32, 2>,
    #[dims(tokens, streams)] rstd_x: &mut Tensor<f32, 2>,
    #[dims(tokens, streams)] rstd_k: &mut Tensor<f32, 2>,
    #[comptime] cfg: GateConfig,
) {
    let (rows, dim) = (cfg.tokens, x.static_dim(2));
    let [stream, b] = t.grid([x.dim(1), x.dim(0).ceil_div(rows * TILES)], cfg.threads);
    let out = t.fragment::<f32, 2>([rows, dim]);
    // x x, k k and x k w, summed together: threads wait for each other once.
    let (terms, sums) = (t.fragment::<f32, 3>([rows, 3, dim]), t.fragment::<f32, 2>([rows, 3]));
    let row_gate = t.fragment::<f32, 1>([rows]);
    let shared = || t.shared::<bf16, 2>([rows, dim]);
    let (x_tile, k_tile, v_tile) = (shared(), shared(), shared());
    // Tokens share the weight of their stream.
    let w = t.fragment::<f32, 1>([dim]);
    t.copy(weight.at((stream, 0)), w);
    for step in t.pipelined(TILES, STAGES) {
        let first = (b * TILES + step) * rows;
        let place = (first, stream, 0);
        t.copy(x.at(place).axes([0, 2]), x_tile);
        t.copy(k.at(place).axes([0, 2]), k_tile);
        t.copy(v.at((first, 0)), v_tile);
        let of = |tile: Shared<bf16, 2>, r: Idx, c: Idx| tile[(r, c)].cast::<f32>();
        for (r, c) in t.parallel((rows, dim)) {
            let (xv, kv) = (of(x_tile, r, c), of(k_tile, r, c));
            terms[(r, 0, c)] = xv * xv;
            terms[(r, 1, c)] = kv * kv;
            terms[(r, 2, c)] = kv * (xv * w[c]);
        }
        t.reduce_sum(terms, sums, 2);
        for r in t.parallel(rows) {
            let at = (first + r, stream);
            let of_tile = |i: i32| (sums[(r, i)] / dim as f32 + eps).rsqrt();
            let (of_x, of_k) = (of_tile(0), of_tile(1));
            let a = sums[(r, 2)] * of_x * of_k * (dim as f32).powf(-0.5);
            let root = a.abs().max(clamp).sqrt();
            // The sign of zero is zero.
            let signed = select(a == 0.0, 0.0, root.copysign(a));
            row_gate[r] = signed.sigmoid();
            dot[at] = sums[(r, 2)];
            gate[at] = row_gate[r];
            rstd_x[at] = of_x;
            rstd_k[at] = of_k;
        }
        // Read again rather than kept in registers.
        for (r, c) in t.parallel((rows, dim)) {
            out[(r, c)] = of(v_tile, r, c).mul_add(row_gate[r], of(x_tile, r, c));
        }
        t.cast(out, y.at(place).axes([0, 2]));
    }
}

/// The library's entry.
pub struct Entry;

/// The published tests.
const FORWARD: Tolerance = Tolerance::CalcDiff(2e-10);

/// Constants of the problems.
pub(super) const CLAMP: f32 = 1e-6;
pub(super) const EPS: f32 = 1e-6;

/// `x`, `k`, `v` and the fused weight of a problem. Keys resemble the hidden states, so that gates differ from a half.
pub(super) fn inputs(tokens: usize, streams: usize, dim: usize) -> Result<[Value; 4], ProblemError> {
    let mut inputs = Inputs::new(27);
    let shape = [tokens, streams, dim];
    let x = inputs.normal(DType::BF16, &shape, 1.0)?;
    let noise = inputs.normal(DType::F32, &shape, 1.0)?.to_f64_vec()?;
    let k: Vec<f64> = x
        .to_f64_vec()?
        .iter()
        .zip(noise)
        .enumerate()
        .map(|(i, (x, noise))| noise + x * ((i / dim.max(1)) % 5) as f64 * 0.1 - 0.2 * x)
        .collect();
    Ok([
        Value::Tensor(x),
        Value::Tensor(DynTensor::from_f64(DType::BF16, &shape, &k)?),
        Value::Tensor(inputs.normal(DType::BF16, &[tokens, dim], 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[streams, dim], 0.5, 1.5)?),
    ])
}

/// Runs `f` on the reference over these [`inputs`].
pub(super) fn with_reference<R>(
    args: &[Value],
    [tokens, streams, dim]: [usize; 3],
    f: impl FnOnce(&reference::EngramGate<'_>) -> R,
) -> R {
    let [x, k, v, weight] = [0, 1, 2, 3].map(|i| args[i].f32s());
    f(&reference::EngramGate {
        x: &x,
        k: &k,
        v: &v,
        weight: &weight,
        tokens,
        streams,
        dim,
        clamp: f64::from(CLAMP),
        eps: f64::from(EPS),
    })
}

fn problem(tokens: usize, streams: usize, dim: usize, cfg: GateConfig) -> Result<Problem, ProblemError> {
    let mut args: Vec<Value> = inputs(tokens, streams, dim)?.into();
    args.push(Value::Scalar(Const::f32(CLAMP)));
    args.push(Value::Scalar(Const::f32(EPS)));
    args.push(Value::Tensor(output(DType::BF16, &[tokens, streams, dim])?));
    for _ in 0..4 {
        args.push(Value::Tensor(output(DType::F32, &[tokens, streams])?));
    }
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let want = with_reference(args, [tokens, streams, dim], |reference| reference.forward());
        let rows = [("dot", want.dot), ("gate", want.gate), ("rstd_x", want.rstd_x), ("rstd_k", want.rstd_k)];
        let mut verdicts =
            vec![Comparison { output: "y", verdict: compare(&args[6].f32s(), &bf16_round_all(&want.y), FORWARD) }];
        for (i, (output, want)) in rows.iter().enumerate() {
            verdicts.push(Comparison { output, verdict: compare(&args[7 + i].f32s(), want, FORWARD) });
        }
        verdicts
    };
    Ok(Problem { kernel: Box::new(EngramGate::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(tokens: usize, streams: usize, dim: usize) -> Case {
    let name = format!("tokens={tokens} streams={streams} dim={dim}");
    Case::new(name, GateConfig::for_dim(dim), move |cfg| problem(tokens, streams, dim, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "engram_gate",
            family: Family::Engram,
            summary: "gated sum of hidden states and looked-up values",
            equation: "y = x + sigmoid(sign(a) sqrt(max(|a|, clamp))) v, a = n_x(x).n_k(k) / sqrt(dim)",
            tolerance: "calc_diff 2e-10",
            source: "V4 specification 7; TileKernels engram",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(GateConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(EngramGate::new(apply(GateConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(0, 4, 64), case(1, 1, 100), case(7, 4, 576), case(2, 4, 4096)],
            Scale::Representative => vec![case(2048, 4, 4096)],
            Scale::Full => vec![case(4096, 4, 4096), case(1024, 4, 7168)],
        }
    }
}
