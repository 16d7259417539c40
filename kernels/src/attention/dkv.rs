//! Attention backward: the gradients of keys and values.

use super::dq::{GRADIENT, backward_args, cases};
use super::head_sum::sum_parts;
use super::problem::{Batch, Sink};
use super::{AttentionConfig, Segment, UNEVEN, check_groups, clear_rows_from, visible};
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
/// query by query, in fp32: no atomics, the same bits in every run. `dS` is the product of `P` as rounded to bf16.
///
/// `parts` is `kv_heads` or a multiple of it that divides `heads`: the query heads of a key head may be dealt to several blocks, each
/// with a part of the sum, where keys and key heads alone give too few. Parts are then best in fp32;
/// [`attention_head_sum`](super::head_sum::attention_head_sum) adds them.
#[kernel(static_dims(heads, kv_heads, parts, d))]
pub fn attention_dkv<G: Float>(
    t: T,
    #[dims(tokens, heads, d)] q: &Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] k: &Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] v: &Tensor<bf16, 3>,
    #[dims(tokens, heads, d)] d_o: &Tensor<bf16, 3>,
    #[dims(heads, tokens)] total: &Tensor<f32, 2>,
    #[dims(heads, tokens)] delta: &Tensor<f32, 2>,
    #[dims(bounds)] cu_q: &Tensor<i32, 1>,
    #[dims(bounds)] cu_k: &Tensor<i32, 1>,
    max_k: Idx,
    scale: Expr<f32>,
    #[dims(kv_tokens, parts, d)] dk: &mut Tensor<G, 3>,
    #[dims(kv_tokens, parts, d)] dv: &mut Tensor<G, 3>,
    #[comptime] cfg: AttentionConfig,
) {
    let AttentionConfig { bm, bn, .. } = cfg;
    let d = q.static_dim(2);
    check_groups(t, q.static_dim(1), k.static_dim(1), UNEVEN);
    check_groups(t, q.static_dim(1), dk.static_dim(1), "the number of query heads is not a multiple of `parts`");
    check_groups(t, dk.static_dim(1), k.static_dim(1), "`parts` is not a multiple of the number of key heads");
    let [tile, part, b] = t.grid((max_k.ceil_div(bn), dk.dim(1), cu_q.dim(0) - 1), cfg.threads);
    let kv_head = part / (dk.dim(1) / k.dim(1));
    let of_part = q.dim(1) / dk.dim(1);
    // The heads of a part take turns.
    let at_of = |step: Idx| (part * of_part + step % of_part, step / of_part);
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
        // The sums of a tile's queries, fetched a tile ahead so that no product waits for them.
        let (next, sums) = (t.fragment::<f32, 2>([bm, 2]), t.shared::<f32, 2>([2, bm]));
        let fetch = |head: Idx, row0: Idx| {
            for (r, s) in t.parallel((bm, 2)) {
                let at = (head, queries.start + row0 + r);
                // Those of another sequence may be no numbers.
                next[(r, s)] = select(row0 + r < queries.len, select(s == 0, total[at], delta[at]), 0.0);
            }
        };
        let (dk_acc, dv_acc) = (t.fragment::<f32, 2>([bn, d]), t.fragment::<f32, 2>([bn, d]));
        t.copy(k.at((first_key, kv_head, 0)).axes([0, 2]), k_s);
        t.copy(v.at((first_key, kv_head, 0)).axes([0, 2]), v_s);
        t.clear(dk_acc);
        t.clear(dv_acc);
        fetch(part * of_part, skipped * bm);
        for at in t.pipelined(steps * of_part, cfg.stages) {
            let (head, step) = at_of(at);
            let row0 = (skipped + step) * bm;
            let first_row = queries.start + row0;
            t.copy(q.at((first_row, head, 0)).axes([0, 2]), q_s);
            t.copy(d_o.at((first_row, head, 0)).axes([0, 2]), d_o_s);
            clear_rows_from(t, [q_s, d_o_s], queries.len - row0);
            for (r, s) in t.parallel((bm, 2)) {
                sums[(s, r)] = next[(r, s)];
            }
            let (next_head, next_step) = at_of(at + 1);
            fetch(next_head, (skipped + next_step) * bm);
            t.clear(p);
            t.gemm(k_s, q_s.t(), p);
            t.clear(ds);
            t.gemm(v_s, d_o_s.t(), ds);
            for (c, r) in t.parallel((bn, bm)) {
                p[(c, r)] = p[(c, r)].mul_add(scale * LOG2_E, -(sums[(0, r)] * LOG2_E)).fast_exp2();
            }
            if row0 + bm > queries.len || key0 + bn > visible(row0, queries, keys, cfg.causal) {
                for (c, r) in t.parallel((bn, bm)) {
                    let row = row0 + r;
                    let seen = row < queries.len && key0 + c < visible(row, queries, keys, cfg.causal);
                    p[(c, r)] = select(seen, p[(c, r)], 0.0);
                }
            }
            t.cast(p, p_b);
            t.gemm(p_b, d_o_s, dv_acc);
            for (c, r) in t.parallel((bn, bm)) {
                ds[(c, r)] = p_b[(c, r)].cast::<f32>() * (ds[(c, r)] - sums[(1, r)]);
            }
            t.cast(ds, ds_b);
            t.gemm(ds_b, q_s, dk_acc);
        }
        for (r, c) in t.parallel((bn, d)) {
            if key0 + r < keys.len {
                dk[(first_key + r, part, c)] = (dk_acc[(r, c)] * scale).cast();
                dv[(first_key + r, part, c)] = dv_acc[(r, c)].cast();
            }
        }
    }
}

/// The library's entry.
pub struct Entry;

fn problem(batch: &Batch, parts: usize, cfg: AttentionConfig) -> Result<Problem, ProblemError> {
    let batch = batch.clone();
    // The sinks have left their trace in `total`; the reference needs them as they were drawn.
    let [_, _, _, sink] = batch.inputs(&mut Inputs::new(9))?;
    let mut args = backward_args(&batch, cfg)?;
    args.push(batch.longest().1);
    args.push(Value::Scalar(Const::f32(batch.scale())));
    let dtype = if parts == batch.kv_heads { DType::BF16 } else { DType::F32 };
    let shape = [batch.kv_tokens(), parts, batch.d];
    args.push(Value::Tensor(output(dtype, &shape)?));
    args.push(Value::Tensor(output(dtype, &shape)?));
    let work = Work::of(&args).flops(8.0 * batch.pairs(cfg.causal) * batch.d as f64);
    let verify = move |args: &[Value]| {
        let forward = [args[0].clone(), args[1].clone(), args[2].clone(), sink.clone()];
        let d_o = args[3].f32s();
        let want = batch.with_reference(&forward, cfg.causal, |reference| reference.backward(&d_o));
        let sums = |x: &Value| sum_parts(&x.f32s(), parts / batch.kv_heads, batch.d);
        vec![
            Comparison { output: "dk", verdict: compare(&sums(&args[10]), &want.dk, GRADIENT) },
            Comparison { output: "dv", verdict: compare(&sums(&args[11]), &want.dv, GRADIENT) },
        ]
    };
    Ok(Problem { kernel: launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
}

fn launcher(dtype: DType, cfg: AttentionConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    match dtype {
        DType::BF16 => Ok(Box::new(AttentionDkv::<bf16>::new(cfg))),
        DType::F32 => Ok(Box::new(AttentionDkv::<f32>::new(cfg))),
        other => Err(ProblemError::Unsupported(format!("attention_dkv writes bf16 or f32, not {other}"))),
    }
}

/// The case of a batch whose query heads are dealt to `parts` blocks for each tile of keys.
fn in_parts(batch: Batch, parts: usize, cfg: AttentionConfig) -> Case {
    let name = format!("{} parts={parts}", batch.name(cfg));
    batch.named_case(name, cfg, move |batch, cfg| problem(batch, parts, cfg))
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

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let dtype = dtypes.get("dk").copied().unwrap_or(DType::BF16);
        launcher(dtype, apply(AttentionConfig::of_keys(128), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let mut cases = cases(scale, AttentionConfig::of_keys, |batch, cfg| problem(batch, batch.kv_heads, cfg));
        let small = AttentionConfig { bm: 16, bn: 16, threads: 32, causal: true, ..AttentionConfig::of_keys(64) };
        let large = |d| AttentionConfig { causal: true, ..AttentionConfig::of_keys(d) };
        cases.extend(match scale {
            Scale::Small => vec![
                in_parts(Batch::one(4, 1, 64, 17, 33), 4, small),
                in_parts(Batch::ragged(8, 2, 64, &[(3, 5), (0, 4), (18, 35)]).sink(Sink::Normal), 4, small),
            ],
            Scale::Representative => vec![],
            Scale::Full => vec![
                in_parts(Batch::one(16, 2, 128, 2048, 2048), 16, large(128)),
                in_parts(Batch::one(8, 1, 512, 512, 512), 8, large(512)),
            ],
        });
        cases
    }
}
