//! Execution of regions: scalar ops, element accesses and control flow.

use super::RunReport;
use super::error::{AccessKind, InterpError, InterpErrorKind};
use super::memory::Storage;
use super::points::{Point, Points};
use super::race::{Clock, Conflict};
use super::rng::Rng;
use crate::DType;
use crate::entity::EntityId;
use crate::eval::{self, EvalError};
use crate::func::{Buffer, Func, Op, Region, Scope, Value};
use crate::numerics::{Const, bitcast, cast};
use crate::op::{LoopKind, OpKind};
use crate::prelude::Launch;
use crate::span::Span;
use crate::text::Names;
use crate::window::Window;
use smallvec::SmallVec;

/// The run cannot go on; the reason is among the errors.
pub(super) struct Stop;

pub(super) type Step<T = ()> = Result<T, Stop>;

/// A buffer index, one coordinate for each axis.
pub(super) type Coords = SmallVec<[i64; 4]>;

pub(super) struct Machine<'f> {
    pub func: &'f Func,
    /// Constants and prelude values; restored at the start of each block.
    launch: &'f Launch,
    env: Vec<Option<Const>>,
    /// By [`Buffer`]; `None` before an `alloc`.
    pub memory: Vec<Option<Storage>>,
    clock: Clock,
    /// Linear id of the running block.
    block: usize,
    fuel: u64,
    steps: u64,
    max_errors: usize,
    errors: Vec<(Op, InterpError)>,
    rng: Option<Rng>,
    prints: Vec<String>,
}

impl<'f> Machine<'f> {
    pub fn new(func: &'f Func, launch: &'f Launch, fuel: u64, max_errors: usize, rng: Option<Rng>) -> Machine<'f> {
        Machine {
            func,
            launch,
            env: launch.values.clone(),
            memory: func.buffers.ids().map(|_| None).collect(),
            clock: Clock::default(),
            block: 0,
            fuel,
            steps: 0,
            max_errors,
            errors: Vec::new(),
            rng,
            prints: Vec::new(),
        }
    }

    pub fn finish(self) -> Result<RunReport, Vec<InterpError>> {
        if self.errors.is_empty() {
            Ok(RunReport { prints: self.prints, steps: self.steps, grid: self.launch.grid.to_vec() })
        } else {
            Err(self.errors.into_iter().map(|(_, e)| e).collect())
        }
    }

    /// Runs the body for every block. Block `(x, y, z)` has linear id `x + y * grid_x + z * grid_x * grid_y`.
    pub fn run_grid(&mut self) {
        let grid = &self.launch.grid;
        let mut blocks: Vec<usize> = (0..self.launch.blocks()).collect();
        if let Some(rng) = &mut self.rng {
            rng.shuffle(&mut blocks);
        }
        self.clock.enter();
        for block in blocks {
            self.clock.next_iteration();
            self.block = block;
            self.env.clone_from(&self.launch.values);
            for (buffer, data) in self.func.buffers.iter() {
                if data.scope != Scope::Global {
                    self.memory[buffer.index()] = None;
                }
            }
            let mut rest = block;
            for (&id, &extent) in self.func.block_ids.iter().zip(grid) {
                self.env[id.index()] = Some(Const::index((rest % extent) as i64));
                rest /= extent;
            }
            if self.region(self.func.body).is_err() {
                break;
            }
        }
        self.clock.leave();
    }

    // Errors.

    /// Notes an error, once for each op and kind of error; the run goes on unless there are too many.
    pub fn report(&mut self, op: Op, kind: InterpErrorKind, notes: Vec<(Span, String)>) -> Step {
        let same =
            |(o, e): &(Op, InterpError)| *o == op && std::mem::discriminant(&e.kind) == std::mem::discriminant(&kind);
        if !self.errors.iter().any(same) {
            self.errors.push((op, InterpError { kind, span: self.func.ops[op].span.clone(), notes }));
        }
        if self.errors.len() >= self.max_errors { Err(Stop) } else { Ok(()) }
    }

    /// Notes an error and ends the run.
    pub fn stop<T>(&mut self, op: Op, kind: InterpErrorKind) -> Step<T> {
        // Whether there are too many errors does not matter: the run ends either way.
        let _ = self.report(op, kind, Vec::new());
        Err(Stop)
    }

    pub fn malformed<T>(&mut self, op: Op, what: impl Into<String>) -> Step<T> {
        self.stop(op, InterpErrorKind::Malformed(what.into()))
    }

    /// The result of a scalar evaluation, or the end of the run.
    pub fn check<T>(&mut self, op: Op, operands: &[Const], result: Result<T, EvalError>) -> Step<T> {
        let name = self.func.ops[op].kind.name();
        match result {
            Ok(v) => Ok(v),
            Err(EvalError::DivisionByZero) => self.stop(op, InterpErrorKind::DivisionByZero),
            Err(EvalError::IndexOverflow) => {
                let x = operands.first().map_or(0, |c| c.as_i64());
                let y = operands.get(1).map_or(0, |c| c.as_i64());
                self.stop(op, InterpErrorKind::IndexOverflow { op: name, x, y })
            }
            Err(EvalError::Undefined) => {
                self.stop(op, InterpErrorKind::Undefined { op: name, operands: operands.to_vec() })
            }
        }
    }

    /// Counts work against the limit.
    pub fn spend(&mut self, op: Op, steps: u64) -> Step {
        self.steps += steps;
        if self.steps > self.fuel { self.stop(op, InterpErrorKind::OutOfFuel { fuel: self.fuel }) } else { Ok(()) }
    }

    // Values.

    pub fn get(&mut self, op: Op, v: Value) -> Step<Const> {
        match self.env[v.index()] {
            Some(c) => Ok(c),
            None => {
                let name = Names::new(self.func).value(self.func, v);
                self.malformed(op, format!("{name} is used before it is computed"))
            }
        }
    }

    pub fn get_bool(&mut self, op: Op, v: Value) -> Step<bool> {
        Ok(self.get(op, v)?.as_bool())
    }

    pub fn get_all(&mut self, op: Op, values: &[Value]) -> Step<SmallVec<[Const; 4]>> {
        values.iter().map(|&v| self.get(op, v)).collect()
    }

    fn coords(&mut self, op: Op, values: &[Value]) -> Step<Coords> {
        values.iter().map(|&v| Ok(self.get(op, v)?.as_i64())).collect()
    }

    // Elements.

    /// The name of a buffer in messages.
    pub fn name(&self, buffer: Buffer) -> String {
        let name = &self.func.buffers[buffer].name;
        if name.is_empty() { Names::new(self.func).buffer(self.func, buffer) } else { name.clone() }
    }

    /// Position of an element; `None` outside, which is an error unless the buffer is global.
    fn slot(&mut self, op: Op, buffer: Buffer, at: &[i64], access: AccessKind) -> Step<Option<usize>> {
        let Some(storage) = &self.memory[buffer.index()] else {
            return self.malformed(op, format!("`{}` is used before its alloc", self.name(buffer)));
        };
        if storage.shape.len() != at.len() {
            return self.malformed(op, format!("`{}` is indexed by {} coordinates", self.name(buffer), at.len()));
        }
        let slot = storage.slot(at);
        if slot.is_none() && self.func.buffers[buffer].scope != Scope::Global {
            let kind = InterpErrorKind::OutOfBounds {
                buffer: self.name(buffer),
                indices: at.to_vec(),
                shape: storage.shape.clone(),
                access,
            };
            let here = (self.func.buffers[buffer].span.clone(), "the buffer is declared here".to_owned());
            self.report(op, kind, vec![here])?;
        }
        Ok(slot)
    }

    /// Checks an access against the history of its element.
    fn access(&mut self, op: Op, buffer: Buffer, at: &[i64], slot: usize, kind: AccessKind) -> Step {
        let Some(storage) = &mut self.memory[buffer.index()] else { return Ok(()) };
        let readable = kind == AccessKind::Write || storage.init[slot];
        if let Some(Conflict { op: other, kind: first, level }) = storage.shadow[slot].access(&self.clock, op, kind) {
            let race = InterpErrorKind::Race {
                buffer: self.name(buffer),
                indices: at.to_vec(),
                first,
                second: kind,
                between: if level == 0 { "block" } else { "iteration" },
            };
            let note = (self.func.ops[other].span.clone(), format!("it is {first} here"));
            self.report(op, race, vec![note])?;
        }
        if !readable {
            let kind = InterpErrorKind::Uninitialised { buffer: self.name(buffer), indices: at.to_vec() };
            let here = (self.func.buffers[buffer].span.clone(), "the buffer is declared here".to_owned());
            self.report(op, kind, vec![here])?;
        }
        Ok(())
    }

    /// Reads an element; `pad` outside.
    pub fn read(&mut self, op: Op, buffer: Buffer, at: &[i64], pad: Const) -> Step<Const> {
        let Some(slot) = self.slot(op, buffer, at, AccessKind::Read)? else { return Ok(pad) };
        self.access(op, buffer, at, slot, AccessKind::Read)?;
        Ok(self.memory[buffer.index()].as_ref().map_or(pad, |s| s.get(slot)))
    }

    /// Writes an element; nothing happens outside.
    pub fn write(&mut self, op: Op, buffer: Buffer, at: &[i64], value: Const) -> Step {
        if value.dtype() != self.func.buffers[buffer].dtype {
            return self.malformed(op, format!("{} is written to `{}`", value.dtype(), self.name(buffer)));
        }
        let Some(slot) = self.slot(op, buffer, at, AccessKind::Write)? else { return Ok(()) };
        self.access(op, buffer, at, slot, AccessKind::Write)?;
        if let Some(storage) = &mut self.memory[buffer.index()] {
            storage.set(slot, value);
        }
        Ok(())
    }

    /// True if the element lies inside its buffer.
    pub fn is_inside(&self, buffer: Buffer, at: &[i64]) -> bool {
        self.memory[buffer.index()].as_ref().is_some_and(|s| s.slot(at).is_some())
    }

    /// Extents of a buffer in this launch.
    pub fn extent(&self, buffer: Buffer, axis: usize) -> i64 {
        self.memory[buffer.index()].as_ref().map_or(0, |s| s.shape[axis] as i64)
    }

    // Ops.

    fn region(&mut self, region: Region) -> Step {
        let func = self.func;
        func.regions[region].ops.iter().try_for_each(|&op| self.op(op))
    }

    fn op(&mut self, op: Op) -> Step {
        self.spend(op, 1)?;
        match &self.func.ops[op].kind {
            OpKind::Unary { out, op: f, x } => {
                let x = self.get(op, *x)?;
                let r = self.check(op, &[x], eval::unary(*f, x))?;
                self.set(out.0, r);
            }
            OpKind::Binary { out, op: f, x, y } => {
                let (x, y) = (self.get(op, *x)?, self.get(op, *y)?);
                let r = self.check(op, &[x, y], eval::binary(*f, x, y))?;
                self.set(out.0, r);
            }
            OpKind::Fma { out, x, y, z } => {
                let (x, y, z) = (self.get(op, *x)?, self.get(op, *y)?, self.get(op, *z)?);
                let r = self.check(op, &[x, y, z], eval::fma(x, y, z))?;
                self.set(out.0, r);
            }
            OpKind::Cmp { out, op: f, x, y } => {
                let (x, y) = (self.get(op, *x)?, self.get(op, *y)?);
                let r = self.check(op, &[x, y], eval::cmp(*f, x, y))?;
                self.set(out.0, Const::from_bool(r));
            }
            OpKind::Select { out, cond, x, y } => {
                let (cond, x, y) = (self.get_bool(op, *cond)?, self.get(op, *x)?, self.get(op, *y)?);
                self.set(out.0, if cond { x } else { y });
            }
            OpKind::Cast { out, x } => {
                let r = cast(self.get(op, *x)?, self.func.ty(out.0));
                self.set(out.0, r);
            }
            OpKind::Bitcast { out, x } => {
                let x = self.get(op, *x)?;
                let r = self.check(op, &[x], bitcast(x, self.func.ty(out.0)).ok_or(EvalError::Undefined))?;
                self.set(out.0, r);
            }
            OpKind::Load { out, buffer, indices } => {
                let at = self.coords(op, indices)?;
                let r = self.read(op, *buffer, &at, Const::zero(self.func.buffers[*buffer].dtype))?;
                self.set(out.0, r);
            }
            OpKind::Store { buffer, indices, value } => {
                let at = self.coords(op, indices)?;
                let value = self.get(op, *value)?;
                self.write(op, *buffer, &at, value)?;
            }
            OpKind::Atomic { out, op: f, buffer, indices, value } => {
                let at = self.coords(op, indices)?;
                let value = self.get(op, *value)?;
                let mut old = Const::zero(self.func.buffers[*buffer].dtype);
                if let Some(slot) = self.slot(op, *buffer, &at, AccessKind::Atomic)? {
                    self.access(op, *buffer, &at, slot, AccessKind::Atomic)?;
                    if let Some(storage) = &self.memory[buffer.index()] {
                        old = storage.get(slot);
                    }
                    let new = self.check(op, &[old, value], eval::atomic(*f, old, value))?;
                    if let Some(storage) = &mut self.memory[buffer.index()] {
                        storage.set(slot, new);
                    }
                }
                self.set(out.0, old);
            }
            OpKind::Alloc { buffer } => {
                let data = &self.func.buffers[*buffer];
                match data.static_shape() {
                    Some(shape) => self.memory[buffer.index()] = Some(Storage::uninit(data.dtype, shape)),
                    None => return self.malformed(op, format!("`{}` has a dynamic shape", self.name(*buffer))),
                }
            }
            OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. } => self.tile_op(op)?,
            OpKind::For { kind, indices, extents, body } => {
                let indices: SmallVec<[Value; 4]> = indices.iter().map(|d| d.0).collect();
                let extents = self.coords(op, extents)?;
                self.run_loop(op, *kind, &indices, &extents, *body)?;
            }
            OpKind::If { cond, then_body, else_body } => {
                let taken = if self.get_bool(op, *cond)? { then_body } else { else_body };
                self.region(*taken)?;
            }
            OpKind::While { before, cond, body } => loop {
                self.spend(op, 1)?;
                self.region(*before)?;
                if !self.get_bool(op, *cond)? {
                    break;
                }
                self.region(*body)?;
            },
            OpKind::Role { role: _, body } => self.region(*body)?,
            OpKind::Print { message, values, window } => {
                let values = self.get_all(op, values)?;
                let mut line = message.clone();
                for v in values {
                    line.push_str(&format!(" {v}"));
                }
                if let Some(window) = window {
                    line.push_str(&self.print_window(op, window)?);
                }
                self.prints.push(line);
            }
            OpKind::Assert { cond, message } => {
                if !self.get_bool(op, *cond)? {
                    return self.stop(op, InterpErrorKind::Assert { message: message.clone() });
                }
            }
            OpKind::Assume { cond } => {
                if !self.get_bool(op, *cond)? {
                    return self.stop(op, InterpErrorKind::Assume);
                }
            }
            OpKind::Layout { buffer: _, hint: _ } => {}
        }
        Ok(())
    }

    fn set(&mut self, v: Value, c: Const) {
        debug_assert_eq!(self.func.ty(v), c.dtype());
        self.env[v.index()] = Some(c);
    }

    fn print_window(&mut self, op: Op, window: &Window) -> Step<String> {
        let zero = Const::zero(self.func.buffers[window.buffer].dtype);
        let elements: Vec<String> = self.read_window(op, window, zero)?.iter().map(Const::to_string).collect();
        Ok(format!(" [{}]", elements.join(", ")))
    }

    fn run_loop(&mut self, op: Op, kind: LoopKind, indices: &[Value], extents: &[i64], body: Region) -> Step {
        if indices.len() != extents.len() {
            return self.malformed(op, "a loop has as many indices as extents");
        }
        let shape: Point = extents.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
        let any_order = match kind {
            LoopKind::Parallel | LoopKind::Vectorized => true,
            LoopKind::Serial | LoopKind::Unrolled | LoopKind::Pipelined { .. } | LoopKind::Persistent => false,
        };
        if !any_order {
            for point in Points::new(&shape) {
                // Persistent loops deal their iterations out to the blocks.
                if kind == LoopKind::Persistent && point[0] % self.launch.blocks() != self.block {
                    continue;
                }
                self.iteration(op, indices, &point, body)?;
            }
            return Ok(());
        }
        self.clock.enter();
        let mut points: Vec<Point> = Vec::new();
        if let Some(rng) = &mut self.rng {
            points.extend(Points::new(&shape));
            rng.shuffle(&mut points);
        }
        let ordered = Points::new(&shape).take(if self.rng.is_some() { 0 } else { usize::MAX });
        for point in points.into_iter().chain(ordered) {
            self.clock.next_iteration();
            self.iteration(op, indices, &point, body)?;
        }
        self.clock.leave();
        Ok(())
    }

    fn iteration(&mut self, op: Op, indices: &[Value], point: &[usize], body: Region) -> Step {
        self.spend(op, 1)?;
        for (&v, &i) in indices.iter().zip(point) {
            self.env[v.index()] = Some(Const::index(i as i64));
        }
        self.region(body)
    }

    /// The base coordinates of a window.
    pub fn origin(&mut self, op: Op, window: &Window) -> Step<Coords> {
        let origin = self.coords(op, &window.offsets)?;
        let rank = self.func.buffers[window.buffer].rank();
        let distinct = (0..window.axes.len()).all(|i| window.axes[..i].iter().all(|a| a.axis != window.axes[i].axis));
        if origin.len() != rank || !distinct || window.axes.iter().any(|a| usize::from(a.axis) >= rank) {
            return self.malformed(op, format!("a window does not fit `{}`", self.name(window.buffer)));
        }
        Ok(origin)
    }

    /// The type of a buffer's elements.
    pub fn dtype(&self, buffer: Buffer) -> DType {
        self.func.buffers[buffer].dtype
    }
}
