//! A kernel's parameter block, laid out as PTX lays out `.param` declarations.

/// Builds a parameter block in declaration order, each value at its natural alignment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParamBlock(Vec<u8>);

impl ParamBlock {
    /// An empty block.
    pub fn new() -> ParamBlock {
        ParamBlock::default()
    }

    /// Appends `bytes` at a multiple of `align`, as `.param .align N .b8 x[len]` declares.
    #[must_use]
    pub fn bytes(mut self, align: usize, bytes: &[u8]) -> ParamBlock {
        self.0.resize(self.0.len().next_multiple_of(align.max(1)), 0);
        self.0.extend_from_slice(bytes);
        self
    }

    /// A 64-bit value or pointer.
    #[must_use]
    pub fn u64(self, v: u64) -> ParamBlock {
        self.bytes(8, &v.to_le_bytes())
    }

    /// A 32-bit value.
    #[must_use]
    pub fn u32(self, v: u32) -> ParamBlock {
        self.bytes(4, &v.to_le_bytes())
    }

    /// An f32.
    #[must_use]
    pub fn f32(self, v: f32) -> ParamBlock {
        self.bytes(4, &v.to_le_bytes())
    }

    /// The block as `launch` takes it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned() {
        let p = ParamBlock::new().u32(1).u64(2).f32(1.0).bytes(64, &[7; 3]);
        assert_eq!(p.as_bytes().len(), 67);
        assert_eq!(p.as_bytes()[8], 2);
        assert_eq!(p.as_bytes()[64], 7);
    }
}
