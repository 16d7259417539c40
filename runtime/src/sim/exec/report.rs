//! Turning an observation into a [`Fault`] with kernel, line, source, block, thread, address and buffer.

use super::state::{Cluster, Stop, Warp};
use crate::sim::check::shadow::{Conflict, Why};
use crate::sim::fault::{Fault, FaultKind};

impl Cluster<'_> {
    /// Records a fault of `lane` at the current instruction.
    #[cold]
    pub fn fault(
        &mut self,
        warp: &Warp,
        lane: usize,
        kind: FaultKind,
        place: Option<(u64, String)>,
        message: impl FnOnce() -> String,
    ) {
        let k = self.env.kernel;
        let pc = warp.pc;
        let block = self.blocks[warp.block].id;
        let thread = self.thread(warp.index, lane);
        self.faults.add(kind, pc, || {
            let (address, buffer) = place.unzip();
            Fault {
                kind,
                kernel: k.name.clone(),
                line: k.lines[pc as usize],
                opcode: k.opcodes[pc as usize].clone(),
                source: k.sources[pc as usize].clone(),
                block,
                thread,
                address,
                buffer,
                message: message(),
                count: 1,
            }
        });
        if self.faults.len() >= self.env.options.max_faults {
            self.stop = Some(Stop::Faults);
        }
    }

    /// As [`Self::fault`], and the launch ends.
    #[cold]
    pub fn fatal(&mut self, warp: &Warp, lane: usize, kind: FaultKind, message: impl FnOnce() -> String) {
        self.fault(warp, lane, kind, None, message);
        self.stop = Some(Stop::Faults);
    }

    /// Thread coordinates of a lane.
    pub fn thread(&self, warp: u32, lane: usize) -> [u32; 3] {
        let [x, y, _] = self.env.dims.block;
        let t = warp * 32 + lane as u32;
        [t % x, t / x % y, t / (x * y)]
    }

    /// A conflict in shared memory.
    #[cold]
    pub fn shared_conflict(&mut self, warp: &Warp, lane: usize, address: u64, write: bool, c: Conflict) {
        self.conflict(warp, lane, FaultKind::SharedRace, (address, "shared memory".into()), write, c);
    }

    /// A conflict with an earlier access in the same memory; `unordered` is the kind of fault if nothing orders the two.
    #[cold]
    pub fn conflict(
        &mut self,
        warp: &Warp,
        lane: usize,
        unordered: FaultKind,
        (address, memory): (u64, String),
        write: bool,
        c: Conflict,
    ) {
        let k = self.env.kernel;
        let e = c.earlier;
        let line = k.lines.get(e.pc as usize).copied().unwrap_or(0);
        let opcode = k.opcodes.get(e.pc as usize).cloned().unwrap_or_default();
        let source = k.sources.get(e.pc as usize).cloned().flatten();
        let (kind, rule) = match c.why {
            Why::Unordered => (unordered, "nothing orders the two"),
            Why::Pending => (FaultKind::AsyncCopyPending, "the asynchronous copy has not been waited for"),
            Why::Proxy => {
                (FaultKind::MissingProxyFence, "no fence.proxy.async makes the write visible to the async proxy")
            }
        };
        let warps = self.warps.len();
        self.fault(warp, lane, kind, Some((address, memory.clone())), || {
            let by = if c.why == Why::Pending {
                format!("a copy of warp {}", e.epoch)
            } else if (e.comp as usize) < warps {
                format!("warp {}", e.comp)
            } else {
                "an asynchronous operation".into()
            };
            let from = source.map_or_else(String::new, |s| format!(", from {s}"));
            format!(
                "{} of {memory} that {by} {} at PTX line {line} ({opcode}{from}): {rule}",
                if write { "write" } else { "read" },
                if c.earlier_wrote { "wrote" } else { "read" },
            )
        });
    }
}
