//! Tile operations whose extents are checked while they are recorded: those that agree are appended, the others are an
//! error that points at both tiles.

use crate::buffer::Tile;
use crate::record::{self, Recorder};
use crate::{Fragment, Gemm, Idx};
use std::panic::Location;
use zellige_ir::diagnostic::Diagnostic;
use zellige_ir::{Const, Element, Numeric, OpKind, ReduceOp, ScanOp, ShuffleOp, Span, Window};

#[track_caller]
pub(crate) fn move_tile<A: Element, B: Element, const R: usize>(
    what: &str,
    src: impl Tile<A, R>,
    dst: impl Tile<B, R>,
    pad: Const,
) {
    let at = Location::caller();
    if let Some((src, dst)) = windows(what, at, &src, &dst) {
        record::with(at, |r| r.builder.append(OpKind::Copy { src, dst, pad }));
    }
}

/// The windows of a move, or an error about their extents.
pub(crate) fn windows<A: Element, B: Element, const R: usize>(
    what: &str,
    at: &'static Location<'static>,
    src: &impl Tile<A, R>,
    dst: &impl Tile<B, R>,
) -> Option<(Window, Window)> {
    let (s, d) = (src.extents(), dst.extents());
    if let (Some(s), Some(d)) = (s, d)
        && s != d
        && what != "gather"
        && what != "scatter"
    {
        record::with(at, |r| {
            let ((ss, sw), (ds, dw)) = (r.origin(src.buffer()), r.origin(dst.buffer()));
            r.error(
                Diagnostic::error(format!("{what} between tiles of different shape"))
                    .at(Span::from(at), format!("source is {s:?}, destination is {d:?}"))
                    .note_at(ss, format!("{sw}: {s:?}"))
                    .note_at(ds, format!("{dw}: {d:?}")),
            );
        });
        return None;
    }
    if s.is_none() && d.is_none() {
        record::with(at, |r| {
            r.error(
                Diagnostic::error(format!("{what} between two tensors"))
                    .at(Span::from(at), "neither side says how many elements to move")
                    .help("go through a shared tile or a fragment"),
            );
        });
        return None;
    }
    let windows = (src.window(d)?, dst.window(s)?);
    Some(windows)
}

/// The window of an operand that needs extents of its own.
pub(crate) fn own_window<E: Element, const R: usize>(
    what: &str,
    at: &'static Location<'static>,
    tile: &impl Tile<E, R>,
) -> Option<Window> {
    if tile.extents().is_none() {
        record::with(at, |r| {
            let (span, origin) = r.origin(tile.buffer());
            r.error(
                Diagnostic::error(format!("{what} on a tensor window without extents"))
                    .at(Span::from(at), "expected a tile")
                    .note_at(span, origin)
                    .help("copy it into a shared tile or a fragment first"),
            );
        });
        return None;
    }
    tile.window(None)
}

pub(crate) fn rows_match(
    r: &mut Recorder,
    what: &str,
    at: &'static Location<'static>,
    index: &Window,
    tile: &Window,
) -> bool {
    let (n, rows) = (index.shape()[0], tile.shape()[0]);
    if n == rows {
        return true;
    }
    let ((is, iw), (ts, tw)) = (r.origin(index.buffer), r.origin(tile.buffer));
    r.error(
        Diagnostic::error(format!("{what}: {n} positions for {rows} rows"))
            .at(Span::from(at), "")
            .note_at(is, iw)
            .note_at(ts, tw),
    );
    false
}

pub(crate) fn gemm<A: Element, B: Element, C: Numeric>(
    at: &'static Location<'static>,
    a: &impl Tile<A, 2>,
    b: &impl Tile<B, 2>,
    acc: Fragment<C, 2>,
    options: Gemm,
) {
    let (Some(wa), Some(wb), Some(wc)) =
        (own_window("gemm", at, a), own_window("gemm", at, b), own_window("gemm", at, &acc))
    else {
        return;
    };
    record::with(at, |r| {
        let (sa, sb, sc) = (wa.shape(), wb.shape(), wc.shape());
        let mut ok = true;
        if sa[1] != sb[0] {
            ok = false;
            let ((sp_a, w_a), (sp_b, w_b)) = (r.origin(wa.buffer), r.origin(wb.buffer));
            let transposed =
                if sa[1] == sb[1] { Some("the right operand is [K, N]: did you mean `.t()`?") } else { None };
            let d = Diagnostic::error("gemm: the inner extents differ")
                .at(Span::from(at), format!("left is {sa:?}, so K = {}; right is {sb:?}, so K = {}", sa[1], sb[0]))
                .note_at(sp_a, format!("left: {w_a}"))
                .note_at(sp_b, format!("right: {w_b}"));
            r.error(match transposed {
                Some(help) => d.help(help),
                None => d,
            });
        }
        if [sa[0], sb[1]] != sc[..] {
            ok = false;
            let (span, what) = r.origin(wc.buffer);
            r.error(
                Diagnostic::error(format!("gemm: the accumulator is {sc:?}, the product {:?}", [sa[0], sb[1]]))
                    .at(Span::from(at), "")
                    .note_at(span, format!("accumulator: {what}")),
            );
        }
        if ok {
            if options.clear {
                let value = r.builder.constant(Const::zero(C::DTYPE));
                r.builder.append(OpKind::Fill { dst: wc.clone(), value });
            }
            r.builder.append(OpKind::Gemm { a: wa, b: wb, acc: wc, precision: options.precision });
        }
    });
}

pub(crate) fn reduce<A: Element, B: Element, const R: usize, const S: usize>(
    at: &'static Location<'static>,
    op: ReduceOp,
    src: &impl Tile<A, R>,
    dst: &impl Tile<B, S>,
    axis: usize,
    accumulate: bool,
) {
    let (Some(src), Some(dst)) = (own_window("reduce", at, src), own_window("reduce", at, dst)) else { return };
    record::with(at, |r| {
        let (s, d) = (src.shape(), dst.shape());
        let ((s_at, s_what), (d_at, d_what)) = (r.origin(src.buffer), r.origin(dst.buffer));
        let mut expected = s.clone();
        if axis >= R {
            r.error(
                Diagnostic::error(format!("reduce along axis {axis} of a rank-{R} tile"))
                    .at(Span::from(at), format!("axes run from 0 to {}", R.saturating_sub(1)))
                    .note_at(s_at, s_what),
            );
            return;
        }
        expected.remove(axis);
        if expected != d {
            r.error(
                Diagnostic::error(format!("reduce of a {s:?} tile along axis {axis} gives {expected:?}"))
                    .at(Span::from(at), format!("the destination is {d:?}"))
                    .note_at(s_at, format!("source: {s_what}"))
                    .note_at(d_at, format!("destination: {d_what}")),
            );
            return;
        }
        r.builder.append(OpKind::Reduce { op, src, dst, axis: axis as u32, accumulate });
    });
}

pub(crate) fn scan<E: Element, const R: usize>(
    at: &'static Location<'static>,
    op: ScanOp,
    src: &impl Tile<E, R>,
    dst: &impl Tile<E, R>,
    axis: usize,
    reverse: bool,
    exclusive: bool,
) {
    let Some((src, dst)) = windows("scan", at, src, dst) else { return };
    record::with(at, |r| {
        if axis >= R {
            let (span, what) = r.origin(src.buffer);
            r.error(
                Diagnostic::error(format!("scan along axis {axis} of a rank-{R} tile"))
                    .at(Span::from(at), format!("axes run from 0 to {}", R.saturating_sub(1)))
                    .note_at(span, what),
            );
            return;
        }
        r.builder.append(OpKind::Scan { op, src, dst, axis: axis as u32, reverse, exclusive });
    });
}

pub(crate) fn shuffle<E: Element, const R: usize>(
    at: &'static Location<'static>,
    op: ShuffleOp,
    src: Fragment<E, R>,
    dst: Fragment<E, R>,
    amount: Idx,
) {
    if let Some((src, dst)) = windows("shuffle", at, &src, &dst) {
        record::with(at, |r| r.builder.append(OpKind::Shuffle { op, src, dst, amount: amount.value }));
    }
}
