//! Feature levels of NVIDIA devices and the PTX versions that express them.

use std::fmt;

/// A feature level. Code for one level runs on devices of that level and, `Sm90a` aside, of later ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Arch {
    /// Ampere: `cp.async`, `ldmatrix`, `mma.sync`.
    Sm80,
    /// Ada: also 8-bit float conversions and products.
    Sm89,
    /// Hopper with its architecture-specific features; runs on Hopper only.
    Sm90a,
}

impl Arch {
    pub const ALL: [Arch; 3] = [Arch::Sm80, Arch::Sm89, Arch::Sm90a];

    /// The `.target` name.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm89 => "sm_89",
            Arch::Sm90a => "sm_90a",
        }
    }

    /// The level spelled `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Arch> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// True if a launch may begin while the one before it ends: programmatic dependent launch.
    pub const fn overlaps_launches(self) -> bool {
        matches!(self, Arch::Sm90a)
    }

    /// Most shared memory a block may use, in bytes.
    pub const fn max_shared_bytes(self) -> u32 {
        match self {
            Arch::Sm80 => 163 * 1024,
            Arch::Sm89 => 99 * 1024,
            Arch::Sm90a => 227 * 1024,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What PTX is generated for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    pub arch: Arch,
    /// `.version` as (major, minor). No later than the driver accepts.
    pub ptx_isa: (u8, u8),
}

impl Target {
    /// The oldest version that has everything this backend emits for `arch`: `cvt` of 8-bit floats wants 8.1
    /// and their products 8.4 on sm_89.
    pub const fn new(arch: Arch) -> Target {
        let ptx_isa = match arch {
            Arch::Sm80 => (7, 8),
            Arch::Sm89 | Arch::Sm90a => (8, 4),
        };
        Target { arch, ptx_isa }
    }

    /// True if `cvt` knows the 8-bit float formats.
    pub fn has_fp8_cvt(self) -> bool {
        self.arch >= Arch::Sm89
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (PTX {}.{})", self.arch, self.ptx_isa.0, self.ptx_isa.1)
    }
}
