//! Stochastic rounding of f32 to bf16.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::stochastic as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige::random::philox;
use zellige_ir::{Const, DType};

/// Config of [`stochastic_round`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct StochasticConfig {
    /// Groups of eight elements that a block handles.
    #[tune(128, 256, 512)]
    pub groups: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for StochasticConfig {
    fn default() -> StochasticConfig {
        StochasticConfig { groups: 256, threads: 256 }
    }
}

/// Elements that share one draw of the generator: four words of two 16-bit halves.
const PER_DRAW: usize = 8;

/// Rounds `x` `[n]` to `y` `[n]`: up or down with the probability of the distance to the other neighbour, so that the mean is
/// exact. Element `i` adds half `i mod 2` (the lower first) of word `i / 2 mod 4` of Philox4x32-10 with counter
/// `(i / 8, offset)` and key `seed` below the bf16 mantissa and cuts off the rest: the result depends on `seed`, `offset` and
/// `i` alone. Infinities, NaN and values that bf16 holds stay.
#[kernel]
pub fn stochastic_round(
    t: T,
    #[dims(n)] x: &Tensor<f32, 1>,
    #[dims(n)] y: &mut Tensor<bf16, 1>,
    seed: Expr<u64>,
    offset: Expr<u64>,
    #[comptime] cfg: StochasticConfig,
) {
    let [b] = t.grid([x.dim(0).ceil_div(cfg.groups * PER_DRAW)], cfg.threads);
    let halves = |v: Expr<u64>| [v.cast::<u32>(), (v >> 32u64).cast::<u32>()];
    let (key, [offset_low, offset_high]) = (halves(seed), halves(offset));
    for q in t.parallel(cfg.groups) {
        let group = b * cfg.groups + q;
        let [low, high] = halves(group.cast::<u64>());
        let words = philox([low, high, offset_low, offset_high], key);
        for i in 0..PER_DRAW {
            let at = group * PER_DRAW + i;
            let random = (words[i / 2] >> (16 * (i as u32 % 2))) & 0xffffu32;
            let v = x[at];
            let rounded = ((v.bitcast::<u32>() + random) >> 16u32).cast::<u16>().bitcast::<bf16>();
            y[at] = select(v.is_finite(), rounded, v.cast::<bf16>());
        }
    }
}

/// The library's entry.
pub struct Entry;

fn problem(n: usize, seed: u64, offset: u64, cfg: StochasticConfig) -> Result<Problem, ProblemError> {
    let mut x = Inputs::new(21).draw(n, |rng| crate::inputs::normal(rng) as f32);
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.5, f32::from_bits(1), -1e-40, f32::MAX];
    x.iter_mut().zip(special).for_each(|(x, special)| *x = special);
    let args = vec![
        Value::Tensor(DynTensor::from_slice::<f32>(&[n], &x)?),
        Value::Tensor(output(DType::BF16, &[n])?),
        Value::Scalar(Const::from_bits(DType::U64, seed)),
        Value::Scalar(Const::from_bits(DType::U64, offset)),
    ];
    let verify = move |args: &[Value]| {
        let round = |(i, &x): (usize, &f32)| {
            let (group, low, high) = (i as u64 / 8, |v: u64| v as u32, |v: u64| (v >> 32) as u32);
            let counter = [low(group), high(group), low(offset), high(offset)];
            let words = reference::philox4x32_10(counter, [low(seed), high(seed)]);
            reference::bf16_round_stochastic(x, (words[i % 8 / 2] >> (16 * (i % 2))) as u16)
        };
        let want: Vec<f32> = x.iter().enumerate().map(round).collect();
        vec![Comparison::exact_f32("y", &args[1].f32s(), &want)]
    };
    let kernel = Box::new(StochasticRound::new(cfg));
    Ok(Problem { kernel, work: Work::of(&args), args, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "stochastic_round",
            family: Family::Quant,
            summary: "stochastic rounding of f32 to bf16 with a counter-based generator",
            equation: "y[i] = bf16_truncate(x[i] + r_i ulp / 2^16), r_i = 16 bits of Philox4x32-10(i / 8, offset; seed)",
            tolerance: "exact",
            source: "V4 specification 4.4; Salmon et al., SC 2011",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(StochasticConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(StochasticRound::new(apply(StochasticConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |n: usize, seed: u64, offset: u64| {
            let name = format!("n={n} seed={seed:#x} offset={offset:#x}");
            Case::new(name, StochasticConfig::default(), move |cfg| problem(n, seed, offset, cfg))
        };
        match scale {
            Scale::Small => vec![case(0, 1, 0), case(1, 1, 0), case(2077, 0x1234_5678_9abc_def0, 1 << 33)],
            Scale::Representative => vec![case(4096 * 7168, 42, 0)],
            Scale::Full => vec![case(3072 * 7168 + 5, 7, 3)],
        }
    }
}
