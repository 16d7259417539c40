//! Small kernels that together use every op family of tile IR, built with the function builder.

use zellige_ir::{
    Access, AtomicOp, BinaryOp, Buffer, CmpOp, Const, DType, Def, Extent, Func, FuncBuilder, GemmPrecision, LoopKind,
    OpKind, ReduceOp, ScanOp, Scope, ShuffleOp, Span, UnaryOp, Value, Window,
};

/// A builder whose spans count up, so that places in the output tell ops apart.
pub struct K {
    pub b: FuncBuilder,
    line: u32,
}

impl K {
    pub fn new(name: &str) -> K {
        K { b: FuncBuilder::new(name, at(1)), line: 1 }
    }

    /// The next source line.
    pub fn line(&mut self) -> &mut FuncBuilder {
        self.line += 1;
        self.b.set_span(at(self.line));
        &mut self.b
    }

    pub fn dim(&mut self, name: &str) -> (Extent, Value) {
        let d = self.b.func_mut().add_dim(name);
        (Extent::Dynamic(d), self.b.func().dims[d].value)
    }

    pub fn tensor(&mut self, name: &str, ty: DType, shape: &[Extent]) -> Buffer {
        self.b.tensor(name, ty, shape.to_vec(), Access::Read)
    }

    pub fn output(&mut self, name: &str, ty: DType, shape: &[Extent]) -> Buffer {
        self.b.tensor(name, ty, shape.to_vec(), Access::Write)
    }

    pub fn grid(&mut self, extents: &[Value], threads: usize) -> Vec<Value> {
        self.b.grid(extents, threads)
    }

    pub fn one_block(&mut self, threads: usize) {
        let one = self.b.index(1);
        self.b.grid(&[one], threads);
    }

    pub fn alloc(&mut self, scope: Scope, ty: DType, shape: &[usize]) -> Buffer {
        self.line().alloc(scope, ty, shape)
    }

    pub fn at(&mut self, buffer: Buffer, offsets: &[Value], shape: &[usize]) -> Window {
        self.b.window(buffer, offsets, shape)
    }

    pub fn origin(&mut self, buffer: Buffer, shape: &[usize]) -> Window {
        let zero = self.b.index(0);
        let rank = self.b.func().buffers[buffer].rank();
        self.b.window(buffer, &vec![zero; rank], shape)
    }

    pub fn whole(&mut self, buffer: Buffer) -> Window {
        self.b.whole(buffer)
    }

    pub fn copy(&mut self, src: Window, dst: Window) {
        self.line().copy(src, dst);
    }

    pub fn parallel(&mut self, extents: &[usize]) -> Vec<Value> {
        let extents: Vec<Value> = extents.iter().map(|&n| self.b.index(n as i64)).collect();
        self.line().begin_for(LoopKind::Parallel, &extents)
    }

    pub fn end(&mut self) {
        self.b.close();
    }

    pub fn f32(&mut self, v: f32) -> Value {
        self.b.constant(Const::f32(v))
    }

    pub fn finish(self) -> Func {
        self.b.finish()
    }
}

fn at(line: u32) -> Span {
    Span { file: "kernel.rs".into(), line, col: 5 }
}

pub fn n(x: usize) -> Extent {
    Extent::Static(x)
}

/// out[i, j] = silu(x[i, j]) * 2, rows in blocks of 16; the last block is partial.
pub fn elementwise() -> Func {
    let mut k = K::new("elementwise");
    let (m, m_val) = k.dim("m");
    let x = k.tensor("x", DType::BF16, &[m, n(256)]);
    let out = k.output("out", DType::F32, &[m, n(256)]);
    let rows = k.b.index(16);
    let blocks = k.b.ceildiv(m_val, rows);
    let ids = k.grid(&[blocks], 128);
    let row0 = k.b.mul(ids[0], rows);
    let ij = k.parallel(&[16, 256]);
    let i = k.b.add(row0, ij[0]);
    let v = k.line().load(x, &[i, ij[1]]);
    let v = k.b.cast(v, DType::F32);
    let minus = k.b.unary(UnaryOp::Neg, v);
    let e = k.b.unary(UnaryOp::Exp, minus);
    let one = k.f32(1.0);
    let d = k.b.add(e, one);
    let s = k.b.binary(BinaryOp::Div, v, d);
    let two = k.f32(2.0);
    let r = k.b.mul(s, two);
    k.line().store(out, &[i, ij[1]], r);
    k.end();
    k.finish()
}

/// Row softmax through a fragment.
pub fn softmax() -> Func {
    let mut k = K::new("softmax");
    let (m, m_val) = k.dim("m");
    let x = k.tensor("x", DType::F32, &[m, n(192)]);
    let out = k.output("out", DType::BF16, &[m, n(192)]);
    let rows = k.b.index(8);
    let blocks = k.b.ceildiv(m_val, rows);
    let ids = k.grid(&[blocks], 128);
    let row0 = k.b.mul(ids[0], rows);
    let zero = k.b.index(0);
    let t = k.alloc(Scope::Fragment, DType::F32, &[8, 192]);
    let top = k.alloc(Scope::Fragment, DType::F32, &[8]);
    let sum = k.alloc(Scope::Fragment, DType::F32, &[8]);
    let (src, whole) = (k.at(x, &[row0, zero], &[8, 192]), k.whole(t));
    k.copy(src, whole.clone());
    let top_w = k.whole(top);
    let reduce = |op, src: &Window, dst: &Window| OpKind::Reduce {
        op,
        src: src.clone(),
        dst: dst.clone(),
        axis: 1,
        accumulate: false,
    };
    let op = reduce(ReduceOp::Max, &whole, &top_w);
    k.line().append(op);
    let ij = k.parallel(&[8, 192]);
    let v = k.b.load(t, &ij);
    let m0 = k.b.load(top, &ij[..1]);
    let d = k.b.sub(v, m0);
    let e = k.b.unary(UnaryOp::Exp, d);
    k.b.store(t, &ij, e);
    k.end();
    let sum_w = k.whole(sum);
    let op = reduce(ReduceOp::Sum, &whole, &sum_w);
    k.line().append(op);
    let ij = k.parallel(&[8, 192]);
    let v = k.b.load(t, &ij);
    let s = k.b.load(sum, &ij[..1]);
    let q = k.b.binary(BinaryOp::Div, v, s);
    k.b.store(t, &ij, q);
    k.end();
    let dst = k.at(out, &[row0, zero], &[8, 192]);
    k.copy(whole, dst);
    k.finish()
}

/// What [`gemm`] can vary.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub name: &'static str,
    pub a: DType,
    pub b: DType,
    pub acc: DType,
    pub tile: [usize; 3],
    pub stages: u32,
    pub threads: usize,
    pub precision: GemmPrecision,
    /// A stored as (k, m), B stored as (k, n) instead of (n, k).
    pub a_trans: bool,
    pub b_rows: bool,
}

impl Gemm {
    pub const BF16: Gemm = Gemm {
        name: "gemm_bf16",
        a: DType::BF16,
        b: DType::BF16,
        acc: DType::F32,
        tile: [64, 64, 32],
        stages: 3,
        threads: 128,
        precision: GemmPrecision::Exact,
        a_trans: false,
        b_rows: false,
    };
}

/// c = a b, with A (m, k) and B (n, k); m, n, k are the tile's multiples or not, k is static (four tiles and a bit).
pub fn gemm(g: Gemm) -> Func {
    let [bm, bn, bk] = g.tile;
    let depth = 4 * bk;
    let mut k = K::new(g.name);
    let (m, m_val) = k.dim("m");
    let (cols, n_val) = k.dim("n");
    // The contiguous axis of a transposed operand needs a known extent to be copied in wide pieces.
    let a_shape = if g.a_trans { [n(depth), n(2 * bm)] } else { [m, n(depth)] };
    let b_shape = if g.b_rows { [n(depth), n(2 * bn)] } else { [cols, n(depth)] };
    let a = k.tensor("a", g.a, &a_shape);
    let b = k.tensor("b", g.b, &b_shape);
    let c = k.output("c", g.acc, &[m, cols]);
    let (bm_v, bn_v, bk_v) = (k.b.index(bm as i64), k.b.index(bn as i64), k.b.index(bk as i64));
    let gx = k.b.ceildiv(n_val, bn_v);
    let gy = k.b.ceildiv(m_val, bm_v);
    let ids = k.grid(&[gx, gy], g.threads);
    let col0 = k.b.mul(ids[0], bn_v);
    let row0 = k.b.mul(ids[1], bm_v);
    let a_s = k.alloc(Scope::Shared, g.a, &if g.a_trans { [bk, bm] } else { [bm, bk] });
    let b_s = k.alloc(Scope::Shared, g.b, &if g.b_rows { [bk, bn] } else { [bn, bk] });
    let acc = k.alloc(Scope::Fragment, g.acc, &[bm, bn]);
    let zero = k.b.constant(Const::zero(g.acc));
    let acc_w = k.whole(acc);
    let fill = OpKind::Fill { dst: acc_w.clone(), value: zero };
    k.line().append(fill);
    let steps = k.b.index(4);
    let kind = if g.stages > 0 { LoopKind::Pipelined { stages: g.stages } } else { LoopKind::Serial };
    let ko = k.line().begin_for(kind, &[steps])[0];
    let k0 = k.b.mul(ko, bk_v);
    let (a_w, b_w) = (k.whole(a_s), k.whole(b_s));
    let src = if g.a_trans { k.at(a, &[k0, row0], &[bk, bm]) } else { k.at(a, &[row0, k0], &[bm, bk]) };
    k.copy(src, a_w.clone());
    let src = if g.b_rows { k.at(b, &[k0, col0], &[bk, bn]) } else { k.at(b, &[col0, k0], &[bn, bk]) };
    k.copy(src, b_w.clone());
    let a_op = if g.a_trans { a_w.transposed() } else { a_w };
    let b_op = if g.b_rows { b_w } else { b_w.transposed() };
    let op = OpKind::Gemm { a: a_op, b: b_op, acc: acc_w.clone(), precision: g.precision };
    k.line().append(op);
    k.end();
    if g.acc == DType::F32 {
        let ij = k.parallel(&[bm, bn]);
        let v = k.b.load(acc, &ij);
        let half = k.f32(0.5);
        let v = k.b.mul(v, half);
        k.b.store(acc, &ij, v);
        k.end();
    }
    let dst = k.at(c, &[row0, col0], &[bm, bn]);
    k.copy(acc_w, dst);
    k.finish()
}

/// A binary search written out: each step's bounds are selected from those of the step before, so a result is reached from
/// the last step along more ways than could be walked.
fn search(k: &mut K, table: Buffer, key: Value, steps: usize) -> Value {
    let two = k.b.index(2);
    let (mut lo, mut hi) = (k.b.index(0), k.b.index(1 << 20));
    for _ in 0..steps {
        let sum = k.b.add(lo, hi);
        let mid = k.b.binary(BinaryOp::Div, sum, two);
        let x = k.b.load(table, &[mid]);
        let below = k.b.cmp(CmpOp::Le, x, key);
        (lo, hi) = (k.b.select(below, mid, lo), k.b.select(below, hi, mid));
    }
    lo
}

/// A product of rows that the block searches for, and elements that each thread searches for under conditions that are as
/// deep.
pub fn searches(steps: usize) -> Func {
    let (bm, bn, bk) = (64, 64, 64);
    let mut k = K::new("searches");
    let (m, _) = k.dim("m");
    let table = k.tensor("table", DType::I32, &[n(1 << 20)]);
    let a = k.tensor("a", DType::BF16, &[m, n(4 * bk)]);
    let b = k.tensor("b", DType::BF16, &[n(bn), n(4 * bk)]);
    let c = k.output("c", DType::F32, &[n(8), n(bm), n(bn)]);
    let found = k.output("found", DType::Index, &[n(8), n(128)]);
    let eight = k.b.index(8);
    let id = k.grid(&[eight], 128)[0];
    let key = k.b.cast(id, DType::I32);
    let row0 = search(&mut k, table, key, steps);
    let (a_s, b_s) = (k.alloc(Scope::Shared, DType::BF16, &[bm, bk]), k.alloc(Scope::Shared, DType::BF16, &[bn, bk]));
    let acc = k.alloc(Scope::Fragment, DType::F32, &[bm, bn]);
    let zero = k.f32(0.0);
    let acc_w = k.whole(acc);
    k.line().append(OpKind::Fill { dst: acc_w.clone(), value: zero });
    let (four, bk_v, none) = (k.b.index(4), k.b.index(bk as i64), k.b.index(0));
    let ko = k.line().begin_for(LoopKind::Pipelined { stages: 2 }, &[four])[0];
    let k0 = k.b.mul(ko, bk_v);
    let (a_w, b_w) = (k.whole(a_s), k.whole(b_s));
    let src = k.at(a, &[row0, k0], &[bm, bk]);
    k.copy(src, a_w.clone());
    let src = k.at(b, &[none, k0], &[bn, bk]);
    k.copy(src, b_w.clone());
    k.line().append(OpKind::Gemm { a: a_w, b: b_w.transposed(), acc: acc_w.clone(), precision: GemmPrecision::Exact });
    k.end();
    let ij = k.parallel(&[bm, bn]);
    let v = k.b.load(acc, &ij);
    k.b.store(c, &[id, ij[0], ij[1]], v);
    k.end();
    let i = k.parallel(&[128])[0];
    let key = k.b.load(table, &[i]);
    let at = search(&mut k, table, key, steps);
    let (mut cond, even) = (k.b.cmp(CmpOp::Gt, i, id), k.b.cmp(CmpOp::Gt, key, key));
    for step in 0..steps {
        let step = k.b.index(step as i64);
        let more = k.b.cmp(CmpOp::Ne, i, step);
        let (x, y) = (k.b.binary(BinaryOp::And, cond, more), k.b.binary(BinaryOp::And, cond, even));
        cond = k.b.binary(BinaryOp::Or, x, y);
    }
    k.b.begin_if(cond);
    k.b.store(found, &[id, i], at);
    k.end();
    k.end();
    k.finish()
}

/// One block of attention with an online softmax: two chained gemms, the first result feeding the second in registers.
pub fn attention() -> Func {
    let (bq, bkv, d) = (64, 32, 64);
    let mut k = K::new("attention");
    let (len, len_val) = k.dim("len");
    let q = k.tensor("q", DType::BF16, &[n(bq), n(d)]);
    let key = k.tensor("k", DType::BF16, &[len, n(d)]);
    let val = k.tensor("v", DType::BF16, &[len, n(d)]);
    let out = k.output("out", DType::F32, &[n(bq), n(d)]);
    k.one_block(128);
    let zero = k.b.index(0);
    let q_s = k.alloc(Scope::Shared, DType::BF16, &[bq, d]);
    let k_s = k.alloc(Scope::Shared, DType::BF16, &[bkv, d]);
    let v_s = k.alloc(Scope::Shared, DType::BF16, &[bkv, d]);
    let s = k.alloc(Scope::Fragment, DType::F32, &[bq, bkv]);
    let p = k.alloc(Scope::Fragment, DType::BF16, &[bq, bkv]);
    let o = k.alloc(Scope::Fragment, DType::F32, &[bq, d]);
    let top = k.alloc(Scope::Fragment, DType::F32, &[bq]);
    let old = k.alloc(Scope::Fragment, DType::F32, &[bq]);
    let sum = k.alloc(Scope::Fragment, DType::F32, &[bq]);
    let (q_t, q_w) = (k.origin(q, &[bq, d]), k.whole(q_s));
    k.copy(q_t, q_w.clone());
    let (o_w, sum_w, top_w, old_w, s_w, p_w) =
        (k.whole(o), k.whole(sum), k.whole(top), k.whole(old), k.whole(s), k.whole(p));
    let f0 = k.f32(0.0);
    let low = k.f32(-1e30);
    for (w, v) in [(&o_w, f0), (&sum_w, f0), (&top_w, low)] {
        let op = OpKind::Fill { dst: w.clone(), value: v };
        k.line().append(op);
    }
    let step = k.b.index(bkv as i64);
    let steps = k.b.ceildiv(len_val, step);
    let j = k.line().begin_for(LoopKind::Pipelined { stages: 2 }, &[steps])[0];
    let j0 = k.b.mul(j, step);
    let (k_w, v_w) = (k.whole(k_s), k.whole(v_s));
    let src = k.at(key, &[j0, zero], &[bkv, d]);
    k.copy(src, k_w.clone());
    let src = k.at(val, &[j0, zero], &[bkv, d]);
    k.copy(src, v_w.clone());
    let op = OpKind::Fill { dst: s_w.clone(), value: f0 };
    k.line().append(op);
    let precision = GemmPrecision::Exact;
    let op = OpKind::Gemm { a: q_w, b: k_w.transposed(), acc: s_w.clone(), precision };
    k.line().append(op);
    k.copy(top_w.clone(), old_w);
    // Mask columns beyond the length.
    let ij = k.parallel(&[bq, bkv]);
    let col = k.b.add(j0, ij[1]);
    let valid = k.b.cmp(CmpOp::Lt, col, len_val);
    let v = k.b.load(s, &ij);
    let scale = k.f32(0.125);
    let v = k.b.mul(v, scale);
    let v = k.b.select(valid, v, low);
    k.b.store(s, &ij, v);
    k.end();
    let op = OpKind::Reduce { op: ReduceOp::Max, src: s_w.clone(), dst: top_w, axis: 1, accumulate: true };
    k.line().append(op);
    let ij = k.parallel(&[bq, bkv]);
    let v = k.b.load(s, &ij);
    let m = k.b.load(top, &ij[..1]);
    let v = k.b.sub(v, m);
    let v = k.b.unary(UnaryOp::Exp, v);
    k.b.store(s, &ij, v);
    let v = k.b.cast(v, DType::BF16);
    k.b.store(p, &ij, v);
    k.end();
    let i = k.parallel(&[bq]);
    let (a, b) = (k.b.load(old, &i), k.b.load(top, &i));
    let v = k.b.sub(a, b);
    let v = k.b.unary(UnaryOp::Exp, v);
    k.b.store(old, &i, v);
    let l = k.b.load(sum, &i);
    let l = k.b.mul(l, v);
    k.b.store(sum, &i, l);
    k.end();
    let op = OpKind::Reduce { op: ReduceOp::Sum, src: s_w, dst: sum_w, axis: 1, accumulate: true };
    k.line().append(op);
    let ij = k.parallel(&[bq, d]);
    let v = k.b.load(o, &ij);
    let f = k.b.load(old, &ij[..1]);
    let v = k.b.mul(v, f);
    k.b.store(o, &ij, v);
    k.end();
    let op = OpKind::Gemm { a: p_w, b: v_w, acc: o_w.clone(), precision };
    k.line().append(op);
    k.end();
    let ij = k.parallel(&[bq, d]);
    let v = k.b.load(o, &ij);
    let l = k.b.load(sum, &ij[..1]);
    let v = k.b.binary(BinaryOp::Div, v, l);
    k.b.store(o, &ij, v);
    k.end();
    let dst = k.origin(out, &[bq, d]);
    k.copy(o_w, dst);
    k.finish()
}

/// Quantises rows of 256 to 8-bit floats with one scale for each 128 elements.
pub fn quantise() -> Func {
    let mut k = K::new("quantise");
    let (m, m_val) = k.dim("m");
    let x = k.tensor("x", DType::BF16, &[m, n(256)]);
    let q = k.output("q", DType::F8E4M3, &[m, n(256)]);
    let s = k.output("s", DType::F32, &[m, n(2)]);
    let rows = k.b.index(4);
    let blocks = k.b.ceildiv(m_val, rows);
    let ids = k.grid(&[blocks], 64);
    let row0 = k.b.mul(ids[0], rows);
    let zero = k.b.index(0);
    let t = k.alloc(Scope::Fragment, DType::F32, &[4, 128]);
    let top = k.alloc(Scope::Fragment, DType::F32, &[4]);
    let two = k.b.index(2);
    let h = k.line().begin_for(LoopKind::Unrolled, &[two])[0];
    let width = k.b.index(128);
    let col0 = k.b.mul(h, width);
    let (src, t_w, top_w) = (k.at(x, &[row0, col0], &[4, 128]), k.whole(t), k.whole(top));
    k.copy(src, t_w.clone());
    let op = OpKind::Reduce { op: ReduceOp::AbsMax, src: t_w.clone(), dst: top_w, axis: 1, accumulate: false };
    k.line().append(op);
    let i = k.parallel(&[4]);
    let v = k.b.load(top, &i);
    let floor = k.f32(1e-4);
    let v = k.b.binary(BinaryOp::Max, v, floor);
    let max = k.f32(448.0);
    let v = k.b.binary(BinaryOp::Div, v, max);
    k.b.store(top, &i, v);
    let row = k.b.add(row0, i[0]);
    k.b.store(s, &[row, h], v);
    k.end();
    let ij = k.parallel(&[4, 128]);
    let v = k.b.load(t, &ij);
    let f = k.b.load(top, &ij[..1]);
    let v = k.b.binary(BinaryOp::Div, v, f);
    k.b.store(t, &ij, v);
    k.end();
    let dst = k.at(q, &[row0, col0], &[4, 128]);
    k.copy(t_w, dst);
    k.end();
    let _ = zero;
    k.finish()
}

/// Rows gathered by an index, transposed through shared memory, and scattered back.
pub fn gather_scatter() -> Func {
    let mut k = K::new("gather_scatter");
    let (m, _) = k.dim("m");
    let x = k.tensor("x", DType::F16, &[m, n(64)]);
    let idx = k.tensor("idx", DType::I32, &[n(32)]);
    let out = k.output("out", DType::F16, &[m, n(64)]);
    let turned = k.output("turned", DType::F32, &[n(64), n(32)]);
    k.one_block(128);
    let t = k.alloc(Scope::Shared, DType::F16, &[32, 64]);
    let (src, idx_w, t_w) = (k.origin(x, &[32, 64]), k.whole(idx), k.whole(t));
    let pad = Const::zero(DType::F16);
    let op = OpKind::Gather { src, index: idx_w.clone(), dst: t_w.clone(), pad };
    k.line().append(op);
    let dst = k.origin(turned, &[64, 32]);
    k.copy(t_w.clone().transposed(), dst);
    let dst = k.origin(out, &[32, 64]);
    let op = OpKind::Scatter { src: t_w, dst, index: idx_w };
    k.line().append(op);
    k.finish()
}

/// Histogram with shared atomics, its running sum, and where the largest count stands.
pub fn histogram() -> Func {
    let mut k = K::new("histogram");
    let (len, len_val) = k.dim("len");
    let x = k.tensor("x", DType::U8, &[len]);
    let counts = k.output("counts", DType::I32, &[n(256)]);
    let sums = k.output("sums", DType::I32, &[n(256)]);
    let peak = k.output("peak", DType::I32, &[n(2)]);
    k.one_block(128);
    let zero = k.b.index(0);
    let h = k.alloc(Scope::Shared, DType::I32, &[256]);
    let r = k.alloc(Scope::Fragment, DType::I32, &[256]);
    let best = k.alloc(Scope::Local, DType::I32, &[1]);
    let h_w = k.whole(h);
    let none = k.b.constant(Const::i32(0));
    let op = OpKind::Fill { dst: h_w.clone(), value: none };
    k.line().append(op);
    let i = k.line().begin_for(LoopKind::Parallel, &[len_val]);
    let v = k.b.load(x, &i);
    let bin = k.b.cast(v, DType::Index);
    let one = k.b.constant(Const::i32(1));
    k.line().atomic(AtomicOp::Add, h, &[bin], one);
    k.end();
    let r_w = k.whole(r);
    k.copy(h_w.clone(), r_w.clone());
    let dst = k.origin(counts, &[256]);
    k.copy(r_w.clone(), dst);
    let best_w = Window { buffer: best, offsets: [zero].into_iter().collect(), axes: Default::default() };
    let op = OpKind::Reduce { op: ReduceOp::ArgMax, src: r_w.clone(), dst: best_w, axis: 0, accumulate: false };
    k.line().append(op);
    let p = k.line().load(best, &[zero]);
    k.line().store(peak, &[zero], p);
    let at = k.b.cast(p, DType::Index);
    let v = k.line().load(h, &[at]);
    let one_i = k.b.index(1);
    k.line().store(peak, &[one_i], v);
    let op =
        OpKind::Scan { op: ScanOp::Sum, src: r_w.clone(), dst: h_w.clone(), axis: 0, reverse: false, exclusive: true };
    k.line().append(op);
    let dst = k.origin(sums, &[256]);
    k.copy(h_w, dst);
    k.finish()
}

/// The eight best of 64 and all of them sorted; then exchanged between lanes.
pub fn order() -> Func {
    let mut k = K::new("order");
    let x = k.tensor("x", DType::F32, &[n(4), n(64)]);
    let vals = k.output("vals", DType::F32, &[n(4), n(8)]);
    let places = k.output("places", DType::I32, &[n(4), n(8)]);
    let sorted = k.output("sorted", DType::F32, &[n(4), n(64)]);
    let from = k.output("from", DType::I32, &[n(4), n(64)]);
    k.one_block(64);
    let t = k.alloc(Scope::Fragment, DType::F32, &[4, 64]);
    let v = k.alloc(Scope::Fragment, DType::F32, &[4, 8]);
    let p = k.alloc(Scope::Fragment, DType::I32, &[4, 8]);
    let ids = k.alloc(Scope::Shared, DType::I32, &[4, 64]);
    let (x_w, t_w, v_w, p_w, ids_w) = (k.origin(x, &[4, 64]), k.whole(t), k.whole(v), k.whole(p), k.whole(ids));
    k.copy(x_w, t_w.clone());
    let op = OpKind::TopK { src: t_w.clone(), values: v_w.clone(), indices: p_w.clone(), largest: true };
    k.line().append(op);
    let dst = k.origin(vals, &[4, 8]);
    k.copy(v_w, dst);
    let dst = k.origin(places, &[4, 8]);
    k.copy(p_w, dst);
    let ij = k.parallel(&[4, 64]);
    let j = k.b.cast(ij[1], DType::I32);
    k.b.store(ids, &ij, j);
    k.end();
    let op = OpKind::Sort { keys: t_w.clone(), payload: Some(ids_w.clone()), descending: false };
    k.line().append(op);
    let three = k.b.constant(Const::i32(3));
    let op = OpKind::Shuffle { op: ShuffleOp::Xor, src: t_w.clone(), dst: t_w.clone(), amount: three };
    k.line().append(op);
    let dst = k.origin(sorted, &[4, 64]);
    k.copy(t_w, dst);
    let dst = k.origin(from, &[4, 64]);
    k.copy(ids_w, dst);
    k.finish()
}

/// out[i, j] = x[i, j] / y[i]: a thread divides several by one.
pub fn divisions() -> Func {
    let mut k = K::new("divisions");
    let x = k.tensor("x", DType::F32, &[n(125), n(8)]);
    let y = k.tensor("y", DType::F32, &[n(125)]);
    let out = k.output("out", DType::F32, &[n(125), n(8)]);
    k.one_block(64);
    let ij = k.parallel(&[125, 8]);
    let a = k.line().load(x, &ij);
    let c = k.line().load(y, &ij[..1]);
    let q = k.line().binary(BinaryOp::Div, a, c);
    k.line().store(out, &ij, q);
    k.end();
    k.finish()
}

/// out[i, j] = sqrt(x[i, j]): a thread takes several roots, some of rows that do not exist.
pub fn roots() -> Func {
    let mut k = K::new("roots");
    let x = k.tensor("x", DType::F32, &[n(125), n(8)]);
    let out = k.output("out", DType::F32, &[n(125), n(8)]);
    k.one_block(64);
    let ij = k.parallel(&[128, 8]);
    let v = k.line().load(x, &ij);
    let root = k.line().unary(UnaryOp::Sqrt, v);
    k.line().store(out, &ij, root);
    k.end();
    k.finish()
}

/// Scalars of the block: a while loop over shared elements, a conditional, mutable locals.
pub fn control() -> Func {
    let mut k = K::new("control");
    let x = k.tensor("x", DType::I32, &[n(64)]);
    let out = k.output("out", DType::I32, &[n(4)]);
    k.one_block(64);
    let s = k.alloc(Scope::Shared, DType::I32, &[64]);
    let state = k.alloc(Scope::Local, DType::I32, &[2]);
    let (x_w, s_w) = (k.whole(x), k.whole(s));
    k.copy(x_w, s_w);
    let (zero, one) = (k.b.index(0), k.b.index(1));
    let i0 = k.b.constant(Const::i32(0));
    k.line().store(state, &[zero], i0);
    k.line().store(state, &[one], i0);
    // while state[0] < 64 && s[state[0]] >= 0 { state[1] += s[state[0]]; state[0] += 1 }
    let before = k.b.func_mut().add_region();
    let body = k.b.func_mut().add_region();
    k.line().open(before);
    let at = k.b.load(state, &[zero]);
    let limit = k.b.constant(Const::i32(63));
    let inside = k.b.cmp(CmpOp::Lt, at, limit);
    let place = k.b.cast(at, DType::Index);
    let v = k.b.load(s, &[place]);
    let positive = k.b.cmp(CmpOp::Ge, v, i0);
    let cond = k.b.binary(BinaryOp::And, inside, positive);
    k.b.close();
    k.line().open(body);
    let at = k.b.load(state, &[zero]);
    let place = k.b.cast(at, DType::Index);
    let v = k.b.load(s, &[place]);
    let sum = k.b.load(state, &[one]);
    let sum = k.b.add(sum, v);
    k.b.store(state, &[one], sum);
    let step = k.b.constant(Const::i32(1));
    let next = k.b.add(at, step);
    k.b.store(state, &[zero], next);
    k.b.close();
    k.line().append(OpKind::While { before, cond, body });
    let sum = k.line().load(state, &[one]);
    let big = k.b.constant(Const::i32(100));
    let is_big = k.b.cmp(CmpOp::Gt, sum, big);
    let other = k.line().begin_if(is_big);
    let i = k.parallel(&[64]);
    let v = k.b.load(s, &i);
    let v = k.b.add(v, sum);
    k.b.store(s, &i, v);
    k.end();
    k.b.close();
    k.b.open(other);
    let minus = k.b.constant(Const::i32(-1));
    k.line().store(s, &[zero], minus);
    k.b.close();
    let first = k.line().load(s, &[zero]);
    k.line().store(out, &[zero], first);
    k.line().store(out, &[one], sum);
    let at = k.line().load(state, &[zero]);
    let two = k.b.index(2);
    k.line().store(out, &[two], at);
    let ok = k.b.cmp(CmpOp::Ge, at, i0);
    k.line().append(OpKind::Assert { cond: ok, message: "counted backwards".into() });
    let op = OpKind::Print { message: "sum".into(), values: [sum].into_iter().collect(), window: None };
    k.line().append(op);
    k.finish()
}

/// Negative elements of a tile take a long way.
pub fn rarely() -> Func {
    let mut k = K::new("rarely");
    let x = k.tensor("x", DType::F32, &[n(16), n(128)]);
    let y = k.output("y", DType::F32, &[n(16), n(128)]);
    k.one_block(128);
    let t = k.alloc(Scope::Fragment, DType::F32, &[16, 128]);
    let (x_w, y_w, t_w) = (k.whole(x), k.whole(y), k.whole(t));
    k.copy(x_w, t_w.clone());
    let ij = k.parallel(&[16, 128]);
    let v = k.b.load(t, &ij);
    let zero = k.f32(0.0);
    let negative = k.b.cmp(CmpOp::Lt, v, zero);
    let _ = k.line().begin_if(negative);
    let mut w = v;
    for _ in 0..30 {
        w = k.b.mul(w, v);
    }
    k.line().store(t, &ij, w);
    k.b.close();
    k.end();
    k.copy(t_w, y_w);
    k.finish()
}

/// Largest magnitudes of the columns of a tile, in shared memory, and twice the tile, transposed.
pub fn columns() -> Func {
    let mut k = K::new("columns");
    let x = k.tensor("x", DType::BF16, &[n(128), n(64)]);
    let y = k.output("y", DType::BF16, &[n(64), n(128)]);
    let top = k.output("top", DType::F32, &[n(64)]);
    k.one_block(128);
    let tile = k.alloc(Scope::Fragment, DType::BF16, &[128, 64]);
    let twice = k.alloc(Scope::Fragment, DType::F32, &[128, 64]);
    let amax = k.alloc(Scope::Shared, DType::F32, &[64]);
    let (x_w, y_w, tile_w, twice_w) = (k.whole(x), k.whole(y), k.whole(tile), k.whole(twice));
    k.copy(x_w, tile_w);
    let ij = k.parallel(&[128, 64]);
    let v = k.b.load(tile, &ij);
    let v = k.b.cast(v, DType::F32);
    let v = k.b.add(v, v);
    k.line().store(twice, &ij, v);
    k.end();
    let (amax_w, top_w) = (k.whole(amax), k.whole(top));
    let src = twice_w.clone();
    let op = OpKind::Reduce { op: ReduceOp::AbsMax, src, dst: amax_w.clone(), axis: 0, accumulate: false };
    k.line().append(op);
    k.copy(amax_w, top_w);
    let mut turned = twice_w;
    turned.axes.reverse();
    k.copy(turned, y_w);
    k.finish()
}

/// Casts between many types, element by element.
pub fn casts(from: DType, to: DType) -> Func {
    let mut k = K::new(&format!("cast_{from}_{to}"));
    let x = k.tensor("x", from, &[n(512)]);
    let out = k.output("out", to, &[n(512)]);
    k.one_block(64);
    let i = k.parallel(&[512]);
    let v = k.b.load(x, &i);
    let v = k.b.cast(v, to);
    k.b.store(out, &i, v);
    k.end();
    k.finish()
}

/// A persistent loop over tiles of a vector, with per-iteration private storage.
pub fn persistent() -> Func {
    let mut k = K::new("persistent");
    let (len, len_val) = k.dim("len");
    let x = k.tensor("x", DType::F32, &[len]);
    let out = k.output("out", DType::F32, &[len]);
    let four = k.b.index(4);
    k.grid(&[four], 64);
    let width = k.b.index(128);
    let tiles = k.b.ceildiv(len_val, width);
    let t = k.line().begin_for(LoopKind::Persistent, &[tiles])[0];
    let at0 = k.b.mul(t, width);
    let i = k.parallel(&[128]);
    let p = k.line().alloc(Scope::Local, DType::F32, &[2]);
    let at = k.b.add(at0, i[0]);
    let v = k.b.load(x, &[at]);
    let (zero, one) = (k.b.index(0), k.b.index(1));
    k.b.store(p, &[zero], v);
    let three = k.b.index(9);
    let j = k.line().begin_for(LoopKind::Serial, &[three])[0];
    let v = k.b.load(p, &[zero]);
    let jf = k.b.cast(j, DType::F32);
    let v = k.b.add(v, jf);
    k.b.store(p, &[zero], v);
    k.end();
    let v = k.b.load(p, &[zero]);
    k.b.store(p, &[one], v);
    let v = k.b.load(p, &[one]);
    k.b.store(out, &[at], v);
    k.end();
    k.end();
    let _ = Def(v);
    k.finish()
}

/// Every kernel with the name of its snapshot.
pub fn all() -> Vec<(String, Func)> {
    let gemms = [
        Gemm::BF16,
        Gemm { name: "gemm_f16_nn", a: DType::F16, b: DType::F16, b_rows: true, stages: 2, ..Gemm::BF16 },
        Gemm { name: "gemm_bf16_tn", a_trans: true, b_rows: true, stages: 0, ..Gemm::BF16 },
        Gemm { name: "gemm_wgmma", tile: [128, 256, 64], stages: 2, threads: 256, ..Gemm::BF16 },
        Gemm { name: "gemm_wgmma_tn", a_trans: true, b_rows: true, tile: [128, 128, 64], threads: 256, ..Gemm::BF16 },
        Gemm { name: "gemm_tf32", a: DType::F32, b: DType::F32, precision: GemmPrecision::Tf32, ..Gemm::BF16 },
        Gemm { name: "gemm_e4m3", a: DType::F8E4M3, b: DType::F8E4M3, tile: [64, 32, 64], ..Gemm::BF16 },
        Gemm { name: "gemm_i8", a: DType::I8, b: DType::I8, acc: DType::I32, tile: [32, 32, 64], ..Gemm::BF16 },
        Gemm { name: "gemm_f32", a: DType::F32, b: DType::F32, tile: [32, 32, 16], stages: 0, ..Gemm::BF16 },
        Gemm { name: "gemm_odd", tile: [24, 40, 24], stages: 0, threads: 64, ..Gemm::BF16 },
    ];
    let mut list = vec![
        elementwise(),
        softmax(),
        attention(),
        quantise(),
        gather_scatter(),
        histogram(),
        order(),
        divisions(),
        roots(),
        control(),
        persistent(),
        rarely(),
        columns(),
        searches(40),
        casts(DType::F32, DType::F8E4M3),
        casts(DType::F8E5M2, DType::BF16),
        casts(DType::F32, DType::F4E2M1),
        casts(DType::I64, DType::BF16),
        casts(DType::F64, DType::I8),
        casts(DType::E8M0, DType::F32),
    ];
    list.extend(gemms.into_iter().map(gemm));
    list.into_iter().map(|f| (f.name.clone(), f)).collect()
}
