// SPDX-License-Identifier: BSD-2-Clause

//! The software vmm in this process.

#![expect(
    unsafe_code,
    reason = "a mapping of guest memory is what whoever made it promises"
)]

use std::cell::RefCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use vmm::{Errno, UserMemory};

use super::{Backend, HostMapping, Kind, check_buffers, clear_pointers};

/// Ticks per second of the guest's TSC, which counts nanoseconds.
pub(super) const TSC_HZ: u64 = 1_000_000_000;

/// A VM of `sys/vmm`.
pub struct Soft {
    vm: Arc<vmm::Vm>,
}

impl Soft {
    /// Makes a VM in this process (`VMMCTL_VM_CREATE`).
    ///
    /// # Errors
    ///
    /// As [`::vmm::create`].
    pub fn create(name: &str, options: vmm::Options) -> Result<Self, Errno> {
        Ok(Self {
            vm: vmm::create(name, options)?,
        })
    }

    /// Finds a VM of this process.
    ///
    /// # Errors
    ///
    /// `ENOENT` if it has none of that name.
    pub fn open(name: &str) -> Result<Self, Errno> {
        Ok(Self {
            vm: vmm::lookup(name)?,
        })
    }

    /// The VM itself.
    pub fn vm(&self) -> &Arc<vmm::Vm> {
        &self.vm
    }
}

/// A request's buffers as the user memory that the vmm copies from and to. Their "addresses" are tokens, so that a
/// request cannot reach anything else.
struct Buffers<'a, 'b> {
    buffers: RefCell<&'a mut [&'b mut [u8]]>,
}

/// Distance of two buffers' tokens; longer than any buffer.
const STRIDE: u64 = 1 << 40;

fn token(index: usize) -> u64 {
    (index as u64 + 1) * STRIDE
}

impl Buffers<'_, '_> {
    fn with<R>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, Errno> {
        let index = (address / STRIDE)
            .checked_sub(1)
            .and_then(|index| usize::try_from(index).ok());
        let start = usize::try_from(address % STRIDE).map_err(|_| Errno::EFAULT)?;
        let end = start.checked_add(len).ok_or(Errno::EFAULT)?;
        let mut buffers = self.buffers.borrow_mut();
        let buffer = index
            .and_then(|index| buffers.get_mut(index))
            .ok_or(Errno::EFAULT)?;
        buffer.get_mut(start..end).map(f).ok_or(Errno::EFAULT)
    }
}

impl UserMemory for Buffers<'_, '_> {
    fn copyin(&self, from: u64, to: &mut [u8]) -> Result<(), Errno> {
        self.with(from, to.len(), |buffer| to.copy_from_slice(buffer))
    }

    fn copyout(&self, from: &[u8], to: u64) -> Result<(), Errno> {
        self.with(to, from.len(), |buffer| buffer.copy_from_slice(from))
    }
}

fn host_mapping(mapping: vmm::Mapping) -> Result<HostMapping, Errno> {
    let base = NonNull::new(mapping.as_ptr()).ok_or(Errno::EFAULT)?;
    let len = usize::try_from(mapping.len()).map_err(|_| Errno::ENOMEM)?;
    // SAFETY: the mapping keeps its segment mapped readable and writable for as long as it lives; it is shared with
    // the processors from the start.
    Ok(unsafe { HostMapping::new(base, len, Box::new(mapping)) })
}

impl Backend for Soft {
    fn kind(&self) -> Kind {
        Kind::Soft
    }

    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        check_buffers(request, arg, buffers, |index, _| token(index))?;
        let result = self.vm.ioctl(
            request,
            arg,
            &Buffers {
                buffers: RefCell::new(buffers),
            },
        );
        clear_pointers(request, arg);
        result
    }

    fn map_sysmem(&self, gpa: u64, len: u64) -> Result<HostMapping, Errno> {
        host_mapping(self.vm.mmap(gpa, len)?)
    }

    fn map_devmem(&self, segment: &str, len: u64) -> Result<HostMapping, Errno> {
        host_mapping(self.vm.mmap_devmem(segment, 0, len)?)
    }

    fn memory_written(&self, gpa: u64, len: u64) {
        self.vm.memory_written(gpa, len);
    }

    fn populated(&self, gpa: u64, len: u64) -> Result<Vec<Range<u64>>, Errno> {
        self.vm.populated(gpa, len)
    }

    fn tsc_hz(&self) -> Option<u64> {
        Some(TSC_HZ)
    }

    fn destroy(&self) -> Result<(), Errno> {
        vmm::destroy(self.vm.name())
    }
}
