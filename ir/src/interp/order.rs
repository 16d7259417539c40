//! Tile ops that order elements: topk and sort.

use super::exec::{Machine, Step};
use super::tile::lines;
use crate::func::Op;
use crate::numerics::Const;
use crate::window::Window;
use std::cmp::Ordering;

impl Machine<'_> {
    pub(super) fn topk(&mut self, op: Op, src: &Window, values: &Window, indices: &Window, largest: bool) -> Step {
        let shape = src.shape();
        let mut want = shape.clone();
        let (Some(&n), Some(&k)) = (shape.last(), values.shape().last()) else {
            return self.malformed(op, "a topk of a window without axes");
        };
        if k > n {
            return self.malformed(op, format!("the {k} largest of {n} elements"));
        }
        want[shape.len() - 1] = k;
        self.expect_shape(op, "the values", &values.shape(), &want)?;
        self.expect_shape(op, "the indices", &indices.shape(), &want)?;
        self.check_overlap(op, src, values, false)?;
        self.check_overlap(op, src, indices, false)?;
        self.check_overlap(op, values, indices, false)?;
        let elements = self.read_zero_padded(op, src)?;
        let (mut chosen, mut places) = (Vec::new(), Vec::new());
        for line in lines(&shape, shape.len() - 1) {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&x, &y| nan_last(elements[line.at(x)], elements[line.at(y)], largest));
            for &p in &order[..k] {
                chosen.push(elements[line.at(p)]);
                places.push(Const::i32(p as i32));
            }
        }
        self.write_window(op, values, &chosen)?;
        self.write_window(op, indices, &places)
    }

    pub(super) fn sort(&mut self, op: Op, keys: &Window, payload: Option<&Window>, descending: bool) -> Step {
        let shape = keys.shape();
        if shape.is_empty() {
            return self.malformed(op, "a sort of a window without axes");
        }
        let elements = self.read_zero_padded(op, keys)?;
        let carried = match payload {
            Some(payload) => {
                self.expect_shape(op, "the payload", &payload.shape(), &shape)?;
                self.check_overlap(op, keys, payload, false)?;
                self.read_zero_padded(op, payload)?
            }
            None => Vec::new(),
        };
        let mut order: Vec<usize> = (0..elements.len()).collect();
        for line in lines(&shape, shape.len() - 1) {
            let mut places: Vec<usize> = (0..line.len).map(|p| line.at(p)).collect();
            places.sort_by(|&x, &y| nan_last(elements[x], elements[y], descending));
            for (p, place) in places.into_iter().enumerate() {
                order[line.at(p)] = place;
            }
        }
        let sorted: Vec<Const> = order.iter().map(|&p| elements[p]).collect();
        self.write_window(op, keys, &sorted)?;
        match payload {
            Some(payload) => {
                let moved: Vec<Const> = order.iter().map(|&p| carried[p]).collect();
                self.write_window(op, payload, &moved)
            }
            None => Ok(()),
        }
    }
}

/// Ascending or descending order with NaN last; equal elements stay in order under a stable sort.
fn nan_last(x: Const, y: Const, descending: bool) -> Ordering {
    if x.dtype().is_float() {
        let (x, y) = (x.as_f64(), y.as_f64());
        return match (x.partial_cmp(&y), descending) {
            (Some(o), false) => o,
            (Some(o), true) => o.reverse(),
            (None, _) => x.is_nan().cmp(&y.is_nan()),
        };
    }
    let o = if x.dtype().is_signed_int() { x.as_i64().cmp(&y.as_i64()) } else { x.bits().cmp(&y.bits()) };
    if descending { o.reverse() } else { o }
}
