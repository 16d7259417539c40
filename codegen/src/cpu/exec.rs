//! Maps compiled kernels into executable memory and calls them.

use super::abi::{ARENA_ALIGN, CpuKernel, Entry, Failure, HelperTable, LaunchContext};
use std::alloc::Layout;
use std::ffi::c_void;
use std::io;
use std::ops::Range;

/// A kernel in executable memory.
#[derive(Debug)]
pub struct Executable {
    kernel: CpuKernel,
    map: memmap2::Mmap,
}

/// A kernel's scratch memory: one for each thread that runs blocks.
#[derive(Debug)]
pub struct Arena {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: the arena owns its memory.
unsafe impl Send for Arena {}

impl Arena {
    /// At least `bytes` bytes, zeroed, aligned to [`ARENA_ALIGN`].
    pub fn new(bytes: usize) -> Arena {
        let layout = Layout::from_size_align(bytes.max(ARENA_ALIGN), ARENA_ALIGN).expect("arena sizes are small");
        // SAFETY: the size is not zero.
        let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
        if ptr.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Arena { ptr, layout }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { std::alloc::dealloc(self.ptr, self.layout) }
    }
}

/// Receives what a kernel prints: site, linear block id, bits of the values, bits of the window's elements.
pub type OnPrint<'a> = dyn FnMut(usize, u64, &[u64], &[u64]) + 'a;

struct PrintTarget<'k, 'a, 'p> {
    kernel: &'k CpuKernel,
    on_print: &'a mut OnPrint<'p>,
}

/// # Safety
/// `user` points to a [`PrintTarget`] of the calling thread; the counts at the site match the arrays.
unsafe extern "C" fn print(user: *mut c_void, site: u64, block: u64, values: *const u64, elements: *const u64) {
    // SAFETY: `Executable::run` passes a pointer to its own target, which outlives the call.
    let target = unsafe { &mut *user.cast::<PrintTarget>() };
    let at = &target.kernel.prints[site as usize];
    let n = if at.element.is_empty() { 0 } else { at.shape.iter().product() };
    // SAFETY: generated code stores as many as the site says; both pointers are into the arena even for none.
    let (values, elements) =
        unsafe { (std::slice::from_raw_parts(values, at.values.len()), std::slice::from_raw_parts(elements, n)) };
    (target.on_print)(site as usize, block, values, elements);
}

impl Executable {
    /// Maps the kernel's code.
    ///
    /// # Errors
    /// If the system refuses executable memory.
    pub fn new(kernel: CpuKernel) -> io::Result<Executable> {
        let mut map = memmap2::MmapMut::map_anon(kernel.code.len().max(1))?;
        map[..kernel.code.len()].copy_from_slice(&kernel.code);
        let map = map.make_exec()?;
        Ok(Executable { kernel, map })
    }

    pub fn kernel(&self) -> &CpuKernel {
        &self.kernel
    }

    /// The entry point, valid as long as `self`.
    pub fn entry(&self) -> Entry {
        // SAFETY: the map holds code that was compiled with this signature.
        unsafe { std::mem::transmute::<*const u8, Entry>(self.map.as_ptr()) }
    }

    /// Runs the blocks of `blocks` on the calling thread.
    ///
    /// # Errors
    /// If an assertion failed or an integer was divided by zero; earlier blocks have run.
    ///
    /// # Safety
    /// `args` holds the values that [`CpuKernel::args`] asks for, and tensors are valid for what the kernel does with them.
    pub unsafe fn run(
        &self,
        args: &[u64],
        blocks: Range<u64>,
        arena: &mut Arena,
        on_print: &mut OnPrint<'_>,
    ) -> Result<(), Failure> {
        assert_eq!(args.len(), self.kernel.args.len(), "one value for each argument slot");
        assert!(arena.bytes() >= self.kernel.arena_bytes, "arena of {} bytes is too small", arena.bytes());
        let helpers = HelperTable::new(print);
        let mut target = PrintTarget { kernel: &self.kernel, on_print };
        let ctx = LaunchContext { args: args.as_ptr(), helpers: &helpers, user: (&raw mut target).cast() };
        // SAFETY: the caller vouches for the arguments, the asserts for their number and the arena.
        let status = unsafe { self.entry()(&ctx, blocks.start, blocks.end, arena.ptr) };
        self.kernel.check_status(status)
    }
}
