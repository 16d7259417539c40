//! A launch kept with all that it read, to be simulated again with the same text or another one: for tests that change the
//! code, and for measurements of the simulator alone.

use super::Module;
use super::error::SimError;
use super::launch::{Report, launch};
use super::memory::Memory;
use super::options::{LaunchDims, SimOptions};

/// A launch and the device memory before it.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The module's text, and the name of the entry that was launched.
    pub ptx: String,
    pub entry: String,
    pub dims: LaunchDims,
    /// The parameter block.
    pub params: Vec<u8>,
    /// Name and contents of every allocation, in the order of their making.
    pub memory: Vec<(String, Vec<u8>)>,
}

/// What a simulation of a [`Recording`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    pub report: Report,
    /// Contents of the allocations afterwards.
    pub memory: Vec<Vec<u8>>,
}

impl Recording {
    /// The address of allocation number `index`.
    pub fn base(index: usize) -> u64 {
        Memory::base(index)
    }

    /// Simulates the launch with `module` in place of the recorded text. The same recording always starts from the same
    /// memory, at the same addresses.
    ///
    /// # Errors
    /// As [`launch`].
    pub fn replay(&self, module: &Module, options: &SimOptions) -> Result<Replay, SimError> {
        let mut memory = Memory::new();
        let bases: Vec<u64> = self.memory.iter().map(|(name, bytes)| memory.alloc_init(name, bytes)).collect();
        let report = launch(module, &self.entry, self.dims, &self.params, &mut memory, options)?;
        let after = bases.iter().zip(&self.memory).map(|(&base, (_, bytes))| memory.read(base, bytes.len()));
        Ok(Replay { report, memory: after.collect::<Result<_, _>>()? })
    }
}
