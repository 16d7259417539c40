//! A compiled kernel as it is stored.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What the code of an [`Artifact`] is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ArtifactKind {
    /// Relocatable machine code for the host.
    CpuObject,
    /// PTX text.
    Ptx,
    /// A CUDA binary.
    Cubin,
}

impl fmt::Display for ArtifactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ArtifactKind::CpuObject => "cpu object",
            ArtifactKind::Ptx => "ptx",
            ArtifactKind::Cubin => "cubin",
        })
    }
}

/// A compiled kernel: code, and what its launcher and the reports need to know (kernel name, registers, bytes of shared
/// memory, ...) as text by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Artifact {
    pub kind: ArtifactKind,
    pub code: Vec<u8>,
    pub metadata: BTreeMap<String, String>,
}
