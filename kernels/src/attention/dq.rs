//! Attention backward: the gradient of the queries.

use super::problem::{Batch, Sink};
use super::{AttentionConfig, Segment, UNEVEN, check_groups, clear_rows_from, visible};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use crate::softmax::LOG2_E;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// `dq_i = scale sum_j P_ij (dO_i . v_j - delta_i) k_j` with `P_ij = exp(scale q_i . k_j - total_i)` over the keys that query `i` sees.
///
/// `total` (the log-sum-exp with the sink) and `delta` come from [`attention_delta`](super::delta::attention_delta); the batch is
/// described as for [`flash_attention`](super::flash::flash_attention). A block owns a tile of queries and visits the keys in order.
#[kernel(static_dims(heads, kv_heads, d))]
pub fn attention_dq(
    t: T,
    #[dims(tokens, heads, d)] q: &Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] k: &Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] v: &Tensor<bf16, 3>,
    #[dims(tokens, heads, d)] d_o: &Tensor<bf16, 3>,
    #[dims(heads, tokens)] total: &Tensor<f32, 2>,
    #[dims(heads, tokens)] delta: &Tensor<f32, 2>,
    #[dims(bounds)] cu_q: &Tensor<i32, 1>,
    #[dims(bounds)] cu_k: &Tensor<i32, 1>,
    max_q: Idx,
    scale: Expr<f32>,
    #[dims(tokens, heads, d)] dq: &mut Tensor<bf16, 3>,
    #[comptime] cfg: AttentionConfig,
) {
    let AttentionConfig { bm, bn, .. } = cfg;
    let d = q.static_dim(2);
    check_groups(t, q.static_dim(1), k.static_dim(1), UNEVEN);
    let [tile, head, b] = t.grid((max_q.ceil_div(bm), q.dim(1), cu_q.dim(0) - 1), cfg.threads);
    let kv_head = head / (q.dim(1) / k.dim(1));
    let (queries, keys) = (Segment::of(cu_q, b), Segment::of(cu_k, b));
    let row0 = tile * bm;

    if row0 < queries.len {
        let rows = (queries.len - row0).min(bm);
        let seen = |r: Idx| visible(row0 + r, queries, keys, cfg.causal);
        let first_row = queries.start + row0;

        let (q_s, d_o_s) = (t.shared::<bf16, 2>([bm, d]), t.shared::<bf16, 2>([bm, d]));
        let (k_s, v_s) = (t.shared::<bf16, 2>([bn, d]), t.shared::<bf16, 2>([bn, d]));
        let (s, ds) = (t.fragment::<f32, 2>([bm, bn]), t.fragment::<f32, 2>([bm, bn]));
        let ds_b = t.fragment::<bf16, 2>([bm, bn]);
        let (row_total, row_delta) = (t.fragment::<f32, 1>([bm]), t.fragment::<f32, 1>([bm]));
        let acc = t.fragment::<f32, 2>([bm, d]);
        t.copy(q.at((first_row, head, 0)).axes([0, 2]), q_s);
        t.copy(d_o.at((first_row, head, 0)).axes([0, 2]), d_o_s);
        for r in t.parallel(bm) {
            row_total[r] = total[(head, first_row + r)] * LOG2_E;
            row_delta[r] = delta[(head, first_row + r)];
        }
        t.clear(acc);
        for step in t.pipelined(seen(rows - 1).ceil_div(bn), cfg.stages) {
            let first = step * bn;
            t.copy(k.at((keys.start + first, kv_head, 0)).axes([0, 2]), k_s);
            t.copy(v.at((keys.start + first, kv_head, 0)).axes([0, 2]), v_s);
            clear_rows_from(t, [k_s], keys.len - first);
            t.clear(s);
            t.gemm(q_s, k_s.t(), s);
            t.clear(ds);
            t.gemm(d_o_s, v_s.t(), ds);
            for (r, c) in t.parallel((bm, bn)) {
                let p = s[(r, c)].mul_add(scale * LOG2_E, -row_total[r]).fast_exp2();
                ds[(r, c)] = p * (ds[(r, c)] - row_delta[r]);
            }
            if first + bn > seen(Idx::from(0)) {
                for (r, c) in t.parallel((bm, bn)) {
                    ds[(r, c)] = select(first + c < seen(r), ds[(r, c)], 0.0);
                }
            }
            t.cast(ds, ds_b);
            t.gemm(ds_b, k_s, acc);
        }
        for (r, c) in t.parallel((bm, d)) {
            if r < rows {
                dq[(first_row + r, head, c)] = (acc[(r, c)] * scale).cast();
            }
        }
    }
}

/// The library's entry.
pub struct Entry;

/// The published backward tests: similarity within 1e-4.
pub(super) const GRADIENT: Tolerance = Tolerance::CalcDiff(1e-4);

/// Queries, keys, values, output gradients, sink-inclusive log-sum-exps and deltas of a batch, and then its bounds.
pub(super) fn backward_args(batch: &Batch, cfg: AttentionConfig) -> Result<Vec<Value>, ProblemError> {
    let mut inputs = Inputs::new(9);
    let forward_inputs = batch.inputs(&mut inputs)?;
    let d_o = Value::Tensor(inputs.normal(DType::BF16, &batch.q_shape(), 1.0)?);
    let forward = batch.with_reference(&forward_inputs, cfg.causal, |reference| reference.forward());
    let sinks = forward_inputs[3].f32s();
    let total: Vec<f32> = forward
        .lse
        .iter()
        .enumerate()
        .map(|(i, &lse)| {
            let sink = sinks.get(i % batch.heads).map_or(f64::NEG_INFINITY, |&s| f64::from(s));
            let lse = f64::from(lse);
            if lse == f64::INFINITY { f32::INFINITY } else { (lse + (sink - lse).exp().ln_1p()) as f32 }
        })
        .collect();
    let products = |(o, d): (&[f32], &[f32])| o.iter().zip(d).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum::<f64>();
    let delta: Vec<f32> =
        forward.o.chunks(batch.d).zip(d_o.f32s().chunks(batch.d)).map(|pair| products(pair) as f32).collect();
    let [q, k, v, _] = forward_inputs;
    let [cu_q, cu_k] = batch.bounds()?;
    let (total, delta) = (batch.by_head(&total)?, batch.by_head(&delta)?);
    Ok(vec![q, k, v, d_o, Value::Tensor(total), Value::Tensor(delta), cu_q, cu_k])
}

fn problem(batch: &Batch, cfg: AttentionConfig) -> Result<Problem, ProblemError> {
    let batch = batch.clone();
    // The sinks have left their trace in `total`; the reference needs them as they were drawn.
    let [_, _, _, sink] = batch.inputs(&mut Inputs::new(9))?;
    let mut args = backward_args(&batch, cfg)?;
    args.push(batch.longest().0);
    args.push(Value::Scalar(Const::f32(batch.scale())));
    args.push(Value::Tensor(output(DType::BF16, &batch.q_shape())?));
    let work = Work::of(&args).flops(6.0 * batch.pairs(cfg.causal) * batch.d as f64);
    let verify = move |args: &[Value]| {
        let forward = [args[0].clone(), args[1].clone(), args[2].clone(), sink.clone()];
        let d_o = args[3].f32s();
        let want = batch.with_reference(&forward, cfg.causal, |reference| reference.backward(&d_o));
        vec![Comparison { output: "dq", verdict: compare(&args[10].f32s(), &want.dq, GRADIENT) }]
    };
    Ok(Problem { kernel: Box::new(AttentionDq::new(cfg)), args, work, verify: Box::new(verify) })
}

/// Small batches of both backward kernels.
pub(super) fn small_batches() -> Vec<(Batch, bool)> {
    let ragged = [(3, 5), (0, 4), (18, 35), (5, 0), (1, 17), (6, 2)];
    let mut batches: Vec<(Batch, bool)> = [(0, 5), (1, 1), (1, 40), (17, 33), (16, 16), (20, 7), (9, 0)]
        .iter()
        .flat_map(|&(s, n)| [false, true].map(|causal| (Batch::one(2, 1, 64, s, n).sink(Sink::Normal), causal)))
        .collect();
    batches.push((Batch::ragged(4, 2, 64, &ragged), false));
    batches.push((Batch::ragged(6, 2, 64, &ragged).sink(Sink::Normal), true));
    batches.push((Batch::ragged(1, 1, 64, &[]), false));
    batches.push((Batch::one(2, 2, 64, 7, 19).sink(Sink::All(f32::INFINITY)), true));
    batches.push((Batch::one(2, 2, 64, 7, 19).sink(Sink::All(f32::NEG_INFINITY)), true));
    batches.push((Batch::one(1, 1, 128, 21, 50), true));
    batches.push((Batch::one(3, 1, 512, 10, 40).sink(Sink::Normal), true));
    batches
}

/// Cases of a backward kernel.
pub(super) fn cases(
    scale: Scale,
    config: fn(usize) -> AttentionConfig,
    build: fn(&Batch, AttentionConfig) -> Result<Problem, ProblemError>,
) -> Vec<Case> {
    let large = |batch: Batch| {
        let cfg = AttentionConfig { causal: true, ..config(batch.d) };
        batch.case(cfg, build)
    };
    match scale {
        Scale::Small => small_batches()
            .into_iter()
            .map(|(batch, causal)| {
                // Four warps share what the rows of a wide head accumulate.
                let threads = if batch.d > 64 { 128 } else { 32 };
                let cfg = AttentionConfig { bm: 16, bn: 16, threads, causal, ..config(64) };
                batch.case(cfg, build)
            })
            .collect(),
        Scale::Representative => vec![large(Batch::one(4, 1, 512, 512, 512).sink(Sink::Normal))],
        Scale::Full => vec![
            large(Batch::one(16, 1, 512, 256, 256).sink(Sink::Normal)),
            large(Batch::one(8, 2, 128, 700, 1000)),
            large(Batch::one(8, 8, 128, 2048, 2048)),
            large(Batch::ragged(8, 1, 512, &[(100, 300), (0, 64), (257, 257), (1, 500)]).sink(Sink::Normal)),
        ],
    }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "attention_dq",
            family: Family::Attention,
            summary: "attention backward: gradient of the queries, deterministic",
            equation: "dq[i] = scale sum_j P[i,j] (dO[i].v[j] - delta[i]) k[j], P[i,j] = exp(scale q[i].k[j] - total[i])",
            tolerance: "calc_diff 1e-4",
            source: "V4 specification 1.12; Dao, FlashAttention-2 (2023), algorithm 2",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(AttentionConfig::of_queries(128))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(AttentionDq::new(apply(AttentionConfig::of_queries(128), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(scale, AttentionConfig::of_queries, problem)
    }
}
