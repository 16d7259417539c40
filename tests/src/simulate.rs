//! Runs a kernel's PTX on the simulated GPU with the interpreter's arguments.

use std::collections::HashMap;
use zellige_codegen::ptx::{GridPlan, ParamSlot, PtxKernel, PtxOptions, compile};
use zellige_ir::interp::{Arg, TensorArg};
use zellige_ir::{DType, Dim, EntityId, Extent, Func, Param, prelude};
use zellige_runtime::device::simulated_map;
use zellige_runtime::sim::{LaunchDims, Memory, Module, ParamBlock, Report, SimOptions, launch};

/// The arguments after a run, and what the simulator saw.
pub struct Simulated {
    pub args: Vec<Arg>,
    pub report: Report,
    pub kernel: PtxKernel,
}

/// Multiprocessors of the simulated GPU: few, so that the blocks of small problems share them.
const MULTIPROCESSORS: u32 = 3;

/// Compiles and runs `func`. It copies with tensor maps if `opts` allows them and the hardware could describe the tensors.
///
/// # Errors
/// A message if it does not compile, load or launch, or if the simulator found a fault; with the PTX.
pub fn run(func: &Func, args: &[Arg], opts: &PtxOptions, sim: &SimOptions) -> Result<Simulated, String> {
    let mut kernel = compile(func, opts).map_err(|e| e.to_string())?;
    if kernel.params.iter().any(|p| matches!(p, ParamSlot::TensorMap { param, .. } if !has_map(&args[*param as usize])))
    {
        kernel = compile(func, &PtxOptions { tensor_maps: false, ..*opts }).map_err(|e| e.to_string())?;
    }
    let fail = |what: String| format!("{what}\n{}\n{}", func.to_text(), kernel.ptx);
    let module = Module::parse(&kernel.ptx).map_err(|e| fail(e.to_string()))?;
    let mut memory = Memory::new();
    let mut dims: HashMap<Dim, usize> = HashMap::new();
    let mut bases = Vec::new();
    let mut scalars = Vec::new();
    for (param, arg) in func.params.iter().zip(args) {
        let base = match (param, arg) {
            (Param::Tensor { buffer, .. }, Arg::Tensor(t)) => {
                for (e, &n) in func.buffers[*buffer].shape.iter().zip(&t.shape) {
                    if let Extent::Dynamic(d) = e {
                        dims.insert(*d, n);
                    }
                }
                let name = &func.buffers[*buffer].name;
                let base = memory.alloc(name, t.bytes.len());
                match &t.init {
                    None => memory.write(base, &t.bytes).map_err(|e| e.to_string())?,
                    Some(init) if t.dtype.bits() >= 8 => {
                        let size = t.dtype.bits() / 8;
                        for (i, _) in init.iter().enumerate().filter(|(_, w)| **w) {
                            let at = i * size;
                            memory.write(base + at as u64, &t.bytes[at..at + size]).map_err(|e| e.to_string())?;
                        }
                    }
                    Some(_) => {}
                }
                Some(base)
            }
            (Param::Scalar { .. }, Arg::Scalar(c)) => {
                scalars.push(*c);
                None
            }
            (Param::Tensor { .. }, Arg::Scalar(_)) | (Param::Scalar { .. }, Arg::Tensor(_)) => {
                return Err("an argument is of the wrong kind".into());
            }
        };
        bases.push(base);
    }
    let counter = memory.alloc_init("counter of blocks", &[0; 4]);
    let params = params(&kernel, args, &bases, &dims, counter)?;
    let given: Vec<(Dim, usize)> = dims.into_iter().collect();
    let grid = prelude::eval_grid(func, &given, &scalars).map_err(|e| e.to_string())?;
    let mut report = None;
    if grid.iter().all(|&g| g > 0) {
        let axis = |i: usize| grid.get(i).map_or(1, |&g| g as u32);
        let written = [axis(0), axis(1), axis(2)];
        let at = LaunchDims {
            grid: match kernel.grid {
                GridPlan::AsWritten => written,
                GridPlan::Persistent => {
                    let blocks: u32 = written.iter().product();
                    [blocks.min(MULTIPROCESSORS).next_multiple_of(kernel.cluster), 1, 1]
                }
                GridPlan::Spread => {
                    let blocks: u32 = written.iter().product();
                    [blocks.min((MULTIPROCESSORS / kernel.cluster).max(1)) * kernel.cluster, 1, 1]
                }
            },
            block: [kernel.threads, 1, 1],
            cluster: [kernel.cluster, 1, 1],
            dynamic_shared: kernel.shared_bytes,
        };
        let r =
            launch(&module, &kernel.entry, at, params.as_bytes(), &mut memory, sim).map_err(|e| fail(e.to_string()))?;
        if !r.faults.is_empty() {
            return Err(fail(r.describe()));
        }
        report = Some(r);
    }
    let mut out = args.to_vec();
    for (arg, base) in out.iter_mut().zip(&bases) {
        if let (Arg::Tensor(t), Some(base)) = (arg, base) {
            t.bytes = memory.read(*base, t.bytes.len()).map_err(|e| e.to_string())?;
        }
    }
    match report {
        Some(report) => Ok(Simulated { args: out, report, kernel }),
        None => Err("the grid is empty".into()),
    }
}

/// Bytes from one index of an argument to the next, along every axis but the innermost, from the inside out.
fn steps(t: &TensorArg) -> Vec<u64> {
    t.strides.iter().rev().skip(1).map(|&s| s as u64 * t.dtype.bits() as u64 / 8).collect()
}

/// True if a tensor map can describe the argument.
fn has_map(arg: &Arg) -> bool {
    let Arg::Tensor(t) = arg else { return false };
    t.strides.last() == Some(&1) && t.shape.iter().all(|&n| n > 0) && steps(t).iter().all(|s| s % 16 == 0)
}

fn params(
    kernel: &PtxKernel,
    args: &[Arg],
    bases: &[Option<u64>],
    dims: &HashMap<Dim, usize>,
    counter: u64,
) -> Result<ParamBlock, String> {
    let mut block = ParamBlock::new();
    for slot in &kernel.params {
        let bits = match slot {
            ParamSlot::Counter { .. } => counter,
            ParamSlot::Failure { .. } => 0,
            ParamSlot::Base { param, .. } => bases[*param as usize].ok_or("a base of no tensor")?,
            ParamSlot::Stride { param, axis, .. } => match &args[*param as usize] {
                Arg::Tensor(t) => t.strides[*axis as usize] as u64,
                Arg::Scalar(_) => return Err("a stride of no tensor".into()),
            },
            ParamSlot::Dim { dim, name } => {
                let dim = Dim::from_index(*dim as usize);
                *dims.get(&dim).ok_or_else(|| format!("no argument has dim `{name}`"))? as u64
            }
            ParamSlot::Scalar { param, .. } => match &args[*param as usize] {
                Arg::Scalar(c) => c.bits(),
                Arg::Tensor(_) => return Err("a scalar that is a tensor".into()),
            },
            ParamSlot::TensorMap { param, name, map } => {
                let (Arg::Tensor(t), Some(base)) = (&args[*param as usize], bases[*param as usize]) else {
                    return Err(format!("`{name}` is a map of no tensor"));
                };
                let size = t.shape.iter().rev().map(|&n| n as u64).collect();
                let map = simulated_map(map, base, size, steps(t))?.encode()?;
                block = block.bytes(slot.align(), &map);
                continue;
            }
        };
        block = block.bytes(slot.align(), &bits.to_le_bytes()[..slot.bytes()]);
    }
    Ok(block)
}

/// The first element in which two results differ: tensors bit by bit, any two NaN being equal, elements that `want` says are
/// not initialised left out. `close` decides about floats that are not equal.
pub fn first_difference(want: &[Arg], got: &[Arg], close: &dyn Fn(DType, f64, f64) -> bool) -> Option<String> {
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let (Arg::Tensor(w), Arg::Tensor(g)) = (w, g) else { continue };
        for (at, (x, y)) in w.elements().into_iter().zip(g.elements()).enumerate() {
            let known = w.init.as_ref().is_none_or(|init| init[at]);
            let both_nan = x.dtype().is_float() && x.as_f64().is_nan() && y.as_f64().is_nan();
            if known && x != y && !both_nan && !close(x.dtype(), x.as_f64(), y.as_f64()) {
                return Some(format!("argument {i}, element {at} of {:?}: want {x}, got {y}", w.shape));
            }
        }
    }
    None
}
