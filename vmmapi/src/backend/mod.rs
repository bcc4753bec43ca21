// SPDX-License-Identifier: BSD-2-Clause

//! Who carries out the requests: the kernel, the software vmm in this process, or the process that has the VM.

mod helper;
mod kernel;
mod mapping;
mod pointers;
mod remote;
mod soft;
pub mod standin;
pub mod system;

use std::ops::Range;

use vmm::Errno;

pub use kernel::{Kernel, Lifetime};
pub use mapping::HostMapping;
pub use pointers::{BufferLen, Pointer, pointers};
pub use remote::Remote;
pub use soft::Soft;

pub(crate) use pointers::{check_buffers, clear_pointers};

/// Which back end serves a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// FreeBSD's vmm(4).
    Kernel,
    /// The software vmm in this process.
    Soft,
    /// The software vmm in another process.
    Remote,
}

/// One VM, as its user sees it.
pub trait Backend: Send + Sync {
    /// Which back end it is.
    fn kind(&self) -> Kind;

    /// ioctl(2) on /dev/vmm/NAME: `request` and the argument's bytes are those of FreeBSD 15's ABI.
    ///
    /// Pointers in the argument are not the caller's to fill in: `buffers` are what they shall point to, in the order of
    /// [`pointers()`].
    ///
    /// # Errors
    ///
    /// What the request fails with; `EFAULT` for a buffer that is missing or shorter than the argument says; `ENXIO` if the VM
    /// is gone.
    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno>;

    /// mmap(2) on /dev/vmm/NAME: system memory at a guest physical address.
    ///
    /// # Errors
    ///
    /// What mmap(2) of the device fails with; `EOPNOTSUPP` for a VM of another process.
    fn map_sysmem(&self, gpa: u64, len: u64) -> Result<HostMapping, Errno>;

    /// mmap(2) on /dev/vmm.io/NAME.SEGMENT: a whole device memory segment.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is no such segment; otherwise as [`Self::map_sysmem`].
    fn map_devmem(&self, segment: &str, len: u64) -> Result<HostMapping, Errno>;

    /// Says that `[gpa, gpa + len)` was written through a mapping.
    fn memory_written(&self, gpa: u64, len: u64);

    /// The parts of system memory in `[gpa, gpa + len)` that may hold anything but zeros, ascending.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a range that wraps around; `EOPNOTSUPP` for a VM of another process.
    fn populated(&self, gpa: u64, len: u64) -> Result<Vec<Range<u64>>, Errno>;

    /// Ticks per second of the guest's TSC; none if that is not known.
    fn tsc_hz(&self) -> Option<u64>;

    /// Whether the guest's processors are the software vmm's, be it in another process or behind a stand-in for a kernel.
    fn is_software(&self) -> bool {
        self.kind() != Kind::Kernel
    }

    /// Destroys the VM.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the VM is gone; `EPERM` without the privilege.
    fn destroy(&self) -> Result<(), Errno>;
}
