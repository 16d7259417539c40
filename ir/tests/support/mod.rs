//! Random functions for the tests of analyses and passes: scalar arithmetic of all kinds, loops, conditionals, small
//! tiles. They are verified, and deterministic in the seed; a few may fail at run time (an `index` overflows), which
//! the tests skip.

use zellige_ir::interp::{Arg, TensorArg};
use zellige_ir::*;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A function and arguments for it.
pub struct Case {
    pub func: Func,
    pub args: Vec<Arg>,
}

/// Elements of a tile.
const TILE: usize = 8;
/// Elements that a block may write to each output.
const ROOM: usize = 256;
const BLOCKS: usize = 2;

struct Gen {
    rng: Rng,
    b: FuncBuilder,
    /// Values in scope.
    values: Vec<Value>,
    x: Buffer,
    xi: Buffer,
    out: Buffer,
    /// Tiles: f32, i32, and one that only parallel loops write.
    tiles: [Buffer; 3],
    block: Value,
    written: usize,
    /// The index of the parallel loop around.
    parallel: Option<Value>,
    budget: usize,
}

/// The function of a seed.
pub fn case(seed: u64) -> Case {
    let mut rng = Rng(seed);
    let m = rng.pick(&[1usize, 5, 8, 16, 24]);
    let mut b = FuncBuilder::new("random", Span::unknown());
    let dim = b.func_mut().add_dim("m");
    let x = b.tensor("x", DType::F32, vec![Extent::Dynamic(dim)], Access::Read);
    let xi = b.tensor("xi", DType::I32, vec![Extent::Static(16)], Access::Read);
    let out = b.tensor("out", DType::I64, vec![Extent::Static(BLOCKS * ROOM)], Access::Write);
    let s = b.func_mut().add_scalar("s", DType::I32);
    let extent = b.func().dims[dim].value;
    if m.is_multiple_of(8) && rng.below(2) == 0 {
        let (eight, zero) = (b.index(8), b.index(0));
        let rest = b.binary(BinaryOp::Rem, extent, eight);
        let cond = b.cmp(CmpOp::Eq, rest, zero);
        b.append(OpKind::Assume { cond });
    }
    if rng.below(2) == 0 {
        let one = b.index(1);
        let cond = b.cmp(CmpOp::Ge, extent, one);
        b.append(if rng.below(2) == 0 {
            OpKind::Assume { cond }
        } else {
            OpKind::Assert { cond, message: "m > 0".to_owned() }
        });
    }
    let eight = b.index(8);
    let steps = b.ceildiv(extent, eight);
    let blocks = b.index(BLOCKS as i64);
    let block = b.grid(&[blocks], 32)[0];
    let tiles = [DType::F32, DType::I32, DType::F32].map(|ty| b.alloc(Scope::Shared, ty, &[TILE]));
    for t in tiles {
        let dst = b.whole(t);
        let value = Const::from_i64(b.func().buffers[t].dtype, 3);
        let value = b.constant(value);
        b.append(OpKind::Fill { dst, value });
    }
    let values = vec![extent, steps, s, block];
    let mut g = Gen { rng, b, values, x, xi, out, tiles, block, written: 0, parallel: None, budget: 60 };
    g.block(3);
    for t in tiles {
        for i in 0..TILE {
            let i = g.b.index(i as i64);
            let v = g.b.load(t, &[i]);
            g.output(v);
        }
    }
    let args = vec![
        TensorArg::from_f64(DType::F32, &[m], &(0..m).map(|i| i as f64 - 2.5).collect::<Vec<_>>()).into(),
        TensorArg::from_f64(DType::I32, &[16], &(0..16).map(|i| f64::from(i * i * 7 - 300)).collect::<Vec<_>>()).into(),
        TensorArg::zeros(DType::I64, &[BLOCKS * ROOM]).into(),
        Const::i32(g.rng.pick(&[0, 1, -7, 1 << 20, i32::MAX, i32::MIN])).into(),
    ];
    Case { func: g.b.finish(), args }
}

const INTS: [DType; 7] = [DType::Index, DType::I32, DType::I32, DType::U32, DType::I8, DType::U64, DType::I64];
const FLOATS: [DType; 3] = [DType::F32, DType::F32, DType::BF16];

impl Gen {
    fn of(&mut self, ty: DType) -> Value {
        let fitting: Vec<Value> = self.values.iter().copied().filter(|&v| self.b.func().ty(v) == ty).collect();
        if !fitting.is_empty() && self.rng.below(5) > 0 {
            // The newest are the most interesting.
            let newest = fitting.len().saturating_sub(6);
            return if self.rng.below(2) == 0 { self.rng.pick(&fitting) } else { self.rng.pick(&fitting[newest..]) };
        }
        self.some_constant(ty)
    }

    fn some_constant(&mut self, ty: DType) -> Value {
        let c = match ty {
            DType::Bool => Const::from_bool(self.rng.below(2) == 0),
            _ if ty.is_float() => {
                Const::from_f64(ty, self.rng.pick(&[0.0, -0.0, 1.0, -1.0, 0.5, 3.25, 1e30, f64::INFINITY, f64::NAN]))
            }
            _ => Const::from_i64(ty, self.rng.pick(&[0, 1, 2, 3, 4, 7, 8, 12, 15, 16, 63, 64, -1, -8])),
        };
        self.b.constant(c)
    }

    fn positive_constant(&mut self, ty: DType) -> Value {
        let c = Const::from_i64(ty, self.rng.pick(&[1, 2, 3, 4, 5, 8, 12, 16, 64]));
        self.b.constant(c)
    }

    /// An index of an element of a tile.
    fn place(&mut self, extent: usize) -> Value {
        let i = self.of(DType::Index);
        let n = self.b.index(extent as i64);
        self.b.binary(BinaryOp::Rem, i, n)
    }

    fn keep(&mut self, v: Value) {
        self.values.push(v);
    }

    /// Stores a value where no other block or iteration does.
    fn output(&mut self, v: Value) {
        if self.written == ROOM || self.parallel.is_some() {
            return;
        }
        let v = match self.b.func().ty(v) {
            DType::I64 => v,
            // NaN patterns are open, so floats are observed by value.
            ty if ty.is_float() => {
                let scaled = self.b.cast(v, DType::F64);
                self.b.cast(scaled, DType::I64)
            }
            _ => self.b.cast(v, DType::I64),
        };
        let room = self.b.index(ROOM as i64);
        let base = self.b.mul(self.block, room);
        let at = self.b.index(self.written as i64);
        let at = self.b.add(base, at);
        self.b.store(self.out, &[at], v);
        self.written += 1;
    }

    fn block(&mut self, depth: usize) {
        let scope = self.values.len();
        for _ in 0..4 + self.rng.below(8) {
            if self.budget == 0 {
                break;
            }
            self.budget -= 1;
            self.statement(depth);
        }
        let recent: Vec<Value> = self.values[scope..].to_vec();
        // Inside loops an output would be written once for each iteration, which is fine: by the same block.
        for v in recent.into_iter().rev().take(3) {
            self.output(v);
        }
        self.values.truncate(scope);
    }

    fn statement(&mut self, depth: usize) {
        match self.rng.below(if depth == 0 { 16 } else { 20 }) {
            0..=6 => self.arithmetic(),
            7..=8 => {
                let ty = self.rng.pick(&[DType::Index, DType::Index, DType::I32, DType::U32, DType::F32]);
                let (x, y) = (self.of(ty), self.of(ty));
                let op = self.rng.pick(CmpOp::ALL);
                let v = self.b.cmp(op, x, y);
                self.keep(v);
            }
            9 => {
                let (x, y) = (self.of(DType::Bool), self.of(DType::Bool));
                let v = match self.rng.below(3) {
                    0 => self.b.unary(UnaryOp::Not, x),
                    1 => self.b.binary(BinaryOp::And, x, y),
                    _ => self.b.binary(BinaryOp::Or, x, y),
                };
                self.keep(v);
            }
            10 => {
                let ty = self.rng.pick(&[DType::Index, DType::I32, DType::F32, DType::Bool]);
                let (c, x, y) = (self.of(DType::Bool), self.of(ty), self.of(ty));
                let v = self.b.select(c, x, y);
                self.keep(v);
            }
            11..=12 => {
                let all = [&INTS[..], &FLOATS, &[DType::F16, DType::F64, DType::Bool, DType::U8, DType::I16]].concat();
                let from = *self.values.last().unwrap_or(&self.block);
                let mut v = if self.rng.below(2) == 0 { from } else { self.rng.pick(&self.values.clone()) };
                for _ in 0..1 + self.rng.below(3) {
                    let ty = self.rng.pick(&all);
                    v = self.b.cast(v, ty);
                    self.keep(v);
                }
            }
            13 => {
                let v = match self.rng.below(4) {
                    0 => {
                        let i = self.of(DType::Index);
                        self.b.load(self.x, &[i])
                    }
                    1 => {
                        let i = self.place(16);
                        self.b.load(self.xi, &[i])
                    }
                    t => {
                        let i = self.place(TILE);
                        self.b.load(self.tiles[t - 2], &[i])
                    }
                };
                self.keep(v);
            }
            14..=15 => {
                // In parallel loops only the element of the iteration.
                let (tile, at) = match self.parallel {
                    Some(i) => (self.tiles[2], i),
                    None => {
                        let at = self.place(TILE);
                        (self.tiles[self.rng.below(2)], at)
                    }
                };
                let v = self.of(self.b.func().buffers[tile].dtype);
                self.b.store(tile, &[at], v);
            }
            16..=17 => self.a_loop(depth),
            18 => {
                let cond = self.of(DType::Bool);
                let other = self.b.begin_if(cond);
                self.block(depth - 1);
                self.b.close();
                self.b.open(other);
                if self.rng.below(2) == 0 {
                    self.block(depth - 1);
                }
                self.b.close();
            }
            _ => self.guarded(depth),
        }
    }

    fn arithmetic(&mut self) {
        if self.rng.below(4) == 0 {
            let ty = self.rng.pick(&FLOATS);
            let (x, y, z) = (self.of(ty), self.of(ty), self.of(ty));
            let v = match self.rng.below(4) {
                0 => {
                    let op = self.rng.pick(&[UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Exp2, UnaryOp::Sqrt, UnaryOp::Floor]);
                    self.b.unary(op, x)
                }
                1 => self.b.fma(x, y, z),
                _ => {
                    use BinaryOp::*;
                    let op = self.rng.pick(&[Add, Sub, Mul, Div, Min, Max, CopySign]);
                    self.b.binary(op, x, y)
                }
            };
            return self.keep(v);
        }
        use BinaryOp::*;
        let ty = if self.rng.below(3) > 0 { DType::Index } else { self.rng.pick(&INTS) };
        let op = match ty {
            DType::Index => self.rng.pick(&[Add, Add, Sub, Mul, Div, Div, Rem, Rem, CeilDiv, Min, Max, And, Shr]),
            _ => self.rng.pick(&[Add, Add, Sub, Mul, Div, Rem, Min, Max, And, Or, Xor, Shl, Shr]),
        };
        let x = self.of(ty);
        let y = match op {
            Div | Rem | CeilDiv => self.positive_constant(ty),
            Mul | Shl | Shr if self.rng.below(4) > 0 => self.positive_constant(ty),
            _ => self.of(ty),
        };
        let v = if self.rng.below(12) == 0 {
            let op = self.rng.pick(&[UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Not]);
            self.b.unary(op, x)
        } else {
            self.b.binary(op, x, y)
        };
        self.keep(v);
    }

    fn a_loop(&mut self, depth: usize) {
        let scope = self.values.len();
        if self.parallel.is_none() && self.rng.below(3) == 0 {
            let n = self.b.index(TILE as i64);
            let kind = self.rng.pick(&[LoopKind::Parallel, LoopKind::Vectorized]);
            let i = self.b.begin_for(kind, &[n])[0];
            self.parallel = Some(i);
            self.keep(i);
            self.block(depth - 1);
            self.parallel = None;
        } else {
            let n = match self.rng.below(3) {
                0 => {
                    let n = self.rng.pick(&[0, 1, 2, 5]);
                    self.b.index(n)
                }
                1 => self.values[1],
                _ => self.place(4),
            };
            let kind = self.rng.pick(&[LoopKind::Serial, LoopKind::Unrolled]);
            let i = self.b.begin_for(kind, &[n])[0];
            self.keep(i);
            self.block(depth - 1);
        }
        self.b.close();
        self.values.truncate(scope);
    }

    /// `if x < y { .. }` with uses of both inside.
    fn guarded(&mut self, depth: usize) {
        let scope = self.values.len();
        let (x, y) = (self.of(DType::Index), self.of(DType::Index));
        let op = self.rng.pick(CmpOp::ALL);
        let cond = self.b.cmp(op, x, y);
        self.b.begin_if(cond);
        self.values.extend([x, y]);
        let again = self.b.cmp(self.rng.pick(CmpOp::ALL), x, y);
        let least = self.b.binary(BinaryOp::Min, x, y);
        self.values.extend([again, least]);
        self.block(depth - 1);
        self.b.close();
        self.values.truncate(scope);
    }
}
