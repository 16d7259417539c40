//! What values and buffers are called in a function's text.

use super::lex::{is_plain_name, quote};
use crate::func::{Buffer, BufferData, Dim, Func, Param, Region, Scope, Value, ValueDef};
use crate::op::{OpKind, Visit};
use std::collections::HashMap;

/// The spelling of every value and buffer of a function as [`Func::to_text`] prints it.
///
/// Never panics, whatever the function looks like: ids that belong to nothing are spelled with a `?`.
#[derive(Clone, Debug, Default)]
pub struct Names {
    values: HashMap<Value, u32>,
    buffers: HashMap<Buffer, u32>,
}

impl Names {
    /// Numbers values and tiles in order of their definitions, and after them those that are used without one.
    pub fn new(func: &Func) -> Names {
        let mut names = Names::default();
        for region in [func.prelude, func.body] {
            names.number_definitions(func, region);
        }
        for region in [func.prelude, func.body] {
            names.number_rest(func, region);
        }
        names
    }

    fn number_definitions(&mut self, func: &Func, region: Region) {
        for op in func.regions.get(region).iter().flat_map(|r| &r.ops).filter_map(|&op| func.ops.get(op)) {
            if let OpKind::Alloc { buffer } = op.kind {
                self.number_buffer(func, buffer);
            }
            op.kind.for_each_def(&mut |v| self.number_value(func, v));
            op.kind.for_each_region(&mut |r| self.number_definitions(func, r));
        }
    }

    fn number_rest(&mut self, func: &Func, region: Region) {
        for op in func.regions.get(region).iter().flat_map(|r| &r.ops).filter_map(|&op| func.ops.get(op)) {
            op.kind.for_each_buffer(&mut |b| self.number_buffer(func, b));
            op.kind.for_each_use(&mut |v| self.number_value(func, v));
            op.kind.for_each_region(&mut |r| self.number_rest(func, r));
        }
    }

    fn number_value(&mut self, func: &Func, v: Value) {
        if matches!(func.values.get(v).map(|data| data.def), Some(ValueDef::Op(_) | ValueDef::Pending)) {
            let next = self.values.len() as u32;
            self.values.entry(v).or_insert(next);
        }
    }

    fn number_buffer(&mut self, func: &Func, b: Buffer) {
        if func.buffers.get(b).is_some_and(|data| !is_named(data)) {
            let next = self.buffers.len() as u32;
            self.buffers.entry(b).or_insert(next);
        }
    }

    /// The spelling of a value: an immediate, a name, or `%` and a number.
    pub fn value(&self, func: &Func, v: Value) -> String {
        match func.values.get(v).map(|data| data.def) {
            Some(ValueDef::Const(c)) => c.to_string(),
            Some(ValueDef::Dim(dim)) => self.dim(func, dim),
            Some(ValueDef::Param(at)) => match func.params.get(at as usize) {
                Some(Param::Scalar { name, .. }) => plain_or_quoted(name),
                Some(Param::Tensor { .. }) | None => format!("%?param{at}"),
            },
            Some(ValueDef::BlockId(axis)) => match ["x", "y", "z"].get(axis as usize) {
                Some(axis) => format!("%b{axis}"),
                None => format!("%b{axis}"),
            },
            Some(ValueDef::Op(_) | ValueDef::Pending) => match self.values.get(&v) {
                Some(number) => format!("%{number}"),
                None => format!("%?{v:?}").replace("?%", "?"),
            },
            None => format!("%?{v:?}").replace("?%", "?"),
        }
    }

    /// The spelling of a buffer: a tensor's name, or `$` and a number.
    pub fn buffer(&self, func: &Func, b: Buffer) -> String {
        match (func.buffers.get(b), self.buffers.get(&b)) {
            (Some(data), _) if is_named(data) => plain_or_quoted(&data.name),
            (_, Some(number)) => format!("${number}"),
            (_, None) => format!("$?{b:?}").replace("?$", "?"),
        }
    }

    /// The spelling of a dim.
    pub fn dim(&self, func: &Func, dim: Dim) -> String {
        func.dims.get(dim).map_or_else(|| format!("?{dim:?}"), |data| plain_or_quoted(&data.name))
    }
}

/// True for tensors; a global buffer that is no parameter has no name, which the verifier objects to.
fn is_named(data: &BufferData) -> bool {
    data.scope == Scope::Global && !data.name.is_empty()
}

/// A name as it stands in text.
pub(crate) fn plain_or_quoted(name: &str) -> String {
    if is_plain_name(name) { name.to_owned() } else { quote(name, '`') }
}
