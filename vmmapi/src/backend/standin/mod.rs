// SPDX-License-Identifier: BSD-2-Clause

//! A stand-in for a FreeBSD system: its devices and sysctls, with the software vmm behind them.
//!
//! It speaks the ABI of the release that it stands in for and nothing else, so that the kernel back end is exercised on
//! any host as it will be on FreeBSD. Its VMs live in this process, unlike a kernel's.

mod node;

use parking_lot::Mutex;
use std::sync::Arc;

use ::vmm::Errno;
use vmm_abi::{
    VMMCTL_CREATE_DESTROY_ON_CLOSE, VMMCTL_FLAGS_MASK, VMMCTL_VM_CREATE, VMMCTL_VM_DESTROY,
    VmmctlVmCreate, VmmctlVmDestroy,
};
use zerocopy::FromBytes;

use super::helper::Unasked;
use super::system::{Later, Node, System};
use super::{HostMapping, Soft};
use node::{DevmemNode, VmNode};

/// Ticks per second of the software processor's TSC.
const TSC_HZ: u64 = super::soft::TSC_HZ;

/// The release that is stood in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// FreeBSD 13, which is refused.
    Thirteen,
    /// FreeBSD 14.
    Fourteen,
    /// FreeBSD 15.
    Fifteen,
    /// FreeBSD 16-CURRENT.
    Sixteen,
}

impl Release {
    /// The release of this major number.
    pub fn from_number(number: &str) -> Option<Self> {
        match number {
            "13" => Some(Self::Thirteen),
            "14" => Some(Self::Fourteen),
            "15" => Some(Self::Fifteen),
            "16" => Some(Self::Sixteen),
            _ => None,
        }
    }

    /// The value of `kern.osreldate`.
    fn osreldate(self) -> u32 {
        match self {
            Self::Thirteen => 1_304_000,
            Self::Fourteen => 1_403_000,
            Self::Fifteen => 1_500_068,
            Self::Sixteen => 1_600_007,
        }
    }

    /// The flags that VMMCTL_VM_CREATE takes; where there are none, the field is one of those that must be zero.
    fn create_flags(self) -> u32 {
        if self >= Self::Sixteen {
            VMMCTL_FLAGS_MASK
        } else {
            0
        }
    }
}

/// A FreeBSD system whose vmm(4) is the software vmm.
#[derive(Debug, Clone)]
pub struct StandIn {
    release: Release,
    options: ::vmm::Options,
}

impl StandIn {
    /// A system of this release; its VMs are made with these options, and do what a kernel does.
    pub fn new(release: Release, options: ::vmm::Options) -> Self {
        let options = ::vmm::Options {
            as_kernel: Some(::vmm::KernelTraits {
                saves_mtrrs: release >= Release::Fifteen,
            }),
            ..options
        };
        Self { release, options }
    }
}

impl System for StandIn {
    fn open(&self, path: &str) -> Result<Box<dyn Node>, Errno> {
        if path == "/dev/vmmctl" && self.release >= Release::Fifteen {
            return Ok(Box::new(Ctl {
                system: self.clone(),
                on_close: Mutex::default(),
            }));
        }
        if let Some(name) = path.strip_prefix("/dev/vmm/") {
            let vm = Soft::open(name)?;
            return Ok(Box::new(VmNode::new(vm, self.release)));
        }
        // The VM's name may have dots, a segment's has none.
        match path
            .strip_prefix("/dev/vmm.io/")
            .and_then(|rest| rest.rsplit_once('.'))
        {
            Some((name, segment)) => Ok(Box::new(DevmemNode::new(Soft::open(name)?, segment))),
            None => Err(Errno::ENOENT),
        }
    }

    fn sysctl_write(&self, name: &str, value: &str) -> Result<(), Errno> {
        match name {
            "hw.vmm.create" => Soft::create(value, self.options.clone()).map(drop),
            "hw.vmm.destroy" => ::vmm::destroy(value),
            _ => Err(Errno::ENOENT),
        }
    }

    /// This process is in no sandbox, and its VMs end with it.
    fn sysctl_write_later(
        &self,
        name: &str,
        value: &str,
        _unasked: Unasked,
    ) -> Result<Later, Errno> {
        let (system, name, value) = (self.clone(), name.to_owned(), value.to_owned());
        Ok(Box::new(move || system.sysctl_write(&name, &value)))
    }

    fn sysctl_u32(&self, name: &str) -> Result<u32, Errno> {
        match name {
            "kern.osreldate" => Ok(self.release.osreldate()),
            _ => Err(Errno::ENOENT),
        }
    }

    fn sysctl_u64(&self, name: &str) -> Result<u64, Errno> {
        match name {
            "machdep.tsc_freq" => Ok(TSC_HZ),
            _ => Err(Errno::ENOENT),
        }
    }

    fn is_stand_in(&self) -> bool {
        true
    }
}

/// /dev/vmmctl.
struct Ctl {
    system: StandIn,
    /// VMs that go when this descriptor does.
    on_close: Mutex<Vec<Soft>>,
}

fn name_of(field: &[u8]) -> Result<&str, Errno> {
    // The last byte is a NUL, whatever the caller says.
    let field = field.split_last().map_or(field, |(_, rest)| rest);
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).map_err(|_| Errno::EINVAL)
}

impl Ctl {
    fn create(&self, arg: &VmmctlVmCreate) -> Result<(), Errno> {
        let unknown = arg.flags & !self.system.release.create_flags();
        if unknown != 0 || arg.reserved.iter().any(|word| *word != 0) {
            return Err(Errno::EINVAL);
        }
        let vm = Soft::create(name_of(&arg.name)?, self.system.options.clone())?;
        if arg.flags & VMMCTL_CREATE_DESTROY_ON_CLOSE != 0 {
            let mut on_close = self.on_close.lock();
            on_close.push(vm);
        }
        Ok(())
    }
}

impl Node for Ctl {
    fn ioctl(&self, request: u64, arg: &mut [u8], _buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        match request {
            VMMCTL_VM_CREATE => {
                self.create(&VmmctlVmCreate::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?)
            }
            VMMCTL_VM_DESTROY => {
                let arg = VmmctlVmDestroy::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
                if arg.reserved.iter().any(|word| *word != 0) {
                    return Err(Errno::EINVAL);
                }
                ::vmm::destroy(name_of(&arg.name)?)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn mmap(&self, _offset: u64, _len: u64) -> Result<HostMapping, Errno> {
        Err(Errno(libc::ENODEV))
    }
}

impl Drop for Ctl {
    fn drop(&mut self) {
        let on_close = self.on_close.get_mut();
        for vm in on_close.drain(..) {
            let name = vm.vm().name();
            // It may be gone already, and the name another VM's.
            let same = ::vmm::lookup(name).is_ok_and(|found| Arc::ptr_eq(&found, vm.vm()));
            if same && let Err(errno) = ::vmm::destroy(name) {
                log::debug!("{name}: destroy on close: {errno}");
            }
        }
    }
}

/// The stand-in as a system to create and open VMs on.
pub fn system(release: Release, options: &::vmm::Options) -> Arc<dyn System> {
    Arc::new(StandIn::new(release, options.clone()))
}

#[cfg(test)]
mod tests;
