//! Aligned memory shared by tensor views, with a run-time borrow (see the module documentation of `tensor`).

use super::TensorError;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Alignment of every storage: a cache line, and the widest vector register.
pub(super) const ALIGN: usize = 64;

/// Value of [`Storage::state`] while somebody writes; below it, the number of readers.
const WRITER: usize = usize::MAX;

/// A zero-initialised block of memory. Its allocation is rounded up to whole cache lines, so that reading a full
/// vector which starts inside it never faults.
pub(super) struct Storage {
    ptr: NonNull<u8>,
    len: usize,
    layout: Layout,
    state: AtomicUsize,
}

// SAFETY: the bytes are reached only under a `Hold`, which admits readers or one writer, whatever the thread.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

impl Storage {
    pub(super) fn zeroed(len: usize) -> Result<Storage, TensorError> {
        let out_of_memory = TensorError::OutOfMemory { bytes: len };
        let Some(size) = len.max(1).checked_next_multiple_of(ALIGN) else { return Err(out_of_memory) };
        let Ok(layout) = Layout::from_size_align(size, ALIGN) else { return Err(out_of_memory) };
        // SAFETY: the size of `layout` is at least `ALIGN`, not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let ptr = NonNull::new(ptr).ok_or(out_of_memory)?;
        Ok(Storage { ptr, len, layout, state: AtomicUsize::new(0) })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from `alloc_zeroed` with this very layout and is freed once.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("ptr", &self.ptr).field("len", &self.len).finish()
    }
}

/// What a [`Hold`] permits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Shared with other readers.
    Read,
    /// Exclusive.
    Write,
}

/// The right to read, or to read and write, the bytes of one storage; given back when dropped.
///
/// A launcher takes one per distinct storage ([`super::DynTensor::storage_id`]) before it hands out raw pointers.
#[derive(Debug)]
pub struct Hold {
    storage: Arc<Storage>,
    mode: Mode,
}

impl Hold {
    pub(super) fn new(storage: &Arc<Storage>, mode: Mode) -> Result<Hold, TensorError> {
        let wanted = match mode {
            Mode::Read => "reading",
            Mode::Write => "writing",
        };
        let admit = |state: usize| match mode {
            Mode::Read => (state < WRITER - 1).then_some(state.wrapping_add(1)),
            Mode::Write => (state == 0).then_some(WRITER),
        };
        match storage.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, admit) {
            Ok(_) => Ok(Hold { storage: Arc::clone(storage), mode }),
            Err(WRITER) => Err(TensorError::Borrowed { wanted, held: "written" }),
            Err(_) => Err(TensorError::Borrowed { wanted, held: "read" }),
        }
    }

    /// What this hold permits.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The storage's bytes from `start` to `end`; both within the storage.
    pub(super) fn bytes(&self, start: usize, end: usize) -> &[u8] {
        assert!(start <= end && end <= self.storage.len, "view {start}..{end} outside its storage");
        // SAFETY: in bounds and initialised (zeroed at birth); no writer exists beside this hold, and its own
        // mutable borrows need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.storage.ptr.as_ptr().add(start), end - start) }
    }

    /// As [`Hold::bytes`], to write. The hold must be one of [`Mode::Write`].
    pub(super) fn bytes_mut(&mut self, start: usize, end: usize) -> &mut [u8] {
        assert!(self.mode == Mode::Write, "mutable bytes from a read hold");
        assert!(start <= end && end <= self.storage.len, "view {start}..{end} outside its storage");
        // SAFETY: in bounds and initialised; a write hold is the only access to the storage, and it is borrowed
        // mutably for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.storage.ptr.as_ptr().add(start), end - start) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        match self.mode {
            Mode::Read => self.storage.state.fetch_sub(1, Ordering::Release),
            Mode::Write => self.storage.state.swap(0, Ordering::Release),
        };
    }
}
