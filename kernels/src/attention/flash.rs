//! Dense attention forward with an online softmax over blocks of keys.

use super::{FLOOR, LOG2_E, Segment};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::attention::Attention;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Tile sizes of [`flash_attention`] and which keys and logits take part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct FlashConfig {
    /// Queries of a block.
    #[tune(64, 128)]
    pub bm: usize,
    /// Keys of a step.
    #[tune(32, 64, 128)]
    pub bn: usize,
    #[tune(1..=3)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// Query `i` of S sees the keys `j <= i + N - S` only: the last query sees the last key.
    pub causal: bool,
    /// Every head has an extra logit without a value.
    pub sink: bool,
}

impl FlashConfig {
    /// Tiles that fit registers and shared memory at a head dim.
    pub fn for_dim(d: usize) -> FlashConfig {
        let (bm, bn, stages) = match d {
            0..=128 => (128, 64, 2),
            129..=256 => (64, 64, 2),
            _ => (64, 64, 1),
        };
        FlashConfig { bm, bn, stages, threads: 128, causal: false, sink: false }
    }
}

impl Default for FlashConfig {
    fn default() -> FlashConfig {
        FlashConfig::for_dim(128)
    }
}

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
    #[comptime] cfg: FlashConfig,
) {
    let FlashConfig { bm, bn, .. } = cfg;
    let d = q.static_dim(2);
    let tiles = max_q.ceil_div(bm);
    let [tile, head, b] = t.grid((tiles, q.dim(1), cu_q.dim(0) - 1), cfg.threads);
    let kv_head = head / (q.dim(1) / k.dim(1));
    let (queries, keys) = (Segment::of(cu_q, b), Segment::of(cu_k, b));
    // Under a causal mask the last tile has the most to do: it starts first.
    let row0 = if cfg.causal { (tiles - 1 - tile) * bm } else { tile * bm };

    if row0 < queries.len {
        let rows = (queries.len - row0).min(bm);
        // How many keys row `r` sees, and so all rows of the tile, and any row of it.
        let seen = |r: Idx| if cfg.causal { keys.len.min(row0 + r + 1 + keys.len - queries.len) } else { keys.len };
        let (by_all, by_any) = (seen(Idx::from(0)), seen(rows - 1));

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
            if first + bn > keys.len {
                // Rows of another sequence: their probability is 0, but 0 * NaN is not.
                for (r, c) in t.parallel((bn, d)) {
                    v_s[(r, c)] = select(first + r < keys.len, v_s[(r, c)], 0.0);
                }
            }
            softmax.step(t, s, scale * LOG2_E, acc);
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
            if r < rows {
                o[(queries.start + row0 + r, head, c)] = (acc[(r, c)] * factor[r]).cast();
            }
        }
    }
}

/// The state of a softmax that sees its row block by block. Scores are in units of log2.
#[derive(Clone, Copy)]
struct OnlineSoftmax {
    /// Largest score so far.
    max: Fragment<f32, 1>,
    /// Sum of `exp2(score - max)` so far.
    sum: Fragment<f32, 1>,
    /// Scratch: of the block at hand.
    block: Fragment<f32, 1>,
    /// Scratch: what earlier terms shrink by.
    shrink: Fragment<f32, 1>,
}

impl OnlineSoftmax {
    fn new(t: T, rows: usize) -> OnlineSoftmax {
        let row = || t.fragment::<f32, 1>([rows]);
        let state = OnlineSoftmax { max: row(), sum: row(), block: row(), shrink: row() };
        t.fill(state.max, FLOOR);
        t.clear(state.sum);
        state
    }

    /// Takes in a block of scores in units of `1 / scale`, leaves its exponentials in their place, and rescales `acc`.
    fn step(self, t: T, s: Fragment<f32, 2>, scale: Expr<f32>, acc: Fragment<f32, 2>) {
        let [rows, cols] = s.shape();
        let [_, d] = acc.shape();
        t.reduce_max(s, self.block, 1);
        for r in t.parallel(rows) {
            let max = self.max[r].max(self.block[r] * scale);
            self.shrink.store(r, (self.max[r] - max).fast_exp2());
            self.max.store(r, max);
        }
        for (r, c) in t.parallel((rows, cols)) {
            s.store((r, c), s[(r, c)].mul_add(scale, -self.max[r]).fast_exp2());
        }
        t.reduce_sum(s, self.block, 1);
        for r in t.parallel(rows) {
            self.sum.store(r, self.sum[r].mul_add(self.shrink[r], self.block[r]));
        }
        for (r, c) in t.parallel((rows, d)) {
            acc.store((r, c), acc[(r, c)] * self.shrink[r]);
        }
    }

    /// Natural log of the sum of all exponentials of row `r`.
    fn lse(self, r: Idx) -> Expr<f32> {
        (self.max[r] + self.sum[r].log2()) * std::f32::consts::LN_2
    }
}

/// The library's entry.
pub struct Entry;

/// Multiplications of the reference above which only some queries are compared.
const REFERENCE_LIMIT: usize = 1 << 30;
/// Queries of a large problem that are compared.
const SAMPLED_TOKENS: usize = 16;

/// The sink logits of a problem.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Sink {
    None,
    Normal,
    /// One value for all heads.
    All(f32),
}

/// A ragged batch.
#[derive(Clone, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    d: usize,
    /// Queries and keys of each sequence.
    lengths: Vec<(usize, usize)>,
    sink: Sink,
}

impl Shape {
    fn one(heads: usize, kv_heads: usize, d: usize, queries: usize, keys: usize) -> Shape {
        Shape { heads, kv_heads, d, lengths: vec![(queries, keys)], sink: Sink::None }
    }

    fn ragged(heads: usize, kv_heads: usize, d: usize, lengths: &[(usize, usize)]) -> Shape {
        Shape { lengths: lengths.to_vec(), ..Shape::one(heads, kv_heads, d, 0, 0) }
    }

    fn sink(self, sink: Sink) -> Shape {
        Shape { sink, ..self }
    }

    fn case(self, cfg: FlashConfig) -> Case {
        let Shape { heads, kv_heads, d, lengths, sink } = &self;
        let lengths: Vec<String> = lengths.iter().map(|(s, n)| format!("{s}x{n}")).collect();
        let mask = if cfg.causal { "causal" } else { "full" };
        let name = format!("h={heads}/{kv_heads} d={d} {mask} sink={sink:?} s={}", lengths.join(","));
        let cfg = FlashConfig { sink: self.sink != Sink::None, ..cfg };
        Case::new(name, cfg, move |cfg| problem(&self, cfg))
    }
}

/// Ends of packed sequences, from 0.
fn bounds(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut sum = 0;
    std::iter::once(0)
        .chain(lengths.map(|n| {
            sum += n;
            sum
        }))
        .collect()
}

fn i32s(values: &[usize]) -> Result<Value, ProblemError> {
    let values: Vec<f64> = values.iter().map(|&v| v as f64).collect();
    Ok(Value::Tensor(DynTensor::from_f64(DType::I32, &[values.len()], &values)?))
}

fn problem(shape: &Shape, cfg: FlashConfig) -> Result<Problem, ProblemError> {
    let Shape { heads, kv_heads, d, ref lengths, sink } = *shape;
    let cu_q = bounds(lengths.iter().map(|l| l.0));
    let cu_k = bounds(lengths.iter().map(|l| l.1));
    let (tokens, kv_tokens) = (cu_q[lengths.len()], cu_k[lengths.len()]);
    let scale = (d as f32).powf(-0.5);
    let mut inputs = Inputs::new(2);
    let sinks = match sink {
        Sink::None => DynTensor::zeros(DType::F32, &[0])?,
        Sink::Normal => inputs.normal(DType::F32, &[heads], 1.0)?,
        Sink::All(v) => DynTensor::full(&[heads], Const::f32(v))?,
    };
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[tokens, heads, d], 1.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[kv_tokens, kv_heads, d], 1.0)?),
        // The absolute tolerance is made for values of this size, those of FlashMLA's tests.
        Value::Tensor(inputs.normal(DType::BF16, &[kv_tokens, kv_heads, d], 0.1)?),
        Value::Tensor(sinks),
        i32s(&cu_q)?,
        i32s(&cu_k)?,
        Value::Scalar(Const::index(lengths.iter().map(|l| l.0).max().unwrap_or(0) as i64)),
        Value::Scalar(Const::f32(scale)),
        Value::Tensor(output(DType::BF16, &[tokens, heads, d])?),
        Value::Tensor(output(DType::F32, &[tokens, heads])?),
    ];
    let pairs: f64 = lengths
        .iter()
        .flat_map(|&(s, n)| (0..s).map(move |i| if cfg.causal { (i + 1 + n).saturating_sub(s) } else { n }))
        .map(|n| n as f64)
        .sum();
    let work = Work::of(&args).flops(4.0 * pairs * (heads * d) as f64);
    let verify = move |args: &[Value]| {
        let (q, k, v, sinks) = (args[0].f32s(), args[1].f32s(), args[2].f32s(), args[3].f32s());
        let reference = Attention {
            q: &q,
            k: &k,
            v: &v,
            heads,
            kv_heads,
            dim_qk: d,
            dim_v: d,
            scale: f64::from(scale),
            causal: cfg.causal,
            sink: cfg.sink.then_some(&sinks),
            cu_seqlens_q: &cu_q,
            cu_seqlens_kv: &cu_k,
        };
        let large = tokens * heads * d * kv_tokens > REFERENCE_LIMIT;
        let sampled = sample_rows(tokens, if large { SAMPLED_TOKENS } else { tokens });
        let want = reference.forward_tokens(&sampled);
        let (o, lse) = (args[8].f32s(), args[9].f32s());
        let rows = |x: &[f32], width: usize| -> Vec<f32> {
            sampled.iter().flat_map(|t| x[t * width..(t + 1) * width].iter().copied()).collect()
        };
        vec![
            Comparison { output: "o", verdict: compare(&rows(&o, heads * d), &want.o, O_TOLERANCE) },
            Comparison { output: "lse", verdict: compare(&rows(&lse, heads), &want.lse, LSE_TOLERANCE) },
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
        Box::new(FlashConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(FlashAttention::new(apply(FlashConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let causal = |cfg| FlashConfig { causal: true, ..cfg };
        match scale {
            Scale::Small => {
                let full = FlashConfig { bm: 16, bn: 16, threads: 32, ..FlashConfig::default() };
                let mut cases: Vec<Case> = [(0, 5), (1, 1), (1, 40), (17, 33), (16, 16), (20, 7), (9, 0)]
                    .iter()
                    .flat_map(|&(s, n)| {
                        [full, causal(full)].map(|cfg| Shape::one(2, 1, 64, s, n).sink(Sink::Normal).case(cfg))
                    })
                    .collect();
                let ragged = [(3, 5), (0, 4), (18, 35), (5, 0), (1, 17), (6, 2)];
                cases.push(Shape::ragged(4, 2, 64, &ragged).case(full));
                cases.push(Shape::ragged(6, 2, 64, &ragged).sink(Sink::Normal).case(causal(full)));
                cases.push(Shape::ragged(1, 1, 64, &[]).case(full));
                for sink in [f32::INFINITY, f32::NEG_INFINITY] {
                    cases.push(Shape::one(2, 2, 64, 7, 19).sink(Sink::All(sink)).case(causal(full)));
                }
                cases.push(Shape::one(1, 1, 128, 21, 50).case(causal(full)));
                cases.push(Shape::one(1, 1, 256, 5, 18).case(full));
                cases.push(Shape::one(3, 1, 512, 10, 40).sink(Sink::Normal).case(causal(full)));
                cases
            }
            Scale::Representative => {
                vec![Shape::one(8, 1, 512, 1024, 1024).sink(Sink::Normal).case(causal(FlashConfig::for_dim(512)))]
            }
            Scale::Full => vec![
                Shape::one(16, 2, 128, 2048, 2048).case(causal(FlashConfig::for_dim(128))),
                Shape::one(16, 2, 128, 2048, 2048).case(FlashConfig::for_dim(128)),
                Shape::one(16, 16, 64, 1000, 3000).case(causal(FlashConfig::for_dim(64))),
                Shape::one(8, 1, 256, 1024, 2048).case(causal(FlashConfig::for_dim(256))),
                Shape::one(64, 1, 512, 512, 1024).sink(Sink::Normal).case(causal(FlashConfig::for_dim(512))),
                Shape::one(128, 1, 512, 2, 16384).sink(Sink::Normal).case(causal(FlashConfig::for_dim(512))),
                Shape::ragged(16, 1, 512, &[(1, 4096), (257, 257), (0, 100), (64, 1000), (1, 1), (500, 3000)])
                    .sink(Sink::Normal)
                    .case(causal(FlashConfig::for_dim(512))),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::normal;

    const HEADS: usize = 2;
    const D: usize = 64;

    /// Output bits and log-sum-exps of a ragged batch with one key head.
    fn run(lengths: &[(usize, usize)], q: &[bf16], k: &[bf16], v: &[bf16]) -> (Vec<bf16>, Vec<f32>) {
        let cfg = FlashConfig { bm: 16, bn: 16, threads: 32, causal: true, ..FlashConfig::default() };
        let ends = |f: fn(&(usize, usize)) -> usize| -> DeviceTensor<i32, 1> {
            let ends: Vec<i32> = bounds(lengths.iter().map(f)).iter().map(|&n| n as i32).collect();
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
                &ends(|l| l.0),
                &ends(|l| l.1),
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
