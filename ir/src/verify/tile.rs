//! Rules 18, 19 and 24 to 27: tile ops.

use super::{Rule, Verifier};
use crate::DType;
use crate::func::{Scope, Value};
use crate::numerics::Const;
use crate::op::{GemmPrecision, OpKind, ReduceOp, Visit};
use crate::window::Window;

impl Verifier<'_> {
    /// Checks an op on windows.
    pub(super) fn check_tile_op(&mut self, kind: &OpKind) {
        let mut sound = true;
        kind.for_each_window(&mut |w| sound &= self.check_window(w));
        if !sound {
            // Shapes would only repeat what is wrong with the windows.
            return;
        }
        match kind {
            OpKind::Copy { src, dst, pad } => {
                self.check_same_shape("the destination", dst, src);
                self.check_pad(src, *pad);
                self.check_dst(dst, &[src], true);
            }
            OpKind::Gather { src, index, dst, pad } => {
                self.check_rows(src, dst, index, dst);
                self.check_pad(src, *pad);
                self.check_dst(dst, &[src, index], false);
            }
            OpKind::Scatter { src, dst, index } => {
                self.check_rows(src, dst, index, src);
                self.check_dst(dst, &[src, index], false);
            }
            OpKind::Fill { dst, value } => {
                let (got, want) = (self.ty(*value), self.dtype(dst.buffer));
                if got != want {
                    let (name, buffer) = (self.name(*value), self.buffer_name(dst.buffer));
                    let message = format!("{name} is {got}, but the elements of {buffer} are {want}");
                    self.buffer_violation(Rule::ElementType, dst.buffer, message);
                }
                self.check_dst(dst, &[], false);
            }
            OpKind::Gemm { a, b, acc, precision } => self.check_gemm(a, b, acc, *precision),
            OpKind::Reduce { op, src, dst, axis, accumulate } => self.check_reduce(*op, src, dst, *axis, *accumulate),
            OpKind::Scan { op: _, src, dst, axis, reverse: _, exclusive: _ } => {
                self.check_same_shape("the destination", dst, src);
                self.check_axis(src, *axis);
                self.check_arithmetic("a scan", src);
                self.check_wide_enough(src, dst);
                self.check_dst(dst, &[src], true);
            }
            OpKind::TopK { src, values, indices, largest: _ } => self.check_topk(src, values, indices),
            OpKind::Sort { keys, payload, descending: _ } => {
                self.check_ranked("a sort", keys);
                self.check_arithmetic("a sort", keys);
                self.check_dst(keys, &[], false);
                if let Some(payload) = payload {
                    self.check_same_shape("the payload", payload, keys);
                    self.check_dst(payload, &[keys], false);
                }
            }
            OpKind::Shuffle { op: _, src, dst, amount } => {
                self.check_ranked("a shuffle", src);
                self.check_same_shape("the destination", dst, src);
                self.check_element_types("the destination", dst, self.dtype(src.buffer));
                self.check_amount(*amount);
                self.check_dst(dst, &[src], true);
            }
            OpKind::Unary { .. }
            | OpKind::Binary { .. }
            | OpKind::Fma { .. }
            | OpKind::Cmp { .. }
            | OpKind::Select { .. }
            | OpKind::Cast { .. }
            | OpKind::Bitcast { .. }
            | OpKind::Load { .. }
            | OpKind::Store { .. }
            | OpKind::Atomic { .. }
            | OpKind::Alloc { .. }
            | OpKind::For { .. }
            | OpKind::If { .. }
            | OpKind::While { .. }
            | OpKind::Role { .. }
            | OpKind::Print { .. }
            | OpKind::Assert { .. }
            | OpKind::Assume { .. }
            | OpKind::Layout { .. } => {}
        }
    }

    // Parts of the rules.

    /// Checks a window that is written against those that are read.
    fn check_dst(&mut self, dst: &Window, sources: &[&Window], in_place: bool) {
        self.check_write(dst.buffer);
        for src in sources {
            self.check_overlap(src, dst, in_place);
        }
    }

    fn check_shape(&mut self, what: &str, w: &Window, want: &[usize]) {
        let got = w.shape();
        if got[..] != *want {
            let name = self.buffer_name(w.buffer);
            let message = format!("{what} {name} has shape {:?}, expected {want:?}", &got[..]);
            self.buffer_violation(Rule::Shapes, w.buffer, message);
        }
    }

    fn check_same_shape(&mut self, what: &str, w: &Window, like: &Window) {
        self.check_shape(what, w, &like.shape());
    }

    fn check_ranked(&mut self, what: &str, w: &Window) {
        if w.rank() == 0 {
            self.violation(Rule::Shapes, format!("{what} needs a window with at least one axis"));
        }
    }

    fn check_axis(&mut self, w: &Window, axis: u32) -> bool {
        let exists = (axis as usize) < w.rank();
        if !exists {
            let (name, rank) = (self.buffer_name(w.buffer), w.rank());
            self.violation(Rule::Shapes, format!("axis {axis} of a window of {name} with {rank} axes"));
        }
        exists
    }

    fn check_element_types(&mut self, what: &str, w: &Window, want: DType) {
        let got = self.dtype(w.buffer);
        if got != want {
            let name = self.buffer_name(w.buffer);
            self.buffer_violation(Rule::TileTypes, w.buffer, format!("{what} {name} is {got}, expected {want}"));
        }
    }

    /// Checks that `what` computes with a type that has arithmetic.
    fn check_arithmetic(&mut self, what: &str, w: &Window) {
        let ty = self.dtype(w.buffer);
        if ty.is_storage_only() {
            self.buffer_violation(Rule::StorageOnly, w.buffer, format!("{what} computes with the storage format {ty}"));
        } else if !ty.is_arithmetic() {
            self.buffer_violation(Rule::TileTypes, w.buffer, format!("{what} of {ty} elements"));
        }
    }

    /// Checks that sums of the source's elements may be formed in the destination's type.
    fn check_wide_enough(&mut self, src: &Window, dst: &Window) {
        let (from, to) = (self.dtype(src.buffer), self.dtype(dst.buffer));
        let widens = from.is_float() == to.is_float()
            && from.is_signed_int() == to.is_signed_int()
            && from.is_arithmetic()
            && to.is_arithmetic()
            && to.bits() > from.bits();
        if from != to && !widens {
            let name = self.buffer_name(dst.buffer);
            let message = format!("the destination {name} is {to}, expected {from} or a wider type of its kind");
            self.buffer_violation(Rule::TileTypes, dst.buffer, message);
        }
    }

    fn check_pad(&mut self, src: &Window, pad: Const) {
        let want = self.dtype(src.buffer);
        if pad.dtype() != want {
            let name = self.buffer_name(src.buffer);
            let message = format!("the padding {pad} is {}, but the elements of {name} are {want}", pad.dtype());
            self.buffer_violation(Rule::Pad, src.buffer, message);
        }
    }

    /// Checks source and destination of a gather or scatter, whose rows `listed` has one of for each index.
    fn check_rows(&mut self, src: &Window, dst: &Window, index: &Window, listed: &Window) {
        let (from, to) = (src.shape(), dst.shape());
        match (from.split_first(), to.split_first(), listed.shape().first()) {
            (Some((_, from)), Some((_, to)), Some(&rows)) => {
                if from != to {
                    let message = format!("rows of shape {from:?} do not fit into rows of shape {to:?}");
                    self.violation(Rule::Shapes, message);
                }
                self.check_shape("the index", index, &[rows]);
            }
            (_, _, _) => {
                self.violation(Rule::Shapes, "rows need windows with at least one axis");
            }
        }
        let ty = self.dtype(index.buffer);
        if !matches!(ty, DType::I32 | DType::I64) {
            let name = self.buffer_name(index.buffer);
            let message = format!("the index {name} is {ty}, expected i32 or i64");
            self.buffer_violation(Rule::TileTypes, index.buffer, message);
        }
    }

    fn check_amount(&mut self, amount: Value) {
        let ty = self.ty(amount);
        if !matches!(ty, DType::I32 | DType::U32 | DType::Index) {
            let name = self.name(amount);
            self.violation(Rule::ScalarTypes, format!("the amount {name} is {ty}, expected i32, u32 or index"));
        }
    }

    // Single ops.

    fn check_gemm(&mut self, a: &Window, b: &Window, acc: &Window, precision: GemmPrecision) {
        let (sa, sb, sc) = (a.shape(), b.shape(), acc.shape());
        let fits = sa.len() == 2 && sb.len() == 2 && sa[1] == sb[0] && sc[..] == [sa[0], sb[1]];
        if !fits {
            let message = format!("a gemm of {:?} by {:?} into {:?}", &sa[..], &sb[..], &sc[..]);
            self.violation(Rule::Shapes, message)
                .help("expected [m, k] by [k, n] into [m, n]; `perm(1, 0)` transposes");
        }
        let (ta, tb, tc) = (self.dtype(a.buffer), self.dtype(b.buffer), self.dtype(acc.buffer));
        let is_float = |ty: DType| ty.is_float() && !matches!(ty, DType::E8M0 | DType::F64);
        let is_byte = |ty: DType| matches!(ty, DType::I8 | DType::U8);
        let want = match (is_float(ta) && is_float(tb), is_byte(ta) && is_byte(tb)) {
            (true, _) => Some(DType::F32),
            (_, true) => Some(DType::I32),
            (_, _) => None,
        };
        match want {
            Some(want) => self.check_element_types("the accumulator", acc, want),
            None => {
                self.violation(Rule::TileTypes, format!("a gemm of {ta} by {tb} into {tc}"))
                    .help("operands are floats of up to 32 bits, into f32, or 8-bit integers, into i32");
            }
        }
        match precision {
            GemmPrecision::Exact => {}
            GemmPrecision::Tf32 if ta == DType::F32 && tb == DType::F32 => {}
            GemmPrecision::Tf32 => {
                self.violation(Rule::TileTypes, format!("tf32 products of {ta} by {tb}, expected f32 by f32"));
            }
        }
        for (what, w, allowed) in [
            ("the operand", a, &[Scope::Shared, Scope::Fragment][..]),
            ("the operand", b, &[Scope::Shared, Scope::Fragment]),
            ("the accumulator", acc, &[Scope::Fragment]),
        ] {
            let scope = self.scope(w.buffer);
            if !allowed.contains(&scope) {
                let name = self.buffer_name(w.buffer);
                let allowed: Vec<&str> = allowed.iter().map(|s| s.name()).collect();
                let message = format!("{what} {name} of a gemm is {}, expected {}", scope.name(), allowed.join(" or "));
                self.buffer_violation(Rule::GemmScopes, w.buffer, message);
            }
        }
        self.check_dst(acc, &[a, b], false);
    }

    fn check_reduce(&mut self, op: ReduceOp, src: &Window, dst: &Window, axis: u32, accumulate: bool) {
        if self.check_axis(src, axis) {
            let mut want = src.shape();
            want.remove(axis as usize);
            self.check_shape("the destination", dst, &want);
        }
        let ty = self.dtype(src.buffer);
        match op {
            ReduceOp::Sum | ReduceOp::Max | ReduceOp::Min => {
                self.check_arithmetic("a reduction", src);
                self.check_wide_enough(src, dst);
            }
            ReduceOp::AbsMax => {
                self.check_arithmetic("a reduction", src);
                if ty.is_int() && !ty.is_signed_int() {
                    let message = format!("`absmax` of {ty} elements, which have no sign");
                    self.buffer_violation(Rule::TileTypes, src.buffer, message);
                }
                self.check_wide_enough(src, dst);
            }
            ReduceOp::And | ReduceOp::Or | ReduceOp::Xor => {
                if !(ty.is_int() || ty == DType::Bool) {
                    self.buffer_violation(Rule::TileTypes, src.buffer, format!("`{op}` of {ty} elements"));
                }
                self.check_element_types("the destination", dst, ty);
            }
            ReduceOp::ArgMax | ReduceOp::ArgMin => {
                self.check_arithmetic("a reduction", src);
                self.check_element_types("the destination", dst, DType::I32);
                if accumulate {
                    self.violation(Rule::TileTypes, format!("`{op}` cannot accumulate: positions do not combine"));
                }
            }
        }
        self.check_dst(dst, &[src], false);
    }

    fn check_topk(&mut self, src: &Window, values: &Window, indices: &Window) {
        self.check_arithmetic("a topk", src);
        let mut want = src.shape();
        match (want.last_mut(), values.shape().last()) {
            (Some(n), Some(&k)) if k <= *n => {
                *n = k;
                self.check_shape("the values", values, &want);
                self.check_shape("the indices", indices, &want);
            }
            (Some(n), Some(k)) => {
                let message = format!("the {k} first of {n} elements");
                self.violation(Rule::Shapes, message);
            }
            (_, _) => {
                self.violation(Rule::Shapes, "a topk needs windows with at least one axis");
            }
        }
        self.check_element_types("the values", values, self.dtype(src.buffer));
        self.check_element_types("the indices", indices, DType::I32);
        self.check_dst(values, &[src], false);
        self.check_dst(indices, &[src, values], false);
    }
}
