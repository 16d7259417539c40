//! Dense attention forward with an online softmax over blocks of keys.

use super::problem::{Batch, Sink};
use super::{AttentionConfig, Segment, UNEVEN, check_groups, clear_rows_from, visible};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use crate::softmax::{LOG2_E, OnlineSoftmax};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// `o_i = sum_j exp(s_ij) v_j / (sum_j exp(s_ij) + exp(sink_h))` with `s_ij = scale q_i . k_j` over the keys of the query's
/// sequence, and `lse_i = ln sum_j exp(s_ij)`, without the sink. A query that sees no key has `o = 0` and `lse = +inf`.
///
/// Sequence `b` of a ragged batch owns the queries `cu_q[b]..cu_q[b + 1]`, at most `max_q`, and the keys
/// `cu_k[b]..cu_k[b + 1]`; lengths may be zero. Head `h` reads the key head `h / (heads / kv_heads)`. `sink` is read if the
/// config says so and may be empty otherwise. `scale` is positive.
///
/// Scores and sums in fp32, probabilities rounded to bf16 for the second product. Keys are visited in order from the start of the
/// sequence, so the bits of a row depend on its own sequence only, and keys of others may be NaN.
///
/// After Dao, "FlashAttention-2" (2023), algorithm 1.
#[kernel(static_dims(heads, kv_heads, d))]
pub fn flash_attention(
    t: T,
    #[dims(tokens, heads, d)] q: &Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] k: &Tensor<bf16, 3>,
    #[dims(kv_tokens, kv_heads, d)] v: &Tensor<bf16, 3>,
    #[dims(sinks)] sink: &Tensor<f32, 1>,
    #[dims(bounds)] cu_q: &Tensor<i32, 1>,
    #[dims(bounds)] cu_k: &Tensor<i32, 1>,
    max_q: Idx,
    scale: Expr<f32>,
    #[dims(tokens, heads, d)] o: &mut Tensor<bf16, 3>,
    #[dims(tokens, heads)] lse: &mut Tensor<f32, 2>,
    #[comptime] cfg: AttentionConfig,
) {
    let AttentionConfig { bm, bn, .. } = cfg;
    let d = q.static_dim(2);
    check_groups(t, q.static_dim(1), k.static_dim(1), UNEVEN);
    let tiles = max_q.ceil_div(bm);
    let [tile, head, b] = t.grid((tiles, q.dim(1), cu_q.dim(0) - 1), cfg.threads);
    let kv_head = head / (q.dim(1) / k.dim(1));
    let (queries, keys) = (Segment::of(cu_q, b), Segment::of(cu_k, b));
    // Under a causal mask the last tile has the most to do: it starts first.
    let row0 = if cfg.causal { (tiles - 1 - tile) * bm } else { tile * bm };

    if row0 < queries.len {
        let rows = (queries.len - row0).min(bm);
        let seen = |r: Idx| visible(row0 + r, queries, keys, cfg.causal);
        let (by_all, by_any) = (seen(0.into()), seen(rows - 1));

        let q_s = t.shared::<bf16, 2>([bm, d]);
        let (k_s, v_s) = (t.shared::<bf16, 2>([bn, d]), t.shared::<bf16, 2>([bn, d]));
        let (s, p) = (t.fragment::<f32, 2>([bm, bn]), t.fragment::<bf16, 2>([bm, bn]));
        let acc = t.fragment::<f32, 2>([bm, d]);
        let softmax = OnlineSoftmax::new(t, bm);
        t.copy(q.at((queries.start + row0, head, 0)).axes([0, 2]), q_s);
        t.clear(acc);
        for step in t.pipelined(by_any.ceil_div(bn), cfg.stages) {
            let first = step * bn;
            t.copy(k.at((keys.start + first, kv_head, 0)).axes([0, 2]), k_s);
            t.copy(v.at((keys.start + first, kv_head, 0)).axes([0, 2]), v_s);
            t.clear(s);
            t.gemm(q_s, k_s.t(), s);
            if first + bn > by_all {
                for (r, c) in t.parallel((bm, bn)) {
                    s[(r, c)] = select(first + c < seen(r), s[(r, c)], f32::NEG_INFINITY);
                }
            }
            clear_rows_from(t, [v_s], keys.len - first);
            softmax.step(t, s, scale * LOG2_E);
            for (r, c) in t.parallel((bm, d)) {
                acc[(r, c)] *= softmax.shrink[r];
            }
            t.cast(s, p);
            t.gemm(p, v_s, acc);
        }

        let factor = t.fragment::<f32, 1>([bm]);
        for r in t.parallel(bm) {
            let (total, empty) = (softmax.lse(r), softmax.sum[r] == 0.0);
            let keep = if cfg.sink { 1.0 / (1.0 + (sink[head] - total).exp()) } else { lit(1.0) };
            factor[r] = select(empty, 0.0, keep / softmax.sum[r]);
            if r < rows {
                lse[(queries.start + row0 + r, head)] = select(empty, f32::INFINITY, total);
            }
        }
        for (r, c) in t.parallel((bm, d)) {
            acc[(r, c)] *= factor[r];
        }
        if rows == bm {
            t.cast(acc, o.at((queries.start + row0, head, 0)).axes([0, 2]));
        } else {
            // What follows belongs to another sequence.
            for (r, c) in t.parallel((bm, d)) {
                if r < rows {
                    o[(queries.start + row0 + r, head, c)] = acc[(r, c)].cast();
                }
            }
        }
    }
}

/// The library's entry.
pub struct Entry;

/// Multiplications of the reference above which only some queries are compared.
const REFERENCE_LIMIT: usize = 1 << 30;
/// Queries of a large problem that are compared.
const SAMPLED_TOKENS: usize = 16;

fn problem(batch: &Batch, cfg: AttentionConfig) -> Result<Problem, ProblemError> {
    let batch = batch.clone();
    let [q, k, v, sink] = batch.inputs(&mut Inputs::new(2))?;
    let [cu_q, cu_k] = batch.bounds()?;
    let args = vec![
        q,
        k,
        v,
        sink,
        cu_q,
        cu_k,
        batch.longest().0,
        Value::Scalar(Const::f32(batch.scale())),
        Value::Tensor(output(DType::BF16, &batch.q_shape())?),
        Value::Tensor(output(DType::F32, &batch.q_shape()[..2])?),
    ];
    let work = Work::of(&args).flops(4.0 * batch.pairs(cfg.causal) * batch.d as f64);
    let verify = move |args: &[Value]| {
        let [tokens, heads, d] = batch.q_shape();
        let large = tokens * heads * d * batch.kv_tokens() > REFERENCE_LIMIT;
        let sampled = sample_rows(tokens, if large { SAMPLED_TOKENS } else { tokens });
        let want = batch.with_reference(args, cfg.causal, |reference| reference.forward_tokens(&sampled));
        let rows = |x: &Value, width: usize| -> Vec<f32> {
            let x = x.f32s();
            sampled.iter().flat_map(|t| x[t * width..(t + 1) * width].iter().copied()).collect()
        };
        vec![
            Comparison { output: "o", verdict: compare(&rows(&args[8], heads * d), &want.o, O_TOLERANCE) },
            Comparison { output: "lse", verdict: compare(&rows(&args[9], heads), &want.lse, LSE_TOLERANCE) },
        ]
    };
    Ok(Problem { kernel: Box::new(FlashAttention::new(cfg)), args, work, verify: Box::new(verify) })
}

/// FlashMLA's prefill tests.
pub(super) const O_TOLERANCE: Tolerance = Tolerance::AbsRelCos { abs: 8e-4, rel: 3.01 / 128.0, cos: 7e-6 };
/// FlashMLA's prefill tests.
pub(super) const LSE_TOLERANCE: Tolerance = Tolerance::AbsRel { abs: 1e-6, rel: 2.01 / 65536.0 };

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "flash_attention",
            family: Family::Attention,
            summary: "dense attention forward: grouped heads, causal or not, sink, ragged batches",
            equation: "o[i] = sum_j exp(s[i,j]) v[j] / (sum_j exp(s[i,j]) + exp(sink[h])), s[i,j] = scale q[i].k[j]",
            tolerance: "o: abs 8e-4 or rel 3.01/128, cos 7e-6; lse: abs 1e-6 or rel 2.01/65536",
            source: "V4 specification 1.7; Dao, FlashAttention-2 (2023)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(AttentionConfig::forward(128))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(FlashAttention::new(apply(AttentionConfig::forward(128), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let causal = |cfg| AttentionConfig { causal: true, ..cfg };
        match scale {
            Scale::Small => {
                let full = AttentionConfig { bm: 16, bn: 16, threads: 32, ..AttentionConfig::forward(64) };
                let lengths = [(0, 5), (1, 1), (1, 40), (17, 33), (16, 16), (20, 7), (9, 0)];
                let masks = [full, causal(full)];
                let sinks = |batch: Batch| batch.sink(Sink::Normal);
                let mut cases: Vec<Case> = lengths
                    .iter()
                    .flat_map(|&(s, n)| masks.map(|cfg| sinks(Batch::one(2, 1, 64, s, n)).case(cfg, problem)))
                    .collect();
                let ragged = [(3, 5), (0, 4), (18, 35), (5, 0), (1, 17), (6, 2)];
                cases.push(Batch::ragged(4, 2, 64, &ragged).case(full, problem));
                cases.push(sinks(Batch::ragged(6, 2, 64, &ragged)).case(causal(full), problem));
                cases.push(Batch::ragged(1, 1, 64, &[]).case(full, problem));
                for sink in [f32::INFINITY, f32::NEG_INFINITY] {
                    cases.push(Batch::one(2, 2, 64, 7, 19).sink(Sink::All(sink)).case(causal(full), problem));
                }
                cases.push(Batch::one(2, 1, 64, 130, 70).case(causal(full), problem));
                cases.push(Batch::one(1, 1, 128, 21, 50).case(causal(full), problem));
                cases.push(Batch::one(1, 1, 256, 5, 18).case(full, problem));
                // Four warps share what the rows of a wide head accumulate.
                let wide = AttentionConfig { bn: 32, threads: 128, ..full };
                cases.push(sinks(Batch::one(3, 1, 512, 10, 40)).case(causal(wide), problem));
                cases
            }
            Scale::Representative => {
                vec![
                    Batch::one(8, 1, 512, 1024, 1024)
                        .sink(Sink::Normal)
                        .case(causal(AttentionConfig::forward(512)), problem),
                ]
            }
            Scale::Full => {
                let cfg = AttentionConfig::forward;
                let ragged = [(1, 4096), (257, 257), (0, 100), (64, 1000), (1, 1), (500, 3000)];
                let causals = [
                    Batch::ragged(32, 32, 128, &[(4096, 4096); 4]),
                    Batch::one(32, 32, 128, 16384, 16384),
                    Batch::one(16, 2, 128, 2048, 2048),
                    Batch::one(16, 16, 64, 1000, 3000),
                    Batch::one(8, 1, 256, 1024, 2048),
                    Batch::one(64, 1, 512, 512, 1024).sink(Sink::Normal),
                    Batch::one(128, 1, 512, 2, 16384).sink(Sink::Normal),
                    Batch::ragged(16, 1, 512, &ragged).sink(Sink::Normal),
                ];
                let mut cases = vec![Batch::one(16, 2, 128, 2048, 2048).case(cfg(128), problem)];
                cases.extend(causals.map(|batch| {
                    let cfg = causal(cfg(batch.d));
                    batch.case(cfg, problem)
                }));
                cases
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::ends;
    use super::*;
    use crate::inputs::normal;

    const HEADS: usize = 2;
    const D: usize = 64;

    /// Output bits and log-sum-exps of a ragged batch with one key head.
    fn run(lengths: &[(usize, usize)], q: &[bf16], k: &[bf16], v: &[bf16]) -> (Vec<bf16>, Vec<f32>) {
        let cfg = AttentionConfig { bm: 16, bn: 16, threads: 32, causal: true, ..AttentionConfig::forward(128) };
        let bounds = |f: fn(&(usize, usize)) -> usize| -> DeviceTensor<i32, 1> {
            let ends: Vec<i32> = ends(lengths.iter().map(f)).iter().map(|&n| n as i32).collect();
            DeviceTensor::from_slice([ends.len()], &ends).unwrap()
        };
        let (tokens, kv_tokens) = (q.len() / (HEADS * D), k.len() / D);
        let mut o = DeviceTensor::<bf16, 3>::zeros([tokens, HEADS, D]).unwrap();
        let mut lse = DeviceTensor::<f32, 2>::zeros([tokens, HEADS]).unwrap();
        FlashAttention::new(cfg)
            .launch(
                &Device::interp().stream(),
                &DeviceTensor::from_slice([tokens, HEADS, D], q).unwrap(),
                &DeviceTensor::from_slice([kv_tokens, 1, D], k).unwrap(),
                &DeviceTensor::from_slice([kv_tokens, 1, D], v).unwrap(),
                &DeviceTensor::zeros([0]).unwrap(),
                &bounds(|l| l.0),
                &bounds(|l| l.1),
                index(lengths.iter().map(|l| l.0).max().unwrap_or(0) as i64),
                0.125,
                &mut o,
                &mut lse,
            )
            .unwrap();
        (o.to_vec().unwrap(), lse.to_vec().unwrap())
    }

    /// A sequence gives the same bits alone and between others, even if those hold NaN.
    #[test]
    fn a_row_depends_on_its_own_sequence_only() {
        let mut inputs = Inputs::new(5);
        let mut draw = |n: usize| inputs.draw(n, |rng| bf16::from_f64(normal(rng)));
        let (s, n) = (19, 21);
        let (q, k, v) = (draw(s * HEADS * D), draw(n * D), draw(n * D));
        let alone = run(&[(s, n)], &q, &k, &v);
        let nan = |n: usize| vec![bf16::NAN; n];
        let (before, after) = ((3, 5), (4, 9));
        let pad = |x: &[bf16], width: usize, b: usize, a: usize| [&nan(b * width)[..], x, &nan(a * width)].concat();
        let among = run(
            &[before, (s, n), after],
            &pad(&q, HEADS * D, before.0, after.0),
            &pad(&k, D, before.1, after.1),
            &pad(&v, D, before.1, after.1),
        );
        assert_eq!(among.0[before.0 * HEADS * D..][..s * HEADS * D], alone.0);
        assert_eq!(among.1[before.0 * HEADS..][..s * HEADS], alone.1);
        assert!(among.0[..before.0 * HEADS * D].iter().all(|o| o.is_nan()), "NaN is not hidden either");
    }
}
