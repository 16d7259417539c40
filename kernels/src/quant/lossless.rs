//! FP4 weights to FP8 without loss: e2m1 with a scale factor per 32 elements of a row to e4m3 with one per square block.

use super::problem::quantized;
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::quant::{self, CastSpec, CodeFormat, ScaleFormat};
use crate::reference::quant_lossless as reference;
use rand::Rng;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Rows that are widened at a time.
const ROWS: usize = 32;

/// Config of [`per_block_cast_lossless`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = group > 0 && block_rows > 0 && block_cols > 0 && block_rows.is_multiple_of(ROWS) && block_cols.is_multiple_of(group) && group.is_multiple_of(2))]
pub struct LosslessConfig {
    /// Columns that share a scale factor of the input.
    pub group: usize,
    /// Rows that share one of the output.
    pub block_rows: usize,
    /// Columns that share one of the output.
    pub block_cols: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for LosslessConfig {
    fn default() -> LosslessConfig {
        LosslessConfig { group: 32, block_rows: 128, block_cols: 128, threads: 128 }
    }
}

/// Widens `x` [n, k] with powers of two `x_sf` [n, ceil(k / group)] to `codes` [n, k] with one scale factor per block. That
/// is the block's largest over 2^6 (stopping at 2^-127), and the rest goes into the exponent of the element: e2m1 times 2^6
/// ends below 448, and down to 2^-5 every product is an e4m3 value. The launch fails where a block's scale factors lie
/// further apart, more than 2^11.
#[kernel(static_dims(k))]
pub fn per_block_cast_lossless<S: Element>(
    t: T,
    #[dims(n, k)] x: &Tensor<f4e2m1, 2>,
    #[dims(n, groups)] x_sf: &Tensor<S, 2>,
    #[dims(n, k)] codes: &mut Tensor<f8e4m3, 2>,
    #[dims(sf_rows, sf_cols)] sf: &mut Tensor<S, 2>,
    #[comptime] cfg: LosslessConfig,
) {
    let LosslessConfig { group, block_rows, block_cols, .. } = cfg;
    let (n, cols) = (x.dim(0), x.static_dim(1));
    let (groups, per_block) = (cols.div_ceil(group), block_cols / group);
    let [bx, by] = t.grid((cols.div_ceil(block_cols), n.ceil_div(block_rows)), cfg.threads);
    let (row, col) = (by * block_rows, bx * block_cols);
    // Exponents with a bias of 127.
    let exponents = t.fragment::<i32, 2>([block_rows, per_block]);
    for (i, g) in t.parallel((block_rows, per_block)) {
        let (r, c) = (row + i, bx * per_block + g);
        let exponent = x_sf[(r, c)].cast::<e8m0>().bitcast::<u8>().cast::<i32>();
        exponents[(i, g)] = select(r < n && c < groups, exponent, 0);
    }
    let (of_columns, of_block) = (t.fragment::<i32, 1>([per_block]), t.fragment::<i32, 0>([]));
    t.reduce_max(exponents, of_columns, 0);
    t.reduce_max(of_columns, of_block, 0);
    let largest = of_block[[]];
    let out = (largest - 6).max(0);
    let shift = t.shared::<f32, 2>([block_rows, per_block]);
    for (i, g) in t.parallel((block_rows, per_block)) {
        let (r, c) = (row + i, bx * per_block + g);
        let up = exponents[(i, g)] - out;
        t.assert(
            up >= -5 || r >= n || c >= groups,
            "the scale factors of a block lie more than 2^11 apart: the widening would not be lossless",
        );
        shift[(i, g)] = ((up.clamp(-5, 6) + 127) << 23).bitcast::<f32>();
    }
    let values = t.fragment::<f32, 2>([ROWS, block_cols]);
    for step in t.serial(block_rows / ROWS) {
        let first = step * ROWS;
        t.cast(x.at((row + first, col)), values);
        for (i, j) in t.parallel((ROWS, block_cols)) {
            values[(i, j)] *= shift[(first + i, j / group)];
        }
        t.cast(values, codes.at((row + first, col)));
    }
    sf[(by, bx)] = out.cast::<u8>().bitcast::<e8m0>().cast::<S>();
}

/// The library's entry.
pub struct Entry;

fn launcher(sf: DType, cfg: LosslessConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(sf, S in [E8M0 = e8m0, F32 = f32], Ok(Box::new(PerBlockCastLossless::<S>::new(cfg))))
}

fn spec(group: usize) -> CastSpec {
    CastSpec::per_token(CodeFormat::E2m1, group, ScaleFormat::Ue8m0)
}

fn problem(rows: usize, cols: usize, sf: DType, cfg: LosslessConfig) -> Result<Problem, ProblemError> {
    // Rows over eleven octaves, the widest spread a block may have once a row's own is taken off.
    let mut x = Inputs::new(18)
        .draw(rows * cols, |rng| rng.random_range(0.5f32..1.0) * 3.0f32.copysign(rng.random_range(-1.0..1.0)));
    for (r, row) in x.chunks_mut(cols.max(1)).enumerate() {
        let octave = 2f32.powi((r % 11) as i32 - 5);
        row.iter_mut().for_each(|v| *v *= octave);
    }
    let q = quant::cast(&x, rows, cols, &spec(cfg.group));
    let (codes, x_sf) = quantized(&q)?;
    let blocks = [rows.div_ceil(cfg.block_rows), cols.div_ceil(cfg.block_cols)];
    let args = vec![
        Value::Tensor(codes),
        Value::Tensor(x_sf.cast(sf)?),
        Value::Tensor(output(DType::F8E4M3, &[rows, cols])?),
        Value::Tensor(output(sf, &blocks)?),
    ];
    let verify = move |args: &[Value]| {
        let want = reference::widen_lossless(&q, (cfg.block_rows, cfg.block_cols)).expect("the spread is small enough");
        vec![
            Comparison::exact_f32("codes", &args[2].f32s(), &CodeFormat::E4m3.decode(&want.codes)),
            Comparison::exact_f32("sf", &args[3].f32s(), &want.scales),
        ]
    };
    Ok(Problem { kernel: launcher(sf, cfg)?, work: Work::of(&args), args, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "per_block_cast_lossless",
            family: Family::Quant,
            summary: "e2m1 weights with a scale factor per 32 elements to e4m3 with one per block, without loss",
            equation: "sf[a,b] = max(x_sf in block) / 2^6; codes[i,j] = x[i,j] * x_sf[i,j/32] / sf[a,b]",
            tolerance: "exact",
            source: "V4 specification 4.3, 4.4; TileKernels per_block_cast_lossless",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(LosslessConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        launcher(dtypes.get("x_sf").copied().unwrap_or(DType::E8M0), apply(LosslessConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |rows: usize, cols: usize, sf: DType, cfg: LosslessConfig| {
            let name = format!("n={rows} k={cols} {}x{} sf={sf}", cfg.block_rows, cfg.block_cols);
            Case::new(name, cfg, move |cfg| problem(rows, cols, sf, cfg))
        };
        let cfg = LosslessConfig::default();
        let small = LosslessConfig { block_rows: 32, block_cols: 32, ..cfg };
        match scale {
            Scale::Small => vec![
                case(0, 64, DType::E8M0, small),
                case(1, 32, DType::E8M0, small),
                case(40, 96, DType::F32, small),
                case(130, 160, DType::E8M0, cfg),
                case(20, 64, DType::E8M0, LosslessConfig { group: 16, ..small }),
            ],
            Scale::Representative => vec![case(6144, 7168, DType::E8M0, cfg)],
            Scale::Full => vec![
                case(24576, 7168, DType::E8M0, cfg),
                case(7168, 3072, DType::E8M0, cfg),
                case(4096, 4096, DType::F32, cfg),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_wide_a_spread_fails_the_launch() {
        let cfg = LosslessConfig { block_rows: 32, block_cols: 64, ..LosslessConfig::default() };
        let launch = |exponents: [i32; 2]| {
            let scales = exponents.map(|e| e8m0::from_f32(2f32.powi(e)));
            let x = DeviceTensor::from_slice([1, 64], &[f4e2m1::from_f32(1.5); 64]).unwrap();
            let x_sf = DeviceTensor::from_slice([1, 2], &scales).unwrap();
            let mut codes = DeviceTensor::from_slice([1, 64], &[f8e4m3::from_f32(0.0); 64]).unwrap();
            let mut sf = DeviceTensor::from_slice([1, 1], &[e8m0::from_f32(1.0)]).unwrap();
            let stream = Device::interp().stream();
            PerBlockCastLossless::<e8m0>::new(cfg).launch(&stream, &x, &x_sf, &mut codes, &mut sf)
        };
        assert!(launch([0, -11]).is_ok());
        let error = launch([0, -12]).unwrap_err().to_string();
        assert!(error.contains("more than 2^11 apart"), "{error}");
    }
}
