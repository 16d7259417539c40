//! Evaluation of a function's prelude on the host.
//!
//! A launcher runs this before every launch with the dims and scalars of the call: it yields the grid and the
//! prelude's values, which the body may use. Depends on the scalar semantics only.

use crate::entity::EntityId;
use crate::eval::{self, EvalError};
use crate::func::{Dim, Func, Param, Value, ValueDef};
use crate::numerics::{Const, bitcast, cast};
use crate::op::OpKind;
use crate::span::Span;
use smallvec::SmallVec;

/// Why a grid cannot be computed.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum PreludeError {
    #[error("dim `{0}` has no extent")]
    MissingDim(String),
    #[error("scalar `{0}` has no value")]
    MissingScalar(String),
    #[error("{span}: {error}")]
    Eval { span: Span, error: EvalError },
    #[error("{span}: {message}")]
    Assert { span: Span, message: String },
    #[error("the grid's extent along axis {axis} is {extent}; it must lie between 0 and 2^31 - 1")]
    Extent { axis: usize, extent: i64 },
    #[error("{span}: `{op}` cannot stand in a prelude: only scalar ops, `assert` and `assume` can")]
    NotScalar { span: Span, op: &'static str },
    #[error("{span}: a prelude uses {value} before it has a value")]
    Undefined { span: Span, value: Value },
}

/// What a prelude computes.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// Extents of the grid, as many as [`Func::grid`] has.
    pub grid: SmallVec<[usize; 3]>,
    /// Constants, dims, scalars and prelude values by [`Value`]; `None` for the body's own values.
    pub values: Vec<Option<Const>>,
}

impl Launch {
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.grid.iter().product()
    }
}

/// The grid of a launch with these extents of the dims and these scalars, in the order of the scalar parameters.
///
/// # Errors
/// If a dim or a scalar the prelude needs is missing, an assertion fails, or an extent is out of range.
pub fn eval_grid(func: &Func, dims: &[(Dim, usize)], scalars: &[Const]) -> Result<SmallVec<[usize; 3]>, PreludeError> {
    eval(func, dims, scalars).map(|launch| launch.grid)
}

/// As [`eval_grid`], with the values that the body sees.
///
/// # Errors
/// As [`eval_grid`].
pub fn eval(func: &Func, dims: &[(Dim, usize)], scalars: &[Const]) -> Result<Launch, PreludeError> {
    let mut values: Vec<Option<Const>> = func.values.iter().map(|(v, _)| func.as_const(v)).collect();
    for &(dim, extent) in dims {
        values[func.dims[dim].value.index()] = Some(Const::index(extent as i64));
    }
    let mut given = scalars.iter();
    for param in &func.params {
        if let Param::Scalar { value, .. } = param {
            values[value.index()] = given.next().copied();
        }
    }
    let mut env = Env { func, values };
    for &op in &func.regions[func.prelude].ops {
        let data = &func.ops[op];
        env.step(&data.kind, &data.span)?;
    }
    let mut grid = SmallVec::new();
    for (axis, &v) in func.grid.iter().enumerate() {
        let extent = env.get(v, &func.span)?.as_i64();
        if !(0..=i64::from(i32::MAX)).contains(&extent) {
            return Err(PreludeError::Extent { axis, extent });
        }
        grid.push(extent as usize);
    }
    Ok(Launch { grid, values: env.values })
}

struct Env<'f> {
    func: &'f Func,
    values: Vec<Option<Const>>,
}

impl Env<'_> {
    fn get(&self, v: Value, span: &Span) -> Result<Const, PreludeError> {
        self.values[v.index()].ok_or_else(|| match self.func.values[v].def {
            ValueDef::Dim(dim) => PreludeError::MissingDim(self.func.dims[dim].name.clone()),
            ValueDef::Param(p) => PreludeError::MissingScalar(match &self.func.params[p as usize] {
                Param::Scalar { name, .. } => name.clone(),
                Param::Tensor { buffer, .. } => self.func.buffers[*buffer].name.clone(),
            }),
            ValueDef::Const(_) | ValueDef::BlockId(_) | ValueDef::Op(_) | ValueDef::Pending => {
                PreludeError::Undefined { span: span.clone(), value: v }
            }
        })
    }

    fn step(&mut self, kind: &OpKind, span: &Span) -> Result<(), PreludeError> {
        let fail = |error| PreludeError::Eval { span: span.clone(), error };
        let get = |v: Value| self.get(v, span);
        let (out, result) = match kind {
            OpKind::Unary { out, op, x } => (out, eval::unary(*op, get(*x)?).map_err(fail)?),
            OpKind::Binary { out, op, x, y } => (out, eval::binary(*op, get(*x)?, get(*y)?).map_err(fail)?),
            OpKind::Fma { out, x, y, z } => (out, eval::fma(get(*x)?, get(*y)?, get(*z)?).map_err(fail)?),
            OpKind::Cmp { out, op, x, y } => (out, Const::from_bool(eval::cmp(*op, get(*x)?, get(*y)?).map_err(fail)?)),
            OpKind::Select { out, cond, x, y } => (out, if get(*cond)?.as_bool() { get(*x)? } else { get(*y)? }),
            OpKind::Cast { out, x } => (out, cast(get(*x)?, self.func.ty(out.0))),
            OpKind::Bitcast { out, x } => {
                (out, bitcast(get(*x)?, self.func.ty(out.0)).ok_or(EvalError::Undefined).map_err(fail)?)
            }
            OpKind::Assert { cond, message } => {
                if get(*cond)?.as_bool() {
                    return Ok(());
                }
                return Err(PreludeError::Assert { span: span.clone(), message: message.clone() });
            }
            OpKind::Assume { cond } => {
                if get(*cond)?.as_bool() {
                    return Ok(());
                }
                let message = "an assumption about the launch does not hold".to_owned();
                return Err(PreludeError::Assert { span: span.clone(), message });
            }
            OpKind::Load { .. }
            | OpKind::Store { .. }
            | OpKind::Atomic { .. }
            | OpKind::Alloc { .. }
            | OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. }
            | OpKind::For { .. }
            | OpKind::If { .. }
            | OpKind::While { .. }
            | OpKind::Role { .. }
            | OpKind::Print { .. }
            | OpKind::Layout { .. } => {
                return Err(PreludeError::NotScalar { span: span.clone(), op: kind.name() });
            }
        };
        self.values[out.0.index()] = Some(result);
        Ok(())
    }
}
