//! `zellige describe`.

use super::{Passed, args, lookup};
use crate::library::{Dtypes, LibraryKernel, ProblemError, Scale};
use crate::run::arguments;
use anyhow::{Context, Result};
use serde::Serialize;
use zellige::runtime::{Device, ParamSpec, Resources};
use zellige_ir::Access;

/// All that the library knows about a kernel, in words.
#[derive(Serialize)]
pub struct Description {
    pub kernel: &'static str,
    pub family: &'static str,
    pub summary: &'static str,
    pub equation: &'static str,
    pub tolerance: &'static str,
    pub source: &'static str,
    pub doc: &'static str,
    pub arguments: Vec<Argument>,
    pub static_dims: Vec<&'static str>,
    pub config: Vec<Field>,
    pub cases: Vec<String>,
    /// Of the representative problem, on the device that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

#[derive(Serialize)]
pub struct Argument {
    pub name: &'static str,
    pub access: &'static str,
    pub dtype: &'static str,
    pub dims: Vec<String>,
    pub strided: bool,
}

#[derive(Serialize)]
pub struct Field {
    pub name: &'static str,
    pub default: String,
    pub values: Vec<String>,
}

impl Argument {
    /// The element type and the dims.
    pub fn shape(&self) -> String {
        if self.dims.is_empty() { self.dtype.to_owned() } else { format!("{}[{}]", self.dtype, self.dims.join(", ")) }
    }
}

impl Description {
    /// Of a kernel with its default config and element types.
    pub fn of(entry: &dyn LibraryKernel) -> Result<Description, ProblemError> {
        let info = entry.info();
        let signature = entry.instantiate(&[], &Dtypes::new())?.signature();
        let settings = entry.settings();
        Ok(Description {
            kernel: info.name,
            family: info.family.name(),
            summary: info.summary,
            equation: info.equation,
            tolerance: info.tolerance,
            source: info.source,
            doc: signature.doc,
            arguments: signature.params.iter().map(argument).collect(),
            static_dims: signature.static_dims.to_vec(),
            config: settings
                .fields()
                .into_iter()
                .map(|f| Field {
                    name: f.name,
                    default: settings.get(f.name).map(|v| v.to_string()).unwrap_or_default(),
                    values: f.values.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            cases: entry.cases(Scale::Full).into_iter().map(|c| c.name).collect(),
            resources: None,
        })
    }
}

pub fn run(args: &args::Describe) -> Result<Passed> {
    let entry = lookup::kernel(&args.kernel)?;
    let mut description = Description::of(entry)?;
    description.resources = args.device.as_deref().map(|name| resources(entry, name)).transpose()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&description)?);
    } else {
        print_text(&description);
    }
    Ok(true)
}

/// What the kernel of the representative problem takes of a device.
fn resources(entry: &dyn LibraryKernel, device: &str) -> Result<Resources> {
    let device = Device::from_name(device)?;
    let case = entry.cases(Scale::Representative).into_iter().next();
    let case = case.with_context(|| format!("`{}` has no representative problem", entry.info().name))?;
    let problem = (case.build)(&[])?;
    let build = problem.kernel.prepare(&device, &arguments(&problem))?;
    build.resources.with_context(|| format!("{} does not count what a kernel takes of it", device.name()))
}

fn argument(p: &ParamSpec) -> Argument {
    match p {
        ParamSpec::Scalar { name, dtype } => {
            Argument { name, access: "scalar", dtype: dtype.name(), dims: Vec::new(), strided: false }
        }
        ParamSpec::Tensor(t) => Argument {
            name: t.name,
            access: match t.access {
                Access::Read => "read",
                Access::Write => "write",
            },
            dtype: t.dtype.name(),
            dims: t.dims.iter().map(ToString::to_string).collect(),
            strided: t.strided,
        },
    }
}

fn print_text(d: &Description) {
    println!("{} ({}): {}\n\n  {}\n", d.kernel, d.family, d.summary, d.equation);
    println!("{}\n\ntolerance  {}\nsource     {}\n", d.doc, d.tolerance, d.source);
    println!("arguments");
    for a in &d.arguments {
        let strided = if a.strided { ", rows may lie apart" } else { "" };
        println!("  {:<16} {:<7} {}{strided}", a.name, a.access, a.shape());
    }
    if !d.static_dims.is_empty() {
        println!("\ncompiled for each value of: {}", d.static_dims.join(", "));
    }
    println!("\nconfig");
    for f in &d.config {
        let values = if f.values.is_empty() { String::new() } else { format!("  of {}", f.values.join(", ")) };
        println!("  {:<16} {}{values}", f.name, f.default);
    }
    if let Some(r) = &d.resources {
        println!("\non the device");
        println!("  registers        {} a thread, {} bytes of local memory", r.registers, r.local_bytes);
        println!("  shared memory    {} bytes a block", r.shared_bytes);
        let percent = 100.0 * r.occupancy;
        println!("  occupancy        {} blocks of {} threads: {percent:.0} %", r.blocks_per_sm, r.threads);
    }
    println!("\nproblems at the sizes of DeepSeek-V4");
    for c in &d.cases {
        println!("  {c}");
    }
}
