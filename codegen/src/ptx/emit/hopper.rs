//! The PTX spelling of Hopper's asynchronous ops: mbarriers, tensor copies, warpgroup products.

use super::Emitter;
use super::names::Names;
use crate::ptx::simt::{Addr, SimtOp, Ty, Val, Var};

impl Emitter<'_> {
    pub(super) fn hopper(&mut self, op: &SimtOp) {
        match op {
            SimtOp::ParamAddr { out, slot } => {
                let param = self.param_name(*slot as usize);
                let out = self.opnd(out.0);
                let raw = Names::register(Ty::B64, self.names.fresh(Ty::B64));
                self.line(&format!("mov.b64 {raw}, {param};"));
                self.line(&format!("cvta.param.u64 {out}, {raw};"));
            }
            SimtOp::MapPrefetch { map } => {
                let map = self.reg(*map);
                self.line(&format!("prefetch.tensormap [{map}];"));
            }
            SimtOp::MbarInit { addr, count } => {
                let addr = self.addr(addr);
                self.line(&format!("mbarrier.init.shared::cta.b64 {addr}, {count};"));
            }
            SimtOp::MbarFence {} => self.line("fence.mbarrier_init.release.cluster;"),
            SimtOp::MbarExpect { addr, bytes } => {
                let addr = self.addr(addr);
                self.line(&format!("mbarrier.arrive.expect_tx.shared::cta.b64 _, {addr}, {bytes};"));
            }
            SimtOp::MbarArrive { addr, guard } => {
                let (addr, guard) = (self.addr(addr), self.guard(*guard));
                self.line(&format!("{guard}mbarrier.arrive.shared::cta.b64 _, {addr};"));
            }
            SimtOp::MbarArriveAt { addr, rank, guard } => {
                let (base, rank, guard) = (self.reg(addr.base), self.reg(*rank), self.guard(*guard));
                // Release within the block, by default: what is handed over was read by `wgmma`, which has been waited for. A
                // release to the cluster would wait for all of the thread's memory accesses.
                let there = Names::register(Ty::B32, self.names.fresh(Ty::B32));
                self.line(&format!("mapa.shared::cluster.u32 {there}, {base}, {rank};"));
                let offset = addr.offset;
                self.line(&format!("{guard}mbarrier.arrive.shared::cluster.b64 _, [{there}{offset:+}];"));
            }
            SimtOp::MbarReleaseAt { addr, rank, guard } => {
                let guard = self.guard(*guard);
                let there = self.in_block(addr, *rank);
                self.line(&format!("{guard}mbarrier.arrive.release.cluster.shared::cluster.b64 _, {there};"));
            }
            SimtOp::BulkSend { addr, bytes, bar, rank } => {
                let (there, bar) = (self.in_block(addr, *rank), self.in_block(bar, *rank));
                let here = self.addr(addr);
                self.line(&format!(
                    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes {there}, {here}, {bytes}, {bar};"
                ));
            }
            SimtOp::ClusterSync {} => {
                self.line("barrier.cluster.arrive.release;");
                self.line("barrier.cluster.wait.acquire;");
            }
            SimtOp::MbarWait { addr, parity } => {
                let (addr, parity) = (self.addr(addr), self.reg(*parity));
                let (again, p) = (self.label(), Names::register(Ty::Pred, self.names.fresh(Ty::Pred)));
                self.target_label(&again);
                self.line(&format!("mbarrier.try_wait.parity.shared::cta.b64 {p}, {addr}, {parity};"));
                self.line(&format!("@!{p} bra {again};"));
            }
            SimtOp::TmaLoad { dst, map, coords, bar, blocks } => {
                let (dst, bar, map) = (self.addr(dst), self.addr(bar), self.reg(*map));
                let (dims, at) = (coords.len(), self.coordinates(coords));
                let (mut all, mut set) = ("", String::new());
                if *blocks != 0 {
                    let mask = Names::register(Ty::B16, self.names.fresh(Ty::B16));
                    self.line(&format!("mov.b16 {mask}, {blocks};"));
                    (all, set) = (".multicast::cluster", format!(", {mask}"));
                }
                self.line(&format!(
                    "cp.async.bulk.tensor.{dims}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes{all} \
                     {dst}, [{map}, {{{at}}}], {bar}{set};"
                ));
            }
            SimtOp::TmaStore { map, coords, src } => {
                let (src, map) = (self.addr(src), self.reg(*map));
                let (dims, at) = (coords.len(), self.coordinates(coords));
                self.line(&format!(
                    "cp.async.bulk.tensor.{dims}d.global.shared::cta.tile.bulk_group [{map}, {{{at}}}], {src};"
                ));
            }
            SimtOp::BulkCommit {} => self.line("cp.async.bulk.commit_group;"),
            SimtOp::BulkWait { pending } => self.line(&format!("cp.async.bulk.wait_group.read {pending};")),
            SimtOp::AsyncFence {} => self.line("fence.proxy.async.shared::cta;"),
            SimtOp::WgmmaFence {} => self.line("wgmma.fence.sync.aligned;"),
            SimtOp::Wgmma { acc, ty, n, a, b, scale_d, trans_a, trans_b } => {
                let regs: Vec<String> = acc.iter().map(|v| self.names.var(self.k, *v)).collect();
                let (a, b, scale_d) = (self.reg(*a), self.reg(*b), self.reg(*scale_d));
                // Only 16-bit operands may be transposed; the others have no such immediates.
                let majors = match ty.bits() {
                    16 => format!(", {}, {}", u8::from(*trans_a), u8::from(*trans_b)),
                    _ => String::new(),
                };
                self.line(&format!(
                    "wgmma.mma_async.sync.aligned.m64n{n}k{}.f32.{ty}.{ty} {{{}}}, {a}, {b}, {scale_d}, 1, 1{majors};",
                    ty.k(),
                    regs.join(", ")
                ));
            }
            SimtOp::WgmmaRegs { acc, ty, n, a, b, scale_d, trans_b } => {
                let names = |vars: &[Var]| -> Vec<String> { vars.iter().map(|v| self.names.var(self.k, *v)).collect() };
                let (acc, a) = (names(acc).join(", "), names(a).join(", "));
                let (b, scale_d) = (self.reg(*b), self.reg(*scale_d));
                let major = if ty.bits() == 16 { format!(", {}", u8::from(*trans_b)) } else { String::new() };
                self.line(&format!(
                    "wgmma.mma_async.sync.aligned.m64n{n}k{}.f32.{ty}.{ty} {{{acc}}}, {{{a}}}, {b}, {scale_d}, 1, 1{major};",
                    ty.k()
                ));
            }
            SimtOp::WgmmaCommit {} => self.line("wgmma.commit_group.sync.aligned;"),
            SimtOp::WgmmaWait { pending } => self.line(&format!("wgmma.wait_group.sync.aligned {pending};")),
            SimtOp::SetRegs { grow, count } => {
                self.line(&format!("setmaxnreg.{}.sync.aligned.u32 {count};", if *grow { "inc" } else { "dec" }));
            }
            SimtOp::StMatrix { addr, vals, trans } => {
                let (addr, regs) = (self.addr(addr), self.regs(vals));
                let trans = if *trans { ".trans" } else { "" };
                self.line(&format!(
                    "stmatrix.sync.aligned.m8n8.x{}{trans}.shared.b16 {addr}, {{{}}};",
                    vals.len(),
                    regs.join(", ")
                ));
            }
            _ => unreachable!("{} is no op of Hopper's", op.name()),
        }
    }

    /// The same place in another block of the cluster.
    fn in_block(&mut self, addr: &Addr, rank: Val) -> String {
        let (base, rank) = (self.reg(addr.base), self.reg(rank));
        let there = Names::register(Ty::B32, self.names.fresh(Ty::B32));
        self.line(&format!("mapa.shared::cluster.u32 {there}, {base}, {rank};"));
        format!("[{there}{:+}]", addr.offset)
    }

    fn coordinates(&mut self, coords: &[Val]) -> String {
        self.regs(coords).join(", ")
    }
}
