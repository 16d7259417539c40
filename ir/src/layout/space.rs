//! Named integer spaces, each dimension cut into digits. Depends on nothing but the error type.

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

use super::error::LayoutError;
use super::text::is_name;

/// A point of a [`Space`]: one integer per dimension, in the order of the dimensions.
pub type Coord = SmallVec<[usize; 4]>;

/// A named range `0..extent`, written in a mixed-radix number system.
///
/// The digits are listed from the least significant one up. Each radix is 2 (a *bit*) or an odd number above 1.
/// `24` is `[2, 2, 2, 3]` unless something else is asked for: three bits, then a digit that counts blocks of eight.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Dim {
    name: Cow<'static, str>,
    radices: SmallVec<[usize; 8]>,
}

impl Dim {
    /// The canonical digits of `extent`: its factors of two first, the odd rest as one digit on top.
    pub fn new(name: impl Into<Cow<'static, str>>, extent: usize) -> Result<Dim, LayoutError> {
        let name = checked(name.into())?;
        if extent == 0 {
            return Err(LayoutError::ZeroExtent { dim: name.into_owned() });
        }
        Ok(Dim { name, radices: canonical_radices(extent).collect() })
    }

    /// A dimension with the digits `radices`, least significant first.
    pub fn with_radices(name: impl Into<Cow<'static, str>>, radices: &[usize]) -> Result<Dim, LayoutError> {
        let name = checked(name.into())?;
        if let Some(&radix) = radices.iter().find(|&&r| r != 2 && (r < 3 || r % 2 == 0)) {
            return Err(LayoutError::BadRadix { dim: name.into_owned(), radix });
        }
        Ok(Dim { name, radices: radices.into() })
    }

    pub(super) fn renamed(&self, name: Cow<'static, str>) -> Result<Dim, LayoutError> {
        Ok(Dim { name: checked(name)?, radices: self.radices.clone() })
    }

    /// This dimension with the digits of `high` on top of its own.
    pub(super) fn extended(&self, high: &[usize]) -> Dim {
        let mut radices = self.radices.clone();
        radices.extend_from_slice(high);
        Dim { name: self.name.clone(), radices }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn name_cow(&self) -> Cow<'static, str> {
        self.name.clone()
    }

    /// The number of points.
    pub fn extent(&self) -> usize {
        self.radices.iter().product()
    }

    /// The radices, least significant digit first.
    pub fn radices(&self) -> &[usize] {
        &self.radices
    }

    /// The number of leading (low) digits that are bits.
    pub fn low_bits(&self) -> usize {
        self.radices.iter().take_while(|&&r| r == 2).count()
    }
}

fn checked(name: Cow<'static, str>) -> Result<Cow<'static, str>, LayoutError> {
    if is_name(&name) { Ok(name) } else { Err(LayoutError::BadName { dim: name.into_owned() }) }
}

/// The radices of `extent` with all factors of two at the low end; `extent` must not be 0.
pub fn canonical_radices(extent: usize) -> impl Iterator<Item = usize> {
    let twos = extent.trailing_zeros() as usize;
    let odd = extent >> twos;
    std::iter::repeat_n(2, twos).chain((odd > 1).then_some(odd))
}

/// The finest cut that both lists of radices refine into, or `None` when digits would have to carry.
pub(super) fn common_refinement(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let (mut a, mut b) = (a.iter().copied(), b.iter().copied());
    let (mut x, mut y) = (a.next(), b.next());
    let mut out = Vec::new();
    loop {
        match (x, y) {
            (None, None) => return Some(out),
            (Some(p), Some(q)) if p == q => {
                out.push(p);
                (x, y) = (a.next(), b.next());
            }
            (Some(p), Some(q)) if p % q == 0 => {
                out.push(q);
                (x, y) = (Some(p / q), b.next());
            }
            (Some(p), Some(q)) if q % p == 0 => {
                out.push(p);
                (x, y) = (a.next(), Some(q / p));
            }
            _ => return None,
        }
    }
}

/// `extent = 8*3` or, when the digits are canonical, `extent = 24`.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        let extent = self.extent();
        if self.radices.iter().copied().eq(canonical_radices(extent)) {
            return write!(f, "{extent}");
        }
        // Runs of bits are printed as one power of two: `2 2 2 3 2` is `8*3*2`.
        let mut sep = "";
        let mut i = 0;
        while i < self.radices.len() {
            let run = self.radices[i..].iter().take_while(|&&r| r == 2).count();
            let factor = if run == 0 { self.radices[i] } else { 1 << run };
            write!(f, "{sep}{factor}")?;
            sep = "*";
            i += run.max(1);
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where one digit of a space stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digit {
    /// Index of the dimension.
    pub dim: usize,
    /// The digit counts multiples of this.
    pub stride: usize,
    /// 2 or odd.
    pub radix: usize,
}

impl Digit {
    /// The value of this digit in `value`, a coordinate of its dimension.
    pub fn of(self, value: usize) -> usize {
        value / self.stride % self.radix
    }
}

/// An ordered list of named dimensions.
#[derive(Clone)]
pub struct Space {
    dims: SmallVec<[Dim; 4]>,
    /// Positions of the bits, in the order of dimensions, low to high: the coordinates of GF(2) vectors.
    bits: Vec<Digit>,
    /// Positions of the odd digits, in the same order.
    odds: Vec<Digit>,
}

impl PartialEq for Space {
    fn eq(&self, other: &Space) -> bool {
        self.dims == other.dims
    }
}
impl Eq for Space {}
impl std::hash::Hash for Space {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.dims.hash(state);
    }
}

/// A point split into its digits: `bits` by bit number, `odds` by odd-digit number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Point {
    pub bits: u64,
    pub odds: SmallVec<[usize; 4]>,
}

impl Space {
    /// A space of the given dimensions, whose names must differ.
    pub fn new(dims: impl IntoIterator<Item = Dim>) -> Result<Space, LayoutError> {
        let dims: SmallVec<[Dim; 4]> = dims.into_iter().collect();
        for (i, d) in dims.iter().enumerate() {
            if dims[..i].iter().any(|e| e.name == d.name) {
                return Err(LayoutError::DuplicateDim { dim: d.name.to_string() });
            }
        }
        let (mut bits, mut odds) = (Vec::new(), Vec::new());
        for (dim, d) in dims.iter().enumerate() {
            let mut stride = 1;
            for &radix in &d.radices {
                let digit = Digit { dim, stride, radix };
                if radix == 2 { &mut bits } else { &mut odds }.push(digit);
                stride *= radix;
            }
        }
        let space = Space { dims, bits, odds };
        if space.bits.len() > 64 {
            return Err(LayoutError::TooManyBits { space: space.to_string(), bits: space.bits.len() });
        }
        Ok(space)
    }

    /// A space with canonical digits: `Space::of([("dim0", 64), ("dim1", 24)])`.
    pub fn of<N: Into<Cow<'static, str>>>(dims: impl IntoIterator<Item = (N, usize)>) -> Result<Space, LayoutError> {
        let dims: Result<Vec<Dim>, LayoutError> = dims.into_iter().map(|(n, e)| Dim::new(n, e)).collect();
        Space::new(dims?)
    }

    /// The coordinate space of a tile: `dim0`, `dim1`, ... with canonical digits.
    pub fn tile(shape: &[usize]) -> Result<Space, LayoutError> {
        Space::of(shape.iter().enumerate().map(|(i, &e)| (tile_dim(i), e)))
    }

    /// The dimensions.
    pub fn dims(&self) -> &[Dim] {
        &self.dims
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Extents in the order of the dimensions.
    pub fn extents(&self) -> Coord {
        self.dims.iter().map(Dim::extent).collect()
    }

    /// The number of points.
    pub fn size(&self) -> usize {
        self.dims.iter().map(Dim::extent).product()
    }

    /// The position of dimension `name`.
    pub fn position(&self, name: &str) -> Result<usize, LayoutError> {
        self.dims
            .iter()
            .position(|d| d.name == name)
            .ok_or_else(|| LayoutError::UnknownDim { dim: name.to_string(), space: self.to_string() })
    }

    /// The bit digits in order; bit `i` of a GF(2) vector over this space is the `i`-th of them.
    pub fn bits(&self) -> &[Digit] {
        &self.bits
    }

    /// The odd digits in order.
    pub fn odds(&self) -> &[Digit] {
        &self.odds
    }

    /// The bits of dimension `dim`, as a mask over [`Space::bits`].
    pub fn bit_mask(&self, dim: usize) -> u64 {
        self.bits.iter().enumerate().filter(|(_, d)| d.dim == dim).fold(0, |m, (i, _)| m | 1 << i)
    }

    /// All points, the first dimension running fastest.
    pub fn points(&self) -> impl Iterator<Item = Coord> + '_ {
        (0..self.size()).map(|mut i| {
            self.dims
                .iter()
                .map(|d| {
                    let c = i % d.extent();
                    i /= d.extent();
                    c
                })
                .collect()
        })
    }

    /// Digits of a coordinate.
    pub(super) fn split(&self, coord: &[usize]) -> Point {
        debug_assert_eq!(coord.len(), self.rank());
        debug_assert!(self.dims.iter().zip(coord).all(|(d, &c)| c < d.extent()), "{coord:?} outside ({self})");
        let bits = self.bits.iter().enumerate().fold(0, |m, (i, d)| m | (d.of(coord[d.dim]) as u64) << i);
        Point { bits, odds: self.odds.iter().map(|d| d.of(coord[d.dim])).collect() }
    }

    /// The coordinate that has the digits of `point`.
    pub(super) fn join(&self, bits: u64, odds: impl IntoIterator<Item = usize>) -> Coord {
        let mut coord: Coord = SmallVec::from_elem(0, self.rank());
        let mut rest = bits;
        while rest != 0 {
            let d = self.bits[rest.trailing_zeros() as usize];
            coord[d.dim] += d.stride;
            rest &= rest - 1;
        }
        for (d, v) in self.odds.iter().zip(odds) {
            coord[d.dim] += d.stride * v;
        }
        coord
    }

    /// True when the dimensions agree in name, order and extent, whatever their digits.
    pub fn same_extents(&self, other: &Space) -> bool {
        self.rank() == other.rank()
            && self.dims.iter().zip(&other.dims).all(|(a, b)| a.name == b.name && a.extent() == b.extent())
    }
}

/// The name of tile axis `i`: `dim0`, `dim1`, ...
pub fn tile_dim(i: usize) -> Cow<'static, str> {
    const NAMES: [&str; 6] = ["dim0", "dim1", "dim2", "dim3", "dim4", "dim5"];
    NAMES.get(i).map_or_else(|| Cow::Owned(format!("dim{i}")), |&n| Cow::Borrowed(n))
}

/// `dim0: 64, dim1: 8*3*2`
impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.dims.iter().enumerate() {
            let sep = if i == 0 { "" } else { ", " };
            write!(f, "{sep}{d}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({self})")
    }
}
