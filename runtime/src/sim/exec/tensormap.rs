//! Tensor maps of the simulator.
//!
//! The driver's 128-byte encoding is opaque, so the simulator has its own of the same size. A launcher that targets the
//! simulator passes [`TensorMap::encode`]'s bytes as the kernel parameter where it would pass the driver's.
//!
//! Layout (little endian): 0 magic `ZTM1`; 4 element type; 5 rank; 6 swizzle (0 none, 1 32B, 2 64B, 3 128B); 7 out-of-bounds
//! fill (0 zero, 1 NaN); 8 global address (u64); 16 sizes (5 x u32, innermost first); 36 strides in bytes of dims 1..5
//! (4 x u64); 68 box sizes (5 x u16); 78 element strides (5 x u8); the rest zero.

use crate::sim::decode::op::AtomTy;

/// Element types of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorElem {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F64,
    Bf16,
    /// f32 in global memory; loads round it to tf32.
    Tf32,
}

impl TensorElem {
    const ALL: [TensorElem; 11] = [
        TensorElem::U8,
        TensorElem::U16,
        TensorElem::U32,
        TensorElem::S32,
        TensorElem::U64,
        TensorElem::S64,
        TensorElem::F16,
        TensorElem::F32,
        TensorElem::F64,
        TensorElem::Bf16,
        TensorElem::Tf32,
    ];

    /// Bytes per element.
    pub fn bytes(self) -> u32 {
        match self {
            TensorElem::U8 => 1,
            TensorElem::U16 | TensorElem::F16 | TensorElem::Bf16 => 2,
            TensorElem::U32 | TensorElem::S32 | TensorElem::F32 | TensorElem::Tf32 => 4,
            TensorElem::U64 | TensorElem::S64 | TensorElem::F64 => 8,
        }
    }

    /// The arithmetic of a reduction on this type, if there is one.
    pub(crate) fn reduction(self) -> Option<AtomTy> {
        Some(match self {
            TensorElem::U8 | TensorElem::U16 | TensorElem::Tf32 => return None,
            TensorElem::U32 => AtomTy::U32,
            TensorElem::S32 => AtomTy::S32,
            TensorElem::U64 => AtomTy::U64,
            TensorElem::S64 => AtomTy::S64,
            TensorElem::F16 => AtomTy::F16,
            TensorElem::F32 => AtomTy::F32,
            TensorElem::F64 => AtomTy::F64,
            TensorElem::Bf16 => AtomTy::Bf16,
        })
    }

    /// The bytes of a NaN, for NaN fill.
    pub(crate) fn nan(self) -> u64 {
        match self {
            TensorElem::F16 => 0x7FFF,
            TensorElem::Bf16 => 0x7FFF,
            TensorElem::F32 | TensorElem::Tf32 => 0x7FFF_FFFF,
            TensorElem::F64 => 0x7FFF_FFFF_FFFF_FFFF,
            _ => 0,
        }
    }
}

/// The f32 of these bits rounded to 10 mantissa bits, halves to even; infinities and NaNs as they are.
pub(crate) fn round_to_tf32(bits: u32) -> u32 {
    if bits & 0x7F80_0000 == 0x7F80_0000 { bits } else { (bits + 0xFFF + (bits >> 13 & 1)) & !0x1FFF }
}

/// Shared-memory swizzle of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

impl Swizzle {
    /// Bytes of a row of the swizzle atom; 16 for none.
    pub fn atom(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// A tiled tensor map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    pub elem: TensorElem,
    /// Global address, 16-byte aligned.
    pub address: u64,
    /// Elements per dim, innermost first; 1 to 5 dims.
    pub size: Vec<u64>,
    /// Bytes between consecutive indices of dims 1.., multiples of 16.
    pub stride: Vec<u64>,
    /// Box elements per dim, 1 to 256.
    pub tile: Vec<u32>,
    pub swizzle: Swizzle,
    /// Out-of-bounds elements read as NaN instead of zero.
    pub nan_fill: bool,
}

impl TensorMap {
    /// Checks the map as the driver would, and encodes it.
    ///
    /// # Errors
    /// Names the rule the map breaks.
    pub fn encode(&self) -> Result<[u8; 128], String> {
        self.check()?;
        let mut b = [0u8; 128];
        b[..4].copy_from_slice(b"ZTM1");
        b[4] = TensorElem::ALL.iter().position(|e| *e == self.elem).unwrap_or(0) as u8;
        b[5] = self.size.len() as u8;
        b[6] = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 2,
            Swizzle::B128 => 3,
        };
        b[7] = self.nan_fill.into();
        b[8..16].copy_from_slice(&self.address.to_le_bytes());
        for (k, s) in self.size.iter().enumerate() {
            b[16 + 4 * k..20 + 4 * k].copy_from_slice(&(*s as u32).to_le_bytes());
        }
        for (k, s) in self.stride.iter().enumerate() {
            b[36 + 8 * k..44 + 8 * k].copy_from_slice(&s.to_le_bytes());
        }
        for (k, s) in self.tile.iter().enumerate() {
            b[68 + 2 * k..70 + 2 * k].copy_from_slice(&(*s as u16).to_le_bytes());
            b[78 + k] = 1;
        }
        Ok(b)
    }

    /// Reads an encoded map.
    ///
    /// # Errors
    /// The bytes are not a tensor map of the simulator.
    pub fn decode(b: &[u8; 128]) -> Result<TensorMap, String> {
        if &b[..4] != b"ZTM1" {
            return Err("the 128 bytes are not a tensor map of the simulator".into());
        }
        let u = |at: usize, n: usize| {
            let mut v = [0u8; 8];
            v[..n].copy_from_slice(&b[at..at + n]);
            u64::from_le_bytes(v)
        };
        let rank = b[5] as usize;
        let elem = *TensorElem::ALL.get(b[4] as usize).ok_or("unknown element type in the tensor map")?;
        if !(1..=5).contains(&rank) {
            return Err(format!("tensor map of rank {rank}"));
        }
        let map = TensorMap {
            elem,
            address: u(8, 8),
            size: (0..rank).map(|k| u(16 + 4 * k, 4)).collect(),
            stride: (0..rank - 1).map(|k| u(36 + 8 * k, 8)).collect(),
            tile: (0..rank).map(|k| u(68 + 2 * k, 2) as u32).collect(),
            swizzle: match b[6] {
                0 => Swizzle::None,
                1 => Swizzle::B32,
                2 => Swizzle::B64,
                _ => Swizzle::B128,
            },
            nan_fill: b[7] != 0,
        };
        map.check()?;
        Ok(map)
    }

    /// Bytes one box occupies in shared memory.
    pub fn box_bytes(&self) -> u32 {
        self.tile.iter().product::<u32>() * self.elem.bytes()
    }

    fn check(&self) -> Result<(), String> {
        let rank = self.size.len();
        if !(1..=5).contains(&rank) || self.tile.len() != rank || self.stride.len() != rank - 1 {
            return Err(format!(
                "rank {rank} with {} strides and {} box sizes: a tensor has 1 to 5 dims, one stride fewer",
                self.stride.len(),
                self.tile.len()
            ));
        }
        if !self.address.is_multiple_of(16) {
            return Err(format!("global address {:#x} is not 16-byte aligned", self.address));
        }
        if let Some(s) = self.stride.iter().find(|s| **s % 16 != 0 || **s >= 1 << 40) {
            return Err(format!("stride {s} is not a multiple of 16 below 2^40"));
        }
        if let Some(s) = self.size.iter().find(|s| **s == 0 || **s > 1 << 32) {
            return Err(format!("size {s} is not in 1 to 2^32"));
        }
        if let Some(t) = self.tile.iter().find(|t| !(1..=256).contains(*t)) {
            return Err(format!("box size {t} is not in 1 to 256"));
        }
        let inner = self.tile[0] * self.elem.bytes();
        if !inner.is_multiple_of(16) {
            return Err(format!("inner box of {inner} bytes is not a multiple of 16"));
        }
        if self.swizzle != Swizzle::None && inner != self.swizzle.atom() {
            return Err(format!(
                "inner box of {inner} bytes with a {}-byte swizzle: simulated only when they are equal",
                self.swizzle.atom()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            elem: TensorElem::Bf16,
            address: 0x1000,
            size: vec![100, 33],
            stride: vec![208],
            tile: vec![64, 8],
            swizzle: Swizzle::B128,
            nan_fill: false,
        }
    }

    #[test]
    fn encoding_round_trips() {
        let m = map();
        assert_eq!(TensorMap::decode(&m.encode().expect("valid")).expect("valid"), m);
        assert_eq!(m.box_bytes(), 1024);
    }

    #[test]
    fn driver_rules_are_checked() {
        assert!(TensorMap { stride: vec![200], ..map() }.encode().is_err());
        assert!(TensorMap { tile: vec![32, 8], ..map() }.encode().is_err());
        assert!(TensorMap { address: 8, ..map() }.encode().is_err());
        assert!(TensorMap::decode(&[0; 128]).is_err());
    }
}
