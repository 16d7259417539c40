//! The text form of layouts and its parser: `parse(print(x)) == x`. Depends on the layout types only.
//!
//! ```text
//! layout    register[(0,1) (8,0) 3*(0,8)] lane[(0,2) (0,4) (1,0) (2,0) (4,0)] warp[] -> (dim0: 16, dim1: 24)
//! fragment  fragment(16, 20) register[...] lane[...] warp[...] -> (dim0: 16, dim1: 24)
//! memory    memory(64, 64) dim0[...] dim1[...] -> (row: 64, col: 64) strides(72, 1)
//! ```
//! Each input dimension lists its digits from the least significant up, each by the output coordinate of digit value 1;
//! an odd digit has its radix in front. An extent whose digits are not in canonical order (bits below one odd digit) is
//! written as the product of its digits from the least significant up: `8*3*2`.

use std::fmt;
use std::str::FromStr;

use super::error::LayoutError;
use super::fragment::FragmentLayout;
use super::linear::{Basis, LinearLayout};
use super::memory::MemoryLayout;
use super::space::{Dim, Space, canonical_radices};

struct List<'a>(&'a [usize]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, v) in self.0.iter().enumerate() {
            let sep = if i == 0 { "" } else { ", " };
            write!(f, "{sep}{v}")?;
        }
        Ok(())
    }
}

impl fmt::Display for LinearLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, dim) in self.input().dims().iter().enumerate() {
            write!(f, "{}[", dim.name())?;
            for (j, basis) in self.bases(i).iter().enumerate() {
                let sep = if j == 0 { "" } else { " " };
                write!(f, "{sep}")?;
                if basis.radix != 2 {
                    write!(f, "{}*", basis.radix)?;
                }
                let image: Vec<String> = basis.image.iter().map(usize::to_string).collect();
                write!(f, "({})", image.join(","))?;
            }
            write!(f, "] ")?;
        }
        write!(f, "-> ({})", self.output())
    }
}

impl fmt::Display for FragmentLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fragment({}) {}", List(self.shape()), self.map())
    }
}

impl fmt::Display for MemoryLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory({}) {} strides({})", List(self.shape()), self.map(), List(self.strides()))
    }
}

impl FromStr for LinearLayout {
    type Err = LayoutError;
    fn from_str(text: &str) -> Result<LinearLayout, LayoutError> {
        let mut p = Parser { text, at: 0 };
        let layout = p.layout()?;
        p.end()?;
        Ok(layout)
    }
}

impl FromStr for FragmentLayout {
    type Err = LayoutError;
    fn from_str(text: &str) -> Result<FragmentLayout, LayoutError> {
        let mut p = Parser { text, at: 0 };
        p.expect("fragment")?;
        let shape = p.list()?;
        let map = p.layout()?;
        p.end()?;
        FragmentLayout::new(&shape, map)
    }
}

impl FromStr for MemoryLayout {
    type Err = LayoutError;
    fn from_str(text: &str) -> Result<MemoryLayout, LayoutError> {
        let mut p = Parser { text, at: 0 };
        p.expect("memory")?;
        let shape = p.list()?;
        let map = p.layout()?;
        p.expect("strides")?;
        let strides = p.list()?;
        p.end()?;
        MemoryLayout::new(&shape, map, &strides)
    }
}

/// True when `name` can stand in text: a letter or `_`, then letters, digits and `_`.
pub(super) fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn error<T>(&self, expected: &str) -> Result<T, LayoutError> {
        let found = match self.rest().char_indices().nth(12) {
            None if self.rest().is_empty() => "the end".to_string(),
            None => format!("`{}`", self.rest()),
            Some((end, _)) => format!("`{}...`", &self.rest()[..end]),
        };
        Err(LayoutError::Parse { at: self.at, expected: expected.to_string(), found })
    }

    fn accept(&mut self, token: &str) -> bool {
        self.skip_space();
        let hit = self.rest().starts_with(token);
        if hit {
            self.at += token.len();
        }
        hit
    }

    fn expect(&mut self, token: &str) -> Result<(), LayoutError> {
        if self.accept(token) { Ok(()) } else { self.error(&format!("`{token}`")) }
    }

    fn end(&mut self) -> Result<(), LayoutError> {
        self.skip_space();
        if self.rest().is_empty() { Ok(()) } else { self.error("the end") }
    }

    fn number(&mut self) -> Result<usize, LayoutError> {
        self.skip_space();
        let digits = self.rest().len() - self.rest().trim_start_matches(|c: char| c.is_ascii_digit()).len();
        match self.rest()[..digits].parse() {
            Ok(n) => {
                self.at += digits;
                Ok(n)
            }
            Err(_) => self.error("a number"),
        }
    }

    fn name(&mut self) -> Result<String, LayoutError> {
        self.skip_space();
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let len = self.rest().len() - self.rest().trim_start_matches(part).len();
        let name = &self.rest()[..len];
        if !is_name(name) {
            return self.error("a dimension name");
        }
        self.at += len;
        Ok(name.to_string())
    }

    /// `(1, 2, 3)`
    fn list(&mut self) -> Result<Vec<usize>, LayoutError> {
        self.expect("(")?;
        let mut out = Vec::new();
        if self.accept(")") {
            return Ok(out);
        }
        loop {
            out.push(self.number()?);
            if self.accept(")") {
                return Ok(out);
            }
            if !self.accept(",") {
                return self.error("`,` or `)`");
            }
        }
    }

    fn layout(&mut self) -> Result<LinearLayout, LayoutError> {
        let mut inputs = Vec::new();
        while !self.accept("->") {
            let name = self.name()?;
            self.expect("[")?;
            let mut bases = Vec::new();
            while !self.accept("]") {
                self.skip_space();
                let radix = if self.rest().starts_with('(') {
                    2
                } else {
                    let radix = self.number()?;
                    self.expect("*")?;
                    radix
                };
                bases.push(Basis { radix, image: self.list()?.into() });
            }
            inputs.push((name, bases));
        }
        self.expect("(")?;
        let mut dims = Vec::new();
        while !self.accept(")") {
            if !dims.is_empty() {
                self.expect(",")?;
            }
            let name = self.name()?;
            self.expect(":")?;
            dims.push(self.extent(name)?);
        }
        LinearLayout::from_bases(inputs, Space::new(dims)?)
    }

    /// `24` or `8*3*2`
    fn extent(&mut self, name: String) -> Result<Dim, LayoutError> {
        let mut radices = Vec::new();
        loop {
            let factor = self.number()?;
            if factor == 0 {
                return Err(LayoutError::ZeroExtent { dim: name });
            }
            radices.extend(canonical_radices(factor));
            if !self.accept("*") {
                return Dim::with_radices(name, &radices);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::instances::{Swizzle, blocked, mma, swizzled, wgmma};

    #[test]
    fn layouts_print_compactly() {
        assert_eq!(
            mma::c().to_string(),
            "fragment(16, 8) register[(0,1) (8,0)] lane[(0,2) (0,4) (1,0) (2,0) (4,0)] warp[] -> (dim0: 16, dim1: 8)"
        );
        assert_eq!(
            blocked(&[100], 32, 4).unwrap().to_string(),
            "fragment(100) register[(1) (2)] lane[(4) (8) (16) (32) (64)] warp[] -> (dim0: 128)"
        );
        assert_eq!(
            wgmma::accumulator_tile([64, 48], 24, [1, 2]).unwrap().map().output().to_string(),
            "dim0: 64, dim1: 8*3*2"
        );
        assert_eq!(
            MemoryLayout::padded(&[4, 24], 8).unwrap().to_string(),
            "memory(4, 24) dim0[(1,0) (2,0)] dim1[(0,1) (0,2) (0,4) 3*(0,8)] -> (dim0: 4, dim1: 24) strides(32, 1)"
        );
    }

    #[test]
    fn instances_round_trip() {
        let fragments = [
            mma::a(16).unwrap(),
            mma::b_tile([32, 48], 16, [2, 2]).unwrap(),
            wgmma::accumulator_tile([256, 112], 112, [2, 1]).unwrap(),
            wgmma::accumulator_tile([64, 48], 24, [1, 2]).unwrap(),
            blocked(&[3, 100], 96, 4).unwrap(),
            blocked(&[1], 32, 1).unwrap(),
        ];
        for f in fragments {
            assert_eq!(f.to_string().parse(), Ok(f));
        }
        for swizzle in Swizzle::ALL {
            let m = swizzled([24, 192], 16, swizzle).unwrap();
            assert_eq!(m.to_string().parse(), Ok(m));
        }
    }

    #[test]
    fn errors_say_where() {
        let e = |t: &str| t.parse::<LinearLayout>().unwrap_err().to_string();
        assert_eq!(e("x[(1) (2] -> (y: 4)"), "layout text, byte 8: expected `,` or `)`, found `] -> (y: 4)`");
        assert_eq!(e("x[(1)] -> (y: 4) z"), "layout text, byte 17: expected the end, found `z`");
        assert_eq!(e("x[(1)]"), "layout text, byte 6: expected a dimension name, found the end");
        assert!(e("x[(8)] -> (y: 4)").starts_with("digit of `x` with radix 2 cannot map to [8] in (y: 4)"));
        assert!(e("x[4*(1)] -> (y: 4)").contains("a digit of radix 4"));
        assert!(e("x[(1)] -> (y: 0)").contains("extent 0"));
        assert!("fragment(4) x[(1)] -> (dim0: 2)".parse::<FragmentLayout>().is_err());
    }
}
