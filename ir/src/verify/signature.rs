//! Rules 7 to 12: parameters, buffers and the grid.

use super::{Rule, Verifier};
use crate::DType;
use crate::func::{BlockOrder, Buffer, BufferData, Extent, Param, Scope, Strides, Sums, ValueDef};
use std::collections::HashSet;

/// Threads of a block: whole warps, and no more than any device has.
const WARP: usize = 32;
const MAX_THREADS: usize = 1024;

impl Verifier<'_> {
    pub(super) fn check_signature(&mut self) {
        self.check_names();
        self.check_dims();
        self.check_params();
        for (b, data) in self.func.buffers.iter() {
            self.check_buffer_type(b, data);
        }
        self.check_launch();
    }

    fn check_names(&mut self) {
        let func = self.func;
        let (mut scalars, mut tensors) = (HashSet::new(), HashSet::new());
        for (_, dim) in func.dims.iter() {
            if !scalars.insert(&*dim.name) {
                self.violation(Rule::Names, format!("two dims are called `{}`", dim.name));
            }
        }
        for param in &func.params {
            match param {
                Param::Scalar { name, .. } => {
                    if !scalars.insert(name) {
                        self.violation(
                            Rule::Names,
                            format!("scalar parameter `{name}` has the name of a dim or of another one"),
                        );
                    }
                }
                Param::Tensor { buffer, .. } => {
                    let name = &*func.buffers[*buffer].name;
                    if !tensors.insert(name) {
                        self.buffer_violation(Rule::Names, *buffer, format!("two tensors are called `{name}`"));
                    }
                }
            }
        }
    }

    fn check_dims(&mut self) {
        let func = self.func;
        for (dim, data) in func.dims.iter() {
            let is_extent = func.params.iter().any(|param| match param {
                Param::Tensor { buffer, .. } => func.buffers[*buffer].shape.contains(&Extent::Dynamic(dim)),
                Param::Scalar { .. } => false,
            });
            if !is_extent {
                self.violation(
                    Rule::Dims,
                    format!("dim `{}` is no tensor's extent, so a launch does not know it", data.name),
                );
            }
            if self.ty(data.value) != DType::Index || func.values[data.value].def != ValueDef::Dim(dim) {
                self.violation(Rule::Dims, format!("the value of dim `{}` is not an index of its own", data.name));
            }
        }
    }

    fn check_params(&mut self) {
        let func = self.func;
        let mut seen = HashSet::new();
        for param in &func.params {
            match param {
                Param::Tensor { buffer, .. } => {
                    let scope = self.scope(*buffer);
                    if scope != Scope::Global {
                        self.buffer_violation(
                            Rule::Params,
                            *buffer,
                            format!("a tensor parameter is {}, expected global", scope.name()),
                        );
                    }
                    if !seen.insert(*buffer) {
                        self.buffer_violation(Rule::Params, *buffer, "two parameters are one buffer");
                    }
                }
                Param::Scalar { name, value } => {
                    let ty = self.ty(*value);
                    if !(ty.is_arithmetic() || ty == DType::Bool) {
                        self.violation(Rule::Params, format!("scalar parameter `{name}` is {ty}, a storage format"))
                            .help("pass it in a tensor, or as f32");
                    }
                }
            }
        }
        for (b, data) in func.buffers.iter() {
            if data.scope == Scope::Global && !seen.contains(&b) {
                self.buffer_violation(Rule::Params, b, "a global buffer is not a parameter");
            }
        }
    }

    fn check_buffer_type(&mut self, b: Buffer, data: &BufferData) {
        if data.dtype == DType::Index {
            let name = self.buffer_name(b);
            self.buffer_violation(
                Rule::Buffers,
                b,
                format!("the elements of {name} are index, which has no memory representation"),
            );
        }
        if data.scope != Scope::Global {
            let name = self.buffer_name(b);
            for extent in &data.shape {
                match extent {
                    Extent::Static(0) => self.buffer_violation(Rule::Buffers, b, format!("{name} has no elements")),
                    Extent::Static(_) => {}
                    Extent::Dynamic(_) => {
                        self.buffer_violation(
                            Rule::Buffers,
                            b,
                            format!("{name} has an extent that is known only at launch"),
                        );
                    }
                }
            }
            match data.strides {
                Strides::Contiguous => {}
                Strides::Dynamic => {
                    self.buffer_violation(Rule::Buffers, b, format!("{name} is strided, which only tensors are"))
                }
            }
        }
        if data.dtype == DType::F4E2M1 {
            match data.shape.last() {
                Some(Extent::Static(n)) if n % 2 == 0 => {}
                // The launcher checks the extent.
                Some(Extent::Dynamic(_)) => {}
                Some(Extent::Static(_)) | None => {
                    let name = self.buffer_name(b);
                    self.buffer_violation(
                        Rule::Packed,
                        b,
                        format!("the last extent of {name} is not even, but two elements share a byte"),
                    );
                }
            }
        }
    }

    fn check_launch(&mut self) {
        let func = self.func;
        if !(1..=3).contains(&func.grid.len()) {
            self.violation(Rule::Grid, format!("the grid has {} extents, expected one to three", func.grid.len()));
        }
        if func.grid.len() != func.block_ids.len() {
            let (ids, extents) = (func.block_ids.len(), func.grid.len());
            self.violation(Rule::Grid, format!("a block has {ids} coordinates in a grid with {extents} extents"));
        }
        for (axis, &v) in func.block_ids.iter().enumerate() {
            if func.values[v].def != ValueDef::BlockId(axis as u32) || self.ty(v) != DType::Index {
                self.violation(Rule::Grid, format!("the block's coordinate {axis} is not an index of its own"));
            }
        }
        for &v in &func.grid {
            self.expect_type(Rule::Grid, "the grid's extent", v, DType::Index);
        }
        if func.threads == 0 || !func.threads.is_multiple_of(WARP) || func.threads > MAX_THREADS {
            let n = func.threads;
            self.violation(
                Rule::Grid,
                format!("a block has {n} threads, expected a multiple of {WARP} up to {MAX_THREADS}"),
            );
        }
        match func.block_order {
            BlockOrder::RowMajor => {}
            BlockOrder::Panel(0) => {
                self.violation(Rule::Grid, "panels of blocks have no width");
            }
            BlockOrder::Panel(_) if func.grid.len() < 2 => {
                self.violation(Rule::Grid, "panels of blocks need a grid with two axes");
            }
            BlockOrder::Panel(_) => {}
        }
        if matches!(func.sums, Sums::Runs { count: 0, .. }) {
            self.violation(Rule::Grid, "sums of no runs");
        }
        if func.clusters.is_some_and(|[x, y]| x == 0 || y == 0) {
            self.violation(Rule::Grid, "clusters of no blocks");
        }
    }
}
