//! `zellige emit`.

use super::{Passed, args, lookup};
use anyhow::{Result, anyhow, bail};
use serde_json::json;
use zellige::TuneValue;
use zellige_codegen::cpu::{self, CpuOptions};
use zellige_codegen::ptx::{ALIGNED, ParamSlot, PtxKernel, PtxOptions, alignable, compile, simt_kernel};
use zellige_ir::prelude::eval_grid;
use zellige_ir::{Dim, EntityId, Extent, Func, Param};

/// A stage of the compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Tile IR as the kernel records it.
    Tile,
    /// A stage on the way to machine code of this CPU.
    Cpu(cpu::Stage),
    /// What a thread of a GPU does, after all passes.
    Simt,
    Ptx,
}

const STAGES: [(&str, Stage); 6] = [
    ("tile", Stage::Tile),
    ("loop", Stage::Cpu(cpu::Stage::Loop)),
    ("clif", Stage::Cpu(cpu::Stage::Clif)),
    ("asm", Stage::Cpu(cpu::Stage::Asm)),
    ("simt", Stage::Simt),
    ("ptx", Stage::Ptx),
];

fn stage(name: &str) -> Result<Stage> {
    STAGES.iter().find(|(n, _)| *n == name).map(|(_, s)| *s).ok_or_else(|| {
        let names = STAGES.map(|(n, _)| n);
        let nearest = lookup::nearest(name, names.into_iter());
        anyhow!("no stage `{name}`{nearest}; the stages are: {}", names.join(", "))
    })
}

pub fn run(args: &args::Emit) -> Result<Passed> {
    let name = args.stage.as_deref().unwrap_or(if args.explain { "ptx" } else { "tile" });
    let stage = stage(name)?;
    let mut options = lookup::target(args.target.as_deref())?;
    let for_gpu = matches!(stage, Stage::Simt | Stage::Ptx);
    if !for_gpu && args.explain {
        bail!("--explain tells of the way to a GPU, stage `{name}` is not on it: use --stage simt or ptx");
    }
    if !for_gpu && args.target.is_some() {
        bail!("stage `{name}` is not for a GPU: --target belongs to --stage simt or ptx");
    }
    let (recorded, config) = match &args.dims[..] {
        [] => (lookup::recorded(&args.kernel, args.case.as_deref(), &args.settings)?, None),
        dims => {
            let dtypes = args.dtypes.iter().cloned().collect();
            let (recorded, config) = lookup::recorded_at(&args.kernel, dims, &dtypes, &args.settings)?;
            (recorded, Some(config))
        }
    };
    let func = &recorded.func;
    if args.aligned {
        options = options.aligned(alignable(func));
    }
    if !for_gpu && args.aligned {
        bail!("stage `{name}` is not for a GPU: --aligned belongs to --stage simt or ptx");
    }
    let mut value = json!({ "kernel": args.kernel, "case": recorded.case, "stage": name });
    // Known if all extents that it depends on are.
    let extent = |name: &str| args.dims.iter().find(|(n, _)| n == name).map(|(_, extent)| *extent);
    let extents: Vec<_> = func.dims.iter().filter_map(|(dim, d)| Some((dim, extent(&d.name)?))).collect();
    if let Ok(grid) = eval_grid(func, &extents, &[]) {
        value["blocks"] = json!(grid.to_vec());
    }
    if let Some(config) = config {
        let json = |v: TuneValue| match v {
            TuneValue::Int(v) => json!(v),
            TuneValue::Bool(v) => json!(v),
        };
        value["config"] = config.into_iter().map(|(name, v)| (name, json(v))).collect::<serde_json::Map<_, _>>().into();
    }
    let text = match stage {
        Stage::Tile => func.to_text(),
        Stage::Cpu(stage) => cpu::emit(func, &CpuOptions::default(), stage)?,
        Stage::Simt | Stage::Ptx => {
            let mut kernel = compile(func, &options)?;
            let aligned = aligned(func, &kernel.params, &extents);
            if aligned != 0 && !args.aligned {
                options = options.aligned(aligned);
                kernel = compile(func, &options)?;
            }
            value["target"] = json!(options.target.to_string());
            value["threads"] = json!(kernel.threads);
            value["shared_bytes"] = json!(kernel.shared_bytes);
            value["entry"] = json!(kernel.entry);
            value["params"] = json!(kernel.params);
            value["grid"] = json!(kernel.grid);
            value["cluster"] = json!(kernel.cluster);
            value["ops"] = json!(kernel.metadata.ops);
            value["barriers"] = json!(kernel.metadata.barriers);
            value["explain"] = json!(kernel.explain);
            gpu_text(func, &options, stage, &kernel, args.explain, &recorded.case)?
        }
    };
    if args.json {
        if !args.explain {
            value["text"] = json!(text);
        }
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print!("{text}");
    }
    Ok(true)
}

/// The parameters that a launcher would find to be multiples of [`ALIGNED`], for contiguous tensors of these extents.
fn aligned(func: &Func, params: &[ParamSlot], extents: &[(Dim, usize)]) -> u64 {
    let extent = |dim: Dim| extents.iter().find(|(d, _)| *d == dim).map(|(_, n)| *n);
    let is_aligned = |slot: &ParamSlot| {
        let value = match slot {
            ParamSlot::Dim { dim, .. } => extent(Dim::from_index(*dim as usize)),
            ParamSlot::Stride { param, axis, .. } => {
                let Param::Tensor { buffer, .. } = &func.params[*param as usize] else { return false };
                let inner = &func.buffers[*buffer].shape[*axis as usize + 1..];
                inner
                    .iter()
                    .map(|e| match *e {
                        Extent::Static(n) => Some(n),
                        Extent::Dynamic(dim) => extent(dim),
                    })
                    .product()
            }
            ParamSlot::Base { .. }
            | ParamSlot::Scalar { .. }
            | ParamSlot::TensorMap { .. }
            | ParamSlot::Counter { .. }
            | ParamSlot::Failure { .. } => None,
        };
        value.is_some_and(|n: usize| (n as u64).is_multiple_of(ALIGNED))
    };
    let bits = params.iter().take(u64::BITS as usize).enumerate().filter(|(_, slot)| is_aligned(slot));
    bits.fold(0, |bits, (i, _)| bits | 1 << i) & alignable(func)
}

fn gpu_text(
    func: &Func,
    options: &PtxOptions,
    stage: Stage,
    kernel: &PtxKernel,
    explain: bool,
    case: &str,
) -> Result<String> {
    Ok(match stage {
        _ if explain => explanation(kernel, &format!("{} ({case}) for {}", kernel.entry, options.target)),
        Stage::Simt => simt_kernel(func, options)?.0.to_string(),
        Stage::Ptx | Stage::Tile | Stage::Cpu(_) => kernel.ptx.clone(),
    })
}

/// The decisions, under the kinds that the compiler puts in front of them, in the order in which the kinds first occur.
fn explanation(kernel: &PtxKernel, title: &str) -> String {
    let mut kinds: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in &kernel.explain {
        let (kind, text) = line.split_once(": ").unwrap_or(("other", line));
        match kinds.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, lines)) => lines.push(text),
            None => kinds.push((kind, vec![text])),
        }
    }
    let facts = &kernel.metadata;
    let mut out = format!(
        "{title}: {} threads, {} bytes of shared memory, {} ops, {} barriers\n",
        kernel.threads, kernel.shared_bytes, facts.ops, facts.barriers
    );
    for (kind, lines) in kinds {
        out += &format!("\n{kind}\n");
        for line in lines {
            out += &format!("  {line}\n");
        }
    }
    out
}
