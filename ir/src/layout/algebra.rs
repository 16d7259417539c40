//! Operations on linear layouts: composition, inverses, products, restriction, reshaping. Depends on `linear`.

use std::borrow::Cow;

use super::error::LayoutError;
use super::gf2::{Echelon, multiply};
use super::linear::{Basis, LinearLayout};
use super::space::{Coord, Dim, Space, common_refinement};

impl LinearLayout {
    /// `x -> next(self(x))`. The output of `self` and the input of `next` must agree in names, order and extents;
    /// where they are cut into digits differently, both are refined to a common cut.
    pub fn then(&self, next: &LinearLayout) -> Result<LinearLayout, LayoutError> {
        let (f, g) = align(self, Side::Output, next, Side::Input)?;
        Ok(LinearLayout {
            columns: f.columns.iter().map(|&c| multiply(&g.columns, c)).collect(),
            sources: g.sources.iter().map(|s| s.and_then(|middle| f.sources[middle])).collect(),
            input: f.input,
            output: g.output,
        })
    }

    /// True when different inputs have different outputs.
    pub fn is_injective(&self) -> bool {
        self.free_digits() == 0
    }

    /// True when every output is reached.
    pub fn is_surjective(&self) -> bool {
        self.missing_digits() == 0
    }

    /// True when each output comes from exactly one input.
    pub fn is_bijective(&self) -> bool {
        self.is_injective() && self.is_surjective()
    }

    pub(super) fn echelon(&self) -> Echelon {
        Echelon::new(&self.columns)
    }

    /// Independent input digits that do not change the output.
    fn free_digits(&self) -> usize {
        let unused = (0..self.input.odds().len()).filter(|&i| !self.sources.contains(&Some(i))).count();
        self.columns.len() - self.echelon().rank() + unused
    }

    /// Output digits short of a surjection.
    fn missing_digits(&self) -> usize {
        let reached = |o: usize| match self.sources[o] {
            Some(i) => !self.sources[..o].contains(&Some(i)),
            None => false,
        };
        let odd = (0..self.sources.len()).filter(|&o| !reached(o)).count();
        self.output.bits().len() - self.echelon().rank() + odd
    }

    /// `g` with `g(self(x)) = x` for all `x`; where `self` misses points, `g` is some linear extension.
    pub fn left_inverse(&self) -> Result<LinearLayout, LayoutError> {
        match self.free_digits() {
            0 => Ok(self.section()),
            free => Err(LayoutError::NotInjective { free }),
        }
    }

    /// `g` with `self(g(y)) = y` for all `y`. Of several candidates, `g` takes the one in which every replicated
    /// digit is zero (see [`LinearLayout::replication`]).
    pub fn right_inverse(&self) -> Result<LinearLayout, LayoutError> {
        match self.missing_digits() {
            0 => Ok(self.section()),
            missing => Err(LayoutError::NotSurjective { missing }),
        }
    }

    /// The inverse of a bijection.
    pub fn inverse(&self) -> Result<LinearLayout, LayoutError> {
        self.left_inverse()?;
        self.right_inverse()
    }

    fn section(&self) -> LinearLayout {
        LinearLayout {
            input: self.output.clone(),
            output: self.input.clone(),
            columns: self.echelon().section(self.output.bits().len()),
            sources: (0..self.input.odds().len()).map(|i| self.sources.iter().position(|s| *s == Some(i))).collect(),
        }
    }

    /// The input digits that repeat what others already produce; see [`Replication`].
    pub fn replication(&self) -> Replication {
        let e = self.echelon();
        let mut digits: Vec<_> =
            self.input.bits().iter().enumerate().filter(|(i, _)| e.free() >> i & 1 == 1).map(|(_, d)| *d).collect();
        digits.extend(
            self.input.odds().iter().enumerate().filter(|(i, _)| !self.sources.contains(&Some(*i))).map(|(_, d)| *d),
        );
        digits.sort_by_key(|d| (d.dim, d.stride));
        let kernel = e.kernel().iter().map(|&k| self.input.join(k, [])).collect();
        Replication { digits, kernel }
    }

    /// The layout on the disjoint digits of both: dimensions of the same name are concatenated, the digits of
    /// `high` on top of those of `self`. Tiling an instruction's layout by a layout of blocks is such a product.
    ///
    /// Dimensions only one side has are kept; those of `high` come last.
    pub fn product(&self, high: &LinearLayout) -> Result<LinearLayout, LayoutError> {
        let output = concat_spaces(&self.output, &high.output)?;
        let names = concat_spaces(&self.input, &high.input)?;
        let place = |image: &[usize], from: &Space, offset: Option<&Space>| -> Coord {
            output
                .dims()
                .iter()
                .map(|d| match from.position(d.name()) {
                    Ok(p) => {
                        let scale = offset
                            .and_then(|low| low.position(d.name()).ok().map(|q| low.dims()[q].extent()))
                            .unwrap_or(1);
                        image[p] * scale
                    }
                    Err(_) => 0,
                })
                .collect()
        };
        let inputs = names.dims().iter().map(|d| {
            let mut bases = Vec::new();
            if let Ok(p) = self.input.position(d.name()) {
                bases.extend(
                    self.bases(p).into_iter().map(|b| Basis { image: place(&b.image, &self.output, None), ..b }),
                );
            }
            if let Ok(p) = high.input.position(d.name()) {
                bases.extend(
                    high.bases(p)
                        .into_iter()
                        .map(|b| Basis { image: place(&b.image, &high.output, Some(&self.output)), ..b }),
                );
            }
            (d.name_cow(), bases)
        });
        LinearLayout::from_bases(inputs.collect::<Vec<_>>(), output)
    }

    /// The restriction to the input dimensions `inputs` (the others held at 0), seen through the output dimensions
    /// `outputs` (the others dropped), both in the order given. Covers transposition and slicing.
    pub fn restrict(&self, inputs: &[&str], outputs: &[&str]) -> Result<LinearLayout, LayoutError> {
        let ins: Vec<usize> = inputs.iter().map(|n| self.input.position(n)).collect::<Result<_, _>>()?;
        let outs: Vec<usize> = outputs.iter().map(|n| self.output.position(n)).collect::<Result<_, _>>()?;
        let output = Space::new(outs.iter().map(|&o| self.output.dims()[o].clone()))?;
        let inputs = ins.iter().map(|&i| {
            let bases = self
                .bases(i)
                .into_iter()
                .map(|b| Basis { image: outs.iter().map(|&o| b.image[o]).collect(), ..b })
                .collect();
            (self.input.dims()[i].name_cow(), bases)
        });
        LinearLayout::from_bases(inputs.collect::<Vec<_>>(), output)
    }

    /// The same layout with its output dimensions in another order; names stay with their dimensions.
    pub fn transpose_outputs(&self, order: &[&str]) -> Result<LinearLayout, LayoutError> {
        let all: Vec<&str> = self.input.dims().iter().map(Dim::name).collect();
        if order.len() != self.output.rank() {
            let right = order.join(", ");
            return Err(LayoutError::SpaceMismatch { left: self.output.to_string(), right });
        }
        self.restrict(&all, order)
    }

    /// The same layout with dimension `from` (input or output) called `to`.
    pub fn rename(&self, from: &str, to: impl Into<Cow<'static, str>>) -> Result<LinearLayout, LayoutError> {
        let to = to.into();
        let rename = |s: &Space| -> Result<Space, LayoutError> {
            let renamed = |d: &Dim| if d.name() == from { d.renamed(to.clone()) } else { Ok(d.clone()) };
            Space::new(s.dims().iter().map(renamed).collect::<Result<Vec<_>, _>>()?)
        };
        if self.input.position(from).is_err() {
            self.output.position(from)?;
        }
        Ok(LinearLayout { input: rename(&self.input)?, output: rename(&self.output)?, ..self.clone() })
    }

    /// Joins the input dimensions into one called `name`, the first running fastest.
    pub fn flatten_inputs(&self, name: impl Into<Cow<'static, str>>) -> Result<LinearLayout, LayoutError> {
        Ok(LinearLayout { input: flatten(&self.input, name.into())?, ..self.clone() })
    }

    /// Joins the output dimensions into one called `name`, the first running fastest.
    pub fn flatten_outputs(&self, name: impl Into<Cow<'static, str>>) -> Result<LinearLayout, LayoutError> {
        Ok(LinearLayout { output: flatten(&self.output, name.into())?, ..self.clone() })
    }

    /// The same map with output spaces cut into the digits of `output`, which must have the same names and extents.
    pub fn with_output_digits(&self, output: &Space) -> Result<LinearLayout, LayoutError> {
        Ok(align(self, Side::Output, &LinearLayout::identity(output), Side::Input)?.0)
    }

    /// The same map with the input space cut at least as finely as `input`, which must have the same names and extents.
    pub fn with_input_digits(&self, input: &Space) -> Result<LinearLayout, LayoutError> {
        Ok(align(self, Side::Input, &LinearLayout::identity(input), Side::Output)?.0)
    }

    /// True when both are the same function between spaces of the same names and extents, however they are cut.
    pub fn equivalent(&self, other: &LinearLayout) -> bool {
        if self == other {
            return true;
        }
        if !self.input.same_extents(&other.input) || !self.output.same_extents(&other.output) {
            return false;
        }
        let refined =
            self.with_input_digits(&other.input).and_then(|a| a.with_output_digits(&other.output)).and_then(|a| {
                let b = other.with_input_digits(&a.input)?.with_output_digits(&a.output)?;
                Ok((a.with_input_digits(&b.input)?.with_output_digits(&b.output)?, b))
            });
        match refined {
            Ok((a, b)) if a.input == b.input && a.output == b.output => a == b,
            // Cuts without a common refinement can still describe one function; then only the points can tell.
            _ => self.input.points().all(|p| self.apply(&p) == other.apply(&p)),
        }
    }
}

/// Input digits whose value does not matter, given the others.
///
/// Call an input *primary* when every digit in `digits` is zero. The primary inputs reach each output exactly as the
/// whole layout does, and no two of them reach the same one. So "store once" is the predicate "primary".
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replication {
    /// The redundant input digits, by dimension and stride.
    pub digits: Vec<super::space::Digit>,
    /// Input points (one per redundant bit) whose bitwise addition to any input leaves the output unchanged.
    pub kernel: Vec<Coord>,
}

impl Replication {
    /// How many inputs share each output that is reached.
    pub fn count(&self) -> usize {
        self.digits.iter().map(|d| d.radix).product()
    }

    /// True when `point` is the primary one among its replicas.
    pub fn is_primary(&self, point: &[usize]) -> bool {
        self.digits.iter().all(|d| d.of(point[d.dim]) == 0)
    }
}

fn concat_spaces(low: &Space, high: &Space) -> Result<Space, LayoutError> {
    let mut dims: Vec<Dim> = low.dims().to_vec();
    for d in high.dims() {
        match dims.iter_mut().find(|e| e.name() == d.name()) {
            Some(e) => *e = e.extended(d.radices()),
            None => dims.push(d.clone()),
        }
    }
    Space::new(dims)
}

fn flatten(space: &Space, name: Cow<'static, str>) -> Result<Space, LayoutError> {
    let radices: Vec<usize> = space.dims().iter().flat_map(|d| d.radices().iter().copied()).collect();
    Space::new([Dim::with_radices(name, &radices)?])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

impl LinearLayout {
    fn side(&self, side: Side) -> &Space {
        match side {
            Side::Input => &self.input,
            Side::Output => &self.output,
        }
    }
}

/// Refines odd digits of both until the named sides are cut alike.
fn align(
    a: &LinearLayout,
    a_side: Side,
    b: &LinearLayout,
    b_side: Side,
) -> Result<(LinearLayout, LinearLayout), LayoutError> {
    let (mut a, mut b) = (a.clone(), b.clone());
    if !a.side(a_side).same_extents(b.side(b_side)) {
        return Err(LayoutError::SpaceMismatch { left: a.side(a_side).to_string(), right: b.side(b_side).to_string() });
    }
    // Splitting a digit on one side splits whatever it is connected to, possibly in another dimension of the same
    // side, so repeat until nothing changes. Each round only makes cuts finer: it terminates.
    while a.side(a_side) != b.side(b_side) {
        for dim in 0..a.side(a_side).rank() {
            let (left, right) = (a.side(a_side).dims()[dim].clone(), b.side(b_side).dims()[dim].clone());
            let mismatch = || LayoutError::RadixMismatch {
                dim: left.name().to_string(),
                left: left.radices().to_vec(),
                right: right.radices().to_vec(),
            };
            let common = common_refinement(left.radices(), right.radices()).ok_or_else(mismatch)?;
            a = a.refine(a_side, dim, &common).ok_or_else(mismatch)?;
            b = b.refine(b_side, dim, &common).ok_or_else(mismatch)?;
        }
    }
    Ok((a, b))
}

impl LinearLayout {
    /// Cuts dimension `dim` of `side` into `radices`, a refinement of its digits.
    fn refine(&self, side: Side, dim: usize, radices: &[usize]) -> Option<LinearLayout> {
        let mut out = self.clone();
        let mut stride = 1;
        let mut rest = radices;
        // Strides of the old digits do not change, so positions can be found by stride while digits multiply.
        for &radix in self.side(side).dims()[dim].radices() {
            let mut n = 0;
            let mut covered = 1;
            while covered < radix {
                covered *= *rest.get(n)?;
                n += 1;
            }
            if n > 1 {
                out = out.split(side, dim, stride, &rest[..n])?;
            }
            rest = &rest[n..];
            stride *= radix;
        }
        Some(out)
    }

    /// Splits the odd digit at `stride` of `dim` into `parts`, together with every digit connected to it.
    fn split(&self, side: Side, dim: usize, stride: usize, parts: &[usize]) -> Option<LinearLayout> {
        let at = self.side(side).odds().iter().position(|d| d.dim == dim && d.stride == stride);
        // A connected digit may have been split by an earlier step of the same refinement.
        let at = match at {
            Some(at) if self.side(side).odds()[at].radix == parts.iter().product::<usize>() => at,
            _ => return Some(self.clone()),
        };
        let (source, targets): (Option<usize>, Vec<usize>) = match side {
            Side::Input => (Some(at), (0..self.sources.len()).filter(|&o| self.sources[o] == Some(at)).collect()),
            Side::Output => match self.sources[at] {
                Some(i) => (Some(i), (0..self.sources.len()).filter(|&o| self.sources[o] == Some(i)).collect()),
                None => (None, vec![at]),
            },
        };
        let input = match source {
            Some(i) => split_odd(&self.input, &[i], parts)?,
            None => self.input.clone(),
        };
        let output = split_odd(&self.output, &targets, parts)?;
        let extra = parts.len() - 1;
        // Digits keep their order, so old input digit j becomes j, or j + extra behind the split one.
        let moved = |j: usize| if source.is_some_and(|i| j > i) { j + extra } else { j };
        let mut sources = Vec::with_capacity(output.odds().len());
        for (o, s) in self.sources.iter().enumerate() {
            if targets.contains(&o) {
                sources.extend((0..parts.len()).map(|k| source.map(|i| i + k)));
            } else {
                sources.push(s.map(moved));
            }
        }
        Some(LinearLayout { input, output, columns: self.columns.clone(), sources })
    }
}

/// `space` with the odd digits numbered in `which` cut into `parts`.
fn split_odd(space: &Space, which: &[usize], parts: &[usize]) -> Option<Space> {
    let mut odd = 0;
    let dims = space.dims().iter().map(|d| {
        let mut radices = Vec::new();
        for &r in d.radices() {
            let hit = r != 2 && which.contains(&odd);
            odd += usize::from(r != 2);
            if hit { radices.extend_from_slice(parts) } else { radices.push(r) }
        }
        Dim::with_radices(d.name_cow(), &radices).ok()
    });
    let dims: Option<Vec<Dim>> = dims.collect();
    Space::new(dims?).ok()
}
