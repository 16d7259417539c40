//! Building the blocks and warps of a cluster: masks, constants, special registers.

use super::regs::Regs;
use super::state::{Block, Cluster, ClusterBarrier, Env, Named, Warp};
use super::wgmma::WgmmaState;
use crate::sim::check::clock::Agent;
use crate::sim::check::global::GlobalShadow;
use crate::sim::decode::op::Class;
use crate::sim::decode::{SHARED_BASE, Special};
use crate::sim::fault::FaultLog;
use crate::sim::memory::addr;
use crate::sim::stats::Counters;

impl<'a> Cluster<'a> {
    /// A cluster that has not run anything; [`Self::place`] gives it blocks.
    pub fn new(env: Env<'a>, global: Option<GlobalShadow>) -> Cluster<'a> {
        Cluster {
            env,
            blocks: Vec::new(),
            warps: Vec::new(),
            barrier: ClusterBarrier::default(),
            faults: FaultLog::default(),
            counters: Counters::new(env.kernel.code.len()),
            global,
            stop: None,
            next_component: 0,
            random: 0,
            progress: 0,
            ticks: 0,
        }
    }

    /// Puts the blocks of cluster number `which` (linear) in place, reusing the memory of the last one.
    pub fn place(&mut self, which: u64) {
        let dims = self.env.dims;
        let [cx, cy, cz] = dims.cluster;
        let in_grid = |k: usize| dims.grid[k] / dims.cluster[k];
        let (nx, ny) = (u64::from(in_grid(0)), u64::from(in_grid(1)));
        let at = [(which % nx) as u32, (which / nx % ny) as u32, (which / (nx * ny)) as u32];
        let threads: u32 = dims.block.iter().product();
        let warps_per_block = threads.div_ceil(32) as usize;
        let n = (cx * cy * cz) as usize;
        self.blocks.resize_with(n, Block::default);
        self.warps.clear();
        self.barrier = ClusterBarrier::default();
        // Every cluster draws its own order, whichever core runs it.
        self.random = self.env.options.shuffle.unwrap_or(1).wrapping_add(which.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1;
        for rank in 0..n {
            let r = rank as u32;
            let inner = [r % cx, r / cx % cy, r / (cx * cy)];
            let id = [at[0] * cx + inner[0], at[1] * cy + inner[1], at[2] * cz + inner[2]];
            let bytes = self.env.shared_bytes as usize;
            let checked = self.env.options.check_shared_races;
            let b = &mut self.blocks[rank];
            b.id = id;
            b.linear = id[0] + dims.grid[0] * (id[1] + dims.grid[1] * id[2]);
            b.shared.clear();
            b.shared.resize(bytes, 0xAA);
            b.written.clear();
            b.written.resize(bytes.div_ceil(4), 0);
            b.shadow.reset(if checked { bytes } else { 0 });
            b.global.reset();
            b.named = vec![Named::default(); 16];
            b.mbarriers.clear();
            b.tiles.clear();
            b.visits.clear();
            b.live_warps = warps_per_block as u32;
            b.first_warp = rank * warps_per_block;
            b.warp_count = warps_per_block;
            for w in 0..warps_per_block {
                let warp = self.warp(rank, w as u32, at, inner, threads);
                self.warps.push(warp);
            }
        }
        self.next_component = self.warps.len() as u16;
        self.counters.blocks += n as u64;
    }

    fn warp(&self, rank: usize, index: u32, cluster: [u32; 3], inner: [u32; 3], threads: u32) -> Warp {
        let k = self.env.kernel;
        let mut warp = Warp::default();
        (warp.block, warp.index) = (rank, index);
        let here = (threads - 32 * index).min(32);
        warp.start(if here == 32 { u32::MAX } else { (1 << here) - 1 });
        warp.regs = Regs::new(k.slots);
        for c in &k.consts {
            match c.class {
                Class::Pred => warp.regs.p[c.slot as usize] = if c.value != 0 { u32::MAX } else { 0 },
                Class::W32 => warp.regs.w32[c.slot as usize] = [c.value as u32; 32],
                Class::W64 => warp.regs.w64[c.slot as usize] = [c.value; 32],
            }
        }
        for s in &k.specials {
            let values: [u64; 32] =
                std::array::from_fn(|l| self.special(s.what, rank, (index, l as u32), cluster, inner));
            match s.class {
                Class::Pred => {}
                Class::W32 => warp.regs.w32[s.slot as usize] = values.map(|v| v as u32),
                Class::W64 => warp.regs.w64[s.slot as usize] = values,
            }
        }
        if !k.touched.is_empty() {
            warp.wgmma = WgmmaState::new(k.slots[1] as usize);
        }
        warp.local = vec![0xAA; 32 * k.local_bytes as usize];
        warp.local_written = vec![false; 32 * k.local_bytes as usize];
        warp.agent = Agent::new((self.blocks[rank].first_warp + index as usize) as u16);
        warp
    }

    fn special(&self, s: Special, rank: usize, (warp, lane): (u32, u32), cluster: [u32; 3], inner: [u32; 3]) -> u64 {
        let d = &self.env.dims;
        let b = &self.blocks[rank];
        let part = |v: [u32; 3], k: u8| u64::from(v.get(k as usize).copied().unwrap_or(0));
        let size = |v: [u32; 3], k: u8| u64::from(v.get(k as usize).copied().unwrap_or(1));
        let lane_bit = 1u64 << lane;
        match s {
            Special::Tid(k) => part(self.thread(warp, lane as usize), k),
            Special::Ntid(k) => size(d.block, k),
            Special::Ctaid(k) => part(b.id, k),
            Special::Nctaid(k) => size(d.grid, k),
            Special::ClusterId(k) => part(cluster, k),
            Special::NclusterId(k) => size(std::array::from_fn(|k| d.grid[k] / d.cluster[k]), k),
            Special::ClusterCtaid(k) => part(inner, k),
            Special::ClusterNctaid(k) => size(d.cluster, k),
            Special::ClusterCtaRank => rank as u64,
            Special::ClusterNctaRank => u64::from(d.cluster.iter().product::<u32>()),
            Special::LaneId => u64::from(lane),
            Special::WarpId => u64::from(warp),
            Special::NwarpId => b.warp_count as u64,
            Special::SmId => u64::from(b.linear % self.env.options.sm_count.max(1)),
            Special::NsmId => u64::from(self.env.options.sm_count),
            Special::GridId => self.env.grid_id,
            Special::LaneMaskEq => lane_bit,
            Special::LaneMaskLt => lane_bit - 1,
            Special::LaneMaskLe => lane_bit | (lane_bit - 1),
            Special::LaneMaskGt => 0xFFFF_FFFF & !(lane_bit | (lane_bit - 1)),
            Special::LaneMaskGe => 0xFFFF_FFFF & !(lane_bit - 1),
            Special::DynamicSharedBytes => u64::from(d.dynamic_shared),
            Special::TotalSharedBytes => u64::from(self.env.shared_bytes + SHARED_BASE),
            Special::SharedAddr(offset) => u64::from(offset) | (rank as u64) << addr::RANK_SHIFT,
        }
    }
}
