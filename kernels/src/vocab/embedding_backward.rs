//! Embedding gradient: a scatter-add in a fixed order.

use super::embedding::EmbeddingConfig;
use crate::inputs::Inputs;
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::embedding as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// `grad[ids[t]] += d_out[t]` for all tokens, those of one id in ascending order and in fp32; negative ids are skipped.
///
/// `order` lists the tokens by id, as [`token_order`](super::token_order::token_order) does: the block of an id's first token walks through
/// the rest, so that no row has two writers.
#[kernel(static_dims(dim))]
pub fn embedding_backward(
    t: T,
    #[dims(tokens)] ids: &Tensor<i32, 1>,
    #[dims(tokens)] order: &Tensor<i32, 1>,
    #[dims(tokens, dim)] d_out: &Tensor<bf16, 2>,
    #[dims(vocab, dim)] grad: &mut Tensor<f32, 2>,
    #[comptime] cfg: EmbeddingConfig,
) {
    let EmbeddingConfig { cols, threads, .. } = cfg;
    let [p, c] = t.grid([ids.dim(0), grad.dim(1).ceil_div(cols)], threads);
    let id_at = |p: Idx| ids[order[p].to_index()];
    let id = id_at(p);
    if id >= 0 && (p == 0 || id_at(p - 1) != id) {
        let sum = t.fragment::<f32, 1>([cols]);
        t.clear(sum);
        let next = t.var::<i32>(p.cast::<i32>());
        let at = || next.get().to_index();
        t.repeat_while(
            || at() < ids.dim(0) && id_at(at()) == id,
            || {
                let token = order[at()].to_index();
                for i in t.parallel(cols) {
                    sum[i] += d_out[(token, c * cols + i)].cast::<f32>();
                }
                next.set(next.get() + 1);
            },
        );
        for i in t.parallel(cols) {
            grad[(id.to_index(), c * cols + i)] += sum[i];
        }
    }
}

/// The library's entry.
pub struct Entry;

fn problem(tokens: usize, vocab: usize, dim: usize, cfg: EmbeddingConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(12);
    let ids = Value::Tensor(inputs.integers(DType::I32, &[tokens], -1, vocab as i64)?);
    let by_token: Vec<i32> = ids.f32s().iter().map(|&id| id as i32).collect();
    let mut order: Vec<i32> = (0..tokens as i32).collect();
    order.sort_by_key(|&t| by_token[t as usize]);
    let grad = inputs.normal(DType::F32, &[vocab, dim], 1.0)?;
    let before = Value::Tensor(grad.clone()).f32s();
    let args = vec![
        ids,
        Value::Tensor(DynTensor::from_slice(&[tokens], &order)?),
        Value::Tensor(inputs.normal(DType::BF16, &[tokens, dim], 1.0)?),
        Value::Tensor(grad),
    ];
    let work = Work { flops: 0.0, bytes: (tokens * dim) as f64 * (2.0 + 8.0) };
    let verify = move |args: &[Value]| {
        let want = reference::embedding_backward(&before, &by_token, &args[2].f32s(), dim);
        vec![Comparison { output: "grad", verdict: compare(&args[3].f32s(), &want, Tolerance::CalcDiff(1e-12)) }]
    };
    Ok(Problem { kernel: Box::new(EmbeddingBackward::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(tokens: usize, vocab: usize, dim: usize) -> Case {
    let name = format!("tokens={tokens} vocab={vocab} dim={dim}");
    Case::new(name, EmbeddingConfig::default(), move |cfg| problem(tokens, vocab, dim, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "embedding_backward",
            family: Family::Vocab,
            summary: "embedding gradient: scatter-add without atomics, in a fixed order",
            equation: "grad[ids[t]] += d_out[t]",
            tolerance: "calc_diff 1e-12",
            source: "V4 specification 7",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(EmbeddingConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(EmbeddingBackward::new(apply(EmbeddingConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(0, 3, 64), case(1, 1, 100), case(40, 7, 64), case(9, 30, 1030)],
            Scale::Representative => vec![case(4096, 4040, 7168)],
            Scale::Full => vec![case(8192, 16160, 1024)],
        }
    }
}
