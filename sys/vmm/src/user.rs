// SPDX-License-Identifier: BSD-2-Clause

//! copyin(9) and copyout(9): how a request reaches the memory that its argument points to.

#![expect(
    unsafe_code,
    reason = "copies from and to the caller's memory, by address"
)]

use crate::errno::Errno;

/// The address space that a request comes from.
///
/// The arguments of some requests hold pointers (`vm_run.vm_exit`, register sets, CPU sets, the snapshot
/// buffer). They are followed only through this, so that a request may come from another process: a server
/// that serves one presents the transferred buffers under the addresses that the client used.
pub trait UserMemory {
    /// Fills `to` from user address `from`.
    ///
    /// # Errors
    ///
    /// `EFAULT` if that is not readable.
    fn copyin(&self, from: u64, to: &mut [u8]) -> Result<(), Errno>;
    /// Stores `from` at user address `to`.
    ///
    /// # Errors
    ///
    /// `EFAULT` if that is not writable.
    fn copyout(&self, from: &[u8], to: u64) -> Result<(), Errno>;
}

/// The caller's own process: an address is a pointer.
///
/// Requests are made through [`Vm::ioctl`](crate::Vm::ioctl) by code that fills in the pointers itself, exactly
/// as with ioctl(2), and it is that code's promise that they are good.
#[derive(Debug, Clone, Copy)]
pub struct ProcessMemory(());

impl ProcessMemory {
    /// # Safety
    ///
    /// Every pointer and length in the arguments of requests made with this value must denote memory of this
    /// process that stays valid, and is touched by no other thread, for the length of the request.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

/// Addresses that no user mapping has; a null or tiny pointer is a mistake that deserves an error, not a crash.
const FIRST_ADDRESS: u64 = 4096;

fn checked(address: u64, len: usize) -> Result<usize, Errno> {
    let start = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    if address < FIRST_ADDRESS || start.checked_add(len).is_none() {
        return Err(Errno::EFAULT);
    }
    Ok(start)
}

impl UserMemory for ProcessMemory {
    fn copyin(&self, from: u64, to: &mut [u8]) -> Result<(), Errno> {
        if to.is_empty() {
            return Ok(());
        }
        let from = std::ptr::with_exposed_provenance::<u8>(checked(from, to.len())?);
        // SAFETY: `new`'s caller promised that the pointers of its arguments are readable for their lengths.
        unsafe { std::ptr::copy(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copyout(&self, from: &[u8], to: u64) -> Result<(), Errno> {
        if from.is_empty() {
            return Ok(());
        }
        let to = std::ptr::with_exposed_provenance_mut::<u8>(checked(to, from.len())?);
        // SAFETY: `new`'s caller promised that the pointers of its arguments are writable for their lengths.
        unsafe { std::ptr::copy(from.as_ptr(), to, from.len()) };
        Ok(())
    }
}
