//! One thread's access to one place of memory: bounds, alignment, initialisation and race checks, then the data.

use super::state::{Cluster, Warp};
use crate::sim::check::global::{Access, Combines};
use crate::sim::check::shadow::{Conflict, EMPTY, Who};
use crate::sim::decode::SHARED_BASE;
use crate::sim::decode::op::Space;
use crate::sim::fault::FaultKind;
use crate::sim::memory::{Allocation, addr};

/// How an access takes part in the race checks.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Atomic or volatile.
    pub strong: bool,
    /// Component and epoch of the asynchronous agent that completes it.
    pub agent: Option<(u16, u32)>,
    /// Through the async proxy.
    pub asynchronous: bool,
    /// A store of what is already there.
    pub same: bool,
    /// Through the read-only path, which other accesses of the same kernel may not be visible to.
    pub constant: bool,
}

impl How {
    /// An ordinary access.
    pub const PLAIN: How = How { strong: false, agent: None, asynchronous: false, same: false, constant: false };
}

/// A place in some block's shared memory: block index in the cluster, byte index from [`SHARED_BASE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedAt {
    pub block: usize,
    pub at: u32,
}

impl Cluster<'_> {
    /// Splits a generic address into its space and the address there.
    pub fn resolve(address: u64) -> (Space, u64) {
        match addr::region(address) << addr::REGION_SHIFT {
            addr::SHARED_WINDOW => (Space::SharedCluster, addr::offset(address)),
            addr::LOCAL_WINDOW => (Space::Local, addr::offset(address)),
            addr::PARAM_WINDOW => (Space::Param, address),
            addr::CONST_WINDOW => (Space::Const, address),
            _ => (Space::Global, address),
        }
    }

    /// Reads `bytes` (1, 2, 4, 8, 16) at `address`; 0 after a fault.
    #[inline]
    pub fn load_one(&mut self, warp: &mut Warp, lane: usize, space: Space, address: u64, bytes: u32, how: How) -> u128 {
        match space {
            Space::Global => self.load_global(warp, lane, address, bytes, how),
            Space::Shared | Space::SharedCluster => match self.shared_place(warp, lane, space, address, bytes) {
                Some(p) => self.load_shared(warp, lane, p, address, bytes, how),
                None => 0,
            },
            Space::Generic => {
                let (space, address) = Self::resolve(address);
                self.load_one(warp, lane, space, address, bytes, how)
            }
            Space::Local => self.load_local(warp, lane, address, bytes),
            Space::Param | Space::Const => self.load_uniform(warp, lane, space, address, bytes),
        }
    }

    /// Writes the low `bytes` of `value`.
    #[inline]
    pub fn store_one(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        space: Space,
        address: u64,
        (bytes, value): (u32, u128),
        how: How,
    ) {
        match space {
            Space::Global => self.store_global(warp, lane, address, (bytes, value), how),
            Space::Shared | Space::SharedCluster => {
                if let Some(p) = self.shared_place(warp, lane, space, address, bytes) {
                    self.store_shared(warp, lane, p, address, (bytes, value), how);
                }
            }
            Space::Generic => {
                let (space, address) = Self::resolve(address);
                self.store_one(warp, lane, space, address, (bytes, value), how);
            }
            Space::Local => {
                if let Some(at) = self.local_place(warp, lane, address, bytes) {
                    warp.local[at..at + bytes as usize].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
                    warp.local_written[at..at + bytes as usize].fill(true);
                }
            }
            Space::Param | Space::Const => {
                self.fault(warp, lane, FaultKind::OutOfBounds, Some((address, "read-only memory".into())), || {
                    "store to read-only memory".into()
                });
            }
        }
    }

    #[cold]
    fn misaligned(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32, buffer: String) {
        self.fault(warp, lane, FaultKind::Misaligned, Some((address, buffer)), || {
            format!("access of {bytes} bytes at an address that is not a multiple of {bytes}")
        });
    }

    /// The launch before this one may still write what is accessed.
    #[cold]
    fn too_early(&mut self, warp: &Warp, lane: usize, address: u64, how: &str) {
        let name = self.buffer_name(address);
        self.fault(warp, lane, FaultKind::LaunchOverlap, Some((address, name)), || {
            format!("access of global memory {how}: the launch before this one may still write there")
        });
    }

    /// The allocation that holds all of a global access.
    #[inline]
    pub fn global_place(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32) -> Option<(&Allocation, u64)> {
        let env = self.env;
        if env.kernel.overlapped && warp.waited >> lane & 1 == 0 {
            self.too_early(warp, lane, address, "before `griddepcontrol.wait`");
        }
        let found = if addr::region(address) == addr::region(addr::MODULE_WINDOW) {
            Some(env.globals)
        } else {
            env.memory.find(address)
        };
        let Some(a) = found else {
            self.wild_address(warp, lane, address, bytes);
            return None;
        };
        let at = address.wrapping_sub(a.base);
        if at > a.len || a.len - at < u64::from(bytes) {
            let name = format!("`{}` ({} bytes from {:#x})", a.name, a.len, a.base);
            let len = a.len;
            self.fault(warp, lane, FaultKind::OutOfBounds, Some((address, name)), || {
                format!("access of {bytes} bytes at byte {at} of {len}")
            });
            return None;
        }
        if at % u64::from(bytes) != 0 {
            let name = format!("`{}`", a.name);
            self.misaligned(warp, lane, address, bytes, name);
            return None;
        }
        Some((a, at))
    }

    #[cold]
    fn wild_address(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32) {
        let near = self
            .env
            .memory
            .allocations()
            .iter()
            .filter(|a| a.base > address && a.base - address < 1 << 20)
            .map(|a| format!("{} bytes before `{}`", a.base - address, a.name))
            .next();
        self.fault(warp, lane, FaultKind::OutOfBounds, Some((address, near.unwrap_or("no allocation".into()))), || {
            format!("global access of {bytes} bytes outside every allocation")
        });
    }

    #[inline]
    fn load_global(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32, how: How) -> u128 {
        let (check_uninit, races) = (self.env.options.check_uninit, self.global.is_some());
        let Some((a, at)) = self.global_place(warp, lane, address, bytes) else {
            return 0;
        };
        let v = a.load(at, bytes);
        let unwritten = check_uninit && !a.is_written(at, bytes);
        let len = a.len;
        if unwritten {
            let name = self.buffer_name(address);
            self.uninitialised(warp, lane, address, bytes, name);
        }
        if how.constant && self.env.kernel.overlapped {
            self.too_early(warp, lane, address, "through the path for constant data");
        }
        if races {
            let kind = match how {
                How { strong: true, .. } => Access::Atomic { combines: Combines::Plain, observes: false },
                How { constant: true, .. } => Access::Constant,
                _ => Access::Read,
            };
            self.global_race(warp, lane, address, (at, bytes, len), kind);
            // What the kernel writes it must not read through this path at all, in whatever order.
            if !how.constant {
                self.race_within_block(warp, lane, address, (at, bytes), false, how);
            }
        }
        v
    }

    #[inline]
    fn store_global(&mut self, warp: &Warp, lane: usize, address: u64, (bytes, value): (u32, u128), how: How) {
        let races = self.global.is_some();
        let Some((a, at)) = self.global_place(warp, lane, address, bytes) else {
            return;
        };
        let same = races && a.load(at, bytes) == value & mask(bytes);
        a.store(at, bytes, value);
        let len = a.len;
        if races {
            let kind =
                if how.strong { Access::Atomic { combines: Combines::Plain, observes: false } } else { Access::Write };
            self.global_race(warp, lane, address, (at, bytes, len), kind);
            self.race_within_block(warp, lane, address, (at, bytes), true, How { same, ..how });
        }
    }

    /// The allocation an address belongs to, for messages.
    #[cold]
    pub fn buffer_name(&self, address: u64) -> String {
        match self.env.memory.find(address) {
            Some(a) => format!("`{}`", a.name),
            None => format!("`{}`", self.env.globals.name),
        }
    }

    /// Checks a global access against those of other blocks.
    #[inline]
    pub fn global_race(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u64,
        (at, bytes, len): (u64, u32, u64),
        how: Access,
    ) {
        let block = self.blocks[warp.block].linear;
        let Some(shadow) = &mut self.global else {
            return;
        };
        shadow.enter(block);
        let Some(c) = shadow.access(addr::region(address) as usize, len, at, bytes, how) else {
            return;
        };
        let name = self.buffer_name(address);
        self.fault(warp, lane, FaultKind::GlobalRace, Some((address, name)), || {
            if how == Access::Constant {
                return format!("read through ld.global.nc of memory that block {} wrote in the same launch", c.block);
            }
            format!(
                "{} of global memory that block {} {} in the same launch: nothing orders the two",
                if matches!(how, Access::Read | Access::Constant) { "read" } else { "write" },
                c.block,
                if c.wrote { "wrote" } else { "read" },
            )
        });
    }

    /// Checks a global access against those of the other threads of its block.
    #[inline]
    pub fn race_within_block(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u64,
        (at, bytes): (u64, u32),
        write: bool,
        how: How,
    ) {
        let who = Who {
            agent: &warp.agent,
            lane: lane as u8,
            pc: warp.pc,
            recorded_as: None,
            asynchronous: false,
            strong: how.strong,
            last: EMPTY.into(),
        };
        let shadow = &mut self.blocks[warp.block].global;
        let region = addr::region(address) as usize;
        let found = if write { shadow.write(region, at, bytes, &who) } else { shadow.read(region, at, bytes, &who) };
        if let Some(c) = found
            && !(how.same && self.same_instruction(warp, c))
        {
            let name = self.buffer_name(address);
            self.conflict(warp, lane, FaultKind::GlobalRace, (address, name), write, c);
        }
    }

    /// The earlier access was a write by the instruction that now writes: lanes that store the same value leave that value,
    /// whichever is last.
    fn same_instruction(&self, warp: &Warp, c: Conflict) -> bool {
        !self.env.options.check_same_stores
            && c.earlier_wrote
            && c.earlier.pc == warp.pc
            && (c.earlier.comp, c.earlier.epoch) == (warp.agent.id, warp.agent.epoch)
    }

    #[cold]
    pub fn uninitialised(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32, buffer: String) {
        self.fault(warp, lane, FaultKind::UninitialisedRead, Some((address, buffer)), || {
            format!("read of {bytes} bytes of which some were never written")
        });
    }

    /// Where a shared access goes, after bounds and alignment checks.
    #[inline]
    pub fn shared_place(
        &mut self,
        warp: &Warp,
        lane: usize,
        space: Space,
        address: u64,
        bytes: u32,
    ) -> Option<SharedAt> {
        let (rank, offset) = ((address >> addr::RANK_SHIFT) as usize, (address & 0xFF_FFFF) as u32);
        let at = offset.wrapping_sub(SHARED_BASE);
        let total = self.env.shared_bytes;
        let foreign = space == Space::Shared && rank != warp.block;
        if foreign || rank >= self.blocks.len() || at >= total || total - at < bytes {
            self.shared_out_of_bounds(warp, lane, address, bytes, foreign && rank < self.blocks.len());
            return None;
        }
        if offset % bytes != 0 {
            self.misaligned(warp, lane, address, bytes, "shared memory".into());
            return None;
        }
        if self.blocks[rank].live_warps == 0 {
            self.fault(warp, lane, FaultKind::OutOfBounds, Some((address, "shared memory".into())), || {
                format!("access to the shared memory of block {rank} of the cluster, which has exited")
            });
            return None;
        }
        Some(SharedAt { block: rank, at })
    }

    #[cold]
    fn shared_out_of_bounds(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32, foreign: bool) {
        let total = self.env.shared_bytes;
        self.fault(warp, lane, FaultKind::OutOfBounds, Some((address, "shared memory".into())), || {
            if foreign {
                "address of another block's shared memory in an instruction that reaches only its own".into()
            } else {
                format!(
                    "access of {bytes} bytes at offset {:#x} of shared memory, which spans {:#x} to {:#x}",
                    address & 0xFF_FFFF,
                    SHARED_BASE,
                    SHARED_BASE + total
                )
            }
        });
    }

    /// Runs the race check of a shared access.
    #[inline]
    pub fn check_shared(
        &mut self,
        warp: &Warp,
        lane: usize,
        p: SharedAt,
        bytes: u32,
        write: bool,
        how: How,
    ) -> Option<Conflict> {
        if !self.env.options.check_shared_races {
            return None;
        }
        let who = Who {
            agent: &warp.agent,
            lane: lane as u8,
            pc: warp.pc,
            recorded_as: how.agent,
            asynchronous: how.asynchronous,
            strong: how.strong,
            last: EMPTY.into(),
        };
        let shadow = &mut self.blocks[p.block].shadow;
        if write { shadow.write(p.at, bytes, &who) } else { shadow.read(p.at, bytes, &who) }
    }

    /// Reads shared memory that [`Self::shared_place`] has approved.
    #[inline]
    pub fn load_shared(&mut self, warp: &Warp, lane: usize, p: SharedAt, address: u64, bytes: u32, how: How) -> u128 {
        if self.env.options.check_uninit && !self.blocks[p.block].is_written(p.at, bytes) {
            self.uninitialised(warp, lane, address, bytes, "shared memory".into());
        }
        self.visit(warp, lane, p.block, how.agent.unwrap_or((warp.agent.id, warp.agent.epoch)));
        if let Some(c) = self.check_shared(warp, lane, p, bytes, false, how) {
            self.shared_conflict(warp, lane, address, false, c);
        }
        self.blocks[p.block].peek(p.at, bytes)
    }

    /// Writes shared memory that [`Self::shared_place`] has approved.
    #[inline]
    pub fn store_shared(
        &mut self,
        warp: &Warp,
        lane: usize,
        p: SharedAt,
        address: u64,
        (bytes, value): (u32, u128),
        how: How,
    ) {
        self.visit(warp, lane, p.block, how.agent.unwrap_or((warp.agent.id, warp.agent.epoch)));
        if let Some(c) = self.check_shared(warp, lane, p, bytes, true, how) {
            let same = self.same_instruction(warp, c) && self.blocks[p.block].peek(p.at, bytes) == value & mask(bytes);
            if !same {
                self.shared_conflict(warp, lane, address, true, c);
            }
        }
        self.blocks[p.block].poke(p.at, bytes, value);
    }

    fn local_place(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32) -> Option<usize> {
        let size = u64::from(self.env.kernel.local_bytes);
        if address >= size || size - address < u64::from(bytes) {
            self.fault(warp, lane, FaultKind::OutOfBounds, Some((address, "local memory".into())), || {
                format!("access of {bytes} bytes at offset {address} of {size} bytes of local memory")
            });
            return None;
        }
        if !address.is_multiple_of(u64::from(bytes)) {
            self.misaligned(warp, lane, address, bytes, "local memory".into());
            return None;
        }
        Some(lane * size as usize + address as usize)
    }

    fn load_local(&mut self, warp: &mut Warp, lane: usize, address: u64, bytes: u32) -> u128 {
        let Some(at) = self.local_place(warp, lane, address, bytes) else {
            return 0;
        };
        let range = at..at + bytes as usize;
        if self.env.options.check_uninit && !warp.local_written[range.clone()].iter().all(|w| *w) {
            self.uninitialised(warp, lane, address, bytes, "local memory".into());
        }
        little(&warp.local[range])
    }

    fn load_uniform(&mut self, warp: &Warp, lane: usize, space: Space, address: u64, bytes: u32) -> u128 {
        let (window, data, name) = if space == Space::Const {
            (addr::CONST_WINDOW, self.env.consts, "constant memory")
        } else {
            (addr::PARAM_WINDOW, self.env.params, "kernel parameters")
        };
        let at = address.wrapping_sub(window);
        let len = data.len() as u64;
        if at >= len || len - at < u64::from(bytes) {
            self.fault(warp, lane, FaultKind::OutOfBounds, Some((address, name.into())), || {
                format!("access of {bytes} bytes at offset {at} of {len}")
            });
            return 0;
        }
        if at % u64::from(bytes) != 0 {
            self.misaligned(warp, lane, address, bytes, name.into());
            return 0;
        }
        little(&data[at as usize..(at + u64::from(bytes)) as usize])
    }
}

/// The bytes of an access as a mask.
pub fn mask(bytes: u32) -> u128 {
    if bytes >= 16 { u128::MAX } else { (1 << (bytes * 8)) - 1 }
}

/// Little-endian value of at most 16 bytes.
#[inline]
pub fn little(b: &[u8]) -> u128 {
    let mut v = [0u8; 16];
    v[..b.len()].copy_from_slice(b);
    u128::from_le_bytes(v)
}

impl super::state::Block {
    /// The value at a place known to be in bounds.
    #[inline]
    pub fn peek(&self, at: u32, bytes: u32) -> u128 {
        little(&self.shared[at as usize..(at + bytes) as usize])
    }

    /// Stores and marks as written.
    #[inline]
    pub fn poke(&mut self, at: u32, bytes: u32, value: u128) {
        self.tiles.clear();
        self.shared[at as usize..(at + bytes) as usize].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
        let w = (at / 4) as usize;
        if bytes < 4 {
            self.written[w] |= (((1u32 << bytes) - 1) << (at % 4)) as u8;
        } else {
            self.written[w..w + bytes as usize / 4].fill(0xF);
        }
    }

    /// Whether all bytes were written.
    #[inline]
    pub fn is_written(&self, at: u32, bytes: u32) -> bool {
        let w = (at / 4) as usize;
        if bytes < 4 {
            let bits = (((1u32 << bytes) - 1) << (at % 4)) as u8;
            self.written[w] & bits == bits
        } else {
            self.written[w..w + bytes as usize / 4].iter().all(|b| *b == 0xF)
        }
    }
}
