//! What a launch did, per instruction: executions, memory sectors, shared-memory bank conflicts.

use super::decode::Kernel;

/// Counters of one instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstStats {
    /// Executions by a warp.
    pub warps: u64,
    /// Executions by a thread.
    pub threads: u64,
    /// 32-byte sectors of global memory touched.
    pub sectors: u64,
    /// The fewest sectors that the same bytes could take.
    pub ideal_sectors: u64,
    /// Passes through shared memory.
    pub wavefronts: u64,
    /// Passes beyond what the access width needs.
    pub bank_conflicts: u64,
}

/// One line of [`Stats::by_instruction`].
#[derive(Debug, Clone, PartialEq)]
pub struct InstReport {
    /// PTX line.
    pub line: u32,
    pub opcode: String,
    pub source: Option<super::SourceRef>,
    pub stats: InstStats,
}

/// Counters of a launch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Instructions executed, counted per warp and per thread.
    pub warp_instructions: u64,
    pub thread_instructions: u64,
    pub blocks: u64,
    /// Bytes of global memory read and written by the kernel.
    pub global_read: u64,
    pub global_written: u64,
    pub sectors: u64,
    pub ideal_sectors: u64,
    pub bank_conflicts: u64,
    /// Times a warp reached a barrier (`bar.sync`, cluster barrier).
    pub barriers: u64,
    /// Executions by a warp of every instruction that was executed, with its PTX line.
    pub executed: Vec<(u32, u64)>,
    /// Executed instructions that access memory.
    pub by_instruction: Vec<InstReport>,
    /// Output of device `printf`, in execution order of the blocks.
    pub printed: Vec<String>,
}

/// Counters while the launch runs.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub per_inst: Vec<InstStats>,
    pub blocks: u64,
    pub global_read: u64,
    pub global_written: u64,
    pub barriers: u64,
    pub printed: Vec<String>,
}

impl Counters {
    pub fn new(instructions: usize) -> Counters {
        Counters { per_inst: vec![InstStats::default(); instructions], ..Counters::default() }
    }

    pub fn merge(&mut self, other: Counters) {
        for (a, b) in self.per_inst.iter_mut().zip(other.per_inst) {
            a.warps += b.warps;
            a.threads += b.threads;
            a.sectors += b.sectors;
            a.ideal_sectors += b.ideal_sectors;
            a.wavefronts += b.wavefronts;
            a.bank_conflicts += b.bank_conflicts;
        }
        self.blocks += other.blocks;
        self.global_read += other.global_read;
        self.global_written += other.global_written;
        self.barriers += other.barriers;
        self.printed.extend(other.printed);
    }

    pub fn finish(self, k: &Kernel) -> Stats {
        let mut s = Stats {
            blocks: self.blocks,
            global_read: self.global_read,
            global_written: self.global_written,
            barriers: self.barriers,
            printed: self.printed,
            ..Stats::default()
        };
        for (pc, c) in self.per_inst.iter().enumerate() {
            s.warp_instructions += c.warps;
            s.thread_instructions += c.threads;
            s.sectors += c.sectors;
            s.ideal_sectors += c.ideal_sectors;
            s.bank_conflicts += c.bank_conflicts;
            if c.warps > 0 {
                s.executed.push((k.lines[pc], c.warps));
            }
            if c.sectors > 0 || c.wavefronts > 0 {
                s.by_instruction.push(InstReport {
                    line: k.lines[pc],
                    opcode: k.opcodes[pc].clone(),
                    source: k.sources[pc].clone(),
                    stats: *c,
                });
            }
        }
        s
    }
}
