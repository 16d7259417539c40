//! [`LinearLayout`]: the map between digit spaces that all layouts are made of. Depends on `space` and `gf2`.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::error::LayoutError;
use super::space::{Coord, Digit, Dim, Point, Space, canonical_radices};

/// One input digit of a layout and where it goes: digit value 1 maps to the output point `image`.
///
/// A bit may map to any set of output bits. An odd digit may map to any set of output digits of the same radix, none of
/// which another digit maps to; in practice that is one digit or none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Basis {
    /// 2 or odd.
    pub radix: usize,
    /// The output coordinates of digit value 1; all zero when the digit is ignored.
    pub image: Coord,
}

impl Basis {
    /// A bit that maps to `image`.
    pub fn bit(image: &[usize]) -> Basis {
        Basis { radix: 2, image: image.into() }
    }

    /// An odd digit whose value `v` maps to `v * image`.
    pub fn repeat(radix: usize, image: &[usize]) -> Basis {
        Basis { radix, image: image.into() }
    }
}

/// A map between two digit spaces that is linear over GF(2) on the bits and copies odd digits unchanged.
///
/// See the [module documentation](super) for the mathematics. `==` compares the representation;
/// [`LinearLayout::equivalent`] compares the functions.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LinearLayout {
    pub(super) input: Space,
    pub(super) output: Space,
    /// For each input bit, the output bits it flips.
    pub(super) columns: Vec<u64>,
    /// For each odd output digit, the odd input digit it shows, if any.
    pub(super) sources: Vec<Option<usize>>,
}

impl LinearLayout {
    /// The layout with the given input dimensions, each a list of digits from the least significant up.
    pub fn from_bases<N: Into<Cow<'static, str>>>(
        inputs: impl IntoIterator<Item = (N, Vec<Basis>)>,
        output: Space,
    ) -> Result<LinearLayout, LayoutError> {
        let (mut dims, mut all) = (Vec::new(), Vec::new());
        for (name, bases) in inputs {
            let name = name.into();
            let radices: Vec<usize> = bases.iter().map(|b| b.radix).collect();
            dims.push(Dim::with_radices(name.clone(), &radices)?);
            all.extend(bases.into_iter().map(|b| (name.clone(), b)));
        }
        let input = Space::new(dims)?;
        let mut columns = Vec::with_capacity(input.bits().len());
        let mut sources = vec![None; output.odds().len()];
        let mut odd = 0;
        for (name, basis) in all {
            let Basis { radix, image } = basis;
            if image.len() != output.rank() {
                return Err(LayoutError::ImageRank {
                    dim: name.into_owned(),
                    image: image.to_vec(),
                    space: output.to_string(),
                    expected: output.rank(),
                    found: image.len(),
                });
            }
            let bad = || LayoutError::BadImage {
                dim: name.to_string(),
                radix,
                image: image.to_vec(),
                space: output.to_string(),
            };
            if output.dims().iter().zip(&image).any(|(d, &c)| c >= d.extent()) {
                return Err(bad());
            }
            let Point { bits, odds } = output.split(&image);
            let set: Vec<usize> = (0..odds.len()).filter(|&o| odds[o] != 0).collect();
            if radix == 2 {
                if !set.is_empty() {
                    return Err(bad());
                }
                columns.push(bits);
                continue;
            }
            if bits != 0 || set.iter().any(|&o| odds[o] != 1 || output.odds()[o].radix != radix) {
                return Err(bad());
            }
            for digit in set {
                if sources[digit].replace(odd).is_some() {
                    return Err(LayoutError::OddDigitTaken { digit, space: output.to_string() });
                }
            }
            odd += 1;
        }
        Ok(LinearLayout { input, output, columns, sources })
    }

    /// Starts a layout that is put together digit by digit.
    pub fn builder(inputs: &[&'static str], outputs: &[&'static str]) -> LayoutBuilder {
        LayoutBuilder {
            inputs: inputs.iter().map(|&n| (Cow::Borrowed(n), Vec::new())).collect(),
            outputs: outputs.iter().map(|&n| (Cow::Borrowed(n), Vec::new())).collect(),
            error: None,
        }
    }

    /// The map of `space` onto itself that changes nothing.
    pub fn identity(space: &Space) -> LinearLayout {
        LinearLayout {
            input: space.clone(),
            output: space.clone(),
            columns: (0..space.bits().len()).map(|i| 1 << i).collect(),
            sources: (0..space.odds().len()).map(Some).collect(),
        }
    }

    /// `i -> i * stride` for `i` in `0..extent`, into a dimension of extent `extent * stride`.
    pub fn strided(
        input: impl Into<Cow<'static, str>>,
        extent: usize,
        output: impl Into<Cow<'static, str>>,
        stride: usize,
    ) -> Result<LinearLayout, LayoutError> {
        let (input, output) = (input.into(), output.into());
        for (dim, n) in [(&input, extent), (&output, stride)] {
            if n == 0 {
                return Err(LayoutError::ZeroExtent { dim: dim.to_string() });
            }
        }
        let radices: Vec<usize> = canonical_radices(stride).chain(canonical_radices(extent)).collect();
        let mut at = stride;
        let bases = canonical_radices(extent)
            .map(|radix| {
                let image = SmallVec::from_slice(&[at]);
                at *= radix;
                Basis { radix, image }
            })
            .collect();
        LinearLayout::from_bases([(input, bases)], Space::new([Dim::with_radices(output, &radices)?])?)
    }

    /// The input space.
    pub fn input(&self) -> &Space {
        &self.input
    }

    /// The output space.
    pub fn output(&self) -> &Space {
        &self.output
    }

    /// The output bits that input bit `bit` flips, both numbered as in [`Space::bits`].
    pub fn column(&self, bit: usize) -> u64 {
        self.columns[bit]
    }

    /// The odd input digit shown by odd output digit `odd`, both numbered as in [`Space::odds`].
    pub fn odd_source(&self, odd: usize) -> Option<usize> {
        self.sources[odd]
    }

    /// The digits of input dimension `dim` with their images, least significant first.
    pub fn bases(&self, dim: usize) -> Vec<Basis> {
        let first_bit = self.input.bits().iter().take_while(|d| d.dim < dim).count();
        let first_odd = self.input.odds().iter().take_while(|d| d.dim < dim).count();
        let (mut bit, mut odd) = (first_bit, first_odd);
        self.input.dims()[dim]
            .radices()
            .iter()
            .map(|&radix| {
                let image = if radix == 2 {
                    bit += 1;
                    self.output.join(self.columns[bit - 1], [])
                } else {
                    odd += 1;
                    let ones = self.sources.iter().map(|&s| usize::from(s == Some(odd - 1)));
                    self.output.join(0, ones)
                };
                Basis { radix, image }
            })
            .collect()
    }

    /// The output point of an input point.
    ///
    /// # Panics
    /// When `point` does not have one entry per input dimension. Entries beyond an extent wrap around.
    pub fn apply(&self, point: &[usize]) -> Coord {
        assert_eq!(point.len(), self.input.rank(), "one entry per dimension of ({})", self.input);
        let bit = |d: &Digit| d.of(point[d.dim]);
        let bits =
            self.input.bits().iter().zip(&self.columns).fold(0, |m, (d, &c)| if bit(d) == 1 { m ^ c } else { m });
        let odds =
            self.sources.iter().map(|s| s.map_or(0, |i| self.input.odds()[i].of(point[self.input.odds()[i].dim])));
        self.output.join(bits, odds)
    }
}

/// One digit of a layout under construction: its radix and the output dimension and stride it counts, if any.
type BuilderDigit = (usize, Option<(usize, usize)>);

/// Puts a layout together digit by digit, from the least significant digit of every dimension up.
///
/// Each call appends digits on top of an input dimension and, at the same time, on top of an output dimension.
/// Errors are kept and returned by [`LayoutBuilder::build`], so that calls chain.
#[derive(Clone, Debug)]
pub struct LayoutBuilder {
    inputs: Vec<(Cow<'static, str>, Vec<BuilderDigit>)>,
    outputs: Vec<(Cow<'static, str>, Vec<usize>)>,
    error: Option<LayoutError>,
}

impl LayoutBuilder {
    fn find<T>(list: &[(Cow<'static, str>, T)], name: &str) -> Result<usize, LayoutError> {
        list.iter().position(|(n, _)| n == name).ok_or_else(|| LayoutError::UnknownDim {
            dim: name.to_string(),
            space: list.iter().map(|(n, _)| n.as_ref()).collect::<Vec<_>>().join(", "),
        })
    }

    fn push(&mut self, input: &str, extent: usize, output: Option<&str>) -> Result<(), LayoutError> {
        let i = Self::find(&self.inputs, input)?;
        let output = output.map(|o| Self::find(&self.outputs, o)).transpose()?;
        if extent == 0 {
            return Err(LayoutError::ZeroExtent { dim: input.to_string() });
        }
        for radix in canonical_radices(extent) {
            let image = output.map(|o| (o, self.outputs[o].1.iter().product()));
            if let Some(o) = output {
                self.outputs[o].1.push(radix);
            }
            self.inputs[i].1.push((radix, image));
        }
        Ok(())
    }

    fn record(mut self, r: Result<(), LayoutError>) -> LayoutBuilder {
        if let Err(e) = r {
            self.error.get_or_insert(e);
        }
        self
    }

    /// `extent` further values of `input` count the next `extent` positions of `output`.
    pub fn tile(mut self, input: &str, extent: usize, output: &str) -> LayoutBuilder {
        let r = self.push(input, extent, Some(output));
        self.record(r)
    }

    /// `extent` further values of `input` change nothing.
    pub fn replicate(mut self, input: &str, extent: usize) -> LayoutBuilder {
        let r = self.push(input, extent, None);
        self.record(r)
    }

    /// The layout.
    pub fn build(self) -> Result<LinearLayout, LayoutError> {
        if let Some(e) = self.error {
            return Err(e);
        }
        let rank = self.outputs.len();
        let dims: Vec<Dim> =
            self.outputs.into_iter().map(|(n, r)| Dim::with_radices(n, &r)).collect::<Result<_, LayoutError>>()?;
        let inputs = self.inputs.into_iter().map(|(name, digits)| {
            let bases = digits.into_iter().map(|(radix, at)| {
                let mut image: Coord = SmallVec::from_elem(0, rank);
                if let Some((o, stride)) = at {
                    image[o] = stride;
                }
                Basis { radix, image }
            });
            (name, bases.collect())
        });
        LinearLayout::from_bases(inputs, Space::new(dims)?)
    }
}
