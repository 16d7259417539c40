//! Attention problems: ragged batches of random queries, keys and values, and the reference on them.

use super::AttentionConfig;
use crate::inputs::Inputs;
use crate::library::{Case, Problem, ProblemError, Value};
use crate::reference::attention::Attention;
use zellige::runtime::DynTensor;
use zellige_ir::{Const, DType};

/// The sink logits of a problem.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Sink {
    None,
    Normal,
    /// One value for all heads.
    All(f32),
}

/// A ragged batch.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub heads: usize,
    pub kv_heads: usize,
    pub d: usize,
    /// Queries and keys of each sequence.
    pub lengths: Vec<(usize, usize)>,
    pub sink: Sink,
}

impl Batch {
    pub fn one(heads: usize, kv_heads: usize, d: usize, queries: usize, keys: usize) -> Batch {
        Batch { heads, kv_heads, d, lengths: vec![(queries, keys)], sink: Sink::None }
    }

    pub fn ragged(heads: usize, kv_heads: usize, d: usize, lengths: &[(usize, usize)]) -> Batch {
        Batch { lengths: lengths.to_vec(), ..Batch::one(heads, kv_heads, d, 0, 0) }
    }

    pub fn sink(self, sink: Sink) -> Batch {
        Batch { sink, ..self }
    }

    /// What tells this batch from others.
    pub fn name(&self, cfg: AttentionConfig) -> String {
        let Batch { heads, kv_heads, d, lengths, sink } = self;
        let lengths: Vec<String> = lengths.iter().map(|(s, n)| format!("{s}x{n}")).collect();
        let mask = if cfg.causal { "causal" } else { "full" };
        format!("h={heads}/{kv_heads} d={d} {mask} sink={sink:?} s={}", lengths.join(","))
    }

    /// The case of a kernel on this batch.
    pub fn case(
        self,
        cfg: AttentionConfig,
        build: impl Fn(&Batch, AttentionConfig) -> Result<Problem, ProblemError> + Send + Sync + 'static,
    ) -> Case {
        let name = self.name(cfg);
        self.named_case(name, cfg, build)
    }

    /// The same under a name of its own.
    pub fn named_case(
        self,
        name: String,
        cfg: AttentionConfig,
        build: impl Fn(&Batch, AttentionConfig) -> Result<Problem, ProblemError> + Send + Sync + 'static,
    ) -> Case {
        let cfg = AttentionConfig { sink: self.sink != Sink::None, ..cfg };
        Case::new(name, cfg, move |cfg| {
            if cfg.sink != (self.sink != Sink::None) {
                return Err(ProblemError::Unsupported(format!(
                    "`sink` is {}, but the problem has sinks: {:?}",
                    cfg.sink, self.sink
                )));
            }
            build(&self, cfg)
        })
    }

    pub fn cu_q(&self) -> Vec<usize> {
        ends(self.lengths.iter().map(|l| l.0))
    }

    pub fn cu_k(&self) -> Vec<usize> {
        ends(self.lengths.iter().map(|l| l.1))
    }

    pub fn tokens(&self) -> usize {
        self.lengths.iter().map(|l| l.0).sum()
    }

    pub fn kv_tokens(&self) -> usize {
        self.lengths.iter().map(|l| l.1).sum()
    }

    /// Shape of queries and outputs.
    pub fn q_shape(&self) -> [usize; 3] {
        [self.tokens(), self.heads, self.d]
    }

    /// Shape of keys and values.
    pub fn k_shape(&self) -> [usize; 3] {
        [self.kv_tokens(), self.kv_heads, self.d]
    }

    /// A number for each head and token, of those for each token and head.
    pub fn by_head(&self, x: &[f32]) -> Result<DynTensor, ProblemError> {
        let by_head: Vec<f32> = (0..self.heads).flat_map(|h| x.iter().skip(h).step_by(self.heads).copied()).collect();
        Ok(DynTensor::from_slice(&[self.heads, self.tokens()], &by_head)?)
    }

    /// Queries of the longest sequence, and keys of the longest, as arguments.
    pub fn longest(&self) -> (Value, Value) {
        let max = |f: fn(&(usize, usize)) -> usize| {
            Value::Scalar(Const::index(self.lengths.iter().map(f).max().unwrap_or(0) as i64))
        };
        (max(|l| l.0), max(|l| l.1))
    }

    pub fn scale(&self) -> f32 {
        (self.d as f32).powf(-0.5)
    }

    /// Pairs of a query and a key it sees, over all heads.
    pub fn pairs(&self, causal: bool) -> f64 {
        let seen = |(s, n): (usize, usize)| -> f64 {
            (0..s).map(|i| if causal { (i + 1 + n).saturating_sub(s) } else { n } as f64).sum()
        };
        self.heads as f64 * self.lengths.iter().map(|&l| seen(l)).sum::<f64>()
    }

    /// Queries, keys, values and sinks.
    pub fn inputs(&self, inputs: &mut Inputs) -> Result<[Value; 4], ProblemError> {
        let sinks = match self.sink {
            Sink::None => DynTensor::zeros(DType::F32, &[0])?,
            Sink::Normal => inputs.normal(DType::F32, &[self.heads], 1.0)?,
            Sink::All(v) => DynTensor::full(&[self.heads], Const::f32(v))?,
        };
        Ok([
            Value::Tensor(inputs.normal(DType::BF16, &self.q_shape(), 1.0)?),
            Value::Tensor(inputs.normal(DType::BF16, &self.k_shape(), 1.0)?),
            // The absolute tolerance of the output is made for values of this size, those of FlashMLA's tests.
            Value::Tensor(inputs.normal(DType::BF16, &self.k_shape(), 0.1)?),
            Value::Tensor(sinks),
        ])
    }

    /// The ends of the sequences.
    pub fn bounds(&self) -> Result<[Value; 2], ProblemError> {
        let tensor = |ends: Vec<usize>| -> Result<Value, ProblemError> {
            let ends: Vec<i32> = ends.iter().map(|&n| n as i32).collect();
            Ok(Value::Tensor(DynTensor::from_slice(&[ends.len()], &ends)?))
        };
        Ok([tensor(self.cu_q())?, tensor(self.cu_k())?])
    }

    /// Runs `f` on the reference over the given [`inputs`](Self::inputs).
    pub fn with_reference<R>(&self, inputs: &[Value], causal: bool, f: impl FnOnce(&Attention<'_>) -> R) -> R {
        let [q, k, v, sink] = [0, 1, 2, 3].map(|i| inputs[i].f32s());
        f(&Attention {
            q: &q,
            k: &k,
            v: &v,
            heads: self.heads,
            kv_heads: self.kv_heads,
            dim_qk: self.d,
            dim_v: self.d,
            scale: f64::from(self.scale()),
            causal,
            sink: (self.sink != Sink::None).then_some(&sink),
            cu_seqlens_q: &self.cu_q(),
            cu_seqlens_kv: &self.cu_k(),
        })
    }
}

/// Ends of packed sequences, from 0.
pub(super) fn ends(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut sum = 0;
    let running = lengths.map(|n| {
        sum += n;
        sum
    });
    std::iter::once(0).chain(running).collect()
}
