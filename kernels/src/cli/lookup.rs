//! Kernels, problems and targets by the names a user types.

use crate::library::{Case, Dtypes, LibraryKernel, Scale, Settings, all};
use crate::run::sizes;
use anyhow::{Result, anyhow, bail};
use zellige::TuneValue;
use zellige::runtime::{DimSpec, Sizes};
use zellige_codegen::ptx::{Arch, PtxOptions};
use zellige_ir::Func;

/// The kernel called `name`.
///
/// # Errors
/// If there is none; the message offers the nearest name.
pub fn kernel(name: &str) -> Result<&'static dyn LibraryKernel> {
    crate::library::find(name).ok_or_else(|| {
        let nearest = nearest(name, all().iter().map(|k| k.info().name));
        anyhow!("no kernel `{name}`{nearest}; `zellige list` shows them all")
    })
}

/// The problems of the named kernels (of all if none is named) whose names contain `part`, each with its kernel's name.
///
/// # Errors
/// If there is no kernel of a name, or no such problem.
pub fn cases(names: &[String], scale: Scale, part: Option<&str>) -> Result<Vec<(&'static str, Case)>> {
    let kernels: Vec<&'static dyn LibraryKernel> =
        if names.is_empty() { all().to_vec() } else { names.iter().map(|name| kernel(name)).collect::<Result<_>>()? };
    let cases: Vec<(&'static str, Case)> = kernels
        .iter()
        .flat_map(|k| k.cases(scale).into_iter().map(|c| (k.info().name, c)))
        .filter(|(_, c)| part.is_none_or(|part| c.name.contains(part)))
        .collect();
    if cases.is_empty() {
        bail!("no problem's name contains `{}`", part.unwrap_or_default());
    }
    Ok(cases)
}

/// `: did you mean ..?` for the candidate most like `name`, or nothing if none is like it.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    candidates
        .map(|c| (strsim::jaro_winkler(name, c), c))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.6)
        .map(|(_, c)| format!(": did you mean `{c}`?"))
        .unwrap_or_default()
}

/// A problem's name, and the kernel as recorded for it.
pub struct Recorded {
    pub case: String,
    pub func: Func,
}

/// Builds the problem whose name contains `part` (without it the representative one) and records its kernel.
///
/// # Errors
/// If there is no such kernel or problem, or it cannot be built.
pub fn recorded(kernel_name: &str, part: Option<&str>, settings: &[(String, TuneValue)]) -> Result<Recorded> {
    let entry = kernel(kernel_name)?;
    let case = [Scale::Representative, Scale::Full, Scale::Small]
        .into_iter()
        .flat_map(|s| entry.cases(s))
        .find(|c| part.is_none_or(|part| c.name.contains(part)))
        .ok_or_else(|| {
            let part = part.unwrap_or_default();
            anyhow!("no problem of `{kernel_name}` has a name that contains `{part}`")
        })?;
    let problem = (case.build)(settings)?;
    let func = problem.kernel.record(&sizes(&problem)?)?;
    Ok(Recorded { case: case.name, func })
}

/// The kernel as recorded for tensors of these extents and element types, with its config: the one that suits them, changed by `settings`.
///
/// # Errors
/// If there is no such kernel, dim or setting, or an extent is missing that is part of the compiled kernel.
pub fn recorded_at(
    kernel_name: &str,
    dims: &[(String, usize)],
    dtypes: &Dtypes,
    settings: &[(String, TuneValue)],
) -> Result<(Recorded, Vec<(String, TuneValue)>)> {
    let entry = kernel(kernel_name)?;
    let sizes = dims.iter().fold(Sizes::new(), |sizes, (name, n)| sizes.with(name.clone(), *n));
    let fields = fields(&*entry.settings_at(&sizes, dtypes, settings)?);
    let kernel = entry.instantiate(&fields, dtypes)?;
    let signature = kernel.signature();
    let names: Vec<&str> = signature
        .tensors()
        .flat_map(|(_, t)| &t.dims)
        .filter_map(|d| match d {
            DimSpec::Named(name) => Some(name.as_ref()),
            DimSpec::Fixed(_) => None,
        })
        .collect();
    if let Some((name, _)) = dims.iter().find(|(name, _)| !names.contains(&name.as_str())) {
        let mut known = Vec::new();
        names.iter().filter(|n| !n.is_empty()).for_each(|n| {
            if !known.contains(n) {
                known.push(*n);
            }
        });
        let nearest = nearest(name, known.iter().copied());
        bail!("`{kernel_name}` has no dim `{name}`{nearest}; the dims are: {}", known.join(", "));
    }
    let case = dims.iter().map(|(name, n)| format!("{name}={n}")).collect::<Vec<_>>().join(" ");
    Ok((Recorded { case, func: kernel.record(&sizes)? }, fields))
}

/// All fields of a config with their values.
pub fn fields(config: &dyn Settings) -> Vec<(String, TuneValue)> {
    config.fields().into_iter().filter_map(|f| Some((f.name.to_owned(), config.get(f.name)?))).collect()
}

/// How to compile for the target that the user names; without a name, for the newest.
///
/// # Errors
/// If there is none of this name.
pub fn target(name: Option<&str>) -> Result<PtxOptions> {
    let Some(name) = name else { return Ok(PtxOptions::new(Arch::Sm90a)) };
    let arch = Arch::from_name(name).ok_or_else(|| {
        let nearest = nearest(name, Arch::ALL.iter().map(|a| a.name()));
        anyhow!("no target `{name}`{nearest}; the targets are: {}", Arch::ALL.map(Arch::name).join(", "))
    })?;
    Ok(PtxOptions::new(arch))
}
