//! The interpreter: small, slow, and the meaning of tile IR.
//!
//! Blocks run one after the other, ops in order. Where the op table leaves an order open, the interpreter takes
//! the ascending one: sums of reductions, scans and gemms start from the identity (or the accumulator) and
//! proceed by position, in f32 where the result is narrower. A gemm step is one fused multiply-add. Backends
//! may sum in another order, so tests compare sums with a tolerance unless all partial sums are exact.
//!
//! Checked, each with the author's line and the line of the other party:
//! - accesses outside buffers that are not global;
//! - reads of elements that were never written (an `alloc` forgets its buffer's contents);
//! - races between iterations of `parallel` and `vectorized` loops and between blocks: an element written
//!   by one and read or written by another. Atomic updates race with plain accesses, not with each other;
//! - operands of one tile op that overlap, and scatter destinations that coincide;
//! - division by zero, overflow of `index` arithmetic, failed assertions and assumptions;
//! - a bound on the number of steps.
//!
//! Depends on the IR and on [`eval`](crate::eval); knows no pass and no backend.

mod arg;
mod error;
mod exec;
mod memory;
mod moves;
mod order;
mod points;
mod race;
mod rng;
mod sums;
mod tile;

pub use arg::{Arg, TensorArg};
pub use error::{AccessKind, InterpError, InterpErrorKind};

use crate::entity::EntityId;
use crate::func::{Dim, Extent, Func, Param, Strides};
use crate::numerics::Const;
use crate::prelude;
use exec::Machine;
use memory::Storage;
use race::Shadow;
use rng::Rng;

/// What a run did besides writing its tensors.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RunReport {
    /// Lines that `print` ops wrote.
    pub prints: Vec<String>,
    /// Ops executed, plus elements visited by tile ops.
    pub steps: u64,
    pub grid: Vec<usize>,
}

/// Runs a function on the host.
///
/// ```
/// use zellige_ir::interp::{Arg, Interpreter, TensorArg};
/// use zellige_ir::*;
///
/// // x[i] += 1 in parallel.
/// let mut b = FuncBuilder::new("inc", Span::unknown());
/// let x = b.tensor("x", DType::F32, vec![Extent::Static(4)], Access::Write);
/// let (one, four) = (b.index(1), b.index(4));
/// b.grid(&[one], 32);
/// let i = b.begin_for(LoopKind::Parallel, &[four])[0];
/// let (v, c) = (b.load(x, &[i]), b.constant(Const::f32(1.0)));
/// let sum = b.add(v, c);
/// b.store(x, &[i], sum);
/// b.close();
/// let func = b.finish();
///
/// let mut args = [Arg::from(TensorArg::from_f64(DType::F32, &[4], &[0.0, 1.0, 2.0, 3.0]))];
/// Interpreter::new(&func).run(&mut args)?;
/// assert_eq!(args[0].as_tensor().unwrap().to_f64(), [1.0, 2.0, 3.0, 4.0]);
/// # Ok::<(), Vec<interp::InterpError>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Interpreter<'f> {
    func: &'f Func,
    fuel: u64,
    seed: Option<u64>,
    max_errors: usize,
}

/// Runs `func` with the default settings; see [`Interpreter`].
///
/// # Errors
/// Everything [`Interpreter::run`] finds.
pub fn run(func: &Func, args: &mut [Arg]) -> Result<RunReport, Vec<InterpError>> {
    Interpreter::new(func).run(args)
}

impl<'f> Interpreter<'f> {
    pub fn new(func: &'f Func) -> Interpreter<'f> {
        Interpreter { func, fuel: 10_000_000_000, seed: None, max_errors: 16 }
    }

    /// Stops with an error after so many steps: ops executed plus elements visited.
    #[must_use]
    pub fn fuel(mut self, steps: u64) -> Self {
        self.fuel = steps;
        self
    }

    /// Runs blocks and the iterations of parallel loops in an order that depends on `seed`; the results may not.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Runs the function once over its grid; the tensors among `args` are updated in place.
    ///
    /// # Errors
    /// All errors found, at most 16, one for each op and kind. The contents of the tensors are then meaningless.
    pub fn run(&self, args: &mut [Arg]) -> Result<RunReport, Vec<InterpError>> {
        let func = self.func;
        let whole = |kind| vec![InterpError { kind, span: func.span.clone(), notes: Vec::new() }];
        let bound = bind(func, args).map_err(whole)?;
        let launch = prelude::eval(func, &bound.dims, &bound.scalars)
            .map_err(|e| whole(InterpErrorKind::Launch(e.to_string())))?;
        let mut machine = Machine::new(func, &launch, self.fuel, self.max_errors, self.seed.map(Rng::new));
        for (param, arg) in func.params.iter().zip(args.iter_mut()) {
            if let (Param::Tensor { buffer, .. }, Arg::Tensor(t)) = (param, arg) {
                let n = t.span();
                let init = t.init.take().unwrap_or_else(|| vec![true; n]);
                machine.memory[buffer.index()] = Some(Storage {
                    dtype: t.dtype,
                    shape: t.shape.clone(),
                    strides: t.strides.clone(),
                    bytes: std::mem::take(&mut t.bytes),
                    init,
                    shadow: vec![Shadow::default(); n],
                });
            }
        }
        machine.run_grid();
        for (param, arg) in func.params.iter().zip(args.iter_mut()) {
            if let (Param::Tensor { buffer, .. }, Arg::Tensor(t)) = (param, arg)
                && let Some(storage) = machine.memory[buffer.index()].take()
            {
                t.bytes = storage.bytes;
                t.init = Some(storage.init);
            }
        }
        machine.finish()
    }
}

/// What the arguments say about the signature.
#[derive(Default)]
struct Bound {
    dims: Vec<(Dim, usize)>,
    /// In the order of the scalar parameters.
    scalars: Vec<Const>,
}

/// Checks the arguments against the signature.
fn bind(func: &Func, args: &[Arg]) -> Result<Bound, InterpErrorKind> {
    if args.len() != func.params.len() {
        let (want, got) = (func.params.len(), args.len());
        return Err(InterpErrorKind::Launch(format!("`{}` has {want} parameters but {got} arguments", func.name)));
    }
    let Bound { mut dims, mut scalars } = Bound::default();
    for (position, (param, arg)) in func.params.iter().zip(args).enumerate() {
        match (param, arg) {
            (Param::Tensor { buffer, .. }, Arg::Tensor(t)) => {
                let data = &func.buffers[*buffer];
                let err = |problem| InterpErrorKind::Argument { position, name: data.name.clone(), problem };
                if t.dtype != data.dtype {
                    return Err(err(format!("its elements are {}, expected {}", t.dtype, data.dtype)));
                }
                if t.shape.len() != data.rank() || t.strides.len() != data.rank() {
                    return Err(err(format!("its rank is {}, expected {}", t.shape.len(), data.rank())));
                }
                match data.strides {
                    Strides::Contiguous if t.strides != memory::contiguous(&t.shape) => {
                        return Err(err(format!("its strides are {:?}, expected a contiguous tensor", t.strides)));
                    }
                    Strides::Dynamic if t.strides.last().is_some_and(|&s| s != 1) => {
                        return Err(err("its last axis is not contiguous".to_owned()));
                    }
                    Strides::Contiguous | Strides::Dynamic => {}
                }
                let n = t.span();
                if t.bytes.len() < t.dtype.bytes_for(n) || t.init.as_ref().is_some_and(|init| init.len() < n) {
                    return Err(err(format!("its memory is smaller than the shape {:?} needs", t.shape)));
                }
                for (axis, (&extent, &got)) in data.shape.iter().zip(&t.shape).enumerate() {
                    let want = match extent {
                        Extent::Static(n) => n,
                        Extent::Dynamic(dim) => match dims.iter().find(|(d, _)| *d == dim) {
                            Some(&(_, n)) => n,
                            None => {
                                dims.push((dim, got));
                                got
                            }
                        },
                    };
                    if got != want {
                        return Err(err(format!("axis {axis} has extent {got}, expected {want}")));
                    }
                }
            }
            (Param::Scalar { name, value }, Arg::Scalar(c)) => {
                if c.dtype() != func.ty(*value) {
                    let problem = format!("it is {}, expected {}", c.dtype(), func.ty(*value));
                    return Err(InterpErrorKind::Argument { position, name: name.clone(), problem });
                }
                scalars.push(*c);
            }
            (Param::Tensor { buffer, .. }, Arg::Scalar(_)) => {
                let name = func.buffers[*buffer].name.clone();
                let problem = "it is a scalar, expected a tensor".to_owned();
                return Err(InterpErrorKind::Argument { position, name, problem });
            }
            (Param::Scalar { name, .. }, Arg::Tensor(_)) => {
                let problem = "it is a tensor, expected a scalar".to_owned();
                return Err(InterpErrorKind::Argument { position, name: name.clone(), problem });
            }
        }
    }
    Ok(Bound { dims, scalars })
}
