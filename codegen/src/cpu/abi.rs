//! The contract between compiled kernels and whoever calls them.
//!
//! A compiled kernel is position-independent bytes without relocations: it may be stored, mapped anywhere and called
//! as an [`Entry`]. Everything it needs comes through the [`LaunchContext`].

use serde::{Deserialize, Serialize};
use std::ffi::c_void;
use std::mem::offset_of;
use zellige_ir::{Const, DType, Span};

/// Entry point of a compiled kernel: runs the blocks with linear ids `first..last` and returns a status.
///
/// Any number of threads may call it at once, each with its own arena.
///
/// # Safety
/// `ctx.args` must hold the kernel's [`ArgSlot`]s, tensors must cover what these describe, and `arena` must point
/// to [`CpuKernel::arena_bytes`] bytes aligned to [`ARENA_ALIGN`].
pub type Entry = unsafe extern "C" fn(ctx: *const LaunchContext, first: u64, last: u64, arena: *mut u8) -> u64;

/// Alignment of the arena in bytes.
pub const ARENA_ALIGN: usize = 64;

/// What all blocks of a launch share.
#[repr(C)]
pub struct LaunchContext {
    /// One `u64` for each of the kernel's argument slots.
    pub args: *const u64,
    pub helpers: *const HelperTable,
    /// Handed to [`HelperTable::print`].
    pub user: *mut c_void,
}

pub(crate) const ARGS_OFFSET: i32 = offset_of!(LaunchContext, args) as i32;
pub(crate) const HELPER_TABLE_OFFSET: i32 = offset_of!(LaunchContext, helpers) as i32;
pub(crate) const USER_OFFSET: i32 = offset_of!(LaunchContext, user) as i32;

/// Functions that compiled code calls. The order of the fields is that of `loopir::Helper::ALL`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HelperTable {
    /// `(user, site, block, values, elements)`: one `u64` of bits for each value of the [`PrintSite`], and the window's
    /// elements, row-major, one `u64` of bits each.
    pub print: unsafe extern "C" fn(*mut c_void, u64, u64, *const u64, *const u64),
    /// `(records, n)`
    pub sort64: unsafe extern "C" fn(*mut u64, u64),
    /// `(records, n)`
    pub sort128: unsafe extern "C" fn(*mut [u64; 2], u64),
    /// `(records, n, k)`
    pub select64: unsafe extern "C" fn(*mut u64, u64, u64),
    /// `(records, n, k)`
    pub select128: unsafe extern "C" fn(*mut [u64; 2], u64, u64),
    /// `(function, bits)`
    pub f64_math: extern "C" fn(u64, u64) -> u64,
}

impl HelperTable {
    /// The standard helpers with a given print function.
    pub fn new(print: unsafe extern "C" fn(*mut c_void, u64, u64, *const u64, *const u64)) -> HelperTable {
        use super::helpers;
        HelperTable {
            print,
            sort64: helpers::sort64,
            sort128: helpers::sort128,
            select64: helpers::select64,
            select128: helpers::select128,
            f64_math: helpers::f64_math,
        }
    }
}

/// What a `u64` of the argument array holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ArgSlot {
    /// Address of the first element of the tensor parameter at this position of `Func::params`.
    Tensor { param: u32 },
    /// Stride of an axis of that tensor in elements; the last axis has stride one and no slot.
    Stride { param: u32, axis: u32 },
    /// Extent of the dim with this position in `Func::dims`.
    Dim { dim: u32 },
    /// Bits of the scalar parameter at this position of `Func::params`, zero-extended (integers sign-extended).
    Scalar { param: u32 },
    /// Extent of a grid axis.
    Grid { axis: u32 },
}

/// A compiled kernel: machine code and what a launcher must know.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CpuKernel {
    pub name: String,
    /// Position-independent machine code; the entry is its first byte. Wants 64-byte alignment (a page gives that).
    pub code: Vec<u8>,
    /// Size of the scratch memory that each calling thread provides.
    pub arena_bytes: usize,
    pub args: Vec<ArgSlot>,
    /// What the status of a failed launch refers to.
    pub failures: Vec<FailureSite>,
    pub prints: Vec<PrintSite>,
}

/// A place in the author's source, storable.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    pub file: String,
    pub line: u32,
    pub col: u32,
}

impl From<&Span> for Place {
    fn from(s: &Span) -> Place {
        Place { file: s.file.to_string(), line: s.line, col: s.col }
    }
}

/// Why a kernel may leave early.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FailureKind {
    /// An `assert` was false.
    Assert { message: String },
    /// An integer was divided by zero.
    DivisionByZero,
    /// A tile access was outside its buffer (only with `CpuOptions::check_bounds`).
    OutOfBounds { buffer: String },
}

/// A place where a kernel may leave early.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FailureSite {
    pub kind: FailureKind,
    pub place: Place,
}

/// A place where a kernel prints.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PrintSite {
    pub message: String,
    /// Types of the values.
    #[serde(with = "dtype_names")]
    pub values: Vec<DType>,
    /// Element type (one entry) and shape of the window; no entry without one.
    #[serde(with = "dtype_names")]
    pub element: Vec<DType>,
    pub shape: Vec<usize>,
    pub place: Place,
}

impl PrintSite {
    /// The line that the site prints for these bits of its values and of its window's elements.
    pub fn line(&self, values: &[u64], elements: &[u64]) -> String {
        let mut line = self.message.clone();
        for (ty, bits) in self.values.iter().zip(values) {
            line.push_str(&format!(" {}", Const::from_bits(*ty, *bits)));
        }
        if let Some(ty) = self.element.first() {
            let shown: Vec<String> = elements.iter().map(|b| Const::from_bits(*ty, *b).to_string()).collect();
            line.push_str(&format!(" [{}]", shown.join(", ")));
        }
        line
    }
}

/// What an [`ArgSlot::Scalar`] holds for this argument.
pub fn scalar_slot(c: Const) -> u64 {
    if c.dtype().is_signed_int() && c.dtype() != DType::Index { c.as_i64() as u64 } else { c.bits() }
}

mod dtype_names {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use zellige_ir::DType;

    pub fn serialize<S: Serializer>(types: &[DType], s: S) -> Result<S::Ok, S::Error> {
        types.iter().map(|t| t.name()).collect::<Vec<_>>().serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<DType>, D::Error> {
        let names = Vec::<String>::deserialize(d)?;
        names
            .iter()
            .map(|n| DType::from_name(n).ok_or_else(|| serde::de::Error::custom(format!("unknown type `{n}`"))))
            .collect()
    }
}

/// All blocks ran.
pub const STATUS_OK: u64 = 0;

/// A failure's status holds the site plus one below this bit, and the linear id of the block from it up.
pub const STATUS_BLOCK_SHIFT: u32 = 32;

/// The status with which the kernel leaves at a failure site.
pub(crate) fn exit_status(site: u32, block: u64) -> u64 {
    (u64::from(site) + 1) | block << STATUS_BLOCK_SHIFT
}

/// A launch that ended early.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("kernel `{kernel}` failed in block {block}: {}", describe(.site))]
pub struct Failure {
    pub kernel: String,
    /// Linear id of the block.
    pub block: u64,
    pub site: FailureSite,
}

fn describe(site: &FailureSite) -> String {
    let at = format!("{}:{}:{}", site.place.file, site.place.line, site.place.col);
    match &site.kind {
        FailureKind::Assert { message } => format!("assertion at {at}: {message}"),
        FailureKind::DivisionByZero => format!("integer division by zero at {at}"),
        FailureKind::OutOfBounds { buffer } => format!("access outside {buffer} at {at}"),
    }
}

impl CpuKernel {
    /// Decodes what [`Entry`] returned.
    ///
    /// # Errors
    /// The failure, if the status is one.
    pub fn check_status(&self, status: u64) -> Result<(), Failure> {
        if status == STATUS_OK {
            return Ok(());
        }
        let site = (status & u64::from(u32::MAX)) as usize - 1;
        Err(Failure {
            kernel: self.name.clone(),
            block: status >> STATUS_BLOCK_SHIFT,
            site: self.failures[site].clone(),
        })
    }
}
