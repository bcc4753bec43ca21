// SPDX-License-Identifier: BSD-2-Clause

//! FreeBSD's vmm(4), reached as `lib/libvmmapi/vmmapi.c` reaches it.
//!
//! Which release it is shows at run time: VMs are made through /dev/vmmctl, or by sysctl where there is none (FreeBSD 14);
//! memory segments have the arguments and numbers of FreeBSD 15 or of 14; string I/O exits of 14 lack the code segment.
//! Callers always see the forms of 15. FreeBSD 13 is refused by name.

use std::ops::Range;
use std::sync::Arc;

use ::vmm::Errno;
use vmm_abi::{
    SegDesc, VM_ALLOC_MEMSEG, VM_BOOTROM, VM_EXITCODE_INOUT_STR, VM_GET_MEMSEG,
    VM_GET_SEGMENT_DESCRIPTOR, VM_LAPIC_MSI, VM_MAX_NAMELEN, VM_MMAP_GETNEXT, VM_MMAP_MEMSEG,
    VM_PCIROM, VM_REG_GUEST_CS, VM_RUN, VM_SYSMEM, VMMCTL_CREATE_DESTROY_ON_CLOSE,
    VMMCTL_VM_CREATE, VMMCTL_VM_DESTROY, VmExit, VmLapicMsi, VmMemmap, VmMemseg, VmRun, VmSegDesc,
    VmmctlVmCreate, VmmctlVmDestroy, v14,
};
use zerocopy::{FromBytes, IntoBytes};

use super::helper::Unasked;
use super::system::{Later, Node, System};
use super::{Backend, HostMapping, Kind};
use crate::error::Error;

/// `__FreeBSD_version` of 14.0.
const FREEBSD_14: u32 = 1_400_000;
/// Destination mode in the address of an MSI (`MSI_X86_ADDR_LOG`).
const MSI_LOGICAL: u64 = 1 << 2;
/// Redirection hint in the address of an MSI (`MSI_X86_ADDR_RH`).
const MSI_REDIRECTION: u64 = 1 << 3;
/// Distance of the device segments' numbers in FreeBSD 15 and 14.
const SEGID_SHIFT: i32 = VM_BOOTROM - v14::VM_BOOTROM;

/// Whose arguments of the memory segment requests, and whose string I/O exits, the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Abi {
    Fourteen,
    Fifteen,
}

/// A VM of the kernel.
pub struct Kernel {
    system: Arc<dyn System>,
    name: String,
    node: Box<dyn Node>,
    /// /dev/vmmctl, kept by the handle that made the VM: in a sandbox it cannot be opened later, and closing it destroys a VM of
    /// [`Lifetime::Maker`].
    ctl: Option<Box<dyn Node>>,
    /// What destroys the VM where there is no /dev/vmmctl. The handle that made the VM has it, for the same reason.
    destroyer: Option<Later>,
    abi: Abi,
    /// Asked for at once: a sandbox has no such variables.
    tsc_hz: Option<u64>,
}

/// When a VM in the kernel comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// When a process destroys it.
    Destroyed,
    /// When its maker closes it, too, however that comes to pass. (The kernel of FreeBSD 15.0 does not do that; that of 14 does
    /// not either, but there is a `helper.rs` for it.)
    Maker,
}

fn error(op: &'static str, name: &str) -> impl Fn(Errno) -> Error {
    move |errno| Error::new(op, name, errno)
}

/// FreeBSD 13 has other arguments for VM_RUN and more, and is past its end of life.
fn refuse_old(system: &dyn System, op: &'static str) -> Result<(), Error> {
    match system.sysctl_u32("kern.osreldate") {
        Ok(version) if version < FREEBSD_14 => {
            let what = format!("vmm(4) of FreeBSD {} is too old", version / 100_000);
            Err(Error::new(op, what, Errno(libc::EOPNOTSUPP)))
        }
        _ => Ok(()),
    }
}

/// Only a jail with a permission of its own may use vmm(4); EPERM alone would not tell.
fn told_of_jail(
    system: &dyn System,
    op: &'static str,
    name: &str,
) -> impl Fn(Errno) -> Error + use<> {
    let jailed = system.sysctl_u32("security.jail.jailed") == Ok(1);
    let name = name.to_owned();
    move |errno| {
        if jailed && errno == Errno::EPERM {
            let what = format!("{name}: this jail does not have the permission allow.vmm");
            Error::new(op, what, errno)
        } else {
            Error::new(op, name.as_str(), errno)
        }
    }
}

fn name_field(name: &str) -> Result<[u8; VM_MAX_NAMELEN + 1], Errno> {
    let mut field = [0; VM_MAX_NAMELEN + 1];
    // One byte is the NUL's.
    let place = field
        .get_mut(..name.len())
        .filter(|_| name.len() <= VM_MAX_NAMELEN)
        .ok_or(Errno::EINVAL)?;
    place.copy_from_slice(name.as_bytes());
    Ok(field)
}

impl Kernel {
    /// Makes a VM and opens it.
    ///
    /// # Errors
    ///
    /// As [`Vm::create`](crate::Vm::create) with [`Choice::Kernel`](crate::Choice::Kernel); `ENOENT` if the system has no
    /// vmm(4).
    pub fn create(system: Arc<dyn System>, name: &str, lifetime: Lifetime) -> Result<Self, Error> {
        const OP: &str = "vm_create";
        refuse_old(&*system, OP)?;
        let error = told_of_jail(&*system, OP, name);
        let (ctl, destroyer) = match system.open("/dev/vmmctl") {
            Ok(ctl) => {
                Self::create_by(&*ctl, name, lifetime).map_err(&error)?;
                (Some(ctl), None)
            }
            Err(Errno::ENOENT) => {
                let destroyer = Self::create_by_sysctl(&*system, name, lifetime);
                (None, Some(destroyer.map_err(&error)?))
            }
            Err(errno) => return Err(error(errno)),
        };
        Ok(Self {
            ctl,
            destroyer,
            ..Self::open(system, name)?
        })
    }

    fn create_by_sysctl(
        system: &dyn System,
        name: &str,
        lifetime: Lifetime,
    ) -> Result<Later, Errno> {
        let unasked = match lifetime {
            Lifetime::Destroyed => Unasked::Nothing,
            Lifetime::Maker => Unasked::Act,
        };
        system.sysctl_write("hw.vmm.create", name)?;
        let destroyer = system.sysctl_write_later("hw.vmm.destroy", name, unasked);
        if destroyer.is_err()
            && let Err(errno) = system.sysctl_write("hw.vmm.destroy", name)
        {
            log::debug!("{name}: destroy: {errno}");
        }
        destroyer
    }

    fn create_by(ctl: &dyn Node, name: &str, lifetime: Lifetime) -> Result<(), Errno> {
        let name = name_field(name)?;
        let create = |flags| {
            let mut arg = VmmctlVmCreate {
                name,
                flags,
                ..Default::default()
            };
            ctl.ioctl(VMMCTL_VM_CREATE, arg.as_mut_bytes(), &mut [])
        };
        match lifetime {
            Lifetime::Destroyed => create(0),
            Lifetime::Maker => match create(VMMCTL_CREATE_DESTROY_ON_CLOSE) {
                // A kernel that has no flags: who made the VM destroys it, if it still can.
                Err(Errno::EINVAL) => create(0),
                result => result,
            },
        }
    }

    /// Opens a VM.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is none of that name; `EINVAL` for a name that is no file name; `EOPNOTSUPP` on FreeBSD 13; `EPERM` in
    /// a jail without `allow.vmm`, and otherwise what open(2) fails with.
    pub fn open(system: Arc<dyn System>, name: &str) -> Result<Self, Error> {
        const OP: &str = "vm_open";
        refuse_old(&*system, OP)?;
        if name.is_empty() || name.contains(['/', '\0']) {
            return Err(error(OP, name)(Errno::EINVAL));
        }
        let node = system
            .open(&format!("/dev/vmm/{name}"))
            .map_err(told_of_jail(&*system, OP, name))?;
        // A kernel of FreeBSD 15 may know the shorter argument too, so the longer is tried.
        let mut probe = VmMemseg {
            segid: VM_SYSMEM,
            ..Default::default()
        };
        let abi = match node.ioctl(VM_GET_MEMSEG, probe.as_mut_bytes(), &mut []) {
            Ok(()) => Abi::Fifteen,
            Err(Errno::ENOTTY) => Abi::Fourteen,
            Err(errno) => return Err(error(OP, name)(errno)),
        };
        let tsc_hz = system.sysctl_u64("machdep.tsc_freq").ok();
        Ok(Self {
            // A kernel that does not know says 0.
            tsc_hz: tsc_hz.filter(|hz| *hz != 0),
            system,
            name: name.to_owned(),
            node,
            ctl: None,
            destroyer: None,
            abi,
        })
    }

    /// A memory segment request in the form of FreeBSD 14.
    fn memseg_14(&self, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
        let mut new = VmMemseg::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
        if new.ds_policy != 0 {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let mut old = v14::VmMemseg {
            segid: segid_to_14(new.segid)?,
            len: new.len,
            name: new.name,
            ..Default::default()
        };
        self.node.ioctl(request, old.as_mut_bytes(), &mut [])?;
        (new.len, new.name) = (old.len, old.name);
        new.write_to(arg).map_err(|_| Errno::EINVAL)
    }

    fn mmap_14(&self, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
        let mut map = VmMemmap::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
        if request == VM_MMAP_MEMSEG {
            map.segid = segid_to_14(map.segid)?;
        }
        self.node.ioctl(request, map.as_mut_bytes(), &mut [])?;
        map.segid = segid_from_14(map.segid);
        map.write_to(arg).map_err(|_| Errno::EINVAL)
    }

    /// VM_RUN, with what the string I/O exit of FreeBSD 14 leaves out.
    fn run_14(&self, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        self.node.ioctl(VM_RUN, arg, buffers)?;
        let run = VmRun::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
        let [_, exit_bytes] = buffers else {
            return Err(Errno::EINVAL);
        };
        let (exit, _) = VmExit::mut_from_prefix(exit_bytes).map_err(|_| Errno::EINVAL)?;
        if exit.exitcode == VM_EXITCODE_INOUT_STR {
            let cs = self.code_segment(run.cpuid)?;
            let mut inout = exit.inout_str();
            inout.cs_d = cs.def32().into();
            inout.cs_base = cs.base;
            exit.u.set(inout);
        }
        Ok(())
    }

    /// An MSI's destination is logical if its mode says so. Every release of the kernel wants the redirection hint to be set as
    /// well, which has no other meaning to it.
    fn lapic_msi(&self, arg: &mut [u8]) -> Result<(), Errno> {
        let mut msi = VmLapicMsi::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
        if msi.addr & MSI_LOGICAL != 0 {
            msi.addr |= MSI_REDIRECTION;
        }
        self.node.ioctl(VM_LAPIC_MSI, msi.as_mut_bytes(), &mut [])
    }

    fn code_segment(&self, cpuid: i32) -> Result<SegDesc, Errno> {
        let mut arg = VmSegDesc {
            cpuid,
            regnum: VM_REG_GUEST_CS,
            ..Default::default()
        };
        self.node
            .ioctl(VM_GET_SEGMENT_DESCRIPTOR, arg.as_mut_bytes(), &mut [])?;
        Ok(arg.desc)
    }
}

/// FreeBSD 14 has one segment of system memory.
fn segid_to_14(segid: i32) -> Result<i32, Errno> {
    match segid {
        VM_SYSMEM => Ok(VM_SYSMEM),
        VM_BOOTROM..=VM_PCIROM => Ok(segid - SEGID_SHIFT),
        _ => Err(Errno::EINVAL),
    }
}

fn segid_from_14(segid: i32) -> i32 {
    if segid == VM_SYSMEM {
        VM_SYSMEM
    } else {
        segid.saturating_add(SEGID_SHIFT)
    }
}

impl Backend for Kernel {
    fn kind(&self) -> Kind {
        Kind::Kernel
    }

    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        match (self.abi, request) {
            (Abi::Fourteen, VM_ALLOC_MEMSEG) => self.memseg_14(v14::VM_ALLOC_MEMSEG, arg),
            (Abi::Fourteen, VM_GET_MEMSEG) => self.memseg_14(v14::VM_GET_MEMSEG, arg),
            (Abi::Fourteen, VM_MMAP_MEMSEG | VM_MMAP_GETNEXT) => self.mmap_14(request, arg),
            (Abi::Fourteen, VM_RUN) => self.run_14(arg, buffers),
            (_, VM_LAPIC_MSI) => self.lapic_msi(arg),
            _ => self.node.ioctl(request, arg, buffers),
        }
    }

    fn map_sysmem(&self, gpa: u64, len: u64) -> Result<HostMapping, Errno> {
        self.node.mmap(gpa, len)
    }

    fn map_devmem(&self, segment: &str, len: u64) -> Result<HostMapping, Errno> {
        self.system
            .open(&format!("/dev/vmm.io/{}.{segment}", self.name))?
            .mmap(0, len)
    }

    fn memory_written(&self, gpa: u64, len: u64) {
        self.node.memory_written(gpa, len);
    }

    /// The kernel does not tell which pages were touched, so all may hold something. mincore(2) would not do: a page
    /// that is in swap looks to it like one that was never there.
    fn populated(&self, gpa: u64, len: u64) -> Result<Vec<Range<u64>>, Errno> {
        let end = gpa.checked_add(len).ok_or(Errno::EINVAL)?;
        Ok(std::iter::once(gpa..end).collect())
    }

    /// The guest's TSC runs at the rate of the host's; only the offset is its own.
    fn tsc_hz(&self) -> Option<u64> {
        self.tsc_hz
    }

    fn is_software(&self) -> bool {
        self.system.is_stand_in()
    }

    fn destroy(&self) -> Result<(), Errno> {
        let destroy_by = |ctl: &dyn Node| {
            let mut arg = VmmctlVmDestroy {
                name: name_field(&self.name)?,
                ..Default::default()
            };
            ctl.ioctl(VMMCTL_VM_DESTROY, arg.as_mut_bytes(), &mut [])
        };
        if let Some(ctl) = &self.ctl {
            return destroy_by(&**ctl);
        }
        if let Some(destroyer) = &self.destroyer {
            return destroyer();
        }
        match self.system.open("/dev/vmmctl") {
            Ok(ctl) => destroy_by(&*ctl),
            Err(Errno::ENOENT) => self.system.sysctl_write("hw.vmm.destroy", &self.name),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests;
