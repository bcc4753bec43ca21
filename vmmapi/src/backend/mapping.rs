// SPDX-License-Identifier: BSD-2-Clause

//! Memory of a VM that is mapped into this process.

#![expect(unsafe_code, reason = "memory that the guest shares, by address")]

use std::any::Any;
use std::ptr::NonNull;

use ::vmm::Errno;

/// A readable and writable mapping that lasts as long as this value.
pub struct HostMapping {
    base: NonNull<u8>,
    len: usize,
    /// Unmaps when dropped.
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the mapping stays at its address until the owner is dropped, and the code that dereferences the pointer answers for
// doing so; the pointer itself may travel between threads.
unsafe impl Send for HostMapping {}
// SAFETY: as above; no method touches the memory.
unsafe impl Sync for HostMapping {}

impl HostMapping {
    /// A mapping of `len` bytes at `base`.
    ///
    /// # Safety
    ///
    /// The bytes must be mapped readable and writable until `owner` is dropped, and all that access them, in this process
    /// or outside, must be prepared for others' writes.
    pub unsafe fn new(base: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        Self {
            base,
            len,
            _owner: owner,
        }
    }

    /// Where the mapping starts.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets core dumps of this process contain the memory, which back ends leave out.
    ///
    /// # Errors
    ///
    /// What madvise(2) fails with.
    pub fn keep_in_core(&self) -> Result<(), Errno> {
        #[cfg(target_os = "freebsd")]
        const CORE: libc::c_int = libc::MADV_CORE;
        #[cfg(not(target_os = "freebsd"))]
        const CORE: libc::c_int = libc::MADV_DODUMP;
        // SAFETY: the range is mapped for as long as this value exists, and the advice changes nothing of its contents.
        let result = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, CORE) };
        if result == 0 {
            Ok(())
        } else {
            Err(Errno::last())
        }
    }
}

impl std::fmt::Debug for HostMapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostMapping")
            .field("base", &self.base)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
