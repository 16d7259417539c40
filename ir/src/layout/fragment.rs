//! [`FragmentLayout`]: a tile spread over the registers of a block's threads. Depends on `linear` and `algebra`.

use smallvec::SmallVec;

use super::algebra::Replication;
use super::error::LayoutError;
use super::linear::{Basis, LayoutBuilder, LinearLayout};
use super::space::{Coord, Dim, Space, canonical_radices, tile_dim};

/// Threads of a warp.
pub const WARP: usize = 32;

/// The input dimension that numbers the elements a thread holds.
pub const REGISTER: &str = "register";
/// The input dimension that numbers the threads of a warp.
pub const LANE: &str = "lane";
/// The input dimension that numbers the warps.
pub const WARP_DIM: &str = "warp";

/// Where each element of a tile lives: a map (register, lane, warp) to tile coordinates.
///
/// *Register* counts elements, not 32-bit registers: two neighbouring `bf16` elements that share one machine register
/// are registers `2r` and `2r + 1`. The layout knows no element type. An element may live in several places (replicas).
/// A map may be larger than the tile in some dimension; the places beyond the tile are dead and hold nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FragmentLayout {
    shape: Vec<usize>,
    map: LinearLayout,
    /// Tile coordinates to primary places.
    inverse: LinearLayout,
    replication: Replication,
}

impl FragmentLayout {
    /// Starts a map for a tile of rank `rank`; finish with [`LayoutBuilder::build`] and [`FragmentLayout::new`].
    pub fn builder(rank: usize) -> LayoutBuilder {
        const DIMS: [&str; 6] = ["dim0", "dim1", "dim2", "dim3", "dim4", "dim5"];
        LinearLayout::builder(&[REGISTER, LANE, WARP_DIM], &DIMS[..rank.min(DIMS.len())])
    }

    /// The layout of a tile of `shape` under `map`, whose inputs must be (register, lane: 32, warp) and whose outputs
    /// (`dim0`, `dim1`, ...) must reach every coordinate of the tile.
    pub fn new(shape: &[usize], map: LinearLayout) -> Result<FragmentLayout, LayoutError> {
        let dims = map.input().dims();
        let names_ok = dims.len() == 3 && dims.iter().zip([REGISTER, LANE, WARP_DIM]).all(|(d, n)| d.name() == n);
        if !names_ok || dims[1].extent() != WARP {
            return Err(LayoutError::FragmentInputs { found: map.input().to_string() });
        }
        let out = map.output().dims();
        let covered = out.len() == shape.len()
            && out.iter().enumerate().all(|(i, d)| *d.name() == *tile_dim(i) && d.extent() >= shape[i]);
        if !covered {
            return Err(LayoutError::ShapeNotCovered { shape: shape.to_vec(), space: map.output().to_string() });
        }
        let (inverse, replication) = (map.right_inverse()?, map.replication());
        Ok(FragmentLayout { shape: shape.to_vec(), map, inverse, replication })
    }

    /// The layout whose tile is exactly the image of `map`.
    pub fn exact(map: LinearLayout) -> Result<FragmentLayout, LayoutError> {
        FragmentLayout::new(&map.output().extents(), map)
    }

    /// Extents of the tile.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The map (register, lane, warp) to (`dim0`, ...), dead places included.
    pub fn map(&self) -> &LinearLayout {
        &self.map
    }

    /// Elements per thread.
    pub fn regs_per_thread(&self) -> usize {
        self.map.input().dims()[0].extent()
    }

    /// Warps that hold the tile.
    pub fn warps(&self) -> usize {
        self.map.input().dims()[2].extent()
    }

    /// Threads that hold the tile; thread `t` is lane `t % 32` of warp `t / 32`.
    pub fn threads(&self) -> usize {
        self.warps() * WARP
    }

    /// True when every place holds an element of the tile.
    pub fn is_exact(&self) -> bool {
        self.map.output().extents().as_slice() == self.shape
    }

    /// The coordinate in register `reg` of `thread`, or `None` when that place is dead.
    pub fn coord(&self, reg: usize, thread: usize) -> Option<Coord> {
        Some(self.padded_coord(reg, thread)).filter(|c| self.contains(c))
    }

    /// As [`FragmentLayout::coord`], but answers for dead places with the coordinate beyond the tile.
    pub fn padded_coord(&self, reg: usize, thread: usize) -> Coord {
        self.map.apply(&[reg, thread % WARP, thread / WARP])
    }

    /// True when `coord` lies in the tile.
    pub fn contains(&self, coord: &[usize]) -> bool {
        coord.len() == self.shape.len() && coord.iter().zip(&self.shape).all(|(c, e)| c < e)
    }

    /// The primary place (register, thread) of the element at `coord`: of all replicas, the one whose redundant
    /// digits are zero.
    ///
    /// # Panics
    /// When `coord` does not have the rank of the tile.
    pub fn owner(&self, coord: &[usize]) -> (usize, usize) {
        place(&self.inverse.apply(coord))
    }

    /// All places (register, thread) of the element at `coord`, in order of thread, then register.
    pub fn owners(&self, coord: &[usize]) -> Vec<(usize, usize)> {
        let (reg, thread) = self.owner(coord);
        let input = self.map.input();
        let mut places = vec![SmallVec::from_slice(&[reg, thread % WARP, thread / WARP])];
        for k in &self.replication.kernel {
            let shift = input.split(k).bits;
            for i in 0..places.len() {
                let p = input.split(&places[i]);
                places.push(input.join(p.bits ^ shift, p.odds));
            }
        }
        for d in self.replication.digits.iter().filter(|d| d.radix != 2) {
            for i in 0..places.len() {
                for v in 1..d.radix {
                    let mut p: Coord = places[i].clone();
                    p[d.dim] += v * d.stride;
                    places.push(p);
                }
            }
        }
        let mut places: Vec<_> = places.iter().map(|p| place(p)).collect();
        places.sort_by_key(|&(r, t)| (t, r));
        places
    }

    /// The redundant digits of (register, lane, warp): dimension 0 is the register, 1 the lane, 2 the warp.
    pub fn replication(&self) -> &Replication {
        &self.replication
    }

    /// True when (`reg`, `thread`) is the primary place of a live element: the one that stores it.
    pub fn is_primary(&self, reg: usize, thread: usize) -> bool {
        self.replication.is_primary(&[reg, thread % WARP, thread / WARP]) && self.coord(reg, thread).is_some()
    }

    /// The layout of the tile with axis `dim` removed, as a reduction over that axis leaves it: each thread holds the
    /// results its elements went into, once. Threads that differed only along `dim` become replicas.
    pub fn drop_dim(&self, dim: usize) -> Result<FragmentLayout, LayoutError> {
        let keep: Vec<usize> = (0..self.shape.len()).filter(|&i| i != dim).collect();
        if keep.len() == self.shape.len() {
            return Err(LayoutError::UnknownDim {
                dim: tile_dim(dim).into_owned(),
                space: self.map.output().to_string(),
            });
        }
        let names: Vec<_> = keep.iter().map(|&i| tile_dim(i)).collect();
        let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        let mut map = self.map.restrict(&[REGISTER, LANE, WARP_DIM], &names)?.without_redundant_registers()?;
        for (i, &old) in keep.iter().enumerate() {
            map = map.rename(&tile_dim(old), tile_dim(i))?;
        }
        let shape: Vec<usize> = keep.iter().map(|&i| self.shape[i]).collect();
        FragmentLayout::new(&shape, map)
    }

    /// The layout of the tile with a new axis `dim` of an extent, of which each thread holds all elements: for every
    /// position along it the registers that it had.
    pub fn insert_dim(&self, dim: usize, extent: usize) -> Result<FragmentLayout, LayoutError> {
        let mut dims: Vec<Dim> = self.map.output().dims().to_vec();
        let mut shape = self.shape.clone();
        if dim > dims.len() {
            let space = self.map.output().to_string();
            return Err(LayoutError::UnknownDim { dim: tile_dim(dim).into_owned(), space });
        }
        dims.insert(dim, Dim::new(tile_dim(dim), extent)?);
        shape.insert(dim, extent);
        let renamed = dims.iter().enumerate().map(|(i, d)| d.renamed(tile_dim(i)));
        let output = Space::new(renamed.collect::<Result<Vec<_>, _>>()?)?;
        let inputs = (0..3).map(|d| {
            let mut bases: Vec<Basis> = self.map.bases(d);
            for b in &mut bases {
                b.image.insert(dim, 0);
            }
            if d == 0 {
                let mut weight = 1;
                for radix in canonical_radices(extent) {
                    let mut image = Coord::from_elem(0, shape.len());
                    image[dim] = weight;
                    bases.push(Basis { radix, image });
                    weight *= radix;
                }
            }
            (self.map.input().dims()[d].name_cow(), bases)
        });
        FragmentLayout::new(&shape, LinearLayout::from_bases(inputs.collect::<Vec<_>>(), output)?)
    }

    /// The layout of the tile with its axes permuted: axis `i` of the result is axis `order[i]` of `self`.
    pub fn permute(&self, order: &[usize]) -> Result<FragmentLayout, LayoutError> {
        let dims = self.map.output().dims();
        let mut seen = order.to_vec();
        seen.sort_unstable();
        if !seen.iter().copied().eq(0..dims.len()) {
            let left = self.map.output().to_string();
            return Err(LayoutError::SpaceMismatch { left, right: format!("axes {order:?}") });
        }
        let renamed = order.iter().enumerate().map(|(i, &axis)| dims[axis].renamed(tile_dim(i)));
        let output = Space::new(renamed.collect::<Result<Vec<_>, _>>()?)?;
        let inputs = (0..3).map(|d| {
            let bases = self.map.bases(d).into_iter();
            let bases = bases.map(|b| Basis { image: order.iter().map(|&i| b.image[i]).collect(), ..b }).collect();
            (self.map.input().dims()[d].name_cow(), bases)
        });
        let shape: Vec<usize> = order.iter().map(|&i| self.shape[i]).collect();
        FragmentLayout::new(&shape, LinearLayout::from_bases(inputs, output)?)
    }

    /// `self` repeated over blocks: `blocks` maps (register, lane, warp) to block coordinates, and its digits go on
    /// top. `lane` of `blocks` must be absent or of extent 1.
    pub fn tiled(&self, blocks: &LinearLayout) -> Result<FragmentLayout, LayoutError> {
        FragmentLayout::exact(self.map.product(blocks)?)
    }
}

impl LinearLayout {
    /// Drops the register digits that other registers repeat.
    fn without_redundant_registers(&self) -> Result<LinearLayout, LayoutError> {
        let all: Vec<_> =
            (0..self.input().rank()).map(|i| (self.input().dims()[i].name_cow(), self.bases(i))).collect();
        // Registers stand first, so a register digit is redundant only because of registers below it.
        let redundant = self.replication().digits;
        let bases = all.into_iter().enumerate().map(|(dim, (name, bases))| {
            let mut stride = 1;
            let kept = bases.into_iter().filter(|b| {
                let at = stride;
                stride *= b.radix;
                dim != 0 || !redundant.iter().any(|d| d.dim == 0 && d.stride == at)
            });
            (name, kept.collect::<Vec<_>>())
        });
        LinearLayout::from_bases(bases.collect::<Vec<_>>(), self.output().clone())
    }
}

fn place(point: &[usize]) -> (usize, usize) {
    (point[0], point[1] + WARP * point[2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::instances::{blocked, mma, wgmma};

    #[test]
    fn dropping_an_axis_keeps_each_result_once_per_thread() {
        let rows = wgmma::accumulator(64).unwrap().drop_dim(1).unwrap();
        assert_eq!((rows.shape(), rows.regs_per_thread(), rows.threads()), (&[64][..], 2, 128));
        assert_eq!(rows.coord(1, 5).unwrap().as_slice(), [9]);
        assert_eq!(rows.owners(&[9]), [(1, 4), (1, 5), (1, 6), (1, 7)]);
        let cols = wgmma::accumulator(24).unwrap().drop_dim(0).unwrap();
        assert_eq!((cols.shape(), cols.regs_per_thread()), (&[24][..], 6));
        assert_eq!(cols.replication().count(), 8 * 4);
        // The middle of three axes: later axes move down.
        let f = blocked(&[4, 6, 8], 32, 2).unwrap().drop_dim(1).unwrap();
        assert_eq!(f.shape(), [4, 8]);
        assert!(f.drop_dim(2).is_err());
    }

    #[test]
    fn an_inserted_axis_is_whole_in_every_thread() {
        let f = blocked(&[64], 32, 2).unwrap();
        let g = f.insert_dim(0, 6).unwrap();
        assert_eq!((g.shape(), g.regs_per_thread()), (&[6, 64][..], 12));
        assert_eq!(g.coord(7, 5).unwrap().as_slice(), [3, 11]);
        assert_eq!(g.drop_dim(0).unwrap(), f);
        assert_eq!(f.insert_dim(1, 4).unwrap().coord(7, 5).unwrap().as_slice(), [11, 3]);
        assert!(f.insert_dim(2, 4).is_err());
    }

    #[test]
    fn permuting_axes() {
        let f = mma::c().permute(&[1, 0]).unwrap();
        assert_eq!(f.shape(), [8, 16]);
        assert_eq!(f.coord(3, 5).unwrap().as_slice(), [3, 9]);
        assert!(mma::c().permute(&[0, 0]).is_err());
    }

    #[test]
    fn tiling_by_blocks() {
        let blocks = LinearLayout::builder(&[REGISTER, LANE, WARP_DIM], &["dim0", "dim1"])
            .tile(REGISTER, 3, "dim1")
            .tile(WARP_DIM, 2, "dim0")
            .build()
            .unwrap();
        assert_eq!(mma::c().tiled(&blocks).unwrap(), mma::c_tile([32, 24], [2, 1]).unwrap());
    }

    #[test]
    fn owners_are_all_places_of_an_element() {
        for f in [blocked(&[3, 20], 96, 4).unwrap(), mma::a_tile([32, 16], 16, [2, 2]).unwrap()] {
            for i in 0..f.shape()[0] {
                for j in 0..f.shape()[1] {
                    let at = |&(r, t): &(usize, usize)| f.coord(r, t).is_some_and(|c| c.as_slice() == [i, j]);
                    let all = (0..f.threads()).flat_map(|t| (0..f.regs_per_thread()).map(move |r| (r, t)));
                    let want: Vec<_> = all.filter(at).collect();
                    assert_eq!(f.owners(&[i, j]), want);
                    assert_eq!(want.iter().filter(|p| f.is_primary(p.0, p.1)).collect::<Vec<_>>(), [&f.owner(&[i, j])]);
                }
            }
        }
    }

    #[test]
    fn maps_that_are_no_fragments_are_refused() {
        let map =
            |lanes| LinearLayout::builder(&[REGISTER, LANE, WARP_DIM], &["dim0"]).tile(LANE, lanes, "dim0").build();
        assert!(matches!(FragmentLayout::exact(map(16).unwrap()), Err(LayoutError::FragmentInputs { .. })));
        assert!(matches!(FragmentLayout::new(&[33], map(32).unwrap()), Err(LayoutError::ShapeNotCovered { .. })));
        let hole = "register[] lane[(1) (2) (4) (8) (32)] warp[] -> (dim0: 64)".parse().unwrap();
        assert_eq!(FragmentLayout::exact(hole), Err(LayoutError::NotSurjective { missing: 1 }));
    }
}
