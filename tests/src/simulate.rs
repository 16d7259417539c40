//! Runs a kernel's PTX on the simulated GPU with the interpreter's arguments.

use std::collections::HashMap;
use zellige_codegen::ptx::{ParamSlot, PtxKernel, PtxOptions, compile};
use zellige_ir::interp::Arg;
use zellige_ir::{DType, Dim, EntityId, Extent, Func, Param, prelude};
use zellige_runtime::sim::{LaunchDims, Memory, Module, Report, SimOptions, launch};

/// The arguments after a run, and what the simulator saw.
pub struct Simulated {
    pub args: Vec<Arg>,
    pub report: Report,
    pub kernel: PtxKernel,
}

/// Compiles and runs `func`, without tensor maps: the library's kernels test those, on the device `sim`.
///
/// # Errors
/// A message if it does not compile, load or launch, or if the simulator found a fault; with the PTX.
pub fn run(func: &Func, args: &[Arg], opts: &PtxOptions, sim: &SimOptions) -> Result<Simulated, String> {
    let opts = PtxOptions { tensor_maps: false, ..*opts };
    let kernel = compile(func, &opts).map_err(|e| e.to_string())?;
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
    let block = param_block(&kernel, func, args, &bases, &dims)?;
    let given: Vec<(Dim, usize)> = dims.into_iter().collect();
    let grid = prelude::eval_grid(func, &given, &scalars).map_err(|e| e.to_string())?;
    let mut report = None;
    if grid.iter().all(|&g| g > 0) {
        let axis = |i: usize| grid.get(i).map_or(1, |&g| g as u32);
        let at = LaunchDims {
            grid: [axis(0), axis(1), axis(2)],
            block: [kernel.threads, 1, 1],
            cluster: [1, 1, 1],
            dynamic_shared: kernel.shared_bytes,
        };
        let r = launch(&module, &kernel.entry, at, &block, &mut memory, sim).map_err(|e| fail(e.to_string()))?;
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

fn param_block(
    kernel: &PtxKernel,
    func: &Func,
    args: &[Arg],
    bases: &[Option<u64>],
    dims: &HashMap<Dim, usize>,
) -> Result<Vec<u8>, String> {
    let mut block = Vec::new();
    for slot in &kernel.params {
        let bits = match slot {
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
            ParamSlot::TensorMap { name, .. } => return Err(format!("`{name}` is a tensor map")),
            ParamSlot::Counter { name } => return Err(format!("`{name}` is a counter of blocks")),
        };
        let size = slot.bytes();
        block.resize(usize::next_multiple_of(block.len(), size), 0);
        block.extend_from_slice(&bits.to_le_bytes()[..size]);
    }
    let _ = func;
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
