// SPDX-License-Identifier: BSD-2-Clause

//! The system calls that the kernel back end needs. Behind them is the host, or a stand-in.

#![expect(unsafe_code, reason = "ioctl(2), mmap(2) and sysctl(3) of vmm(4)")]

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use ::vmm::Errno;
use vmm_abi::{VM_REQUESTS, VMMCTL_REQUESTS, v14};

use super::helper::{PrivilegedHelper, Unasked};
use super::{HostMapping, check_buffers, clear_pointers};
use crate::errno::from_io;
use crate::sandbox::{self, Purpose};

/// An operating system that may have a vmm(4).
pub trait System: Send + Sync {
    /// open(2) of a device for reading and writing.
    ///
    /// # Errors
    ///
    /// What open(2) fails with: `ENOENT` if there is no such device.
    fn open(&self, path: &str) -> Result<Box<dyn Node>, Errno>;
    /// sysctlbyname(3): sets a string.
    ///
    /// # Errors
    ///
    /// What sysctl(3) fails with: `ENOENT` for a variable that does not exist.
    fn sysctl_write(&self, name: &str, value: &str) -> Result<(), Errno>;
    /// The same, prepared now and done later, when a sandbox may not let this process do it any more. Should this process end
    /// before, it is done or not as `unasked` says.
    ///
    /// # Errors
    ///
    /// What making the process fails with that is to do it.
    fn sysctl_write_later(&self, name: &str, value: &str, unasked: Unasked)
    -> Result<Later, Errno>;
    /// sysctlbyname(3): gets a 32-bit number.
    ///
    /// # Errors
    ///
    /// As [`Self::sysctl_write`]; `EINVAL` for a variable of another size.
    fn sysctl_u32(&self, name: &str) -> Result<u32, Errno>;
    /// sysctlbyname(3): gets a 64-bit number.
    ///
    /// # Errors
    ///
    /// As [`Self::sysctl_u32`].
    fn sysctl_u64(&self, name: &str) -> Result<u64, Errno>;

    /// Whether this is a stand-in, whose VMs are the software vmm's and live in this process.
    fn is_stand_in(&self) -> bool {
        false
    }
}

/// Something that is done when it is called, once.
pub type Later = Box<dyn Fn() -> Result<(), Errno> + Send + Sync>;

/// An open device.
pub trait Node: Send + Sync {
    /// ioctl(2), with buffers as in [`super::Backend::ioctl`].
    ///
    /// # Errors
    ///
    /// What ioctl(2) fails with; `EFAULT` for a buffer that is missing or too short.
    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno>;
    /// mmap(2), readable, writable and shared.
    ///
    /// # Errors
    ///
    /// What mmap(2) fails with.
    fn mmap(&self, offset: u64, len: u64) -> Result<HostMapping, Errno>;

    /// Says that guest memory was written through a mapping. Real processors see that by themselves; a stand-in's do not.
    fn memory_written(&self, _gpa: u64, _len: u64) {}
}

/// The host that this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

impl System for Host {
    fn open(&self, path: &str) -> Result<Box<dyn Node>, Errno> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => {
                sandbox::limit(&file, Purpose::Vmm).map_err(|error| from_io(&error))?;
                Ok(Box::new(HostNode { file }))
            }
            Err(error) => Err(from_io(&error)),
        }
    }

    fn sysctl_write(&self, name: &str, value: &str) -> Result<(), Errno> {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        match set_string(&name, value.as_bytes()) {
            0 => Ok(()),
            errno => Err(Errno(errno)),
        }
    }

    fn sysctl_write_later(
        &self,
        name: &str,
        value: &str,
        unasked: Unasked,
    ) -> Result<Later, Errno> {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let value = value.as_bytes().to_owned();
        let helper = PrivilegedHelper::new(unasked, move || set_string(&name, &value));
        let helper = helper.map_err(|error| from_io(&error))?;
        Ok(Box::new(move || helper.act()))
    }

    #[cfg(target_os = "freebsd")]
    fn sysctl_u32(&self, name: &str) -> Result<u32, Errno> {
        sysctl_bytes(name).map(u32::from_ne_bytes)
    }

    #[cfg(target_os = "freebsd")]
    fn sysctl_u64(&self, name: &str) -> Result<u64, Errno> {
        sysctl_bytes(name).map(u64::from_ne_bytes)
    }

    /// Other systems have no such variables.
    #[cfg(not(target_os = "freebsd"))]
    fn sysctl_u32(&self, _name: &str) -> Result<u32, Errno> {
        Err(Errno::ENOENT)
    }

    /// Other systems have no such variables.
    #[cfg(not(target_os = "freebsd"))]
    fn sysctl_u64(&self, _name: &str) -> Result<u64, Errno> {
        Err(Errno::ENOENT)
    }
}

/// Sets a variable; 0 or an errno. It is called after a fork, too, so it allocates nothing.
#[cfg(target_os = "freebsd")]
fn set_string(name: &CStr, value: &[u8]) -> i32 {
    // SAFETY: the name is NUL-terminated, and the new value is as long as is said.
    let result = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            value.as_ptr().cast(),
            value.len(),
        )
    };
    match result {
        0 => 0,
        _ => Errno::last().0,
    }
}

/// Other systems have no such variables.
#[cfg(not(target_os = "freebsd"))]
fn set_string(_name: &CStr, _value: &[u8]) -> i32 {
    libc::ENOENT
}

/// The value of a variable that has `N` bytes; `EINVAL` if it has another size.
#[cfg(target_os = "freebsd")]
fn sysctl_bytes<const N: usize>(name: &str) -> Result<[u8; N], Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let (mut value, mut len) = ([0u8; N], N);
    // SAFETY: the name is NUL-terminated, and the kernel writes at most `len` bytes to the value.
    let result = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            &raw mut len,
            std::ptr::null(),
            0,
        )
    };
    match result {
        0 if len == N => Ok(value),
        0 => Err(Errno::EINVAL),
        _ => Err(Errno::last()),
    }
}

/// Kernels know more requests, of older releases, whose arguments have pointers in other places.
fn is_known(request: u64) -> bool {
    let mut known = VM_REQUESTS
        .iter()
        .chain(VMMCTL_REQUESTS)
        .map(|(known, _)| *known);
    matches!(request, v14::VM_ALLOC_MEMSEG | v14::VM_GET_MEMSEG)
        || known.any(|known| known == request)
}

struct HostNode {
    file: File,
}

/// Core files leave guest memory out, unless [`HostMapping::keep_in_core`] is called.
#[cfg(target_os = "freebsd")]
const MAP_FLAGS: libc::c_int = libc::MAP_SHARED | libc::MAP_NOCORE;
#[cfg(not(target_os = "freebsd"))]
const MAP_FLAGS: libc::c_int = libc::MAP_SHARED;

impl Node for HostNode {
    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        if !is_known(request) {
            return Err(Errno::ENOTTY);
        }
        check_buffers(request, arg, buffers, |_, buffer| {
            buffer.as_mut_ptr().expose_provenance() as u64
        })?;
        // SAFETY: the request is one of those whose pointers are known. The argument has the size that is part of the
        // request number; every pointer in it was just set to null or to a buffer, borrowed for this call, of at least
        // the length that the argument says.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, arg.as_mut_ptr()) };
        let result = if result == -1 {
            Err(Errno::last())
        } else {
            Ok(())
        };
        clear_pointers(request, arg);
        result
    }

    fn mmap(&self, offset: u64, len: u64) -> Result<HostMapping, Errno> {
        let size = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                prot,
                MAP_FLAGS,
                self.file.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::ENOMEM)?;
        // SAFETY: the mapping was just made and is unmapped by its owner only; it is the guest's memory, which all
        // users access as memory that others write.
        Ok(unsafe { HostMapping::new(base, size, Box::new(Unmap { base, size })) })
    }
}

/// Unmaps when dropped.
struct Unmap {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping belongs to the process, and any thread may unmap it.
unsafe impl Send for Unmap {}
// SAFETY: there is nothing to do with a shared reference.
unsafe impl Sync for Unmap {}

impl Drop for Unmap {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and who has the address keeps this value.
        if unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) } != 0 {
            log::error!("munmap: {}", Errno::last());
        }
    }
}
