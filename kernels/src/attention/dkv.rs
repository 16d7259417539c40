//! Attention backward: the gradients of keys and values.

use super::dq::{GRADIENT, backward_args, cases};
use super::problem::Batch;
use super::{AttentionConfig, Segment, clear_rows_from, visible};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::compare;
use crate::softmax::LOG2_E;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// `dv_j = sum_i P_ij dO_i` and `dk_j = scale sum_i P_ij (dO_i . v_j - delta_i) q_i` over the queries of the key head's group that see key
/// `j`, with `P_ij = exp(scale q_i . k_j - total_i)`.
///
/// Arguments as for [`attention_dq`](super::dq::attention_dq), with the longest number of keys. A block owns a tile of keys and adds
/// head by head, query by query, in fp32: no atomics, the same bits in every run.
#[kernel(static_dims(heads, kv_heads, d))]
pub fn attention_dkv(
    t: T,
    #[dims(tokens, heads, d)] q: &Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] k: &Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] v: &Tensor<bf16, 3>,
    #[dims(tokens, heads, d)] d_o: &Tensor<bf16, 3>,
    #[dims(tokens, heads)] total: &Tensor<f32, 2>,
    #[dims(tokens, heads)] delta: &Tensor<f32, 2>,
    #[dims(bounds)] cu_q: &Tensor<i32, 1>,
    #[dims(bounds)] cu_k: &Tensor<i32, 1>,
    max_k: Idx,
    scale: Expr<f32>,
    #[dims(kv_tokens, kv_heads, d)] dk: &mut Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] dv: &mut Tensor<bf16, 3>,
    #[comptime] cfg: AttentionConfig,
) {
    let AttentionConfig { bm, bn, .. } = cfg;
    let d = q.static_dim(2);
    let [tile, kv_head, b] = t.grid((max_k.ceil_div(bn), k.dim(1), cu_q.dim(0) - 1), cfg.threads);
    let group = q.dim(1) / k.dim(1);
    let (queries, keys) = (Segment::of(cu_q, b), Segment::of(cu_k, b));
    let key0 = tile * bn;

    if key0 < keys.len {
        let first_key = keys.start + key0;
        // Under a causal mask the queries before key0 - (N - S) see none of these keys.
        let skipped = if cfg.causal { (key0 + queries.len - keys.len).max(0) / bm } else { Idx::from(0) };
        let steps = queries.len.ceil_div(bm) - skipped;

        let (k_s, v_s) = (t.shared::<bf16, 2>([bn, d]), t.shared::<bf16, 2>([bn, d]));
        let (q_s, d_o_s) = (t.shared::<bf16, 2>([bm, d]), t.shared::<bf16, 2>([bm, d]));
        // Keys along rows, queries along columns: P and dS are left operands as they stand.
        let (p, ds) = (t.fragment::<f32, 2>([bn, bm]), t.fragment::<f32, 2>([bn, bm]));
        let (p_b, ds_b) = (t.fragment::<bf16, 2>([bn, bm]), t.fragment::<bf16, 2>([bn, bm]));
        let (row_total, row_delta) = (t.fragment::<f32, 1>([bm]), t.fragment::<f32, 1>([bm]));
        let (dk_acc, dv_acc) = (t.fragment::<f32, 2>([bn, d]), t.fragment::<f32, 2>([bn, d]));
        t.copy(k.at((first_key, kv_head, 0)).axes([0, 2]), k_s);
        t.copy(v.at((first_key, kv_head, 0)).axes([0, 2]), v_s);
        t.clear(dk_acc);
        t.clear(dv_acc);
        // One loop over all heads of the group, so that copies run ahead across heads.
        for at in t.pipelined(steps * group, cfg.stages) {
            let (head, step) = (kv_head * group + at / steps, at % steps);
            let row0 = (skipped + step) * bm;
            let first_row = queries.start + row0;
            t.copy(q.at((first_row, head, 0)).axes([0, 2]), q_s);
            t.copy(d_o.at((first_row, head, 0)).axes([0, 2]), d_o_s);
            clear_rows_from(t, q_s, queries.len - row0);
            clear_rows_from(t, d_o_s, queries.len - row0);
            for r in t.parallel(bm) {
                row_total[r] = total[(first_row + r, head)] * LOG2_E;
                row_delta[r] = delta[(first_row + r, head)];
            }
            t.clear(p);
            t.gemm(k_s, q_s.t(), p);
            t.clear(ds);
            t.gemm(v_s, d_o_s.t(), ds);
            for (c, r) in t.parallel((bn, bm)) {
                let row = row0 + r;
                let seen = row < queries.len && key0 + c < visible(row, queries, keys, cfg.causal);
                let weight = p[(c, r)].mul_add(scale * LOG2_E, -row_total[r]).fast_exp2();
                p[(c, r)] = select(seen, weight, 0.0);
                ds[(c, r)] = select(seen, weight * (ds[(c, r)] - row_delta[r]), 0.0);
            }
            t.cast(p, p_b);
            t.gemm(p_b, d_o_s, dv_acc);
            t.cast(ds, ds_b);
            t.gemm(ds_b, q_s, dk_acc);
        }
        for (r, c) in t.parallel((bn, d)) {
            if key0 + r < keys.len {
                dk[(first_key + r, kv_head, c)] = (dk_acc[(r, c)] * scale).cast();
                dv[(first_key + r, kv_head, c)] = dv_acc[(r, c)].cast();
            }
        }
    }
}

/// The library's entry.
pub struct Entry;

fn problem(batch: &Batch, cfg: AttentionConfig) -> Result<Problem, ProblemError> {
    let batch = batch.clone();
    // The sinks have left their trace in `total`; the reference needs them as they were drawn.
    let [_, _, _, sink] = batch.inputs(&mut Inputs::new(9))?;
    let mut args = backward_args(&batch, cfg)?;
    args.push(batch.longest().1);
    args.push(Value::Scalar(Const::f32(batch.scale())));
    args.push(Value::Tensor(output(DType::BF16, &batch.k_shape())?));
    args.push(Value::Tensor(output(DType::BF16, &batch.k_shape())?));
    let work = Work::of(&args).flops(8.0 * batch.pairs(cfg.causal) * batch.d as f64);
    let verify = move |args: &[Value]| {
        let forward = [args[0].clone(), args[1].clone(), args[2].clone(), sink.clone()];
        let d_o = args[3].f32s();
        let want = batch.with_reference(&forward, cfg.causal, |reference| reference.backward(&d_o));
        vec![
            Comparison { output: "dk", verdict: compare(&args[10].f32s(), &want.dk, GRADIENT) },
            Comparison { output: "dv", verdict: compare(&args[11].f32s(), &want.dv, GRADIENT) },
        ]
    };
    Ok(Problem { kernel: Box::new(AttentionDkv::new(cfg)), args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "attention_dkv",
            family: Family::Attention,
            summary: "attention backward: gradients of keys and values, deterministic",
            equation: "dv[j] = sum_i P[i,j] dO[i], dk[j] = scale sum_i P[i,j] (dO[i].v[j] - delta[i]) q[i]",
            tolerance: "calc_diff 1e-4",
            source: "V4 specification 1.12; Dao, FlashAttention-2 (2023), algorithm 2",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(AttentionConfig::of_keys(128))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(AttentionDkv::new(apply(AttentionConfig::of_keys(128), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(scale, AttentionConfig::of_keys, problem)
    }
}
