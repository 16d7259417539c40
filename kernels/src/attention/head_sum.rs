//! Attention backward: the sum of the parts in which the gradients of keys and values come.

use super::check_groups;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`attention_head_sum`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct HeadSumConfig {
    /// Keys of a block.
    #[tune(4, 8, 16)]
    pub rows: usize,
    #[tune(64, 128)]
    pub threads: usize,
}

impl Default for HeadSumConfig {
    fn default() -> HeadSumConfig {
        HeadSumConfig { rows: 8, threads: 128 }
    }
}

/// `y[j, h, c] = sum_p x[j, p, c]` over the parts of key head `h`, `h (parts / kv_heads) .. (h + 1) (parts / kv_heads)`, in fp32 in
/// ascending order: what [`attention_dkv`](super::dkv::attention_dkv) leaves in several parts for each key head.
#[kernel(static_dims(parts, kv_heads, d))]
pub fn attention_head_sum(
    t: T,
    #[dims(kv_tokens, parts, d)] x: &Tensor<f32, 3>,
    #[dims(kv_tokens, kv_heads, d)] y: &mut Tensor<bf16, 3>,
    #[comptime] cfg: HeadSumConfig,
) {
    let (rows, d) = (cfg.rows, x.static_dim(2));
    check_groups(t, x.static_dim(1), y.static_dim(1), "`parts` is not a multiple of the number of key heads");
    let of_head = x.dim(1) / y.dim(1);
    let [tile, head] = t.grid((x.dim(0).ceil_div(rows), y.dim(1)), cfg.threads);
    let (part, sum) = (t.fragment::<f32, 2>([rows, d]), t.fragment::<f32, 2>([rows, d]));
    t.clear(sum);
    for p in t.serial(of_head) {
        t.copy(x.at((tile * rows, head * of_head + p, 0)).axes([0, 2]), part);
        for (r, c) in t.parallel((rows, d)) {
            sum[(r, c)] += part[(r, c)];
        }
    }
    t.cast(sum, y.at((tile * rows, head, 0)).axes([0, 2]));
}

/// Sums of `of_head` neighbouring rows of `d` elements, in f64.
pub(super) fn sum_parts(x: &[f32], of_head: usize, d: usize) -> Vec<f32> {
    let sum = |parts: &[f32], c: usize| parts.iter().skip(c).step_by(d).map(|&v| f64::from(v)).sum::<f64>() as f32;
    x.chunks(of_head * d).flat_map(|parts| (0..d).map(move |c| sum(parts, c))).collect()
}

/// The library's entry.
pub struct Entry;

/// The rounding to bf16, which an error of the sum may turn.
const TOLERANCE: Tolerance = Tolerance::AbsRel { abs: 1e-5, rel: 1.0 / 128.0 };

fn problem(
    shape @ [tokens, parts, d]: [usize; 3],
    kv_heads: usize,
    cfg: HeadSumConfig,
) -> Result<Problem, ProblemError> {
    let args = vec![
        Value::Tensor(Inputs::new(10).normal(DType::F32, &shape, 1.0)?),
        Value::Tensor(output(DType::BF16, &[tokens, kv_heads, d])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let want = sum_parts(&args[0].f32s(), parts / kv_heads, d);
        vec![Comparison { output: "y", verdict: compare(&args[1].f32s(), &want, TOLERANCE) }]
    };
    Ok(Problem { kernel: Box::new(AttentionHeadSum::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(shape @ [tokens, parts, d]: [usize; 3], kv_heads: usize) -> Case {
    let name = format!("kv_tokens={tokens} parts={parts}/{kv_heads} d={d}");
    Case::new(name, HeadSumConfig::default(), move |cfg| problem(shape, kv_heads, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "attention_head_sum",
            family: Family::Attention,
            summary: "attention backward: sum of the parts of the gradients of keys and values, in a fixed order",
            equation: "y[j,h] = sum_p x[j,p] over the parts p of key head h",
            tolerance: "abs 1e-5 or rel 2^-7",
            source: "V4 specification 1.12",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(HeadSumConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(AttentionHeadSum::new(apply(HeadSumConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case([0, 4, 64], 2), case([1, 4, 64], 4), case([13, 6, 64], 2), case([9, 8, 128], 1)],
            Scale::Representative => vec![case([2048, 16, 128], 2)],
            Scale::Full => vec![case([4096, 64, 512], 1)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zellige::runtime::{Device, DeviceTensor};

    #[test]
    fn parts_that_no_key_head_has_alone_are_refused() {
        for device in [Device::cpu(), Device::interp(), Device::sim()] {
            let x = DeviceTensor::zeros([3, 5, 64]).unwrap();
            let mut y = DeviceTensor::zeros([3, 2, 64]).unwrap();
            let kernel = AttentionHeadSum::new(HeadSumConfig::default());
            let e = kernel.launch(&device.stream(), &x, &mut y).expect_err("5 parts of 2 heads");
            assert!(e.to_string().contains("`parts` is not a multiple"), "{e}");
        }
    }
}
