//! Special registers whose value is fixed for a thread's whole life.

/// A special register or a per-block address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// Component 0..3 = x, y, z, w.
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    ClusterId(u8),
    NclusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtaRank,
    ClusterNctaRank,
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicSharedBytes,
    TotalSharedBytes,
    /// Address of a shared variable: its offset; the block's rank in the cluster is added at launch.
    SharedAddr(u32),
}

impl Special {
    /// The register that `name` (with component) denotes.
    pub fn from_name(name: &str) -> Option<Special> {
        let (base, part) = match name.split_once('.') {
            Some((base, part)) => (base, ["x", "y", "z", "w"].iter().position(|p| *p == part)? as u8),
            None => (name, 0),
        };
        let dotted = name.contains('.');
        let vector = match base {
            "%tid" => Special::Tid(part),
            "%ntid" => Special::Ntid(part),
            "%ctaid" => Special::Ctaid(part),
            "%nctaid" => Special::Nctaid(part),
            "%clusterid" => Special::ClusterId(part),
            "%nclusterid" => Special::NclusterId(part),
            "%cluster_ctaid" => Special::ClusterCtaid(part),
            "%cluster_nctaid" => Special::ClusterNctaid(part),
            _ if dotted => return None,
            "%cluster_ctarank" => return Some(Special::ClusterCtaRank),
            "%cluster_nctarank" => return Some(Special::ClusterNctaRank),
            "%laneid" => return Some(Special::LaneId),
            "%warpid" => return Some(Special::WarpId),
            "%nwarpid" => return Some(Special::NwarpId),
            "%smid" => return Some(Special::SmId),
            "%nsmid" => return Some(Special::NsmId),
            "%gridid" => return Some(Special::GridId),
            "%lanemask_eq" => return Some(Special::LaneMaskEq),
            "%lanemask_lt" => return Some(Special::LaneMaskLt),
            "%lanemask_le" => return Some(Special::LaneMaskLe),
            "%lanemask_gt" => return Some(Special::LaneMaskGt),
            "%lanemask_ge" => return Some(Special::LaneMaskGe),
            "%dynamic_smem_size" => return Some(Special::DynamicSharedBytes),
            "%total_smem_size" => return Some(Special::TotalSharedBytes),
            _ => return None,
        };
        dotted.then_some(vector)
    }
}
