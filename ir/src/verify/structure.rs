//! Rules 3 to 6, 12, 13 and 28 to 32: definitions, visibility, and the ops with regions.

use super::{Rule, Verifier};
use crate::DType;
use crate::func::{Buffer, Op, Region, Scope, Value, ValueDef};
use crate::op::{Effect, LayoutHint, LoopKind, OpKind, Visit};

impl Verifier<'_> {
    pub(super) fn check_structure(&mut self) {
        let func = self.func;
        let mut opened = Opened::default();
        self.check_ops(func.prelude, true, &mut opened);
        for &v in &func.grid {
            self.check_use(v);
        }
        self.visible.extend(&func.block_ids);
        self.check_ops(func.body, false, &mut opened);
        for (b, data) in func.buffers.iter() {
            if data.scope != Scope::Global && !self.allocated.contains_key(&b) && self.is_used(b) {
                let name = self.buffer_name(b);
                self.buffer_violation(Rule::AllocOnce, b, format!("{name} is never allocated"));
            }
        }
    }

    /// True if an op of the body names the buffer; passes may leave unused entries in the arena.
    fn is_used(&self, b: Buffer) -> bool {
        let mut used = false;
        self.func.walk(self.func.body, &mut |_, op| op.kind.for_each_buffer(&mut |c| used |= c == b));
        used
    }

    /// Checks the ops of a region; what they define is added to `opened` and stays visible.
    fn check_ops(&mut self, region: Region, is_prelude: bool, opened: &mut Opened) {
        let func = self.func;
        for &op in &func.regions[region].ops {
            let outer = self.op.replace(op);
            if is_prelude {
                self.check_prelude_op(op);
            }
            self.check_op(op, opened);
            self.op = outer;
        }
    }

    /// Checks a nested region; what it defines is visible to `then` and nowhere else.
    fn check_nested(&mut self, region: Region, then: impl FnOnce(&mut Self)) {
        let mut opened = Opened::default();
        self.check_ops(region, false, &mut opened);
        then(self);
        for v in opened.values {
            self.visible.remove(&v);
        }
        for b in opened.tiles {
            self.live.remove(&b);
        }
    }

    fn check_prelude_op(&mut self, op: Op) {
        let kind = self.kind(op);
        let allowed = kind.effect() == Effect::Pure || matches!(kind, OpKind::Assert { .. } | OpKind::Assume { .. });
        if !allowed {
            self.violation(Rule::Prelude, format!("`{}` stands in the prelude", kind.name()))
                .help("the prelude runs on the host before the launch: move the op to the body");
        }
    }

    fn check_op(&mut self, op: Op, opened: &mut Opened) {
        let kind = self.kind(op);
        match kind {
            // Its condition comes from a nested region.
            OpKind::While { .. } => {}
            _ => kind.for_each_use(&mut |v| self.check_use(v)),
        }
        match kind {
            OpKind::Alloc { .. } => {}
            _ => kind.for_each_buffer(&mut |b| self.check_tile_use(b)),
        }
        self.check_parallel_body(kind);
        self.check_operands(kind);
        match kind {
            OpKind::For { kind, indices, body, .. } => {
                let mut scope = Opened::default();
                for def in indices {
                    self.check_definition(op, def.0, &mut scope);
                }
                let outer = self.parallel;
                if is_parallel(*kind) {
                    self.parallel = Some(op);
                }
                self.check_nested(*body, |_| {});
                self.parallel = outer;
                for v in scope.values {
                    self.visible.remove(&v);
                }
            }
            OpKind::If { then_body, else_body, .. } => {
                self.check_nested(*then_body, |_| {});
                self.check_nested(*else_body, |_| {});
            }
            OpKind::While { before, cond, body } => {
                self.check_nested(*before, |v| v.check_while_condition(*before, *cond));
                self.check_nested(*body, |_| {});
            }
            OpKind::Role { body, .. } => {
                if let Some(outer) = self.role {
                    let span = self.op_span(outer);
                    self.violation(Rule::Roles, "a warp role stands inside another")
                        .note(span, "the outer role is here");
                }
                let outer = self.role.replace(op);
                self.check_nested(*body, |_| {});
                self.role = outer;
            }
            OpKind::Alloc { buffer } => self.check_alloc(op, *buffer, opened),
            OpKind::Layout { buffer, hint } => self.check_layout(op, *buffer, *hint),
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
            | OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. }
            | OpKind::Print { .. }
            | OpKind::Assert { .. }
            | OpKind::Assume { .. } => kind.for_each_def(&mut |v| self.check_definition(op, v, opened)),
        }
    }

    // Values and tiles.

    fn check_use(&mut self, v: Value) {
        match self.func.values[v].def {
            ValueDef::Const(_) | ValueDef::Dim(_) | ValueDef::Param(_) => {}
            ValueDef::BlockId(_) | ValueDef::Op(_) | ValueDef::Pending => {
                if self.visible.contains(&v) {
                    return;
                }
                let name = self.name(v);
                match (self.func.values[v].def, self.defined.get(&v).copied()) {
                    (ValueDef::BlockId(_), _) => {
                        self.violation(Rule::Visible, format!("{name} is not known before the grid"));
                    }
                    (_, Some(at)) => {
                        let span = self.op_span(at);
                        self.violation(Rule::Visible, format!("{name} is not visible here"))
                            .note(span, format!("{name} is defined here, in a region that has ended or in a loop"))
                            .help("keep the value in a local tile");
                    }
                    (_, None) => {
                        self.violation(Rule::Visible, format!("{name} is used before its definition"));
                    }
                }
            }
        }
    }

    fn check_definition(&mut self, op: Op, v: Value, opened: &mut Opened) {
        let name = self.name(v);
        match self.defined.get(&v).copied() {
            Some(first) => {
                let span = self.op_span(first);
                self.violation(Rule::DefinedOnce, format!("{name} is defined twice")).note(span, "it is defined here");
            }
            None => {
                self.defined.insert(v, op);
                let def = self.func.values[v].def;
                if !self.is_defined_by(v, def) {
                    self.violation(Rule::DefinedOnce, format!("{name} is a result, but says it is {def:?}"));
                }
            }
        }
        if self.visible.insert(v) {
            opened.values.push(v);
        }
    }

    /// True if `def` is an op that defines `v`. Of two such ops the value names the last; that there are two is
    /// another violation.
    fn is_defined_by(&self, v: Value, def: ValueDef) -> bool {
        let mut found = false;
        match def {
            ValueDef::Op(op) => self.kind(op).for_each_def(&mut |d| found |= d == v),
            ValueDef::Const(_) | ValueDef::Dim(_) | ValueDef::Param(_) | ValueDef::BlockId(_) | ValueDef::Pending => {}
        }
        found
    }

    fn check_tile_use(&mut self, b: Buffer) {
        if self.scope(b) == Scope::Global || self.live.contains(&b) {
            return;
        }
        let name = self.buffer_name(b);
        match self.allocated.get(&b).copied() {
            Some(at) => {
                let span = self.op_span(at);
                self.violation(Rule::Allocated, format!("{name} does not exist here"))
                    .note(span, "it is allocated here, in a region that has ended")
                    .help("allocate it in a region around both");
            }
            None => {
                self.violation(Rule::Allocated, format!("{name} is used before its alloc"));
            }
        }
    }

    fn check_alloc(&mut self, op: Op, b: Buffer, opened: &mut Opened) {
        let name = self.buffer_name(b);
        if self.scope(b) == Scope::Global {
            self.buffer_violation(Rule::AllocOnce, b, format!("{name} is a tensor, which comes from the host"));
        }
        if let Some(first) = self.allocated.get(&b).copied() {
            let span = self.op_span(first);
            self.violation(Rule::AllocOnce, format!("{name} is allocated twice")).note(span, "it is allocated here");
        }
        self.allocated.entry(b).or_insert(op);
        if self.live.insert(b) {
            opened.tiles.push(b);
        }
    }

    // Control flow.

    fn check_while_condition(&mut self, before: Region, cond: Value) {
        self.check_use(cond);
        let computed =
            matches!(self.func.values[cond].def, ValueDef::Op(op) if self.func.regions[before].ops.contains(&op));
        if !computed {
            let name = self.name(cond);
            self.violation(
                Rule::Conditions,
                format!("the condition {name} of a while is not computed in its first region"),
            );
        }
        self.expect_type(Rule::Conditions, "the condition", cond, DType::Bool);
    }

    /// What may not stand inside parallel and vectorized loops.
    fn check_parallel_body(&mut self, kind: &OpKind) {
        let Some(around) = self.parallel else { return };
        let allowed = match kind {
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
            | OpKind::If { .. }
            | OpKind::While { .. }
            | OpKind::Print { .. }
            | OpKind::Assert { .. }
            | OpKind::Assume { .. } => true,
            OpKind::For { kind, .. } => match kind {
                LoopKind::Serial | LoopKind::Unrolled | LoopKind::Vectorized => true,
                LoopKind::Pipelined { .. } | LoopKind::Parallel | LoopKind::Persistent => false,
            },
            // An iteration's own.
            OpKind::Alloc { buffer } => self.scope(*buffer) == Scope::Local,
            OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. }
            | OpKind::Role { .. }
            | OpKind::Layout { .. } => false,
        };
        if !allowed {
            let span = self.op_span(around);
            let help = match kind {
                OpKind::For { .. } => "give the outer loop several indices, or make this one serial",
                OpKind::Alloc { .. } => "an iteration can have local tiles of its own; allocate others outside",
                _ => "an iteration is one thread's work, this op the whole block's: move it out of the loop",
            };
            self.violation(Rule::ParallelBody, format!("`{}` stands in a parallel loop", kind.name()))
                .note(span, "the loop is here")
                .help(help);
        }
    }

    fn check_layout(&mut self, op: Op, b: Buffer, hint: LayoutHint) {
        let (name, scope) = (self.buffer_name(b), self.scope(b));
        let fits = match hint {
            LayoutHint::Swizzle(bytes) => scope == Scope::Shared && matches!(bytes, 32 | 64 | 128),
            LayoutHint::Pad(_) => scope == Scope::Shared,
            LayoutHint::RowMajor => scope != Scope::Global,
        };
        if !fits {
            self.buffer_violation(Rule::Layouts, b, format!("{name} cannot have this layout"));
        }
        if let Some(&first) = self.laid_out.get(&b) {
            let span = self.op_span(first);
            self.violation(Rule::Layouts, format!("{name} has a layout already")).note(span, "it is demanded here");
        }
        self.laid_out.entry(b).or_insert(op);
    }
}

/// Whether iterations may run at once.
pub(super) fn is_parallel(kind: LoopKind) -> bool {
    match kind {
        LoopKind::Parallel | LoopKind::Vectorized => true,
        LoopKind::Serial | LoopKind::Unrolled | LoopKind::Pipelined { .. } | LoopKind::Persistent => false,
    }
}

/// What the ops of a region define.
#[derive(Default)]
struct Opened {
    values: Vec<Value>,
    tiles: Vec<Buffer>,
}
