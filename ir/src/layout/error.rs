//! What can go wrong when layouts are built, combined or read from text.

use thiserror::Error;

/// Why a layout could not be built, combined, inverted or parsed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// A dimension was given extent 0.
    #[error("dimension `{dim}` has extent 0; every layout dimension needs at least one point")]
    ZeroExtent { dim: String },
    /// A name that the text form could not hold.
    #[error("`{dim}` cannot name a layout dimension; use letters, digits and `_`, not starting with a digit")]
    BadName { dim: String },
    /// A radix that is neither 2 nor odd.
    #[error(
        "dimension `{dim}` has a digit of radix {radix}; a digit is a bit (2) or odd, so split off its factors of 2"
    )]
    BadRadix { dim: String, radix: usize },
    /// Two dimensions of one space share a name.
    #[error("dimension `{dim}` occurs twice in one space; rename one of them")]
    DuplicateDim { dim: String },
    /// A dimension was asked for that the space does not have.
    #[error("no dimension `{dim}` in ({space})")]
    UnknownDim { dim: String, space: String },
    /// More bit digits than fit a machine word.
    #[error("({space}) has {bits} bits; layouts are limited to 64 bits on either side")]
    TooManyBits { space: String, bits: usize },
    /// A basis image does not have one entry per output dimension.
    #[error(
        "the image {image:?} of a digit of `{dim}` has {found} entries, but the output ({space}) has {expected} dimensions"
    )]
    ImageRank { dim: String, image: Vec<usize>, space: String, expected: usize, found: usize },
    /// A basis image lies outside the output space, or mixes odd digits with bits.
    #[error(
        "digit of `{dim}` with radix {radix} cannot map to {image:?} in ({space}): a bit maps to output bits, an odd digit to output digits of the same radix"
    )]
    BadImage { dim: String, radix: usize, image: Vec<usize>, space: String },
    /// Two odd input digits were sent to the same output digit.
    #[error("two odd digits map to the same digit {digit} of the output ({space}); their sum would carry")]
    OddDigitTaken { digit: usize, space: String },
    /// Composition or comparison of layouts over different spaces.
    #[error("spaces differ: ({left}) against ({right}); dimensions must agree in name, order and extent")]
    SpaceMismatch { left: String, right: String },
    /// The same extent is cut into digits in two ways that have no common refinement.
    #[error(
        "dimension `{dim}` is cut into digits {left:?} on one side and {right:?} on the other, which no finer cut reconciles"
    )]
    RadixMismatch { dim: String, left: Vec<usize>, right: Vec<usize> },
    /// A left inverse was asked of a layout that sends two points to one.
    #[error(
        "layout is not injective: {free} independent input digits do not change the result, so it has no left inverse"
    )]
    NotInjective { free: usize },
    /// A right inverse was asked of a layout that misses points.
    #[error("layout is not surjective: {missing} output digits are not reached, so it has no right inverse")]
    NotSurjective { missing: usize },
    /// A fragment map must take (register, lane, warp) and 32 lanes.
    #[error("a fragment map needs the inputs (register, lane: 32, warp), found ({found})")]
    FragmentInputs { found: String },
    /// The number of threads is not a whole number of warps.
    #[error("{threads} threads are not a whole number of warps; use a multiple of 32")]
    Threads { threads: usize },
    /// The map covers less than the tile.
    #[error("a map onto ({space}) does not cover a tile of shape {shape:?}")]
    ShapeNotCovered { shape: Vec<usize>, space: String },
    /// Strides and dimensions differ in number.
    #[error("{dims} dimensions but {strides} strides")]
    StrideRank { dims: usize, strides: usize },
    /// A tile extent does not suit the layout asked for.
    #[error("{what}: {axis} is {value}, but must be {need}")]
    Unsupported { what: &'static str, axis: &'static str, value: usize, need: String },
    /// The rank of the tile does not suit the layout asked for.
    #[error("{what} needs a tile of rank {expected}, found shape {shape:?}")]
    Rank { what: &'static str, expected: usize, shape: Vec<usize> },
    /// Text that is not a layout.
    #[error("layout text, byte {at}: expected {expected}, found {found}")]
    Parse { at: usize, expected: String, found: String },
}
