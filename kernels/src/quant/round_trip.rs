//! Simulated quantisation in place: bf16 through e4m3 or e2m1 with power-of-two scale factors and back, as in training and
//! in the reference inference code.

use super::problem::{format, matrix};
use super::scale::{Code, power, power_exponent};
use crate::choice::with_type;
use crate::inputs::Inputs;
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::quant as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Config of [`quant_round_trip`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = group > 0 && group <= 128 && columns.is_multiple_of(group))]
pub struct RoundTripConfig {
    /// e2m1 instead of e4m3.
    pub fp4: bool,
    /// Columns that share a scale factor.
    pub group: usize,
    /// Leading columns that take part; the others stay. 0 for all of them.
    pub columns: usize,
    /// Rows of a tile.
    #[tune(8, 16, 32)]
    pub bm: usize,
    #[tune(64, 128)]
    pub threads: usize,
}

impl Default for RoundTripConfig {
    /// The 448 unrotated channels of a key, in groups of 64.
    fn default() -> RoundTripConfig {
        RoundTripConfig { fp4: false, group: 64, columns: 448, bm: 32, threads: 64 }
    }
}

/// `x[i, j] = bf16(rne(x[i, j] / s) * s)` for the leading columns of `x` [m, n], with `s` the power of two at or above
/// `max(amax, floor) / max` of the group.
#[kernel(static_dims(n))]
pub fn quant_round_trip<Q: Code>(
    t: T,
    #[strided]
    #[dims(m, n)]
    x: &mut Tensor<bf16, 2>,
    #[comptime] cfg: RoundTripConfig,
) {
    let RoundTripConfig { group, bm, .. } = cfg;
    let width = x.static_dim(1);
    let columns = if cfg.columns == 0 { width } else { cfg.columns };
    t.assert((columns <= width).into(), "quant_round_trip: more columns take part than there are");
    let [g, b] = t.grid((columns.div_ceil(group), x.dim(0).ceil_div(bm)), cfg.threads);
    let (row, col) = (b * bm, g * group);
    let tile = t.fragment::<f32, 2>([bm, group]);
    t.cast(x.at((row, col)), tile);
    let amax = t.fragment::<f32, 1>([bm]);
    t.reduce_absmax(tile, amax, 1);
    for (i, j) in t.parallel((bm, group)) {
        let exponent = power_exponent(amax[i].max(Q::AMAX_FLOOR), Q::MAX);
        tile[(i, j)] = (tile[(i, j)] * power(254 - exponent)).cast::<Q>().cast::<f32>() * power(exponent);
    }
    t.cast(tile, x.at((row, col)));
}

/// The library's entry.
pub struct Entry;

fn launcher(cfg: RoundTripConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    let codes = if cfg.fp4 { DType::F4E2M1 } else { DType::F8E4M3 };
    with_type!(codes, Q in [F8E4M3 = f8e4m3, F4E2M1 = f4e2m1], Ok(Box::new(QuantRoundTrip::<Q>::new(cfg))))
}

fn problem(rows: usize, cols: usize, cfg: RoundTripConfig) -> Result<Problem, ProblemError> {
    if cfg.columns > cols {
        return Err(ProblemError::Unsupported(format!("{} columns take part, there are {cols}", cfg.columns)));
    }
    let x = Value::Tensor(matrix(&mut Inputs::new(20), DType::BF16, rows, cols)?);
    let before = x.f32s();
    let args = vec![x];
    let bytes = 2.0 * Work::of(&args).bytes;
    // A second launch changes nothing: what came out has a group's largest value on the grid of the same scale factor.
    let verify = move |args: &[Value]| {
        let columns = if cfg.columns == 0 { cols } else { cfg.columns };
        let leading: Vec<f32> = before.chunks(cols).flat_map(|row| row[..columns].iter().copied()).collect();
        let codes = format(if cfg.fp4 { DType::F4E2M1 } else { DType::F8E4M3 });
        let trip = reference::round_trip(&leading, rows, columns, codes, cfg.group);
        let mut want = before.clone();
        for (row, trip) in want.chunks_mut(cols).zip(trip.chunks(columns)) {
            row[..columns].copy_from_slice(trip);
        }
        vec![Comparison::exact_f32("x", &args[0].f32s(), &want)]
    };
    Ok(Problem { kernel: launcher(cfg)?, work: Work { flops: 0.0, bytes }, args, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "quant_round_trip",
            family: Family::Quant,
            summary: "simulated quantisation in place: through e4m3 or e2m1 and back to bf16",
            equation: "x[i,j] = bf16(rne(x[i,j] / s) * s), s = 2^ceil(log2(max(amax, floor) / max))",
            tolerance: "exact",
            source: "V4 specification 4.4, 1.2, 1.4; DeepSeek-V4 act_quant and fp4_act_quant in place",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(RoundTripConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        launcher(apply(RoundTripConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |rows: usize, cols: usize, cfg: RoundTripConfig| {
            let codes = if cfg.fp4 { "f4e2m1" } else { "f8e4m3" };
            let columns = if cfg.columns == 0 { cols } else { cfg.columns };
            let name = format!("m={rows} n={cols} columns={columns} {codes} group={}", cfg.group);
            Case::new(name, cfg, move |cfg| problem(rows, cols, cfg))
        };
        let keys = RoundTripConfig::default();
        let indexer = RoundTripConfig { fp4: true, group: 32, columns: 0, ..keys };
        match scale {
            Scale::Small => vec![
                case(0, 512, keys),
                case(1, 512, keys),
                case(37, 512, keys),
                case(37, 128, indexer),
                case(7, 72, RoundTripConfig { group: 16, columns: 64, ..indexer }),
            ],
            Scale::Representative => vec![case(8192, 512, keys)],
            Scale::Full => vec![case(4001, 512, keys), case(64 * 4096, 128, indexer)],
        }
    }
}
