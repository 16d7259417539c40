//! Inputs and outputs of runs as they stand in filetests.
//!
//! `; run: x = [[1, 2], [3, 4.5]], y = zeros(2, 2), n = 3` gives every parameter by name. A tensor is a nested list, or
//! `zeros(..)`, `iota(..)` (0, 1, 2, .. in row-major order), `fill(value, ..)` or `uninit(..)` with its shape. Numbers convert to the
//! parameter's type as a cast from f64 does. `; out:` lines list the `mut` tensors as nested lists; `_` is an element that
//! was never written.

use zellige_ir::interp::{Arg, TensorArg};
use zellige_ir::{Access, Const, DType, Func, Param};

/// The arguments that a `run:` text gives.
///
/// # Errors
/// If the text is malformed, or a parameter is missing or unknown.
pub fn args(func: &Func, text: &str) -> Result<Vec<Arg>, String> {
    let mut given = Vec::new();
    for part in split(text) {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not `name = value`"))?;
        given.push((name.trim(), value.trim()));
    }
    let mut args = Vec::new();
    for param in &func.params {
        let name = match param {
            Param::Tensor { buffer, .. } => &func.buffers[*buffer].name,
            Param::Scalar { name, .. } => name,
        };
        let at = given.iter().position(|(n, _)| n == name).ok_or_else(|| format!("`{name}` is not given"))?;
        let (_, text) = given.remove(at);
        args.push(match param {
            Param::Tensor { buffer, .. } => tensor(func.buffers[*buffer].dtype, text)?.into(),
            Param::Scalar { value, .. } => Const::from_f64(func.ty(*value), number(text)?).into(),
        });
    }
    match given.first() {
        Some((name, _)) => Err(format!("`{name}` is not a parameter of `{}`", func.name)),
        None => Ok(args),
    }
}

/// The `out:` texts of the arguments after a run: one for each `mut` tensor.
pub fn outputs(func: &Func, args: &[Arg]) -> Vec<String> {
    let mut lines = Vec::new();
    for (param, arg) in func.params.iter().zip(args) {
        if let (Param::Tensor { buffer, access: Access::Write }, Arg::Tensor(t)) = (param, arg) {
            let elements: Vec<String> = (0..t.len()).zip(t.elements()).map(|(i, c)| element(t, i, c)).collect();
            lines.push(format!("{} = {}", func.buffers[*buffer].name, nested(&elements, &t.shape)));
        }
    }
    lines
}

fn element(t: &TensorArg, position: usize, c: Const) -> String {
    if t.init.as_ref().is_some_and(|init| !init[position]) {
        return "_".to_owned();
    }
    match t.dtype {
        DType::F64 => format!("{}", c.as_f64()),
        ty if ty.is_float() => format!("{}", c.as_f64() as f32),
        DType::U64 => c.bits().to_string(),
        _ => c.as_i64().to_string(),
    }
}

fn nested(elements: &[String], shape: &[usize]) -> String {
    match shape.split_first() {
        None => elements.concat(),
        Some((&n, rest)) => {
            let len: usize = rest.iter().product();
            let parts: Vec<String> = (0..n).map(|i| nested(&elements[i * len..(i + 1) * len], rest)).collect();
            format!("[{}]", parts.join(", "))
        }
    }
}

/// Parts between commas that stand in no bracket.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "true" => Ok(1.0),
        "false" => Ok(0.0),
        _ => text.parse().map_err(|_| format!("`{text}` is not a number")),
    }
}

fn tensor(dtype: DType, text: &str) -> Result<TensorArg, String> {
    if text.starts_with('[') {
        let (mut shape, mut values) = (Vec::new(), Vec::new());
        list(text, 0, &mut shape, &mut values)?;
        return Ok(TensorArg::from_f64(dtype, &shape, &values));
    }
    let call = text.split_once('(').and_then(|(name, rest)| Some((name, rest.strip_suffix(')')?)));
    let (name, inner) = call.ok_or_else(|| format!("`{text}` is not a tensor"))?;
    let mut numbers = split(inner).into_iter().map(number).collect::<Result<Vec<f64>, String>>()?;
    let value = if name == "fill" && !numbers.is_empty() { numbers.remove(0) } else { 0.0 };
    let shape: Vec<usize> = numbers.iter().map(|&n| n as usize).collect();
    let len: usize = shape.iter().product();
    match name {
        "zeros" | "fill" => Ok(TensorArg::from_f64(dtype, &shape, &vec![value; len])),
        "iota" => Ok(TensorArg::from_f64(dtype, &shape, &(0..len).map(|i| i as f64).collect::<Vec<_>>())),
        "uninit" => Ok(TensorArg::uninit(dtype, &shape)),
        _ => Err(format!("`{name}` is none of zeros, iota, fill, uninit")),
    }
}

/// Reads a nested list, whose extents must agree.
fn list(text: &str, depth: usize, shape: &mut Vec<usize>, values: &mut Vec<f64>) -> Result<(), String> {
    let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else {
        values.push(number(text)?);
        return if depth == shape.len() { Ok(()) } else { Err(format!("`{text}` stands where a list is expected")) };
    };
    let items = split(inner);
    match shape.get(depth) {
        None if values.is_empty() => shape.push(items.len()),
        Some(&n) if n == items.len() => {}
        None | Some(_) => return Err(format!("`{text}` has another shape than the lists before it")),
    }
    items.into_iter().try_for_each(|item| list(item, depth + 1, shape, values))
}
