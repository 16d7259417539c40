//! Rules 1 and 2: ids and the tree of regions.

use super::{Rule, Verifier};
use crate::func::{Buffer, Extent, Op, Param, Region, Value, ValueDef};
use crate::op::Visit;
use std::collections::HashSet;

impl Verifier<'_> {
    /// Checks that whatever is looked up later exists, and that walking the regions ends.
    pub(super) fn check_ids(&mut self) {
        let func = self.func;
        for param in &func.params {
            match param {
                Param::Tensor { buffer, .. } => self.check_buffer(*buffer),
                Param::Scalar { value, .. } => self.check_value(*value),
            }
        }
        for (_, data) in func.dims.iter() {
            self.check_value(data.value);
        }
        for (_, data) in func.buffers.iter() {
            for extent in &data.shape {
                match *extent {
                    Extent::Static(_) => {}
                    Extent::Dynamic(dim) => {
                        if func.dims.get(dim).is_none() {
                            self.violation(Rule::Ids, format!("{dim} does not exist"));
                        }
                    }
                }
            }
        }
        for &v in func.grid.iter().chain(&func.block_ids) {
            self.check_value(v);
        }
        let (mut regions, mut ops) = (HashSet::new(), HashSet::new());
        for region in [func.prelude, func.body] {
            self.check_region_ids(region, &mut regions, &mut ops);
        }
        self.op = None;
    }

    fn check_value(&mut self, v: Value) {
        match self.func.values.get(v).map(|data| data.def) {
            Some(ValueDef::Const(_) | ValueDef::BlockId(_) | ValueDef::Pending) => {}
            Some(ValueDef::Dim(dim)) if self.func.dims.get(dim).is_some_and(|data| data.value == v) => {}
            Some(ValueDef::Param(at)) if matches!(self.func.params.get(at as usize), Some(Param::Scalar { value, .. }) if *value == v) =>
                {}
            Some(ValueDef::Op(op)) if self.func.ops.get(op).is_some() => {}
            Some(def @ (ValueDef::Dim(_) | ValueDef::Param(_) | ValueDef::Op(_))) => {
                self.violation(Rule::Ids, format!("value {v} is not what defines it: {def:?}"));
            }
            None => {
                self.violation(Rule::Ids, format!("value {v} does not exist"));
            }
        }
    }

    fn check_buffer(&mut self, b: Buffer) {
        if self.func.buffers.get(b).is_none() {
            self.violation(Rule::Ids, format!("buffer {b} does not exist"));
        }
    }

    fn check_region_ids(&mut self, region: Region, regions: &mut HashSet<Region>, ops: &mut HashSet<Op>) {
        let func = self.func;
        let Some(data) = func.regions.get(region) else {
            self.violation(Rule::Ids, format!("{region} does not exist"));
            return;
        };
        if !regions.insert(region) {
            self.violation(Rule::Tree, format!("{region} has two owners"));
            return;
        }
        for &op in &data.ops {
            let Some(data) = func.ops.get(op) else {
                self.violation(Rule::Ids, format!("{op} does not exist"));
                continue;
            };
            let outer = self.op.replace(op);
            if !ops.insert(op) {
                self.violation(Rule::Tree, "the op stands in two places");
            } else {
                data.kind.for_each_use(&mut |v| self.check_value(v));
                data.kind.for_each_def(&mut |v| self.check_value(v));
                data.kind.for_each_buffer(&mut |b| self.check_buffer(b));
                data.kind.for_each_region(&mut |r| self.check_region_ids(r, regions, ops));
            }
            self.op = outer;
        }
    }
}
