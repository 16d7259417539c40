//! Iteration over the points of a box.

use smallvec::SmallVec;

pub(super) type Point = SmallVec<[usize; 4]>;

/// All points of `0..shape`, last axis fastest.
pub(super) struct Points {
    shape: Point,
    next: Option<Point>,
}

impl Points {
    pub fn new(shape: &[usize]) -> Points {
        let next = if shape.contains(&0) { None } else { Some(shape.iter().map(|_| 0).collect()) };
        Points { shape: SmallVec::from_slice(shape), next }
    }
}

impl Iterator for Points {
    type Item = Point;

    fn next(&mut self) -> Option<Point> {
        let point = self.next.take()?;
        let mut next = point.clone();
        for axis in (0..next.len()).rev() {
            next[axis] += 1;
            if next[axis] < self.shape[axis] {
                self.next = Some(next);
                break;
            }
            next[axis] = 0;
        }
        Some(point)
    }
}
