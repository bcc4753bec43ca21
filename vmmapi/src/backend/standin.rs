//! A stand-in for a FreeBSD system: its devices and sysctls, with the software vmm behind them.
//!
//! It speaks the ABI of the release that it stands in for and nothing else, so that the kernel back end is exercised on
//! any host as it will be on FreeBSD.

use std::sync::Arc;

use ::vmm::Errno;
use vmm_abi::{
    VM_ALLOC_MEMSEG, VM_EXITCODE_INOUT_STR, VM_GET_MEMSEG, VM_MMAP_GETNEXT, VM_MMAP_MEMSEG, VM_RUN,
    VM_SYSMEM, VMMCTL_VM_CREATE, VMMCTL_VM_DESTROY, VmExit, VmMemmap, VmMemseg, VmmctlVmCreate,
    VmmctlVmDestroy, v14,
};
use zerocopy::{FromBytes, IntoBytes};

use super::system::{Node, System};
use super::{Backend, HostMapping, Soft};

/// The release that is stood in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// FreeBSD 13, which is refused.
    Thirteen,
    /// FreeBSD 14.
    Fourteen,
    /// FreeBSD 15.
    Fifteen,
}

/// A FreeBSD system whose vmm(4) is the software vmm.
#[derive(Debug, Clone)]
pub struct StandIn {
    release: Release,
    options: ::vmm::Options,
}

impl StandIn {
    /// A system of this release; its VMs are made with these options.
    pub fn new(release: Release, options: ::vmm::Options) -> Self {
        Self { release, options }
    }
}

impl System for StandIn {
    fn open(&self, path: &str) -> Result<Box<dyn Node>, Errno> {
        if path == "/dev/vmmctl" && self.release == Release::Fifteen {
            return Ok(Box::new(Ctl {
                options: self.options.clone(),
            }));
        }
        if let Some(name) = path.strip_prefix("/dev/vmm/") {
            return Ok(Box::new(VmNode {
                vm: Soft::open(name)?,
                release: self.release,
            }));
        }
        // The VM's name may have dots, a segment's has none.
        match path
            .strip_prefix("/dev/vmm.io/")
            .and_then(|rest| rest.rsplit_once('.'))
        {
            Some((name, segment)) => Ok(Box::new(DevmemNode {
                vm: Soft::open(name)?,
                segment: segment.to_owned(),
            })),
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

    fn sysctl_u32(&self, name: &str) -> Result<u32, Errno> {
        match (name, self.release) {
            ("kern.osreldate", Release::Thirteen) => Ok(1_304_000),
            ("kern.osreldate", Release::Fourteen) => Ok(1_403_000),
            ("kern.osreldate", Release::Fifteen) => Ok(1_500_068),
            _ => Err(Errno::ENOENT),
        }
    }
}

/// /dev/vmmctl.
struct Ctl {
    options: ::vmm::Options,
}

fn name_of(field: &[u8]) -> Result<&str, Errno> {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .ok_or(Errno::EINVAL)?;
    std::str::from_utf8(&field[..end]).map_err(|_| Errno::EINVAL)
}

impl Node for Ctl {
    fn ioctl(&self, request: u64, arg: &mut [u8], _buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        match request {
            VMMCTL_VM_CREATE => {
                let arg = VmmctlVmCreate::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
                Soft::create(name_of(&arg.name)?, self.options.clone()).map(drop)
            }
            VMMCTL_VM_DESTROY => {
                let arg = VmmctlVmDestroy::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
                ::vmm::destroy(name_of(&arg.name)?)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn mmap(&self, _offset: u64, _len: u64) -> Result<HostMapping, Errno> {
        Err(Errno(libc::ENODEV))
    }
}

/// /dev/vmm.io/NAME.SEGMENT.
struct DevmemNode {
    vm: Soft,
    segment: String,
}

impl Node for DevmemNode {
    fn ioctl(
        &self,
        _request: u64,
        _arg: &mut [u8],
        _buffers: &mut [&mut [u8]],
    ) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    fn mmap(&self, offset: u64, len: u64) -> Result<HostMapping, Errno> {
        if offset != 0 {
            return Err(Errno::EINVAL);
        }
        self.vm.map_devmem(&self.segment, len)
    }
}

/// /dev/vmm/NAME.
struct VmNode {
    vm: Soft,
    release: Release,
}

/// Segment numbers as a kernel of FreeBSD 15 takes those of 14.
fn segid_from_14(segid: i32) -> Result<i32, Errno> {
    match segid {
        VM_SYSMEM => Ok(VM_SYSMEM),
        1..v14::VM_MAX_MEMSEGS => Ok(segid + 7),
        _ => Err(Errno::EINVAL),
    }
}

impl VmNode {
    fn ioctl_14(
        &self,
        request: u64,
        arg: &mut [u8],
        buffers: &mut [&mut [u8]],
    ) -> Result<(), Errno> {
        match request {
            v14::VM_ALLOC_MEMSEG => self.memseg(VM_ALLOC_MEMSEG, arg),
            v14::VM_GET_MEMSEG => self.memseg(VM_GET_MEMSEG, arg),
            VM_ALLOC_MEMSEG | VM_GET_MEMSEG => Err(Errno::ENOTTY),
            VM_MMAP_MEMSEG | VM_MMAP_GETNEXT => self.mmap(request, arg),
            VM_RUN => self.run(arg, buffers),
            _ => self.vm.ioctl(request, arg, buffers),
        }
    }

    fn memseg(&self, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
        let mut old = v14::VmMemseg::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
        let segid = segid_from_14(old.segid)?;
        let mut new = VmMemseg {
            segid,
            len: old.len,
            name: old.name,
            ..Default::default()
        };
        self.vm.ioctl(request, new.as_mut_bytes(), &mut [])?;
        (old.len, old.name) = (new.len, new.name);
        old.write_to(arg).map_err(|_| Errno::EINVAL)
    }

    fn mmap(&self, request: u64, arg: &mut [u8]) -> Result<(), Errno> {
        let mut map = VmMemmap::read_from_bytes(arg).map_err(|_| Errno::EINVAL)?;
        if request == VM_MMAP_MEMSEG {
            map.segid = segid_from_14(map.segid)?;
        }
        self.vm.ioctl(request, map.as_mut_bytes(), &mut [])?;
        if map.segid != VM_SYSMEM {
            map.segid -= 7;
        }
        map.write_to(arg).map_err(|_| Errno::EINVAL)
    }

    /// The exit without what FreeBSD 14 does not have.
    fn run(&self, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        self.vm.ioctl(VM_RUN, arg, buffers)?;
        let [_, exit] = buffers else {
            return Err(Errno::EINVAL);
        };
        let (exit, _) = VmExit::mut_from_prefix(exit).map_err(|_| Errno::EINVAL)?;
        if exit.exitcode == VM_EXITCODE_INOUT_STR {
            let old: v14::VmInoutStr = exit.u.get();
            exit.u.set(old);
        }
        Ok(())
    }
}

impl Node for VmNode {
    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        match self.release {
            Release::Thirteen => Err(Errno::ENOTTY),
            Release::Fourteen => self.ioctl_14(request, arg, buffers),
            Release::Fifteen => self.vm.ioctl(request, arg, buffers),
        }
    }

    fn mmap(&self, offset: u64, len: u64) -> Result<HostMapping, Errno> {
        self.vm.map_sysmem(offset, len)
    }
}

/// The stand-in as a system to create and open VMs on.
pub fn system(release: Release, options: &::vmm::Options) -> Arc<dyn System> {
    Arc::new(StandIn::new(release, options.clone()))
}
