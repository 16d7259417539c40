//! Problems with known answers for the casts: inputs with edge values, and the expected codes and scale factors.

use super::cast::{CastConfig, CastMode, QuantCast, QuantCastTransposed, RequantCast};
use super::scale::ScaleLayout;
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{Case, Comparison, Dtypes, Problem, ProblemError, Value, Work};
use crate::reference::quant::{self as reference, CastSpec, CodeFormat, Quantized, ScaleFormat};
use crate::reference::quant_channel;
use zellige::prelude::*;
use zellige_ir::DType;

/// Which of the kernels in [`super::cast`] a problem is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    Plain,
    Transposed,
    /// From rows chosen by position and, with an input group, quantised as this type.
    Requant {
        tokens: usize,
    },
}

/// A cast of a matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CastProblem {
    pub variant: Variant,
    pub rows: usize,
    pub cols: usize,
    pub x: DType,
    pub codes: DType,
    pub sf: DType,
    pub cfg: CastConfig,
}

/// A matrix of normal numbers over several octaves, with rows of zeros of both signs, and a few values far outside the rest.
///
/// # Errors
/// If there is no memory for it.
pub fn matrix(inputs: &mut Inputs, dtype: DType, rows: usize, cols: usize) -> Result<DynTensor, ProblemError> {
    let mut values = inputs.draw(rows * cols, |rng| 2.0 * crate::inputs::normal(rng));
    for (r, row) in values.chunks_mut(cols.max(1)).enumerate() {
        match r % 7 {
            // Zeros, every other one negative.
            2 => row.iter_mut().enumerate().for_each(|(i, v)| *v = if i % 2 == 0 { 0.0 } else { -0.0 }),
            // Below the floor on amax.
            3 => row.iter_mut().for_each(|v| *v *= 1e-7),
            // One value far outside.
            4 => row[r % cols] = -3000.0,
            // Exact powers of two, for ties.
            5 => row.iter_mut().enumerate().for_each(|(i, v)| *v = 2f64.powi(i as i32 % 9 - 4) * v.signum()),
            _ => {}
        }
    }
    Ok(DynTensor::from_f64(dtype, &[rows, cols], &values)?)
}

/// The reference's name of a code type.
pub fn format(codes: DType) -> CodeFormat {
    if codes == DType::F4E2M1 { CodeFormat::E2m1 } else { CodeFormat::E4m3 }
}

/// The tensors of a quantised matrix: codes and row-major scale factors.
///
/// # Errors
/// If there is no memory for them.
pub fn quantized(q: &Quantized) -> Result<(DynTensor, DynTensor), ProblemError> {
    let dtype = match q.format {
        CodeFormat::E4m3 => DType::F8E4M3,
        CodeFormat::E2m1 => DType::F4E2M1,
    };
    let (groups_rows, groups_cols) = q.scale_shape();
    Ok((
        DynTensor::from_bytes(dtype, &[q.rows, q.cols], &q.codes)?,
        DynTensor::from_slice::<f32>(&[groups_rows, groups_cols], &q.scales)?,
    ))
}

/// The type of scale factors in a layout, of which `given` are those of a problem: packed ones are words.
pub fn sf_dtype(layout: ScaleLayout, given: DType) -> DType {
    match (layout, given) {
        (ScaleLayout::Packed, _) => DType::I32,
        (ScaleLayout::RowMajor | ScaleLayout::ColumnMajor, DType::I32) => DType::F32,
        (ScaleLayout::RowMajor | ScaleLayout::ColumnMajor, given) => given,
    }
}

/// Checks that scale factors of this type can lie so.
///
/// # Errors
/// If only packed ones are words, or packed ones are not.
pub fn check_sf(layout: ScaleLayout, sf: DType) -> Result<(), ProblemError> {
    if sf_dtype(layout, sf) == sf {
        return Ok(());
    }
    Err(ProblemError::Unsupported(format!(
        "no scale factors of {sf} in layout {layout:?}: there they are {}",
        sf_dtype(layout, sf)
    )))
}

/// Shape of the scale factors of a matrix in a layout.
pub fn sf_shape(rows: usize, groups: usize, layout: ScaleLayout) -> [usize; 2] {
    match layout {
        ScaleLayout::RowMajor => [rows, groups],
        ScaleLayout::ColumnMajor => [groups, reference::tma_aligned_rows(rows)],
        ScaleLayout::Packed => [groups.div_ceil(4), reference::tma_aligned_rows(rows)],
    }
}

/// Scale factors `[rows, groups]` in a layout and type.
///
/// # Errors
/// If there is no memory for them.
pub fn lay_out(
    scales: &[f32],
    [rows, groups]: [usize; 2],
    layout: ScaleLayout,
    dtype: DType,
) -> Result<DynTensor, ProblemError> {
    let shape = sf_shape(rows, groups, layout);
    let wide = |v: &[f32]| v.iter().map(|&s| f64::from(s)).collect::<Vec<_>>();
    Ok(match layout {
        ScaleLayout::RowMajor => DynTensor::from_f64(dtype, &shape, &wide(scales))?,
        ScaleLayout::ColumnMajor => {
            DynTensor::from_f64(dtype, &shape, &wide(&reference::scales_column_major(scales, rows, groups)))?
        }
        ScaleLayout::Packed => {
            DynTensor::from_slice::<i32>(&shape, &reference::scales_packed_ue8m0(scales, rows, groups))?
        }
    })
}

/// Compares a tensor of codes with the reference's.
pub fn compare_codes(name: &'static str, got: &Value, want: &[u8], format: CodeFormat) -> Comparison {
    Comparison::exact_f32(name, &got.f32s(), &format.decode(want))
}

impl CastProblem {
    /// The reference's description of the cast.
    pub fn spec(&self) -> CastSpec {
        let codes = format(self.codes);
        let scaling = if self.cfg.reciprocal { reference::Scaling::Reciprocal } else { reference::Scaling::Divide };
        CastSpec {
            codes,
            block: (self.cfg.block_rows, self.cfg.group(self.cols)),
            scale: if self.cfg.ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 },
            scaling,
            amax_floor: codes.amax_floor(),
        }
    }

    /// A case of the library.
    pub fn case(self) -> Case {
        Case::new(self.name(), self.cfg, move |cfg| {
            CastProblem { cfg, sf: sf_dtype(cfg.layout, self.sf), ..self }.build()
        })
    }

    fn name(&self) -> String {
        let CastProblem { rows, cols, x, codes, sf, cfg, .. } = self;
        let mut name = format!("m={rows} k={cols} {x}->{codes} {}x{}", cfg.block_rows, cfg.group(*cols));
        for (on, word) in [
            (cfg.ue8m0, " ue8m0"),
            (cfg.reciprocal, " reciprocal"),
            (cfg.layout == ScaleLayout::ColumnMajor, " column-major"),
            (cfg.layout == ScaleLayout::Packed, " packed"),
            (cfg.mode == CastMode::ScalesOnly, " scales-only"),
            (cfg.mode == CastMode::GivenScales, " given-scales"),
            (cfg.gathered, " gathered"),
            (self.variant == Variant::Transposed, " transposed"),
            (*sf == DType::E8M0, " e8m0"),
        ] {
            if on {
                name.push_str(word);
            }
        }
        if cfg.input_group > 0 {
            name.push_str(&format!(" input-group={}", cfg.input_group));
        }
        name
    }

    /// The problem.
    ///
    /// # Errors
    /// If the types have no kernel or there is no memory.
    pub fn build(self) -> Result<Problem, ProblemError> {
        let CastProblem { variant, rows, cols, cfg, .. } = self;
        let kernel = self.launcher()?;
        let mut inputs = Inputs::new(2);
        let mut args = Vec::new();
        // What is cast, in f32.
        let values = match variant {
            Variant::Plain | Variant::Transposed => {
                let x = Value::Tensor(matrix(&mut inputs, self.x, rows, cols)?);
                let values = x.f32s();
                args.push(x);
                values
            }
            Variant::Requant { tokens } => {
                if !cfg.gathered && tokens != rows {
                    let message =
                        format!("{tokens} rows become {rows} only where they are gathered: leave `gathered` on");
                    return Err(ProblemError::Unsupported(message));
                }
                let x = matrix(&mut inputs, DType::BF16, tokens, cols)?;
                let mut wide = Value::Tensor(x.clone()).f32s();
                let (x, input_sf) = if cfg.input_group > 0 {
                    let spec = CastSpec::per_token(format(self.x), cfg.input_group, ScaleFormat::F32);
                    let q = reference::cast(&wide, tokens, cols, &spec);
                    wide = q.dequantize();
                    quantized(&q)?
                } else {
                    (x, DynTensor::zeros(DType::F32, &[0, 0])?)
                };
                let token = |p: usize| match p % 5 {
                    3 => -1,
                    _ => (p * 7 % tokens.max(1)) as i32,
                };
                let positions: Vec<i32> =
                    if cfg.gathered { (0..rows).map(token).collect() } else { (0..rows as i32).collect() };
                let pos = DynTensor::from_slice::<i32>(&[rows], &positions)?;
                args.extend([x, input_sf, pos].map(Value::Tensor));
                crate::reference::moe::fused::expand_to_fused(&wide, cols, &positions)
            }
        };
        let spec = self.spec();
        let groups = [rows.div_ceil(spec.block.0), cols.div_ceil(spec.block.1)];
        let codes_shape = if variant == Variant::Transposed { [cols, rows] } else { [rows, cols] };
        args.push(Value::Tensor(output(self.codes, &codes_shape)?));
        args.push(Value::Tensor(if cfg.mode == CastMode::GivenScales {
            lay_out(&reference::cast(&values, rows, cols, &spec).scales, groups, cfg.layout, self.sf)?
        } else {
            output(self.sf, &sf_shape(groups[0], groups[1], cfg.layout))?
        }));
        let work = Work::of(&args);
        let verify = move |args: &[Value]| {
            let [codes, sf] = &args[args.len() - 2..] else { unreachable!("codes and scale factors come last") };
            let q = reference::cast(&values, rows, cols, &spec);
            let mut out = Vec::new();
            if cfg.mode != CastMode::ScalesOnly {
                let want = match (variant, cfg.mode) {
                    (Variant::Transposed, _) => {
                        quant_channel::cast_per_channel_transposed(&values, rows, cols, &spec).codes
                    }
                    (_, CastMode::GivenScales) => {
                        reference::cast_with_scales(&values, rows, cols, spec.codes, spec.block, &q.scales)
                    }
                    (_, CastMode::Full | CastMode::ScalesOnly) => q.codes.clone(),
                };
                out.push(compare_codes("codes", codes, &want, spec.codes));
            }
            let want = lay_out(&q.scales, groups, cfg.layout, self.sf).expect("as large as the kernel's own");
            out.push(Comparison::exact("sf", sf, &want));
            out
        };
        Ok(Problem { kernel, args, work, verify: Box::new(verify) })
    }

    /// The kernel for the problem's types.
    ///
    /// # Errors
    /// If there is none.
    pub fn launcher(&self) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = self.cfg;
        check_sf(cfg.layout, self.sf)?;
        let quantised = matches!(self.x, DType::F8E4M3 | DType::F4E2M1);
        match self.variant {
            Variant::Transposed if cfg.block_cols != 1 => {
                return Err(ProblemError::Unsupported(format!(
                    "codes are transposed only where scale factors belong to columns: block_cols is {}, not 1",
                    cfg.block_cols
                )));
            }
            Variant::Requant { .. } if quantised != (cfg.input_group > 0) => {
                return Err(ProblemError::Unsupported(format!(
                    "x of {} with input_group={}: a quantised x has groups, another has 0",
                    self.x, cfg.input_group
                )));
            }
            Variant::Plain | Variant::Transposed | Variant::Requant { .. } => {}
        }
        with_type!(
            self.codes,
            Q in [F8E4M3 = f8e4m3, F4E2M1 = f4e2m1],
            with_type!(self.sf, S in [F32 = f32, E8M0 = e8m0, I32 = i32], {
                match self.variant {
                    Variant::Plain => with_type!(self.x, X in [BF16 = bf16, F16 = f16, F32 = f32], {
                        Ok(Box::new(QuantCast::<X, Q, S>::new(cfg)))
                    }),
                    Variant::Transposed => with_type!(self.x, X in [BF16 = bf16, F32 = f32], {
                        Ok(Box::new(QuantCastTransposed::<X, Q, S>::new(cfg)))
                    }),
                    Variant::Requant { .. } => {
                        with_type!(self.x, X in [BF16 = bf16, F8E4M3 = f8e4m3, F4E2M1 = f4e2m1], {
                            Ok(Box::new(RequantCast::<X, Q, S>::new(cfg)))
                        })
                    }
                }
            })
        )
    }

    /// The kernel for the user's types, by parameter name.
    ///
    /// # Errors
    /// If there is none.
    pub fn instantiate(
        variant: Variant,
        mut cfg: CastConfig,
        dtypes: &Dtypes,
    ) -> Result<Box<dyn Kernel>, ProblemError> {
        let of = |name: &str, default| dtypes.get(name).copied().unwrap_or(default);
        let x = of("x", DType::BF16);
        if matches!(x, DType::F8E4M3 | DType::F4E2M1) && cfg.input_group == 0 {
            cfg.input_group = 128;
        }
        let problem = CastProblem {
            variant,
            rows: 0,
            cols: 0,
            x,
            codes: of("codes", DType::F8E4M3),
            sf: of("sf", sf_dtype(cfg.layout, DType::F32)),
            cfg,
        };
        problem.launcher()
    }
}
