//! `zellige run`: a library kernel on the user's own tensors.

use super::{Passed, args, lookup};
use crate::library::Dtypes;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use zellige::runtime::io::{TensorFile, load_npy};
use zellige::runtime::{Arg, Device, DimSpec, DynTensor, ParamSpec, Signature, Sizes, TensorSpec};
use zellige::{Kernel, TuneValue};
use zellige_ir::{Access, Const};

pub fn run(args: &args::Run) -> Result<Passed> {
    let entry = lookup::kernel(&args.kernel)?;
    let device = Device::from_name(&args.device)?;
    let mut tensors = load(&args.input)?;
    let dtypes: Dtypes = tensors.iter().map(|(n, t)| (n.clone(), t.dtype())).collect();
    let mut settings: BTreeMap<&str, &str> = args.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();

    let mut config = Vec::new();
    let fields = entry.settings().fields();
    for field in &fields {
        if let Some(value) = settings.remove(field.name) {
            config.push((field.name.to_owned(), value.parse::<TuneValue>()?));
        }
    }
    let kernel = entry.instantiate(&config, &dtypes)?;
    let signature = kernel.signature();
    if let Some(t) = tensors.remove(UNNAMED) {
        tensors.insert(single_input(&signature)?.to_owned(), t);
    }
    let sizes = extents(&signature, &tensors, &mut settings)?;
    let kernel = entry.instantiate(&lookup::fields(&*entry.settings_at(&sizes, &dtypes, &config)?), &dtypes)?;
    let scalars = scalars(&signature, &mut settings)?;
    if let Some((name, _)) = settings.first_key_value() {
        let names = fields.iter().map(|f| f.name).chain(signature.params.iter().map(ParamSpec::name));
        let nearest = lookup::nearest(name, names);
        bail!("`{name}` is neither a scalar, a config field nor a dim of `{}`{nearest}", args.kernel);
    }
    for (_, spec) in signature.tensors() {
        if !tensors.contains_key(spec.name) {
            tensors.insert(spec.name.to_owned(), allocate(spec, &sizes)?);
        }
    }
    if let Some(name) = tensors.keys().find(|n| !signature.params.iter().any(|p| p.name() == n.as_str())) {
        let nearest = lookup::nearest(name, signature.params.iter().map(ParamSpec::name));
        bail!("{}: kernel `{}` has no argument `{name}`{nearest}", args.input.display(), args.kernel);
    }
    let seconds = launch(&*kernel, &signature, &tensors, &scalars, &device)?;
    let outputs: BTreeMap<String, DynTensor> = signature
        .tensors()
        .filter(|(_, t)| t.access == Access::Write)
        .map(|(_, t)| (t.name.to_owned(), tensors[t.name].clone()))
        .collect();
    let file = TensorFile { tensors: outputs, ..TensorFile::default() };
    file.save(&args.output)?;
    report(args, &file.tensors, seconds)
}

fn load(path: &Path) -> Result<BTreeMap<String, DynTensor>> {
    if path.extension().is_some_and(|e| e == "npy") {
        return Ok(BTreeMap::from([(UNNAMED.to_owned(), load_npy(path)?)]));
    }
    Ok(TensorFile::load(path)?.tensors)
}

/// The name under which the tensor of an .npy file waits until the kernel's only input is known.
const UNNAMED: &str = "";

/// The kernel's only input.
fn single_input(signature: &Signature) -> Result<&'static str> {
    let inputs: Vec<_> = signature.tensors().filter(|(_, t)| t.access == Access::Read).map(|(_, t)| t.name).collect();
    match inputs[..] {
        [only] => Ok(only),
        _ => bail!(
            "kernel `{}` has {} inputs ({}): give them in a .safetensors file",
            signature.kernel,
            inputs.len(),
            inputs.join(", ")
        ),
    }
}

/// The extent of every named dim: from the given tensors, or from `name=extent`.
fn extents(
    signature: &Signature,
    tensors: &BTreeMap<String, DynTensor>,
    settings: &mut BTreeMap<&str, &str>,
) -> Result<Sizes> {
    let mut sizes = Sizes::new();
    for (_, spec) in signature.tensors() {
        let Some(t) = tensors.get(spec.name) else { continue };
        if t.rank() != spec.dims.len() {
            bail!("argument `{}` has shape {:?}, expected {spec}", spec.name, t.shape());
        }
        for (dim, &n) in spec.dims.iter().zip(t.shape()) {
            if let DimSpec::Named(name) = dim
                && sizes.get(name).is_none()
            {
                sizes = sizes.with(name.clone(), n);
            }
        }
    }
    for (_, spec) in signature.tensors() {
        for dim in &spec.dims {
            if let DimSpec::Named(name) = dim
                && sizes.get(name).is_none()
            {
                let Some(value) = settings.remove(name.as_ref()) else { continue };
                let n = value.parse().with_context(|| format!("dim `{name}` cannot be `{value}`"))?;
                sizes = sizes.with(name.clone(), n);
            }
        }
    }
    Ok(sizes)
}

fn scalars(signature: &Signature, settings: &mut BTreeMap<&str, &str>) -> Result<BTreeMap<&'static str, Const>> {
    let mut out = BTreeMap::new();
    for p in &signature.params {
        if let ParamSpec::Scalar { name, dtype } = p {
            let Some(text) = settings.remove(name) else {
                bail!("scalar `{name}` ({dtype}) is not given: add `--set {name}=value`");
            };
            let value: f64 = text.parse().with_context(|| format!("scalar `{name}` cannot be `{text}`"))?;
            let c =
                if dtype.is_float() { Const::from_f64(*dtype, value) } else { Const::from_i64(*dtype, value as i64) };
            out.insert(*name, c);
        }
    }
    Ok(out)
}

/// An output that the user did not give: zeros of the shape that the dims say.
fn allocate(spec: &TensorSpec, sizes: &Sizes) -> Result<DynTensor> {
    if spec.access == Access::Read {
        bail!("argument `{}` ({spec}) is not in the input file", spec.name);
    }
    let shape = spec
        .dims
        .iter()
        .map(|d| match d {
            DimSpec::Fixed(n) => Ok(*n),
            DimSpec::Named(name) => sizes.get(name).ok_or_else(|| {
                anyhow!("no input has dim `{name}` of output `{}` ({spec}): add `--set {name}=extent`", spec.name)
            }),
        })
        .collect::<Result<Vec<usize>>>()?;
    Ok(DynTensor::zeros(spec.dtype, &shape)?)
}

fn launch(
    kernel: &dyn Kernel,
    signature: &Signature,
    tensors: &BTreeMap<String, DynTensor>,
    scalars: &BTreeMap<&'static str, Const>,
    device: &Device,
) -> Result<f64> {
    let args: Vec<Arg<'_>> = signature
        .params
        .iter()
        .map(|p| match p {
            ParamSpec::Scalar { name, .. } => Arg::Scalar(scalars[name]),
            ParamSpec::Tensor(t) => match t.access {
                Access::Read => Arg::Read(&tensors[t.name]),
                Access::Write => Arg::Write(&tensors[t.name]),
            },
        })
        .collect();
    let stream = device.stream();
    kernel.prepare(device, &args)?;
    let start = Instant::now();
    kernel.launch_args(&stream, &args)?;
    Ok(start.elapsed().as_secs_f64())
}

fn report(args: &args::Run, outputs: &BTreeMap<String, DynTensor>, seconds: f64) -> Result<Passed> {
    if args.json {
        let tensors: BTreeMap<_, _> = outputs
            .iter()
            .map(|(n, t)| (n, serde_json::json!({ "dtype": t.dtype().name(), "shape": t.shape() })))
            .collect();
        let value = serde_json::json!({ "kernel": args.kernel, "run_ms": seconds * 1e3, "outputs": tensors });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        for (name, t) in outputs {
            println!("{name}: {}{:?}", t.dtype(), t.shape());
        }
        println!("{:.2} ms, written to {}", seconds * 1e3, args.output.display());
    }
    Ok(true)
}
