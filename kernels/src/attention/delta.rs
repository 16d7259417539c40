//! The first step of attention backward: what both gradient kernels need of every query, and the gradient of the sinks.

use super::AttentionConfig;
use super::problem::{Batch, Sink};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// `delta[h, i] = sum_c dO[i, h, c] O[i, h, c]`, `total[h, i] = ln(exp(lse[i, h]) + exp(sink[h]))`, and the gradient of the sinks summed
/// over the queries of each tile, `dsink[tile, h] = -sum_i exp(sink[h] - total[h, i]) delta[h, i]`.
///
/// `dsink` has a row for each tile of `bm` packed queries; [`column_sum`](crate::norm::column_sum::column_sum) adds them in order.
/// `sink` and `dsink` may be empty if the config has no sink; then `total` is `lse`.
#[kernel(static_dims(heads, d))]
pub fn attention_delta(
    t: T,
    #[dims(tokens, heads, d)] o: &Tensor<bf16, 3>,
    #[dims(tokens, heads, d)] d_o: &Tensor<bf16, 3>,
    #[dims(tokens, heads)] lse: &Tensor<f32, 2>,
    #[dims(sinks)] sink: &Tensor<f32, 1>,
    #[dims(heads, tokens)] delta: &mut Tensor<f32, 2>,
    #[dims(heads, tokens)] total: &mut Tensor<f32, 2>,
    #[dims(tiles, sinks)] dsink: &mut Tensor<f32, 2>,
    #[comptime] cfg: AttentionConfig,
) {
    let (bm, d) = (cfg.bm, o.static_dim(2));
    let tiles = o.dim(0).ceil_div(bm);
    if cfg.sink {
        t.assert(dsink.dim(0) >= tiles, "attention_delta: `dsink` has fewer rows than there are tiles of queries");
    }
    let [tile, head] = t.grid((tiles, o.dim(1)), cfg.threads);
    let row0 = tile * bm;
    let (o_f, d_o_f) = (t.fragment::<f32, 2>([bm, d]), t.fragment::<f32, 2>([bm, d]));
    let (sum, weighted, of_tile) =
        (t.fragment::<f32, 1>([bm]), t.fragment::<f32, 2>([1, bm]), t.fragment::<f32, 1>([1]));
    t.cast(o.at((row0, head, 0)).axes([0, 2]), o_f);
    t.cast(d_o.at((row0, head, 0)).axes([0, 2]), d_o_f);
    for (r, c) in t.parallel((bm, d)) {
        o_f[(r, c)] *= d_o_f[(r, c)];
    }
    t.reduce_sum(o_f, sum, 1);
    for r in t.parallel(bm) {
        let own = lse[(row0 + r, head)];
        delta[(head, row0 + r)] = sum[r];
        if cfg.sink {
            let extra = sink[head];
            // A query without keys has lse = +inf; the sink is all it sees, and its output is constant.
            let empty = own == f32::INFINITY;
            let both = own.max(extra) + (-(own - extra).abs()).exp().log1p();
            total[(head, row0 + r)] = select(empty, own, both);
            weighted[(0, r)] = select(empty, 0.0, -sum[r] / (1.0 + (own - extra).exp()));
        } else {
            total[(head, row0 + r)] = own;
        }
    }
    if cfg.sink {
        t.reduce_sum(weighted, of_tile, 1);
        dsink[(tile, head)] = of_tile[0];
    }
}

/// The library's entry.
pub struct Entry;

/// fp32 sums of up to 512 products of bf16 numbers.
const DELTA: Tolerance = Tolerance::CalcDiff(1e-11);

fn problem(batch: &Batch, cfg: AttentionConfig) -> Result<Problem, ProblemError> {
    let batch = batch.clone();
    let mut inputs = Inputs::new(8);
    let [q, k, v, sink] = batch.inputs(&mut inputs)?;
    let forward = batch.with_reference(&[q, k, v, sink.clone()], cfg.causal, |reference| reference.forward());
    let o: Vec<f64> = forward.o.iter().map(|&x| f64::from(x)).collect();
    let (row, by_head) = (&batch.q_shape()[..2], [batch.heads, batch.tokens()]);
    let parts = if cfg.sink { [batch.tokens().div_ceil(cfg.bm), batch.heads] } else { [0, 0] };
    let args = vec![
        Value::Tensor(DynTensor::from_f64(DType::BF16, &batch.q_shape(), &o)?),
        Value::Tensor(inputs.normal(DType::BF16, &batch.q_shape(), 1.0)?),
        Value::Tensor(DynTensor::from_slice(row, &forward.lse)?),
        sink,
        Value::Tensor(output(DType::F32, &by_head)?),
        Value::Tensor(output(DType::F32, &by_head)?),
        Value::Tensor(output(DType::F32, &parts)?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let [o, d_o, lse, sink, delta, total, dsink] = [0, 1, 2, 3, 4, 5, 6].map(|i| args[i].f32s());
        let products = o.chunks(batch.d).zip(d_o.chunks(batch.d));
        let want: Vec<f64> =
            products.map(|(o, d)| o.iter().zip(d).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum()).collect();
        let sink = |h: usize| if cfg.sink { f64::from(sink[h]) } else { f64::NEG_INFINITY };
        let want_total: Vec<f32> = lse
            .iter()
            .enumerate()
            .map(|(i, &lse)| {
                let (lse, sink) = (f64::from(lse), sink(i % batch.heads));
                if lse == f64::INFINITY { f32::INFINITY } else { (lse + (sink - lse).exp().ln_1p()) as f32 }
            })
            .collect();
        let want_delta: Vec<f32> = want.iter().map(|&d| d as f32).collect();
        let by_token = |x: &[f32]| -> Vec<f32> {
            let tokens = batch.tokens();
            (0..tokens).flat_map(|i| x.iter().skip(i).step_by(tokens).copied()).collect()
        };
        let mut verdicts = vec![
            Comparison { output: "delta", verdict: compare(&by_token(&delta), &want_delta, DELTA) },
            Comparison {
                output: "total",
                verdict: compare(&by_token(&total), &want_total, super::flash::LSE_TOLERANCE),
            },
        ];
        if cfg.sink {
            let of_head = |h: usize| {
                let term = |i: usize| match f64::from(lse[i]) {
                    f64::INFINITY => 0.0,
                    lse => -want[i] / (1.0 + (lse - sink(h)).exp()),
                };
                (h..lse.len()).step_by(batch.heads).map(term).sum::<f64>() as f32
            };
            let want: Vec<f32> = (0..batch.heads).map(of_head).collect();
            let sum = |h: usize| dsink.iter().skip(h).step_by(batch.heads).map(|&x| f64::from(x)).sum::<f64>() as f32;
            let got: Vec<f32> = (0..batch.heads).map(sum).collect();
            verdicts.push(Comparison { output: "dsink", verdict: compare(&got, &want, DELTA) });
        }
        verdicts
    };
    Ok(Problem { kernel: Box::new(AttentionDelta::new(cfg)), args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "attention_delta",
            family: Family::Attention,
            summary: "attention backward, first step: dO.O, sink-inclusive log-sum-exp, sink gradient by tiles",
            equation: "delta = sum dO O, total = ln(exp(lse) + exp(sink)), dsink = -sum exp(sink - total) delta",
            tolerance: "delta, dsink: calc_diff 1e-11; total: abs 1e-6 or rel 2.01/65536",
            source: "V4 specification 1.12; Dao, FlashAttention-2 (2023), algorithm 2",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(AttentionConfig { bm: 32, ..AttentionConfig::of_queries(512) })
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(AttentionDelta::new(apply(
            AttentionConfig { bm: 32, ..AttentionConfig::of_queries(512) },
            settings,
        )?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |batch: Batch| {
            let cfg = AttentionConfig { bm: 32, causal: true, threads: 128, ..AttentionConfig::of_queries(batch.d) };
            batch.case(cfg, problem)
        };
        match scale {
            Scale::Small => vec![
                case(Batch::one(2, 1, 64, 0, 4)),
                case(Batch::one(3, 1, 64, 40, 40)),
                case(Batch::one(3, 1, 512, 35, 33).sink(Sink::Normal)),
                case(Batch::one(2, 1, 64, 5, 2).sink(Sink::All(f32::INFINITY))),
                case(Batch::one(2, 1, 64, 5, 2).sink(Sink::All(f32::NEG_INFINITY))),
            ],
            Scale::Representative => vec![case(Batch::one(8, 1, 512, 512, 512).sink(Sink::Normal))],
            Scale::Full => vec![case(Batch::one(64, 1, 512, 256, 256).sink(Sink::Normal))],
        }
    }
}
