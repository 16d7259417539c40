//! Engram: the gate, backward.

use super::GateConfig;
use super::gate::{CLAMP, inputs, with_reference};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::norm::rows_for;
use crate::reference::codec::bf16_round_all;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Gradients of [`engram_gate`](super::gate::engram_gate) from `dy` and what the forward pass saved. With `da` the gradient of `a` (zero where
/// `|a|` is below the clamp) and `ddot = da rstd_x rstd_k / sqrt(dim)`:
/// `dx = dy + ddot k w - da a rstd_x^2 x / dim`, `dk = ddot x w - da a rstd_k^2 k / dim`, `dv = sum over streams of gate dy`, and the fused
/// weight's `ddot x k` summed over the tokens of each part.
///
/// Part `p` of P takes every P-th tile of tokens from `p` on, whatever the device;
/// [`engram_weight_grad`](super::weight::engram_weight_grad) adds the parts.
#[kernel(static_dims(streams, dim))]
pub fn engram_gate_backward(
    t: T,
    #[dims(tokens, streams, dim)] x: &Tensor<bf16, 3>,
    #[dims(tokens, streams, dim)] k: &Tensor<bf16, 3>,
    #[dims(tokens, dim)] v: &Tensor<bf16, 2>,
    #[dims(streams, dim)] weight: &Tensor<f32, 2>,
    #[dims(tokens, streams, dim)] dy: &Tensor<bf16, 3>,
    #[dims(tokens, streams)] dot: &Tensor<f32, 2>,
    #[dims(tokens, streams)] gate: &Tensor<f32, 2>,
    #[dims(tokens, streams)] rstd_x: &Tensor<f32, 2>,
    #[dims(tokens, streams)] rstd_k: &Tensor<f32, 2>,
    clamp: Expr<f32>,
    #[dims(tokens, streams, dim)] dx: &mut Tensor<bf16, 3>,
    #[dims(tokens, streams, dim)] dk: &mut Tensor<bf16, 3>,
    #[dims(tokens, dim)] dv: &mut Tensor<bf16, 2>,
    #[dims(parts, streams, dim)] dweight: &mut Tensor<f32, 3>,
    #[comptime] cfg: GateConfig,
) {
    let (rows, streams, dim) = (cfg.tokens, x.static_dim(1), x.static_dim(2));
    let [part] = t.grid([dweight.dim(0)], cfg.threads);
    let shape = [rows, streams, dim];
    let tile = || t.shared::<bf16, 3>(shape);
    let (x_tile, k_tile, dy_tile, v_tile) = (tile(), tile(), tile(), t.shared::<bf16, 2>([rows, dim]));
    let (out, dv_f) = (t.fragment::<f32, 3>(shape), t.fragment::<f32, 2>([rows, dim]));
    let dweight_f = t.fragment::<f32, 2>([streams, dim]);
    // In memory: one thread computes what all need of a stream.
    let of_stream = || t.shared::<f32, 2>([rows, streams]);
    let (dgate, ddot, through_x, through_k) = (of_stream(), of_stream(), of_stream(), of_stream());
    let gates = of_stream();
    // What the forward pass saved, of the tile at hand and of the next.
    let saved = || t.fragment::<f32, 2>([rows, streams]);
    let (dot_now, rx_now, rk_now) = (saved(), saved(), saved());
    let (dot_next, rx_next, rk_next, gate_next) = (saved(), saved(), saved(), saved());
    let parts = dweight.dim(0);
    let read = |i: Idx| {
        for (r, s) in t.parallel((rows, streams)) {
            let at = ((part + i * parts) * rows + r, s);
            dot_next[(r, s)] = dot[at];
            rx_next[(r, s)] = rstd_x[at];
            rk_next[(r, s)] = rstd_k[at];
            gate_next[(r, s)] = gate[at];
        }
    };
    t.clear(dweight_f);
    read(0.into());
    for i in t.pipelined((x.dim(0).ceil_div(rows) - part).ceil_div(parts), stages(shape)) {
        let first = (part + i * parts) * rows;
        t.copy(x.at((first, 0, 0)), x_tile);
        t.copy(k.at((first, 0, 0)), k_tile);
        t.copy(dy.at((first, 0, 0)), dy_tile);
        t.copy(v.at((first, 0)), v_tile);
        for (r, s) in t.parallel((rows, streams)) {
            dot_now[(r, s)] = dot_next[(r, s)];
            rx_now[(r, s)] = rx_next[(r, s)];
            rk_now[(r, s)] = rk_next[(r, s)];
            gates[(r, s)] = gate_next[(r, s)];
        }
        read(i + 1);
        let of = |tile: Shared<bf16, 3>, r: Idx, s: Idx, c: Idx| tile[(r, s, c)].cast::<f32>();
        for (r, s, c) in t.parallel((rows, streams, dim)) {
            out[(r, s, c)] = of(dy_tile, r, s, c) * v_tile[(r, c)].cast::<f32>();
        }
        t.reduce_sum(out, dgate, 2);
        for (r, s) in t.parallel((rows, streams)) {
            let (rx, rk, g) = (rx_now[(r, s)], rk_now[(r, s)], gates[(r, s)]);
            let scale = (dim as f32).powf(-0.5);
            let a = dot_now[(r, s)] * rx * rk * scale;
            let magnitude = a.abs();
            let blocked = magnitude < clamp || magnitude == 0.0;
            let da = select(blocked, 0.0, dgate[(r, s)] * g * (1.0 - g) * 0.5 / magnitude.sqrt());
            ddot[(r, s)] = da * rx * rk * scale;
            through_x[(r, s)] = da * a * rx * rx / dim as f32;
            through_k[(r, s)] = da * a * rk * rk / dim as f32;
        }
        for (r, s, c) in t.parallel((rows, streams, dim)) {
            out[(r, s, c)] = of(dy_tile, r, s, c) * gates[(r, s)];
        }
        t.reduce_sum(out, dv_f, 1);
        t.cast(dv_f, dv.at((first, 0)));
        for (r, s, c) in t.parallel((rows, streams, dim)) {
            out[(r, s, c)] = ddot[(r, s)] * of(x_tile, r, s, c) * of(k_tile, r, s, c);
        }
        t.reduce_sum_into(out, dweight_f, 0);
        for (r, s, c) in t.parallel((rows, streams, dim)) {
            let (xv, kv) = (of(x_tile, r, s, c), of(k_tile, r, s, c));
            out[(r, s, c)] = of(dy_tile, r, s, c) + ddot[(r, s)] * kv * weight[(s, c)] - through_x[(r, s)] * xv;
        }
        t.cast(out, dx.at((first, 0, 0)));
        for (r, s, c) in t.parallel((rows, streams, dim)) {
            let (xv, kv) = (of(x_tile, r, s, c), of(k_tile, r, s, c));
            out[(r, s, c)] = ddot[(r, s)] * xv * weight[(s, c)] - through_k[(r, s)] * kv;
        }
        t.cast(out, dk.at((first, 0, 0)));
    }
    t.copy(dweight_f, dweight.at((part, 0, 0)));
}

/// Tiles that are in shared memory at once: one is read ahead if there is room for two.
fn stages([rows, streams, dim]: [usize; 3]) -> usize {
    let bytes = rows * dim * (3 * streams + 1) * size_of::<bf16>();
    if 2 * bytes <= 208 << 10 { 2 } else { 1 }
}

/// The library's entry.
pub struct Entry;

/// The published tests.
const BACKWARD: Tolerance = Tolerance::CalcDiff(1e-8);

fn problem(tokens: usize, streams: usize, dim: usize, parts: usize, cfg: GateConfig) -> Result<Problem, ProblemError> {
    let mut args: Vec<Value> = inputs(tokens, streams, dim)?.into();
    let forward = with_reference(&args, [tokens, streams, dim], |reference| reference.forward());
    args.push(Value::Tensor(Inputs::new(28).normal(DType::BF16, &[tokens, streams, dim], 1.0)?));
    for saved in [&forward.dot, &forward.gate, &forward.rstd_x, &forward.rstd_k] {
        args.push(Value::Tensor(DynTensor::from_slice(&[tokens, streams], saved)?));
    }
    args.push(Value::Scalar(Const::f32(CLAMP)));
    args.push(Value::Tensor(output(DType::BF16, &[tokens, streams, dim])?));
    args.push(Value::Tensor(output(DType::BF16, &[tokens, streams, dim])?));
    args.push(Value::Tensor(output(DType::BF16, &[tokens, dim])?));
    args.push(Value::Tensor(output(DType::F32, &[parts, streams, dim])?));
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let dy = args[4].f32s();
        let want = with_reference(args, [tokens, streams, dim], |reference| reference.backward(&dy));
        let rounded = [("dx", 10, want.dx), ("dk", 11, want.dk), ("dv", 12, want.dv)];
        let mut verdicts: Vec<Comparison> = rounded
            .iter()
            .map(|(output, i, want)| {
                let verdict = compare(&args[*i].f32s(), &bf16_round_all(want), BACKWARD);
                Comparison { output, verdict }
            })
            .collect();
        let of_parts = args[13].f32s();
        let width = streams * dim;
        let column = |c: usize| of_parts.iter().skip(c).step_by(width).map(|&v| f64::from(v)).sum::<f64>() as f32;
        let dweight: Vec<f32> = (0..width).map(column).collect();
        verdicts.push(Comparison { output: "dweight", verdict: compare(&dweight, &want.dweight, BACKWARD) });
        verdicts
    };
    Ok(Problem { kernel: Box::new(EngramGateBackward::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(tokens: usize, streams: usize, dim: usize, parts: usize) -> Case {
    let name = format!("tokens={tokens} streams={streams} dim={dim} parts={parts}");
    // Half a thousand threads share the tile of a multiprocessor.
    let threads = if dim.is_multiple_of(8 * 448) { 448 } else { 512 };
    Case::new(name, GateConfig { tokens: rows_for(2048, dim).min(4), threads }, move |cfg| {
        problem(tokens, streams, dim, parts, cfg)
    })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "engram_gate_backward",
            family: Family::Engram,
            summary: "gradients of the gate; the fused weight's in fixed parts",
            equation: "dx, dk, dv, dweight of y = x + gate v",
            tolerance: "calc_diff 1e-8",
            source: "V4 specification 7; TileKernels engram",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(GateConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(EngramGateBackward::new(apply(GateConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(0, 4, 64, 2), case(1, 1, 100, 1), case(9, 4, 576, 2), case(3, 4, 1024, 3)],
            Scale::Representative => vec![case(1024, 4, 4096, 132)],
            Scale::Full => vec![case(4096, 4, 4096, 132), case(512, 4, 7168, 64)],
        }
    }
}
