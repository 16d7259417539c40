//! What the index analyses can and cannot show, on kernels as authors write them.

use zellige_ir::analysis::{Facts, Interval};
use zellige_ir::*;

fn dim(b: &mut FuncBuilder, name: &str) -> (Dim, Value) {
    let d = b.func_mut().add_dim(name);
    (d, b.func().dims[d].value)
}

/// `x[m]` in blocks of 128 elements, `i` a parallel loop over 128; yields (x, bx, i, the position).
fn tiled(b: &mut FuncBuilder, m: Extent) -> (Buffer, Value, Value, Value) {
    let x = b.tensor("x", DType::F32, vec![m], Access::Write);
    let extent = match m {
        Extent::Static(n) => b.index(n as i64),
        Extent::Dynamic(d) => b.func().dims[d].value,
    };
    let tile = b.index(128);
    let blocks = b.ceildiv(extent, tile);
    let bx = b.grid(&[blocks], 128)[0];
    let i = b.begin_for(LoopKind::Parallel, &[tile])[0];
    let start = b.mul(bx, tile);
    let at = b.add(start, i);
    (x, bx, i, at)
}

#[test]
fn static_extents() {
    for (n, inside) in [(512, true), (500, false)] {
        let mut b = FuncBuilder::new("t", Span::unknown());
        let (x, bx, _, at) = tiled(&mut b, Extent::Static(n));
        b.load(x, &[at]);
        let op = last_op(&b);
        let func = b.finish();
        let facts = Facts::new(&func);
        assert_eq!(facts.ranges.range(bx), Interval::new(0, 3));
        assert_eq!(facts.ranges.range(at), Interval::new(0, 511));
        assert_eq!(facts.access_in_bounds(&func, op, x, &[at]), inside, "extent {n}");
    }
}

fn last_op(b: &FuncBuilder) -> Op {
    *b.func().regions[b.region()].ops.last().unwrap()
}

#[test]
fn guards_and_divisibility() {
    // Unguarded; under `if at < m`; in its other arm; with m a multiple of 128.
    for (guard, assume, inside) in
        [(None, false, false), (Some(true), false, true), (Some(false), false, false), (None, true, true)]
    {
        let mut b = FuncBuilder::new("t", Span::unknown());
        let (d, m) = dim(&mut b, "m");
        if assume {
            let (tile, zero) = (b.index(128), b.index(0));
            let rest = b.binary(BinaryOp::Rem, m, tile);
            let cond = b.cmp(CmpOp::Eq, rest, zero);
            b.append(OpKind::Assume { cond });
        }
        let (x, bx, _, at) = tiled(&mut b, Extent::Dynamic(d));
        if let Some(arm) = guard {
            let cond = b.cmp(CmpOp::Lt, at, m);
            let other = b.begin_if(cond);
            if !arm {
                b.close();
                b.open(other);
            }
        }
        b.load(x, &[at]);
        let op = last_op(&b);
        let tile = b.index(128);
        let start = b.mul(bx, tile);
        let window = b.window(x, &[start], &[128]);
        let func = b.finish();
        let facts = Facts::new(&func);
        assert_eq!(facts.access_in_bounds(&func, op, x, &[at]), inside, "guard {guard:?} assume {assume}");
        assert_eq!(facts.window_in_bounds(&func, op, &window), assume);
        // The block's first element exists whatever m is.
        let first = facts.ranges.form(start);
        assert!(facts.proves_less(&func, op, &first, &facts.ranges.form(m)));
        assert_eq!(facts.ranges.multiple_of(start), 128);
    }
}

#[test]
fn split_and_merged_indices() {
    let mut b = FuncBuilder::new("t", Span::unknown());
    let one = b.index(1);
    b.grid(&[one], 128);
    let n = b.index(4096);
    let i = b.begin_for(LoopKind::Vectorized, &[n])[0];
    let (c64, c100, c8) = (b.index(64), b.index(100), b.index(8));
    let row = b.binary(BinaryOp::Div, i, c64);
    let col = b.binary(BinaryOp::Rem, i, c64);
    let base = b.mul(row, c64);
    let merged = b.add(base, col);
    let pitched = b.mul(row, c100);
    let pitched = b.add(pitched, col);
    let swizzled = b.binary(BinaryOp::Xor, col, row);
    let chunk = b.binary(BinaryOp::Div, i, c8);
    let shifted = b.add(i, one);
    let shifted = b.binary(BinaryOp::Div, shifted, c8);
    // (8 * row + col / 8) / 8 is row again: col / 8 does not reach 8.
    let high = b.mul(row, c8);
    let low = b.binary(BinaryOp::Div, col, c8);
    let nested = b.add(high, low);
    let nested = b.binary(BinaryOp::Div, nested, c8);
    let func = b.finish();
    let facts = Facts::new(&func);
    let r = &facts.ranges;
    assert_eq!(r.form(merged).as_value(), Some(i));
    assert_eq!(r.form(nested), r.form(row));
    assert_eq!(r.range(row), Interval::new(0, 63));
    assert_eq!(r.range(col), Interval::new(0, 63));
    assert_eq!(r.range(pitched), Interval::new(0, 63 * 100 + 63));
    assert_eq!(r.range(swizzled), Interval::new(0, 63));
    assert_eq!(facts.contiguous_run(&func, pitched, i, 1024), 64);
    assert_eq!(facts.contiguous_run(&func, merged, i, 16), 16);
    assert_eq!(facts.contiguous_run(&func, swizzled, i, 16), 1);
    assert_eq!(facts.step_along(&func, chunk, i, 8), Some(0));
    assert_eq!(facts.step_along(&func, chunk, i, 16), None);
    assert_eq!(facts.step_along(&func, shifted, i, 8), None);
}

#[test]
fn windows_of_a_ring_are_disjoint() {
    let mut b = FuncBuilder::new("t", Span::unknown());
    let (_, k) = dim(&mut b, "k");
    let one = b.index(1);
    b.grid(&[one], 128);
    let ring = b.alloc(Scope::Shared, DType::F32, &[3, 64]);
    let ko = b.begin_for(LoopKind::Serial, &[k])[0];
    let (three, zero) = (b.index(3), b.index(0));
    let slot = b.binary(BinaryOp::Rem, ko, three);
    let next = b.add(ko, one);
    let next_slot = b.binary(BinaryOp::Rem, next, three);
    let other = b.add(slot, one);
    let window = |b: &mut FuncBuilder, slot| b.window(ring, &[slot, zero], &[1, 64]);
    let (a, n, o) = (window(&mut b, slot), window(&mut b, next_slot), window(&mut b, other));
    let (c32, full) = (b.index(32), b.window(ring, &[slot, zero], &[1, 32]));
    let half = b.window(ring, &[slot, c32], &[1, 32]);
    let op = last_op(&b);
    let func = b.finish();
    let facts = Facts::new(&func);
    assert!(facts.disjoint(&func, op, &a, &o));
    assert!(facts.disjoint(&func, op, &full, &half));
    assert!(!facts.disjoint(&func, op, &a, &a));
    assert!(!facts.disjoint(&func, op, &a, &half));
    assert!(facts.window_in_bounds(&func, op, &a) && facts.window_in_bounds(&func, op, &n));
    // Slot + 1 may be 3: outside.
    assert!(!facts.window_in_bounds(&func, op, &o));
}

#[test]
fn causal_extent() {
    // for j in 0..ceildiv(min(m, (bx + 1) * 64), 64): j * 64 < m, and j <= bx.
    let mut b = FuncBuilder::new("t", Span::unknown());
    let (_, m) = dim(&mut b, "m");
    let (c64, one) = (b.index(64), b.index(1));
    let blocks = b.ceildiv(m, c64);
    let bx = b.grid(&[blocks], 128)[0];
    let next = b.add(bx, one);
    let end = b.mul(next, c64);
    let end = b.binary(BinaryOp::Min, end, m);
    let extent = b.ceildiv(end, c64);
    let j = b.begin_for(LoopKind::Serial, &[extent])[0];
    let start = b.mul(j, c64);
    let op = last_op(&b);
    let func = b.finish();
    let facts = Facts::new(&func);
    let r = &facts.ranges;
    assert!(facts.proves_less(&func, op, &r.form(start), &r.form(m)));
    assert_eq!(facts.compare(&func, op, CmpOp::Le, j, bx), Some(true));
    assert_eq!(facts.compare(&func, op, CmpOp::Gt, j, bx), Some(false));
    assert_eq!(facts.compare(&func, op, CmpOp::Lt, j, bx), None);
}

#[test]
fn wrapping_arithmetic_is_not_followed() {
    let mut b = FuncBuilder::new("t", Span::unknown());
    let x = b.tensor("x", DType::I32, vec![Extent::Static(4)], Access::Read);
    let one = b.index(1);
    b.grid(&[one], 128);
    let zero = b.index(0);
    let v = b.load(x, &[zero]);
    let c = b.constant(Const::i32(1));
    let wraps = b.add(v, c);
    let mask = b.constant(Const::i32(15));
    let low = b.binary(BinaryOp::And, v, mask);
    let fits = b.add(low, c);
    let back = b.cast(fits, DType::Index);
    let narrow = b.cast(back, DType::I8);
    let func = b.finish();
    let r = Facts::new(&func).ranges;
    assert_eq!(r.range(wraps), Interval::new(i32::MIN.into(), i32::MAX.into()));
    assert_eq!(r.range(low), Interval::new(0, 15));
    assert_eq!(r.range(fits), Interval::new(1, 16));
    assert_eq!(r.form(narrow), r.form(fits));
    assert!(r.form(wraps).as_value().is_some());
}

#[test]
fn products_that_may_wrap_have_neither_sign_nor_divisor() {
    let mut b = FuncBuilder::new("t", Span::unknown());
    let x = b.tensor("x", DType::U16, vec![Extent::Static(4)], Access::Read);
    let one = b.index(1);
    b.grid(&[one], 128);
    let zero = b.index(0);
    let v = b.load(x, &[zero]);
    let wide = b.cast(v, DType::I32);
    let three = b.constant(Const::i32(3));
    let thrice = b.mul(wide, three);
    let square = b.mul(wide, wide);
    let product = b.mul(thrice, thrice);
    let magnitude = b.unary(UnaryOp::Abs, square);
    let mask = b.constant(Const::i32(255));
    let low = b.binary(BinaryOp::And, wide, mask);
    let fits = b.mul(low, low);
    let func = b.finish();
    let r = Facts::new(&func).ranges;
    let any = Interval::new(i32::MIN.into(), i32::MAX.into());
    assert_eq!(r.range(square), any);
    assert_eq!((r.range(product), r.multiple_of(product)), (any, 1));
    assert_eq!(r.form(magnitude).as_value(), Some(magnitude));
    assert_eq!(r.multiple_of(thrice), 3);
    assert_eq!(r.range(fits), Interval::new(0, 255 * 255));
}
