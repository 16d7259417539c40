//! The arithmetic of one token, as expressions in registers: what a fused kernel and its separate parts must do
//! alike, to the bit. Depends on the kernel language only.

use zellige::prelude::*;

/// Sum of `count` terms from the first to the last.
#[track_caller]
pub(super) fn ordered_sum(count: usize, term: impl Fn(usize) -> Expr<f32>) -> Expr<f32> {
    (1..count).fold(term(0), |sum, i| sum + term(i))
}

/// The reciprocal of a positive number neither very large nor very small, within a unit in the last place: one step of
/// Newton's iteration, which a division by the same number shares.
#[track_caller]
pub(super) fn reciprocal(x: Expr<f32>) -> Expr<f32> {
    let guess = x.fast_recip();
    let error = (-x).mul_add(guess, 1.0);
    guess.mul_add(error, guess)
}

/// `sum_j weight_j x_j` in the order of `j`, one fused multiply-add for each.
#[track_caller]
pub(super) fn weighted_sum(weights: &[Expr<f32>], x: impl Fn(usize) -> Expr<f32>) -> Expr<f32> {
    let (first, rest) = weights.split_first().expect("there is a stream");
    rest.iter().enumerate().fold(*first * x(0), |sum, (j, w)| w.mul_add(x(j + 1), sum))
}

/// `post_k F + sum_j C[j,k] X_j`: stream k after a sub-layer, from column k of C.
#[track_caller]
pub(super) fn next_state(
    post: Expr<f32>,
    f: Expr<f32>,
    column: impl Fn(usize) -> Expr<f32>,
    streams: &[Expr<f32>],
) -> Expr<f32> {
    streams.iter().enumerate().fold(post * f, |sum, (j, x)| column(j).mul_add(*x, sum))
}

/// Part of a mix: a projection scaled and shifted.
#[derive(Clone, Copy)]
pub(super) struct Affine {
    pub scale: Expr<f32>,
    pub base: Expr<f32>,
}

impl Affine {
    /// `s m + b`.
    #[track_caller]
    pub fn of(self, mix: Expr<f32>) -> Expr<f32> {
        mix.mul_add(self.scale, self.base)
    }

    /// `sigmoid(s m + b) + eps`.
    #[track_caller]
    pub fn pre(self, mix: Expr<f32>, eps: Expr<f32>) -> Expr<f32> {
        self.of(mix).sigmoid() + eps
    }

    /// `multiplier sigmoid(s m + b)`.
    #[track_caller]
    pub fn post(self, mix: Expr<f32>, multiplier: Expr<f32>) -> Expr<f32> {
        multiplier * self.of(mix).sigmoid()
    }

    /// Derivative of `sigmoid(s m + b)` by its argument.
    #[track_caller]
    pub fn slope(self, mix: Expr<f32>) -> Expr<f32> {
        let y = self.of(mix).sigmoid();
        y * (1.0 - y)
    }
}

/// Which index of a matrix runs along a line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// The second: a line is a row.
    Row,
    /// The first: a line is a column.
    Column,
}

/// The n x n matrix of one token.
#[derive(Clone)]
pub(super) struct Matrix {
    n: usize,
    /// Row by row.
    cells: Vec<Expr<f32>>,
}

impl Matrix {
    pub fn from_fn(n: usize, f: impl Fn(usize, usize) -> Expr<f32>) -> Matrix {
        Matrix { n, cells: (0..n * n).map(|i| f(i / n, i % n)).collect() }
    }

    pub fn at(&self, j: usize, k: usize) -> Expr<f32> {
        self.cells[j * self.n + k]
    }

    /// Calls `f` with every cell and its place.
    pub fn for_each(&self, f: impl Fn(usize, usize, Expr<f32>)) {
        self.cells.iter().enumerate().for_each(|(i, c)| f(i / self.n, i % self.n, *c));
    }

    /// Combines each line in order.
    fn lines(&self, axis: Axis, f: impl Fn(Expr<f32>, Expr<f32>) -> Expr<f32>) -> Vec<Expr<f32>> {
        let line = |l: usize| (0..self.n).map(move |e| if axis == Axis::Row { (l, e) } else { (e, l) });
        (0..self.n).map(|l| line(l).map(|(j, k)| self.at(j, k)).reduce(&f).expect("there is a stream")).collect()
    }

    /// The sum of each line.
    #[track_caller]
    pub fn sums(&self, axis: Axis) -> Vec<Expr<f32>> {
        self.lines(axis, |x, y| x + y)
    }

    /// Every cell with the value of its line.
    fn zip_lines(&self, axis: Axis, line: &[Expr<f32>], f: impl Fn(Expr<f32>, Expr<f32>) -> Expr<f32>) -> Matrix {
        Matrix::from_fn(self.n, |j, k| f(self.at(j, k), line[if axis == Axis::Row { j } else { k }]))
    }

    /// What a step divides each line by: its sum plus eps.
    #[track_caller]
    pub fn divisors(&self, axis: Axis, eps: Expr<f32>) -> Vec<Expr<f32>> {
        self.sums(axis).into_iter().map(|s| s + eps).collect()
    }

    /// Each line divided by its divisor.
    #[track_caller]
    pub fn divided(&self, axis: Axis, divisors: &[Expr<f32>]) -> Matrix {
        self.zip_lines(axis, divisors, |c, divisor| c / divisor)
    }

    /// Each line divided by its sum plus eps.
    #[track_caller]
    pub fn normalized(&self, axis: Axis, eps: Expr<f32>) -> Matrix {
        self.divided(axis, &self.divisors(axis, eps))
    }

    /// The gradient before a step `y = x.divided(axis, divisors)` from the gradient after it, given the divisors'
    /// reciprocals: `(dy - sum dy y) / divisor` along each line.
    #[track_caller]
    pub fn normalized_backward(&self, y: &Matrix, reciprocals: &[Expr<f32>], axis: Axis) -> Matrix {
        let dots = self.times(y).sums(axis);
        self.zip_lines(axis, &dots, |d, dot| d - dot).zip_lines(axis, reciprocals, |d, r| d * r)
    }

    /// The gradient before `y = x.softmax()` from the gradient after it.
    #[track_caller]
    pub fn softmax_backward(&self, y: &Matrix) -> Matrix {
        let dots = self.times(y).sums(Axis::Row);
        self.zip_lines(Axis::Row, &dots, |d, dot| d - dot).times(y)
    }

    /// Cell by cell.
    #[track_caller]
    fn times(&self, y: &Matrix) -> Matrix {
        Matrix::from_fn(self.n, |j, k| self.at(j, k) * y.at(j, k))
    }

    /// Softmax along the rows.
    #[track_caller]
    pub fn softmax(&self) -> Matrix {
        let exps = self.zip_lines(Axis::Row, &self.lines(Axis::Row, |x, y| x.max(y)), |c, max| (c - max).exp());
        exps.zip_lines(Axis::Row, &exps.sums(Axis::Row), |c, sum| c / sum)
    }

    /// Every cell plus `x`.
    #[track_caller]
    pub fn plus(&self, x: Expr<f32>) -> Matrix {
        Matrix::from_fn(self.n, |j, k| self.at(j, k) + x)
    }

    /// Sinkhorn normalisation of logits: softmax of the rows plus eps, columns, then `rounds - 1` times rows and
    /// columns. Order, count and true divisions are part of the definition.
    #[track_caller]
    pub fn sinkhorn(&self, t: T, rounds: usize, eps: Expr<f32>) -> Matrix {
        let state = State::new(t, &self.softmax().plus(eps).normalized(Axis::Column, eps));
        for _ in t.serial(rounds - 1) {
            state.set(&state.get().normalized(Axis::Row, eps).normalized(Axis::Column, eps));
        }
        state.get()
    }
}

/// The matrix of one token from step to step of a device loop.
#[derive(Clone, Copy)]
pub(super) struct State {
    n: usize,
    cells: Local<f32, 1>,
}

impl State {
    #[track_caller]
    pub fn new(t: T, start: &Matrix) -> State {
        let state = State { n: start.n, cells: t.local([start.n * start.n]) };
        state.set(start);
        state
    }

    #[track_caller]
    pub fn get(self) -> Matrix {
        Matrix::from_fn(self.n, |j, k| self.cells[j * self.n + k])
    }

    #[track_caller]
    pub fn set(self, c: &Matrix) {
        c.for_each(|j, k, c| self.cells.store(j * self.n + k, c));
    }
}
