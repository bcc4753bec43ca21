//! `sys/amd64/vmm/vmm.c`: the virtual machine.

use std::ops::Range;
use std::sync::RwLock;

use crate::errno::Errno;
use crate::segment::Mapping;
use crate::user::UserMemory;
use crate::vmm_mem::Memory;

/// What drives the guest's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The host's monotonic clock; virtual CPUs run in parallel and sleep when halted.
    #[default]
    Host,
    /// Retired instructions. Virtual CPUs take turns and idle time is skipped, so that the whole run depends on
    /// nothing but the guest's own inputs.
    Instructions,
}

/// How a VM behaves, fixed when it is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What drives the guest's time.
    pub clock: Clock,
    /// Whether the snapshot requests exist, as in a kernel built with `BHYVE_SNAPSHOT`.
    pub snapshot: bool,
    /// Number of possible virtual CPUs (`hw.vmm.maxcpu`), at most 254: all have their own xAPIC id.
    pub max_cpus: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { clock: Clock::Host, snapshot: true, max_cpus: 64 }
    }
}

/// A virtual machine.
pub struct Vm {
    name: String,
    options: Options,
    memory: RwLock<Memory>,
}

impl Vm {
    pub(crate) fn new(name: &str, options: Options) -> Result<Self, Errno> {
        Ok(Self { name: name.to_owned(), options, memory: RwLock::default() })
    }

    /// The name it was created with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it was created.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// ioctl(2) on `/dev/vmm/NAME`: `request` is the request number of FreeBSD 15, `arg` the argument's bytes in
    /// its ABI, in and out. Pointers inside are followed through `user`.
    pub fn ioctl(&self, request: u64, arg: &mut [u8], user: &dyn UserMemory) -> Result<(), Errno> {
        crate::vmm_dev::ioctl(self, request, arg, user)
    }

    /// mmap(2) on `/dev/vmm/NAME`: the offset is a guest physical address, and the range must lie in one mapping
    /// of system memory. This is the very memory that the virtual CPUs use.
    pub fn mmap(&self, gpa: u64, len: u64) -> Result<Mapping, Errno> {
        self.memory().mmap_sysmem(gpa, len)
    }

    /// mmap(2) on `/dev/vmm.io/NAME.SEGMENT`.
    pub fn mmap_devmem(&self, segment: &str, offset: u64, len: u64) -> Result<Mapping, Errno> {
        self.memory().mmap_devmem(segment, offset, len)
    }

    /// The parts of `[gpa, gpa + len)` of system memory that may hold anything but zeros, ascending.
    pub fn populated(&self, gpa: u64, len: u64) -> Result<Vec<Range<u64>>, Errno> {
        let mapping = self.mmap(gpa, len)?;
        let found = mapping.populated(0, len).into_iter();
        Ok(found.map(|range| gpa + range.start..gpa + range.end).collect())
    }

    /// Userland has written `[gpa, gpa + len)` through a mapping: decoded code there is stale, the pages are dirty.
    pub fn memory_written(&self, gpa: u64, len: u64) {
        let _ = (gpa, len);
    }

    pub(crate) fn memory(&self) -> std::sync::RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
